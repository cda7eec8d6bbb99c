//! Listening sockets that come from elsewhere: of systemd, of a running process.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use support::pgbouncer::Place;
use support::pooler::program;
use support::process::{Guarded, free_port, run, send_signal};
use support::raw::cancel_request;
use support::wait::PATIENCE;
use support::{Batch, Postgres, Raw, eventually};

const INI: &str = "\
[databases]
* = host=127.0.0.1 port={postgres} user=postgres
[pgbouncer]
{listen}
auth_type = any
";

fn place(postgres: &Postgres) -> Place {
    let place = Place::new();
    place.write("pgbouncer.ini", &place.fill(INI, postgres.port()));
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

#[test]
fn a_supervisor_is_told_of_start_reload_and_end() {
    let postgres = Postgres::start();
    let place = place(&postgres);
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("the directory is ours");
    let everybody = Permissions::from_mode(0o777);
    std::fs::set_permissions(&path, everybody).expect("it is ours");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let hear = || {
        let mut said = [0; 100];
        let length = socket.recv(&mut said).expect("a word in time");
        String::from_utf8_lossy(&said[..length]).into_owned()
    };
    let mut command = pgweir(&place, &[]);
    command.env("NOTIFY_SOCKET", &path);
    let mut process = Guarded::spawn(&mut command, "KILL", place.path());
    assert_eq!(hear(), "READY=1");
    // One that is refused ends too.
    for line in ["; nothing", "nosuch = 1"] {
        place.append("pgbouncer.ini", &format!("{line}\n"));
        process.signal("HUP");
        let said = hear();
        let since = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(
            since.is_some_and(|since| since.parse::<u64>().is_ok()),
            "{said}"
        );
        assert_eq!(hear(), "READY=1");
    }
    process.signal("TERM");
    assert_eq!(hear(), "STOPPING=1");
    assert!(process.await_end(Duration::from_secs(20)).success());
}

/// Clients that come and go until it is dropped. Every one of them is served.
struct Crowd {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn begin(port: u16) -> Self {
        let (over, served) = (Arc::default(), Arc::default());
        let client = |_| {
            let (over, served): (Arc<AtomicBool>, Arc<AtomicUsize>) =
                (Arc::clone(&over), Arc::clone(&served));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert!(answers(Raw::connect(port)));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Self {
            over,
            served,
            clients,
        }
    }

    /// Waits until so many more were served.
    fn serve(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        eventually("clients are served", || {
            assert!(
                !self.clients.iter().any(JoinHandle::is_finished),
                "one was not"
            );
            self.served.load(Ordering::Relaxed) >= before + more
        });
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("every client was served");
        }
    }
}

/// A process in the background; killed on drop if it is still there.
struct Daemon(u32);

impl Drop for Daemon {
    fn drop(&mut self) {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.0));
        if name.is_ok_and(|name| name.trim() == "pgweir") {
            send_signal(self.0, "KILL");
        }
    }
}

#[test]
fn a_reboot_refuses_nobody_and_leaves_the_old_process_to_its_clients() {
    let postgres = Postgres::start();
    let place = place(&postgres);
    place.append(
        "pgbouncer.ini",
        &format!("pidfile = {}/pid\n", place.path().display()),
    );
    let pid = || place.read("pid").trim().parse().unwrap_or(0);
    let mut old = Guarded::spawn(&mut pgweir(&place, &[]), "KILL", place.path());
    eventually("it listens", || place.read("log").contains("listening"));
    assert_eq!(pid(), old.id());
    let crowd = Crowd::begin(place.port);
    crowd.serve(20);
    let mut held = Raw::login(place.port, "postgres", "postgres");
    held.query("begin").expect("a transaction");

    let mut command = pgweir(&place, &[]);
    command.arg("-R");
    let mut new = Guarded::spawn(&mut command, "KILL", place.path());
    eventually("the old one is relieved", || {
        assert!(
            new.ended().is_none() && old.ended().is_none(),
            "{}",
            place.read("log")
        );
        place
            .read("log")
            .contains("another process has the sockets")
    });
    assert_eq!(pid(), new.id());
    crowd.serve(50);
    // The old one's client goes on, and its cancel request finds it.
    assert_eq!(held.value("select 1"), "1");
    held.send(&Batch::new().query("select pg_sleep(1010)"));
    eventually("it sleeps", || {
        let query = "select count(*) from pg_stat_activity where query = 'select pg_sleep(1010)' and state = 'active'";
        postgres.value(query) == "1"
    });
    let (process, secret) = held.key.clone().expect("BackendKeyData");
    for (process, secret) in [
        (process, &secret[..1]),
        (process + 1, &secret),
        (process, &secret),
    ] {
        let mut canceler = Raw::connect(place.port);
        canceler
            .write(&cancel_request(process, secret))
            .expect("it is open");
        assert!(canceler.read_to_end().is_empty());
    }
    assert_eq!(held.rows().expect_err("it is cancelled").code(), "57014");
    assert!(old.ended().is_none());
    held.goodbye();
    assert!(old.await_end(Duration::from_secs(20)).success());

    // Socket and pidfile are the new one's, which can be followed by another.
    assert_eq!(pid(), new.id());
    let socket = place.path().join(format!(".s.PGSQL.{}", place.port));
    assert!(answers(Raw::connect_unix(&socket).expect("it listens")));
    let mut command = pgweir(&place, &[]);
    let started = command.args(["--reboot", "-d"]).status();
    let last = Daemon(pid());
    assert!(started.expect("it is there").success());
    assert!(new.await_end(Duration::from_secs(20)).success());
    assert!(last.0 != 0 && last.0 != new.id() && pid() == last.0);
    crowd.serve(20);
    crowd.end();
    send_signal(last.0, "TERM");
    eventually("it ends", || {
        !place.path().join("pid").exists() && !socket.exists()
    });
}

#[test]
fn a_reboot_without_a_running_process_is_a_start_and_who_is_not_asked_for_gets_nothing() {
    let postgres = Postgres::start();
    let place = place(&postgres);
    let mut command = pgweir(&place, &[]);
    command.arg("-R");
    let _process = Guarded::spawn(&mut command, "KILL", place.path());
    eventually("it listens", || place.read("log").contains("listening"));
    // Over TCP nobody can prove who it is.
    let mut raw = Raw::connect(place.port);
    let startup = [
        ("user", "a"),
        ("database", "pgbouncer"),
        ("pgweir.takeover", "1"),
    ];
    raw.log_in(&startup, None).expect_err("it is not let in");
    assert!(answers(Raw::connect(place.port)));
    for (wrong, text) in [
        (
            "unix_socket_dir =",
            "cannot reboot if unix dir not configured",
        ),
        (
            "unix_socket_dir = @weir",
            "cannot reboot with abstract Unix socket",
        ),
    ] {
        place.append("pgbouncer.ini", &format!("{wrong}\n"));
        let mut command = pgweir(&place, &[]);
        let refused = command
            .arg("-R")
            .stderr(Stdio::piped())
            .output()
            .expect("it starts");
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(text));
    }
}
