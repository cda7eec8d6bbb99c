//! The fixtures themselves: what the other tests rely on.

mod support;

use std::io::Read;
use std::time::Duration;

use support::process::run;
use support::{Batch, Fault, Method, Postgres, Proxy, Raw, Side, Watch, eventually};

#[test]
fn a_postgres_answers_and_is_gone_afterwards() {
    let postgres = Postgres::setup().max_connections(17).start();
    assert_eq!(postgres.value("show max_connections"), "17");
    assert_eq!(run(postgres.psql().args(["-c", "select 1 + 1"])), "2\n");
    let directory = postgres.socket_dir().to_owned();
    let port = postgres.port();
    drop(postgres);
    assert!(!directory.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_postgres_keeps_its_data_over_restarts() {
    let postgres = Postgres::start();
    postgres.sql("create table kept as select 42 as n");
    postgres.restart();
    assert_eq!(postgres.value("select n from kept"), "42");
    postgres.stop_immediate();
    postgres.start_again();
    assert_eq!(postgres.value("select 1"), "1");
}

#[test]
fn a_raw_client_logs_in_by_every_method() {
    for method in [Method::Trust, Method::Password, Method::Md5, Method::Scram] {
        let postgres = Postgres::setup().method(method).start();
        postgres.create_role("alice", "wonder land");
        let mut alice = Raw::try_login(postgres.port(), "alice", "postgres", Some("wonder land"))
            .unwrap_or_else(|error| panic!("{method:?}: {error}"));
        assert_eq!(alice.value("select current_user"), "alice");
        let wrong = Raw::try_login(postgres.port(), "alice", "postgres", Some("wrong"));
        match method {
            Method::Trust => assert!(wrong.is_ok()),
            _ => assert_eq!(wrong.err().expect("a wrong password").code(), "28P01"),
        }
    }
}

#[test]
fn a_watch_sees_the_most_connections() {
    let postgres = Postgres::start();
    let watch = Watch::start(&postgres);
    {
        let _clients: Vec<Raw> = (0..7)
            .map(|_| Raw::login_as(postgres.port(), "postgres", "postgres", "seven"))
            .collect();
        eventually("all are seen", || postgres.connections() == 7);
        // The watch looks on its own clock: give it the chance of a look at all seven.
        for _ in 0..20 {
            postgres.sql("select pg_sleep(0.01)");
        }
    }
    eventually("all are gone", || postgres.connections() == 0);
    let seen = watch.finish();
    assert_eq!(seen.total, 7);
    assert_eq!(seen.by_application["seven"], 7);
    assert_eq!(seen.by_user["postgres"], 7);
}

#[test]
fn a_raw_client_sees_every_message() {
    let postgres = Postgres::start();
    let mut client = Raw::login(postgres.port(), "postgres", "postgres");
    client.send(
        &Batch::new()
            .parse("", "select $1::text")
            .bind("", "", &["x"])
            .describe_portal("")
            .execute("")
            .sync(),
    );
    assert_eq!(client.tags_until_ready(), "1 2 T D C Z(I)");
    assert_eq!(client.error("select 1/0").code(), "22012");
    assert_eq!(client.value("select 1"), "1");
    client.goodbye();
}

#[test]
fn what_a_proxy_has_planned_ends_when_something_is_said_for_all() {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    proxy.each(|| Fault::CloseAfter(Side::Client, 10_000));
    let mut client = Raw::login(proxy.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    proxy.set(Fault::None);
    let long = client.value("select repeat('x', 100000)");
    assert_eq!(long.len(), 100_000);
}

#[test]
fn a_proxy_passes_bytes_until_its_fault() {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let mut client = Raw::login(proxy.port(), "postgres", "postgres");
    assert_eq!(client.value("select length(repeat('x', 100000))"), "100000");

    proxy.set(Fault::Swallow);
    client.send(&Batch::new().query("select 1"));
    assert!(!client.hears_within(Duration::from_millis(200)));
    proxy.set(Fault::None);

    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let start = std::time::Instant::now();
    Raw::login(proxy.port(), "postgres", "postgres").value("select 1");
    assert!(start.elapsed() >= Duration::from_millis(150));

    for fault in [
        Fault::CloseAfter(Side::Client, 1000),
        Fault::ResetAfter(Side::Client, 1000),
        Fault::HalfCloseAfter(Side::Client, 1000),
    ] {
        proxy.set(Fault::None);
        let mut client = Raw::login(proxy.port(), "postgres", "postgres");
        proxy.set(fault);
        client.send(&Batch::new().query("select repeat('x', 100000)"));
        let mut received = Vec::new();
        let end = client.tcp().read_to_end(&mut received);
        let reset = end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert_eq!(reset, matches!(fault, Fault::ResetAfter(..)), "{fault:?}");
        // What has arrived before a reset may be lost with it.
        assert!(
            received.len() <= 1000,
            "{fault:?}: {} bytes",
            received.len()
        );
    }

    proxy.set(Fault::Refuse);
    eventually("nobody listens", || {
        std::net::TcpStream::connect(("127.0.0.1", proxy.port())).is_err()
    });
    proxy.set(Fault::None);
    Raw::login(proxy.port(), "postgres", "postgres");
}
