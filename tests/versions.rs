//! The core of what pgweir does, on each supported version of PostgreSQL besides the one that all other tests use.

mod support;

use std::process::{Command, Stdio};

use support::postgres::version_directory;
use support::process::{run, send_signal};
use support::raw::cancel_request;
use support::{Batch, Method, Pooler, Postgres, Raw, eventually};

/// Makes each function, which takes a Postgres and a pgweir before it, into a test for each version.
macro_rules! on_each_version {
    ($($module:ident $version:literal),+; $functions:tt) => {
        $(mod $module {
            on_each_version!(@tests $version $functions);
        })+
    };
    (@tests $version:literal ($($(#[$attribute:meta])* $name:ident),+ $(,)?)) => {
        $(#[test] $(#[$attribute])* fn $name() { super::with_version($version, super::$name); })+
    };
}

on_each_version!(
    postgres_14 14, postgres_16 16, postgres_17 17, postgres_18 18;
    (
        simple_and_extended_queries_are_answered,
        a_named_statement_works_on_every_server_connection,
        copy_goes_both_ways,
        a_cancel_reaches_the_query,
        parameters_follow_their_client,
        errors_and_transactions_are_those_of_postgres,
    )
);

#[test]
fn the_libpq_of_postgres_18_connects_and_cancels() {
    with_version(18, libpq_connects_and_cancels);
}

#[test]
fn protocol_3_2_is_spoken_with_long_cancel_keys() {
    with_version(18, |postgres, pooler| {
        run(psql_with_libpq_18(pooler)
            .env("PGMINPROTOCOLVERSION", "3.2")
            .args(["-c", "select 1"]));
        libpq_connects_and_cancels(postgres, pooler);
    });
}

/// SCRAM on both sides; two server connections.
fn with_version(version: u32, test: fn(&Postgres, &Pooler)) {
    let postgres = Postgres::setup()
        .version(version)
        .method(Method::Scram)
        .start();
    assert!(
        postgres
            .value("show server_version")
            .starts_with(&version.to_string())
    );
    postgres.create_role("alice", "wonder land");
    postgres.sql("create database land owner alice");
    let pooler = Pooler::serve_with_users(
        &postgres,
        "[pool]\nsize = 2\n\n[auth]\nmethod = \"scram-sha-256\"\nusers_file = \"{dir}/users.txt\"\n",
        "\"alice\" \"wonder land\"\n",
    );
    test(&postgres, &pooler);
    postgres.await_all_idle();
}

fn alice(pooler: &Pooler) -> Raw {
    Raw::try_login(pooler.port(), "alice", "land", Some("wonder land"))
        .unwrap_or_else(|error| panic!("alice cannot log in: {error}"))
}

fn simple_and_extended_queries_are_answered(_: &Postgres, pooler: &Pooler) {
    let mut client = alice(pooler);
    assert_eq!(client.value("select current_user"), "alice");
    client.send(
        &Batch::new()
            .parse("", "select $1::int + 1")
            .describe_statement("")
            .bind("", "", &["41"])
            .describe_portal("")
            .execute("")
            .sync(),
    );
    assert_eq!(client.tags_until_ready(), "1 t T 2 T D C Z(I)");
}

/// One server connection after the other, by keeping the first in a transaction.
fn a_named_statement_works_on_every_server_connection(_: &Postgres, pooler: &Pooler) {
    let (mut one, mut two, mut other) = (alice(pooler), alice(pooler), alice(pooler));
    for (client, word) in [(&mut one, "one"), (&mut two, "two")] {
        client.send(
            &Batch::new()
                .parse("s", &format!("select '{word}' || $1"))
                .sync(),
        );
        assert_eq!(client.tags_until_ready(), "1 Z(I)");
    }
    let ask = |client: &mut Raw| {
        client.send(&Batch::new().bind("", "s", &["!"]).execute("").sync());
        client.rows().expect("the statement is known")[0][0].clone()
    };
    for held in [false, true, false, true] {
        other
            .query(if held { "begin" } else { "select 1" })
            .expect("it runs");
        assert_eq!(ask(&mut one).as_deref(), Some("one!"));
        assert_eq!(ask(&mut two).as_deref(), Some("two!"));
        one.query("begin").expect("it runs");
        if held {
            other.query("commit").expect("it runs");
        }
        assert_eq!(ask(&mut two).as_deref(), Some("two!"));
        one.query("commit").expect("it runs");
    }
}

fn copy_goes_both_ways(_: &Postgres, pooler: &Pooler) {
    let mut client = alice(pooler);
    client
        .query("create table copied (n int primary key)")
        .expect("it is hers");
    client.send(&Batch::new().query("copy copied from stdin"));
    client.read_until('G');
    client.send(&Batch::new().copy_data(b"1\n2\n").copy_done());
    assert_eq!(client.tags_until_ready(), "C Z(I)");
    client.send(
        &Batch::new()
            .query("copy copied from stdin")
            .copy_data(b"3\n1\n")
            .copy_done(),
    );
    assert_eq!(client.tags_until_ready(), "G E Z(I)");
    client.send(&Batch::new().query("copy copied to stdout"));
    assert_eq!(client.tags_until_ready(), "H d d c C Z(I)");
}

fn a_cancel_reaches_the_query(postgres: &Postgres, pooler: &Pooler) {
    let mut client = alice(pooler);
    client.send(&Batch::new().query("select pg_sleep(60)"));
    eventually("the query runs", || postgres.busy() == 1);
    let (process, secret) = client.key.clone().expect("a key was given at login");
    Raw::connect(pooler.port())
        .write(&cancel_request(process, &secret))
        .expect("it is read");
    assert_eq!(client.rows().expect_err("it was cancelled").code(), "57014");
    assert_eq!(client.value("select 'alive'"), "alive");
}

fn parameters_follow_their_client(_: &Postgres, pooler: &Pooler) {
    let mut berlin = Raw::connect(pooler.port());
    berlin
        .log_in(
            &[
                ("user", "alice"),
                ("database", "land"),
                ("application_name", "berlin"),
                ("TimeZone", "Europe/Berlin"),
                ("search_path", "pg_catalog"),
            ],
            Some("wonder land"),
        )
        .expect("alice may");
    let mut plain = alice(pooler);
    assert_eq!(berlin.parameters["TimeZone"], "Europe/Berlin");
    assert_eq!(plain.parameters["TimeZone"], "UTC");
    for _ in 0..3 {
        assert_eq!(berlin.value("show timezone"), "Europe/Berlin");
        assert_eq!(berlin.value("show application_name"), "berlin");
        assert_eq!(berlin.value("show search_path"), "pg_catalog");
        assert_eq!(plain.value("show timezone"), "UTC");
        assert_eq!(plain.value("show application_name"), "");
        assert_ne!(plain.value("show search_path"), "pg_catalog");
        plain.query("begin").expect("it runs");
        assert_eq!(berlin.value("show timezone"), "Europe/Berlin");
        plain.query("commit").expect("it runs");
    }
    plain.query("set timezone = 'Asia/Tokyo'").expect("it runs");
    assert_eq!(plain.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(berlin.value("show timezone"), "Europe/Berlin");
    assert_eq!(plain.value("show timezone"), "Asia/Tokyo");
}

fn errors_and_transactions_are_those_of_postgres(_: &Postgres, pooler: &Pooler) {
    let mut client = alice(pooler);
    client.query("begin").expect("it runs");
    assert_eq!(client.error("select 1/0").code(), "22012");
    assert_eq!(client.error("select 1").code(), "25P02");
    client.query("rollback").expect("it runs");
    client.send(
        &Batch::new()
            .parse("", "selekt")
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(client.tags_until_ready(), "E Z(I)");
    assert_eq!(client.value("select 'alive'"), "alive");
}

/// Asks for protocol 3.2, and takes what it is offered.
fn libpq_connects_and_cancels(postgres: &Postgres, pooler: &Pooler) {
    let who = run(psql_with_libpq_18(pooler).args(["-c", "select current_user"]));
    assert_eq!(who, "alice\n");
    let sleeping = psql_with_libpq_18(pooler)
        .args(["-c", "select pg_sleep(60)"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql is installed");
    eventually("the query runs", || postgres.busy() == 1);
    // psql sends a cancel request with the key that it was given at login.
    send_signal(sleeping.id(), "INT");
    let output = sleeping.wait_with_output().expect("it is our child");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("57014"), "{errors}");
}

/// Debian's psql with the client library of version 18.
fn psql_with_libpq_18(pooler: &Pooler) -> Command {
    let mut command = pooler.psql("alice", "land");
    command
        .env("LD_LIBRARY_PATH", version_directory(18).join("lib"))
        .env("PGMAXPROTOCOLVERSION", "3.2")
        .env("PGPASSWORD", "wonder land")
        .env("PGSSLMODE", "disable");
    command
}
