//! The process: its version, state and settings, what it holds.

use super::Rows;
use crate::admin::PGBOUNCER;
use crate::admin::command::{Call, Run};
use crate::admin::process::State;
use crate::admin::table::{int4, text};
use crate::config::change::settings;
use crate::config::in_pgbouncers_words;
use crate::row;

/// SHOW VERSION: first the version whose console this is, for whoever reads it by program.
pub const VERSION: Run = Run::Show {
    columns: &[text("version")],
    rows: version,
};

/// SHOW STATE.
pub const STATE: Run = Run::Show {
    columns: &[text("key"), text("value")],
    rows: state,
};

/// SHOW CONFIG.
pub const CONFIG: Run = Run::Show {
    columns: &[
        text("key"),
        text("value"),
        text("default"),
        text("changeable"),
    ],
    rows: config,
};

/// SHOW MEM.
pub const MEM: Run = Run::Show {
    columns: &[
        text("name"),
        int4("size"),
        int4("used"),
        int4("free"),
        int4("memtotal"),
    ],
    rows: memory,
};

/// The version of both.
pub fn versions() -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!("PgBouncer {PGBOUNCER} (pgweir {own})")
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn version(_: &Call) -> Rows {
    Ok(vec![row![versions()]])
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn state(call: &Call) -> Rows {
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

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn config(call: &Call) -> Rows {
    // Whoever starts from a pgbouncer.ini asks for its keys.
    let theirs = call.process.settings_of_pgbouncer();
    if !theirs.is_empty() {
        let rows = theirs.into_iter().map(|setting| {
            let changeable = if setting.is_live { "yes" } else { "no" };
            row![setting.name, setting.value, setting.default, changeable]
        });
        return Ok(rows.collect());
    }
    let settings = settings(&call.process.config());
    let mut rows: Vec<_> = in_pgbouncers_words(&settings)
        .chain(settings.iter().cloned())
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

/// Where PgBouncer tells of its arenas there is the general allocator here. What can be told is how much memory the process holds,
/// and how many things there are of those that PgBouncer has an arena for.
fn memory(call: &Call) -> Rows {
    let resident = resident_kib().unwrap_or(0);
    let process = &call.process;
    let count = |name: &'static str, used: usize| row![name, 0u8, used, 0u8, 0u8];
    Ok(vec![
        row!["resident_kib", 1024u16, resident, 0u8, resident * 1024],
        count("user_cache", super::users::rows(call)?.len()),
        count("db_cache", super::databases::rows(call)?.len()),
        count("pool_cache", process.pools().all().len()),
        count("server_cache", process.pools().servers().len()),
        count("client_cache", process.directory().len()),
    ])
}

/// KiB of memory that the process holds, if this system tells.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
