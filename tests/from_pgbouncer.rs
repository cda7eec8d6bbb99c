//! pgweir in PgBouncer's place: its file, its command line.

mod support;

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::process::{Command, ExitStatus};

use support::pgbouncer::alice_runs_pgbench;
use support::pooler::{pgweir, program};
use support::process::{Guarded, run, scratch, send_signal};
use support::{Authority, Method, Postgres, eventually};

/// Sixty lines as teams have them: TLS, HBA, auth_query, two databases, three users.
const INI: &str = "\
;; The pooler of the shop.
[databases]
; the shop itself
shop = host=127.0.0.1 port={postgres} dbname=postgres pool_size=5 connect_query='select 1'
reports = host=127.0.0.1 port={postgres} dbname=postgres user=carol password=carols pool_mode=session application_name=reports

[users]
alice = pool_mode=transaction max_user_connections=10
bob = query_timeout=60
carol = max_user_client_connections=20

[pgbouncer]
logfile = {dir}/pgbouncer.log
pidfile = {dir}/pgbouncer.pid

; where to listen
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {dir}
unix_socket_mode = 0700

;;; TLS
client_tls_sslmode = prefer
client_tls_key_file = {certs}/server.key
client_tls_cert_file = {certs}/server.crt
client_tls_ca_file = {certs}/ca.crt
server_tls_sslmode = prefer

;;; who may come in
auth_type = hba
auth_hba_file = {dir}/hba
auth_file = {dir}/users.txt
auth_user = looker
auth_dbname = shop
auth_query = SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1
admin_users = alice

;;; pools
pool_mode = transaction
server_reset_query = DISCARD ALL
max_client_conn = 0x1F4
default_pool_size = 10
min_pool_size = 0
reserve_pool_size = 5
reserve_pool_timeout = 1.5
max_db_connections = 50

;;; times
server_lifetime = 1200
server_idle_timeout = 60
query_wait_timeout = 20.5
client_idle_timeout = 0

;;; the rest
ignore_startup_parameters = extra_float_digits
log_connections = 1
log_disconnections = 1
pkt_buf = 8192
tcp_keepidle = 60
login_notify_message = welcome to the shop
";

const HBA: &str = "\
local all all trust
hostssl all alice 127.0.0.1/32 scram-sha-256
hostnossl all alice 127.0.0.1/32 reject
host reports carol 127.0.0.1/32 md5
host shop bob 127.0.0.1/32 scram-sha-256
this line is broken
";

/// A place for one pgweir that starts as PgBouncer would, as a user who is not root.
struct Place {
    files: support::pgbouncer::Place,
    authority: Authority,
}

impl Deref for Place {
    type Target = support::pgbouncer::Place;

    fn deref(&self) -> &Self::Target {
        &self.files
    }
}

impl Place {
    fn new(postgres: &Postgres) -> Self {
        let (files, authority) = (support::pgbouncer::Place::new(), Authority::new());
        authority.issue("server", "localhost", &support::certs::HERE);
        authority.open(&["server"]);
        let place = Self { files, authority };
        place.write("pgbouncer.ini", &place.fill(INI, postgres.port()));
        place.write("hba", HBA);
        place.write("users.txt", "\"looker\" \"looks\"\n\"carol\" \"carols\"\n");
        place
    }

    fn fill(&self, text: &str, postgres: u16) -> String {
        let certs = self.authority.directory().display().to_string();
        self.files.fill(text, postgres).replace("{certs}", &certs)
    }

    /// The program's arguments: options, and the file.
    fn arguments(&self, options: &[&str]) -> Vec<String> {
        let own = run(Command::new("id").arg("-u"));
        let mut arguments: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        if own.trim() == "0" {
            arguments.extend(["-u".to_owned(), "nobody".to_owned()]);
        }
        arguments.push(self.path().join("pgbouncer.ini").display().to_string());
        arguments
    }

    fn start(&self) -> Guarded {
        let log = fs::File::create(self.path().join("stderr")).unwrap();
        let mut command = Command::new(program());
        command
            .args(self.arguments(&[]))
            .stderr(log)
            .current_dir("/");
        let mut started = Guarded::spawn(&mut command, "KILL", self.path());
        eventually("pgweir listens", || {
            if let Some(status) = started.ended() {
                panic!("{status}: {}", self.read("stderr"));
            }
            self.read("pgbouncer.log").contains("listening")
        });
        started
    }

    fn psql(&self, user: &str, database: &str, password: &str, mode: &str) -> Command {
        let mut command = support::postgres::psql(self.port, user, database);
        command
            .env("PGPASSWORD", password)
            .env("PGSSLMODE", mode)
            .env("PGSSLROOTCERT", self.authority.ca())
            .env("PGSSLCERT", "/nonexistent");
        command
    }
}

fn postgres() -> Postgres {
    let postgres = Postgres::setup().method(Method::Scram).start();
    for (role, password) in [
        ("alice", "wonder"),
        ("bob", "builder"),
        ("carol", "carols"),
        ("looker", "looks"),
    ] {
        postgres.create_role(role, password);
    }
    postgres.sql("grant select on pg_catalog.pg_authid to looker");
    postgres
}

fn fails(command: &mut Command) -> String {
    let output = command.output().expect("it can be run");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_pgbouncer_ini_serves_psql_and_pgbench() {
    let postgres = postgres();
    let place = Place::new(&postgres);
    let mut pooler = place.start();

    let ask = |user: &str, database: &str, password: &str, mode: &str, sql: &str| {
        run(place.psql(user, database, password, mode).args(["-c", sql]))
            .trim()
            .to_owned()
    };
    // Looked up at Postgres, under TLS, as the record wants it.
    let who = "select current_user";
    assert_eq!(ask("alice", "shop", "wonder", "verify-full", who), "alice");
    assert_eq!(ask("bob", "shop", "builder", "disable", who), "bob");
    // A forced user, in session mode, with a name of its own.
    let name = "select current_user || current_setting('application_name')";
    assert_eq!(
        ask(
            "carol",
            "reports",
            "carols",
            "disable",
            &format!("set application_name to default; {name}")
        ),
        "carolreports"
    );

    let refused = |user: &str, database: &str, password: &str, mode: &str| {
        fails(
            place
                .psql(user, database, password, mode)
                .args(["-c", "select 1"]),
        )
    };
    assert!(refused("alice", "shop", "wonder", "disable").contains("login rejected"));
    assert!(
        refused("bob", "reports", "builder", "disable")
            .contains("no authentication method is found")
    );
    assert!(refused("alice", "shop", "wrong", "require").contains("SASL authentication failed"));

    let welcome = place
        .psql("bob", "shop", "builder", "disable")
        .args(["-c", "select 1"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&welcome.stderr).contains("welcome to the shop"));

    alice_runs_pgbench(place.path(), place.port);

    let log = place.read("pgbouncer.log");
    for words in [
        "passed over in the HBA file",
        "hba:6:1: unknown type",
        "pkt_buf = 8192: does not matter here",
        "shop/alice@127.0.0.1:",
        "login attempt: db=shop user=alice tls=TLSv1.3/",
        "closing because: SASL authentication failed (age=0s)",
        "closing because: client close request (age=",
    ] {
        assert!(log.contains(words), "{words} is not in\n{log}");
    }
    assert_eq!(place.read("pgbouncer.pid").trim(), pooler.id().to_string());

    // A wrong file changes nothing at a reload, and says where it is wrong.
    let ini = place.read("pgbouncer.ini");
    place.write("pgbouncer.ini", &format!("{ini}max_client_conn = many\n"));
    pooler.signal("HUP");
    let line = ini.lines().count() + 1;
    let mistake =
        format!("pgbouncer.ini:{line}:19: invalid value \"many\" for parameter max_client_conn");
    eventually("the mistake is told", || {
        place.read("pgbouncer.log").contains(&mistake)
    });
    assert_eq!(ask("bob", "shop", "builder", "disable", who), "bob");

    // The log is opened again, so that it can be moved away.
    place.write("pgbouncer.ini", &ini);
    fs::rename(
        place.path().join("pgbouncer.log"),
        place.path().join("old.log"),
    )
    .unwrap();
    pooler.signal("HUP");
    eventually("the new log is written", || {
        place.read("pgbouncer.log").contains("reloaded")
    });

    pooler.signal("TERM");
    assert!(pooler.await_end(support::wait::PATIENCE).success());
    assert!(!place.path().join("pgbouncer.pid").exists());
}

#[test]
fn what_import_writes_is_a_file_without_mistakes() {
    let postgres = postgres();
    let place = Place::new(&postgres);
    let [ini, toml] =
        ["pgbouncer.ini", "pooler.toml"].map(|name| place.path().join(name).display().to_string());
    let (status, report) = pgweir(&["import", &ini, "-o", &toml]);
    assert!(status.success(), "{report}");
    assert!(
        report.contains("pkt_buf = 8192: does not matter here"),
        "{report}"
    );
    let written = place.read("pooler.toml");
    assert!(
        written.contains("# the shop itself\n[databases.\"shop\"]"),
        "{written}"
    );
    // pooler.toml is strict about HBA files.
    place.write("hba", &HBA.replace("this line is broken\n", ""));
    let (status, report) = pgweir(&["check", &toml]);
    assert!(status.success(), "{report}");
    let (status, report) = pgweir(&["import", &ini, "-o", &toml]);
    assert!(!status.success() && report.contains("exists"), "{report}");
}

#[test]
fn a_start_that_fails_ends_with_status_1_and_says_why() {
    let directory = scratch();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let ended = |arguments: &[&str]| -> (Option<i32>, String) {
        let (status, text): (ExitStatus, _) = pgweir(arguments);
        (status.code(), text)
    };
    fs::write(directory.path().join("users.txt"), "broken\n").unwrap();
    for (text, words) in [
        (
            "[pgbouncer]\nnosuch = 1\n",
            "x.ini:2:1: unknown parameter: pgbouncer/nosuch",
        ),
        ("[nosuch]\n", "x.ini:1:1: unknown section: nosuch"),
        (
            "[pgbouncer]\nmax_client_conn = x\n",
            "x.ini:2:19: invalid value \"x\"",
        ),
        ("%include /nonexistent\n", "/nonexistent cannot be included"),
        (
            "[databases]\n*=\n[pgbouncer]\nmax_client_conn = 0\n",
            "lets nobody in",
        ),
    ] {
        fs::write(directory.path().join("x.ini"), text).unwrap();
        let (code, said) = ended(&[&path("x.ini")]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(said.ends_with("cannot load config file\n"), "{said}");
    }
    let users = format!(
        "[databases]\n*=\n[pgbouncer]\nauth_file = {}\n",
        path("users.txt")
    );
    fs::write(directory.path().join("x.ini"), users).unwrap();
    let (code, said) = ended(&["check", &path("x.ini")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("users.txt:1:1: must begin with"), "{said}");

    for (arguments, code, words) in [
        (
            vec!["/nonexistent.ini"],
            1,
            "/nonexistent.ini: cannot be read",
        ),
        (vec!["-z", "/nonexistent.ini"], 1, "-z"),
        (
            vec!["-R", "/nonexistent.ini"],
            1,
            "/nonexistent.ini: cannot be read",
        ),
    ] {
        let (status, said) = ended(&arguments);
        assert_eq!(status, Some(code), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_link_called_pgbouncer_takes_its_options() {
    let directory = scratch();
    let link = directory.path().join("pgbouncer");
    symlink(program(), &link).unwrap();
    let ended = |arguments: &[&str]| {
        let output = Command::new(&link).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    for (arguments, code, words) in [
        (&["-V"][..], 0, "pgweir "),
        (&["--version"], 0, "pgweir "),
        (&["-h"], 0, "--daemon"),
        (&[], 1, "CONFIG_FILE"),
        (&["--nosuch"], 1, "--nosuch"),
        (&["serve", "x"], 1, "unexpected argument"),
    ] {
        let (status, said) = ended(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

/// A process that is nobody's child, told to end when this is dropped.
struct Daemon(u32);

impl Drop for Daemon {
    fn drop(&mut self) {
        send_signal(self.0, "TERM");
    }
}

#[test]
fn a_daemon_is_there_when_its_starter_ends() {
    let postgres = postgres();
    let place = Place::new(&postgres);
    let start = || {
        Command::new(program())
            .args(place.arguments(&["-d"]))
            .current_dir("/")
            .output()
            .unwrap()
    };
    let first = start();
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(
        first.status.success(),
        "{said}{}",
        place.read("pgbouncer.log")
    );
    let pid = place.read("pgbouncer.pid").trim().parse();
    let daemon = Daemon(pid.expect("the pidfile is written"));
    eventually("it listens", || {
        place.read("pgbouncer.log").contains("listening")
    });

    let second = start();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("another instance is running"), "{said}");

    drop(daemon);
    eventually("it ends", || !place.path().join("pgbouncer.pid").exists());
}
