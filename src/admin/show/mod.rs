//! The tables that SHOW answers with, in rooms: each holds tables' columns beside the functions that fill them.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::DATABASES;
use super::command::Call;
use super::table::{Cell, Row};
use crate::client::directory::Who;
use crate::config::checked::{Host, Mode};
use crate::wire::reply::Report;

pub mod databases;
pub mod lists;
pub mod pools;
pub mod process;
pub mod sockets;
pub mod stats;
pub mod users;
pub mod watch;

/// The console as a database, a user and a pool, in the tables that have one row for each.
const OWN: &str = "pgbouncer";

/// The rows of a table, or why there are none.
pub type Rows = Result<Vec<Row>, Report>;

/// Whether a session is one of the console's own.
fn is_own(who: &Who) -> bool {
    DATABASES.contains(&who.database.as_str())
}

/// Sessions of the console.
fn own_sessions(call: &Call) -> u64 {
    let tally = call.process.directory().tally();
    let own = tally.iter().filter(|(who, _)| is_own(who));
    own.map(|(_, tally)| tally.total()).sum()
}

/// A moment as PgBouncer writes it: local time, to the second.
pub fn written(time: SystemTime) -> Cell {
    let Ok(time) = Timestamp::try_from(time) else {
        return Cell::Null;
    };
    let local = time.to_zoned_datetime(TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S %Z").to_string().into()
}

/// The names of hosts, as configured.
fn hosts(hosts: &[Host]) -> String {
    let name = |host: &Host| match host {
        Host::Tcp(name, _) | Host::Unix(name, _) => name.clone(),
    };
    let names: Vec<_> = hosts.iter().map(name).collect();
    names.join(",")
}

fn port(host: &Host) -> u16 {
    match host {
        Host::Tcp(_, port) | Host::Unix(_, port) => *port,
    }
}

/// PgBouncer's word for how several hosts are tried; nothing where there is one.
fn load_balance(hosts: usize, in_turn: bool) -> Option<&'static str> {
    let word = if in_turn { "round-robin" } else { "disable" };
    (hosts > 1).then_some(word)
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Transaction => "transaction",
        Mode::Session => "session",
        Mode::Statement => "statement",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_written_to_the_second_with_its_zone() {
        let Cell::Text(text) =
            written(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_999))
        else {
            panic!()
        };
        let (date, zone) = text.split_at(20);
        assert!(
            date.starts_with("2023-11-1") && date.ends_with(":20 "),
            "{text}"
        );
        assert!(!zone.is_empty(), "{text}");
    }
}
