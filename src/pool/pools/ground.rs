//! What is known of each Postgres beside the book: what it has, what others hold, and what its refusals have taught.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::state::{State, put};
use super::{PoolSettings, Pools};
use crate::policy::budget::{Ceiling, Limits, automatic, beside_monitor};
use crate::pool::book::{HostId, ServerId, ServerView, Tally};
use crate::server::dial::{DialError, name};
use crate::server::facts::Facts;

/// Services that a refusal names.
const BIGGEST: usize = 3;

/// One Postgres.
#[derive(Debug)]
pub(super) struct Ground {
    id: HostId,
    /// Its hosts as written.
    name: String,
    /// The budget as configured; `None`: what Postgres leaves.
    configured: Option<u32>,
    headroom: u32,
    is_watched: bool,
    /// What the first connection was told.
    told: Option<u32>,
    /// What was measured last.
    measured: Option<Measured>,
    ceiling: Option<Ceiling>,
    refusals: u64,
    trouble: Option<Arc<str>>,
}

/// What was measured at one Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// What it has.
    pub limits: Limits,
    /// What is open, whoever's it is.
    pub open: u32,
    /// What of it is not pgweir's.
    pub others: u32,
}

/// What is known of one Postgres.
#[derive(Debug, Clone)]
pub struct GroundView {
    /// In the book.
    pub id: HostId,
    /// Its hosts as written.
    pub name: String,
    /// How many server connections pgweir may have there for its clients, as things stand; `None`: not known yet.
    pub budget: Option<u32>,
    /// Those it has, by state.
    pub tally: Tally,
    /// What was measured last.
    pub measured: Option<Measured>,
    /// Postgres refuses more with 53300 at the moment.
    pub is_full: bool,
    /// How often it has.
    pub refusals: u64,
    /// Why the last dial failed, if for another reason.
    pub trouble: Option<Arc<str>>,
}

impl GroundView {
    /// What ordinary users may still open there, reckoned from what is open of ours now and was of others.
    pub fn free(&self) -> Option<u32> {
        let measured = self.measured?;
        let open = measured.others + self.tally.total() + 1;
        Some(measured.limits.free(open))
    }
}

impl Ground {
    /// What pgweir may have for its clients, whatever Postgres' refusals say.
    fn allowed(&self) -> Option<u32> {
        let budget = match (self.configured, self.measured, self.told) {
            (Some(configured), ..) => Some(configured),
            (None, Some(measured), _) => {
                let ordinary = measured.limits.ordinary();
                Some(automatic(ordinary, measured.others, self.headroom))
            }
            (None, None, told) => told.map(|told| automatic(told, 0, self.headroom)),
        };
        budget.map(|budget| beside_monitor(budget, self.is_watched))
    }
}

impl State {
    /// The Postgres of these settings.
    pub(super) fn host(&mut self, settings: &PoolSettings) -> HostId {
        let hosts = settings.target.hosts.iter();
        let key = hosts.map(|host| name(host)).collect::<Vec<_>>().join(",");
        let Self {
            book,
            names,
            grounds,
            counts,
            ..
        } = self;
        if let Some(host) = names.hosts.get(&*key) {
            return *host;
        }
        let budget = settings.budget;
        let id = book.add_host(budget.map(|budget| beside_monitor(budget, settings.is_watched)));
        grounds.push(Ground {
            id,
            name: key.clone(),
            configured: settings.budget,
            headroom: settings.headroom,
            is_watched: settings.is_watched,
            told: None,
            measured: None,
            ceiling: None,
            refusals: 0,
            trouble: None,
        });
        put(counts, id.index(), Arc::default());
        names.hosts.insert(key.into(), id);
        id
    }

    /// Puts a budget as configured into force.
    pub(super) fn configure(&mut self, now: Duration, host: HostId, settings: &PoolSettings) {
        let ground = &mut self.grounds[host.index()];
        ground.configured = settings.budget;
        ground.headroom = settings.headroom;
        ground.is_watched = settings.is_watched;
        if ground.allowed().is_none() {
            // The next login asks Postgres.
            self.book.forget_budget(now, host, &mut self.actions);
        }
        self.apply(now, host);
    }

    /// Tells the book what it may have now.
    fn apply(&mut self, now: Duration, host: HostId) {
        let ground = &self.grounds[host.index()];
        let Some(allowed) = ground.allowed().or(ground.ceiling.map(|_| 1)) else {
            return;
        };
        let budget = Ceiling::over(ground.ceiling, allowed);
        if self.book.host(host).cap != Some(budget) {
            self.book.set_budget(now, host, budget, &mut self.actions);
        }
    }

    /// Postgres let one in. `limit`: what it says that ordinary users may have.
    pub(super) fn admitted(&mut self, now: Duration, host: HostId, limit: Option<u32>) {
        let have = self.book.host(host).tally.total();
        let ground = &mut self.grounds[host.index()];
        ground.trouble = None;
        if let Some(limit) = limit {
            ground.told = Some(limit);
            let budget = ground.allowed();
            tracing::info!(
                postgres = ground.name,
                limit,
                budget,
                "budget taken from Postgres"
            );
        }
        if let Some(ceiling) = ground.ceiling {
            ground.ceiling = ceiling.admitted(have, ground.allowed().unwrap_or(1));
            if ground.ceiling.is_none() {
                tracing::info!(postgres = ground.name, "Postgres takes connections again");
            }
        }
        self.apply(now, host);
    }

    /// Postgres has refused one with 53300: it has no more than we have. `pause`: until one more is tried, doubled by each
    /// further refusal.
    pub(super) fn refused(
        &mut self,
        now: Duration,
        host: HostId,
        server: ServerId,
        pause: Duration,
    ) {
        let have = self.book.host(host).tally.total().saturating_sub(1);
        let ground = &mut self.grounds[host.index()];
        let before = ground.ceiling;
        ground.ceiling = Some(Ceiling::refused(before, have, now, pause));
        ground.refusals += 1;
        ground.trouble = None;
        if before.is_none() {
            tracing::warn!(
                postgres = ground.name,
                have,
                "Postgres has no connection left (53300): its clients wait for what pgweir has"
            );
        }
        self.book.dial_found_full(now, server, &mut self.actions);
        self.apply(now, host);
    }

    /// A dial failed for another reason.
    pub(super) fn failed(&mut self, host: HostId, error: &DialError) {
        if error.is_passing() {
            self.grounds[host.index()].trouble = Some(error.to_string().into());
        }
    }

    /// Our connections at one Postgres that are logged in.
    fn backends_at(&self, host: HostId) -> impl Iterator<Item = (ServerView, &Facts)> {
        self.facts
            .iter()
            .flatten()
            .filter_map(move |(server, facts)| {
                let view = self.book.server(*server)?;
                let pool = self.pools[view.pool.index()].as_ref()?;
                (pool.host() == host).then_some((view, &**facts))
            })
    }

    /// Tries whether Postgres has room again, where it is time to.
    pub(super) fn try_again(&mut self, now: Duration) {
        for at in 0..self.grounds.len() {
            let host = self.grounds[at].id;
            let have = self.book.host(host).tally.total();
            let due = |ceiling: &&mut Ceiling| ceiling.is_due(have, now);
            let Some(ceiling) = self.grounds[at].ceiling.as_mut().filter(due) else {
                continue;
            };
            ceiling.raise(have);
            self.apply(now, host);
        }
    }
}

impl Pools {
    /// The Postgres of these settings, which may have no pool yet.
    pub fn ground(&self, settings: &PoolSettings) -> HostId {
        self.update(|state, _| state.host(settings))
    }

    /// What is known of each Postgres.
    pub fn grounds(&self) -> Vec<GroundView> {
        let state = self.state.lock();
        let view = |ground: &Ground| {
            let host = state.book.host(ground.id);
            GroundView {
                id: ground.id,
                name: ground.name.clone(),
                budget: host.cap.filter(|_| ground.allowed().is_some()),
                tally: host.tally,
                measured: ground.measured,
                is_full: ground.ceiling.is_some(),
                refusals: ground.refusals,
                trouble: ground.trouble.clone(),
            }
        };
        state.grounds.iter().map(view).collect()
    }

    /// Takes in what was measured at one Postgres.
    pub fn measured(&self, host: HostId, measured: Measured) {
        self.update(|state, now| {
            let ground = &mut state.grounds[host.index()];
            let before = ground.allowed();
            ground.measured = Some(measured);
            ground.trouble = None;
            if let Some(ceiling) = &mut ground.ceiling
                && measured.limits.free(measured.open) > 0
            {
                ceiling.has_room();
            }
            let budget = ground.allowed();
            if budget != before {
                tracing::info!(
                    postgres = ground.name,
                    budget,
                    max_connections = measured.limits.max_connections,
                    others = measured.others,
                    "budget follows Postgres"
                );
            }
            state.apply(now, host);
        });
    }

    /// Notes that one Postgres cannot be reached.
    pub fn in_trouble(&self, host: HostId, why: &str) {
        self.state.lock().grounds[host.index()].trouble = Some(why.into());
    }

    /// Whether the next connection to one Postgres should ask for its limit.
    pub(super) fn wants_limit(&self, host: HostId) -> bool {
        let state = self.state.lock();
        let ground = &state.grounds[host.index()];
        ground.configured.is_none() && ground.told.is_none() && ground.measured.is_none()
    }

    /// The process ids of our connections at one Postgres, and how many are being opened.
    pub fn backends(&self, host: HostId) -> (HashSet<u32>, u32) {
        let state = self.state.lock();
        let pids = state.backends_at(host).map(|(_, facts)| facts.pid);
        (pids.collect(), state.book.host(host).tally.dialing())
    }

    /// The port at our side of each of our connections at one Postgres, by process id; -1: a unix socket.
    pub fn local_ports(&self, host: HostId) -> HashMap<u32, i32> {
        let state = self.state.lock();
        let port = |facts: &Facts| facts.line.local.map_or(-1, |local| local.port().into());
        let all = state.backends_at(host);
        all.map(|(_, facts)| (facts.pid, port(facts))).collect()
    }

    /// The service on whose account each of our connections at one Postgres is, and the session that has it, by process id.
    pub fn users_of_backends(&self, host: HostId) -> HashMap<u32, (String, Option<u32>)> {
        let state = self.state.lock();
        let names = service_names(&state);
        let user = |(view, facts): (ServerView, &Facts)| {
            let name = names.get(view.service.index()).copied().flatten();
            let name = name.unwrap_or_default().to_owned();
            (facts.pid, (name, facts.client()))
        };
        state.backends_at(host).map(user).collect()
    }

    /// How many server connections each service has, on one Postgres or in all, the most first.
    pub fn holders(&self, host: Option<HostId>) -> Vec<(String, u32)> {
        let state = self.state.lock();
        let counts = state.names.services.iter().map(|(name, (service, _))| {
            let count = match host {
                Some(host) => state.book.service_on(host, *service),
                None => state.book.service(*service).tally.total(),
            };
            (name.to_string(), count)
        });
        let mut holders: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
        holders.sort_by(|(a, one), (b, other)| other.cmp(one).then_with(|| a.cmp(b)));
        holders
    }

    /// Who has the server connections of one Postgres, in words for those who got none.
    pub(super) fn shortage(&self, host: HostId) -> String {
        let holders = self.holders(Some(host));
        let state = self.state.lock();
        let ground = &state.grounds[host.index()];
        let have = state.book.host(host).tally.total();
        let mut text = match (&ground.ceiling, ground.measured) {
            (Some(_), Some(Measured { limits, others, .. })) => format!(
                "Postgres at {} has no connection left: max_connections is {}, {have} are pgweir's and {others} of others.",
                ground.name, limits.max_connections
            ),
            (Some(_), None) => format!(
                "Postgres at {} has no connection left; {have} are pgweir's.",
                ground.name
            ),
            (None, _) => match state.book.host(host).cap {
                Some(budget) => format!(
                    "Of the {budget} that pgweir may have at {}, {have} are open.",
                    ground.name
                ),
                None => format!("pgweir has {have} at {}.", ground.name),
            },
        };
        let most: Vec<_> = holders
            .iter()
            .take(BIGGEST)
            .map(|(service, count)| format!("{service} {count}"))
            .collect();
        if !most.is_empty() {
            text.push_str(" Most have: ");
            text.push_str(&most.join(", "));
            text.push('.');
        }
        text
    }
}

/// The names of services, by the index of their id.
fn service_names(state: &State) -> Vec<Option<&str>> {
    let services = &state.names.services;
    let mut names = vec![None; services.len()];
    for (name, (service, _)) in services {
        if let Some(place) = names.get_mut(service.index()) {
            *place = Some(&**name);
        }
    }
    names
}
