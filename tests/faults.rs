//! A bad network between pgweir and its peers: whatever happens, no reply ever reaches another client, and pgweir goes on.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::raw::{cancel_request, startup_packet};
use support::{
    Batch, Fault, Pooler, Postgres, Proxy, Raw, ServerError, Side, Watch, eventually, until,
};

with_one_and_two_threads!(
    a_cut_reply_reaches_nobody_else,
    a_lost_server_is_told_to_its_client_alone,
    clients_cut_at_any_byte_leave_clean_servers,
    what_a_lost_client_did_not_read_is_for_nobody_else,
    a_copy_that_begins_after_its_client_went_away_is_ended_at_once,
    a_postgres_that_refuses_is_waited_for,
    a_postgres_that_says_nothing_is_given_up,
    a_thousand_abrupt_disconnects_stay_within_the_budget,
    a_slow_network_changes_no_answer,
    a_restart_fails_no_waiter_and_is_no_rush,
    a_first_client_waits_for_a_postgres_that_is_down,
    a_full_postgres_is_waited_for,
    the_next_host_is_taken_when_one_is_down_and_a_cancel_goes_there,
    a_storm_of_cancels_hits_only_what_it_is_meant_for,
    a_cancel_of_nobodys_query_is_answered_by_silence,
    after_a_failover_clients_are_told_the_parameters_of_the_new_server,
    a_server_that_ends_while_idle_is_seen_by_nobody,
    a_server_that_ends_in_use_fails_its_request_and_no_more,
);

fn config(threads: usize, rest: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n{rest}")
}

/// Asks for a word of one's own in some form; whoever gets an answer must get that word.
fn ask(client: &mut Raw, word: &str, form: usize) -> Result<(), ServerError> {
    let rows = match form % 3 {
        0 => client.query(&format!("select '{word}', repeat('x', 3000)"))?,
        1 => {
            let batch = Batch::new()
                .parse("", "select $1::text, repeat('x', 3000)")
                .bind("", "", &[word])
                .execute("")
                .sync();
            client.write(batch.bytes())?;
            client.rows()?
        }
        _ => {
            client.query("begin")?;
            let rows = client.query(&format!("select '{word}', pg_sleep(0.001)"))?;
            client.query("commit")?;
            rows
        }
    };
    assert_eq!(rows[0][0].as_deref(), Some(word), "somebody else's answer");
    Ok(())
}

/// Many clients that log in again when they are thrown out, while `disturb` does its worst.
fn clients_amid(port: u16, disturb: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let answers = AtomicUsize::new(0);
    thread::scope(|scope| {
        for name in 0..12 {
            let (over, answers) = (&over, &answers);
            scope.spawn(move || {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    let Ok(mut client) = Raw::try_login(port, "postgres", "postgres", None) else {
                        continue;
                    };
                    while !over.load(Ordering::Relaxed) {
                        n += 1;
                        if ask(&mut client, &format!("{name}/{n}"), n).is_err() {
                            break;
                        }
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let end = EndOnDrop(&over);
        eventually("they are served", || answers.load(Ordering::Relaxed) > 100);
        disturb();
        let before = answers.load(Ordering::Relaxed);
        eventually("they are served again", || {
            answers.load(Ordering::Relaxed) > before + 200
        });
        drop(end);
    });
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_cut_reply_reaches_nobody_else(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(
        proxy.port(),
        &config(
            threads,
            "[pool]\nsize = 3\n\n[timeouts]\nserver_login_retry = \"50ms\"\n",
        ),
    );
    clients_amid(pooler.port(), || {
        // Bytes count from the start of each connection, so these hit logins, headers and the middle of rows.
        for limit in [1, 13, 300, 420, 500, 1000, 3700, 5000, 10_007, 100_003] {
            for fault in [
                Fault::CloseAfter(Side::Client, limit),
                Fault::ResetAfter(Side::Client, limit),
                Fault::HalfCloseAfter(Side::Client, limit),
                Fault::ResetAfter(Side::Server, limit),
            ] {
                let before = proxy.accepted();
                proxy.set(fault);
                eventually("the fault was met", || proxy.accepted() > before);
                proxy.set(Fault::None);
            }
        }
        proxy.reset_all();
    });
    postgres.await_all_idle();
}

fn a_lost_server_is_told_to_its_client_alone(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(proxy.port(), &config(threads, "[pool]\nsize = 2\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    for round in 0..10 {
        let (mut unlucky, mut idle) = (login(), login());
        assert_eq!(idle.value("select 1"), "1");
        unlucky.query("begin").expect("a transaction");
        if round % 2 == 0 {
            proxy.reset_all();
        } else {
            proxy.close_all();
        }
        let lost = unlucky.error("select 1");
        assert_eq!(lost.severity(), "FATAL", "{lost}");
        assert!(matches!(lost.code(), "08006" | "08P01" | "57P01"), "{lost}");
        assert_eq!(idle.value("select 2"), "2");
    }
}

fn clients_cut_at_any_byte_leave_clean_servers(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 1\n"));
    let all = Batch::new()
        .query("begin; insert into numbers values (1)")
        .parse("", "insert into numbers values (2)")
        .bind("", "", &[])
        .execute("")
        .sync()
        .query("copy numbers from stdin")
        .copy_data(b"3\n");
    let bytes = all.bytes();
    for cut in (0..=bytes.len()).step_by(3) {
        let mut client = Raw::login(pooler.port(), "postgres", "postgres");
        client.write(&bytes[..cut]).expect("it is open");
        match cut % 2 {
            0 => client.reset(),
            _ => drop(client),
        }
        let mut next = Raw::login(pooler.port(), "postgres", "postgres");
        assert_eq!(next.value("select 'clean'"), "clean", "cut at {cut}");
    }
    postgres.await_all_idle();
    assert_eq!(postgres.value("select count(*) from numbers"), "0");
}

fn what_a_lost_client_did_not_read_is_for_nobody_else(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create text search configuration fleeting (copy = simple)");
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(proxy.port(), &config(threads, "[pool]\nsize = 1\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    let run = |client: &mut Raw| {
        client.send(&Batch::new().bind("", "s", &[]).execute("").sync());
        client.rows()
    };
    let (mut lost, mut other) = (login(), login());
    lost.query("set default_text_search_config = fleeting")
        .expect("it is there");
    other.send(&Batch::new().parse("s", "select 'other'").sync());
    other.rows().expect("it is prepared");
    postgres.sql("drop text search configuration fleeting");

    // Its parameters are refused, and it is not there to hear so.
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    lost.send(&Batch::new().query("select 1"));
    lost.reset();
    let expected = [[Some("other".to_owned())]];
    assert_eq!(run(&mut other).expect("the other goes on"), expected);

    // It closes its own statement of the same name, but in a batch that fails: it would have it back.
    let mut lost = login();
    lost.send(&Batch::new().parse("s", "select 'lost'").sync());
    lost.rows().expect("it is prepared");
    let failing = Batch::new().parse("", "select 1/0").bind("", "", &[]);
    lost.send(&failing.execute("").message(b'C', b"Ss\0").sync());
    lost.reset();
    for _ in 0..2 {
        assert_eq!(run(&mut other).expect("the other goes on"), expected);
    }
}

fn a_copy_that_begins_after_its_client_went_away_is_ended_at_once(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(proxy.port(), &config(threads, "[pool]\nsize = 1\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    let before = login().backend();
    // The client is gone before Postgres can say that it waits for data.
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let copy = "copy numbers from stdin";
    let part = Batch::new().parse("", copy).bind("", "", &[]).execute("");
    for batch in [
        Batch::new().query(copy),
        Batch::new().query(copy).copy_data(b"1\n"),
        part.clone().flush(),
        part.copy_data(b"1\n").sync(),
    ] {
        let start = Instant::now();
        let mut client = login();
        client.send(&batch);
        client.reset();
        assert_eq!(login().value("select 'clean'"), "clean");
        assert!(start.elapsed() < Duration::from_secs(5), "{batch:?}");
    }
    assert_eq!(login().backend(), before, "the connection is kept");
    postgres.await_all_idle();
}

fn a_postgres_that_refuses_is_waited_for(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(
        proxy.port(),
        &config(
            threads,
            "[pool]\nsize = 2\n\n[timeouts]\nserver_login_retry = \"50ms\"\n",
        ),
    );
    let mut clients: Vec<Raw> = (0..5)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    proxy.set(Fault::Refuse);
    proxy.close_all();
    for client in &mut clients {
        client.send(&Batch::new().query("select 'late'"));
        assert!(!client.hears_within(Duration::from_millis(50)));
    }
    proxy.set(Fault::None);
    for client in &mut clients {
        assert_eq!(
            client.rows().expect("it is back"),
            [[Some("late".to_owned())]]
        );
    }
    postgres.await_all_idle();
}

fn a_postgres_that_says_nothing_is_given_up(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(
        proxy.port(),
        &config(
            threads,
            "[pool]\nsize = 2\n\n[timeouts]\nserver_connect = \"300ms\"\nserver_login_retry = \"50ms\"\nquery_wait = \"2s\"\n",
        ),
    );
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    proxy.close_all();
    proxy.set(Fault::Swallow);
    client.send(&Batch::new().query("select 'late'"));
    let before = proxy.accepted();
    eventually("it dials more than once", || proxy.accepted() > before + 1);
    proxy.set(Fault::None);
    assert_eq!(
        client.rows().expect("it speaks again"),
        [[Some("late".to_owned())]]
    );

    proxy.close_all();
    proxy.set(Fault::Swallow);
    let refusal = client.error("select 'never'");
    assert_eq!(refusal.severity(), "FATAL", "{refusal}");
}

fn a_thousand_abrupt_disconnects_stay_within_the_budget(threads: usize) {
    let postgres = Postgres::start();
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
        for name in 0..10 {
            scope.spawn(move || {
                for n in 0..100 {
                    let mut client = Raw::login(port, "postgres", "postgres");
                    match n % 5 {
                        0 => client.send(&Batch::new().query("select pg_sleep(30)")),
                        1 => client.send(
                            &Batch::new()
                                .query("select repeat('x', 1000) from generate_series(1, 20000)"),
                        ),
                        2 => {
                            let _ = client.query("begin");
                        }
                        3 => {
                            assert_eq!(
                                client.value(&format!("select '{name}/{n}'")),
                                format!("{name}/{n}")
                            );
                            client.send(
                                &Batch::new()
                                    .parse("", "select 1")
                                    .bind("", "", &[])
                                    .execute("")
                                    .flush(),
                            );
                        }
                        _ => client.send(
                            &Batch::new()
                                .query("copy (select generate_series(1, 100000)) to stdout"),
                        ),
                    }
                    if n % 2 == 0 {
                        client.reset();
                    }
                }
            });
        }
    });
    eventually("everything is free again", || postgres.busy() == 0);
    let seen = watch.finish();
    assert!(seen.total <= 5, "{seen:?}");
    assert_eq!(
        Raw::login(port, "postgres", "postgres").value("select 1"),
        "1"
    );
}

fn a_slow_network_changes_no_answer(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let pooler = Pooler::serve_port(proxy.port(), &config(threads, "[pool]\nsize = 3\n"));
    let slow_clients = Proxy::to(pooler.port());
    clients_amid(slow_clients.port(), || {
        proxy.set(Fault::Delay(Duration::from_millis(5)));
        slow_clients.set(Fault::Delay(Duration::from_millis(3)));
    });
    postgres.await_all_idle();
}

/// Clients in the queue, as the metrics tell.
fn waiting(pooler: &Pooler) -> usize {
    let (_, metrics) = pooler.http("/metrics");
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("pgweir_clients_waiting{"));
    let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
    values.sum()
}

fn a_restart_fails_no_waiter_and_is_no_rush(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create sequence turns");
    // It is told to forget what it has not written.
    postgres.sql("checkpoint");
    let proxy = Proxy::to(postgres.port());
    let timeouts = "[timeouts]\nserver_login_retry = \"100ms\"\n";
    // With one server connection the answers tell who was served first.
    let pooler = Pooler::serve_port(
        proxy.port(),
        &config(threads, &format!("[pool]\nsize = 1\n\n{timeouts}")),
    );
    let mut clients: Vec<Raw> = (0..100)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    postgres.stop_immediate();
    let before = proxy.accepted();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(&Batch::new().query("select nextval('turns')"));
        eventually("it waits", || waiting(&pooler) == n + 1);
    }
    for client in clients.iter_mut().skip(80) {
        let (process, secret) = client.key.clone().expect("BackendKeyData");
        let mut canceler = Raw::connect(pooler.port());
        canceler
            .write(&cancel_request(process, &secret))
            .expect("it is open");
        assert!(canceler.read_to_end().is_empty());
        let stopped = client.rows().expect_err("it is cancelled");
        assert_eq!(stopped.code(), "57014", "{stopped}");
    }
    eventually("it was tried again", || proxy.accepted() > before + 3);
    let dials = proxy.accepted() - before;
    postgres.start_again();
    let mut last = 0;
    for client in &mut clients[..80] {
        let rows = client.rows().expect("its turn comes");
        let turn: i64 = rows[0][0]
            .as_deref()
            .expect("a number")
            .parse()
            .expect("a number");
        // Two threads may differ by a few milliseconds in who is first.
        assert!(threads > 1 || turn > last, "{turn} after {last}");
        last = turn;
    }
    assert!(dials < 40, "{dials} dials while it was down");
    assert_eq!(clients[99].value("select 'still there'"), "still there");
}

fn a_first_client_waits_for_a_postgres_that_is_down(threads: usize) {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    proxy.set(Fault::Refuse);
    let pooler = Pooler::serve_port(
        proxy.port(),
        &config(threads, "[timeouts]\nserver_login_retry = \"50ms\"\n"),
    );
    let begin = || {
        let mut client = Raw::connect(pooler.port());
        let startup = startup_packet(196_608, &[("user", "postgres"), ("database", "postgres")]);
        client.write(&startup).expect("it is open");
        client
    };
    let mut client = begin();
    eventually("it waits", || waiting(&pooler) == 1);
    let impatient = begin();
    eventually("two wait", || waiting(&pooler) == 2);
    drop(impatient);
    eventually("one has left the queue", || waiting(&pooler) == 1);
    proxy.set(Fault::None);
    client.read_until('Z');
    assert_eq!(client.value("select 1"), "1");
}

fn a_full_postgres_is_waited_for(threads: usize) {
    let postgres = Postgres::setup().max_connections(8).start();
    postgres.sql("create role alice login");
    let pooler = Pooler::serve(
        &postgres,
        &config(threads, "[timeouts]\nserver_login_retry = \"50ms\"\n"),
    );
    let login = |port| Raw::try_login(port, "alice", "postgres", None);
    let mut others = vec![];
    let full = until("it is full", Duration::from_secs(30), || {
        match login(postgres.port()) {
            Ok(other) => {
                others.push(other);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(full.code(), "53300");
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            login(pooler.port())
                .expect("there is room at last")
                .value("select 1")
        });
        eventually("it waits", || waiting(&pooler) == 1);
        pooler.await_log("a refusal", |line| line.contains("53300"));
        others.pop().expect("one of them").goodbye();
        assert_eq!(client.join().expect("it is served"), "1");
    });
}

fn the_next_host_is_taken_when_one_is_down_and_a_cancel_goes_there(threads: usize) {
    let postgres = Postgres::start();
    let (first, second) = (Proxy::to(postgres.port()), Proxy::to(postgres.port()));
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", first.port(), second.port());
    let pooler = Pooler::serve(
        &postgres,
        &config(
            threads,
            &format!(
                "[pool]\nsize = 1\n\n[timeouts]\nserver_login_retry = \"50ms\"\n\n\
                 [tcp]\nkeepalive_idle = 0\nkeepalive_interval = 0\nkeepalive_count = 0\nuser_timeout = 0\n\n\
                 [databases.\"*\"]\nurl = \"postgres://{hosts}\"\n"
            ),
        ),
    );
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    assert_eq!((first.accepted() > 0, second.accepted()), (true, 0));
    first.set(Fault::Refuse);
    first.close_all();
    assert_eq!(client.value("select 2"), "2");
    assert!(second.accepted() > 0);
    // A cancel goes to the host that runs the query.
    client.send(&Batch::new().query("select pg_sleep(60)"));
    eventually("it runs", || postgres.busy() == 1);
    first.set(Fault::None);
    let before = (first.accepted(), second.accepted());
    let (process, secret) = client.key.clone().expect("BackendKeyData");
    let mut other = Raw::connect(pooler.port());
    other
        .write(&cancel_request(process, &secret))
        .expect("it is open");
    assert_eq!(client.rows().expect_err("it is cancelled").code(), "57014");
    assert_eq!(
        (first.accepted(), second.accepted()),
        (before.0, before.1 + 1)
    );
}

fn after_a_failover_clients_are_told_the_parameters_of_the_new_server(threads: usize) {
    let first = Postgres::setup()
        .setting("timezone=Asia/Tokyo")
        .setting("datestyle=ISO, MDY")
        .start();
    let second = Postgres::setup()
        .setting("timezone=CET")
        .setting("datestyle=German, MDY")
        .setting("default_transaction_read_only=on")
        .start();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", first.port(), second.port());
    let pooler = Pooler::serve(
        &first,
        &config(
            threads,
            &format!(
                "[pool]\nsize = 2\n\n[timeouts]\nserver_login_retry = \"50ms\"\n\n\
                 [databases.\"*\"]\nurl = \"postgres://{hosts}\"\n"
            ),
        ),
    );
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    // What Postgres makes of it depends on its own.
    let login_with_order = || {
        let mut raw = Raw::connect(pooler.port());
        raw.log_in(&[("user", "postgres"), ("DateStyle", "DMY")], None)
            .expect("a login");
        raw
    };
    assert_eq!(login_with_order().parameters["DateStyle"], "ISO, DMY");
    let mut before = login();
    assert_eq!(before.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(before.value("show timezone"), "Asia/Tokyo");
    first.stop();
    // Once it was noticed that the first one has gone.
    eventually("a login is told the second one's", || {
        login().parameters["TimeZone"] == "CET"
    });
    let mut after = login();
    assert_eq!(after.parameters["default_transaction_read_only"], "on");
    assert_eq!(after.value("show timezone"), "CET");
    let mut after = login_with_order();
    assert_eq!(after.parameters["DateStyle"], "German, DMY");
    assert_eq!(after.value("show datestyle"), "German, DMY");
}

fn a_server_that_ends_while_idle_is_seen_by_nobody(threads: usize) {
    let postgres = Postgres::setup()
        .setting("idle_session_timeout=100ms")
        .start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 3\n"));
    let mut clients: Vec<Raw> = (0..3)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    for round in 0..5 {
        for client in &mut clients {
            client.query("begin").expect("a transaction");
        }
        for client in &mut clients {
            client.query("commit").expect("its end");
        }
        if round % 2 == 0 {
            postgres.terminate_connections();
        }
        // Postgres ends them with 57P01 or 57P05.
        eventually("they are gone", || postgres.connections() == 0);
        for client in &mut clients {
            assert_eq!(client.value("select 'unharmed'"), "unharmed");
        }
    }
    for client in clients {
        assert!(!client.heard.contains('E'), "{}", client.heard);
    }
}

fn a_server_that_ends_in_use_fails_its_request_and_no_more(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 2\n"));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let extended = Batch::new()
        .parse("", "select pg_sleep(60)")
        .bind("", "", &[])
        .execute("")
        .sync();
    for request in [Batch::new().query("select pg_sleep(60)"), extended] {
        client.send(&request);
        eventually("it runs", || postgres.busy() == 1);
        postgres.terminate_connections();
        let failure = client.rows().expect_err("it was ended");
        assert_eq!((failure.severity(), failure.code()), ("FATAL", "57P01"));
        assert_eq!(client.value("select 'still here'"), "still here");
    }
    // With libpq as well.
    let output = pooler
        .psql("postgres", "postgres")
        .args(["-v", "ON_ERROR_STOP=0"])
        .args([
            "-c",
            "select pg_terminate_backend(pg_backend_pid())",
            "-c",
            "select 'still here'",
        ])
        .output()
        .expect("psql is there");
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        complained.contains("terminating connection"),
        "{complained}"
    );
    assert!(said.contains("still here"), "{said}{complained}");

    // A transaction is lost with its server, and that is the end.
    client.query("begin").expect("a transaction");
    postgres.terminate_connections();
    let failure = client.error("select 1");
    assert_eq!((failure.severity(), failure.code()), ("FATAL", "57P01"));
    assert!(client.read_to_end().is_empty());
}

/// Sends a cancel request and waits until it was taken.
fn cancel(port: u16, process: i32, secret: &[u8]) {
    let mut raw = Raw::connect(port);
    raw.write(&cancel_request(process, secret))
        .expect("it is open");
    assert!(raw.read_to_end().is_empty());
}

/// 40 workers start and cancel 10,000 times, in two tests. What a cancel came too late for is not harmed, and neither are
/// those who cancel nothing.
fn a_storm_of_cancels_hits_only_what_it_is_meant_for(threads: usize) {
    const WORKERS: usize = 40;
    const ROUNDS: usize = 125;
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let port = pooler.port();
    let (over, stopped) = (AtomicBool::new(false), AtomicUsize::new(0));
    let watch = Watch::start(&postgres);
    thread::scope(|scope| {
        let (over, stopped) = (&over, &stopped);
        for _ in 0..5 {
            scope.spawn(move || {
                let mut bystander = Raw::login(port, "postgres", "postgres");
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    ask(&mut bystander, &format!("bystander/{n}"), n).expect("nobody cancels it");
                }
            });
        }
        let end = EndOnDrop(over);
        let workers: Vec<_> = (0..WORKERS)
            .map(|name| {
                scope.spawn(move || {
                    let mut client = Raw::login(port, "postgres", "postgres");
                    let (process, secret) = client.key.clone().expect("BackendKeyData");
                    for n in 0..ROUNDS {
                        let word = format!("{name}/{n}");
                        let sql = format!("select '{word}' from pg_sleep(0.003)");
                        client.send(&Batch::new().query(&sql));
                        cancel(port, process, &secret);
                        match client.rows() {
                            Ok(rows) => assert_eq!(rows[0][0].as_deref(), Some(&*word)),
                            Err(error) => {
                                assert_eq!(error.code(), "57014", "{error}");
                                stopped.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        if n % 8 == 0 {
                            // No cancel is under way for this one.
                            assert_eq!(client.value(&format!("select '{word}'")), word);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("every answer is its own");
        }
        drop(end);
    });
    assert!(stopped.load(Ordering::Relaxed) > WORKERS * ROUNDS / 10);
    eventually("everybody has left", || {
        pooler
            .http("/metrics")
            .1
            .lines()
            .all(|line| !line.starts_with("pgweir_clients{") || line.ends_with(" 0"))
    });
    postgres.await_all_idle();
    let seen = watch.finish();
    assert!(seen.total <= 5, "{seen:?}");
}

fn a_cancel_of_nobodys_query_is_answered_by_silence(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 1\n"));
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    let (mut client, mut other) = (login(), login());
    let (process, secret) = client.key.clone().expect("BackendKeyData");
    let quiet = |client: &mut Raw| assert!(!client.hears_within(Duration::from_millis(50)));

    // It is idle, outside a transaction and inside one.
    cancel(pooler.port(), process, &secret);
    quiet(&mut client);
    client.query("begin").expect("a transaction");
    cancel(pooler.port(), process, &secret);
    quiet(&mut client);
    assert_eq!(client.value("select 1"), "1");

    // A wrong key, and nobody's.
    client.send(&Batch::new().query("select pg_sleep(0.3)"));
    let wrong: Vec<u8> = secret.iter().map(|byte| !byte).collect();
    cancel(pooler.port(), process, &wrong);
    cancel(pooler.port(), process + 1000, &secret);
    client.rows().expect("it was not cancelled");

    // One that waits in the queue, which the holder's cancel does not concern.
    let (waiting_process, waiting_secret) = other.key.clone().expect("BackendKeyData");
    other.send(&Batch::new().query("select 'never'"));
    eventually("it waits", || waiting(&pooler) == 1);
    cancel(pooler.port(), process, &secret);
    quiet(&mut other);
    cancel(pooler.port(), waiting_process, &waiting_secret);
    assert_eq!(other.rows().expect_err("it is cancelled").code(), "57014");
    client.query("commit").expect("its end");
    assert_eq!(other.value("select 2"), "2");
}
