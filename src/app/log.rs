//! Where log lines go, in which shape, and which of them.

mod pgbouncer;
mod syslog;

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::{Mutex, RwLock};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use self::syslog::Syslog;
use crate::config::checked::{Config, Log, LogFormat};
use crate::pool::stats::Totals;
use crate::repeats;

/// Puts another filter into force.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// A process has one log.
static FILTER: OnceLock<Filter> = OnceLock::new();

static OUTPUT: OnceLock<Output> = OnceLock::new();

struct Filter {
    set: SetFilter,
    /// The level, and whether the pooler's errors are told.
    now: Mutex<(String, bool)>,
}

/// Starts logging. `RUST_LOG` overrides the level. Only the first call has an effect; fails if the file cannot be opened.
pub fn start(config: &Config) -> io::Result<()> {
    let log = &config.log;
    let file = log.file.as_deref().map(open).transpose()?;
    let output: &'static Output = OUTPUT.get_or_init(|| Output {
        stderr: log.stderr,
        file: RwLock::new(file),
        syslog: RwLock::new(Syslog::of(log)),
    });
    let level = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| log.level.clone());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&level, log.pooler_errors))
        .with_writer(Lines(output))
        .with_target(false);
    let (set, started): (SetFilter, _) = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(false).with_filter_reloading();
            let handle = lines.reload_handle();
            let set = move |filter| handle.reload(filter).is_ok();
            (Box::new(set), lines.try_init())
        }
        LogFormat::PgBouncer => {
            let lines = lines.with_ansi(false).event_format(pgbouncer::Lines {
                port: config.listen.unix_port(),
            });
            let lines = lines.with_filter_reloading();
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
    Ok(())
}

/// Opens the file again: it may have been moved away, or be another one now. Without it lines go where they went.
fn reopen(log: &Log) {
    let Some(output) = OUTPUT.get() else {
        return;
    };
    match log.file.as_deref().map(open).transpose() {
        Ok(file) => *output.file.write() = file,
        Err(error) => tracing::error!("{error}: the log goes on in the old file"),
    }
    *output.syslog.write() = Syslog::of(log);
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| {
        let message = format!("log file {}: {error}", path.display());
        io::Error::new(error.kind(), message)
    })
}

/// Where lines go.
#[derive(Debug)]
struct Output {
    stderr: bool,
    file: RwLock<Option<File>>,
    syslog: RwLock<Option<Syslog>>,
}

/// Makes what one line is written to.
#[derive(Debug)]
struct Lines(&'static Output);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0, Level::INFO)
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        Line(self.0, *about.level())
    }
}

/// One line, and how important it is.
#[derive(Debug)]
struct Line(&'static Output, Level);

/// Each call is one whole line, which one system call appends.
impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self(output, level) = self;
        if let Some(file) = &mut output.file.read().as_ref() {
            // A full disk is no reason to keep the line from the other place.
            let _ = file.write_all(line);
        }
        if let Some(syslog) = &*output.syslog.read() {
            syslog.send(*level, line);
        }
        if output.stderr {
            let _ = io::stderr().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows the configuration from `old` to `new`, and opens the file again. A level that was set otherwise stays if it is not
/// among what has changed.
pub fn follow(old: &Log, new: &Log) {
    reopen(new);
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

/// Tells how busy it was, in PgBouncer's words.
pub fn tell_averages(averages: &Totals) {
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
}

/// Once a minute: what was said again and again.
pub fn end_minute() {
    let lost = syslog::lost();
    if lost > 0 {
        tracing::warn!(lost, "syslog did not take every line of the last minute");
    }
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
