//! All pools of the process: the book, and the connections and wakers that it keeps account of.
//!
//! The book decides, under one lock that is held for well under a microsecond: once when a transaction asks for a server
//! connection, once when it gives it back. That buys one exact budget and one queue over all threads, without a message from
//! thread to thread. Sockets are read, written, opened and closed outside of it.

mod ground;
mod pool;
mod refused;
pub(super) mod rows;
mod settings;
mod state;
mod steer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

pub use self::ground::{GroundView, Measured};
pub(super) use self::pool::Granted;
pub use self::pool::{Accepted, Checkout, Member, Pool, Vouched};
use self::pool::{Habits, NEVER};
pub use self::refused::Refused;
pub use self::settings::{Check, PoolSettings};
use self::state::{Past, State, put};
pub use self::steer::{Shutting, SteerError};
use super::book::{Book, Gate, ServiceId, ServiceLimits};
use super::errand::{Discard, Errand};
use super::stats::{Counted, DatabaseStats, Periods, Totals};
use crate::metrics::Traffic;

/// All pools of the process.
#[derive(Debug)]
pub struct Pools {
    state: Mutex<State>,
    /// Where each thread takes its errands from.
    threads: Vec<UnboundedSender<Errand>>,
    /// The book's time begins here.
    epoch: Instant,
    /// The same by the wall's clock.
    wall_epoch: SystemTime,
    periods: Mutex<(Duration, Periods)>,
    /// Lets cancel requests through.
    cancels: Arc<Semaphore>,
    /// Server connections have gone, or time has passed: for those who wait for something rare.
    news: Notify,
}

/// Cancel requests on their way to Postgres at once, over all pools. Each costs it a process for a moment, so that a storm of
/// them would be one of forks.
const CANCELS_AT_ONCE: usize = 16;

/// Services that are kept apart. Far more than anybody lists, and few enough to be weighed against each other.
const MOST_SERVICES: usize = 1000;

/// The account of those beyond [`MOST_SERVICES`] or [`MOST_PAST`].
pub const OTHERS: &str = "(others)";

/// Pools that were forgotten whose counts are kept apart.
const MOST_PAST: usize = 1000;

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

impl Pools {
    /// No pools yet. `threads`: the inbox of each data thread.
    pub fn new(threads: Vec<UnboundedSender<Errand>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            threads,
            epoch: Instant::now(),
            wall_epoch: SystemTime::now(),
            periods: Mutex::default(),
            cancels: Arc::new(Semaphore::new(CANCELS_AT_ONCE)),
            news: Notify::new(),
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
            let name = if full { OTHERS } else { name };
            if let Some((id, known)) = services.get_mut(name) {
                if *known != limits {
                    *known = limits;
                    book.set_service(now, *id, limits, actions);
                }
                return *id;
            }
            let id = book.add_service(limits);
            services.insert(name.into(), (id, limits));
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
        let says = settings.is_auto && settings.lines.any && purpose == Purpose::Clients;
        let (pool, is_first) = self.update(|state, _| {
            if let Some(pool) = state.by_name.get(&key) {
                return (Arc::clone(pool), false);
            }
            let is_first = says && state.pools_of(Some(database)).next().is_none();
            (self.add(state, key, settings), is_first)
        });
        if is_first {
            let said = format!("registered new auto-database: {database}");
            tracing::info!(said, "new database");
        }
        pool
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
        let role = user.as_str().into();
        let user = match purpose {
            Purpose::Clients => user,
            Purpose::LoginCheck(nth) => format!("{user} (login check {nth})"),
            Purpose::LookUp => format!("{user} (auth_query)"),
            Purpose::Replication(nth) => format!("{user} (replication {nth})"),
        };
        let place = state.place(&database, &settings);
        let statements = state.statements(place.host, &settings);
        let id = state.book.add_pool(place, settings.limits);
        let gate = state.gates.of(&database);
        if gate != Gate::Open {
            let now = self.now();
            state.book.set_gate(now, id, gate, &mut state.actions);
        }
        let pool = Arc::new(Pool {
            id,
            name: database.as_str().into(),
            role,
            database,
            user,
            purpose,
            place: RwLock::new(place),
            habits: Habits::of(&settings),
            settings: RwLock::new(Arc::new(settings)),
            welcome: RwLock::default(),
            doubtful: AtomicBool::new(false),
            unused_since: AtomicU64::new(NEVER),
            last_failure: Mutex::default(),
            vouched: tokio::sync::Mutex::default(),
            statements,
            accepted: Mutex::default(),
            traffic: self.threads.iter().map(|_| Traffic::default()).collect(),
            clients: AtomicU32::new(0),
            logins_waiting: AtomicI32::new(0),
            pools: Arc::clone(self),
        });
        put(&mut state.pools, id.index(), Arc::clone(&pool));
        state.by_name.insert(key, Arc::clone(&pool));
        pool
    }

    /// What was counted for each database and role, pools that were forgotten included. Never less than before.
    pub fn traffic(&self) -> Vec<(Arc<str>, Arc<str>, Totals)> {
        let counted = self.counted().into_iter();
        counted
            .map(|((database, role), counted)| (database, role, counted.totals))
            .collect()
    }

    /// The same, with the times that histograms are made of.
    pub fn counted(&self) -> HashMap<(Arc<str>, Arc<str>), Counted> {
        // In this order nothing is missed or counted twice: a pool that somebody holds is not forgotten.
        let pools = self.all();
        let past = Arc::clone(&self.state.lock().past);
        let mut sums = Past::clone(&past);
        for pool in pools {
            let key = (Arc::clone(&pool.name), Arc::clone(&pool.role));
            *sums.entry(key).or_default() += Counted::of(&pool.traffic);
        }
        sums
    }

    /// The statistics of each database, by name.
    pub fn stats(&self) -> Vec<DatabaseStats> {
        let totals = self.totals();
        let periods = self.periods.lock();
        let mut stats: Vec<_> = totals
            .into_iter()
            .map(|(database, totals)| DatabaseStats {
                averages: periods.1.averages(&database),
                database,
                totals,
            })
            .collect();
        stats.sort_unstable_by(|one, other| one.database.cmp(&other.database));
        stats
    }

    /// A period of the statistics is over: averages are of what was counted in it. Gives those of all databases together.
    pub fn end_stats_period(&self) -> Totals {
        let (now, totals) = (self.now(), self.totals());
        let mut periods = self.periods.lock();
        let length = now.saturating_sub(std::mem::replace(&mut periods.0, now));
        periods.1.roll(totals, length)
    }

    fn totals(&self) -> HashMap<Arc<str>, Totals> {
        let mut databases: HashMap<_, Totals> = HashMap::new();
        for (database, _, totals) in self.traffic() {
            *databases.entry(database).or_default() += totals;
        }
        databases
    }

    /// Every pool, in no order.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        let mut pools = Vec::new();
        self.in_parts(
            |state| state.pools.len(),
            |state, places| pools.extend(state.pools[places].iter().flatten().cloned()),
        );
        pools
    }

    /// Reads the book.
    pub fn read<T>(&self, view: impl FnOnce(&Book) -> T) -> T {
        view(&self.state.lock().book)
    }

    /// Services that have all the server connections that they may have, while sessions of theirs wait; and how many do.
    pub fn full_services(&self) -> Vec<(String, u32)> {
        let state = self.state.lock();
        let full = state.names.services.iter().filter_map(|(name, (id, _))| {
            let waiters = state.book.waiters_at_cap(*id);
            (waiters > 0).then(|| (name.to_string(), waiters))
        });
        full.collect()
    }

    /// Looks after time: deadlines, idle and old connections, back-off, connections that died. Called several times a second.
    pub fn tick(&self) {
        self.update(|state, now| {
            state.book.tick(now, &mut state.actions);
            state.try_again(now);
        });
        self.news.notify_waiters();
    }

    /// Drops idle connections that Postgres has closed, and forgets pools that never came to anything. Called about once a
    /// second.
    pub fn sweep(&self) {
        self.forget_unused();
        let mut ends = Vec::new();
        self.update(|state, now| {
            let State {
                book,
                parked,
                pools,
                actions,
                counts,
                ..
            } = state;
            for connection in parked {
                let Some((server, parked)) = connection else {
                    continue;
                };
                let Err(unasked) = parked.fitness() else {
                    continue;
                };
                let Some(view) = book.server(*server) else {
                    continue;
                };
                if book.die(now, *server, actions) {
                    let pool = pools.get(view.pool.index()).and_then(Option::as_ref);
                    if let (Some(pool), Some((_, dead))) = (pool, connection.take()) {
                        let age = now.saturating_sub(view.since);
                        let teller = pool.teller_of(&view);
                        ends.push((teller, dead.route.place().clone(), age, unasked));
                        pool.doubtful.store(true, Ordering::Relaxed);
                        if let Some(counts) = &counts[pool.place().host.index()] {
                            counts.closed(Discard::Died, pool);
                        }
                    }
                }
            }
        });
        for (teller, place, age, unasked) in ends {
            if let Some(tag) = unasked {
                teller.unasked(&place, tag);
            }
            teller.closing(&place, Discard::Died.as_pgbouncer(), age);
        }
    }

    /// Forgets pools whose every login was refused and that nobody uses: their names came from clients. Others when nobody has used
    /// them for as long as they are to be remembered.
    fn forget_unused(&self) {
        let (now, mut forgotten) = (self.now(), Vec::new());
        let mut state = self.state.lock();
        let State {
            book,
            pools,
            by_name,
            past,
            ..
        } = &mut *state;
        by_name.retain(|_, pool| {
            // One in each table: as both are behind this lock, nobody can get hold of a third meanwhile.
            let unused = Arc::strong_count(pool) == 2;
            let is_fruitless =
                unused && (pool.settings.read().is_probe || pool.welcome.read().is_none());
            let is_over = pool.is_unused_for_long(now, unused && book.is_empty(pool.id));
            let forget = (is_fruitless || is_over) && book.remove_pool(pool.id);
            if forget {
                pools[pool.id.index()] = None;
                keep(past, pool);
                if !is_fruitless {
                    forgotten.push(Arc::clone(pool));
                }
            }
            !forget
        });
        let is_gone = |pool: &Pool| !by_name.values().any(|it| it.database == pool.database);
        let told: Vec<_> = forgotten
            .into_iter()
            .map(|pool| (is_gone(&pool), pool))
            .collect();
        drop(state);
        for (is_last, pool) in told {
            pool.tells_of_forgetting(is_last);
        }
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

/// What was counted for a pool outlives it, if it is anything.
fn keep(past: &mut Arc<Past>, pool: &Pool) {
    let counted = Counted::of(&pool.traffic);
    if counted == Counted::default() {
        return;
    }
    let past = Arc::make_mut(past);
    let mut key = (Arc::clone(&pool.name), Arc::clone(&pool.role));
    // These names came from clients.
    if past.len() >= MOST_PAST && !past.contains_key(&key) {
        key = (OTHERS.into(), OTHERS.into());
    }
    *past.entry(key).or_default() += counted;
}
