//! What happened to the server connections of one Postgres, counted where it happens.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use std::sync::Arc;

use parking_lot::Mutex;

use super::errand::Discard;
use super::pools::Pool;
use crate::metrics::Reasons;
use crate::recent::{Alike, Happened, Recent};
use crate::server::dial::DialError;

/// Closings that are remembered of each Postgres.
const MOST_CLOSED: usize = 20;

/// A server connection that was closed.
#[derive(Debug, Clone)]
pub struct Closed {
    /// The word for logs and metrics.
    pub reason: &'static str,
    /// The database as clients call it.
    pub database: Arc<str>,
    /// The role at Postgres.
    pub role: Arc<str>,
}

impl Alike for Closed {
    fn is_like(&self, other: &Self) -> bool {
        (self.reason, &self.database, &self.role) == (other.reason, &other.database, &other.role)
    }
}

/// Counts of one Postgres since the process began.
#[derive(Debug)]
pub struct PostgresCounts {
    /// Server connections that were asked for.
    pub dials: AtomicU64,
    /// Dials that failed.
    pub failures: Reasons,
    /// Server connections that were closed.
    pub closings: Reasons,
    last_closed: Mutex<Recent<Closed>>,
    /// What the last dial found: 1 = nobody, 2 = a Postgres.
    last: AtomicU8,
}

impl Default for PostgresCounts {
    fn default() -> Self {
        Self {
            dials: AtomicU64::default(),
            failures: Reasons::new(&DialError::WORDS),
            closings: Reasons::new(&Discard::WORDS),
            last_closed: Mutex::new(Recent::new(MOST_CLOSED)),
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
            DialError::Timeout(_)
                | DialError::NoAddress { .. }
                | DialError::Unreachable { .. }
                | DialError::Insecure { .. }
        );
        self.last.store(1 + u8::from(is_there), Relaxed);
    }

    /// A server connection of this pool was closed.
    pub(super) fn closed(&self, reason: Discard, pool: &Pool) {
        let reason = reason.as_str();
        self.closings.add(reason);
        self.last_closed.lock().note(Closed {
            reason,
            database: Arc::clone(&pool.name),
            role: Arc::clone(&pool.role),
        });
    }

    /// The last server connections that were closed, the latest first.
    pub fn last_closed(&self) -> Vec<Happened<Closed>> {
        self.last_closed.lock().read()
    }

    /// Whether the last dial found a Postgres; `None`: nobody has dialled.
    pub fn was_there(&self) -> Option<bool> {
        Some(self.last.load(Relaxed))
            .filter(|last| *last > 0)
            .map(|last| last == 2)
    }
}
