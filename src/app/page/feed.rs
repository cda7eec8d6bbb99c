//! The numbers of the status page, as its script reads them. See `page.js`.
//!
//! Everything is bounded: of what there may be thousands of, those come that need somebody most, and the count of the rest.

use serde::{Serialize, Serializer};

use super::history::Columns;
use super::recent::Event;
use crate::pool::book::Tally;
use crate::pool::view::WaiterRow;
use crate::recent::Happened;

/// Services and pools that are shown.
const MOST_ROWS: usize = 200;

/// Waiters that are shown: who waits longest.
const MOST_WAITERS: usize = 50;

/// Deployments that are shown.
const MOST_DEPLOYMENTS: usize = 200;

/// Alerts that are shown: any service may raise two.
const MOST_ALERTS: usize = 50;

/// Incidents that are shown: the last ones.
const MOST_INCIDENTS: usize = 50;

/// Who is connected around pgweir, of one Postgres: the most first.
const MOST_FOREIGN: usize = 5;

/// Rows of each table of an incident's story.
const MOST_OF_A_TABLE: usize = 20;

/// Server connections that were closed, over all Postgres.
const MOST_CLOSED: usize = 50;

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
    pub(super) alerts: Rows<Alert>,
    pub(super) hosts: Vec<Host>,
    pub(super) services: Rows<Service>,
    pub(super) deployments: Rows<Deployment>,
    pub(super) pools: Rows<Pool>,
    pub(super) waiters: Rows<Waiter>,
    pub(super) incidents: Rows<Incident>,
    pub(super) refusals: Vec<Happening<Event>>,
    pub(super) closings: Vec<Happening<Event>>,
    pub(super) servers_closed: Rows<Happening<ServerClosed>>,
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
    #[serde(flatten)]
    pub(super) servers: Servers,
    /// What its monitor has found; `None`: nothing yet.
    pub(super) measured: Option<Measured>,
    /// It refuses more with 53300.
    pub(super) is_full: bool,
    /// Why pgweir cannot log in, if it cannot.
    pub(super) fault: Option<String>,
}

/// What a Postgres has, and who has it besides the pools.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) max_connections: u32,
    /// Kept for superusers and the like.
    pub(super) reserved: u32,
    /// The monitor's own.
    pub(super) monitor: u32,
    /// Other pgweir processes'.
    pub(super) siblings: u32,
    /// Those of nobody that we know.
    pub(super) foreign: u32,
    /// What ordinary users may still open.
    pub(super) free: u32,
    /// Whose the foreign ones are.
    pub(super) who: Rows<Foreign>,
}

#[derive(Debug, Serialize)]
pub(super) struct Foreign {
    pub(super) application_name: String,
    pub(super) user: String,
    pub(super) address: String,
    pub(super) connections: u32,
}

/// An alert that is raised.
#[derive(Debug, Serialize)]
pub(super) struct Alert {
    /// The word for logs and metrics; the page has a title for each.
    pub(super) kind: &'static str,
    pub(super) subject: String,
    pub(super) since: u64,
    pub(super) text: String,
    pub(super) holder: Option<Holder>,
    /// What to type.
    pub(super) command: String,
}

/// Who has the most of it.
#[derive(Debug, Serialize)]
pub(super) struct Holder {
    pub(super) service: String,
    pub(super) deployment: String,
    pub(super) count: u64,
}

/// A deployment that has sessions.
#[derive(Debug, Serialize)]
pub(super) struct Deployment {
    pub(super) service: String,
    #[serde(rename = "deployment")]
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) first_seen: u64,
    /// Since when it is in its state.
    pub(super) since: u64,
    pub(super) superseded_by: Option<String>,
    pub(super) sessions: u64,
    /// Of the sessions, those that do nothing inside a transaction.
    pub(super) idle_in_transaction: u64,
    /// Server connections in their hands.
    pub(super) servers: u32,
}

/// An incident in a line; its story is asked for by its number.
#[derive(Debug, Serialize)]
pub(super) struct Incident {
    pub(super) number: u64,
    pub(super) opened: u64,
    /// `None`: it goes on.
    pub(super) closed: Option<u64>,
    pub(super) causes: Vec<&'static str>,
    pub(super) text: String,
    /// It grows while there is more to tell.
    pub(super) snapshots: u32,
}

/// Something that happened to one, or to several alike.
#[derive(Debug, Serialize)]
pub(super) struct Happening<T> {
    /// When it happened last.
    pub(super) at: u64,
    #[serde(flatten)]
    pub(super) what: T,
    /// How often it happened.
    pub(super) count: u64,
}

impl<T> From<Happened<T>> for Happening<T> {
    fn from(happened: Happened<T>) -> Self {
        Self {
            at: super::milliseconds(happened.at),
            what: happened.what,
            count: happened.count,
        }
    }
}

/// A server connection that was closed.
#[derive(Debug, Serialize)]
pub(super) struct ServerClosed {
    pub(super) reason: &'static str,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) postgres: String,
}

/// Server connections by what they do: the counts and words of [`Tally::each`].
#[derive(Debug)]
pub(super) struct Servers(pub(super) Tally);

impl Serialize for Servers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.each())
    }
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
    /// Those that come first anyway.
    pub(super) fn first(mut rows: Vec<T>) -> Self {
        let left_off = rows.len().saturating_sub(MOST_OF_A_TABLE);
        rows.truncate(MOST_OF_A_TABLE);
        Self { rows, left_off }
    }

    pub(super) fn map<R>(self, row: impl Fn(T) -> R) -> Rows<R> {
        Rows {
            rows: self.rows.into_iter().map(row).collect(),
            left_off: self.left_off,
        }
    }

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

impl Rows<Deployment> {
    pub(super) fn of_deployments(rows: Vec<Deployment>) -> Self {
        Self::neediest(rows, MOST_DEPLOYMENTS, |row| {
            (row.state == "superseded", row.sessions, row.first_seen)
        })
    }
}

impl Rows<Alert> {
    pub(super) fn of_alerts(rows: Vec<Alert>) -> Self {
        Self::neediest(rows, MOST_ALERTS, |row| row.since)
    }
}

impl Rows<Incident> {
    pub(super) fn of_incidents(rows: Vec<Incident>) -> Self {
        Self::neediest(rows, MOST_INCIDENTS, |row| row.number)
    }
}

impl Rows<Foreign> {
    pub(super) fn of_foreign(rows: Vec<Foreign>) -> Self {
        Self::neediest(rows, MOST_FOREIGN, |row| row.connections)
    }
}

impl Rows<Happening<ServerClosed>> {
    pub(super) fn of_closed(rows: Vec<Happening<ServerClosed>>) -> Self {
        Self::neediest(rows, MOST_CLOSED, |row| row.at)
    }
}

impl Rows<WaiterRow> {
    /// Before they are made into rows of the page, which costs a look-up for each.
    pub(super) fn of_waiters(rows: Vec<WaiterRow>) -> Self {
        Self::neediest(rows, MOST_WAITERS, |row| row.age)
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
