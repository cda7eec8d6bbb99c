//! The monitor: one connection to each Postgres that reads what it has and who is connected.
//!
//! What it reads makes the budget follow what others take, and tells who they are. Where it cannot log in, or may not see, what is
//! known stays, it says so once, and goes on. It lives on the watch's thread and delays no client.

mod signal;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::serve::App;
use super::world::World;
use crate::config::checked::Database;
use crate::policy::budget::{Backend, Limits, Shares, Whose, share};
use crate::pool::book::HostId;
use crate::pool::pools::{Measured, PoolSettings, Purpose};
use crate::server::close::{CancelWay, close};
use crate::server::connection::Connection;
use crate::server::dial::{DialError, Target, dial, name};
use crate::server::login::{LoginError, Row, ServerLogin};
use crate::server::told::Teller;
use crate::wire::sql::fingerprint;

/// What the monitor calls itself at Postgres.
pub const APPLICATION_NAME: &str = "pgweir monitor";

/// What pgweir's connections call themselves until a client has them.
const UNUSED: &str = "pgweir";

/// How long a login, or an answer, may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The database in which it logs in where the configuration names none.
const DATABASE: &str = "postgres";

/// Everything at once. What belongs to other roles is NULL for who is no member of `pg_read_all_stats`; that they are there is not.
/// Background processes have connections of their own kind, which `max_connections` does not count.
const QUERY: &str = "SELECT current_setting('max_connections'), \
    current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0), \
    a.pid, a.datname, a.usename, a.application_name, host(a.client_addr), a.state, \
    extract(epoch FROM clock_timestamp() - a.backend_start)::bigint, \
    extract(epoch FROM clock_timestamp() - a.xact_start)::bigint, \
    extract(epoch FROM clock_timestamp() - a.state_change)::bigint, \
    left(a.query, 1024), a.backend_start IS NOT NULL, \
    (extract(epoch FROM a.backend_start) * 1000000)::bigint, (extract(epoch FROM a.state_change) * 1000000)::bigint, \
    a.client_port, pg_backend_pid() \
    FROM pg_stat_activity AS a WHERE a.backend_type = 'client backend' \
    OR (a.backend_type IS NULL AND a.datid IS NOT NULL AND a.usesysid IS NOT NULL)";

/// What was read at one Postgres.
#[derive(Debug, Clone)]
pub struct Reading {
    /// In the book.
    pub host: HostId,
    /// Its hosts as written.
    pub name: String,
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// What it has.
    pub limits: Limits,
    /// Who has it; the monitor's own connection apart.
    pub backends: Vec<(Whose, Backend)>,
    /// How many each has.
    pub shares: Shares,
    /// Whether Postgres tells what other roles do.
    pub sees_all: bool,
    /// The monitor's own connection; `None`: the process ids that pgweir knows are not Postgres' own, because something stands in
    /// between.
    own: Option<Backend>,
}

impl Reading {
    /// What is open, the monitor's own connection with it.
    pub fn open(&self) -> u32 {
        self.shares.ours + self.shares.others() + 1
    }

    /// What ordinary users may still open.
    pub fn free(&self) -> u32 {
        self.limits.free(self.open())
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// Nobody knows a login for it.
    #[error("no login is known for it yet")]
    NoLogin,
    /// It did not let the monitor in.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// It did not answer.
    #[error("no answer within {LIMIT:?}")]
    Timeout,
    /// It answered with an error, or the connection broke.
    #[error("{0}")]
    Query(#[from] LoginError),
    /// What it answered is no answer.
    #[error("its answer cannot be read")]
    Answer,
}

/// Reads one Postgres, as often as it is asked to.
#[derive(Debug)]
pub struct Monitor {
    host: HostId,
    name: String,
    connection: Option<(Connection, Target)>,
    /// What was said last of why it cannot read.
    complaint: Option<String>,
    blind: bool,
    signals: signal::Signals,
}

impl Monitor {
    /// Of this Postgres.
    pub fn new(host: HostId, name: String) -> Self {
        Self {
            host,
            name,
            connection: None,
            complaint: None,
            blind: false,
            signals: signal::Signals::default(),
        }
    }

    /// Reads it, and has the budget follow. `None`: that was not possible.
    pub async fn check(&mut self, app: &App) -> Option<Reading> {
        match self.read(app).await {
            Ok(reading) => {
                if self.complaint.take().is_some() {
                    tracing::info!(postgres = self.name, "it is monitored again");
                }
                if reading.sees_all == self.blind {
                    self.blind = !reading.sees_all;
                    self.say_what_is_seen();
                }
                app.pools.measured(
                    self.host,
                    Measured {
                        limits: reading.limits,
                        open: reading.open(),
                        others: reading.shares.others(),
                    },
                );
                self.remember(app, &reading);
                self.end_what_was_left(app, &reading).await;
                self.close_foreign(app, &reading).await;
                Some(reading)
            }
            Err(error) => {
                self.connection = None;
                self.complain(app, &error);
                None
            }
        }
    }

    fn say_what_is_seen(&self) {
        let role = self.connection.as_ref();
        let role = role.map_or("", |(_, target)| &*target.identity.user);
        if self.blind {
            tracing::info!(
                postgres = self.name,
                role,
                "the monitor sees how many are connected, but not what other roles do: GRANT pg_monitor TO it for that"
            );
        }
    }

    fn complain(&mut self, app: &App, error: &MonitorError) {
        if let MonitorError::Dial(error) = error
            && error.is_passing()
            && !error.found_full()
        {
            app.pools.in_trouble(self.host, &error.to_string());
        }
        let text = error.to_string();
        if self.complaint.as_ref() == Some(&text) {
            return;
        }
        if matches!(error, MonitorError::NoLogin) {
            // The first client's login teaches one.
            tracing::info!(postgres = self.name, "not monitored: {text}");
        } else {
            tracing::warn!(
                postgres = self.name,
                "cannot be monitored, the last known budget stays: {text}"
            );
        }
        self.complaint = Some(text);
    }

    async fn read(&mut self, app: &App) -> Result<Reading, MonitorError> {
        if self.connection.is_none() {
            self.connection = Some(self.connect(app).await?);
        }
        let Some((connection, target)) = &mut self.connection else {
            return Err(MonitorError::NoLogin);
        };
        let (before, dialing) = app.pools.backends(self.host);
        let answer = timeout(LIMIT, connection.select(QUERY)).await;
        let rows = answer.map_err(|_| MonitorError::Timeout)??;
        let (after, still_dialing) = app.pools.backends(self.host);
        // Those that were opened or closed meanwhile are in one of both.
        let ours = &before | &after;
        let dialing = dialing.max(still_dialing);
        let young = target.limit.as_secs();
        let own = connection.key.pid;
        reading(self.host, &self.name, own, &rows, &ours, dialing, young)
            .ok_or(MonitorError::Answer)
    }

    /// Logs in as the first of those whose login is known that Postgres lets in.
    async fn connect(&self, app: &App) -> Result<(Connection, Target), MonitorError> {
        let mut failed = MonitorError::NoLogin;
        for target in logins(app, self.host, &self.name) {
            match dial(&target, false, &Teller::default()).await {
                Ok((connection, _)) => return Ok((connection, target)),
                // Another login fares no better.
                Err(error) if error.is_passing() => return Err(error.into()),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// Says goodbye.
    pub async fn leave(&mut self) {
        if let Some((connection, target)) = self.connection.take() {
            let way = CancelWay {
                tcp: target.tcp,
                limit: LIMIT,
                gate: Arc::new(Semaphore::new(1)),
            };
            close(connection, &way).await;
        }
    }
}

/// The logins that are known for one Postgres: that which looks up users, those of `[databases]`, and those that let a client's pool in.
fn logins(app: &App, host: HostId, ground: &str) -> Vec<Target> {
    let world = app.world();
    let mut targets = Vec::new();
    let databases = databases(&world);
    for (database, entry) in databases.iter().filter(|(_, entry)| key(entry) == ground) {
        if let Some(how) = world.look_up(database)
            && hosts_key(&how.settings) == ground
        {
            targets.push(how.settings.target);
        }
        if let (Some(user), Some(password)) = (&entry.user, &entry.password) {
            let login = ServerLogin::password(password);
            let settings = world.pool_settings(database, entry, user, login);
            targets.push(settings.target);
        }
    }
    for pool in app.pools.all() {
        let known = pool.purpose == Purpose::Clients && pool.has_logged_in();
        if known && pool.host() == host {
            targets.push(pool.settings().target.clone());
        }
    }
    targets.into_iter().map(as_monitor).collect()
}

/// The databases of the configuration, with the name under which pgweir itself would ask for them.
pub(super) fn databases(world: &World) -> Vec<(String, &Database)> {
    let config = &world.config;
    let named = config.databases.iter();
    let mut databases: Vec<_> = named.map(|(name, entry)| (name.clone(), entry)).collect();
    if let Some(any) = &config.any_database {
        let own = config.auth.query_database.as_deref();
        databases.push((own.unwrap_or(DATABASE).to_owned(), any));
    }
    databases
}

fn key(database: &Database) -> String {
    database
        .hosts
        .iter()
        .map(name)
        .collect::<Vec<_>>()
        .join(",")
}

fn hosts_key(settings: &PoolSettings) -> String {
    let hosts = settings.target.hosts.iter();
    hosts.map(|host| name(host)).collect::<Vec<_>>().join(",")
}

/// The same login for the monitor's own use.
fn as_monitor(mut target: Target) -> Target {
    target.turn = None;
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    APPLICATION_NAME.clone_into(&mut target.identity.application_name);
    target.identity.parameters = vec![
        text("search_path", "pg_catalog"),
        text("statement_timeout", "10s"),
        text("default_transaction_read_only", "on"),
    ];
    target.connect_query = None;
    target.limit = target.limit.min(LIMIT);
    target
}

fn reading(
    host: HostId,
    name: &str,
    own: u32,
    rows: &[Row],
    ours: &HashSet<u32>,
    dialing: u32,
    young: u64,
) -> Option<Reading> {
    let first = rows.first()?;
    let limits = Limits {
        max_connections: number(first, 0)?,
        reserved: number(first, 1)?,
    };
    let sees_all = rows.iter().all(|row| text(row, 12) == "t");
    let backends = rows.iter().filter_map(backend);
    let (mine, backends): (Vec<_>, Vec<_>) = backends.partition(|backend| backend.pid == own);
    let is_direct = number(first, 16) == Some(own);
    let whose = |backend: &Backend| {
        if ours.contains(&backend.pid) {
            Whose::Ours
        } else if backend.application_name == APPLICATION_NAME {
            Whose::Siblings
        } else {
            Whose::Foreign
        }
    };
    let may_be_dialed = |backend: &Backend| {
        matches!(&*backend.application_name, "" | UNUSED)
            && backend.age.is_none_or(|age| age <= young)
    };
    let shares = share(&backends, whose, dialing, may_be_dialed);
    Some(Reading {
        host,
        name: name.to_owned(),
        at: jiff::Timestamp::now().as_millisecond(),
        limits,
        shares,
        sees_all,
        own: mine.into_iter().find(|_| is_direct),
        backends: backends
            .into_iter()
            .map(|backend| (whose(&backend), backend))
            .collect(),
    })
}

fn backend(row: &Row) -> Option<Backend> {
    Some(Backend {
        pid: number(row, 2)?,
        database: text(row, 3).to_owned(),
        user: text(row, 4).to_owned(),
        application_name: text(row, 5).to_owned(),
        address: text(row, 6).to_owned(),
        state: text(row, 7).to_owned(),
        age: number(row, 8),
        transaction: number(row, 9),
        unchanged: number(row, 10),
        begun: number(row, 13),
        changed: number(row, 14),
        port: number(row, 15),
        statement: match text(row, 11) {
            // What Postgres says instead.
            "<insufficient privilege>" => String::new(),
            query => fingerprint(query.as_bytes()),
        },
    })
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column)
        .and_then(Option::as_deref)
        .unwrap_or_default()
}

fn number<T: std::str::FromStr>(row: &Row, column: usize) -> Option<T> {
    text(row, column).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &str) -> Row {
        let columns = columns.split('|');
        columns
            .map(|column| (column != "-").then(|| column.to_owned()))
            .collect()
    }

    #[test]
    fn what_may_not_be_seen_is_counted_all_the_same() {
        let rows = [
            "100|3|7|db|me|pgweir monitor|10.0.0.1|active|9|0|0|SELECT 1|t",
            "100|3|8|db|app|site|10.0.0.1|idle|90|-|80|select * from t where a = 'x'|t",
            "100|3|9|db|root|psql|-|-|-|-|-|<insufficient privilege>|f",
            "100|3|10|db|app|pgweir|-|-|-|-|-|<insufficient privilege>|f",
        ]
        .map(row);
        let mut book = crate::pool::book::Book::new();
        let host = book.add_host(None);
        let read =
            |dialing| reading(host, "db", 7, &rows, &HashSet::from([8]), dialing, 15).unwrap();
        let seen = read(0);
        assert_eq!((seen.shares.ours, seen.shares.foreign), (1, 2));
        assert_eq!((seen.open(), seen.free()), (4, 93));
        assert!(!seen.sees_all);
        let (whose, site) = &seen.backends[0];
        assert_eq!(
            (*whose, site.age, site.transaction),
            (Whose::Ours, Some(90), None)
        );
        assert_eq!(site.statement, "select * from t where a = ?");
        assert_eq!(
            (seen.backends[1].1.age, &*seen.backends[1].1.statement),
            (None, "")
        );
        let seen = read(1);
        assert_eq!(
            (seen.shares.ours, seen.shares.foreign),
            (2, 1),
            "one is being dialled"
        );
        assert!(reading(host, "db", 7, &[], &HashSet::new(), 0, 15).is_none());
    }
}
