//! Timeouts against a real Postgres: who takes too long hears why, and its server connection serves the next.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::{Batch, Pooler, Postgres, Raw, ServerError, eventually};

/// What is said to a client that says nothing.
fn last_words(client: &mut Raw) -> ServerError {
    let messages = client.read_to_end();
    let last = messages.last().expect("it is told why");
    assert_eq!(last.tag, 'E', "{messages:?}");
    last.error()
}

fn one_server(timeouts: &str) -> (Postgres, Pooler) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!("[pool]\nsize = 1\n\n[timeouts]\n{timeouts}\n"),
    );
    (postgres, pooler)
}

fn login(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

#[test]
fn each_timeout_has_its_code_and_keeps_the_server_connection() {
    let (postgres, pooler) = one_server(
        "client_idle = \"2s\"\nidle_transaction = \"500ms\"\ntransaction = \"3s\"\nquery = \"1s\"",
    );
    let mut witness = login(&pooler);
    let backend = witness.backend();
    thread::scope(|scope| {
        let (pooler, postgres, backend) = (&pooler, &postgres, &backend);
        let idle = scope.spawn(move || {
            let mut client = login(pooler);
            let start = Instant::now();
            let words = last_words(&mut client);
            assert!(start.elapsed() >= Duration::from_secs(2), "too early");
            words
        });
        let mut client = login(pooler);
        assert_eq!(client.backend(), *backend);
        client.query("begin").expect("a transaction");
        let words = last_words(&mut client);
        assert_eq!(
            (words.code(), words.text()),
            ("25P03", "idle transaction timeout")
        );
        assert_eq!(words.severity(), "FATAL");

        let mut client = login(pooler);
        let start = Instant::now();
        let words = client.error("select pg_sleep(60)");
        assert_eq!((words.code(), words.text()), ("57014", "query timeout"));
        assert!(start.elapsed() >= Duration::from_secs(1), "too early");

        let mut client = login(pooler);
        client.query("begin").expect("a transaction");
        let words = loop {
            if let Err(words) = client.query("select pg_sleep(0.3)") {
                break words;
            }
        };
        assert_eq!(
            (words.code(), words.text()),
            ("25P04", "transaction timeout")
        );

        let words = idle.join().expect("it does not panic");
        assert_eq!(
            (words.code(), words.text()),
            ("57P05", "client_idle_timeout")
        );
        assert_eq!(
            login(pooler).backend(),
            *backend,
            "the same server connection all along"
        );
        assert_eq!(postgres.connections(), 1);
    });
}

#[test]
fn a_client_at_work_is_not_idle() {
    let (_postgres, pooler) =
        one_server("client_idle = \"1s\"\nquery = \"1s\"\ntransaction = \"1s\"");
    let mut client = login(&pooler);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        client.query("select pg_sleep(0.4)").expect("each is short");
    }
}

#[test]
fn a_waiting_client_gets_a_notice_and_then_its_answer() {
    let (_postgres, pooler) = one_server("query_wait_notify = \"300ms\"");
    let (mut holder, mut waiter) = (login(&pooler), login(&pooler));
    holder.query("begin").expect("a transaction");
    waiter.send(&Batch::new().query("select 'at last'"));
    let notice = waiter.read();
    assert_eq!(notice.tag, 'N');
    assert_eq!(
        notice.error().text(),
        "No server connection available in postgres backend, client being queued"
    );
    holder.query("commit").expect("its end");
    assert_eq!(
        waiter.rows().expect("its turn")[0][0].as_deref(),
        Some("at last")
    );
    assert_eq!(waiter.heard.matches('N').count(), 1);
}

#[test]
fn a_user_a_database_and_a_service_have_timeouts_of_their_own() {
    let postgres = Postgres::start();
    postgres.sql("create role alice login");
    postgres.sql("create role bob login");
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 2\n\n[timeouts]\nidle_transaction = \"300ms\"\n\n\
         [users.alice]\nidle_transaction = 0\n\n\
         [services.batch]\nidle_transaction = \"1s\"\n\n\
         [databases.\"*\"]\nurl = \"postgres://127.0.0.1:{postgres}\"\nquery = \"700ms\"\n",
    );
    let port = pooler.port();
    let mut patient = Raw::login(port, "alice", "postgres");
    patient.query("begin").expect("a transaction");
    let mut usual = Raw::login(port, "bob", "postgres");
    usual.query("begin").expect("a transaction");
    let mut batch = Raw::login_as(port, "bob", "postgres", "batch@v1");
    batch.query("begin").expect("a transaction");
    let start = Instant::now();
    assert_eq!(last_words(&mut usual).code(), "25P03");
    assert_eq!(last_words(&mut batch).code(), "25P03");
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(patient.value("select 1"), "1", "she has no such limit");
    assert_eq!(patient.error("select pg_sleep(60)").text(), "query timeout");
}

#[test]
fn a_reload_reaches_clients_that_are_there_already() {
    let (_postgres, pooler) = one_server("");
    let mut client = login(&pooler);
    assert_eq!(client.value("select 1"), "1");
    pooler.rewrite("[timeouts]\nclient_idle = \"200ms\"\n");
    pooler.reload();
    assert_eq!(last_words(&mut client).text(), "client_idle_timeout");
    eventually("it is in the log", || {
        pooler.log().contains("client_idle_timeout")
    });
}
