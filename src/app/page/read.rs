//! Reads the numbers of the status page from what the process knows.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::feed::{Clients, Host, Pool, Rows, Service, Status, Waiter};
use super::printable;
use super::watch::Watch;
use crate::app::serve::App;
use crate::app::world::World;
use crate::pool::book::Tally;
use crate::pool::view::{HostRow, PoolRow, ServiceRow, WaiterRow};

/// All of it, as it is now.
pub(super) fn read(app: &App) -> Status {
    let world = app.world();
    let sessions = sessions(app);
    // The states of single server connections are of no interest here.
    let pools = app.pools.rows_with(&[]);
    let (services, waiters, hosts) = (
        services(app, &world, &sessions),
        waiters(app),
        hosts(app, &pools),
    );
    // Last and for a moment, because the control thread looks meanwhile.
    let watch = app.page.watch.lock();
    let speed = watch.total_speed();
    Status {
        now: super::milliseconds(SystemTime::now()),
        started: super::milliseconds(app.page.started),
        version: env!("CARGO_PKG_VERSION"),
        state: if app.is_draining() {
            "draining"
        } else {
            "serving"
        },
        clients: Clients {
            sockets: app.clients.taken(),
            limit: world.config.limits.max_clients,
            sessions: sessions.values().sum(),
            waiting: pools.iter().map(|row| row.waiters).sum(),
        },
        transactions_per_second: speed.transactions,
        queries_per_second: speed.queries,
        hosts,
        services,
        waiters,
        pools: Rows::of_pools(pools.iter().map(|row| pool(row, &watch)).collect()),
        refusals: app.page.recent.refusals().0,
        closings: app.page.recent.closings().0,
        history: watch.history(),
    }
}

/// How many sessions each service has.
fn sessions(app: &App) -> HashMap<String, u64> {
    let mut sessions = HashMap::new();
    for (who, tally) in app.directory.tally() {
        match sessions.get_mut(&who.service) {
            Some(count) => *count += tally.total(),
            None => drop(sessions.insert(who.service.clone(), tally.total())),
        }
    }
    sessions
}

fn hosts(app: &App, pools: &[PoolRow]) -> Vec<Host> {
    let mut hosts: Vec<_> = app
        .pools
        .hosts()
        .iter()
        .map(|row| host(row, pools))
        .collect();
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    hosts
}

fn host(row: &HostRow, pools: &[PoolRow]) -> Host {
    let Tally {
        dialing,
        idle,
        granted,
        leased,
        closing,
    } = row.tally;
    let mut own = pools.iter().filter(|pool| pool.host == row.name);
    Host {
        name: printable::text(&row.name),
        budget: row.budget,
        leased: granted + leased,
        idle,
        dialing,
        closing,
        fault: own.find_map(fault),
    }
}

/// Why a pool cannot log in to its Postgres, while it tries to.
fn fault(pool: &PoolRow) -> Option<String> {
    let tries = pool.retry_in.is_some() || pool.tally.dialing > 0;
    let error = pool.pool.last_error().filter(|_| tries)?;
    Some(printable::text(&error))
}

fn services(app: &App, world: &World, sessions: &HashMap<String, u64>) -> Rows<Service> {
    let row = |row: ServiceRow| Service {
        name: printable::name(&row.name),
        cap: row.limits.max_servers,
        servers: row.tally.total(),
        leased: row.tally.granted + row.tally.leased,
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
        leased: row.tally.granted + row.tally.leased,
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
