//! Pools that an operator has shut, and server connections that are to be replaced.
//!
//! The waiters of a shut pool are in no list that a choice looks at. That is the whole of it: they keep their places, and
//! nobody waits because of them.

use std::time::Duration;

use super::Book;
use super::words::{Action, CloseReason, Gate, PoolId};

impl Book {
    /// Shuts a pool, or opens it: then its waiters are served in their order. False if it is no more.
    pub fn set_gate(
        &mut self,
        now: Duration,
        pool: PoolId,
        gate: Gate,
        out: &mut Vec<Action>,
    ) -> bool {
        let now = self.advance(now);
        let Some(pool) = self.pool_at(pool) else {
            return false;
        };
        self.turn_gate(pool, gate);
        if gate == Gate::Paused {
            while let Some(server) = self.some_idle(pool) {
                self.close(server, CloseReason::Paused, out);
            }
        }
        // Who was passed over may go now, or what was kept for others is free.
        self.unsettled = true;
        self.settle(now, out);
        // Room may have to be made for those who are let go, and `min_size` kept up.
        self.wake_by(now);
        true
    }

    /// What a pool does for who asks it; `None` if it was removed.
    pub fn gate(&self, pool: PoolId) -> Option<Gate> {
        Some(self.pools[self.pool_at(pool)?].gate)
    }

    /// Whether a pool has neither server connections nor waiters.
    pub fn is_empty(&self, pool: PoolId) -> bool {
        self.pool_at(pool).is_none_or(|at| {
            let pool = &self.pools[at];
            pool.tally.total() == 0 && pool.waiters == 0
        })
    }

    /// How many of a pool's server connections are still there that `reconnect` wants replaced.
    pub fn outdated(&self, pool: PoolId) -> u32 {
        self.pool_at(pool).map_or(0, |at| self.pools[at].outdated)
    }

    fn turn_gate(&mut self, pool: u32, gate: Gate) {
        if self.pools[pool].gate.is_open() == gate.is_open() {
            self.pools[pool].gate = gate;
            return;
        }
        self.shut_out(pool);
        let waits = self.pools[pool].waiters > 0;
        if waits {
            self.step_out(pool);
        }
        self.pools[pool].gate = gate;
        if waits {
            self.line_up(pool);
        }
        self.count_all_known(pool, true);
    }

    /// As if nobody had ever asked in this pool: nothing is kept for them, and what is being closed to make room for them makes it
    /// for anybody.
    pub(super) fn shut_out(&mut self, pool: u32) {
        self.count_all_known(pool, false);
        self.give_up_rooms(pool);
    }

    /// Counts for those services that have asked in this pool; no-op while it is shut.
    pub(super) fn count_all_known(&mut self, pool: u32, is_in: bool) {
        for at in 0..self.pools[pool].groups.len() {
            let group = self.pools[pool].groups[at];
            if self.groups[group].asked {
                self.count_known(group, is_in);
            }
        }
    }

    fn give_up_rooms(&mut self, pool: u32) {
        for at in 0..self.pools[pool].groups.len() {
            let group = self.pools[pool].groups[at];
            while self.groups[group].rooms.length > 0 {
                self.unclaim(self.groups[group].rooms.tail);
            }
        }
    }
}
