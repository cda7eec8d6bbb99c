use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::Weight::{Differs, Idle, Without};
use super::keys::{KEYS, Kind};
use super::{Imported, Surroundings, import};
use crate::config::change;
use crate::config::checked::{
    AuthMethod, Config, Facility, Host, Mode, Peer, Secret, SessionDefaults, Tls, TlsMode, User,
};
use crate::config::ciphers::Curve;
use crate::config::ldap_options::Naming;
use crate::config::mistake::Mistakes;

/// Files that exist in a test alone.
pub(super) struct Files(HashMap<String, Vec<u8>>);

impl Files {
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter();
        Self(
            files
                .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
                .collect(),
        )
    }
}

impl Surroundings for Files {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let found = self.0.get(path).cloned();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match host {
            "*" => Ok(super::every_address(true)),
            "localhost" => Ok(vec![[127, 0, 0, 1].into()]),
            address => address.parse().map(|ip| vec![ip]).map_err(io::Error::other),
        }
    }

    fn home(&self) -> Option<String> {
        Some("/home/ann".to_owned())
    }
}

fn read(text: &str) -> Result<Imported, Mistakes> {
    import("pgbouncer.ini", &Files::of(&[("pgbouncer.ini", text)]))
}

fn right(text: &str) -> Imported {
    read(text).unwrap_or_else(|mistakes| panic!("{mistakes}\nin\n{text}"))
}

/// The checked configuration of these lines of `[pgbouncer]`.
fn settings(lines: &str) -> Config {
    right(&format!("[databases]\n* =\n[pgbouncer]\n{lines}")).config
}

fn mistakes(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => panic!("nothing is wrong in\n{text}"),
        Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_defaults_are_those_of_pgbouncer() {
    let config = settings("");
    let some = |time| Some(seconds(time));
    assert_eq!(config.listen.addresses, []);
    assert_eq!(config.listen.unix_socket_dir.as_deref(), Some("/tmp"));
    assert_eq!(config.listen.unix_socket_mode, 0o777);
    assert_eq!(config.listen.http, None);
    assert_eq!(config.pool.mode, Mode::Session);
    assert_eq!((config.pool.size, config.pool.min_size), (20, 0));
    assert_eq!(
        (config.pool.reserve_size, config.pool.reserve_after),
        (0, seconds(5))
    );
    assert_eq!(config.pool.max_prepared_statements, 200);
    assert_eq!(config.pool.server_reset_query, "DISCARD ALL");
    assert_eq!(config.limits.max_clients, 100);
    assert_eq!(config.limits.max_message_size, 1 << 30);
    let times = &config.timeouts;
    assert_eq!(
        [
            times.client_login,
            times.query_wait,
            times.query_wait_notify,
            times.server_idle,
            times.server_lifetime
        ],
        [some(60), some(120), some(5), some(600), some(3600)]
    );
    assert_eq!(
        [
            times.client_idle,
            times.idle_transaction,
            times.transaction,
            times.query
        ],
        [None; 4]
    );
    assert_eq!(
        [times.server_connect, times.server_login_retry, times.cancel],
        [seconds(15), seconds(15), seconds(10)]
    );
    assert_eq!(config.tcp.keepalive_idle, Duration::ZERO);
    assert_eq!(config.tcp.user_timeout, None);
    assert_eq!(config.auth.method, AuthMethod::Md5);
    assert!(config.auth.admins.is_empty() && config.auth.stats.is_empty());
    assert_eq!(config.auth.query_user, None);
    assert_eq!(config.tls_client.mode, TlsMode::Disable);
    assert_eq!(config.tls_server.mode, TlsMode::Prefer);
    assert_eq!(config.log.level, "info");
    assert!(config.log.connections && config.log.disconnections && config.log.pooler_errors);
    assert_eq!(config.process.pidfile, None);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_setting_means_what_it_means_to_pgbouncer() {
    // What a line changes in the configuration of an otherwise empty file.
    for (line, changed) in [
        ("admin_users = ann, bob", vec!["auth.admins"]),
        (
            "application_name_add_host = 1",
            vec!["pool.application_name_add_host"],
        ),
        ("server_round_robin = 1", vec!["pool.server_round_robin"]),
        ("auth_file = ~/users.txt", vec!["auth.users_file"]),
        ("auth_ident_file = x", vec!["auth.ident_file"]),
        (
            "auth_user = a\nauth_dbname = b\nauth_query = select 1",
            vec!["auth.query_user", "auth.query_database", "auth.query"],
        ),
        ("auth_type = plain", vec!["auth.method"]),
        ("auth_type = ANY", vec!["auth.method"]),
        ("auth_type = scram-sha-256", vec!["auth.method"]),
        (
            "auth_type = hba\nauth_hba_file = x",
            vec!["auth.hba_file", "auth.method", "auth.pam_service"],
        ),
        ("cancel_wait_timeout = 0.5", vec!["timeouts.cancel"]),
        ("client_idle_timeout = 7", vec!["timeouts.client_idle"]),
        ("client_login_timeout = 7", vec!["timeouts.client_login"]),
        ("default_pool_size = 0", vec!["pool.size"]),
        (
            "idle_transaction_timeout = 7",
            vec!["timeouts.idle_transaction"],
        ),
        (
            "ignore_startup_parameters = extra_float_digits, options",
            vec!["pool.ignore_startup_parameters"],
        ),
        (
            "listen_addr = 127.0.0.1, localhost, ::1",
            vec!["listen.addresses"],
        ),
        (
            "listen_addr = *\nlisten_port = 7000",
            vec!["listen.addresses", "listen.unix_socket_port"],
        ),
        ("listen_backlog = 7", vec!["listen.backlog"]),
        ("log_connections = 0", vec!["log.connections"]),
        ("log_disconnections = 0", vec!["log.disconnections"]),
        ("log_pooler_errors = 0", vec!["log.pooler_errors"]),
        ("logfile = /x", vec!["log.file"]),
        (
            "login_notify_message = hello",
            vec!["auth.login_notify_message"],
        ),
        ("max_client_conn = 0x10", vec!["limits.max_clients"]),
        (
            "max_db_client_connections = 7",
            vec!["limits.max_clients_per_database"],
        ),
        (
            "max_db_connections = 7",
            vec!["limits.max_servers_per_database"],
        ),
        ("max_packet_size = 1000000", vec!["limits.max_message_size"]),
        (
            "max_prepared_statements = 0",
            vec!["pool.max_prepared_statements"],
        ),
        (
            "max_user_client_connections = 7",
            vec!["limits.max_clients_per_user"],
        ),
        (
            "max_user_connections = 7",
            vec!["limits.max_servers_per_user"],
        ),
        ("min_pool_size = 7", vec!["pool.min_size"]),
        ("pidfile = /x", vec!["process.pidfile"]),
        ("pool_mode = Transaction", vec!["pool.mode"]),
        ("query_timeout = 7", vec!["timeouts.query"]),
        ("query_wait_notify = 0", vec!["timeouts.query_wait_notify"]),
        ("query_wait_timeout = 0", vec!["timeouts.query_wait"]),
        ("reserve_pool_size = 7", vec!["pool.reserve_size"]),
        (
            "reserve_pool_size = 7\nreserve_pool_timeout = 0",
            vec!["pool.reserve_after"],
        ),
        (
            "server_connect_timeout = 0",
            vec!["timeouts.server_connect"],
        ),
        ("server_idle_timeout = 0", vec!["timeouts.server_idle"]),
        ("server_lifetime = 0", vec!["timeouts.server_lifetime"]),
        (
            "server_login_retry = 0",
            vec!["timeouts.server_login_retry"],
        ),
        ("server_reset_query =", vec!["pool.server_reset_query"]),
        (
            "server_reset_query_always = 1",
            vec!["pool.server_reset_query_always"],
        ),
        (
            "server_check_query = <empty>\nserver_check_delay = 0",
            vec!["pool.server_check_query", "pool.server_check_delay"],
        ),
        ("server_check_query =", vec![]),
        ("server_fast_close = 1", vec!["pool.server_fast_close"]),
        ("disable_pqexec = 1", vec!["pool.disable_pqexec"]),
        (
            "autodb_idle_timeout = 7",
            vec!["timeouts.auto_database_idle"],
        ),
        ("pool_idle_timeout = 7", vec!["timeouts.pool_idle"]),
        ("log_stats = 0", vec!["log.stats"]),
        ("stats_period = 7", vec!["log.stats_period"]),
        ("scram_iterations = 7", vec!["auth.scram_iterations"]),
        ("dns_max_ttl = 7", vec!["timeouts.dns_max_ttl"]),
        ("dns_nxdomain_ttl = 7", vec!["timeouts.dns_nxdomain_ttl"]),
        ("tcp_keepalive = 0", vec!["tcp.keepalive"]),
        ("tcp_socket_buffer = 70000", vec!["tcp.socket_buffer"]),
        (
            "server_tls_sslmode = verify-full\nserver_tls_ca_file = x",
            vec!["tls.server.mode", "tls.server.ca"],
        ),
        (
            "server_tls_sslmode = require\nserver_tls_ca_file = x",
            vec!["tls.server.mode"],
        ),
        (
            "server_tls_cert_file = x\nserver_tls_key_file = y",
            vec!["tls.server.certificate", "tls.server.key"],
        ),
        (
            "server_tls_protocols = tlsv1.3",
            vec!["tls.server.min_version"],
        ),
        (
            "server_tls_protocols = tlsv1.2",
            vec!["tls.server.max_version"],
        ),
        ("server_tls_sslmode = allow", vec![]),
        (
            "client_tls_sslmode = verify-full\nclient_tls_ca_file = a\nclient_tls_cert_file = c\nclient_tls_key_file = k\nclient_tls_protocols = secure:!tlsv1.2",
            vec![
                "tls.client.mode",
                "tls.client.certificate",
                "tls.client.key",
                "tls.client.ca",
                "tls.client.min_version",
            ],
        ),
        ("client_tls_cert_file = c", vec![]),
        ("stats_users = ann", vec!["auth.stats"]),
        ("tcp_keepcnt = 7", vec!["tcp.keepalive_count"]),
        ("tcp_keepidle = 7", vec!["tcp.keepalive_idle"]),
        ("tcp_keepintvl = 7", vec!["tcp.keepalive_interval"]),
        ("tcp_user_timeout = 7", vec!["tcp.user_timeout"]),
        ("transaction_timeout = 7", vec!["timeouts.transaction"]),
        (
            "unix_socket_dir = @x",
            vec!["listen.unix_socket_dir", "databases.\"*\".host"],
        ),
        ("unix_socket_group = x", vec!["listen.unix_socket_group"]),
        ("unix_socket_mode = 0700", vec!["listen.unix_socket_mode"]),
        ("user = x", vec!["process.user"]),
        ("verbose = 2", vec!["log.level"]),
        ("pkt_buf = 8192\nsbuf_loopcnt = 0", vec![]),
        ("default_pool_size = 50\ndefault_pool_size = 20", vec![]),
    ] {
        let mut names: Vec<_> = change::between(&settings(""), &settings(line))
            .into_iter()
            .map(|change| change.name)
            .collect();
        let mut changed = changed;
        names.sort();
        changed.sort_unstable();
        assert_eq!(names, changed, "{line}");
    }
    let config = settings(
        "listen_addr = *\nserver_lifetime = 0\nserver_login_retry = 0\nauth_file = ~/users.txt\n\
         client_tls_sslmode = verify-full\nclient_tls_ca_file = a\nclient_tls_cert_file = c\nclient_tls_key_file = k\n\
         max_client_conn = 0x10\nunix_socket_mode = 448\nauth_query = select '${HOME}'\nauth_user = a",
    );
    assert_eq!(config.listen.addresses.len(), 2);
    assert_eq!(
        config.timeouts.server_lifetime,
        Some(Duration::from_millis(1)),
        "used once"
    );
    assert_eq!(config.timeouts.server_login_retry, Duration::from_millis(1));
    assert_eq!(config.auth.users_file, Some("/home/ann/users.txt".into()));
    assert_eq!(
        config.tls_client.mode,
        TlsMode::VerifyCa,
        "the user's name is not looked for"
    );
    assert_eq!(config.limits.max_clients, 16);
    assert_eq!(config.listen.unix_socket_mode, 0o700);
    assert_eq!(
        config.auth.query.as_deref(),
        Some("select '${HOME}'"),
        "no variables"
    );
}

#[test]
fn a_database_has_all_its_keys() {
    let config = right(
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nmin_pool_size = 3\n[databases]\n\
         a = host=one,two port=7 dbname=x user=u password='p''w' pool_size=0 min_pool_size=1 reserve_pool=2 \
         pool_mode=statement max_db_connections=3 max_db_client_connections=4 server_lifetime=5 query_wait_timeout=6 \
         connect_query='select ''1''' auth_user=au auth_dbname=* auth_query='select $1' client_encoding=LATIN1 \
         datestyle=German timezone=UTC application_name=app load_balance_hosts=disable\n\
         b = \n\
         \"c d\" = host=/run password=x pool_size=-1 query_wait_timeout=-1 pool_size=2\n* = host=h",
    )
    .config;
    let a = &config.databases["a"];
    assert_eq!(
        a.hosts,
        [Host::Tcp("one".into(), 7), Host::Tcp("two".into(), 7)]
    );
    assert_eq!(a.password, Some(Secret::new("p'w")));
    assert_eq!(
        (a.pool_size, a.min_size, a.reserve_size),
        (Some(1_000_000), Some(1), Some(2))
    );
    assert_eq!((a.max_servers, a.max_clients), (Some(3), Some(4)));
    assert_eq!(
        (a.mode, a.server_lifetime),
        (Some(Mode::Statement), Some(seconds(5)))
    );
    assert_eq!(a.timeouts.query_wait, Some(seconds(6)));
    assert_eq!(a.connect_query.as_deref(), Some("select '1'"));
    assert_eq!(
        [
            &a.dbname,
            &a.user,
            &a.auth_user,
            &a.auth_dbname,
            &a.auth_query
        ]
        .map(Option::as_deref),
        [
            Some("x"),
            Some("u"),
            Some("au"),
            Some("*"),
            Some("select $1")
        ]
    );
    let SessionDefaults {
        application_name,
        client_encoding,
        datestyle,
        timezone,
    } = &a.parameters;
    assert_eq!(
        [application_name, client_encoding, datestyle, timezone].map(Option::as_deref),
        [Some("app"), Some("LATIN1"), Some("German"), Some("UTC")]
    );
    let b = &config.databases["b"];
    assert_eq!(
        b.hosts,
        [Host::Unix("/tmp".into(), 5432)],
        "no host is the socket's directory"
    );
    assert_eq!((b.pool_size, b.min_size, &b.dbname), (None, None, &None));
    let c = &config.databases["c d"];
    assert_eq!(
        (&c.password, c.pool_size, c.min_size),
        (&None, Some(2), Some(2))
    );
    assert_eq!(c.timeouts.query_wait, None);
    assert_eq!(
        config.any_database.unwrap().hosts,
        [Host::Tcp("h".into(), 5432)]
    );
}

#[test]
fn a_user_has_all_its_keys() {
    let config = right(
        "[databases]\n*=\n[users]\nann = pool_mode=session pool_size=1 reserve_pool_size=2 max_user_connections=3 \
         max_user_client_connections=4 query_timeout=5 query_wait_timeout=6 idle_transaction_timeout=7 \
         transaction_timeout=0 client_idle_timeout=.5\nbob =\n",
    )
    .config;
    let ann = &config.users["ann"];
    assert_eq!(
        (ann.mode, ann.pool_size, ann.reserve_size),
        (Some(Mode::Session), Some(1), Some(2))
    );
    assert_eq!((ann.max_servers, ann.max_clients), (Some(3), Some(4)));
    let own = ann.timeouts;
    assert_eq!(
        [
            own.query,
            own.query_wait,
            own.idle_transaction,
            own.transaction,
            own.client_idle
        ],
        [
            Some(seconds(5)),
            Some(seconds(6)),
            Some(seconds(7)),
            Some(Duration::ZERO),
            Some(Duration::from_millis(500))
        ]
    );
    assert_eq!(config.users["bob"], User::default());
}

#[test]
fn every_mistake_is_named_with_its_place_and_in_pgbouncers_words() {
    let text = "\
[pgbouncer]
listen_prot = 6432
max_client_conn = many
pool_mode = sesion
query_timeout = -1
log_connections = yes
auth_file = ~bob/users
[databases]
pgbouncer = host=x
a = host=x prot=1
b = host='x
c = port=0
d = pool_mode=x load_balance_hosts=y pool_size=z password=hunter2
[users]
ann = pool_sice=1
bob = pool_mode
[peers]
0 = host=x
1 = port=1
[nosuch]
x = 1
";
    assert_eq!(
        mistakes(text),
        [
            "pgbouncer.ini:2:1: unknown parameter: pgbouncer/listen_prot; did you mean listen_port?",
            "pgbouncer.ini:3:19: invalid value \"many\" for parameter max_client_conn: expected a whole number from 0",
            "pgbouncer.ini:4:13: invalid value \"sesion\" for parameter pool_mode: expected session, transaction, statement",
            "pgbouncer.ini:5:17: invalid value \"-1\" for parameter query_timeout: expected seconds, such as 15 or 0.5",
            "pgbouncer.ini:6:19: invalid value \"yes\" for parameter log_connections: expected 0 or 1",
            "pgbouncer.ini:7:13: invalid value \"~bob/users\" for parameter auth_file: expected a path whose home directory is known",
            "pgbouncer.ini:9:1: database name \"pgbouncer\" is reserved",
            "pgbouncer.ini:10:12: unrecognized connection parameter: prot; did you mean port?",
            "pgbouncer.ini:11:5: syntax error in connection string",
            "pgbouncer.ini:12:5: invalid port: 0",
            "pgbouncer.ini:13:5: invalid pool mode: \"x\"",
            "pgbouncer.ini:13:17: load_balance_hosts must be round-robin or disable",
            "pgbouncer.ini:13:38: pool_size must be a whole number",
            "pgbouncer.ini:15:7: unrecognized user parameter: pool_sice; did you mean pool_size?",
            "pgbouncer.ini:16:7: syntax error in user settings",
            "pgbouncer.ini:18:1: ids of peers must be a number larger than 0 and at most 65535",
            "pgbouncer.ini:19:5: host was not provided for peer 1",
            "pgbouncer.ini:20:1: unknown section: nosuch",
        ]
    );
}

#[test]
fn what_would_be_unsafe_to_ignore_is_a_mistake() {
    for (lines, text) in [
        ("auth_type = ldap", "needs ldap_options"),
        (
            "auth_type = ldap\nauth_ldap_options = ldapserver=a",
            "needs ldapbasedn",
        ),
        ("auth_type = trust", "lets in whom auth_file lists"),
        ("auth_type = cert", "client_tls_sslmode=verify-full"),
        ("auth_type = hba", "needs hba_file"),
        ("max_client_conn = 0", "lets nobody in"),
        ("client_tls_sslmode = require", "needs client_tls_key_file"),
        (
            "client_tls_sslmode = verify-ca\nclient_tls_key_file = k\nclient_tls_cert_file = c",
            "needs ca",
        ),
        ("server_tls_sslmode = verify-ca", "needs ca"),
        ("server_tls_protocols = tlsv1.1", "neither is named"),
        ("server_tls_protocols = sslv3", "expected tlsv1.0"),
        ("listen_port = 65536", "at most 65535"),
        ("listen_addr = nosuch", "is no address"),
        ("auth_dbname = pgbouncer", "reserved \"pgbouncer\" database"),
        ("unix_socket_dir =", "unix socket dir not configured"),
    ] {
        let mistakes = mistakes(&format!("[databases]\n* =\n[pgbouncer]\n{lines}\n"));
        assert!(mistakes[0].contains(text), "{lines}: {mistakes:?}");
        assert!(mistakes[0].starts_with("pgbouncer.ini:"), "{mistakes:?}");
    }
}

#[test]
fn the_options_of_ldap_are_postgres_own_and_their_password_is_not_shown() {
    let options = "ldapserver=a ldapbasedn=\"dc=x, dc=y\" ldapbinddn=cn=r ldapbindpasswd=s${e}cret";
    let text =
        format!("[databases]\n* =\n[pgbouncer]\nauth_type = ldap\nauth_ldap_options = {options}\n");
    let imported = right(&text);
    assert_eq!(imported.config.auth.method, AuthMethod::Ldap);
    let options = imported.config.auth.ldap_options.expect("there are some");
    let Naming::Search { bind_password, .. } = options.naming else {
        panic!("it searches");
    };
    assert_eq!(bind_password.expose(), "s${e}cret");
    let shown = imported
        .settings
        .iter()
        .find(|setting| setting.name == "auth_ldap_options")
        .expect("every key is there");
    assert!(shown.value.contains("ldapbindpasswd=***"), "{shown:?}");
    assert!(!shown.value.contains("s${e}cret"), "{shown:?}");
}

#[test]
fn lists_of_suites_become_one_and_what_is_left_out_is_told() {
    let lines = "client_tls_sslmode = allow\nclient_tls_key_file = k\nclient_tls_cert_file = c\n\
                 client_tls_ciphers = AES128-SHA:ECDHE+AESGCM:!ECDSA\nclient_tls13_ciphers = TLS_AES_128_GCM_SHA256\n\
                 client_tls_ecdhcurve = P-384:P-521\nserver_tls_ciphers = fast\nserver_tls13_ciphers = TLS_CHACHA20_POLY1305_SHA256\n";
    let imported = right(&format!("[databases]\n* =\n[pgbouncer]\n{lines}"));
    let names = |tls: &Tls| -> Vec<&str> { tls.ciphers.iter().map(|suite| suite.name()).collect() };
    assert_eq!(
        names(&imported.config.tls_client),
        [
            "TLS_AES_128_GCM_SHA256",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES128-GCM-SHA256"
        ]
    );
    assert_eq!(imported.config.tls_client.curves, [Curve::P384]);
    let of_server = names(&imported.config.tls_server);
    assert_eq!(of_server[0], "TLS_CHACHA20_POLY1305_SHA256");
    assert_eq!(of_server.len(), 7);
    let notes: Vec<_> = imported.notes.iter().map(ToString::to_string).collect();
    let notes = notes.join("\n");
    for told in ["no such suite: AES128-SHA", "no such curve: P-521"] {
        assert!(notes.contains(told), "{notes}");
    }
    let tls = "client_tls_sslmode = allow\nclient_tls_key_file = k\nclient_tls_cert_file = c\n";
    for (line, text) in [
        ("client_tls_ciphers = RC4", "failed to set ciphers"),
        (
            "client_tls13_ciphers = nosuch",
            "failed to set the TLSv1.3 cipher suites",
        ),
        (
            "client_tls_ecdhcurve = sect571r1",
            "failed to set ecdhcurve",
        ),
        (
            "server_tls13_ciphers = nosuch",
            "failed to set the TLSv1.3 cipher suites",
        ),
    ] {
        let mistakes = mistakes(&format!("[databases]\n* =\n[pgbouncer]\n{tls}{line}\n"));
        assert!(mistakes[0].contains(text), "{line}: {mistakes:?}");
        assert!(mistakes[0].starts_with("pgbouncer.ini:7:"), "{mistakes:?}");
    }
    // As it was, as long as nobody says otherwise.
    assert_eq!(settings(tls).tls_client.ciphers, []);
}

#[test]
fn a_contradiction_is_where_the_ini_has_it() {
    let text = "[pgbouncer]\n; why\nauth_dbname = x\nauth_user = y\n[databases]\na = host=h\n";
    assert_eq!(
        mistakes(text),
        ["pgbouncer.ini:3:15: query_database is not in [databases]"]
    );
    let files = [
        (
            "pgbouncer.ini",
            "[databases]\n*=\n[pgbouncer]\n%include more.ini\n",
        ),
        ("more.ini", "\nauth_user = a\nauth_type = hba\n"),
    ];
    let mistakes = import("pgbouncer.ini", &Files::of(&files)).expect_err("no file");
    assert!(
        mistakes.to_string().starts_with("more.ini:3:13: "),
        "{mistakes}"
    );
}

#[test]
fn nothing_without_effect_is_passed_over_in_silence() {
    let imported = right(
        "[pgbouncer]\npkt_buf = 8192\nconffile = /x\nserver_tls_protocols = all\nserver_reset_query_always = 0\nmin_pool_size = 30\n\
         [databases]\na = host=x,y\n",
    );
    let notes: Vec<_> = imported
        .notes
        .iter()
        .map(|note| (note.weight, note.setting.as_str()))
        .collect();
    assert_eq!(
        notes,
        [
            (Idle, "pkt_buf = 8192"),
            (Differs, "min_pool_size = 30"),
            (Without, "server_tls_protocols = all"),
            (Differs, "conffile = /x"),
        ]
    );
    assert_eq!(
        imported.notes[2].to_string(),
        "pgbouncer.ini:4: server_tls_protocols = all: has no effect: TLS 1.0 and 1.1 are not spoken"
    );
}

#[test]
fn syslog_is_that_of_pgbouncer() {
    let log = |lines: &str| right(&format!("[databases]\n*=\n[pgbouncer]\n{lines}\n"));
    let plain = log("syslog = 1");
    let told = &plain.config.log;
    assert!(told.syslog && plain.notes.is_empty());
    assert_eq!(told.syslog_ident, "pgbouncer");
    assert_eq!(told.syslog_facility, Facility::Daemon);
    let other = log("syslog_ident = weir\nsyslog_facility = local7");
    assert!(!other.config.log.syslog);
    assert_eq!(other.config.log.syslog_ident, "weir");
    assert_eq!(other.config.log.syslog_facility, Facility::Local7);
    // libc takes the facility of a program that names none.
    let wrong = log("syslog_facility = Local8");
    assert_eq!(wrong.config.log.syslog_facility, Facility::User);
    assert_eq!(wrong.notes[0].weight, Differs);
}

#[test]
fn peers_are_peers() {
    let imported = right(
        "[pgbouncer]\npeer_id = 1\nso_reuseport = 1\n[databases]\n*=\n[peers]\n; us\n1 = host=/run/one\n\
         0x2 = host=b port=7000 pool_size=0\n3 = host=c pool_size=4\n",
    );
    let unix = |path: &str, port| Host::Unix(path.to_owned(), port);
    let tcp = |name: &str, port| Host::Tcp(name.to_owned(), port);
    let peer = |host, pool_size| Peer { host, pool_size };
    let peers = BTreeMap::from([
        (1, peer(unix("/run/one", 6432), None)),
        (2, peer(tcp("b", 7000), Some(1_000_000))),
        (3, peer(tcp("c", 6432), Some(4))),
    ]);
    assert_eq!(imported.config.peers, peers);
    assert_eq!(imported.config.process.peer_id, 1);
    assert!(imported.config.listen.reuse_port && imported.notes.is_empty());
    let table = "# us\n[peers.\"1\"]\nhost = \"/run/one\"\n";
    assert!(imported.toml.contains(table), "{}", imported.toml);
}

#[test]
fn an_import_keeps_the_comments_where_they_belong() {
    let imported = right(
        ";; our databases\n[databases]\n; the site\nsite = host=db\n\n[pgbouncer]\n# as many as there are pods\n\
         max_client_conn = 300\n;max_db_connections = 50\npkt_buf = 4096\n; the end\n",
    );
    assert_eq!(
        imported.toml,
        "\
# Written by `pgweir import` from a pgbouncer.ini.

[listen]
unix_socket_dir = \"/tmp\"                # PgBouncer's default
addresses = []                          # PgBouncer's default
http = \"\"                               # PgBouncer has none; \"127.0.0.1:9930\" gives metrics and health

[pool]
mode = \"session\"                        # PgBouncer's default
errors = \"pgbouncer\"                    # as PgBouncer puts them; \"postgres\" gives the codes of Postgres

[limits]
# as many as there are pods
max_clients = 300

[timeouts]
server_login_retry = \"15s\"              # PgBouncer's default

[tcp]
keepalive_count = 0                     # PgBouncer's default
keepalive_idle = 0                      # PgBouncer's default
keepalive_interval = 0                  # PgBouncer's default
user_timeout = 0                        # PgBouncer's default

[auth]
admins = []                             # PgBouncer's default
method = \"md5\"                          # PgBouncer's default

[tls.client]
mode = \"disable\"                        # PgBouncer's default

# our databases
# the site
[databases.\"site\"]
host = \"db\"
port = 5432

[log]
format = \"pgbouncer\"                    # as PgBouncer writes them; \"text\" and \"json\" say more

# max_db_connections = 50
# pkt_buf = 4096: buffers belong to threads, not to connections
# the end
"
    );
}

/// A value of that kind, mostly a right one.
fn a_value(kind: Kind) -> BoxedStrategy<String> {
    let text = "[ -~]{0,12}|[a-z${}'\"\\\\]{0,8}|ä\u{1}\t[$]\\{HOME\\}";
    match kind {
        Kind::Text | Kind::File => text.prop_map(|text| text.trim().to_owned()).boxed(),
        Kind::List => "[a-z, \"]{0,12}"
            .prop_map(|text| text.trim().to_owned())
            .boxed(),
        Kind::Count | Kind::WholeSeconds | Kind::Milliseconds => prop_oneof![
            (0u32..100_000).prop_map(|n| n.to_string()),
            Just("0".to_owned()),
            Just("010".to_owned())
        ]
        .boxed(),
        Kind::Switch => "0|1".boxed(),
        Kind::Seconds => "[0-9]{1,6}|0|[0-9]{0,2}\\.[0-9]{1,6}".boxed(),
        Kind::Word(words) => proptest::sample::select(words)
            .prop_map(str::to_owned)
            .boxed(),
    }
}

fn a_setting() -> impl Strategy<Value = String> {
    proptest::sample::select(KEYS)
        .prop_filter("needs others", |key| {
            !["auth_type", "listen_addr"].contains(&key.name)
        })
        .prop_flat_map(|key| {
            a_value(key.kind).prop_map(move |value| format!("{} = {value}", key.name))
        })
}

fn a_file() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        4 => a_setting(),
        1 => "[;#] ?[ -~]{0,20}".boxed(),
        1 => "auth_type = (md5|any|plain|scram-sha-256)".boxed(),
        1 => "listen_addr = (\\*|127\\.0\\.0\\.1|localhost, ::1)".boxed(),
    ];
    let name = "[a-z*]{1,4}|'[a-zäö \"\\\\]{1,5}'";
    let pair = "(host=(a,b|/x|@y)|port=[1-9]{1,4}|user=[!-~&&[^']]{1,4}|password='[ -&a-z$\\{]{1,6}'|pool_size=[0-9]|min_pool_size=[0-9]|query_wait_timeout=[0-9]|timezone=[A-Z]+|server_lifetime=[0-9])";
    let database = (name, proptest::collection::vec(pair, 0..6))
        .prop_map(|(name, pairs)| format!("{name} = {}", pairs.join(" ")));
    (
        proptest::collection::vec(line, 0..12),
        proptest::collection::vec(database, 1..4),
        proptest::collection::vec(
            "[a-z]{1,4} = (pool_size=[0-9]|query_timeout=[0-9]\\.5)?",
            0..3,
        ),
    )
        .prop_map(|(lines, databases, users)| {
            format!(
                "[pgbouncer]\n{}\n[databases]\n{}\n[users]\n{}\n",
                lines.join("\n"),
                databases.join("\n"),
                users.join("\n")
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_import_writes_is_what_the_file_means(text in a_file()) {
        // Most are right; of the others the mistakes have a place.
        match read(&text) {
            Ok(Imported { config, toml, .. }) => {
                let again = crate::config::parse(&toml, "pooler.toml", &|_| panic!("no variable is looked up"));
                prop_assert_eq!(again, Ok(config));
                let comments = text.lines().filter_map(|line| line.strip_prefix([';', '#']));
                for comment in comments {
                    let words = comment.trim_start_matches([';', '#']).trim();
                    prop_assert!(toml.contains(words), "{} is not in\n{}", words, toml);
                }
            }
            Err(mistakes) => prop_assert!(mistakes.iter().count() > 0),
        }
    }

    #[test]
    fn no_file_is_too_strange_to_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,200}") {
        for bytes in [bytes, text.into_bytes()] {
            let files = Files(HashMap::from([("f".to_owned(), bytes)]));
            // What matters is that it returns.
            let _ = import("f", &files);
        }
    }

    #[test]
    fn no_line_is_too_strange_to_be_read(lines in proptest::collection::vec("[\\[\\]a-z='\"%; *.,0-9\t-]{0,30}", 0..20)) {
        let text = format!("[databases]\n{}\n[pgbouncer]\n{}\n[users]\n{}", lines.join("\n"), lines.join("\n"), lines.join("\n"));
        let _ = read(&text);
    }

    #[test]
    fn a_right_file_with_one_change_is_read_or_its_mistakes_have_a_place(
        at in any::<prop::sample::Index>(), length in 0usize..4, put in "[ -~\n]{0,3}"
    ) {
        let shop = include_str!("../../../tests/pgbouncer/shop.ini");
        let shop = shop.replace("{port}", "6432").replace("{postgres}", "5432");
        let begin = at.index(shop.len());
        let end = shop.len().min(begin + length);
        let text = format!("{}{put}{}", &shop[..begin], &shop[end..]);
        if let Err(mistakes) = read(&text) {
            for line in mistakes.to_string().lines() {
                prop_assert!(line.starts_with("pgbouncer.ini:") || line.starts_with("{dir}"), "{}", line);
            }
        }
    }
}
