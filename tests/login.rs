//! From the first byte to the first ReadyForQuery: startup packets, authentication, and who is refused how.

mod support;

use std::io::Write;
use std::time::Duration;

use support::process::run;
use support::raw::{cancel_request, special_request, startup_packet, tags};
use support::{Batch, Method, Pooler, Postgres, Raw, ServerError, eventually};

with_one_and_two_threads!(
    every_method_accepts_the_secrets_it_can_check,
    an_unknown_user_and_a_wrong_password_sound_alike,
    pgweir_logs_in_to_postgres_by_every_method,
    scram_secrets_are_passed_through_to_postgres,
    a_database_that_does_not_exist_is_told_by_postgres,
    the_client_too_many_is_told_so,
    parameters_are_those_of_postgres,
    a_startup_packet_may_come_byte_by_byte,
    what_is_no_startup_packet_is_refused,
    encryption_is_declined_and_the_login_goes_on,
    protocol_3_2_is_spoken_and_what_is_newer_negotiated_down,
    clients_come_through_a_unix_socket,
    a_client_that_never_logs_in_is_closed,
    a_login_by_scram_costs_no_derivation_of_keys,
    with_nobody_listed_postgres_decides,
    a_login_given_for_a_database_is_nobody_elses,
    a_slow_login_vouches_for_no_other_password,
    what_logins_have_taught_outlives_a_reload,
);

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

fn config(threads: usize) -> String {
    format!("[runtime]\nthreads = {threads}\n")
}

fn config_with(threads: usize, method: Method) -> String {
    format!(
        "[runtime]\nthreads = {threads}\n\n[auth]\nmethod = \"{}\"\nusers_file = \"{{dir}}/users.txt\"\n",
        method.word()
    )
}

/// A pgweir that knows these users; the file is read at a reload.
fn pooler_with_users(
    postgres: &Postgres,
    threads: usize,
    method: Method,
    users: &[(&str, &str)],
) -> Pooler {
    let text = users.iter().fold(String::new(), |text, (name, secret)| {
        text + &format!(
            "\"{name}\" \"{secret}\"
"
        )
    });
    Pooler::serve_with_users(postgres, &config_with(threads, method), &text)
}

/// What Postgres itself keeps for this password: `md5...` or `SCRAM-SHA-256$...`.
fn secret(postgres: &Postgres, kind: &str, user: &str, password: &str) -> String {
    let mut control = postgres
        .control("postgres")
        .expect("the fixture may log in");
    control
        .query(&format!(
            "set password_encryption = '{kind}'; create role {user} password '{password}'"
        ))
        .expect("a role");
    let value = control.value(&format!(
        "select rolpassword from pg_authid where rolname = '{user}'"
    ));
    control
        .query(&format!("drop role {user}"))
        .expect("the role is gone");
    value
}

fn outcome(port: u16, user: &str, password: &str) -> Result<String, ServerError> {
    let mut raw = Raw::try_login(port, user, "postgres", Some(password))?;
    let rows = raw.query("select 42")?;
    Ok(rows[0][0].clone().unwrap_or_default())
}

fn every_method_accepts_the_secrets_it_can_check(threads: usize) {
    let postgres = Postgres::start();
    let password = "p\u{e4}ss w\u{f6}rd \u{2665}";
    let md5 = secret(&postgres, "md5", "hashed", password);
    let scram = secret(&postgres, "scram-sha-256", "scrammed", password);
    assert!(md5.starts_with("md5") && scram.starts_with("SCRAM-SHA-256$4096:"));
    for user in ["plain", "hashed", "scrammed", "empty"] {
        postgres.sql(&format!("create role {user} login"));
    }
    let users = [
        ("plain", password),
        ("hashed", &md5),
        ("scrammed", &scram),
        ("empty", ""),
    ];
    for (method, accepted) in [
        (Method::Trust, vec!["plain", "hashed", "scrammed", "empty"]),
        (Method::Password, vec!["plain", "hashed", "scrammed"]),
        // A SCRAM secret makes md5 ask by SCRAM, as Postgres does.
        (Method::Md5, vec!["plain", "hashed", "scrammed"]),
        (Method::Scram, vec!["plain", "scrammed"]),
    ] {
        let pooler = pooler_with_users(&postgres, threads, method, &users);
        for (user, _) in users {
            let right = outcome(pooler.port(), user, password);
            if accepted.contains(&user) {
                assert_eq!(
                    right.as_deref().ok(),
                    Some("42"),
                    "{method:?} {user}: {right:?}"
                );
            } else {
                let refusal = right.expect_err("no such secret for this method");
                assert_eq!(refusal.code(), "28P01", "{method:?} {user}: {refusal}");
            }
            if method != Method::Trust {
                for wrong in ["wrong", "", &md5, &scram] {
                    let refusal =
                        outcome(pooler.port(), user, wrong).expect_err("a wrong password");
                    assert_eq!(refusal.code(), "28P01", "{method:?} {user}: {refusal}");
                    assert_eq!(refusal.severity(), "FATAL");
                }
            }
        }
        let unknown = outcome(pooler.port(), "nobody", password);
        assert!(unknown.is_err(), "{method:?}");
    }
}

/// A login that fails: the tags of all that the server says, and the error's bytes.
fn refusal(port: u16, user: &str) -> (String, Vec<u8>) {
    let mut raw = Raw::connect(port);
    let error = raw
        .log_in(&[("user", user), ("database", "postgres")], Some("wrong"))
        .expect_err("a wrong password");
    assert_eq!(raw.read_to_end(), [], "nothing follows the error");
    (raw.heard, error.body)
}

fn an_unknown_user_and_a_wrong_password_sound_alike(threads: usize) {
    let postgres = Postgres::start();
    for method in [Method::Password, Method::Md5, Method::Scram] {
        let scram = secret(&postgres, "scram-sha-256", "scram", "right");
        let pooler = pooler_with_users(
            &postgres,
            threads,
            method,
            &[("known", "right"), ("like", "it"), ("scram", &scram)],
        );
        let known = refusal(pooler.port(), "known");
        let mut unknown = vec!["other"];
        if method == Method::Scram {
            unknown.push("scram");
        }
        for user in unknown {
            let (heard, error) = refusal(pooler.port(), user);
            assert_eq!(known.0, heard, "{method:?} {user}");
            // The user's own name is the only difference, if it is told at all.
            let error = String::from_utf8_lossy(&error).replace(user, "known");
            assert_eq!(
                String::from_utf8_lossy(&known.1),
                error,
                "{method:?} {user}"
            );
        }
    }
}

fn pgweir_logs_in_to_postgres_by_every_method(threads: usize) {
    for method in [Method::Trust, Method::Password, Method::Md5, Method::Scram] {
        let postgres = Postgres::setup().method(method).start();
        postgres.create_role("alice", "wonder land");
        let pooler = pooler_with_users(
            &postgres,
            threads,
            Method::Trust,
            &[("alice", "wonder land")],
        );
        let mut alice = Raw::login(pooler.port(), "alice", "postgres");
        assert_eq!(alice.value("select current_user"), "alice", "{method:?}");

        let pooler =
            pooler_with_users(&postgres, threads, Method::Trust, &[("alice", "forgotten")]);
        let refusal = outcome(pooler.port(), "alice", "");
        if method == Method::Trust {
            assert!(refusal.is_ok());
        } else {
            let refusal = refusal.expect_err("Postgres refuses");
            assert_eq!(refusal.code(), "28P01", "{method:?}: {refusal}");
        }
    }
}

fn scram_secrets_are_passed_through_to_postgres(threads: usize) {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder land");
    let verifier = postgres.value("select rolpassword from pg_authid where rolname = 'alice'");
    let pooler = pooler_with_users(&postgres, threads, Method::Scram, &[("alice", &verifier)]);
    assert_eq!(
        outcome(pooler.port(), "alice", "wonder land"),
        Ok("42".to_owned())
    );
    assert!(outcome(pooler.port(), "alice", "wrong").is_err());
}

fn a_database_that_does_not_exist_is_told_by_postgres(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let direct = Raw::try_login(postgres.port(), "postgres", "nosuch", None);
    let through = Raw::try_login(pooler.port(), "postgres", "nosuch", None);
    let (direct, through) = (
        direct.err().expect("no such database"),
        through.err().expect("no such database"),
    );
    assert_eq!(through.code(), "3D000");
    for field in ['S', 'C', 'M'] {
        assert_eq!(direct.fields[&field], through.fields[&field]);
    }
    // Nobody else suffers.
    assert_eq!(
        Raw::login(pooler.port(), "postgres", "postgres").value("select 1"),
        "1"
    );
}

fn the_client_too_many_is_told_so(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!("{}\n[limits]\nmax_clients = 3\n", config(threads)),
    );
    let login = || Raw::try_login(pooler.port(), "alice", "postgres", None);
    postgres.sql("create role alice login");
    let mut clients: Vec<Raw> = (0..3).map(|_| login().expect("there is room")).collect();
    let refusal = login().err().expect("one too many");
    assert_eq!(refusal.code(), "53300", "{refusal}");
    assert_eq!(refusal.severity(), "FATAL");
    assert!(
        refusal.text().contains("no more connections allowed"),
        "{refusal}"
    );
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    clients.pop().expect("three").goodbye();
    eventually("there is room again", || login().is_ok());
}

fn parameters_are_those_of_postgres(threads: usize) {
    let postgres = Postgres::setup().setting("intervalstyle=iso_8601").start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let mut direct = Raw::login(postgres.port(), "postgres", "postgres").parameters;
    let mut through = Raw::login(pooler.port(), "postgres", "postgres").parameters;
    direct.remove("application_name");
    through.remove("application_name");
    assert_eq!(direct, through);
}

fn a_startup_packet_may_come_byte_by_byte(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let mut slow = Raw::connect(pooler.port());
    let packet = startup_packet(
        196_608,
        &[
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", "slow"),
        ],
    );
    for byte in &packet {
        // Nagle's algorithm is off: each byte is a segment of its own.
        slow.write(&[*byte]).expect("it listens");
    }
    assert!(slow.tags_until_ready().starts_with("R K"));
    for byte in Batch::new().query("select 'byte by byte'").bytes() {
        slow.write(&[*byte]).expect("it listens");
    }
    assert_eq!(slow.tags_until_ready(), "T D C Z(I)");

    // And all at once, with the first query behind it.
    let mut fast = Raw::connect(pooler.port());
    let all = [&packet, Batch::new().query("select 1").bytes()].concat();
    fast.write(&all).expect("it listens");
    fast.read_until('Z');
    assert_eq!(fast.tags_until_ready(), "T D C Z(I)");

    // A large one is no attack.
    let mut large = Raw::connect(pooler.port());
    let name = "x".repeat(8000);
    large
        .log_in(
            &[
                ("user", "postgres"),
                ("database", "postgres"),
                ("application_name", &name),
            ],
            None,
        )
        .expect("8 kB are allowed");
    assert_eq!(large.value("select 1"), "1");
}

fn what_is_no_startup_packet_is_refused(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let with_length = |length: u32, rest: &[u8]| [&length.to_be_bytes(), rest].concat();
    let cut = startup_packet(196_608, &[("user", "postgres")]);
    let packets: Vec<(&str, Vec<u8>)> = vec![
        ("length 0", with_length(0, b"")),
        ("length 3", with_length(3, b"")),
        ("length 4", with_length(4, b"")),
        ("length 7", with_length(7, b"\0\x03\0")),
        (
            "2 GB",
            with_length(u32::MAX / 2, &196_608_u32.to_be_bytes()),
        ),
        ("4 GB", with_length(u32::MAX, &196_608_u32.to_be_bytes())),
        (
            "100 kB",
            startup_packet(
                196_608,
                &[
                    ("user", "postgres"),
                    ("application_name", &"x".repeat(100_000)),
                ],
            ),
        ),
        (
            "protocol 2",
            startup_packet(131_072, &[("user", "postgres")]),
        ),
        (
            "protocol 4",
            startup_packet(262_144, &[("user", "postgres")]),
        ),
        ("protocol 0", startup_packet(0, &[("user", "postgres")])),
        ("no terminator", with_length(13, b"\0\x03\0\0user\0")),
        (
            "a name without a value",
            with_length(14, b"\0\x03\0\0user\0\0"),
        ),
        (
            "no user",
            startup_packet(196_608, &[("database", "postgres")]),
        ),
        ("an empty user", startup_packet(196_608, &[("user", "")])),
        ("nothing", startup_packet(196_608, &[])),
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        (
            "cancel, too short",
            with_length(12, &[4, 210, 22, 46, 0, 0, 0, 1]),
        ),
        (
            "a key without a session",
            support::raw::cancel_request(1, &[1, 2, 3, 4]),
        ),
    ];
    for (what, packet) in packets {
        let mut raw = Raw::connect(pooler.port());
        // It may have closed before all of it was written.
        let _ = raw.write(&packet);
        raw.half_close();
        let said = raw.read_to_end();
        assert!(
            matches!(tags(&said).as_str(), "" | "E"),
            "{what}: {}",
            tags(&said)
        );
        if let [error] = said.as_slice() {
            assert_eq!(error.error().severity(), "FATAL", "{what}");
        }
    }
    // Cut anywhere and left: not a word, and no harm.
    for length in 0..cut.len() {
        let mut raw = Raw::connect(pooler.port());
        raw.write(&cut[..length]).expect("it listens");
        raw.half_close();
        let said = tags(&raw.read_to_end());
        assert!(matches!(said.as_str(), "" | "E"), "cut at {length}: {said}");
    }
    assert_eq!(
        Raw::login(pooler.port(), "postgres", "postgres").value("select 1"),
        "1"
    );
}

fn encryption_is_declined_and_the_login_goes_on(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let startup = [("user", "postgres"), ("database", "postgres")];
    for requests in [
        vec![SSL_REQUEST],
        vec![GSS_REQUEST],
        vec![GSS_REQUEST, SSL_REQUEST],
        vec![SSL_REQUEST, GSS_REQUEST],
    ] {
        let mut raw = Raw::connect(pooler.port());
        for request in requests {
            raw.write(&special_request(request)).expect("it listens");
            assert_eq!(raw.read_byte(), 'N');
        }
        raw.log_in(&startup, None).expect("a login in clear");
        assert_eq!(raw.value("select 1"), "1");
    }
    // Asking for ever is no login.
    let mut raw = Raw::connect(pooler.port());
    let many = special_request(SSL_REQUEST).repeat(1000);
    let _ = raw.write(&many);
    raw.half_close();
    assert!(raw.read_bytes_to_end().len() < 1000);
    run(pooler
        .psql("postgres", "postgres")
        .env("PGSSLMODE", "prefer")
        .args(["-c", "select 1"]));
    let required = pooler
        .psql("postgres", "postgres")
        .env("PGSSLMODE", "require")
        .args(["-c", "select 1"])
        .output()
        .expect("psql runs");
    assert!(!required.status.success());
}

fn protocol_3_2_is_spoken_and_what_is_newer_negotiated_down(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads));
    let weather = [("_pq_.weather", "fine"), ("_pq_.tide", "high")];
    // Asked for, with so many unknown options; spoken, and the length of the cancel key.
    for (asked, options, spoken, key_length) in [
        (0, 0, None, 4),
        (1, 0, None, 4),
        (2, 0, None, 32),
        (9, 1, Some(2), 32),
        (0, 2, Some(0), 4),
        (2, 1, Some(2), 32),
    ] {
        let mut raw = Raw::connect(pooler.port());
        let mut all = vec![("user", "postgres"), ("database", "postgres")];
        all.extend(&weather[..options]);
        raw.write(&startup_packet(196_608 + asked, &all))
            .expect("it listens");
        let messages = raw.read_until('Z');
        let answer = messages.iter().find(|message| message.tag == 'v');
        let said = answer.map(|answer| {
            let names: Vec<_> = weather[..options].iter().map(|(name, _)| *name).collect();
            let expected = names
                .iter()
                .fold(String::new(), |text, name| text + name + "\0");
            let (head, told) = answer.body.split_at(8);
            assert_eq!(String::from_utf8_lossy(told), expected);
            assert_eq!(usize::from(head[7]), options);
            u16::from_be_bytes([head[2], head[3]])
        });
        assert_eq!(said, spoken, "version 3.{asked}");
        let (process, key) = raw.key.clone().expect("a cancel key");
        assert_eq!(key.len(), key_length, "version 3.{asked}");
        assert_eq!(raw.value("select 1"), "1");

        // The key works, whole and only whole.
        raw.send(&Batch::new().query("select pg_sleep(60)"));
        eventually("it runs", || postgres.busy() == 1);
        for secret in [&key[..key.len() - 1], &key[..]] {
            let mut other = Raw::connect(pooler.port());
            other
                .write(&cancel_request(process, secret))
                .expect("it is open");
            assert!(other.read_to_end().is_empty());
            if secret.len() < key.len() {
                assert!(!raw.hears_within(Duration::from_millis(50)));
            }
        }
        assert_eq!(raw.rows().expect_err("it is cancelled").code(), "57014");
    }
}

fn clients_come_through_a_unix_socket(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!(
            "{}\n[listen]\naddresses = [\"127.0.0.1:{{port}}\"]\nhttp = \"\"\nunix_socket_dir = \"{{dir}}\"\n",
            config(threads)
        ),
    );
    let directory = pooler.directory().to_str().expect("ASCII").to_owned();
    assert_eq!(
        run(pooler
            .psql("postgres", "postgres")
            .args(["-h", &directory, "-c", "select 42"])),
        "42\n"
    );
    let socket = pooler
        .directory()
        .join(format!(".s.PGSQL.{}", pooler.port()));
    let mut raw = Raw::connect_unix(&socket).expect("it listens");
    raw.log_in(&[("user", "postgres")], None).expect("a login");
    assert_eq!(raw.value("select current_database()"), "postgres");
}

fn a_client_that_never_logs_in_is_closed(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!(
            "{}\n[timeouts]\nclient_login = \"500ms\"\n",
            config(threads)
        ),
    );
    let mut silent = Raw::connect(pooler.port());
    let mut halting = Raw::connect(pooler.port());
    halting.tcp().write_all(&[0, 0, 0]).expect("it listens");
    let mut logged_in = Raw::login(pooler.port(), "postgres", "postgres");
    for raw in [&mut silent, &mut halting] {
        let said = tags(&raw.read_to_end());
        assert!(matches!(said.as_str(), "" | "E"), "{said}");
    }
    assert_eq!(logged_in.value("select 1"), "1");
}

fn a_login_by_scram_costs_no_derivation_of_keys(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role alice login");
    let pooler = pooler_with_users(
        &postgres,
        threads,
        Method::Scram,
        &[("alice", "wonder land")],
    );
    let login = || {
        outcome(pooler.port(), "alice", "wonder land").expect("a login");
    };
    login();
    let before = pooler.cpu_time();
    for _ in 0..20 {
        login();
    }
    let each = pooler.cpu_time().saturating_sub(before) / 20;
    // 4096 rounds of HMAC take an unoptimised build far longer than this, and an optimised one about two milliseconds.
    assert!(
        each < Duration::from_millis(20),
        "{each:?} of CPU for a login"
    );
}

/// Nobody is listed: Postgres is asked, and its answer passed on.
fn with_nobody_listed_postgres_decides(threads: usize) {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder land");
    let pooler = Pooler::serve(&postgres, &unlisted(threads, ""));
    let login = |user, password| Raw::try_login(pooler.port(), user, "postgres", Some(password));
    for _ in 0..2 {
        let wrong = login("alice", "wonderland")
            .err()
            .expect("the wrong password");
        assert_eq!(wrong.code(), "28P01", "{wrong}");
        let mut alice = login("alice", "wonder land").expect("the right one");
        assert_eq!(alice.value("select current_user"), "alice");
    }
    let stranger = login("nobody", "wonder land").err().expect("no such role");
    assert_eq!(stranger.code(), "28P01", "{stranger}");
    postgres.await_all_idle();
}

/// Even then, a login that the configuration gives for a database must be shown by whoever wants to use it.
fn a_login_given_for_a_database_is_nobody_elses(threads: usize) {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    let url = "[databases.postgres]\nurl = \"postgres://alice:wonder@127.0.0.1:{postgres}\"\n";
    let pooler = Pooler::serve(&postgres, &unlisted(threads, url));
    let login = |user, password| Raw::try_login(pooler.port(), user, "postgres", password);
    for (user, password) in [
        ("alice", Some("wrong")),
        ("bob", Some("wonder")),
        ("bob", Some("")),
    ] {
        let refusal = login(user, password).err().expect("a stranger");
        assert_eq!(refusal.code(), "28P01", "{user}: {refusal}");
    }
    let mut alice = login("alice", Some("wonder")).expect("its own login");
    assert_eq!(alice.value("select current_user"), "alice");
}

/// A login that outlasts `query_wait` leaves nothing behind that lets the next password in.
fn a_slow_login_vouches_for_no_other_password(threads: usize) {
    let postgres = Postgres::setup()
        .method(Method::Scram)
        .setting("post_auth_delay=2")
        .start();
    postgres.create_role("alice", "wonder");
    let wait = "[timeouts]\nquery_wait = \"1s\"\n";
    let pooler = Pooler::serve(&postgres, &unlisted(threads, wait));
    let login = |password| Raw::try_login(pooler.port(), "alice", "postgres", Some(password));
    let late = login("wonder").err().expect("it takes too long");
    assert_eq!(late.code(), "53300", "{late}");
    // These take a second each: the late login ends among them.
    for _ in 0..4 {
        assert!(login("wrong").is_err());
    }
}

/// Keys that a SCRAM login has shown serve pgweir's own logins after a reload too.
fn what_logins_have_taught_outlives_a_reload(threads: usize) {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("alice", "wonder");
    let verifier = postgres.value("select rolpassword from pg_authid where rolname = 'alice'");
    let pooler = pooler_with_users(&postgres, threads, Method::Scram, &[("alice", &verifier)]);
    let mut alice =
        Raw::try_login(pooler.port(), "alice", "postgres", Some("wonder")).expect("a login");
    assert_eq!(alice.value("select 1"), "1");
    pooler.reload();
    eventually("it has reloaded", || pooler.log().contains("reloaded"));
    postgres.terminate_connections();
    eventually("they are gone", || postgres.connections() == 0);
    assert_eq!(alice.value("select 2"), "2");
}

fn unlisted(threads: usize, more: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n[auth]\nmethod = \"scram-sha-256\"\n\n{more}")
}
