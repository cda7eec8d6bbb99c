//! From tables to checked structs: one short function for each table of the file.

use std::collections::BTreeMap;

use super::checked::{
    Alerts, Auth, Budget, Config, Database, Deployments, Incidents, Limits, Listen, Log, Match,
    OwnTimeouts, Peer, PoolDefaults, Pressure, Process, Runtime, Service, ServiceLimits, Services,
    SessionDefaults, Tcp, Timeouts, Tls, User,
};
use super::location::{self, Location};
use super::raw::{Entry, Table};
use super::{default_threads, value};

/// The entry that stands for all others.
const STAR: &str = "*";

/// Where a peer listens if it does not say so: PgBouncer's port, and ours.
const PEER_PORT: u16 = 6432;

/// Names that clients use for the console.
const RESERVED: [&str; 2] = ["pgweir", "pgbouncer"];

/// Reads the whole file. What was wrong is in the notes; the value means something only if nothing was.
pub(super) fn read(mut root: Table<'_, '_>) -> Config {
    let (databases, any_database) = databases(root.child("databases"));
    let mut tls = root.child("tls");
    let (tls_client, tls_server) = (tls_side(tls.child("client")), tls_side(tls.child("server")));
    tls.finish();
    let config = Config {
        listen: listen(root.child("listen")),
        pool: pool(root.child("pool")),
        budget: budget(root.child("budget")),
        limits: limits(root.child("limits")),
        timeouts: timeouts(root.child("timeouts")),
        tcp: tcp(root.child("tcp")),
        auth: auth(root.child("auth")),
        tls_client,
        tls_server,
        databases,
        any_database,
        users: users(root.child("users")),
        peers: peers(root.child("peers")),
        services: services(root.child("services")),
        pressure: pressure(root.child("pressure")),
        alerts: alerts(root.child("alerts")),
        incidents: incidents(root.child("incidents")),
        log: log(root.child("log")),
        process: process(root.child("process")),
        runtime: runtime(root.child("runtime")),
    };
    root.finish();
    config
}

fn listen(mut table: Table<'_, '_>) -> Listen {
    let listen = Listen {
        addresses: table.list("addresses", value::address),
        unix_socket_dir: table.get("unix_socket_dir", value::optional_text),
        unix_socket_mode: table.get("unix_socket_mode", value::file_mode),
        unix_socket_group: table.get("unix_socket_group", value::optional_text),
        unix_socket_port: table.get("unix_socket_port", value::port),
        backlog: table.get("backlog", value::positive),
        reuse_port: table.get("reuse_port", value::boolean),
        http: table.get("http", value::optional_address),
        http_password: table.get("http_password", value::optional_secret),
        proxy_protocol_from: table.list("proxy_protocol_from", value::network),
    };
    table.finish();
    listen
}

fn pool(mut table: Table<'_, '_>) -> PoolDefaults {
    let pool = PoolDefaults {
        mode: table.get("mode", value::mode),
        size: table.get("size", value::positive),
        min_size: table.get("min_size", value::count),
        reserve_size: table.get("reserve_size", value::count),
        reserve_after: table.get("reserve_after", value::duration),
        max_prepared_statements: table.get("max_prepared_statements", value::count),
        server_reset_query: table.get("server_reset_query", value::text),
        server_reset_query_always: table.get("server_reset_query_always", value::boolean),
        server_check_query: table.get("server_check_query", value::optional_text),
        server_check_delay: table.get("server_check_delay", value::duration),
        server_fast_close: table.get("server_fast_close", value::boolean),
        disable_pqexec: table.get("disable_pqexec", value::boolean),
        ignore_startup_parameters: table.list("ignore_startup_parameters", value::text),
        application_name_add_host: table.get("application_name_add_host", value::boolean),
        server_round_robin: table.get("server_round_robin", value::boolean),
        errors: table.get("errors", value::errors),
    };
    table.finish();
    pool
}

fn budget(mut table: Table<'_, '_>) -> Budget {
    let budget = Budget {
        max_servers: table.get("max_servers", value::max_servers),
        headroom: table.get("headroom", value::count),
        check_every: table.get("check_every", value::timeout),
    };
    table.finish();
    budget
}

fn limits(mut table: Table<'_, '_>) -> Limits {
    let limits = Limits {
        max_clients: table.get("max_clients", value::count),
        max_clients_per_user: table.get("max_clients_per_user", value::count),
        max_clients_per_database: table.get("max_clients_per_database", value::count),
        max_servers_per_user: table.get("max_servers_per_user", value::count),
        max_servers_per_database: table.get("max_servers_per_database", value::count),
        max_message_size: table.get("max_message_size", value::size),
        max_statement_memory: table.get("max_statement_memory", value::size),
    };
    table.finish();
    limits
}

fn timeouts(mut table: Table<'_, '_>) -> Timeouts {
    let timeouts = Timeouts {
        client_login: table.get("client_login", value::timeout),
        client_idle: table.get("client_idle", value::timeout),
        idle_transaction: table.get("idle_transaction", value::timeout),
        transaction: table.get("transaction", value::timeout),
        query: table.get("query", value::timeout),
        query_wait: table.get("query_wait", value::timeout),
        query_wait_notify: table.get("query_wait_notify", value::timeout),
        server_connect: table.get("server_connect", value::duration),
        server_login_retry: table.get("server_login_retry", value::pause),
        server_idle: table.get("server_idle", value::timeout),
        server_lifetime: table.get("server_lifetime", value::timeout),
        cancel: table.get("cancel", value::duration),
        suspend: table.get("suspend", value::timeout),
        dns_max_ttl: table.get("dns_max_ttl", value::duration),
        dns_nxdomain_ttl: table.get("dns_nxdomain_ttl", value::duration),
        dns_zone_check: table.get("dns_zone_check", value::timeout),
        pool_idle: table.get("pool_idle", value::timeout),
        auto_database_idle: table.get("auto_database_idle", value::timeout),
    };
    table.finish();
    timeouts
}

fn own_timeouts(table: &mut Table<'_, '_>) -> OwnTimeouts {
    OwnTimeouts {
        client_idle: table.find("client_idle", value::duration),
        idle_transaction: table.find("idle_transaction", value::duration),
        transaction: table.find("transaction", value::duration),
        query: table.find("query", value::duration),
        query_wait: table.find("query_wait", value::duration),
    }
}

fn tcp(mut table: Table<'_, '_>) -> Tcp {
    let tcp = Tcp {
        keepalive_idle: table.get("keepalive_idle", value::duration),
        keepalive_interval: table.get("keepalive_interval", value::duration),
        keepalive_count: table.get("keepalive_count", value::count),
        user_timeout: table.get("user_timeout", value::timeout),
        keepalive: table.get("keepalive", value::boolean),
        socket_buffer: table.get("socket_buffer", value::size),
    };
    table.finish();
    tcp
}

fn auth(mut table: Table<'_, '_>) -> Auth {
    let auth = Auth {
        method: table.get("method", value::auth_method),
        users_file: table.get("users_file", value::path),
        hba_file: table.get("hba_file", value::path),
        ident_file: table.get("ident_file", value::path),
        ldap_options: table.get("ldap_options", value::ldap_options),
        pam_service: table.get("pam_service", value::text),
        query_user: table.get("query_user", value::optional_text),
        query_database: table.get("query_database", value::optional_text),
        query: table
            .get("query", value::optional_text)
            .filter(|query| query != "default"),
        admins: table.list("admins", value::text),
        stats: table.list("stats", value::text),
        login_notify_message: table.get("login_notify_message", value::optional_text),
        scram_iterations: table.get("scram_iterations", value::iterations),
    };
    table.finish();
    auth
}

fn tls_side(mut table: Table<'_, '_>) -> Tls {
    let tls = Tls {
        mode: table.get("mode", value::tls_mode),
        certificate: table.get("certificate", value::path),
        key: table.get("key", value::path),
        ca: table.get("ca", value::path),
        min_version: table.get("min_version", value::tls_version),
        max_version: table.get("max_version", value::tls_version),
        ciphers: table.list("ciphers", value::suite),
        curves: table.list("curves", value::curve),
    };
    table.finish();
    tls
}

fn databases(mut table: Table<'_, '_>) -> (BTreeMap<String, Database>, Option<Database>) {
    let mut listed = BTreeMap::new();
    let entries = table.entries();
    if entries.is_empty() {
        table.notes.missing(
            table.at,
            "no database is given: the least is [databases.\"*\"] with its url",
        );
    }
    for entry in &entries {
        if RESERVED.contains(&entry.name) {
            let message = format!(
                "{:?} is the name of the console, and can be no database",
                entry.name
            );
            table.notes.missing(entry.at, message);
        }
        check_name(&mut table, entry);
        let database = database(table.entry(entry));
        listed.insert(entry.name.to_owned(), database);
    }
    let any = listed.remove(STAR);
    (listed, any)
}

fn database(mut table: Table<'_, '_>) -> Database {
    let Location {
        hosts,
        dbname,
        user,
        password,
        sslmode,
        sslnegotiation,
    } = location_of(&mut table);
    let database = Database {
        hosts,
        dbname,
        user,
        password,
        sslmode,
        sslnegotiation,
        mode: table.find("mode", value::mode),
        pool_size: table.find("pool_size", value::positive),
        min_size: table.find("min_size", value::count),
        reserve_size: table.find("reserve_size", value::count),
        max_servers: table.find("max_servers", value::count),
        max_clients: table.find("max_clients", value::count),
        timeouts: own_timeouts(&mut table),
        load_balance_hosts: table
            .find("load_balance_hosts", value::balance)
            .unwrap_or_default(),
        connect_query: table.find("connect_query", value::optional_text).flatten(),
        auth_query: table.find("auth_query", value::optional_text).flatten(),
        auth_user: table.find("auth_user", value::optional_text).flatten(),
        auth_dbname: table.find("auth_dbname", value::optional_text).flatten(),
        server_lifetime: table.find("server_lifetime", value::duration),
        parameters: session_defaults(&mut table),
    };
    table.finish();
    database
}

fn session_defaults(table: &mut Table<'_, '_>) -> SessionDefaults {
    let mut text = |key| table.find(key, value::optional_text).flatten();
    SessionDefaults {
        application_name: text("application_name"),
        client_encoding: text("client_encoding"),
        datestyle: text("datestyle"),
        timezone: text("timezone"),
    }
}

/// Where a database is: by url, or key by key.
fn location_of(table: &mut Table<'_, '_>) -> Location {
    let url = table.find("url", |given| {
        value::text(given).and_then(|url| location::parse_url(&url))
    });
    let host = table.find("host", value::text);
    let port = table.find("port", value::ports);
    let by_key = Location {
        hosts: Vec::new(),
        dbname: table.find("dbname", value::optional_text).flatten(),
        user: table.find("user", value::optional_text).flatten(),
        password: table
            .find("password", value::secret)
            .filter(|password| !password.expose().is_empty()),
        sslmode: table.find("sslmode", value::tls_mode),
        sslnegotiation: table.find("sslnegotiation", value::negotiation),
    };
    check_location(table, url.is_some(), host.is_some(), &by_key);
    if let Some(url) = url {
        return url;
    }
    let hosts = host.map_or(Ok(Vec::new()), |host| {
        location::pair(&host, port.as_deref())
    });
    let hosts = hosts.unwrap_or_else(|why| {
        let names = ["host", "port"].map(|key| table.name_of(key));
        table.notes.contradiction(&names, format!("host {why}"));
        Vec::new()
    });
    Location { hosts, ..by_key }
}

fn check_location(table: &mut Table<'_, '_>, has_url: bool, has_host: bool, by_key: &Location) {
    let url = table.name_of("url");
    if !has_url && !has_host {
        let at = table.at;
        let names = [url.clone(), table.name_of("host")];
        table.notes.missing_one_of(
            &names,
            at,
            "says nowhere where the database is: url or host is needed",
        );
    }
    for key in [
        "host",
        "port",
        "dbname",
        "user",
        "password",
        "sslmode",
        "sslnegotiation",
    ] {
        let name = table.name_of(key);
        if has_url && table.notes.is_written(&name) {
            let message = format!("{key} cannot stand beside url, which says it all");
            table.notes.contradiction(&[name, url.clone()], message);
        }
    }
    if !has_url && by_key.password.is_some() && by_key.user.is_none() {
        let names = ["password", "user"].map(|key| table.name_of(key));
        table.notes.contradiction(
            &names,
            "password needs a user: together they are the login that all clients share",
        );
    }
}

fn users(mut table: Table<'_, '_>) -> BTreeMap<String, User> {
    let mut users = BTreeMap::new();
    for entry in &table.entries() {
        check_name(&mut table, entry);
        if entry.name == STAR {
            table.notes.missing(
                entry.at,
                "[users] has no \"*\": what holds for every user stands in [limits] and [pool]",
            );
        }
        let user = user(table.entry(entry));
        users.insert(entry.name.to_owned(), user);
    }
    users
}

fn peers(mut table: Table<'_, '_>) -> BTreeMap<u16, Peer> {
    let mut peers = BTreeMap::new();
    for entry in &table.entries() {
        let id = entry.name.parse().ok().filter(|id| *id > 0);
        if id.is_none() {
            let message = "a peer is named by its peer_id, a number from 1 to 65535";
            table.notes.missing(entry.at, message);
        }
        let peer = peer(table.entry(entry));
        if let (Some(id), Some(peer)) = (id, peer) {
            peers.insert(id, peer);
        }
    }
    peers
}

fn peer(mut table: Table<'_, '_>) -> Option<Peer> {
    let host = table.find("host", value::text);
    let port = table.find("port", value::fixed_port);
    let pool_size = table.find("pool_size", value::positive);
    let name = table.name_of("host");
    let (notes, at) = (&mut *table.notes, table.at);
    let host = if let Some(host) = host {
        let found = location::host(&host, port.unwrap_or(PEER_PORT));
        if found.is_err() {
            let message = "host must be a name, an address, a directory (unix socket) or @name";
            notes.contradiction(std::slice::from_ref(&name), message);
        }
        found.ok()
    } else {
        notes.missing_one_of(std::slice::from_ref(&name), at, "a peer needs its host");
        None
    };
    table.finish();
    host.map(|host| Peer { host, pool_size })
}

fn user(mut table: Table<'_, '_>) -> User {
    let user = User {
        password: table.find("password", value::secret),
        mode: table.find("mode", value::mode),
        pool_size: table.find("pool_size", value::positive),
        reserve_size: table.find("reserve_size", value::count),
        max_servers: table.find("max_servers", value::count),
        max_clients: table.find("max_clients", value::count),
        timeouts: own_timeouts(&mut table),
    };
    table.finish();
    user
}

fn services(mut table: Table<'_, '_>) -> Services {
    let mut star = table.child(STAR);
    let limits = service_limits(&mut star);
    let deployments = deployments(star.child("deployments"));
    star.finish();
    let mut listed = Vec::new();
    for entry in table.entries().iter().filter(|entry| entry.name != STAR) {
        check_service_name(&mut table, entry);
        let service = service(entry.name, table.entry_over_star(entry));
        listed.push(service);
    }
    Services {
        limits,
        deployments,
        listed,
    }
}

fn service(name: &str, mut table: Table<'_, '_>) -> Service {
    let service = Service {
        name: name.to_owned(),
        matches: matches(table.child("match")),
        limits: service_limits(&mut table),
        deployments: deployments(table.child("deployments")),
    };
    table.finish();
    service
}

fn service_limits(table: &mut Table<'_, '_>) -> ServiceLimits {
    ServiceLimits {
        max_servers: table.get("max_servers", value::count),
        min_servers: table.get("min_servers", value::count),
        max_clients: table.get("max_clients", value::count),
        weight: table.get("weight", value::positive),
        alert_servers: table.get("alert_servers", value::count),
        alert_clients: table.get("alert_clients", value::count),
        client_idle: table.get("client_idle", value::timeout),
        idle_transaction: table.get("idle_transaction", value::timeout),
    }
}

fn matches(mut table: Table<'_, '_>) -> Match {
    let matches = Match {
        user: table.find("user", value::text),
        database: table.find("database", value::text),
        application_name: table.find("application_name", value::text),
        address: table.one_or_more("address", value::network),
        certificate: table.find("certificate", value::text),
    };
    table.finish();
    matches
}

fn deployments(mut table: Table<'_, '_>) -> Deployments {
    let deployments = Deployments {
        pattern: table.get("pattern", value::pattern),
        promote_after: table.get("promote_after", value::duration),
        stale_grace: table.get("stale_grace", value::duration),
        stale_idle: table.get("stale_idle", value::duration),
        stale_idle_transaction: table.get("stale_idle_transaction", value::duration),
        close_per_second: table.get("close_per_second", value::count),
        dry_run: table.get("dry_run", value::boolean),
    };
    table.finish();
    deployments
}

fn pressure(mut table: Table<'_, '_>) -> Pressure {
    let pressure = Pressure {
        waiters_for: table.get("waiters_for", value::duration),
        min_headroom: table.get("min_headroom", value::count),
        idle_transaction: table.get("idle_transaction", value::duration),
        close_foreign: table.get("close_foreign", value::boolean),
    };
    table.finish();
    pressure
}

fn alerts(mut table: Table<'_, '_>) -> Alerts {
    let alerts = Alerts {
        total_servers: table.get("total_servers", value::count),
        login_failures: table.get("login_failures", value::count),
        webhook: table.get("webhook", value::webhook),
        webhook_ca: table.get("webhook_ca", value::path),
        repeat_every: table.get("repeat_every", value::duration),
    };
    table.finish();
    alerts
}

fn incidents(mut table: Table<'_, '_>) -> Incidents {
    let incidents = Incidents {
        directory: table.get("directory", value::path),
        keep: table.get("keep", value::count),
        snapshot_every: table.get("snapshot_every", value::duration),
    };
    table.finish();
    incidents
}

fn log(mut table: Table<'_, '_>) -> Log {
    let log = Log {
        level: table.get("level", value::log_level),
        format: table.get("format", value::log_format),
        connections: table.get("connections", value::boolean),
        disconnections: table.get("disconnections", value::boolean),
        pooler_errors: table.get("pooler_errors", value::boolean),
        stats: table.get("stats", value::boolean),
        stats_period: table.get("stats_period", value::pause),
        file: table.get("file", value::path),
        stderr: table.get("stderr", value::boolean),
        syslog: table.get("syslog", value::boolean),
        syslog_ident: table.get("syslog_ident", value::text),
        syslog_facility: table.get("syslog_facility", value::facility),
        syslog_socket: table.get("syslog_socket", value::needed_path),
    };
    table.finish();
    log
}

fn process(mut table: Table<'_, '_>) -> Process {
    let process = Process {
        pidfile: table.get("pidfile", value::path),
        user: table.get("user", value::optional_text),
        peer_id: table.get("peer_id", value::peer_id),
        resolv_conf: table.get("resolv_conf", value::path),
    };
    table.finish();
    process
}

fn runtime(mut table: Table<'_, '_>) -> Runtime {
    let threads = match table.get("threads", value::threads) {
        0 => default_threads(std::thread::available_parallelism().map_or(1, Into::into)),
        chosen => chosen,
    };
    table.finish();
    Runtime { threads }
}

fn check_name(table: &mut Table<'_, '_>, entry: &Entry<'_>) {
    if entry.name.is_empty() || entry.name.contains(char::is_control) {
        table.notes.missing(
            entry.at,
            "a name must have letters, and no control characters",
        );
    }
}

/// A listed service must be one that a session can have.
fn check_service_name(table: &mut Table<'_, '_>, entry: &Entry<'_>) {
    check_name(table, entry);
    if entry.name.len() > super::LONGEST_SERVICE_NAME {
        let message = format!(
            "the name of a service may have {} bytes at most",
            super::LONGEST_SERVICE_NAME
        );
        table.notes.missing(entry.at, message);
    }
}
