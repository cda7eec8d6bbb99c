//! Prepared statements in transaction mode: each client has its own names, wherever its transactions run.

mod support;

use std::time::Duration;

use support::wait::PATIENCE;
use support::{Batch, Message, Pooler, Postgres, Raw, eventually};

with_one_and_two_threads!(
    a_named_statement_works_on_every_server,
    two_clients_use_one_name_for_different_sql,
    the_same_text_is_prepared_once_on_a_server,
    what_was_not_used_for_longest_is_closed_and_its_reply_swallowed,
    a_failed_parse_leaves_its_name_free,
    a_taken_name_and_an_unknown_one_are_refused_in_postgres_words_and_the_session_goes_on,
    a_closed_name_is_gone_for_its_client_only,
    deallocate_by_name_works_in_both_protocols,
    discard_all_drops_names_in_both_protocols_in_any_spelling,
    discard_all_in_front_of_a_parse_in_one_packet,
    a_changed_result_type_heals_without_an_operator,
    the_unnamed_statement_follows_its_client,
    a_pipeline_with_an_error_in_its_middle,
    a_skipped_parse_prepares_nothing,
    answers_come_at_a_flush,
    a_statement_longer_than_any_buffer,
    too_many_statements_end_the_session_that_has_them,
    a_client_that_vanishes_in_mid_batch_spoils_nobodys_statements,
    nobody_reaches_another_clients_unnamed_statement,
    nothing_is_smuggled_behind_a_name,
    a_long_portal_name_reaches_no_statement_of_others,
    what_a_vanished_client_was_to_forget_or_have_is_nobodys,
    a_statement_that_was_brought_behind_an_error_is_brought_again,
    the_same_text_under_another_search_path_is_another_statement,
    clients_that_deallocate_all_and_clients_that_do_not_share_a_pool,
    what_pgweir_answers_itself_takes_no_memory_without_end,
    what_is_skipped_takes_no_memory_without_end,
    a_batch_of_any_depth_is_answered,
    nobody_deallocates_what_others_have_prepared,
    a_deallocate_that_fails_or_is_skipped_forgets_nothing,
    a_greedy_client_is_refused_while_memory_is_short_and_its_session_goes_on,
    a_message_that_has_not_come_to_its_end_counts_too,
    a_named_statement_is_as_long_as_the_limit_and_no_longer,
);

fn serve(postgres: &Postgres, threads: usize, size: u32) -> Pooler {
    let config = format!("[runtime]\nthreads = {threads}\n\n[pool]\nsize = {size}\n");
    Pooler::serve(postgres, &config)
}

fn client(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

/// Runs `work` while others hold the server connections that were used last, so that it gets each of `size` in turn.
fn on_every_server(pooler: &Pooler, size: usize, mut work: impl FnMut(&str)) {
    let mut holders = vec![];
    for left in (0..size).rev() {
        work(&format!("with {left} left"));
        let mut holder = client(pooler);
        holder.query("begin").unwrap();
        holders.push(holder);
        if left == 0 {
            break;
        }
    }
}

/// The letters of messages.
fn short(messages: &[Message]) -> String {
    messages.iter().map(|message| message.tag).collect()
}

fn prepare(client: &mut Raw, name: &str, sql: &str) {
    client.send(&Batch::new().parse(name, sql).sync());
    assert_eq!(short(&client.read_until('Z')), "1Z", "Parse of {name}");
}

/// Runs a prepared statement; its first column, or the error's code.
fn execute(client: &mut Raw, name: &str, parameters: &[&str]) -> Result<String, String> {
    client.send(&Batch::new().bind("", name, parameters).execute("").sync());
    let heard = client.read_until('Z');
    if let Some(error) = heard.iter().find(|message| message.tag == 'E') {
        return Err(error.error().code().to_owned());
    }
    let row = heard.iter().find(|message| message.tag == 'D');
    Ok(row.unwrap().row()[0].clone().unwrap())
}

/// Names of statements on the server that the client gets next.
fn on_server(client: &mut Raw) -> usize {
    let count = client.value("select count(*) from pg_prepared_statements where not from_sql");
    count.parse().unwrap()
}

fn a_named_statement_works_on_every_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 3);
    let mut client = client(&pooler);
    prepare(&mut client, "add", "select $1::int + 1");
    on_every_server(&pooler, 3, |moment| {
        assert_eq!(
            execute(&mut client, "add", &["41"]),
            Ok("42".into()),
            "{moment}"
        );
        client.send(&Batch::new().describe_statement("add").sync());
        assert_eq!(short(&client.read_until('Z')), "tTZ", "{moment}");
    });
}

fn two_clients_use_one_name_for_different_sql(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut clients = [client(&pooler), client(&pooler)];
    for (n, client) in clients.iter_mut().enumerate() {
        prepare(client, "s1", &format!("select 'client {n}'"));
    }
    for _ in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(execute(client, "s1", &[]), Ok(format!("client {n}")));
        }
    }
}

fn the_same_text_is_prepared_once_on_a_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut clients: Vec<_> = (0..5).map(|_| client(&pooler)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        prepare(client, &format!("mine{n}"), "select $1::text");
        assert_eq!(execute(client, &format!("mine{n}"), &["x"]), Ok("x".into()));
    }
    assert_eq!(on_server(&mut clients[0]), 1);
    prepare(&mut clients[0], "typed", "select $1");
    // Other parameter types are another statement.
    let typed = Batch::new().message(b'P', b"typed\0select $1\0\0\x01\0\0\0\x17");
    clients[1].send(&typed.sync());
    assert_eq!(short(&clients[1].read_until('Z')), "1Z");
    assert_eq!(on_server(&mut clients[0]), 3);
}

fn the_same_text_under_another_search_path_is_another_statement(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create schema one; create schema two");
    postgres.sql("create table one.t as select 'of one' as a");
    // Of another type: what is prepared under one path does not serve under the other.
    postgres.sql("create table two.t as select 2 as a");
    let pooler = serve(&postgres, threads, 1);
    let mut clients = [client(&pooler), client(&pooler)];
    for (client, schema) in clients.iter_mut().zip(["one", "two"]) {
        client
            .query(&format!("set search_path = {schema}"))
            .unwrap();
        prepare(client, "s1", "select a from t");
    }
    for _ in 0..3 {
        for (client, expected) in clients.iter_mut().zip(["of one", "2"]) {
            assert_eq!(execute(client, "s1", &[]), Ok(expected.into()));
        }
    }
    // Also where the path was set just now.
    let [one, _] = &mut clients;
    one.query("begin; set search_path = two").unwrap();
    prepare(one, "s2", "select a from t");
    assert_eq!(execute(one, "s2", &[]), Ok("2".into()));
    one.query("rollback").unwrap();
}

/// As Prisma does with `pgbouncer=true`, next to one that does not.
fn clients_that_deallocate_all_and_clients_that_do_not_share_a_pool(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut with, mut without) = (client(&pooler), client(&pooler));
    prepare(&mut without, "s0", "select 'kept'");
    for n in 0..10 {
        with.query("BEGIN").unwrap();
        with.query("DEALLOCATE ALL").unwrap();
        prepare(&mut with, "s0", &format!("select {n}"));
        assert_eq!(execute(&mut with, "s0", &[]), Ok(n.to_string()));
        with.query("COMMIT").unwrap();
        assert_eq!(execute(&mut without, "s0", &[]), Ok("kept".into()));
    }
}

fn what_was_not_used_for_longest_is_closed_and_its_reply_swallowed(threads: usize) {
    let postgres = Postgres::start();
    let config = format!(
        "[runtime]\nthreads = {threads}\n\n[pool]\nsize = 1\nmax_prepared_statements = 3\n"
    );
    let pooler = Pooler::serve(&postgres, &config);
    let mut client = client(&pooler);
    for n in 0..10 {
        prepare(&mut client, &format!("s{n}"), &format!("select {n}"));
    }
    for n in [0, 1, 9, 0, 5, 6, 7, 0] {
        assert_eq!(
            execute(&mut client, &format!("s{n}"), &[]),
            Ok(n.to_string())
        );
        assert!(on_server(&mut client) <= 3);
    }
    // More in one batch than are kept.
    let batch = (0..10).fold(Batch::new(), |batch, n| {
        batch.bind("", &format!("s{n}"), &[]).execute("")
    });
    client.send(&batch.sync());
    assert_eq!(short(&client.read_until('Z')), "2DC".repeat(10) + "Z");
    assert_eq!(on_server(&mut client), 3);
}

fn a_failed_parse_leaves_its_name_free(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = client(&pooler);
    client.send(&Batch::new().parse("s1", "selec 1").sync());
    assert_eq!(short(&client.read_until('Z')), "EZ");
    assert_eq!(execute(&mut client, "s1", &[]), Err("26000".into()));
    prepare(&mut client, "s1", "select 1");
    assert_eq!(execute(&mut client, "s1", &[]), Ok("1".into()));
    assert_eq!(on_server(&mut client), 1);
}

fn a_taken_name_and_an_unknown_one_are_refused_in_postgres_words_and_the_session_goes_on(
    threads: usize,
) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = client(&pooler);
    prepare(&mut client, "s1", "select 1");
    on_every_server(&pooler, 2, |moment| {
        client.send(&Batch::new().parse("s1", "select 2").sync());
        let heard = client.read_until('Z');
        assert_eq!(short(&heard), "EZ", "{moment}");
        let error = heard[0].error();
        assert_eq!(error.code(), "42P05");
        assert_eq!(error.text(), "prepared statement \"s1\" already exists");
        client.send(&Batch::new().bind("", "no such", &[]).execute("").sync());
        let heard = client.read_until('Z');
        assert_eq!(short(&heard), "EZ");
        let error = heard[0].error();
        assert_eq!(error.code(), "26000");
        assert_eq!(
            error.text(),
            "prepared statement \"no such\" does not exist"
        );
        assert_eq!(execute(&mut client, "s1", &[]), Ok("1".into()));
    });
    // Names of pgweir's own are nobody's.
    prepare(&mut client, "pgweir_1", "select 'mine'");
    for name in ["pgweir_2", "pgweir_3"] {
        assert_eq!(execute(&mut client, name, &[]), Err("26000".into()));
    }
    assert_eq!(execute(&mut client, "pgweir_1", &[]), Ok("mine".into()));
    // In a transaction block such an error ends the block, as ever.
    client.query("begin").unwrap();
    client.send(&Batch::new().parse("s1", "select 2").sync());
    assert_eq!(short(&client.read_until('Z')), "EZ");
    assert_eq!(client.error("select 1").code(), "25P02");
    client.query("rollback").unwrap();
}

fn a_closed_name_is_gone_for_its_client_only(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut clients = [client(&pooler), client(&pooler)];
    for client in &mut clients {
        prepare(client, "s1", "select 1");
    }
    let [one, other] = &mut clients;
    one.send(
        &Batch::new()
            .close_statement("s1")
            .close_statement("never was")
            .sync(),
    );
    assert_eq!(short(&one.read_until('Z')), "33Z");
    assert_eq!(execute(one, "s1", &[]), Err("26000".into()));
    assert_eq!(execute(other, "s1", &[]), Ok("1".into()));
    prepare(one, "s1", "select 'again'");
    assert_eq!(execute(one, "s1", &[]), Ok("again".into()));
    // A Close that is skipped closes nothing.
    one.send(
        &Batch::new()
            .parse("", "nonsense")
            .close_statement("s1")
            .sync(),
    );
    assert_eq!(short(&one.read_until('Z')), "EZ");
    assert_eq!(execute(one, "s1", &[]), Ok("again".into()));
}

fn deallocate_by_name_works_in_both_protocols(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut one, mut other) = (client(&pooler), client(&pooler));
    let spellings = [
        "DEALLOCATE s1",
        "deallocate prepare \"s1\"",
        "/* pdo */ Deallocate -- it\n s1;",
        "select 1; DEALLOCATE s1",
    ];
    prepare(&mut other, "s1", "select 'the same'");
    for sql in spellings {
        prepare(&mut one, "s1", "select 'the same'");
        one.query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(execute(&mut one, "s1", &[]), Err("26000".into()), "{sql}");
        assert_eq!(execute(&mut other, "s1", &[]), Ok("the same".into()));
    }
    on_every_server(&pooler, 2, |_| {
        prepare(&mut one, "s1", "select 'the same'");
        let batch = Batch::new().parse("", "DEALLOCATE s1").bind("", "", &[]);
        one.send(&batch.execute("").sync());
        assert_eq!(short(&one.read_until('Z')), "12CZ");
        assert_eq!(execute(&mut one, "s1", &[]), Err("26000".into()));
    });
    assert_eq!(one.error("DEALLOCATE s1").code(), "26000");
    prepare(&mut one, "s1", "select 1");
    one.query("DEALLOCATE s1; ").unwrap();
    prepare(&mut one, "s1", "select 2");
    assert_eq!(execute(&mut one, "s1", &[]), Ok("2".into()));
}

fn discard_all_drops_names_in_both_protocols_in_any_spelling(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut one, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut other, "s1", "select 'kept'");
    let spellings = [
        "DISCARD ALL",
        "deallocate all",
        "/* x */ Discard\n/* y */ All;",
        "DEALLOCATE PREPARE ALL",
        "select 1; deallocate all; select 2",
    ];
    for sql in spellings {
        for extended in [false, true] {
            if extended && sql.contains("select") {
                continue;
            }
            prepare(&mut one, "s1", "select 'mine'");
            if extended {
                let batch = Batch::new().parse("", sql).bind("", "", &[]).execute("");
                one.send(&batch.sync());
                assert_eq!(short(&one.read_until('Z')), "12CZ", "{sql}");
            } else {
                one.query(sql).unwrap();
            }
            assert_eq!(execute(&mut one, "s1", &[]), Err("26000".into()), "{sql}");
            assert_eq!(execute(&mut other, "s1", &[]), Ok("kept".into()), "{sql}");
        }
    }
    // Where no word tells, in text or answer, it is found out by the error, and heals.
    one.query(
        "create function f() returns void language plpgsql as $$ begin execute 'deallocate all'; end $$",
    )
    .unwrap();
    one.query("select f()").unwrap();
    assert_eq!(execute(&mut other, "s1", &[]), Err("26000".into()));
    assert_eq!(execute(&mut other, "s1", &[]), Ok("kept".into()));
}

fn discard_all_in_front_of_a_parse_in_one_packet(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = client(&pooler);
    for _ in 0..3 {
        let packet = Batch::new().query("DISCARD ALL").parse("n1", "select 1");
        client.send(&packet.bind("", "n1", &[]).execute("").sync());
        assert_eq!(short(&client.read_until('Z')), "CZ");
        assert_eq!(short(&client.read_until('Z')), "12DCZ");
        assert_eq!(execute(&mut client, "n1", &[]), Ok("1".into()));
    }
}

fn a_changed_result_type_heals_without_an_operator(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut clients: Vec<_> = (0..3).map(|_| client(&pooler)).collect();
    clients[0]
        .query("create table t (a int); insert into t values (1)")
        .unwrap();
    for client in &mut clients {
        prepare(client, "all", "select * from t");
        assert_eq!(execute(client, "all", &[]), Ok("1".into()));
    }
    clients[0]
        .query("alter table t alter a type text using 'x' || a")
        .unwrap();
    // As without a pooler, whoever prepared it before hears of it; but once, not for ever.
    assert_eq!(execute(&mut clients[0], "all", &[]), Err("0A000".into()));
    for client in &mut clients {
        assert_eq!(execute(client, "all", &[]), Ok("x1".into()));
    }
}

fn the_unnamed_statement_follows_its_client(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut client, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut client, "", "select $1::int * 2");
    prepare(&mut other, "", "select 'not this'");
    on_every_server(&pooler, 2, |moment| {
        assert_eq!(
            execute(&mut client, "", &["21"]),
            Ok("42".into()),
            "{moment}"
        );
        client.send(&Batch::new().describe_statement("").sync());
        assert_eq!(short(&client.read_until('Z')), "tTZ", "{moment}");
    });
    // A simple query destroys it, as Postgres does.
    client.query("select 1").unwrap();
    assert_eq!(execute(&mut client, "", &["21"]), Err("26000".into()));
    assert_eq!(execute(&mut other, "", &[]), Ok("not this".into()));
}

fn a_pipeline_with_an_error_in_its_middle(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = client(&pooler);
    prepare(&mut client, "divide", "select 10 / $1::int");
    on_every_server(&pooler, 2, |moment| {
        let run = |batch: Batch, by| batch.bind("", "divide", &[by]).execute("");
        let batch = run(run(run(Batch::new(), "1"), "0"), "2").sync();
        let batch = run(batch, "5").parse("late", "select 'late'").sync();
        client.send(
            &batch
                .bind("", "late", &[])
                .execute("")
                .close_statement("late")
                .sync(),
        );
        assert_eq!(short(&client.read_until('Z')), "2DCEZ", "{moment}");
        assert_eq!(short(&client.read_until('Z')), "2DC1Z", "{moment}");
        assert_eq!(short(&client.read_until('Z')), "2DC3Z", "{moment}");
    });
}

fn a_skipped_parse_prepares_nothing(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut client, mut other) = (client(&pooler), client(&pooler));
    let batch = Batch::new().parse("", "nonsense").parse("s1", "select 1");
    client.send(&batch.bind("", "s1", &[]).execute("").sync());
    assert_eq!(short(&client.read_until('Z')), "EZ");
    assert_eq!(execute(&mut client, "s1", &[]), Err("26000".into()));
    // The same text is not taken to be there for others either.
    prepare(&mut other, "s2", "select 1");
    assert_eq!(execute(&mut other, "s2", &[]), Ok("1".into()));
    prepare(&mut client, "s1", "select 1");
    assert_eq!(execute(&mut client, "s1", &[]), Ok("1".into()));
}

fn answers_come_at_a_flush(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut one, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut one, "s1", "select 1");
    // It is on the server already, so that Postgres has nothing to say to this.
    other.send(&Batch::new().parse("s2", "select 1").flush());
    assert_eq!(other.read().tag, '1');
    other.send(
        &Batch::new()
            .bind("", "s2", &[])
            .execute("")
            .close_statement("s2")
            .flush(),
    );
    assert_eq!(short(&other.read_until('3')), "2DC3");
    other.send(&Batch::new().sync());
    assert_eq!(short(&other.read_until('Z')), "Z");
}

fn a_statement_longer_than_any_buffer(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut client, mut other) = (client(&pooler), client(&pooler));
    let long = "x".repeat(300_000);
    for name in ["long", ""] {
        prepare(
            &mut client,
            name,
            &format!("select length('{long}') + $1::int"),
        );
        on_every_server(&pooler, 2, |moment| {
            assert_eq!(
                execute(&mut client, name, &["1"]),
                Ok("300001".into()),
                "{moment}"
            );
        });
    }
    // And a long parameter for a named one.
    prepare(&mut other, "length", "select length($1)");
    assert_eq!(execute(&mut other, "length", &[&long]), Ok("300000".into()));
}

fn too_many_statements_end_the_session_that_has_them(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut greedy, mut modest) = (client(&pooler), client(&pooler));
    let text = format!("select '{}'", "x".repeat(1024 * 1024));
    let error = (0..100).find_map(|n| {
        greedy.send(
            &Batch::new()
                .parse(&n.to_string(), &format!("{text}, {n}"))
                .sync(),
        );
        let heard = greedy.read();
        (heard.tag == 'E').then(|| heard.error()).or_else(|| {
            assert_eq!(short(&greedy.read_until('Z')), "Z");
            None
        })
    });
    let error = error.expect("memory for a client is bounded");
    assert_eq!((error.code(), error.severity()), ("53400", "FATAL"));
    assert_eq!(modest.value("select 1"), "1");
}

fn a_client_that_vanishes_in_mid_batch_spoils_nobodys_statements(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut witness = client(&pooler);
    prepare(&mut witness, "w", "select 'w'");
    for n in 0..10 {
        let mut gone = client(&pooler);
        let batch = Batch::new().parse("a", "select 'w'");
        let batch = batch.parse("b", &format!("select {n}")).bind("", "b", &[]);
        gone.send(&batch.execute("").flush());
        gone.read_until('D');
        let batch = Batch::new().parse("c", "select pg_sleep(60)");
        gone.send(&batch.bind("", "c", &[]).execute("").flush());
        eventually("its sleep runs", || postgres.busy() > 0);
        gone.reset();
        assert_eq!(execute(&mut witness, "w", &[]), Ok("w".into()));
        prepare(&mut witness, &format!("w{n}"), &format!("select {n}"));
        assert_eq!(
            execute(&mut witness, &format!("w{n}"), &[]),
            Ok(n.to_string())
        );
    }
}

fn nobody_reaches_another_clients_unnamed_statement(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut owner, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut owner, "", "select 'theirs'");
    assert_eq!(execute(&mut other, "", &[]), Err("26000".into()));
    prepare(&mut owner, "", "select 'theirs'");
    // The Parse is skipped, and the next batch is sent before that is known.
    let batch = Batch::new().parse("x", "nonsense");
    let batch = batch.parse("", "select 'mine'").sync();
    other.send(&batch.bind("", "", &[]).execute("").sync());
    assert_eq!(short(&other.read_until('Z')), "EZ");
    let heard = other.read_until('Z');
    let row = heard.iter().find(|message| message.tag == 'D');
    assert_ne!(row.map(Message::row), Some(vec![Some("theirs".into())]));
    // One that failed is not forgotten for another that was sent behind it.
    let batch = Batch::new().parse("", "nonsense").sync();
    other.send(&batch.parse("", "select 'good'").sync());
    assert_eq!(short(&other.read_until('Z')), "EZ");
    assert_eq!(short(&other.read_until('Z')), "1Z");
    prepare(&mut owner, "", "select 'theirs'");
    assert_eq!(execute(&mut other, "", &[]), Ok("good".into()));
}

/// Has the client's next message cut in two on its way to Postgres: `front` is read with a query before it.
fn send_cut(client: &mut Raw, front: &[u8], rest: &[u8]) {
    let mut packet = Batch::new().query("select 1").bytes().to_vec();
    packet.extend(front);
    client.write(&packet).unwrap();
    client.read_until('Z');
    // It may have gone by now.
    let _ = client.write(rest);
}

fn nothing_is_smuggled_behind_a_name(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = client(&pooler);
    for tag in *b"DC" {
        prepare(&mut client, "s1", "select 1");
        client.query("begin").unwrap();
        let hidden = Batch::new().query("select 'hidden'").bytes().to_vec();
        let message = Batch::new().message(tag, &[b"Ss1\0", &hidden[..]].concat());
        let (front, rest) = message.bytes().split_at(9);
        let rest = [rest, Batch::new().sync().bytes()].concat();
        send_cut(&mut client, front, &rest);
        let heard = client.read_until('Z');
        assert_eq!(short(&heard), "EZ");
        assert_eq!(heard[0].error().code(), "08P01");
        client.query("rollback").unwrap();
        client.send(&Batch::new().close_statement("s1").sync());
        client.read_until('Z');
    }
}

fn a_long_portal_name_reaches_no_statement_of_others(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut owner, mut thief) = (client(&pooler), client(&pooler));
    prepare(&mut owner, "s1", "select 'theirs'");
    let name = owner.value("select name from pg_prepared_statements where not from_sql");
    thief.query("begin").unwrap();
    let portal = "x".repeat(10_000);
    let bind = Batch::new().bind(&portal, &name, &[]);
    let bind = bind.bytes();
    // That it goes on is refused before what it names is there.
    thief.write(&bind[..9000]).unwrap();
    let heard = thief.read_to_end();
    assert_eq!(short(&heard), "E");
    assert_eq!(heard[0].error().code(), "08P01");
    assert_eq!(execute(&mut owner, "s1", &[]), Ok("theirs".into()));
}

fn what_a_vanished_client_was_to_forget_or_have_is_nobodys(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut gone, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut gone, "closed", "select 'theirs'");
    prepare(&mut other, "both", "select 'both'");
    let batch = Batch::new()
        .parse("x", "nonsense")
        .close_statement("closed");
    gone.send(&batch.parse("both", "select 'both'").flush());
    assert_eq!(gone.read().tag, 'E');
    gone.reset();
    assert_eq!(other.value("select 1"), "1");
    assert_eq!(execute(&mut other, "closed", &[]), Err("26000".into()));
    assert_eq!(execute(&mut other, "both", &[]), Ok("both".into()));
}

fn a_statement_that_was_brought_behind_an_error_is_brought_again(threads: usize) {
    let postgres = Postgres::start();
    let config = format!(
        "[runtime]\nthreads = {threads}\n\n[pool]\nsize = 1\nmax_prepared_statements = 1\n"
    );
    let pooler = Pooler::serve(&postgres, &config);
    let mut client = client(&pooler);
    for name in ["a", "b"] {
        prepare(&mut client, name, &format!("select '{name}'"));
    }
    for _ in 0..3 {
        let batch = Batch::new().parse("", "nonsense").bind("", "a", &[]).sync();
        let batch = batch.bind("", "a", &[]).execute("").sync();
        client.send(&batch.bind("", "b", &[]).execute("").sync());
        let heard: Vec<_> = (0..3).map(|_| short(&client.read_until('Z'))).collect();
        assert_eq!(heard, ["EZ", "2DCZ", "2DCZ"]);
    }
}

/// Sends the same again and again, until 64 MB were sent or nobody reads on.
fn flood(client: &mut Raw, messages: &Batch) {
    client.set_patience(Duration::from_secs(1));
    let packet = messages.bytes().repeat(4096);
    for _ in 0..64 * 1024 * 1024 / packet.len() {
        if client.write(&packet).is_err() {
            return;
        }
    }
}

fn what_pgweir_answers_itself_takes_no_memory_without_end(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut other = client(&pooler);
    prepare(&mut other, "s1", "select 1");
    // With and without something in front that Postgres answers only at a Sync.
    for front in [
        Batch::new(),
        Batch::new().parse("", "select 2").bind("", "", &[]),
    ] {
        let mut greedy = client(&pooler);
        greedy.send(&front);
        let before = pooler.resident();
        let pair = Batch::new().parse("s", "select 1").close_statement("s");
        flood(&mut greedy, &pair);
        let more = pooler.resident().saturating_sub(before);
        assert!(more < 12 * 1024 * 1024, "{more} bytes more");
        assert_eq!(execute(&mut other, "s1", &[]), Ok("1".into()));
    }
}

fn a_batch_of_any_depth_is_answered(threads: usize) {
    const PAIRS: usize = 5000;
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut other, mut client) = (client(&pooler), client(&pooler));
    prepare(&mut other, "s1", "select 1");
    // Postgres would answer what stands in front only at the Sync, behind what pgweir answers.
    client.send(&Batch::new().parse("", "select 2").bind("", "", &[]));
    let pair = Batch::new().parse("s", "select 1").close_statement("s");
    client.write(&pair.bytes().repeat(PAIRS)).unwrap();
    client.send(&Batch::new().execute("").sync());
    let heard = short(&client.read_until('Z'));
    assert_eq!(heard, format!("12{}DCZ", "13".repeat(PAIRS)));
}

fn what_is_skipped_takes_no_memory_without_end(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = client(&pooler);
    prepare(&mut client, "kept", "select 'kept'");
    client.send(&Batch::new().parse("", "nonsense").flush());
    assert_eq!(client.read().tag, 'E');
    let before = pooler.resident();
    let skipped = Batch::new().parse("new", "select 'new'");
    let skipped = skipped.close_statement("kept").execute("").copy_done();
    flood(&mut client, &skipped.query("select 'skipped'"));
    let more = pooler.resident().saturating_sub(before);
    assert!(more < 24 * 1024 * 1024, "{more} bytes more");
    client.set_patience(PATIENCE);
    client.send(&Batch::new().sync());
    assert_eq!(short(&client.read_until('Z')), "Z");
    assert_eq!(execute(&mut client, "kept", &[]), Ok("kept".into()));
    assert_eq!(execute(&mut client, "new", &[]), Err("26000".into()));
    assert_eq!(client.value("select 'alive'"), "alive");
}

fn nobody_deallocates_what_others_have_prepared(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut owner, mut other) = (client(&pooler), client(&pooler));
    prepare(&mut owner, "s1", "select 'theirs'");
    let name = owner.value("select name from pg_prepared_statements where not from_sql");
    let error = other.error(&format!("deallocate {name}"));
    assert_eq!(error.code(), "26000");
    assert_eq!(execute(&mut owner, "s1", &[]), Ok("theirs".into()));
}

fn a_deallocate_that_fails_or_is_skipped_forgets_nothing(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = client(&pooler);
    prepare(&mut client, "s1", "select 'kept'");
    for drops in ["deallocate s1", "deallocate all", "discard all"] {
        let before = Batch::new().query("begin").query("select 1/0");
        let refused = before.query(drops).query("rollback");
        client.send(&refused);
        let heard: Vec<_> = (0..4).map(|_| short(&client.read_until('Z'))).collect();
        assert_eq!(heard, ["CZ", "EZ", "EZ", "CZ"], "{drops}");
        on_every_server(&pooler, 2, |_| {
            assert_eq!(
                execute(&mut client, "s1", &[]),
                Ok("kept".into()),
                "{drops}"
            );
        });
        // Prepared in one transaction, bound in another, on whichever server, and skipped there.
        client.send(&Batch::new().parse("", drops).sync());
        client.read_until('Z');
        let batch = Batch::new().bind("", "", &[]).bind("", "none", &[]);
        client.send(&batch.bind("", "", &[]).execute("").sync());
        assert_eq!(short(&client.read_until('Z')), "2EZ", "{drops}");
        assert_eq!(
            execute(&mut client, "s1", &[]),
            Ok("kept".into()),
            "{drops}"
        );
    }
    // Parsed on one server, run on the other.
    on_every_server(&pooler, 2, |moment| {
        client.send(&Batch::new().parse("", "deallocate s1").sync());
        client.read_until('Z');
        let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
        if moment == "with 1 left" {
            holder.query("begin").unwrap();
        }
        client.send(&Batch::new().bind("", "", &[]).execute("").sync());
        assert_eq!(short(&client.read_until('Z')), "2CZ", "{moment}");
        assert_eq!(execute(&mut client, "s1", &[]), Err("26000".into()));
        prepare(&mut client, "s1", "select 'kept'");
    });
}

fn serve_with_memory(postgres: &Postgres, threads: usize, memory: &str) -> Pooler {
    let config = format!(
        "[runtime]\nthreads = {threads}\n\n[pool]\nsize = 1\n\n[limits]\nmax_statement_memory = \"{memory}\"\n"
    );
    Pooler::serve(postgres, &config)
}

/// A text of 100 kB.
fn long_text(answer: usize) -> String {
    format!("select '{answer}' --{}", "x".repeat(100_000))
}

fn a_greedy_client_is_refused_while_memory_is_short_and_its_session_goes_on(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve_with_memory(&postgres, threads, "1MiB");
    let (mut greedy, mut modest) = (client(&pooler), client(&pooler));
    let ask = |client: &mut Raw, n: usize| {
        client.send(&Batch::new().parse(&n.to_string(), &long_text(n)).sync());
        client.read_until('Z')
    };
    let kept = (0..20).find(|n| short(&ask(&mut greedy, *n)) != "1Z");
    let kept = kept.expect("an end");
    assert!((5..12).contains(&kept), "{kept} of 100 kB in 1 MiB");
    let heard = ask(&mut greedy, kept);
    assert_eq!(short(&heard), "EZ");
    let error = heard[0].error();
    assert_eq!((error.code(), error.severity()), ("53200", "ERROR"));
    // As Postgres itself would: in a batch, in a transaction block, also before all of it is there.
    let batch = Batch::new().bind("", "0", &[]).execute("");
    let batch = batch.parse("new", &long_text(99)).bind("", "new", &[]);
    greedy.send(&batch.execute("").sync().query("select 'alive'"));
    assert_eq!(short(&greedy.read_until('Z')), "2DCEZ");
    assert_eq!(short(&greedy.read_until('Z')), "TDCZ");
    greedy.query("begin").unwrap();
    let whole = Batch::new().parse("new", &"x".repeat(5_000_000)).sync();
    greedy.send(&whole);
    let heard = greedy.read_until('Z');
    assert_eq!(
        (short(&heard).as_str(), heard[0].error().code()),
        ("EZ", "53200")
    );
    assert_eq!(greedy.error("select 1").code(), "25P02");
    greedy.query("rollback").unwrap();
    for n in 0..kept {
        assert_eq!(execute(&mut greedy, &n.to_string(), &[]), Ok(n.to_string()));
    }
    assert_eq!(execute(&mut greedy, "new", &[]), Err("26000".into()));
    // It is nobody else's matter.
    prepare(&mut modest, "s", "select 'modest'");
    assert_eq!(execute(&mut modest, "s", &[]), Ok("modest".into()));
    // What it gives up makes room, although the server has it still.
    for n in 1..kept {
        greedy.send(&Batch::new().close_statement(&n.to_string()).sync());
        assert_eq!(short(&greedy.read_until('Z')), "3Z");
    }
    let tried: Vec<_> = (0..2).map(|_| short(&ask(&mut greedy, 50))).collect();
    assert!(tried.contains(&"1Z".to_owned()), "{tried:?}");
    assert_eq!(execute(&mut greedy, "50", &[]), Ok("50".into()));
}

fn a_message_that_has_not_come_to_its_end_counts_too(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve_with_memory(&postgres, threads, "4MiB");
    let (mut slow, mut other) = (client(&pooler), client(&pooler));
    let ask = |other: &mut Raw| {
        other.send(&Batch::new().parse("s", &long_text(1)).sync());
        let heard = short(&other.read_until('Z'));
        other.send(&Batch::new().close_statement("s").sync());
        other.read_until('Z');
        heard
    };
    assert_eq!(ask(&mut other), "1Z");
    slow.query("select 1").unwrap();
    let message = Batch::new().parse("slow", &format!("select '{}'", "x".repeat(9_000_000)));
    slow.write(&message.bytes()[..8_000_000]).unwrap();
    // The server is the other's, unless the one who is slow has begun a batch.
    eventually("memory is short", || ask(&mut other) == "EZ");
    slow.reset();
    eventually("it is not", || ask(&mut other) == "1Z");
}

fn a_named_statement_is_as_long_as_the_limit_and_no_longer(threads: usize) {
    const LIMIT: usize = 16 * 1024 * 1024;
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = client(&pooler);
    let of_length = |length: usize| {
        let front = "select 'the end' --";
        let others = Batch::new().parse("long", front).bytes().len();
        let text = format!("{front}{}", "x".repeat(length - others));
        let message = Batch::new().parse("long", &text);
        assert_eq!(message.bytes().len(), length);
        message
    };
    let longest = of_length(LIMIT);
    for piece in longest.bytes().chunks(1_000_003) {
        client.write(piece).unwrap();
    }
    client.send(&Batch::new().sync());
    assert_eq!(short(&client.read_until('Z')), "1Z");
    assert_eq!(execute(&mut client, "long", &[]), Ok("the end".into()));
    // One byte more is refused before it is there.
    let too_long = of_length(LIMIT + 1);
    client.write(&too_long.bytes()[..1000]).unwrap();
    let heard = client.read_to_end();
    assert_eq!(
        (short(&heard).as_str(), heard[0].error().code()),
        ("E", "08P01")
    );
}
