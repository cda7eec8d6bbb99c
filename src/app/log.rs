//! Where log lines go, and in which shape.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::checked::{Log, LogFormat};

/// Puts another filter into force.
type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// A process has one log.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging to standard error. `RUST_LOG` overrides the level. Only the first call has an effect.
pub fn start(log: &Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&log.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(false).with_filter_reloading();
            let handle = lines.reload_handle();
            set_with(move |filter| handle.reload(filter).is_ok());
            lines.try_init()
        }
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            let handle = lines.reload_handle();
            set_with(move |filter| handle.reload(filter).is_ok());
            lines.try_init()
        }
    };
    // A second start, as in tests, leaves the first in force.
    drop(started);
}

fn set_with(set: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) {
    let set: SetFilter = Box::new(move |filter| {
        if !set(filter) {
            tracing::error!("the log's level could not be changed");
        }
    });
    // As above.
    drop(SET_FILTER.set(set));
}

/// Changes what is logged from now on.
pub fn set_level(level: &str) {
    if let Some(set) = SET_FILTER.get() {
        set(EnvFilter::new(level));
    }
}
