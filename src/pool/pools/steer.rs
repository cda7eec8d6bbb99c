//! What an operator does with pools, those to come included: pause, suspend, resume, reconnect.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Pool, Pools, Purpose, State};
use crate::config::checked::{Host, Mode};
use crate::pool::book::{Gate, HostId, ServerId};
use crate::server::facts::Facts;

/// Why pools cannot be steered so: PgBouncer's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SteerError {
    /// All are shut already.
    #[error("already suspended/paused")]
    AlreadyShut,
    /// Nobody has shut all.
    #[error("pooler is not paused/suspended")]
    NotShut,
    /// Nobody has paused this one.
    #[error("database {0} is not paused")]
    NotPaused(String),
    /// Somebody has resumed while it was waited for.
    #[error("resumed by somebody else")]
    Resumed,
}

/// What operators have shut.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// Every database.
    all: Option<(Gate, Turn)>,
    /// Databases that are paused by name.
    paused: HashMap<String, Turn>,
    /// Databases that take no new clients.
    disabled: HashSet<String>,
    turns: u64,
}

/// Tells one pause from the next of the same databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn(u64);

impl Gates {
    /// What pools of this database do.
    pub(super) fn of(&self, database: &str) -> Gate {
        if self.paused.contains_key(database) {
            return Gate::Paused;
        }
        self.all.map_or(Gate::Open, |(gate, _)| gate)
    }

    fn turn(&mut self) -> Turn {
        self.turns += 1;
        Turn(self.turns)
    }

    fn is_shut(&self, database: Option<&str>, turn: Turn) -> bool {
        match database {
            Some(name) => self.paused.get(name) == Some(&turn),
            None => self.all.is_some_and(|(_, it)| it == turn),
        }
    }
}

/// What is waited for in pools that are being shut.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// No server connection is left.
    Empty,
    /// None is lent but to clients who keep theirs.
    AtRest,
}

/// Pools being shut. **Dropped before it is done, it opens them again**: so an operator who gives up undoes it.
#[must_use = "dropped, it opens the pools again"]
#[derive(Debug)]
pub struct Shutting {
    pools: Arc<Pools>,
    /// `None`: all.
    database: Option<String>,
    turn: Turn,
    /// It was this one that shut them.
    is_own: bool,
    until: Until,
}

impl Shutting {
    /// Waits for the pools to be as they should, and leaves them shut.
    pub async fn done(mut self) -> Result<(), SteerError> {
        let outcome = self.wait().await;
        self.keep();
        outcome
    }

    /// Waits for the pools to be as they should. Cancel-safe.
    pub async fn wait(&mut self) -> Result<(), SteerError> {
        let database = self.database.as_deref();
        let (turn, until) = (self.turn, self.until);
        let outcome = self.pools.until(|state| {
            if !state.gates.is_shut(database, turn) {
                return Some(Err(SteerError::Resumed));
            }
            let mut pools = state.pools_of(database);
            let is_done = pools.all(|pool| state.is_shut(pool, until));
            is_done.then_some(Ok(()))
        });
        outcome.await
    }

    /// Leaves the pools shut without waiting.
    pub fn keep(self) {
        drop(self.for_good());
    }

    /// Leaves the pools shut, whether it is waited for or not.
    pub fn for_good(mut self) -> Self {
        self.is_own = false;
        self
    }
}

impl Drop for Shutting {
    fn drop(&mut self) {
        if self.is_own {
            self.pools.reopen(self.database.as_deref(), self.turn);
        }
    }
}

impl Pools {
    /// Begins to close the server connections of a database, or of all, as they come free; clients wait from now on.
    pub fn pause(self: &Arc<Self>, database: Option<&str>) -> Result<Shutting, SteerError> {
        let Some(name) = database else {
            return self.shut_all(Gate::Paused, Until::Empty);
        };
        let (turn, is_own) = self.update(|state, now| {
            let known = state.gates.paused.get(name).copied();
            let turn = known.unwrap_or_else(|| state.gates.turn());
            state.gates.paused.insert(name.to_owned(), turn);
            state.turn_gates(now);
            (turn, known.is_none())
        });
        Ok(Shutting {
            pools: Arc::clone(self),
            database: database.map(str::to_owned),
            turn,
            is_own,
            until: Until::Empty,
        })
    }

    /// Begins to lend nothing more; what is idle stays.
    pub fn suspend(self: &Arc<Self>) -> Result<Shutting, SteerError> {
        self.shut_all(Gate::Suspended, Until::AtRest)
    }

    fn shut_all(self: &Arc<Self>, gate: Gate, until: Until) -> Result<Shutting, SteerError> {
        let turn = self.update(|state, now| {
            if state.gates.all.is_some() {
                return Err(SteerError::AlreadyShut);
            }
            let turn = state.gates.turn();
            state.gates.all = Some((gate, turn));
            state.turn_gates(now);
            Ok(turn)
        })?;
        Ok(Shutting {
            pools: Arc::clone(self),
            database: None,
            turn,
            is_own: true,
            until,
        })
    }

    /// Pauses all for good, whatever they were before.
    pub fn pause_for_good(self: &Arc<Self>) -> Shutting {
        let turn = self.update(|state, now| {
            let turn = state.gates.turn();
            state.gates.all = Some((Gate::Paused, turn));
            state.turn_gates(now);
            turn
        });
        self.news.notify_waiters();
        Shutting {
            pools: Arc::clone(self),
            database: None,
            turn,
            is_own: false,
            until: Until::Empty,
        }
    }

    /// Undoes a pause of this database, or whatever all were shut by.
    pub fn resume(&self, database: Option<&str>) -> Result<(), SteerError> {
        let outcome = self.update(|state, now| {
            match database {
                Some(name) => {
                    let known = state.gates.paused.remove(name);
                    known.ok_or_else(|| SteerError::NotPaused(name.to_owned()))?;
                }
                None => {
                    state.gates.all.take().ok_or(SteerError::NotShut)?;
                }
            }
            state.turn_gates(now);
            Ok(())
        });
        self.news.notify_waiters();
        outcome
    }

    fn reopen(&self, database: Option<&str>, turn: Turn) {
        self.update(|state, now| {
            if !state.gates.is_shut(database, turn) {
                return;
            }
            match database {
                Some(name) => drop(state.gates.paused.remove(name)),
                None => state.gates.all = None,
            }
            state.turn_gates(now);
        });
    }

    /// What all pools do, those paused by name apart.
    pub fn gate(&self) -> Gate {
        let state = self.state.lock();
        state.gates.all.map_or(Gate::Open, |(gate, _)| gate)
    }

    /// Whether the pools of this database are paused by name.
    pub fn is_paused(&self, database: &str) -> bool {
        self.state.lock().gates.paused.contains_key(database)
    }

    /// Notes that a database takes no new clients, or does again.
    pub fn disable(&self, database: &str, disabled: bool) {
        let names = &mut self.state.lock().gates.disabled;
        if disabled {
            names.insert(database.to_owned());
        } else {
            names.remove(database);
        }
    }

    /// Whether a database takes no new clients.
    pub fn is_disabled(&self, database: &str) -> bool {
        self.state.lock().gates.disabled.contains(database)
    }

    /// Has the server connections of a database, or of all, replaced as they come free.
    pub fn reconnect(&self, database: Option<&str>) {
        self.update(|state, now| {
            for pool in state.pools_of(database).cloned().collect::<Vec<_>>() {
                state.book.reconnect(now, pool.id, &mut state.actions);
            }
        });
        self.news.notify_waiters();
    }

    /// Has the server connections to a database on one Postgres, whatever clients call it, replaced as they come free: it is about to be
    /// dropped or renamed.
    pub(super) fn vacate(&self, host: HostId, database: &str) {
        self.update(|state, now| {
            let State {
                pools,
                book,
                actions,
                ..
            } = state;
            let there = pools.iter().flatten().filter(|pool| {
                pool.place().host == host && pool.settings().target.identity.database == database
            });
            there.for_each(|pool| book.reconnect(now, pool.id, actions));
        });
    }

    /// Sessions that keep a server connection which is to be replaced, where their pool is not to wait for them to leave.
    pub fn keepers_of_replaced(&self) -> Vec<u32> {
        let state = self.state.lock();
        let hurries = |pool: &&Arc<Pool>| {
            let settings = pool.settings.read();
            settings.closes_fast
                && settings.mode == Mode::Session
                && state.book.outdated(pool.id) > 0
        };
        let pools: HashSet<_> = state
            .by_name
            .values()
            .filter(hurries)
            .map(|pool| pool.id)
            .collect();
        if pools.is_empty() {
            return Vec::new();
        }
        let keeper = |(server, facts): &(ServerId, Arc<Facts>)| {
            let view = state.book.server(*server)?;
            let is_meant = view.replaced && pools.contains(&view.pool);
            is_meant.then(|| facts.client()).flatten()
        };
        state.facts.iter().flatten().filter_map(keeper).collect()
    }

    /// Has server connections replaced that lead to an address which their host's name no longer has, and gives the names that are in use.
    pub fn follow_names(&self, has_left: impl Fn(&str, SocketAddr) -> bool) -> HashSet<Box<str>> {
        let (mut used, mut left) = (HashSet::new(), Vec::new());
        let state = self.state.lock();
        for (server, facts) in state.facts.iter().flatten() {
            let (Host::Tcp(name, _), Some(address)) = (&*facts.place.host, facts.place.address)
            else {
                continue;
            };
            if has_left(name, address) {
                left.push(*server);
            }
            if !used.contains(name.as_str()) {
                used.insert(name.as_str().into());
            }
        }
        drop(state);
        if !left.is_empty() {
            self.update(|state, now| {
                for server in left {
                    state.book.replace(now, server, &mut state.actions);
                }
            });
        }
        used
    }

    /// Returns when those that were to be replaced are gone.
    pub async fn replaced(&self, database: Option<&str>) {
        let is_done = |state: &State| {
            let mut pools = state.pools_of(database);
            pools.all(|pool| state.book.outdated(pool.id) == 0)
        };
        self.until(|state| is_done(state).then_some(())).await;
    }

    /// Looks again whenever server connections have gone, and now and then.
    async fn until<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Before looking: what happens from here on is not missed.
            news.as_mut().enable();
            if let Some(found) = look(&self.state.lock()) {
                return found;
            }
            news.await;
        }
    }
}

impl State {
    pub(super) fn pools_of<'a>(
        &'a self,
        database: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Pool>> {
        let all = self.by_name.values();
        all.filter(move |pool| database.is_none_or(|name| pool.database == name))
    }

    /// Puts what operators want into force.
    fn turn_gates(&mut self, now: std::time::Duration) {
        let Self {
            book,
            actions,
            by_name,
            gates,
            ..
        } = self;
        for pool in by_name.values() {
            let gate = gates.of(&pool.database);
            if book.gate(pool.id) != Some(gate) {
                book.set_gate(now, pool.id, gate, actions);
            }
        }
    }

    fn is_shut(&self, pool: &Pool, until: Until) -> bool {
        let Some(view) = self.book.pool(pool.id) else {
            return true;
        };
        match until {
            Until::Empty => view.tally.total() == 0,
            Until::AtRest => view.tally.lent() == 0 || pool.is_kept(),
        }
    }
}

impl Pool {
    /// Whether its clients keep their server connections for their lives.
    fn is_kept(&self) -> bool {
        matches!(self.purpose, Purpose::Replication(_))
            || self.settings.read().mode == Mode::Session
    }
}
