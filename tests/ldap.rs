//! `auth.method = "ldap"` and records with `ldap`: a real directory checks the passwords.

mod support;

use std::net::TcpListener;

use support::postgres::outcome;
use support::slapd::{BASE, READER};
use support::{Authority, Method, Pooler, Postgres, Slapd, eventually};

/// Users of the directory, with the same passwords where they have one at Postgres.
fn postgres() -> Postgres {
    let postgres = Postgres::setup().method(Method::Scram).start();
    for (role, password) in [
        ("alice", "wonder"),
        ("bob", "otherwise"),
        ("al*", "starry"),
        ("root,ou=admins", "toor"),
    ] {
        postgres.create_role(role, password);
    }
    postgres
}

fn serve(postgres: &Postgres, authority: &Authority, options: &str) -> Pooler {
    let options = options.replace('"', "\\\"");
    let toml = format!("[auth]\nmethod = \"ldap\"\nldap_options = \"{options}\"\n");
    let ca = authority.ca();
    Pooler::serve_with_environment(
        postgres,
        &toml,
        &[("LDAPTLS_CACERT", ca.to_str().expect("a plain path"))],
    )
}

/// Who psql says it is, or what it complained of.
fn login(pooler: &Pooler, user: &str, password: &str) -> Result<String, String> {
    outcome(&mut pooler.psql(user, "postgres"), password)
}

#[track_caller]
fn refused(outcome: Result<String, String>) {
    let complaint = outcome.expect_err("it is let in");
    assert!(
        complaint.contains("LDAP authentication failed"),
        "{complaint}"
    );
}

#[test]
fn every_way_to_the_directory_lets_in_whom_it_knows_and_nobody_else() {
    let (postgres, authority) = (postgres(), Authority::new());
    let slapd = Slapd::start(&authority);
    let (port, tls) = (slapd.port, slapd.tls_port);
    let around = format!("ldapprefix=\"uid=\" ldapsuffix=\",ou=people,{BASE}\"");
    let reader = format!("ldapbasedn=\"{BASE}\" ldapbinddn=\"{READER}\" ldapbindpasswd=secret");
    for options in [
        format!("ldapserver=127.0.0.1 ldapport={port} {around}"),
        // The first one is not there.
        format!("ldapserver=\"127.0.0.1:1 localhost\" ldapport={port} ldaptls=1 {around}"),
        format!("ldapserver=localhost ldapport={tls} ldapscheme=ldaps {around}"),
        format!("ldapserver=127.0.0.1 ldapport={port} {reader}"),
        format!("ldapserver=localhost ldapport={port} ldaptls=1 {reader} ldapsearchattribute=cn"),
        format!(
            "ldapserver=localhost ldapport={tls} ldapscheme=ldaps {reader} \
             ldapsearchfilter=\"(&(objectClass=inetOrgPerson)(|(uid=$username)(mail=$username)))\""
        ),
        format!(
            "ldapurl=\"ldap://localhost:{port}/{BASE}?uid?sub\" ldaptls=1 ldapbinddn=\"{READER}\" ldapbindpasswd=secret"
        ),
    ] {
        let pooler = serve(&postgres, &authority, &options);
        // With the same password she logs in to Postgres.
        assert_eq!(
            login(&pooler, "alice", "wonder"),
            Ok("alice".to_owned()),
            "{options}\n{}",
            pooler.log()
        );
        refused(login(&pooler, "alice", "nonsense"));
        // Not without one, which many a directory greets; psql has to be told that it is meant.
        let answer = empty_password(&pooler, "alice");
        assert!(
            answer.contains("empty password returned by client"),
            "{answer}"
        );
        refused(login(&pooler, "nobody", "wonder"));
        // Postgres has another password for him, and the last word.
        let complaint = login(&pooler, "bob", "builder").expect_err("he is let in");
        assert!(
            complaint.contains("password authentication failed for user \"bob\""),
            "{complaint}"
        );
    }
}

/// An empty password, as some driver may send it.
fn empty_password(pooler: &Pooler, user: &str) -> String {
    use std::io::{Read, Write};
    let mut socket =
        std::net::TcpStream::connect(("127.0.0.1", pooler.port())).expect("it listens");
    let body = format!("\0\x03\0\0user\0{user}\0database\0postgres\0\0");
    let length = u32::try_from(body.len() + 4).expect("it is short");
    socket
        .write_all(&length.to_be_bytes())
        .expect("it takes it");
    socket.write_all(body.as_bytes()).expect("it takes it");
    let mut asked = [0; 9];
    socket.read_exact(&mut asked).expect("it asks");
    assert_eq!(
        &asked, b"R\0\0\0\x08\0\0\0\x03",
        "for the password in clear"
    );
    socket.write_all(b"p\0\0\0\x05\0").expect("it takes it");
    let limit = Some(support::wait::PATIENCE);
    socket.set_read_timeout(limit).expect("it is not zero");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_name_is_no_more_than_a_name() {
    let (postgres, authority) = (postgres(), Authority::new());
    let slapd = Slapd::start(&authority);
    let port = slapd.port;
    let around = format!(
        "ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"uid=\" ldapsuffix=\",ou=people,{BASE}\""
    );
    let pooler = serve(&postgres, &authority, &around);
    // The entry of that name below ou=admins has this password.
    refused(login(&pooler, "root,ou=admins", "toor"));
    // A star is a letter of a name.
    assert_eq!(login(&pooler, "al*", "starry"), Ok("al*".to_owned()));
    let search = format!(
        "ldapserver=127.0.0.1 ldapport={port} ldapbasedn=\"{BASE}\" ldapbinddn=\"{READER}\" ldapbindpasswd=secret"
    );
    let pooler = serve(&postgres, &authority, &search);
    for (user, password) in [
        ("al*", "starry"),
        ("al*", "wonder"),
        ("*", "wonder"),
        ("alice)(uid=*", "wonder"),
        ("alice)(|(uid=*)", "wonder"),
        ("\\61lice", "wonder"),
    ] {
        refused(login(&pooler, user, password));
    }
    let log = pooler.log();
    assert!(
        log.contains("invalid character in user name for LDAP authentication"),
        "{log}"
    );
    // Two entries have that mail.
    let pooler = serve(
        &postgres,
        &authority,
        &format!("{search} ldapsearchattribute=mail"),
    );
    refused(login(&pooler, "shared@example.net", "builder"));
    pooler.await_log("why", |log| {
        log.contains("LDAP user \"shared@example.net\" is not unique")
    });
}

#[test]
fn a_directory_that_cannot_be_trusted_or_reached_lets_nobody_in_and_the_log_says_why() {
    let (postgres, authority) = (postgres(), Authority::new());
    let slapd = Slapd::start(&authority);
    let (port, tls) = (slapd.port, slapd.tls_port);
    let around = format!("ldapprefix=\"uid=\" ldapsuffix=\",ou=people,{BASE}\"");
    let silent = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let silent_port = silent.local_addr().expect("it is bound").port();
    let another = Authority::new();
    for (options, trusted, why) in [
        // Its certificate is for localhost alone.
        (
            format!("ldapserver=127.0.0.1 ldapport={tls} ldapscheme=ldaps {around}"),
            &authority,
            "could not start LDAP TLS session",
        ),
        (
            format!("ldapserver=localhost ldapport={port} ldaptls=1 {around}"),
            &another,
            "could not start LDAP TLS session",
        ),
        (
            format!("ldapserver=127.0.0.1 ldapport=1 {around}"),
            &authority,
            "could not connect to LDAP server 127.0.0.1:1: Connection refused",
        ),
        (
            format!("ldapserver=127.0.0.1 ldapport={silent_port} {around}"),
            &authority,
            "gave no answer: nothing within 10s",
        ),
        (
            format!("ldapserver=localhost ldapport={silent_port} ldaptls=1 {around}"),
            &authority,
            "could not connect to LDAP server localhost",
        ),
        (
            format!(
                "ldapserver=127.0.0.1 ldapport={port} ldapbasedn=\"{BASE}\" ldapbinddn=\"{READER}\" ldapbindpasswd=wrong"
            ),
            &authority,
            "could not perform initial LDAP bind",
        ),
        // Nobody may search there.
        (
            format!("ldapserver=127.0.0.1 ldapport={port} ldapbasedn=\"{BASE}\""),
            &authority,
            "could not search LDAP",
        ),
    ] {
        let pooler = serve(&postgres, trusted, &options);
        refused(login(&pooler, "alice", "wonder"));
        let log = pooler.log();
        assert!(log.contains(why), "{options}:\n{log}");
        assert!(!log.contains("wonder"), "{log}");
    }
}

#[test]
fn a_directory_that_hangs_holds_up_those_who_ask_it_and_nobody_else() {
    let (postgres, authority) = (postgres(), Authority::new());
    let slapd = Slapd::start(&authority);
    let hba = format!(
        "host all alice all ldap ldapserver=127.0.0.1 ldapport={} ldapprefix=\"uid=\" ldapsuffix=\",ou=people,{BASE}\"\n\
         host all bob all password\n",
        slapd.port
    );
    let files = support::process::scratch();
    let file = files.path().join("hba");
    std::fs::write(&file, hba).expect("the directory is ours");
    let toml = format!(
        "[auth]\nmethod = \"hba\"\nhba_file = \"{}\"\nusers_file = \"{{dir}}/users.txt\"\n[timeouts]\nclient_login = \"3s\"\n\
         [runtime]\nthreads = 1\n",
        file.display()
    );
    let pooler = Pooler::serve_with_users(&postgres, &toml, "\"bob\" \"otherwise\"\n");
    assert_eq!(login(&pooler, "alice", "wonder"), Ok("alice".to_owned()));
    slapd.freeze();
    std::thread::scope(|scope| {
        let alice = scope.spawn(|| login(&pooler, "alice", "wonder"));
        eventually("the other one comes in meanwhile", || {
            login(&pooler, "bob", "otherwise").is_ok()
        });
        assert!(!alice.is_finished(), "she still waits");
        let complaint = alice.join().expect("psql runs").expect_err("she is let in");
        assert!(complaint.contains("client_login timeout"), "{complaint}");
    });
}
