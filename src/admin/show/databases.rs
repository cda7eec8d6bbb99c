//! Databases.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use super::{OWN, Rows, hosts, is_own, load_balance, mode, own_sessions, port};
use crate::admin::command::{Call, Run};
use crate::admin::table::{Cell, Row, int4, text};
use crate::config::checked::{Balance, Config, Database};
use crate::pool::pools::{Pools, Purpose};
use crate::row;

/// SHOW DATABASES: those that are listed, those that somebody has come to through `*`, and the console.
pub const DATABASES: Run = Run::Show {
    columns: &[
        text("name"),
        text("host"),
        int4("port"),
        text("database"),
        text("force_user"),
        int4("pool_size"),
        int4("min_pool_size"),
        int4("reserve_pool_size"),
        int4("server_lifetime"),
        text("pool_mode"),
        text("load_balance_hosts"),
        int4("max_connections"),
        int4("current_connections"),
        int4("max_client_connections"),
        int4("current_client_connections"),
        int4("paused"),
        int4("disabled"),
    ],
    rows,
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
pub(super) fn rows(call: &Call) -> Rows {
    let config = call.process.config();
    let (mut servers, mut clients) = (HashMap::new(), HashMap::new());
    let mut names: BTreeSet<_> = config.databases.keys().cloned().collect();
    for row in call.process.pools().rows() {
        let database = &row.pool.database;
        *servers.entry(database.clone()).or_insert(0) += u64::from(row.tally.total());
        if row.pool.purpose == Purpose::Clients {
            names.insert(database.clone());
        }
    }
    for (who, tally) in call.process.directory().tally() {
        if !is_own(&who) {
            *clients.entry(who.database.clone()).or_insert(0) += tally.total();
        }
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
            call.process.pools(),
        ))
    };
    let mut rows: Vec<_> = names.into_iter().filter_map(row).collect();
    rows.push(own_row(call, &config));
    Ok(rows)
}

fn database_row(
    name: &str,
    database: &Database,
    config: &Config,
    servers: u64,
    clients: u64,
    pools: &Pools,
) -> Row {
    let Config {
        pool,
        limits,
        timeouts,
        ..
    } = config;
    row![
        name.to_owned(),
        hosts(&database.hosts),
        database.hosts.first().map(port),
        database.dbname.clone().unwrap_or_else(|| name.to_owned()),
        database.user.clone(),
        database.pool_size.unwrap_or(pool.size),
        database.min_size.unwrap_or(pool.min_size),
        database.reserve_size.unwrap_or(pool.reserve_size),
        database
            .server_lifetime
            .or(timeouts.server_lifetime)
            .map_or(0, |life| life.as_secs()),
        database.mode.map(mode),
        load_balance(
            database.hosts.len(),
            database.load_balance_hosts == Balance::RoundRobin,
        ),
        database
            .max_servers
            .unwrap_or(limits.max_servers_per_database),
        servers,
        database
            .max_clients
            .unwrap_or(limits.max_clients_per_database),
        clients,
        u8::from(pools.is_paused(name)),
        u8::from(pools.is_disabled(name)),
    ]
}

/// The console among the databases, as PgBouncer has it.
fn own_row(call: &Call, config: &Config) -> Row {
    let port = config.listen.addresses.first().map(SocketAddr::port);
    row![
        OWN,
        Cell::Null,
        port,
        OWN,
        OWN,
        2u8,
        0u8,
        0u8,
        config
            .timeouts
            .server_lifetime
            .map_or(0, |life| life.as_secs()),
        "statement",
        Cell::Null,
        0u8,
        0u8,
        0u8,
        own_sessions(call),
        0u8,
        0u8,
    ]
}
