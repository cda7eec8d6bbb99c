//! How many there are of what; names that are looked up.

use std::net::SocketAddr;

use super::Rows;
use crate::admin::command::{Call, Run};
use crate::admin::table::{int4, int8, text};
use crate::row;
use crate::server::names::NameRow;

/// SHOW LISTS.
pub const LISTS: Run = Run::Show {
    columns: &[text("list"), int4("items")],
    rows: lists,
};

/// SHOW DNS_HOSTS.
pub const DNS_HOSTS: Run = Run::Show {
    columns: &[text("hostname"), int8("ttl"), text("addrs")],
    rows: names,
};

/// SHOW DNS_ZONES: the system's resolver says nothing of them.
pub const DNS_ZONES: Run = Run::Show {
    columns: &[text("zonename"), int8("serial"), int4("count")],
    rows: |_| Ok(vec![]),
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn names(call: &Call) -> Rows {
    let row = |NameRow {
                   name,
                   ttl,
                   addresses,
               }| {
        // Each with the port 0, as PgBouncer writes them.
        let addresses = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, 0).to_string());
        let addresses: Vec<_> = addresses.collect();
        row![String::from(name), ttl.as_secs(), addresses.join(",")]
    };
    Ok(call.process.names().into_iter().map(row).collect())
}

fn lists(call: &Call) -> Rows {
    let process = &call.process;
    let pools = super::pools::rows(call)?.len();
    let (mut free, mut used) = (0, 0);
    for row in process.pools().rows() {
        free += row.tally.idle();
        used += row.tally.total() - row.tally.idle();
    }
    let sessions = process.directory().len();
    let login = (process.clients().taken() as usize).saturating_sub(sessions);
    Ok(vec![
        row!["databases", super::databases::rows(call)?.len()],
        row!["users", super::users::rows(call)?.len()],
        row!["peers", process.config().peers.len()],
        row!["pools", pools],
        row!["peer_pools", process.peers().len()],
        row!["free_clients", 0u8],
        row!["used_clients", sessions],
        row!["login_clients", login],
        row!["free_servers", free],
        row!["used_servers", used],
        row!["dns_names", process.names().len()],
        row!["dns_zones", 0u8],
        row!["dns_queries", 0u8],
        row!["dns_pending", 0u8],
    ])
}
