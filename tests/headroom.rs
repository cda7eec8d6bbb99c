//! What Postgres has free: the budget follows it, and a Postgres that is full is no failure.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::{Pooler, Postgres, Raw, ServerError, eventually};

/// Asks Postgres often, so that no test waits for long.
const AUTO: &str = "[budget]\nmax_servers = \"auto\"\ncheck_every = \"100ms\"\n";

/// pgweir's connections at Postgres, its monitor's with them: nobody else comes as bob.
fn of_pgweir(postgres: &Postgres) -> usize {
    let sql = "select count(*) from pg_stat_activity where usename = 'bob'";
    postgres.value(sql).parse().expect("a number")
}

fn direct(postgres: &Postgres) -> Result<Raw, ServerError> {
    Raw::try_login(postgres.port(), "alice", "postgres", None)
}

fn postgres_with(max_connections: u32) -> Postgres {
    let postgres = Postgres::setup().max_connections(max_connections).start();
    postgres.sql("create role alice login");
    postgres.sql("create role bob login");
    postgres
}

#[test]
fn sixty_connections_around_pgweir_shrink_the_budget_and_nothing_fails() {
    let postgres = postgres_with(100);
    let pooler = Pooler::serve(&postgres, &format!("[pool]\nsize = 90\n\n{AUTO}"));
    let port = pooler.port();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..50 {
            let over = &over;
            clients.push(scope.spawn(move || {
                let mut client = Raw::login(port, "bob", "postgres");
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    client.query("begin").expect("a transaction");
                    assert_eq!(client.value("select 'mine' from pg_sleep(0.02)"), "mine");
                    client.query("commit").expect("its end");
                    count += 1;
                }
                count
            }));
        }
        // Nothing is lost if the test fails before.
        let _end = EndOnDrop(&over);
        eventually("pgweir holds many", || of_pgweir(&postgres) > 40);
        let mut foreign = Vec::new();
        eventually("sixty came in around pgweir", || {
            if let Ok(one) = direct(&postgres) {
                foreign.push(one);
            }
            foreign.len() == 60
        });
        // 100, less 3 reserved, 60 of others and 5 to spare.
        eventually("pgweir has given back", || of_pgweir(&postgres) <= 32);
        pooler.await_log("the budget is told", |line| {
            line.contains("budget follows Postgres") && line.contains("budget=31 ")
        });
        assert!(direct(&postgres).is_ok(), "there is room again");
        drop(foreign);
        eventually("the budget has grown", || of_pgweir(&postgres) > 40);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let count = client.join().expect("no query failed");
            assert!(count > 0);
        }
    });
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn another_max_connections_after_a_restart_is_noticed() {
    let mut postgres = postgres_with(100);
    let pooler = Pooler::serve(&postgres, &format!("[pool]\nsize = 90\n\n{AUTO}"));
    let mut client = Raw::login(pooler.port(), "bob", "postgres");
    assert_eq!(client.value("select 1"), "1");
    let told = |max: &str, budget: &str| {
        let fits = |line: &str| {
            line.contains("budget follows Postgres")
                && line.contains(&format!("max_connections={max} "))
                && line.contains(&format!("budget={budget} "))
        };
        pooler.await_log("the budget follows", fits);
    };
    // Less 3 reserved, 5 to spare, and the monitor's own.
    eventually("it is monitored", || {
        pooler.log().contains("it is monitored again")
    });
    postgres.restart_with(40);
    told("40", "31");
    let mut client = Raw::login(pooler.port(), "bob", "postgres");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn where_monitoring_is_impossible_the_last_budget_stays_and_it_is_said_once() {
    let postgres = postgres_with(50);
    let pooler = Pooler::serve(&postgres, &format!("[pool]\nsize = 90\n\n{AUTO}"));
    let mut client = Raw::login(pooler.port(), "bob", "postgres");
    assert_eq!(client.value("select 1"), "1");
    let _other = direct(&postgres).expect("there is room");
    pooler.await_log("it may not see all, and says so", |line| {
        line.contains("GRANT pg_monitor")
    });
    postgres.stop();
    let impossible =
        |line: &&str| line.contains("cannot be monitored, the last known budget stays");
    pooler.await_log("it says so", |line| impossible(&line));
    postgres.start_again();
    pooler.await_log("it goes on", |line| line.contains("it is monitored again"));
    let log = pooler.log();
    // One for the connection that broke, at most one for each way in which Postgres was not there.
    assert!(log.lines().filter(impossible).count() <= 4, "{log}");
    let mut client = Raw::login(pooler.port(), "bob", "postgres");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn a_full_postgres_is_kept_from_clients_until_they_have_waited_in_vain() {
    let postgres = postgres_with(10);
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 20\n\n[timeouts]\nquery_wait = \"3s\"\nserver_login_retry = \"100ms\"\n",
    );
    let port = pooler.port();
    let mut holder = Raw::login(port, "bob", "postgres");
    holder.query("begin").expect("a transaction");
    // Three of ten are reserved for superusers.
    let mut foreign: Vec<Raw> = (0..6)
        .map(|_| direct(&postgres).expect("there is room"))
        .collect();
    let waits = |sql: &'static str| {
        thread::spawn(move || {
            let mut client = Raw::login(port, "bob", "postgres");
            client.query(sql)
        })
    };
    let served = waits("select 'served'");
    pooler.await_log("Postgres refuses one", |line| line.contains("(53300)"));
    foreign.pop();
    served
        .join()
        .expect("no panic")
        .expect("it waited and was served");

    // What it has now, it needs; nothing more is there.
    let mut second = Raw::login(port, "bob", "postgres");
    second.query("begin").expect("a transaction");
    foreign.extend(direct(&postgres));
    let refused = waits("select 'refused'").join().expect("no panic");
    let refused = refused.expect_err("there is no connection for it");
    assert_eq!(
        (refused.code(), refused.text()),
        ("53300", "query_wait_timeout")
    );
    let detail = refused.fields.get(&'D').cloned().unwrap_or_default();
    assert!(detail.contains("has no connection left"), "{detail}");
    assert!(detail.contains("Most have: bob 2"), "{detail}");
    holder.query("commit").expect("its end");
    assert_eq!(holder.value("select 1"), "1");
}

#[test]
fn idle_connections_of_others_are_given_up_where_postgres_is_full() {
    let postgres = postgres_with(10);
    postgres.create_database("other");
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 20\n\n[timeouts]\nquery_wait = \"20s\"\nserver_login_retry = \"100ms\"\n",
    );
    let port = pooler.port();
    // Four, which lie idle.
    let mut clients: Vec<Raw> = (0..4)
        .map(|_| Raw::login(port, "bob", "postgres"))
        .collect();
    for client in &mut clients {
        client.query("begin").expect("a transaction");
    }
    for client in &mut clients {
        client.query("commit").expect("its end");
    }
    let foreign: Vec<Raw> = (0..3)
        .map(|_| direct(&postgres).expect("there is room"))
        .collect();
    let mut other = Raw::login(port, "bob", "other");
    assert_eq!(other.value("select current_database()"), "other");
    drop(foreign);
    assert_eq!(clients[0].value("select 1"), "1");
}

#[test]
fn a_limit_of_the_role_alone_is_no_full_postgres() {
    let postgres = postgres_with(50);
    postgres.sql("alter role bob connection limit 0");
    let pooler = Pooler::serve(&postgres, "[timeouts]\nquery_wait = \"1s\"\n");
    let refused = Raw::try_login(pooler.port(), "bob", "postgres", None);
    assert!(refused.is_err());
    let mut alice = Raw::login(pooler.port(), "alice", "postgres");
    assert_eq!(alice.value("select 1"), "1");
    assert!(!pooler.log().contains("has no connection left"));
}
