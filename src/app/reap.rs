//! Deployments in force: who is current, whom the reaper closes, and what it has closed.
//!
//! The choices are `policy`'s. Here the directory is looked over a few times a second, sessions are asked to leave, and what came
//! of it is kept. A session leaves by itself, and only if it still does what it was seen to do.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::serve::App;
use crate::client::directory::{Entry, Who};
use crate::client::patience::{Activity, Doing};
use crate::net::listen::Peer;
use crate::policy::deployment::{Count, Deployments, Measure, Promotion, Unknown};
use crate::policy::reaper::{Choice, Pressure, Reaper, Reason, Rest, Seen, Sentence, stale};

/// Closings that are remembered.
const MOST_REAPED: usize = 1000;

/// Services that are counted apart; the others are counted together.
const MOST_COUNTED: usize = 1000;

/// The account of those beyond [`MOST_COUNTED`].
const OTHERS: &str = "(others)";

/// What is known of deployments, and of the sessions that were closed because of them.
#[derive(Debug)]
pub struct Reaping {
    life: Mutex<Deployments>,
    reaper: Mutex<Reaper>,
    log: Mutex<VecDeque<Reaped>>,
    counts: Mutex<BTreeMap<(String, Reason), u64>>,
    /// How many connections Postgres has free, as last measured.
    headroom: AtomicU32,
}

/// One session that was closed, or would have been.
#[derive(Debug, Clone)]
pub struct Reaped {
    /// When.
    pub at: SystemTime,
    /// Its number.
    pub id: u32,
    /// Whose it was.
    pub who: Arc<Who>,
    /// Where it came from.
    pub peer: Peer,
    /// Why.
    pub sentence: Arc<Sentence>,
    /// It was only said, because of `dry_run`.
    pub dry_run: bool,
}

/// One deployment, as a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRow {
    /// Its service.
    pub service: Arc<str>,
    /// Its name.
    pub deployment: Arc<str>,
    /// `new`, `current`, `superseded` or `gone`.
    pub state: &'static str,
    /// How many sessions it has.
    pub sessions: u32,
    /// When it was first seen.
    pub first_seen: SystemTime,
    /// When it last had a session.
    pub last_seen: SystemTime,
    /// Who superseded it, if it is.
    pub superseded_by: Option<Arc<str>>,
    /// And when.
    pub superseded_at: Option<SystemTime>,
}

impl Default for Reaping {
    fn default() -> Self {
        Self {
            life: Mutex::new(Deployments::new(0)),
            reaper: Mutex::default(),
            log: Mutex::default(),
            counts: Mutex::default(),
            headroom: AtomicU32::new(u32::MAX),
        }
    }
}

impl Reaping {
    /// How many connections Postgres has free, as whoever watches it has measured: below `pressure.min_headroom` the reaper loses
    /// patience. `None`: not known.
    pub fn set_headroom(&self, free: Option<u32>) {
        self.headroom
            .store(free.unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The sessions that were closed lately, or would have been, the last one last.
    pub fn log(&self) -> Vec<Reaped> {
        self.log.lock().iter().cloned().collect()
    }

    /// How many sessions were closed, by service and reason.
    pub fn counts(&self) -> BTreeMap<(String, Reason), u64> {
        self.counts.lock().clone()
    }

    /// Notes that a session was closed, or that it would have been.
    pub(super) fn reaped(&self, entry: &Entry, sentence: &Arc<Sentence>, dry_run: bool) {
        let who = entry.who();
        let mut log = self.log.lock();
        if log.len() >= MOST_REAPED {
            log.pop_front();
        }
        log.push_back(Reaped {
            at: SystemTime::now(),
            id: entry.id(),
            who: Arc::clone(&who),
            peer: entry.peer,
            sentence: Arc::clone(sentence),
            dry_run,
        });
        drop(log);
        if dry_run {
            tracing::info!(
                id = entry.id(), user = who.user, database = who.database, service = who.service,
                deployment = who.deployment.as_deref(), peer = %entry.peer, reason = sentence.reason.as_str(),
                "would be closed, but for dry_run: {sentence}"
            );
            return;
        }
        let mut counts = self.counts.lock();
        let key = (who.service.clone(), sentence.reason);
        let full = counts.len() >= MOST_COUNTED && !counts.contains_key(&key);
        let key = if full {
            (OTHERS.to_owned(), sentence.reason)
        } else {
            key
        };
        *counts.entry(key).or_default() += 1;
    }
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
                joined: found.entry.joined(),
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
        let wanted = self.wanted();
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
        self.carry_out(now, &survey, &choices);
    }

    /// Which deployments there are, by service, the oldest first.
    pub fn deployments(&self) -> Vec<DeploymentRow> {
        let clock = Clock::new(self.directory.now());
        let life = self.reaping.life.lock();
        let mut rows: Vec<_> = life
            .iter()
            .flat_map(|(service, deployments)| {
                deployments.iter().map(|deployment| {
                    let superseded = deployment.superseded();
                    DeploymentRow {
                        service: Arc::clone(service),
                        deployment: Arc::clone(&deployment.name),
                        state: deployment.word(),
                        sessions: deployment.sessions,
                        first_seen: clock.time(deployment.first),
                        last_seen: clock.time(deployment.last),
                        superseded_by: superseded.and_then(|superseded| superseded.by.clone()),
                        superseded_at: superseded.map(|superseded| clock.time(superseded.since)),
                    }
                })
            })
            .collect();
        // Stable: within a service they stay in their order.
        rows.sort_by(|one, other| one.service.cmp(&other.service));
        rows
    }

    /// An operator says which deployment counts.
    pub fn promote(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        let now = self.directory.now();
        let promotion = self.reaping.life.lock().promote(now, service, deployment)?;
        tell(&promotion);
        Ok(())
    }

    /// An operator says that a deployment does not count any more.
    pub fn supersede(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        let now = self.directory.now();
        let mut life = self.reaping.life.lock();
        life.supersede(now, service, deployment)?;
        tracing::info!(service, deployment, "superseded by an administrator");
        Ok(())
    }

    /// Asks every session of superseded deployments to leave that does nothing, of one service or of all. Returns how many were
    /// asked.
    pub fn kill_stale(&self, service: Option<&str>) -> usize {
        let now = self.directory.now();
        let survey = self.survey(now);
        let seen = survey.seen();
        let concerns = |choice: &Choice| service.is_none_or(|name| name == seen[choice.at].service);
        let choices: Vec<_> = stale(&seen).into_iter().filter(concerns).collect();
        self.carry_out(now, &survey, &choices);
        choices.len()
    }

    fn survey(&self, now: u64) -> Survey {
        let world = self.world();
        let life = self.reaping.life.lock();
        let (mut groups, mut sessions) = (Vec::<Group>::new(), Vec::new());
        let mut known = HashMap::new();
        self.directory.for_each(|entry| {
            let (who, doing) = (entry.who(), entry.doing());
            let group = *known.entry(Arc::as_ptr(&who)).or_insert_with(|| {
                let superseded = who
                    .deployment
                    .as_deref()
                    .and_then(|deployment| life.superseded(&who.service, deployment));
                groups.push(Group {
                    who: Arc::clone(&who),
                    measure: Measure {
                        promote_after: world.deployments_of(&who.service).promote_after,
                        superseded: superseded.map(|superseded| superseded.since),
                    },
                    count: Count::default(),
                });
                groups.len() - 1
            });
            let Group { measure, count, .. } = &mut groups[group];
            count.add(entry.joined(), now, *measure);
            if measure.superseded.is_some() || doing.activity == Activity::InTransaction {
                let entry = Arc::clone(entry);
                sessions.push(Found {
                    entry,
                    group,
                    doing,
                });
            }
        });
        Survey { groups, sessions }
    }

    /// How many server connections are wanted that cannot be had.
    fn wanted(&self) -> u32 {
        let world = self.world();
        let pressure = &world.config.pressure;
        let starved = match pressure.waiters_for {
            Duration::ZERO => 0,
            long => self.pools.starved(long),
        };
        let free = self.reaping.headroom.load(Ordering::Relaxed);
        starved.max(pressure.min_headroom.saturating_sub(free))
    }

    fn carry_out(&self, now: u64, survey: &Survey, choices: &[Choice]) {
        let clock = Clock::new(now);
        for choice in choices {
            let Found {
                entry,
                group,
                doing,
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
                self.reaping.reaped(entry, &Arc::new(sentence), true);
            } else {
                self.directory.condemn(entry, *doing, sentence);
            }
        }
    }
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
