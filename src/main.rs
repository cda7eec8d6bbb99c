//! The command line of pgweir.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use pgweir::app::background::{Pidfile, become_user};
use pgweir::app::pgbouncer;
use pgweir::app::serve::serve;
use pgweir::app::world::Source;
use pgweir::app::{demo, incident};
use pgweir::client::credentials::Credentials;
use pgweir::config::ini;

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
        /// The file, in the shape of pooler.toml or of PgBouncer's pgbouncer.ini.
        file: PathBuf,
    },
    /// Write the pooler.toml that means the same as a pgbouncer.ini, and say what differs.
    Import {
        /// The pgbouncer.ini.
        file: PathBuf,
        /// Where to write it; to standard output if it is left out.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
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

/// How long clients may take to end their transactions, where nothing else is said.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

#[derive(Debug, Args)]
struct Demo {
    /// Clients that want a session at the same time.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(1..=5000))]
    clients: u16,
    /// How long they stay, once directly and once through pgweir.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Where to keep the export of the incident that is replayed at the end.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
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
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = Cli::command();
    let commands: Vec<_> = cli.get_subcommands().map(clap::Command::get_name).collect();
    if pgbouncer::is_meant(&arguments, &commands) {
        return pgbouncer::run(arguments, DRAIN_LIMIT);
    }
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
                (Some(path), _) => Source::of(path),
                (None, Some(to)) => Source::Url { to, listen },
                (None, None) => unreachable!("clap asks for one of them"),
            };
            let process = source.process()?;
            become_user(&process)?;
            let pidfile = process.pidfile.as_deref().map(Pidfile::write).transpose()?;
            serve(source, Duration::from_secs(drain_limit))?;
            drop(pidfile);
            Ok(())
        }
        Command::Check { file } => {
            let source = Source::of(file.clone());
            let world = source.load(&Credentials::new([0; 32], []), None)?;
            for note in world.notes() {
                println!("{note}");
            }
            if !world.missing().is_empty() {
                anyhow::bail!("{}", world.missing().join("\n"));
            }
            println!("{}: no mistakes", file.display());
            Ok(())
        }
        Command::Import { file, output } => import(&file, output.as_deref()),
        Command::Demo(Demo {
            clients,
            seconds,
            report,
        }) => Ok(demo::run(&demo::Options {
            report,
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

/// The pooler.toml goes to a file or to standard output, what differs to standard error.
fn import(file: &Path, output: Option<&Path>) -> anyhow::Result<()> {
    let imported = ini::load(file)?;
    match output {
        // Nobody's file is written over, and passwords in it are nobody else's to read.
        Some(path) => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(imported.toml.as_bytes()))
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?,
        None => print!("{}", imported.toml),
    }
    for note in &imported.notes {
        eprintln!("{note}");
    }
    Ok(())
}

/// One request over plain HTTP/1.0, as the image has no other program to make it.
fn healthcheck(address: &str) -> anyhow::Result<()> {
    use std::io::Read;
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
