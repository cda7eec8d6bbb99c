//! What the book is told by the configuration, at start and at a reload.

use std::time::Duration;

use super::arena::{NONE, index};
use super::ledger::{Capped, Group, Host, Pool, Service, Tally};
use super::words::{
    Action, DatabaseId, Gate, HostId, Party, PoolId, PoolLimits, PoolPlace, ServiceId,
    ServiceLimits, ThreadId, UserId,
};
use super::{Book, DIALS_AT_ONCE};

/// While the budget is unknown, one server connection may be dialled: it is enough to ask Postgres.
const UNKNOWN_BUDGET: u32 = 1;

impl Book {
    /// A Postgres. `budget`: how many server connections it may have from us; `None` = to be found out.
    pub fn add_host(&mut self, budget: Option<u32>) -> HostId {
        self.hosts.push(Host {
            capped: Capped::limited(budget.unwrap_or(UNKNOWN_BUDGET)),
            budget_known: budget.is_some(),
            dials: DIALS_AT_ONCE,
            is_failing: false,
            reserved: 0,
            accounts: Vec::new(),
            stamp: 0,
            sum_count: 0,
            sum_weight: 0,
        });
        HostId(index(self.hosts.len() - 1))
    }

    /// For tests, in which few are enough.
    #[cfg(test)]
    pub(super) fn limit_dials(&mut self, host: HostId, dials: u32) {
        self.hosts[host.index()].dials = dials;
    }

    /// A database, and how many server connections it may have; 0 = no cap.
    pub fn add_database(&mut self, max_servers: u32) -> DatabaseId {
        self.databases.push(Capped::limited(max_servers));
        DatabaseId(index(self.databases.len() - 1))
    }

    /// A user, and how many server connections it may have; 0 = no cap.
    pub fn add_user(&mut self, max_servers: u32) -> UserId {
        self.users.push(Capped::limited(max_servers));
        UserId(index(self.users.len() - 1))
    }

    /// A service.
    pub fn add_service(&mut self, limits: ServiceLimits) -> ServiceId {
        self.services.push(Service {
            limits,
            capped: Capped::limited(limits.max_servers),
            waiters: 0,
            waiters_short: 0,
        });
        ServiceId(index(self.services.len() - 1))
    }

    /// A pool.
    pub fn add_pool(&mut self, place: PoolPlace, limits: PoolLimits) -> PoolId {
        let at = self.pools.insert(|index, generation| Pool {
            id: PoolId { index, generation },
            host: place.host.0,
            database: place.database.0,
            user: place.user.0,
            limits,
            tally: Tally::default(),
            group_of: Vec::new(),
            groups: Vec::new(),
            waiting: Vec::new(),
            waiters: 0,
            promised: 0,
            place: NONE,
            retry_at: None,
            failures: 0,
            reserve_before: None,
            warm: None,
            epoch: 0,
            outdated: 0,
            lost_dials: 0,
            gate: Gate::Open,
        });
        self.pools[at].id
    }

    /// Takes a pool away. False if it still has server connections or waiters; `reconnect` and `refuse_waiters` see to
    /// that.
    pub fn remove_pool(&mut self, pool: PoolId) -> bool {
        let Some(at) = self.pool_at(pool) else {
            return true;
        };
        let entry = &self.pools[at];
        if entry.tally.total() > 0 || entry.waiters > 0 {
            return false;
        }
        // What was guaranteed to a service because it asked here is not any more.
        for at in 0..self.pools[at].groups.len() {
            let group = self.pools[pool.index].groups[at];
            if self.groups[group].asked {
                self.count_known(group, false);
            }
            self.groups.remove(group);
        }
        self.pools.remove(at);
        true
    }

    /// A pool's place is on another host from now on, where its waiters wait on, in their order. What it has on the old one counts
    /// there until it is gone, which is soon. False if it is no more.
    pub fn move_pool(
        &mut self,
        now: Duration,
        pool: PoolId,
        host: HostId,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(at) = self.pool_at(pool) else {
            return false;
        };
        if self.pools[at].host != host.0 {
            self.reconnect(now, pool, out);
            self.move_groups(at, host.0);
            self.limits_changed(now, out);
        }
        true
    }

    fn move_groups(&mut self, pool: u32, host: u32) {
        self.shut_out(pool);
        let entry = &mut self.pools[pool];
        entry.host = host;
        entry.retry_at = None;
        entry.failures = 0;
        entry.lost_dials = entry.tally.dialing();
        entry.group_of.clear();
        for old in std::mem::take(&mut entry.groups) {
            self.groups[old].left = true;
            let Group {
                service,
                reach,
                asked,
                ..
            } = self.groups[old];
            let party = Party {
                service: ServiceId(service),
                reach,
            };
            let new = self.group(pool, party);
            self.groups[new].asked = asked;
            self.hosts[host as usize].account(service);
            self.move_queue(old, new);
            self.drop_if_empty(old);
        }
        self.count_all_known(pool, true);
    }

    /// Forgets a group that its pool has left, once nothing of it is left.
    pub(super) fn drop_if_empty(&mut self, group: u32) {
        if self.groups[group].tally.total() == 0 {
            self.groups.remove(group);
        }
    }

    /// The pool's `min_size` is kept up from now on, on this service's account, although nobody has asked yet.
    pub fn warm(&mut self, pool: PoolId, service: ServiceId, thread: ThreadId) {
        let Some(at) = self.pool_at(pool) else { return };
        self.pools[at].warm = Some((service.0, thread.0));
        self.wake_by(self.now);
    }

    /// How many server connections one Postgres may have from us, as now measured.
    pub fn set_budget(&mut self, now: Duration, host: HostId, budget: u32, out: &mut Vec<Action>) {
        let host = &mut self.hosts[host.index()];
        host.capped.cap = budget;
        host.budget_known = true;
        self.limits_changed(now, out);
    }

    /// How many server connections one Postgres may have from us is to be found out anew: one more than there are may be dialled,
    /// which is enough to ask.
    pub fn forget_budget(&mut self, now: Duration, host: HostId, out: &mut Vec<Action>) {
        let host = &mut self.hosts[host.index()];
        if std::mem::take(&mut host.budget_known) {
            host.capped.cap = host.capped.tally.total() + UNKNOWN_BUDGET;
            self.limits_changed(now, out);
        }
    }

    /// A database's cap; 0 = none.
    pub fn set_database_limit(
        &mut self,
        now: Duration,
        database: DatabaseId,
        max_servers: u32,
        out: &mut Vec<Action>,
    ) {
        self.databases[database.index()].cap = max_servers;
        self.limits_changed(now, out);
    }

    /// A user's cap; 0 = none.
    pub fn set_user_limit(
        &mut self,
        now: Duration,
        user: UserId,
        max_servers: u32,
        out: &mut Vec<Action>,
    ) {
        self.users[user.index()].cap = max_servers;
        self.limits_changed(now, out);
    }

    /// A service's limits.
    pub fn set_service(
        &mut self,
        now: Duration,
        service: ServiceId,
        limits: ServiceLimits,
        out: &mut Vec<Action>,
    ) {
        self.set_service_limits(service.0, limits);
        self.limits_changed(now, out);
    }

    /// A pool's limits. False if it is no more.
    pub fn set_pool(
        &mut self,
        now: Duration,
        pool: PoolId,
        limits: PoolLimits,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(at) = self.pool_at(pool) else {
            return false;
        };
        let turns = self.pools[at].limits.in_turn != limits.in_turn;
        self.pools[at].limits = limits;
        if turns {
            self.turn_round(at);
        }
        self.limits_changed(now, out);
        true
    }

    /// The idle ones of a pool are lent in the other order from now on.
    fn turn_round(&mut self, pool: u32) {
        let Self {
            pools,
            groups,
            servers,
            ..
        } = self;
        for group in &pools[pool].groups {
            for lane in &mut groups[*group].lanes {
                lane.idle.reverse(servers);
            }
        }
    }

    /// What is idle beyond a lowered cap is closed at once; what a raised one allows is dialled.
    fn limits_changed(&mut self, now: Duration, out: &mut Vec<Action>) {
        let now = self.advance(now);
        self.trim(out);
        self.unsettled = true;
        self.settle(now, out);
        // `min_size` and `server_idle` may want something else than before.
        self.wake_by(now);
    }
}
