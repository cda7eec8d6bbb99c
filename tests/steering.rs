//! What operators do with a running pgweir: pause, resume, kill, set, end. By signal and on the console.

mod support;

use std::time::Duration;

use support::{Batch, Pooler, Postgres, Raw, eventually};

with_one_and_two_threads!(
    sigusr1_pauses_and_sigusr2_resumes,
    sigquit_ends_at_once_and_tells_clients_why,
    a_database_that_moves_counts_on_its_new_host,
    a_budget_that_becomes_automatic_is_asked_of_postgres,
    caps_on_databases_and_users_change_at_a_reload,
);

fn config(threads: usize, rest: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n{rest}")
}

fn login(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

fn sigusr1_pauses_and_sigusr2_resumes(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let (mut open, mut other) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    assert_eq!(other.value("select 1"), "1");
    pooler.signal("USR1");
    eventually("the idle one is closed", || postgres.connections() == 1);
    other.send(&Batch::new().query("select 2"));
    assert!(!other.hears_within(Duration::from_millis(200)));
    assert_eq!(open.value("select 3"), "3");
    open.query("commit").expect("its end");
    eventually("none is left", || postgres.connections() == 0);
    open.send(&Batch::new().query("select 4"));
    assert!(!open.hears_within(Duration::from_millis(200)));
    pooler.signal("USR2");
    for (client, value) in [(&mut other, "2"), (&mut open, "4")] {
        let rows = client.rows().expect("it goes on");
        assert_eq!(rows, [[Some(value.to_owned())]]);
    }
    postgres.await_all_idle();
}

fn sigquit_ends_at_once_and_tells_clients_why(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let mut open = login(&pooler);
    open.query("begin").expect("a transaction");
    pooler.signal("QUIT");
    let status = pooler.await_end(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0));
    let goodbye = open.read_to_end();
    assert_eq!(goodbye.last().expect("last words").error().code(), "57P01");
    eventually("no server connection is left", || {
        postgres.connections() == 0
    });
}

fn a_database_that_moves_counts_on_its_new_host(threads: usize) {
    let (old, new) = (Postgres::start(), Postgres::start());
    let at = |postgres: &Postgres| {
        let port = postgres.port();
        let url = format!("postgres://127.0.0.1:{port}");
        let budget = "[budget]\nmax_servers = 1\ncheck_every = 0\n";
        config(
            threads,
            &format!("{budget}[databases.\"*\"]\nurl = \"{url}\"\n"),
        )
    };
    let pooler = Pooler::serve(&old, &at(&old));
    let (mut open, mut waiter) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    waiter.send(&Batch::new().query("select inet_server_port()"));
    assert!(!waiter.hears_within(Duration::from_millis(200)));
    pooler.rewrite(&at(&new));
    pooler.reload();
    // It waits no longer for the old one, whose budget is spent.
    let rows = waiter.rows().expect("served by the new host");
    assert_eq!(rows, [[Some(new.port().to_string())]]);
    let port = open.value("select inet_server_port()");
    assert_eq!(port, old.port().to_string());
    open.query("commit").expect("the end on the old host");
    let port = open.value("select inet_server_port()");
    assert_eq!(port, new.port().to_string());
    eventually("none is left on the old one", || old.connections() == 0);
    assert_eq!(new.connections(), 1);
}

fn a_budget_that_becomes_automatic_is_asked_of_postgres(threads: usize) {
    let postgres = Postgres::setup().max_connections(10).start();
    postgres.sql("create role alice login");
    let budget = |most: &str| {
        let budget = format!("[budget]\nmax_servers = {most}\nheadroom = 3\n");
        config(threads, &budget)
    };
    let pooler = Pooler::serve(&postgres, &budget("1"));
    let open = |many: usize| {
        let mut clients: Vec<Raw> = (0..many)
            .map(|_| Raw::login(pooler.port(), "alice", "postgres"))
            .collect();
        for client in &mut clients {
            client.send(&Batch::new().query("begin"));
        }
        clients
    };
    let mut clients = open(6);
    clients[0].read_until('Z');
    assert!(!clients[1].hears_within(Duration::from_millis(200)));
    pooler.rewrite(&budget("\"auto\""));
    pooler.reload();
    pooler.await_log("the reload", |line| line.contains("reloaded"));
    // Its room is dialled anew, and then Postgres is asked.
    clients.remove(0).reset();
    for client in clients.iter_mut().take(3) {
        client.read_until('Z');
    }
    assert_eq!(postgres.connections(), 4);
}

fn caps_on_databases_and_users_change_at_a_reload(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role alice login");
    let capped = |database: u32, user: u32| {
        let url = format!("postgres://127.0.0.1:{}", postgres.port());
        let database = format!("[databases.postgres]\nurl = \"{url}\"\nmax_servers = {database}\n");
        config(
            threads,
            &format!("{database}[users.alice]\nmax_servers = {user}\n"),
        )
    };
    let pooler = Pooler::serve(&postgres, &capped(1, 0));
    let begin = || {
        let mut client = Raw::login(pooler.port(), "alice", "postgres");
        client.send(&Batch::new().query("begin"));
        client
    };
    let mut first = begin();
    first.read_until('Z');
    let (mut served, mut next) = (vec![first], begin());
    for (caps, more) in [((2, 0), true), ((0, 2), false), ((0, 3), true)] {
        assert!(!next.hears_within(Duration::from_millis(200)), "{caps:?}");
        pooler.rewrite(&capped(caps.0, caps.1));
        pooler.reload();
        if more {
            next.read_until('Z');
            served.push(std::mem::replace(&mut next, begin()));
        } else {
            let is_it = |line: &str| line.contains("users.alice.max_servers");
            pooler.await_log("the reload", is_it);
        }
    }
    assert_eq!(served.len(), 3);
}
