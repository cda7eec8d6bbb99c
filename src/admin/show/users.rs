//! Users.

use std::collections::BTreeMap;

use super::{OWN, Rows, mode};
use crate::admin::command::{Call, Run};
use crate::admin::table::{int4, text};
use crate::row;

/// SHOW USERS: those that are listed, those that somebody has come as, and the console's own.
pub const USERS: Run = Run::Show {
    columns: &[
        text("name"),
        text("pool_size"),
        text("reserve_pool_size"),
        text("pool_mode"),
        int4("max_user_connections"),
        int4("current_connections"),
        int4("max_user_client_connections"),
        int4("current_client_connections"),
    ],
    rows,
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
pub(super) fn rows(call: &Call) -> Rows {
    let config = call.process.config();
    // Server connections, then clients.
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    counts.insert(OWN.to_owned(), (0, 0));
    for user in call.process.users() {
        counts.entry(user).or_default();
    }
    for row in call.process.pools().rows() {
        let role = row.pool.role.to_string();
        counts.entry(role).or_default().0 += u64::from(row.tally.total());
    }
    for (who, tally) in call.process.directory().tally() {
        counts.entry(who.user.clone()).or_default().1 += tally.total();
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
