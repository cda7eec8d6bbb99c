//! What the status page knows by looking again and again: rates, and the last hour.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::feed;
use super::history::{History, Sample};
use super::printable;
use crate::app::serve::App;
use crate::metrics::{self, Times};
use crate::pool::book::PoolId;
use crate::pool::pools::Pool;

/// How often is looked.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// What a minute is, in milliseconds.
const MINUTE: u64 = 60_000;

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Watch {
    history: History<Arc<str>>,
    /// Of each pool, what it had done at the last look, and how fast it does it.
    pools: HashMap<PoolId, Pace>,
    looked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    transactions: u64,
    queries: u64,
    speed: Speed,
}

/// What is done in a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Speed {
    pub(super) transactions: f64,
    pub(super) queries: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            history: History::new(bounds()),
            pools: HashMap::new(),
            looked: None,
        }
    }
}

impl Watch {
    /// Looks at everything.
    pub(super) fn look(&mut self, app: &App) {
        let now = Instant::now();
        let passed = self.looked.replace(now).map(|before| now - before);
        let pools = app.pools.all();
        let mut waits = Times::default();
        for traffic in pools.iter().flat_map(|pool| pool.all_traffic()) {
            waits += Times::of(&traffic.wait_times, &traffic.wait_time);
        }
        self.pace(&pools, passed);
        let services = app.pools.services().into_iter();
        let services = services.map(|row| (row.name, row.tally, row.waiters));
        let (mut servers, mut waiters) = (Vec::new(), 0);
        for (name, tally, waiting) in services {
            servers.push((name, tally.total()));
            waiters += waiting;
        }
        let budgets = app.pools.hosts().into_iter().map(|host| host.budget);
        let (refusals, closings) = app.page.recent.totals();
        let sample = Sample {
            servers,
            // None of none is no budget either.
            budget: budgets.sum::<Option<u32>>().filter(|budget| *budget > 0),
            waiters,
            waits: waits.buckets.to_vec(),
            refusals,
            closings,
        };
        self.history.note(minute(), sample);
    }

    /// Forgets pools that are gone.
    fn pace(&mut self, pools: &[Arc<Pool>], passed: Option<Duration>) {
        let seconds = passed.map_or(0.0, |passed| passed.as_secs_f64());
        let before = std::mem::take(&mut self.pools);
        for pool in pools {
            let traffic = pool.all_traffic();
            let transactions = traffic.iter().map(|one| one.transactions.read()).sum();
            let queries = traffic.iter().map(|one| one.queries.read()).sum();
            // A pool that is new has done all of it since the last look.
            let known = before.get(&pool.id).copied().unwrap_or_default();
            let speed = Speed {
                transactions: per_second(known.transactions, transactions, seconds),
                queries: per_second(known.queries, queries, seconds),
            };
            let pace = Pace {
                transactions,
                queries,
                speed,
            };
            self.pools.insert(pool.id, pace);
        }
    }

    /// How fast a pool is.
    pub(super) fn speed(&self, pool: PoolId) -> Speed {
        self.pools
            .get(&pool)
            .map_or(Speed::default(), |pace| pace.speed)
    }

    /// How fast all of them are.
    pub(super) fn total_speed(&self) -> Speed {
        let speeds = self.pools.values().map(|pace| pace.speed);
        speeds.fold(Speed::default(), |sum, speed| Speed {
            transactions: sum.transactions + speed.transactions,
            queries: sum.queries + speed.queries,
        })
    }

    /// The last hour.
    pub(super) fn history(&self) -> feed::History {
        let last = minute();
        feed::History {
            start: (last + 1).saturating_sub(super::history::MINUTES as u64) * MINUTE,
            columns: self.history.columns(last, |name| printable::name(name)),
        }
    }
}

/// The minute of the wall's clock, so that the chart's minutes are those that people see there.
fn minute() -> u64 {
    super::milliseconds(SystemTime::now()) / MINUTE
}

/// Where the buckets of waits end, in milliseconds.
fn bounds() -> Vec<f64> {
    let micros = (0..).map_while(metrics::bound);
    micros
        .map(|micros| Duration::from_micros(micros).as_secs_f64() * 1000.0)
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a rate is no exact thing")]
fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    let rate = now.saturating_sub(before) as f64 / seconds;
    // A tenth is fine enough, and JSON has no infinity.
    if rate.is_finite() {
        (rate * 10.0).round() / 10.0
    } else {
        0.0
    }
}
