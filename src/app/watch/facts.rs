//! What the watch sees at one look: who has what, and what of it is beyond its threshold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::monitor::Reading;
use super::super::serve::App;
use super::super::world::World;
use crate::incident::{
    Cause, Clients, Foreign, Ground, Harm, Holder as Held, Queue, Snapshot, Transaction,
};
use crate::policy::alert::{Holder, Measured};
use crate::policy::budget::{Backend, Whose};
use crate::pool::pools::GroundView;
use crate::pool::view::ServiceRow;

/// Rows of each table of a snapshot.
const MOST_ROWS: usize = 50;

/// Transactions that a snapshot names.
const OLDEST: usize = 10;

/// Looks over which failed logins are counted: a minute.
const MINUTE: usize = 60;

/// How things stand.
pub(super) struct Facts {
    /// Each Postgres.
    grounds: Vec<(GroundView, Option<Arc<Reading>>)>,
    /// Server connections by service, the most first.
    holders: Vec<(String, u32)>,
    /// Clients by service and deployment, the most first.
    clients: Vec<Clients>,
    /// Every service.
    services: Vec<ServiceRow>,
    /// Waiters.
    queue: Vec<Waiting>,
}

/// Those who wait for one pool.
struct Waiting {
    ground: usize,
    count: u32,
    longest: Duration,
}

impl Facts {
    pub(super) fn gather(app: &App) -> Self {
        let grounds = app.pools.grounds();
        let mut queue = Vec::new();
        for pool in app.pools.all() {
            let Some((view, longest)) = pool.view().filter(|(view, _)| view.waiters > 0) else {
                continue;
            };
            let ground = grounds.iter().position(|ground| ground.id == pool.host());
            queue.push(Waiting {
                ground: ground.unwrap_or_default(),
                count: view.waiters,
                longest,
            });
        }
        let with_reading = |ground: GroundView| {
            let reading = app.watch.reading(ground.id);
            (ground, reading)
        };
        Self {
            grounds: grounds.into_iter().map(with_reading).collect(),
            holders: app.pools.holders(None),
            services: app.pools.services(),
            clients: clients(app),
            queue,
        }
    }

    /// How many server connections would have to come free for the pressure to end.
    pub(super) fn wanted(&self, world: &World) -> u32 {
        let pressure = &world.config.pressure;
        let mut wanted = 0;
        for (at, (ground, _)) in self.grounds.iter().enumerate() {
            if !pressure.waiters_for.is_zero() && is_spent(ground) {
                let late = self.queue.iter().filter(|waiting| waiting.ground == at);
                let late = late.filter(|waiting| waiting.longest >= pressure.waiters_for);
                wanted += late.map(|waiting| waiting.count).sum::<u32>();
            }
            if let Some(free) = ground.free() {
                wanted = wanted.max(pressure.min_headroom.saturating_sub(free));
            }
        }
        wanted
    }

    fn total(&self) -> u32 {
        let held = self.grounds.iter();
        let monitors = held
            .clone()
            .filter(|(_, reading)| reading.is_some())
            .count();
        let held: u32 = held.map(|(ground, _)| ground.tally.total()).sum();
        held + u32::try_from(monitors).unwrap_or(0)
    }

    /// Who has the most clients of a service, by deployment.
    fn biggest_deployment(&self, service: &str) -> Option<&Clients> {
        self.clients
            .iter()
            .find(|clients| clients.service == service)
    }

    /// Who holds the most server connections.
    fn biggest(&self) -> Option<Holder> {
        let (service, count) = self.holders.first()?;
        let deployment = self.biggest_deployment(service);
        Some(Holder {
            service: service.clone(),
            deployment: deployment
                .map(|clients| clients.deployment.clone())
                .unwrap_or_default(),
            count: (*count).into(),
        })
    }

    pub(super) fn snapshot(&self, app: &App, harm: &HarmSince) -> Snapshot {
        let grounds = self.grounds.iter();
        let mut rows = Rows::default();
        for (ground, reading) in grounds.clone() {
            let Some(reading) = reading else { continue };
            let users = app.pools.users_of_backends(ground.id);
            for (whose, backend) in &reading.backends {
                let user = users.get(&backend.pid).map(|user| holder(app, user));
                rows.add(*whose, backend, user);
            }
        }
        let Rows {
            held,
            foreign,
            mut transactions,
        } = rows;
        let mut holders: Vec<_> = held.into_values().collect();
        if holders.is_empty() {
            // Postgres does not say: what pgweir knows by itself.
            let known = self.holders.iter();
            let known = known.map(|(service, count)| Held {
                service: service.clone(),
                count: *count,
                ..Held::default()
            });
            holders = known.collect();
        }
        let mut foreign: Vec<_> = foreign.into_values().collect();
        holders.sort_by_key(|row| Reverse(row.count));
        holders.truncate(MOST_ROWS);
        foreign.sort_by_key(|row| Reverse(row.count));
        foreign.truncate(MOST_ROWS);
        transactions.sort_by_key(|row| Reverse(row.seconds));
        transactions.truncate(OLDEST);
        let waiting = self.services.iter().filter(|row| row.waiters > 0);
        let mut queue: Vec<_> = waiting
            .map(|row| Queue {
                service: row.name.to_string(),
                waiting: row.waiters,
                longest: millis(row.longest_wait),
            })
            .collect();
        queue.sort_by_key(|row| Reverse(row.longest));
        queue.truncate(MOST_ROWS);
        Snapshot {
            postgres: grounds
                .map(|(ground, reading)| noted(ground, reading.as_deref()))
                .collect(),
            holders,
            clients: self.clients.iter().take(MOST_ROWS).cloned().collect(),
            transactions,
            queue,
            harm: harm.rows(app),
            foreign,
        }
    }
}

/// The tables of a snapshot that are made of what Postgres said.
#[derive(Default)]
struct Rows {
    held: BTreeMap<(User, String), Held>,
    foreign: BTreeMap<[String; 4], Foreign>,
    transactions: Vec<Transaction>,
}

/// Service, deployment and address of a client.
type User = (String, String, String);

impl Rows {
    fn add(&mut self, whose: Whose, backend: &Backend, user: Option<User>) {
        if let Some(seconds) = backend.transaction {
            let (service, deployment, _) = user.clone().unwrap_or_default();
            self.transactions.push(Transaction {
                service,
                deployment,
                user: backend.user.clone(),
                pid: backend.pid,
                state: backend.state.clone(),
                seconds,
                statement: backend.statement.clone(),
            });
        }
        match (whose, user) {
            (Whose::Ours, Some(user)) => self.hold(backend, user),
            // Closed or opened while Postgres was asked.
            (Whose::Ours, None) => {}
            (Whose::Siblings | Whose::Foreign, _) => self.foreign(backend),
        }
    }

    fn hold(&mut self, backend: &Backend, user: User) {
        let (service, deployment, address) = user.clone();
        let entry = self.held.entry((user, backend.state.clone()));
        let row = entry.or_insert_with(|| Held {
            service,
            deployment,
            address,
            state: backend.state.clone(),
            ..Held::default()
        });
        row.count += 1;
        let unchanged = backend.unchanged.unwrap_or(0);
        if row.count == 1 || unchanged > row.oldest {
            row.oldest = unchanged;
            row.statement.clone_from(&backend.statement);
        }
    }

    fn foreign(&mut self, backend: &Backend) {
        let Backend {
            application_name,
            user,
            address,
            state,
            ..
        } = backend.clone();
        let key = [&application_name, &user, &address, &state].map(Clone::clone);
        let row = self.foreign.entry(key).or_insert_with(|| Foreign {
            application_name,
            user,
            address,
            state,
            ..Foreign::default()
        });
        row.count += 1;
        row.oldest = row.oldest.max(backend.age);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn clients(app: &App) -> Vec<Clients> {
    let mut sums = BTreeMap::<(String, String), u64>::new();
    for (who, tally) in app.directory.tally() {
        let deployment = who.deployment.as_deref().unwrap_or_default();
        let key = (who.service.clone(), deployment.to_owned());
        *sums.entry(key).or_default() += tally.total();
    }
    let rows = sums
        .into_iter()
        .map(|((service, deployment), count)| Clients {
            service,
            deployment,
            count,
        });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| Reverse(row.count));
    rows
}

/// Whose a server connection is at this moment: service, deployment and address of its client.
fn holder(app: &App, (service, client): &(String, Option<u32>)) -> (String, String, String) {
    let row = client.and_then(|client| app.directory.row_of(client));
    match row {
        Some(row) => (
            service.clone(),
            row.who.deployment.as_deref().unwrap_or_default().to_owned(),
            row.peer
                .ip()
                .map_or_else(|| "unix".to_owned(), |address| address.to_string()),
        ),
        None => (service.clone(), String::new(), String::new()),
    }
}

fn noted(ground: &GroundView, reading: Option<&Reading>) -> Ground {
    Ground {
        name: ground.name.clone(),
        max_connections: ground
            .measured
            .map(|measured| measured.limits.max_connections),
        budget: ground.budget,
        held: ground.tally.total() + u32::from(reading.is_some()),
        others: ground.measured.map(|measured| measured.others),
        free: ground.free(),
        trouble: ground.trouble.as_deref().map(str::to_owned),
    }
}

fn is_spent(ground: &GroundView) -> bool {
    ground
        .budget
        .is_some_and(|budget| ground.tally.total() >= budget)
}

/// What pgweir calls itself to people.
pub(super) fn name(world: &World) -> String {
    let addresses = &world.config.listen.addresses;
    match addresses.first() {
        Some(address) => format!("pgweir at {address}"),
        None => "pgweir".to_owned(),
    }
}

/// What is remembered from look to look for what is measured.
#[derive(Default)]
pub(super) struct Looks {
    /// Failed logins so far, at each look of the last minute.
    failures: VecDeque<u64>,
    /// Looks in a row at which a Postgres was in trouble.
    trouble: HashMap<String, u64>,
    /// Refusals of each Postgres at the last look.
    refusals: HashMap<String, u64>,
}

impl Looks {
    pub(super) fn measure(&mut self, app: &App, world: &World, facts: &Facts) -> Vec<Measured> {
        let console = Console::of(world);
        let mut all = Vec::new();
        services(world, facts, &console, &mut all);
        total(world, facts, &console, &mut all);
        for (at, (ground, _)) in facts.grounds.iter().enumerate() {
            headroom(world, facts, ground, &console, &mut all);
            waiters(world, facts, at, &console, &mut all);
            self.trouble(ground, &console, &mut all);
            self.refused(ground, facts, &console, &mut all);
        }
        self.logins(app, world, &console, &mut all);
        all
    }

    fn trouble(&mut self, ground: &GroundView, console: &Console, all: &mut Vec<Measured>) {
        let looks = self.trouble.entry(ground.name.clone()).or_default();
        *looks = if ground.trouble.is_some() {
            *looks + 1
        } else {
            0
        };
        let why = ground.trouble.as_deref().unwrap_or_default();
        all.push(Measured {
            kind: Cause::Unreachable,
            subject: ground.name.clone(),
            // One dial that failed is none.
            value: (*looks).min(2),
            threshold: 1,
            holder: None,
            text: format!("Postgres at {} cannot be reached: {why}", ground.name),
            command: console.type_in("SHOW BUDGET"),
        });
    }

    fn refused(
        &mut self,
        ground: &GroundView,
        facts: &Facts,
        console: &Console,
        all: &mut Vec<Measured>,
    ) {
        let before = self.refusals.insert(ground.name.clone(), ground.refusals);
        let more = ground.refusals > before.unwrap_or(0);
        all.push(Measured {
            kind: Cause::TooManyConnections,
            subject: ground.name.clone(),
            value: u64::from(more || ground.is_full),
            threshold: 0,
            holder: facts.biggest(),
            text: format!(
                "Postgres at {} refuses connections with 53300{}{}",
                ground.name,
                ground.measured.map_or(String::new(), |measured| format!(
                    ": of max_connections = {}, others hold {}",
                    measured.limits.max_connections, measured.others
                )),
                most(facts.biggest().as_ref()),
            ),
            command: console.type_in("SHOW FOREIGN; SHOW SERVICES"),
        });
    }

    fn logins(&mut self, app: &App, world: &World, console: &Console, all: &mut Vec<Measured>) {
        let now = app.metrics.login_failures();
        self.failures.push_back(now);
        if self.failures.len() > MINUTE {
            self.failures.pop_front();
        }
        let most = world.config.alerts.login_failures;
        let first = self.failures.front().copied().unwrap_or(now);
        if most > 0 {
            let value = now.saturating_sub(first);
            all.push(Measured {
                kind: Cause::LoginFailures,
                subject: String::new(),
                value,
                threshold: most.into(),
                holder: None,
                text: format!("{value} logins failed within a minute, the alert is at {most}"),
                command: console.type_in("SHOW STATS_TOTALS; SHOW CLIENTS"),
            });
        }
    }
}

fn services(world: &World, facts: &Facts, console: &Console, all: &mut Vec<Measured>) {
    let mut clients = BTreeMap::<&str, u64>::new();
    for row in &facts.clients {
        *clients.entry(&row.service).or_default() += row.count;
    }
    let servers = facts.holders.iter();
    let servers =
        servers.map(|(service, count)| (Cause::ServiceServers, &**service, u64::from(*count)));
    let clients = clients.into_iter();
    let clients = clients.map(|(service, count)| (Cause::ServiceClients, service, count));
    for (kind, service, value) in servers.chain(clients) {
        let limits = world.limits_of(service);
        let (threshold, what) = match kind {
            Cause::ServiceServers => (limits.alert_servers, "server connections"),
            _ => (limits.alert_clients, "clients"),
        };
        if threshold == 0 {
            continue;
        }
        let biggest = facts.biggest_deployment(service);
        let (deployment, count) = biggest.map_or(("", value), |row| (&row.deployment, row.count));
        let mut text = format!("service {service} has {value} {what}, the alert is at {threshold}");
        if !deployment.is_empty() {
            let more = format!("; most clients are of deployment {deployment} ({count})");
            text.push_str(&more);
        }
        all.push(Measured {
            kind,
            subject: service.to_owned(),
            value,
            threshold: threshold.into(),
            holder: Some(Holder {
                service: service.to_owned(),
                deployment: deployment.to_owned(),
                count: if deployment.is_empty() { value } else { count },
            }),
            text,
            command: console.type_in(&format!("SHOW DEPLOYMENTS; KILL STALE {}", quoted(service))),
        });
    }
}

fn total(world: &World, facts: &Facts, console: &Console, all: &mut Vec<Measured>) {
    let threshold = world.config.alerts.total_servers;
    if threshold == 0 {
        return;
    }
    let (value, holder) = (facts.total(), facts.biggest());
    all.push(Measured {
        kind: Cause::TotalServers,
        subject: String::new(),
        value: value.into(),
        threshold: threshold.into(),
        text: format!(
            "there are {value} server connections in all, the alert is at {threshold}{}",
            most(holder.as_ref())
        ),
        holder,
        command: console.type_in("SHOW SERVICES; KILL STALE"),
    });
}

fn headroom(
    world: &World,
    facts: &Facts,
    ground: &GroundView,
    console: &Console,
    all: &mut Vec<Measured>,
) {
    let threshold = world.config.pressure.min_headroom;
    let (Some(free), Some(measured)) = (ground.free(), ground.measured) else {
        return;
    };
    let holder = facts.biggest();
    all.push(Measured {
        kind: Cause::Headroom,
        subject: ground.name.clone(),
        value: free.into(),
        threshold: threshold.into(),
        text: format!(
            "Postgres at {} has {free} connections left of {}, the floor is {threshold}; others hold {}{}",
            ground.name,
            measured.limits.ordinary(),
            measured.others,
            most(holder.as_ref())
        ),
        holder,
        command: console.type_in("SHOW FOREIGN; SHOW BUDGET"),
    });
}

fn waiters(world: &World, facts: &Facts, at: usize, console: &Console, all: &mut Vec<Measured>) {
    let limit = world.config.pressure.waiters_for;
    let (ground, _) = &facts.grounds[at];
    let waiting = facts.queue.iter().filter(|waiting| waiting.ground == at);
    let count: u32 = waiting.clone().map(|waiting| waiting.count).sum();
    let longest = waiting.map(|waiting| waiting.longest).max();
    let longest = longest.filter(|_| is_spent(ground)).unwrap_or_default();
    if limit.is_zero() {
        return;
    }
    let holder = facts.biggest();
    all.push(Measured {
        kind: Cause::Waiters,
        subject: ground.name.clone(),
        value: millis(longest),
        threshold: millis(limit),
        text: format!(
            "the budget of {} at {} is spent and {count} clients wait, the first for {} ms{}",
            ground.budget.unwrap_or_default(),
            ground.name,
            millis(longest),
            most(holder.as_ref())
        ),
        holder,
        command: console.type_in("SHOW WAITERS; SHOW SERVICES; KILL STALE"),
    });
}

fn most(holder: Option<&Holder>) -> String {
    match holder {
        None => String::new(),
        Some(Holder {
            service,
            deployment,
            count,
        }) if deployment.is_empty() => {
            format!("; most are held by service {service} ({count})")
        }
        Some(Holder {
            service,
            deployment,
            count,
        }) => {
            format!(
                "; most are held by service {service} ({count}), most of whose clients are of deployment {deployment}"
            )
        }
    }
}

/// A name as the console takes it.
fn quoted(name: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.');
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// How to reach the console.
struct Console(String);

impl Console {
    fn of(world: &World) -> Self {
        let config = &world.config;
        let port = config
            .listen
            .addresses
            .first()
            .map_or(6432, std::net::SocketAddr::port);
        let user = config
            .auth
            .admins
            .first()
            .map_or("postgres", String::as_str);
        Self(format!("psql -p {port} -U {user} pgweir"))
    }

    fn type_in(&self, commands: &str) -> String {
        format!("{}, then {commands}", self.0)
    }
}

/// What services suffered since an incident began.
#[derive(Default)]
pub(super) struct HarmSince {
    /// Refusals when it began.
    refused: BTreeMap<String, u64>,
    /// The most that waited at once.
    waiting: BTreeMap<String, u32>,
}

impl HarmSince {
    pub(super) fn from_now(app: &App) -> Self {
        Self {
            refused: app.watch.refusals_by_service(),
            waiting: BTreeMap::new(),
        }
    }

    pub(super) fn note(&mut self, facts: &Facts) {
        let waiting = facts.services.iter().filter(|row| row.waiters > 0);
        for row in waiting.take(MOST_ROWS) {
            let most = self.waiting.entry(row.name.to_string()).or_default();
            *most = row.waiters.max(*most);
        }
    }

    fn rows(&self, app: &App) -> Vec<Harm> {
        let mut rows = BTreeMap::<String, Harm>::new();
        for (service, waiting) in &self.waiting {
            rows.entry(service.clone()).or_default().waiting = (*waiting).into();
        }
        for (service, now) in app.watch.refusals_by_service() {
            let before = self.refused.get(&service).copied().unwrap_or(0);
            let refused = now.saturating_sub(before);
            if refused > 0 {
                rows.entry(service).or_default().refused = refused;
            }
        }
        let named = rows
            .into_iter()
            .map(|(service, harm)| Harm { service, ..harm });
        named.take(MOST_ROWS).collect()
    }
}
