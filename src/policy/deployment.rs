//! The life of deployments: which one of a service is current, which are superseded, by whom and since when.
//!
//! Pure: it is shown, a few times a second, how many sessions each deployment has and how long they have lived. Times are
//! milliseconds of one clock. What it remembers is bounded, whatever names clients make up.
//!
//! The rules, which are the operator's safety net and so are few:
//!
//! * Deployments of a service are ranked by their first login. One that goes and comes back keeps its rank.
//! * A new one becomes current as soon as one of its sessions has lived for `promote_after`: a crash loop never gets there.
//!   Those ranked before it are superseded then; newer ones stay new.
//! * If the current one has no sessions left, a superseded one that has logged in *since it was superseded*, and whose session
//!   has lived for `promote_after`, is current again: a rollback. It takes its rank behind the one that it follows.
//! * What logged in within `promote_after` of the process' start has no order that anybody knows: after a restart everybody comes
//!   back at once. Those supersede each other not, and may all be current.
//! * What a process remembers of the one before it is the order alone. Nobody is superseded by one that has not lived since: who
//!   has gone meanwhile may have been rolled back, and who comes back late finds its place.
//! * An operator's word (`promote`, `supersede`) holds until a newer deployment has lived.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// How exactly it is known when a session joined.
const GRAIN: u64 = 100;

/// Deployments without a session that a service is remembered by, beside its current ones. Many more than anybody rolls back.
const MOST_REMEMBERED: usize = 64;

/// Services without a session whose deployments are remembered.
const MOST_SERVICES: usize = 1000;

/// All deployments of all services, as far as they are remembered.
#[derive(Debug)]
pub struct Deployments {
    /// When the process began.
    start: u64,
    /// The company of those that come right after it.
    company: u32,
    services: HashMap<Arc<str>, Service>,
}

/// The deployments of one service, the oldest first.
#[derive(Debug, Default)]
struct Service {
    ranked: Vec<Deployment>,
    /// When it last had a session of any of them.
    seen: u64,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its name.
    pub name: Arc<str>,
    /// What it is to its service.
    pub standing: Standing,
    /// When it was first seen.
    pub first: u64,
    /// When it last had a session.
    pub last: u64,
    /// How many it has.
    pub sessions: u32,
    /// With whom it came when a process started, as a number that no other start has; [`ALONE`]: its place is known.
    company: u32,
    /// An earlier process knew it.
    is_remembered: bool,
}

/// A deployment that came by itself.
const ALONE: u32 = 0;

/// A deployment, as the next process hears of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its name.
    pub name: String,
    /// Those of one number have no order among them; 0: it has its place.
    pub company: u32,
}

/// What one process leaves to the next: the deployments of each service, the oldest first.
pub type Memory = BTreeMap<String, Vec<Remembered>>;

/// What a deployment is to its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// None of its sessions has lived long enough.
    New,
    /// The one that counts, since then.
    Current(u64),
    /// Another one counts.
    Superseded(Superseded),
}

/// How a deployment was superseded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superseded {
    /// By whom; `None`: an operator said so, and no other was current.
    pub by: Option<Arc<str>>,
    /// When.
    pub since: u64,
    /// An operator said that this one does not count.
    by_operator: bool,
}

impl Deployment {
    /// The word for it on the console and in metrics.
    pub fn word(&self) -> &'static str {
        match self.standing {
            _ if self.sessions == 0 => "gone",
            Standing::New => "new",
            Standing::Current(_) => "current",
            Standing::Superseded(_) => "superseded",
        }
    }

    /// It as a row; `time` reads the clock on the wall.
    pub fn row(&self, service: &Arc<str>, time: impl Fn(u64) -> SystemTime) -> DeploymentRow {
        let superseded = self.superseded();
        DeploymentRow {
            service: Arc::clone(service),
            deployment: Arc::clone(&self.name),
            state: self.word(),
            since: time(match &self.standing {
                Standing::New => self.first,
                Standing::Current(since) => *since,
                Standing::Superseded(superseded) => superseded.since,
            }),
            sessions: self.sessions,
            first_seen: time(self.first),
            last_seen: time(self.last),
            superseded_by: superseded.and_then(|superseded| superseded.by.clone()),
            superseded_at: superseded.map(|superseded| time(superseded.since)),
        }
    }

    fn is_current(&self) -> bool {
        matches!(self.standing, Standing::Current(_))
    }

    /// How it was superseded, if it was.
    pub fn superseded(&self) -> Option<&Superseded> {
        match &self.standing {
            Standing::Superseded(superseded) => Some(superseded),
            Standing::New | Standing::Current(_) => None,
        }
    }
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
    /// Since when it has been new, current or superseded.
    pub since: SystemTime,
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

/// What sessions of a deployment are measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    /// How long a session must live before its deployment counts.
    pub promote_after: Duration,
    /// Since when the deployment is superseded, if it is.
    pub superseded: Option<u64>,
}

/// What is seen of a deployment's sessions at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many there are.
    sessions: u32,
    /// How many have lived for `promote_after`.
    lived: u32,
    /// How many of these have logged in since the deployment was superseded.
    returned: u32,
    /// When the first of them logged in.
    first: u64,
}

impl Count {
    /// Counts a session that joined its deployment at that time.
    pub fn add(&mut self, joined: u64, now: u64, measure: Measure) {
        self.first = match self.sessions {
            0 => joined,
            _ => self.first.min(joined),
        };
        self.sessions += 1;
        if now.saturating_sub(joined) >= millis(measure.promote_after) {
            self.lived += 1;
            self.returned += u32::from(
                measure
                    .superseded
                    .is_some_and(|since| joined + GRAIN >= since),
            );
        }
    }

    /// Both together.
    fn merge(&mut self, other: Self) {
        self.first = match self.sessions {
            0 => other.first,
            _ => self.first.min(other.first),
        };
        self.sessions += other.sessions;
        self.lived += other.lived;
        self.returned += other.returned;
    }
}

/// A deployment became current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// Of this service.
    pub service: Arc<str>,
    /// This one.
    pub deployment: Arc<str>,
    /// In place of these, which had sessions.
    pub instead_of: Vec<Arc<str>>,
    /// It was so before: a rollback.
    pub again: bool,
}

/// An operator named what there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No deployment of such a service was seen.
    #[error("no deployment of this service is known")]
    Service,
    /// Others were.
    #[error("this deployment of the service is not known")]
    Deployment,
}

impl Deployments {
    /// None yet.
    pub fn new(start: u64) -> Self {
        Self::after(start, &Memory::new())
    }

    /// Those that an earlier process knew, in their order. None of them counts before it has lived here.
    pub fn after(start: u64, memory: &Memory) -> Self {
        let deployment = |remembered: &Remembered| Deployment {
            name: remembered.name.as_str().into(),
            standing: Standing::New,
            first: start,
            last: start,
            sessions: 0,
            company: remembered.company,
            is_remembered: true,
        };
        let service = |remembered: &Vec<Remembered>| Service {
            ranked: remembered.iter().map(deployment).collect(),
            seen: start,
        };
        let all = memory.values().flatten();
        Self {
            start,
            company: all.map(|known| known.company).max().unwrap_or(ALONE) + 1,
            services: memory
                .iter()
                .map(|(name, remembered)| (name.as_str().into(), service(remembered)))
                .collect(),
        }
    }

    /// What the next process is to know: who comes after whom. Crash loops are forgotten.
    pub fn memory(&self) -> Memory {
        let services = self.services.iter();
        let services = services.map(|(name, service)| (name.to_string(), service.memory()));
        services.filter(|(_, known)| !known.is_empty()).collect()
    }

    /// How a deployment was superseded, if it was.
    pub fn superseded(&self, service: &str, deployment: &str) -> Option<&Superseded> {
        self.find(service, deployment)?.superseded()
    }

    /// Whether a deployment is new: none of its service's was seen to live after it.
    pub fn is_new(&self, service: &str, deployment: &str) -> bool {
        self.find(service, deployment)
            .is_none_or(|found| found.standing == Standing::New)
    }

    /// Whether superseded deployments of a service have sessions.
    pub fn has_leftovers(&self, service: &str) -> bool {
        let has = |known: &Deployment| known.sessions > 0 && known.superseded().is_some();
        self.services
            .get(service)
            .is_some_and(|service| service.ranked.iter().any(has))
    }

    /// All that is remembered, by service, the oldest deployment first.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &[Deployment])> {
        self.services
            .iter()
            .map(|(name, service)| (name, &service.ranked[..]))
    }

    /// Looks at what there is now. `promote_after` is looked up by service.
    pub fn observe<'a>(
        &mut self,
        now: u64,
        seen: impl IntoIterator<Item = (&'a str, &'a str, Count)>,
        promote_after: impl Fn(&str) -> Duration,
    ) -> Vec<Promotion> {
        let mut counts: HashMap<&str, HashMap<&str, Count>> = HashMap::new();
        for (service, deployment, count) in seen {
            let deployments = counts.entry(service).or_default();
            deployments.entry(deployment).or_default().merge(count);
        }
        for service in counts.keys() {
            if !self.services.contains_key(*service) {
                self.services.insert((*service).into(), Service::default());
            }
        }
        let mut promotions = Vec::new();
        for (name, service) in &mut self.services {
            let nobody = HashMap::new();
            let counts = counts.get(&**name).unwrap_or(&nobody);
            let early = now <= self.start.saturating_add(millis(promote_after(name)));
            service.count(now, counts, if early { self.company } else { ALONE });
            promotions.extend(service.promote(now, name, counts));
            service.forget();
        }
        self.forget();
        promotions
    }

    /// An operator says which one counts: every other one is superseded by it.
    pub fn promote(
        &mut self,
        now: u64,
        service: &str,
        deployment: &str,
    ) -> Result<Promotion, Unknown> {
        let (name, service) = self.service(service)?;
        let at = service.place(deployment).ok_or(Unknown::Deployment)?;
        let promoted = service.ranked.remove(at);
        service.ranked.push(promoted);
        for deployment in &mut service.ranked {
            deployment.company = ALONE;
        }
        let at = service.ranked.len() - 1;
        Ok(service.crown(now, &name, at))
    }

    /// An operator says that one does not count any more.
    pub fn supersede(&mut self, now: u64, service: &str, deployment: &str) -> Result<(), Unknown> {
        let (_, service) = self.service(service)?;
        let at = service.place(deployment).ok_or(Unknown::Deployment)?;
        let other = |other: &&Deployment| other.is_current() && *other.name != *deployment;
        let by = service
            .ranked
            .iter()
            .rfind(other)
            .map(|other| other.name.clone());
        let mut deployment = service.ranked.remove(at);
        deployment.standing = Standing::Superseded(Superseded {
            by,
            since: now,
            by_operator: true,
        });
        // Whoever counts beside it is the newer one from now on.
        let current = service.ranked.iter().position(Deployment::is_current);
        let at = current.map_or(at, |current| current.min(at));
        service.ranked.insert(at, deployment);
        Ok(())
    }

    fn service(&mut self, name: &str) -> Result<(Arc<str>, &mut Service), Unknown> {
        let (name, _) = self.services.get_key_value(name).ok_or(Unknown::Service)?;
        let name = Arc::clone(name);
        let service = self.services.get_mut(&name).ok_or(Unknown::Service)?;
        Ok((name, service))
    }

    fn find(&self, service: &str, deployment: &str) -> Option<&Deployment> {
        let service = self.services.get(service)?;
        Some(&service.ranked[service.place(deployment)?])
    }

    /// Keeps those services that had sessions last.
    fn forget(&mut self) {
        let has_sessions = |service: &Service| {
            service
                .ranked
                .iter()
                .any(|deployment| deployment.sessions > 0)
        };
        let mut unseen: Vec<_> = self
            .services
            .iter()
            .filter(|(_, service)| !has_sessions(service))
            .map(|(name, service)| (service.seen, Arc::clone(name)))
            .collect();
        if unseen.len() <= MOST_SERVICES {
            return;
        }
        unseen.sort_unstable();
        for (_, name) in &unseen[..unseen.len() - MOST_SERVICES] {
            self.services.remove(name);
        }
    }
}

impl Service {
    fn place(&self, deployment: &str) -> Option<usize> {
        self.ranked
            .iter()
            .position(|known| *known.name == *deployment)
    }

    fn memory(&self) -> Vec<Remembered> {
        let counts = |known: &&Deployment| {
            known.standing != Standing::New || known.sessions > 0 || known.is_remembered
        };
        let known = self.ranked.iter().filter(counts);
        let remembered = known.map(|known| Remembered {
            name: known.name.to_string(),
            company: known.company,
        });
        remembered.collect()
    }

    /// Notes how many sessions there are of each. `company`: that of whoever is seen for the first time.
    fn count(&mut self, now: u64, counts: &HashMap<&str, Count>, company: u32) {
        for deployment in &mut self.ranked {
            deployment.sessions = counts
                .get(&*deployment.name)
                .map_or(0, |count| count.sessions);
            if deployment.sessions > 0 {
                deployment.last = now;
                self.seen = now;
            }
        }
        let mut unknown: Vec<_> = counts
            .iter()
            .filter(|(name, _)| self.place(name).is_none())
            .collect();
        unknown.sort_unstable_by_key(|(name, count)| (count.first, **name));
        for (name, count) in unknown {
            self.seen = now;
            self.ranked.push(Deployment {
                name: (*name).into(),
                standing: Standing::New,
                first: count.first,
                last: now,
                sessions: count.sessions,
                company,
                is_remembered: false,
            });
        }
    }

    /// Finds out who has become current.
    fn promote(
        &mut self,
        now: u64,
        name: &Arc<str>,
        counts: &HashMap<&str, Count>,
    ) -> Vec<Promotion> {
        let count =
            |deployment: &Deployment| counts.get(&*deployment.name).copied().unwrap_or_default();
        let lived = |deployment: &Deployment| {
            deployment.standing == Standing::New && count(deployment).lived > 0
        };
        // The newest one first: it supersedes those before.
        let living: Vec<_> = (0..self.ranked.len())
            .rev()
            .filter(|at| lived(&self.ranked[*at]))
            .collect();
        if !living.is_empty() {
            let crown = |at: usize| {
                let is_new = self.ranked[at].standing == Standing::New;
                is_new.then(|| self.crown(now, name, at))
            };
            return living.into_iter().filter_map(crown).collect();
        }
        let mut current = self.ranked.iter().filter(|known| known.is_current());
        if current.clone().any(|known| known.sessions > 0) {
            return Vec::new();
        }
        let nobody = current.next().is_none();
        // How many of its sessions say that it counts after all.
        let votes = |deployment: &Deployment| {
            let superseded = deployment.superseded()?;
            let votes = count(deployment);
            let votes = if nobody && !superseded.by_operator {
                votes.lived
            } else {
                votes.returned
            };
            (votes > 0).then_some(votes)
        };
        let best = (0..self.ranked.len())
            .filter_map(|at| Some((votes(&self.ranked[at])?, at)))
            .max();
        let Some((_, at)) = best else {
            return Vec::new();
        };
        let at = self.move_behind_current(at);
        vec![self.crown(now, name, at)]
    }

    /// One that counts again is newer than the one that it follows, but not newer than what has come since.
    fn move_behind_current(&mut self, at: usize) -> usize {
        let place = self
            .ranked
            .iter()
            .rposition(|known| known.is_current() || known.superseded().is_some());
        let place = place.unwrap_or(at).max(at);
        let mut deployment = self.ranked.remove(at);
        deployment.company = ALONE;
        self.ranked.insert(place, deployment);
        place
    }

    /// Makes one current, and supersedes those that it is newer than.
    fn crown(&mut self, now: u64, service: &Arc<str>, at: usize) -> Promotion {
        let Deployment { name, company, .. } = self.ranked[at].clone();
        let mut instead_of = Vec::new();
        for older in &mut self.ranked[..at] {
            if older.superseded().is_some() || (company != ALONE && older.company == company) {
                continue;
            }
            if older.sessions > 0 {
                instead_of.push(Arc::clone(&older.name));
            }
            older.standing = Standing::Superseded(Superseded {
                by: Some(Arc::clone(&name)),
                since: now,
                by_operator: false,
            });
        }
        let before = std::mem::replace(&mut self.ranked[at].standing, Standing::Current(now));
        Promotion {
            service: Arc::clone(service),
            deployment: name,
            instead_of,
            again: before != Standing::New,
        }
    }

    /// Forgets those that have been gone for longest.
    fn forget(&mut self) {
        let gone = self.ranked.iter().enumerate();
        let gone = gone.filter(|(_, known)| known.sessions == 0 && !known.is_current());
        let mut gone: Vec<_> = gone.map(|(at, known)| (known.last, at)).collect();
        if gone.len() <= MOST_REMEMBERED {
            return;
        }
        gone.sort_unstable();
        gone.truncate(gone.len() - MOST_REMEMBERED);
        let mut places: Vec<_> = gone.into_iter().map(|(_, at)| at).collect();
        places.sort_unstable();
        for at in places.into_iter().rev() {
            self.ranked.remove(at);
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
