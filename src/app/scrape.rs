//! The text of `/metrics`: what was counted, and what pools and directory know at this moment. Takes a thread of its own for some
//! milliseconds, and every lock for a bounded part of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::console;
use super::log;
use super::process;
use super::serve::App;
use crate::client::directory::Who;
use crate::client::view::ClientTally;
use crate::config::checked::ServiceLimits;
use crate::metrics::{self as m, Exposition, Family, Times};
use crate::policy::budget::Shares;
use crate::policy::deployment::DeploymentRow;
use crate::pool::pools::{Measured, OTHERS};
use crate::pool::stats::{Counted, Totals};
use crate::pool::view::{HostRow, PoolRow};

/// Names that `pgweir_clients` tells apart. Far more than anybody looks at, and few enough for Prometheus.
const MOST_SERVICES: usize = 200;
const MOST_DEPLOYMENTS: usize = 100;
const MOST_USERS: usize = 500;
const MOST_DATABASES: usize = 500;

/// All of it.
pub(super) fn scrape(app: &App) -> String {
    let mut text = Exposition::default();
    about(app, &mut text);
    clients(app, &mut text);
    pools(app, &mut text);
    services(app, &mut text);
    deployments(app, &mut text);
    postgres(app, &mut text);
    traffic(app, &mut text);
    process::write(&app.metrics, &mut text);
    text.done()
}

fn about(app: &App, text: &mut Exposition) {
    let version = env!("CARGO_PKG_VERSION");
    text.family(&m::BUILD).add(&[version], 1);
    text.single(&m::DRAINING, u8::from(app.is_draining()));
    by_reason(text, &m::RELOADS, &app.metrics.reloads.read());
    let loaded = app.metrics.config_loaded();
    text.family(&m::CONFIG_LOADED).add_moment(&[], loaded);
    text.single(&m::LOG_SUPPRESSED, log::suppressed());
}

fn by_reason(text: &mut Exposition, family: &'static Family, counts: &[(&'static str, u64)]) {
    let mut series = text.family(family);
    for (reason, count) in counts {
        series.add(&[reason], count);
    }
}

fn clients(app: &App, text: &mut Exposition) {
    let (console, sessions): (Vec<_>, Vec<_>) = app
        .directory
        .tally()
        .into_iter()
        .partition(|(who, _)| who.service == console::SERVICE);
    let mut series = text.family(&m::CLIENTS);
    for ([database, user, service, deployment], tally) in folded(&sessions) {
        for (state, count) in tally.each() {
            series.add(&[database, user, service, deployment, state], count);
        }
    }
    text.single(&m::CLIENT_SOCKETS, app.clients.taken());
    let most = app.world().config.limits.max_clients;
    text.single(&m::CLIENT_SOCKETS_MAX, most);
    let console: u64 = console.iter().map(|(_, tally)| tally.total()).sum();
    text.single(&m::CONSOLE_SESSIONS, console);
    let metrics = &app.metrics;
    text.single(&m::CONSOLE_LOGINS, metrics.console_logins.load(Relaxed));
    text.family(&m::LOGIN_SECONDS)
        .add_times(&[], &metrics.logins.read());
    by_reason(text, &m::LOGIN_FAILURES, &metrics.login_failures.read());
    by_reason(text, &m::SESSIONS_ENDED, &metrics.sessions_ended.read());
    let mut reaped = text.family(&m::SESSIONS_REAPED);
    for ((service, reason), count) in app.reaping.log.counts() {
        reaped.add(&[&service, reason.as_str()], count);
    }
    let mut refused = text.family(&m::SERVICE_REFUSALS);
    for ((service, reason), count) in app.watch.refusals() {
        refused.add(&[&service, reason], count);
    }
    by_reason(text, &m::CANCEL_REQUESTS, &metrics.cancel_requests.read());
}

/// Database, user, service and deployment.
type Labels<'a> = [&'a str; 4];

/// Sessions by what is shown of whose they are.
fn folded(sessions: &[(Arc<Who>, ClientTally)]) -> BTreeMap<Labels<'_>, ClientTally> {
    let names = |of: fn(&Who) -> &str, most| {
        foremost(
            sessions.iter().map(|(who, tally)| (of(who), tally.total())),
            most,
        )
    };
    let shown = [
        (
            database as fn(&Who) -> &str,
            names(database, MOST_DATABASES),
        ),
        (user, names(user, MOST_USERS)),
        (service, names(service, MOST_SERVICES)),
        (deployment, names(deployment, MOST_DEPLOYMENTS)),
    ];
    let mut folded: BTreeMap<Labels<'_>, ClientTally> = BTreeMap::new();
    for (who, tally) in sessions {
        let labels = shown.each_ref().map(|(of, shown)| {
            let name = of(who);
            if shown.contains(name) { name } else { OTHERS }
        });
        *folded.entry(labels).or_default() += *tally;
    }
    folded
}

fn database(who: &Who) -> &str {
    &who.database
}

fn user(who: &Who) -> &str {
    &who.user
}

fn service(who: &Who) -> &str {
    &who.service
}

fn deployment(who: &Who) -> &str {
    who.deployment.as_deref().unwrap_or_default()
}

/// The names with the highest counts.
fn foremost<N: Hash + Ord + Copy>(
    counts: impl Iterator<Item = (N, u64)>,
    most: usize,
) -> HashSet<N> {
    let mut sums: HashMap<N, u64> = HashMap::new();
    for (name, count) in counts {
        *sums.entry(name).or_default() += count;
    }
    let mut ranked: Vec<_> = sums.into_iter().collect();
    if ranked.len() > most {
        ranked.sort_unstable_by(|(one, few), (other, many)| many.cmp(few).then(one.cmp(other)));
        ranked.truncate(most);
    }
    ranked.into_iter().map(|(name, _)| name).collect()
}

fn pools(app: &App, text: &mut Exposition) {
    let mut rows = app.pools.rows_with(&[]);
    rows.sort_unstable_by(|one, other| {
        (&one.pool.database, &one.pool.user).cmp(&(&other.pool.database, &other.pool.user))
    });
    let mut series = text.family(&m::WAITING);
    for row in &rows {
        series.add(&name(row), row.waiters);
    }
    let mut series = text.family(&m::LONGEST_WAIT);
    for row in &rows {
        series.add_time(&name(row), row.longest_wait);
    }
    let mut series = text.family(&m::SERVERS);
    for row in &rows {
        for (state, count) in row.tally.each() {
            let [database, user] = name(row);
            series.add(&[database, user, state], count);
        }
    }
    let mut series = text.family(&m::POOL_SIZE);
    for row in &rows {
        series.add(&name(row), row.limits.size);
    }
}

fn name(row: &PoolRow) -> [&str; 2] {
    [&row.pool.database, &row.pool.user]
}

fn services(app: &App, text: &mut Exposition) {
    let world = app.world();
    let mut rows = app.pools.services();
    rows.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let mut series = text.family(&m::SERVICE_SERVERS);
    for row in &rows {
        for (state, count) in row.tally.each() {
            series.add(&[&row.name, state], count);
        }
    }
    let mut series = text.family(&m::SERVICE_SERVERS_MAX);
    for row in rows.iter().filter(|row| row.limits.max_servers > 0) {
        series.add(&[&row.name], row.limits.max_servers);
    }
    let mut series = text.family(&m::SERVICE_WAITING);
    for row in &rows {
        series.add(&[&row.name], row.waiters);
    }
    let mut series = text.family(&m::SERVICE_LONGEST_WAIT);
    for row in &rows {
        series.add_time(&[&row.name], row.longest_wait);
    }
    let limits: [(&Family, LimitOf); 3] = [
        (&m::SERVICE_CLIENTS_MAX, |limits| limits.max_clients),
        (&m::SERVICE_SERVERS_ALERT, |limits| limits.alert_servers),
        (&m::SERVICE_CLIENTS_ALERT, |limits| limits.alert_clients),
    ];
    for (family, of) in limits {
        let mut series = text.family(family);
        for row in &rows {
            let limit = of(world.limits_of(&row.name));
            if limit > 0 {
                series.add(&[&row.name], limit);
            }
        }
    }
}

/// Reads one of a service's limits; 0 = none.
type LimitOf = fn(&ServiceLimits) -> u32;

/// Sessions by service and deployment. What is gone has no series, and of very many the smallest are told together.
fn deployments(app: &App, text: &mut Exposition) {
    let rows = app.connected_deployments();
    let names = |of: fn(&DeploymentRow) -> &str, most| {
        foremost(rows.iter().map(|row| (of(row), row.sessions.into())), most)
    };
    let services = names(|row| &row.service, MOST_SERVICES);
    let deployments = names(|row| &row.deployment, MOST_DEPLOYMENTS);
    let mut sums: BTreeMap<[&str; 3], u64> = BTreeMap::new();
    let shown = |name, known: &HashSet<&str>| if known.contains(name) { name } else { OTHERS };
    for row in &rows {
        let labels = [
            shown(&row.service, &services),
            shown(&row.deployment, &deployments),
            row.state,
        ];
        *sums.entry(labels).or_default() += u64::from(row.sessions);
    }
    let mut series = text.family(&m::DEPLOYMENT_SESSIONS);
    for (labels, count) in sums {
        series.add(&labels, count);
    }
}

fn postgres(app: &App, text: &mut Exposition) {
    let mut rows = app.pools.hosts();
    rows.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let mut counts = app.pools.postgres_counts();
    counts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let was_there = |row: &HostRow| {
        let last = counts.iter().find(|(name, _)| *name == row.name);
        last.and_then(|(_, counts)| counts.was_there())
    };
    let mut series = text.family(&m::POSTGRES_UP);
    for row in &rows {
        let open = row.tally.idle() + row.tally.lent() > 0;
        if let Some(up) = open.then_some(true).or_else(|| was_there(row)) {
            series.add(&[&row.name], u8::from(up));
        }
    }
    let mut series = text.family(&m::POSTGRES_BUDGET);
    for row in &rows {
        if let Some(budget) = row.budget {
            series.add(&[&row.name], budget);
        }
    }
    watched(app, text);
    let mut series = text.family(&m::POSTGRES_SERVERS);
    for row in &rows {
        for (state, count) in row.tally.each() {
            series.add(&[&row.name, state], count);
        }
    }
    let mut series = text.family(&m::DIALS);
    for (name, counts) in &counts {
        series.add(&[name], counts.dials.load(Relaxed));
    }
    let mut series = text.family(&m::DIAL_FAILURES);
    for (name, counts) in &counts {
        for (reason, count) in counts.failures.read() {
            series.add(&[name, reason], count);
        }
    }
    let mut series = text.family(&m::SERVERS_CLOSED);
    for (name, counts) in &counts {
        for (reason, count) in counts.closings.read() {
            series.add(&[name, reason], count);
        }
    }
}

/// What the monitor has found, and the alerts.
fn watched(app: &App, text: &mut Exposition) {
    let mut grounds = app.pools.grounds();
    grounds.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let families: [(&Family, MeasureOf); 2] = [
        (&m::POSTGRES_MAX, |measured| measured.limits.max_connections),
        (&m::POSTGRES_FREE, |measured| {
            measured.limits.free(measured.open)
        }),
    ];
    for (family, of) in families {
        let mut series = text.family(family);
        for ground in &grounds {
            if let Some(measured) = ground.measured {
                series.add(&[&ground.name], of(&measured));
            }
        }
    }
    let pressure = &app.world().config.pressure;
    text.single(&m::POSTGRES_FREE_FLOOR, pressure.min_headroom);
    let mut series = text.family(&m::POSTGRES_OTHERS);
    for ground in &grounds {
        if let Some(reading) = app.watch.reading(ground.id) {
            let Shares {
                siblings, foreign, ..
            } = reading.shares;
            for (whose, count) in [("pgweir", siblings), ("foreign", foreign)] {
                series.add(&[&ground.name, whose], count);
            }
        }
    }
    let mut series = text.family(&m::POSTGRES_REFUSALS);
    for ground in &grounds {
        series.add(&[&ground.name], ground.refusals);
    }
    let total = app.world().config.alerts.total_servers;
    let mut series = text.family(&m::SERVERS_ALERT);
    if total > 0 {
        series.add(&[], total);
    }
    let mut series = text.family(&m::ALERTS);
    for raised in &*app.watch.alerts() {
        let measured = &raised.alert.measured;
        series.add(&[measured.kind.as_str(), &measured.subject], 1u8);
    }
    by_reason(text, &m::INCIDENTS, &app.watch.opened.read());
    let incidents = app.watch.incidents();
    let is_open = incidents.iter().any(|incident| incident.closed.is_none());
    text.single(&m::INCIDENT_OPEN, u8::from(is_open));
    by_reason(text, &m::WEBHOOK, &app.watch.webhook_counts());
}

/// Reads one of the monitor's figures.
type MeasureOf = fn(&Measured) -> u32;

/// Reads one counter.
type CountOf = fn(&Totals) -> u64;

/// Reads one histogram.
type TimesOf = fn(&Counted) -> &Times;

fn traffic(app: &App, text: &mut Exposition) {
    let counted: BTreeMap<_, _> = app.pools.counted().into_iter().collect();
    let counters: [(&Family, CountOf); 9] = [
        (&m::LOGINS, |totals| totals.logins),
        (&m::ASSIGNMENTS, |totals| totals.assignments),
        (&m::TRANSACTIONS, |totals| totals.transactions),
        (&m::QUERIES, |totals| totals.queries),
        (&m::RECEIVED, |totals| totals.received),
        (&m::SENT, |totals| totals.sent),
        (&m::CLIENT_PARSES, |totals| totals.client_parses),
        (&m::SERVER_PARSES, |totals| totals.server_parses),
        (&m::BINDS, |totals| totals.binds),
    ];
    for (family, of) in counters {
        let mut series = text.family(family);
        for ((database, user), counted) in &counted {
            series.add(&[database, user], of(&counted.totals));
        }
    }
    let histograms: [(&Family, TimesOf); 3] = [
        (&m::WAIT_SECONDS, |counted| &counted.waits),
        (&m::TRANSACTION_SECONDS, |counted| &counted.transactions),
        (&m::QUERY_SECONDS, |counted| &counted.queries),
    ];
    for (family, of) in histograms {
        let mut series = text.family(family);
        for ((database, user), counted) in &counted {
            series.add_times(&[database, user], of(counted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::directory::Directory;
    use crate::net::listen::Peer;

    fn sessions(
        directory: &Arc<Directory>,
        count: usize,
        service: &str,
        deployment: &str,
    ) -> Vec<impl Drop + use<>> {
        let who = || Who {
            user: "ann".into(),
            database: "site".into(),
            service: service.into(),
            deployment: Some(deployment.into()),
            application_name: format!("{service}@{deployment}"),
            ..Who::default()
        };
        (0..count)
            .map(|_| directory.list(Peer::Unix(None), who(), 4))
            .collect()
    }

    #[test]
    fn names_beyond_the_bound_are_told_together() {
        let directory = Arc::new(Directory::default());
        let mut kept = sessions(&directory, 3, "site", "v0");
        for nth in 1..=MOST_DEPLOYMENTS + 50 {
            kept.extend(sessions(&directory, 2, "site", &format!("v{nth:03}")));
        }
        let tally = directory.tally();
        let folded = folded(&tally);
        assert_eq!(folded.len(), MOST_DEPLOYMENTS + 1);
        let count = |deployment| folded[&["site", "ann", "site", deployment]].total();
        assert_eq!((count("v0"), count("v001"), count(OTHERS)), (3, 2, 2 * 51));
        drop(kept);
    }
}
