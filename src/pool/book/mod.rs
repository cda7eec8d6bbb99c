//! The book: which waiter gets which server connection, and what may be dialled or must be closed.
//!
//! It decides and moves nothing. There is one book for the process, behind one lock, and it knows neither sockets nor tasks
//! nor the time of day: `now` is the time since the process started, and whatever is to be done comes out as [`Action`]s.
//!
//! # What holds after every call
//!
//! * **Caps are exact.** A server connection counts against its host's budget, its database, user, pool and service from the
//!   order to dial it until `closed`; Postgres frees the slot no earlier. A cap that was just lowered closes what is idle
//!   at once, what is lent when it comes back, and until then allows nothing new.
//! * **Nobody waits who could go.** No idle server connection lies in a pool for whose waiters it may be used, and no dial
//!   is permitted that is not under way. So a newcomer may take what is idle without overtaking anybody.
//! * **A cap blocks only those under it.** Each (pool, service, [`Reach`]) is a group with a queue of its own; choices are made
//!   between groups that may go, and a group that may not is no candidate.
//!
//! # Who goes first
//!
//! For a server connection that comes back, and likewise for room that comes free: services below their guaranteed
//! minimum on that host; then services not above their share; then whoever has waited longest. The share is reckoned among
//! those who contend for this very thing, by their counts *on that host* (see `choose`).
//!
//! # Where the rules pull in two directions
//!
//! * *The longest waiter* against *no needless move*: within a class, the server's own thread is preferred unless another
//!   thread's waiter is older by more than [`THREAD_BOUND`], and its own pool unless another pool's waiter is older by
//!   more than [`EVICT_AFTER`]. Otherwise two pools under one spent budget would close and dial at every release. Between
//!   hosts only age decides, since shares on different hosts do not compare; and a server connection fresh from its dial
//!   serves its own pool first, so that every dial serves somebody.
//! * *Room goes to whoever is first* against *it was made for somebody*: the latter's it is, while they can use it.
//! * *Guaranteed minimum* against *a pool's `min_size`*: the guarantee wins. `min_size` keeps connections warm; it may
//!   not keep a service out.
//! * *Guarantees that add up to more than the budget*: a service below its own minimum may use any free room, whatever is
//!   reserved for others. Otherwise each would be kept out by the others' guarantees, and nobody could dial.
//! * *Guarantees while the budget is unknown*: they do not hold; one connection is dialled for whoever comes first.
//! * *An idle connection of a service at its minimum* is not lent to another service either, unless the budget has room to
//!   replace it: lending takes it off the account just as closing does.
//! * *Eviction never takes a service's minimum*: except for that service's own waiter on the same host, whose dial puts it
//!   back.
//! * *No needless wait* against *no crowd at the door*: only so many dials to one Postgres are in flight at once
//!   ([`DIALS_AT_ONCE`]), and fewer while they fail ([`PROBES_AT_ONCE`]). The first success ends every back-off there:
//!   nobody waits out a pause for a Postgres that is back.
//! * *Dials in flight below waiters* is asked of the pool and of the group: ten waiters of a service at its cap are no
//!   reason to dial ten times for another's one.
//! * *Nobody waits who could go* against *an operator's pause*: a pool that is shut lends and dials nothing, and it is as if
//!   its waiters were not there: nothing is closed or kept free for them, nor for a guarantee of a service that could use it
//!   in shut pools only. They keep their places, and their deadlines.
//! * *Nobody waits who could go* against *what is kept of a service's cap*: who asks with [`Reach::AllButKept`] is lent and dialled
//!   nothing while as much is in use as leaves only that. What is idle is not in use: those who come may have it.
//! * *Time passes between calls*: what time alone permits (the reserve, the end of a back-off, eviction by age, deadlines)
//!   begins at a [`Book::tick`], and [`Book::next_tick`] says when one is useful.

mod arena;
mod choose;
mod gate;
mod ledger;
mod limits;
#[cfg(test)]
mod model;
mod queue;
mod room;
#[cfg(test)]
mod tests;
mod tick;
mod view;
mod words;

use std::time::Duration;

use arena::Arena;
use choose::{Candidate, Next};
use ledger::{Capped, Claim, Group, Host, Pool, Server, Service, Waiter};

pub use ledger::Tally;
pub use view::{PartView, PoolView, ServerView, View, WaiterView};
pub use words::{
    Action, Asked, CloseReason, DatabaseId, Gate, HostId, Party, PoolId, PoolLimits, PoolPlace,
    Reach, Refusal, Retry, ServerId, ServiceId, ServiceLimits, State, ThreadId, UserId, WaiterId,
};

/// How much longer another thread's waiter must have waited before a server connection moves to it while its own thread has
/// waiters. A move costs both threads a wake-up and two registrations, some 25 us; five milliseconds are not felt.
pub const THREAD_BOUND: Duration = Duration::from_millis(5);

/// A server connection unused for so long may be closed to make room for anybody, and a waiter that has waited for so long
/// may have any idle one closed. A pool that uses its connection twice a second keeps it.
pub const EVICT_AFTER: Duration = Duration::from_millis(500);

/// While somebody waits, ticks are useful this often: to see who may be evicted by now.
pub const WATCH_EVERY: Duration = Duration::from_millis(100);

/// The longest back-off after dials that failed, before jitter.
pub const MAX_RETRY: Duration = Duration::from_secs(15);

/// Dials in flight to one Postgres at once: each costs it a process and a login, and a crowd that comes back after an outage
/// would be served no sooner by more of them.
pub const DIALS_AT_ONCE: u32 = 16;

/// The same, one for each pool, while the last dial to that Postgres failed: enough to find out that it is back, also where
/// one pool's dials hang.
pub const PROBES_AT_ONCE: u32 = 4;

/// See the module.
pub struct Book {
    hosts: Vec<Host>,
    databases: Vec<Capped>,
    users: Vec<Capped>,
    services: Vec<Service>,
    pools: Arena<Pool>,
    groups: Arena<Group>,
    servers: Arena<Server>,
    waiters: Arena<Waiter>,
    /// Open pools with waiters.
    waiting: Vec<u32>,
    /// Shut pools with waiters, who are passed over in every choice.
    held: Vec<u32>,
    /// Threads keep clocks of their own; the book's never runs backwards.
    now: Duration,
    tickets: u64,
    /// Server connections that were ever ordered.
    dialed: u32,
    /// Something changed that may let a waiter go who is not the one being served.
    unsettled: bool,
    /// When a tick is useful; `Duration::MAX` = not until something happens.
    wake_at: Duration,
    /// No server connection expires before this.
    expiry: Duration,
    /// Marks who was weighed in the present choice.
    stamp: u64,
    /// Memory of the present choice, kept for the next.
    candidates: Vec<Candidate>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

impl Default for Book {
    fn default() -> Self {
        Self::new()
    }
}

impl Book {
    /// An empty book.
    pub const fn new() -> Self {
        Self {
            hosts: Vec::new(),
            databases: Vec::new(),
            users: Vec::new(),
            services: Vec::new(),
            pools: Arena::new(),
            groups: Arena::new(),
            servers: Arena::new(),
            waiters: Arena::new(),
            waiting: Vec::new(),
            held: Vec::new(),
            now: Duration::ZERO,
            tickets: 0,
            dialed: 0,
            unsettled: false,
            wake_at: Duration::MAX,
            expiry: Duration::MAX,
            stamp: 0,
            candidates: Vec::new(),
        }
    }

    /// A session of a service wants a server connection of `pool` for its thread, until `deadline` at most.
    ///
    /// Panics on a pool that was removed: a session may not outlive its pool.
    pub fn ask(
        &mut self,
        now: Duration,
        pool: PoolId,
        party: impl Into<Party>,
        thread: ThreadId,
        deadline: Option<Duration>,
        out: &mut Vec<Action>,
    ) -> Asked {
        let (now, party) = (self.advance(now), party.into());
        let pool = self
            .pool_at(pool)
            .expect("a session does not outlive its pool");
        let group = self.group(pool, party);
        self.pools[pool].warm = Some((party.service.0, thread.0));
        self.make_known(group);
        // With a queue before it, nothing idle is for this group: nobody waits who could go.
        let idle = if self.groups[group].waiters == 0 && self.pools[pool].gate.is_open() {
            self.best_idle(group, thread.0)
        } else {
            None
        };
        if let Some(server) = idle {
            let from = ThreadId(self.servers[server].thread);
            self.lend(server, State::Leased, group, thread.0);
            self.settle(now, out);
            return Asked::Granted {
                server: self.servers[server].id,
                from,
            };
        }
        let waiter = self.enqueue(now, group, thread.0, deadline);
        self.dial_within(pool, out);
        self.settle(now, out);
        self.make_room(now, group, false, out);
        Asked::Waiting(self.waiters[waiter].id)
    }

    /// A waiter picks up what it was granted. `None` if it still waits, or is no more.
    pub fn take(&mut self, waiter: WaiterId) -> Option<ServerId> {
        let waiter = self.waiter_at(waiter)?;
        let server = self.waiters[waiter].server;
        if server == arena::NONE {
            return None;
        }
        self.turn(server, State::Leased);
        self.waiters.remove(waiter);
        Some(self.servers[server].id)
    }

    /// A waiter goes away. What it was granted meanwhile goes on to the next. False if it is no more.
    pub fn leave(&mut self, now: Duration, waiter: WaiterId, out: &mut Vec<Action>) -> bool {
        let now = self.advance(now);
        let Some(waiter) = self.waiter_at(waiter) else {
            return false;
        };
        let server = self.waiters[waiter].server;
        if server == arena::NONE {
            self.dequeue(waiter);
        }
        self.waiters.remove(waiter);
        if server != arena::NONE {
            self.place(now, server, out);
            self.settle(now, out);
        }
        true
    }

    /// A lease comes back, settled. False if the server connection was not leased.
    pub fn release(&mut self, now: Duration, server: ServerId, out: &mut Vec<Action>) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Leased) else {
            return false;
        };
        self.place(now, server, out);
        self.settle(now, out);
        true
    }

    /// A leased server connection cannot be used again: its holder closes it, then calls `closed`. False if it was not
    /// leased.
    pub fn discard(&mut self, server: ServerId) -> bool {
        let Some(server) = self.server_in(server, State::Leased) else {
            return false;
        };
        self.turn(server, State::Closing);
        true
    }

    /// A closing server connection is gone, and Postgres knows it. False if it was not closing.
    pub fn closed(&mut self, now: Duration, server: ServerId, out: &mut Vec<Action>) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Closing) else {
            return false;
        };
        self.gone(now, server, out);
        true
    }

    /// An idle server connection was found dead, and is gone. False if it was not idle: then whoever has it will notice.
    pub fn die(&mut self, now: Duration, server: ServerId, out: &mut Vec<Action>) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Idle) else {
            return false;
        };
        self.gone(now, server, out);
        true
    }

    /// A dial succeeded. The server connection is lent to whoever is first, or rests; it is not used beyond `expires`
    /// (`server_lifetime`, with the caller's jitter). False if it was not being dialled.
    pub fn dialed(
        &mut self,
        now: Duration,
        server: ServerId,
        expires: Option<Duration>,
        out: &mut Vec<Action>,
    ) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Dialing) else {
            return false;
        };
        let expires = expires.unwrap_or(Duration::MAX);
        self.servers[server].expires = expires;
        self.expiry = self.expiry.min(expires);
        self.wake_by(expires);
        let Server { pool, group, .. } = self.servers[server];
        let Group { host, left, .. } = self.groups[group];
        if !left {
            self.pools[pool].failures = 0;
            self.pools[pool].retry_at = None;
        }
        self.is_back(host);
        self.place(now, server, out);
        // One dial fewer is in flight, and a back-off may be over.
        self.unsettled = true;
        self.settle(now, out);
        true
    }

    /// A dial failed. Its room is free; its pool dials no more until `retry` is over. With `None` it may dial again at
    /// once. Waiters keep waiting. False if it was not being dialled.
    pub fn dial_failed(
        &mut self,
        now: Duration,
        server: ServerId,
        retry: Option<Retry>,
        out: &mut Vec<Action>,
    ) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Dialing) else {
            return false;
        };
        if let Some(retry) = retry {
            self.back_off(now, self.servers[server].group, retry);
        }
        self.gone(now, server, out);
        true
    }

    /// A dial failed because Postgres has no connection left. What we have there is all that it has for us: no more is dialled
    /// than that, until `set_budget` says otherwise. The pool does not back off: its waiters may have room made for them at
    /// once, by closing what lies idle in other pools.
    pub fn dial_found_full(
        &mut self,
        now: Duration,
        server: ServerId,
        out: &mut Vec<Action>,
    ) -> bool {
        let now = self.advance(now);
        let Some(server) = self.server_in(server, State::Dialing) else {
            return false;
        };
        let group = self.servers[server].group;
        let host = &mut self.hosts[self.groups[group].host as usize];
        let others = host.capped.tally.total() - 1;
        host.is_failing = true;
        // No call to `limits_changed`: the failed one still counts, and nothing idle is to be closed for it.
        host.capped.cap = host.capped.cap.min(others);
        host.budget_known = true;
        self.gone(now, server, out);
        true
    }

    /// Every waiter of this pool is refused. Its server connections stay.
    pub fn refuse_waiters(&mut self, pool: PoolId, why: Refusal, out: &mut Vec<Action>) {
        let Some(pool) = self.pool_at(pool) else {
            return;
        };
        while let Some(&group) = self.pools[pool].waiting.last() {
            let oldest = self.oldest(group);
            self.refuse(oldest, why, out);
        }
    }

    /// Every server connection of this pool is replaced: those idle are closed now, the others when they come back.
    pub fn reconnect(&mut self, now: Duration, pool: PoolId, out: &mut Vec<Action>) {
        self.advance(now);
        let Some(pool) = self.pool_at(pool) else {
            return;
        };
        let entry = &mut self.pools[pool];
        entry.epoch += 1;
        entry.outdated = entry.tally.total();
        while let Some(server) = self.some_idle(pool) {
            self.close(server, CloseReason::Reconnect, out);
        }
    }

    /// One server connection is replaced: it is closed now if it is idle, otherwise when it comes back. False if it is no more, or to be
    /// replaced already.
    pub fn replace(&mut self, now: Duration, server: ServerId, out: &mut Vec<Action>) -> bool {
        self.advance(now);
        if !self.servers.holds(server.index, server.generation) {
            return false;
        }
        let at = server.index;
        let Server {
            pool, epoch, state, ..
        } = self.servers[at];
        let entry = &mut self.pools[pool];
        if epoch != entry.epoch || state == State::Closing {
            return false;
        }
        entry.outdated += 1;
        self.servers[at].epoch = epoch.wrapping_sub(1);
        if state == State::Idle {
            self.close(at, CloseReason::Reconnect, out);
        }
        true
    }

    /// The book's clock, which never runs backwards.
    fn advance(&mut self, now: Duration) -> Duration {
        self.now = self.now.max(now);
        self.now
    }

    /// A server connection that is at nobody's disposal goes to the next, or rests, or is closed.
    fn place(&mut self, now: Duration, server: u32, out: &mut Vec<Action>) {
        if let Some(reason) = self.unwanted(now, server) {
            return self.close(server, reason, out);
        }
        match self.next_for(now, server) {
            Next::Lend(waiter) => self.grant(server, waiter, out),
            Next::Close(group) => {
                self.close(server, CloseReason::MadeRoom, out);
                self.claim(server, group);
            }
            Next::Rest => self.rest(now, server),
        }
    }

    fn rest(&mut self, now: Duration, server: u32) {
        self.servers[server].idle_since = now;
        self.turn(server, State::Idle);
        if let Some(idle) = self.pools[self.servers[server].pool].limits.server_idle {
            self.wake_by(now.saturating_add(idle));
        }
    }

    /// Why a server connection that comes back must not be used again, if it must not.
    fn unwanted(&self, now: Duration, server: u32) -> Option<CloseReason> {
        let Server {
            pool,
            group,
            epoch,
            expires,
            ..
        } = self.servers[server];
        if epoch != self.pools[pool].epoch {
            return Some(CloseReason::Reconnect);
        }
        if self.pools[pool].gate == Gate::Paused {
            return Some(CloseReason::Paused);
        }
        if expires <= now {
            return Some(CloseReason::ServerLifetime);
        }
        self.excess(group)
    }

    /// Lends an idle server connection.
    fn lend(&mut self, server: u32, state: State, group: u32, thread: u16) {
        self.turn(server, state);
        self.hand(server, group, thread);
    }

    /// A waiter's wait is over.
    fn grant(&mut self, server: u32, waiter: u32, out: &mut Vec<Action>) {
        self.dequeue(waiter);
        let Waiter {
            id, group, thread, ..
        } = self.waiters[waiter];
        let from = self.servers[server].thread;
        self.lend(server, State::Granted, group, thread);
        self.waiters[waiter].server = server;
        let server = self.servers[server].id;
        out.push(Action::Grant {
            waiter: id,
            server,
            from: ThreadId(from),
            to: ThreadId(thread),
        });
    }

    fn refuse(&mut self, waiter: u32, why: Refusal, out: &mut Vec<Action>) {
        self.dequeue(waiter);
        let Waiter { id, thread, .. } = self.waiters[waiter];
        self.waiters.remove(waiter);
        out.push(Action::Refuse {
            waiter: id,
            thread: ThreadId(thread),
            why,
        });
    }

    /// Orders one dial on a group's account.
    fn dial(&mut self, group: u32, out: &mut Vec<Action>) {
        let thread = self.thread_for_dial(group);
        self.order(group, thread, out);
    }

    fn order(&mut self, group: u32, thread: u16, out: &mut Vec<Action>) {
        let server = self.enter(group, thread);
        self.drop_surplus_claims(group);
        let Group { pool, service, .. } = self.groups[group];
        out.push(Action::Dial {
            server: self.servers[server].id,
            pool: self.pools[pool].id,
            service: ServiceId(service),
            thread: ThreadId(thread),
        });
    }

    fn close(&mut self, server: u32, reason: CloseReason, out: &mut Vec<Action>) {
        self.turn(server, State::Closing);
        let Server { id, thread, .. } = self.servers[server];
        out.push(Action::Close {
            server: id,
            thread: ThreadId(thread),
            reason,
        });
    }

    /// The room of a server connection is free. It is theirs for whom it was made, if they can still use it: others would
    /// reckon their shares on another host, and could take it away again and again.
    fn gone(&mut self, now: Duration, server: u32, out: &mut Vec<Action>) {
        let Server { pool, claim, .. } = self.servers[server];
        self.vanish(server);
        let pool = &self.pools[pool];
        if pool.tally.live() < pool.limits.min_size && pool.retry_at.is_none() {
            self.wake_by(now);
        }
        if let Some(Claim { group, .. }) = claim
            && self.may_dial(group)
            && self.best_idle(group, 0).is_none()
        {
            self.dial(group, out);
        }
        self.unsettled = true;
        self.settle(now, out);
    }

    /// Lets everybody go who may.
    fn settle(&mut self, now: Duration, out: &mut Vec<Action>) {
        while std::mem::take(&mut self.unsettled) {
            if !self.waiting.is_empty() {
                self.lend_idle(out);
                self.dial_anywhere(out);
            }
        }
        if !self.waiting.is_empty() {
            self.wake_by(now + WATCH_EVERY);
        }
    }

    /// A dial to this Postgres succeeded. If the one before had failed, whoever backs off may try at once.
    fn is_back(&mut self, host: u32) {
        if !std::mem::take(&mut self.hosts[host as usize].is_failing) {
            return;
        }
        for at in 0..self.pools.end() {
            if self.pools.occupied(at) && self.pools[at].host == host {
                self.pools[at].retry_at = None;
            }
        }
    }

    fn back_off(&mut self, now: Duration, group: u32, retry: Retry) {
        let Group {
            pool, host, left, ..
        } = self.groups[group];
        let pool = &mut self.pools[pool];
        self.hosts[host as usize].is_failing = true;
        // Dials that were in flight together fail together: that is one failure. Those to another host prove nothing.
        if pool.retry_at.is_none() && !left {
            let doubled = retry
                .first
                .saturating_mul(1_u32 << pool.failures.min(16))
                .min(MAX_RETRY);
            let wait = doubled.mul_f32(1.0 + retry.jitter.clamp(0.0, 1.0) / 4.0);
            pool.retry_at = Some(now + wait);
            pool.failures += 1;
            self.wake_by(now + wait);
        }
    }

    fn wake_by(&mut self, at: Duration) {
        self.wake_at = self.wake_at.min(at);
    }

    fn pool_at(&self, pool: PoolId) -> Option<u32> {
        self.pools
            .holds(pool.index, pool.generation)
            .then_some(pool.index)
    }

    fn waiter_at(&self, waiter: WaiterId) -> Option<u32> {
        self.waiters
            .holds(waiter.index, waiter.generation)
            .then_some(waiter.index)
    }

    fn server_in(&self, server: ServerId, state: State) -> Option<u32> {
        let held = self.servers.holds(server.index, server.generation);
        (held && self.servers[server.index].state == state).then_some(server.index)
    }
}
