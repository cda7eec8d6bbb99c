//! What happened to the server connections of one Postgres, counted where it happens.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::errand::Discard;
use crate::metrics::Reasons;
use crate::server::dial::DialError;

/// Counts of one Postgres since the process began.
#[derive(Debug)]
pub struct PostgresCounts {
    /// Server connections that were asked for.
    pub dials: AtomicU64,
    /// Dials that failed.
    pub failures: Reasons,
    /// Server connections that were closed.
    pub closings: Reasons,
    /// What the last dial found: 1 = nobody, 2 = a Postgres.
    last: AtomicU8,
}

impl Default for PostgresCounts {
    fn default() -> Self {
        Self {
            dials: AtomicU64::default(),
            failures: Reasons::new(&DialError::WORDS),
            closings: Reasons::new(&Discard::WORDS),
            last: AtomicU8::default(),
        }
    }
}

impl PostgresCounts {
    /// A dial succeeded.
    pub(super) fn dialed(&self) {
        self.last.store(2, Relaxed);
    }

    /// A dial failed. Who refuses a login is there.
    pub(super) fn dial_failed(&self, error: &DialError) {
        self.failures.add(error.as_str());
        let is_there = !matches!(
            error,
            DialError::Timeout(_) | DialError::Unreachable { .. } | DialError::Insecure { .. }
        );
        self.last.store(1 + u8::from(is_there), Relaxed);
    }

    /// Whether the last dial found a Postgres; `None`: nobody has dialled.
    pub fn was_there(&self) -> Option<bool> {
        Some(self.last.load(Relaxed))
            .filter(|last| *last > 0)
            .map(|last| last == 2)
    }
}
