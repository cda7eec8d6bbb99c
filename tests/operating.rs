//! What operators rely on: limits, timeouts, shares of services, reload, draining, health.

mod support;

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::pooler::{pgweir, program};
use support::process::{Guarded, free_port, scratch};
use support::raw::tags;
use support::{Batch, Pooler, Postgres, Raw, Watch, eventually, until};

with_one_and_two_threads!(
    who_waits_too_long_is_told_so,
    the_budget_holds_over_all_pools,
    a_flooding_service_blocks_no_other,
    nobody_overtakes_in_the_queue,
    sigterm_lets_running_transactions_finish,
    a_second_sigterm_does_not_wait,
    a_broken_file_changes_nothing_at_reload,
    a_reload_applies_without_dropping_anyone,
    servers_that_postgres_has_closed_are_never_lent,
    a_restart_of_postgres_is_survived,
    a_full_postgres_is_no_failure,
);

fn config(threads: usize, rest: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n{rest}")
}

fn who_waits_too_long_is_told_so(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &config(
            threads,
            "[pool]\nsize = 1\n\n[timeouts]\nquery_wait = \"500ms\"\n",
        ),
    );
    let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
    let mut waiter = Raw::login(pooler.port(), "postgres", "postgres");
    holder.query("begin").expect("a transaction");
    let start = Instant::now();
    let refusal = waiter.error("select 1");
    let took = start.elapsed();
    assert!(refusal.text().contains("query_wait_timeout"), "{refusal}");
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    holder.query("commit").expect("its end");
    assert_eq!(
        Raw::login(pooler.port(), "postgres", "postgres").value("select 1"),
        "1"
    );
    postgres.await_all_idle();
}

fn the_budget_holds_over_all_pools(threads: usize) {
    let postgres = Postgres::start();
    let users = ["alice", "bob", "postgres"];
    postgres.sql("create role alice login");
    postgres.sql("create role bob login");
    for database in ["one", "two"] {
        postgres.create_database(database);
    }
    let pooler = Pooler::serve(
        &postgres,
        &config(
            threads,
            "[pool]\nsize = 20\n\n[budget]\nmax_servers = 5\ncheck_every = 0\n",
        ),
    );
    let watch = Watch::start(&postgres);
    let port = pooler.port();
    thread::scope(|scope| {
        for n in 0..36 {
            scope.spawn(move || {
                let database = ["one", "two"][n % 2];
                for _ in 0..10 {
                    let mut client = Raw::login(port, users[n % 3], database);
                    for _ in 0..5 {
                        assert_eq!(client.value("select current_database()"), database);
                    }
                    client.goodbye();
                }
            });
        }
    });
    let seen = watch.finish();
    assert!(seen.total <= 5, "{seen:?}");
    postgres.await_all_idle();
}

fn a_flooding_service_blocks_no_other(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role alice login");
    postgres.sql("create role bob login");
    let pooler = Pooler::serve(
        &postgres,
        &config(
            threads,
            "[pool]\nsize = 20\n\n[budget]\nmax_servers = 4\ncheck_every = 0\n\n\
             [services.site]\nmatch = { user = \"alice\" }\nmax_servers = 2\n\n\
             [services.bot]\nmatch = { user = \"bob\" }\nmax_servers = 2\n",
        ),
    );
    let watch = Watch::start(&postgres);
    let over = AtomicBool::new(false);
    let port = pooler.port();
    let slowest = thread::scope(|scope| {
        // The scope waits for the flood, also when something in it panics.
        let _end = EndOnDrop(&over);
        for _ in 0..60 {
            let over = &over;
            scope.spawn(move || {
                let mut site = Raw::login(port, "alice", "postgres");
                while !over.load(Ordering::Relaxed) {
                    site.value("select 'busy' from pg_sleep(0.05)");
                }
            });
        }
        eventually("the flood has all it may have", || {
            postgres.value("select count(*) from pg_stat_activity where usename = 'alice' and state = 'active'") == "2"
        });
        let mut bot = Raw::login(port, "bob", "postgres");
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let start = Instant::now();
            bot.value("select 1");
            slowest = slowest.max(start.elapsed());
        }
        slowest
    });
    // A place in the flood's queue would have cost 60 * 50 / 2 = 1500 milliseconds.
    assert!(
        slowest < Duration::from_millis(750),
        "the bot waited {slowest:?}"
    );
    let seen = watch.finish();
    assert!(seen.by_user["alice"] <= 2 && seen.total <= 4, "{seen:?}");
    postgres.await_all_idle();
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn nobody_overtakes_in_the_queue(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table arrivals (place serial, who int)");
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 1\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    let mut holder = login();
    holder.query("begin").expect("a transaction");
    let mut waiters = Vec::new();
    for n in 0..20 {
        let mut waiter = login();
        waiter.send(&Batch::new().query(&format!("insert into arrivals (who) values ({n})")));
        // Long enough for pgweir to have read it: the order of arrival is the order of sending. Between threads, only ages
        // that differ by more than a bound count.
        assert!(!waiter.hears_within(Duration::from_millis(if threads == 1 { 20 } else { 60 })));
        waiters.push(waiter);
    }
    holder.query("commit").expect("its end");
    for waiter in &mut waiters {
        waiter.read_until('Z');
    }
    let order = postgres.sql("select who from arrivals order by place");
    let order: Vec<usize> = order
        .iter()
        .map(|row| {
            row[0]
                .as_deref()
                .expect("not null")
                .parse()
                .expect("a number")
        })
        .collect();
    if threads == 1 {
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    } else {
        // Nobody is far from where he belongs.
        for (place, who) in order.iter().enumerate() {
            assert!(place.abs_diff(*who) <= 10, "{order:?}");
        }
    }
}

fn sigterm_lets_running_transactions_finish(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table kept (n int)");
    let mut pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    let mut idle = login();
    assert_eq!(idle.value("select 1"), "1");
    let mut open = login();
    open.query("begin; insert into kept values (1)")
        .expect("a transaction");
    let mut running = login();
    running.send(
        &Batch::new().query("begin; insert into kept values (2); select pg_sleep(1); commit"),
    );
    eventually("it runs", || {
        postgres.value("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "1"
    });

    pooler.signal("TERM");
    eventually("nobody new is accepted", || !pooler.listens());
    let goodbye = idle.read_to_end();
    assert!(
        matches!(tags(&goodbye).as_str(), "" | "E"),
        "{}",
        tags(&goodbye)
    );
    if let [error] = goodbye.as_slice() {
        assert_eq!(error.error().code(), "57P01");
    }
    assert_eq!(running.tags_until_ready(), "C C T D C C Z(I)");
    assert!(pooler.ended().is_none(), "a transaction is open");
    open.query("insert into kept values (3)")
        .expect("it may go on");
    open.query("commit").expect("and end");
    let status = pooler.await_end(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
    assert_eq!(postgres.value("select sum(n) from kept"), "6");
    eventually("no server connection is left", || {
        postgres.connections() == 0
    });
}

fn a_second_sigterm_does_not_wait(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let mut open = Raw::login(pooler.port(), "postgres", "postgres");
    open.query("begin").expect("a transaction");
    pooler.signal("TERM");
    eventually("nobody new is accepted", || !pooler.listens());
    assert!(pooler.ended().is_none());
    pooler.terminate(Duration::from_secs(5));
    eventually("no server connection is left", || {
        postgres.connections() == 0
    });
}

fn a_broken_file_changes_nothing_at_reload(threads: usize) {
    let postgres = Postgres::start();
    let good = config(threads, "[pool]\nsize = 1\n");
    let pooler = Pooler::serve(&postgres, &good);
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    for (broken, told) in [
        ("this is not TOML", "pooler.toml:4:"),
        ("[pool]\nsize = \"many\"\n", "size"),
        ("[pool]\nsizes = 3\n", "sizes"),
    ] {
        let before = pooler.log().len();
        pooler.rewrite(&config(threads, broken));
        pooler.reload();
        until(
            "the log tells of the mistake",
            Duration::from_secs(10),
            || {
                let log = pooler.log();
                let new = &log[before..];
                (new.contains(told) && (new.contains("ERROR") || new.contains("WARN")))
                    .then_some(())
            },
        );
        assert_eq!(client.value("select 1"), "1");
        assert_eq!(
            Raw::login(pooler.port(), "postgres", "postgres").value("select 1"),
            "1"
        );
    }
    // And a good one counts again.
    pooler.rewrite(&config(threads, "[pool]\nsize = 2\n"));
    pooler.reload();
    eventually("two clients have servers at once", || two_at_once(&pooler));
}

/// Do two clients get servers at the same time?
fn two_at_once(pooler: &Pooler) -> bool {
    let mut first = Raw::login(pooler.port(), "postgres", "postgres");
    let mut second = Raw::login(pooler.port(), "postgres", "postgres");
    first.query("begin").expect("a transaction");
    second.send(&Batch::new().query("select 1"));
    let both = second.hears_within(Duration::from_millis(300));
    first.query("commit").expect("its end");
    second.read_until('Z');
    both
}

fn a_reload_applies_without_dropping_anyone(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role newcomer login");
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 1\n"));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert!(Raw::try_login(pooler.port(), "newcomer", "postgres", None).is_err());
    let server = client.backend();
    client.query("begin").expect("a transaction");
    assert!(!{
        let mut other = Raw::login(pooler.port(), "postgres", "postgres");
        other.send(&Batch::new().query("select 1"));
        other.hears_within(Duration::from_millis(200))
    });

    pooler.write_users("\"postgres\" \"\"\n\"newcomer\" \"\"\n");
    pooler.rewrite(&config(threads, "[pool]\nsize = 2\n"));
    pooler.reload();
    eventually("the new user is known", || {
        Raw::try_login(pooler.port(), "newcomer", "postgres", None).is_ok()
    });
    eventually("the pool has grown", || {
        let mut other = Raw::login(pooler.port(), "postgres", "postgres");
        other.send(&Batch::new().query("select 1"));
        other.hears_within(Duration::from_millis(200))
    });
    assert_eq!(client.backend(), server);
    client.query("commit").expect("the same transaction");
    postgres.await_all_idle();
}

fn servers_that_postgres_has_closed_are_never_lent(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let mut clients: Vec<Raw> = (0..5)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    for _ in 0..5 {
        for client in &mut clients {
            client.query("begin").expect("a transaction");
        }
        for client in &mut clients {
            client.query("commit").expect("its end");
        }
        postgres.terminate_connections();
        eventually("they are gone", || postgres.connections() == 0);
        for client in &mut clients {
            assert_eq!(client.value("select 1"), "1");
        }
    }
    // In the middle of a transaction its client hears what Postgres says.
    let mut unlucky = clients.pop().expect("five");
    unlucky.query("begin").expect("a transaction");
    postgres.terminate_connections();
    let lost = unlucky.error("select 1");
    assert!(matches!(lost.code(), "57P01" | "08006" | "08P01"), "{lost}");
    eventually("all are gone", || postgres.connections() == 0);
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    postgres.await_all_idle();
}

/// Not even the first moment is one in which it ends the process.
#[test]
fn a_reload_is_heeded_as_soon_as_the_socket_is_open() {
    let place = scratch();
    for _ in 0..10 {
        let port = free_port();
        let (file, log) = (place.path().join("pooler.toml"), place.path().join("log"));
        let text = format!(
            "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nunix_socket_dir = \"\"\n\n[databases.shop]\nhost = \"127.0.0.1\"\n"
        );
        fs::write(&file, text).expect("the directory is ours");
        let stderr = fs::File::create(&log).expect("the directory is ours");
        let mut command = Command::new(program());
        command.arg("serve").arg(&file).stderr(stderr);
        let mut process = Guarded::spawn(&mut command, "KILL", place.path());
        // No pause in between: the moment is what it is about.
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(process.ended().is_none(), "{:?}", fs::read_to_string(&log));
        }
        process.signal("HUP");
        eventually("it has reloaded", || {
            assert_eq!(process.ended(), None);
            fs::read_to_string(&log).is_ok_and(|log| log.contains("reloaded"))
        });
    }
}

fn a_restart_of_postgres_is_survived(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &config(
            threads,
            "[pool]\nsize = 5\n\n[timeouts]\nserver_login_retry = \"100ms\"\n",
        ),
    );
    let mut clients: Vec<Raw> = (0..20)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    postgres.restart();
    for client in &mut clients {
        assert_eq!(client.value("select 2"), "2");
    }
    postgres.stop_immediate();
    // They wait in the queue while nothing answers.
    for client in &mut clients {
        client.send(&Batch::new().query("select 3"));
    }
    for client in &mut clients {
        assert!(!client.hears_within(Duration::from_millis(20)));
    }
    postgres.start_again();
    for client in &mut clients {
        let rows = client.rows().expect("Postgres is back");
        assert_eq!(rows, [[Some("3".to_owned())]]);
    }
    postgres.await_all_idle();
}

fn a_full_postgres_is_no_failure(threads: usize) {
    let postgres = Postgres::setup().max_connections(10).start();
    postgres.sql("create role alice login");
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 20\n"));
    // Three of ten are reserved for superusers, and others hold four.
    let foreign: Vec<Raw> = (0..4)
        .map(|_| Raw::login(postgres.port(), "alice", "postgres"))
        .collect();
    let port = pooler.port();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(move || {
                let mut client = Raw::login(port, "alice", "postgres");
                for _ in 0..5 {
                    assert_eq!(client.value("select 'mine' from pg_sleep(0.01)"), "mine");
                }
            });
        }
    });
    drop(foreign);
    postgres.await_all_idle();
}

#[test]
fn health_is_told_over_http() {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, "");
    let (status, _) = pooler.http("/healthz");
    assert_eq!(status, 200);
    eventually("it is ready", || pooler.http("/readyz").0 == 200);
    let address = format!("127.0.0.1:{}", pooler.http_port());
    let (status, said) = pgweir(&["healthcheck", &address]);
    assert_eq!(status.code(), Some(0), "{said}");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    drop(client);
    pooler.terminate(Duration::from_secs(10));
    let (status, said) = pgweir(&["healthcheck", &address]);
    assert_eq!(status.code(), Some(1), "{said}");
}

#[test]
fn metrics_are_told_over_http() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    // Before the first client, between clients, and with one.
    let (status, _) = pooler.http("/metrics");
    assert_eq!(status, 200, "{}", pooler.log());
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    let (status, body) = pooler.http("/metrics");
    assert_eq!(status, 200);
    assert!(
        body.lines()
            .any(|line| line.starts_with("pgweir_clients{") && line.ends_with(" 1")),
        "{body}"
    );
    client.goodbye();
    let (status, _) = pooler.http("/metrics");
    assert_eq!(status, 200, "{}", pooler.log());
}

#[test]
fn a_file_with_mistakes_is_refused_with_all_of_them() {
    let text =
        "[pool]\nsize = \"many\"\nmode = \"sometimes\"\n\n[timeouts]\nquery_wait = \"5 parsecs\"\n";
    let Err(refused) = Pooler::try_serve(1, text, "") else {
        panic!("it serves");
    };
    assert_eq!(refused.status.code(), Some(1));
    for told in ["size", "mode", "query_wait"] {
        assert!(
            refused.log.contains(told),
            "{told} is missing in\n{}",
            refused.log
        );
    }
}

#[test]
fn an_occupied_port_is_refused() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let taken = format!(
        "[listen]\naddresses = [\"127.0.0.1:{}\"]\nhttp = \"\"\n",
        pooler.port()
    );
    let Err(refused) = Pooler::try_serve(postgres.port(), &taken, "") else {
        panic!("it serves");
    };
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.contains("in use"), "{}", refused.log);
}
