//! The rows of the SHOW tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::PGBOUNCER;
use super::command::Call;
use super::process::State;
use super::table::{Cell, Row};
use crate::config::change::settings;
use crate::config::checked::{Config, Database, Host, Mode};
use crate::pool::pools::{Pool, Purpose};
use crate::row;
use crate::wire::reply::Report;

type Rows = Result<Vec<Row>, Report>;

/// SHOW VERSION: first the version whose console this is, for whoever reads it by program.
pub fn version(_: &Call) -> Rows {
    let own = env!("CARGO_PKG_VERSION");
    Ok(vec![row![format!("PgBouncer {PGBOUNCER} (pgweir {own})")]])
}

/// SHOW STATE.
pub fn state(call: &Call) -> Rows {
    let state = call.process.state();
    let states = [
        ("active", State::Active),
        ("paused", State::Paused),
        ("suspended", State::Suspended),
    ];
    Ok(states
        .into_iter()
        .map(|(name, of)| row![name, if state == of { "yes" } else { "no" }])
        .collect())
}

/// SHOW CONFIG.
pub fn config(call: &Call) -> Rows {
    let mut rows: Vec<_> = settings(&call.process.config())
        .into_iter()
        .map(|setting| {
            let changeable = if setting.effect.is_live() {
                "yes"
            } else {
                "no"
            };
            (setting.name, setting.value, setting.default, changeable)
        })
        .collect();
    rows.sort();
    Ok(rows
        .into_iter()
        .map(|(name, value, default, changeable)| row![name, value, default, changeable])
        .collect())
}

/// SHOW DATABASES: those that are listed, and those that somebody has come to through `*`.
pub fn databases(call: &Call) -> Rows {
    let config = call.process.config();
    let (mut servers, mut clients) = (HashMap::new(), HashMap::new());
    let mut names: BTreeSet<_> = config.databases.keys().cloned().collect();
    for pool in call.process.pools().all() {
        *servers.entry(pool.database.clone()).or_insert(0) += servers_of(&pool);
        if pool.purpose == Purpose::Clients {
            names.insert(pool.database.clone());
        }
    }
    for (who, count) in call.process.directory().count() {
        *clients.entry(who.database.clone()).or_insert(0) += count;
    }
    let row = |name: String| {
        let database = config.databases.get(&name);
        let database = database.or(config.any_database.as_ref())?;
        let now = |counts: &HashMap<String, u64>| counts.get(&name).copied().unwrap_or(0);
        Some(database_row(
            &name,
            database,
            &config,
            now(&servers),
            now(&clients),
        ))
    };
    Ok(names.into_iter().filter_map(row).collect())
}

fn database_row(
    name: &str,
    database: &Database,
    config: &Config,
    servers: u64,
    clients: u64,
) -> Row {
    let Config {
        pool,
        limits,
        timeouts,
        ..
    } = config;
    row![
        name.to_owned(),
        hosts(database),
        database.hosts.first().map(port),
        database.dbname.clone().unwrap_or_else(|| name.to_owned()),
        database.user.clone(),
        database.pool_size.unwrap_or(pool.size),
        database.min_size.unwrap_or(pool.min_size),
        database.reserve_size.unwrap_or(pool.reserve_size),
        timeouts.server_lifetime.map_or(0, |life| life.as_secs()),
        database.mode.map(mode),
        load_balance(database.hosts.len()),
        database
            .max_servers
            .unwrap_or(limits.max_servers_per_database),
        servers,
        database
            .max_clients
            .unwrap_or(limits.max_clients_per_database),
        clients,
        0u8,
        0u8,
    ]
}

/// SHOW USERS: those that are listed, and those that somebody has come as.
pub fn users(call: &Call) -> Rows {
    let config = call.process.config();
    // Server connections, then clients.
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for user in call.process.users() {
        counts.entry(user).or_default();
    }
    for pool in call.process.pools().all() {
        counts.entry(pool.user.clone()).or_default().0 += servers_of(&pool);
    }
    for (who, count) in call.process.directory().count() {
        counts.entry(who.user.clone()).or_default().1 += count;
    }
    let row = |(name, (servers, clients)): (String, (u64, u64))| {
        let user = config.users.get(&name);
        row![
            name,
            user.and_then(|user| user.pool_size)
                .map_or_else(String::new, padded),
            "",
            user.and_then(|user| user.mode).map(mode),
            user.and_then(|user| user.max_servers)
                .unwrap_or(config.limits.max_servers_per_user),
            servers,
            user.and_then(|user| user.max_clients)
                .unwrap_or(config.limits.max_clients_per_user),
            clients,
        ]
    };
    Ok(counts.into_iter().map(row).collect())
}

/// As PgBouncer writes a user's sizes: right-aligned text.
fn padded(size: u32) -> String {
    format!("{size:9}")
}

/// SHOW LISTS.
pub fn lists(call: &Call) -> Rows {
    let process = &call.process;
    let pools = process.pools().all();
    let (mut free, mut used) = (0, 0);
    for pool in &pools {
        let tally = pool.view().map(|(view, _)| view.tally).unwrap_or_default();
        free += tally.idle;
        used += tally.total() - tally.idle;
    }
    let sessions = process.directory().len();
    let login = (process.clients().taken() as usize).saturating_sub(sessions);
    let count = |rows: Rows| rows.map(|rows| rows.len());
    Ok(vec![
        row!["databases", count(databases(call))?],
        row!["users", count(users(call))?],
        row!["peers", 0u8],
        row!["pools", pools.len()],
        row!["peer_pools", 0u8],
        row!["free_clients", 0u8],
        row!["used_clients", sessions],
        row!["login_clients", login],
        row!["free_servers", free],
        row!["used_servers", used],
        row!["dns_names", 0u8],
        row!["dns_zones", 0u8],
        row!["dns_queries", 0u8],
        row!["dns_pending", 0u8],
    ])
}

/// SHOW POOLS.
pub fn pools(call: &Call) -> Rows {
    let sessions = call.process.directory().count();
    let mut rows = BTreeMap::new();
    for pool in call.process.pools().all() {
        if pool.purpose != Purpose::Clients {
            continue;
        }
        let own = sessions
            .iter()
            .filter(|(who, _)| who.database == pool.database && who.user == pool.user);
        let clients = own.map(|(_, count)| count).sum();
        if let Some(row) = pool_row(&pool, clients) {
            rows.insert((pool.database.clone(), pool.user.clone()), row);
        }
    }
    Ok(rows.into_values().collect())
}

fn pool_row(pool: &Pool, clients: u64) -> Option<Row> {
    let (view, wait) = pool.view()?;
    let settings = pool.settings();
    let tally = view.tally;
    Some(row![
        pool.database.clone(),
        pool.user.clone(),
        clients.saturating_sub(u64::from(view.waiters)),
        view.waiters,
        0u8,
        0u8,
        tally.leased + tally.granted,
        0u8,
        0u8,
        tally.idle,
        0u8,
        0u8,
        tally.dialing,
        wait.as_secs(),
        wait.subsec_micros(),
        mode(settings.mode),
        load_balance(settings.target.hosts.len()),
    ])
}

fn servers_of(pool: &Pool) -> u64 {
    pool.view().map_or(0, |(view, _)| view.tally.total().into())
}

fn hosts(database: &Database) -> Cell {
    let name = |host: &Host| match host {
        Host::Tcp(name, _) | Host::Unix(name, _) => name.clone(),
    };
    let names: Vec<_> = database.hosts.iter().map(name).collect();
    names.join(",").into()
}

fn port(host: &Host) -> u16 {
    match host {
        Host::Tcp(_, port) | Host::Unix(_, port) => *port,
    }
}

/// PgBouncer's word for trying several hosts in their order; nothing where there is one.
fn load_balance(hosts: usize) -> Option<&'static str> {
    (hosts > 1).then_some("disable")
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Transaction => "transaction",
        Mode::Session => "session",
        Mode::Statement => "statement",
    }
}
