//! PgBouncer's command line: `pgweir pgbouncer.ini`, and the same through a link that is called `pgbouncer`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser};

use super::background::{
    Pidfile, ProcessError, become_user, detach, is_in_background, refuse_root, start_in_background,
};
use super::serve::{StartError, serve_after};
use super::takeover::{Predecessor, TakeoverError};
use super::world::{IniOptions, Source};
use crate::admin::show::process::versions;
use crate::config::ini;

/// What the link is called.
const LINK: &str = "pgbouncer";

/// pgweir in PgBouncer's place: a connection pooler for PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = "pgweir",
    version,
    override_usage = "pgweir [OPTION]... CONFIG_FILE"
)]
struct Cli {
    /// Run in the background; needs a pidfile.
    #[arg(short, long)]
    daemon: bool,
    /// Take the listening sockets of the running process, which goes on with its clients until they have left.
    #[arg(short = 'R', long)]
    reboot: bool,
    /// Say more; may be given more than once.
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Write no log to standard error.
    #[arg(short, long)]
    quiet: bool,
    /// Become this user.
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// A pgbouncer.ini.
    config_file: PathBuf,
}

/// Why it ended instead of serving.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The configuration is wrong.
    #[error("{0}\ncannot load config file")]
    Config(#[from] crate::config::Mistakes),
    /// The process cannot be what it should.
    #[error("{0}")]
    Process(#[from] ProcessError),
    /// It could not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The running process could not be relieved.
    #[error("{0}")]
    Takeover(#[from] TakeoverError),
}

/// Whether these arguments, the program's name being the first, are meant for PgBouncer. `commands`: words that are pgweir's own.
pub fn is_meant(arguments: &[OsString], commands: &[&str]) -> bool {
    let mut arguments = arguments.iter();
    let program = arguments.next().map(Path::new);
    if program
        .and_then(Path::file_name)
        .is_some_and(|name| name == LINK)
    {
        return true;
    }
    let file = loop {
        match arguments.next() {
            Some(option) if option == "-u" || option == "--user" => drop(arguments.next()),
            Some(option) if option.as_encoded_bytes().starts_with(b"-") => {}
            other => break other,
        }
    };
    file.is_some_and(|file| {
        commands.iter().all(|command| file != command) && ini::is_one(Path::new(file))
    })
}

/// Does what PgBouncer would do with these arguments. Whatever goes wrong at the start ends with status 1.
pub fn run(arguments: Vec<OsString>, drain_limit: Duration) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayVersion => {
            // As SHOW VERSION: programs read the version of PgBouncer from the front.
            println!("{}", versions());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // If it cannot be written there is nobody to read it.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.run(drain_limit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => {
            eprintln!("{ended}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self, drain_limit: Duration) -> Result<(), Ended> {
        let source = Source::Ini {
            path: self.config_file,
            options: IniOptions {
                verbose: self.verbose,
                quiet: self.quiet || is_in_background(),
                user: self.user,
            },
        };
        let process = source.process()?;
        become_user(&process)?;
        refuse_root()?;
        if self.daemon && !is_in_background() {
            return Ok(start_in_background(&process, self.reboot)?);
        }
        if is_in_background() {
            detach();
        }
        let predecessor = if self.reboot {
            Predecessor::find(&source.listen()?)?
        } else {
            None
        };
        let write = if predecessor.is_some() {
            Pidfile::take_over
        } else {
            Pidfile::write
        };
        let pidfile = process.pidfile.as_deref().map(write).transpose()?;
        let served = serve_after(predecessor, source, drain_limit);
        drop(pidfile);
        Ok(served?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_argument_or_the_name_says_who_is_meant() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let odd = file("odd.conf", "; comment\n[pgbouncer]\nx = 1\n");
        let later = file("later.conf", "[databases]\na = host=x\n[pgbouncer]\n");
        let toml = file(
            "pooler.toml",
            "[databases.a]\nurl = \"postgres://x\"\n[pool]\n",
        );
        for (arguments, meant) in [
            (vec!["pgweir", "x.ini"], true),
            (
                vec!["pgweir", "-d", "-q", "-u", "ann", "/nosuch/x.ini"],
                true,
            ),
            (vec!["/usr/sbin/pgbouncer"], true),
            (vec!["pgbouncer", "serve"], true),
            (vec!["pgweir", &odd], true),
            (vec!["pgweir", &later], true),
            (vec!["pgweir", &toml], false),
            (vec!["pgweir", "check", "x.ini"], false),
            (vec!["pgweir", "serve", "x.ini"], false),
            (vec!["pgweir", "--version"], false),
            (vec!["pgweir"], false),
            (vec!["pgweir", "nosuch"], false),
        ] {
            let words: Vec<_> = arguments.iter().map(OsString::from).collect();
            assert_eq!(
                is_meant(&words, &["check", "serve"]),
                meant,
                "{arguments:?}"
            );
        }
    }
}
