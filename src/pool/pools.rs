//! All pools of the process: the book, and the connections and wakers that it keeps account of.
//!
//! The book decides, under one lock that is held for well under a microsecond: once when a transaction asks for a server
//! connection, once when it gives it back. That buys one exact budget and one queue over all threads, without a message from
//! thread to thread. Sockets are read, written, opened and closed outside of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::book::{
    Action, Asked, Book, DatabaseId, HostId, PoolId, PoolLimits, PoolPlace, PoolView, Refusal,
    Retry, ServerId, ServiceId, ServiceLimits, ThreadId, UserId, WaiterId,
};
use super::errand::{Discard, Errand, Task};
use super::lease::{Lease, Ticket};
use crate::config::checked::{Mode, Secret};
use crate::metrics::Traffic;
use crate::server::close::CancelWay;
use crate::server::connection::Connection;
use crate::server::dial::{DialError, Target};
use crate::server::login::{ServerLogin, Welcome};
use crate::server::prepared::Store;
use crate::wire::parameters::Parameters;
use crate::wire::reply::{Report, Severity, SqlState};
use crate::wire::startup::Startup;

/// All pools of the process.
#[derive(Debug)]
pub struct Pools {
    state: Mutex<State>,
    /// Where each thread takes its errands from.
    threads: Vec<UnboundedSender<Errand>>,
    /// The book's time begins here.
    epoch: Instant,
    /// Lets cancel requests through.
    cancels: Arc<Semaphore>,
}

/// Cancel requests on their way to Postgres at once, over all pools. Each costs it a process for a moment, so that a storm of
/// them would be one of forks.
const CANCELS_AT_ONCE: usize = 16;

/// Services that are kept apart. Far more than anybody lists, and few enough to be weighed against each other.
const MOST_SERVICES: usize = 1000;

/// Sets of startup parameters that a pool remembers. Applications have one each.
const MOST_ACCEPTED: usize = 1000;

/// The account of those beyond [`MOST_SERVICES`].
const OTHER_SERVICES: &str = "(others)";

#[derive(Debug, Default)]
struct State {
    book: Book,
    /// What the book's last call wants done.
    actions: Vec<Action>,
    /// Idle and granted connections, by the index of their id.
    parked: Vec<Option<(ServerId, Box<Connection>)>>,
    /// Waiters, by the index of their id.
    desks: Vec<Option<Desk>>,
    /// Pools, by the index of their id.
    pools: Vec<Option<Arc<Pool>>>,
    by_name: HashMap<Key, Arc<Pool>>,
    names: Names,
    /// Probes made so far.
    probes: u64,
}

/// What a pool is there for. Only those for clients are found by the names that clients give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Clients' queries.
    Clients,
    /// Trying one password, the so-many-th.
    LoginCheck(u64),
    /// Looking up users.
    LookUp,
    /// One client's replication, the so-many-th.
    Replication(u64),
}

/// Database, role and purpose of a pool.
type Key = (String, String, Purpose);

/// The book's ids, by the names that people use.
#[derive(Debug, Default)]
struct Names {
    hosts: HashMap<String, HostId>,
    databases: HashMap<String, DatabaseId>,
    users: HashMap<String, UserId>,
    services: HashMap<String, (ServiceId, ServiceLimits)>,
}

/// Where a waiter is called.
#[derive(Debug)]
struct Desk {
    waker: Waker,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Granted { server: ServerId, moves: bool },
    Refused(Refusal),
}

/// Why a session gets no server connection, and what its client is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// It has waited for `query_wait`.
    #[error("no server connection within query_wait")]
    QueryWait {
        /// What Postgres said at the last failed login, if that is why.
        last_error: Option<Arc<str>>,
    },
    /// Postgres refuses the login.
    #[error("Postgres refuses the login: {cause}")]
    Login {
        /// In the log's words.
        cause: Arc<str>,
        /// The message for the client: Postgres' own words.
        message: Arc<[u8]>,
        /// Postgres' own code, if it is Postgres that refuses.
        code: Option<SqlState>,
        /// Postgres asked for a proof that pgweir does not have.
        wants_proof: bool,
    },
    /// The pool was taken away.
    #[error("the pool was removed")]
    PoolRemoved,
}

impl Refused {
    /// Postgres' code for it, if it is Postgres that refuses.
    pub fn code(&self) -> Option<SqlState> {
        match self {
            Self::Login { code, .. } => *code,
            Self::QueryWait { .. } | Self::PoolRemoved => None,
        }
    }

    /// The last words to the client.
    pub fn to_client(&self) -> Vec<u8> {
        let report = match self {
            Self::Login { message, .. } => return message.to_vec(),
            Self::QueryWait { last_error: None } => {
                Report::new(SqlState::TOO_MANY_CONNECTIONS, "query_wait_timeout")
                    .detail("No server connection became free within query_wait.")
                    .hint("All server connections that this client may have are in use.")
            }
            Self::QueryWait {
                last_error: Some(error),
            } => Report::new(SqlState::UNABLE_TO_CONNECT, "query_wait_timeout").detail(format!(
                "Postgres could not be reached within query_wait: {error}"
            )),
            Self::PoolRemoved => Report::new(
                SqlState::ADMIN_SHUTDOWN,
                "this database was removed from the configuration",
            ),
        };
        report.error(Severity::Fatal)
    }
}

/// The server connections of one (database, user).
#[derive(Debug)]
pub struct Pool {
    /// In the book.
    pub id: PoolId,
    /// The database as clients call it.
    pub database: String,
    /// The role at Postgres, and for whom it is if not for clients.
    pub user: String,
    /// What it is there for.
    pub purpose: Purpose,
    /// Whose caps it falls under.
    place: PoolPlace,

    /// What may change while it is in use.
    settings: RwLock<Arc<PoolSettings>>,
    /// What Postgres told at the last login.
    welcome: RwLock<Option<Arc<Welcome>>>,
    last_failure: Mutex<Option<Failure>>,
    vouched: tokio::sync::Mutex<Option<Vouched>>,
    statements: Store,
    /// Parameters that clients asked for at startup, and what became of them.
    accepted: Mutex<HashMap<Parameters, Arc<Accepted>>>,
    /// What each thread moved.
    traffic: Vec<Traffic>,
    pools: Arc<Pools>,
}

#[derive(Debug, Clone)]
struct Failure {
    cause: Arc<str>,
    message: Arc<[u8]>,
    code: Option<SqlState>,
    wants_proof: bool,
}

/// What became of the parameters that a client asked for at startup.
#[derive(Debug)]
pub struct Accepted {
    /// As Postgres has them.
    pub parameters: Arc<Parameters>,
    /// What Postgres reported of them.
    pub reported: Vec<(Box<str>, Box<str>)>,
}

/// Who vouches for a pool's user, where Postgres is asked who may log in.
#[derive(Debug)]
pub enum Vouched {
    /// Postgres lets this user in without a password.
    Trusted,
    /// This password let the user in.
    By(Secret),
}

/// What may change while a pool is in use.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Where and as whom to log in.
    pub target: Target,
    /// How long a client keeps a server connection.
    pub mode: Mode,
    /// Sizes.
    pub limits: PoolLimits,
    /// The longest wait for a server connection.
    pub query_wait: Option<Duration>,
    /// A connection is closed at this age, give or take a tenth.
    pub server_lifetime: Option<Duration>,
    /// The first pause after a failed login.
    pub server_login_retry: Duration,
    /// Run between two clients in session mode; empty = nothing.
    pub server_reset_query: String,
    /// Prepared statements that a server connection keeps; 0 = names are left to the clients.
    pub max_prepared_statements: u32,
    /// How long it may take to bring a connection back to order.
    pub recover_limit: Duration,
    /// How long a cancel request may be on its way.
    pub cancel_limit: Duration,
    /// The budget of its Postgres; `None` = what Postgres says, less `headroom`.
    pub budget: Option<u32>,
    /// See `budget`.
    pub headroom: u32,
    /// It serves once, to try one password or one client's replication, and is forgotten after that.
    pub is_probe: bool,
    /// Caps on its database and user.
    pub database_cap: u32,
    /// See `database_cap`.
    pub user_cap: u32,
}

impl PoolSettings {
    /// The same with room for one connection, made with another proof.
    #[must_use]
    pub fn as_probe(&self, proof: ServerLogin) -> Self {
        let mut probe = self.as_single();
        probe.target.identity.proof = proof;
        probe
    }

    /// The same with room for one connection that replicates, with everything that its client asked for at startup.
    #[must_use]
    pub fn as_replication(&self, startup: &Startup) -> Self {
        let mut single = self.as_single();
        single.mode = Mode::Session;
        // It may understand no SQL.
        single.target.connect_query = None;
        single.server_lifetime = None;
        let identity = &mut single.target.identity;
        let name = startup.parameter("application_name").unwrap_or_default();
        name.clone_into(&mut identity.application_name);
        identity.parameters.clone_from(&startup.parameters);
        identity
            .parameters
            .retain(|(name, _)| name != "application_name");
        single
    }

    /// The same with room for one connection, which serves once.
    fn as_single(&self) -> Self {
        let mut probe = self.clone();
        probe.is_probe = true;
        // What is left of a try that took too long serves nobody, and is closed at once.
        let server_idle = Some(Duration::ZERO);
        probe.limits = PoolLimits {
            size: 1,
            min_size: 0,
            reserve_size: 0,
            server_idle,
            ..probe.limits
        };

        probe
    }
}

impl Pools {
    /// No pools yet. `threads`: the inbox of each data thread.
    pub fn new(threads: Vec<UnboundedSender<Errand>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            threads,
            epoch: Instant::now(),
            cancels: Arc::new(Semaphore::new(CANCELS_AT_ONCE)),
        })
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The service of this name, with these limits from now on. Names come from clients: beyond a bound, new ones that
    /// are not `listed` in the configuration share one account.
    pub fn service(&self, name: &str, listed: bool, limits: ServiceLimits) -> ServiceId {
        self.update(|state, now| {
            let State {
                book,
                actions,
                names,
                ..
            } = state;
            let services = &mut names.services;
            let full = !listed && services.len() >= MOST_SERVICES && !services.contains_key(name);
            let name = if full { OTHER_SERVICES } else { name };
            if let Some((id, known)) = services.get_mut(name) {
                if *known != limits {
                    *known = limits;
                    book.set_service(now, *id, limits, actions);
                }
                return *id;
            }
            let id = book.add_service(limits);
            services.insert(name.to_owned(), (id, limits));
            id
        })
    }

    /// The pool of `database` and `user`, made with `settings` at the first call.
    pub fn pool(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        settings: impl FnOnce() -> PoolSettings,
    ) -> Arc<Pool> {
        self.pool_for(Purpose::Clients, database, user, settings)
    }

    /// The pool in which `user` looks up users at `database`, made with `settings` at the first call.
    pub fn look_up(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        settings: impl FnOnce() -> PoolSettings,
    ) -> Arc<Pool> {
        self.pool_for(Purpose::LookUp, database, user, settings)
    }

    fn pool_for(
        self: &Arc<Self>,
        purpose: Purpose,
        database: &str,
        user: &str,
        settings: impl FnOnce() -> PoolSettings,
    ) -> Arc<Pool> {
        let key = (database.to_owned(), user.to_owned(), purpose);
        if let Some(pool) = self.state.lock().by_name.get(&key) {
            return Arc::clone(pool);
        }
        let settings = settings();
        self.update(|state, _| match state.by_name.get(&key) {
            Some(pool) => Arc::clone(pool),
            None => self.add(state, key, settings),
        })
    }

    /// A pool in which one password of `pool`'s user is tried, with `settings`. Each try has its own, so that nothing a try
    /// leaves behind can serve another.
    pub fn probe(self: &Arc<Self>, pool: &Pool, settings: PoolSettings) -> Arc<Pool> {
        self.update(|state, _| {
            state.probes += 1;
            let purpose = Purpose::LoginCheck(state.probes);
            let key = (pool.database.clone(), pool.user.clone(), purpose);
            self.add(state, key, settings)
        })
    }

    /// A pool for the one server connection of a client that replicates: it serves nobody before and nobody after.
    pub fn replication(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        settings: PoolSettings,
    ) -> Arc<Pool> {
        self.update(|state, _| {
            state.probes += 1;
            let purpose = Purpose::Replication(state.probes);
            let key = (database.to_owned(), user.to_owned(), purpose);
            self.add(state, key, settings)
        })
    }

    fn add(self: &Arc<Self>, state: &mut State, key: Key, settings: PoolSettings) -> Arc<Pool> {
        let (database, user, purpose) = key.clone();
        let user = match purpose {
            Purpose::Clients => user,
            Purpose::LoginCheck(nth) => format!("{user} (login check {nth})"),
            Purpose::LookUp => format!("{user} (auth_query)"),
            Purpose::Replication(nth) => format!("{user} (replication {nth})"),
        };
        let place = state.place(&database, &settings);
        let id = state.book.add_pool(place, settings.limits);
        let pool = Arc::new(Pool {
            id,
            database,
            user,
            purpose,
            place,
            settings: RwLock::new(Arc::new(settings)),
            welcome: RwLock::default(),
            last_failure: Mutex::default(),
            vouched: tokio::sync::Mutex::default(),
            statements: Store::default(),
            accepted: Mutex::default(),
            traffic: self.threads.iter().map(|_| Traffic::default()).collect(),
            pools: Arc::clone(self),
        });
        put(&mut state.pools, id.index(), Arc::clone(&pool));
        state.by_name.insert(key, Arc::clone(&pool));
        pool
    }

    /// Every pool, in no order.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.state.lock().by_name.values().cloned().collect()
    }

    /// Reads the book.
    pub fn read<T>(&self, view: impl FnOnce(&Book) -> T) -> T {
        view(&self.state.lock().book)
    }

    /// How many sessions wait for nothing but the budget, in pools whose first one has waited for so long.
    pub fn starved(&self, waiters_for: Duration) -> u32 {
        let now = self.now();
        let state = self.state.lock();
        let starved = state.pools.iter().flatten().filter_map(|pool| {
            let view = state.book.pool(pool.id)?;
            let host = state.book.host(pool.place.host);
            let spent = host.cap.is_some_and(|cap| host.tally.total() >= cap);
            let long = now.saturating_sub(view.waiting_since?) >= waiters_for;
            (spent && long).then_some(view.waiters)
        });
        starved.sum()
    }

    /// Services that have all the server connections that they may have, while sessions of theirs wait; and how many do.
    pub fn full_services(&self) -> Vec<(String, u32)> {
        let state = self.state.lock();
        let full = state.names.services.iter().filter_map(|(name, (id, _))| {
            let waiters = state.book.service_waiters(*id);
            let view = state.book.service(*id);
            let full = view
                .cap
                .is_some_and(|cap| cap > 0 && view.tally.total() >= cap);
            (waiters > 0 && full).then(|| (name.clone(), waiters))
        });
        full.collect()
    }

    /// Looks after time: deadlines, idle and old connections, back-off, connections that died. Called several times a second.
    pub fn tick(&self) {
        self.update(|state, now| {
            state.book.tick(now, &mut state.actions);
        });
    }

    /// Drops idle connections that Postgres has closed, and forgets pools that never came to anything. Called about once a
    /// second.
    pub fn sweep(&self) {
        self.forget_fruitless();
        self.update(|state, now| {
            let State {
                book,
                parked,
                actions,
                ..
            } = state;
            for connection in parked {
                let Some((server, parked)) = connection else {
                    continue;
                };
                if !parked.is_fit() && book.die(now, *server, actions) {
                    *connection = None;
                }
            }
        });
    }

    /// Forgets pools whose every login was refused and that nobody uses: their names came from clients.
    fn forget_fruitless(&self) {
        let mut state = self.state.lock();
        let State {
            book,
            pools,
            by_name,
            ..
        } = &mut *state;
        by_name.retain(|_, pool| {
            // One in each table: as both are behind this lock, nobody can get hold of a third meanwhile.
            let unused = Arc::strong_count(pool) == 2;
            let unused = unused && (pool.settings.read().is_probe || pool.welcome.read().is_none());
            let forget = unused && book.remove_pool(pool.id);
            if forget {
                pools[pool.id.index()] = None;
            }
            !forget
        });
    }

    /// Carries out `change` and what the book wants done after it.
    fn update<T>(&self, change: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = self.now();
        let mut state = self.state.lock();
        let answer = change(&mut state, now);
        if state.actions.is_empty() {
            return answer;
        }
        let (mut wake, mut errands) = (Vec::new(), Vec::new());
        state.carry_out(&mut wake, &mut errands);
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        for errand in errands {
            self.send(errand);
        }
        answer
    }

    fn send(&self, errand: Errand) {
        // A thread whose inbox is closed has ended, and with it the process: its sockets are closed by the kernel.
        let _ = self.threads[usize::from(errand.thread.0)].send(errand);
    }
}

fn put<T>(table: &mut Vec<Option<T>>, index: usize, value: T) {
    if index >= table.len() {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}

impl State {
    fn place(&mut self, database: &str, settings: &PoolSettings) -> PoolPlace {
        let hosts: Vec<String> = settings
            .target
            .hosts
            .iter()
            .map(|host| crate::server::dial::name(host))
            .collect();
        let Self { book, names, .. } = self;
        PoolPlace {
            host: *names
                .hosts
                .entry(hosts.join(","))
                .or_insert_with(|| book.add_host(settings.budget)),
            database: *names
                .databases
                .entry(database.to_owned())
                .or_insert_with(|| book.add_database(settings.database_cap)),
            user: *names
                .users
                .entry(settings.target.identity.user.clone())
                .or_insert_with(|| book.add_user(settings.user_cap)),
        }
    }

    /// Does what the book asks for, and lists what is done outside the lock.
    fn carry_out(&mut self, wake: &mut Vec<Waker>, errands: &mut Vec<Errand>) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Grant {
                    waiter,
                    server,
                    from,
                    to,
                } => {
                    self.call(
                        waiter,
                        Outcome::Granted {
                            server,
                            moves: from != to,
                        },
                        wake,
                    );
                }
                Action::Refuse { waiter, why, .. } => {
                    self.call(waiter, Outcome::Refused(why), wake);
                }
                Action::Dial {
                    server,
                    pool,
                    thread,
                    ..
                } => {
                    let pool = self.pools[pool.index()]
                        .clone()
                        .expect("the book dials for pools that exist");
                    errands.push(Errand {
                        pool,
                        thread,
                        server,
                        task: Task::Dial,
                    });
                }
                Action::Close {
                    server,
                    thread,
                    reason,
                } => {
                    let pool = self
                        .book
                        .server(server)
                        .expect("the book closes what it knows")
                        .pool;
                    let pool = self.pools[pool.index()]
                        .clone()
                        .expect("a pool outlives its connections");
                    let task = Task::Close(self.unpark(server), Discard::Book(reason));
                    errands.push(Errand {
                        pool,
                        thread,
                        server,
                        task,
                    });
                }
            }
        }
        self.actions = actions;
    }

    /// Tells a waiter what became of it.
    fn call(&mut self, waiter: WaiterId, outcome: Outcome, wake: &mut Vec<Waker>) {
        let desk = self.desks[waiter.index()]
            .as_mut()
            .expect("a waiter has a desk until it leaves");
        desk.outcome = Some(outcome);
        wake.push(desk.waker.clone());
    }

    fn unpark(&mut self, server: ServerId) -> Box<Connection> {
        self.parked[server.index()]
            .take()
            .expect("the book grants what is parked")
            .1
    }
}

/// An answer to [`Pool::ask`].
#[derive(Debug)]
pub enum Checkout {
    /// A server connection.
    Lease(Lease),
    /// A place in the queue.
    Ticket(Ticket),
}

/// A connection that the book has granted.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) server: ServerId,
    pub(super) connection: Box<Connection>,
    /// Its socket is registered with another thread's reactor.
    pub(super) moves: bool,
}

impl Pool {
    /// Asks for a server connection on behalf of `service`, from `thread`. `waker` is woken when a place in the queue leads to
    /// something.
    pub fn ask(self: &Arc<Self>, service: ServiceId, thread: ThreadId, waker: &Waker) -> Checkout {
        loop {
            let waiting = match self.enqueue(service, thread, waker) {
                Ok(granted) => Lease::begin(self, thread, granted),
                Err(waiter) => return Checkout::Ticket(Ticket::new(self, thread, waiter)),
            };
            // A connection that died while it was idle is closed; there may be another.
            if let Some(lease) = waiting {
                return Checkout::Lease(lease);
            }
        }
    }

    fn enqueue(
        &self,
        service: ServiceId,
        thread: ThreadId,
        waker: &Waker,
    ) -> Result<Granted, WaiterId> {
        let query_wait = self.settings.read().query_wait;
        self.pools.update(|state, now| {
            let deadline = query_wait.map(|wait| now + wait);
            match state
                .book
                .ask(now, self.id, service, thread, deadline, &mut state.actions)
            {
                Asked::Granted { server, from } => Ok(Granted {
                    server,
                    connection: state.unpark(server),
                    moves: from != thread,
                }),
                Asked::Waiting(waiter) => {
                    put(
                        &mut state.desks,
                        waiter.index(),
                        Desk {
                            waker: waker.clone(),
                            outcome: None,
                        },
                    );
                    Err(waiter)
                }
            }
        })
    }

    /// What became of a waiter; `None`: it still waits.
    pub(super) fn inquire(&self, waiter: WaiterId) -> Option<Result<Granted, Refused>> {
        let outcome = self.pools.update(|state, _| {
            let desk = &mut state.desks[waiter.index()];
            let outcome = desk.as_ref().and_then(|desk| desk.outcome)?;
            *desk = None;
            Some(match outcome {
                Outcome::Refused(why) => Err(why),
                Outcome::Granted { server, moves } => {
                    state.book.take(waiter);
                    Ok(Granted {
                        server,
                        connection: state.unpark(server),
                        moves,
                    })
                }
            })
        })?;
        Some(outcome.map_err(|why| self.refused(why)))
    }

    /// A waiter goes. What was granted to it meanwhile goes on to the next.
    pub(super) fn leave(&self, waiter: WaiterId) {
        self.pools.update(|state, now| {
            let desk = state.desks[waiter.index()].take();
            if !matches!(
                desk.and_then(|desk| desk.outcome),
                Some(Outcome::Refused(_))
            ) {
                state.book.leave(now, waiter, &mut state.actions);
            }
        });
    }

    /// A connection comes back in order.
    pub(super) fn put_back(&self, server: ServerId, connection: Box<Connection>) {
        self.pools.update(|state, now| {
            put(&mut state.parked, server.index(), (server, connection));
            state.book.release(now, server, &mut state.actions);
        });
    }

    /// A connection comes back that must be closed.
    pub(super) fn discard(
        self: &Arc<Self>,
        server: ServerId,
        connection: Box<Connection>,
        thread: ThreadId,
        reason: Discard,
    ) {
        self.pools.update(|state, _| state.book.discard(server));
        let task = Task::Close(connection, reason);
        self.send(Errand {
            pool: Arc::clone(self),
            thread,
            server,
            task,
        });
    }

    /// A connection is gone without a goodbye.
    pub(super) fn lost(&self, server: ServerId) {
        self.pools.update(|state, now| {
            state.book.discard(server);
            state.book.closed(now, server, &mut state.actions);
        });
    }

    /// How cancel requests are sent to its Postgres.
    pub(super) fn cancel_way(&self) -> CancelWay {
        let settings = self.settings();
        CancelWay {
            tcp: settings.target.tcp.clone(),
            limit: settings.cancel_limit,
            gate: Arc::clone(&self.pools.cancels),
        }
    }

    /// Has something done for a connection.
    pub(super) fn send(&self, errand: Errand) {
        self.pools.send(errand);
    }

    fn refused(&self, why: Refusal) -> Refused {
        let last = self.last_failure.lock().clone();
        match (why, last) {
            (Refusal::QueryWait, last) => Refused::QueryWait {
                last_error: last.map(|failure| failure.cause),
            },
            (
                Refusal::LoginRefused,
                Some(Failure {
                    cause,
                    message,
                    code,
                    wants_proof,
                }),
            ) => Refused::Login {
                cause,
                message,
                code,
                wants_proof,
            },
            (Refusal::PoolRemoved | Refusal::LoginRefused, _) => Refused::PoolRemoved,
        }
    }

    /// What it has, and how long the first of its waiters has waited.
    pub fn view(&self) -> Option<(PoolView, Duration)> {
        let now = self.pools.now();
        let view = self.pools.read(|book| book.pool(self.id))?;
        let wait = view
            .waiting_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        Some((view, wait))
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<PoolSettings> {
        Arc::clone(&self.settings.read())
    }

    /// Who vouches for its user. Held while somebody is being vouched for.
    pub fn vouched(&self) -> &tokio::sync::Mutex<Option<Vouched>> {
        &self.vouched
    }

    /// What pgweir shows when it logs in to Postgres from now on.
    pub fn prove_with(&self, proof: ServerLogin) {
        let is_known = self.settings.read().target.identity.proof.is_same(&proof);
        // What is known already may hold keys that were derived for it.
        if !is_known {
            let mut settings = self.settings.write();
            Arc::make_mut(&mut settings).target.identity.proof = proof;
        }
    }

    /// Forgets what clients' logins have taught, if it is this: Postgres takes it no longer. The next login teaches anew.
    fn forget(&self, refused: &ServerLogin) {
        let Ok(mut vouched) = self.vouched.try_lock() else {
            return;
        };
        // What the configuration says stays: nobody else could bring it back.
        let is_learned =
            matches!(refused, ServerLogin::Keys(_)) || matches!(*vouched, Some(Vouched::By(_)));
        let is_in_use = self.settings.read().target.identity.proof.is_same(refused);
        if is_learned && is_in_use {
            *vouched = None;
            self.prove_with(ServerLogin::Nothing);
        }
    }

    /// The prepared statements of its clients.
    pub fn statements(&self) -> &Store {
        &self.statements
    }

    /// What became of parameters that some client has asked for at startup.
    pub fn accepted(&self, asked: &Parameters) -> Option<Arc<Accepted>> {
        self.accepted.lock().get(asked).cloned()
    }

    /// Remembers what became of them.
    pub fn accept(&self, asked: Parameters, accepted: Accepted) -> Arc<Accepted> {
        let accepted = Arc::new(accepted);
        let mut known = self.accepted.lock();
        if known.len() >= MOST_ACCEPTED {
            known.clear();
        }
        known.insert(asked, Arc::clone(&accepted));
        accepted
    }

    /// What Postgres told at the last login.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.welcome.read().clone()
    }

    /// Where `thread` counts what it moves for this pool.
    pub fn traffic(&self, thread: ThreadId) -> &Traffic {
        &self.traffic[usize::from(thread.0)]
    }

    /// What each thread moved.
    pub fn all_traffic(&self) -> &[Traffic] {
        &self.traffic
    }

    /// Puts new settings into force. Connections that lead elsewhere, or were made as somebody else, are closed as they come free.
    pub fn change(&self, settings: PoolSettings) {
        let reconnect = !settings
            .target
            .leads_to_the_same(&self.settings.read().target);
        let settings = Arc::new(settings);
        // First of all: what is dialled from the reconnect on counts as new, and must have been dialled as new.
        *self.settings.write() = Arc::clone(&settings);
        self.pools.update(|state, now| {
            let State { book, actions, .. } = state;
            let PoolPlace {
                host,
                database,
                user,
            } = self.place;
            book.set_pool(now, self.id, settings.limits, actions);
            book.set_database_limit(now, database, settings.database_cap, actions);
            book.set_user_limit(now, user, settings.user_cap, actions);
            if let Some(budget) = settings.budget {
                book.set_budget(now, host, budget, actions);
            }
            if reconnect {
                book.reconnect(now, self.id, actions);
            }
        });
    }

    /// Whether its connections are not lent a second time.
    pub(super) fn is_for_one(&self) -> bool {
        matches!(self.purpose, Purpose::Replication(_))
    }

    /// Connects and logs in for the book.
    pub(super) async fn dial(&self, server: ServerId) {
        let settings = self.settings();
        let ask_limit = self
            .pools
            .read(|book| book.host(self.place.host).cap.is_none());
        match crate::server::dial::dial(&settings.target, ask_limit).await {
            Ok((connection, limit)) => self.dialed(server, connection, limit, &settings),
            Err(error) => self.dial_failed(server, &error, &settings),
        }
    }

    fn dialed(
        &self,
        server: ServerId,
        connection: Connection,
        limit: Option<u32>,
        settings: &PoolSettings,
    ) {
        tracing::debug!(
            database = self.database,
            user = self.user,
            pid = connection.key.pid,
            "server connection opened"
        );
        *self.welcome.write() = Some(Arc::clone(&connection.welcome));
        *self.last_failure.lock() = None;
        // A tenth more or less, so that connections made together do not all end together.
        let lifetime = settings
            .server_lifetime
            .map(|life| life.mul_f32(rand::random_range(0.9..=1.1)));
        self.pools.update(|state, now| {
            if let Some(limit) = limit {
                let budget = limit.saturating_sub(settings.headroom).max(1);
                tracing::info!(limit, budget, "budget taken from Postgres");
                state
                    .book
                    .set_budget(now, self.place.host, budget, &mut state.actions);
            }
            put(
                &mut state.parked,
                server.index(),
                (server, Box::new(connection)),
            );
            state.book.dialed(
                now,
                server,
                lifetime.map(|life| now + life),
                &mut state.actions,
            );
        });
    }

    fn dial_failed(&self, server: ServerId, error: &DialError, settings: &PoolSettings) {
        tracing::warn!(database = self.database, user = self.user, %error, "server login failed");
        let failure = Failure {
            cause: error.to_string().into(),
            message: error.to_client().into(),
            code: error.code(),
            wants_proof: error.wants_proof(),
        };
        *self.last_failure.lock() = Some(failure);
        if error.refuses_proof() {
            self.forget(&settings.target.identity.proof);
        }
        let retry = Retry {
            first: settings.server_login_retry,
            jitter: rand::random(),
        };
        self.pools.update(|state, now| {
            let mut retry = Some(retry);
            if !error.is_passing() {
                // Refused before the dial is over: otherwise the book would dial again for the same waiters.
                state
                    .book
                    .refuse_waiters(self.id, Refusal::LoginRefused, &mut state.actions);
                retry = None;
            }
            state
                .book
                .dial_failed(now, server, retry, &mut state.actions);
        });
    }

    /// Postgres has freed the slot.
    pub(super) fn closed(&self, server: ServerId) {
        self.pools
            .update(|state, now| state.book.closed(now, server, &mut state.actions));
    }
}
