//! `auth.method = "hba"`: each record lets in whom it is for, by its own method.

mod support;

use std::fs;
use std::process::Command;

use support::pooler::pgweir;
use support::postgres::outcome;
use support::{Authority, Method, Pooler, Postgres};

const USERS: &str = "\"alice\" \"wonder\"\n\"bob\" \"builder\"\n\"ann\" \"\"\n\"postgres\" \"\"\n";

/// Postgres trusts; `{dir}/hba` has these records, and the sockets are in `{dir}`.
fn serve(postgres: &Postgres, hba: &str, idents: &str, more: &str) -> Pooler {
    let authority = support::process::scratch();
    let (file, map) = (
        authority.path().join("hba"),
        authority.path().join("idents"),
    );
    fs::write(&file, hba).unwrap();
    fs::write(&map, idents).unwrap();
    let toml = format!(
        "[listen]\naddresses = [\"127.0.0.1:{{port}}\"]\nhttp = \"127.0.0.1:{{http}}\"\nunix_socket_dir = \"{{dir}}\"\n\
         [auth]\nmethod = \"hba\"\nhba_file = \"{}\"\nident_file = \"{}\"\nusers_file = \"{{dir}}/users.txt\"\n{more}",
        file.display(),
        map.display()
    );
    // Read at the start; the directory goes with this function.
    Pooler::serve_with_users(postgres, &toml, USERS)
}

fn postgres() -> Postgres {
    let postgres = Postgres::setup().method(Method::Trust).start();
    for (role, password) in [("alice", "wonder"), ("bob", "builder"), ("ann", "x")] {
        postgres.create_role(role, password);
    }
    postgres
}

#[track_caller]
fn refused(outcome: Result<String, String>, words: &str) {
    let complaint = outcome.expect_err("it is let in");
    assert!(complaint.contains(words), "{complaint}");
}

#[test]
fn each_method_asks_for_its_own_proof() {
    let postgres = postgres();
    for (method, right, wrong) in [
        ("password", "wonder", "password authentication failed"),
        ("md5", "wonder", "password authentication failed"),
        ("scram-sha-256", "wonder", "password authentication failed"),
    ] {
        let pooler = serve(
            &postgres,
            &format!("host all all 127.0.0.0/8 {method}"),
            "",
            "",
        );
        let login = |password| outcome(&mut pooler.psql("alice", "postgres"), password);
        assert_eq!(login(right), Ok("alice".to_owned()), "{method}");
        refused(login("nonsense"), wrong);
    }
}

#[test]
fn the_first_record_that_fits_decides() {
    let postgres = postgres();
    let hba = "host all bob all reject\nhost postgres alice 127.0.0.1 255.255.255.255 trust\nhost all ann ::1/128 trust\n\
               host all nobody all trust\n";
    let pooler = serve(&postgres, hba, "", "");
    let login = |user| outcome(&mut pooler.psql(user, "postgres"), "builder");
    assert_eq!(login("alice"), Ok("alice".to_owned()));
    refused(login("bob"), "pg_hba.conf rejects connection");
    refused(
        login("ann"),
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"ann\", database \"postgres\", no encryption",
    );
    refused(login("nobody"), "not known");
    refused(
        outcome(&mut pooler.psql("alice", "template1"), ""),
        "no pg_hba.conf entry",
    );
}

#[test]
fn the_owner_of_a_process_comes_in_over_the_unix_socket() {
    let postgres = postgres();
    let own = support::process::run(Command::new("id").arg("-un"))
        .trim()
        .to_owned();
    let hba = "local all alice peer map=os\nlocal all bob peer\nlocal all postgres peer map=none\n";
    let pooler = serve(&postgres, hba, &format!("os {own} alice\n"), "");
    let login = |user| {
        let mut command = pooler.psql(user, "postgres");
        // The last -h counts.
        command.arg("-h").arg(pooler.directory());
        outcome(&mut command, "")
    };
    assert_eq!(login("alice"), Ok("alice".to_owned()));
    refused(login("bob"), "peer authentication failed");
    refused(login("postgres"), "peer authentication failed");
    refused(
        outcome(&mut pooler.psql("alice", "postgres"), ""),
        "no pg_hba.conf entry",
    );
}

#[test]
fn a_certificate_is_a_proof_where_a_record_says_so() {
    let postgres = postgres();
    let authority = Authority::new();
    authority.issue("server", "localhost", &support::certs::HERE);
    authority.issue("alice", "alice", &[]);
    authority.issue("robert", "robert", &[]);
    let hba = "hostssl all alice all cert\nhostssl all bob all cert map=names\nhostnossl all bob all reject\n\
               hostnossl all alice all scram-sha-256\n";
    let tls = format!(
        "[tls.client]\nmode = \"prefer\"\ncertificate = \"{}\"\nkey = \"{}\"\nca = \"{}\"\n",
        authority.certificate("server").display(),
        authority.key("server").display(),
        authority.ca().display()
    );
    let pooler = serve(&postgres, hba, "names robert bob\n", &tls);
    let login = |user: &str, certificate: Option<&str>, mode: &str| {
        let mut command = pooler.psql(user, "postgres");
        command
            .env("PGSSLMODE", mode)
            .env("PGSSLCERT", "/nonexistent");
        if let Some(name) = certificate {
            command
                .env("PGSSLCERT", authority.certificate(name))
                .env("PGSSLKEY", authority.key(name));
        }
        outcome(&mut command, "wonder")
    };
    assert_eq!(
        login("alice", Some("alice"), "require"),
        Ok("alice".to_owned())
    );
    assert_eq!(
        login("bob", Some("robert"), "require"),
        Ok("bob".to_owned())
    );
    assert_eq!(login("alice", None, "disable"), Ok("alice".to_owned()));
    refused(
        login("alice", None, "require"),
        "certificate authentication failed",
    );
    refused(
        login("alice", Some("robert"), "require"),
        "certificate authentication failed",
    );
    refused(
        login("bob", Some("alice"), "require"),
        "certificate authentication failed",
    );
    refused(login("bob", None, "disable"), "rejects connection");
}

#[test]
fn a_broken_record_is_named_and_nothing_starts() {
    let directory = support::process::scratch();
    let hba = directory.path().join("hba");
    fs::write(
        &hba,
        "local all all trust\nhost all all 10.0.0.1/8 trust\nnosuch\n",
    )
    .unwrap();
    let toml = directory.path().join("pooler.toml");
    fs::write(
        &toml,
        format!(
            "[auth]\nmethod = \"hba\"\nhba_file = \"{}\"\n[databases.\"*\"]\nurl = \"postgres://db\"\n",
            hba.display()
        ),
    )
    .unwrap();
    let (status, text) = pgweir(&["check", &toml.display().to_string()]);
    assert!(!status.success());
    assert!(text.contains("hba:2:1: the host bits"), "{text}");
    assert!(text.contains("hba:3:1: "), "{text}");
}
