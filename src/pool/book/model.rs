//! The book against a naive model in virtual time: whatever is asked, released, lost or changed in whatever order, the rules
//! of the module's head hold after every single call. The model keeps flat lists, counts by looking at everything, and
//! learns only from what the book says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
struct World {
    budgets: Vec<Option<u32>>,
    /// Dials at once, on each host.
    dials: u32,
    databases: Vec<u32>,
    users: Vec<u32>,
    services: Vec<ServiceLimits>,
    /// Host, database, user (reduced to what there is), limits.
    pools: Vec<(usize, usize, usize, PoolLimits)>,
    threads: u16,
}

#[derive(Debug, Clone)]
enum Step {
    Ask {
        pool: usize,
        service: usize,
        reach: Reach,
        thread: u16,
        patience: Option<u64>,
    },
    Take(usize),
    Leave(usize),
    Release(usize),
    Discard(usize),
    Closed(usize),
    Dialed {
        which: usize,
        lifetime: Option<u64>,
    },
    DialFailed {
        which: usize,
        retry: bool,
    },
    DialFull(usize),
    Die(usize),
    Tick,
    Pass(u64),
    Budget(usize, u32),
    ForgetBudget(usize),
    UserLimit(usize, u32),
    DatabaseLimit(usize, u32),
    Service(usize, ServiceLimits),
    Pool(usize, PoolLimits),
    Reconnect(usize),
    Replace(usize),
    Gate(usize, Gate),
    Move(usize, usize),
    Refuse(usize),
}

fn service_limits() -> impl Strategy<Value = ServiceLimits> {
    let limits = (
        prop_oneof![2 => Just(0_u32), 3 => 1_u32..5],
        prop_oneof![2 => Just(0_u32), 1 => 1_u32..3],
        1_u32..4,
        0_u32..3,
    );
    limits.prop_map(|(max_servers, min_servers, weight, kept)| ServiceLimits {
        max_servers,
        min_servers,
        weight,
        // Something is left for those who may not have it all.
        kept_servers: kept.min(max_servers.saturating_sub(1)),
    })
}

fn pool_limits() -> impl Strategy<Value = PoolLimits> {
    let limits = (
        1_u32..6,
        prop_oneof![3 => Just(0_u32), 1 => 1_u32..3],
        0_u32..3,
        0_u64..400,
        proptest::option::of(1_u64..2000),
        any::<bool>(),
    );
    limits.prop_map(
        |(size, min_size, reserve_size, reserve_after, server_idle, in_turn)| PoolLimits {
            size,
            min_size: min_size.min(size),
            reserve_size,
            reserve_after: Duration::from_millis(reserve_after),
            server_idle: server_idle.map(Duration::from_millis),
            in_turn,
        },
    )
}

fn gate() -> impl Strategy<Value = Gate> {
    prop_oneof![2 => Just(Gate::Open), 1 => Just(Gate::Suspended), 1 => Just(Gate::Paused)]
}

fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![2 => Just(Reach::All), 1 => Just(Reach::AllButKept)]
}

fn cap() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0_u32), 2 => 1_u32..6]
}

fn world() -> impl Strategy<Value = World> {
    let budget = prop_oneof![1 => Just(None), 5 => (1_u32..9).prop_map(Some)];
    let pools =
        proptest::collection::vec((0_usize..3, 0_usize..3, 0_usize..3, pool_limits()), 1..7);
    (
        proptest::collection::vec(budget, 1..4),
        proptest::collection::vec(cap(), 1..4),
        proptest::collection::vec(cap(), 1..4),
        proptest::collection::vec(service_limits(), 1..5),
        pools,
        1_u16..4,
        prop_oneof![Just(DIALS_AT_ONCE), 1_u32..4],
    )
        .prop_map(
            |(budgets, databases, users, services, mut pools, threads, dials)| {
                for (host, database, user, _) in &mut pools {
                    *host %= budgets.len();
                    *database %= databases.len();
                    *user %= users.len();
                }
                World {
                    budgets,
                    dials,
                    databases,
                    users,
                    services,
                    pools,
                    threads,
                }
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0_usize..64;
    prop_oneof![
        14 => (n.clone(), n.clone(), reach(), 0_u16..3, proptest::option::weighted(0.3, 0_u64..800))
            .prop_map(|(pool, service, reach, thread, patience)| Step::Ask { pool, service, reach, thread, patience }),
        8 => n.clone().prop_map(Step::Take),
        3 => n.clone().prop_map(Step::Leave),
        10 => n.clone().prop_map(Step::Release),
        2 => n.clone().prop_map(Step::Discard),
        6 => n.clone().prop_map(Step::Closed),
        9 => (n.clone(), proptest::option::weighted(0.3, 0_u64..2000))
            .prop_map(|(which, lifetime)| Step::Dialed { which, lifetime }),
        2 => (n.clone(), any::<bool>()).prop_map(|(which, retry)| Step::DialFailed { which, retry }),
        1 => n.clone().prop_map(Step::DialFull),
        2 => n.clone().prop_map(Step::Die),
        4 => Just(Step::Tick),
        5 => prop_oneof![0_u64..10, 0_u64..700].prop_map(Step::Pass),
        1 => (n.clone(), 0_u32..9).prop_map(|(host, budget)| Step::Budget(host, budget)),
        1 => n.clone().prop_map(Step::ForgetBudget),
        1 => (n.clone(), cap()).prop_map(|(user, cap)| Step::UserLimit(user, cap)),
        1 => (n.clone(), cap()).prop_map(|(database, cap)| Step::DatabaseLimit(database, cap)),
        1 => (n.clone(), service_limits()).prop_map(|(service, limits)| Step::Service(service, limits)),
        1 => (n.clone(), pool_limits()).prop_map(|(pool, limits)| Step::Pool(pool, limits)),
        1 => n.clone().prop_map(Step::Reconnect),
        2 => n.clone().prop_map(Step::Replace),
        1 => (n.clone(), n.clone()).prop_map(|(pool, host)| Step::Move(pool, host)),
        2 => (n.clone(), gate()).prop_map(|(pool, gate)| Step::Gate(pool, gate)),
        1 => n.prop_map(Step::Refuse),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Dialing,
    Idle,
    Granted,
    Leased,
    Closing,
    /// In the call being made: came back, or arrived.
    Limbo,
}

#[derive(Debug, Clone, Copy)]
struct MServer {
    at: At,
    pool: usize,
    /// Where it is, or is being dialled.
    host: usize,
    service: usize,
    reach: Reach,
    thread: u16,
    idle_since: Duration,
    expires: Duration,
    old: bool,
    /// Its pool has moved since it was dialled: even if the pool moves back, it serves nobody.
    lost: bool,
}

#[derive(Debug, Clone, Copy)]
struct MWaiter {
    pool: usize,
    service: usize,
    reach: Reach,
    thread: u16,
    since: Duration,
    order: u64,
    deadline: Duration,
    granted: Option<ServerId>,
}

/// Who asks: of which service, and how far it may go.
type Asker = (usize, Reach);

impl MWaiter {
    fn party(&self) -> Asker {
        (self.service, self.reach)
    }
}

/// The caps, as the model numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cap {
    Host(usize),
    Database(usize),
    User(usize),
    Service(usize),
    Pool(usize),
}

struct Model {
    book: Book,
    world: World,
    now: Duration,
    servers: BTreeMap<ServerId, MServer>,
    waiters: BTreeMap<WaiterId, MWaiter>,
    asked: u64,
    ended: u64,
    /// Which service has asked in which pool.
    known: BTreeSet<(usize, usize)>,
    gates: Vec<Gate>,
    /// By host: what may be there while its budget is unknown.
    to_find_out: Vec<u32>,
    /// Every id that was ever given, for finding out stale ones.
    given: (BTreeSet<ServerId>, BTreeSet<WaiterId>),
    retry_at: Vec<Option<Duration>>,
    /// By host: the last dial failed.
    failing: Vec<bool>,
    reserve_before: Vec<Option<Duration>>,
    hosts: Vec<HostId>,
    databases: Vec<DatabaseId>,
    users: Vec<UserId>,
    services: Vec<ServiceId>,
    pools: Vec<PoolId>,
}

fn pick<T: Copy>(all: &[T], which: usize) -> Option<T> {
    (!all.is_empty()).then(|| all[which % all.len()])
}

impl Model {
    fn new(world: World) -> Self {
        let mut book = Book::new();
        let hosts: Vec<_> = world
            .budgets
            .iter()
            .map(|budget| book.add_host(*budget))
            .collect();
        for host in &hosts {
            book.limit_dials(*host, world.dials);
        }
        let databases: Vec<_> = world
            .databases
            .iter()
            .map(|cap| book.add_database(*cap))
            .collect();
        let users: Vec<_> = world.users.iter().map(|cap| book.add_user(*cap)).collect();
        let services: Vec<_> = world
            .services
            .iter()
            .map(|limits| book.add_service(*limits))
            .collect();
        let pools: Vec<_> = world
            .pools
            .iter()
            .map(|(host, database, user, limits)| {
                let place = PoolPlace {
                    host: hosts[*host],
                    database: databases[*database],
                    user: users[*user],
                };
                book.add_pool(place, *limits)
            })
            .collect();
        Self {
            retry_at: vec![None; pools.len()],
            gates: vec![Gate::Open; pools.len()],
            to_find_out: vec![1; hosts.len()],
            failing: vec![false; hosts.len()],
            reserve_before: vec![None; pools.len()],
            book,
            world,
            now: Duration::ZERO,
            servers: BTreeMap::new(),
            waiters: BTreeMap::new(),
            asked: 0,
            ended: 0,
            known: BTreeSet::new(),
            given: (BTreeSet::new(), BTreeSet::new()),
            hosts,
            databases,
            users,
            services,
            pools,
        }
    }

    // ---- what the model counts ----

    fn caps_of(&self, pool: usize, service: usize) -> [Cap; 5] {
        let (host, database, user, _) = self.world.pools[pool];
        [
            Cap::Host(host),
            Cap::Database(database),
            Cap::User(user),
            Cap::Service(service),
            Cap::Pool(pool),
        ]
    }

    fn is_under(&self, server: &MServer, cap: Cap) -> bool {
        let (_, database, user, _) = self.world.pools[server.pool];
        match cap {
            Cap::Host(it) => server.host == it,
            Cap::Database(it) => database == it,
            Cap::User(it) => user == it,
            Cap::Service(it) => server.service == it,
            Cap::Pool(it) => server.pool == it,
        }
    }

    fn count(&self, cap: Cap, wanted: impl Fn(At) -> bool) -> u32 {
        let under = |server: &&MServer| wanted(server.at) && self.is_under(server, cap);
        u32::try_from(self.servers.values().filter(under).count()).unwrap()
    }

    fn total(&self, cap: Cap) -> u32 {
        self.count(cap, |_| true)
    }

    fn live(&self, cap: Cap) -> u32 {
        self.count(cap, |at| at != At::Closing)
    }

    /// `None` = none. A pool's includes its reserve.
    fn cap(&self, cap: Cap) -> Option<u32> {
        let some = |cap: u32| (cap != 0).then_some(cap);
        match cap {
            Cap::Host(host) => Some(self.world.budgets[host].unwrap_or(self.to_find_out[host])),
            Cap::Database(database) => some(self.world.databases[database]),
            Cap::User(user) => some(self.world.users[user]),
            Cap::Service(service) => some(self.world.services[service].max_servers),
            Cap::Pool(pool) => {
                Some(self.world.pools[pool].3.size + self.world.pools[pool].3.reserve_size)
            }
        }
    }

    fn all_caps(&self) -> Vec<Cap> {
        let mut all: Vec<_> = (0..self.hosts.len()).map(Cap::Host).collect();
        all.extend((0..self.databases.len()).map(Cap::Database));
        all.extend((0..self.users.len()).map(Cap::User));
        all.extend((0..self.services.len()).map(Cap::Service));
        all.extend((0..self.pools.len()).map(Cap::Pool));
        all
    }

    fn on_host(&self, host: usize, service: usize) -> u32 {
        let there = |server: &&MServer| server.service == service && server.host == host;
        u32::try_from(self.servers.values().filter(there).count()).unwrap()
    }

    fn deficit(&self, host: usize, service: usize, count: u32) -> u32 {
        let is_here = |(pool, it): &(usize, usize)| {
            *it == service && self.world.pools[*pool].0 == host && self.gates[*pool].is_open()
        };
        if !self.known.iter().any(is_here) {
            return 0;
        }
        self.world.services[service]
            .min_servers
            .saturating_sub(count)
    }

    /// What others than `service` lack on this host; `loser` as if it had one fewer.
    fn others_lack(&self, host: usize, service: usize, loser: Option<usize>) -> u32 {
        let others = (0..self.services.len()).filter(|other| *other != service);
        others
            .map(|other| {
                let count = self.on_host(host, other) - u32::from(loser == Some(other));
                self.deficit(host, other, count)
            })
            .sum()
    }

    fn waiting(&self) -> impl Iterator<Item = &MWaiter> {
        self.waiters
            .values()
            .filter(|waiter| waiter.granted.is_none())
    }

    fn waiting_in(&self, pool: usize, party: Option<Asker>) -> usize {
        self.waiting()
            .filter(|waiter| waiter.pool == pool && party.is_none_or(|it| it == waiter.party()))
            .count()
    }

    fn dialing_in(&self, pool: usize, party: Option<Asker>) -> usize {
        let here = |server: &&MServer| {
            server.at == At::Dialing
                && server.pool == pool
                && !server.lost
                && party.is_none_or(|it| it == (server.service, server.reach))
        };
        self.servers.values().filter(here).count()
    }

    // ---- the rules, naively ----

    /// Whether one more may be in use, as far as what is kept of the service's cap goes. What has come back is not.
    fn reaches(&self, (service, reach): Asker) -> bool {
        let limits = self.world.services[service];
        let in_use = |at| !matches!(at, At::Idle | At::Limbo);
        let in_use = self.count(Cap::Service(service), in_use);
        reach == Reach::All
            || limits.max_servers == 0
            || in_use < limits.max_servers - limits.kept_servers
    }

    /// Whether one more on this account would keep every cap, the pool's own apart.
    fn fits(&self, pool: usize, service: usize) -> bool {
        let host = self.world.pools[pool].0;
        let below = self.deficit(host, service, self.on_host(host, service)) > 0;
        let kept = if below || self.world.budgets[host].is_none() {
            0
        } else {
            self.others_lack(host, service, None)
        };
        self.total(Cap::Host(host)) + 1 + kept <= self.cap(Cap::Host(host)).unwrap()
            && self.caps_of(pool, service)[1..4]
                .iter()
                .all(|cap| self.cap(*cap).is_none_or(|most| self.total(*cap) < most))
    }

    fn may_dial(&self, pool: usize, party: Asker) -> bool {
        let limits = self.world.pools[pool].3;
        let oldest = self
            .waiting()
            .filter(|waiter| (waiter.pool, waiter.party()) == (pool, party));
        let oldest = oldest.map(|waiter| waiter.since).min().unwrap();
        let reserve = self.reserve_before[pool].is_some_and(|before| oldest <= before);
        let size = limits.size + if reserve { limits.reserve_size } else { 0 };
        self.gates[pool].is_open()
            && self.retry_at[pool].is_none()
            && self.is_open(pool)
            && self.dialing_in(pool, None) < self.waiting_in(pool, None)
            && self.dialing_in(pool, Some(party)) < self.waiting_in(pool, Some(party))
            && self.total(Cap::Pool(pool)) < size
            && self.fits(pool, party.0)
            && self.reaches(party)
    }

    /// Whether one more dial may be in flight.
    fn is_open(&self, pool: usize) -> bool {
        let host = self.world.pools[pool].0;
        let dialing = self.count(Cap::Host(host), |at| at == At::Dialing);
        if self.failing[host] {
            dialing < PROBES_AT_ONCE && self.dialing_in(pool, None) == 0
        } else {
            dialing < self.world.dials
        }
    }

    fn may_lend(&self, server: &MServer, party: Asker) -> bool {
        let (service, _) = party;
        if !self.reaches(party) {
            return false;
        }
        if server.service == service {
            return true;
        }
        let cap = Cap::Service(service);
        if self.cap(cap).is_some_and(|most| self.total(cap) >= most) {
            return false;
        }
        let host = self.world.pools[server.pool].0;
        let Some(budget) = self.world.budgets[host] else {
            return true;
        };
        let breaks = self.deficit(host, server.service, self.on_host(host, server.service) - 1) > 0;
        !breaks
            || self.total(Cap::Host(host)) + self.others_lack(host, service, Some(server.service))
                <= budget
    }

    // ---- hearing what the book says ----

    fn hear(&mut self, actions: &[Action], ticking: bool) {
        for action in actions {
            match *action {
                Action::Grant {
                    waiter,
                    server,
                    from,
                    to,
                } => self.hear_grant(waiter, server, from, to),
                Action::Dial {
                    server,
                    pool,
                    service,
                    thread,
                } => self.hear_dial(server, pool, service, thread, ticking),
                Action::Close {
                    server,
                    thread,
                    reason,
                } => self.hear_close(server, thread, reason),
                Action::Refuse {
                    waiter,
                    thread,
                    why,
                } => {
                    let gone = self
                        .waiters
                        .remove(&waiter)
                        .expect("a waiter is refused once");
                    assert!(gone.granted.is_none() && gone.thread == thread.0);
                    assert_eq!(why == Refusal::QueryWait, ticking);
                    assert!(
                        !ticking || gone.deadline <= self.now,
                        "refused before its deadline"
                    );
                    self.ended += 1;
                }
            }
        }
    }

    fn hear_grant(&mut self, id: WaiterId, server_id: ServerId, from: ThreadId, to: ThreadId) {
        let waiter = self.waiters[&id];
        assert!(waiter.granted.is_none(), "granted twice");
        for other in self
            .waiting()
            .filter(|other| (other.pool, other.party()) == (waiter.pool, waiter.party()))
        {
            let bound = if other.thread == waiter.thread {
                Duration::ZERO
            } else {
                THREAD_BOUND
            };
            let overtaken = other.order < waiter.order
                && (bound.is_zero() || other.since + bound < waiter.since);
            assert!(!overtaken, "{waiter:?} overtook {other:?}");
        }
        self.lend(
            server_id,
            waiter.party(),
            waiter.pool,
            from,
            At::Granted,
            waiter.thread,
        );
        assert_eq!(to.0, waiter.thread);
        self.waiters.get_mut(&id).unwrap().granted = Some(server_id);
    }

    fn lend(
        &mut self,
        id: ServerId,
        party: Asker,
        pool: usize,
        from: ThreadId,
        at: At,
        thread: u16,
    ) {
        let server = self.servers[&id];
        assert!(
            matches!(server.at, At::Idle | At::Limbo),
            "lent while {:?}",
            server.at
        );
        assert_eq!((server.pool, server.thread), (pool, from.0));
        assert!(
            !server.old && (server.at == At::Idle || server.expires > self.now),
            "lent although to be closed"
        );
        assert!(self.gates[pool].is_open(), "lent by a pool that is shut");
        assert!(
            self.may_lend(&server, party),
            "lent against a cap or a guarantee"
        );
        let (service, reach) = party;
        *self.servers.get_mut(&id).unwrap() = MServer {
            at,
            service,
            reach,
            thread,
            ..server
        };
    }

    fn hear_dial(
        &mut self,
        id: ServerId,
        pool: PoolId,
        service: ServiceId,
        thread: ThreadId,
        ticking: bool,
    ) {
        let pool = self.pools.iter().position(|it| *it == pool).unwrap();
        let service = service.index();
        // Whom it is dialled for, it does not say.
        let reach = self.book.groups[self.book.servers[id.index].group].reach;
        let warming = ticking && self.live(Cap::Pool(pool)) < self.world.pools[pool].3.min_size;
        let party = (service, reach);
        if self.waiting_in(pool, Some(party)) == 0 || !self.may_dial(pool, party) {
            assert!(
                warming
                    && self.gates[pool].is_open()
                    && self.retry_at[pool].is_none()
                    && self.is_open(pool),
                "a dial that is not permitted"
            );
            assert!(
                self.fits(pool, service)
                    && self.total(Cap::Pool(pool)) < self.world.pools[pool].3.size
            );
        }
        let server = MServer {
            at: At::Dialing,
            pool,
            host: self.world.pools[pool].0,
            service,
            reach,
            thread: thread.0,
            idle_since: self.now,
            expires: Duration::MAX,
            old: false,
            lost: false,
        };
        assert!(self.given.0.insert(id), "an id was given twice");
        self.servers.insert(id, server);
    }

    fn hear_close(&mut self, id: ServerId, thread: ThreadId, reason: CloseReason) {
        let server = self.servers[&id];
        assert!(
            matches!(server.at, At::Idle | At::Limbo),
            "closed while {:?}",
            server.at
        );
        assert_eq!(server.thread, thread.0);
        let limits = self.world.pools[server.pool].3;
        let above_min_size = self.live(Cap::Pool(server.pool)) > limits.min_size;
        match reason {
            CloseReason::ServerIdle => {
                assert!(
                    above_min_size && server.idle_since + limits.server_idle.unwrap() <= self.now
                );
            }
            CloseReason::ServerLifetime => assert!(server.expires <= self.now),
            CloseReason::OverBudget | CloseReason::OverLimit => {
                let caps = self.caps_of(server.pool, server.service);
                assert!(
                    caps.iter()
                        .any(|cap| self.cap(*cap).is_some_and(|most| self.live(*cap) > most))
                );
            }
            CloseReason::Reconnect => assert!(server.old),
            CloseReason::Paused => assert_eq!(self.gates[server.pool], Gate::Paused),
            CloseReason::MadeRoom => {
                assert!(self.may_make_room(&server), "closed for nobody: {server:?}");
            }
        }
        self.servers.get_mut(&id).unwrap().at = At::Closing;
    }

    /// Whether somebody waits in another pool under a common cap that is full, for whom this one may be closed.
    fn may_make_room(&self, server: &MServer) -> bool {
        let host = server.host;
        let spared =
            self.deficit(host, server.service, self.on_host(host, server.service) - 1) == 0;
        let warm = self.live(Cap::Pool(server.pool)) <= self.world.pools[server.pool].3.min_size;
        let mut mine = self.caps_of(server.pool, server.service);
        mine[0] = Cap::Host(host);
        self.waiting().any(|waiter| {
            let there = self.world.pools[waiter.pool].0;
            let same_account = (there, waiter.service) == (host, server.service);
            let below =
                self.deficit(there, waiter.service, self.on_host(there, waiter.service)) > 0;
            waiter.pool != server.pool
                && self.gates[waiter.pool].is_open()
                && (spared || same_account)
                && (!warm || below)
                && self.reaches(waiter.party())
                && !self.fits(waiter.pool, waiter.service)
                && self.caps_of(waiter.pool, waiter.service)[..4]
                    .iter()
                    .any(|cap| mine.contains(cap))
        })
    }

    // ---- steps ----

    fn in_state(&self, at: At) -> Vec<ServerId> {
        self.servers
            .iter()
            .filter(|(_, server)| server.at == at)
            .map(|(id, _)| *id)
            .collect()
    }

    fn limbo(&mut self, id: ServerId) {
        self.servers.get_mut(&id).unwrap().at = At::Limbo;
    }

    fn leave_limbo(&mut self) {
        let now = self.now;
        for server in self
            .servers
            .values_mut()
            .filter(|server| server.at == At::Limbo)
        {
            (server.at, server.idle_since) = (At::Idle, now);
        }
    }

    fn run(&mut self, step: &Step) {
        let before: Vec<_> = self
            .all_caps()
            .into_iter()
            .map(|cap| (cap, self.total(cap)))
            .collect();
        let mut out = Vec::new();
        if !self.apply(step, &mut out) {
            return;
        }
        self.hear(&out, matches!(step, Step::Tick));
        self.leave_limbo();
        for (cap, count) in before {
            let most = self.cap(cap).map_or(u32::MAX, |most| most.max(count));
            assert!(self.total(cap) <= most, "{cap:?} exceeded");
        }
        self.check();
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
    fn apply(&mut self, step: &Step, out: &mut Vec<Action>) -> bool {
        let now = self.now;
        match *step {
            Step::Ask {
                pool,
                service,
                reach,
                thread,
                patience,
            } => {
                let (pool, service) = (pool % self.pools.len(), service % self.services.len());
                let thread = thread % self.world.threads;
                self.ask(pool, (service, reach), thread, patience, out);
            }
            Step::Take(which) => return self.take(which),
            Step::Leave(which) => return self.leave(which, out),
            Step::Release(which) => {
                let Some(id) = pick(&self.in_state(At::Leased), which) else {
                    return false;
                };
                assert!(self.book.release(now, id, out));
                self.limbo(id);
            }
            Step::Discard(which) => {
                let Some(id) = pick(&self.in_state(At::Leased), which) else {
                    return false;
                };
                assert!(self.book.discard(id));
                assert!(
                    !self.book.release(now, id, out),
                    "released after it was discarded"
                );
                self.servers.get_mut(&id).unwrap().at = At::Closing;
            }
            Step::Closed(which) => {
                let Some(id) = pick(&self.in_state(At::Closing), which) else {
                    return false;
                };
                assert!(self.book.closed(now, id, out));
                self.servers.remove(&id);
            }
            Step::Die(which) => {
                let Some(id) = pick(&self.in_state(At::Idle), which) else {
                    return false;
                };
                assert!(self.book.die(now, id, out));
                assert!(!self.book.die(now, id, out), "a stale id was believed");
                self.servers.remove(&id);
            }
            Step::Dialed { which, lifetime } => {
                let Some(id) = pick(&self.in_state(At::Dialing), which) else {
                    return false;
                };
                let expires = lifetime.map(|lifetime| now + Duration::from_millis(lifetime));
                assert!(self.book.dialed(now, id, expires, out));
                self.limbo(id);
                let server = self.servers.get_mut(&id).unwrap();
                server.expires = expires.unwrap_or(Duration::MAX);
                let (pool, host) = (server.pool, server.host);
                if host == self.world.pools[pool].0 {
                    self.retry_at[pool] = None;
                }
                self.is_back(host);
            }
            Step::DialFailed { which, retry } => {
                return self.dial_failed(which, retry, false, out);
            }
            Step::DialFull(which) => return self.dial_failed(which, true, true, out),
            Step::Tick => {
                let _ = self.book.tick(now, out);
                for (pool, retry_at) in self.retry_at.iter_mut().enumerate() {
                    *retry_at = retry_at.filter(|at| *at > now);
                    self.reserve_before[pool] =
                        now.checked_sub(self.world.pools[pool].3.reserve_after);
                }
                let late = self
                    .waiting()
                    .filter(|waiter| waiter.deadline <= now)
                    .count();
                let refused = out
                    .iter()
                    .filter(|action| matches!(action, Action::Refuse { .. }))
                    .count();
                assert_eq!(
                    late, refused,
                    "exactly those past their deadline are refused"
                );
            }
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
            Step::Budget(host, budget) => {
                let host = host % self.hosts.len();
                self.world.budgets[host] = Some(budget);
                self.book.set_budget(now, self.hosts[host], budget, out);
            }
            Step::ForgetBudget(host) => {
                let host = host % self.hosts.len();
                if self.world.budgets[host].take().is_some() {
                    self.to_find_out[host] = self.total(Cap::Host(host)) + 1;
                }
                self.book.forget_budget(now, self.hosts[host], out);
            }
            Step::UserLimit(user, cap) => {
                let user = user % self.users.len();
                self.world.users[user] = cap;
                self.book.set_user_limit(now, self.users[user], cap, out);
            }
            Step::DatabaseLimit(database, cap) => {
                let database = database % self.databases.len();
                self.world.databases[database] = cap;
                self.book
                    .set_database_limit(now, self.databases[database], cap, out);
            }
            Step::Service(service, limits) => {
                let service = service % self.services.len();
                self.world.services[service] = limits;
                self.book
                    .set_service(now, self.services[service], limits, out);
            }
            Step::Pool(pool, limits) => {
                let pool = pool % self.pools.len();
                self.world.pools[pool].3 = limits;
                assert!(self.book.set_pool(now, self.pools[pool], limits, out));
            }
            Step::Reconnect(pool) => {
                let pool = pool % self.pools.len();
                let here = self
                    .servers
                    .values_mut()
                    .filter(|server| server.pool == pool);
                here.for_each(|server| server.old = true);
                self.book.reconnect(now, self.pools[pool], out);
            }
            Step::Replace(which) => {
                let all: Vec<_> = self.servers.keys().copied().collect();
                let Some(id) = pick(&all, which) else {
                    return false;
                };
                let server = self.servers.get_mut(&id).unwrap();
                let is_new = !server.old && server.at != At::Closing;
                server.old |= is_new;
                assert_eq!(self.book.replace(now, id, out), is_new);
                assert!(!self.book.replace(now, id, &mut vec![]), "replaced twice");
            }
            Step::Move(pool, host) => {
                let (pool, host) = (pool % self.pools.len(), host % self.hosts.len());
                if self.world.pools[pool].0 != host {
                    self.world.pools[pool].0 = host;
                    self.retry_at[pool] = None;
                    let mut here = self.servers.values_mut();
                    here.by_ref()
                        .filter(|server| server.pool == pool)
                        .for_each(|server| {
                            server.old = true;
                            server.lost = true;
                        });
                }
                let host = self.hosts[host];
                assert!(self.book.move_pool(now, self.pools[pool], host, out));
            }
            Step::Gate(pool, gate) => {
                let pool = pool % self.pools.len();
                self.gates[pool] = gate;
                assert!(self.book.set_gate(now, self.pools[pool], gate, out));
            }
            Step::Refuse(pool) => {
                let pool = pool % self.pools.len();
                self.book
                    .refuse_waiters(self.pools[pool], Refusal::LoginRefused, out);
                assert_eq!(out.len(), self.waiting_in(pool, None));
            }
        }
        true
    }

    fn ask(
        &mut self,
        pool: usize,
        (service, reach): Asker,
        thread: u16,
        patience: Option<u64>,
        out: &mut Vec<Action>,
    ) {
        let deadline = patience.map(|patience| self.now + Duration::from_millis(patience));
        self.known.insert((pool, service));
        self.asked += 1;
        let party = Party {
            service: self.services[service],
            reach,
        };
        match self.book.ask(
            self.now,
            self.pools[pool],
            party,
            ThreadId(thread),
            deadline,
            out,
        ) {
            Asked::Granted { server, from } => {
                self.ended += 1;
                assert!(
                    self.waiting()
                        .all(|other| (other.pool, other.party()) != (pool, (service, reach))),
                    "overtook"
                );
                self.lend(server, (service, reach), pool, from, At::Leased, thread);
            }
            Asked::Waiting(id) => {
                let deadline = deadline.unwrap_or(Duration::MAX);
                let (since, order) = (self.now, self.asked);
                let waiter = MWaiter {
                    pool,
                    service,
                    reach,
                    thread,
                    since,
                    order,
                    deadline,
                    granted: None,
                };
                assert!(self.given.1.insert(id), "an id was given twice");
                self.waiters.insert(id, waiter);
            }
        }
    }

    /// Mostly of one that was granted something; sometimes of one that still waits.
    fn take(&mut self, which: usize) -> bool {
        let too_early = which % 8 == 7;
        let some = self
            .waiters
            .iter()
            .filter(|(_, waiter)| too_early || waiter.granted.is_some());
        let all: Vec<_> = some.map(|(id, _)| *id).collect();
        let Some(id) = pick(&all, which) else {
            return false;
        };
        let granted = self.waiters[&id].granted;
        assert_eq!(self.book.take(id), granted);
        if let Some(server) = granted {
            assert_eq!(self.book.take(id), None, "a waiter was served twice");
            self.servers.get_mut(&server).unwrap().at = At::Leased;
            self.waiters.remove(&id);
            self.ended += 1;
        }
        true
    }

    fn leave(&mut self, which: usize, out: &mut Vec<Action>) -> bool {
        let all: Vec<_> = self.waiters.keys().copied().collect();
        let Some(id) = pick(&all, which) else {
            return false;
        };
        assert!(self.book.leave(self.now, id, out));
        if let Some(server) = self.waiters.remove(&id).unwrap().granted {
            self.limbo(server);
        }
        self.ended += 1;
        true
    }

    fn dial_failed(
        &mut self,
        which: usize,
        retry: bool,
        full: bool,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(id) = pick(&self.in_state(At::Dialing), which) else {
            return false;
        };
        let retry = (retry && !full).then_some(Retry {
            first: Duration::from_secs(1),
            jitter: 0.5,
        });
        if full {
            assert!(self.book.dial_found_full(self.now, id, out));
        } else {
            assert!(self.book.dial_failed(self.now, id, retry, out));
        }
        let server = self.servers.remove(&id).unwrap();
        if full {
            let known = self.world.budgets[server.host];
            let budget = known.unwrap_or(self.to_find_out[server.host]);
            // Those that it dialled on the way out are no one's yet.
            let there = self.total(Cap::Host(server.host));
            self.world.budgets[server.host] = Some(budget.min(there));
        }
        self.failing[server.host] |= retry.is_some() || full;
        if retry.is_some() && !server.lost && self.retry_at[server.pool].is_none() {
            let until = self
                .book
                .pool(self.pools[server.pool])
                .unwrap()
                .retry_at
                .expect("in back-off");
            assert!(
                until >= self.now + Duration::from_secs(1) && until <= self.now + MAX_RETRY * 5 / 4
            );
            self.retry_at[server.pool] = Some(until);
        }
        true
    }

    fn is_back(&mut self, host: usize) {
        if std::mem::take(&mut self.failing[host]) {
            let pools = self.world.pools.iter().zip(&mut self.retry_at);
            let there = pools.filter(|((it, ..), _)| *it == host);
            there.for_each(|(_, retry_at)| *retry_at = None);
        }
    }

    // ---- after every step ----

    fn check(&self) {
        for pool in 0..self.pools.len() {
            let services = 0..self.services.len();
            let parties = services.flat_map(|it| [(it, Reach::All), (it, Reach::AllButKept)]);
            for party in parties {
                if self.gates[pool].is_open() && self.waiting_in(pool, Some(party)) > 0 {
                    assert!(
                        !self.may_dial(pool, party),
                        "pool {pool}, {party:?} waits, and might dial"
                    );
                    let mut idle = self
                        .servers
                        .values()
                        .filter(|server| server.at == At::Idle && server.pool == pool);
                    assert!(
                        !idle.any(|server| self.may_lend(server, party)),
                        "{party:?} waits, and might go"
                    );
                }
            }
        }
        self.check_counts();
        self.check_insides();
        self.check_ids();
        assert_eq!(
            self.asked,
            self.ended + self.waiters.len() as u64,
            "a waiter was lost"
        );
    }

    fn tally(&self, cap: Cap) -> Tally {
        let mut tally = Tally::default();
        for server in self
            .servers
            .values()
            .filter(|server| self.is_under(server, cap))
        {
            match server.at {
                At::Dialing => *tally.of(State::Dialing) += 1,
                At::Idle => *tally.of(State::Idle) += 1,
                At::Granted => *tally.of(State::Granted) += 1,
                At::Leased => *tally.of(State::Leased) += 1,
                At::Closing => *tally.of(State::Closing) += 1,
                At::Limbo => unreachable!("between calls"),
            }
        }
        tally
    }

    fn check_counts(&self) {
        for cap in self.all_caps() {
            let said = match cap {
                Cap::Host(host) => self.book.host(self.hosts[host]).tally,
                Cap::Database(database) => self.book.database(self.databases[database]).tally,
                Cap::User(user) => self.book.user(self.users[user]).tally,
                Cap::Service(service) => self.book.service(self.services[service]).tally,
                Cap::Pool(pool) => self.book.pool(self.pools[pool]).unwrap().tally,
            };
            assert_eq!(said, self.tally(cap), "{cap:?}");
        }
        for (at, id) in self.pools.iter().enumerate() {
            let view = self.book.pool(*id).unwrap();
            let is_idle = self.gates[at] == Gate::Paused && view.tally.idle() > 0;
            assert!(!is_idle, "pool {at} is paused and keeps what is idle");
            let outdated = self.servers.values();
            let outdated = outdated.filter(|server| server.pool == at && server.old);
            assert_eq!(
                (self.book.gate(*id), self.book.outdated(*id) as usize),
                (Some(self.gates[at]), outdated.count())
            );
            assert_eq!(view.waiters as usize, self.waiting_in(at, None));
            let oldest = self
                .waiting()
                .filter(|waiter| waiter.pool == at)
                .map(|waiter| waiter.since)
                .min();
            assert_eq!(
                (view.waiting_since, view.retry_at),
                (oldest, self.retry_at[at])
            );
        }
        assert!(self.book.servers().eq(self.servers_by_index()));
        for (id, server) in &self.servers {
            let view = self.book.server(*id).unwrap();
            assert_eq!(
                (view.thread.0, view.service.index()),
                (server.thread, server.service)
            );
        }
    }

    fn servers_by_index(&self) -> Vec<ServerId> {
        let mut all: Vec<_> = self.servers.keys().copied().collect();
        all.sort_by_key(|id| id.index());
        all
    }

    fn check_ids(&self) {
        for id in &self.given.0 {
            assert_eq!(
                self.book.server(*id).is_some(),
                self.servers.contains_key(id)
            );
        }
        for id in &self.given.1 {
            assert_eq!(
                self.book.waiter_at(*id).is_some(),
                self.waiters.contains_key(id)
            );
        }
    }

    /// The sums that the book keeps and shows nobody.
    fn check_insides(&self) {
        for host in 0..self.hosts.len() {
            let lacks =
                (0..self.services.len()).map(|it| self.deficit(host, it, self.on_host(host, it)));
            assert_eq!(self.book.hosts[host].reserved, lacks.sum::<u32>());
            for service in 0..self.services.len() {
                assert_eq!(
                    self.book
                        .service_on(self.hosts[host], self.services[service]),
                    self.on_host(host, service)
                );
            }
            let claims = self
                .book
                .servers
                .indices()
                .filter_map(|at| self.book.servers[at].claim);
            let claims = claims.filter(|claim| {
                claim.caps.host && self.book.groups[claim.group].host as usize == host
            });
            assert_eq!(
                self.book.hosts[host].capped.promised as usize,
                claims.count()
            );
        }
        for group in self.book.groups.indices().map(|at| &self.book.groups[at]) {
            assert!(
                group.rooms.length == 0
                    || self.book.pools[group.pool].gate.is_open()
                        && group.rooms.length + group.tally.dialing() <= group.waiters
            );
        }
    }

    /// With guarantees and scarce budgets out of the way, and everybody doing their part, every waiter is served.
    fn serve_all(&mut self) {
        for at in 0..self.services.len() {
            let limits = ServiceLimits {
                min_servers: 0,
                ..self.world.services[at]
            };
            self.run(&Step::Service(at, limits));
        }
        for at in 0..self.pools.len() {
            self.run(&Step::Gate(at, Gate::Open));
            let limits = PoolLimits {
                min_size: 0,
                ..self.world.pools[at].3
            };
            self.run(&Step::Pool(at, limits));
        }
        for at in 0..self.hosts.len() {
            let budget = self.world.budgets[at].unwrap_or(1).max(1);
            self.run(&Step::Budget(at, budget));
        }
        for _ in 0..400 {
            if self.waiters.is_empty() {
                return;
            }
            for step in [
                Step::Take(0),
                Step::Dialed {
                    which: 0,
                    lifetime: None,
                },
                Step::Closed(0),
                Step::Release(0),
            ] {
                for _ in 0..6 {
                    self.run(&step);
                }
            }
            self.now += 400 * MS;
            self.run(&Step::Tick);
        }
        panic!("left waiting: {:?}", self.waiters);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_after_every_call(world in world(), steps in proptest::collection::vec(step(), 1..160)) {
        let mut model = Model::new(world);
        for step in &steps {
            model.run(step);
        }
        model.serve_all();
    }
}
