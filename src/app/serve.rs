//! The process from start to end: listen, hand out clients, reload, drain.

use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use super::admit::denied::Denied;
use super::admit::elsewhere::Elsewhere;
use super::look_up::LookUps;
use super::memory::Keeper;
use super::page::{self, Page};
use super::phase::{Phase, Phases, is_client, live};
use super::ready::Reachable;
use super::reap::Reaping;
use super::takeover::{Former, HandOver, Predecessor};
use super::watch::{self, Watch};
use super::worker::{self, Dealer, FrontDoor, Inbox};
use super::world::{Source, SourceError, World};
use super::{activation, http, log, notify};
use crate::admin::own::Own;
use crate::admin::process::Shutdown;
use crate::admin::show::process::versions;
use crate::client::credentials::Credentials;
use crate::client::directory::{Ask, Directory, Quota};
use crate::client::statements::bound_memory;
use crate::config::change::{Effect, between};
use crate::config::checked::{Config, Host, Listen, LogFormat};
use crate::metrics::Metrics;
use crate::net::listen::Listener;
use crate::net::stream::unix_path;
use crate::pool::book::{Gate, ThreadId};
use crate::pool::pools::{Pool, Pools, Purpose};
use crate::server::names::{Times, names};
use crate::server::peers::Peers;
use crate::session::run::End;

/// How often deadlines, idle connections and back-off are looked after.
const TICK: Duration = Duration::from_millis(50);

/// How often sessions are looked at that may have done the same for too long.
const HURRY: Duration = Duration::from_millis(250);

/// How often it is told what was said again and again.
const MINUTE: Duration = Duration::from_mins(1);

/// How often idle connections are looked at that Postgres may have closed.
const SWEEP: Duration = Duration::from_secs(1);

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
    pub(super) source: Source,
    world: RwLock<Arc<World>>,
    /// Held while the configuration changes: one change is made on top of the other.
    pub(super) reloading: Mutex<()>,
    /// Its life.
    pub phases: Phases,
    /// Sessions.
    pub directory: Arc<Directory>,
    /// Server connections.
    pub pools: Arc<Pools>,
    /// Client sockets, logged in or not.
    pub clients: Arc<Quota>,
    /// Those of them that were accepted and are not let in yet.
    pub arriving: Arc<Quota>,
    /// What the console counts of itself.
    pub console: Own,
    /// Admins on the console.
    pub admins: Arc<Quota>,
    /// Clients under a cap.
    pub quotas: Quotas,
    /// Users who are listed nowhere.
    pub look_ups: LookUps,
    /// Passwords that others check.
    pub elsewhere: Elsewhere,
    /// What is left to the next process.
    pub memory: Keeper,
    /// Deployments, and what they have left behind.
    pub reaping: Reaping,
    /// Every series.
    pub metrics: Metrics,
    /// Other processes that cancel requests are passed on to.
    pub peers: Peers,
    /// The listening sockets, which another process may be handed.
    pub hand_over: HandOver,
    /// The process whose sockets this one has taken.
    pub former: Arc<Former>,
    /// Who has what at each Postgres, alerts and incidents.
    pub watch: Watch,
    /// What the status page remembers.
    pub page: Page,
    /// Whether any Postgres is there.
    pub reachable: Reachable,
}

impl App {
    /// The configuration in force.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.read())
    }

    /// Whether no new client is let in.
    pub fn is_draining(&self) -> bool {
        self.phases.now() != Phase::Serving
    }

    /// Whether whoever was accepted is let in. Where another process has the sockets, it never sees those that came before.
    pub fn lets_in(&self) -> bool {
        match self.phases.now() {
            Phase::Serving => true,
            Phase::WaitingForClients => self.hand_over.done.is_cancelled(),
            _ => false,
        }
    }

    /// Whether a line is written for each login.
    pub fn logs_connections(&self) -> bool {
        self.world.read().config.log.connections
    }

    /// Whether a line is written for each goodbye.
    pub fn logs_disconnections(&self) -> bool {
        self.world.read().config.log.disconnections
    }

    /// Whether log lines are to be PgBouncer's.
    pub fn logs_as_pgbouncer(&self) -> bool {
        self.world.read().config.log.format == LogFormat::PgBouncer
    }

    /// What PgBouncer would say, where the log has its words.
    pub(super) fn words(&self, said: impl Display) -> Option<String> {
        self.world.read().config.log.words(said)
    }

    /// Says that a configuration cannot be read: each mistake has a line where the log is like PgBouncer's.
    pub(super) fn tell_not_reloaded(&self, error: &SourceError) {
        if self.logs_as_pgbouncer() {
            for said in error.to_string().lines() {
                tracing::error!(said, "a mistake in the configuration");
            }
        }
        let said =
            self.words("config file loading failed: not reloaded, the old configuration stays");
        tracing::error!(said, "not reloaded, the old configuration stays:\n{error}");
    }

    /// Has sessions look at themselves that have done the same for too long.
    fn hurry(&self) {
        let world = self.world();
        self.directory
            .hurry(&world.least_patience(), |who| world.patience(who));
        if world.config.pool.server_fast_close {
            for keeper in self.pools.keepers_of_replaced() {
                if let Some(entry) = self.directory.by_id(keeper) {
                    entry.ask(Ask::Replace);
                }
            }
        }
    }

    /// Drops what nobody uses any more. Called about once a second.
    fn sweep(&self) {
        self.pools.sweep();
        self.directory.forget_unused();
        self.look_ups.forget_old();
        self.follow_names();
        self.quotas
            .0
            .retain(|_, quota| Arc::strong_count(quota) > 1);
    }

    /// Server connections follow their host's name, which is asked for again when its time is over or its zone has changed.
    fn follow_names(&self) {
        let names = names();
        let used = self
            .pools
            .follow_names(|name, address| names.has_left(name, address));
        for name in used.into_iter().filter(|name| names.is_due(name)) {
            tokio::spawn(async move { names.refresh(&name).await });
        }
        if names.zones_are_due() {
            tokio::spawn(names.look_at_zones());
        }
    }

    /// Reads the configuration again. A wrong one changes nothing; a right one ends what was set since the last.
    pub fn reload(&self) -> Result<(), SourceError> {
        let _one_at_a_time = self.reloading.lock();
        let _told = notify::Reloading::begin();
        let old = self.world();
        let new = self.source.after(&old).load(&old.credentials, Some(&old));
        self.metrics.reloaded(new.is_ok());
        let new = new?;
        self.put_in_force(&old, new);
        Ok(())
    }

    /// Goes on with another configuration.
    pub(super) fn put_in_force(&self, old: &World, new: World) {
        for change in between(&old.config, &new.config) {
            match change.effect {
                Effect::Live => tracing::info!(setting = change.name, "changed"),
                Effect::Restart => tracing::warn!(setting = change.name, "needs a restart"),
            }
        }
        log::follow(&old.config.log, &new.config.log);
        new.warn();
        take_effect(&new);
        let new = Arc::new(new);
        *self.world.write() = Arc::clone(&new);
        if self.source.is_ini() {
            self.directory.ask_those(Ask::Remove, |who| {
                is_client(who) && new.database(&who.database).is_none()
            });
        }
        self.look_ups.forget_all();
        self.directory.set_peer_id(new.config.process.peer_id);
        self.peers.keep(&new.config.peers, new.config.pool.size);
        self.pools
            .all()
            .iter()
            .for_each(|pool| reload_pool(&new, pool));
        for (index, service) in new.config.services.listed.iter().enumerate() {
            self.pools
                .service(&service.name, true, new.service_limits(Some(index)));
        }
    }
}

/// Puts in force what belongs to the whole process.
fn take_effect(world: &World) {
    world.credentials.derive_all();
    bound_memory(world.config.limits.max_statement_memory);
    names().ask_from(world.name_servers.clone());
    know_names(&world.config);
}

/// Names count for as long as this configuration says, and only those that it has.
fn know_names(config: &Config) {
    names().set_times(Times {
        found: config.timeouts.dns_max_ttl,
        missing: config.timeouts.dns_nxdomain_ttl,
        zones: config.timeouts.dns_zone_check,
    });
    let databases = config.databases.values().chain(&config.any_database);
    let hosts = databases.flat_map(|database| &database.hosts);
    let used: HashSet<_> = hosts
        .filter_map(|host| match host {
            Host::Tcp(name, _) => Some(name.as_str()),
            Host::Unix(..) => None,
        })
        .collect();
    names().retain(|name| used.contains(name));
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
    serve_after(None, source, drain_limit)
}

/// The same in the place of another process, whose listening sockets are taken.
pub fn serve_after(
    mut predecessor: Option<Predecessor>,
    source: Source,
    drain_limit: Duration,
) -> Result<(), StartError> {
    // The key makes the salts of unknown users: the same at each login, and not to be foretold.
    let world = source.load(&Credentials::new(rand::random(), []), None)?;
    log::start(&world.config)?;
    world.warn();
    raise_file_limit(&world.config);
    take_effect(&world);

    let runtime = Builder::new_current_thread().enable_all().build()?;
    // Before anybody can see that it serves: until then a signal would end the process.
    let signals = {
        let _entered = runtime.enter();
        Signals::new()?
    };
    let config = world.config.clone();
    // HTTP first: who reaches pgweir finds its health too, and nobody has connected yet if it cannot listen.
    let http = config.listen.http.map(listen_http).transpose()?;
    let taken = predecessor.as_mut().map(Predecessor::sockets);
    let listeners = listen(&config, taken.unwrap_or_default())?;
    let threads = 0..config.runtime.threads;
    let (errands, errand_inboxes): (Vec<_>, Vec<_>) =
        threads.clone().map(|_| unbounded_channel()).unzip();
    let (arrivals, arrival_inboxes): (Vec<_>, Vec<_>) =
        threads.map(|_| unbounded_channel()).unzip();
    let (memory, known) = Keeper::open(config.incidents.directory.as_deref());
    let app = Arc::new(App {
        source,
        world: RwLock::new(Arc::new(world)),
        phases: Phases::default(),
        reloading: Mutex::default(),
        directory: Arc::default(),
        pools: Pools::new(errands),
        clients: Arc::default(),
        arriving: Arc::default(),
        console: Own::default(),
        admins: Arc::default(),
        quotas: Quotas::default(),
        look_ups: LookUps::default(),
        elsewhere: Elsewhere::default(),
        metrics: Metrics::new(&Denied::WORDS, &End::WORDS),
        reachable: Reachable::default(),
        memory,
        reaping: Reaping::after(&known),
        peers: Peers::default(),
        hand_over: HandOver::default(),
        former: Arc::default(),
        watch: Watch::new(),
        page: Page::default(),
    });
    app.directory.set_peer_id(config.process.peer_id);
    // Held until the drain is over: a data thread ends, and its sessions with it, when nobody can send it clients any more.
    let dealer = Arc::new(Dealer::new(arrivals));
    app.hand_over.note(&listeners);
    let mut door = Some(FrontDoor {
        listeners,
        dealer: Arc::clone(&dealer),
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

    // Those who connected meanwhile are in the queues of the sockets.
    if let Some(mut predecessor) = predecessor {
        predecessor.relieve()?;
        app.former.is(predecessor);
    }
    // It ends with the runtime, when nothing else is left.
    if let Some(listener) = http {
        let _entered = runtime.enter();
        runtime.spawn(http::serve(listener, Arc::clone(&app))?);
    }
    let end = CancellationToken::new();
    let watching = watch::start(Arc::clone(&app), end.clone())?;
    runtime.block_on(control(&app, signals, drain_limit));
    end.cancel();
    drop(dealer);
    runtime.block_on(end_of(workers, watching));
    Ok(())
}

/// Waits for the data threads and the watch.
async fn end_of(workers: Vec<JoinHandle<()>>, watching: JoinHandle<()>) {
    let ended = spawn_blocking(|| {
        if watching.join().is_err() {
            tracing::error!("the watch panicked");
        }
        for worker in workers {
            if worker.join().is_err() {
                tracing::error!("a data thread panicked");
            }
        }
    });
    // It cannot fail: it does not panic, and nobody cancels it.
    let _ = ended.await;
}

/// Everything that is not a client's, but HTTP: signals, time.
async fn control(app: &Arc<App>, mut signals: Signals, drain_limit: Duration) {
    notify::tell(notify::READY);
    let said = app.words(format_args!(
        "process up: {}, adns: getaddrinfo, tls: rustls",
        versions()
    ));
    tracing::info!(said, version = env!("CARGO_PKG_VERSION"), "serving");
    let over = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_time(Arc::clone(app), over.clone()));
    tokio::select! {
        () = signals.heed(app) => {}
        () = live(app, drain_limit) => {}
    }
    over.cancel();
    tasks.join_all().await;
    tracing::info!(clients = app.directory.len(), "ended");
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    pause: Signal,
    resume: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            pause: signal(SignalKind::user_defined1())?,
            resume: signal(SignalKind::user_defined2())?,
        })
    }

    /// Does what signals ask for. Returns never.
    async fn heed(&mut self, app: &App) {
        let (on_terminate, on_interrupt) = app.source.ways_to_end();
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    heard(app, "SIGHUP", ", re-reading config");
                    match app.reload() {
                        Ok(()) => tracing::info!("reloaded"),
                        Err(error) => app.tell_not_reloaded(&error),
                    }
                }
                _ = self.terminate.recv() => end(app, "SIGTERM", on_terminate),
                _ = self.interrupt.recv() => end(app, "SIGINT", on_interrupt),
                _ = self.quit.recv() => end(app, "SIGQUIT", Shutdown::Immediate),
                _ = self.pause.recv() => pause(app),
                _ = self.resume.recv() => resume(app),
            }
        }
    }
}

/// Says that a signal has come, and what PgBouncer does about it.
fn heard(app: &App, signal: &'static str, so: &str) {
    let said = app.words(format_args!("got {signal}{so}"));
    tracing::info!(said, signal, "heard a signal");
}

/// Pauses everything. Nobody waits for it.
fn pause(app: &App) {
    match app.pools.pause(None) {
        Ok(pausing) => {
            heard(app, "SIGUSR1", ", pausing all activity");
            tracing::info!("paused");
            pausing.keep();
        }
        Err(error) => {
            heard(app, "SIGUSR1", ", but already paused/suspended");
            tracing::warn!("not paused: {error}");
        }
    }
}

/// Undoes it.
fn resume(app: &App) {
    if app.is_draining() {
        return heard(app, "SIGUSR2", " while shutting down, ignoring");
    }
    let from = match app.pools.gate() {
        Gate::Suspended => ", continuing from SUSPEND",
        Gate::Open | Gate::Paused => ", continuing from PAUSE",
    };
    match app.pools.resume(None) {
        Ok(()) => {
            heard(app, "SIGUSR2", from);
            tracing::info!("resumed");
        }
        Err(error) => {
            heard(app, "SIGUSR2", ", but not paused/suspended");
            tracing::warn!("not resumed: {error}");
        }
    }
}

/// Begins to end the process; told a second time, at once.
fn end(app: &App, signal: &'static str, how: Shutdown) {
    // PgBouncer does not ask which signals it were.
    let is_told_twice = app.source.is_ini() && app.is_draining() || !app.shut_down(how);
    let so = match how {
        Shutdown::Immediate => ", fast exit",
        _ if is_told_twice => " while shutting down, fast exit",
        Shutdown::WaitForClients => ", shutting down, waiting for all clients disconnect",
        Shutdown::WaitForServers => {
            ", shutting down, waiting for all servers connections to be released"
        }
        Shutdown::Drain => ", shutting down",
    };
    heard(app, signal, so);
    if is_told_twice {
        tracing::warn!("told twice: leaving at once");
        app.shut_down(Shutdown::Immediate);
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

/// Opens every listening socket that was not handed to this process, or says which cannot be opened.
fn listen(config: &Config, taken: Vec<OwnedFd>) -> Result<Vec<Listener>, StartError> {
    let Listen {
        addresses,
        unix_socket_dir,
        ..
    } = &config.listen;
    let failed = |address: String| move |cause| StartError::Listen { address, cause };
    let activated = activation::sockets(&config.tcp).map_err(failed("LISTEN_FDS".into()))?;
    if !activated.is_empty() {
        for listener in &activated {
            let address = listener.name();
            let passed = "socket passed from service manager";
            tracing::info!(said = config.log.words(passed), address, "{passed}");
            tracing::info!(said = listening(config, address), address, "listening");
        }
        return Ok(activated);
    }
    let taken = taken.into_iter();
    let taken = taken.map(|socket| Listener::from_socket(socket, &config.tcp));
    let taken = taken.collect::<io::Result<Vec<_>>>();
    let mut taken = taken.map_err(failed("sockets of the running process".into()))?;
    // Whatever is configured no longer is closed here, and by its owner when that ends.
    let mut take = |name: &str| {
        let index = taken.iter().position(|taken| taken.name() == name)?;
        Some(taken.swap_remove(index))
    };
    let mut listeners = vec![];
    for address in addresses {
        let name = address.to_string();
        let listener = match take(&name) {
            Some(taken) => Ok(taken),
            None => Listener::tcp(*address, &config.tcp, &config.listen),
        };
        listeners.push(listener.map_err(failed(name))?);
    }
    if let Some(directory) = unix_socket_dir {
        let port = config.listen.unix_port();
        let listener = match take(&unix_path(directory, port)) {
            Some(taken) => Ok(taken.with_file()),
            None => Listener::unix(directory, port, &config.listen),
        };
        listeners.push(listener.map_err(failed(directory.clone()))?);
    }
    for listener in &listeners {
        let address = listener.name();
        tracing::info!(said = listening(config, address), address, "listening");
    }
    Ok(listeners)
}

/// PgBouncer's line about a listening socket.
fn listening(config: &Config, name: &str) -> Option<String> {
    let kind = if name.starts_with(['/', '@']) {
        "unix:"
    } else {
        ""
    };
    config.log.words(format_args!("listening on {kind}{name}"))
}

/// Looks after what time brings.
async fn keep_time(app: Arc<App>, end: CancellationToken) {
    let (mut tick, mut hurry, mut sweep) = (interval(TICK), interval(HURRY), interval(SWEEP));
    let mut repeated = interval_at(Instant::now() + MINUTE, MINUTE);
    let mut stats = StatsClock::new(&app);
    let mut look = interval(page::LOOK);
    for interval in [&mut tick, &mut hurry, &mut look] {
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let start = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                app.directory.set_clock(start.elapsed());
                app.pools.tick();
            }
            _ = hurry.tick() => {
                app.hurry();
                app.reap();
            }
            _ = sweep.tick() => {
                app.sweep();
                stats.follow(&app);
            }
            _ = stats.ticks.tick() => stats.end_period(&app),
            _ = repeated.tick() => log::end_minute(),
            _ = look.tick() => app.page.look(&app),
            () = end.cancelled() => return,
        }
    }
}

/// Looks after `log.stats_period`, which may change.
struct StatsClock {
    period: Duration,
    ticks: Interval,
}

impl StatsClock {
    fn new(app: &App) -> Self {
        let period = app.world().config.log.stats_period;
        let ticks = interval_at(Instant::now() + period, period);
        Self { period, ticks }
    }

    fn follow(&mut self, app: &App) {
        if app.world().config.log.stats_period != self.period {
            *self = Self::new(app);
        }
    }

    fn end_period(&self, app: &App) {
        let averages = app.pools.end_stats_period();
        app.console.end_stats_period(self.period);
        if app.world().config.log.stats {
            log::tell_averages(&averages);
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
    let clients = config.limits.max_clients;
    let needed = u64::from(clients) + 1000;
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let (now, hard) = (number(limit.current), number(limit.maximum));
    let said = config.log.words(format_args!(
        "kernel file descriptor limit: {now} (hard: {hard}); max_client_conn: {clients}, max expected fd use: {needed}"
    ));
    tracing::info!(said, limit = now, needed, "open files");
    if limit.current.is_some_and(|current| current < needed) {
        tracing::warn!(limit = ?limit.current, needed, "the limit of open files is too low for limits.max_clients");
    }
}
