//! Reads the numbers of the status page from what the process knows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::feed::{
    Alert, Clients, Deployment, Foreign, Happening, Holder, Host, Incident, Measured, Pool, Rows,
    ServerClosed, Servers, Service, Status, Waiter,
};
use super::watch::Watch;
use super::{milliseconds, printable};
use crate::app::monitor::Reading;
use crate::app::serve::App;
use crate::app::watch::Raised;
use crate::app::world::World;
use crate::client::directory::Who;
use crate::client::view::ClientTally;
use crate::incident::{Cause, Summary};
use crate::policy::budget::Whose;
use crate::policy::deployment::DeploymentRow;
use crate::pool::pools::GroundView;
use crate::pool::postgres::PostgresCounts;
use crate::pool::view::{PoolRow, ServerRow, ServiceRow, WaiterRow};

/// Sessions by whose they are.
type Sessions = [(Arc<Who>, ClientTally)];

/// All of it, as it is now.
pub(super) fn read(app: &App) -> Status {
    let world = app.world();
    let sessions = app.directory.tally();
    let servers = app.pools.servers();
    let pools = app.pools.rows_with(&servers);
    let (services, deployments) = (
        services(app, &world, &sessions),
        deployments(app, &sessions, &servers),
    );
    let (waiters, hosts) = (waiters(app), hosts(app, &pools));
    let (alerts, incidents, servers_closed) = (alerts(app), incidents(app), servers_closed(app));
    let [refusals, closings] = [app.page.recent.refusals(), app.page.recent.closings()]
        .map(|events| events.into_iter().map(Happening::from).collect());
    // Last and for a moment, because the control thread looks meanwhile.
    let watch = app.page.watch.lock();
    let speed = watch.total_speed();
    Status {
        now: milliseconds(SystemTime::now()),
        started: milliseconds(app.page.started),
        version: env!("CARGO_PKG_VERSION"),
        state: if app.is_draining() {
            "draining"
        } else {
            "serving"
        },
        clients: Clients {
            sockets: app.clients.taken(),
            limit: world.config.limits.max_clients,
            sessions: sessions.iter().map(|(_, tally)| tally.total()).sum(),
            waiting: pools.iter().map(|row| row.waiters).sum(),
        },
        transactions_per_second: speed.transactions,
        queries_per_second: speed.queries,
        alerts,
        hosts,
        services,
        deployments,
        waiters,
        pools: Rows::of_pools(pools.iter().map(|row| pool(row, &watch)).collect()),
        incidents,
        refusals,
        closings,
        servers_closed,
        history: watch.history(),
    }
}

/// How many sessions each service has.
fn by_service(sessions: &Sessions) -> HashMap<&str, u64> {
    let mut sums = HashMap::new();
    for (who, tally) in sessions {
        *sums.entry(&*who.service).or_default() += tally.total();
    }
    sums
}

fn alerts(app: &App) -> Rows<Alert> {
    Rows::of_alerts(app.watch.alerts().iter().map(alert).collect())
}

fn alert(raised: &Raised) -> Alert {
    let measured = &raised.alert.measured;
    let holder = measured.holder.as_ref().map(|holder| Holder {
        service: printable::name(&holder.service),
        deployment: printable::name(&holder.deployment),
        count: holder.count,
    });
    Alert {
        kind: measured.kind.as_str(),
        subject: printable::text(&measured.subject),
        since: epoch(raised.since),
        text: printable::line(&measured.text),
        holder,
        command: printable::line(&measured.command),
    }
}

fn incidents(app: &App) -> Rows<Incident> {
    Rows::of_incidents(app.watch.incidents().iter().map(incident).collect())
}

pub(super) fn incident(summary: &Summary) -> Incident {
    let causes = summary.causes.iter().copied().map(Cause::as_str);
    Incident {
        number: summary.number,
        opened: epoch(summary.opened),
        closed: summary.closed.map(epoch),
        causes: causes.collect(),
        text: printable::line(&summary.text),
        snapshots: summary.snapshots,
    }
}

/// Those that have sessions: what is gone is history.
fn deployments(app: &App, sessions: &Sessions, servers: &[ServerRow]) -> Rows<Deployment> {
    let mut idle = HashMap::<(&str, &str), u64>::new();
    for (who, tally) in sessions {
        if let Some(deployment) = &who.deployment {
            *idle.entry((&*who.service, &**deployment)).or_default() += tally.in_transaction;
        }
    }
    let mut held = HashMap::<(String, Arc<str>), u32>::new();
    for client in servers.iter().filter_map(|row| row.client) {
        let who = app.directory.by_id(client).map(|entry| entry.who());
        if let Some(who) = who
            && let Some(deployment) = &who.deployment
        {
            let key = (who.service.clone(), Arc::clone(deployment));
            *held.entry(key).or_default() += 1;
        }
    }
    let row = |row: DeploymentRow| {
        let (service, deployment) = (&*row.service, &*row.deployment);
        let idle = idle.get(&(service, deployment)).copied();
        let held = held.get(&(service.to_owned(), Arc::clone(&row.deployment)));
        Deployment {
            service: printable::name(service),
            name: printable::name(deployment),
            state: row.state,
            first_seen: milliseconds(row.first_seen),
            since: milliseconds(row.since),
            superseded_by: row.superseded_by.map(|by| printable::name(&by)),
            sessions: row.sessions.into(),
            idle_in_transaction: idle.unwrap_or(0),
            servers: held.copied().unwrap_or(0),
        }
    };
    let rows = app.connected_deployments().into_iter();
    Rows::of_deployments(rows.map(row).collect())
}

fn servers_closed(app: &App) -> Rows<Happening<ServerClosed>> {
    let counts = app.pools.postgres_counts();
    let of_one = |(name, counts): &(Arc<str>, Arc<PostgresCounts>)| {
        let postgres = printable::text(name);
        let closed = counts.last_closed().into_iter();
        let closed = closed.map(move |closed| Happening {
            at: milliseconds(closed.at),
            what: ServerClosed {
                reason: closed.what.reason,
                user: printable::name(&closed.what.role),
                database: printable::name(&closed.what.database),
                postgres: postgres.clone(),
            },
            count: closed.count,
        });
        closed.collect::<Vec<_>>()
    };
    Rows::of_closed(counts.iter().flat_map(of_one).collect())
}

fn hosts(app: &App, pools: &[PoolRow]) -> Vec<Host> {
    let grounds = app.pools.grounds();
    let host = |ground| host(app, ground, pools);
    let mut hosts: Vec<_> = grounds.iter().map(host).collect();
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    hosts
}

fn host(app: &App, ground: &GroundView, pools: &[PoolRow]) -> Host {
    let mut own = pools.iter().filter(|pool| *pool.host == *ground.name);
    let reading = app.watch.reading(ground.id);
    Host {
        name: printable::text(&ground.name),
        budget: ground.budget,
        servers: Servers(ground.tally),
        measured: reading.map(|reading| measured(ground, &reading)),
        is_full: ground.is_full,
        fault: own.find_map(fault),
    }
}

fn measured(ground: &GroundView, reading: &Reading) -> Measured {
    Measured {
        max_connections: reading.limits.max_connections,
        reserved: reading.limits.reserved,
        monitor: 1,
        siblings: reading.shares.siblings,
        foreign: reading.shares.foreign,
        free: ground.free().unwrap_or_else(|| reading.free()),
        who: foreign(reading),
    }
}

fn foreign(reading: &Reading) -> Rows<Foreign> {
    let mut counts = HashMap::<[&str; 3], u32>::new();
    for (whose, backend) in &reading.backends {
        if *whose == Whose::Foreign {
            let key = [&backend.application_name, &backend.user, &backend.address];
            *counts.entry(key.map(|text| &**text)).or_default() += 1;
        }
    }
    let row = |([application_name, user, address], connections): ([&str; 3], u32)| Foreign {
        application_name: printable::name(application_name),
        user: printable::name(user),
        address: printable::name(address),
        connections,
    };
    Rows::of_foreign(counts.into_iter().map(row).collect())
}

/// Why a pool cannot log in to its Postgres, while it tries to.
fn fault(pool: &PoolRow) -> Option<String> {
    let tries = pool.retry_in.is_some() || pool.tally.dialing() > 0;
    let error = pool.pool.last_error().filter(|_| tries)?;
    Some(printable::text(&error))
}

fn services(app: &App, world: &World, sessions: &Sessions) -> Rows<Service> {
    let sessions = by_service(sessions);
    let row = |row: ServiceRow| Service {
        name: printable::name(&row.name),
        cap: row.limits.max_servers,
        servers: row.tally.total(),
        leased: row.tally.lent(),
        clients: sessions.get(&*row.name).copied().unwrap_or(0),
        client_cap: world.service_clients(&row.name),
        waiters: row.waiters,
        longest_wait_ms: millis(row.longest_wait),
    };
    Rows::of_services(app.pools.services().into_iter().map(row).collect())
}

fn pool(row: &PoolRow, watch: &Watch) -> Pool {
    Pool {
        database: printable::name(&row.pool.database),
        user: printable::text(&row.pool.user),
        size: row.limits.size,
        servers: row.tally.total(),
        leased: row.tally.lent(),
        clients: row.clients,
        waiters: row.waiters,
        longest_wait_ms: millis(row.longest_wait),
        transactions_per_second: watch.speed(row.pool.id).transactions,
    }
}

fn waiters(app: &App) -> Rows<Waiter> {
    Rows::of_waiters(app.pools.waiters()).map(|row| waiter(app, &row))
}

fn waiter(app: &App, row: &WaiterRow) -> Waiter {
    // A client that is to be logged in is no session yet, and a session may be gone by now.
    let session = row.client.and_then(|id| app.directory.row_of(id));
    let (user, peer) = match &session {
        Some(session) => (&*session.who.user, session.peer.to_string()),
        None => (&*row.pool.user, "logging in".to_owned()),
    };
    Waiter {
        id: row.client.unwrap_or(0),
        service: printable::name(&row.service),
        user: printable::name(user),
        database: printable::name(&row.pool.database),
        peer: printable::name(&peer),
        wait_ms: millis(row.age),
    }
}

/// What the watch counts in.
pub(super) fn epoch(milliseconds: i64) -> u64 {
    milliseconds.max(0).unsigned_abs()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
