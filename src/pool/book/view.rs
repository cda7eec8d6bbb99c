//! Read-only views, for the console and the metrics. They may look at every group; the hot calls never use them.

use std::time::Duration;

use super::Book;
use super::arena::NONE;
use super::ledger::{Capped, Tally};
use super::words::{DatabaseId, HostId, PoolId, ServerId, ServiceId, State, ThreadId, UserId};

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
    /// What it does.
    pub state: State,
    /// Its pool.
    pub pool: PoolId,
    /// On whose account it is.
    pub service: ServiceId,
    /// Where its socket belongs.
    pub thread: ThreadId,
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
            state: entry.state,
            pool: self.pools[entry.pool].id,
            service: ServiceId(self.groups[entry.group].service),
            thread: ThreadId(entry.thread),
        })
    }

    /// All server connections there are.
    pub fn servers(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.servers.indices().map(|at| self.servers[at].id)
    }
}

fn view(capped: &Capped) -> View {
    View {
        tally: capped.tally,
        cap: Some(capped.cap),
    }
}
