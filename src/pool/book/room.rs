//! Room: who may dial, what stands in a waiter's way, and which idle server connection may be closed for it.

use std::time::Duration;

use super::arena::NONE;
use super::ledger::{Capped, Caps, Pool};
use super::words::{Action, CloseReason};
use super::{Book, EVICT_AFTER, PROBES_AT_ONCE};

impl Book {
    /// Dials for the groups of one pool while any may.
    pub(super) fn dial_within(&mut self, pool: u32, out: &mut Vec<Action>) {
        while let Some(group) = self.first_to_dial(Some(pool)) {
            self.dial(group, out);
        }
    }

    /// Dials while anybody may.
    pub(super) fn dial_anywhere(&mut self, out: &mut Vec<Action>) {
        while let Some(group) = self.first_to_dial(None) {
            self.dial(group, out);
        }
    }

    /// Lends what is idle while anybody may have it.
    pub(super) fn lend_idle(&mut self, out: &mut Vec<Action>) {
        let mut at = 0;
        while let Some(&pool) = self.waiting.get(at) {
            let Some(group) = self.first_for_idle(pool) else {
                at += 1;
                continue;
            };
            // A pool whose last waiter goes leaves the list, and another takes its place in it: `at` stays.
            let waiter = self.oldest(group);
            let server = self
                .best_idle(group, self.waiters[waiter].thread)
                .expect("that made it a candidate");
            self.grant(server, waiter, out);
        }
    }

    /// Whether a group may have one more dialled for its waiters.
    pub(super) fn may_dial(&self, group: u32) -> bool {
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        pool.gate.is_open()
            && pool.retry_at.is_none()
            && entry.waiters > entry.tally.dialing()
            && pool.waiters > pool.dials()
            && self.is_open(pool)
            && self.has_place(group)
            && self.caps_allow(group)
    }

    /// Whether one more dial of this pool may be in flight to its Postgres.
    pub(super) fn is_open(&self, pool: &Pool) -> bool {
        let host = &self.hosts[pool.host as usize];
        let dialing = host.capped.tally.dialing();
        if host.is_failing {
            pool.dials() == 0 && dialing < PROBES_AT_ONCE
        } else {
            dialing < host.dials
        }
    }

    /// Whether the caps beyond the pool allow one more on this group's account.
    pub(super) fn caps_allow(&self, group: u32) -> bool {
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        let host = &self.hosts[pool.host as usize].capped;
        host.tally.total() + self.held_for_others(group) < host.cap
            && self.databases[pool.database as usize].has_room()
            && self.users[pool.user as usize].has_room()
            && self.services[entry.service as usize].capped.has_room()
            && self.reaches(group, 0)
    }

    /// How much of the budget a group must leave to the guaranteed minimums of others. See the module for why one below
    /// its own need leave none.
    fn held_for_others(&self, group: u32) -> u32 {
        let host = &self.hosts[self.groups[group].host as usize];
        if host.budget_known && !self.is_below_minimum(group) {
            host.reserved
        } else {
            0
        }
    }

    /// Whether the pool itself takes one more for this group, from its reserve if the group has waited for that.
    fn has_place(&self, group: u32) -> bool {
        let pool = &self.pools[self.groups[group].pool];
        let Pool { limits, tally, .. } = pool;
        limits.size == 0
            || tally.total() < limits.size
            || (tally.total() < limits.size + limits.reserve_size
                && pool
                    .reserve_before
                    .is_some_and(|before| self.waiters[self.oldest(group)].since <= before))
    }

    /// Whether closing an idle server connection of this account would let that group dial, and may be done at all.
    pub(super) fn would_help(&self, giver: u32, group: u32) -> bool {
        self.wants_room(group)
            && self
                .obstacles(group)
                .is_some_and(|caps| caps.within(self.common_caps(giver, group)))
            && self.may_close_for(giver, group)
    }

    /// Whether a group has more waiters than dials and rooms on their way, and nothing but caps beyond its pool is in its way.
    fn wants_room(&self, group: u32) -> bool {
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        pool.gate.is_open()
            && self.reaches(group, 0)
            && entry.waiters > entry.tally.dialing() + entry.rooms.length
            && pool.waiters > pool.dials() + pool.promised
            && ((pool.retry_at.is_none() && self.has_place(group))
                || self.lacks_only_its_cap(group))
    }

    /// Whether something idle in its own pool could be lent to this group if its service had one fewer elsewhere.
    fn lacks_only_its_cap(&self, group: u32) -> bool {
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        pool.tally.idle() > 0
            && self.services[entry.service as usize].capped.lacks() == 1
            && pool
                .groups
                .iter()
                .any(|giver| self.groups[*giver].tally.idle() > 0 && self.may_give(*giver, group))
    }

    /// The caps under which one must go before this group can go. `None` if there are none, and if one would not do.
    fn obstacles(&self, group: u32) -> Option<Caps> {
        if self.lacks_only_its_cap(group) {
            return Some(Caps {
                service: true,
                ..Caps::default()
            });
        }
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        let host = self.hosts[pool.host as usize]
            .capped
            .lacks_beside(self.held_for_others(group));
        let database = self.databases[pool.database as usize].lacks();
        let user = self.users[pool.user as usize].lacks();
        let service = self.services[entry.service as usize].capped.lacks();
        let caps = Caps {
            host: host > 0,
            database: database > 0,
            user: user > 0,
            service: service > 0,
        };
        (host.max(database).max(user).max(service) == 1).then_some(caps)
    }

    /// Whether a server connection on one account may be closed in favour of a group: not if its service is left below its
    /// guarantee, nor its pool below `min_size`, unless a guarantee demands it. What is idle in the group's own pool can be
    /// lent once nothing else is in the way.
    fn may_close_for(&self, giver: u32, group: u32) -> bool {
        let entry = &self.groups[giver];
        let pool = &self.pools[entry.pool];
        entry.pool != self.groups[group].pool
            && (self.spares_one(entry.host, entry.service) || self.is_same_account(giver, group))
            && (pool.tally.live() > pool.limits.min_size || self.is_below_minimum(group))
    }

    /// Closes an idle server connection for a waiter that only lacks room, if one may be. `waited`: it has waited long
    /// enough for any.
    pub(super) fn make_room(
        &mut self,
        now: Duration,
        group: u32,
        waited: bool,
        out: &mut Vec<Action>,
    ) -> bool {
        if !self.wants_room(group) {
            return false;
        }
        let Some(caps) = self
            .obstacles(group)
            .filter(|caps| self.has_idle(group, *caps))
        else {
            return false;
        };
        let Some(victim) = self.victim(now, group, caps, waited) else {
            return false;
        };
        self.close(victim, CloseReason::MadeRoom, out);
        self.claim(victim, group);
        true
    }

    /// Whether there is anything idle under each of these caps: a full house is the usual case, and need not be searched.
    fn has_idle(&self, group: u32, caps: Caps) -> bool {
        let entry = &self.groups[group];
        let pool = &self.pools[entry.pool];
        let any = |capped: &Capped| capped.tally.idle() > 0;
        (!caps.host || any(&self.hosts[pool.host as usize].capped))
            && (!caps.database || any(&self.databases[pool.database as usize]))
            && (!caps.user || any(&self.users[pool.user as usize]))
            && (!caps.service || any(&self.services[entry.service as usize].capped))
    }

    /// The longest idle server connection that may be closed for this group.
    fn victim(&mut self, now: Duration, group: u32, caps: Caps, waited: bool) -> Option<u32> {
        let fits = |book: &Self, giver: u32| {
            caps.within(book.common_caps(giver, group)) && book.may_close_for(giver, group)
        };
        let Some(oldest) = self.longest_idle(|giver| fits(self, giver)) else {
            return self.victim_for_one(group, caps).filter(|_| waited);
        };
        if waited
            || self.is_below_minimum(group)
            || self.servers[oldest].idle_since + EVICT_AFTER <= now
        {
            return Some(oldest);
        }
        self.weigh_contenders();
        if self.is_above(group, 1) {
            return None;
        }
        self.longest_idle(|giver| fits(self, giver) && self.is_above(giver, 0))
    }

    /// One that opens one of several caps. No single one opens them all, so who has waited long gets them one by one.
    fn victim_for_one(&self, group: u32, caps: Caps) -> Option<u32> {
        self.longest_idle(|giver| {
            caps.meets(self.common_caps(giver, group)) && self.may_close_for(giver, group)
        })
    }

    /// Reckons shares among all that lack room.
    fn weigh_contenders(&mut self) {
        self.begin_weighing();
        for at in 0..self.waiting.len() {
            let pool = self.waiting[at];
            for place in 0..self.pools[pool].waiting.len() {
                let group = self.pools[pool].waiting[place];
                if self.wants_room(group) && self.obstacles(group).is_some() {
                    self.weigh(group, 1);
                }
            }
        }
    }

    /// The longest idle server connection on an account that is `eligible`.
    fn longest_idle(&self, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        let pools = self
            .pools
            .indices()
            .map(|pool| &self.pools[pool])
            .filter(|pool| pool.tally.idle() > 0);
        let groups = pools.flat_map(|pool| pool.groups.iter().copied());
        let groups =
            groups.filter(|group| self.groups[*group].tally.idle() > 0 && eligible(*group));
        self.longest_idle_of(groups)
    }

    /// The longest idle server connection of these groups: at the tail of a lane, or, where they take turns, at its head.
    pub(super) fn longest_idle_of(&self, groups: impl Iterator<Item = u32>) -> Option<u32> {
        let ends = groups.flat_map(|group| {
            let lanes = self.groups[group].lanes.iter();
            lanes.flat_map(|lane| [lane.idle.tail, lane.idle.head])
        });
        ends.filter(|end| *end != NONE)
            .min_by_key(|end| self.servers[*end].idle_since)
    }

    /// Why an account has more than its caps allow, if it has.
    pub(super) fn excess(&self, group: u32) -> Option<CloseReason> {
        let entry = &self.groups[group];
        let Pool {
            limits,
            tally,
            database,
            user,
            ..
        } = &self.pools[entry.pool];
        let host = &self.hosts[entry.host as usize].capped;
        if host.tally.live() > host.cap {
            return Some(CloseReason::OverBudget);
        }
        let over = (limits.size != 0 && tally.live() > limits.size + limits.reserve_size)
            || self.databases[*database as usize].is_over()
            || self.users[*user as usize].is_over()
            || self.services[entry.service as usize].capped.is_over();
        over.then_some(CloseReason::OverLimit)
    }

    /// Closes what is idle beyond the caps, accounts above their guarantee first, the longest idle first.
    pub(super) fn trim(&mut self, out: &mut Vec<Action>) {
        let spares = |book: &Self, group: u32| {
            book.spares_one(book.groups[group].host, book.groups[group].service)
        };
        while let Some(server) = self
            .longest_idle(|group| self.excess(group).is_some() && spares(self, group))
            .or_else(|| self.longest_idle(|group| self.excess(group).is_some()))
        {
            let reason = self
                .excess(self.servers[server].group)
                .expect("that made it eligible");
            self.close(server, reason, out);
        }
    }
}
