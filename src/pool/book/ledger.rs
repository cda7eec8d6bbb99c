//! What the book keeps for each thing it knows, and the counts. Every change of a server connection's state or account goes
//! through here, so that each count is kept in one place.

use std::time::Duration;

use super::Book;
use super::arena::{Linked, Links, List, NONE};
use super::words::{
    Gate, Party, PoolId, PoolLimits, Reach, ServerId, ServiceId, ServiceLimits, State, WaiterId,
};

/// Server connections by state, under one cap. A table, because each that changes its state is counted in six of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally([u32; State::COUNT]);

impl Tally {
    /// Being dialled.
    pub fn dialing(&self) -> u32 {
        self.0[State::Dialing as usize]
    }

    /// Ready to be lent.
    pub fn idle(&self) -> u32 {
        self.0[State::Idle as usize]
    }

    /// Those that a session has, or that are on their way to one.
    pub fn lent(&self) -> u32 {
        self.0[State::Granted as usize] + self.0[State::Leased as usize]
    }

    /// Being closed.
    pub fn closing(&self) -> u32 {
        self.0[State::Closing as usize]
    }

    /// All of them: what counts against a cap.
    pub fn total(&self) -> u32 {
        self.live() + self.closing()
    }

    /// Those that are to stay.
    pub fn live(&self) -> u32 {
        self.dialing() + self.idle() + self.lent()
    }

    /// Each count as it is told, with the word for it in metrics and on the status page.
    pub fn each(&self) -> [(&'static str, u32); 4] {
        [
            ("dialing", self.dialing()),
            ("idle", self.idle()),
            ("leased", self.lent()),
            ("closing", self.closing()),
        ]
    }

    pub(super) fn of(&mut self, state: State) -> &mut u32 {
        &mut self.0[state as usize]
    }
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|state| self.0[state] + other.0[state]))
    }
}

/// A cap and what counts against it.
#[derive(Default)]
pub(super) struct Capped {
    /// 0 = none.
    pub(super) cap: u32,
    pub(super) tally: Tally,
    /// How many of the closing ones make room for somebody in particular.
    pub(super) promised: u32,
}

impl Capped {
    pub(super) fn limited(cap: u32) -> Self {
        Self {
            cap,
            ..Self::default()
        }
    }

    /// Whether one more may be dialled.
    pub(super) fn has_room(&self) -> bool {
        self.cap == 0 || self.tally.total() < self.cap
    }

    /// Whether it holds more than it should, those on their way out apart.
    pub(super) fn is_over(&self) -> bool {
        self.cap != 0 && self.tally.live() > self.cap
    }

    /// How many must still be closed before one more fits, once the closings are through that nobody has a claim to.
    pub(super) fn lacks(&self) -> u32 {
        if self.cap == 0 {
            0
        } else {
            self.lacks_beside(0)
        }
    }

    /// The same under a cap of which `held` are kept for others, and in which 0 means nothing.
    pub(super) fn lacks_beside(&self, held: u32) -> u32 {
        (self.tally.live() + self.promised + held + 1).saturating_sub(self.cap)
    }
}

/// A service's account on one host.
#[derive(Default)]
pub(super) struct Account {
    pub(super) count: u32,
    /// Groups of open pools through which it has asked on this host: with any, its guaranteed minimum holds here.
    pub(super) known: u32,
    /// The last choice in which it was weighed; see `choose`.
    pub(super) stamp: u64,
}

pub(super) struct Host {
    /// `cap` is the budget; while it is unknown, one server connection may find it out.
    pub(super) capped: Capped,
    pub(super) budget_known: bool,
    /// Dials in flight at once.
    pub(super) dials: u32,
    /// The last dial failed.
    pub(super) is_failing: bool,
    /// What the guaranteed minimums of known services still lack, in total.
    pub(super) reserved: u32,
    /// By service.
    pub(super) accounts: Vec<Account>,
    /// The sums of the choice being made; see `choose`.
    pub(super) stamp: u64,
    pub(super) sum_count: u64,
    pub(super) sum_weight: u64,
}

pub(super) struct Service {
    pub(super) limits: ServiceLimits,
    /// `cap` is `max_servers`.
    pub(super) capped: Capped,
    pub(super) waiters: u32,
    /// How many of these ask with [`Reach::AllButKept`].
    pub(super) waiters_short: u32,
}

pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) host: u32,
    pub(super) database: u32,
    pub(super) user: u32,
    pub(super) limits: PoolLimits,
    pub(super) tally: Tally,
    /// By service and reach; `NONE` where it never asked.
    pub(super) group_of: Vec<u32>,
    /// The groups there are.
    pub(super) groups: Vec<u32>,
    /// Those with waiters.
    pub(super) waiting: Vec<u32>,
    pub(super) waiters: u32,
    /// Closings elsewhere that make room for this pool.
    pub(super) promised: u32,
    /// Its place in the book's list of pools with waiters.
    pub(super) place: u32,
    /// In back-off: no dial until a tick at or after this.
    pub(super) retry_at: Option<Duration>,
    pub(super) failures: u32,
    /// Who has waited since before this may draw on the reserve.
    pub(super) reserve_before: Option<Duration>,
    /// Who asked last: `min_size` is kept up on this account.
    pub(super) warm: Option<(u32, u16)>,
    /// Server connections ordered in an earlier epoch are closed when they come back.
    pub(super) epoch: u32,
    /// How many of those are left.
    pub(super) outdated: u32,
    /// Dials in flight to a host that the pool has left: nobody hopes for them.
    pub(super) lost_dials: u32,
    pub(super) gate: Gate,
}

/// The queue and the server connections of one (pool, service, reach).
pub(super) struct Group {
    pub(super) pool: u32,
    pub(super) host: u32,
    pub(super) service: u32,
    pub(super) reach: Reach,
    /// Its service has asked here.
    pub(super) asked: bool,
    /// Its pool has moved to another host: what is left here is on its way out.
    pub(super) left: bool,
    pub(super) waiters: u32,
    pub(super) tally: Tally,
    /// By thread.
    pub(super) lanes: Vec<Lane>,
    /// Closing server connections that make room for this group.
    pub(super) rooms: List,
    /// Its place in the pool's list of groups with waiters.
    pub(super) place: u32,
}

/// One thread's part of a group.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Oldest first.
    pub(super) waiters: List,
    /// Most recently used first.
    pub(super) idle: List,
    pub(super) dialing: u32,
    /// Deadlines never fall from head to tail, so a tick need only look at the head.
    pub(super) ordered: bool,
}

impl Lane {
    pub(super) const EMPTY: Self = Self {
        waiters: List::EMPTY,
        idle: List::EMPTY,
        dialing: 0,
        ordered: true,
    };
}

pub(super) struct Server {
    pub(super) id: ServerId,
    /// Its number among all that there ever were.
    pub(super) number: u32,
    pub(super) state: State,
    pub(super) pool: u32,
    /// The account it is on.
    pub(super) group: u32,
    pub(super) thread: u16,
    pub(super) epoch: u32,
    pub(super) idle_since: Duration,
    /// When it came into its state.
    pub(super) since: Duration,
    /// When it was last lent.
    pub(super) lent: Option<Duration>,
    pub(super) expires: Duration,
    /// For whom it is being closed, if for anybody.
    pub(super) claim: Option<Claim>,
    pub(super) links: Links,
}

pub(super) struct Waiter {
    pub(super) id: WaiterId,
    pub(super) group: u32,
    pub(super) thread: u16,
    pub(super) since: Duration,
    /// Its place in the order of all waiters.
    pub(super) ticket: u64,
    /// `Duration::MAX` = none.
    pub(super) deadline: Duration,
    /// What it was granted, or `NONE`.
    pub(super) server: u32,
    pub(super) links: Links,
}

/// The caps that one server connection and one group have in common, or that stand in a group's way.
#[derive(Clone, Copy, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of four, each member by its name"
)]
pub(super) struct Caps {
    pub(super) host: bool,
    pub(super) database: bool,
    pub(super) user: bool,
    pub(super) service: bool,
}

impl Caps {
    /// Whether all of these are among `others`.
    pub(super) fn within(self, others: Self) -> bool {
        (!self.host || others.host)
            && (!self.database || others.database)
            && (!self.user || others.user)
            && (!self.service || others.service)
    }

    /// Whether any of these is among `others`.
    pub(super) fn meets(self, others: Self) -> bool {
        (self.host && others.host)
            || (self.database && others.database)
            || (self.user && others.user)
            || (self.service && others.service)
    }
}

/// Room that a closing server connection makes for a group.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) group: u32,
    /// The caps under which the room is spoken for.
    pub(super) caps: Caps,
}

impl Linked for Server {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Linked for Waiter {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Host {
    /// The account of a service that may never have come here.
    pub(super) fn account(&mut self, service: u32) -> &mut Account {
        let at = service as usize;
        if self.accounts.len() <= at {
            self.accounts.resize_with(at + 1, Account::default);
        }
        &mut self.accounts[at]
    }
}

impl Pool {
    /// Dials in flight that may serve its waiters.
    pub(super) fn dials(&self) -> u32 {
        self.tally.dialing() - self.lost_dials
    }
}

impl Service {
    /// What an account lacks of this service's guaranteed minimum.
    pub(super) fn deficit(&self, account: &Account) -> u32 {
        if account.known > 0 {
            self.limits.min_servers.saturating_sub(account.count)
        } else {
            0
        }
    }

    /// Whether somebody of this reach may have one more in use, where `freed` of those in use are about to be given up.
    pub(super) fn reaches(&self, reach: Reach, freed: u32) -> bool {
        let Capped { cap, tally, .. } = &self.capped;
        let in_use = tally.total() - tally.idle() - freed;
        reach == Reach::All || *cap == 0 || in_use + self.limits.kept_servers < *cap
    }
}

impl Book {
    /// Applies `change` to each tally that a server connection of this group counts in.
    fn tallies(&mut self, group: u32, change: impl Fn(&mut Tally)) {
        let group = &mut self.groups[group];
        let pool = &mut self.pools[group.pool];
        change(&mut group.tally);
        change(&mut pool.tally);
        change(&mut self.hosts[group.host as usize].capped.tally);
        change(&mut self.databases[pool.database as usize].tally);
        change(&mut self.users[pool.user as usize].tally);
        change(&mut self.services[group.service as usize].capped.tally);
    }

    /// Changes one account's count, and keeps `reserved` true and `unsettled` honest.
    fn count(&mut self, host: u32, service: u32, change: impl FnOnce(&mut Account)) {
        let service_entry = &self.services[service as usize];
        let host = &mut self.hosts[host as usize];
        let account = host.account(service);
        let (lacked, was) = (service_entry.deficit(account), account.count);
        change(account);
        let (lacks, is) = (service_entry.deficit(account), account.count);
        host.reserved = host.reserved + lacks - lacked;
        // With one more than it is guaranteed, an idle one of it may be lent to somebody who was kept from it. With one
        // fewer, its own waiters may go although others' guarantees are not met.
        let minimum = service_entry.limits.min_servers;
        self.unsettled |= minimum > 0 && was == minimum && is > minimum;
        self.unsettled |= lacks > lacked && service_entry.waiters > 0;
    }

    /// The guaranteed minimum of this group's service holds on its host from now on, while the pool is open.
    pub(super) fn make_known(&mut self, group: u32) {
        if !std::mem::replace(&mut self.groups[group].asked, true) {
            self.count_known(group, true);
        }
    }

    /// Counts a group in or out of those through which its service is known on its host.
    pub(super) fn count_known(&mut self, group: u32, is_in: bool) {
        let Group {
            pool,
            host,
            service,
            ..
        } = self.groups[group];
        let is_open = self.pools[pool].gate.is_open();
        self.count(host, service, |account| match (is_in, is_open) {
            (_, false) => {}
            (true, true) => account.known += 1,
            (false, true) => account.known -= 1,
        });
    }

    /// Replaces a service's limits, and with them what hosts reserve for it.
    pub(super) fn set_service_limits(&mut self, service: u32, limits: ServiceLimits) {
        let entry = &mut self.services[service as usize];
        let old = std::mem::replace(&mut entry.limits, limits);
        entry.capped.cap = limits.max_servers;
        for host in &mut self.hosts {
            let account = host.account(service);
            if account.known > 0 {
                let count = account.count;
                host.reserved -= old.min_servers.saturating_sub(count);
                host.reserved += limits.min_servers.saturating_sub(count);
            }
        }
    }

    /// A server connection appears, as `Dialing`.
    pub(super) fn enter(&mut self, group: u32, thread: u16) -> u32 {
        let pool = self.groups[group].pool;
        let (epoch, since) = (self.pools[pool].epoch, self.now);
        self.dialed = self.dialed.wrapping_add(1);
        let number = self.dialed;
        let server = self.servers.insert(|index, generation| Server {
            id: ServerId { index, generation },
            number,
            state: State::Dialing,
            pool,
            group,
            thread,
            epoch,
            idle_since: Duration::ZERO,
            since,
            lent: None,
            expires: Duration::MAX,
            claim: None,
            links: Links::OUT,
        });
        self.tallies(group, |tally| *tally.of(State::Dialing) += 1);
        self.lane(group, thread).dialing += 1;
        let Group { host, service, .. } = self.groups[group];
        self.count(host, service, |account| account.count += 1);
        server
    }

    /// A server connection is gone.
    pub(super) fn vanish(&mut self, server: u32) {
        self.unclaim(server);
        let Server {
            state,
            pool,
            group,
            thread,
            epoch,
            ..
        } = self.servers[server];
        let pool = &mut self.pools[pool];
        pool.outdated -= u32::from(epoch != pool.epoch);
        self.out_of(server, state, group, thread);
        self.tallies(group, |tally| *tally.of(state) -= 1);
        let Group { host, service, .. } = self.groups[group];
        self.count(host, service, |account| account.count -= 1);
        self.servers.remove(server);
        if self.groups[group].left {
            self.drop_if_empty(group);
        }
    }

    /// A server connection changes its state. Into `Idle` it comes as the most recently used.
    pub(super) fn turn(&mut self, server: u32, to: State) {
        let Server {
            state: from,
            group,
            thread,
            ..
        } = self.servers[server];
        self.out_of(server, from, group, thread);
        let now = self.now;
        let entry = &mut self.servers[server];
        entry.state = to;
        // A lease begins when it is granted, and not when it is picked up.
        if from != State::Granted {
            entry.since = now;
            if matches!(to, State::Granted | State::Leased) {
                entry.lent = Some(now);
            }
        }
        self.tallies(group, |tally| {
            *tally.of(from) -= 1;
            *tally.of(to) += 1;
        });
        if to == State::Idle {
            let in_turn = self.pools[self.groups[group].pool].limits.in_turn;
            let idle = &mut self.groups[group].lanes[thread as usize].idle;
            // The one to be lent next is the head.
            if in_turn {
                idle.push_back(&mut self.servers, server);
            } else {
                idle.push_front(&mut self.servers, server);
            }
            // One fewer is in use.
            let service = &self.services[self.groups[group].service as usize];
            self.unsettled |= service.waiters_short > 0;
        }
    }

    /// What a lane knows of the state being left.
    fn out_of(&mut self, server: u32, state: State, group: u32, thread: u16) {
        let Group { pool, left, .. } = self.groups[group];
        let lane = &mut self.groups[group].lanes[thread as usize];
        match state {
            State::Dialing => {
                lane.dialing -= 1;
                self.pools[pool].lost_dials -= u32::from(left);
            }
            State::Idle => lane.idle.unlink(&mut self.servers, server),
            State::Granted | State::Leased | State::Closing => {}
        }
    }

    /// Puts a lent server connection on another group's account and thread. Says in `unsettled` whether that may have
    /// opened a way for somebody.
    pub(super) fn hand(&mut self, server: u32, to: u32, thread: u16) {
        let Server {
            state, group: from, ..
        } = self.servers[server];
        debug_assert!(matches!(state, State::Granted | State::Leased));
        self.servers[server].thread = thread;
        self.lane(to, thread);
        if from == to {
            return;
        }
        self.servers[server].group = to;
        *self.groups[from].tally.of(state) -= 1;
        *self.groups[to].tally.of(state) += 1;
        let Group {
            host,
            service: giver,
            ..
        } = self.groups[from];
        let taker = self.groups[to].service;
        *self.services[giver as usize].capped.tally.of(state) -= 1;
        *self.services[taker as usize].capped.tally.of(state) += 1;
        let reserved = self.hosts[host as usize].reserved;
        self.count(host, giver, |account| account.count -= 1);
        self.count(host, taker, |account| account.count += 1);
        let giver = &self.services[giver as usize];
        self.unsettled |= giver.capped.cap != 0 && giver.waiters > 0;
        self.unsettled |= self.hosts[host as usize].reserved < reserved;
    }

    /// A closing server connection makes room for this group, under those caps that both count in.
    pub(super) fn claim(&mut self, server: u32, group: u32) {
        let caps = self.common_caps(self.servers[server].group, group);
        self.servers[server].claim = Some(Claim { group, caps });
        self.groups[group]
            .rooms
            .push_back(&mut self.servers, server);
        self.pools[self.groups[group].pool].promised += 1;
        self.promise(group, caps, |promised| *promised += 1);
    }

    /// The room that this server connection makes is anybody's again.
    pub(super) fn unclaim(&mut self, server: u32) {
        let Some(Claim { group, caps }) = self.servers[server].claim.take() else {
            return;
        };
        self.groups[group].rooms.unlink(&mut self.servers, server);
        self.pools[self.groups[group].pool].promised -= 1;
        self.promise(group, caps, |promised| *promised -= 1);
    }

    /// Gives up room that was asked for by waiters who no longer need it.
    pub(super) fn drop_surplus_claims(&mut self, group: u32) {
        loop {
            let Group {
                waiters,
                rooms,
                tally,
                ..
            } = &self.groups[group];
            if rooms.length == 0 || rooms.length + tally.dialing() <= *waiters {
                return;
            }
            self.unclaim(rooms.tail);
        }
    }

    fn promise(&mut self, group: u32, caps: Caps, change: impl Fn(&mut u32)) {
        let Group {
            service,
            host,
            pool,
            ..
        } = self.groups[group];
        let pool = &self.pools[pool];
        if caps.host {
            change(&mut self.hosts[host as usize].capped.promised);
        }
        if caps.database {
            change(&mut self.databases[pool.database as usize].promised);
        }
        if caps.user {
            change(&mut self.users[pool.user as usize].promised);
        }
        if caps.service {
            change(&mut self.services[service as usize].capped.promised);
        }
    }

    /// The caps that server connections of both groups count in.
    pub(super) fn common_caps(&self, one: u32, other: u32) -> Caps {
        let (one, other) = (&self.groups[one], &self.groups[other]);
        let (here, there) = (&self.pools[one.pool], &self.pools[other.pool]);
        Caps {
            host: one.host == other.host,
            database: here.database == there.database,
            user: here.user == there.user,
            service: one.service == other.service,
        }
    }

    /// A group's part on one thread.
    pub(super) fn lane(&mut self, group: u32, thread: u16) -> &mut Lane {
        let lanes = &mut self.groups[group].lanes;
        let at = usize::from(thread);
        if lanes.len() <= at {
            lanes.resize(at + 1, Lane::EMPTY);
        }
        &mut lanes[at]
    }

    /// The group of a pool and a party, made at its first use.
    pub(super) fn group(&mut self, pool: u32, party: Party) -> u32 {
        let group_of = &self.pools[pool].group_of;
        let known = group_of.get(place_of(party)).copied().unwrap_or(NONE);
        if known == NONE {
            self.new_group(pool, party)
        } else {
            known
        }
    }

    fn new_group(&mut self, pool: u32, party: Party) -> u32 {
        let host = self.pools[pool].host;
        let Party {
            service: ServiceId(service),
            reach,
        } = party;
        let group = self.groups.insert(|_, _| Group {
            pool,
            host,
            service,
            reach,
            asked: false,
            left: false,
            waiters: 0,
            tally: Tally::default(),
            lanes: Vec::new(),
            rooms: List::EMPTY,
            place: NONE,
        });
        let pool = &mut self.pools[pool];
        let at = place_of(party);
        if pool.group_of.len() <= at {
            pool.group_of.resize(at + 1, NONE);
        }
        pool.group_of[at] = group;
        pool.groups.push(group);
        group
    }
}

/// A party's place in a pool's `group_of`: those of a service lie side by side.
fn place_of(party: Party) -> usize {
    2 * party.service.index() + usize::from(party.reach == Reach::AllButKept)
}
