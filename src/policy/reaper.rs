//! Which sessions of superseded deployments are closed, and why.
//!
//! Pure: it is shown sessions and says which of them are to leave. It never names a session of a deployment that is not
//! superseded, with one exception that has a reason of its own: under pressure, whoever has been idle inside a transaction for
//! longer than `pressure.idle_transaction`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::deployment::millis;
use crate::config::checked::Deployments;

/// How far the clock may be behind. Nobody is closed too early: at most this much too late.
const GRAIN: u64 = 100;

/// Under pressure: whoever has been idle for less is between two transactions, and not idle.
const PRESSED_IDLE: Duration = Duration::from_secs(1);

/// The same inside a transaction: applications think between two statements.
const PRESSED_TRANSACTION: Duration = Duration::from_secs(5);

/// A service that has closed nothing for a while may close this much of a second's worth at once.
const BURST: f64 = 0.5;

/// Why a session is closed. Each has one word: in log, metrics and on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Superseded, and idle.
    Stale,
    /// Superseded, and idle inside a transaction.
    StaleTransaction,
    /// The same as `Stale`, earlier than otherwise because others wait.
    PressureStale,
    /// The same as `StaleTransaction`, likewise.
    PressureStaleTransaction,
    /// Idle inside a transaction while others wait.
    PressureIdleTransaction,
    /// A connection past pgweir, superseded and idle, while others wait.
    PressureForeign,
    /// An operator said KILL STALE.
    KillStale,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Stale,
        Self::StaleTransaction,
        Self::PressureStale,
        Self::PressureStaleTransaction,
        Self::PressureIdleTransaction,
        Self::PressureForeign,
        Self::KillStale,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::StaleTransaction => "stale_transaction",
            Self::PressureStale => "pressure_stale",
            Self::PressureStaleTransaction => "pressure_stale_transaction",
            Self::PressureIdleTransaction => "pressure_idle_transaction",
            Self::PressureForeign => "pressure_foreign",
            Self::KillStale => "kill_stale",
        }
    }

    /// What it means, for the client.
    const fn explanation(self) -> &'static str {
        match self {
            Self::Stale => "The session was idle for longer than stale_grace and stale_idle allow.",
            Self::StaleTransaction => {
                "The session was idle inside a transaction for longer than stale_idle_transaction allows. The \
                 transaction was rolled back."
            }
            Self::PressureStale | Self::PressureForeign => {
                "The session was idle, and others needed its place or its server connection."
            }
            Self::PressureStaleTransaction | Self::PressureIdleTransaction => {
                "The session was idle inside a transaction and held a server connection that others waited for. The \
                 transaction was rolled back."
            }
            Self::KillStale => "An administrator closes what superseded deployments have left.",
        }
    }
}

/// What a session does, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Something: it is left alone.
    Busy,
    /// Nothing, outside a transaction.
    Idle,
    /// The same, and it holds a server connection: in session mode, or pinned.
    Holding,
    /// Nothing, inside a transaction.
    InTransaction,
}

/// A session, as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Its number.
    pub id: u32,
    /// Its service.
    pub service: &'a str,
    /// Since when its deployment is superseded, if it is.
    pub superseded: Option<u64>,
    /// When it joined its deployment.
    pub joined: u64,
    /// What it does.
    pub rest: Rest,
    /// Since when.
    pub since: u64,
}

impl Seen<'_> {
    /// Since when it is a leftover. One that logs in late has its grace, too: it may be the first of a rollback.
    fn stale_since(&self) -> Option<u64> {
        Some(self.superseded?.max(self.joined))
    }
}

/// Others wait for server connections, or Postgres has too few left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure<'a> {
    /// Only within this service, whose own cap is the obstacle.
    pub service: Option<&'a str>,
    /// How many connections are wanted.
    pub wanted: u32,
    /// Whoever is idle inside a transaction for this long is closed; zero = nobody but the superseded.
    pub idle_transaction: Duration,
}

/// A session that is to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its place among those shown.
    pub at: usize,
    /// Why.
    pub reason: Reason,
    /// It is only to be said, because of `dry_run`.
    pub dry_run: bool,
}

/// Chooses, and remembers how much it has closed lately.
#[derive(Debug, Default)]
pub struct Reaper {
    buckets: HashMap<Arc<str>, Bucket>,
    /// Of whom it was said already that they would be closed.
    told: HashSet<u32>,
}

/// Closings that a service may still have.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: u64,
}

impl Reaper {
    /// Those of `seen` that are to leave now. Those who hold a server connection go first, then whoever has rested longest.
    ///
    /// `rules` are those of a service. Every session of a superseded deployment must be among those seen.
    pub fn choose<'a>(
        &mut self,
        now: u64,
        pressures: &[Pressure<'_>],
        seen: &[Seen<'_>],
        rules: impl Fn(&str) -> &'a Deployments,
    ) -> Vec<Choice> {
        let mut due: Vec<_> = seen
            .iter()
            .enumerate()
            .filter_map(|(at, seen)| Some((at, is_due(now, seen, rules(seen.service))?)))
            .collect();
        for pressure in pressures {
            due.extend(self.under(now, *pressure, seen, &due, &rules));
        }
        due.sort_by_key(|(at, _)| (seen[*at].rest == Rest::Idle, seen[*at].since, seen[*at].id));
        let choices = due
            .into_iter()
            .filter_map(|(at, reason)| self.allow(now, at, reason, &seen[at], &rules))
            .collect();
        self.forget(now, seen);
        choices
    }

    /// Those who leave earlier because others wait: the mildest step that helps at all. What leaves anyway counts as help.
    fn under<'a>(
        &self,
        now: u64,
        pressure: Pressure<'_>,
        seen: &[Seen<'_>],
        due: &[(usize, Reason)],
        rules: &impl Fn(&str) -> &'a Deployments,
    ) -> Vec<(usize, Reason)> {
        let concerns = |seen: &Seen<'_>| pressure.service.is_none_or(|name| name == seen.service);
        let helps = due
            .iter()
            .filter(|(at, _)| seen[*at].rest != Rest::Idle && concerns(&seen[*at]));
        let wanted = (pressure.wanted as usize).saturating_sub(helps.count());
        for reason in [
            Reason::PressureStale,
            Reason::PressureStaleTransaction,
            Reason::PressureIdleTransaction,
        ] {
            let mut found: Vec<_> = seen
                .iter()
                .enumerate()
                .filter(|(at, seen)| {
                    !self.told.contains(&seen.id) && due.iter().all(|(other, _)| other != at)
                })
                .filter(|(_, seen)| concerns(seen))
                .filter(|(_, seen)| presses(now, reason, pressure, seen, rules(seen.service)))
                .map(|(at, _)| (at, reason))
                .collect();
            if found.is_empty() {
                continue;
            }
            found.sort_by_key(|(at, _)| (seen[*at].since, seen[*at].id));
            found.truncate(wanted);
            return found;
        }
        Vec::new()
    }

    fn allow<'a>(
        &mut self,
        now: u64,
        at: usize,
        reason: Reason,
        seen: &Seen<'_>,
        rules: &impl Fn(&str) -> &'a Deployments,
    ) -> Option<Choice> {
        let rules = rules(seen.service);
        if rules.dry_run {
            return self.told.insert(seen.id).then_some(Choice {
                at,
                reason,
                dry_run: true,
            });
        }
        self.take(now, seen.service, rules.close_per_second)
            .then_some(Choice {
                at,
                reason,
                dry_run: false,
            })
    }

    /// Whether one more connection of this service may be closed now that is no session of ours.
    pub fn may_close(&mut self, now: u64, service: &str, per_second: u32) -> bool {
        self.take(now, service, per_second)
    }

    /// Takes one of the closings that a service may have; 0 = as many as there are.
    fn take(&mut self, now: u64, service: &str, per_second: u32) -> bool {
        if per_second == 0 {
            return true;
        }
        let rate = f64::from(per_second);
        let most = (rate * BURST).max(1.0);
        if !self.buckets.contains_key(service) {
            let bucket = Bucket {
                tokens: most,
                filled: now,
            };
            self.buckets.insert(service.into(), bucket);
        }
        let Some(bucket) = self.buckets.get_mut(service) else {
            return false;
        };
        let passed = Duration::from_millis(now.saturating_sub(bucket.filled));
        bucket.tokens = (bucket.tokens + passed.as_secs_f64() * rate).min(most);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// Forgets who has gone, and buckets that are full again.
    fn forget(&mut self, now: u64, seen: &[Seen<'_>]) {
        /// By then a bucket is full at any rate.
        const FULL: u64 = 2_000;
        self.buckets
            .retain(|_, bucket| now.saturating_sub(bucket.filled) < FULL);
        if !self.told.is_empty() {
            let present: HashSet<_> = seen.iter().map(|seen| seen.id).collect();
            self.told.retain(|id| present.contains(id));
        }
    }
}

/// Whether a connection past pgweir, of a superseded deployment, has been idle for so long that it may be closed under pressure. Where
/// a setting says never, pressure changes nothing.
pub fn is_leftover(rested: Duration, rules: &Deployments) -> bool {
    limit(rules.stale_grace).is_some() && rested >= rules.stale_idle.max(PRESSED_IDLE)
}

/// Those that an operator's KILL STALE closes: all of superseded deployments that do nothing.
pub fn stale(seen: &[Seen<'_>]) -> Vec<Choice> {
    let is_stale = |seen: &Seen<'_>| seen.superseded.is_some() && seen.rest != Rest::Busy;
    let choices = seen.iter().enumerate();
    choices
        .filter(|(_, seen)| is_stale(seen))
        .map(|(at, _)| Choice {
            at,
            reason: Reason::KillStale,
            dry_run: false,
        })
        .collect()
}

/// The session of a superseded deployment of this service that makes room for a client, because the service has as many as it may:
/// the one that has been idle for longest.
pub fn room_for_one(seen: &[Seen<'_>], service: &str) -> Option<Choice> {
    let idle = seen.iter().enumerate().filter(|(_, seen)| {
        seen.service == service
            && seen.superseded.is_some()
            && matches!(seen.rest, Rest::Idle | Rest::Holding)
    });
    let (at, _) = idle.min_by_key(|(_, seen)| (seen.since, seen.id))?;
    Some(Choice {
        at,
        reason: Reason::PressureStale,
        dry_run: false,
    })
}

/// Whether a session has outlived its deployment for long enough.
fn is_due(now: u64, seen: &Seen<'_>, rules: &Deployments) -> Option<Reason> {
    let stale = seen.stale_since()?;
    match seen.rest {
        Rest::Busy => None,
        Rest::Idle | Rest::Holding => {
            let grace = limit(rules.stale_grace)?;
            (is_over(now, stale, grace) && is_over(now, seen.since, rules.stale_idle))
                .then_some(Reason::Stale)
        }
        Rest::InTransaction => {
            let patience = limit(rules.stale_idle_transaction)?;
            is_over(now, stale.max(seen.since), patience).then_some(Reason::StaleTransaction)
        }
    }
}

/// Whether a session is one that leaves for this reason. Where a setting says never, pressure changes nothing.
fn presses(
    now: u64,
    reason: Reason,
    pressure: Pressure,
    seen: &Seen<'_>,
    rules: &Deployments,
) -> bool {
    let rested = |patience: Duration| is_over(now, seen.since, patience);
    match (reason, seen.rest) {
        (Reason::PressureStale, Rest::Holding) => {
            seen.superseded.is_some()
                && limit(rules.stale_grace).is_some()
                && rested(rules.stale_idle.min(PRESSED_IDLE))
        }
        (Reason::PressureStaleTransaction, Rest::InTransaction) => {
            seen.superseded.is_some()
                && limit(rules.stale_idle_transaction)
                    .is_some_and(|patience| rested(patience.min(PRESSED_TRANSACTION)))
        }
        (Reason::PressureIdleTransaction, Rest::InTransaction) => {
            // A service that is full has its own cap to blame, and idle_transaction to set.
            pressure.service.is_none() && limit(pressure.idle_transaction).is_some_and(rested)
        }
        _ => false,
    }
}

/// Zero turns a limit off.
fn limit(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

fn is_over(now: u64, since: u64, limit: Duration) -> bool {
    now.saturating_sub(since) > millis(limit).saturating_add(GRAIN)
}

/// What is said of a session that is closed: to its client, in the log, on the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// Why.
    pub reason: Reason,
    /// Its service.
    pub service: String,
    /// Its deployment, if it has one.
    pub deployment: Option<String>,
    /// The deployment that supersedes it, if there is one.
    pub by: Option<Arc<str>>,
    /// Since when its deployment is superseded, if it is.
    pub since: Option<SystemTime>,
    /// How long it had rested.
    pub rested: Duration,
}

impl Sentence {
    /// What it means and what one may do, for the client.
    pub fn explanation(&self) -> &'static str {
        self.reason.explanation()
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            deployment,
            by,
            since,
            ..
        } = self;
        let Some(since) = since else {
            return write!(
                f,
                "idle in transaction for {} s while others wait for server connections (service \"{service}\")",
                self.rested.as_secs()
            );
        };
        let deployment = deployment.as_deref().unwrap_or_default();
        write!(
            f,
            "deployment \"{deployment}\" of service \"{service}\" was superseded"
        )?;
        if let Some(by) = by {
            write!(f, " by \"{by}\"")?;
        }
        let since = jiff::Timestamp::try_from(*since).unwrap_or_default();
        write!(f, " at {}", since.strftime("%Y-%m-%d %H:%M:%S UTC"))
    }
}

#[cfg(test)]
mod tests;
