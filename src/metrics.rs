//! Every metric series, declared once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter that one thread writes and any thread reads: adding costs no locked instruction.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds `n`. Only the owning thread may call this: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one thread moved for one pool.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes read from clients.
    pub received: Tally,
    /// Bytes read from Postgres.
    pub sent: Tally,
    /// ReadyForQuery messages: a simple query, or an extended batch up to its Sync.
    pub queries: Tally,
    /// Leases that ended settled.
    pub transactions: Tally,
}
