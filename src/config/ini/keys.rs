//! Every key of `[pgbouncer]`, declared once: its default there, what its value is, and what becomes of it here.

/// A key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// PgBouncer's default, as a file would write it.
    pub(super) default: &'static str,
    pub(super) kind: Kind,
    pub(super) fate: Fate,
}

/// What a value is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// A path, in which `~/` is the home directory.
    File,
    /// Words with commas.
    List,
    Count,
    /// 0 or 1.
    Switch,
    /// With a fraction if need be.
    Seconds,
    WholeSeconds,
    Milliseconds,
    /// One of these, in any case.
    Word(&'static [&'static str]),
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// It is this key of pooler.toml, whose value means the same.
    Same(&'static str, &'static str),
    /// `translate.rs` has code for it.
    Own,
    /// It cannot matter here, whatever it says.
    Idle(&'static str),
}

use Fate::{Idle, Own, Same};
use Kind::{Count, File, List, Milliseconds, Seconds, Switch, Text, WholeSeconds, Word};

pub(super) const MODES: &[&str] = &["session", "transaction", "statement"];

pub(super) const TLS_MODES: &[&str] = &[
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Keys that PgBouncer reads at its start alone.
pub(super) const AT_START: &[&str] = &[
    "disable_pqexec",
    "job_name",
    "listen_addr",
    "listen_backlog",
    "listen_port",
    "pidfile",
    "pkt_buf",
    "resolv_conf",
    "service_name",
    "so_reuseport",
    "track_extra_parameters",
    "unix_socket_dir",
    "unix_socket_group",
    "unix_socket_mode",
    "user",
];

const AUTH_TYPES: &[&str] = &[
    "any",
    "trust",
    "plain",
    "md5",
    "cert",
    "hba",
    "pam",
    "ldap",
    "scram-sha-256",
];

/// What PgBouncer calls the facilities of syslog; any other word is `user`.
pub(super) const FACILITIES: &[&str] = &[
    "auth", "authpriv", "daemon", "user", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

const SERVICE: &str = "a name for Windows and syslog";

/// `NAME = DEFAULT; KIND; FATE,` for each.
macro_rules! keys {
    ($($name:literal = $default:expr; $kind:expr; $fate:expr,)*) => {
        /// All of them, by name.
        pub(super) const KEYS: &[Key] = &[$(Key { name: $name, default: $default, kind: $kind, fate: $fate }),*];
    };
}

keys! {
    "admin_users" = ""; List; Same("auth", "admins"),
    "application_name_add_host" = "0"; Switch; Same("pool", "application_name_add_host"),
    "auth_dbname" = ""; Text; Own,
    "auth_file" = ""; File; Same("auth", "users_file"),
    "auth_hba_file" = ""; File; Same("auth", "hba_file"),
    "auth_ident_file" = ""; File; Same("auth", "ident_file"),
    "auth_ldap_options" = ""; Text; Own,
    "auth_query" = super::translate::AUTH_QUERY; Text; Own,
    "auth_type" = "md5"; Word(AUTH_TYPES); Own,
    "auth_user" = ""; Text; Same("auth", "query_user"),
    "autodb_idle_timeout" = "3600"; Seconds; Same("timeouts", "auto_database_idle"),
    "cancel_wait_timeout" = "10"; Seconds; Same("timeouts", "cancel"),
    "client_idle_timeout" = "0"; Seconds; Same("timeouts", "client_idle"),
    "client_login_timeout" = "60"; Seconds; Same("timeouts", "client_login"),
    "client_tls13_ciphers" = ""; Text; Own,
    "client_tls_ca_file" = ""; File; Own,
    "client_tls_cert_file" = ""; File; Own,
    "client_tls_ciphers" = "default"; Text; Own,
    "client_tls_dheparams" = "auto"; Text; Idle("no suite with such parameters is offered"),
    "client_tls_ecdhcurve" = "auto"; Text; Own,
    "client_tls_key_file" = ""; File; Own,
    "client_tls_protocols" = "secure"; Text; Own,
    "client_tls_sslmode" = "disable"; Word(TLS_MODES); Own,
    "conffile" = ""; File; Own,
    "default_pool_size" = "20"; Count; Own,
    "disable_pqexec" = "0"; Switch; Same("pool", "disable_pqexec"),
    "dns_max_ttl" = "15"; Seconds; Same("timeouts", "dns_max_ttl"),
    "dns_nxdomain_ttl" = "15"; Seconds; Same("timeouts", "dns_nxdomain_ttl"),
    "dns_zone_check_period" = "0"; Seconds; Same("timeouts", "dns_zone_check"),
    "idle_transaction_timeout" = "0"; Seconds; Same("timeouts", "idle_transaction"),
    "ignore_startup_parameters" = ""; List; Same("pool", "ignore_startup_parameters"),
    "job_name" = "pgbouncer"; Text; Idle(SERVICE),
    "listen_addr" = ""; Text; Own,
    "listen_backlog" = "128"; Count; Own,
    "listen_port" = "6432"; Count; Own,
    "log_connections" = "1"; Switch; Same("log", "connections"),
    "log_disconnections" = "1"; Switch; Same("log", "disconnections"),
    "log_pooler_errors" = "1"; Switch; Same("log", "pooler_errors"),
    "log_stats" = "1"; Switch; Same("log", "stats"),
    "logfile" = ""; File; Same("log", "file"),
    "login_notify_message" = ""; Text; Same("auth", "login_notify_message"),
    "max_client_conn" = "100"; Count; Own,
    "max_db_client_connections" = "0"; Count; Same("limits", "max_clients_per_database"),
    "max_db_connections" = "0"; Count; Same("limits", "max_servers_per_database"),
    "max_packet_size" = "2147483647"; Count; Own,
    "max_prepared_statements" = "200"; Count; Same("pool", "max_prepared_statements"),
    "max_user_client_connections" = "0"; Count; Same("limits", "max_clients_per_user"),
    "max_user_connections" = "0"; Count; Same("limits", "max_servers_per_user"),
    "min_pool_size" = "0"; Count; Own,
    "peer_id" = "0"; Count; Same("process", "peer_id"),
    "pidfile" = ""; File; Same("process", "pidfile"),
    "pkt_buf" = "4096"; Count; Idle("buffers belong to threads, not to connections"),
    "pool_idle_timeout" = "0"; Seconds; Same("timeouts", "pool_idle"),
    "pool_mode" = "session"; Word(MODES); Same("pool", "mode"),
    "query_timeout" = "0"; Seconds; Same("timeouts", "query"),
    "query_wait_notify" = "5"; Seconds; Same("timeouts", "query_wait_notify"),
    "query_wait_timeout" = "120"; Seconds; Same("timeouts", "query_wait"),
    "reserve_pool_size" = "0"; Count; Own,
    "reserve_pool_timeout" = "5"; Seconds; Own,
    "resolv_conf" = ""; File; Same("process", "resolv_conf"),
    "sbuf_loopcnt" = "5"; Count; Idle("no connection keeps a thread from the others"),
    "scram_iterations" = "4096"; Count; Own,
    "server_check_delay" = "30"; Seconds; Same("pool", "server_check_delay"),
    "server_check_query" = "<empty>"; Text; Own,
    "server_connect_timeout" = "15"; Seconds; Same("timeouts", "server_connect"),
    "server_fast_close" = "0"; Switch; Same("pool", "server_fast_close"),
    "server_idle_timeout" = "600"; Seconds; Same("timeouts", "server_idle"),
    "server_lifetime" = "3600"; Seconds; Own,
    "server_login_retry" = "15"; Seconds; Own,
    "server_reset_query" = "DISCARD ALL"; Text; Same("pool", "server_reset_query"),
    "server_reset_query_always" = "0"; Switch; Same("pool", "server_reset_query_always"),
    "server_round_robin" = "0"; Switch; Same("pool", "server_round_robin"),
    "server_tls13_ciphers" = ""; Text; Own,
    "server_tls_ca_file" = ""; File; Own,
    "server_tls_cert_file" = ""; File; Same("tls.server", "certificate"),
    "server_tls_ciphers" = "default"; Text; Own,
    "server_tls_key_file" = ""; File; Same("tls.server", "key"),
    "server_tls_protocols" = "secure"; Text; Own,
    "server_tls_sslmode" = "prefer"; Word(TLS_MODES); Own,
    "service_name" = "pgbouncer"; Text; Idle(SERVICE),
    "so_reuseport" = "0"; Switch; Same("listen", "reuse_port"),
    "stats_period" = "60"; Seconds; Own,
    "stats_users" = ""; List; Same("auth", "stats"),
    "suspend_timeout" = "10"; Seconds; Same("timeouts", "suspend"),
    "syslog" = "0"; Switch; Same("log", "syslog"),
    "syslog_facility" = "daemon"; Text; Own,
    "syslog_ident" = "pgbouncer"; Text; Own,
    "tcp_defer_accept" = "1"; WholeSeconds; Idle("a socket that says nothing costs little"),
    "tcp_keepalive" = "1"; Switch; Same("tcp", "keepalive"),
    "tcp_keepcnt" = "0"; Count; Same("tcp", "keepalive_count"),
    "tcp_keepidle" = "0"; WholeSeconds; Same("tcp", "keepalive_idle"),
    "tcp_keepintvl" = "0"; WholeSeconds; Same("tcp", "keepalive_interval"),
    "tcp_socket_buffer" = "0"; Count; Same("tcp", "socket_buffer"),
    "tcp_user_timeout" = "0"; Milliseconds; Same("tcp", "user_timeout"),
    "track_extra_parameters" = "IntervalStyle"; List; Idle("every parameter is kept for each client"),
    "transaction_timeout" = "0"; Seconds; Same("timeouts", "transaction"),
    "unix_socket_dir" = "/tmp"; Text; Same("listen", "unix_socket_dir"),
    "unix_socket_group" = ""; Text; Same("listen", "unix_socket_group"),
    "unix_socket_mode" = "0777"; Count; Own,
    "user" = ""; Text; Same("process", "user"),
    "verbose" = "0"; Count; Own,
}

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_all_101_keys_each_once_and_in_order() {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
        assert_eq!(names.len(), 101);
    }

    #[test]
    fn the_manual_has_every_key() {
        let manual = include_str!("../../../docs/from-pgbouncer.md");
        for key in KEYS {
            assert!(manual.contains(&format!("`{}`", key.name)), "{}", key.name);
        }
    }
}
