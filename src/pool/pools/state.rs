//! What is behind the pools' one lock: the book, and what it keeps account of.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Duration;

use super::ground::Ground;
use super::steer::Gates;
use super::{Key, Pool, PoolSettings};
use crate::pool::book::{
    Action, Book, DatabaseId, HostId, PoolPlace, Refusal, ServerId, ServiceId, ServiceLimits,
    UserId, WaiterId,
};
use crate::pool::errand::{Discard, Errand, Task};
use crate::pool::postgres::PostgresCounts;
use crate::pool::stats::Counted;
use crate::server::connection::Connection;
use crate::server::facts::Facts;
use crate::server::prepared::Store;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) book: Book,
    /// What the book's last call wants done.
    pub(super) actions: Vec<Action>,
    /// Idle and granted connections, by the index of their id.
    pub(super) parked: Vec<Option<(ServerId, Box<Connection>)>>,
    /// What everybody may see of server connections that are logged in, by the index of their id.
    pub(super) facts: Vec<Option<(ServerId, Arc<Facts>)>>,
    /// Waiters, by the index of their id.
    pub(super) desks: Vec<Option<Desk>>,
    /// Pools, by the index of their id.
    pub(super) pools: Vec<Option<Arc<Pool>>>,
    pub(super) by_name: HashMap<Key, Arc<Pool>>,
    pub(super) names: Names,
    /// What is known of each Postgres, by the index of its id.
    pub(super) grounds: Vec<Ground>,
    pub(super) gates: Gates,
    /// What was counted for pools that were forgotten.
    pub(super) past: Arc<Past>,
    /// What happened to the server connections of each Postgres, by the index of its id.
    pub(super) counts: Vec<Option<Arc<PostgresCounts>>>,
    /// Probes made so far.
    pub(super) probes: u64,
}

/// By database and role.
pub(super) type Past = HashMap<(Arc<str>, Arc<str>), Counted>;

/// The book's ids, by the names that people use.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) hosts: HashMap<Arc<str>, HostId>,
    pub(super) databases: HashMap<Arc<str>, DatabaseId>,
    pub(super) users: HashMap<Arc<str>, UserId>,
    pub(super) services: HashMap<Arc<str>, (ServiceId, ServiceLimits)>,
    /// The prepared statements of each database that Postgres has, whatever clients call it.
    statements: HashMap<(HostId, Box<str>), Arc<Store>>,
}

/// Where a waiter is called.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) waker: Waker,
    pub(super) outcome: Option<Outcome>,
    pub(super) since: Duration,
    /// The session's number; 0: of a client that is to be logged in.
    pub(super) client: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Granted { server: ServerId, moves: bool },
    Refused(Refusal),
}

pub(super) fn put<T>(table: &mut Vec<Option<T>>, index: usize, value: T) {
    if index >= table.len() {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}

impl State {
    pub(super) fn place(&mut self, database: &str, settings: &PoolSettings) -> PoolPlace {
        let host = self.host(settings);
        let Self { book, names, .. } = self;
        PoolPlace {
            host,
            database: *names
                .databases
                .entry(database.into())
                .or_insert_with(|| book.add_database(settings.database_cap)),
            user: *names
                .users
                .entry(settings.target.identity.user.as_str().into())
                .or_insert_with(|| book.add_user(settings.user_cap)),
        }
    }

    /// The prepared statements of the database of these settings. A change of its tables by one role is news for all.
    pub(super) fn statements(&mut self, host: HostId, settings: &PoolSettings) -> Arc<Store> {
        let key = (host, settings.target.identity.database.as_str().into());
        Arc::clone(self.names.statements.entry(key).or_default())
    }

    /// Does what the book asks for, and lists what is done outside the lock.
    pub(super) fn carry_out(&mut self, wake: &mut Vec<Waker>, errands: &mut Vec<Errand>) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Grant {
                    waiter,
                    server,
                    from,
                    to,
                } => {
                    self.call(
                        waiter,
                        Outcome::Granted {
                            server,
                            moves: from != to,
                        },
                        wake,
                    );
                }
                Action::Refuse { waiter, why, .. } => {
                    self.call(waiter, Outcome::Refused(why), wake);
                }
                Action::Dial {
                    server,
                    pool,
                    thread,
                    ..
                } => {
                    let pool = self.pools[pool.index()]
                        .clone()
                        .expect("the book dials for pools that exist");
                    self.counts_of(pool.place().host)
                        .dials
                        .fetch_add(1, Relaxed);
                    let size = pool.settings.read().limits.size;
                    let have = self.book.pool(pool.id).map_or(0, |view| view.tally.total());
                    let from_reserve = size > 0 && have > size;
                    errands.push(Errand {
                        pool,
                        thread,
                        server,
                        task: Task::Dial { from_reserve },
                    });
                }
                Action::Close {
                    server,
                    thread,
                    reason,
                } => {
                    let pool = self
                        .book
                        .server(server)
                        .expect("the book closes what it knows")
                        .pool;
                    let pool = self.pools[pool.index()]
                        .clone()
                        .expect("a pool outlives its connections");
                    let task = Task::Close(self.unpark(server), Discard::Book(reason));
                    errands.push(Errand {
                        pool,
                        thread,
                        server,
                        task,
                    });
                }
            }
        }
        self.actions = actions;
    }

    /// What happened to the server connections of a Postgres.
    pub(super) fn counts_of(&self, host: HostId) -> &PostgresCounts {
        self.counts[host.index()]
            .as_ref()
            .expect("it is made with its host")
    }

    /// Tells a waiter what became of it.
    fn call(&mut self, waiter: WaiterId, outcome: Outcome, wake: &mut Vec<Waker>) {
        let desk = self.desks[waiter.index()]
            .as_mut()
            .expect("a waiter has a desk until it leaves");
        desk.outcome = Some(outcome);
        wake.push(desk.waker.clone());
    }

    pub(super) fn forget_facts(&mut self, server: ServerId) {
        if let Some(facts) = self.facts.get_mut(server.index()) {
            *facts = None;
        }
    }

    pub(super) fn unpark(&mut self, server: ServerId) -> Box<Connection> {
        self.parked[server.index()]
            .take()
            .expect("the book grants what is parked")
            .1
    }
}
