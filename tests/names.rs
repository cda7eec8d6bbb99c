//! Names of hosts that lead elsewhere after a while: a failover by DNS.
//!
//! The names stand in a file that is put in the place of `/etc/hosts` for pgweir alone, in a mount namespace. That needs root; where it
//! cannot be done, the test says so.

mod support;

use std::process::Command;

use support::pgbouncer::{Kind, Place, Running};
use support::{Postgres, Raw, eventually};

fn has_mount_namespaces() -> bool {
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    let has = tried.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("not run: no mount namespace can be made here");
    }
    has
}

/// pgweir before a Postgres of two addresses, called db.test, which has the first of them now.
fn start(postgres: &Postgres, more: &str) -> Running {
    let place = Place::new();
    let (port, directory) = (place.port, place.path().display().to_string());
    place.write("users.txt", "\"postgres\" \"\"\n");
    place.write("hosts", "127.0.0.1 localhost db.test\n");
    place.write(
        "pgbouncer.ini",
        &format!(
            "[databases]\nshop = host=db.test port={} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nlogfile = {directory}/log\nauth_type = trust\n\
             auth_file = {directory}/users.txt\nadmin_users = postgres\npool_mode = transaction\n\
             dns_max_ttl = 1\ndns_nxdomain_ttl = 1\n{more}",
            postgres.port()
        ),
    );
    place.start_in(Kind::Pgweir, "mount --bind {dir}/hosts /etc/hosts")
}

fn postgres() -> Postgres {
    let two = "listen_addresses=127.0.0.1,127.0.0.2";
    Postgres::setup().setting(two).start()
}

/// The addresses that server connections lead to.
fn led_to(console: &mut Raw) -> Vec<String> {
    let rows = console.query(
        "select addr from servers where database = 'shop' and application_name <> 'pgweir monitor'",
    );
    let rows = rows.expect("an answer");
    rows.into_iter().flatten().flatten().collect()
}

#[test]
fn a_failover_by_dns_moves_idle_server_connections_and_those_in_use_at_their_boundary() {
    if !has_mount_namespaces() {
        return;
    }
    let postgres = postgres();
    let pooler = start(&postgres, "");
    let mut console = Raw::login(pooler.port(), "postgres", "pgbouncer");
    let (mut idle, mut busy) = (
        Raw::login(pooler.port(), "postgres", "shop"),
        Raw::login(pooler.port(), "postgres", "shop"),
    );
    busy.query("begin").expect("an answer");
    idle.value("select 1");
    assert_eq!(led_to(&mut console), ["127.0.0.1", "127.0.0.1"]);

    pooler
        .place
        .write("hosts", "127.0.0.1 localhost\n127.0.0.2 db.test\n");
    eventually("the idle one is closed", || {
        led_to(&mut console) == ["127.0.0.1"]
    });
    assert_eq!(idle.value("select 1"), "1");
    busy.value("select 1");
    busy.query("commit").expect("an answer");
    eventually("all lead to the new address", || {
        led_to(&mut console) == ["127.0.0.2"]
    });
    let known = console.query("show dns_hosts").expect("an answer");
    assert_eq!(known[0][2].as_deref(), Some("127.0.0.2:0"));
    let log = pooler.place.read("log");
    assert_eq!(
        log.matches("closing because: database configuration changed")
            .count(),
        2,
        "{log}"
    );

    pooler.place.write("hosts", "127.0.0.1 localhost\n");
    eventually("the name is not found", || {
        let known = console.query("show dns_hosts").expect("an answer");
        known[0][2].as_deref() == Some("")
    });
    assert_eq!(
        idle.value("select 1"),
        "1",
        "nobody says that it is elsewhere"
    );
    assert_eq!(led_to(&mut console), ["127.0.0.2"]);
}
