//! Where log lines go, and in which shape.

use tracing_subscriber::EnvFilter;

use crate::config::checked::{Log, LogFormat};

/// Starts logging to standard error. `RUST_LOG` overrides the level. Only the first call has an effect.
pub fn start(log: &Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&log.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match log.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    // A second start, as in tests, leaves the first in force.
    drop(started);
}
