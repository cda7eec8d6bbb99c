//! Deployments in force: who is current, whom the reaper closes, and what it has closed.
//!
//! The choices are `policy`'s. Here the directory is looked over a few times a second, sessions are asked to leave, and what came
//! of it is kept. A session leaves by itself, and only if it still does what it was seen to do.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::serve::App;
use super::world::{World, kept_for_the_next};
use crate::client::directory::{Entry, Who};
use crate::client::patience::{Activity, Doing};
use crate::client::reaped::ReapedLog;
use crate::policy::budget::{Backend, Whose};
use crate::policy::deployment::{
    Count, DeploymentRow, Deployments, Measure, Memory, Promotion, Unknown,
};
use crate::policy::reaper::{
    Choice, Pressure, Reaper, Reason, Rest, Seen, Sentence, is_leftover, room_for_one, stale,
};
use crate::policy::service::Facts;
use crate::pool::book::Reach;

/// What is known of deployments, and of the sessions that were closed because of them.
#[derive(Debug)]
pub struct Reaping {
    life: Mutex<Deployments>,
    reaper: Mutex<Reaper>,
    /// What was closed.
    pub log: ReapedLog,
}

impl Reaping {
    /// With what an earlier process has left.
    pub fn after(memory: &Memory) -> Self {
        Self {
            life: Mutex::new(Deployments::after(0, memory)),
            reaper: Mutex::default(),
            log: ReapedLog::default(),
        }
    }

    /// What the next process is to know.
    pub(super) fn memory(&self) -> Memory {
        self.life.lock().memory()
    }
}

/// A connection past pgweir that is to be closed: of a deployment that is superseded, and idle.
pub(super) struct Leftover {
    /// It at Postgres.
    pub backend: Backend,
    /// Whose it is.
    pub who: Arc<Who>,
    /// Why it is closed.
    pub sentence: Arc<Sentence>,
    /// It is only to be said.
    pub dry_run: bool,
}

/// The sessions that matter, at one moment.
struct Survey {
    groups: Vec<Group>,
    /// Sessions of superseded deployments, and those idle in a transaction.
    sessions: Vec<Found>,
}

/// Sessions that agree in whose they are.
struct Group {
    who: Arc<Who>,
    measure: Measure,
    count: Count,
}

/// A session as it was seen.
struct Found {
    entry: Arc<Entry>,
    group: usize,
    joined: u64,
    doing: Doing,
}

impl Survey {
    fn seen(&self) -> Vec<Seen<'_>> {
        let seen = self.sessions.iter().map(|found| {
            let group = &self.groups[found.group];
            Seen {
                id: found.entry.id(),
                service: &group.who.service,
                superseded: group.measure.superseded,
                joined: found.joined,
                rest: match found.doing.activity {
                    Activity::Idle => Rest::Idle,
                    Activity::Holding => Rest::Holding,
                    Activity::InTransaction => Rest::InTransaction,
                    Activity::Waiting
                    | Activity::WaitingTold
                    | Activity::Active
                    | Activity::Streaming => Rest::Busy,
                },
                since: found.doing.since,
            }
        });
        seen.collect()
    }
}

impl App {
    /// Sees which deployments are current, and asks those sessions to leave that have outlived theirs. Called several times a
    /// second.
    pub(super) fn reap(&self) {
        let now = self.directory.now();
        let world = self.world();
        let survey = self.survey(now);
        let groups = survey.groups.iter().filter_map(|group| {
            let deployment = group.who.deployment.as_deref()?;
            Some((&*group.who.service, deployment, group.count))
        });
        let after = |service: &str| world.deployments_of(service).promote_after;
        let promotions = self.reaping.life.lock().observe(now, groups, after);
        promotions.iter().for_each(tell);

        let full = self.pools.full_services();
        let pressure = &world.config.pressure;
        let own = full.iter().map(|(service, waiters)| Pressure {
            service: Some(service),
            wanted: *waiters,
            idle_transaction: Duration::ZERO,
        });
        let wanted = self.watch.wanted();
        let everywhere = (wanted > 0).then_some(Pressure {
            service: None,
            wanted,
            idle_transaction: pressure.idle_transaction,
        });
        let pressures: Vec<_> = everywhere.into_iter().chain(own).collect();
        let rules = |service: &str| world.deployments_of(service);
        let seen = survey.seen();
        let choices = self
            .reaping
            .reaper
            .lock()
            .choose(now, &pressures, &seen, rules);
        // What is wanted is looked at less often than this is done.
        let frees = |choice: &&Choice| !choice.dry_run && seen[choice.at].rest != Rest::Idle;
        self.watch.helped(choices.iter().filter(frees).count());
        self.carry_out(now, &survey, &choices);
    }

    /// Which deployments there are, by service, the oldest first.
    pub fn deployment_rows(&self) -> Vec<DeploymentRow> {
        self.deployments_with(0)
    }

    /// Those of them that have sessions, which are few beside those that are remembered.
    pub(super) fn connected_deployments(&self) -> Vec<DeploymentRow> {
        self.deployments_with(1)
    }

    fn deployments_with(&self, sessions: u32) -> Vec<DeploymentRow> {
        let clock = Clock::new(self.directory.now());
        let life = self.reaping.life.lock();
        let all = life.iter();
        let mut rows: Vec<_> = all
            .flat_map(|(service, deployments)| {
                let rows = deployments.iter();
                let rows = rows.filter(move |deployment| deployment.sessions >= sessions);
                rows.map(|deployment| deployment.row(service, |at| clock.time(at)))
            })
            .collect();
        // Stable: within a service they stay in their order.
        rows.sort_by(|one, other| one.service.cmp(&other.service));
        rows
    }

    /// An operator says which deployment counts.
    pub fn promote_deployment(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        let now = self.directory.now();
        let promotion = self.reaping.life.lock().promote(now, service, deployment)?;
        tell(&promotion);
        Ok(())
    }

    /// An operator says that a deployment does not count any more.
    pub fn supersede_deployment(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        let now = self.directory.now();
        let mut life = self.reaping.life.lock();
        life.supersede(now, service, deployment)?;
        tracing::info!(service, deployment, "superseded by an administrator");
        Ok(())
    }

    /// Asks every session of superseded deployments to leave that does nothing, of one service or of all. Returns how many were
    /// asked.
    pub fn close_stale(&self, service: Option<&str>) -> usize {
        let now = self.directory.now();
        let survey = self.survey(now);
        let seen = survey.seen();
        let concerns = |choice: &Choice| service.is_none_or(|name| name == seen[choice.at].service);
        let choices: Vec<_> = stale(&seen).into_iter().filter(concerns).collect();
        self.carry_out(now, &survey, &choices);
        choices.len()
    }

    /// How many clients a service with that cap may have when this one comes. A part is kept for a deployment that is newer than
    /// the current one: without that it could not start while the old one has taken everything.
    pub(super) fn clients_for(&self, who: &Who, most: u32) -> u32 {
        match self.reach_of(who) {
            Reach::All => most,
            Reach::AllButKept => most - kept_for_the_next(most),
        }
    }

    /// The same for server connections, of which a session keeps one for its life.
    pub(super) fn reach_of(&self, who: &Who) -> Reach {
        let Some(deployment) = &who.deployment else {
            return Reach::All;
        };
        let life = self.reaping.life.lock();
        if life.is_new(&who.service, deployment) {
            Reach::All
        } else {
            Reach::AllButKept
        }
    }

    /// Asks one idle session of a superseded deployment of the same service to leave, so that this one can come. False if there is
    /// none.
    pub(super) fn make_room_for(&self, who: &Who) -> bool {
        let is_stale = |life: &Deployments| {
            who.deployment
                .as_deref()
                .is_some_and(|deployment| life.superseded(&who.service, deployment).is_some())
        };
        let life = self.reaping.life.lock();
        if is_stale(&life) || !life.has_leftovers(&who.service) {
            return false;
        }
        drop(life);
        let (now, world) = (self.directory.now(), self.world());
        if world.deployments_of(&who.service).dry_run {
            return false;
        }
        let survey = self.survey(now);
        let choice = room_for_one(&survey.seen(), &who.service);
        self.carry_out(now, &survey, choice.as_slice());
        choice.is_some()
    }

    /// Connections past pgweir that may be closed for those who wait: at most as many as they want. What comes from where another
    /// pgweir runs is left to that one.
    pub(super) fn foreign_leftovers(&self, backends: &[(Whose, Backend)]) -> Vec<Leftover> {
        let world = self.world();
        let wanted = self.watch.wanted();
        if !world.config.pressure.close_foreign || wanted == 0 {
            return Vec::new();
        }
        let siblings = backends
            .iter()
            .filter(|(whose, _)| *whose == Whose::Siblings);
        let siblings: HashSet<_> = siblings.map(|(_, sibling)| &sibling.address).collect();
        let idle = backends.iter().filter(|(whose, backend)| {
            *whose == Whose::Foreign
                && backend.state == "idle"
                && !siblings.contains(&backend.address)
        });
        let clock = Clock::new(self.directory.now());
        let life = self.reaping.life.lock();
        let leftover = |backend: &Backend| leftover(&world, &life, &clock, backend);
        let mut found: Vec<_> = idle.filter_map(|(_, backend)| leftover(backend)).collect();
        drop(life);
        found.sort_by_key(|leftover| Reverse(leftover.backend.unchanged));
        found.truncate(wanted as usize);
        let mut reaper = self.reaping.reaper.lock();
        found.retain(|leftover| {
            let service = &leftover.who.service;
            let most = world.deployments_of(service).close_per_second;
            leftover.dry_run || reaper.may_close(clock.now, service, most)
        });
        found
    }

    /// Looks over all sessions. A login may want what is known of deployments meanwhile: that is asked once for each group of sessions
    /// and not held, so that nobody waits while ten thousand are counted.
    fn survey(&self, now: u64) -> Survey {
        let world = self.world();
        let (mut groups, mut sessions) = (Vec::<Group>::new(), Vec::new());
        let mut known = HashMap::new();
        self.directory.for_each(|entry, joined| {
            let (who, doing) = (entry.who(), entry.doing());
            let group = *known.entry(Arc::as_ptr(&who)).or_insert_with(|| {
                let superseded = who
                    .deployment
                    .as_deref()
                    .and_then(|deployment| self.superseded_since(&who.service, deployment));
                groups.push(Group {
                    who: Arc::clone(&who),
                    measure: Measure {
                        promote_after: world.deployments_of(&who.service).promote_after,
                        superseded,
                    },
                    count: Count::default(),
                });
                groups.len() - 1
            });
            let Group { measure, count, .. } = &mut groups[group];
            count.add(joined, now, *measure);
            if measure.superseded.is_some() || doing.activity == Activity::InTransaction {
                let entry = Arc::clone(entry);
                sessions.push(Found {
                    entry,
                    group,
                    joined,
                    doing,
                });
            }
        });
        Survey { groups, sessions }
    }

    fn superseded_since(&self, service: &str, deployment: &str) -> Option<u64> {
        let life = self.reaping.life.lock();
        Some(life.superseded(service, deployment)?.since)
    }

    fn carry_out(&self, now: u64, survey: &Survey, choices: &[Choice]) {
        let clock = Clock::new(now);
        for choice in choices {
            let Found {
                entry,
                group,
                doing,
                ..
            } = &survey.sessions[choice.at];
            let who = &survey.groups[*group].who;
            let life = self.reaping.life.lock();
            let superseded = who
                .deployment
                .as_deref()
                .and_then(|deployment| life.superseded(&who.service, deployment));
            let sentence = Sentence {
                reason: choice.reason,
                service: who.service.clone(),
                deployment: who.deployment.as_deref().map(str::to_owned),
                by: superseded.and_then(|superseded| superseded.by.clone()),
                since: superseded.map(|superseded| clock.time(superseded.since)),
                rested: Duration::from_millis(now.saturating_sub(doing.since)),
            };
            drop(life);
            if choice.dry_run {
                self.reaping.log.note(entry, &Arc::new(sentence), true);
            } else {
                let (id, reason) = (entry.id(), choice.reason.as_str());
                self.watch.did(format!(
                    "asked session {id} to leave ({reason}): {sentence}"
                ));
                self.directory.condemn(entry, *doing, sentence);
            }
        }
    }
}

/// It as a leftover, if that is what it is.
fn leftover(
    world: &World,
    life: &Deployments,
    clock: &Clock,
    backend: &Backend,
) -> Option<Leftover> {
    let classified = world.classifier.classify(&Facts {
        user: &backend.user,
        database: &backend.database,
        application_name: &backend.application_name,
        address: backend.address.parse().ok(),
        certificate: None,
        deployment: None,
    });
    let (service, deployment) = (classified.service, classified.deployment?);
    let superseded = life.superseded(&service, &deployment)?;
    let rules = world.deployments_of(&service);
    let rested = Duration::from_secs(backend.unchanged?);
    if !is_leftover(rested, rules) {
        return None;
    }
    let sentence = Sentence {
        reason: Reason::PressureForeign,
        service: service.to_string(),
        deployment: Some(deployment.clone()),
        by: superseded.by.clone(),
        since: Some(clock.time(superseded.since)),
        rested,
    };
    let who = Who {
        user: backend.user.clone(),
        database: backend.database.clone(),
        service: service.to_string(),
        deployment: Some(deployment.into()),
        application_name: backend.application_name.clone(),
        ..Who::default()
    };
    Some(Leftover {
        backend: backend.clone(),
        who: Arc::new(who),
        sentence: Arc::new(sentence),
        dry_run: rules.dry_run,
    })
}

/// The directory's clock and the one on the wall.
struct Clock {
    now: u64,
    wall: SystemTime,
}

impl Clock {
    fn new(now: u64) -> Self {
        Self {
            now,
            wall: SystemTime::now(),
        }
    }

    fn time(&self, at: u64) -> SystemTime {
        self.wall - Duration::from_millis(self.now.saturating_sub(at))
    }
}

fn tell(promotion: &Promotion) {
    let Promotion {
        service,
        deployment,
        instead_of,
        again,
    } = promotion;
    let instead_of = instead_of.join(", ");
    if *again {
        tracing::info!(%service, %deployment, instead_of, "deployment is current again");
    } else {
        tracing::info!(%service, %deployment, instead_of, "deployment is current");
    }
}
