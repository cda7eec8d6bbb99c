//! What is logged, what is not, and how that is changed while pgweir runs.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;

use support::process::{run, scratch};
use support::wait::PATIENCE;
use support::{Batch, Method, Pooler, Postgres, Raw, eventually};

/// Passwords, secrets and values that may be in no line, whatever happens.
const PASSWORD: &str = "correct-horse-battery";
const WRONG: &str = "wrong-horse-battery";
const LOOKUP: &str = "lookup-horse-battery";
const VALUE: &str = "diagnosis-of-a-patient";

fn url(postgres: &Postgres) -> String {
    format!(
        "postgres://pgweir_auth:{LOOKUP}@127.0.0.1:{}",
        postgres.port()
    )
}

/// Logs in rightly and wrongly, and sends values in every way.
fn use_it(pooler: &Pooler) {
    Raw::try_login(pooler.port(), "alice", "postgres", Some(WRONG))
        .err()
        .expect("the password is wrong");
    let mut alice = Raw::try_login(pooler.port(), "alice", "postgres", Some(PASSWORD))
        .unwrap_or_else(|error| panic!("{error}\n{}", pooler.log()));
    alice
        .query(&format!("select '{VALUE}'"))
        .expect("an answer");
    alice.send(
        &Batch::new()
            .parse("s", "select $1::text")
            .bind("", "s", &[VALUE])
            .execute("")
            .sync(),
    );
    alice.rows().expect("an answer");
    alice
        .query(&format!("set pgweir_test.diagnosis = '{VALUE}'"))
        .expect("any name with a dot will do");
    alice.error(&format!("select '{VALUE}' from nothing"));
    alice.error(&format!("alter role alice password '{PASSWORD}' nonsense"));
    alice.goodbye();
    pooler.await_log("the goodbye", |line| {
        line.contains("goodbye") && line.contains("alice")
    });
}

#[test]
fn no_password_secret_or_value_is_in_any_log() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", PASSWORD);
    postgres.create_role("pgweir_auth", LOOKUP);
    postgres.sql(
        "grant select (rolname, rolpassword, rolvaliduntil, rolcanlogin) on pg_catalog.pg_authid to pgweir_auth",
    );
    let secret = postgres.value("select rolpassword from pg_authid where rolname = 'alice'");
    let listed = format!("\"alice\" \"{PASSWORD}\"\n");
    let as_secret = format!("\"alice\" \"{secret}\"\n");
    let trace = "[log]\nlevel = \"trace\"\n";
    let method = |word: &str| {
        format!("{trace}[auth]\nmethod = \"{word}\"\nusers_file = \"{{dir}}/users.txt\"\n")
    };
    let looked_up = format!(
        "{trace}[auth]\nmethod = \"scram-sha-256\"\nquery_user = \"pgweir_auth\"\n\
         [databases.\"*\"]\nurl = \"{}\"\n",
        url(&postgres)
    );
    // With nobody listed, Postgres decides.
    let passed = format!("{trace}[auth]\nmethod = \"scram-sha-256\"\n");
    for (toml, users) in [
        (method("password"), &*listed),
        (method("md5"), &listed),
        (method("scram-sha-256"), &listed),
        (method("scram-sha-256"), &as_secret),
        (looked_up, ""),
        (passed, ""),
    ] {
        let pooler = Pooler::serve_with_users(&postgres, &toml, users);
        use_it(&pooler);
        pooler.reload();
        pooler.await_log("the reload", |line| line.contains("reloaded"));
        let log = pooler.log();
        assert!(
            log.contains("TRACE") || log.contains("DEBUG"),
            "the level is in force:\n{log}"
        );
        let salted = secret.rsplit('$').next().expect("keys");
        for hidden in [PASSWORD, WRONG, LOOKUP, VALUE, &*secret, salted] {
            assert!(!log.contains(hidden), "{toml}: {hidden} in\n{log}");
        }
    }
}

/// What comes on a socket next that fits.
fn hear(socket: &UnixDatagram, fits: impl Fn(&str) -> bool) -> String {
    let mut datagram = [0; 16 * 1024];
    loop {
        let length = socket.recv(&mut datagram).expect("a line in time");
        let line = String::from_utf8_lossy(&datagram[..length]);
        if fits(&line) {
            return line.into_owned();
        }
    }
}

#[test]
fn syslog_hears_every_line_and_whoever_does_not_read_holds_up_nobody() {
    let (postgres, directory) = (Postgres::start(), scratch());
    let place = directory.path().join("devlog");
    let socket = UnixDatagram::bind(&place).expect("the directory is ours");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let toml = |lines: &str| {
        let place = place.display();
        format!("[log]\nsyslog_ident = \"weir\"\nsyslog_socket = \"{place}\"\n{lines}\n")
    };
    let pooler = Pooler::serve(
        &postgres,
        &toml("syslog = true\nsyslog_facility = \"local0\""),
    );
    let log_in = || Raw::login(pooler.port(), "postgres", "postgres").goodbye();
    log_in();
    let line = hear(&socket, |line| {
        line.contains("login user") || line.contains("INFO login ")
    });
    let ident = format!(" weir[{}]: INFO login ", pooler.id());
    // local0.info
    assert!(line.starts_with("<134>") && line.contains(&ident), "{line}");

    // Nobody reads, and its queue is full.
    (0..500).for_each(|_| log_in());
    let reload = |lines: &str| {
        pooler.rewrite(&toml(lines));
        let reloads = || pooler.log().matches("reloaded").count();
        let before = reloads();
        pooler.reload();
        eventually("it reloads", || reloads() > before);
    };
    socket.set_nonblocking(true).expect("a socket");
    while socket.recv(&mut [0; 9]).is_ok() {}
    socket.set_nonblocking(false).expect("a socket");
    reload("syslog = true\nsyslog_facility = \"local1\"");
    // local1.info
    hear(&socket, |line| {
        line.starts_with("<142>") && line.ends_with("reloaded")
    });
    reload("syslog = false");
    socket.set_nonblocking(true).expect("a socket");
    while socket.recv(&mut [0; 9]).is_ok() {}
    log_in();
    assert!(socket.recv(&mut [0; 9]).is_err(), "it is turned off");
}

#[test]
fn the_end_of_a_session_tells_what_it_did() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    for _ in 0..3 {
        client.value("select 1");
    }
    client.goodbye();
    let line = pooler.await_log("its end", |line| line.contains("session ended"));
    for word in [
        "reason=\"goodbye\"",
        "transactions=3",
        "queries=3",
        "received=",
        "sent=",
        "seconds=",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

/// Whatever a session does meanwhile: one line when it is let in, one when it has left, and each says who it was.
#[test]
fn a_login_and_a_logout_are_a_line_each() {
    let postgres = Postgres::start();
    postgres.create_role("alice", PASSWORD);
    let pooler = Pooler::serve(&postgres, "");
    let mut client = Raw::login_as(pooler.port(), "alice", "postgres", "site@v41");
    client.query("begin").expect("an answer");
    client.error("select nothing");
    client.query("rollback").expect("an answer");
    client
        .query("set application_name = 'site@v41'")
        .expect("an answer");
    client.goodbye();
    pooler.await_log("its end", |line| line.contains("session ended"));
    let log = pooler.log();
    let of_alice: Vec<_> = log
        .lines()
        .filter(|line| line.contains("\"alice\""))
        .collect();
    let [login, logout] = of_alice.as_slice() else {
        panic!("{log}");
    };
    for (line, words) in [
        (login, " login "),
        (logout, "session ended: client said goodbye"),
    ] {
        assert!(line.contains(words.trim()), "{words}: {line}");
        for word in [
            "INFO",
            "id=",
            "user=\"alice\"",
            "database=\"postgres\"",
            "service=\"site\"",
            "deployment=\"v41\"",
            "peer=127.0.0.1:",
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }
}

#[test]
fn a_reload_changes_the_level() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[log]\nlevel = \"info\"\n");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    client.value("select 1");
    assert!(!pooler.log().contains("server connection opened"));
    pooler.rewrite("[log]\nlevel = \"debug\"\n");
    pooler.reload();
    pooler.await_log("the reload", |line| line.contains("reloaded"));
    postgres.terminate_connections();
    eventually("a line of the new level", || {
        client.query("select 1").ok();
        pooler.log().contains("server connection opened")
    });
}

#[test]
fn errors_of_the_pooler_are_told_unless_that_is_off() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[log]\ndisconnections = false\n");
    let refuse = |user: &str| {
        Raw::try_login(pooler.port(), user, "postgres", None)
            .err()
            .expect("nobody knows this user")
    };
    refuse("eve");
    pooler.await_log("the refusal", |line| {
        line.contains("login refused") && line.contains("eve")
    });
    pooler.rewrite("[log]\npooler_errors = false\ndisconnections = false\n");
    pooler.reload();
    pooler.await_log("the reload", |line| line.contains("reloaded"));
    refuse("mallory");
    eventually("it is counted", || {
        pooler
            .http("/metrics")
            .1
            .contains("pgweir_login_failures_total{reason=\"unknown_user\"} 2")
    });
    assert!(!pooler.log().contains("mallory"), "{}", pooler.log());
}

#[test]
fn a_refusal_that_repeats_is_written_once() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    for _ in 0..5 {
        Raw::try_login(pooler.port(), "eve", "postgres", None)
            .err()
            .expect("nobody knows this user");
    }
    Raw::try_login(pooler.port(), "mallory", "postgres", None)
        .err()
        .expect("nor this one");
    pooler.await_log("the other's", |line| {
        line.contains("login refused") && line.contains("mallory")
    });
    let log = pooler.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("login refused") && line.contains("eve"));
    assert_eq!(lines.count(), 1, "{log}");
    assert!(
        pooler
            .http("/metrics")
            .1
            .contains("\npgweir_log_lines_suppressed_total 4\n")
    );
}

#[test]
fn json_lines_are_json_at_every_level() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[log]\nlevel = \"trace\"\nformat = \"json\"\n");
    run(pooler.psql("postgres", "postgres").args(["-c", "select 1"]));
    let log = fs::read_to_string(pooler.directory().join("log")).expect("a log");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}
