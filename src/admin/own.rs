//! What the console counts of itself: PgBouncer's statistics have a row for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::pool::stats::{DatabaseStats, Periods, Totals};

/// The name of the console's row.
const NAME: &str = "pgbouncer";

/// Counts of all its sessions together.
#[derive(Debug, Default)]
pub struct Own {
    logins: AtomicU64,
    commands: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    periods: Mutex<Periods>,
}

impl Own {
    /// Somebody has logged in.
    pub fn logged_in(&self) {
        self.logins.fetch_add(1, Relaxed);
    }

    /// A statement was answered.
    pub fn answered(&self) {
        self.commands.fetch_add(1, Relaxed);
    }

    /// So many bytes came.
    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// So many bytes went.
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// A period of the statistics is over.
    pub fn end_stats_period(&self, length: Duration) {
        let totals = HashMap::from([(NAME.into(), self.totals())]);
        self.periods.lock().roll(totals, length);
    }

    /// Its row.
    pub fn stats(&self) -> DatabaseStats {
        DatabaseStats {
            database: Arc::from(NAME),
            totals: self.totals(),
            averages: self.periods.lock().averages(NAME),
        }
    }

    /// Each statement is a query and a transaction.
    fn totals(&self) -> Totals {
        let commands = self.commands.load(Relaxed);
        Totals {
            transactions: commands,
            queries: commands,
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            logins: self.logins.load(Relaxed),
            ..Totals::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_a_query_and_a_transaction() {
        let own = Own::default();
        own.logged_in();
        (0..120).for_each(|_| own.answered());
        own.end_stats_period(Duration::from_mins(1));
        own.answered();
        let DatabaseStats {
            totals, averages, ..
        } = own.stats();
        assert_eq!(
            (totals.queries, totals.transactions, totals.logins),
            (121, 121, 1)
        );
        assert_eq!((averages.queries, averages.transactions), (2, 2));
    }
}
