//! Replication connections pass through: each has a server connection of its own, made with the client's own startup message.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::pgbouncer::{Kind, Place};
use support::postgres::program;
use support::process::run;
use support::raw::tags;
use support::{Batch, Method, Pooler, Postgres, Raw, eventually};

with_one_and_two_threads!(
    pg_receivewal_streams_through,
    pg_recvlogical_streams_through,
    pg_basebackup_copies_a_whole_cluster,
    a_role_that_may_not_replicate_is_told_by_postgres,
    any_option_of_the_startup_is_accepted,
    its_connection_counts_and_is_closed_behind_it,
    a_stream_leaves_at_a_drain,
    with_nobody_listed_postgres_decides_here_too,
    looked_up_roles_replicate_with_the_keys_they_have_shown,
);

fn postgres() -> Postgres {
    let postgres = Postgres::setup()
        .method(Method::Scram)
        .hba("host replication all 127.0.0.1/32 scram-sha-256")
        .setting("wal_level=logical")
        .setting("max_wal_senders=10")
        .setting("max_replication_slots=10")
        .start();
    postgres.sql("create role copier login replication password 'wonder'");
    postgres.sql("create role plain login password 'wonder'");
    postgres.sql("create table t (n int); grant all on t to public");
    postgres
}

fn config(threads: usize, more: &str) -> String {
    format!(
        "[runtime]\nthreads = {threads}\n\n[auth]\nusers_file = \"{{dir}}/users.txt\"\n\n{more}"
    )
}

fn serve(postgres: &Postgres, threads: usize, more: &str) -> Pooler {
    let users = "\"copier\" \"wonder\"\n\"plain\" \"wonder\"\n";
    Pooler::serve_with_users(postgres, &config(threads, more), users)
}

/// One of Postgres' own programs, through pgweir.
fn through(pooler: &Pooler, name: &str) -> Command {
    let mut command = program(name);
    command
        .args(["-h", "127.0.0.1", "-U", "copier"])
        .args(["-p", &pooler.port().to_string()])
        .env("PGPASSWORD", "wonder")
        .stdin(Stdio::null());
    command
}

/// One file, Postgres' own programs, and what they get.
#[test]
fn what_replicates_through_pgbouncer_replicates_through_pgweir_from_the_same_file() {
    for kind in [Kind::PgBouncer124, Kind::Pgweir] {
        let postgres = postgres();
        let place = Place::new();
        let directory = place.path().display().to_string();
        place.write("users.txt", "\"copier\" \"wonder\"\n\"plain\" \"wonder\"\n");
        place.write(
            "pgbouncer.ini",
            &format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
                 unix_socket_dir =\nlogfile = {directory}/log\nauth_type = scram-sha-256\n\
                 auth_file = {directory}/users.txt\npool_mode = transaction\nquery_timeout = 30\n",
                postgres.port(),
                place.port
            ),
        );
        let pooler = place.start(kind);
        let through = |name: &str, user: &str| {
            let mut command = program(name);
            command
                .args(["-h", "127.0.0.1", "-U", user])
                .args(["-p", &pooler.port().to_string()])
                .env("PGPASSWORD", "wonder")
                .stdin(Stdio::null());
            command
        };
        let path = |name: &str| format!("{directory}/{name}");
        let logical = || {
            let mut command = through("pg_recvlogical", "copier");
            command.args(["-d", "postgres", "-S", "slot"]);
            command
        };

        run(logical().args(["--create-slot", "-P", "test_decoding"]));
        postgres.sql("insert into t select generate_series(1, 10)");
        // Not all of it may be written yet.
        let end = postgres.value("select pg_current_wal_insert_lsn()");
        let changes = path("changes");
        run(logical().args(["--start", "--no-loop", "-f", &changes, "--endpos", &end]));
        let changes = fs::read_to_string(changes).expect("it was written");
        assert_eq!(
            changes.matches("INSERT: n[integer]").count(),
            10,
            "{changes}"
        );
        run(logical().arg("--drop-slot"));

        run(through("pg_basebackup", "copier").args([
            "-X",
            "stream",
            "-c",
            "fast",
            "-D",
            &path("copy"),
        ]));
        assert!(fs::exists(path("copy/PG_VERSION")).expect("a directory"));

        let wal = path("wal");
        fs::create_dir(&wal).expect("the directory is ours");
        let end = postgres.value("select pg_current_wal_lsn()");
        postgres.sql("insert into t values (11)");
        run(through("pg_receivewal", "copier").args(["--no-loop", "-D", &wal, "--endpos", &end]));
        assert!(fs::read_dir(&wal).expect("the directory").count() >= 1);

        let refused = through("pg_receivewal", "plain")
            .args(["--no-loop", "-D", &wal])
            .output()
            .expect("it is installed");
        let said = String::from_utf8_lossy(&refused.stderr);
        // Postgres' own words say more than PgBouncer's, which has them in its log.
        let words = "must be superuser or replication role";
        let told = match kind {
            Kind::Pgweir => words,
            _ => "login failed",
        };
        assert!(said.contains(told), "{said}");
        let log = pooler.place.read("log");
        assert!(log.contains(words), "{log}");
        assert!(log.contains("closing because: login failed (age="), "{log}");
        assert!(
            log.contains("db=postgres user=copier tls=no replication=database"),
            "{log}"
        );
        assert!(log.contains("user=copier tls=no replication=yes"), "{log}");
        assert!(
            log.contains("closing because: replication client was closed (age="),
            "{log}"
        );
    }
}

/// Ended at the end of a test, however it ends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("it is installed"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("its own child").is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn senders(postgres: &Postgres) -> usize {
    let count =
        postgres.value("select count(*) from pg_stat_replication where state = 'streaming'");
    count.parse().expect("a count")
}

fn backends(postgres: &Postgres) -> usize {
    let count =
        postgres.value("select count(*) from pg_stat_activity where backend_type = 'walsender'");
    count.parse().expect("a count")
}

fn pg_receivewal_streams_through(threads: usize) {
    let postgres = postgres();
    let pooler = serve(
        &postgres,
        threads,
        "[timeouts]\nquery = \"500ms\"\ntransaction = \"500ms\"\n",
    );
    let directory = pooler.directory().join("wal");
    fs::create_dir(&directory).expect("the directory is ours");
    let mut receiver = Running::start(
        through(&pooler, "pg_receivewal")
            .args(["--no-loop", "--synchronous", "-D"])
            .arg(&directory),
    );
    eventually("it streams", || senders(&postgres) == 1);
    postgres.sql("insert into t select generate_series(1, 1000)");
    let written = postgres.value("select pg_current_wal_lsn()");
    eventually("it has everything", || {
        let sql = format!("select bool_and(flush_lsn >= '{written}') from pg_stat_replication");
        postgres.value(&sql) == "t"
    });
    eventually("it has lasted longer than any timeout", || {
        let sql = "select bool_and(now() - backend_start > '1500ms') from pg_stat_replication";
        postgres.value(sql) != "f"
    });
    assert!(receiver.is_running(), "no timeout is meant for a stream");
    assert_eq!(senders(&postgres), 1);
    let files = fs::read_dir(&directory).expect("the directory").count();
    assert!(files >= 1, "a segment");
    drop(receiver);
    eventually("its connection is closed", || backends(&postgres) == 0);
}

fn pg_recvlogical_streams_through(threads: usize) {
    let postgres = postgres();
    let pooler = serve(&postgres, threads, "");
    let recvlogical = || {
        let mut command = through(&pooler, "pg_recvlogical");
        command.args(["-d", "postgres", "-S", "slot"]);
        command
    };
    run(recvlogical().args(["--create-slot", "-P", "test_decoding"]));
    let file = pooler.directory().join("changes");
    let receiver = Running::start(
        recvlogical()
            .args(["--start", "--no-loop", "-F", "0", "-f"])
            .arg(&file),
    );
    eventually("it streams", || senders(&postgres) == 1);
    postgres.sql("insert into t values (4711)");
    eventually("the change arrives", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("INSERT: n[integer]:4711"))
    });
    drop(receiver);
    eventually("its connection is closed", || backends(&postgres) == 0);
    run(recvlogical().arg("--drop-slot"));
}

fn pg_basebackup_copies_a_whole_cluster(threads: usize) {
    let postgres = postgres();
    postgres.sql("insert into t select generate_series(1, 1000)");
    // "auto": the budget is learned over a connection that understands no SQL.
    let pooler = serve(&postgres, threads, "[budget]\nmax_servers = \"auto\"\n");
    let directory = pooler.directory().join("copy");
    let mut backup = through(&pooler, "pg_basebackup");
    backup.args(["--checkpoint=fast", "--no-sync", "-X", "stream", "-D"]);
    run(backup.arg(&directory));
    assert!(directory.join("PG_VERSION").exists());
    run(program("pg_verifybackup").arg(&directory));
    eventually("their connections are closed", || backends(&postgres) == 0);
    assert!(pooler.log().contains("budget taken from Postgres"));
    let mut plain =
        Raw::try_login(pooler.port(), "plain", "postgres", Some("wonder")).expect("others come in");
    assert_eq!(plain.value("select count(*) from t"), "1000");
}

fn replicate(
    pooler: &Pooler,
    user: &str,
    more: &[(&str, &str)],
) -> Result<Raw, support::ServerError> {
    let mut raw = Raw::connect(pooler.port());
    let mut startup = vec![("user", user), ("database", "postgres")];
    startup.extend(more);
    raw.log_in(&startup, Some("wonder"))?;
    Ok(raw)
}

fn a_role_that_may_not_replicate_is_told_by_postgres(threads: usize) {
    let postgres = postgres();
    let pooler = serve(&postgres, threads, "");
    for kind in ["true", "database", "1"] {
        let refusal = replicate(&pooler, "plain", &[("replication", kind)])
            .err()
            .expect("no right to");
        assert_eq!(refusal.code(), "42501", "{refusal}");
        assert!(
            refusal.text().contains("walsender") || refusal.text().contains("WAL sender"),
            "{refusal}"
        );
    }
    let refusal = replicate(&pooler, "copier", &[("replication", "perhaps")])
        .err()
        .expect("no such kind");
    assert_eq!(refusal.code(), "22023", "{refusal}");
    for no in ["false", "off", "no", "0"] {
        let mut plain = replicate(&pooler, "plain", &[("replication", no)]).expect("a usual login");
        assert_eq!(plain.value("select 1"), "1");
    }
}

fn any_option_of_the_startup_is_accepted(threads: usize) {
    let postgres = postgres();
    let pooler = serve(&postgres, threads, "");
    for kind in ["true", "database"] {
        let more = [
            ("replication", kind),
            ("application_name", "standby"),
            (
                "options",
                "-c wal_sender_timeout=42s -c pgweir.deployment=v7 -c work_mem=1MB -B 16",
            ),
            ("TimeZone", "Asia/Tokyo"),
        ];
        // -B is no matter of a session: Postgres says so itself.
        let refusal = replicate(&pooler, "copier", &more)
            .err()
            .expect("shared_buffers");
        assert_eq!(refusal.code(), "55P02", "{refusal}");
        let more = more.map(|(name, value)| (name, value.trim_end_matches(" -B 16")));
        let mut raw = replicate(&pooler, "copier", &more).expect("a walsender");
        assert_eq!(raw.parameters["TimeZone"], "Asia/Tokyo");
        assert_eq!(raw.parameters["application_name"], "standby");
        assert_eq!(raw.value("SHOW wal_sender_timeout"), "42s");
        let unknown = raw.error("SHOW pgweir.deployment");
        assert_eq!(unknown.code(), "42704", "it is pgweir's own: {unknown}");
        raw.send(&Batch::new().query("IDENTIFY_SYSTEM"));
        assert_eq!(raw.tags_until_ready(), "T D C Z(I)");
        let (pid, _) = raw.key.clone().expect("a key");
        let sql = "select pid from pg_stat_activity where backend_type = 'walsender' and application_name = 'standby'";
        assert_eq!(postgres.value(sql), pid.to_string());
        raw.goodbye();
        eventually("it is gone", || backends(&postgres) == 0);
    }
}

fn its_connection_counts_and_is_closed_behind_it(threads: usize) {
    let postgres = postgres();
    let more = "[budget]\nmax_servers = 2\ncheck_every = 0\n\n[timeouts]\nquery_wait = \"2s\"\n";
    let pooler = serve(&postgres, threads, more);
    let physical = [("replication", "true")];
    let (one, two) = (
        replicate(&pooler, "copier", &physical).expect("a walsender"),
        replicate(&pooler, "copier", &physical).expect("a walsender"),
    );
    let refusal = replicate(&pooler, "copier", &physical)
        .err()
        .expect("one too many");
    assert_eq!(refusal.code(), "53300", "{refusal}");
    one.goodbye();
    two.reset();
    eventually("they are gone", || backends(&postgres) == 0);
    let mut plain = replicate(&pooler, "copier", &[]).expect("there is room");
    assert_eq!(plain.value("select 1"), "1");
    let sql = "select backend_type from pg_stat_activity where usename = 'copier'";
    assert_eq!(postgres.value(sql), "client backend");
}

fn a_stream_leaves_at_a_drain(threads: usize) {
    let postgres = postgres();
    let mut pooler = serve(&postgres, threads, "");
    let mut raw = replicate(&pooler, "copier", &[("replication", "true")]).expect("a walsender");
    let lsn = postgres.value("select pg_current_wal_flush_lsn()");
    raw.send(&Batch::new().query(&format!("START_REPLICATION {lsn}")));
    raw.read_until('W');
    pooler.signal("TERM");
    let said = raw.read_to_end();
    assert!(tags(&said).ends_with('E'), "{}", tags(&said));
    assert_eq!(said.last().expect("an error").error().code(), "57P01");
    assert!(pooler.await_end(Duration::from_secs(10)).success());
    eventually("it is gone", || backends(&postgres) == 0);
}

fn with_nobody_listed_postgres_decides_here_too(threads: usize) {
    let postgres = postgres();
    let toml = format!("[runtime]\nthreads = {threads}\n\n[auth]\nmethod = \"scram-sha-256\"\n");
    let pooler = Pooler::serve(&postgres, &toml);
    let mut raw = replicate(&pooler, "copier", &[("replication", "true")]).expect("a walsender");
    assert_eq!(raw.value("SHOW wal_level"), "logical");
    let mut wrong = Raw::connect(pooler.port());
    let startup = [("user", "copier"), ("replication", "true")];
    let refusal = wrong
        .log_in(&startup, Some("wrong"))
        .expect_err("the wrong password");
    assert_eq!(refusal.code(), "28P01", "{refusal}");
}

fn looked_up_roles_replicate_with_the_keys_they_have_shown(_threads: usize) {
    let postgres = postgres();
    postgres.sql("create role pgweir_auth superuser login password 'lookup'");
    let url = format!(
        "postgres://pgweir_auth:lookup@127.0.0.1:{}",
        postgres.port()
    );
    let pooler = Pooler::serve_to(&url);
    let mut raw =
        replicate(&pooler, "copier", &[("replication", "database")]).expect("a walsender");
    assert_eq!(raw.value("select current_user"), "copier");
}
