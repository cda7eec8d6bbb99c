//! Incidents: who held what while server connections ran short, to be read afterwards.
//!
//! The types of what is noted, where it is kept (`store`) and how it is told (`export`). Nothing here knows sockets or pools:
//! whoever watches brings the facts.

pub mod export;
pub mod store;

use serde::{Deserialize, Serialize};

/// One thing noted about an incident: a line of its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What may be noted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum What {
    /// It began.
    Opened {
        /// Its number.
        number: u64,
        /// What it was opened for.
        cause: Cause,
        /// In a sentence.
        text: String,
        /// Which pgweir tells this.
        pgweir: String,
    },
    /// Something else came to it.
    Joined {
        /// What.
        cause: Cause,
        /// In a sentence.
        text: String,
    },
    /// One of its causes is over.
    Passed {
        /// Which.
        cause: Cause,
        /// In a sentence.
        text: String,
    },
    /// pgweir, or somebody, did something about it.
    Done {
        /// What.
        text: String,
    },
    /// How things stood.
    Stood(Box<Snapshot>),
    /// No more snapshots: there are too many already.
    Full,
    /// It ended.
    Closed {
        /// In a sentence.
        text: String,
    },
}

/// What an alert or an incident is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A service has more server connections than its `alert_servers`.
    ServiceServers,
    /// A service has more clients than its `alert_clients`.
    ServiceClients,
    /// All together have more than `alerts.total_servers`.
    TotalServers,
    /// Postgres has fewer connections left than `pressure.min_headroom`.
    Headroom,
    /// The budget is spent, and somebody waits beyond `pressure.waiters_for`.
    Waiters,
    /// Many clients were refused their login.
    LoginFailures,
    /// Postgres cannot be reached.
    Unreachable,
    /// Postgres refused a connection with 53300.
    TooManyConnections,
}

impl Cause {
    /// The word for logs, metrics and the console: the same as in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceServers => "service_servers",
            Self::ServiceClients => "service_clients",
            Self::TotalServers => "total_servers",
            Self::Headroom => "headroom",
            Self::Waiters => "waiters",
            Self::LoginFailures => "login_failures",
            Self::Unreachable => "unreachable",
            Self::TooManyConnections => "too_many_connections",
        }
    }

    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::ServiceServers,
        Self::ServiceClients,
        Self::TotalServers,
        Self::Headroom,
        Self::Waiters,
        Self::LoginFailures,
        Self::Unreachable,
        Self::TooManyConnections,
    ];

    /// Whether little of it is bad, rather than much.
    pub fn falls(self) -> bool {
        self == Self::Headroom
    }
}

/// How things stood at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Each Postgres.
    pub postgres: Vec<Ground>,
    /// Who held server connections, the most first.
    pub holders: Vec<Holder>,
    /// Clients, by service and deployment, the most first.
    pub clients: Vec<Clients>,
    /// The oldest transactions, the oldest first.
    pub transactions: Vec<Transaction>,
    /// Who waited, by service, the longest first.
    pub queue: Vec<Queue>,
    /// What became of others so far, by service.
    pub harm: Vec<Harm>,
    /// Who was connected around pgweir, the most first.
    pub foreign: Vec<Foreign>,
}

/// One Postgres.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ground {
    /// Its hosts, as in the configuration.
    pub name: String,
    /// Its `max_connections`, if known.
    pub max_connections: Option<u32>,
    /// How many pgweir may have.
    pub budget: Option<u32>,
    /// How many it has.
    pub held: u32,
    /// How many others have, if known.
    pub others: Option<u32>,
    /// How many are free for anybody, if known.
    pub free: Option<u32>,
    /// Why it cannot be reached.
    pub trouble: Option<String>,
}

/// Server connections that have this in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// The service.
    pub service: String,
    /// Its deployment, if it says.
    pub deployment: String,
    /// Where the client came from; empty: nobody has it at this moment.
    pub address: String,
    /// As in pg_stat_activity (`idle in transaction`), or what pgweir does with it.
    pub state: String,
    /// How many.
    pub count: u32,
    /// For how long the first of them has been so, in seconds.
    pub oldest: u64,
    /// Its last statement, without literals.
    pub statement: String,
}

/// Clients of one deployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clients {
    /// The service.
    pub service: String,
    /// Its deployment, if it says.
    pub deployment: String,
    /// How many.
    pub count: u64,
}

/// A transaction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transaction {
    /// Whose, or empty if it is not one of pgweir's.
    pub service: String,
    /// Its deployment, if it says.
    pub deployment: String,
    /// The role.
    pub user: String,
    /// The process at Postgres.
    pub pid: u32,
    /// Of the session.
    pub state: String,
    /// Its age in seconds.
    pub seconds: u64,
    /// The last statement, without literals.
    pub statement: String,
}

/// Waiters of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// The service, or the pool where only that is known.
    pub service: String,
    /// How many.
    pub waiting: u32,
    /// For how long the first has waited, in milliseconds.
    pub longest: u64,
}

/// What a service suffered since the incident began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Harm {
    /// The service.
    pub service: String,
    /// Clients that were told that there is no server connection for them.
    pub refused: u64,
    /// The most that waited at once.
    pub waiting: u64,
}

/// Connections that did not come through pgweir.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foreign {
    /// What they call themselves.
    pub application_name: String,
    /// As whom.
    pub user: String,
    /// Where from; empty if Postgres does not say.
    pub address: String,
    /// What they do, if Postgres says.
    pub state: String,
    /// How many.
    pub count: u32,
    /// How old the first is, in seconds, if Postgres says.
    pub oldest: Option<u64>,
}

/// An incident as it was noted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incident {
    /// Everything, in its order. The first is [`What::Opened`].
    pub notes: Vec<Note>,
}

/// An incident in a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its number.
    pub number: u64,
    /// When it began, in milliseconds since 1970.
    pub opened: i64,
    /// When it ended, if it has.
    pub closed: Option<i64>,
    /// What it was opened for.
    pub cause: Cause,
    /// In a sentence.
    pub text: String,
    /// Everything that came to it, in order.
    pub causes: Vec<Cause>,
    /// Snapshots that were kept.
    pub snapshots: u32,
}

impl Incident {
    /// It in a line; `None` if its beginning is lost.
    pub fn summary(&self) -> Option<Summary> {
        let first = self.notes.first()?;
        let What::Opened {
            number,
            cause,
            text,
            ..
        } = &first.what
        else {
            return None;
        };
        let mut summary = Summary {
            number: *number,
            opened: first.at,
            closed: None,
            cause: *cause,
            text: text.clone(),
            causes: vec![*cause],
            snapshots: 0,
        };
        self.notes[1..].iter().for_each(|note| summary.add(note));
        Some(summary)
    }

    /// Its snapshots, with their times.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = (i64, &Snapshot)> {
        self.notes.iter().filter_map(|note| match &note.what {
            What::Stood(snapshot) => Some((note.at, &**snapshot)),
            _ => None,
        })
    }
}

impl Summary {
    /// Keeps it true when something is noted.
    pub fn add(&mut self, note: &Note) {
        match &note.what {
            What::Joined { cause, .. } if !self.causes.contains(cause) => self.causes.push(*cause),
            What::Stood(_) => self.snapshots += 1,
            What::Closed { .. } => self.closed = Some(note.at),
            _ => {}
        }
    }
}

/// A time as people and programs read it: `2026-03-01T13:24:00Z`.
pub fn time(milliseconds: i64) -> String {
    match jiff::Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => "?".to_owned(),
    }
}
