//! Reading what there is. Nobody waits for a reader: the lock is held for a bounded part of the book at a time, so what is read
//! is true of each part at its own moment.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use parking_lot::MutexGuard;

use super::state::State;
use super::{Pool, Pools};
use crate::pool::book::{self, HostId, PoolId, ServerView, View};
use crate::pool::postgres::PostgresCounts;
use crate::pool::view::{
    CapRow, HostRow, PartRow, PoolRow, ServerCounts, ServerRow, ServerSession, ServerState,
    ServiceRow, WaiterRow,
};
use crate::server::facts::{CancelStage, Facts};

/// Things that are read under the lock at once: some ten microseconds.
const PART: usize = 128;

impl Pools {
    /// Every server connection, in no order.
    pub fn servers(&self) -> Vec<ServerRow> {
        let services = self.service_names();
        let mut found = Vec::new();
        self.in_parts(
            |state| state.book.server_places(),
            |state, places| {
                let State {
                    book, pools, facts, ..
                } = state;
                for id in book.servers_in(places) {
                    let Some(view) = book.server(id) else {
                        continue;
                    };
                    let Some(pool) = pools[view.pool.index()].clone() else {
                        continue;
                    };
                    let facts = facts.get(id.index()).and_then(Option::as_ref);
                    let facts = facts.filter(|(of, _)| *of == id);
                    found.push((view, pool, facts.map(|(_, facts)| Arc::clone(facts))));
                }
            },
        );
        let now = self.now();
        let row = |(view, pool, facts): (ServerView, Arc<Pool>, Option<Arc<Facts>>)| ServerRow {
            number: view.number,
            service: named(&services, view.service.index()),
            thread: view.thread.0,
            state: state_of(&view, facts.as_deref()),
            age: now.saturating_sub(view.since),
            requested: view.lent.map(|lent| self.wall(lent)),
            close_needed: view.outdated,
            client: facts.as_ref().and_then(|facts| facts.client()),
            session: facts.map(|facts| session(&facts)),
            pool,
        };
        found.into_iter().map(row).collect()
    }

    /// Every pool, in no order.
    pub fn rows(&self) -> Vec<PoolRow> {
        let servers = self.servers();
        self.rows_with(&servers)
    }

    /// The same for who has read the server connections already.
    pub fn rows_with(&self, servers: &[ServerRow]) -> Vec<PoolRow> {
        let mut by_pool: HashMap<PoolId, ServerCounts> = HashMap::new();
        let mut cancels: HashMap<PoolId, (u32, u32)> = HashMap::new();
        for row in servers {
            by_pool.entry(row.pool.id).or_default().add(row.state);
        }
        for (pool, stage) in self.cancels() {
            let (sent, waiting) = cancels.entry(pool).or_default();
            match stage {
                CancelStage::None => {}
                CancelStage::Queued => *waiting += 1,
                CancelStage::Sent => *sent += 1,
            }
        }
        let (services, hosts) = (self.service_names(), self.host_names());
        let row = |pool: Arc<Pool>| {
            let (view, parts) = self.read(|book| {
                let parts: Vec<_> = book.parts(pool.id).collect();
                Some((book.pool(pool.id)?, parts))
            })?;
            let now = self.now();
            let (cancels_sent, cancels_waiting) =
                cancels.get(&pool.id).copied().unwrap_or_default();
            let settings = pool.settings();
            let waited = |since| now.saturating_sub(since);
            let part = |part: book::PartView| PartRow {
                service: named(&services, part.service.index()),
                tally: part.tally,
                waiters: part.waiters,
            };
            Some(PoolRow {
                host: named(&hosts, pool.place().host.index()),
                mode: settings.mode,
                limits: settings.limits,
                clients: pool.clients.load(Relaxed),
                waiters: view.waiters,
                logins_waiting: u32::try_from(pool.logins_waiting.load(Relaxed)).unwrap_or(0),
                longest_wait: view.waiting_since.map_or(Duration::ZERO, waited),
                retry_in: view.retry_at.map(|at| at.saturating_sub(now)),
                tally: view.tally,
                servers: by_pool.get(&pool.id).copied().unwrap_or_default(),
                cancels_sent,
                cancels_waiting,
                parts: parts.into_iter().map(part).collect(),
                pool,
            })
        };
        self.all().into_iter().filter_map(row).collect()
    }

    /// Every service that was ever asked for.
    pub fn services(&self) -> Vec<ServiceRow> {
        let (names, longest) = {
            let state = self.state.lock();
            let services = state.names.services.iter();
            let names: Vec<_> = services.map(|(name, of)| (Arc::clone(name), *of)).collect();
            let mut longest: HashMap<_, Duration> = HashMap::new();
            for (service, since) in state.book.waiting_services() {
                let first = longest.entry(service).or_insert(since);
                *first = since.min(*first);
            }
            (names, longest)
        };
        let now = self.now();
        let mut rows = Vec::with_capacity(names.len());
        for part in names.chunks(PART) {
            let state = self.state.lock();
            rows.extend(part.iter().map(|(name, (id, limits))| {
                ServiceRow {
                    name: Arc::clone(name),
                    limits: *limits,
                    tally: state.book.service(*id).tally,
                    waiters: state.book.service_waiters(*id),
                    longest_wait: longest
                        .get(id)
                        .map_or(Duration::ZERO, |since| now.saturating_sub(*since)),
                }
            }));
        }
        rows
    }

    /// What happened to the server connections of every Postgres.
    pub fn postgres_counts(&self) -> Vec<(Arc<str>, Arc<PostgresCounts>)> {
        let state = self.state.lock();
        let hosts = state.names.hosts.iter();
        hosts
            .filter_map(|(name, id)| {
                let counts = state.counts.get(id.index())?.as_ref()?;
                Some((Arc::clone(name), Arc::clone(counts)))
            })
            .collect()
    }

    /// Every Postgres.
    pub fn hosts(&self) -> Vec<HostRow> {
        let state = self.state.lock();
        let row = |(name, id): (&Arc<str>, &HostId)| {
            let View { tally, cap } = state.book.host(*id);
            HostRow {
                name: Arc::clone(name),
                budget: cap,
                tally,
            }
        };
        state.names.hosts.iter().map(row).collect()
    }

    /// Every database that was ever asked for.
    pub fn databases(&self) -> Vec<CapRow> {
        let state = self.state.lock();
        cap_rows(&state.names.databases, |id| state.book.database(*id))
    }

    /// Every role that was ever used at Postgres.
    pub fn users(&self) -> Vec<CapRow> {
        let state = self.state.lock();
        cap_rows(&state.names.users, |id| state.book.user(*id))
    }

    /// Everybody who waits, who came first in each pool first.
    pub fn waiters(&self) -> Vec<WaiterRow> {
        let services = self.service_names();
        let mut found = Vec::new();
        self.in_parts(
            |state| state.book.waiter_places(),
            |state, places| {
                for (id, view) in state.book.waiters_in(places) {
                    let client = state.desks.get(id.index()).and_then(Option::as_ref);
                    let client = client.map_or(0, |desk| desk.client);
                    if let Some(pool) = state.pools[view.pool.index()].clone() {
                        found.push((view, pool, client));
                    }
                }
            },
        );
        found.sort_unstable_by_key(|(view, ..)| (view.pool, view.ticket));
        let (now, mut last, mut place) = (self.now(), None, 0);
        let row = |(view, pool, client): (book::WaiterView, Arc<Pool>, u32)| {
            place = if last == Some(view.pool) {
                place + 1
            } else {
                1
            };
            last = Some(view.pool);
            WaiterRow {
                client: Some(client).filter(|id| *id != 0),
                service: named(&services, view.service.index()),
                age: now.saturating_sub(view.since),
                pool,
                place,
            }
        };
        found.into_iter().map(row).collect()
    }

    /// Cancel requests that are under way, by pool.
    fn cancels(&self) -> Vec<(PoolId, CancelStage)> {
        let mut found = Vec::new();
        self.in_parts(
            |state| state.facts.len(),
            |state, places| {
                for (id, facts) in state.facts[places].iter().flatten() {
                    let stage = facts.cancel();
                    if stage != CancelStage::None
                        && let Some(view) = state.book.server(*id)
                    {
                        found.push((view.pool, stage));
                    }
                }
            },
        );
        found
    }

    /// Calls `read` for one part of what there is after the other, and lets go of the lock between them.
    pub(super) fn in_parts(
        &self,
        length: impl Fn(&State) -> usize,
        mut read: impl FnMut(&State, Range<usize>),
    ) {
        let mut from = 0;
        loop {
            let state = self.state.lock();
            let end = length(&state).min(from + PART);
            if from >= end {
                return;
            }
            read(&state, from..end);
            // To whoever waits for it: a session's thread is not to lose the race against the next part.
            MutexGuard::unlock_fair(state);
            from = end;
        }
    }

    fn service_names(&self) -> Vec<Arc<str>> {
        let state = self.state.lock();
        let services = state.names.services.iter();
        by_index(services.map(|(name, (id, _))| (name, id.index())))
    }

    fn host_names(&self) -> Vec<Arc<str>> {
        let state = self.state.lock();
        by_index(
            state
                .names
                .hosts
                .iter()
                .map(|(name, id)| (name, id.index())),
        )
    }

    /// A time of the pools' clock, by the wall's.
    fn wall(&self, time: Duration) -> SystemTime {
        self.wall_epoch + time
    }
}

fn cap_rows<Id>(names: &HashMap<Arc<str>, Id>, view: impl Fn(&Id) -> View) -> Vec<CapRow> {
    let row = |(name, id): (&Arc<str>, &Id)| {
        let View { tally, cap } = view(id);
        CapRow {
            name: Arc::clone(name),
            cap: cap.unwrap_or(0),
            tally,
        }
    };
    names.iter().map(row).collect()
}

fn by_index<'a>(names: impl Iterator<Item = (&'a Arc<str>, usize)>) -> Vec<Arc<str>> {
    let mut table: Vec<Arc<str>> = Vec::new();
    for (name, index) in names {
        if table.len() <= index {
            table.resize(index + 1, Arc::default());
        }
        table[index] = Arc::clone(name);
    }
    table
}

/// One that came after the table was made has no name in it yet.
fn named(table: &[Arc<str>], index: usize) -> Arc<str> {
    table.get(index).cloned().unwrap_or_default()
}

fn state_of(view: &ServerView, facts: Option<&Facts>) -> ServerState {
    let client = facts.and_then(Facts::client);
    let cancel = facts.map_or(CancelStage::None, Facts::cancel);
    match (view.state, client, cancel) {
        (book::State::Dialing, ..) => ServerState::New,
        (book::State::Idle, ..) => ServerState::Idle,
        (book::State::Closing, ..) => ServerState::Closing,
        (_, Some(_), CancelStage::Sent) => ServerState::ActiveCancel,
        (_, Some(_), _) | (book::State::Granted, ..) => ServerState::Active,
        (_, None, CancelStage::None) => ServerState::Tested,
        (_, None, _) => ServerState::BeingCanceled,
    }
}

fn session(facts: &Facts) -> ServerSession {
    ServerSession {
        pid: facts.pid,
        host: Arc::clone(&facts.place.host),
        address: facts.place.address,
        local: facts.line.local,
        tls: facts.line.tls,
        connected: facts.connected,
        application_name: facts.application_name(),
        prepared: facts.prepared(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_everything_lets_go_of_the_lock_after_each_part() {
        let pools = Pools::new(vec![]);
        for length in [0, 1, PART, PART + 1, 10 * PART + 7] {
            let (mut parts, mut left) = (Vec::new(), true);
            // It is asked how many there are once for each part: the lock was let go, so there may be more or fewer by now.
            let asked = std::cell::Cell::new(0);
            pools.in_parts(
                |_| {
                    asked.set(asked.get() + 1);
                    length
                },
                |_, places| {
                    left &= pools.state.is_locked();
                    parts.push(places);
                },
            );
            assert!(left && !pools.state.is_locked());
            assert_eq!(parts.len(), length.div_ceil(PART));
            assert_eq!(asked.get(), parts.len() + 1);
            assert!(parts.iter().all(|part| part.len() <= PART));
            assert!(parts.into_iter().flatten().eq(0..length));
        }
    }
}
