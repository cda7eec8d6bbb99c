//! One pool: the server connections of one (database, user).

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::state::{Desk, Outcome, State, put};
use super::{PoolSettings, Pools, Purpose, Refused};
use crate::config::checked::Secret;
use crate::metrics::{Traffic, in_micros};
use crate::pool::book::{
    Asked, HostId, Party, PoolId, PoolPlace, PoolView, Refusal, Retry, ServerId, ServerView,
    ThreadId, WaiterId,
};
use crate::pool::errand::{Discard, Errand, Task};
use crate::pool::lease::{Lease, Ticket};
use crate::repeats;
use crate::server::close::CancelWay;
use crate::server::connection::Connection;
use crate::server::dial::DialError;
use crate::server::login::{ServerLogin, Welcome};
use crate::server::prepared::Store;
use crate::server::reach::Place;
use crate::server::told::Teller;
use crate::wire::parameters::Parameters;
use crate::wire::reply::SqlState;

/// Sets of startup parameters that a pool remembers. Applications have one each.
const MOST_ACCEPTED: usize = 1000;

/// The server connections of one (database, user).
#[derive(Debug)]
pub struct Pool {
    /// In the book.
    pub id: PoolId,
    /// The database as clients call it.
    pub database: String,
    /// The role at Postgres, and for whom it is if not for clients.
    pub user: String,
    /// The database once more, to be shared.
    pub name: Arc<str>,
    /// The role at Postgres alone.
    pub role: Arc<str>,
    /// What it is there for.
    pub purpose: Purpose,
    /// Whose caps it falls under.
    pub(super) place: RwLock<PoolPlace>,

    /// What may change while it is in use.
    pub(super) settings: RwLock<Arc<PoolSettings>>,
    /// What Postgres told at the last login.
    pub(super) welcome: RwLock<Option<Arc<Welcome>>>,
    /// A server connection died since: it may be another Postgres that answers now.
    pub(super) doubtful: AtomicBool,
    pub(super) habits: Habits,
    /// Since when it has been empty and without clients, in microseconds of the pools' clock.
    pub(super) unused_since: AtomicU64,
    pub(super) last_failure: Mutex<Option<Failure>>,
    pub(super) vouched: tokio::sync::Mutex<Option<Vouched>>,
    pub(super) statements: Arc<Store>,
    /// Parameters that clients asked for at startup, and what became of them.
    pub(super) accepted: Mutex<HashMap<Parameters, Arc<Accepted>>>,
    /// What each thread moved.
    pub(super) traffic: Vec<Traffic>,
    /// Sessions that get their server connections from it.
    pub(super) clients: AtomicU32,
    /// Clients that wait for one to be logged in.
    pub(super) logins_waiting: AtomicI32,
    pub(super) pools: Arc<Pools>,
}

/// What is looked at for each lease: the settings, without their lock.
#[derive(Debug)]
pub(super) struct Habits {
    /// A connection that was unused for so many microseconds is asked whether it is still there.
    check_after: AtomicU64,
    resets_always: AtomicBool,
    /// How many microseconds a client waits for one.
    query_wait: AtomicU64,
}

/// A time that does not come.
pub(super) const NEVER: u64 = u64::MAX;

impl Habits {
    pub(super) fn of(settings: &PoolSettings) -> Self {
        let habits = Self {
            check_after: AtomicU64::new(NEVER),
            resets_always: AtomicBool::new(false),
            query_wait: AtomicU64::new(NEVER),
        };
        habits.follow(settings);
        habits
    }

    fn follow(&self, settings: &PoolSettings) {
        let check = settings.check.as_ref();
        let after = check.map_or(NEVER, |check| in_micros(check.delay));
        self.check_after.store(after, Relaxed);
        self.resets_always.store(settings.resets_always, Relaxed);
        let wait = settings.query_wait.map_or(NEVER, in_micros);
        self.query_wait.store(wait, Relaxed);
    }

    fn query_wait(&self) -> Option<Duration> {
        let wait = self.query_wait.load(Relaxed);
        (wait != NEVER).then(|| Duration::from_micros(wait))
    }
}

/// A session's place among those of its pool. Dropped, it has left.
#[derive(Debug)]
pub struct Member(Arc<Pool>);

impl Member {
    /// Joins.
    pub fn of(pool: Arc<Pool>) -> Self {
        pool.clients.fetch_add(1, Relaxed);
        Self(pool)
    }
}

impl Deref for Member {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.0
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    cause: Arc<str>,
    message: Arc<[u8]>,
    code: Option<SqlState>,
    wants_proof: bool,
    found_full: bool,
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
pub(in crate::pool) struct Granted {
    pub(in crate::pool) server: ServerId,
    pub(in crate::pool) connection: Box<Connection>,
    /// Its socket is registered with another thread's reactor.
    pub(in crate::pool) moves: bool,
    /// When, in microseconds of the pools' clock.
    pub(in crate::pool) at: u64,
}

impl Pool {
    /// Asks for a server connection on behalf of a service, from `thread`, for the session of number `client` (0: for a
    /// login). `waker` is woken when a place in the queue leads to something.
    pub fn ask(
        self: &Arc<Self>,
        party: impl Into<Party>,
        thread: ThreadId,
        client: u32,
        waker: &Waker,
    ) -> Checkout {
        let party = party.into();
        loop {
            let waiting = match self.enqueue(party, thread, client, waker) {
                Ok(granted) => {
                    self.traffic(thread).waited(0);
                    Lease::begin(self, thread, granted)
                }
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
        party: Party,
        thread: ThreadId,
        client: u32,
        waker: &Waker,
    ) -> Result<Granted, WaiterId> {
        let query_wait = self.habits.query_wait();
        self.pools.update(|state, now| {
            let deadline = query_wait.map(|wait| now + wait);
            match state
                .book
                .ask(now, self.id, party, thread, deadline, &mut state.actions)
            {
                Asked::Granted { server, from } => Ok(Granted {
                    server,
                    connection: state.unpark(server),
                    moves: from != thread,
                    at: in_micros(now),
                }),
                Asked::Waiting(waiter) => {
                    put(
                        &mut state.desks,
                        waiter.index(),
                        Desk {
                            waker: waker.clone(),
                            outcome: None,
                            since: now,
                            client,
                        },
                    );
                    self.waits_for_login(client, 1);
                    Err(waiter)
                }
            }
        })
    }

    /// What became of a waiter; `None`: it still waits.
    pub(in crate::pool) fn inquire(
        &self,
        waiter: WaiterId,
        thread: ThreadId,
    ) -> Option<Result<Granted, Refused>> {
        let outcome = self.pools.update(|state, now| {
            let place = &mut state.desks[waiter.index()];
            let desk = place.take_if(|desk| desk.outcome.is_some())?;
            let outcome = desk.outcome?;
            self.waited(&desk, now, thread);
            Some(match outcome {
                Outcome::Refused(why) => Err(why),
                Outcome::Granted { server, moves } => {
                    state.book.take(waiter);
                    Ok(Granted {
                        server,
                        connection: state.unpark(server),
                        moves,
                        at: in_micros(now),
                    })
                }
            })
        })?;
        Some(outcome.map_err(|why| self.refused(why)))
    }

    /// A waiter goes. What was granted to it meanwhile goes on to the next.
    pub(in crate::pool) fn leave(&self, waiter: WaiterId, thread: ThreadId) {
        self.pools.update(|state, now| {
            let desk = state.desks[waiter.index()].take();
            if let Some(desk) = &desk {
                self.waited(desk, now, thread);
            }
            if !matches!(
                desk.and_then(|desk| desk.outcome),
                Some(Outcome::Refused(_))
            ) {
                state.book.leave(now, waiter, &mut state.actions);
            }
        });
    }

    /// A wait is over.
    fn waited(&self, desk: &Desk, now: Duration, thread: ThreadId) {
        let waited = now.saturating_sub(desk.since);
        self.traffic(thread).waited(in_micros(waited));
        self.waits_for_login(desk.client, -1);
    }

    /// One more who is to be logged in waits, or one fewer.
    fn waits_for_login(&self, client: u32, change: i32) {
        if client == 0 {
            self.logins_waiting.fetch_add(change, Relaxed);
        }
    }

    /// A connection comes back in order. Gives the time, which is read for it anyway.
    pub(in crate::pool) fn put_back(
        &self,
        server: ServerId,
        mut connection: Box<Connection>,
    ) -> Duration {
        self.pools.update(|state, now| {
            connection.rested = in_micros(now);
            put(&mut state.parked, server.index(), (server, connection));
            state.book.release(now, server, &mut state.actions);
            now
        })
    }

    /// The time by the pools' clock.
    pub(in crate::pool) fn now(&self) -> Duration {
        self.pools.now()
    }

    /// Where the pools' clock begins.
    pub fn epoch(&self) -> Instant {
        self.pools.epoch
    }

    /// A connection comes back that must be closed.
    pub(in crate::pool) fn discard(
        self: &Arc<Self>,
        server: ServerId,
        connection: Box<Connection>,
        thread: ThreadId,
        reason: Discard,
    ) {
        if reason == Discard::Died {
            self.doubtful.store(true, Relaxed);
        }
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
    pub(in crate::pool) fn lost(&self, server: ServerId, reason: Discard) {
        self.pools.update(|state, _| state.book.discard(server));
        self.closed(server, reason);
    }

    /// How cancel requests are sent to its Postgres.
    pub(in crate::pool) fn cancel_way(&self) -> CancelWay {
        let settings = self.settings();
        CancelWay {
            tcp: settings.target.tcp.clone(),
            limit: settings.cancel_limit,
            gate: Arc::clone(&self.pools.cancels),
        }
    }

    /// Has something done for a connection.
    pub(in crate::pool) fn send(&self, errand: Errand) {
        self.pools.send(errand);
    }

    fn refused(&self, why: Refusal) -> Refused {
        let last = self.last_failure.lock().clone();
        match (why, last) {
            (Refusal::QueryWait, last) => {
                let other = last.filter(|failure| !failure.found_full);
                Refused::QueryWait {
                    last_error: other.map(|failure| failure.cause),
                    shortage: self.pools.shortage(self.host()).into(),
                }
            }
            (
                Refusal::LoginRefused,
                Some(Failure {
                    cause,
                    message,
                    code,
                    wants_proof,
                    found_full: _,
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

    /// Whose caps it falls under, as things are now.
    pub(super) fn place(&self) -> PoolPlace {
        *self.place.read()
    }

    /// The Postgres that it leads to.
    pub fn host(&self) -> HostId {
        self.place().host
    }

    /// What became of the last login to Postgres, if it failed.
    pub fn last_error(&self) -> Option<Arc<str>> {
        let last = self.last_failure.lock();
        last.as_ref().map(|failure| Arc::clone(&failure.cause))
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

    /// Lets go of what is idle at another database of its Postgres, which a client wants for itself.
    pub fn vacate(&self, database: &str) {
        self.pools.vacate(self.place().host, database);
    }

    /// The prepared statements of the database's clients.
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

    /// What Postgres told at the last login. `None`: there was none, or what it told may have been another one's, because connections
    /// died and there is none any more.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        let has_server = || {
            let view = self.pools.read(|book| book.pool(self.id));
            view.is_some_and(|view| view.tally.idle() + view.tally.lent() > 0)
        };
        if self.doubtful.load(Relaxed) && !has_server() {
            return None;
        }
        self.welcome.read().clone()
    }

    /// Whether Postgres has ever let it in.
    pub fn has_logged_in(&self) -> bool {
        self.welcome.read().is_some()
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
        self.habits.follow(&settings);
        self.pools.update(|state, now| {
            let place = state.place(&self.database, &settings);
            let moved = std::mem::replace(&mut *self.place.write(), place) != place;
            let State { book, actions, .. } = state;
            let PoolPlace {
                host,
                database,
                user,
            } = place;
            if moved {
                book.move_pool(now, self.id, host, actions);
            }
            book.set_pool(now, self.id, settings.limits, actions);
            book.set_database_limit(now, database, settings.database_cap, actions);
            book.set_user_limit(now, user, settings.user_cap, actions);
            if reconnect {
                book.reconnect(now, self.id, actions);
            }
            state.configure(now, host, &settings);
        });
    }

    /// Whether Postgres is to be asked whether it is still there before a connection is lent that was unused for so long.
    pub(in crate::pool) fn wants_check(&self, unused: u64) -> bool {
        unused >= self.habits.check_after.load(Relaxed)
    }

    /// Whether every connection that comes back is reset.
    pub fn resets_always(&self) -> bool {
        self.habits.resets_always.load(Relaxed)
    }

    /// Whether it has not been used for as long as it is to be remembered. `unused`: as things are now.
    pub(super) fn is_unused_for_long(&self, now: Duration, unused: bool) -> bool {
        if !unused {
            self.unused_since.store(NEVER, Relaxed);
            return false;
        }
        let now = in_micros(now);
        let since = self.unused_since.load(Relaxed).min(now);
        self.unused_since.store(since, Relaxed);
        let after = self.settings.read().forget_after;
        after.is_some_and(|after| now - since >= in_micros(after))
    }

    /// Tells that it is forgotten, and the last of its database.
    pub(super) fn tells_of_forgetting(&self, is_last: bool) {
        let (database, user, settings) = (&self.database, &self.user, self.settings());
        let said = settings
            .lines
            .any
            .then(|| format!("cleaning up idle pool: {database}/{user}"));
        tracing::info!(said, database, user, "a pool that nobody uses is forgotten");
        if is_last && settings.is_auto && settings.lines.any {
            let what = "as it does not exist anymore or inactive auto-database";
            let said = format!("dropping database '{database}' {what}");
            tracing::warn!(said, "database forgotten");
        }
    }

    /// Whether its connections are not lent a second time.
    pub(in crate::pool) fn is_for_one(&self) -> bool {
        matches!(self.purpose, Purpose::Replication(_))
    }

    /// Connects and logs in for the book.
    pub(in crate::pool) async fn dial(&self, server: ServerId) {
        let settings = self.settings();
        let host = self.place().host;
        let ask_limit = self.pools.wants_limit(host);
        let (teller, began) = (self.teller(server).0, Instant::now());
        match crate::server::dial::dial(&settings.target, ask_limit, &teller).await {
            Ok((connection, limit)) => self.dialed(server, connection, host, limit, &settings),
            Err(error) => {
                let (hosts, for_one) = (&settings.target.hosts, self.is_for_one());
                teller.failed(&error, hosts, began.elapsed(), for_one);
                self.dial_failed(server, host, &error, &settings);
            }
        }
    }

    /// Who tells of a server connection, and its age.
    fn teller(&self, server: ServerId) -> (Teller, Duration) {
        if !self.settings.read().lines.any {
            return Default::default();
        }
        let Some(view) = self.pools.read(|book| book.server(server)) else {
            return Default::default();
        };
        let age = self.now().saturating_sub(view.since);
        (self.teller_of(&view), age)
    }

    /// Who tells of a server connection of its own.
    pub(super) fn teller_of(&self, view: &ServerView) -> Teller {
        Teller {
            number: view.number,
            database: Arc::clone(&self.name),
            user: Arc::clone(&self.role),
            lines: self.settings.read().lines,
        }
    }

    /// Tells that a server connection is made beyond its size.
    pub(in crate::pool) fn tells_of_reserve(&self) {
        let (database, user) = (&self.database, &self.user);
        if self.settings.read().lines.any {
            let said = format!("{database}/{user} taking connection from reserve_pool");
            tracing::warn!(said, "reserve");
        } else {
            tracing::debug!(database, user, "a server connection from the reserve");
        }
    }

    /// Tells that a server connection is being closed.
    pub(in crate::pool) fn tells_of_end(&self, server: ServerId, place: &Place, reason: Discard) {
        let (teller, age) = self.teller(server);
        teller.closing(place, reason.as_pgbouncer(), age);
    }

    fn dialed(
        &self,
        server: ServerId,
        mut connection: Connection,
        host: HostId,
        limit: Option<u32>,
        settings: &PoolSettings,
    ) {
        tracing::debug!(
            database = self.database,
            user = self.user,
            pid = connection.key.pid,
            "server connection opened"
        );
        let before = self
            .welcome
            .write()
            .replace(Arc::clone(&connection.welcome));
        if before.is_some_and(|before| before.parameters != connection.welcome.parameters) {
            self.accepted.lock().clear();
        }
        self.doubtful.store(false, Relaxed);
        *self.last_failure.lock() = None;
        // A tenth more or less, so that connections made together do not all end together.
        let lifetime = settings
            .server_lifetime
            .map(|life| life.mul_f32(rand::random_range(0.9..=1.1)));
        self.pools.update(|state, now| {
            state.counts_of(host).dialed();
            state.admitted(now, host, limit);
            let facts = Arc::clone(connection.facts());
            connection.rested = in_micros(now);
            put(&mut state.facts, server.index(), (server, facts));
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

    fn dial_failed(
        &self,
        server: ServerId,
        host: HostId,
        error: &DialError,
        settings: &PoolSettings,
    ) {
        // Postgres' own words were told in PgBouncer's.
        let was_told = settings.lines.any && matches!(error, DialError::Login(_));
        let cause = format!("{} as {}: {error}", self.database, self.user);
        if !was_told && repeats::is_news("server login failed", cause) {
            tracing::warn!(database = self.database, user = self.user, %error, "server login failed");
        }
        let failure = Failure {
            cause: error.to_string().into(),
            message: error.to_client().into(),
            code: error.code(),
            wants_proof: error.wants_proof(),
            found_full: error.found_full(),
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
            state.counts_of(host).dial_failed(error);
            if error.found_full() {
                state.refused(now, host, server, settings.server_login_retry);
                return;
            }
            state.failed(host, error);
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
    pub(in crate::pool) fn closed(&self, server: ServerId, reason: Discard) {
        self.pools.update(|state, now| {
            state.counts_of(self.place().host).closed(reason, self);
            state.forget_facts(server);
            state.book.closed(now, server, &mut state.actions);
        });
        self.pools.news.notify_waiters();
    }
}
