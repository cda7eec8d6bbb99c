//! Session mode: a client gets its server connection at login and keeps it, and cannot tell pgweir from Postgres by it.

mod support;

use std::time::Duration;

use support::raw::{cancel_request, startup_packet, tags};
use support::{Batch, Pooler, Postgres, Raw, ServerError, eventually};

with_one_and_two_threads!(
    a_client_is_told_the_process_id_of_its_server,
    whoever_terminates_that_process_ends_the_session,
    a_cancel_with_that_process_id_reaches_the_query,
    notifications_name_their_sender,
    what_is_said_before_the_login_is_over_uses_that_connection,
    parameters_of_the_startup_are_in_force_from_the_first_query,
    a_client_waits_for_its_connection_at_login_and_is_told_when_there_is_none,
    who_gives_up_waiting_takes_no_connection,
    clients_hold_no_more_connections_than_the_caps_allow,
    the_next_client_finds_the_connection_as_new,
    a_client_that_never_asked_anything_leaves_at_a_drain,
    a_notice_of_the_servers_login_reaches_the_client,
);

fn config(threads: usize, more: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n[pool]\nmode = \"session\"\n{more}")
}

fn login(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

fn told(raw: &Raw) -> String {
    raw.key.as_ref().expect("a key").0.to_string()
}

fn a_client_is_told_the_process_id_of_its_server(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let mut clients: Vec<_> = (0..5).map(|_| login(&pooler)).collect();
    assert_eq!(postgres.connections(), 5, "from the login on");
    let keys: Vec<_> = clients.iter().map(|raw| raw.key.clone()).collect();
    for client in &mut clients {
        assert_eq!(client.value("select pg_backend_pid()"), told(client));
    }
    for (nth, key) in keys.iter().enumerate() {
        assert!(!keys[..nth].contains(key), "{key:?} twice");
    }
}

fn whoever_terminates_that_process_ends_the_session(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut silent, mut used, mut killer) = (login(&pooler), login(&pooler), login(&pooler));
    assert_eq!(used.value("select 1"), "1");
    for victim in [&mut silent, &mut used] {
        let kill = format!("select pg_terminate_backend({})", told(victim));
        assert_eq!(killer.value(&kill), "t");
        let said = victim.read_to_end();
        assert_eq!(tags(&said), "E");
        assert_eq!(said[0].error().code(), "57P01", "Postgres' own last words");
    }
    assert_eq!(killer.value("select 1"), "1");
}

fn a_cancel_with_that_process_id_reaches_the_query(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut client, mut other) = (login(&pooler), login(&pooler));
    let (pid, secret) = client.key.clone().expect("a key");
    let (_, of_other) = other.key.clone().expect("a key");
    client.send(&Batch::new().query("select pg_sleep(60)"));
    other.send(&Batch::new().query("select pg_sleep(1)"));
    eventually("they run", || postgres.busy() == 2);
    for (pid, secret) in [(pid, of_other), (pid + 1, secret.clone()), (pid, secret)] {
        let mut cancel = Raw::connect(pooler.port());
        cancel
            .write(&cancel_request(pid, &secret))
            .expect("it listens");
        assert!(cancel.read_bytes_to_end().is_empty());
    }
    let error = client.rows().expect_err("a cancel");
    assert_eq!(error.code(), "57014", "{error}");
    assert_eq!(client.value("select pg_backend_pid()"), told(&client));
    other.rows().expect("nobody meant this one");
}

fn notifications_name_their_sender(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut listener, mut sender) = (login(&pooler), login(&pooler));
    listener.query("listen news").expect("a command");
    sender.query("notify news").expect("a command");
    listener.send(&Batch::new().query("notify news").query("select 1"));
    let bodies = [listener.notifications(), listener.notifications()].concat();
    let sender_of = |body: &Vec<u8>| i32::from_be_bytes(*body.first_chunk().expect("its pid"));
    let mut senders: Vec<_> = bodies
        .iter()
        .map(|body| sender_of(body).to_string())
        .collect();
    senders.sort();
    let mut expected = [told(&sender), told(&listener)];
    expected.sort();
    assert_eq!(senders, expected);
}

fn what_is_said_before_the_login_is_over_uses_that_connection(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let startup = startup_packet(196_608, &[("user", "postgres")]);
    let query = Batch::new().query("select pg_backend_pid()");
    let all = [&startup, query.bytes()].concat();
    // Whole, cut within the query, and with a goodbye behind it.
    for cut in [all.len(), all.len() - 7, startup.len() + 3] {
        let mut client = Raw::connect(pooler.port());
        client.write(&all[..cut]).expect("it listens");
        client.read_until('Z');
        client.write(&all[cut..]).expect("it listens");
        let rows = client.rows().expect("an answer");
        assert_eq!(rows[0][0], Some(told(&client)), "cut at {cut}");
        client.goodbye();
    }
    let mut hasty = Raw::connect(pooler.port());
    let goodbye = Batch::new().terminate();
    hasty
        .write(&[&all, goodbye.bytes()].concat())
        .expect("it listens");
    hasty.read_to_end();
    let mut mute = Raw::connect(pooler.port());
    mute.write(&[&startup, goodbye.bytes()].concat())
        .expect("it listens");
    assert!(tags(&mute.read_to_end()).ends_with("Z(I)"));
    postgres.await_all_idle();
    assert_eq!(login(&pooler).value("select 1"), "1");
}

fn parameters_of_the_startup_are_in_force_from_the_first_query(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "size = 1\n"));
    for (path, zone) in [("a", "UTC"), ("b", "Asia/Tokyo")] {
        let mut client = Raw::connect(pooler.port());
        let startup = [
            ("user", "postgres"),
            ("application_name", path),
            ("TimeZone", zone),
            ("options", &format!("-c search_path={path} -c work_mem=1MB")),
        ];
        client.log_in(&startup, None).expect("a login");
        assert_eq!(client.parameters["TimeZone"], zone);
        assert_eq!(client.parameters["application_name"], path);
        let sql = "select concat_ws(' ', current_setting('search_path'), current_setting('work_mem'), \
                   current_setting('TimeZone'), current_setting('application_name'))";
        assert_eq!(client.value(sql), format!("{path} 1MB {zone} {path}"));
        client.goodbye();
    }
    let mut client = Raw::connect(pooler.port());
    let refusal = client
        .log_in(&[("user", "postgres"), ("work_mem", "much")], None)
        .expect_err("no number");
    assert_eq!((refusal.code(), refusal.severity()), ("22023", "FATAL"));
    assert_eq!(login(&pooler).value("show work_mem"), "4MB");
}

fn a_client_waits_for_its_connection_at_login_and_is_told_when_there_is_none(threads: usize) {
    let postgres = Postgres::start();
    let more = "size = 1\n\n[timeouts]\nquery_wait = \"1s\"\n";
    let pooler = Pooler::serve(&postgres, &config(threads, more));
    let first = login(&pooler);
    let refusal = Raw::try_login(pooler.port(), "postgres", "postgres", None)
        .err()
        .expect("nothing is free");
    assert_eq!(refusal.code(), "53300", "{refusal}");
    assert_eq!(refusal.severity(), "FATAL");
    assert_eq!(refusal.text(), "query_wait_timeout");
    let mut second = Raw::connect(pooler.port());
    second
        .write(&startup_packet(196_608, &[("user", "postgres")]))
        .expect("it listens");
    assert!(!second.hears_within(Duration::from_millis(100)));
    let pid = told(&first);
    first.goodbye();
    second.read_until('Z');
    assert_eq!(
        told(&second),
        pid,
        "the same server, and the same process id"
    );
    assert_eq!(second.value("select pg_backend_pid()"), pid);
}

fn who_gives_up_waiting_takes_no_connection(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "size = 1\n"));
    let first = login(&pooler);
    for _ in 0..3 {
        let mut second = Raw::connect(pooler.port());
        second
            .write(&startup_packet(196_608, &[("user", "postgres")]))
            .expect("it listens");
        assert!(!second.hears_within(Duration::from_millis(50)));
    }
    first.goodbye();
    assert_eq!(login(&pooler).value("select 1"), "1");
}

fn clients_hold_no_more_connections_than_the_caps_allow(threads: usize) {
    let postgres = Postgres::start();
    let more = "\n[budget]\nmax_servers = 3\ncheck_every = 0\n\n[timeouts]\nquery_wait = \"2s\"\n";
    let pooler = Pooler::serve(&postgres, &config(threads, more));
    let clients: Vec<_> = (0..3).map(|_| login(&pooler)).collect();
    let refusal = Raw::try_login(pooler.port(), "postgres", "template1", None);
    assert_eq!(refusal.err().expect("one too many").code(), "53300");
    assert_eq!(postgres.connections(), 3);
    drop(clients);
    // Also for another database: room is made.
    let mut other = Raw::login(pooler.port(), "postgres", "template1");
    assert_eq!(other.value("select pg_backend_pid()"), told(&other));
    assert!(postgres.connections() <= 3);
}

fn the_next_client_finds_the_connection_as_new(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "size = 1\n"));
    let mut first = login(&pooler);
    first
        .query("set work_mem = '1MB'; create temporary table t (n int); listen news; prepare p as select 1")
        .expect("commands");
    first.query("begin").expect("a command");
    let pid = told(&first);
    drop(first);
    let mut second = login(&pooler);
    assert_eq!(told(&second), pid);
    let sql = "select concat_ws(' ', current_setting('work_mem'), to_regclass('t'), \
               (select count(*) from pg_prepared_statements), (select count(*) from pg_listening_channels()))";
    assert_eq!(second.value(sql), "4MB 0 0");
}

fn a_client_that_never_asked_anything_leaves_at_a_drain(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &config(threads, ""));
    let mut silent = login(&pooler);
    let mut busy = login(&pooler);
    busy.query("begin").expect("a command");
    pooler.signal("TERM");
    let said = silent.read_to_end();
    assert_eq!(
        (tags(&said).as_str(), said[0].error().code()),
        ("E", "57P01")
    );
    busy.query("commit").expect("its transaction may end");
    assert!(pooler.await_end(Duration::from_secs(10)).success());
    eventually("they are gone", || postgres.connections() == 0);
}

/// In every mode: Postgres says it to whom it lets in.
fn a_notice_of_the_servers_login_reaches_the_client(threads: usize) {
    let postgres = Postgres::start();
    postgres.sql("create database odd");
    let warned = postgres
        .sql("update pg_database set datcollversion = '0' where datname = 'odd' and datcollate <> 'C' returning 1")
        .len();
    for mode in ["session", "transaction"] {
        let pooler = Pooler::serve(
            &postgres,
            &format!(
                "[runtime]\nthreads = {threads}\n\n[pool]\nmode = \"{mode}\"\n\n[databases.\"*\"]\n\
                 url = \"postgres://127.0.0.1:{{postgres}}\"\n\
                 connect_query = \"do $$ begin raise notice 'good morning'; raise warning 'rain'; end $$\"\n"
            ),
        );
        for _ in 0..2 {
            let mut client = Raw::connect(pooler.port());
            client
                .write(&startup_packet(
                    196_608,
                    &[("user", "postgres"), ("database", "odd")],
                ))
                .expect("it listens");
            let messages = client.read_until('Z');
            let notices: Vec<ServerError> = messages
                .iter()
                .filter(|message| message.tag == 'N')
                .map(support::Message::error)
                .collect();
            let texts: Vec<_> = notices.iter().map(ServerError::text).collect();
            assert_eq!(texts[warned..], ["good morning", "rain"], "{mode}");
            assert_eq!(client.value("select 1"), "1");
        }
    }
}
