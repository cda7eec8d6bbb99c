//! Alerts and incidents: told before it is too late, and written down for afterwards.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use support::pooler::pgweir;
use support::process::scratch;
use support::{Pooler, Postgres, Raw, eventually};

/// What a webhook is told, as JSON.
fn webhook() -> (String, Receiver<serde_json::Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!(
        "http://{}/hook?token=hunter2",
        listener.local_addr().expect("bound")
    );
    let (seen, messages) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).expect("a head");
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("a body");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream
                .get_mut()
                .write_all(answer.as_bytes())
                .expect("it reads");
            if seen
                .send(serde_json::from_slice(&body).expect("JSON"))
                .is_err()
            {
                return;
            }
        }
    });
    (url, messages)
}

fn await_event(messages: &Receiver<serde_json::Value>, event: &str) -> serde_json::Value {
    loop {
        let message = messages.recv_timeout(Duration::from_secs(30));
        let message = message.unwrap_or_else(|_| panic!("no {event}"));
        if message["event"] == event {
            return message;
        }
    }
}

#[test]
fn a_service_above_its_alert_is_told_recorded_and_readable_after_a_crash() {
    let postgres = Postgres::start();
    postgres.sql("create role alice login");
    let (url, messages) = webhook();
    let place = scratch();
    let directory = place.path().join("incidents");
    let file = directory.join("incident-000001.jsonl");
    let config = format!(
        "[services.site]\nmatch = {{ user = \"alice\" }}\nmax_servers = 5\nalert_servers = 2\n\n\
         [alerts]\nwebhook = \"{url}\"\n\n\
         [incidents]\ndirectory = \"{}\"\nsnapshot_every = \"1s\"\n\n\
         [budget]\nmax_servers = 50\ncheck_every = \"100ms\"\n",
        directory.display()
    );
    let mut pooler = Pooler::serve(&postgres, &config);
    let mut holders: Vec<Raw> = (0..3)
        .map(|_| Raw::login_as(pooler.port(), "alice", "postgres", "site@v41"))
        .collect();
    for holder in &mut holders {
        holder.query("begin").expect("a transaction");
        holder.query("select 'secret' as hunter3").expect("a row");
    }

    let raised = await_event(&messages, "raised");
    assert_eq!(raised["alert"], "service_servers");
    assert_eq!(
        (&raised["subject"], &raised["service"]),
        (&"site".into(), &"site".into())
    );
    assert_eq!(
        (&raised["value"], &raised["threshold"]),
        (&3.into(), &2.into())
    );
    let text = raised["text"].as_str().expect("a text");
    assert!(
        text.contains("service site has 3 server connections"),
        "{text}"
    );
    let command = raised["command"].as_str().expect("a command");
    assert!(command.contains("KILL STALE site"), "{command}");
    assert_eq!(await_event(&messages, "incident_opened")["incident"], 1);
    pooler.await_log("the log has it", |line| {
        line.contains("alert: service site has 3")
    });
    let log = pooler.log();
    assert!(!log.contains("hunter2"), "the webhook's token: {log}");

    eventually("it is written down who holds what", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.contains("\"idle in transaction\"") && text.lines().count() >= 4
    });
    pooler.signal("KILL");
    pooler.await_end(Duration::from_secs(10));
    // As if it had been in the middle of a line.
    let mut torn = fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .expect("the file is there");
    torn.write_all(b"{\"at\":17,\"note\":\"sto")
        .expect("it can be written");

    let told = |arguments: &[&str]| {
        let place = directory.display().to_string();
        let all = [&["incident", "--directory", &place], arguments].concat();
        let (status, text) = pgweir(&all);
        assert!(status.success(), "{text}");
        text
    };
    let export = told(&["export", "1"]);
    for part in [
        "# Incident 1: service site has 3 server connections",
        "* Ended: not yet",
        "## Timeline",
        "## Impact",
        "`service_servers`",
        "idle in transaction",
        "select ? as hunter",
    ] {
        assert!(export.contains(part), "{part:?} is missing in\n{export}");
    }
    let text = fs::read_to_string(&file).expect("it is there");
    assert!(
        !text.contains("secret") && !export.contains("secret"),
        "{text}"
    );

    let again = Pooler::serve(&postgres, &config);
    eventually("what the crash left open is closed", || {
        told(&["show", "1"]).contains("pgweir ended while it was going on")
    });
    let list = told(&["list"]);
    assert!(
        list.contains("service_servers") && !list.contains("goes on"),
        "{list}"
    );
    drop(again);
}

#[test]
fn an_alert_is_resolved_and_its_incident_ends() {
    let postgres = Postgres::start();
    let (url, messages) = webhook();
    let place = scratch();
    let config = format!(
        "[alerts]\ntotal_servers = 1\nwebhook = \"{url}\"\n\n[incidents]\ndirectory = \"{}\"\n",
        place.path().display()
    );
    let pooler = Pooler::serve(&postgres, &config);
    let mut holders: Vec<Raw> = (0..2)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    for holder in &mut holders {
        holder.query("begin").expect("a transaction");
    }
    assert_eq!(await_event(&messages, "raised")["alert"], "total_servers");
    drop(holders);
    postgres.await_all_idle();
    postgres.terminate_connections();
    assert_eq!(await_event(&messages, "resolved")["alert"], "total_servers");
    assert_eq!(await_event(&messages, "incident_closed")["incident"], 1);
    let path = place.path().display().to_string();
    let (_, text) = pgweir(&["incident", "--directory", &path, "show", "1"]);
    assert!(text.contains("It ended: all alerts are resolved"), "{text}");
}

#[test]
fn waiting_with_the_budget_spent_is_an_incident_with_its_queue() {
    let postgres = Postgres::start();
    let place = scratch();
    let config = format!(
        "[budget]\nmax_servers = 1\ncheck_every = 0\n\n[pressure]\nwaiters_for = \"300ms\"\n\n\
         [timeouts]\nquery_wait = \"4s\"\n\n[incidents]\ndirectory = \"{}\"\nsnapshot_every = \"1s\"\n",
        place.path().display()
    );
    let pooler = Pooler::serve(&postgres, &config);
    let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
    let mut waiter = Raw::login(pooler.port(), "postgres", "postgres");
    holder.query("begin").expect("a transaction");
    let refused = waiter.error("select 1");
    assert_eq!(refused.code(), "53300");
    let path = place.path().display().to_string();
    eventually("it is told who waited and who was refused", || {
        let (_, text) = pgweir(&["incident", "--directory", &path, "export", "1"]);
        text.contains("`waiters`: the budget of 1 at") && text.contains("| postgres | 1 |")
    });
}

#[test]
fn a_postgres_that_is_gone_is_an_incident() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[budget]\nmax_servers = 5\ncheck_every = \"200ms\"\n",
    );
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    eventually("it is monitored", || {
        postgres.value(
            "select count(*) from pg_stat_activity where application_name = 'pgweir monitor'",
        ) == "1"
    });
    postgres.stop_immediate();
    pooler.await_log("it is told", |line| {
        line.contains("alert: Postgres at") && line.contains("cannot be reached")
    });
    postgres.start_again();
    pooler.await_log("it is over", |line| {
        line.contains("alert resolved: Postgres at")
    });
}
