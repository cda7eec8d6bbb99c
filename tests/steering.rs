//! What operators do with a running pgweir: pause, resume, kill, set, end. By signal and on the console.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::postgres::psql;
use support::process::send_signal;
use support::{Batch, Pooler, Postgres, Raw, eventually};

with_one_and_two_threads!(
    sigusr1_pauses_and_sigusr2_resumes,
    sigquit_ends_at_once_and_tells_clients_why,
    a_database_that_moves_counts_on_its_new_host,
    a_budget_that_becomes_automatic_is_asked_of_postgres,
    caps_on_databases_and_users_change_at_a_reload,
    pause_waits_for_transactions_and_clients_wait_for_resume,
    pause_is_undone_by_ctrl_c,
    pause_in_session_mode_waits_for_clients,
    suspend_keeps_what_is_idle,
    a_disabled_database_takes_no_new_clients,
    reconnect_replaces_what_comes_back_and_wait_close_waits_for_it,
    kill_drops_clients_and_leaves_the_database_paused,
    a_client_is_killed_by_its_number,
    shutdown_when_the_last_client_has_left,
    shutdown_when_no_server_connection_is_left,
);

/// postgres is an admin, bob may look.
const RIGHTS: &str =
    "[auth]\nmethod = \"trust\"\nusers_file = \"{dir}/users.txt\"\nstats = [\"bob\"]\n";

fn config(threads: usize, rest: &str) -> String {
    format!("{RIGHTS}[runtime]\nthreads = {threads}\n\n{rest}")
}

fn login(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

/// What psql says to a command on the console.
fn ask(pooler: &Pooler, sql: &str) -> String {
    // The tags of commands are told, too.
    let mut psql = pooler.psql("postgres", "pgbouncer");
    said(psql.args(["-v", "QUIET=0", "-c", sql]))
}

/// What a psql that may fail says, on both channels.
fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("psql starts");
    let both = [output.stdout, output.stderr];
    both.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

/// A psql that gives a command which takes time.
fn begin(pooler: &Pooler, sql: &str) -> Child {
    let mut psql = pooler.psql("postgres", "pgbouncer");
    psql.args(["-c", sql])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    psql.spawn().expect("psql starts")
}

fn end_of(child: Child) -> String {
    let output = child.wait_with_output().expect("psql ends");
    let both = [output.stdout, output.stderr];
    both.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

/// A console by protocol, which can be left waiting.
fn console(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "pgweir")
}

const MOMENT: Duration = Duration::from_millis(200);

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
    // Seven for ordinary users, less the headroom: three for clients, and the monitor's.
    eventually("three are served", || postgres.busy() == 3);
    eventually("the monitor is there", || postgres.connections() == 4);
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

fn pause_waits_for_transactions_and_clients_wait_for_resume(threads: usize) {
    let postgres = Postgres::start();
    postgres.create_database("other");
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut open, mut idle) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    assert_eq!(idle.value("select 1"), "1");
    let mut console = console(&pooler);
    console.send(&Batch::new().query("PAUSE postgres"));
    assert!(!console.hears_within(MOMENT));
    idle.send(&Batch::new().query("select 2"));
    assert!(!idle.hears_within(MOMENT));
    // Nobody else waits for that.
    let mut other = Raw::login(pooler.port(), "postgres", "other");
    assert_eq!(other.value("select 3"), "3");
    open.query("commit").expect("its end");
    assert_eq!(console.tags_until_ready(), "C Z(I)");
    assert_eq!(
        postgres.value("select count(*) from pg_stat_activity where application_name = 'pgweir' and datname = 'postgres'"),
        "0"
    );
    assert!(ask(&pooler, "RESUME").contains("pooler is not paused/suspended"));
    assert!(ask(&pooler, "RESUME other").contains("database other is not paused"));
    assert!(ask(&pooler, "PAUSE pgbouncer").contains("cannot pause admin db: pgbouncer"));
    assert_eq!(ask(&pooler, "RESUME postgres").trim(), "RESUME");
    let rows = idle.rows().expect("it goes on");
    assert_eq!(rows, [[Some("2".to_owned())]]);

    assert_eq!(ask(&pooler, "pause;").trim(), "PAUSE");
    assert!(ask(&pooler, "PAUSE").contains("already suspended/paused"));
    assert!(ask(&pooler, "SUSPEND").contains("already suspended/paused"));
    // Of a database that nobody has used before, too.
    other.send(&Batch::new().query("select 4"));
    assert!(!other.hears_within(MOMENT));
    console.send(
        &Batch::new()
            .parse("", "RESUME")
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(console.tags_until_ready(), "1 2 C Z(I)");
    other.rows().expect("it goes on");
}

fn pause_is_undone_by_ctrl_c(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut open, mut other) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    for command in ["PAUSE", "PAUSE postgres", "SUSPEND"] {
        let pausing = begin(&pooler, command);
        eventually("clients wait", || {
            let mut waiter = login(&pooler);
            waiter.send(&Batch::new().query("select 1"));
            !waiter.hears_within(MOMENT)
        });
        send_signal(pausing.id(), "INT");
        let said = end_of(pausing);
        assert!(said.contains("canceling statement"), "{command}: {said}");
        assert_eq!(other.value("select 1"), "1", "{command}");
    }
    // Who only goes away has given up, too.
    let mut pausing = console(&pooler);
    pausing.send(&Batch::new().query("PAUSE"));
    assert!(!pausing.hears_within(MOMENT));
    drop(pausing);
    assert_eq!(other.value("select 1"), "1");
    open.query("commit").expect("its end");
}

fn pause_in_session_mode_waits_for_clients(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nmode = \"session\"\n"));
    let mut client = login(&pooler);
    let mut console = console(&pooler);
    console.send(&Batch::new().query("PAUSE"));
    assert!(!console.hears_within(MOMENT));
    assert_eq!(client.value("select 1"), "1");
    client.goodbye();
    assert_eq!(console.tags_until_ready(), "C Z(I)");
    assert_eq!(postgres.connections(), 0);
}

fn suspend_keeps_what_is_idle(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut open, mut other) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    let server = other.backend();
    let mut console = console(&pooler);
    console.send(&Batch::new().query("SUSPEND"));
    assert!(!console.hears_within(MOMENT));
    other.send(&Batch::new().query("select pg_backend_pid()"));
    open.query("commit").expect("its end");
    assert_eq!(console.tags_until_ready(), "C Z(I)");
    assert!(!other.hears_within(MOMENT));
    assert_eq!(postgres.connections(), 2);
    assert!(ask(&pooler, "SHOW STATE").contains("suspended|yes"));
    assert_eq!(ask(&pooler, "RESUME").trim(), "RESUME");
    other.rows().expect("it goes on");
    drop(server);
}

fn a_disabled_database_takes_no_new_clients(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let mut inside = login(&pooler);
    assert_eq!(ask(&pooler, "DISABLE postgres").trim(), "DISABLE");
    let refused = Raw::try_login(pooler.port(), "postgres", "postgres", None);
    let refused = refused.err().expect("it is disabled");
    assert_eq!(refused.text(), "database \"postgres\" is disabled");
    assert_eq!(inside.value("select 1"), "1");
    assert_eq!(ask(&pooler, "ENABLE postgres").trim(), "ENABLE");
    assert_eq!(login(&pooler).value("select 1"), "1");
    assert!(ask(&pooler, "DISABLE").contains("a database is required"));
}

fn reconnect_replaces_what_comes_back_and_wait_close_waits_for_it(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut open, mut other) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    let (of_open, of_other) = (open.backend(), other.backend());
    assert_eq!(ask(&pooler, "RECONNECT").trim(), "RECONNECT");
    assert_ne!(other.backend(), of_other);
    assert_eq!(open.backend(), of_open);
    let mut console = console(&pooler);
    console.send(&Batch::new().query("WAIT_CLOSE postgres"));
    assert!(!console.hears_within(MOMENT));
    open.query("commit").expect("its end");
    assert_eq!(console.tags_until_ready(), "C Z(I)");
    let left = format!("select count(*) from pg_stat_activity where pid = {of_open}");
    assert_eq!(postgres.value(&left), "0");
}

fn kill_drops_clients_and_leaves_the_database_paused(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let (mut running, mut idle) = (login(&pooler), login(&pooler));
    running.send(&Batch::new().query("begin; select pg_sleep(60)"));
    eventually("it runs", || postgres.busy() == 1);
    assert_eq!(ask(&pooler, "KILL postgres").trim(), "KILL");
    for client in [&mut running, &mut idle] {
        let words = client.read_to_end();
        assert_eq!(words.last().expect("last words").error().code(), "57P01");
    }
    eventually("none is left", || postgres.connections() == 0);
    assert!(ask(&pooler, "SHOW DATABASES").contains("postgres|"));
    assert_eq!(ask(&pooler, "RESUME postgres").trim(), "RESUME");
    assert_eq!(login(&pooler).value("select 1"), "1");
    assert_eq!(ask(&pooler, "KILL").trim(), "KILL");
    assert_eq!(ask(&pooler, "RESUME").trim(), "RESUME");
}

fn a_client_is_killed_by_its_number(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, ""));
    let mut client = login(&pooler);
    let line = pooler.await_log("its login", |line| line.contains("login id="));
    let id = line
        .split("id=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let id = id.expect("its number");
    assert_eq!(
        ask(&pooler, &format!("KILL_CLIENT {id}")).trim(),
        "KILL_CLIENT"
    );
    let words = client.read_to_end();
    assert_eq!(words.last().expect("last words").error().code(), "57P01");
    eventually("it is gone", || {
        ask(&pooler, &format!("KILL_CLIENT {id}")).contains("client not found")
    });
    assert!(ask(&pooler, "KILL_CLIENT x").contains("invalid client pointer supplied"));
}

/// Over the unix socket, which is there until the end.
fn ask_locally(pooler: &Pooler, user: &str, database: &str, sql: &str) -> String {
    let mut command = psql(pooler.port(), user, database);
    command.arg("-h").arg(pooler.directory());
    said(command.args(["-w", "-c", sql]))
}

fn with_socket(threads: usize) -> String {
    let listen =
        "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nunix_socket_dir = \"{dir}\"\nhttp = \"\"\n";
    config(threads, listen)
}

fn shutdown_when_the_last_client_has_left(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &with_socket(threads));
    let mut client = login(&pooler);
    assert_eq!(ask(&pooler, "SHUTDOWN WAIT_FOR_CLIENTS").trim(), "SHUTDOWN");
    eventually("nobody new is accepted", || !pooler.listens());
    assert_eq!(client.value("select 1"), "1");
    let refused = ask_locally(&pooler, "alice", "postgres", "select 1");
    assert!(refused.contains("shutting down"), "{refused}");
    let refused = ask_locally(&pooler, "bob", "pgbouncer", "SHOW VERSION");
    assert!(refused.contains("shutting down"), "{refused}");
    let refused = ask_locally(&pooler, "postgres", "pgbouncer", "RESUME");
    assert!(refused.contains("pooler is shutting down"), "{refused}");
    assert!(pooler.ended().is_none());
    client.goodbye();
    assert_eq!(pooler.await_end(Duration::from_secs(10)).code(), Some(0));
}

fn shutdown_when_no_server_connection_is_left(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &with_socket(threads));
    let (mut open, mut waiter) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    assert_eq!(ask(&pooler, "SHUTDOWN WAIT_FOR_SERVERS").trim(), "SHUTDOWN");
    eventually("nobody new is accepted", || !pooler.listens());
    waiter.send(&Batch::new().query("select 1"));
    assert!(!waiter.hears_within(MOMENT));
    assert_eq!(open.value("select 1"), "1");
    open.query("commit").expect("its end");
    assert_eq!(pooler.await_end(Duration::from_secs(10)).code(), Some(0));
    let words = waiter.read_to_end();
    assert_eq!(words.last().expect("last words").error().code(), "57P01");
}

#[test]
fn shutdown_at_once() {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &config(1, ""));
    let mut open = login(&pooler);
    open.query("begin").expect("a transaction");
    ask(&pooler, "SHUTDOWN");
    assert_eq!(pooler.await_end(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn who_may_only_look_changes_nothing() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(1, ""));
    for command in [
        "PAUSE",
        "PAUSE postgres",
        "RESUME",
        "DISABLE postgres",
        "ENABLE postgres",
        "RECONNECT",
        "KILL",
        "KILL_CLIENT 1",
        "SUSPEND",
        "SHUTDOWN",
        "SHUTDOWN WAIT_FOR_CLIENTS",
        "RELOAD",
        "WAIT_CLOSE",
        "SET pool.size = 3",
    ] {
        let refused = said(pooler.psql("bob", "pgbouncer").args(["-c", command]));
        assert!(
            refused.contains("admin access needed"),
            "{command}: {refused}"
        );
    }
    assert_eq!(login(&pooler).value("select 1"), "1");
}

#[test]
fn a_database_that_is_not_served_cannot_be_steered() {
    let postgres = Postgres::start();
    let only = format!(
        "[databases.postgres]\nurl = \"postgres://127.0.0.1:{}\"\n",
        postgres.port()
    );
    let pooler = Pooler::serve(&postgres, &config(1, &only));
    for command in [
        "PAUSE",
        "RESUME",
        "DISABLE",
        "ENABLE",
        "RECONNECT",
        "KILL",
        "WAIT_CLOSE",
    ] {
        let refused = ask(&pooler, &format!("{command} none"));
        assert!(
            refused.contains("ERROR:  08P01: no such database: none"),
            "{command}: {refused}"
        );
    }
}

#[test]
fn a_setting_is_set_until_the_file_is_read_again() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(1, "[pool]\nsize = 1\n"));
    let mut open = login(&pooler);
    open.query("begin").expect("a transaction");
    let mut waiter = login(&pooler);
    waiter.send(&Batch::new().query("select 1"));
    assert!(!waiter.hears_within(MOMENT));
    assert_eq!(
        ask(&pooler, "SET default_pool_size = 2").trim(),
        "SET default_pool_size=2"
    );
    waiter.rows().expect("it is served");
    assert_eq!(
        ask(&pooler, "set timeouts.query to '5s'").trim(),
        "SET timeouts.query=5s"
    );
    let shown = ask(&pooler, "SHOW CONFIG");
    for line in ["pool.size|2|", "timeouts.query|5s|"] {
        assert!(shown.contains(line), "{shown}");
    }
    let mut console = console(&pooler);
    console.send(
        &Batch::new()
            .parse("", "SET log.level = 'debug'")
            .bind("", "", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(console.tags_until_ready(), "1 2 C Z(I)");
    ask(&pooler, "RECONNECT");
    pooler.await_log("what is told at this level", |line| line.contains("DEBUG"));

    for (wrong, why) in [
        ("pool.size = 'many'", "size must be"),
        ("pool.sise = 3", "did you mean"),
        (
            "listen.http = ''",
            "listen.http cannot be changed while pgweir runs",
        ),
    ] {
        let refused = ask(&pooler, &format!("SET {wrong}"));
        assert!(refused.contains("ERROR:  08P01: SET failed"), "{refused}");
        assert!(
            refused.contains("DETAIL:") && refused.contains(why),
            "{refused}"
        );
    }
    assert_eq!(ask(&pooler, "RELOAD").trim(), "RELOAD");
    let shown = ask(&pooler, "SHOW CONFIG");
    assert!(
        shown.contains("pool.size|1|") && shown.contains("timeouts.query|0|"),
        "{shown}"
    );

    pooler.rewrite(&config(1, "[pool]\nsize = \"many\"\n"));
    let refused = ask(&pooler, "RELOAD");
    assert!(
        refused.contains("ERROR:  F0000: RELOAD failed"),
        "{refused}"
    );
    assert!(refused.contains("size must be"), "{refused}");
}
