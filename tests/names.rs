//! Names of hosts that lead elsewhere after a while: a failover by DNS.
//!
//! The names stand in a file that is put in the place of `/etc/hosts` for pgweir alone, in a mount namespace. That needs root; where it
//! cannot be done, the test says so.

mod support;

use std::process::Command;

use support::pgbouncer::{Kind, Place, Running};
use support::{Nsd, Postgres, Raw, eventually};

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

/// A pooler that asks a name server for `db.pgweir.test`.
fn start_by(kind: Kind, postgres: &Postgres, server: &Nsd, more: &str) -> Running {
    let place = Place::new();
    let ini = format!(
        "[databases]\nshop = host=db.pgweir.test port={{postgres}} dbname=postgres\n[pgbouncer]\n{{listen}}\n\
         auth_type = trust\nauth_file = {{dir}}/users.txt\nadmin_users = postgres\npool_mode = transaction\n\
         resolv_conf = {{dir}}/resolv.conf\ndns_max_ttl = 300\n{more}"
    );
    place.write("users.txt", "\"postgres\" \"\"\n");
    place.write("resolv.conf", &server.resolv_conf());
    place.write("pgbouncer.ini", &place.fill(&ini, postgres.port()));
    place.start(kind)
}

/// The second column of the only row.
fn second(console: &mut Raw, command: &str) -> Option<String> {
    let rows = console.query(command).expect("an answer");
    rows.into_iter().next()?.into_iter().nth(1).flatten()
}

/// Where the server connection of a new client leads.
fn leads_to(pooler: &Running) -> String {
    Raw::login(pooler.port(), "postgres", "shop").value("select host(inet_server_addr())")
}

/// What a pooler tells of a zone that changes.
fn a_zone_changes(kind: Kind, postgres: &Postgres, server: &Nsd) -> Vec<String> {
    let pooler = start_by(kind, postgres, server, "dns_zone_check_period = 1\n");
    let mut console = Raw::login(pooler.port(), "postgres", "pgbouncer");
    let mut told = vec![leads_to(&pooler)];
    eventually("the zone is known", || {
        second(&mut console, "show dns_zones").as_deref() == Some("1")
    });
    server.move_to("127.0.0.2");
    eventually("the zone has changed", || {
        second(&mut console, "show dns_zones").as_deref() == Some("2")
    });
    eventually("the name leads elsewhere", || {
        let rows = console.query("show dns_hosts").expect("an answer");
        rows[0][2].as_deref() == Some("127.0.0.2:0")
    });
    console.query("reconnect shop").expect("an answer");
    told.push(leads_to(&pooler));
    let zones = console.query("show dns_zones").expect("an answer");
    let zone = zones[0].iter().flatten().cloned().collect::<Vec<_>>();
    told.push(zone.join("|"));
    let log = pooler.place.read("log");
    let words = log.lines().filter_map(|line| line.split_once("zone '"));
    told.extend(words.map(|(_, words)| words.to_owned()));
    told
}

#[test]
fn a_zone_that_has_changed_ends_the_time_of_its_names_as_with_pgbouncer_1_18() {
    let postgres = postgres();
    // c-ares, as PgBouncer 1.24 has it, remembers the zone itself for an hour and never sees the change.
    for kind in [Kind::PgBouncer118, Kind::Pgweir] {
        let Some(server) = Nsd::start(3600, "127.0.0.1") else {
            return;
        };
        let told = a_zone_changes(kind, &postgres, &server);
        let expected = [
            "127.0.0.1",
            "127.0.0.2",
            "pgweir.test|2|1",
            "pgweir.test' serial changed: old=0 new=1",
            "pgweir.test' serial changed: old=1 new=2",
        ];
        assert_eq!(told, expected, "{}", kind.name());
    }
}

#[test]
fn an_answer_counts_no_longer_than_its_name_server_says() {
    let postgres = postgres();
    let Some(server) = Nsd::start(1, "127.0.0.1") else {
        return;
    };
    let pooler = start_by(Kind::Pgweir, &postgres, &server, "");
    let mut console = Raw::login(pooler.port(), "postgres", "pgbouncer");
    assert_eq!(leads_to(&pooler), "127.0.0.1");
    server.move_to("127.0.0.2");
    eventually("the idle server connection is closed", || {
        led_to(&mut console).is_empty()
    });
    assert_eq!(leads_to(&pooler), "127.0.0.2");
    assert!(
        console
            .query("show dns_zones")
            .expect("an answer")
            .is_empty()
    );
}

#[test]
fn a_list_of_name_servers_that_is_none_ends_the_start_and_no_reload() {
    let postgres = postgres();
    let Some(server) = Nsd::start(3600, "127.0.0.1") else {
        return;
    };
    let pooler = start_by(Kind::Pgweir, &postgres, &server, "");
    let place = &pooler.place;
    let mut console = Raw::login(pooler.port(), "postgres", "pgbouncer");
    place.write("resolv.conf", "search pgweir.test\n");
    console.query("reload").expect_err("a wrong file");
    let reason = "resolv.conf: io error: no nameservers found";
    let log = place.read("log");
    assert!(log.contains(reason), "{log}");
    assert_eq!(leads_to(&pooler), "127.0.0.1");

    let other = Place::new();
    other.write("resolv.conf", "search pgweir.test\n");
    let ini = "[databases]\nshop =\n[pgbouncer]\n{listen}\nresolv_conf = {dir}/resolv.conf\n";
    other.write("pgbouncer.ini", &other.fill(ini, postgres.port()));
    let (status, said) = other.attempt(Kind::Pgweir, &other.arguments());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(reason), "{said}");
}
