//! `pgweir incident`: reads what was recorded, also when no pgweir runs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::{self, Mistakes};
use crate::incident::export::{markdown, span, story};
use crate::incident::store::{StoreError, list, read};
use crate::incident::{Incident, time};

/// What is wanted.
#[derive(Debug, Subcommand)]
pub enum What {
    /// One line for each, the newest first.
    List,
    /// What happened, in its order.
    Show {
        /// Its number.
        number: u64,
    },
    /// The skeleton of a post-mortem, as Markdown.
    Export {
        /// Its number.
        number: u64,
    },
}

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum IncidentError {
    /// The configuration cannot be read.
    #[error("{0}")]
    Config(#[from] Mistakes),
    /// It keeps incidents in memory.
    #[error(
        "{0}: incidents.directory is not set, so incidents are in the memory of the process alone: SHOW INCIDENTS on its console"
    )]
    InMemory(String),
    /// The directory cannot be read, or has no such incident.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The file has lost its beginning.
    #[error("incident {0} cannot be read: its file does not begin with its beginning")]
    Broken(u64),
}

/// Where this configuration keeps incidents.
pub fn directory(file: &Path) -> Result<PathBuf, IncidentError> {
    let config = config::load(file)?;
    let directory = config.incidents.directory;
    directory.ok_or_else(|| IncidentError::InMemory(file.display().to_string()))
}

/// The text.
pub fn tell(directory: &Path, what: &What) -> Result<String, IncidentError> {
    match what {
        What::List => lines(directory),
        What::Show { number } => {
            let incident = read(directory, *number)?;
            incident.summary().ok_or(IncidentError::Broken(*number))?;
            Ok(told(&incident))
        }
        What::Export { number } => {
            let incident = read(directory, *number)?;
            markdown(&incident).ok_or(IncidentError::Broken(*number))
        }
    }
}

fn lines(directory: &Path) -> Result<String, IncidentError> {
    let mut out = String::new();
    for summary in list(directory)? {
        let lasted = match summary.closed {
            Some(closed) => span((closed - summary.opened).max(0).unsigned_abs() / 1000),
            None => "goes on".to_owned(),
        };
        let causes: Vec<_> = summary.causes.iter().map(|cause| cause.as_str()).collect();
        let (number, opened) = (summary.number, time(summary.opened));
        let _ = writeln!(
            out,
            "{number:>6}  {opened}  {lasted:>12}  {}: {}",
            causes.join(","),
            summary.text
        );
    }
    Ok(out)
}

fn told(incident: &Incident) -> String {
    let mut out = String::new();
    for (at, text) in story(incident) {
        let _ = writeln!(out, "{}  {text}", time(at));
    }
    out
}
