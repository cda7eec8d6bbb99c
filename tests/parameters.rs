//! Session parameters in transaction mode: what a client asked for or set is its own, on whichever server it runs.

mod support;

use std::sync::atomic::{AtomicU32, Ordering};

use support::raw::cancel_request;
use support::{Batch, Message, Pooler, Postgres, Raw, ServerError};

with_one_and_two_threads!(
    startup_parameters_belong_to_their_client,
    startup_options_reach_postgres,
    a_parameter_that_postgres_rejects_is_told_to_its_client_alone,
    the_parameters_told_at_login_are_a_real_servers,
    what_a_client_sets_follows_it_and_nobody_else,
    a_setting_that_was_rolled_back_is_not_kept,
    set_local_leaves_nothing_behind,
    set_config_and_functions_are_noticed,
    a_reset_brings_back_what_the_client_began_with,
    roles_follow_and_never_stay_behind,
    parameters_of_an_extension_follow,
    equal_parameters_cost_nothing,
    what_lives_in_a_session_keeps_its_server,
    a_parameter_that_stops_working_ends_only_its_own_session,
    a_setting_follows_where_statements_are_not_tracked,
    what_can_be_set_at_connection_start_alone_is_accepted,
    a_setting_is_noticed_however_it_arrives,
    a_setting_whose_client_leaves_at_once_stays_behind_for_nobody,
    an_authorization_is_not_lost_among_unknown_settings,
    settings_of_unknown_names_stay_behind_for_nobody,
    values_do_not_depend_on_the_encoding_of_the_client_before,
    a_cancel_at_any_moment_ends_no_session,
    what_drivers_ask_for_at_startup_is_accepted,
    an_empty_application_name_is_one,
    pg_dump_changes_nothing_for_others,
    a_short_timeout_of_one_client_hits_no_query_of_pgweirs_own,
    what_a_function_call_does_stays_with_its_client,
    a_search_path_of_temporary_tables_keeps_its_server,
    an_update_of_pg_settings_is_a_setting,
    what_is_made_behind_a_discard_all_in_one_packet_keeps_its_server,
);

fn serve(postgres: &Postgres, threads: usize, size: u32) -> Pooler {
    let config = format!("[runtime]\nthreads = {threads}\n\n[pool]\nsize = {size}\n");
    Pooler::serve(postgres, &config)
}

fn try_login(port: u16, parameters: &[(&str, &str)]) -> Result<Raw, ServerError> {
    let mut raw = Raw::connect(port);
    let startup = [
        &[("user", "postgres"), ("database", "postgres")],
        parameters,
    ]
    .concat();
    raw.log_in(&startup, None)?;
    Ok(raw)
}

fn login(pooler: &Pooler, parameters: &[(&str, &str)]) -> Raw {
    try_login(pooler.port(), parameters).unwrap_or_else(|error| panic!("{parameters:?}: {error}"))
}

fn show(client: &mut Raw, name: &str) -> String {
    client.value(&format!("select current_setting('{name}', true)"))
}

/// Runs `work` on each of `size` servers, by holding those that were used last.
fn on_every_server(pooler: &Pooler, size: usize, mut work: impl FnMut()) {
    let mut holders = vec![];
    work();
    for _ in 1..size {
        let mut holder = login(pooler, &[]);
        holder.query("begin").unwrap();
        holders.push(holder);
        work();
    }
}

fn startup_parameters_belong_to_their_client(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut tokyo = login(
        &pooler,
        &[("TimeZone", "Asia/Tokyo"), ("DateStyle", "German")],
    );
    let mut named = login(
        &pooler,
        &[("application_name", "site@v1"), ("extra_float_digits", "0")],
    );
    let mut plain = login(&pooler, &[]);
    on_every_server(&pooler, 2, || {
        assert_eq!(show(&mut tokyo, "TimeZone"), "Asia/Tokyo");
        assert_eq!(tokyo.value("select '2024-02-29'::date"), "29.02.2024");
        assert_eq!(show(&mut named, "application_name"), "site@v1");
        assert_eq!(named.value("select 1::float8 / 3"), "0.333333333333333");
        for name in ["TimeZone", "application_name", "extra_float_digits"] {
            let direct = try_login(postgres.port(), &[]).map(|mut raw| show(&mut raw, name));
            assert_eq!(Ok(show(&mut plain, name)), direct, "{name}");
        }
    });
}

fn startup_options_reach_postgres(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    postgres.sql("create schema \"odd one\"");
    let options = "-c search_path=\"odd\\ one\",public --statement-timeout=77s -cwork_mem=5MB -c app.tenant=7";
    let mut client = login(&pooler, &[("options", options)]);
    on_every_server(&pooler, 2, || {
        assert_eq!(client.value("select current_schema()"), "odd one");
        assert_eq!(show(&mut client, "statement_timeout"), "77s");
        assert_eq!(show(&mut client, "work_mem"), "5MB");
        assert_eq!(show(&mut client, "app.tenant"), "7");
    });
    let wrong = try_login(pooler.port(), &[("options", "-Z")])
        .err()
        .unwrap();
    assert_eq!((wrong.code(), wrong.severity()), ("42601", "FATAL"));
}

fn a_parameter_that_postgres_rejects_is_told_to_its_client_alone(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut witness = login(&pooler, &[]);
    for parameter in [
        ("TimeZone", "Nowhere/Land"),
        ("no_such_parameter", "1"),
        ("statement_timeout", "soon"),
        ("client_encoding", "KLINGON"),
        ("server_version", "1"),
    ] {
        let direct = try_login(postgres.port(), &[parameter]).err().unwrap();
        let through = try_login(pooler.port(), &[parameter]).err().unwrap();
        assert_eq!(through.severity(), "FATAL");
        assert_eq!(
            (through.code(), through.text()),
            (direct.code(), direct.text())
        );
        assert_eq!(witness.value("select 1"), "1");
    }
    assert_eq!(postgres.connections(), 1);
}

fn the_parameters_told_at_login_are_a_real_servers(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    for parameters in [
        &[][..],
        &[("application_name", "psql")],
        &[("DateStyle", "ISO"), ("client_encoding", "latin1")],
        &[("options", "-c TimeZone=PST8PDT -c IntervalStyle=iso_8601")],
        &[("options", "-c default_transaction_read_only=on")],
    ] {
        let direct = try_login(postgres.port(), parameters).unwrap();
        let through = login(&pooler, parameters);
        assert_eq!(through.parameters, direct.parameters, "{parameters:?}");
    }
}

fn what_a_client_sets_follows_it_and_nobody_else(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    let names = [
        "TimeZone",
        "statement_timeout",
        "search_path",
        "application_name",
    ];
    let before: Vec<_> = names.iter().map(|name| show(&mut other, name)).collect();
    client
        .query("set timezone = 'CET'; set session statement_timeout to '88s'")
        .unwrap();
    client
        .query("set search_path = pg_catalog, \"Odd\"")
        .unwrap();
    client.send(
        &Batch::new()
            .parse("", "set application_name = 'mine'")
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    client.read_until('Z');
    on_every_server(&pooler, 2, || {
        let now: Vec<_> = names.iter().map(|name| show(&mut client, name)).collect();
        assert_eq!(now, ["CET", "88s", "pg_catalog, \"Odd\"", "mine"]);
        let others: Vec<_> = names.iter().map(|name| show(&mut other, name)).collect();
        assert_eq!(others, before);
    });
}

fn a_setting_that_was_rolled_back_is_not_kept(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = login(&pooler, &[]);
    client.query("set work_mem = '7MB'").unwrap();
    client.query("begin").unwrap();
    client
        .query("set timezone = 'CET'; set work_mem = '9MB'")
        .unwrap();
    client.query("rollback").unwrap();
    client.error("set timezone = 'EST5EDT'; select 1 / 0");
    let direct = try_login(postgres.port(), &[]).map(|mut raw| show(&mut raw, "TimeZone"));
    on_every_server(&pooler, 2, || {
        assert_eq!(show(&mut client, "work_mem"), "7MB");
        assert_eq!(Ok(show(&mut client, "TimeZone")), direct);
    });
}

fn set_local_leaves_nothing_behind(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = login(&pooler, &[]);
    let direct = try_login(postgres.port(), &[]).map(|mut raw| show(&mut raw, "TimeZone"));
    client.query("begin").unwrap();
    client
        .query("set local timezone = 'CET'; select set_config('work_mem', '9MB', true)")
        .unwrap();
    assert_eq!(show(&mut client, "TimeZone"), "CET");
    client.query("commit").unwrap();
    on_every_server(&pooler, 2, || {
        assert_eq!(Ok(show(&mut client, "TimeZone")), direct);
        assert_eq!(show(&mut client, "work_mem"), "4MB");
    });
}

fn set_config_and_functions_are_noticed(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    // As pg_dump does.
    client
        .query("select pg_catalog.set_config('search_path', '', false)")
        .unwrap();
    client
        .query("select set_config(n, '9MB', false) from (values ('work_mem')) v(n)")
        .unwrap();
    assert_eq!(show(&mut other, "search_path"), "\"$user\", public");
    assert_eq!(show(&mut other, "work_mem"), "4MB");
    assert_eq!(show(&mut client, "search_path"), "");
    assert_eq!(show(&mut client, "work_mem"), "9MB");
    // What Postgres reports is noticed wherever it is done.
    other
        .query("create function f() returns void language sql as $$ set timezone = 'CET' $$")
        .unwrap();
    other.query("select f()").unwrap();
    assert_ne!(show(&mut client, "TimeZone"), "CET");
    assert_eq!(show(&mut other, "TimeZone"), "CET");
}

fn a_reset_brings_back_what_the_client_began_with(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let parameters = [("TimeZone", "Asia/Tokyo"), ("options", "-c work_mem=5MB")];
    for sql in ["reset all", "discard all", "select 1; RESET ALL"] {
        let mut client = login(&pooler, &parameters);
        client
            .query("set timezone = 'CET'; set work_mem = '9MB'; set app.x = 'y'")
            .unwrap();
        assert_eq!(client.parameters["TimeZone"], "CET");
        client.query(sql).unwrap();
        assert_eq!(client.parameters["TimeZone"], "Asia/Tokyo", "{sql}");
        on_every_server(&pooler, 2, || {
            assert_eq!(show(&mut client, "TimeZone"), "Asia/Tokyo", "{sql}");
            assert_eq!(show(&mut client, "work_mem"), "5MB", "{sql}");
        });
        let mut other = login(&pooler, &[]);
        assert_ne!(show(&mut other, "TimeZone"), "Asia/Tokyo");
        assert_eq!(show(&mut other, "work_mem"), "4MB");
    }
    // A reset that is rolled back is none.
    let mut client = login(&pooler, &[]);
    client.query("set timezone = 'CET'").unwrap();
    client.query("begin; reset all; rollback").unwrap();
    let mut other = login(&pooler, &[]);
    on_every_server(&pooler, 2, || {
        assert_eq!(show(&mut client, "TimeZone"), "CET");
        assert_ne!(show(&mut other, "TimeZone"), "CET");
    });
}

fn roles_follow_and_never_stay_behind(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role reader");
    postgres.sql("create role writer");
    let pooler = serve(&postgres, threads, 1);
    let mut reader = login(&pooler, &[("options", "-c role=reader")]);
    let mut plain = login(&pooler, &[]);
    let mut setter = login(&pooler, &[]);
    setter.query("set role writer").unwrap();
    for _ in 0..3 {
        assert_eq!(reader.value("select current_user"), "reader");
        assert_eq!(plain.value("select current_user"), "postgres");
        assert_eq!(setter.value("select current_user"), "writer");
    }
    setter.query("reset all").unwrap();
    assert_eq!(
        setter.value("select current_user"),
        "writer",
        "RESET ALL keeps the role"
    );
    setter.query("reset role").unwrap();
    assert_eq!(setter.value("select current_user"), "postgres");
    setter.query("set session authorization reader").unwrap();
    assert_eq!(plain.value("select session_user"), "postgres");
    assert_eq!(setter.value("select session_user"), "reader");
}

fn parameters_of_an_extension_follow(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut one, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    one.query("set app.user_id = '1'").unwrap();
    other
        .query("select set_config('app.user_id', '2', false)")
        .unwrap();
    for _ in 0..2 {
        assert_eq!(show(&mut one, "app.user_id"), "1");
        assert_eq!(show(&mut other, "app.user_id"), "2");
    }
    let mut third = login(&pooler, &[]);
    assert_ne!(
        third
            .query("select current_setting('app.user_id', true)")
            .unwrap()[0][0]
            .as_deref(),
        Some("2")
    );
}

fn equal_parameters_cost_nothing(threads: usize) {
    let postgres = Postgres::setup().setting("log_statement=all").start();
    let pooler = serve(&postgres, threads, 1);
    // DateStyle ISO is ISO, MDY in full: no reason to set it again and again.
    let mut short = login(
        &pooler,
        &[("DateStyle", "ISO"), ("client_encoding", "'utf-8'")],
    );
    let mut full = login(
        &pooler,
        &[("DateStyle", "ISO, MDY"), ("client_encoding", "UTF8")],
    );
    short.query("select 'warm'").unwrap();
    full.query("select 'warm'").unwrap();
    let changes = || postgres.log().matches("set_config").count();
    let before = changes();
    for _ in 0..5 {
        short.query("select 'short'").unwrap();
        full.query("select 'full'").unwrap();
    }
    assert_eq!(changes(), before);
}

fn what_lives_in_a_session_keeps_its_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let mut client = login(&pooler, &[]);
    let mut other = login(&pooler, &[]);
    client.query("create temp table mine (n int)").unwrap();
    client.query("insert into mine values (1)").unwrap();
    other.query("select 1").unwrap();
    assert_eq!(client.value("select n from mine"), "1");
    client.query("select pg_advisory_lock(1)").unwrap();
    client.query("prepare p as select 'p'").unwrap();
    assert_eq!(client.value("execute p"), "p");
    assert_ne!(client.backend(), other.backend());
    client.query("listen news").unwrap();
    other.query("notify news, 'hot'").unwrap();
    let heard: Vec<Message> = client.read_until('A');
    assert!(heard.last().unwrap().body.ends_with(b"hot\0"));
    client.goodbye();
    // It is made as new for the next.
    let mut holder = login(&pooler, &[]);
    holder.query("begin").unwrap();
    for _ in 0..2 {
        assert_eq!(other.error("execute p").code(), "26000");
        assert_eq!(other.error("select n from mine").code(), "42P01");
    }
    assert_eq!(
        postgres.value("select count(*) from pg_locks where locktype = 'advisory'"),
        "0"
    );
}

fn a_parameter_that_stops_working_ends_only_its_own_session(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create role passing");
    let pooler = serve(&postgres, threads, 1);
    let mut client = login(&pooler, &[("options", "-c role=passing")]);
    let mut other = login(&pooler, &[]);
    assert_eq!(client.value("select current_user"), "passing");
    assert_eq!(other.value("select current_user"), "postgres");
    postgres.sql("drop role passing");
    client.send(&Batch::new().query("create table made_by_the_wrong_role ()"));
    let heard = client.read_to_end();
    let error = heard.last().unwrap().error();
    assert_eq!((error.code(), error.severity()), ("22023", "FATAL"));
    assert_eq!(other.value("select current_user"), "postgres");
    assert_eq!(
        postgres.value("select count(*) from pg_class where relname = 'made_by_the_wrong_role'"),
        "0"
    );
}

fn a_setting_follows_where_statements_are_not_tracked(threads: usize) {
    let postgres = Postgres::start();
    let config = format!(
        "[runtime]\nthreads = {threads}\n\n[pool]\nsize = 1\nmax_prepared_statements = 0\n"
    );
    let pooler = Pooler::serve(&postgres, &config);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    client.query("set work_mem = '9MB'").unwrap();
    assert_eq!(show(&mut other, "work_mem"), "4MB");
    assert_eq!(show(&mut client, "work_mem"), "9MB");
}

fn what_can_be_set_at_connection_start_alone_is_accepted(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = login(
        &pooler,
        &[("options", "-c ignore_system_indexes=on -c work_mem=5MB")],
    );
    assert_eq!(show(&mut client, "work_mem"), "5MB");
}

fn a_setting_is_noticed_however_it_arrives(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    // Cut on its way.
    let two = Batch::new().query("select 1").query("set work_mem = '9MB'");
    let (front, rest) = two.bytes().split_at(two.bytes().len() - 18);
    client.write(front).unwrap();
    client.read_until('Z');
    client.write(rest).unwrap();
    client.read_until('Z');
    assert_eq!(show(&mut other, "work_mem"), "4MB");
    assert_eq!(show(&mut client, "work_mem"), "9MB");
    // Parsed in one transaction, run in another.
    client.send(&Batch::new().parse("", "set work_mem = '8MB'").sync());
    client.read_until('Z');
    client.send(&Batch::new().bind("", "", &[]).execute("").sync());
    client.read_until('Z');
    assert_eq!(show(&mut other, "work_mem"), "4MB");
    assert_eq!(show(&mut client, "work_mem"), "8MB");
}

fn a_setting_whose_client_leaves_at_once_stays_behind_for_nobody(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut other = login(&pooler, &[]);
    for _ in 0..10 {
        let mut hasty = login(&pooler, &[]);
        hasty.send(&Batch::new().query("set work_mem = '9MB'").terminate());
        hasty.read_to_end();
        assert_eq!(show(&mut other, "work_mem"), "4MB");
    }
}

fn an_authorization_is_not_lost_among_unknown_settings(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    postgres.sql("create role bob");
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    client.query("set session authorization bob").unwrap();
    client
        .query("select set_config('app.' || 'x', '7', false)")
        .unwrap();
    assert_eq!(other.value("select current_user"), "postgres");
    assert_eq!(client.value("select current_user"), "bob");
    client.query("reset all").unwrap();
    assert_eq!(other.value("select current_user"), "postgres");
    assert_eq!(client.value("select current_user"), "bob");
}

fn settings_of_unknown_names_stay_behind_for_nobody(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    client
        .query("select set_config('app.' || 'tenant', '7', false)")
        .unwrap();
    assert_eq!(show(&mut other, "app.tenant"), "");
}

fn values_do_not_depend_on_the_encoding_of_the_client_before(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut old = login(&pooler, &[("client_encoding", "SJIS")]);
    let mut new = login(&pooler, &[("options", "-c app.name=Zo\u{eb}\u{101}\\\\")]);
    for _ in 0..2 {
        old.value("select 1");
        assert_eq!(show(&mut new, "app.name"), "Zo\u{eb}\u{101}\\");
    }
}

fn a_cancel_at_any_moment_ends_no_session(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut client = login(&pooler, &[("TimeZone", "CET"), ("application_name", "one")]);
    let mut other = login(&pooler, &[("TimeZone", "PST8PDT")]);
    let (process, secret) = client.key.clone().unwrap();
    let (port, rounds_left) = (pooler.port(), AtomicU32::new(200));
    let left = || rounds_left.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = (0, 0);
                // Until the rounds are over, or stand still because one has failed.
                while left() > 0 && last.1 < 10_000 {
                    last = if last.0 == left() {
                        (last.0, last.1 + 1)
                    } else {
                        (left(), 0)
                    };
                    let mut cancel = Raw::connect(port);
                    let _ = cancel.write(&cancel_request(process, &secret));
                    cancel.read_bytes_to_end();
                }
            });
        }
        while left() > 0 {
            rounds_left.fetch_sub(1, Ordering::Relaxed);
            other.query("select 1").unwrap();
            match client.query("select current_setting('timezone')") {
                Ok(rows) => assert_eq!(rows[0][0].as_deref(), Some("CET")),
                Err(error) => assert_eq!((error.code(), error.severity()), ("57014", "ERROR")),
            }
        }
    });
}

fn a_short_timeout_of_one_client_hits_no_query_of_pgweirs_own(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut hasty = login(&pooler, &[("options", "-c statement_timeout=1ms")]);
    // So many that giving them to a session takes longer than that.
    let many: Vec<_> = (0..300).map(|n| format!("-c a.b{n}=1")).collect();
    let many = many.join(" ");
    let mut other = login(&pooler, &[("TimeZone", "CET"), ("options", &many)]);
    for _ in 0..20 {
        // Whether its own query is in time is nobody else's matter.
        hasty.send(&Batch::new().query("select 1"));
        hasty.read_until('Z');
        assert_eq!(show(&mut other, "TimeZone"), "CET");
        assert_eq!(show(&mut other, "a.b299"), "1");
        assert_eq!(show(&mut other, "statement_timeout"), "0");
    }
    // What it sets under so short a timeout stays with it, if need be with its server.
    let pooler = serve(&postgres, threads, 2);
    let mut hasty = login(&pooler, &[("options", "-c statement_timeout=1ms")]);
    let mut other = login(&pooler, &[]);
    hasty.send(&Batch::new().query("select set_config('work_' || 'mem', '9MB', false)"));
    if hasty.read().tag == 'T' {
        hasty.read_until('Z');
        assert_eq!(show(&mut other, "work_mem"), "4MB");
    }
}

fn what_a_function_call_does_stays_with_its_client(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    let function: u32 = postgres
        .value("select 'pg_catalog.set_config'::regproc::oid")
        .parse()
        .unwrap();
    let mut call = function.to_be_bytes().to_vec();
    call.extend([0, 0, 0, 3]);
    for argument in ["work_mem", "9MB", "false"] {
        call.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        call.extend(argument.as_bytes());
    }
    call.extend([0, 0]);
    client.send(&Batch::new().message(b'F', &call));
    assert_eq!(client.read_until('Z')[0].tag, 'V');
    for _ in 0..3 {
        assert_eq!(show(&mut other, "work_mem"), "4MB");
        assert_eq!(show(&mut client, "work_mem"), "9MB");
    }
}

fn a_search_path_of_temporary_tables_keeps_its_server(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table t (n int)");
    let pooler = serve(&postgres, threads, 2);
    let mut other = login(&pooler, &[]);
    let options = [("options", "-c search_path=pg_temp,public")];
    let mut asked = login(&pooler, &options);
    asked.query("create table t (mine int)").unwrap();
    other.query("select n from t").unwrap();
    asked.query("select mine from t").unwrap();
    asked.goodbye();
    let mut set = login(&pooler, &[]);
    set.query("begin; set local search_path = pg_temp; create table t (mine int); commit")
        .unwrap();
    other.query("select n from t").unwrap();
    set.query("select mine from t").unwrap();
}

fn an_update_of_pg_settings_is_a_setting(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    client
        .query("update pg_settings set setting = 'off' where name = 'enable_seqscan'")
        .unwrap();
    assert_eq!(show(&mut other, "enable_seqscan"), "on");
    assert_eq!(show(&mut client, "enable_seqscan"), "off");
}

/// pgjdbc, lib/pq, DBeaver, Npgsql, Excel's ODBC, psycopg.
fn what_drivers_ask_for_at_startup_is_accepted(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut plain = login(&pooler, &[]);
    let float_digits = show(&mut plain, "extra_float_digits");
    for parameters in [
        &[
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "Europe/Berlin"),
            ("extra_float_digits", "2"),
        ][..],
        &[("extra_float_digits", "2"), ("datestyle", "ISO, MDY")],
        &[("geqo", "on"), ("client_encoding", "WIN1252")],
        &[
            ("options", "-c geqo=off"),
            ("fallback_application_name", "x"),
        ],
        &[("_pq_.unheard_of", "1"), ("search_path", "public")],
    ] {
        let direct = try_login(postgres.port(), parameters);
        let through = try_login(pooler.port(), parameters);
        match (direct, through) {
            (Ok(direct), Ok(through)) => assert_eq!(direct.parameters, through.parameters),
            (Err(direct), Err(through)) => assert_eq!(
                (direct.code(), direct.text()),
                (through.code(), through.text())
            ),
            (direct, _) => panic!("{parameters:?}: direct {:?}", direct.err()),
        }
        assert_eq!(show(&mut plain, "extra_float_digits"), float_digits);
    }
}

fn an_empty_application_name_is_one(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 1);
    let mut named = login(&pooler, &[("application_name", "named")]);
    let mut empty = login(&pooler, &[("application_name", "")]);
    let mut none = login(&pooler, &[]);
    for _ in 0..2 {
        assert_eq!(show(&mut named, "application_name"), "named");
        assert_eq!(show(&mut empty, "application_name"), "");
        assert_eq!(show(&mut none, "application_name"), "");
    }
    empty.query("set application_name = 'now'").unwrap();
    assert_eq!(show(&mut none, "application_name"), "");
    assert_eq!(show(&mut empty, "application_name"), "now");
}

fn pg_dump_changes_nothing_for_others(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create table dumped as select generate_series(1, 10) as n");
    let pooler = serve(&postgres, threads, 1);
    let mut other = login(&pooler, &[]);
    let settings = "select name, setting from pg_settings \
        where name <> 'application_name' and name not like 'transaction%' order by name";
    let before = other.query(settings).unwrap();
    let dump = support::postgres::program("pg_dump")
        .args(["--dbname", &pooler.url("postgres", "postgres")])
        .output()
        .unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(dump.contains("COPY public.dumped"), "{dump}");
    assert_eq!(other.query(settings).unwrap(), before);
    assert_eq!(other.value("select count(*) from dumped"), "10");
}

fn what_is_made_behind_a_discard_all_in_one_packet_keeps_its_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = serve(&postgres, threads, 2);
    let (mut client, mut other) = (login(&pooler, &[]), login(&pooler, &[]));
    let discard = Batch::new().query("discard all");
    for batch in [
        discard.then(&Batch::new().query("create temp table mine (n int)")),
        Batch::new()
            .parse("", "discard all")
            .bind("", "", &[])
            .execute("")
            .sync()
            .query("create temp table mine (n int)"),
    ] {
        client.send(&batch);
        client.read_until('Z');
        client.read_until('Z');
        for _ in 0..3 {
            assert_eq!(other.error("select n from mine").code(), "42P01");
            client.query("select n from mine").unwrap();
        }
        // Alone it gives the server connection back.
        client.query("discard all").unwrap();
        other.query("select 1").unwrap();
    }
}
