//! Every metric series, declared once: name, type, labels, unit and help. `docs/metrics.md` is made from this table.
//!
//! What is counted on the hot path lies in [`Traffic`], one for each thread and pool; what happens rarely in [`Metrics`].
//! `app::scrape` reads both, and what pools and directory know, at the time of a scrape.

mod reasons;
mod stint;
mod tally;
mod text;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

pub use self::reasons::Reasons;
pub use self::stint::Stint;
pub use self::tally::{Buckets, Counts, SharedTimes, Tally, Times, Traffic, bound, in_micros};
pub use self::text::{Exposition, Series};

/// What a series is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It is what it is at the moment.
    Gauge,
    /// Times in buckets.
    Histogram,
}

impl Kind {
    /// Prometheus' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// All series of one name.
#[derive(Debug)]
pub struct Family {
    /// With the unit, and `_total` if it is a counter.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What is counted.
    pub unit: &'static str,
    /// What it means.
    pub help: &'static str,
}

macro_rules! families {
    ($($const:ident = $kind:ident $name:literal [$($label:literal),*] $unit:literal: $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $const: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                unit: $unit,
                help: $help,
            };
        )*

        /// All of them, in the order in which they are told.
        pub const FAMILIES: &[&Family] = &[$(&$const),*];
    };
}

families! {
    BUILD = Gauge "pgweir_build_info" ["version"] "":
        "Always 1; the labels say which pgweir it is.";
    DRAINING = Gauge "pgweir_draining" [] "":
        "1 while the process shuts down, else 0.";
    RELOADS = Counter "pgweir_config_reloads_total" ["result"] "reloads":
        "Times that the configuration was read again, by what came of it: applied or refused.";
    CONFIG_LOADED = Gauge "pgweir_config_loaded_timestamp_seconds" [] "seconds":
        "When the configuration in force was read, since the Unix epoch.";

    CLIENTS = Gauge "pgweir_clients" ["database", "user", "service", "deployment", "state"] "sessions":
        "Clients that are logged in, by what they do.";
    CLIENT_SOCKETS = Gauge "pgweir_client_sockets" [] "sockets":
        "Client sockets, logged in or not: what limits.max_clients bounds.";
    CLIENT_SOCKETS_MAX = Gauge "pgweir_client_sockets_max" [] "sockets":
        "limits.max_clients.";
    CONSOLE_SESSIONS = Gauge "pgweir_console_sessions" [] "sessions":
        "Sessions on the console, which are in no other series of clients.";
    LOGINS = Counter "pgweir_logins_total" ["database", "user"] "logins":
        "Clients that were let in.";
    CONSOLE_LOGINS = Counter "pgweir_console_logins_total" [] "logins":
        "Logins to the console.";
    LOGIN_SECONDS = Histogram "pgweir_login_seconds" [] "seconds":
        "From accept to ReadyForQuery, of clients that were let in.";
    LOGIN_FAILURES = Counter "pgweir_login_failures_total" ["reason"] "connections":
        "Clients that were not let in, by reason.";
    SESSIONS_ENDED = Counter "pgweir_sessions_ended_total" ["reason"] "sessions":
        "Sessions that ended, by reason.";
    SESSIONS_REAPED = Counter "pgweir_sessions_reaped_total" ["service", "reason"] "sessions":
        "Those of them that were closed because of their deployment or under pressure.";
    SERVICE_REFUSALS = Counter "pgweir_service_refusals_total" ["service", "reason"] "clients":
        "Clients of a service that were sent away although they may come: one too many, or no server connection for it.";
    CANCEL_REQUESTS = Counter "pgweir_cancel_requests_total" ["result"] "requests":
        "Cancel requests: passed to their session, forwarded to a peer that has it, lost on the way there, or unknown because nobody has that key.";

    WAITING = Gauge "pgweir_clients_waiting" ["database", "user"] "sessions":
        "Clients in the pool's queue, logins among them.";
    LONGEST_WAIT = Gauge "pgweir_longest_wait_seconds" ["database", "user"] "seconds":
        "How long the first in the pool's queue has waited; 0 if nobody waits.";
    SERVERS = Gauge "pgweir_server_connections" ["database", "user", "state"] "connections":
        "Server connections of the pool, by what they do.";
    POOL_SIZE = Gauge "pgweir_pool_size" ["database", "user"] "connections":
        "How many server connections the pool may have.";

    SERVICE_SERVERS = Gauge "pgweir_service_server_connections" ["service", "state"] "connections":
        "Server connections on the account of the service, by what they do.";
    SERVICE_SERVERS_MAX = Gauge "pgweir_service_server_connections_max" ["service"] "connections":
        "max_servers of the service; left out where it has no cap.";
    SERVICE_WAITING = Gauge "pgweir_service_clients_waiting" ["service"] "sessions":
        "Clients of the service in queues.";
    SERVICE_LONGEST_WAIT = Gauge "pgweir_service_longest_wait_seconds" ["service"] "seconds":
        "How long the first of them has waited; 0 if nobody waits.";
    SERVICE_CLIENTS_MAX = Gauge "pgweir_service_clients_max" ["service"] "sessions":
        "max_clients of the service; left out where it has no cap.";

    SERVICE_SERVERS_ALERT = Gauge "pgweir_service_server_connections_alert" ["service"] "connections":
        "alert_servers of the service; left out where it has none.";
    SERVICE_CLIENTS_ALERT = Gauge "pgweir_service_clients_alert" ["service"] "sessions":
        "alert_clients of the service; left out where it has none.";
    DEPLOYMENT_SESSIONS = Gauge "pgweir_deployment_sessions" ["service", "deployment", "state"] "sessions":
        "Sessions of each deployment that has any, by what the deployment is to its service: new, current or superseded.";

    POSTGRES_UP = Gauge "pgweir_postgres_up" ["postgres"] "":
        "1 if a server connection is open or the last try to connect succeeded, 0 if the last one failed; left out before the first.";
    POSTGRES_BUDGET = Gauge "pgweir_postgres_budget" ["postgres"] "connections":
        "How many server connections this Postgres may be asked for; left out until that is known.";
    POSTGRES_MAX = Gauge "pgweir_postgres_max_connections" ["postgres"] "connections":
        "max_connections of this Postgres; left out until the monitor has read it.";
    POSTGRES_OTHERS = Gauge "pgweir_postgres_other_connections" ["postgres", "whose"] "connections":
        "Connections to this Postgres that are not this pgweir's: of other pgweir processes, or foreign.";
    POSTGRES_FREE = Gauge "pgweir_postgres_free_connections" ["postgres"] "connections":
        "Connections that ordinary users may still open there.";
    POSTGRES_FREE_FLOOR = Gauge "pgweir_postgres_free_connections_floor" [] "connections":
        "pressure.min_headroom: with fewer free ones there is pressure, and an alert.";
    POSTGRES_REFUSALS = Counter "pgweir_postgres_refusals_total" ["postgres"] "tries":
        "Times that this Postgres refused a connection with 53300.";
    SERVERS_ALERT = Gauge "pgweir_server_connections_alert" [] "connections":
        "alerts.total_servers; left out if there is none.";
    ALERTS = Gauge "pgweir_alerts" ["alert", "subject"] "":
        "1 for each alert that is raised.";
    INCIDENTS = Counter "pgweir_incidents_total" ["cause"] "incidents":
        "Incidents that were opened, by the alert that opened them.";
    INCIDENT_OPEN = Gauge "pgweir_incident_open" [] "":
        "1 while an incident goes on, else 0.";
    WEBHOOK = Counter "pgweir_webhook_messages_total" ["result"] "messages":
        "Messages to alerts.webhook, by what became of them: sent, failed after all tries, or dropped because too many waited.";
    POSTGRES_SERVERS = Gauge "pgweir_postgres_server_connections" ["postgres", "state"] "connections":
        "Server connections to this Postgres over all pools, by what they do.";
    DIALS = Counter "pgweir_dials_total" ["postgres"] "tries":
        "Times that a server connection was asked for: connect and login.";
    DIAL_FAILURES = Counter "pgweir_dial_failures_total" ["postgres", "reason"] "tries":
        "Those that failed, by reason.";
    SERVERS_CLOSED = Counter "pgweir_server_connections_closed_total" ["postgres", "reason"] "connections":
        "Server connections that were closed, by reason.";

    ASSIGNMENTS = Counter "pgweir_assignments_total" ["database", "user"] "times":
        "Times that a session got a server connection.";
    TRANSACTIONS = Counter "pgweir_transactions_total" ["database", "user"] "transactions":
        "Times that a server connection settled for a client: transactions, and statements outside of one.";
    QUERIES = Counter "pgweir_queries_total" ["database", "user"] "queries":
        "ReadyForQuery messages: simple queries, and extended ones up to a Sync.";
    RECEIVED = Counter "pgweir_received_bytes_total" ["database", "user"] "bytes":
        "Bytes of clients that were sent on to Postgres.";
    SENT = Counter "pgweir_sent_bytes_total" ["database", "user"] "bytes":
        "Bytes of Postgres that were sent on to clients.";
    CLIENT_PARSES = Counter "pgweir_client_parses_total" ["database", "user"] "messages":
        "Parse messages of clients.";
    SERVER_PARSES = Counter "pgweir_server_parses_total" ["database", "user"] "messages":
        "Parse messages that went to Postgres, pgweir's own among them.";
    BINDS = Counter "pgweir_binds_total" ["database", "user"] "messages":
        "Bind messages of clients.";
    WAIT_SECONDS = Histogram "pgweir_wait_seconds" ["database", "user"] "seconds":
        "From asking for a server connection to getting it or giving up; who gets one at once has waited 0.";
    TRANSACTION_SECONDS = Histogram "pgweir_transaction_seconds" ["database", "user"] "seconds":
        "From getting a server connection to settling, waits not included.";
    QUERY_SECONDS = Histogram "pgweir_query_seconds" ["database", "user"] "seconds":
        "From a request to its ReadyForQuery, waits not included; those that are answered together share their time.";

    LOG_SUPPRESSED = Counter "pgweir_log_lines_suppressed_total" [] "lines":
        "Log lines that were left out because the same was said less than a minute before.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" [] "seconds":
        "CPU time of the process, user and system.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [] "bytes":
        "Resident memory.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [] "bytes":
        "Virtual memory.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [] "descriptors":
        "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [] "descriptors":
        "How many there may be.";
    PROCESS_THREADS = Gauge "process_threads" [] "threads":
        "Threads of the operating system.";
    PROCESS_START = Gauge "process_start_time_seconds" [] "seconds":
        "When the process began, since the Unix epoch.";
}

/// What happens rarely, counted where it happens.
#[derive(Debug)]
pub struct Metrics {
    /// When the process began.
    pub began: SystemTime,
    /// Microseconds from then until the configuration in force was read.
    config_loaded: AtomicU64,
    /// What came of reading the configuration again.
    pub reloads: Reasons,
    /// From accept to ReadyForQuery.
    pub logins: SharedTimes,
    /// Logins to the console.
    pub console_logins: AtomicU64,
    /// Clients that were not let in.
    pub login_failures: Reasons,
    /// Sessions that ended.
    pub sessions_ended: Reasons,
    /// Cancel requests.
    pub cancel_requests: Reasons,
}

/// What may come of a cancel request: its session was told, a peer was told, a peer could not be told, or nobody has that key.
pub const CANCEL_RESULTS: [&str; 4] = ["passed", "forwarded", "lost", "unknown"];

/// What may come of reading the configuration again.
pub const RELOAD_RESULTS: [&str; 2] = ["applied", "refused"];

impl Metrics {
    /// Nothing has happened. A reason that is named here counts from 0, so that the first of its kind is seen as growth.
    pub fn new(login_failures: &[&'static str], sessions_ended: &[&'static str]) -> Self {
        Self {
            began: SystemTime::now(),
            config_loaded: AtomicU64::default(),
            reloads: Reasons::new(&RELOAD_RESULTS),
            logins: SharedTimes::default(),
            console_logins: AtomicU64::default(),
            login_failures: Reasons::new(login_failures),
            sessions_ended: Reasons::new(sessions_ended),
            cancel_requests: Reasons::new(&CANCEL_RESULTS),
        }
    }

    /// Counts a client that was not let in.
    pub fn login_failed(&self, reason: &'static str) {
        self.login_failures.add(reason);
    }

    /// Clients that were not let in, in all.
    pub fn login_failures(&self) -> u64 {
        self.login_failures
            .read()
            .iter()
            .map(|(_, count)| count)
            .sum()
    }

    /// Counts a session that ended.
    pub fn session_ended(&self, reason: &'static str) {
        self.sessions_ended.add(reason);
    }

    /// Counts a cancel request, by what came of it.
    pub fn cancel_asked(&self, result: &'static str) {
        self.cancel_requests.add(result);
    }

    /// Counts that the configuration was read again.
    pub fn reloaded(&self, applied: bool) {
        self.reloads.add(RELOAD_RESULTS[usize::from(!applied)]);
        if applied {
            let since = self.began.elapsed().unwrap_or_default();
            self.config_loaded.store(in_micros(since), Relaxed);
        }
    }

    /// When the configuration in force was read.
    pub fn config_loaded(&self) -> SystemTime {
        self.began + Duration::from_micros(self.config_loaded.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MANUAL: &str = include_str!("../docs/metrics.md");

    /// The table of the manual.
    fn table() -> String {
        let mut table =
            String::from("| series | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
        for family in FAMILIES {
            let labels: Vec<_> = family
                .labels
                .iter()
                .map(|name| format!("`{name}`"))
                .collect();
            let cells = [
                format!("`{}`", family.name),
                family.kind.as_str().to_owned(),
                labels.join(", "),
                family.unit.to_owned(),
                family.help.to_owned(),
            ];
            table.extend(["| ", &cells.join(" | "), " |\n"]);
        }
        table
    }

    #[test]
    fn the_manual_has_this_table() {
        let table = table();
        assert!(
            MANUAL.contains(&table),
            "docs/metrics.md is not current; its table is to be\n{table}"
        );
    }

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for Family {
            name,
            kind,
            labels,
            help,
            ..
        } in FAMILIES
        {
            assert!(names.insert(name), "{name} is declared twice");
            assert!(
                name.starts_with("pgweir_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(
                *kind == Kind::Histogram,
                *kind != Kind::Gauge && name.ends_with("_seconds"),
                "{name}"
            );
            assert!(
                !name.contains("milli") && !name.contains("micro"),
                "{name} is in base units"
            );
            assert!(!labels.contains(&"le") && help.ends_with('.'), "{name}");
            assert!(!help.contains('|') && !help.contains('\n'), "{name}");
        }
    }
}
