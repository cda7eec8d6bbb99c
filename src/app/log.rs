//! Where log lines go, in which shape, and which of them.

use std::fmt::Debug;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

use crate::config::checked::{Log, LogFormat};
use crate::pool::stats::Totals;
use crate::repeats;

/// Puts another filter into force.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// A process has one log.
static FILTER: OnceLock<Filter> = OnceLock::new();

struct Filter {
    set: SetFilter,
    /// The level, and whether the pooler's errors are told.
    now: Mutex<(String, bool)>,
}

/// Starts logging to standard error. `RUST_LOG` overrides the level. Only the first call has an effect.
pub fn start(log: &Log) {
    let level = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| log.level.clone());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&level, log.pooler_errors))
        .with_writer(std::io::stderr)
        .with_target(false);
    let (set, started): (SetFilter, _) = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(false).with_filter_reloading();
            let handle = lines.reload_handle();
            let set = move |filter| handle.reload(filter).is_ok();
            (Box::new(set), lines.try_init())
        }
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            let handle = lines.reload_handle();
            let set = move |filter| handle.reload(filter).is_ok();
            (Box::new(set), lines.try_init())
        }
    };
    // A second start, as in tests, leaves the first in force.
    if started.is_ok() {
        let now = Mutex::new((level, log.pooler_errors));
        let _ = FILTER.set(Filter { set, now });
    }
}

/// Follows the configuration from `old` to `new`. A level that was set otherwise stays if it is not among what has changed.
pub fn follow(old: &Log, new: &Log) {
    if old.level != new.level {
        set_level(&new.level);
    }
    change(|(_, pooler_errors)| *pooler_errors = new.pooler_errors);
}

/// Changes what is logged from now on.
pub fn set_level(level: &str) {
    change(|(now, _)| level.clone_into(now));
}

fn change(change: impl FnOnce(&mut (String, bool))) {
    let Some(Filter { set, now }) = FILTER.get() else {
        return;
    };
    let mut now = now.lock();
    let before = now.clone();
    change(&mut now);
    if *now != before && !set(filter(&now.0, now.1)) {
        tracing::error!("the log's level could not be changed");
    }
}

fn filter(level: &str, pooler_errors: bool) -> EnvFilter {
    let errors = if pooler_errors {
        ""
    } else {
        ",pooler_error=off"
    };
    EnvFilter::new(format!("{level}{errors}"))
}

/// Once a minute: how busy it was, in PgBouncer's words, and what was said again and again.
pub fn end_minute(averages: &Totals) {
    let Totals {
        transactions,
        queries,
        client_parses,
        server_parses,
        binds,
        received,
        sent,
        transaction_time,
        query_time,
        wait_time,
        ..
    } = averages;
    tracing::info!(
        "stats: {transactions} xacts/s, {queries} queries/s, {client_parses} client parses/s, {server_parses} server parses/s, \
         {binds} binds/s, in {received} B/s, out {sent} B/s, xact {transaction_time} us, query {query_time} us, \
         wait {wait_time} us"
    );
    for repeats::Repeated { what, cause, count } in repeats::end_period() {
        tracing::info!(count, cause, "again within the last minute: {what}");
    }
}

/// Lines that were counted instead of written.
pub fn suppressed() -> u64 {
    repeats::suppressed()
}

impl Debug for Filter {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Filter")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}
