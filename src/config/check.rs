//! What is right setting by setting and wrong together.

use std::path::Path;

use super::checked::{
    AuthMethod, Config, Database, MaxServers, Negotiation, PoolDefaults, SYSTEM_ROOTS,
    ServiceLimits, Tls, TlsMode,
};
use super::ciphers::Suite;
use super::raw::{Notes, dotted};

/// Notes every contradiction.
pub(super) fn contradictions(config: &Config, notes: &mut Notes<'_>) {
    listen(config, notes);
    pools(config, notes);
    budget(config, notes);
    auth(config, notes);
    tls("tls.client", &config.tls_client, notes);
    tls("tls.server", &config.tls_server, notes);
    offered_tls(&config.tls_client, notes);
    database_tls(config, notes);
    service_limits(&dotted("services", "*"), &config.services.limits, notes);
    for service in &config.services.listed {
        service_limits(&dotted("services", &service.name), &service.limits, notes);
    }
}

fn names<const N: usize>(table: &str, keys: [&str; N]) -> [String; N] {
    keys.map(|key| dotted(table, key))
}

fn listen(config: &Config, notes: &mut Notes<'_>) {
    let listen = &config.listen;
    if listen.addresses.is_empty() && listen.unix_socket_dir.is_none() {
        let names = names("listen", ["addresses", "unix_socket_dir"]);
        notes.contradiction(
            &names,
            "there is nothing to listen on: give an address or unix_socket_dir",
        );
    }
    // The system chooses port 0 anew each time.
    let fixed = || {
        listen
            .addresses
            .iter()
            .filter(|address| address.port() != 0)
    };
    let is_repeated = |(index, address)| fixed().take(index).any(|before| before == address);
    if fixed().enumerate().any(is_repeated) {
        notes.contradiction(
            &names("listen", ["addresses"]),
            "addresses names the same address twice",
        );
    }
    if listen
        .http
        .is_some_and(|http| fixed().any(|address| *address == http))
    {
        notes.contradiction(
            &names("listen", ["http", "addresses"]),
            "http is one of the addresses for clients",
        );
    }
}

fn pools(config: &Config, notes: &mut Notes<'_>) {
    if config.pool.min_size > config.pool.size {
        let names = names("pool", ["min_size", "size"]);
        notes.contradiction(
            &names,
            format!("min_size is more than size, {}", config.pool.size),
        );
    }
    let any = config.any_database.iter().map(|database| ("*", database));
    let listed = config
        .databases
        .iter()
        .map(|(name, database)| (name.as_str(), database));
    for (name, database) in listed.chain(any) {
        database_pool(&dotted("databases", name), database, &config.pool, notes);
    }
}

fn database_pool(table: &str, database: &Database, defaults: &PoolDefaults, notes: &mut Notes<'_>) {
    // With neither given it is a matter of [pool], and was noted there.
    if database.min_size.is_none() && database.pool_size.is_none() {
        return;
    }
    let size = database.pool_size.unwrap_or(defaults.size);
    if database.min_size.unwrap_or(defaults.min_size) > size {
        let mut related = names(table, ["min_size", "pool_size"]).to_vec();
        related.extend(names("pool", ["min_size", "size"]));
        notes.contradiction(&related, format!("min_size is more than pool_size, {size}"));
    }
}

fn budget(config: &Config, notes: &mut Notes<'_>) {
    let MaxServers::Exactly(most) = config.budget.max_servers else {
        if config.budget.check_every.is_none() {
            let names = names("budget", ["check_every", "max_servers"]);
            notes.contradiction(
                &names,
                "max_servers = \"auto\" needs to watch Postgres: give check_every, or a number",
            );
        }
        return;
    };
    let kept: u64 = config
        .services
        .listed
        .iter()
        .map(|service| u64::from(service.limits.min_servers))
        .sum();
    if kept > u64::from(most) {
        let mut related = names("budget", ["max_servers"]).to_vec();
        related.extend(
            config
                .services
                .listed
                .iter()
                .map(|s| dotted(&dotted("services", &s.name), "min_servers")),
        );
        let message =
            format!("max_servers is {most}, but the min_servers of all services come to {kept}");
        notes.contradiction(&related, message);
    }
}

fn auth(config: &Config, notes: &mut Notes<'_>) {
    let auth = &config.auth;
    if auth.method == AuthMethod::Hba && auth.hba_file.is_none() {
        notes.contradiction(
            &names("auth", ["method", "hba_file"]),
            "method = \"hba\" needs hba_file",
        );
    }
    if auth.method == AuthMethod::Ldap && auth.ldap_options.is_none() {
        notes.contradiction(
            &names("auth", ["method", "ldap_options"]),
            "method = \"ldap\" needs ldap_options",
        );
    }
    if auth.method == AuthMethod::Cert && !config.tls_client.mode.verifies() {
        let names = ["auth.method".to_owned(), "tls.client.mode".to_owned()];
        notes.contradiction(&names, "method = \"cert\" needs [tls.client] with mode \"verify-full\" (or \"verify-ca\") and its files");
    }
    let needs_user = [
        ("query", auth.query.is_some()),
        ("query_database", auth.query_database.is_some()),
    ];
    for (key, _) in needs_user
        .into_iter()
        .filter(|(_, given)| *given && !looks_up(config))
    {
        notes.contradiction(
            &names("auth", [key, "query_user"]),
            format!("{key} needs query_user, who runs the query"),
        );
    }
    let is_nowhere = |name: &String| {
        config.any_database.is_none() && !config.databases.contains_key(name.as_str())
    };
    if auth.query_database.as_ref().is_some_and(is_nowhere) {
        notes.contradiction(
            &names("auth", ["query_database"]),
            "query_database is not in [databases]",
        );
    }
}

/// Whether somebody may look users up, be it for one database alone.
fn looks_up(config: &Config) -> bool {
    let mut databases = config.databases.values().chain(&config.any_database);
    config.auth.query_user.is_some() || databases.any(|database| database.auth_user.is_some())
}

fn tls(table: &str, tls: &Tls, notes: &mut Notes<'_>) {
    let pair = names(table, ["certificate", "key"]);
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => notes.contradiction(&pair, "certificate needs its key"),
        (None, Some(_)) => notes.contradiction(&pair, "key needs its certificate"),
        _ => {}
    }
    if tls.min_version > tls.max_version {
        notes.contradiction(
            &names(table, ["min_version", "max_version"]),
            "min_version is newer than max_version",
        );
    }
    let fits = |suite: &Suite| tls.speaks(suite.version());
    if !tls.ciphers.is_empty() && !tls.ciphers.iter().any(fits) {
        notes.contradiction(
            &names(table, ["min_version", "max_version", "ciphers"]),
            "ciphers has none for the versions of TLS that are spoken",
        );
    }
    if tls.mode.verifies() && tls.ca.is_none() {
        notes.contradiction(
            &names(table, ["mode", "ca"]),
            "this mode needs ca, the authorities to trust",
        );
    }
}

/// Towards clients pgweir is the TLS server, which cannot be without a certificate.
fn offered_tls(tls: &Tls, notes: &mut Notes<'_>) {
    if tls.mode.demands() && tls.certificate.is_none() && tls.key.is_none() {
        notes.contradiction(
            &names("tls.client", ["mode", "certificate", "key"]),
            "this mode needs certificate and key",
        );
    }
}

/// What a database says of TLS for itself, with what [tls.server] says for all.
fn database_tls(config: &Config, notes: &mut Notes<'_>) {
    let server = &config.tls_server;
    if config.tls_client.ca.as_deref() == Some(Path::new(SYSTEM_ROOTS)) {
        notes.contradiction(
            &names("tls.client", ["ca"]),
            "ca = \"system\" is for [tls.server]: everybody can have such a certificate",
        );
    }
    let system = server.ca.as_deref() == Some(Path::new(SYSTEM_ROOTS));
    let any = config.any_database.iter().map(|database| ("*", database));
    let listed = config
        .databases
        .iter()
        .map(|(name, database)| (name.as_str(), database));
    for (name, database) in listed.chain(any) {
        let mode = database.sslmode.unwrap_or(server.mode);
        let table = dotted("databases", name);
        let own = names(&table, ["sslnegotiation", "sslmode", "url"]);
        let all = names("tls.server", ["mode"]);
        let keys = match database.sslmode {
            Some(_) => [&own[..], &all].concat(),
            None => [&own[..2], &all, &own[2..]].concat(),
        };
        if database.sslmode.is_some() && mode.verifies() && server.ca.is_none() {
            notes.contradiction(&keys, "this sslmode needs ca in [tls.server]");
        }
        // As in libpq: with less, anybody could stand in the way with a certificate of his own.
        if system && !matches!(mode, TlsMode::VerifyFull | TlsMode::Disable) {
            let message = "ca = \"system\" needs the mode \"verify-full\"";
            notes.contradiction(&keys, message);
        }
        if database.sslnegotiation == Some(Negotiation::Direct) && !mode.demands() {
            let message = "sslnegotiation=direct needs sslmode=require or more";
            notes.contradiction(&keys, message);
        }
    }
}

fn service_limits(table: &str, limits: &ServiceLimits, notes: &mut Notes<'_>) {
    if limits.max_servers != 0 && limits.min_servers > limits.max_servers {
        let names = names(table, ["min_servers", "max_servers"]);
        notes.contradiction(
            &names,
            format!(
                "min_servers is more than max_servers, {}",
                limits.max_servers
            ),
        );
    }
}
