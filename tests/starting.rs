//! How a start ends that cannot be: for PgBouncer 1.18, 1.24 and pgweir, by status and words. And what a reload does that meets the
//! same files.

mod support;

use std::os::unix::net::UnixListener;
use std::process::Command;

use support::pgbouncer::{Kind, Place, Running};
use support::process::run;
use support::{Method, Postgres, Raw};

const INI: &str = "\
[databases]
shop = host=127.0.0.1 port={postgres} dbname=postgres
[pgbouncer]
{listen}
admin_users = admin
auth_type = scram-sha-256
auth_file = {dir}/users.txt
";

const USERS: &str = "\"alice\" \"wonder\"\n\"admin\" \"admins\"\n";

/// Line 11 is the first one of a test's own.
fn prepare(place: &Place, postgres: u16, more: &str) {
    let text = format!("{INI}{more}\n");
    place.write("pgbouncer.ini", &place.fill(&text, postgres));
    place.write("users.txt", USERS);
}

const ALL: [Kind; 3] = [Kind::PgBouncer118, Kind::PgBouncer124, Kind::Pgweir];

/// What each says in the end. In `words`, the first are PgBouncer's, the second pgweir's.
#[track_caller]
fn fails(
    name: &str,
    arguments: impl Fn(&Place) -> Vec<String>,
    more: &str,
    files: &[(&str, &str)],
    words: (&str, &str),
) {
    for kind in ALL {
        let place = Place::new();
        prepare(&place, 5, more);
        for (file, text) in files {
            place.write(file, text);
        }
        let (status, said) = place.attempt(kind, &arguments(&place));
        let wanted = match kind {
            Kind::Pgweir => words.1,
            _ => words.0,
        };
        let kind = kind.name();
        assert_eq!(status, Some(1), "{name}: {kind}: {said}");
        assert!(said.contains(wanted), "{name}: {kind}: {said}");
    }
}

fn usual(place: &Place) -> Vec<String> {
    place.arguments()
}

/// As whom a test that is root has its programs run.
fn with(place: &Place, last: &str) -> Vec<String> {
    let mut arguments = place.arguments();
    arguments.pop();
    arguments.push(last.to_owned());
    arguments
}

#[test]
fn a_command_line_that_cannot_be_ends_as_with_pgbouncer() {
    let words = "cannot load config file";
    let nosuch = |place: &Place| with(place, &format!("{}/nosuch.ini", place.path().display()));
    fails("no file", nosuch, "", &[], (words, words));
    fails(
        "an option that there is not",
        |place| {
            let mut arguments = place.arguments();
            arguments.insert(0, "--nosuch".to_owned());
            arguments
        },
        "",
        &[],
        ("unrecognized option '--nosuch'", "--nosuch"),
    );
    fails(
        "a user who is not there",
        |place| {
            let mut arguments = vec!["-u".to_owned(), "nosuchuser".to_owned()];
            arguments.extend(place.arguments().pop());
            arguments
        },
        "",
        &[],
        ("'nosuchuser'", "\"nosuchuser\""),
    );
    let words = "daemon needs pidfile configured";
    fails(
        "a daemon without a pidfile",
        |place| {
            let mut arguments = place.arguments();
            arguments.insert(0, "-d".to_owned());
            arguments
        },
        "",
        &[],
        (words, words),
    );
    if run(Command::new("id").arg("-u")).trim() == "0" {
        let words = "PgBouncer should not run as root";
        let as_root = |place: &Place| place.arguments().split_off(2);
        fails("as root", as_root, "", &[], (words, words));
    }
}

#[test]
fn the_version_is_what_show_version_says() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    for kind in ALL {
        let place = Place::new();
        prepare(&place, postgres.port(), "");
        let mut arguments = place.arguments();
        arguments.insert(0, "-V".to_owned());
        let (status, told) = place.attempt(kind, &arguments);
        assert_eq!(status, Some(0));
        let running = place.start(kind);
        let mut admin = console(&running);
        let shown = admin.value("show version");
        assert_eq!(told.lines().next(), Some(shown.as_str()), "{}", kind.name());
    }
}

#[test]
fn a_broken_ini_ends_the_start_with_file_and_line() {
    for (line, theirs, ours) in [
        (
            "nosuch = 1",
            "unknown parameter: pgbouncer/nosuch",
            "pgbouncer.ini:11:1: unknown parameter: pgbouncer/nosuch",
        ),
        (
            "max_client_conn = x",
            "invalid value \"x\" for parameter max_client_conn in configuration",
            "pgbouncer.ini:11:19: invalid value \"x\" for parameter max_client_conn",
        ),
        (
            "pool_mode = x",
            "invalid value \"x\" for parameter pool_mode in configuration",
            "pgbouncer.ini:11:13: invalid value \"x\" for parameter pool_mode",
        ),
        (
            "[nosuch]",
            "pgbouncer.ini:11)",
            "pgbouncer.ini:11:1: unknown section: nosuch",
        ),
        (
            "garbage",
            "syntax error in configuration",
            "pgbouncer.ini:11:1: syntax error in configuration",
        ),
        (
            "%include {dir}/nosuch.ini",
            "nosuch.ini\": No such file or directory",
            "pgbouncer.ini:11:1: {dir}/nosuch.ini cannot be included: No such file or directory",
        ),
    ] {
        // The directory's name is not known here.
        let ours = ours.split("{dir}").next().unwrap_or_default();
        fails(line, usual, line, &[], (theirs, ours));
        let words = "cannot load config file";
        fails(line, usual, line, &[], (words, words));
    }
}

#[test]
fn what_tls_cannot_be_set_up_with_ends_the_start() {
    let tls = "client_tls_sslmode = require\nclient_tls_key_file = {dir}/c\nclient_tls_cert_file = {dir}/c";
    let words = "TLS setup failed";
    fails(
        "no certificate",
        usual,
        tls,
        &[],
        (words, "TLS setup failed: "),
    );
    fails(
        "no PEM",
        usual,
        tls,
        &[("c", "x")],
        (words, "there is no certificate in it"),
    );
}

#[test]
fn what_is_in_use_ends_the_start() {
    // This very process runs.
    let own = std::process::id().to_string();
    let words = "exists, another instance";
    let pidfile = "pidfile = {dir}/pid";
    fails(
        "a pidfile",
        usual,
        pidfile,
        &[("pid", &own)],
        (words, words),
    );
    for kind in ALL {
        let place = Place::new();
        prepare(&place, 5, "");
        let path = place.path().join(format!(".s.PGSQL.{}", place.port));
        let _listener = UnixListener::bind(&path).expect("the directory is ours");
        run(Command::new("chmod").arg("777").arg(&path));
        let (status, said) = place.attempt(kind, &place.arguments());
        assert_eq!(status, Some(1), "{}: {said}", kind.name());
        let words = "unix socket is in use, cannot continue";
        assert!(said.contains(words), "{}: {said}", kind.name());
    }
    // What a dead one has left is in nobody's way.
    for kind in ALL {
        let place = Place::new();
        prepare(&place, 5, "pidfile = {dir}/pid");
        place.write("pid", "4194305");
        run(Command::new("chmod")
            .arg("666")
            .arg(place.path().join("pid")));
        let (status, said) = place.attempt(kind, &place.arguments());
        assert_eq!(status, None, "{}: {said}", kind.name());
    }
}

#[test]
fn unix_sockets_have_the_mode_that_was_asked_for_and_may_be_abstract() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for kind in ALL {
        let place = Place::new();
        prepare(
            &place,
            postgres.port(),
            "unix_socket_mode = 0707\nunix_socket_group = nogroup",
        );
        let running = place.start(kind);
        let shown = run(Command::new("stat")
            .args(["-c", "%a %G"])
            .arg(running.socket()));
        assert_eq!(shown.trim(), "707 nogroup", "{}", kind.name());
    }
    for kind in [Kind::PgBouncer124, Kind::Pgweir] {
        let place = Place::new();
        let name = format!("@pgweir-test-{}", place.port);
        prepare(
            &place,
            postgres.port(),
            &format!("unix_socket_dir = {name}"),
        );
        let running = place.start(kind);
        let mut psql = support::postgres::psql(running.port(), "alice", "shop");
        psql.args(["-h", &name]).env("PGPASSWORD", "wonder");
        let said = run(psql.args(["-c", "select 42"]));
        assert_eq!(said.trim(), "42", "{}", kind.name());
    }
}

fn console(running: &Running) -> Raw {
    let mut admin = Raw::connect(running.port());
    let startup = [("user", "admin"), ("database", "pgbouncer")];
    admin.log_in(&startup, Some("admins")).expect("an admin");
    admin
}

fn comes_in(running: &Running) -> bool {
    let mut alice = Raw::connect(running.port());
    let startup = [("user", "alice"), ("database", "shop")];
    alice.log_in(&startup, Some("wonder")).is_ok()
}

/// A file of any kind that is broken: the admin who reloads is told, with file and line, and what was in force stays.
#[test]
fn a_reload_with_a_broken_file_is_told_and_changes_nothing() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for (more, file, text, words) in [
        (
            "",
            "pgbouncer.ini",
            "nosuch = 1\n",
            "pgbouncer.ini:12:1: unknown parameter: pgbouncer/nosuch",
        ),
        (
            "",
            "pgbouncer.ini",
            "max_client_conn = x\n",
            "pgbouncer.ini:12:19: invalid value \"x\"",
        ),
        (
            "",
            "pgbouncer.ini",
            "garbage\n",
            "pgbouncer.ini:12:1: syntax error in configuration",
        ),
        (
            "",
            "pgbouncer.ini",
            "[nosuch]\n",
            "pgbouncer.ini:12:1: unknown section",
        ),
        (
            "",
            "pgbouncer.ini",
            "%include nosuch\n",
            "pgbouncer.ini:12:1: nosuch cannot be included",
        ),
        (
            "",
            "users.txt",
            "\"bob\n",
            "users.txt:3:1: the user's name has no closing quote",
        ),
        (
            "",
            "users.txt",
            "bob\n",
            "users.txt:3:1: must begin with the user's name in double quotes",
        ),
        (
            "auth_ident_file = {dir}/idents",
            "idents",
            "one two\n",
            "idents:1:1: must have three fields: map, name, user",
        ),
        (
            "",
            "pgbouncer.ini",
            "client_tls_sslmode = allow\nclient_tls_key_file = users.txt\nclient_tls_cert_file = nosuch\n",
            "TLS setup failed: nosuch: No such file or directory",
        ),
        (
            "",
            "pgbouncer.ini",
            "auth_type = ldap\nauth_ldap_options = ldapserver=x\n",
            "pgbouncer.ini:13:21: ldap_options needs ldapbasedn, ldapprefix or ldapsuffix",
        ),
    ] {
        let place = Place::new();
        prepare(&place, postgres.port(), more);
        place.write("idents", "");
        let running = place.start(Kind::Pgweir);
        let mut admin = console(&running);
        assert!(comes_in(&running), "{words}");
        running.place.append(file, text);
        let told = admin.query("reload").expect_err("it is broken");
        let detail = told.fields.get(&'D').cloned().unwrap_or_default();
        assert!(detail.contains(words), "{}: {detail}", told.text());
        assert!(comes_in(&running), "{words}");
        running.signal("HUP");
        support::eventually("the log says so too", || {
            running.place.read("log").contains(words)
        });
        assert!(comes_in(&running), "{words}");
    }
}

/// Lines of the HBA file that cannot be read are passed over with a warning, as by PgBouncer.
#[test]
fn a_broken_record_is_passed_over_and_told() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for kind in [Kind::PgBouncer124, Kind::Pgweir] {
        let place = Place::new();
        prepare(
            &place,
            postgres.port(),
            "auth_type = hba\nauth_hba_file = {dir}/hba",
        );
        let records = "host all all 127.0.0.1/32 scram-sha-256\n";
        place.write("hba", records);
        let running = place.start(kind);
        let mut admin = console(&running);
        running.place.write(
            "hba",
            &format!("nosuch all all trust\nhost all all nonsense trust\n{records}"),
        );
        assert!(admin.query("reload").is_ok(), "{}", kind.name());
        assert!(comes_in(&running), "{}", kind.name());
        let words = match kind {
            Kind::Pgweir => [
                "hba:1:1: unknown type \"nosuch\"",
                "hba:2:1: \"nonsense\" is no ",
            ],
            _ => ["line 1", "line 2"],
        };
        support::eventually("the log names both", || {
            let log = running.place.read("log");
            words.iter().all(|words| log.contains(words))
        });
    }
}

/// A file that is not there is told, as by PgBouncer: at the start nobody is known by it, and at a reload what was in it stays.
#[test]
fn a_missing_file_is_told_and_ends_nothing() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    for kind in ALL {
        let name = kind.name();
        for (more, file, text, word) in [
            ("auth_file = {dir}/file", "file", USERS, "auth_file"),
            (
                "auth_type = trust\nauth_file = {dir}/file",
                "file",
                USERS,
                "auth_file",
            ),
            (
                "auth_type = hba\nauth_hba_file = {dir}/file",
                "file",
                "host all all 127.0.0.1/32 scram-sha-256\n",
                "hba config file",
            ),
        ] {
            let place = Place::new();
            prepare(&place, postgres.port(), more);
            let running = place.start(kind);
            let path = running.place.path().join(file).display().to_string();
            let words = format!("ERROR could not open {word} {path}: No such file or directory");
            let told = || running.place.read("log").matches(&words).count();
            assert_eq!(told(), 1, "{name}: {}", running.place.read("log"));
            assert!(!comes_in(&running), "{name}: {word}");
            // (PgBouncer does not survive that a user appears whom it has refused before.)
            if kind != Kind::Pgweir {
                continue;
            }
            running.place.write(file, text);
            running.signal("HUP");
            support::eventually("alice comes in", || comes_in(&running));
            std::fs::remove_file(&path).expect("it is there");
            running.signal("HUP");
            support::eventually("it is told again", || told() == 2);
            assert!(comes_in(&running), "{name}: {word}");
        }
    }
}
