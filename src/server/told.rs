//! What the log says of a server connection where it has PgBouncer's lines. In other formats the lives of server connections are told
//! at level `debug`, by the pools.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::dial::{DialError, name};
use super::login::LoginError;
use super::reach::Place;
use super::secure::SecureError;
use crate::config::checked::{Host, Log, LogFormat};
use crate::net::line::Line;

/// Which of PgBouncer's lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lines {
    /// Any at all: the log is like PgBouncer's.
    pub any: bool,
    /// Connections that were opened.
    pub opened: bool,
    /// Connections that were closed, and why.
    pub closed: bool,
}

impl Lines {
    /// What this log has.
    pub fn of(log: &Log) -> Self {
        let any = log.format == LogFormat::PgBouncer;
        Self {
            any,
            opened: any && log.connections,
            closed: any && log.disconnections,
        }
    }
}

/// Tells of one server connection.
#[derive(Debug, Clone, Default)]
pub struct Teller {
    /// Its number.
    pub number: u32,
    /// The database as clients call it.
    pub database: Arc<str>,
    /// The role at Postgres.
    pub user: Arc<str>,
    /// What is told.
    pub lines: Lines,
}

impl Teller {
    /// It was connected, and is not logged in yet.
    pub(super) fn connected(&self, place: &Place, line: &Line) {
        if self.lines.opened {
            let from = line.local.map(|local| format!(" (from {local})"));
            let from = from.unwrap_or_default();
            self.say(at(place), format_args!("new connection to server{from}"));
        }
    }

    /// What it says is protected, if it is.
    pub(super) fn secured(&self, place: &Place, line: &Line) {
        if let Some(tls) = line.tls.filter(|_| self.lines.opened) {
            self.say(at(place), format_args!("SSL established: {tls}"));
        }
    }

    /// It said something that nobody has asked for.
    pub fn unasked(&self, place: &Place, tag: u8) {
        if !self.lines.any {
            return;
        }
        let Self {
            number,
            database,
            user,
            ..
        } = self;
        let tag = char::from(tag).escape_default();
        let said = format!("got packet '{tag}' from server when not linked");
        tracing::warn!(id = number, %database, %user, server = at(place), said, "server connection");
    }

    /// It is being closed.
    pub fn closing(&self, place: &Place, because: &str, age: Duration) {
        self.closing_at(at(place), because, age);
    }

    /// Nothing came of it after so long. `for_one`: it was to be one client's own.
    pub fn failed(&self, error: &DialError, hosts: &[Arc<Host>], age: Duration, for_one: bool) {
        match error {
            _ if !self.lines.any => {}
            DialError::Login(LoginError::Refused(refusal)) if for_one => {
                let said = format!("S: login failed: FATAL: {}", refusal.message);
                tracing::error!(said, "server login failed");
            }
            DialError::Login(LoginError::Refused(refusal)) => {
                let said = format!("server login failed: FATAL {}", refusal.message);
                tracing::warn!(said, "server login failed");
            }
            DialError::ConnectQuery(LoginError::Refused(refusal)) => {
                let what = "S: error while executing exec_on_query";
                let said = format!("{what}: ERROR: {}", refusal.message);
                tracing::error!(said, "connect_query failed");
            }
            _ => {}
        }
        let host = match error {
            DialError::NoAddress { host, .. }
            | DialError::Unreachable { host, .. }
            | DialError::Insecure { host, .. } => host.clone(),
            _ => hosts.first().map_or_else(String::new, |host| name(host)),
        };
        let because = match error {
            DialError::Login(LoginError::Refused(_)) if for_one => "login failed".to_owned(),
            error => because(error),
        };
        self.closing_at(host, &because, age);
    }

    fn closing_at(&self, at: impl Display, because: &str, age: Duration) {
        if self.lines.closed {
            let age = age.as_secs();
            self.say(at, format_args!("closing because: {because} (age={age}s)"));
        }
    }

    fn say(&self, at: impl Display, said: impl Display) {
        let Self {
            number,
            database,
            user,
            ..
        } = self;
        tracing::info!(id = number, %database, %user, server = %at, %said, "server connection");
    }
}

/// Why PgBouncer would say that it gives up.
fn because(error: &DialError) -> String {
    let words = match error {
        DialError::Timeout(_) => "connect timeout",
        DialError::NoAddress { .. } => "server DNS lookup failed",
        DialError::Unreachable { .. } => "connect failed",
        DialError::Insecure {
            cause: SecureError::NotOffered,
            ..
        } => "server refused SSL",
        DialError::Login(LoginError::Refused(refusal)) => return refusal.message.clone(),
        DialError::ConnectQuery(_) => "exec_on_connect query failed",
        DialError::Login(LoginError::Io(_)) | DialError::Limit(_) => "server conn crashed?",
        error => return error.to_string(),
    };
    words.to_owned()
}

/// PgBouncer's way to write where a server connection leads.
fn at(place: &Place) -> String {
    match (&*place.host, place.address) {
        (_, Some(address)) => address.to_string(),
        (Host::Unix(_, port), None) => format!("unix:{port}"),
        (host, None) => name(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_pgbouncer_writes_it() {
        let place = |host, address: Option<&str>| Place {
            host: Arc::new(host),
            address: address.map(|address| address.parse().expect("an address")),
        };
        let tcp = || Host::Tcp("db".to_owned(), 5432);
        for (place, written) in [
            (place(tcp(), Some("127.0.0.1:5432")), "127.0.0.1:5432"),
            (place(tcp(), Some("[::1]:5432")), "[::1]:5432"),
            (place(Host::Unix("/tmp".into(), 5433), None), "unix:5433"),
        ] {
            assert_eq!(at(&place), written);
        }
    }
}
