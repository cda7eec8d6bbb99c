//! Sessions as the console, the metrics and the recorder see them: plain rows, true at one moment.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::directory::Who;
use super::patience::Activity;
use crate::net::line::Line;
use crate::net::listen::Peer;

/// One session.
#[derive(Debug, Clone)]
pub struct ClientRow {
    /// Its number, which no other session has.
    pub id: u32,
    /// The process id that its client was told.
    pub pid: u32,
    /// User, database, service, deployment, application name.
    pub who: Arc<Who>,
    /// What it does.
    pub activity: Activity,
    /// For how long, by a clock of 50 milliseconds.
    pub age: Duration,
    /// How long it has had a transaction.
    pub transaction_age: Option<Duration>,
    /// Where it came from.
    pub peer: Peer,
    /// Our address, and TLS.
    pub line: Arc<Line>,
    /// When it was logged in.
    pub connected: SystemTime,
    /// When its last request came; before the first, when it was logged in.
    pub requested: SystemTime,
    /// Its prepared statements.
    pub statements: u32,
    /// It was asked to leave.
    pub close_needed: bool,
    /// Transactions, and statements outside of one.
    pub transactions: u64,
    /// Queries that were answered.
    pub queries: u64,
    /// Bytes of its client that were sent on.
    pub received: u64,
    /// Bytes of Postgres that were sent on.
    pub sent: u64,
    /// The server connection that it holds: see [`link`].
    pub server: Option<HeldServer>,
}

/// The server connection that a session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldServer {
    /// Its number, which no other server connection has.
    pub number: u32,
    /// Postgres' process id for it.
    pub pid: u32,
}

impl ClientRow {
    /// PgBouncer's word for what it does.
    pub fn state(&self) -> &'static str {
        state_word(self.activity)
    }

    /// How long it has waited for a server connection.
    pub fn wait(&self) -> Duration {
        if is_waiting(self.activity) {
            self.age
        } else {
            Duration::ZERO
        }
    }
}

/// PgBouncer's word for an activity.
pub fn state_word(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle | Activity::Holding => "idle",
        Activity::Waiting | Activity::WaitingTold => "waiting",
        Activity::Active | Activity::InTransaction | Activity::Streaming => "active",
    }
}

fn is_waiting(activity: Activity) -> bool {
    matches!(activity, Activity::Waiting | Activity::WaitingTold)
}

/// Fills in which server connection each session holds, by the sessions' numbers.
pub fn link(rows: &mut [ClientRow], held: impl Fn(u32) -> Option<HeldServer>) {
    for row in rows {
        row.server = held(row.id);
    }
}

/// Sessions by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientTally {
    /// Nothing, outside a transaction.
    pub idle: u64,
    /// In a pool's queue.
    pub waiting: u64,
    /// Postgres owes them an answer.
    pub active: u64,
    /// Nothing, inside a transaction.
    pub in_transaction: u64,
    /// Replicating.
    pub streaming: u64,
}

impl ClientTally {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.each().into_iter().map(|(_, count)| count).sum()
    }

    /// Each count, with the word for logs and metrics.
    pub fn each(&self) -> [(&'static str, u64); 5] {
        [
            ("idle", self.idle),
            ("waiting", self.waiting),
            ("active", self.active),
            ("idle_in_transaction", self.in_transaction),
            ("streaming", self.streaming),
        ]
    }

    pub(super) fn add(&mut self, activity: Activity) {
        *match activity {
            Activity::Idle | Activity::Holding => &mut self.idle,
            Activity::Waiting | Activity::WaitingTold => &mut self.waiting,
            Activity::Active => &mut self.active,
            Activity::InTransaction => &mut self.in_transaction,
            Activity::Streaming => &mut self.streaming,
        } += 1;
    }
}

impl std::ops::AddAssign for ClientTally {
    fn add_assign(&mut self, other: Self) {
        self.idle += other.idle;
        self.waiting += other.waiting;
        self.active += other.active;
        self.in_transaction += other.in_transaction;
        self.streaming += other.streaming;
    }
}
