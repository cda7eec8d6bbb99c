//! The numbers of the status page, as its script reads them. See `page.js`.
//!
//! Everything is bounded: of what there may be thousands of, those come that need somebody most, and the count of the rest.

use serde::Serialize;

use super::history::Columns;
use super::recent::Happening;
use crate::pool::view::WaiterRow;

/// Services and pools that are shown.
const MOST_ROWS: usize = 200;

/// Waiters that are shown: who waits longest.
const MOST_WAITERS: usize = 50;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// Milliseconds of the Unix epoch, here and below.
    pub(super) now: u64,
    pub(super) started: u64,
    pub(super) version: &'static str,
    pub(super) state: &'static str,
    pub(super) clients: Clients,
    pub(super) transactions_per_second: f64,
    pub(super) queries_per_second: f64,
    pub(super) hosts: Vec<Host>,
    pub(super) services: Rows<Service>,
    pub(super) pools: Rows<Pool>,
    pub(super) waiters: Rows<Waiter>,
    pub(super) refusals: Vec<Happening>,
    pub(super) closings: Vec<Happening>,
    pub(super) history: History,
}

/// Clients of the whole process.
#[derive(Debug, Serialize)]
pub(super) struct Clients {
    pub(super) sockets: u32,
    /// 0 = none.
    pub(super) limit: u32,
    pub(super) sessions: u64,
    /// Logins among them.
    pub(super) waiting: u32,
}

/// One Postgres against its budget.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    pub(super) name: String,
    /// `None` = not known yet.
    pub(super) budget: Option<u32>,
    pub(super) leased: u32,
    pub(super) idle: u32,
    pub(super) dialing: u32,
    pub(super) closing: u32,
    /// Why pgweir cannot log in, if it cannot.
    pub(super) fault: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Service {
    pub(super) name: String,
    /// 0 = none.
    pub(super) cap: u32,
    pub(super) servers: u32,
    pub(super) leased: u32,
    pub(super) clients: u64,
    /// 0 = none.
    pub(super) client_cap: u32,
    pub(super) waiters: u32,
    pub(super) longest_wait_ms: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Pool {
    pub(super) database: String,
    pub(super) user: String,
    pub(super) size: u32,
    pub(super) servers: u32,
    pub(super) leased: u32,
    pub(super) clients: u32,
    pub(super) waiters: u32,
    pub(super) longest_wait_ms: u64,
    pub(super) transactions_per_second: f64,
}

/// A session in a queue.
#[derive(Debug, Serialize)]
pub(super) struct Waiter {
    pub(super) id: u32,
    pub(super) service: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) peer: String,
    pub(super) wait_ms: u64,
}

/// The last hour.
#[derive(Debug, Serialize)]
pub(super) struct History {
    /// When the first minute begins.
    pub(super) start: u64,
    #[serde(flatten)]
    pub(super) columns: Columns,
}

/// Some rows of many.
#[derive(Debug, Serialize)]
pub(super) struct Rows<T> {
    rows: Vec<T>,
    left_off: usize,
}

impl<T> Rows<T> {
    /// The first `most` rows in the order of what they need.
    fn neediest<K: Ord>(mut rows: Vec<T>, most: usize, need: impl Fn(&T) -> K) -> Self {
        let left_off = rows.len().saturating_sub(most);
        rows.sort_by_key(|row| std::cmp::Reverse(need(row)));
        rows.truncate(most);
        Self { rows, left_off }
    }
}

impl Rows<Service> {
    pub(super) fn of_services(rows: Vec<Service>) -> Self {
        Self::neediest(rows, MOST_ROWS, |row| {
            (row.waiters, row.servers, row.clients)
        })
    }
}

impl Rows<Pool> {
    pub(super) fn of_pools(rows: Vec<Pool>) -> Self {
        Self::neediest(rows, MOST_ROWS, |row| {
            (row.waiters, row.servers, row.clients)
        })
    }
}

impl Rows<WaiterRow> {
    /// Before they are made into rows of the page, which costs a look-up for each.
    pub(super) fn of_waiters(rows: Vec<WaiterRow>) -> Self {
        Self::neediest(rows, MOST_WAITERS, |row| row.age)
    }

    pub(super) fn map(self, row: impl Fn(WaiterRow) -> Waiter) -> Rows<Waiter> {
        Rows {
            rows: self.rows.into_iter().map(row).collect(),
            left_off: self.left_off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_rows_the_neediest_come_and_the_rest_is_counted() {
        let needs = (0..1000_u32).map(|n| n * 7919 % 1000).collect();
        let Rows { rows, left_off } = Rows::neediest(needs, 50, |need| *need);
        assert_eq!(rows, (950..1000).rev().collect::<Vec<_>>());
        assert_eq!(left_off, 950);
    }
}
