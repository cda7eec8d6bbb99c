//! Read-only views, for the console and the metrics. They may look at every group; the hot calls never use them.

use std::ops::Range;
use std::time::Duration;

use super::Book;
use super::arena::{Arena, NONE, index};
use super::ledger::{Capped, Tally};
use super::words::{
    DatabaseId, HostId, PoolId, Reach, ServerId, ServiceId, State, ThreadId, UserId, WaiterId,
};

/// What counts against one cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// By state.
    pub tally: Tally,
    /// The cap; 0 = none, except for a host, where `None` = not known yet.
    pub cap: Option<u32>,
}

/// A pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolView {
    /// Its server connections by state.
    pub tally: Tally,
    /// Sessions in its queues.
    pub waiters: u32,
    /// Since when the first of them has waited.
    pub waiting_since: Option<Duration>,
    /// No dial before this, after one that failed.
    pub retry_at: Option<Duration>,
}

/// A server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerView {
    /// Its number among all that there ever were.
    pub number: u32,
    /// What it does.
    pub state: State,
    /// Its pool.
    pub pool: PoolId,
    /// On whose account it is.
    pub service: ServiceId,
    /// Where its socket belongs.
    pub thread: ThreadId,
    /// When it came into its state.
    pub since: Duration,
    /// When it was last lent.
    pub lent: Option<Duration>,
    /// It is closed as soon as it comes back.
    pub outdated: bool,
    /// It is to be replaced, whatever its age.
    pub replaced: bool,
}

/// A session in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaiterView {
    /// Its pool.
    pub pool: PoolId,
    /// On whose account it waits.
    pub service: ServiceId,
    /// Since when.
    pub since: Duration,
    /// Who came later has a higher one.
    pub ticket: u64,
}

/// What one service has of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartView {
    /// The service.
    pub service: ServiceId,
    /// Server connections on its account.
    pub tally: Tally,
    /// Its sessions in the queue.
    pub waiters: u32,
}

impl Book {
    /// One Postgres against its budget.
    pub fn host(&self, host: HostId) -> View {
        let host = &self.hosts[host.index()];
        View {
            tally: host.capped.tally,
            cap: host.budget_known.then_some(host.capped.cap),
        }
    }

    /// A database against its cap.
    pub fn database(&self, database: DatabaseId) -> View {
        view(&self.databases[database.index()])
    }

    /// A user against its cap.
    pub fn user(&self, user: UserId) -> View {
        view(&self.users[user.index()])
    }

    /// A service against its cap, over all hosts.
    pub fn service(&self, service: ServiceId) -> View {
        view(&self.services[service.index()].capped)
    }

    /// How many sessions of a service wait.
    pub fn service_waiters(&self, service: ServiceId) -> u32 {
        self.services[service.index()].waiters
    }

    /// How many of them wait because their service has all that it may have, or all that they may have of it.
    pub fn waiters_at_cap(&self, service: ServiceId) -> u32 {
        let service = &self.services[service.index()];
        if !service.capped.has_room() {
            service.waiters
        } else if service.reaches(Reach::AllButKept, 0) {
            0
        } else {
            service.waiters_short
        }
    }

    /// A service's server connections on one host.
    pub fn service_on(&self, host: HostId, service: ServiceId) -> u32 {
        self.hosts[host.index()]
            .accounts
            .get(service.index())
            .map_or(0, |account| account.count)
    }

    /// A pool; `None` if it was removed.
    pub fn pool(&self, pool: PoolId) -> Option<PoolView> {
        let entry = &self.pools[self.pool_at(pool)?];
        let groups = entry.waiting.iter();
        let heads = groups.flat_map(|group| {
            self.groups[*group]
                .lanes
                .iter()
                .map(|lane| lane.waiters.head)
        });
        let waiting_since = heads
            .filter(|head| *head != NONE)
            .map(|head| self.waiters[head].since)
            .min();
        Some(PoolView {
            tally: entry.tally,
            waiters: entry.waiters,
            waiting_since,
            retry_at: entry.retry_at,
        })
    }

    /// A server connection; `None` if it is gone.
    pub fn server(&self, server: ServerId) -> Option<ServerView> {
        if !self.servers.holds(server.index, server.generation) {
            return None;
        }
        let entry = &self.servers[server.index];
        Some(ServerView {
            number: entry.number,
            state: entry.state,
            pool: self.pools[entry.pool].id,
            service: ServiceId(self.groups[entry.group].service),
            thread: ThreadId(entry.thread),
            since: entry.since,
            lent: entry.lent,
            outdated: entry.epoch != self.pools[entry.pool].epoch || entry.expires <= self.now,
            replaced: entry.epoch != self.pools[entry.pool].epoch,
        })
    }

    /// One past the highest number that a server connection may have: see [`Self::servers_in`].
    pub fn server_places(&self) -> usize {
        self.servers.end() as usize
    }

    /// The server connections whose numbers are in this range, so that all of them can be read in parts.
    pub fn servers_in(&self, places: Range<usize>) -> impl Iterator<Item = ServerId> + '_ {
        indices(&self.servers, places).map(|at| self.servers[at].id)
    }

    /// The same for waiters.
    pub fn waiter_places(&self) -> usize {
        self.waiters.end() as usize
    }

    /// The same for waiters: those to whom nothing is granted yet.
    pub fn waiters_in(
        &self,
        places: Range<usize>,
    ) -> impl Iterator<Item = (WaiterId, WaiterView)> + '_ {
        indices(&self.waiters, places)
            .map(|at| &self.waiters[at])
            .filter(|waiter| waiter.server == NONE)
            .map(|waiter| {
                let group = &self.groups[waiter.group];
                let view = WaiterView {
                    pool: self.pools[group.pool].id,
                    service: ServiceId(group.service),
                    since: waiter.since,
                    ticket: waiter.ticket,
                };
                (waiter.id, view)
            })
    }

    /// What each service has of a pool in which it has ever asked.
    pub fn parts(&self, pool: PoolId) -> impl Iterator<Item = PartView> + '_ {
        let entry = self.pool_at(pool).map(|pool| &self.pools[pool]);
        let groups = entry.map_or(&[][..], |pool| &pool.group_of);
        // Those of a service lie side by side.
        groups.chunks(2).filter_map(|groups| {
            let known = groups.iter().filter(|group| **group != NONE);
            let parts = known.map(|group| {
                let group = &self.groups[*group];
                PartView {
                    service: ServiceId(group.service),
                    tally: group.tally,
                    waiters: group.waiters,
                }
            });
            parts.reduce(|one, other| PartView {
                service: one.service,
                tally: one.tally + other.tally,
                waiters: one.waiters + other.waiters,
            })
        })
    }

    /// Since when the first waiter of each service has waited, of those services that have any.
    pub fn waiting_services(&self) -> impl Iterator<Item = (ServiceId, Duration)> + '_ {
        let pools = self.waiting.iter();
        let groups = pools.flat_map(|pool| &self.pools[*pool].waiting);
        groups.filter_map(|group| {
            let group = &self.groups[*group];
            let heads = group.lanes.iter().map(|lane| lane.waiters.head);
            let heads = heads.filter(|head| *head != NONE);
            let first = heads.map(|head| self.waiters[head].since).min()?;
            Some((ServiceId(group.service), first))
        })
    }

    /// All server connections there are.
    pub fn servers(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.servers.indices().map(|at| self.servers[at].id)
    }
}

/// The indices in use of those in `places`.
fn indices<T>(arena: &Arena<T>, places: Range<usize>) -> impl Iterator<Item = u32> + '_ {
    let end = places.end.min(arena.end() as usize);
    (places.start..end)
        .map(index)
        .filter(|at| arena.occupied(*at))
}

fn view(capped: &Capped) -> View {
    View {
        tally: capped.tally,
        cap: Some(capped.cap),
    }
}
