//! The main job: many clients, few server connections, and every client hears what Postgres would have told it.

mod support;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::postgres::program;
use support::process::run;
use support::raw::{startup_packet, tags};
use support::{Batch, Pooler, Postgres, Raw, Watch, eventually};

with_one_and_two_threads!(
    psql_runs_commands_scripts_and_errors,
    psql_copies_a_million_rows_both_ways,
    pgbench_simple_with_500_clients_on_10_servers,
    pgbench_extended_with_500_clients_on_10_servers,
    pgbench_with_a_connection_for_each_transaction,
    a_big_result_is_the_same_as_without_pgweir,
    a_value_of_64_mb_passes_both_ways,
    pipelined_syncs_are_answered_in_order,
    a_flush_without_sync_keeps_the_server,
    a_copy_that_fails_half_way_leaves_the_connection_usable,
    an_extended_copy_that_fails_half_way_leaves_the_connection_usable,
    a_sync_inside_copy_in_is_not_answered,
    a_copy_out_that_fails_half_way_leaves_the_connection_usable,
    transaction_mode_lends_the_server_between_transactions,
    a_failed_transaction_keeps_the_server_until_it_is_rolled_back,
    session_mode_keeps_the_server,
    statement_mode_refuses_transaction_blocks,
    a_slow_reader_stalls_nobody,
    a_client_that_vanishes_leaves_no_transaction_behind,
    every_client_gets_its_own_answers,
);

fn config(threads: usize, size: u32) -> String {
    format!("[runtime]\nthreads = {threads}\n\n[pool]\nsize = {size}\n")
}

fn psql_runs_commands_scripts_and_errors(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    let psql = || pooler.psql("postgres", "postgres");

    assert_eq!(run(psql().args(["-c", "select 1 + 1"])), "2\n");
    assert_eq!(
        run(psql().args(["-c", "select 1; select 2", "-c", "select 3"])),
        "1\n2\n3\n"
    );

    let script = pooler.directory().join("script.sql");
    fs::write(
        &script,
        "create table things (n int primary key, t text);\n\
         begin;\n\
         insert into things select n, 'thing ' || n from generate_series(1, 100) n;\n\
         savepoint here;\n\
         insert into things values (101, 'gone again');\n\
         rollback to here;\n\
         commit;\n\
         prepare one as select t from things where n = 7; execute one; deallocate one;\n\
         do $$ begin raise notice 'hello'; end $$;\n\
         select count(*), sum(n) from things;\n",
    )
    .expect("the directory is ours");
    assert_eq!(
        run(psql().arg("--single-transaction").arg("-f").arg(&script)),
        "thing 7\n100|5050\n"
    );

    let failure = psql()
        .args(["-c", "insert into things values (1, 'twice')"])
        .output()
        .expect("psql runs");
    let text = String::from_utf8_lossy(&failure.stderr).into_owned();
    assert!(!failure.status.success());
    assert!(
        text.contains("ERROR:  23505: duplicate key value"),
        "{text}"
    );
    assert!(
        text.contains("DETAIL:  Key (n)=(1) already exists."),
        "{text}"
    );
    postgres.await_all_idle();
}

fn psql_copies_a_million_rows_both_ways(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    postgres.sql("create unlogged table source as select n, md5(n::text) as hash from generate_series(1, 1000000) n");
    postgres.sql("create unlogged table target (n int, hash text)");
    let file = pooler.directory().join("rows");
    let file = file.display();
    run(pooler
        .psql("postgres", "postgres")
        .args(["-c", &format!("\\copy source to '{file}'")])
        .args(["-c", &format!("\\copy target from '{file}'")]));
    let sum = "select count(*), sum(n), md5(string_agg(hash, '' order by n)) from ";
    let source = postgres.sql(&format!("{sum} source"));
    assert_eq!(source[0][0].as_deref(), Some("1000000"));
    assert_eq!(source, postgres.sql(&format!("{sum} target")));
    postgres.await_all_idle();
}

fn pgbench_simple_with_500_clients_on_10_servers(threads: usize) {
    pgbench_stays_within_the_pool(threads, &["-M", "simple", "-c", "500", "-t", "4"]);
}

fn pgbench_extended_with_500_clients_on_10_servers(threads: usize) {
    pgbench_stays_within_the_pool(threads, &["-M", "extended", "-c", "500", "-t", "4"]);
}

fn pgbench_with_a_connection_for_each_transaction(threads: usize) {
    pgbench_stays_within_the_pool(threads, &["-M", "simple", "-C", "-c", "50", "-t", "16"]);
}

fn pgbench_stays_within_the_pool(threads: usize, arguments: &[&str]) {
    let postgres = Postgres::start();
    postgres.fill_for_pgbench();
    let pooler = Pooler::serve(&postgres, &config(threads, 10));
    let watch = Watch::start(&postgres);
    for kind in ["select-only", "tpcb-like"] {
        let text = run(program("pgbench")
            .args(["-n", "-j", "2", "-b", kind])
            .args(arguments)
            .args(["-h", "127.0.0.1", "-p", &pooler.port().to_string()])
            .args(["-U", "postgres", "postgres"]));
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .unwrap_or_else(|| panic!("no line {start:?} in\n{text}"))
                .trim()
                .to_owned()
        };
        assert_eq!(line("number of failed transactions:"), "0 (0.000%)");
        assert_ne!(line("number of transactions actually processed:"), "0");
    }
    let seen = watch.finish();
    assert!(seen.total <= 10, "{seen:?}");
    // Every transaction of tpcb-like adds the same amount to an account, a teller and a branch.
    assert_eq!(
        postgres.value("select sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts"),
        "t"
    );
    postgres.await_all_idle();
}

fn a_big_result_is_the_same_as_without_pgweir(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    let sql = "select n, md5(n::text), repeat('x', n % 300), null, n * 1.5 from generate_series(1, 50000) n";
    let ask = |port| {
        let mut client = Raw::login(port, "postgres", "postgres");
        client.send(&Batch::new().query(sql));
        let simple = client.read_until('Z');
        client.send(
            &Batch::new()
                .parse("", sql)
                .bind("", "", &[])
                .describe_portal("")
                .execute("")
                .sync(),
        );
        let extended = client.read_until('Z');
        assert_eq!(simple.len(), 50_000 + 3);
        (simple, extended)
    };
    // Not assert_eq: nobody wants to read the difference of two such results.
    assert!(ask(postgres.port()) == ask(pooler.port()));
    postgres.await_all_idle();
}

fn a_value_of_64_mb_passes_both_ways(threads: usize) {
    const LENGTH: usize = 64 << 20;
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    client.send(&Batch::new().query(&format!("select repeat('0123456789abcdef', {LENGTH} / 16)")));
    let messages = client.read_until('Z');
    assert_eq!(tags(&messages), "T D C Z(I)");
    let value = "0123456789abcdef".repeat(LENGTH / 16);
    assert!(messages[1].row() == [Some(value.clone())]);

    client.send(
        &Batch::new()
            .parse(
                "",
                "select length($1), md5($1), md5(repeat('0123456789abcdef', length($1) / 16))",
            )
            .bind("", "", &[&value])
            .execute("")
            .sync(),
    );
    let row = &client.rows().expect("it fits")[0];
    assert_eq!(row[0], Some(LENGTH.to_string()));
    assert_eq!(row[1], row[2]);
    assert_eq!(client.value("select 1"), "1");
    postgres.await_all_idle();
    // Large messages pass through in pieces.
    let resident = pooler.resident();
    assert!(resident < 48 << 20, "{resident} resident bytes");
}

fn pipelined_syncs_are_answered_in_order(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let mut batch = Batch::new();
    for n in 0..500 {
        let sql = if n % 10 == 3 {
            "select 1 / ($1::int - $1::int)"
        } else {
            "select $1::int"
        };
        batch = batch
            .parse("", sql)
            .bind("", "", &[&n.to_string()])
            .execute("")
            .sync();
        if n % 7 == 0 {
            batch = batch.query(&format!("select -{n}"));
        }
    }
    client.send(&batch);
    assert_eq!(other.value("select 'other'"), "other");
    for n in 0..500 {
        if n % 10 == 3 {
            let failure = client.rows().expect_err("a division by zero");
            assert_eq!(failure.code(), "22012");
        } else {
            let rows = client.rows().expect("a number");
            assert_eq!(rows, [[Some(n.to_string())]]);
        }
        if n % 7 == 0 {
            let rows = client.rows().expect("a number");
            assert_eq!(
                rows[0][0]
                    .as_deref()
                    .map(|text| text.trim_start_matches('-')),
                Some(n.to_string().as_str())
            );
        }
    }
    assert_eq!(client.value("select 1"), "1");
    postgres.await_all_idle();
}

fn a_flush_without_sync_keeps_the_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let ask = Batch::new()
        .parse("", "select pg_backend_pid()")
        .bind("", "", &[])
        .execute("")
        .flush();
    client.send(&ask);
    let first = client.read_until('C');
    assert_eq!(tags(&first), "1 2 D C");
    other.send(&Batch::new().query("select 'other'"));
    assert!(!other.hears_within(Duration::from_millis(300)));
    client.send(&ask);
    let second = client.read_until('C');
    assert_eq!(tags(&second), "1 2 D C");
    assert_eq!(first[2].row(), second[2].row());
    assert!(!other.hears_within(Duration::from_millis(300)));
    client.send(&Batch::new().sync());
    assert_eq!(client.tags_until_ready(), "Z(I)");
    assert_eq!(other.tags_until_ready(), "T D C Z(I)");
    postgres.await_all_idle();
}

/// Client, and another one of the same pool with one server: both must get right answers.
fn both_are_usable(postgres: &Postgres, client: &mut Raw, other: &mut Raw) {
    assert_eq!(client.value("select 'mine'"), "mine");
    assert_eq!(other.value("select 'theirs'"), "theirs");
    assert_eq!(client.value("select 'mine again'"), "mine again");
    postgres.await_all_idle();
}

fn a_copy_that_fails_half_way_leaves_the_connection_usable(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");

    // A bad row, and much more data after it.
    client.send(&Batch::new().query("copy numbers from stdin"));
    assert_eq!(client.read().tag, 'G');
    let rows = "1\n".repeat(10_000);
    client.send(
        &Batch::new()
            .copy_data(rows.as_bytes())
            .copy_data(b"not a number\n"),
    );
    for _ in 0..50 {
        client.send(&Batch::new().copy_data(rows.as_bytes()));
    }
    client.send(&Batch::new().copy_done());
    assert_eq!(client.rows().expect_err("a bad row").code(), "22P02");
    both_are_usable(&postgres, &mut client, &mut other);

    // The client itself gives up.
    client.send(&Batch::new().query("copy numbers from stdin"));
    assert_eq!(client.read().tag, 'G');
    client.send(
        &Batch::new()
            .copy_data(b"1\n2\n")
            .copy_fail("changed my mind"),
    );
    assert_eq!(
        client.rows().expect_err("it was told to fail").code(),
        "57014"
    );
    both_are_usable(&postgres, &mut client, &mut other);

    // An error before the copy begins, with the data sent all the same.
    client.send(
        &Batch::new()
            .query("copy nothing_such from stdin")
            .copy_data(b"1\n")
            .copy_done(),
    );
    assert_eq!(client.rows().expect_err("no such table").code(), "42P01");
    both_are_usable(&postgres, &mut client, &mut other);

    // And one that goes well, with another statement behind it.
    client.send(&Batch::new().query("copy numbers from stdin; select count(*) from numbers"));
    assert_eq!(client.read().tag, 'G');
    client.send(&Batch::new().copy_data(b"1\n2\n3\n").copy_done());
    assert_eq!(client.rows().expect("good rows"), [[Some("3".to_owned())]]);
    both_are_usable(&postgres, &mut client, &mut other);
}

fn an_extended_copy_that_fails_half_way_leaves_the_connection_usable(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let begin = Batch::new()
        .parse("", "copy numbers from stdin")
        .bind("", "", &[])
        .execute("");

    // Sync only at the end.
    client.send(&begin.clone().flush());
    assert_eq!(tags(&client.read_until('G')), "1 2 G");
    client.send(&Batch::new().copy_data(b"1\nnot a number\n"));
    assert_eq!(client.read().tag, 'E');
    client.send(&Batch::new().copy_data(b"2\n").copy_done().sync());
    assert_eq!(client.tags_until_ready(), "Z(I)");
    both_are_usable(&postgres, &mut client, &mut other);

    // The first Sync comes while Postgres reads data, as libpq sends it, and is swallowed; the last one counts.
    client.send(&begin.clone().sync());
    assert_eq!(tags(&client.read_until('G')), "1 2 G");
    client.send(
        &Batch::new()
            .copy_data(b"1\nnot a number\n")
            .copy_done()
            .sync(),
    );
    assert_eq!(client.tags_until_ready(), "E Z(I)");
    both_are_usable(&postgres, &mut client, &mut other);

    // No such table: the copy never begins, so both Syncs count.
    client.send(
        &Batch::new()
            .parse("", "copy nothing_such from stdin")
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(client.tags_until_ready(), "1 2 E Z(I)");
    client.send(&Batch::new().copy_data(b"1\n").copy_done().sync());
    assert_eq!(client.tags_until_ready(), "Z(I)");
    both_are_usable(&postgres, &mut client, &mut other);
}

fn a_sync_inside_copy_in_is_not_answered(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let begin = Batch::new()
        .parse("", "copy numbers from stdin")
        .bind("", "", &[])
        .execute("")
        .sync();
    client.send(&begin);
    assert_eq!(tags(&client.read_until('G')), "1 2 G");
    client.send(
        &Batch::new()
            .copy_data(b"1\n")
            .sync()
            .flush()
            .copy_data(b"2\n"),
    );
    other.send(&Batch::new().query("select 'other'"));
    assert!(!other.hears_within(Duration::from_millis(200)));
    client.send(&Batch::new().copy_done().sync());
    assert_eq!(client.tags_until_ready(), "C Z(I)");
    assert_eq!(other.tags_until_ready(), "T D C Z(I)");
    both_are_usable(&postgres, &mut client, &mut other);

    // Everything in one piece.
    client.send(
        &begin
            .copy_data(b"3\n")
            .copy_done()
            .sync()
            .query("select sum(n) from numbers"),
    );
    assert_eq!(client.tags_until_ready(), "1 2 G C Z(I)");
    assert_eq!(client.rows().expect("a sum"), [[Some("6".to_owned())]]);
    both_are_usable(&postgres, &mut client, &mut other);
}

fn a_copy_out_that_fails_half_way_leaves_the_connection_usable(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let sql = "copy (select 1 / (20000 - n) from generate_series(1, 30000) n) to stdout";
    client.send(&Batch::new().query(sql));
    let messages = client.read_until('Z');
    assert_eq!(
        messages.iter().filter(|message| message.tag == 'd').count(),
        19_999
    );
    assert!(tags(&messages).ends_with("d E Z(I)"));
    both_are_usable(&postgres, &mut client, &mut other);
    client.send(
        &Batch::new()
            .parse("", sql)
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    assert!(client.tags_until_ready().ends_with("d E Z(I)"));
    both_are_usable(&postgres, &mut client, &mut other);
}

fn transaction_mode_lends_the_server_between_transactions(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let watch = Watch::start(&postgres);
    let mut first = Raw::login(pooler.port(), "postgres", "postgres");
    let mut second = Raw::login(pooler.port(), "postgres", "postgres");
    let server = first.backend();
    assert_eq!(second.backend(), server);

    first.query("begin").expect("a transaction");
    assert_eq!(first.backend(), server);
    second.send(&Batch::new().query("select pg_backend_pid()"));
    assert!(!second.hears_within(Duration::from_millis(300)));
    assert_eq!(first.backend(), server);
    first.query("commit").expect("its end");
    assert_eq!(second.rows().expect("its turn"), [[Some(server)]]);
    assert_eq!(watch.finish().total, 1);
    postgres.await_all_idle();
}

fn a_failed_transaction_keeps_the_server_until_it_is_rolled_back(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 1));
    let mut first = Raw::login(pooler.port(), "postgres", "postgres");
    let mut second = Raw::login(pooler.port(), "postgres", "postgres");
    first.send(&Batch::new().query("begin; select 1/0"));
    assert!(first.tags_until_ready().ends_with("Z(E)"));
    second.send(&Batch::new().query("select 1"));
    assert!(!second.hears_within(Duration::from_millis(300)));
    assert_eq!(first.error("select 1").code(), "25P02");
    first.query("rollback").expect("its end");
    assert_eq!(second.tags_until_ready(), "T D C Z(I)");
    postgres.await_all_idle();
}

fn session_mode_keeps_the_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!("[runtime]\nthreads = {threads}\n\n[pool]\nmode = \"session\"\nsize = 1\n"),
    );
    let mut first = Raw::login(pooler.port(), "postgres", "postgres");
    let server = first.backend();
    first
        .query("create temp table mine as select 1 as n; set search_path to pg_temp")
        .expect("session state");
    // The login of the next one waits for it, and so does what is sent behind.
    let mut second = Raw::connect(pooler.port());
    let startup = startup_packet(196_608, &[("user", "postgres")]);
    let query = Batch::new().query("select pg_backend_pid(), current_setting('search_path')");
    second
        .write(&[&startup, query.bytes()].concat())
        .expect("it listens");
    assert!(!second.hears_within(Duration::from_millis(300)));
    assert_eq!(first.value("select n from mine"), "1");
    assert_eq!(first.backend(), server);
    first.goodbye();
    // The next session gets the same server, clean.
    second.read_until('Z');
    let rows = second.rows().expect("its turn");
    assert_eq!(rows, [[Some(server), Some("\"$user\", public".to_owned())]]);
    assert_eq!(second.error("select n from mine").code(), "42P01");
    postgres.await_all_idle();
}

fn statement_mode_refuses_transaction_blocks(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        &format!("[runtime]\nthreads = {threads}\n\n[pool]\nmode = \"statement\"\nsize = 1\n"),
    );
    let mut other = Raw::login(pooler.port(), "postgres", "postgres");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    let failure = client.error("begin");
    assert!(
        failure
            .text()
            .contains("transaction blocks not allowed in statement pooling mode"),
        "{failure}"
    );
    assert_eq!(other.value("select 1"), "1");
    eventually("the transaction is gone", || postgres.busy() == 0);
}

fn a_slow_reader_stalls_nobody(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 4));
    let mut slow: Vec<Raw> = (0..3)
        .map(|_| Raw::login(pooler.port(), "postgres", "postgres"))
        .collect();
    let mut quick = Raw::login(pooler.port(), "postgres", "postgres");
    for client in &mut slow {
        client
            .send(&Batch::new().query("select repeat('x', 10000) from generate_series(1, 10000)"));
    }
    eventually("the slow readers' servers are stuck", || {
        postgres.value(
            "select count(*) from pg_stat_activity where wait_event = 'ClientWrite' and application_name <> 'fixture'",
        ) == "3"
    });
    let start = Instant::now();
    for n in 0..500 {
        assert_eq!(quick.value(&format!("select {n}")), n.to_string());
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "500 queries took {took:?}");
    // What a slow reader does not take waits in Postgres, not here.
    let resident = pooler.resident();
    assert!(resident < 48 << 20, "{resident} resident bytes");
    for mut client in slow {
        assert_eq!(client.rows().expect("all of it").len(), 10_000);
    }
    postgres.await_all_idle();
}

fn a_client_that_vanishes_leaves_no_transaction_behind(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table numbers (n int)");
    let pooler = Pooler::serve(&postgres, &config(threads, 2));
    let watch = Watch::start(&postgres);
    let login = || Raw::login(pooler.port(), "postgres", "postgres");
    for round in 0..20 {
        let mut idle = login();
        idle.query("begin; insert into numbers values (1)")
            .expect("a transaction");
        let mut running = login();
        running.send(
            &Batch::new().query("begin; insert into numbers values (2); select pg_sleep(60)"),
        );
        eventually("it runs", || {
            postgres.value("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
                == "1"
        });
        let mut waiting = login();
        waiting.send(&Batch::new().query("insert into numbers values (3)"));
        if round % 2 == 0 {
            waiting.reset();
            idle.reset();
            running.reset();
        } else {
            drop((waiting, idle, running));
        }
        eventually("everything is free again", || postgres.busy() == 0);
        assert_eq!(login().value("select 'next'"), "next");
    }
    assert_eq!(
        postgres.value("select count(*) from numbers where n < 3"),
        "0"
    );
    let seen = watch.finish();
    assert!(seen.total <= 2, "{seen:?}");
}

fn every_client_gets_its_own_answers(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, 3));
    let port = pooler.port();
    thread::scope(|scope| {
        for client in 0..20 {
            scope.spawn(move || {
                let mut raw = Raw::login(port, "postgres", "postgres");
                for n in 0..100 {
                    let word = format!("{client}/{n}");
                    match n % 4 {
                        0 => assert_eq!(raw.value(&format!("select '{word}'")), word),
                        1 => {
                            raw.send(
                                &Batch::new()
                                    .parse("", "select $1::text")
                                    .bind("", "", &[&word])
                                    .execute("")
                                    .sync(),
                            );
                            assert_eq!(raw.rows().expect("a word"), [[Some(word)]]);
                        }
                        2 => {
                            raw.query("begin").expect("a transaction");
                            raw.query(&format!("set local my.word = '{word}'"))
                                .expect("a setting");
                            assert_eq!(raw.value("select current_setting('my.word')"), word);
                            raw.query("commit").expect("its end");
                        }
                        _ => {
                            let failure =
                                raw.error(&format!("do $$ begin raise exception '{word}'; end $$"));
                            assert_eq!(failure.text(), word);
                        }
                    }
                }
                raw.goodbye();
            });
        }
    });
    postgres.await_all_idle();
}

#[test]
fn no_file_is_needed_to_serve_one_postgres() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve_to(&postgres.url("postgres", "postgres"));
    assert_eq!(
        run(pooler
            .psql("postgres", "postgres")
            .args(["-c", "select 42"])),
        "42\n"
    );
    assert_eq!(
        Raw::login(pooler.port(), "postgres", "postgres").value("select 42"),
        "42"
    );
    postgres.await_all_idle();
}

#[test]
fn the_program_needs_no_libraries_but_those_of_libc_and_pam() {
    let output = Command::new("ldd")
        .arg(support::pooler::program())
        .output()
        .expect("ldd belongs to libc");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in text.lines() {
        let library = line.split_whitespace().next().unwrap_or_default();
        let name = library.rsplit('/').next().unwrap_or_default();
        let known = [
            "linux-vdso.so",
            "libc.so",
            "libm.so",
            "libgcc_s.so",
            "libpthread.so",
            "libdl.so",
            "librt.so",
            "ld-linux",
            // PAM's and what it needs: every Debian with logins has them.
            "libpam.so",
            "libaudit.so",
            "libcap-ng.so",
        ];
        assert!(
            known.iter().any(|start| name.starts_with(start)) || text.contains("statically linked"),
            "{line}"
        );
    }
}
