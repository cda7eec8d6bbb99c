//! Who is first: below the guaranteed minimum, then within the share, then by waiting time.
//!
//! A share is reckoned anew for each choice, among those who contend for this very thing and the account that has it now:
//! with C the sum of their server connections on the host and W the sum of their weights, it is C * weight / W, or the
//! guaranteed minimum if that is more. Room that comes free counts into C, as a server connection that comes back does: it
//! is what they contend for. Contenders on different hosts (under one user's cap, say) are weighed each on its own host.

use std::time::Duration;

use super::ledger::{Group, Host};
use super::words::State;
use super::{Book, EVICT_AFTER, THREAD_BOUND};

/// What becomes of a server connection that is at nobody's disposal.
pub(super) enum Next {
    /// It is lent to this waiter of its pool.
    Lend(u32),
    /// It is closed so that this group of another pool can dial.
    Close(u32),
    /// Nobody may have it.
    Rest,
}

/// In the order of precedence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    BelowMinimum,
    WithinShare,
    AboveShare,
}

/// A group that may have what is to be had.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    group: u32,
    oldest: u32,
    class: Class,
    /// Otherwise the server connection has to be closed first.
    same_pool: bool,
}

impl Book {
    /// Who is next for a server connection at nobody's disposal.
    pub(super) fn next_for(&mut self, now: Duration, server: u32) -> Next {
        if self.waiting.is_empty() {
            return Next::Rest;
        }
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let giver = self.servers[server].group;
        self.gather(giver, &mut candidates);
        let next = match candidates[..] {
            [] => Next::Rest,
            _ => self.first(now, server, &mut candidates),
        };
        self.candidates = candidates;
        next
    }

    /// The groups that may have what is on the account of `giver`: by loan or, in other pools, by having it closed.
    fn gather(&self, giver: u32, candidates: &mut Vec<Candidate>) {
        let own = self.groups[giver].pool;
        let here = self.pools[own]
            .waiting
            .iter()
            .filter(|group| self.pools[own].gate.is_open() && self.may_lend(giver, **group));
        candidates.extend(here.map(|group| self.candidate(*group, true)));
        for pool in self.waiting.iter().filter(|pool| **pool != own) {
            let there = self.pools[*pool]
                .waiting
                .iter()
                .filter(|group| self.would_help(giver, **group));
            candidates.extend(there.map(|group| self.candidate(*group, false)));
        }
    }

    fn candidate(&self, group: u32, same_pool: bool) -> Candidate {
        Candidate {
            group,
            oldest: self.oldest(group),
            class: Class::AboveShare,
            same_pool,
        }
    }

    fn first(&mut self, now: Duration, server: u32, candidates: &mut [Candidate]) -> Next {
        let giver = self.servers[server].group;
        self.weigh_all(Some(giver), candidates);
        for candidate in &mut *candidates {
            candidate.class = self.class(candidate.group, Some(giver));
        }
        let generous = self.is_above(giver, 0);
        let here = self.first_here(self.servers[server].thread, candidates);
        let there = self.first_there(now, generous, candidates);
        let fresh = self.servers[server].state == State::Dialing;
        match (here, there) {
            (Some(here), Some(there)) if !fresh && self.outranks(there, here) => {
                Next::Close(there.group)
            }
            (Some(here), _) => Next::Lend(here.oldest),
            (None, Some(there)) => Next::Close(there.group),
            (None, None) => Next::Rest,
        }
    }

    /// The first in the pool itself. Its own thread goes before another whose waiter is hardly older.
    fn first_here(&self, thread: u16, candidates: &[Candidate]) -> Option<Candidate> {
        let best = self.best(candidates.iter().filter(|candidate| candidate.same_pool))?;
        let equals = candidates
            .iter()
            .filter(|other| other.same_pool && other.class == best.class);
        let near = equals.filter_map(|other| {
            Some(Candidate {
                oldest: self.oldest_on(other.group, thread)?,
                ..*other
            })
        });
        let near = near.min_by_key(|other| self.waiters[other.oldest].ticket);
        let bound = self.waiters[best.oldest].since + THREAD_BOUND;
        near.filter(|near| self.waiters[near.oldest].since <= bound)
            .or(Some(best))
    }

    /// The first in other pools, among those for whom it may be closed although it is in use.
    fn first_there(
        &self,
        now: Duration,
        generous: bool,
        candidates: &[Candidate],
    ) -> Option<Candidate> {
        self.best(candidates.iter().filter(|candidate| {
            !candidate.same_pool
                && match candidate.class {
                    Class::BelowMinimum => true,
                    Class::WithinShare if generous => true,
                    _ => self.has_waited(now, candidate.oldest),
                }
        }))
    }

    /// Whether a waiter has waited long enough for any idle server connection to be closed for it.
    pub(super) fn has_waited(&self, now: Duration, waiter: u32) -> bool {
        self.waiters[waiter].since + EVICT_AFTER <= now
    }

    /// Whether closing for another pool's waiter comes before lending within the pool. Shares on different hosts do not
    /// compare: two hosts under one user's cap would each think the other more deserving, and pass the room to and fro.
    fn outranks(&self, there: Candidate, here: Candidate) -> bool {
        let same_host = self.groups[there.group].host == self.groups[here.group].host;
        let older =
            self.waiters[there.oldest].since + EVICT_AFTER < self.waiters[here.oldest].since;
        if same_host && there.class != here.class {
            there.class < here.class
        } else {
            older
        }
    }

    fn best<'a>(&self, candidates: impl Iterator<Item = &'a Candidate>) -> Option<Candidate> {
        candidates
            .min_by_key(|candidate| (candidate.class, self.waiters[candidate.oldest].ticket))
            .copied()
    }

    /// The first group that may dial, in one pool or in all.
    pub(super) fn first_to_dial(&mut self, pool: Option<u32>) -> Option<u32> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let pools = pool
            .as_ref()
            .map_or(&self.waiting[..], std::slice::from_ref);
        for pool in pools {
            let groups = self.pools[*pool]
                .waiting
                .iter()
                .filter(|group| self.may_dial(**group));
            candidates.extend(groups.map(|group| self.candidate(*group, false)));
        }
        let first = self.first_for_room(&mut candidates);
        self.candidates = candidates;
        first
    }

    /// The first group of a pool that may have something idle there.
    pub(super) fn first_for_idle(&mut self, pool: u32) -> Option<u32> {
        if self.pools[pool].tally.idle() == 0 {
            return None;
        }
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let groups = self.pools[pool]
            .waiting
            .iter()
            .filter(|group| self.best_idle(**group, 0).is_some());
        candidates.extend(groups.map(|group| self.candidate(*group, true)));
        let first = self.first_for_room(&mut candidates);
        self.candidates = candidates;
        first
    }

    fn first_for_room(&mut self, candidates: &mut [Candidate]) -> Option<u32> {
        if let [only] = candidates {
            return Some(only.group);
        }
        self.weigh_all(None, candidates);
        for candidate in &mut *candidates {
            candidate.class = self.class(candidate.group, None);
        }
        self.best(candidates.iter())
            .map(|candidate| candidate.group)
    }

    fn weigh_all(&mut self, giver: Option<u32>, candidates: &[Candidate]) {
        self.stamp += 1;
        if let Some(giver) = giver {
            self.weigh(giver, 0);
        }
        for candidate in candidates {
            self.weigh(candidate.group, 1);
        }
    }

    /// Begins to reckon shares.
    pub(super) fn begin_weighing(&mut self) {
        self.stamp += 1;
    }

    /// Counts a group's service among the contenders on its host, once. `room` is what they contend for beyond what they
    /// have.
    pub(super) fn weigh(&mut self, group: u32, room: u64) {
        let Group { host, service, .. } = self.groups[group];
        let Host {
            stamp,
            sum_count,
            sum_weight,
            accounts,
            ..
        } = &mut self.hosts[host as usize];
        let account = &mut accounts[service as usize];
        if *stamp != self.stamp {
            (*stamp, *sum_count, *sum_weight) = (self.stamp, room, 0);
        }
        if account.stamp != self.stamp {
            account.stamp = self.stamp;
            *sum_count += u64::from(account.count);
            *sum_weight += u64::from(self.services[service as usize].limits.weight.max(1));
        }
    }

    fn class(&self, group: u32, giver: Option<u32>) -> Class {
        if self.is_below_minimum(group) {
            return Class::BelowMinimum;
        }
        let replaces = giver.is_some_and(|giver| self.is_same_account(giver, group));
        if self.is_above(group, u32::from(!replaces)) {
            Class::AboveShare
        } else {
            Class::WithinShare
        }
    }

    /// Whether two groups are on the account of one service on one host.
    pub(super) fn is_same_account(&self, one: u32, other: u32) -> bool {
        let (one, other) = (&self.groups[one], &self.groups[other]);
        one.service == other.service && one.host == other.host
    }

    /// Whether a service has more than its share once `more` are added. A service that was not weighed is reckoned in.
    pub(super) fn is_above(&self, group: u32, more: u32) -> bool {
        let Group { host, service, .. } = self.groups[group];
        let host = &self.hosts[host as usize];
        let limits = &self.services[service as usize].limits;
        let account = &host.accounts[service as usize];
        let (mut count, mut weight) = if host.stamp == self.stamp {
            (host.sum_count, host.sum_weight)
        } else {
            (0, 0)
        };
        let own = u64::from(limits.weight.max(1));
        if account.stamp != self.stamp {
            count += u64::from(account.count);
            weight += own;
        }
        let after = account.count + more;
        after > limits.min_servers && u64::from(after) * weight > count * own
    }
}
