//! Pools, server connections and queues as the console, the metrics and the recorder see them: plain rows, true at one moment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::book::{PoolLimits, ServiceLimits, Tally};
use super::pools::{Pool, Purpose};
use crate::client::view::HeldServer;
use crate::config::checked::{Host, Mode};
use crate::net::line::TlsInUse;

/// What a server connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerState {
    /// It is being dialled.
    New,
    /// It waits for a client.
    Idle,
    /// It is a client's, or on its way to one.
    Active,
    /// The same, and a cancel request for it is on its way.
    ActiveCancel,
    /// No client has it, and it is lent to nobody before a cancel request is over.
    BeingCanceled,
    /// No client has it: it is being brought back to order, or a login is asking it something.
    Tested,
    /// It was told to end. Postgres may still count it.
    Closing,
}

impl ServerState {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::New,
        Self::Idle,
        Self::Active,
        Self::ActiveCancel,
        Self::BeingCanceled,
        Self::Tested,
        Self::Closing,
    ];

    /// PgBouncer's word, where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::ActiveCancel => "active_cancel",
            Self::BeingCanceled => "being_canceled",
            Self::Tested => "tested",
            Self::Closing => "closing",
        }
    }
}

/// One server connection.
#[derive(Debug, Clone)]
pub struct ServerRow {
    /// Its number, which no other has.
    pub number: u32,
    /// Its pool: database, user.
    pub pool: Arc<Pool>,
    /// On whose account it is.
    pub service: Arc<str>,
    /// The data thread that has its socket.
    pub thread: u16,
    /// What it does.
    pub state: ServerState,
    /// For how long.
    pub age: Duration,
    /// When it was last lent.
    pub requested: Option<SystemTime>,
    /// It is closed as soon as it comes back.
    pub close_needed: bool,
    /// The session that holds it.
    pub client: Option<u32>,
    /// What is known once it is logged in.
    pub session: Option<ServerSession>,
}

/// What is known of a server connection that is logged in.
#[derive(Debug, Clone)]
pub struct ServerSession {
    /// Postgres' process id for it.
    pub pid: u32,
    /// The host as configured.
    pub host: Arc<Host>,
    /// Its address; `None`: a unix socket.
    pub address: Option<SocketAddr>,
    /// Our own address; `None`: a unix socket.
    pub local: Option<SocketAddr>,
    /// `None`: in clear.
    pub tls: Option<TlsInUse>,
    /// When it was logged in.
    pub connected: SystemTime,
    /// As Postgres knows it.
    pub application_name: String,
    /// Prepared statements that pgweir keeps on it.
    pub prepared: u32,
}

/// Which server connection each session holds, by the sessions' numbers.
pub fn held(servers: &[ServerRow]) -> HashMap<u32, HeldServer> {
    let held = servers.iter().filter_map(|row| {
        let server = HeldServer {
            number: row.number,
            pid: row.session.as_ref()?.pid,
        };
        Some((row.client?, server))
    });
    held.collect()
}

/// What one service has of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRow {
    /// The service.
    pub service: Arc<str>,
    /// Server connections on its account.
    pub tally: Tally,
    /// Its sessions in the queue.
    pub waiters: u32,
}

/// Server connections by what they do, as `SHOW POOLS` counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerCounts([u32; ServerState::ALL.len()]);

impl ServerCounts {
    /// Those in this state.
    pub fn of(&self, state: ServerState) -> u32 {
        self.0[state as usize]
    }

    pub(super) fn add(&mut self, state: ServerState) {
        self.0[state as usize] += 1;
    }
}

/// One pool.
#[derive(Debug, Clone)]
pub struct PoolRow {
    /// Database, user, what it is for.
    pub pool: Arc<Pool>,
    /// Its Postgres.
    pub host: Arc<str>,
    /// How long a client keeps a server connection.
    pub mode: Mode,
    /// Its caps.
    pub limits: PoolLimits,
    /// Sessions that get their server connections from it, those in its queue among them.
    pub clients: u32,
    /// Sessions in its queue, and clients to be logged in.
    pub waiters: u32,
    /// Of the waiters, clients to be logged in.
    pub logins_waiting: u32,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
    /// How long no dial is made after one that failed.
    pub retry_in: Option<Duration>,
    /// Server connections by the book's states.
    pub tally: Tally,
    /// Server connections by PgBouncer's states.
    pub servers: ServerCounts,
    /// Cancel requests that were sent and are not answered.
    pub cancels_sent: u32,
    /// Cancel requests that wait for others to be answered.
    pub cancels_waiting: u32,
    /// What each service has of it.
    pub parts: Vec<PartRow>,
}

impl PoolRow {
    /// Sessions that do not wait: idle ones too, as PgBouncer counts.
    pub fn clients_active(&self) -> u32 {
        let waiting = self.waiters.saturating_sub(self.logins_waiting);
        self.clients.saturating_sub(waiting)
    }

    /// Whether clients know it: not one of pgweir's own.
    pub fn is_for_clients(&self) -> bool {
        self.pool.purpose == Purpose::Clients
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Its name.
    pub name: Arc<str>,
    /// Its cap, minimum and weight.
    pub limits: ServiceLimits,
    /// Its server connections, over all hosts.
    pub tally: Tally,
    /// Its sessions in queues.
    pub waiters: u32,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

/// One Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Its hosts as configured.
    pub name: Arc<str>,
    /// How many server connections it may have; `None`: it was not asked yet.
    pub budget: Option<u32>,
    /// Those it has.
    pub tally: Tally,
}

/// One database or user with its cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapRow {
    /// Its name.
    pub name: Arc<str>,
    /// Server connections at most; 0 = no cap.
    pub cap: u32,
    /// Those it has.
    pub tally: Tally,
}

/// Somebody in a queue.
#[derive(Debug, Clone)]
pub struct WaiterRow {
    /// The session's number; `None`: of a client that is to be logged in.
    pub client: Option<u32>,
    /// The pool.
    pub pool: Arc<Pool>,
    /// On whose account.
    pub service: Arc<str>,
    /// For how long.
    pub age: Duration,
    /// How many of the pool's waiters came no later. Who may go first is served first, so this is no promise.
    pub place: u32,
}
