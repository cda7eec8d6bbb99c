//! The console, asked by psql and by protocol.

mod support;

use std::process::Command;

use support::postgres::psql;
use support::process::run;
use support::{Batch, Pooler, Postgres, Raw};

/// postgres is an admin, bob may look, alice is nobody.
const RIGHTS: &str = "[auth]\nmethod = \"trust\"\nusers_file = \"{dir}/users.txt\"\nadmins = [\"postgres\"]\nstats = [\"bob\"]\n";

/// What a psql that may fail says, on both channels.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

fn ask(pooler: &Pooler, user: &str, sql: &str) -> String {
    said(pooler.psql(user, "pgbouncer").args(["-c", sql]))
}

#[test]
fn psql_reads_the_tables_of_the_console() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    postgres.create_role("alice", "secret");
    run(pooler.psql("alice", "postgres").args(["-c", "SELECT 1"]));

    let version = ask(&pooler, "postgres", "SHOW VERSION");
    assert!(version.contains("PgBouncer 1.25.0 (pgweir "), "{version}");
    let help = ask(&pooler, "postgres", "show help;");
    assert!(help.contains("NOTICE:  00000: Console usage"), "{help}");
    assert!(help.contains("\tSHOW POOLS"), "{help}");
    let pools = ask(&pooler, "postgres", "SHOW POOLS");
    assert!(pools.contains("postgres|alice|0|0|"), "{pools}");
    let databases = ask(&pooler, "postgres", "SHOW DATABASES");
    assert!(databases.contains("postgres|127.0.0.1|"), "{databases}");
    let config = ask(&pooler, "postgres", "SHOW CONFIG");
    assert!(config.contains("auth.stats|bob||yes"), "{config}");
    assert!(
        config.contains("limits.max_message_size|1GiB|1GiB|yes"),
        "{config}"
    );
    let users = ask(&pooler, "postgres", "SHOW USERS");
    assert!(users.contains("bob|||"), "{users}");
    let wrong = ask(&pooler, "postgres", "SHOW NONSENSE");
    let expected = "ERROR:  08P01: invalid command 'SHOW NONSENSE', use SHOW HELP;";
    assert!(wrong.contains(expected), "{wrong}");
}

#[test]
fn who_is_listed_nowhere_gets_nothing() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let refused = ask(&pooler, "alice", "SHOW VERSION");
    assert!(refused.contains("not allowed"), "{refused}");
    assert!(ask(&pooler, "bob", "SHOW VERSION").contains("pgweir"));
    pooler.await_log("the refusal", |log| log.contains("not_allowed"));
}

#[test]
fn the_owner_of_the_process_needs_no_password_over_the_unix_socket() {
    let postgres = Postgres::start();
    let toml = "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nunix_socket_dir = \"{dir}\"\n\
                [auth]\nmethod = \"scram-sha-256\"\nusers_file = \"{dir}/users.txt\"\n";
    let pooler = Pooler::serve(&postgres, toml);
    let local = |user: &str| {
        let mut command = psql(pooler.port(), user, "pgweir");
        command.arg("-h").arg(pooler.directory());
        said(command.args(["-w", "-c", "SHOW VERSION"]))
    };
    assert!(local("pgbouncer").contains("pgweir"));
    assert!(local("pgweir").contains("pgweir"));
    let refused = local("postgres");
    assert!(refused.contains("password"), "{refused}");
    let over_tcp = said(
        pooler
            .psql("pgbouncer", "pgweir")
            .args(["-w", "-c", "SHOW VERSION"]),
    );
    assert!(over_tcp.contains("password"), "{over_tcp}");
}

#[test]
fn the_extended_protocol_works_and_an_error_skips_to_sync() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut raw = Raw::login(pooler.port(), "postgres", "pgbouncer");
    raw.send(
        &Batch::new()
            .parse("s", "SHOW LISTS")
            .describe_statement("s")
            .bind("", "s", &[])
            .execute_rows("", 3)
            .execute("")
            .sync()
            .parse("", "SHOW NONSENSE")
            .describe_statement("")
            .sync()
            .query("BEGIN; SHOW VERSION")
            .query("COMMIT"),
    );
    assert_eq!(
        raw.tags_until_ready(),
        "1 t T 2 D D D s D D D D D D D D D D D C Z(I)"
    );
    assert_eq!(raw.tags_until_ready(), "E Z(I)");
    assert_eq!(raw.tags_until_ready(), "C T D C Z(T)");
    assert_eq!(raw.tags_until_ready(), "C Z(I)");
}
