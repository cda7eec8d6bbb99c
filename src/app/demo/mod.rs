//! `pgweir demo`: a throw-away Postgres, more clients than it takes, and the same clients again through pgweir; then the incident behind
//! pgweir, likewise.
//!
//! Everything that is started or laid down is owned by a value that ends or removes it when it is dropped. So success, an
//! error, a panic and Ctrl-C all clean up the same way: by leaving [`play`].

mod child;
mod client;
mod crowd;
mod find;
mod place;
mod pooler;
mod postgres;
mod progress;
mod replay;
mod services;
mod table;
mod tally;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinError;

use self::crowd::Entrance;
use self::place::Place;
use self::pooler::Pooler;
use self::postgres::{Postgres, Watch};
use self::progress::Progress;
use self::replay::Stage;
use self::services::{BUDGET, Login, MAX_CONNECTIONS};
use crate::incident::store::read;
use crate::server::login::LoginError;

/// How much of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clients that want a session at the same time.
    pub clients: u16,
    /// How long they stay, once directly and once through pgweir.
    pub stay: Duration,
    /// Where the export of the incident that is replayed at the end is kept.
    pub report: Option<PathBuf>,
}

/// Why the demo did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Postgres is not installed.
    #[error(
        "PostgreSQL's server programs (initdb and postgres) are not in PATH, nor where pg_config says, nor in {places}.\n\
         Install them: apt-get install postgresql (Debian, Ubuntu), dnf install postgresql-server (Fedora, RHEL), \
         apk add postgresql (Alpine)."
    )]
    NoPostgres {
        /// Where else was looked.
        places: String,
    },
    /// Run as root, and there is nobody else to run Postgres as.
    #[error(
        "Postgres does not run as root, and /etc/passwd has neither a user postgres nor nobody to run it as"
    )]
    NoUser,
    /// The system refused something.
    #[error("cannot {what}: {cause}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A program ended that was to go on, or failed.
    #[error("{program} ended ({status}). Its last words:\n{said}")]
    Ended {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of its log.
        said: String,
    },
    /// A program does not take connections.
    #[error("{program} takes no connections after {limit:?}: {why}")]
    NotReady {
        /// Its name.
        program: &'static str,
        /// How long was waited.
        limit: Duration,
        /// What the last try said.
        why: String,
    },
    /// The connection that sets Postgres up and watches it failed.
    #[error("the demo's own connection to Postgres: {0}")]
    Watch(#[from] LoginError),
    /// The first crowd's sessions are still there.
    #[error("Postgres still has {0} sessions of clients that have left")]
    NotEmpty(usize),
    /// One of the clients' tasks panicked.
    #[error("a client of the demo: {0}")]
    Client(#[from] JoinError),
    /// Ctrl-C, or the like.
    #[error("interrupted; everything is removed")]
    Interrupted,
    /// The comparison did not come out as it must.
    #[error("That is not as it should be:\n  {}", .0.join("\n  "))]
    Complaints(Vec<String>),
}

impl DemoError {
    /// For `map_err`: what was tried when the system refused.
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause }
    }
}

/// Runs the demo. An error means that it could not be run, or that pgweir did not do what it promises.
pub fn run(options: &Options) -> Result<(), DemoError> {
    raise_file_limit();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(DemoError::system("start"))?;
    let played = runtime.block_on(async {
        tokio::select! {
            // Signals first: from the moment on that something lies around.
            biased;
            stop = told_to_stop() => Err(stop),
            played = play(options) => played,
        }
    });
    let moral = played?;
    writeln!(
        io::stdout(),
        "{moral}\nNothing is left running or lying around."
    )
    .map_err(DemoError::system("write to standard output"))
}

/// Returns when a signal asks for the end, or none can be listened to.
async fn told_to_stop() -> DemoError {
    let wait = async |kind| {
        signal(kind)?
            .recv()
            .await
            .ok_or_else(|| io::Error::other("there are no more"))
    };
    let told = tokio::select! {
        told = wait(SignalKind::interrupt()) => told,
        told = wait(SignalKind::terminate()) => told,
        told = wait(SignalKind::hangup()) => told,
    };
    told.map_or_else(DemoError::system("listen to signals"), |()| {
        DemoError::Interrupted
    })
}

/// The whole story, to its moral. What is declared first is dropped last: pgweir ends before Postgres, and both before their directory goes.
async fn play(options: &Options) -> Result<String, DemoError> {
    let mut progress = Progress::start();
    let programs = find::programs()?;
    let place = Place::make(find::user_for_postgres()?)?;
    let logins = services::logins();

    progress.say(&format!(
        "A Postgres with max_connections = {MAX_CONNECTIONS}, in {} ...",
        place.path().display()
    ))?;
    let postgres = Postgres::start(&programs, &place).await?;
    let mut watch = postgres.watch().await?;
    watch.set_up(&logins).await?;

    progress.say(&format!(
        "{} clients of {} services, each with a session of its own, directly for {:?} ...",
        options.clients,
        logins.len(),
        options.stay
    ))?;
    let entrance = |name, port| Entrance {
        name,
        port,
        logins: &logins,
    };
    let direct = entrance("direct", postgres.port())
        .admit(options, &mut watch, &mut progress)
        .await?;
    watch.empty().await?;

    progress.say(&format!(
        "The same clients through pgweir, which may open {BUDGET} server connections ..."
    ))?;
    let mut pooler = Pooler::start(&place, postgres.port(), &logins, None).await?;
    let through = entrance("pgweir", pooler.port())
        .admit(options, &mut watch, &mut progress)
        .await?;

    progress.say(&table::summary(&direct, &through))?;
    progress.say(&table::services(&direct, &through))?;
    pooler.must_run()?;
    judge(table::complaints(&through, BUDGET), &pooler)?;
    progress.say(&table::moral(&direct, &through))?;
    drop(pooler);
    watch.empty().await?;

    replay(
        &place,
        &postgres,
        &mut watch,
        &mut progress,
        options,
        &logins,
    )
    .await
}

/// The second part: the incident.
async fn replay(
    place: &Place,
    postgres: &Postgres,
    watch: &mut Watch,
    progress: &mut Progress,
    options: &Options,
    logins: &[Login],
) -> Result<String, DemoError> {
    let stage = |name, port, is_kept_clean| Stage {
        name,
        port,
        logins,
        is_kept_clean,
    };
    progress.say(&format!(
        "\nThe incident: the site is deployed {} times, and old deployments keep their {} sessions. Directly ...",
        replay::DEPLOYMENTS,
        replay::SESSIONS
    ))?;
    let direct = stage("direct", postgres.port(), false)
        .play(watch, progress)
        .await?;
    watch.empty().await?;

    progress.say("The same through pgweir ...")?;
    watch.let_them_look(logins).await?;
    let directory = place.path().join("incidents");
    let mut pooler = Pooler::start(place, postgres.port(), logins, Some(&directory)).await?;
    let through = stage("pgweir", pooler.port(), true)
        .play(watch, progress)
        .await?;
    progress.say(&replay::table(&direct, &through))?;
    pooler.must_run()?;
    let incident = read(&directory, 1);
    let mut complaints = replay::complaints(&direct, &through);
    if let Err(error) = &incident {
        complaints.push(format!("no incident was recorded: {error}"));
    }
    judge(complaints, &pooler)?;
    let incident = incident.ok().unwrap_or_default();
    replay::moral(&through, &incident, options.report.as_deref())
}

/// An error if something is not as it must be.
fn judge(mut complaints: Vec<String>, pooler: &Pooler) -> Result<(), DemoError> {
    if complaints.is_empty() {
        return Ok(());
    }
    complaints.extend(pooler.log());
    Err(DemoError::Complaints(complaints))
}

/// Each client takes a descriptor. Where the limit stays, connecting will say so.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
