//! What differs between two configurations, and whether it takes effect at a reload.
//!
//! Settings are named, values are not: some are secret.

use std::collections::BTreeMap;
use std::fmt;

use super::checked::{
    Alerts, Auth, Budget, Config, Database, Deployments, Incidents, Limits, Listen, Log, Match,
    PoolDefaults, Pressure, Runtime, Service, ServiceLimits, Services, Tcp, Timeouts, Tls, User,
};
use super::raw::dotted;

/// One setting that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its dotted name, as in the file: `pool.size`; `databases.site` for one that came or went.
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

/// Every setting that differs.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut note = |name: String| {
        let effect = if needs_restart(&name) {
            Effect::Restart
        } else {
            Effect::Live
        };
        changes.push(Change { name, effect });
    };
    config(&mut note, old, new);
    changes
}

fn needs_restart(name: &str) -> bool {
    name.starts_with("listen.") || name == "runtime.threads" || name == "log.format"
}

/// Notes each field that differs. All fields are taken apart, so that one that is added to a struct and forgotten here
/// does not compile.
macro_rules! compare {
    ($note:expr, $table:expr, $old:expr, $new:expr, $struct:ident { $($field:ident),* $(,)? } $(, but $other:ident)*) => {{
        let $struct { $($field,)* $($other: _,)* } = $old;
        $(if *$field != $new.$field {
            $note(dotted($table, stringify!($field)));
        })*
    }};
}

fn config(note: &mut dyn FnMut(String), old: &Config, new: &Config) {
    let Config {
        listen,
        pool,
        budget,
        limits,
        timeouts,
        tcp,
        auth,
        tls_client,
        tls_server,
        databases,
        any_database,
        users,
        services,
        pressure,
        alerts,
        incidents,
        log,
        runtime,
    } = old;
    compare!(
        note,
        "listen",
        listen,
        new.listen,
        Listen {
            addresses,
            unix_socket_dir,
            unix_socket_mode,
            http,
            proxy_protocol_from
        }
    );
    compare!(
        note,
        "pool",
        pool,
        new.pool,
        PoolDefaults {
            mode,
            size,
            min_size,
            reserve_size,
            reserve_after,
            max_prepared_statements,
            server_reset_query
        }
    );
    compare!(
        note,
        "budget",
        budget,
        new.budget,
        Budget {
            max_servers,
            headroom,
            check_every
        }
    );
    compare!(
        note,
        "limits",
        limits,
        new.limits,
        Limits {
            max_clients,
            max_clients_per_user,
            max_clients_per_database,
            max_servers_per_user,
            max_servers_per_database,
            max_message_size
        }
    );
    compare!(
        note,
        "timeouts",
        timeouts,
        new.timeouts,
        Timeouts {
            client_login,
            client_idle,
            idle_transaction,
            transaction,
            query,
            query_wait,
            query_wait_notify,
            server_connect,
            server_login_retry,
            server_idle,
            server_lifetime,
            cancel
        }
    );
    compare!(
        note,
        "tcp",
        tcp,
        new.tcp,
        Tcp {
            keepalive_idle,
            keepalive_interval,
            keepalive_count,
            user_timeout
        }
    );
    compare!(
        note,
        "auth",
        auth,
        new.auth,
        Auth {
            method,
            users_file,
            hba_file,
            ident_file,
            query_user,
            query_database,
            query,
            admins,
            stats
        }
    );
    tls(note, "tls.client", tls_client, &new.tls_client);
    tls(note, "tls.server", tls_server, &new.tls_server);
    entries(
        note,
        "databases",
        &with_star(databases, any_database.as_ref()),
        &with_star(&new.databases, new.any_database.as_ref()),
        database,
    );
    entries(note, "users", &by_name(users), &by_name(&new.users), user);
    all_services(note, services, &new.services);
    compare!(
        note,
        "pressure",
        pressure,
        new.pressure,
        Pressure {
            waiters_for,
            min_headroom,
            idle_transaction
        }
    );
    compare!(
        note,
        "alerts",
        alerts,
        new.alerts,
        Alerts {
            total_servers,
            webhook,
            repeat_every
        }
    );
    compare!(
        note,
        "incidents",
        incidents,
        new.incidents,
        Incidents {
            directory,
            keep,
            snapshot_every
        }
    );
    compare!(
        note,
        "log",
        log,
        new.log,
        Log {
            level,
            format,
            connections,
            disconnections,
            pooler_errors
        }
    );
    compare!(note, "runtime", runtime, new.runtime, Runtime { threads });
}

fn tls(note: &mut dyn FnMut(String), table: &str, old: &Tls, new: &Tls) {
    compare!(
        note,
        table,
        old,
        new,
        Tls {
            mode,
            certificate,
            key,
            ca
        }
    );
}

fn database(note: &mut dyn FnMut(String), table: &str, old: &Database, new: &Database) {
    compare!(note, table, old, new, Database {
        dbname, user, password, mode, pool_size, min_size, reserve_size, max_servers, max_clients, connect_query, auth_query
    }, but hosts);
    if old.hosts != new.hosts {
        note(dotted(table, "host"));
    }
}

fn user(note: &mut dyn FnMut(String), table: &str, old: &User, new: &User) {
    compare!(
        note,
        table,
        old,
        new,
        User {
            password,
            mode,
            pool_size,
            max_servers,
            max_clients
        }
    );
}

fn all_services(note: &mut dyn FnMut(String), old: &Services, new: &Services) {
    let Services {
        limits,
        deployments,
        listed,
    } = old;
    service_limits(note, "services.\"*\"", limits, &new.limits);
    service_deployments(note, "services.\"*\"", deployments, &new.deployments);
    let map = |listed: &[Service]| {
        listed
            .iter()
            .map(|service| (service.name.clone(), service.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (old_map, new_map) = (map(listed), map(&new.listed));
    entries(
        note,
        "services",
        &by_name(&old_map),
        &by_name(&new_map),
        service,
    );
    // The first match wins, so the order is a setting too.
    let order = |listed: &[Service], others: &BTreeMap<String, Service>| {
        listed
            .iter()
            .map(|service| service.name.clone())
            .filter(|name| others.contains_key(name))
            .collect::<Vec<_>>()
    };
    if order(listed, &new_map) != order(&new.listed, &old_map) {
        note("services".to_owned());
    }
}

fn service(note: &mut dyn FnMut(String), table: &str, old: &Service, new: &Service) {
    let Service {
        name: _,
        matches,
        limits,
        deployments,
    } = old;
    compare!(
        note,
        &dotted(table, "match"),
        matches,
        new.matches,
        Match {
            user,
            database,
            application_name,
            address,
            certificate
        }
    );
    service_limits(note, table, limits, &new.limits);
    service_deployments(note, table, deployments, &new.deployments);
}

fn service_limits(
    note: &mut dyn FnMut(String),
    table: &str,
    old: &ServiceLimits,
    new: &ServiceLimits,
) {
    compare!(
        note,
        table,
        old,
        new,
        ServiceLimits {
            max_servers,
            min_servers,
            max_clients,
            weight,
            alert_servers,
            alert_clients,
            client_idle,
            idle_transaction
        }
    );
}

fn service_deployments(
    note: &mut dyn FnMut(String),
    table: &str,
    old: &Deployments,
    new: &Deployments,
) {
    compare!(
        note,
        &dotted(table, "deployments"),
        old,
        new,
        Deployments {
            pattern,
            promote_after,
            stale_grace,
            stale_idle,
            stale_idle_transaction,
            close_per_second,
            dry_run
        }
    );
}

type Named<'a, T> = BTreeMap<&'a str, &'a T>;

fn by_name<T>(entries: &BTreeMap<String, T>) -> Named<'_, T> {
    entries
        .iter()
        .map(|(name, entry)| (name.as_str(), entry))
        .collect()
}

fn with_star<'a, T>(entries: &'a BTreeMap<String, T>, any: Option<&'a T>) -> Named<'a, T> {
    by_name(entries)
        .into_iter()
        .chain(any.map(|entry| ("*", entry)))
        .collect()
}

/// Entries that came or went by name, the others setting by setting.
fn entries<T>(
    note: &mut dyn FnMut(String),
    table: &str,
    old: &Named<'_, T>,
    new: &Named<'_, T>,
    compare: impl Fn(&mut dyn FnMut(String), &str, &T, &T),
) {
    for (name, old) in old {
        let table = dotted(table, name);
        match new.get(name) {
            Some(new) => compare(note, &table, old, new),
            None => note(table),
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        note(dotted(table, name));
    }
}
