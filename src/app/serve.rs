//! The process from start to end: listen, hand out clients, reload, drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::RwLock;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::http;
use super::look_up::LookUps;
use super::worker::{self, Dealer, FrontDoor, Inbox};
use super::world::{Source, SourceError, World};
use crate::client::credentials::Credentials;
use crate::client::directory::{Ask, Directory, Quota};
use crate::config::change::{Effect, between};
use crate::config::checked::{Config, Listen};
use crate::metrics::Metrics;
use crate::net::listen::Listener;
use crate::pool::book::ThreadId;
use crate::pool::pools::{Pool, Pools, Purpose};
use crate::wire::startup::CancelKey;

/// The port in the name of the unix socket, where no TCP address gives one.
const DEFAULT_PORT: u16 = 6432;

/// How often deadlines, idle connections and back-off are looked after.
const TICK: Duration = Duration::from_millis(50);

/// How often sessions are looked at that may have done the same for too long.
const HURRY: Duration = Duration::from_millis(250);

/// How often idle connections are looked at that Postgres may have closed.
const SWEEP: Duration = Duration::from_secs(1);

/// How often the end of a drain is looked for.
const DRAIN_CHECK: Duration = Duration::from_millis(20);

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A thread or the runtime could not be started.
    #[error("cannot start: {0}")]
    Thread(#[from] io::Error),
}

/// What the process does with new clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Serving,
    Draining,
}

/// What a cap on clients is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capped {
    /// One user.
    User,
    /// One database.
    Database,
    /// One service.
    Service,
}

/// Counts of clients for each user, database and service that has a cap.
#[derive(Debug, Default)]
pub struct Quotas(DashMap<(Capped, String), Arc<Quota>>);

impl Quotas {
    /// The count of this one.
    pub fn of(&self, kind: Capped, name: &str) -> Arc<Quota> {
        Arc::clone(&self.0.entry((kind, name.to_owned())).or_default())
    }
}

/// What all threads share.
#[derive(Debug)]
pub struct App {
    source: Source,
    world: RwLock<Arc<World>>,
    phase: AtomicU8,
    /// Sessions.
    pub directory: Arc<Directory>,
    /// Server connections.
    pub pools: Arc<Pools>,
    /// Client sockets, logged in or not.
    pub clients: Arc<Quota>,
    /// Clients under a cap.
    pub quotas: Quotas,
    /// Users who are listed nowhere.
    pub look_ups: LookUps,
    /// Every series.
    pub metrics: Metrics,
}

impl App {
    /// The configuration in force.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.read())
    }

    /// Whether no new client is let in.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Draining as u8
    }

    /// Whether a line is written for each goodbye.
    pub fn logs_disconnections(&self) -> bool {
        self.world.read().config.log.disconnections
    }

    /// Stops what a session runs, if the key is right. Returns when that was passed on.
    pub async fn cancel(&self, key: &CancelKey) {
        if let Some(asked) = self.directory.ask_to_cancel(key) {
            // Nobody ever sends anything: whoever is done with it drops the other end.
            let _ = asked.await;
        } else {
            // Postgres answers a wrong key with silence too.
            tracing::debug!(pid = key.pid, "cancel request for nobody");
        }
    }

    /// Has sessions look at themselves that have done the same for too long.
    fn hurry(&self) {
        let world = self.world();
        self.directory
            .hurry(&world.least_patience(), |who| world.patience(who));
    }

    /// Drops what nobody uses any more. Called about once a second.
    fn sweep(&self) {
        self.pools.sweep();
        self.directory.forget_unused();
        self.look_ups.forget_old();
        self.quotas
            .0
            .retain(|_, quota| Arc::strong_count(quota) > 1);
    }

    /// Reads the configuration again. A wrong one changes nothing.
    pub fn reload(&self) -> Result<(), SourceError> {
        let old = self.world();
        let new = self.source.load(&old.credentials, Some(&old.tls))?;
        for change in between(&old.config, &new.config) {
            match change.effect {
                Effect::Live => tracing::info!(setting = change.name, "changed"),
                Effect::Restart => tracing::warn!(setting = change.name, "needs a restart"),
            }
        }
        new.warn();
        new.credentials.derive_all();
        let new = Arc::new(new);
        *self.world.write() = Arc::clone(&new);
        self.look_ups.forget_all();
        self.pools
            .all()
            .iter()
            .for_each(|pool| reload_pool(&new, pool));
        for (index, service) in new.config.services.listed.iter().enumerate() {
            self.pools
                .service(&service.name, true, new.service_limits(Some(index)));
        }
        Ok(())
    }
}

/// Puts the new settings of a pool into force. One whose database is gone is left to its sessions.
fn reload_pool(world: &World, pool: &Pool) {
    match pool.purpose {
        Purpose::Clients => {}
        // It serves once, and there is no more to settle.
        Purpose::LoginCheck(_) | Purpose::Replication(_) => return,
        Purpose::LookUp => {
            if let Some(how) = world.look_up(&pool.database)
                && how.settings.target.identity.user == pool.settings().target.identity.user
            {
                pool.change(how.settings);
            }
            return;
        }
    }
    if let Some(database) = world.database(&pool.database) {
        let proof = match &database.user {
            Some(_) => {
                world
                    .server_login(database, &pool.user, &world.credentials.look_up(&pool.user))
                    .1
            }
            None => match world.credentials.get(&pool.user) {
                Some(credential) => credential.server_login(),
                None => pool.settings().target.identity.proof.clone(),
            },
        };
        pool.change(world.pool_settings(&pool.database, database, &pool.user, proof));
    }
}

/// Serves until told to end, and returns when every client has left or `drain_limit` has passed.
pub fn serve(source: Source, drain_limit: Duration) -> Result<(), StartError> {
    // The key makes the salts of unknown users: the same at each login, and not to be foretold.
    let world = source.load(&Credentials::new(rand::random(), []), None)?;
    super::log::start(&world.config.log)?;
    world.warn();
    raise_file_limit(&world.config);
    world.credentials.derive_all();

    let config = world.config.clone();
    // HTTP first: who reaches pgweir finds its health too, and nobody has connected yet if it cannot listen.
    let http = config.listen.http.map(listen_http).transpose()?;
    let listeners = listen(&config)?;
    let threads = 0..config.runtime.threads;
    let (errands, errand_inboxes): (Vec<_>, Vec<_>) =
        threads.clone().map(|_| unbounded_channel()).unzip();
    let (arrivals, arrival_inboxes): (Vec<_>, Vec<_>) =
        threads.map(|_| unbounded_channel()).unzip();
    let app = Arc::new(App {
        source,
        world: RwLock::new(Arc::new(world)),
        phase: AtomicU8::new(Phase::Serving as u8),
        directory: Arc::default(),
        pools: Pools::new(errands),
        clients: Arc::default(),
        quotas: Quotas::default(),
        look_ups: LookUps::default(),
        metrics: Metrics::default(),
    });
    // Held until the drain is over: a data thread ends, and its sessions with it, when nobody can send it clients any more.
    let dealer = Arc::new(Dealer::new(arrivals));
    let closing = CancellationToken::new();
    let mut door = Some(FrontDoor {
        listeners,
        dealer: Arc::clone(&dealer),
        closing: closing.clone(),
    });
    let mut workers = vec![];
    for (index, (arrivals, errands)) in
        (0u16..).zip(arrival_inboxes.into_iter().zip(errand_inboxes))
    {
        let inbox = Inbox { arrivals, errands };
        workers.push(worker::start(
            ThreadId(index),
            Arc::clone(&app),
            inbox,
            door.take(),
        )?);
    }

    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control(&app, http, closing, drain_limit))?;
    drop(dealer);
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!("a data thread panicked");
        }
    }
    Ok(())
}

/// Everything that is not a client's: signals, time, HTTP.
async fn control(
    app: &Arc<App>,
    http: Option<std::net::TcpListener>,
    closing: CancellationToken,
    drain_limit: Duration,
) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let http_end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(listener) = http {
        let serving = http::serve(listener, Arc::clone(app))?;
        let end = http_end.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = serving => {}
                () = end.cancelled() => {}
            }
        });
    }
    tasks.spawn(keep_time(Arc::clone(app), http_end.clone()));
    signals.serve(app).await;

    app.phase.store(Phase::Draining as u8, Ordering::Release);
    closing.cancel();
    tracing::info!(
        clients = app.directory.len(),
        limit = drain_limit.as_secs_f32(),
        "draining"
    );
    tokio::select! {
        () = drain(app, drain_limit) => {}
        () = signals.end() => tracing::warn!("told twice: leaving at once"),
    }
    http_end.cancel();
    tasks.join_all().await;
    tracing::info!(clients = app.directory.len(), "ended");
    Ok(())
}

/// Asks every session to leave at its transaction boundary, and waits for them.
async fn drain(app: &App, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !app.directory.is_empty() && Instant::now() < deadline {
        // Asked again and again, for those that were still logging in.
        app.directory.ask_all(Ask::Drain);
        sleep(DRAIN_CHECK).await;
    }
    if !app.directory.is_empty() {
        tracing::warn!(
            clients = app.directory.len(),
            "still in a transaction: closed"
        );
        app.directory.ask_all(Ask::Leave);
        sleep_until(deadline + Duration::from_secs(1)).await;
    }
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns when the process is told to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Reloads as often as asked, until the process is told to end.
    async fn serve(&mut self, app: &App) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => match app.reload() {
                    Ok(()) => tracing::info!("reloaded"),
                    Err(error) => tracing::error!("not reloaded, the old configuration stays:\n{error}"),
                },
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}

/// Opens the socket for HTTP.
fn listen_http(address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    let failed = |cause| StartError::Listen {
        address: address.to_string(),
        cause,
    };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    tracing::info!(%address, "serving http");
    Ok(listener)
}

/// Opens every listening socket, or says which cannot be opened.
fn listen(config: &Config) -> Result<Vec<Listener>, StartError> {
    let Listen {
        addresses,
        unix_socket_dir,
        unix_socket_port,
        backlog,
        ..
    } = &config.listen;
    let failed = |address: String| move |cause| StartError::Listen { address, cause };
    let mut listeners = vec![];
    for address in addresses {
        let listener = Listener::tcp(*address, &config.tcp, *backlog);
        listeners.push(listener.map_err(failed(address.to_string()))?);
    }
    if let Some(directory) = unix_socket_dir {
        let port = match unix_socket_port {
            0 => addresses
                .first()
                .map_or(DEFAULT_PORT, std::net::SocketAddr::port),
            given => *given,
        };
        let listener = Listener::unix(directory, port, &config.listen);
        listeners.push(listener.map_err(failed(directory.clone()))?);
    }
    for listener in &listeners {
        tracing::info!(address = listener.name(), "listening");
    }
    Ok(listeners)
}

/// Looks after what time brings.
async fn keep_time(app: Arc<App>, end: CancellationToken) {
    let (mut tick, mut hurry, mut sweep) = (interval(TICK), interval(HURRY), interval(SWEEP));
    for interval in [&mut tick, &mut hurry] {
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let start = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                app.directory.set_clock(start.elapsed());
                app.pools.tick();
            }
            _ = hurry.tick() => app.hurry(),
            _ = sweep.tick() => app.sweep(),
            () = end.cancelled() => return,
        }
    }
}

/// Each client and each server connection takes a descriptor.
fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let needed = u64::from(config.limits.max_clients) + 1000;
    if limit.current.is_some_and(|current| current < needed) {
        tracing::warn!(limit = ?limit.current, needed, "the limit of open files is too low for limits.max_clients");
    }
}
