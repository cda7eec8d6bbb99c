//! Times what a client does on a server connection.

use super::Traffic;

/// Times what a client does on a server connection, in microseconds of whatever clock the caller has. That is read when a
/// server connection is lent and comes back, which reads it anyway, and between two queries of one transaction.
#[derive(Debug, Default)]
pub struct Stint {
    transaction: Option<u64>,
    query: Option<u64>,
    /// Queries that were answered and not timed yet.
    answered: u64,
}

impl Stint {
    /// A transaction begins with its first query.
    pub fn begin(&mut self, now: u64) {
        (self.transaction, self.query) = (Some(now), Some(now));
    }

    /// The client has said something. Begins what has not begun.
    pub fn asked(&mut self, now: impl FnOnce() -> u64) {
        if self.query.is_none() {
            let now = now();
            self.query = Some(now);
            self.transaction.get_or_insert(now);
        }
    }

    /// So many queries were answered.
    pub fn answered(&mut self, count: u64) {
        self.answered += count;
    }

    /// Counts the queries that were answered. `goes_on`: others are in flight.
    pub fn lap(&mut self, now: impl FnOnce() -> u64, goes_on: bool, traffic: &Traffic) {
        if self.answered == 0 {
            return;
        }
        let now = now();
        self.count_queries(now, traffic);
        self.query = goes_on.then_some(now);
    }

    /// The transaction has ended, and with it the last query.
    pub fn end(&mut self, now: u64, traffic: &Traffic) {
        self.count_queries(now, traffic);
        if let Some(began) = self.transaction.take() {
            traffic.took(now.saturating_sub(began));
        }
        self.query = None;
    }

    fn count_queries(&mut self, now: u64, traffic: &Traffic) {
        let answered = std::mem::take(&mut self.answered);
        if let Some(began) = self.query {
            traffic.answered(now.saturating_sub(began), answered);
        }
    }
}
