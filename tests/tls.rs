//! TLS on both sides: the modes of libpq, certificates, channel binding, direct TLS, resumption, reload.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use support::certs::{HERE, MODES};
use support::pooler::pgweir;
use support::postgres::program;
use support::raw::{cancel_request, special_request, startup_packet};
use support::{Authority, Batch, Fault, Method, Pooler, Postgres, Proxy, Raw, Side, eventually};

with_one_and_two_threads!(
    clients_come_in_every_mode,
    postgres_is_spoken_to_in_every_mode,
    bulk_data_passes_under_tls_both_ways,
    many_small_queries_pass_under_tls,
    a_query_is_cancelled_under_tls,
    a_client_that_vanishes_under_tls_leaves_a_clean_server,
    records_cut_by_the_network_reach_nobody_else,
);

const SSL_REQUEST: u32 = 80_877_103;
/// What libpq says when it is under TLS.
const SECURED: &str = "SSL connection";

/// `[tls.client]` with the certificate `server`.
fn towards_clients(authority: &Authority, mode: &str) -> String {
    authority.issue("server", "localhost", &HERE);
    format!(
        "[tls.client]\nmode = \"{mode}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        authority.certificate("server").display(),
        authority.key("server").display(),
    )
}

fn ca(authority: &Authority) -> String {
    format!("ca = \"{}\"\n", authority.ca().display())
}

fn threads(count: usize) -> String {
    format!("[runtime]\nthreads = {count}\n\n")
}

/// psql's output, or what it complained of.
fn outcome(command: &mut Command) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("psql is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if status.success() {
        Ok(text(stdout))
    } else {
        Err(text(stderr))
    }
}

/// psql through pgweir in this mode, trusting this authority.
fn psql(pooler: &Pooler, user: &str, mode: &str, authority: &Authority) -> Command {
    let mut command = pooler.psql(user, "postgres");
    command
        .env("PGSSLMODE", mode)
        .env("PGSSLROOTCERT", authority.ca())
        .env("PGSSLCERT", "/nonexistent")
        .args(["-c", "\\conninfo"]);
    command
}

fn with_certificate<'a>(
    command: &'a mut Command,
    authority: &Authority,
    name: &str,
) -> &'a mut Command {
    command
        .env("PGSSLCERT", authority.certificate(name))
        .env("PGSSLKEY", authority.key(name))
}

fn clients_come_in_every_mode(count: usize) {
    let postgres = Postgres::start();
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (ours, refused, secured) in [
        (
            "disable",
            &["require", "verify-ca", "verify-full"][..],
            &[][..],
        ),
        ("allow", &[], &MODES[2..]),
        ("prefer", &[], &MODES[2..]),
        ("require", &["disable"], &MODES[1..]),
    ] {
        let toml = threads(count) + &towards_clients(&authority, ours);
        let pooler = Pooler::serve(&postgres, &toml);
        for mode in MODES {
            let case = format!("pgweir {ours}, client {mode}");
            match outcome(&mut psql(&pooler, "postgres", mode, &authority)) {
                Ok(said) => {
                    assert!(!refused.contains(&mode), "{case}: {said}");
                    assert_eq!(
                        said.contains(SECURED),
                        secured.contains(&mode),
                        "{case}: {said}"
                    );
                }
                Err(said) => {
                    assert!(refused.contains(&mode), "{case}: {said}");
                    if ours == "require" {
                        assert!(said.contains("SSL required"), "{case}: {said}");
                    }
                }
            }
        }
        if ours != "disable" {
            let said = outcome(&mut psql(&pooler, "postgres", "verify-ca", &stranger));
            said.expect_err("a certificate that the client does not trust");
        }
    }
}

#[test]
fn without_a_certificate_no_tls_is_offered() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut raw = Raw::connect(pooler.port());
    raw.write(&special_request(SSL_REQUEST)).expect("connected");
    assert_eq!(raw.read_byte(), 'N');
}

#[test]
fn a_unix_socket_needs_no_tls() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let toml = towards_clients(&authority, "require")
        + "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nhttp = \"\"\nunix_socket_dir = \"{dir}\"\n";
    let pooler = Pooler::serve(&postgres, &toml);
    let path = pooler
        .directory()
        .join(format!(".s.PGSQL.{}", pooler.port()));
    let mut raw = Raw::connect_unix(&path).expect("it listens there");
    raw.write(&special_request(SSL_REQUEST)).expect("connected");
    assert_eq!(raw.read_byte(), 'N');
    raw.log_in(&[("user", "postgres")], None).expect("let in");
    assert_eq!(raw.value("select 1"), "1");
}

#[test]
fn client_certificates_are_demanded_and_checked() {
    let postgres = Postgres::start();
    let (authority, stranger) = (Authority::new(), Authority::new());
    for name in ["alice", "bob"] {
        postgres.sql(&format!("create role {name} login"));
        authority.issue(name, name, &[]);
    }
    stranger.issue("alice", "alice", &[]);
    // By an alternative name as well as by the common one.
    authority.issue("service", "some service", &["alice"]);
    for (mode, by_name) in [("verify-ca", false), ("verify-full", true)] {
        let pooler = Pooler::serve(
            &postgres,
            &(towards_clients(&authority, mode) + &ca(&authority)),
        );
        let as_alice = || psql(&pooler, "alice", "require", &authority);
        for name in ["alice", "service"] {
            outcome(with_certificate(&mut as_alice(), &authority, name)).expect(name);
        }
        let bob = outcome(with_certificate(&mut as_alice(), &authority, "bob"));
        if by_name {
            let said = bob.expect_err("bob is not alice");
            let words = "certificate authentication failed for user \"alice\"";
            assert!(said.contains(words), "{said}");
        } else {
            bob.expect("any certificate of ours");
        }
        let said = outcome(&mut as_alice()).expect_err("no certificate");
        assert!(said.contains("certificate required"), "{said}");
        let mut forged = as_alice();
        outcome(with_certificate(&mut forged, &stranger, "alice")).expect_err("a stranger's");
        let plain = outcome(&mut psql(&pooler, "alice", "disable", &authority));
        assert!(plain.expect_err("no TLS").contains("SSL required"));
    }
}

#[test]
fn a_certificate_is_a_login() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    postgres.sql("create role alice login; create role bob login; create role eve login");
    for (name, common_name) in [
        ("alice", "alice"),
        ("site", "bob@site.example"),
        ("eve", "eve"),
    ] {
        authority.issue(name, common_name, &[]);
    }
    let toml = towards_clients(&authority, "verify-ca")
        + &ca(&authority)
        + "[auth]\nmethod = \"cert\"\nusers_file = \"{dir}/users.txt\"\n";
    let log_in = |pooler: &Pooler, user: &str, name: &str| {
        let mut command = psql(pooler, user, "require", &authority);
        outcome(with_certificate(&mut command, &authority, name))
    };
    let pooler = Pooler::serve(&postgres, &toml);
    log_in(&pooler, "alice", "alice").expect("her own certificate");
    for (user, name) in [("alice", "eve"), ("bob", "site"), ("postgres", "alice")] {
        let said = log_in(&pooler, user, name).expect_err(name);
        let words = format!("certificate authentication failed for user \"{user}\"");
        assert!(said.contains(&words), "{said}");
    }
    // Whom pgweir does not know, a certificate does not make known.
    let said = log_in(&pooler, "eve", "eve").expect_err("not in the users file");
    assert!(said.contains("not known"), "{said}");

    let map = pooler.directory().join("ident");
    fs::write(
        &map,
        "cert /^(.*)@site\\.example$ \\1\ncert eve alice\nother alice alice\n",
    )
    .expect("the directory is ours");
    pooler.rewrite(&toml.replace(
        "[auth]\n",
        &format!("[auth]\nident_file = \"{}\"\n", map.display()),
    ));
    pooler.reload();
    eventually("the map counts", || log_in(&pooler, "bob", "site").is_ok());
    log_in(&pooler, "alice", "eve").expect("mapped");
    log_in(&pooler, "alice", "alice").expect_err("with a map, the map alone counts");
}

#[test]
fn a_service_is_found_by_its_certificate() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    authority.issue("client", "billing.internal", &[]);
    let toml = towards_clients(&authority, "prefer")
        + &ca(&authority)
        + "[services.billing]\nmatch = { certificate = \"billing.*\" }\n";
    let pooler = Pooler::serve(&postgres, &toml);
    let mut command = psql(&pooler, "postgres", "require", &authority);
    outcome(with_certificate(&mut command, &authority, "client")).expect("let in");
    pooler.await_log("the service of the certificate", |line| {
        line.contains("billing") && line.contains("TLSv1.3")
    });
    outcome(&mut psql(&pooler, "postgres", "require", &authority)).expect("let in without one");
}

#[test]
fn clients_bind_their_login_to_the_channel() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.create_role("ann", "secret");
    let authority = Authority::new();
    let toml = towards_clients(&authority, "prefer")
        + "[auth]\nmethod = \"scram-sha-256\"\nusers_file = \"{dir}/users.txt\"\n";
    let pooler = Pooler::serve_with_users(&postgres, &toml, "\"ann\" \"secret\"\n");
    let log_in = |password: &str, binding: &str| {
        outcome(
            psql(&pooler, "ann", "require", &authority)
                .env("PGPASSWORD", password)
                .env("PGCHANNELBINDING", binding),
        )
    };
    log_in("secret", "require").expect("bound");
    log_in("secret", "disable").expect("not bound");
    let said = log_in("wrong", "require").expect_err("a wrong password");
    assert!(said.contains("password authentication failed"), "{said}");

    // A client that believes that it was not offered was lied to by somebody in between.
    for (header, accepted) in [("n,,", true), ("y,,", false)] {
        let mut raw = Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS");
        raw.write(&startup_packet(
            196_608,
            &[("user", "ann"), ("database", "postgres")],
        ))
        .expect("connected");
        let offer = raw.read();
        assert_eq!(offer.body[4..], *b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let first = format!("{header}n=,r=abcdefgh");
        let mut body = b"SCRAM-SHA-256\0".to_vec();
        body.extend(u32::try_from(first.len()).expect("short").to_be_bytes());
        body.extend(first.as_bytes());
        raw.send(&Batch::new().message(b'p', &body));
        assert_eq!(raw.read().tag == 'R', accepted, "{header}");
    }
}

#[test]
fn plaintext_behind_an_ssl_request_is_refused() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let pooler = Pooler::serve(&postgres, &towards_clients(&authority, "prefer"));
    let mut raw = Raw::connect(pooler.port());
    let mut packets = special_request(SSL_REQUEST);
    packets.extend(startup_packet(196_608, &[("user", "postgres")]));
    raw.write(&packets).expect("connected");
    let error = raw.read().error();
    assert!(
        error.text().contains("unencrypted data after SSL request"),
        "{error}"
    );
    assert_eq!(error.code(), "08P01");
    assert!(raw.read_to_end().is_empty());
}

#[test]
fn direct_tls_needs_its_alpn() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let pooler = Pooler::serve(&postgres, &towards_clients(&authority, "require"));
    let direct =
        |protocols: &[&str]| Raw::connect(pooler.port()).secure(authority.client(None, protocols));
    let mut raw = direct(&["postgresql"]).expect("a handshake");
    raw.log_in(&[("user", "postgres")], None).expect("let in");
    assert_eq!(raw.value("select 1"), "1");

    let mut raw = direct(&[]).expect("a handshake");
    let error = raw.read().error();
    assert!(error.text().contains("without ALPN"), "{error}");
    assert!(direct(&["http/1.1"]).is_err(), "another protocol");

    // Where TLS was asked for, older clients send none.
    let mut raw = Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS");
    raw.log_in(&[("user", "postgres")], None).expect("let in");
}

#[test]
fn sessions_of_clients_are_resumed() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let pooler = Pooler::serve(&postgres, &towards_clients(&authority, "prefer"));
    let config = authority.client(None, &["postgresql"]);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect_tls(pooler.port(), Arc::clone(&config)).expect("TLS");
        raw.log_in(&[("user", "postgres")], None).expect("let in");
        kinds.push(raw.tls().handshake_kind());
        raw.goodbye();
    }
    let resumed = Some(HandshakeKind::Resumed);
    assert_eq!(kinds, [Some(HandshakeKind::Full), resumed, resumed]);
}

#[test]
fn certificates_are_reloaded_and_nobody_is_dropped() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let pooler = Pooler::serve(&postgres, &towards_clients(&authority, "prefer"));
    let shown = || {
        let raw = Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS");
        raw.tls().peer_certificates().expect("a certificate")[0].clone()
    };
    let mut old = Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS");
    old.log_in(&[("user", "postgres")], None).expect("let in");
    let before = shown();

    fs::write(authority.certificate("server"), "no certificate").expect("the file is ours");
    pooler.reload();
    let line = pooler.await_log("the refusal", |line| line.contains("server.crt"));
    assert!(line.contains("no certificate"), "{line}");
    assert_eq!(shown(), before);

    authority.issue("server", "localhost", &HERE);
    pooler.reload();
    eventually("the new one is shown", || shown() != before);
    assert_eq!(old.value("select 1"), "1");
}

#[test]
fn wrong_files_are_named_at_the_start_and_by_check() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let toml = towards_clients(&authority, "prefer");
    authority.issue("other", "localhost", &HERE);
    let cases = [
        (toml.replace("server.crt", "missing.crt"), "missing.crt: "),
        (toml.replace("server.key", "other.key"), "server.crt: "),
        (toml.replace("server.key", "server.crt"), "server.crt: "),
        (
            toml.replace("[tls.client]", "[tls.server]")
                .replace("prefer", "require")
                + "ca = \"{dir}/users.txt\"\n",
            "users.txt: ",
        ),
    ];
    for (toml, named) in cases {
        let refused = Pooler::try_serve(postgres.port(), &toml, "").err();
        let said = refused.expect("it does not start").log;
        assert!(said.contains(named), "{said}");
    }
    let file = authority.certificate("pooler").with_extension("toml");
    let whole =
        toml.replace("server.crt", "missing.crt") + "[databases.\"*\"]\nurl = \"postgres://db\"\n";
    fs::write(&file, whole).expect("the directory is ours");
    let (status, said) = pgweir(&["check", &file.display().to_string()]);
    assert!(
        !status.success() && said.contains("missing.crt: "),
        "{said}"
    );
}

/// `[databases."*"]` with a parameter in its url.
fn database(parameters: &str) -> String {
    format!("[databases.\"*\"]\nurl = \"postgres://127.0.0.1:{{postgres}}?{parameters}\"\n")
}

const IS_SECURED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

fn postgres_is_spoken_to_in_every_mode(count: usize) {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue("here", "here", &HERE);
    authority.issue("elsewhere", "elsewhere", &["elsewhere"]);
    let at = "all all 127.0.0.1/32";
    let setup = |certificate: &str| Postgres::setup().tls(&authority, certificate);
    let (only_tls, only_plain) = (
        format!("hostnossl {at} reject"),
        format!("hostssl {at} reject"),
    );
    let cases = [
        ("TLS or not", setup("here").start(), "f f t t t t"),
        ("another name", setup("elsewhere").start(), "f f t t t -"),
        (
            "only TLS",
            setup("here").hba(&only_tls).start(),
            "- t t t t t",
        ),
        (
            "no TLS allowed",
            setup("here").hba(&only_plain).start(),
            "f f f - - -",
        ),
        ("no TLS at all", Postgres::start(), "f f f - - -"),
    ];
    for (kind, postgres, expected) in &cases {
        for (mode, expected) in MODES.into_iter().zip(expected.split(' ')) {
            let toml = threads(count)
                + &database(&format!("sslmode={mode}"))
                + "[tls.server]\n"
                + &ca(&authority)
                + "[timeouts]\nquery_wait = \"2s\"\n";
            let pooler = Pooler::serve(postgres, &toml);
            let client = Raw::try_login(pooler.port(), "postgres", "postgres", None);
            let found = client.map(|mut client| client.value(IS_SECURED));
            let found = found.as_deref().unwrap_or("-");
            assert_eq!(found, expected, "{kind}, {mode}");
        }
    }
    // As in libpq, whoever names authorities means them, whatever the mode.
    for (mode, secured) in [
        ("require", None),
        ("verify-ca", None),
        ("prefer", Some("f")),
    ] {
        let toml = threads(count)
            + &format!("[tls.server]\nmode = \"{mode}\"\n{}", ca(&stranger))
            + "[timeouts]\nquery_wait = \"2s\"\n";
        let pooler = Pooler::serve(&cases[0].1, &toml);
        let client = Raw::try_login(pooler.port(), "postgres", "postgres", None);
        match (client, secured) {
            (Ok(mut client), Some(secured)) => assert_eq!(client.value(IS_SECURED), secured),
            (Err(error), None) => assert!(error.text().contains("certificate"), "{error}"),
            (other, _) => panic!("{mode}: {:?}", other.map(|_| "let in")),
        }
    }
}

#[test]
fn pgweir_shows_postgres_its_certificate() {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    authority.issue("pooler", "ann", &[]);
    let postgres = Postgres::setup()
        .tls(&authority, "here")
        .hba("hostssl all all 127.0.0.1/32 cert")
        .start();
    postgres.sql("create role ann login");
    let own = format!(
        "certificate = \"{}\"\nkey = \"{}\"\n",
        authority.certificate("pooler").display(),
        authority.key("pooler").display(),
    );
    let toml = "[tls.server]\nmode = \"verify-full\"\n".to_owned() + &ca(&authority) + &own;
    let pooler = Pooler::serve_with_users(&postgres, &toml, "\"ann\" \"\"\n\"bob\" \"\"\n");
    let mut ann = Raw::login(pooler.port(), "ann", "postgres");
    assert_eq!(ann.value("select current_user"), "ann");
    assert_eq!(ann.value(IS_SECURED), "t");
    let refused = Raw::try_login(pooler.port(), "bob", "postgres", None);
    assert_eq!(refused.err().expect("not bob's").code(), "28000");
}

#[test]
fn certificates_as_postgres_manual_makes_them_are_good_enough() {
    let directory = support::process::scratch();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let openssl = |arguments: &str| {
        let arguments = arguments.replace("DIR", &directory.path().display().to_string());
        support::process::run(
            Command::new("openssl")
                .args(arguments.split(' '))
                .stderr(std::process::Stdio::null()),
        );
    };
    // "Creating Certificates" in the manual: the second kind is of version 1, and has no names but the common one.
    openssl("req -new -nodes -text -out DIR/ca.csr -keyout DIR/ca.key -subj /CN=root");
    openssl(
        "x509 -req -in DIR/ca.csr -days 9 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -signkey DIR/ca.key -out DIR/ca.crt",
    );
    openssl("req -new -nodes -out DIR/db.csr -keyout DIR/db.key -subj /CN=127.0.0.1");
    openssl(
        "x509 -req -in DIR/db.csr -days 9 -CA DIR/ca.crt -CAkey DIR/ca.key -CAcreateserial -out DIR/db.crt",
    );
    openssl(
        "req -new -x509 -days 9 -nodes -out DIR/self.crt -keyout DIR/self.key -subj /CN=127.0.0.1",
    );
    for (name, toml) in [
        ("db", "mode = \"require\"\n".to_owned()),
        (
            "self",
            format!("mode = \"verify-full\"\nca = \"{}\"\n", at("self.crt")),
        ),
    ] {
        let postgres = Postgres::setup()
            .tls_files(
                at("ca.crt"),
                at(&format!("{name}.crt")),
                at(&format!("{name}.key")),
            )
            .method(Method::Scram)
            .start();
        postgres.create_role("ann", "secret");
        let toml = format!("[tls.server]\n{toml}");
        let pooler = Pooler::serve_with_users(&postgres, &toml, "\"ann\" \"secret\"\n");
        let mut ann = Raw::login(pooler.port(), "ann", "postgres");
        assert_eq!(ann.value(IS_SECURED), "t", "{name}");
    }
}

/// A server that says what a test wants it to, on the first connection.
struct Fake {
    port: u16,
    thread: thread::JoinHandle<()>,
}

impl Fake {
    fn start(talk: impl FnOnce(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("bound").port();
        let thread = thread::spawn(move || talk(listener.accept().expect("somebody comes").0));
        Self { port, thread }
    }
}

fn expect_ssl_request(socket: &mut TcpStream) {
    let mut request = [0; 8];
    socket.read_exact(&mut request).expect("a request");
    assert_eq!(request[..], special_request(SSL_REQUEST));
}

#[test]
fn plaintext_behind_the_servers_answer_is_refused() {
    let fake = Fake::start(|mut socket| {
        expect_ssl_request(&mut socket);
        socket
            .write_all(b"SR\0\0\0\x08\0\0\0\0")
            .expect("connected");
        // It hangs up rather than to shake hands.
        assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
    });
    let pooler = Pooler::serve_port(fake.port, &database("sslmode=require"));
    let error = Raw::try_login(pooler.port(), "postgres", "postgres", None).err();
    let error = error.expect("no login over that");
    assert!(error.text().contains("unencrypted data"), "{error}");
    fake.thread.join().expect("all as expected");
}

fn read_packet(stream: &mut impl Read, tagged: usize) -> Vec<u8> {
    let mut head = vec![0; 4 + tagged];
    stream.read_exact(&mut head).expect("a packet");
    let length = u32::from_be_bytes(*head.last_chunk().expect("four bytes"));
    let mut body = vec![0; usize::try_from(length).expect("64 bits") - 4];
    stream.read_exact(&mut body).expect("its body");
    body
}

/// What pgweir chooses of these mechanisms, under TLS.
fn choice(authority: &Authority, offer: &'static [u8]) -> String {
    let config: Arc<ServerConfig> = authority.server("here");
    let (said, heard) = std::sync::mpsc::channel();
    let fake = Fake::start(move |mut socket| {
        expect_ssl_request(&mut socket);
        socket.write_all(b"S").expect("connected");
        let session = ServerConnection::new(config).expect("a configuration");
        let mut stream = StreamOwned::new(session, socket);
        read_packet(&mut stream, 0);
        let body = [&10_u32.to_be_bytes(), offer].concat();
        stream
            .write_all(Batch::new().message(b'R', &body).bytes())
            .expect("connected");
        said.send(read_packet(&mut stream, 1)).expect("it waits");
    });
    let pooler = Pooler::serve_with_users_at(
        fake.port,
        &database("sslmode=require"),
        "\"ann\" \"secret\"\n",
    );
    let client = thread::spawn({
        let port = pooler.port();
        move || drop(Raw::try_login(port, "ann", "postgres", None))
    });
    let chosen = heard.recv().expect("an answer");
    fake.thread.join().expect("all as expected");
    drop(pooler);
    client.join().expect("it was told something");
    String::from_utf8_lossy(&chosen).replace('\0', " ")
}

#[test]
fn the_login_to_postgres_is_bound_to_the_channel() {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    let chosen = choice(&authority, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    assert!(chosen.starts_with("SCRAM-SHA-256-PLUS "), "{chosen}");
    assert!(chosen.contains("p=tls-server-end-point,,n="), "{chosen}");
    // A server that did offer it learns that somebody has taken it away.
    let chosen = choice(&authority, b"SCRAM-SHA-256\0\0");
    assert!(
        chosen.starts_with("SCRAM-SHA-256 ") && chosen.contains("y,,n="),
        "{chosen}"
    );
}

#[test]
fn postgres_accepts_the_binding() {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    let postgres = Postgres::setup()
        .tls(&authority, "here")
        .method(Method::Scram)
        .start();
    postgres.create_role("ann", "secret");
    let toml = database("sslmode=require");
    let pooler = Pooler::serve_with_users(&postgres, &toml, "\"ann\" \"secret\"\n");
    let mut ann = Raw::login(pooler.port(), "ann", "postgres");
    assert_eq!(ann.value(IS_SECURED), "t");
}

#[test]
fn one_pgweir_speaks_direct_tls_with_another_and_resumes() {
    let postgres = Postgres::start();
    let authority = Authority::new();
    let inner = Pooler::serve(&postgres, &towards_clients(&authority, "require"));
    let toml = database("sslmode=verify-full&sslnegotiation=direct")
        + "[tls.server]\n"
        + &ca(&authority)
        + "[pool]\nsize = 3\n";
    let outer = Pooler::serve_port(inner.port(), &toml);
    let mut clients: Vec<_> = (0..3)
        .map(|_| Raw::login(outer.port(), "postgres", "postgres"))
        .collect();
    for client in &mut clients {
        client.query("begin").expect("a server connection each");
    }
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    inner.await_log("a resumed session", |line| line.contains("resumed=true"));
}

#[test]
fn postgres_is_spoken_to_by_direct_tls() {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    for version in [17, 18] {
        let postgres = Postgres::setup()
            .version(version)
            .tls(&authority, "here")
            .method(Method::Scram)
            .start();
        postgres.create_role("ann", "secret");
        let toml = database("sslmode=verify-full&sslnegotiation=direct")
            + "[tls.server]\n"
            + &ca(&authority)
            + "[pool]\nsize = 1\n";
        let pooler = Pooler::serve_with_users(&postgres, &toml, "\"ann\" \"secret\"\n");
        let mut ann = Raw::login(pooler.port(), "ann", "postgres");
        assert_eq!(ann.value(IS_SECURED), "t", "{version}");
        // Its cancel goes the same way.
        ann.send(&Batch::new().query("select pg_sleep(60)"));
        eventually("it runs", || postgres.busy() == 1);
        let (pid, secret) = ann.key.clone().expect("it was told");
        let mut cancel = Raw::connect(pooler.port());
        cancel
            .write(&cancel_request(pid, &secret))
            .expect("connected");
        assert_eq!(ann.rows().expect_err("cancelled").code(), "57014");
    }
}

#[test]
fn another_mode_towards_postgres_counts_from_a_reload_on() {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    let postgres = Postgres::setup().tls(&authority, "here").start();
    let toml = |mode: &str| format!("[tls.server]\nmode = \"{mode}\"\n[pool]\nsize = 1\n");
    let pooler = Pooler::serve(&postgres, &toml("disable"));
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value(IS_SECURED), "f");
    pooler.rewrite(&toml("require"));
    pooler.reload();
    eventually("its server connection is another one", || {
        client.value(IS_SECURED) == "t"
    });
    // The same again changes nothing.
    let backend = client.backend();
    let log = pooler.log().matches("reloaded").count();
    pooler.reload();
    eventually("it has reloaded", || {
        pooler.log().matches("reloaded").count() > log
    });
    assert_eq!(client.backend(), backend);
}

/// A Postgres that speaks TLS alone, a pgweir that does so both ways, and their authority.
fn secured(count: usize, rest: &str) -> (Postgres, Pooler, Authority) {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    let postgres = Postgres::setup()
        .tls(&authority, "here")
        .hba("hostnossl all all 127.0.0.1/32 reject")
        .start();
    let toml = threads(count)
        + &towards_clients(&authority, "require")
        + "[tls.server]\nmode = \"verify-full\"\n"
        + &ca(&authority)
        + rest;
    let pooler = Pooler::serve(&postgres, &toml);
    (postgres, pooler, authority)
}

fn log_in(pooler: &Pooler, authority: &Authority) -> Raw {
    let mut raw = Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS");
    raw.log_in(&[("user", "postgres")], None).expect("let in");
    raw
}

fn bulk_data_passes_under_tls_both_ways(count: usize) {
    const ROWS: usize = 50;
    let (postgres, pooler, authority) = secured(count, "[pool]\nsize = 2\n");
    postgres.sql("create table bulk (n int, data text)");
    let line = "x".repeat(1_000_000);
    let mut input = String::new();
    for n in 0..ROWS {
        writeln!(input, "{n}\t{line}").expect("memory");
    }
    let mut client = log_in(&pooler, &authority);
    client.send(&Batch::new().query("copy bulk from stdin"));
    client.read_until('G');
    for chunk in input.as_bytes().chunks(300_000) {
        client.send(&Batch::new().copy_data(chunk));
    }
    client.send(&Batch::new().copy_done());
    client.read_until('Z');
    let found = client.value("select count(*) || ' ' || sum(length(data)) from bulk");
    assert_eq!(found, format!("{ROWS} {}", ROWS * 1_000_000));

    client.send(&Batch::new().query("copy bulk to stdout"));
    let messages = client.read_until('Z');
    let data = messages.iter().filter(|message| message.tag == 'd');
    let bytes: Vec<u8> = data.flat_map(|message| message.body.clone()).collect();
    assert!(bytes == input.as_bytes(), "{} bytes came back", bytes.len());
    assert_eq!(log_in(&pooler, &authority).value("select 1"), "1");
}

fn many_small_queries_pass_under_tls(count: usize) {
    let (postgres, pooler, _authority) = secured(count, "[pool]\nsize = 3\n");
    postgres.fill_for_pgbench();
    for protocol in ["simple", "extended", "prepared"] {
        let output = program("pgbench")
            .args([
                "-n", "-S", "-c", "10", "-j", "2", "-t", "300", "-M", protocol,
            ])
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
                &pooler.port().to_string(),
            ])
            .arg("postgres")
            .env("PGSSLMODE", "require")
            .output()
            .expect("pgbench is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("3000/3000"), "{protocol}: {said} {complaint}");
    }
    assert_eq!(
        postgres.connections(),
        3,
        "nobody was lost, none was opened anew"
    );
}

fn a_query_is_cancelled_under_tls(count: usize) {
    let (postgres, pooler, authority) = secured(count, "[pool]\nsize = 1\n");
    let mut client = log_in(&pooler, &authority);
    for direct in [false, true] {
        client.send(&Batch::new().query("select pg_sleep(60)"));
        let begun = Instant::now();
        let (pid, secret) = client.key.clone().expect("it was told");
        eventually("it runs", || postgres.busy() == 1);
        let mut cancel = if direct {
            let config = authority.client(None, &["postgresql"]);
            Raw::connect(pooler.port()).secure(config).expect("TLS")
        } else {
            Raw::connect_tls(pooler.port(), authority.client(None, &[])).expect("TLS")
        };
        cancel
            .write(&cancel_request(pid, &secret))
            .expect("connected");
        assert_eq!(client.rows().expect_err("cancelled").code(), "57014");
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(client.value("select 1"), "1");
    }
}

fn a_client_that_vanishes_under_tls_leaves_a_clean_server(count: usize) {
    let (postgres, pooler, authority) = secured(count, "[pool]\nsize = 1\n");
    let mut client = log_in(&pooler, &authority);
    let backend = client.backend();
    client.query("begin").expect("a transaction");
    client.send(&Batch::new().query("select pg_sleep(60)"));
    eventually("it runs", || postgres.busy() == 1);
    drop(client);
    postgres.await_all_idle();
    assert_eq!(log_in(&pooler, &authority).backend(), backend);
}

/// Asks for words of its own until told to stop, and logs in again when it is thrown out.
fn go_on_asking(
    port: u16,
    config: &Arc<ClientConfig>,
    (over, answers): (&AtomicBool, &AtomicUsize),
) {
    while !over.load(Ordering::Relaxed) {
        let mut raw = Raw::connect(port);
        let asked = raw.write(&special_request(SSL_REQUEST)).is_ok();
        if !(asked && raw.read_byte_if_any() == Some('S')) {
            continue;
        }
        let Ok(mut raw) = raw.secure(Arc::clone(config)) else {
            continue;
        };
        if raw.log_in(&[("user", "postgres")], None).is_err() {
            continue;
        }
        while !over.load(Ordering::Relaxed) {
            let word = format!(
                "{:?}/{}",
                thread::current().id(),
                answers.load(Ordering::Relaxed)
            );
            match raw.query(&format!("select '{word}', repeat('x', 30000)")) {
                Ok(rows) => assert_eq!(rows[0][0].as_deref(), Some(&*word), "another's answer"),
                Err(_) => break,
            }
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn records_cut_by_the_network_reach_nobody_else(count: usize) {
    let authority = Authority::new();
    authority.issue("here", "here", &HERE);
    let postgres = Postgres::setup().tls(&authority, "here").start();
    let behind = Proxy::to(postgres.port());
    let toml = threads(count)
        + &towards_clients(&authority, "require")
        + "[tls.server]\nmode = \"require\"\n[pool]\nsize = 3\n\
           [timeouts]\nserver_login_retry = \"50ms\"\n";
    let pooler = Pooler::serve_port(behind.port(), &toml);
    let front = Proxy::to(pooler.port());
    let config = authority.client(None, &[]);
    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| go_on_asking(front.port(), &config, (&over, &answers)));
        }
        let end = EndOnDrop(&over);
        // In handshakes, in headers, in the middle of records.
        for limit in [1, 7, 700, 1500, 2000, 4000, 20_001, 70_003, 200_011] {
            for proxy in [&behind, &front] {
                for fault in [
                    Fault::CloseAfter(Side::Client, limit),
                    Fault::ResetAfter(Side::Client, limit),
                    Fault::ResetAfter(Side::Server, limit),
                ] {
                    proxy.set(fault);
                    let before = proxy.accepted();
                    proxy.reset_all();
                    eventually("the fault was met", || proxy.accepted() > before);
                    proxy.set(Fault::None);
                    let before = answers.load(Ordering::Relaxed);
                    eventually("they are served again", || {
                        answers.load(Ordering::Relaxed) > before + 8
                    });
                }
            }
        }
        drop(end);
    });
    assert_eq!(log_in(&pooler, &authority).value("select 1"), "1");
    postgres.await_all_idle();
}

#[test]
fn goodbyes_are_said_under_tls() {
    let (_postgres, mut pooler, authority) = secured(1, "");
    let mut client = log_in(&pooler, &authority);
    client.query("select 1").expect("an answer");
    pooler.signal("TERM");
    // rustls calls a stream truncated that ends without its close_notify.
    let end = client.receive_end();
    assert_eq!(
        end.last().map(|message| message.error().code().to_owned()),
        Some("57P01".into())
    );
    pooler.await_end(Duration::from_secs(30));
}
