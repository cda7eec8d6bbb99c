//! What time alone brings about.

use std::time::Duration;

use super::Book;
use super::WATCH_EVERY;
use super::arena::NONE;
use super::ledger::{Lane, Pool, Server};
use super::words::{Action, CloseReason, Refusal, ServiceId};

impl Book {
    /// Does what is due: refuses waiters past their deadline, opens reserves, ends back-offs, closes what is idle too long
    /// or too old, makes room for those who may have it by now, keeps up `min_size`. Returns [`Book::next_tick`].
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) -> Option<Duration> {
        let now = self.advance(now);
        self.wake_at = Duration::MAX;
        self.refuse_late(now, out);
        self.pass_time(now);
        self.close_unused(now, out);
        self.close_expired(now, out);
        self.unsettled = true;
        self.settle(now, out);
        self.make_room_by_age(now, out);
        self.keep_warm(out);
        self.next_tick()
    }

    /// When a tick is useful. Any call may bring this forward; `None`: not until something happens.
    pub fn next_tick(&self) -> Option<Duration> {
        (self.wake_at != Duration::MAX).then_some(self.wake_at)
    }

    fn refuse_late(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.refuse_late_among(now, |book| &book.waiting, out);
        self.refuse_late_among(now, |book| &book.held, out);
    }

    fn refuse_late_among(
        &mut self,
        now: Duration,
        pools: impl Fn(&Self) -> &Vec<u32>,
        out: &mut Vec<Action>,
    ) {
        let mut at = 0;
        while let Some(&pool) = pools(self).get(at) {
            // Refusals may empty groups and the pool itself, and others take their places in the lists: so go by index,
            // from behind, and look again.
            for group in (0..self.pools[pool].waiting.len()).rev() {
                let group = self.pools[pool].waiting[group];
                for thread in 0..self.groups[group].lanes.len() {
                    self.refuse_late_in(now, group, thread, out);
                }
            }
            if pools(self).get(at) == Some(&pool) {
                at += 1;
            }
        }
    }

    fn refuse_late_in(&mut self, now: Duration, group: u32, thread: usize, out: &mut Vec<Action>) {
        let Lane {
            waiters, ordered, ..
        } = self.groups[group].lanes[thread];
        let mut at = waiters.head;
        let mut last = Duration::ZERO;
        let mut in_order = true;
        while at != NONE {
            let next = self.waiters[at].links.next;
            let deadline = self.waiters[at].deadline;
            if deadline <= now {
                self.refuse(at, Refusal::QueryWait, out);
            } else {
                self.wake_by(deadline);
                if ordered {
                    return;
                }
                in_order &= last <= deadline;
                last = deadline;
            }
            at = next;
        }
        self.groups[group].lanes[thread].ordered = in_order;
    }

    /// Opens each pool's reserve to those who have waited for it, and ends back-offs.
    fn pass_time(&mut self, now: Duration) {
        for at in 0..self.pools.end() {
            if !self.pools.occupied(at) {
                continue;
            }
            let pool = &mut self.pools[at];
            pool.reserve_before = now.checked_sub(pool.limits.reserve_after);
            match pool.retry_at {
                Some(retry_at) if retry_at <= now => pool.retry_at = None,
                Some(retry_at) => self.wake_by(retry_at),
                None => {}
            }
        }
    }

    fn close_unused(&mut self, now: Duration, out: &mut Vec<Action>) {
        for pool in 0..self.pools.end() {
            if !self.pools.occupied(pool) || self.pools[pool].tally.idle() == 0 {
                continue;
            }
            let Some(idle) = self.pools[pool].limits.server_idle else {
                continue;
            };
            while let Some(server) = self.longest_idle_of(self.pools[pool].groups.iter().copied()) {
                let due = self.servers[server].idle_since.saturating_add(idle);
                if due > now {
                    self.wake_by(due);
                    break;
                }
                let Pool { tally, limits, .. } = &self.pools[pool];
                if tally.live() <= limits.min_size {
                    break;
                }
                self.close(server, CloseReason::ServerIdle, out);
            }
        }
    }

    fn close_expired(&mut self, now: Duration, out: &mut Vec<Action>) {
        if now < self.expiry {
            return self.wake_by(self.expiry);
        }
        self.expiry = Duration::MAX;
        for at in 0..self.servers.end() {
            if !self.servers.occupied(at) {
                continue;
            }
            let Server { expires, state, .. } = self.servers[at];
            if expires > now {
                self.expiry = self.expiry.min(expires);
            } else if state == super::State::Idle {
                self.close(at, CloseReason::ServerLifetime, out);
            }
        }
        self.wake_by(self.expiry);
    }

    /// One for each group whose oldest waiter has waited for long, and any that have been idle for long.
    fn make_room_by_age(&mut self, now: Duration, out: &mut Vec<Action>) {
        for at in 0..self.waiting.len() {
            let pool = self.waiting[at];
            for place in 0..self.pools[pool].waiting.len() {
                let group = self.pools[pool].waiting[place];
                let waited = self.has_waited(now, self.oldest(group));
                if self.make_room(now, group, waited, out) {
                    while self.make_room(now, group, false, out) {}
                }
            }
        }
        if !self.waiting.is_empty() {
            self.wake_by(now + WATCH_EVERY);
        }
    }

    /// Dials what is missing of each pool's `min_size`, within all caps.
    fn keep_warm(&mut self, out: &mut Vec<Action>) {
        for pool in 0..self.pools.end() {
            if !self.pools.occupied(pool) {
                continue;
            }
            while let Some((group, thread)) = self.cold(pool) {
                self.order(group, thread, out);
            }
        }
    }

    fn cold(&mut self, pool: u32) -> Option<(u32, u16)> {
        let entry = &self.pools[pool];
        let Pool {
            tally,
            limits,
            warm,
            retry_at,
            ..
        } = entry;
        let missing = entry.gate.is_open()
            && tally.live() < limits.min_size
            && (limits.size == 0 || tally.total() < limits.size)
            && self.is_open(entry);
        let (service, thread) = warm.filter(|_| missing && retry_at.is_none())?;
        let group = self.group(pool, ServiceId(service).into());
        self.make_known(group);
        self.caps_allow(group).then_some((group, thread))
    }
}
