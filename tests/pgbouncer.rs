//! Every setting of PgBouncer's with an effect that a client can see, against PgBouncer itself and against pgweir.
//!
//! The rows are in `tests/pgbouncer/*.cases`; how they are written is told in `tests/support/case.rs`.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use support::case::{Case, Stage};
use support::certs::{HERE, MODES};
use support::pgbouncer::{Kind, Place, alice_runs_pgbench};
use support::process::run;
use support::{Authority, Method, Postgres, Raw};

macro_rules! rows {
    ($($name:ident: $file:literal),+ $(,)?) => {
        $(#[test] fn $name() { compare_on(&Stage::new(false), $file); })+
    };
}

rows! {
    limits_are_those_of_pgbouncer: "limits",
    timeouts_are_those_of_pgbouncer: "timeouts",
    modes_are_those_of_pgbouncer: "modes",
    sessions_begin_as_with_pgbouncer: "sessions",
    logins_are_those_of_pgbouncer: "logins",
    tls_is_that_of_pgbouncer: "tls",
    proofs_are_those_of_pgbouncer: "proofs",
    the_console_is_that_of_pgbouncer: "console",
    commands_are_those_of_pgbouncer: "commands",
    databases_and_users_have_the_settings_of_pgbouncer: "entries",
    processes_and_sockets_are_those_of_pgbouncer: "processes",
    the_log_is_that_of_pgbouncer: "log",
    server_connections_are_those_of_pgbouncer: "servers",
    hosts_are_those_of_pgbouncer: "hosts",
}

/// Where the rows are.
const ROWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pgbouncer");

/// How many rows are tried at the same time.
const AT_ONCE: usize = 4;

#[test]
fn tls_towards_postgres_is_that_of_pgbouncer() {
    compare_on(&Stage::new(true), "secured");
}

/// Runs the rows of one file, which is read now: rows can be worked on without a build.
fn compare_on(stage: &Stage, file: &str) {
    let path = format!("{ROWS}/{file}.cases");
    let mut cases = Case::read_all(&fs::read_to_string(path).expect("it is there"));
    // One row can be asked for while working on it.
    if let Ok(wanted) = std::env::var("PGWEIR_TEST_CASE") {
        cases.retain(|case| case.name.contains(&wanted));
    }
    let mut told = Vec::new();
    for cases in cases.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let running = cases.iter().map(|case| {
                let run = scope.spawn(|| case.differences(stage));
                (&case.name, run)
            });
            for (name, run) in running.collect::<Vec<_>>() {
                match run.join() {
                    Ok(differences) => told.extend(differences),
                    Err(_) => told.push(format!("{name}: did not come to its end")),
                }
            }
        });
    }
    assert!(
        told.is_empty(),
        "{} differences:\n\n{}",
        told.len(),
        told.join("\n")
    );
}

/// A key that nobody has thought of fails, and so does a reason that has become untrue.
#[test]
fn every_setting_has_a_row_or_a_reason_for_none() {
    let directory = Path::new(ROWS);
    let files = fs::read_dir(directory).expect("it is there");
    let paths = files.map(|file| file.expect("it can be read").path());
    let rows: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|name| name == "cases"))
        .map(|path| fs::read_to_string(path).expect("a text"))
        .collect();
    let in_rows = |key: &str| {
        let lines = rows.iter().flat_map(|text| text.lines());
        lines
            .map(|line| line.strip_prefix("ini ").unwrap_or(line))
            .filter_map(|line| line.split_once('='))
            .any(|(name, _)| name.trim() == key)
    };
    let reasons = fs::read_to_string(directory.join("without_a_row")).expect("it is there");
    let reasons: Vec<_> = reasons
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();

    let place = Place::new();
    let ini = "[pgbouncer]\n{listen}\nauth_type = any\nadmin_users = admin\n[databases]\n* = host=127.0.0.1\n";
    // Nobody connects to Postgres.
    place.write("pgbouncer.ini", &place.fill(ini, 5));
    let running = place.start(Kind::Pgweir);
    let config = support::postgres::psql(running.port(), "admin", "pgbouncer")
        .args(["-c", "show config"])
        .output()
        .expect("psql is there");
    let config = String::from_utf8_lossy(&config.stdout).into_owned();
    let keys: Vec<_> = config
        .lines()
        .filter_map(|line| Some(line.split_once('|')?.0.trim()))
        .collect();
    assert_eq!(keys.len(), 101, "{config}");

    for key in &keys {
        let reason = reasons.iter().any(|(name, _)| name == key);
        assert_ne!(in_rows(key), reason, "{key}: either a row or a reason");
    }
    for (name, _) in &reasons {
        assert!(keys.contains(name) || name.starts_with('#'), "{name}");
    }
}

/// Each mode of `server_tls_sslmode`, with a Postgres that has TLS and with one that has none: whether alice comes in, and whether
/// her server connection is encrypted.
#[test]
fn server_tls_sslmode_is_that_of_pgbouncer() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue("postgres", "localhost", &HERE);
    for authority in [&authority, &stranger] {
        authority.open(&[]);
    }
    let with = Postgres::setup()
        .method(Method::Scram)
        .tls(&authority, "postgres")
        .start();
    let without = Postgres::setup().method(Method::Scram).start();
    for (postgres, has_tls) in [(&with, true), (&without, false)] {
        postgres.create_role("alice", "wonder");
        for mode in MODES {
            for ca in [authority.ca(), stranger.ca()] {
                let told = [Kind::PgBouncer124, Kind::Pgweir].map(|kind| {
                    let place = Place::new();
                    let ini = format!(
                        "[databases]\nshop = host=127.0.0.1 port={{postgres}} dbname=postgres\n[pgbouncer]\n{{listen}}\n\
                         auth_type = scram-sha-256\nauth_file = {{dir}}/users.txt\nserver_tls_sslmode = {mode}\n\
                         server_tls_ca_file = {}\nserver_login_retry = 1\nquery_wait_timeout = 2\n",
                        ca.display()
                    );
                    place.write("pgbouncer.ini", &place.fill(&ini, postgres.port()));
                    place.write("users.txt", "\"alice\" \"wonder\"\n");
                    let running = place.start(kind);
                    let mut alice = Raw::connect(running.port());
                    let startup = [("user", "alice"), ("database", "shop")];
                    match alice.log_in(&startup, Some("wonder")) {
                        Ok(()) => alice.value("select ssl from pg_stat_ssl where pid = pg_backend_pid()"),
                        Err(_) => "does not come in".to_owned(),
                    }
                });
                assert_eq!(
                    told[0],
                    told[1],
                    "{mode}, Postgres has TLS: {has_tls}, {}",
                    ca.display()
                );
            }
        }
    }
}

/// What is set in the kernel for a client's socket and for that of its server connection.
#[test]
fn sockets_have_the_options_of_pgbouncer() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for more in [
        "",
        "tcp_keepalive = 0\n",
        "tcp_keepidle = 77\ntcp_keepintvl = 7\ntcp_keepcnt = 5\ntcp_user_timeout = 54321\ntcp_socket_buffer = 65536\n",
    ] {
        let told = [Kind::PgBouncer118, Kind::PgBouncer124, Kind::Pgweir].map(|kind| {
            let place = Place::new();
            let ini = "[databases]\nshop = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\n{listen}\n\
                       auth_type = trust\nauth_file = {dir}/users.txt\n";
            place.write("pgbouncer.ini", &(place.fill(ini, postgres.port()) + more));
            place.write("users.txt", "\"alice\" \"wonder\"\n");
            let running = place.start(kind);
            let mut alice = Raw::connect(running.port());
            let startup = [("user", "alice"), ("database", "shop")];
            alice.log_in(&startup, None).expect("anybody may");
            let server = alice.value("select inet_client_port()");
            let server = server.parse().expect("a port");
            let client = alice.tcp().local_addr().expect("it has one").port();
            [options(running.id(), client), options(running.id(), server)]
        });
        assert_eq!(told[0], told[1], "{more}");
        assert_eq!(told[1], told[2], "{more}");
    }
}

/// The options of the TCP connection of a process that has this port at one of its ends.
fn options(process: u32, port: u16) -> String {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = Pid::from_raw(process.try_into().expect("a process id")).expect("it is not 0");
    let handle = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    for number in 0..100 {
        let Ok(file) = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let socket = socket2::SockRef::from(&file);
        let port_of =
            |address: std::io::Result<socket2::SockAddr>| Some(address.ok()?.as_socket()?.port());
        let ends = [port_of(socket.local_addr()), port_of(socket.peer_addr())];
        // A listening socket has no peer.
        if ends[1].is_none() || !ends.contains(&Some(port)) {
            continue;
        }
        return format!(
            "keepalive {:?} {:?} {:?} {:?}, user timeout {:?}, buffers {:?} {:?}",
            socket.keepalive().ok(),
            socket.tcp_keepalive_time().ok(),
            socket.tcp_keepalive_interval().ok(),
            socket.tcp_keepalive_retries().ok(),
            socket.tcp_user_timeout().ok(),
            socket.recv_buffer_size().ok(),
            socket.send_buffer_size().ok(),
        );
    }
    panic!("process {process} has no connection with port {port}");
}

/// Ten numbers in PgBouncer's order and with its units, none of them zero where there is traffic.
#[test]
fn the_stats_line_tells_of_traffic_as_that_of_pgbouncer() {
    const UNITS: [&str; 10] = [
        "* xacts/s",
        "* queries/s",
        "* client parses/s",
        "* server parses/s",
        "* binds/s",
        "in * B/s",
        "out * B/s",
        "xact * us",
        "query * us",
        "wait * us",
    ];
    let numbers = |line: &str| {
        let (_, stats) = line.split_once(" LOG stats: ")?;
        let parts: Vec<_> = stats.split(", ").collect();
        assert_eq!(parts.len(), UNITS.len(), "{line}");
        let numbers = parts.iter().zip(UNITS).map(|(part, unit)| {
            let (before, after) = unit.split_once('*').expect("it has one");
            let number = part
                .strip_prefix(before)
                .and_then(|part| part.strip_suffix(after));
            number
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("{line}"))
        });
        Some(numbers.collect::<Vec<u64>>())
    };
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for kind in [Kind::PgBouncer124, Kind::Pgweir] {
        let place = Place::new();
        let ini = "[databases]\nshop = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\n{listen}\n\
                   auth_type = trust\nauth_file = {dir}/users.txt\npool_mode = transaction\nstats_period = 1\n";
        place.write("pgbouncer.ini", &place.fill(ini, postgres.port()));
        place.write("users.txt", "\"alice\" \"wonder\"\n");
        let running = place.start(kind);
        let mut alice = Raw::connect(running.port());
        let startup = [("user", "alice"), ("database", "shop")];
        alice.log_in(&startup, None).expect("anybody may");
        support::eventually("it is busy", || {
            for _ in 0..20 {
                assert_eq!(alice.value("select 1"), "1");
            }
            let log = running.place.read("log");
            log.lines().filter_map(numbers).any(|said| {
                let [xacts, queries, .., received, sent, xact, query, _] = said[..] else {
                    return false;
                };
                // Averages over a second: what began in one may end in the next.
                [xacts, queries, received, sent, xact, query]
                    .iter()
                    .all(|number| *number > 0)
            })
        });
    }
}

/// From clients and to Postgres. (PgBouncer 1.24 does not take as many yet.)
#[test]
fn passwords_may_have_65530_bytes() {
    for (kind, length) in [(Kind::PgBouncer124, 900), (Kind::Pgweir, 65_530)] {
        let postgres = Postgres::setup().method(Method::Password).start();
        let long = "p".repeat(length);
        postgres.create_role("alice", &long);
        let place = Place::new();
        let ini = "[databases]\nshop = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\n{listen}\n\
                   auth_type = plain\nauth_file = {dir}/users.txt\n";
        place.write("pgbouncer.ini", &place.fill(ini, postgres.port()));
        place.write("users.txt", &format!("\"alice\" \"{long}\"\n"));
        let running = place.start(kind);
        let login = |password: &str| {
            let mut alice = Raw::connect(running.port());
            alice.log_in(&[("user", "alice"), ("database", "shop")], Some(password))?;
            alice.query("select current_user")
        };
        let name = kind.name();
        assert!(login(&long).is_ok(), "{name}");
        assert!(login(&long[1..]).is_err(), "{name}");
    }
}

const HBA: &str = "\
local all all trust
hostssl all alice 127.0.0.1/32 scram-sha-256
hostnossl all alice 127.0.0.1/32 reject
host reports carol 127.0.0.1/32 md5
host shop bob 127.0.0.1/32 scram-sha-256
";

/// TLS, HBA, auth_query, two databases, three users, peers.
#[test]
fn one_file_of_sixty_lines_serves_psql_pgbench_and_django_under_both() {
    for kind in [Kind::PgBouncer124, Kind::Pgweir] {
        let postgres = Postgres::setup().method(Method::Scram).start();
        for (role, password) in [("alice", "wonder"), ("bob", "builder"), ("carol", "carols")] {
            postgres.create_role(role, password);
        }
        postgres.create_role("looker", "looks");
        postgres.sql("grant select on pg_catalog.pg_authid to looker");
        postgres.sql("grant create on schema public to alice");
        let (shop, _authority) = shop(&postgres);
        let shop = shop.start(kind);
        let ask = |user: &str, database: &str, password: &str, mode: &str, sql: &str| {
            let mut psql = support::postgres::psql(shop.port(), user, database);
            let psql = psql.env("PGPASSWORD", password).env("PGSSLMODE", mode);
            let output = psql.args(["-c", sql]).output().expect("psql is there");
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        let who = "select current_user";
        assert_eq!(ask("alice", "shop", "wonder", "require", who), "alice");
        assert_eq!(ask("bob", "shop", "builder", "disable", who), "bob");
        assert_eq!(ask("carol", "reports", "carols", "disable", who), "carol");
        let refused = ask("alice", "shop", "wrong", "require", who);
        assert!(refused.contains("SASL authentication failed"), "{refused}");
        let refused = ask("alice", "shop", "wonder", "disable", who);
        assert!(refused.contains("FATAL"), "{refused}");

        alice_runs_pgbench(shop.place.path(), shop.port());

        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for arguments in [
            ["migrate", "--no-input"].as_slice(),
            &["check", "--database", "default"],
            &["migrate", "--no-input", "library", "zero"],
        ] {
            run(Command::new(root.join(".venv/bin/python"))
                .arg("manage.py")
                .args(arguments)
                .current_dir(root.join("tests/drivers/django_site"))
                .envs([
                    ("PGHOST", "127.0.0.1"),
                    ("PGUSER", "alice"),
                    ("PGDATABASE", "shop"),
                ])
                .envs([
                    ("PGPASSWORD", "wonder"),
                    ("PGSSLMODE", "require"),
                    ("DJANGO_PREPARES", "no"),
                ])
                .env("PGPORT", shop.port().to_string()));
        }
    }
}

/// The files, which whoever the pooler becomes can read.
fn shop(postgres: &Postgres) -> (Place, Authority) {
    let (place, authority) = (Place::new(), Authority::new());
    authority.issue("server", "localhost", &HERE);
    authority.open(&["server"]);
    let ini = place.fill(include_str!("pgbouncer/shop.ini"), postgres.port());
    let certs = authority.directory().display().to_string();
    place.write("pgbouncer.ini", &ini.replace("{certs}", &certs));
    place.write("hba", HBA);
    place.write("users.txt", "\"looker\" \"looks\"\n\"carol\" \"carols\"\n");
    (place, authority)
}
