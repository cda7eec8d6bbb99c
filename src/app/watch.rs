//! The watch: looks once a second at who has what, raises alerts, and records incidents while they last.
//!
//! It has a thread of its own, with the monitors of each Postgres and the files of incidents, so that neither a slow Postgres nor a
//! slow disk delays a client.

mod facts;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::monitor::{Monitor, Reading};
use super::serve::App;
use super::webhook::{Message, Place, Webhook};
use super::world::World;
use crate::config::checked::Incidents;
use crate::incident::store::{Store, StoreError};
use crate::incident::{Cause, Incident, Summary, What, time};
use crate::metrics::Reasons;
use crate::policy::alert::{Alert, Alerts, Holder, Turn};
use crate::pool::book::HostId;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);

/// How often a Postgres is tried that could not be read for want of a login: the first client brings one.
const FIRST_LOGIN: Duration = Duration::from_millis(500);

/// How long the process waits for its Postgres to close the monitor's connection when it ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// What was done that waits to be noted. More is dropped.
const MOST_DEEDS: usize = 100;

/// Services whose refusals are counted apart. Their names come from clients.
const MOST_SERVICES: usize = 1000;

/// What the watch knows, for all who ask.
#[derive(Debug, Default)]
pub struct Watch {
    /// What was read last at each Postgres.
    readings: RwLock<HashMap<HostId, Arc<Reading>>>,
    alerts: RwLock<Arc<[Raised]>>,
    incidents: RwLock<Arc<[Summary]>>,
    store: Mutex<Option<Store>>,
    /// Clients that were sent away although they may come, by service and reason.
    refused: DashMap<(String, &'static str), u64>,
    deeds: Mutex<Vec<String>>,
    /// Incidents that were opened, by their cause.
    pub opened: Reasons,
    wanted: AtomicU32,
    webhook: Option<Webhook>,
}

/// An alert as it is shown.
#[derive(Debug, Clone)]
pub struct Raised {
    /// The alert.
    pub alert: Alert,
    /// Since when, in milliseconds since 1970.
    pub since: i64,
}

impl Watch {
    /// With a webhook, if its thread can be started.
    pub fn new() -> Self {
        let webhook = Webhook::start();
        if let Err(error) = &webhook {
            tracing::error!(%error, "no webhook will be told");
        }
        Self {
            webhook: webhook.ok(),
            opened: Reasons::new(&Cause::ALL.map(Cause::as_str)),
            ..Self::default()
        }
    }

    /// What was read last at one Postgres.
    pub fn reading(&self, host: HostId) -> Option<Arc<Reading>> {
        self.readings.read().get(&host).cloned()
    }

    /// The alerts that are raised.
    pub fn alerts(&self) -> Arc<[Raised]> {
        Arc::clone(&self.alerts.read())
    }

    /// The incidents that are kept, the newest first.
    pub fn incidents(&self) -> Arc<[Summary]> {
        Arc::clone(&self.incidents.read())
    }

    /// Everything about one incident. Reads a file: not for a thread that serves clients.
    pub fn incident(&self, number: u64) -> Result<Incident, StoreError> {
        let store = self.store.lock();
        store
            .as_ref()
            .map_or(Err(StoreError::Unknown(number)), |store| store.read(number))
    }

    /// How many server connections would have to come free for the pressure to end; 0: there is none.
    pub fn wanted(&self) -> u32 {
        self.wanted.load(Relaxed)
    }

    /// Notes that so many server connections will come free: no more are to be closed for the same want.
    pub fn helped(&self, freed: usize) {
        let freed = u32::try_from(freed).unwrap_or(u32::MAX);
        let less = |wanted: u32| Some(wanted.saturating_sub(freed));
        // It always says something else, so there is always a value before.
        let _ = self.wanted.fetch_update(Relaxed, Relaxed, less);
    }

    /// Notes that a client of this service was sent away: it was one too many, or there was no server connection for it.
    pub fn was_refused(&self, service: &str, reason: &'static str) {
        let key = (service.to_owned(), reason);
        if let Some(mut count) = self.refused.get_mut(&key) {
            *count += 1;
        } else if self.refused.len() < MOST_SERVICES {
            *self.refused.entry(key).or_default() += 1;
        }
    }

    /// How many were, by service and reason.
    pub fn refusals(&self) -> BTreeMap<(String, &'static str), u64> {
        let counts = self.refused.iter();
        counts
            .map(|count| (count.key().clone(), *count.value()))
            .collect()
    }

    /// The same by service alone.
    fn refusals_by_service(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for ((service, _), count) in self.refusals() {
            *sums.entry(service).or_default() += count;
        }
        sums
    }

    /// Notes what was done, for the incident that is going on.
    pub fn did(&self, text: String) {
        let mut deeds = self.deeds.lock();
        if deeds.len() < MOST_DEEDS {
            deeds.push(text);
        }
    }

    /// What became of the webhook's messages.
    pub fn webhook_counts(&self) -> [(&'static str, u64); 3] {
        let counts = self.webhook.as_ref().map_or([0; 3], |webhook| {
            let told = webhook.told();
            [&told.sent, &told.failed, &told.dropped].map(|count| count.load(Relaxed))
        });
        let [sent, failed, dropped] = counts;
        [("sent", sent), ("failed", failed), ("dropped", dropped)]
    }
}

/// Starts the thread. It ends when `end` is cancelled.
pub fn start(app: Arc<App>, end: CancellationToken) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("the system gives a thread its epoll instance");
        runtime.block_on(watch(app, end));
    };
    std::thread::Builder::new().name("watch".into()).spawn(run)
}

async fn watch(app: Arc<App>, end: CancellationToken) {
    let mut guard = Guard::new(&app);
    let mut monitors: HashMap<HostId, Arc<Notify>> = HashMap::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tasks = Vec::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = end.cancelled() => break,
        }
        guard.enlist(&app);
        for ground in app.pools.grounds() {
            let nudge = monitors.entry(ground.id).or_insert_with(|| {
                let nudge = Arc::new(Notify::new());
                let monitor = Monitor::new(ground.id, ground.name.clone());
                let (app, nudge_too, end) = (Arc::clone(&app), Arc::clone(&nudge), end.clone());
                tasks.push(spawn_local(keep_reading(
                    app, monitor, ground.id, nudge_too, end,
                )));
                nudge
            });
            if guard.has_more_refusals(ground.id, ground.refusals) {
                nudge.notify_one();
            }
        }
        guard.look(&app);
        app.memory.keep(app.reaping.memory());
    }
    guard.leave(&app);
    for task in tasks {
        // It says goodbye to its Postgres.
        let _ = task.await;
    }
}

/// Reads one Postgres as often as is configured.
async fn keep_reading(
    app: Arc<App>,
    mut monitor: Monitor,
    host: HostId,
    nudge: Arc<Notify>,
    end: CancellationToken,
) {
    loop {
        let world = app.world();
        let every = world.config.budget.check_every;
        let pause = if let Some(every) = every.filter(|_| world.is_watched()) {
            let read = tokio::select! {
                read = monitor.check(&app) => read,
                () = end.cancelled() => return,
            };
            match read {
                Some(reading) => {
                    app.watch.readings.write().insert(host, Arc::new(reading));
                    every
                }
                None if app.watch.reading(host).is_none() => every.min(FIRST_LOGIN),
                None => every,
            }
        } else {
            monitor.leave().await;
            app.watch.readings.write().remove(&host);
            LOOK
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = nudge.notified() => {}
            () = end.cancelled() => {
                // What is not closed by then the kernel closes.
                let _ = timeout(GOODBYE, monitor.leave()).await;
                return;
            }
        }
    }
}

/// What the watch remembers from look to look.
struct Guard {
    start: Instant,
    alerts: Alerts,
    /// The world whose databases are enlisted.
    known: Option<Arc<World>>,
    refusals: HashMap<HostId, u64>,
    looks: facts::Looks,
    /// When the next snapshot is due.
    snapshot_at: Option<Instant>,
    /// Refusals by service when the incident began, and the most that waited since.
    harm: facts::HarmSince,
    complained: bool,
}

impl Guard {
    fn new(app: &App) -> Self {
        let incidents = &app.world().config.incidents;
        let store = open(incidents);
        *app.watch.incidents.write() = store.list().into();
        *app.watch.store.lock() = Some(store);
        Self {
            start: Instant::now(),
            alerts: Alerts::default(),
            known: None,
            refusals: HashMap::new(),
            looks: facts::Looks::default(),
            snapshot_at: None,
            harm: facts::HarmSince::default(),
            complained: false,
        }
    }

    /// Makes each Postgres of the configuration known, so that it is watched before the first client comes.
    fn enlist(&mut self, app: &App) {
        let world = app.world();
        if self
            .known
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &world))
        {
            return;
        }
        for (name, database) in super::monitor::databases(&world) {
            let login = crate::server::login::ServerLogin::Nothing;
            app.pools
                .ground(&world.pool_settings(&name, database, "", login));
        }
        self.known = Some(world);
    }

    fn has_more_refusals(&mut self, host: HostId, now: u64) -> bool {
        let before = self.refusals.insert(host, now);
        now > before.unwrap_or(0)
    }

    fn look(&mut self, app: &App) {
        let world = app.world();
        let facts = facts::Facts::gather(app);
        app.watch.wanted.store(facts.wanted(&world), Relaxed);
        self.harm.note(&facts);
        let measured = self.looks.measure(app, &world, &facts);
        let repeat_every = world.config.alerts.repeat_every;
        let turns = self
            .alerts
            .observe(self.start.elapsed(), measured, repeat_every);
        let changed = !turns.is_empty();
        for (turn, alert) in turns {
            Self::tell(app, &world, turn, &alert);
            self.record(app, &world, turn, &alert, &facts);
        }
        self.go_on(app, &world, &facts);
        if changed {
            self.publish(app);
        }
    }

    /// Says in the log and to the webhook what became of an alert.
    fn tell(app: &App, world: &World, turn: Turn, alert: &Alert) {
        let measured = &alert.measured;
        let Holder {
            service,
            deployment,
            count,
        } = measured.holder.clone().unwrap_or_default();
        let (kind, event) = (measured.kind.as_str(), turn.as_str());
        if turn == Turn::Resolved {
            tracing::info!(
                alert = kind,
                subject = measured.subject,
                "alert resolved: {}",
                measured.text
            );
        } else {
            tracing::warn!(
                alert = kind,
                subject = measured.subject,
                service,
                deployment,
                count,
                event,
                "alert: {}; to see more: {}",
                measured.text,
                measured.command
            );
        }
        Self::post(
            app,
            world,
            Message {
                event: event.to_owned(),
                alert: kind.to_owned(),
                subject: measured.subject.clone(),
                value: measured.value,
                threshold: measured.threshold,
                service,
                deployment,
                count,
                text: measured.text.clone(),
                command: measured.command.clone(),
                ..Message::default()
            },
        );
    }

    fn post(app: &App, world: &World, message: Message) {
        let alerts = &world.config.alerts;
        if let (Some(webhook), Some(url)) = (&app.watch.webhook, &alerts.webhook) {
            let place = Place {
                url: url.clone(),
                ca: alerts.webhook_ca.clone(),
            };
            webhook.tell(
                &place,
                Message {
                    at: time(now()),
                    pgweir: facts::name(world),
                    ..message
                },
            );
        }
    }

    /// Notes what became of an alert in the incident, and begins one if there is none.
    fn record(
        &mut self,
        app: &App,
        world: &World,
        turn: Turn,
        alert: &Alert,
        facts: &facts::Facts,
    ) {
        let (cause, text) = (alert.measured.kind, alert.measured.text.clone());
        match turn {
            Turn::Repeated => {}
            Turn::Resolved => self.note(
                app,
                What::Passed {
                    cause,
                    text: format!("It is over that {text}"),
                },
            ),
            Turn::Raised if Self::open(app).is_some() => {
                self.note(app, What::Joined { cause, text });
            }
            Turn::Raised => {
                self.harm = facts::HarmSince::from_now(app);
                app.watch.deeds.lock().clear();
                let begun = Self::with_store(app, |store| {
                    store.begin(now(), cause, &text, &facts::name(world))
                });
                if begun.is_ok() {
                    app.watch.opened.add(cause.as_str());
                }
                self.check(begun);
                let number = Self::open(app).unwrap_or_default();
                tracing::warn!(incident = number, "an incident is recorded");
                self.snapshot(app, world, facts);
                Self::post(
                    app,
                    world,
                    Message {
                        event: "incident_opened".to_owned(),
                        alert: cause.as_str().to_owned(),
                        text: format!("Incident {number} began: {text}"),
                        command: format!("SHOW INCIDENT {number}"),
                        incident: number,
                        ..Message::default()
                    },
                );
            }
        }
    }

    /// Goes on with the incident that is open, or ends it.
    fn go_on(&mut self, app: &App, world: &World, facts: &facts::Facts) {
        let Some(number) = Self::open(app) else {
            return;
        };
        for text in std::mem::take(&mut *app.watch.deeds.lock()) {
            self.note(app, What::Done { text });
        }
        if self.alerts.is_empty() {
            self.snapshot(app, world, facts);
            let text = "all alerts are resolved".to_owned();
            self.note(app, What::Closed { text });
            tracing::info!(incident = number, "the incident is over");
            self.snapshot_at = None;
            self.publish(app);
            Self::post(
                app,
                world,
                Message {
                    event: "incident_closed".to_owned(),
                    text: format!("Incident {number} is over"),
                    command: format!("SHOW INCIDENT {number}"),
                    incident: number,
                    ..Message::default()
                },
            );
        } else if self.snapshot_at.is_some_and(|at| Instant::now() >= at) {
            self.snapshot(app, world, facts);
        }
    }

    fn snapshot(&mut self, app: &App, world: &World, facts: &facts::Facts) {
        let snapshot = facts.snapshot(app, &self.harm);
        self.note(app, What::Stood(Box::new(snapshot)));
        let every = world.config.incidents.snapshot_every;
        self.snapshot_at = (!every.is_zero()).then(|| Instant::now() + every);
    }

    /// The process ends.
    fn leave(&mut self, app: &App) {
        if Self::open(app).is_some() {
            let text = "pgweir was told to end".to_owned();
            self.note(app, What::Closed { text });
        }
    }

    fn note(&mut self, app: &App, what: What) {
        let noted = Self::with_store(app, |store| store.note(now(), what));
        self.check(noted);
    }

    fn open(app: &App) -> Option<u64> {
        Self::with_store(app, |store| store.open())
    }

    fn with_store<T>(app: &App, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = app.watch.store.lock();
        act(store.get_or_insert_with(|| Store::in_memory(1)))
    }

    /// Says once that a note could not be kept.
    fn check(&mut self, outcome: Result<(), StoreError>) {
        match outcome {
            Ok(()) => self.complained = false,
            Err(error) if !std::mem::replace(&mut self.complained, true) => {
                tracing::error!("incidents cannot be written: {error}");
            }
            Err(_) => {}
        }
    }

    /// Shows others how things stand.
    fn publish(&self, app: &App) {
        let passed = |alert: &Alert| self.start.elapsed().saturating_sub(alert.since);
        let raised = self.alerts.raised().map(|alert| Raised {
            since: now() - i64::try_from(passed(alert).as_millis()).unwrap_or(i64::MAX),
            alert: alert.clone(),
        });
        *app.watch.alerts.write() = raised.collect();
        *app.watch.incidents.write() = Self::with_store(app, |store| store.list()).into();
    }
}

/// The store of the configuration; in memory where its directory cannot be used.
fn open(incidents: &Incidents) -> Store {
    let keep = incidents.keep as usize;
    let Some(directory) = &incidents.directory else {
        return Store::in_memory(keep);
    };
    Store::in_directory(directory, keep, now()).unwrap_or_else(|error| {
        tracing::error!("incidents are kept in memory only: {error}");
        Store::in_memory(keep)
    })
}

/// In milliseconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
