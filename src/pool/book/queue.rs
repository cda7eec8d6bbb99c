//! Joining and leaving queues, and the way from a group to its oldest waiter and its best idle server connection.

use std::time::Duration;

use super::Book;
use super::arena::{Links, NONE, index};
use super::ledger::{Group, Waiter};
use super::words::{Reach, WaiterId};

impl Book {
    pub(super) fn enqueue(
        &mut self,
        now: Duration,
        group: u32,
        thread: u16,
        deadline: Option<Duration>,
    ) -> u32 {
        self.tickets += 1;
        let ticket = self.tickets;
        let deadline = deadline.unwrap_or(Duration::MAX);
        let waiter = self.waiters.insert(|index, generation| Waiter {
            id: WaiterId { index, generation },
            group,
            thread,
            since: now,
            ticket,
            deadline,
            server: NONE,
            links: Links::OUT,
        });
        self.join(waiter);
        self.wake_by(deadline);
        waiter
    }

    /// A waiter goes to the end of its group's queue.
    fn join(&mut self, waiter: u32) {
        let Waiter {
            group,
            thread,
            deadline,
            ..
        } = self.waiters[waiter];
        self.lane(group, thread);
        let lane = &mut self.groups[group].lanes[thread as usize];
        let last = lane.waiters.tail;
        lane.ordered = last == NONE || (lane.ordered && self.waiters[last].deadline <= deadline);
        lane.waiters.push_back(&mut self.waiters, waiter);
        self.count_in(group);
    }

    fn count_in(&mut self, group: u32) {
        let Group {
            pool,
            service,
            reach,
            waiters,
            ..
        } = self.groups[group];
        if waiters == 0 {
            let waiting = &mut self.pools[pool].waiting;
            waiting.push(group);
            self.groups[group].place = index(waiting.len() - 1);
        }
        if self.pools[pool].waiters == 0 {
            self.line_up(pool);
        }
        self.groups[group].waiters += 1;
        self.pools[pool].waiters += 1;
        let service = &mut self.services[service as usize];
        service.waiters += 1;
        service.waiters_short += u32::from(reach == Reach::AllButKept);
    }

    /// Takes a waiter out of its queue; it stays in the arena.
    pub(super) fn dequeue(&mut self, waiter: u32) {
        let Waiter { group, thread, .. } = self.waiters[waiter];
        self.groups[group].lanes[thread as usize]
            .waiters
            .unlink(&mut self.waiters, waiter);
        let Group {
            pool,
            service,
            reach,
            place,
            ..
        } = self.groups[group];
        self.groups[group].waiters -= 1;
        self.pools[pool].waiters -= 1;
        let service = &mut self.services[service as usize];
        service.waiters -= 1;
        service.waiters_short -= u32::from(reach == Reach::AllButKept);
        if self.groups[group].waiters == 0 {
            let waiting = &mut self.pools[pool].waiting;
            waiting.swap_remove(place as usize);
            if let Some(&moved) = waiting.get(place as usize) {
                self.groups[moved].place = place;
            }
        }
        if self.pools[pool].waiters == 0 {
            self.step_out(pool);
        }
        self.drop_surplus_claims(group);
    }

    /// All waiters of one group wait in another of the same pool from now on.
    pub(super) fn move_queue(&mut self, from: u32, to: u32) {
        for thread in 0..self.groups[from].lanes.len() {
            while self.groups[from].lanes[thread].waiters.length > 0 {
                let waiter = self.groups[from].lanes[thread].waiters.head;
                self.dequeue(waiter);
                self.waiters[waiter].group = to;
                self.join(waiter);
            }
        }
    }

    /// A pool joins those with waiters.
    pub(super) fn line_up(&mut self, pool: u32) {
        let line = self.line_of(pool);
        line.push(pool);
        let place = index(line.len() - 1);
        self.pools[pool].place = place;
    }

    /// A pool leaves those with waiters.
    pub(super) fn step_out(&mut self, pool: u32) {
        let place = self.pools[pool].place;
        let line = self.line_of(pool);
        line.swap_remove(place as usize);
        if let Some(&moved) = line.get(place as usize) {
            self.pools[moved].place = place;
        }
    }

    fn line_of(&mut self, pool: u32) -> &mut Vec<u32> {
        if self.pools[pool].gate.is_open() {
            &mut self.waiting
        } else {
            &mut self.held
        }
    }

    /// The waiter of this group that has waited longest. The group must have one.
    pub(super) fn oldest(&self, group: u32) -> u32 {
        let heads = self.groups[group]
            .lanes
            .iter()
            .map(|lane| lane.waiters.head)
            .filter(|head| *head != NONE);
        heads
            .min_by_key(|head| self.waiters[*head].ticket)
            .expect("a group that is chosen has waiters")
    }

    /// The waiter of this group that has waited longest on this thread, if any.
    pub(super) fn oldest_on(&self, group: u32, thread: u16) -> Option<u32> {
        let lane = self.groups[group].lanes.get(usize::from(thread))?;
        (lane.waiters.head != NONE).then_some(lane.waiters.head)
    }

    /// Where the next server connection dialled for this group should live: with the oldest waiter on a thread that has
    /// more waiters than dials.
    pub(super) fn thread_for_dial(&self, group: u32) -> u16 {
        let lanes = (0_u16..)
            .zip(&self.groups[group].lanes)
            .filter(|(_, lane)| lane.waiters.head != NONE);
        let best = lanes.min_by_key(|(_, lane)| {
            (
                lane.dialing >= lane.waiters.length,
                self.waiters[lane.waiters.head].ticket,
            )
        });
        best.map_or(0, |(thread, _)| thread)
    }

    /// The idle server connection that a session of this group should be lent: of its own thread before another's, of
    /// its own service's account before another's, the most recently used; where they take turns, of any thread the one that has
    /// been unused for longest.
    pub(super) fn best_idle(&self, group: u32, thread: u16) -> Option<u32> {
        let own = &self.groups[group];
        if !self.reaches(group, 0) {
            return None;
        }
        let pool = &self.pools[own.pool];
        let in_turn = pool.limits.in_turn;
        if let Some(lane) = own
            .lanes
            .get(usize::from(thread))
            .filter(|lane| lane.idle.head != NONE && !in_turn)
        {
            return Some(lane.idle.head);
        }
        if pool.tally.idle() == 0 {
            return None;
        }
        let givers = pool.groups.iter().copied();
        let givers = givers
            .filter(|giver| self.groups[*giver].tally.idle() > 0 && self.may_move(*giver, group));
        let heads =
            givers.flat_map(|giver| self.groups[giver].lanes.iter().map(|lane| lane.idle.head));
        heads.filter(|head| *head != NONE).min_by_key(|head| {
            let server = &self.servers[*head];
            let is_others = self.groups[server.group].service != own.service;
            if in_turn {
                (false, is_others, server.idle_since)
            } else {
                let used_last = Duration::MAX.saturating_sub(server.idle_since);
                (server.thread != thread, is_others, used_last)
            }
        })
    }

    /// Any idle server connection of this pool.
    pub(super) fn some_idle(&self, pool: u32) -> Option<u32> {
        let groups = self.pools[pool].groups.iter();
        let mut heads =
            groups.flat_map(|group| self.groups[*group].lanes.iter().map(|lane| lane.idle.head));
        heads.find(|head| *head != NONE)
    }

    /// Whether what is in use on one group's account, and comes back, may be lent to another group of the same pool.
    pub(super) fn may_lend(&self, giver: u32, taker: u32) -> bool {
        let freed = self.groups[giver].service == self.groups[taker].service;
        self.reaches(taker, freed.into()) && self.may_move(giver, taker)
    }

    /// Whether what is on one group's account may go to another's of the same pool, as far as caps and guarantees go.
    fn may_move(&self, giver: u32, taker: u32) -> bool {
        let service = self.groups[taker].service;
        self.groups[giver].service == service
            || (self.services[service as usize].capped.has_room() && self.may_give(giver, taker))
    }

    /// Whether a group may have one more in use as far as what is kept of its service's cap goes, where `freed` of those in use
    /// are about to be given up.
    pub(super) fn reaches(&self, group: u32, freed: u32) -> bool {
        let Group { service, reach, .. } = self.groups[group];
        self.services[service as usize].reaches(reach, freed)
    }

    /// Whether an account may lose one to another without breaking its guaranteed minimum: it has more, or the budget has
    /// room for the next one.
    pub(super) fn may_give(&self, giver: u32, taker: u32) -> bool {
        let Group { host, service, .. } = self.groups[giver];
        if self.spares_one(host, service) {
            return true;
        }
        let host = &self.hosts[host as usize];
        let others = host.reserved + 1 - self.deficit(taker);
        !host.budget_known || host.capped.tally.total() + others <= host.capped.cap
    }

    /// Whether a service has more on this host than it is guaranteed.
    pub(super) fn spares_one(&self, host: u32, service: u32) -> bool {
        let account = &self.hosts[host as usize].accounts[service as usize];
        account.known == 0 || account.count > self.services[service as usize].limits.min_servers
    }

    /// Whether a group's service lacks part of its guaranteed minimum on this host.
    pub(super) fn is_below_minimum(&self, group: u32) -> bool {
        self.deficit(group) > 0
    }

    fn deficit(&self, group: u32) -> u32 {
        let Group { host, service, .. } = self.groups[group];
        self.services[service as usize]
            .deficit(&self.hosts[host as usize].accounts[service as usize])
    }
}
