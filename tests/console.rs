//! The console, asked by psql, by drivers and by protocol, with the tools that people point at PgBouncer.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pgweir::admin::command::{COMMANDS, Run};
use pgweir::admin::process::Access;
use support::postgres::psql;
use support::process::{Guarded, free_port, run, scratch};
use support::wait::PATIENCE;
use support::{Batch, Message, Method, Pooler, Postgres, Raw, eventually, until};

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
    let toml = "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nhttp = \"127.0.0.1:{http}\"\nunix_socket_dir = \"{dir}\"\n\
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

/// What the columns of a RowDescription are called, with a letter for their type: s text, i int4, q int8, N numeric, b bool.
fn columns(message: &Message) -> String {
    let mut rest = &message.body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]);
        let fields = &rest[end + 1..end + 19];
        let oid = u32::from_be_bytes(fields[6..10].try_into().unwrap());
        let (kind, length) = match oid {
            25 => ('s', -1),
            23 => ('i', 4),
            20 => ('q', 8),
            1700 => ('N', -1),
            16 => ('b', 1),
            other => panic!("{name} is of type {other}"),
        };
        assert_eq!(
            i16::from_be_bytes([fields[10], fields[11]]),
            length,
            "{name}"
        );
        columns.push(format!("{name}:{kind}"));
        rest = &rest[end + 19..];
    }
    columns.join(" ")
}

/// PgBouncer 1.25's tables.
const TABLES: &[(&str, &str)] = &[
    ("VERSION", "version:s"),
    ("STATE", "key:s value:s"),
    ("CONFIG", "key:s value:s default:s changeable:s"),
    ("MEM", "name:s size:i used:i free:i memtotal:i"),
    ("LISTS", "list:s items:i"),
    ("TOTALS", "name:s value:N"),
    ("PEERS", "peer_id:i host:s port:i pool_size:i"),
    (
        "PEER_POOLS",
        "peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active_cancel:i sv_login:i",
    ),
    ("DNS_HOSTS", "hostname:s ttl:q addrs:s"),
    ("DNS_ZONES", "zonename:s serial:q count:i"),
    (
        "DATABASES",
        "name:s host:s port:i database:s force_user:s pool_size:i min_pool_size:i reserve_pool_size:i server_lifetime:i \
         pool_mode:s load_balance_hosts:s max_connections:i current_connections:i max_client_connections:i \
         current_client_connections:i paused:i disabled:i",
    ),
    (
        "USERS",
        "name:s pool_size:s reserve_pool_size:s pool_mode:s max_user_connections:i current_connections:i \
         max_user_client_connections:i current_client_connections:i",
    ),
    (
        "POOLS",
        "database:s user:s cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active:i \
         sv_active_cancel:i sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i pool_mode:s \
         load_balance_hosts:s",
    ),
    ("CLIENTS", CONNECTIONS),
    ("SERVERS", CONNECTIONS),
    (
        "STATS",
        "database:s total_server_assignment_count:N total_xact_count:N total_query_count:N total_received:N total_sent:N \
         total_xact_time:N total_query_time:N total_wait_time:N total_client_parse_count:N total_server_parse_count:N \
         total_bind_count:N total_client_login_count:N avg_server_assignment_count:N avg_xact_count:N avg_query_count:N avg_recv:N \
         avg_sent:N avg_xact_time:N avg_query_time:N avg_wait_time:N avg_client_parse_count:N avg_server_parse_count:N \
         avg_bind_count:N avg_client_login_count:N",
    ),
    (
        "STATS_TOTALS",
        "database:s server_assignment_count:N xact_count:N query_count:N bytes_received:N bytes_sent:N xact_time:N query_time:N \
         wait_time:N client_parse_count:N server_parse_count:N bind_count:N client_login_count:N",
    ),
    (
        "STATS_AVERAGES",
        "database:s server_assignment_count:N xact_count:N query_count:N bytes_received:N bytes_sent:N xact_time:N query_time:N \
         wait_time:N avg_client_parse_count:N avg_server_parse_count:N avg_bind_count:N avg_client_login_count:N",
    ),
    (
        "FDS",
        "fd:i task:s user:s database:s addr:s port:i cancel:q link:i client_encoding:s std_strings:s datestyle:s timezone:s \
         password:s scram_client_key:s scram_server_key:s",
    ),
];

const CONNECTIONS: &str = "type:s user:s database:s replication:s state:s addr:s port:i local_addr:s local_port:i connect_time:s \
    request_time:s wait:i wait_us:i close_needed:i ptr:s link:s remote_pid:i tls:s application_name:s prepared_statements:i id:i";

const BUFFERS: &str =
    "recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i pkt_avail:i send_avail:i";

#[test]
fn every_table_has_pgbouncers_columns_in_both_protocols() {
    let postgres = Postgres::start();
    postgres.create_role("alice", "secret");
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut other = Raw::login(pooler.port(), "alice", "postgres");
    other.query("select 1").unwrap();
    let mut raw = Raw::login(pooler.port(), "postgres", "pgbouncer");
    let sockets = format!("{CONNECTIONS} {BUFFERS}");
    let more = [("SOCKETS", &*sockets), ("ACTIVE_SOCKETS", &*sockets)];
    for (table, expected) in TABLES.iter().copied().chain(more) {
        raw.send(&Batch::new().query(&format!("SHOW {table};")));
        let simple = raw.read_until('Z');
        assert_eq!(columns(&simple[0]), expected, "SHOW {table}");
        let tag = &simple[simple.len() - 2];
        assert_eq!(
            (tag.tag, tag.command().as_str()),
            ('C', "SHOW"),
            "SHOW {table}"
        );
        let batch = Batch::new().parse("", &format!("show {}", table.to_lowercase()));
        let batch = batch
            .describe_statement("")
            .bind("", "", &[])
            .describe_portal("")
            .execute("")
            .sync();
        raw.send(&batch);
        let extended = raw.read_until('Z');
        let described: Vec<_> = extended
            .iter()
            .filter(|message| message.tag == 'T')
            .collect();
        assert_eq!(described.len(), 2, "SHOW {table}");
        for description in described {
            assert_eq!(columns(description), expected, "SHOW {table}");
        }
        raw.send(&Batch::new().query(&format!("SELECT * FROM {table}")));
        assert_eq!(
            columns(&raw.read_until('Z')[0]),
            expected,
            "SELECT FROM {table}"
        );
    }
}

/// A table's rows by its first column, each by the names of its columns.
fn table(raw: &mut Raw, statement: &str) -> Vec<BTreeMap<String, String>> {
    raw.send(&Batch::new().query(statement));
    let messages = raw.read_until('Z');
    let names = columns(&messages[0]);
    let names: Vec<_> = names
        .split(' ')
        .map(|name| name.split(':').next().unwrap())
        .collect();
    let rows = messages.iter().filter(|message| message.tag == 'D');
    rows.map(|message| {
        let row = message.row().into_iter().map(Option::unwrap_or_default);
        names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(row)
            .collect()
    })
    .collect()
}

fn row_of<'a>(
    rows: &'a [BTreeMap<String, String>],
    column: &str,
    value: &str,
) -> &'a BTreeMap<String, String> {
    let found = rows.iter().find(|row| row[column] == value);
    found.unwrap_or_else(|| panic!("no {value} in {rows:?}"))
}

#[test]
fn tables_tell_who_is_connected_where_and_what_the_console_is() {
    let postgres = Postgres::start();
    postgres.create_role("alice", "secret");
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut alice = Raw::login_as(pooler.port(), "alice", "postgres", "site@v1");
    alice.query("begin").unwrap();
    let pid = alice.value("select pg_backend_pid()");
    let mut raw = Raw::login(pooler.port(), "postgres", "pgbouncer");

    let clients = table(&mut raw, "SHOW CLIENTS");
    let servers = table(&mut raw, "SHOW SERVERS");
    let client = row_of(&clients, "user", "alice");
    let server = row_of(&servers, "remote_pid", &pid);
    assert_eq!(
        (&*client["type"], &*client["state"], &*client["addr"]),
        ("C", "active", "127.0.0.1")
    );
    assert_eq!(
        (&*server["type"], &*server["state"], &*server["user"]),
        ("S", "active", "alice")
    );
    assert_eq!(
        (&client["link"], &server["link"]),
        (&server["ptr"], &client["ptr"])
    );
    assert_eq!(client["local_port"], pooler.port().to_string());
    assert_eq!(server["port"], postgres.port().to_string());
    assert_eq!(
        (&*client["application_name"], &*client["replication"]),
        ("site@v1", "none")
    );
    assert!(client["connect_time"].starts_with("20"), "{client:?}");
    let own = row_of(&clients, "database", "pgbouncer");
    assert_eq!(
        (&*own["user"], &*own["state"], &*own["link"]),
        ("postgres", "active", "")
    );
    let sockets = table(&mut raw, "SHOW SOCKETS");
    assert_eq!(row_of(&sockets, "user", "alice")["state"], "cl_active");
    assert_eq!(row_of(&sockets, "remote_pid", &pid)["state"], "sv_active");

    let pools = table(&mut raw, "SHOW POOLS");
    let pool = row_of(&pools, "user", "alice");
    assert_eq!(
        (
            &*pool["cl_active"],
            &*pool["sv_active"],
            &*pool["pool_mode"]
        ),
        ("1", "1", "transaction")
    );
    let own = row_of(&pools, "database", "pgbouncer");
    assert_eq!(
        (&*own["user"], &*own["cl_active"], &*own["pool_mode"]),
        ("pgbouncer", "1", "statement")
    );
    let databases = table(&mut raw, "SHOW DATABASES");
    let own = row_of(&databases, "name", "pgbouncer");
    assert_eq!(
        (&*own["host"], &*own["force_user"], &*own["pool_size"]),
        ("", "pgbouncer", "2")
    );
    assert_eq!(
        row_of(&databases, "name", "postgres")["current_client_connections"],
        "1"
    );

    alice.query("commit").unwrap();
    let stats = table(&mut raw, "SHOW STATS");
    let counted = row_of(&stats, "database", "postgres");
    assert_eq!(
        (
            &*counted["total_xact_count"],
            &*counted["total_query_count"]
        ),
        ("1", "3")
    );
    let own = row_of(&stats, "database", "pgbouncer");
    // Five tables before this one, which counts itself.
    assert_eq!(
        (
            &*own["total_query_count"],
            &*own["total_client_login_count"]
        ),
        ("6", "1")
    );
    let totals = table(&mut raw, "SHOW TOTALS");
    assert_eq!(row_of(&totals, "name", "total_xact_count")["value"], "8");
    assert_eq!(totals.len(), 24);
    let fds = table(&mut raw, "SHOW FDS");
    assert_eq!(row_of(&fds, "user", "alice")["password"], "");
}

/// Columns that are read by name: by Datadog's integration those of SHOW STATS, POOLS, DATABASES, CLIENTS, SERVERS and CONFIG, by
/// prometheus-community's exporter those of STATS_TOTALS, POOLS, DATABASES, LISTS and CONFIG. (What both have for PgBouncers of before
/// 1.8 is not among them.)
const COLUMNS_READ: &[(&str, &str)] = &[
    (
        "stats",
        "database total_xact_count total_query_count total_received total_sent total_query_time \
         total_xact_time total_wait_time total_server_assignment_count avg_xact_count avg_xact_time \
         avg_query_count avg_recv avg_sent avg_query_time avg_wait_time avg_server_assignment_count",
    ),
    (
        "stats_totals",
        "database query_count query_time bytes_received bytes_sent wait_time xact_count xact_time \
         client_parse_count server_parse_count bind_count",
    ),
    (
        "pools",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active \
         sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us",
    ),
    (
        "databases",
        "name host port database force_user pool_size pool_mode max_connections current_connections paused \
         disabled",
    ),
    (
        "clients",
        "database user state addr connect_time request_time wait wait_us",
    ),
    ("servers", "database user state connect_time request_time"),
    ("config", "key value default changeable"),
    ("lists", "list items"),
];

/// Rows that are, with a whole number each.
const ROWS_READ: &[(&str, &str)] = &[
    (
        "list FROM lists|items",
        "databases users pools free_clients used_clients login_clients free_servers used_servers dns_names \
         dns_zones dns_queries",
    ),
    (
        "key FROM config|value",
        "max_client_conn max_user_connections",
    ),
];

#[test]
fn pgbouncers_exporter_and_agents_find_the_columns_that_they_read() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut raw = Raw::login(pooler.port(), "bob", "pgbouncer");
    for (table, names) in COLUMNS_READ {
        for name in names.split_whitespace() {
            raw.query(&format!("SELECT {name} FROM {table}")).unwrap();
        }
    }
    for (of, names) in ROWS_READ {
        let (source, value) = of.split_once('|').unwrap();
        let (key, table) = source.split_once(" FROM ").unwrap();
        for name in names.split_whitespace() {
            let asked = format!("SELECT {value} FROM {table} WHERE {key} = '{name}'");
            let found = raw.value(&asked);
            assert!(found.parse::<u64>().is_ok(), "{name}: {found}");
        }
    }
    // Datadog takes these apart.
    let time = raw.value("SELECT connect_time FROM clients WHERE database = 'pgbouncer'");
    let words: Vec<_> = time.split(' ').collect();
    assert!(
        words.len() == 3 && words[0].len() == 10 && words[1].len() == 8,
        "{time}"
    );
    let version = raw.value("SHOW VERSION");
    assert!(version.starts_with("PgBouncer 1.25.0 "), "{version}");
}

/// Arguments for a command that takes some.
fn with_arguments(takes: &[&str]) -> String {
    let needed = takes.iter().filter(|name| !name.starts_with('['));
    needed.map(|_| " x").collect()
}

#[test]
fn stats_users_can_look_and_do_nothing_else_whatever_the_command() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut bob = Raw::login(pooler.port(), "bob", "pgbouncer");
    for command in COMMANDS {
        let statement = format!("{}{}", command.name, with_arguments(command.takes));
        let in_words = [statement.clone(), statement.to_lowercase()];
        for statement in in_words {
            let batch = Batch::new()
                .query(&statement)
                .parse("", &statement)
                .bind("", "", &[])
                .execute("")
                .sync();
            bob.send(&batch);
            for _ in 0..2 {
                let messages = bob.read_until('Z');
                let error = messages
                    .iter()
                    .find(|message| message.tag == 'E')
                    .map(Message::error);
                let refused = error.is_some_and(|error| {
                    error.text() == "admin access needed" && error.code() == "08P01"
                });
                assert_eq!(
                    refused,
                    command.access == Access::Admin,
                    "{statement}: {messages:?}"
                );
            }
        }
    }
    assert!(
        COMMANDS
            .iter()
            .any(|command| command.access == Access::Admin)
    );
    let mut select = |table: &str| bob.query(&format!("SELECT * FROM {table}")).is_ok();
    assert!(select("pools") && !select("fds"));
}

#[test]
fn strangers_get_no_command_at_all() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    for command in COMMANDS {
        let statement = format!("{}{}", command.name, with_arguments(command.takes));
        let refused = ask(&pooler, "alice", &statement);
        assert!(refused.contains("not allowed"), "{statement}: {refused}");
        if matches!(command.run, Run::Show { .. }) {
            assert!(!refused.contains('|'), "{statement}: {refused}");
        }
    }
}

#[test]
fn rights_are_lost_by_a_reload() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut admin = Raw::login(pooler.port(), "postgres", "pgbouncer");
    let mut bob = Raw::login(pooler.port(), "bob", "pgbouncer");
    admin.query("SHOW FDS").unwrap();
    pooler.rewrite(
        &RIGHTS
            .replace("[\"postgres\"]", "[]")
            .replace("[\"bob\"]", "[\"postgres\"]"),
    );
    pooler.reload();
    eventually("bob may do nothing", || bob.query("SHOW VERSION").is_err());
    assert_eq!(admin.error("SHOW FDS").text(), "admin access needed");
    admin.query("SHOW VERSION").unwrap();
}

#[test]
fn drivers_small_talk_is_answered_and_changes_nothing() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut raw = Raw::login(pooler.port(), "bob", "pgbouncer");
    for (statement, tag) in [
        ("SET extra_float_digits = 3", "SET"),
        ("SET client_encoding TO 'UTF8'", "SET"),
        ("BEGIN", "BEGIN"),
        ("START TRANSACTION", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("SAVEPOINT x", "SAVEPOINT"),
        ("ROLLBACK TO SAVEPOINT x", "ROLLBACK"),
        ("RELEASE x", "RELEASE"),
        ("DISCARD ALL", "DISCARD ALL"),
        ("DEALLOCATE ALL", "DEALLOCATE ALL"),
        ("RESET ALL", "RESET"),
        ("UNLISTEN *", "UNLISTEN"),
        ("CLOSE ALL", "CLOSE CURSOR ALL"),
        ("SELECT 1", "SELECT 1"),
        ("SELECT pools", "SHOW"),
    ] {
        raw.send(&Batch::new().query(statement));
        let messages = raw.read_until('Z');
        assert_eq!(messages[messages.len() - 2].command(), tag, "{statement}");
    }
    raw.send(&Batch::new().query("SET datestyle = 'ISO'"));
    assert_eq!(raw.read_until('Z')[0].error().text(), "SET ignored");
    raw.send(&Batch::new().query(" -- nothing"));
    assert_eq!(raw.tags_until_ready(), "I Z(I)");
    for (statement, value) in [
        ("SHOW server_version", "1.25.0/bouncer"),
        ("SHOW client_encoding", "UTF-8"),
        ("SHOW default_transaction_isolation", "read committed"),
        ("SHOW standard_conforming_strings", "on"),
        ("SHOW datestyle", "ISO"),
        ("SHOW timezone", "GMT"),
        ("SHOW transaction isolation level", "read committed"),
        ("SELECT current_schema()", "public"),
        ("SELECT current_user", "bob"),
        ("SELECT current_database()", "pgbouncer"),
    ] {
        assert_eq!(raw.value(statement), value, "{statement}");
    }
    // A statement that was forgotten is gone.
    let batch = Batch::new()
        .parse("s", "SHOW LISTS")
        .sync()
        .query("DEALLOCATE s")
        .bind("", "s", &[])
        .sync();
    raw.send(&batch);
    assert_eq!(raw.tags_until_ready(), "1 Z(I)");
    assert_eq!(raw.tags_until_ready(), "C Z(I)");
    assert_eq!(raw.read_until('Z')[0].error().code(), "26000");
}

#[test]
fn psql_describes_nothing_and_goes_on_and_watches() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut psql = pooler.psql("postgres", "pgbouncer");
    psql.args([
        "-v",
        "ON_ERROR_STOP=0",
        "-c",
        "\\d",
        "-c",
        "\\dt pools",
        "-c",
        "\\conninfo",
    ]);
    let told = said(psql.args([
        "-c",
        "SELECT database, cl_active FROM pools WHERE user = 'pgbouncer'",
    ]));
    // There are no relations, which is no error.
    assert!(!told.contains("ERROR"), "{told}");
    assert!(told.contains("pgbouncer|1"), "{told}");
    // Until it is ended.
    let mut watching = pooler.psql("postgres", "pgbouncer");
    let mut watching = watching
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = watching.stdin.take().unwrap();
    input.write_all(b"SHOW VERSION \\watch 0.1\n").unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let rounds = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("PgBouncer 1.25.0"));
    assert_eq!(rounds.take(3).count(), 3);
    watching.kill().unwrap();
    watching.wait().unwrap();
}

fn drivers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers")
}

/// Runs a program that reads the console at its PGHOST.
fn reads_the_console(program: &str, folder: &str, arguments: &[&str]) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let program = match program {
        ".venv/bin/python" => Path::new(env!("CARGO_MANIFEST_DIR")).join(program),
        program => PathBuf::from(program),
    };
    let mut command = Command::new("timeout");
    run(command
        .arg("120")
        .arg(program)
        .args(arguments)
        .current_dir(drivers().join(folder))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", pooler.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGPASSWORD", "unasked")
        .env("PGDATABASE", "pgbouncer"));
}

#[test]
fn psycopg_reads_the_console() {
    reads_the_console(".venv/bin/python", "console", &["with_psycopg.py"]);
}

#[test]
fn asyncpg_reads_the_console() {
    reads_the_console(".venv/bin/python", "console", &["with_asyncpg.py"]);
}

#[test]
fn sqlalchemy_reads_the_console() {
    reads_the_console(".venv/bin/python", "console", &["with_sqlalchemy.py"]);
}

#[test]
fn node_postgres_reads_the_console() {
    reads_the_console("node", "node", &["console_with_pg.mjs"]);
}

#[test]
fn pgjdbc_reads_the_console() {
    let driver = "/usr/share/java/postgresql.jar";
    reads_the_console("java", "java", &["-cp", driver, "ConsoleWithPgjdbc.java"]);
}

#[test]
fn grafanas_data_source_reads_the_console_with_both_of_its_drivers() {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    let binary = built.join("grafana");
    run(Command::new("go")
        .args(["build", "-o"])
        .arg(&binary)
        .arg("grafana.go")
        .current_dir(drivers().join("go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", built.join("go-cache"))
        .env_remove("GOFLAGS"));
    reads_the_console(binary.to_str().expect("a path in UTF-8"), "go", &[]);
}

/// Waits until an exporter on that port of this machine exports everything that is expected.
fn exported(port: u16, expected: &[&str]) {
    until(&format!("all of {expected:#?}"), PATIENCE, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let request = "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).ok()?;
        expected
            .iter()
            .all(|line| metrics.contains(line))
            .then_some(())
    });
}

/// Runs an exporter until everything that is expected of it is exported.
fn exports(exporter: &mut Command, directory: &Path, port: u16, expected: &[&str]) {
    let mut exporter = Guarded::spawn(exporter, "TERM", directory);
    exported(port, expected);
    exporter.signal("TERM");
    exporter.await_end(Duration::from_secs(10));
}

/// A pgweir with a pool that has a client.
fn with_a_client() -> (Postgres, Pooler, Raw) {
    let postgres = Postgres::start();
    postgres.create_role("alice", "secret");
    let pooler = Pooler::serve(&postgres, RIGHTS);
    let mut alice = Raw::login(pooler.port(), "alice", "postgres");
    alice.query("begin").unwrap();
    (postgres, pooler, alice)
}

#[test]
fn prometheus_pgbouncer_exporter_reads_the_console() {
    let (_postgres, pooler, _alice) = with_a_client();
    let (port, directory) = (free_port(), scratch());
    let config = directory.path().join("exporter.yml");
    let console = pooler.url("bob", "pgbouncer");
    let yaml = format!(
        "exporter_host: 127.0.0.1\nexporter_port: {port}\npgbouncers:\n  - dsn: {console}?sslmode=disable\n"
    );
    std::fs::write(&config, yaml).unwrap();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    exports(
        Command::new(python)
            .args(["-m", "prometheus_pgbouncer_exporter.cli"])
            .args(["--log-level", "ERROR", "--config"])
            .arg(&config),
        directory.path(),
        port,
        &[
            "pgbouncer_up 1",
            "pgbouncer_pools_client_active_connections{database=\"postgres\",user=\"alice\"} 1",
            "pgbouncer_pools_server_active_connections{database=\"postgres\",user=\"alice\"} 1",
            "pgbouncer_pools_client_waiting_connections{database=\"postgres\",user=\"alice\"} 0",
            "pgbouncer_pools_client_maxwait_seconds{database=\"postgres\",user=\"alice\"} 0",
            "pgbouncer_stats_queries_total{database=\"postgres\"}",
            "pgbouncer_stats_transactions_total{database=\"postgres\"}",
            "pgbouncer_stats_received_bytes_total{database=\"postgres\"}",
            "pgbouncer_stats_sent_bytes_total{database=\"postgres\"}",
            "pgbouncer_stats_queries_duration_microseconds_total{database=\"postgres\"}",
            "pgbouncer_stats_waiting_duration_microseconds_total{database=\"postgres\"}",
            "pgbouncer_databases_database_pool_size{",
            "pgbouncer_databases_database_current_connections{",
            "pgbouncer_databases_database_max_connections{",
        ],
    );
}

/// Where Debian's exporter is to look, and where it is to be asked.
fn debians_exporter(pooler: &Pooler, port: u16) -> Vec<String> {
    let options = [
        ("--host", "127.0.0.1".to_owned()),
        ("--port", port.to_string()),
        ("--pgbouncer-host", "127.0.0.1".to_owned()),
        ("--pgbouncer-port", pooler.port().to_string()),
        ("--pgbouncer-user", "bob".to_owned()),
    ];
    let options = options.into_iter();
    options
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

#[test]
fn debians_exporter_reads_the_console() {
    let (_postgres, pooler, _alice) = with_a_client();
    let (port, directory) = (free_port(), scratch());
    exports(
        Command::new("/usr/bin/python3")
            .arg(drivers().join("console/debians_exporter.py"))
            .args(debians_exporter(&pooler, port))
            .stderr(Stdio::null()),
        directory.path(),
        port,
        &[
            "pgbouncer_active_clients{database=\"postgres\",user=\"alice\"} 1.0",
            "pgbouncer_waiting_clients{database=\"postgres\",user=\"alice\"} 0.0",
            "pgbouncer_requests_total{database=\"postgres\"}",
            "pgbouncer_received_bytes_total{database=\"postgres\"}",
            "pgbouncer_sent_bytes_total{database=\"postgres\"}",
            "pgbouncer_query_microseconds_total{database=\"postgres\"}",
            "pgbouncer_pool_size{database=\"pgbouncer\"}",
            "pgbouncer_reserve_pool{database=\"pgbouncer\"}",
            "pgbouncer_used_clients ",
            "pgbouncer_pools ",
            "pgbouncer_dns_pending 0.0",
        ],
    );
}

/// As it is installed it wants a column that PgBouncer lost with 1.8, and ends: before Debian's own PgBouncer 1.18 as before this console.
#[test]
fn debians_exporter_as_it_is_wants_a_column_of_before_pgbouncer_1_8() {
    let (_postgres, pooler, _alice) = with_a_client();
    let told = said(
        Command::new("timeout")
            .args(["30", "prometheus-pgbouncer-exporter"])
            .args(debians_exporter(&pooler, free_port())),
    );
    assert!(told.contains("KeyError: 'total_requests'"), "{told}");
}

#[test]
fn sql_exporter_reads_the_console() {
    let (_postgres, pooler, _alice) = with_a_client();
    let (port, directory) = (free_port(), scratch());
    let config = directory.path().join("sql_exporter.yml");
    let console = pooler.url("bob", "pgweir");
    // Its own labels are called database and user as well.
    let yaml = format!(
        "jobs:
- name: console
  interval: '1s'
  connections: ['{console}?sslmode=disable']
  startup_sql: ['SET lock_timeout = 1000', 'SET idle_in_transaction_session_timeout = 100']
  queries:
  - name: pool
    help: Sessions of each pool
    labels: [pool_database, pool_user]
    values: [cl_active, cl_waiting]
    query: SELECT database AS pool_database, \"user\" AS pool_user, cl_active::float, cl_waiting::float FROM pools
  - name: service
    help: Server connections of each service
    labels: [service]
    values: [servers]
    query: SELECT service, sum(servers) AS servers FROM services GROUP BY service
  - name: lists
    help: How many there are of what
    labels: [list]
    values: [items]
    query: SHOW LISTS
"
    );
    std::fs::write(&config, yaml).unwrap();
    let pool = |column| {
        format!(
            "sql_pool{{col=\"{column}\",database=\"pgweir\",driver=\"postgres\",host=\"127.0.0.1:{}\",pool_database=\"postgres\",pool_user=\"alice\"",
            pooler.port()
        )
    };
    exports(
        Command::new("prometheus-sql-exporter")
            .arg("-config.file")
            .arg(&config)
            .args(["-web.listen-address", &format!("127.0.0.1:{port}")])
            .stderr(Stdio::null())
            .stdout(Stdio::null()),
        directory.path(),
        port,
        &[
            &pool("cl_active"),
            &pool("cl_waiting"),
            "service=\"alice\"",
            "list=\"used_clients\"",
        ],
    );
}

/// Anybody can reach an address of the machine that is not its loopback's, and with `trust` claim any name. In a network of its own, which
/// has such an address and nobody else in it.
#[test]
fn who_claims_an_admins_name_from_elsewhere_gets_nothing() {
    const ASK: &str = r#"
        set -eu
        ip link set lo up
        ip addr add 192.0.2.7/32 dev lo
        "$PGWEIR" serve "$CONFIG" 2>"$LOG" &
        server=$!
        trap 'kill $server; wait' EXIT
        ask() { psql -XAtw "host=$1 port=6432 user=$2 dbname=pgweir sslmode=disable" -c "$3" 2>&1; }
        until ask 127.0.0.1 postgres "SHOW VERSION"; do kill -0 $server; sleep 0.05; done
        ask 127.0.0.1 postgres "SET log.level = 'info'"
        for user in postgres bob pgweir pgbouncer root; do
            ask 192.0.2.7 $user "SHOW VERSION" && echo "$user was let in"
        done
        ask 127.0.0.1 bob "SHOW VERSION"
    "#;
    let mut alone = Command::new("unshare");
    alone.args(["--net", "--map-root-user", "true"]);
    if !alone.status().is_ok_and(|status| status.success()) {
        eprintln!("not run: no network namespace can be made here");
        return;
    }
    let directory = scratch();
    let users = directory.path().join("users.txt");
    std::fs::write(&users, "\"postgres\" \"\"\n\"bob\" \"\"\n").unwrap();
    let config = directory.path().join("pooler.toml");
    let toml = format!(
        "[listen]\naddresses = [\"127.0.0.1:6432\", \"192.0.2.7:6432\"]\n{}[budget]\nmax_servers = 9\ncheck_every = 0\n[databases.\"*\"]\nurl = \"postgres://127.0.0.1:1\"\n",
        RIGHTS.replace("{dir}/users.txt", users.to_str().expect("a path in UTF-8"))
    );
    std::fs::write(&config, toml).unwrap();
    let log = directory.path().join("log");
    let told = said(
        Command::new("timeout")
            .args(["60", "unshare", "--net", "--map-root-user", "sh", "-c", ASK])
            .env("PGWEIR", env!("CARGO_BIN_EXE_pgweir"))
            .env("CONFIG", &config)
            .env("LOG", &log),
    );
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    let refusal =
        "the console needs a password, a certificate or a connection from its own machine";
    assert!(!told.contains("was let in"), "{told}\n{log}");
    assert_eq!(told.matches(refusal).count(), 2, "{told}\n{log}");
    assert_eq!(told.matches("FATAL").count(), 5, "{told}\n{log}");
    assert!(told.contains("SET log.level=info"), "{told}\n{log}");
    assert_eq!(told.matches("PgBouncer 1.25.0").count(), 2, "{told}\n{log}");
    assert!(
        log.contains("reason=\"unproved\"") || log.contains("no proof for the console"),
        "{log}"
    );
}

/// postgres and bob may use the console; nobody is listed as a user.
const UNLISTED: &str =
    "[auth]\nmethod = \"scram-sha-256\"\nadmins = [\"postgres\"]\nstats = [\"bob\"]\n";

fn with_password(pooler: &Pooler, user: &str, password: &str) -> String {
    let mut psql = pooler.psql(user, "pgweir");
    said(
        psql.env("PGPASSWORD", password)
            .args(["-w", "-c", "SHOW VERSION"]),
    )
}

#[test]
fn postgres_vouches_for_users_of_the_console() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("bob", "secret");
    postgres.create_role("alice", "secret");
    let pooler = Pooler::serve_with_users(&postgres, UNLISTED, "");
    assert!(with_password(&pooler, "bob", "secret").contains("pgweir"));
    let wrong = with_password(&pooler, "bob", "wrong");
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let stranger = with_password(&pooler, "alice", "secret");
    assert!(stranger.contains("not allowed"), "{stranger}");
}

#[test]
fn users_of_the_console_are_looked_up_as_others_are() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("bob", "secret");
    postgres.sql("create role asker superuser login password 'asks'");
    let toml = UNLISTED.replace(
        "admins",
        "users_file = \"{dir}/users.txt\"\nquery_user = \"asker\"\nquery_database = \"postgres\"\nadmins",
    );
    let pooler = Pooler::serve_with_users(&postgres, &toml, "\"asker\" \"asks\"\n");
    assert!(with_password(&pooler, "bob", "secret").contains("pgweir"));
    let wrong = with_password(&pooler, "bob", "wrong");
    assert!(wrong.contains("authentication failed"), "{wrong}");
}
