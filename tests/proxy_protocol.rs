//! The PROXY protocol: what a load balancer in front of pgweir says of its clients.

mod support;

use std::net::Ipv4Addr;

use support::raw::cancel_request;
use support::{Authority, Batch, Pooler, Postgres, Raw, eventually};

/// The signature, PROXY over IPv4, from 203.0.113.7:4711.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\x7f\0\0\x01\x12\x67\x19\x20";
const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 6432\r\n";
const IPV6: &[u8] = b"PROXY TCP6 2001:db8::9 ::1 4712 6432\r\n";
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn pooler(postgres: &Postgres, from: &str, more: &str) -> Pooler {
    let listen = format!(
        "[listen]\naddresses = [\"127.0.0.1:{{port}}\"]\nhttp = \"127.0.0.1:{{http}}\"\nproxy_protocol_from = [{from}]\n{more}"
    );
    Pooler::serve(postgres, &listen)
}

fn connect(pooler: &Pooler, header: &[u8]) -> Raw {
    let mut raw = Raw::connect(pooler.port());
    raw.write(header).expect("it is open");
    raw
}

fn log_in(mut raw: Raw, database: &str) -> Raw {
    let startup = [("user", "postgres"), ("database", database)];
    raw.log_in(&startup, None).expect("it is let in");
    raw
}

/// Address and port of whoever the console is told to be.
fn told(console: &mut Raw) -> String {
    let rows = console.query("select addr, port from clients where database = 'postgres'");
    let rows = rows.expect("a table");
    let words: Vec<_> = rows.iter().flatten().flatten().cloned().collect();
    words.join(" ")
}

const ADMIN: &str =
    "[auth]\nmethod = \"trust\"\nusers_file = \"{dir}/users.txt\"\nadmins = [\"postgres\"]\n";

#[test]
fn a_client_is_from_where_the_proxy_says() {
    let postgres = Postgres::start();
    let pooler = pooler(&postgres, "\"127.0.0.0/8\"", ADMIN);
    let mut console = log_in(connect(&pooler, LOCAL), "pgweir");
    for (header, address) in [
        (LINE, "203.0.113.7 4711"),
        (BINARY, "203.0.113.7 4711"),
        (IPV6, "2001:db8::9 4712"),
    ] {
        let mut client = log_in(connect(&pooler, header), "postgres");
        assert_eq!(client.value("select 1"), "1");
        assert_eq!(told(&mut console), address);
        client.goodbye();
        eventually("it has left", || told(&mut console).is_empty());
    }
    for header in [UNKNOWN, LOCAL] {
        let client = log_in(connect(&pooler, header), "postgres");
        assert!(told(&mut console).starts_with("127.0.0.1 "));
        client.goodbye();
        eventually("it has left", || told(&mut console).is_empty());
    }
    pooler.await_log("the address", |line| {
        line.contains("login") && line.contains("203.0.113.7:4711")
    });
    // A cancel request comes through the proxy too.
    let mut client = log_in(connect(&pooler, BINARY), "postgres");
    client.send(&Batch::new().query("select pg_sleep(1009)"));
    eventually("it sleeps", || {
        let query = "select count(*) from pg_stat_activity where query = 'select pg_sleep(1009)' and state = 'active'";
        postgres.value(query) == "1"
    });
    let (process, secret) = client.key.clone().expect("BackendKeyData");
    let mut canceler = connect(&pooler, LINE);
    canceler
        .write(&cancel_request(process, &secret))
        .expect("it is open");
    assert_eq!(client.rows().expect_err("it is cancelled").code(), "57014");
}

#[test]
fn hba_and_tls_come_behind_the_header() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let certificate = authority.issue("server", "localhost", &support::certs::HERE);
    let directory = certificate.parent().expect("it is in a directory");
    let more = format!(
        "[tls.client]\nmode = \"require\"\ncertificate = \"{}\"\nkey = \"{}\"\n\
         [auth]\nmethod = \"hba\"\nusers_file = \"{{dir}}/users.txt\"\nhba_file = \"{}\"\n",
        certificate.display(),
        authority.key("server").display(),
        directory.join("hba").display(),
    );
    let hba = "hostssl all all 203.0.113.7/32 trust\n";
    std::fs::write(directory.join("hba"), hba).expect("the directory is ours");
    let pooler = pooler(&postgres, "\"127.0.0.1\"", &more);
    let secured = |header| {
        connect(&pooler, header)
            .secure(authority.client(None, &["postgresql"]))
            .expect("TLS")
    };
    let mut client = log_in(secured(LINE), "postgres");
    assert_eq!(client.value("select 1"), "1");
    let startup = [("user", "postgres"), ("database", "postgres")];
    let refused = secured(IPV6)
        .log_in(&startup, None)
        .expect_err("hba says no");
    assert_eq!(refused.code(), "28000", "{refused}");
}

#[test]
fn a_header_is_demanded_from_proxies_and_believed_of_nobody_else() {
    let postgres = Postgres::start();
    let pooler = pooler(
        &postgres,
        "\"127.0.0.0/8\"",
        "[timeouts]\nclient_login = \"1s\"\n",
    );
    let refusals = || {
        let log = pooler.log();
        log.lines()
            .filter(|line| line.contains("login refused"))
            .count()
    };
    for hostile in [
        &b"\0\0\0\x08\x04\xd2\x16\x2f"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        &[b'P'; 5000],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ] {
        assert!(connect(&pooler, hostile).read_to_end().is_empty());
    }
    // Half a header is waited for, but not for ever.
    for half in [&LINE[..20], &BINARY[..20], b""] {
        assert!(connect(&pooler, half).read_to_end().is_empty());
    }
    eventually("refusals are told", || refusals() >= 3);
    assert!(
        pooler
            .log()
            .contains("no PROXY header where one is demanded")
    );
    assert!(pooler.log().contains("malformed PROXY header"));
    // A health check that only connects is no event.
    let before = refusals();
    drop(connect(&pooler, b""));
    drop(connect(&pooler, LOCAL));
    let mut client = log_in(connect(&pooler, LINE), "postgres");
    assert_eq!(client.value("select 1"), "1");
    assert_eq!(refusals(), before);

    // From the next client on it is another matter.
    let other = "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nhttp = \"127.0.0.1:{http}\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n";
    pooler.rewrite(other);
    pooler.reload();
    pooler.await_log("the reload", |line| line.contains("reloaded"));
    for header in [LINE, BINARY] {
        let mut raw = connect(&pooler, header);
        assert!(raw.read_to_end().is_empty());
    }
    pooler.await_log("the refusal", |line| {
        line.contains("not in proxy_protocol_from")
            && line.contains(&Ipv4Addr::LOCALHOST.to_string())
    });
    let mut plain = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(plain.value("select 1"), "1");
    assert_eq!(client.value("select 2"), "2");
}
