//! Listening sockets that come from elsewhere: of systemd.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::pgbouncer::Place;
use support::pooler::program;
use support::process::{Guarded, free_port, run};
use support::{Postgres, Raw, eventually};

const INI: &str = "\
[databases]
* = host=127.0.0.1 port={postgres} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {dir}
logfile = {dir}/log
auth_type = any
";

fn place(postgres: &Postgres) -> Place {
    let place = Place::new();
    let text = INI
        .replace("{postgres}", &postgres.port().to_string())
        .replace("{port}", &place.port.to_string())
        .replace("{dir}", &place.path().display().to_string());
    place.write("pgbouncer.ini", &text);
    place
}

/// Runs pgweir on the file of a place, as somebody who may.
fn pgweir(place: &Place, wrapper: &[&str]) -> Command {
    let mut words: Vec<_> = wrapper.iter().map(|word| (*word).to_owned()).collect();
    words.push(program().display().to_string());
    if run(Command::new("id").arg("-u")).trim() == "0" {
        words.extend(["-u".to_owned(), "nobody".to_owned()]);
    }
    words.push(place.path().join("pgbouncer.ini").display().to_string());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn answers(mut raw: Raw) -> bool {
    let startup = [("user", "postgres"), ("database", "postgres")];
    raw.log_in(&startup, None).expect("anybody may");
    raw.value("select 1") == "1"
}

#[test]
fn sockets_of_systemd_take_the_place_of_the_configured_ones() {
    let postgres = Postgres::start();
    let place = place(&postgres);
    let (port, socket) = (free_port(), place.path().join(".s.PGSQL.7"));
    let (tcp, unix) = (format!("127.0.0.1:{port}"), socket.display().to_string());
    let mut command = pgweir(
        &place,
        &["systemd-socket-activate", "-l", &tcp, "-l", &unix],
    );
    let mut process = Guarded::spawn(&mut command, "KILL", place.path());
    eventually("systemd listens", || socket.exists());
    // The first connection starts pgweir, which finds it in the queue.
    assert!(answers(Raw::connect(port)));
    assert!(answers(Raw::connect_unix(&socket).expect("it listens")));
    let log = place.read("log");
    assert_eq!(
        log.matches("socket passed from service manager").count(),
        2,
        "{log}"
    );
    assert!(std::net::TcpStream::connect(("127.0.0.1", place.port)).is_err());
    assert!(
        !place
            .path()
            .join(format!(".s.PGSQL.{}", place.port))
            .exists()
    );
    process.signal("TERM");
    process.await_end(Duration::from_secs(20));
    assert!(socket.exists(), "it is systemd's");
}

#[test]
fn sockets_that_are_meant_for_another_process_are_left_alone() {
    let postgres = Postgres::start();
    let place = place(&postgres);
    let mut command = pgweir(&place, &[]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let _process = Guarded::spawn(&mut command, "KILL", place.path());
    eventually("it listens", || place.read("log").contains("listening"));
    assert!(answers(Raw::connect(place.port)));
}
