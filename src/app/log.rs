//! Where log lines go, and in which shape.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::RwLock;
use tracing_subscriber::EnvFilter;

use crate::config::checked::{Log, LogFormat};

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Starts logging. `RUST_LOG` overrides the level. Only the first call has an effect; fails if the file cannot be opened.
pub fn start(log: &Log) -> io::Result<()> {
    let file = log.file.as_deref().map(open).transpose()?;
    let output: &'static Output = OUTPUT.get_or_init(|| Output {
        stderr: log.stderr,
        file: RwLock::new(file),
    });
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&log.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || output)
        .with_target(false);
    let started = match log.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    // A second start, as in tests, leaves the first in force.
    drop(started);
    Ok(())
}

/// Opens the file again: it may have been moved away, or be another one now. Without it lines go where they went.
pub fn reopen(log: &Log) {
    let Some(output) = OUTPUT.get() else {
        return;
    };
    match log.file.as_deref().map(open).transpose() {
        Ok(file) => *output.file.write() = file,
        Err(error) => tracing::error!("{error}: the log goes on in the old file"),
    }
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
}

/// Each call is one whole line, which one system call appends.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.file.read().as_ref() {
            // A full disk is no reason to keep the line from the other place.
            let _ = file.write_all(line);
        }
        if self.stderr {
            let _ = io::stderr().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
