//! Pools, and other processes that cancel requests are sent on to.

use std::collections::BTreeMap;

use super::{OWN, Rows, load_balance, mode, own_sessions};
use crate::admin::command::{Call, Run};
use crate::admin::table::{Row, int4, text};
use crate::config::checked::{Host, Peer};
use crate::pool::view::{PoolRow, ServerState};
use crate::row;
use crate::server::peers::PeerRow;

/// SHOW POOLS: those of clients, and the console's.
pub const POOLS: Run = Run::Show {
    columns: &[
        text("database"),
        text("user"),
        int4("cl_active"),
        int4("cl_waiting"),
        int4("cl_active_cancel_req"),
        int4("cl_waiting_cancel_req"),
        int4("sv_active"),
        int4("sv_active_cancel"),
        int4("sv_being_canceled"),
        int4("sv_idle"),
        int4("sv_used"),
        int4("sv_tested"),
        int4("sv_login"),
        int4("maxwait"),
        int4("maxwait_us"),
        text("pool_mode"),
        text("load_balance_hosts"),
    ],
    rows,
};

/// SHOW PEERS: as configured, this process among them if it is.
pub const PEERS: Run = Run::Show {
    columns: &[
        int4("peer_id"),
        text("host"),
        int4("port"),
        int4("pool_size"),
    ],
    rows: peers,
};

/// SHOW PEER_POOLS: those that something was passed on to.
pub const PEER_POOLS: Run = Run::Show {
    columns: &[
        int4("peer_id"),
        int4("cl_active_cancel_req"),
        int4("cl_waiting_cancel_req"),
        int4("sv_active_cancel"),
        int4("sv_login"),
    ],
    rows: peer_pools,
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
pub(super) fn rows(call: &Call) -> Rows {
    let pools = call.process.pools().rows();
    let pools = pools.iter().filter(|row| row.is_for_clients());
    let named = |row: &PoolRow| {
        let name = (row.pool.database.clone(), row.pool.user.clone());
        (name, pool_row(row))
    };
    let mut rows: BTreeMap<_, _> = pools.map(named).collect();
    let own = (OWN.to_owned(), OWN.to_owned());
    rows.insert(own, own_row(own_sessions(call)));
    Ok(rows.into_values().collect())
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn peers(call: &Call) -> Rows {
    let config = call.process.config();
    let row = |(id, peer): (&u16, &Peer)| {
        let (Host::Tcp(host, port) | Host::Unix(host, port)) = &peer.host;
        let size = peer.pool_size.unwrap_or(config.pool.size);
        row![*id, host.clone(), *port, size]
    };
    Ok(config.peers.iter().map(row).collect())
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn peer_pools(call: &Call) -> Rows {
    let row = |row: PeerRow| row![row.id, row.sent, row.waiting, row.sent, row.dialing];
    Ok(call.process.peers().into_iter().map(row).collect())
}

fn pool_row(row: &PoolRow) -> Row {
    let settings = row.pool.settings();
    let target = &settings.target;
    let servers = |state| row.servers.of(state);
    row![
        row.pool.database.clone(),
        row.pool.user.clone(),
        row.clients_active(),
        row.waiters,
        row.cancels_sent,
        row.cancels_waiting,
        servers(ServerState::Active),
        servers(ServerState::ActiveCancel),
        servers(ServerState::BeingCanceled),
        servers(ServerState::Idle),
        0u8, // those that PgBouncer would check before it lends them; here every idle one is looked at when it is lent
        servers(ServerState::Tested),
        servers(ServerState::New),
        row.longest_wait.as_secs(),
        row.longest_wait.subsec_micros(),
        mode(row.mode),
        load_balance(target.hosts.len(), target.turn.is_some()),
    ]
}

/// The console's pool, as PgBouncer has it.
fn own_row(clients: u64) -> Row {
    let mut row = row![OWN, OWN, clients];
    row.extend((0..12).map(|_| 0u8.into()));
    row.extend(row!["statement", None::<&'static str>]);
    row
}
