//! The book's words: ids, limits, what a call answers and what it asks to be done.

use std::time::Duration;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(super) u32);

        impl $name {
            /// A small number, dense from 0: an index for the caller's own tables.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// One Postgres, whose budget all its pools share.
    HostId,
    /// One database, for its cap on server connections.
    DatabaseId,
    /// One user, for its cap on server connections.
    UserId,
    /// One service.
    ServiceId,
}

macro_rules! slot_ids {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            pub(super) index: u32,
            pub(super) generation: u32,
        }

        impl $name {
            /// A small number, reused once what it names is gone: an index for the caller's own tables, which keep the
            /// whole id beside it.
            pub fn index(self) -> usize {
                self.index as usize
            }
        }
    )*};
}

slot_ids! {
    /// The server connections of one (database, user) on one host.
    PoolId,
    /// One server connection, from the order to dial it until it is closed.
    ServerId,
    /// One session's place in a queue, until it is served, refused or leaves.
    WaiterId,
}

/// One thread's reactor, which owns sockets. Small and dense from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub u16);

/// Where a pool belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolPlace {
    /// Whose budget it draws on.
    pub host: HostId,
    /// Whose cap it falls under.
    pub database: DatabaseId,
    /// Whose cap it falls under, too.
    pub user: UserId,
}

/// A pool's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Server connections at most; 0 = as many as the other caps allow.
    pub size: u32,
    /// Kept open even when idle, once anybody has asked or `warm` was called.
    pub min_size: u32,
    /// So many beyond `size`, for waiters who have waited `reserve_after`.
    pub reserve_size: u32,
    /// See `reserve_size`.
    pub reserve_after: Duration,
    /// An idle connection beyond `min_size` is closed when unused for so long; `None` = never.
    pub server_idle: Option<Duration>,
    /// The idle connection that has been unused for longest is lent, not the one used last.
    pub in_turn: bool,
}

/// A service's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Server connections on its account at most, over all hosts; 0 = no cap of its own.
    pub max_servers: u32,
    /// Kept for it on each host where it has asked.
    pub min_servers: u32,
    /// Its part of what is contended for, at least 1.
    pub weight: u32,
    /// So many of `max_servers` are for those who ask with [`Reach::All`].
    pub kept_servers: u32,
}

/// How much of its service's `max_servers` an asker may see in use and still be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// All of it.
    All,
    /// All but `kept_servers`. For who keeps a server connection for a long time and may not shut out those who come after: a session
    /// that holds one for its life, of a deployment that is not the newest.
    AllButKept,
}

/// On whose account a server connection is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// The service.
    pub service: ServiceId,
    /// How far it may go.
    pub reach: Reach,
}

impl From<ServiceId> for Party {
    fn from(service: ServiceId) -> Self {
        Self {
            service,
            reach: Reach::All,
        }
    }
}

/// What a pool does for who asks it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    /// It lends and dials.
    #[default]
    Open,
    /// It lends and dials nothing. What is idle stays, and what comes back too.
    Suspended,
    /// The same, and what is idle or comes back is closed.
    Paused,
}

impl Gate {
    /// Whether anybody is served.
    pub fn is_open(self) -> bool {
        self == Self::Open
    }
}

/// What `ask` answers.
#[must_use = "a server connection that was granted is lost if nobody takes it"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Lent at once: it is leased, without a `take`.
    Granted {
        /// The server connection.
        server: ServerId,
        /// Where its socket still is; differs from the asking thread when it moves.
        from: ThreadId,
    },
    /// In the queue. A `Grant` or `Refuse` follows, if the session does not `leave` first.
    Waiting(WaiterId),
}

/// What the caller must now do. The book counts it as done already.
#[must_use = "an action not carried out leaves the book and the sockets in disagreement"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wake this waiter, which then calls `take` (or `leave`).
    Grant {
        /// Who has waited for it.
        waiter: WaiterId,
        /// The server connection.
        server: ServerId,
        /// Where its socket is registered.
        from: ThreadId,
        /// Where the waiter lives, and the socket belongs from now on.
        to: ThreadId,
    },
    /// Connect and log in; then call `dialed` or `dial_failed`.
    Dial {
        /// The id of the server connection to be.
        server: ServerId,
        /// The pool that says where and as whom.
        pool: PoolId,
        /// On whose account it is.
        service: ServiceId,
        /// The thread that is to own it.
        thread: ThreadId,
    },
    /// Close an idle server connection; then call `closed`.
    Close {
        /// The server connection.
        server: ServerId,
        /// Where its socket is.
        thread: ThreadId,
        /// Why, for the log and the counters.
        reason: CloseReason,
    },
    /// Tell this waiter that it will not be served. Its id is spent.
    Refuse {
        /// Who has waited in vain.
        waiter: WaiterId,
        /// Where it lives.
        thread: ThreadId,
        /// Why.
        why: Refusal,
    },
}

/// Why an idle server connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Unused for `server_idle`.
    ServerIdle,
    /// Older than its lifetime.
    ServerLifetime,
    /// Closed so that somebody else's waiter can have the room.
    MadeRoom,
    /// Its host's budget has shrunk.
    OverBudget,
    /// A cap on its pool, database, user or service was lowered.
    OverLimit,
    /// Its pool was told to reconnect, after a change of address or password, or by an operator.
    Reconnect,
    /// Its pool is paused.
    Paused,
}

/// Why a waiter is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It has waited until its deadline.
    QueryWait,
    /// Postgres refuses this pool's login for good (28P01, 3D000 and their like).
    LoginRefused,
    /// The pool is being taken away.
    PoolRemoved,
}

/// How a pool is to wait after a dial that failed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// The first wait; it doubles with each further failure, up to [`super::MAX_RETRY`].
    pub first: Duration,
    /// From 0 to 1, at random: lengthens the wait by up to a quarter, so that pools do not come back in step.
    pub jitter: f32,
}

/// What a server connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Ordered, not logged in yet.
    Dialing,
    /// Ready to be lent.
    Idle,
    /// Lent to a waiter that has not picked it up yet.
    Granted,
    /// A session's.
    Leased,
    /// To be closed; Postgres may still count it.
    Closing,
}

impl State {
    /// How many there are.
    pub(super) const COUNT: usize = Self::Closing as usize + 1;
}
