//! The command line of pgweir.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use pgweir::app::built::without_effect;
use pgweir::app::serve::serve;
use pgweir::app::world::Source;
use pgweir::app::{demo, incident};
use pgweir::client::credentials::Credentials;

/// A third less memory for each idle client than glibc's allocator, which wastes what it aligns.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A connection-pooling proxy for PostgreSQL that knows services and deployments.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve, from a configuration file or for one Postgres.
    Serve(Serve),
    /// Read a configuration file and print every mistake in it.
    Check {
        /// The file, in the shape of pooler.toml.
        file: PathBuf,
    },
    /// Show it: a throw-away Postgres, more clients than it takes, and the same clients through pgweir.
    Demo(Demo),
    /// What was recorded when server connections ran short.
    Incident(IncidentArgs),
    /// Ask a running pgweir whether it is alive: exit code 0 or 1.
    Healthcheck {
        /// Its `listen.http`.
        #[arg(default_value = "127.0.0.1:9930")]
        address: String,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration file.
    #[arg(required_unless_present = "to", conflicts_with_all = ["to", "listen"])]
    file: Option<PathBuf>,
    /// The Postgres to serve, as postgres://host:port.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Where clients connect; may be given more than once.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// How long clients may take to end their transactions at a shutdown, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    drain_limit: u64,
}

#[derive(Debug, Args)]
struct Demo {
    /// Clients that want a session at the same time.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(1..=5000))]
    clients: u16,
    /// How long they stay, once directly and once through pgweir.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
}

#[derive(Debug, Args)]
struct IncidentArgs {
    /// Where incidents are kept: `incidents.directory` of the configuration.
    #[arg(
        long,
        value_name = "DIRECTORY",
        conflicts_with = "config",
        global = true
    )]
    directory: Option<PathBuf>,
    /// The configuration that says where.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/pgweir/pooler.toml",
        global = true
    )]
    config: PathBuf,
    #[command(subcommand)]
    what: incident::What,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(Serve {
            file,
            to,
            listen,
            drain_limit,
        }) => {
            let source = match (file, to) {
                (Some(path), _) => Source::File(path),
                (None, Some(to)) => Source::Url { to, listen },
                (None, None) => unreachable!("clap asks for one of them"),
            };
            Ok(serve(source, Duration::from_secs(drain_limit))?)
        }
        Command::Check { file } => {
            let world = Source::File(file.clone()).load(&Credentials::new([0; 32], []), None)?;
            for setting in without_effect(&world.config) {
                println!(
                    "{}: {setting} has no effect in this version",
                    file.display()
                );
            }
            println!("{}: no mistakes", file.display());
            Ok(())
        }
        Command::Demo(Demo { clients, seconds }) => Ok(demo::run(&demo::Options {
            clients,
            stay: Duration::from_secs(seconds.into()),
        })?),
        Command::Incident(IncidentArgs {
            directory,
            config,
            what,
        }) => {
            let directory = match directory {
                Some(directory) => directory,
                None => incident::directory(&config)?,
            };
            print!("{}", incident::tell(&directory, &what)?);
            Ok(())
        }
        Command::Healthcheck { address } => healthcheck(&address),
    }
}

/// One request over plain HTTP/1.0, as the image has no other program to make it.
fn healthcheck(address: &str) -> anyhow::Result<()> {
    use std::io::{Read, Write};
    const LIMIT: Duration = Duration::from_secs(3);
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    anyhow::ensure!(status.contains(" 200 "), "{address} answered: {status}");
    Ok(())
}
