//! How many there are of what; names that are looked up.

use super::Rows;
use crate::admin::command::{Call, Run};
use crate::admin::table::{int4, int8, text};
use crate::row;

/// SHOW LISTS.
pub const LISTS: Run = Run::Show {
    columns: &[text("list"), int4("items")],
    rows: lists,
};

/// SHOW DNS_HOSTS: nothing is kept of what names were found to be, each dial asks anew.
pub const DNS_HOSTS: Run = Run::Show {
    columns: &[text("hostname"), int8("ttl"), text("addrs")],
    rows: |_| Ok(vec![]),
};

/// SHOW DNS_ZONES: likewise.
pub const DNS_ZONES: Run = Run::Show {
    columns: &[text("zonename"), int8("serial"), int4("count")],
    rows: |_| Ok(vec![]),
};

fn lists(call: &Call) -> Rows {
    let process = &call.process;
    let pools = super::pools::rows(call)?.len();
    let (mut free, mut used) = (0, 0);
    for row in process.pools().rows() {
        free += row.tally.idle;
        used += row.tally.total() - row.tally.idle;
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
        row!["dns_names", 0u8],
        row!["dns_zones", 0u8],
        row!["dns_queries", 0u8],
        row!["dns_pending", 0u8],
    ])
}
