//! The life of the process from its start on: serving, and one of the ways to its end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::console::is_console;
use super::notify;
use super::serve::App;
use crate::client::directory::{Ask, Who};

/// How often the end of a shutdown is looked for.
const CHECK: Duration = Duration::from_millis(20);

/// How long clients that are told to leave at once may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the process does with clients. It only goes on, never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It lets them in.
    Serving,
    /// It lets nobody in and ends when the last one has left by itself.
    WaitingForClients,
    /// It lets nobody in, is paused, and ends when no server connection is left.
    WaitingForServers,
    /// It lets nobody in and asks the others to leave at the end of their transactions.
    Draining,
    /// It ends.
    Ended,
}

/// The phase of a process, for all who have to know.
#[derive(Debug)]
pub struct Phases(watch::Sender<Phase>);

impl Default for Phases {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Phases {
    /// The phase now.
    pub fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to this phase. False if it is past it.
    pub fn go_on_to(&self, phase: Phase) -> bool {
        self.0.send_if_modified(|now| {
            let goes_on = *now < phase;
            if goes_on {
                *now = phase;
            }
            goes_on
        })
    }

    /// Returns when this phase has been reached or passed.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // Only the sender could end it, and that is borrowed here.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// Returns when the phase is another than this.
    async fn left(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        let _ = phases.wait_for(|now| *now != phase).await;
    }
}

/// Returns when the process is to end, in whatever way it was told. By then its clients have been told, and have had time to
/// hear it.
pub async fn live(app: &App, drain_limit: Duration) {
    loop {
        let phase = app.phases.now();
        let is_over = tokio::select! {
            is_over = go_through(app, phase, drain_limit) => is_over,
            () = app.phases.left(phase) => false,
        };
        if is_over {
            break;
        }
    }
    app.phases.go_on_to(Phase::Ended);
    say_goodbye(app).await;
}

/// Whether it is over after this phase; it is left earlier when the process is told to hurry.
async fn go_through(app: &App, phase: Phase, drain_limit: Duration) -> bool {
    if !matches!(phase, Phase::Serving | Phase::Ended) {
        let clients = app.clients_left();
        tracing::info!(clients, "shutting down: {}", phase.as_str());
        notify::tell(notify::STOPPING);
    }
    match phase {
        Phase::Serving => std::future::pending().await,
        Phase::WaitingForClients => {
            while app.clients_left() > 0 {
                sleep(CHECK).await;
            }
            let said = app.words("client connections dropped, exiting");
            tracing::info!(said, "all clients have left");
        }
        Phase::WaitingForServers => {
            let pausing = app.pools.pause_for_good();
            // Nobody can resume any more.
            let _ = pausing.done().await;
            let said = app.words("server connections dropped, exiting");
            tracing::info!(said, "all server connections are closed");
        }
        Phase::Draining => drain(app, drain_limit).await,
        Phase::Ended => {}
    }
    true
}

/// Asks every session to leave at its transaction boundary, and waits for them.
async fn drain(app: &App, limit: Duration) {
    let deadline = Instant::now() + limit;
    while app.clients_left() > 0 && Instant::now() < deadline {
        // Asked again and again, for those that were still logging in.
        app.directory.ask_those(Ask::Drain, is_client);
        sleep(CHECK).await;
    }
    let clients = app.clients_left();
    if clients > 0 {
        tracing::warn!(clients, "still in a transaction: closed");
    }
}

/// Tells those who are left why their connections end.
async fn say_goodbye(app: &App) {
    let deadline = Instant::now() + LAST_WORDS;
    app.directory.ask_all(Ask::Drain);
    while !app.directory.is_empty() && Instant::now() < deadline {
        app.directory.ask_all(Ask::Leave);
        sleep_until(deadline.min(Instant::now() + CHECK)).await;
    }
}

/// Whether this is one of those whom the process is there for. The operators on the console stay until the end.
pub fn is_client(who: &Who) -> bool {
    !is_console(&who.database)
}

impl Phase {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::WaitingForClients => "waiting for clients to leave",
            Self::WaitingForServers => "waiting for server connections to come free",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}
