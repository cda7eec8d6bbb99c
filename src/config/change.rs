//! What differs between two configurations, and whether it takes effect at a reload.
//!
//! Settings are named, values are not: some are secret.

use std::collections::BTreeMap;
use std::fmt;

use super::checked::{
    Alerts, Auth, Budget, Config, Database, Deployments, Incidents, Limits, Listen, Log, Match,
    OwnTimeouts, Peer, PoolDefaults, Pressure, Process, Runtime, Service, ServiceLimits, Services,
    SessionDefaults, Tcp, Timeouts, Tls, User,
};
use super::raw::dotted;
use super::written::Written;

/// One setting that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its dotted name, as in the file: `pool.size`. An entry that came or went has one name for all
    /// of it, `databases.site`; `services` alone is their order, in which the first match wins.
    pub name: String,
    /// When the new value counts.
    pub effect: Effect,
}

/// When a changed setting counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// From the reload on.
    Live,
    /// From the next start on.
    Restart,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.effect {
            Effect::Live => write!(f, "{} changed", self.name),
            Effect::Restart => write!(f, "{} changed, and needs a restart", self.name),
        }
    }
}

impl Effect {
    /// Whether it needs no restart.
    pub fn is_live(self) -> bool {
        self == Self::Live
    }
}

/// Every setting that differs.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    config(
        &mut |seen| {
            if seen.differs() {
                let name = seen.into_name();
                let effect = effect_of(&name);
                changes.push(Change { name, effect });
            }
        },
        old,
        new,
    );
    changes
}

/// A setting, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its dotted name.
    pub name: String,
    /// As it is in force; a secret is not told.
    pub value: String,
    /// As it is where nothing is given.
    pub default: String,
    /// When another value would count.
    pub effect: Effect,
}

/// Every setting of the tables that are there once, and of single databases, users and services what was given.
pub fn settings(in_force: &Config) -> Vec<Setting> {
    let mut settings = Vec::new();
    let plain = plain(in_force);
    config(
        &mut |seen| {
            if let Seen::Field {
                name,
                old,
                new,
                differs,
            } = seen
                && (differs || !is_of_an_entry(&name))
            {
                settings.push(Setting {
                    effect: effect_of(&name),
                    value: written(&name, new),
                    default: written(&name, old),
                    name,
                });
            }
        },
        &plain,
        in_force,
    );
    settings
}

/// The value of a setting as the file has it.
fn written(name: &str, value: &dyn Written) -> String {
    let text = value.written();
    match text.parse::<u32>() {
        Ok(mode) if name == "listen.unix_socket_mode" => format!("{mode:04o}"),
        _ => text,
    }
}

fn is_of_an_entry(name: &str) -> bool {
    ["databases.", "users.", "peers."]
        .iter()
        .any(|table| name.starts_with(table))
        || (name.starts_with("services.") && !name.starts_with("services.\"*\""))
}

/// What everything is when nothing is given, with the entries of `config`, so that nothing but their settings differs.
pub fn plain(config: &Config) -> Config {
    let mut plain = super::smallest();
    let nothing = Database::default();
    let names = config.databases.keys().cloned();
    plain.databases = names.map(|name| (name, nothing.clone())).collect();
    plain.any_database = config.any_database.as_ref().map(|_| nothing);
    let users = config.users.keys().cloned();
    plain.users = users.map(|name| (name, User::default())).collect();
    let (limits, deployments) = (&plain.services.limits, &plain.services.deployments);
    let service = |service: &Service| Service {
        name: service.name.clone(),
        matches: Match::default(),
        limits: limits.clone(),
        deployments: deployments.clone(),
    };
    plain.services.listed = config.services.listed.iter().map(service).collect();
    plain
}

fn effect_of(name: &str) -> Effect {
    match name {
        "runtime.threads"
        | "log.format"
        | "log.stderr"
        | "pool.disable_pqexec"
        | "incidents.directory"
        | "incidents.keep" => Effect::Restart,
        "listen.http_password"
        | "listen.proxy_protocol_from"
        | "process.peer_id"
        | "process.resolv_conf" => Effect::Live,
        _ if ["listen.", "tcp.", "process."]
            .iter()
            .any(|table| name.starts_with(table)) =>
        {
            Effect::Restart
        }
        _ => Effect::Live,
    }
}

/// What is come by on a walk over two configurations.
enum Seen<'a> {
    /// A setting, by its dotted name.
    Field {
        name: String,
        old: &'a dyn Written,
        new: &'a dyn Written,
        differs: bool,
    },
    /// An entry that came or went, or the order of entries.
    Entry(String),
}

impl Seen<'_> {
    fn differs(&self) -> bool {
        matches!(self, Self::Entry(_) | Self::Field { differs: true, .. })
    }

    fn into_name(self) -> String {
        match self {
            Self::Field { name, .. } | Self::Entry(name) => name,
        }
    }
}

/// Takes what is come by.
type Note<'n> = &'n mut dyn FnMut(Seen<'_>);

fn config(note: Note<'_>, old: &Config, new: &Config) {
    // Every field by name, here and below: one that is added and forgotten does not compile.
    let Config {
        listen: _,
        pool: _,
        budget: _,
        limits: _,
        timeouts: _,
        tcp: _,
        auth: _,
        tls_client: _,
        tls_server: _,
        databases: _,
        any_database: _,
        users: _,
        peers: _,
        services: _,
        pressure: _,
        alerts: _,
        incidents: _,
        log: _,
        process: _,
        runtime: _,
    } = old;
    listen(note, "listen", &old.listen, &new.listen);
    pool(note, "pool", &old.pool, &new.pool);
    budget(note, "budget", &old.budget, &new.budget);
    limits(note, "limits", &old.limits, &new.limits);
    timeouts(note, "timeouts", &old.timeouts, &new.timeouts);
    tcp(note, "tcp", &old.tcp, &new.tcp);
    auth(note, "auth", &old.auth, &new.auth);
    tls(note, "tls.client", &old.tls_client, &new.tls_client);
    tls(note, "tls.server", &old.tls_server, &new.tls_server);
    entries(
        note,
        "databases",
        &all_databases(old),
        &all_databases(new),
        database,
    );
    entries(
        note,
        "users",
        &by_name(&old.users),
        &by_name(&new.users),
        user,
    );
    let peers = [&old.peers, &new.peers].map(by_id);
    entries(
        note,
        "peers",
        &by_name(&peers[0]),
        &by_name(&peers[1]),
        peer,
    );
    all_services(note, &old.services, &new.services);
    pressure(note, "pressure", &old.pressure, &new.pressure);
    alerts(note, "alerts", &old.alerts, &new.alerts);
    incidents(note, "incidents", &old.incidents, &new.incidents);
    log(note, "log", &old.log, &new.log);
    process(note, "process", &old.process, &new.process);
    runtime(note, "runtime", &old.runtime, &new.runtime);
}

/// Makes a function that notes each field of a struct, by its key if that is another word. `with`: a field
/// whose keys stand in the same table.
macro_rules! compare {
    ($name:ident: $struct:ident { $($field:ident $(= $key:literal)?),* $(,)? } $(with $($part:ident: $compare:ident),+)?) => {
        fn $name(note: Note<'_>, table: &str, old: &$struct, new: &$struct) {
            let $struct { $($field,)* $($($part),+)? } = old;
            $($($compare(&mut *note, table, $part, &new.$part);)+)?
            $(note(Seen::Field {
                name: dotted(table, [$($key,)? stringify!($field)][0]),
                old: $field,
                new: &new.$field,
                differs: *$field != new.$field,
            });)*
        }
    };
}

compare! { listen: Listen {
    addresses, unix_socket_dir, unix_socket_mode, unix_socket_group, unix_socket_port, backlog, reuse_port, http, http_password,
    proxy_protocol_from,
} }

compare! { pool: PoolDefaults {
    mode, size, min_size, reserve_size, reserve_after, max_prepared_statements, server_reset_query,
    server_reset_query_always, server_check_query, server_check_delay, server_fast_close, disable_pqexec,
    ignore_startup_parameters, application_name_add_host, server_round_robin, errors,
} }

compare! { budget: Budget { max_servers, headroom, check_every } }

compare! { limits: Limits {
    max_clients, max_clients_per_user, max_clients_per_database, max_servers_per_user,
    max_servers_per_database, max_message_size, max_statement_memory,
} }

compare! { timeouts: Timeouts {
    client_login, client_idle, idle_transaction, transaction, query, query_wait, query_wait_notify,
    server_connect, server_login_retry, server_idle, server_lifetime, cancel, suspend, dns_max_ttl, dns_nxdomain_ttl,
    dns_zone_check,    pool_idle, auto_database_idle,
} }

compare! { tcp: Tcp { keepalive_idle, keepalive_interval, keepalive_count, user_timeout, keepalive, socket_buffer } }

compare! { auth: Auth {
    method, users_file, hba_file, ident_file, ldap_options, pam_service, query_user, query_database, query, admins, stats, login_notify_message,
    scram_iterations,
} }

compare! { tls: Tls { mode, certificate, key, ca, min_version, max_version, ciphers, curves } }

compare! { database: Database {
    hosts = "host", dbname, user, password, sslmode, sslnegotiation, mode, pool_size, min_size, reserve_size, max_servers, max_clients,
    load_balance_hosts, connect_query, auth_query, auth_user, auth_dbname, server_lifetime,
} with timeouts: own_timeouts, parameters: session_defaults }

compare! { session_defaults: SessionDefaults { application_name, client_encoding, datestyle, timezone } }

compare! { user: User { password, mode, pool_size, reserve_size, max_servers, max_clients } with timeouts: own_timeouts }

compare! { peer: Peer { host, pool_size } }

compare! { own_timeouts: OwnTimeouts { client_idle, idle_transaction, transaction, query, query_wait } }

compare! { matches: Match { user, database, application_name, address, certificate } }

compare! { service_limits: ServiceLimits {
    max_servers, min_servers, max_clients, weight, alert_servers, alert_clients, client_idle,
    idle_transaction,
} }

compare! { deployments: Deployments {
    pattern, promote_after, stale_grace, stale_idle, stale_idle_transaction, close_per_second, dry_run,
} }

compare! { pressure: Pressure { waiters_for, min_headroom, idle_transaction, close_foreign } }

compare! { alerts: Alerts { total_servers, login_failures, webhook, webhook_ca, repeat_every } }

compare! { incidents: Incidents { directory, keep, snapshot_every } }

compare! { log: Log { level, format, connections, disconnections, pooler_errors, stats, stats_period, file, stderr, syslog, syslog_ident, syslog_facility, syslog_socket } }

compare! { process: Process { pidfile, user, peer_id, resolv_conf } }

compare! { runtime: Runtime { threads } }

fn all_services(note: Note<'_>, old: &Services, new: &Services) {
    let Services {
        limits,
        deployments: star_deployments,
        listed,
    } = old;
    let star = dotted("services", "*");
    service_limits(note, &star, limits, &new.limits);
    deployments(
        note,
        &dotted(&star, "deployments"),
        star_deployments,
        &new.deployments,
    );
    entries(
        note,
        "services",
        &by_service(listed),
        &by_service(&new.listed),
        service,
    );
    if order(listed, &new.listed) != order(&new.listed, listed) {
        note(Seen::Entry("services".to_owned()));
    }
}

fn service(note: Note<'_>, table: &str, old: &Service, new: &Service) {
    let Service {
        name: _,
        matches: rules,
        limits,
        deployments: own_deployments,
    } = old;
    matches(note, &dotted(table, "match"), rules, &new.matches);
    service_limits(note, table, limits, &new.limits);
    deployments(
        note,
        &dotted(table, "deployments"),
        own_deployments,
        &new.deployments,
    );
}

/// The order of those services that are in the other list too.
fn order<'a>(listed: &'a [Service], other: &[Service]) -> Vec<&'a str> {
    let other = by_service(other);
    let names = listed.iter().map(|service| service.name.as_str());
    names.filter(|name| other.contains_key(name)).collect()
}

/// Entries by name.
type Named<'a, T> = BTreeMap<&'a str, &'a T>;

fn by_name<T>(entries: &BTreeMap<String, T>) -> Named<'_, T> {
    entries
        .iter()
        .map(|(name, entry)| (name.as_str(), entry))
        .collect()
}

fn by_id(peers: &BTreeMap<u16, Peer>) -> BTreeMap<String, Peer> {
    let named = |(id, peer): (&u16, &Peer)| (id.to_string(), peer.clone());
    peers.iter().map(named).collect()
}

fn by_service(listed: &[Service]) -> Named<'_, Service> {
    listed
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect()
}

fn all_databases(config: &Config) -> Named<'_, Database> {
    let any = config.any_database.iter().map(|any| ("*", any));
    by_name(&config.databases).into_iter().chain(any).collect()
}

/// Entries that came or went by name, the others setting by setting.
fn entries<T>(
    note: Note<'_>,
    table: &str,
    old: &Named<'_, T>,
    new: &Named<'_, T>,
    compare: impl Fn(Note<'_>, &str, &T, &T),
) {
    for (name, old) in old {
        let table = dotted(table, name);
        match new.get(name) {
            Some(new) => compare(note, &table, old, new),
            None => note(Seen::Entry(table)),
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        note(Seen::Entry(dotted(table, name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        crate::config::parse(text, "test", &|_| None).unwrap()
    }

    #[test]
    fn settings_are_told_as_the_file_has_them_and_secrets_not_at_all() {
        let told = settings(&config(
            "[databases.site]\nurl = \"postgres://ann:hidden@db/site\"\nmode = \"session\"\n\
             [users.bob]\npassword = \"hidden\"\npool_size = 3\n[timeouts]\nquery_wait = \"90s\"\n\
             [alerts]\nwebhook = \"https://hidden/\"\n[listen]\nhttp_password = \"hidden\"",
        ));
        let of = |name: &str| {
            let setting = told.iter().find(|setting| setting.name == name);
            setting.map(|setting| (setting.value.as_str(), setting.default.as_str()))
        };
        assert_eq!(of("timeouts.query_wait"), Some(("90s", "2m")));
        assert_eq!(of("timeouts.client_idle"), Some(("0", "0")));
        assert_eq!(of("pool.mode"), Some(("transaction", "transaction")));
        assert_eq!(of("listen.unix_socket_mode"), Some(("0777", "0777")));
        assert_eq!(of("limits.max_message_size"), Some(("1GiB", "1GiB")));
        assert_eq!(of("databases.site.mode"), Some(("session", "")));
        assert_eq!(of("databases.site.host"), Some(("db:5432", "")));
        assert_eq!(of("databases.site.pool_size"), None);
        assert_eq!(of("users.bob.pool_size"), Some(("3", "")));
        assert_eq!(of("users.bob.password"), Some(("***", "")));
        assert!(!format!("{told:?}").contains("hidden"));
    }

    #[test]
    fn every_setting_of_the_file_is_told() {
        let told = settings(&config("[databases.\"*\"]\nurl = \"postgres://db\""));
        for name in crate::config::settings() {
            let of_an_entry = ["databases.", "users.", "peers.", "services."];
            if !of_an_entry.iter().any(|table| name.starts_with(table)) {
                assert!(told.iter().any(|setting| setting.name == name), "{name}");
            }
        }
    }
}
