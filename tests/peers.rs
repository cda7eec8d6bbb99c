//! Several processes behind one address: a cancel request reaches the one that runs the query, wherever it arrives.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::pgbouncer::{Kind, Place, Running};
use support::process::{Guarded, send_signal};
use support::raw::cancel_request;
use support::{Batch, Postgres, Raw, eventually};

/// What every process of a group begins with; peers come behind it.
const INI: &str = "\
[databases]
* = host=127.0.0.1 port={postgres} user=postgres
[pgbouncer]
{listen}
auth_type = any
admin_users = postgres
cancel_wait_timeout = 3
";

/// A process that is still to be started.
struct Member {
    place: Place,
    id: u16,
    more: String,
}

impl Member {
    fn new(id: u16) -> Self {
        let (place, more) = (Place::new(), String::new());
        Self { place, id, more }
    }

    /// What another says of it, over TCP.
    fn at_port(&self) -> String {
        format!("{} = host=127.0.0.1 port={}", self.id, self.place.port)
    }

    /// The same over its unix socket.
    fn in_directory(&self) -> String {
        let (directory, port) = (self.place.path().display(), self.place.port);
        format!("{} = host={directory} port={port}", self.id)
    }

    fn start(self, kind: Kind, postgres: &Postgres, peers: &[String]) -> Running {
        self.place.write(
            "pgbouncer.ini",
            &ini(&self.place, postgres, self.id, &self.more, peers),
        );
        self.place.start(kind)
    }
}

fn ini(place: &Place, postgres: &Postgres, id: u16, more: &str, peers: &[String]) -> String {
    let mut text = place.fill(INI, postgres.port());
    let peers = peers.join("\n");
    write!(text, "peer_id = {id}\n{more}\n[peers]\n{peers}\n").expect("a string takes all");
    text
}

/// A client that runs a query until it is cancelled, and which.
struct Sleeper {
    client: Raw,
    nap: u32,
}

impl Sleeper {
    fn begin(postgres: &Postgres, port: u16, nap: u32) -> Self {
        let client = Raw::login(port, "postgres", "postgres");
        let mut sleeper = Self { client, nap };
        sleeper.again(postgres);
        sleeper
    }

    fn again(&mut self, postgres: &Postgres) {
        let nap = self.nap;
        self.client
            .send(&Batch::new().query(&format!("select pg_sleep({nap})")));
        eventually("it sleeps", || sleeps(postgres, nap));
    }

    fn key(&self) -> (i32, Vec<u8>) {
        self.client.key.clone().expect("BackendKeyData")
    }

    /// What another process is told to do is done.
    #[track_caller]
    fn is_cancelled_at(&mut self, port: u16) {
        let (process, secret) = self.key();
        cancel(port, process, &secret);
        let error = self.client.rows().expect_err("it is cancelled");
        assert_eq!(error.code(), "57014", "{error}");
    }
}

fn sleeps(postgres: &Postgres, nap: u32) -> bool {
    let query = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep({nap})'"
    );
    postgres.sql(&query)[0][0].as_deref() == Some("1")
}

/// Sends a cancel request and waits until it was done with.
fn cancel(port: u16, process: i32, secret: &[u8]) {
    let mut raw = Raw::connect(port);
    raw.write(&cancel_request(process, secret))
        .expect("it is open");
    assert!(raw.read_to_end().is_empty());
}

fn console(process: &Running) -> Raw {
    Raw::login(process.port(), "postgres", "pgbouncer")
}

/// Some columns of a table of the console, as numbers.
fn peer_pools(process: &Running) -> Vec<Vec<u32>> {
    let rows = console(process).query("show peer_pools").expect("a table");
    let number = |value: &Option<String>| value.as_deref().unwrap().parse().unwrap();
    rows.iter()
        .map(|row| row.iter().map(number).collect())
        .collect()
}

#[test]
fn a_cancel_reaches_a_peer_of_pgweir_and_of_pgbouncer_in_both_directions_and_all_modes() {
    let postgres = Postgres::start();
    for (one, other) in [
        (Kind::Pgweir, Kind::Pgweir),
        (Kind::Pgweir, Kind::PgBouncer124),
        (Kind::PgBouncer124, Kind::Pgweir),
    ] {
        for (mode, by_socket) in [("transaction", false), ("session", true)] {
            // Both halves of the number matter.
            let (mut a, mut b) = (Member::new(0x0203), Member::new(4));
            a.more = format!("pool_mode = {mode}");
            b.more.clone_from(&a.more);
            let peers = if by_socket {
                [a.in_directory(), b.in_directory()]
            } else {
                [a.at_port(), b.at_port()]
            };
            let (a, b) = (
                a.start(one, &postgres, &peers),
                b.start(other, &postgres, &peers),
            );
            let mut sleeper = Sleeper::begin(&postgres, a.port(), 1001);
            sleeper.is_cancelled_at(b.port());
            let mut neighbour = Sleeper::begin(&postgres, b.port(), 1002);
            neighbour.is_cancelled_at(a.port());
            // At the right one it is no other than ever, and nobody else is hit.
            sleeper.again(&postgres);
            neighbour.again(&postgres);
            sleeper.is_cancelled_at(a.port());
            assert!(sleeps(&postgres, 1002), "{one:?} {other:?} {mode}");
            neighbour.is_cancelled_at(b.port());

            let rows = console(&b).query("show peers").expect("a table");
            let told: BTreeSet<_> = rows
                .iter()
                .map(|row| row.iter().flatten().cloned().collect::<Vec<_>>().join(" "))
                .collect();
            let host = |process: &Running| {
                if by_socket {
                    process.place.path().display().to_string()
                } else {
                    "127.0.0.1".to_owned()
                }
            };
            let expected = BTreeSet::from([
                format!("515 {} {} 20", host(&a), a.port()),
                format!("4 {} {} 20", host(&b), b.port()),
            ]);
            assert_eq!(told, expected, "{other:?}");
            assert_eq!(peer_pools(&b), [[515, 0, 0, 0, 0]], "{other:?}");
        }
    }
}

#[test]
fn a_request_is_passed_on_three_times_and_goes_round_no_ring() {
    let postgres = Postgres::start();
    let members: Vec<_> = (1..=4).map(Member::new).collect();
    let ports: Vec<_> = members.iter().map(|member| member.place.port).collect();
    let ring: Vec<_> = (members.into_iter().enumerate())
        .map(|(index, member)| {
            // Each takes its neighbour for whomever it does not know, and for a tenth who is nobody.
            let next = ports[(index + 1) % ports.len()];
            let peers: Vec<_> = [1, 2, 3, 4, 10]
                .map(|id| format!("{id} = host=127.0.0.1 port={next}"))
                .into();
            let kind = if index == 2 {
                Kind::PgBouncer124
            } else {
                Kind::Pgweir
            };
            member.start(kind, &postgres, &peers)
        })
        .collect();
    let mut sleeper = Sleeper::begin(&postgres, ring[3].port(), 1003);
    sleeper.is_cancelled_at(ring[0].port());
    let last = |process: &Running, text: &str| process.place.read("log").contains(text);
    // Four are too many.
    let mut far = Sleeper::begin(&postgres, ring[0].port(), 1004);
    let (process, mut secret) = far.key();
    secret[3] &= !1;
    cancel(ring[1].port(), process, &secret);
    let exhausted =
        "closing because: failed to forward cancel request because its TTL was exhausted";
    eventually("the last one says so", || last(&ring[3], exhausted));
    // Nobody's goes half round and is not answered.
    let nobody = i32::from_be_bytes([7, 10, 0, 9]);
    cancel(ring[0].port(), nobody, &[1, 2, 3, 0xff]);
    eventually("it ended there", || {
        ring[3].place.read("log").matches(exhausted).count() == 2
    });
    cancel(
        ring[0].port(),
        i32::from_be_bytes([7, 99, 0, 9]),
        &[1, 2, 3, 4 | 3],
    );
    let unknown = "closing because: could not find peer to forward request to";
    assert!(last(&ring[0], unknown) && !last(&ring[0], exhausted));
    assert!(sleeps(&postgres, 1004));
    far.is_cancelled_at(ring[0].port());
}

#[test]
fn a_dead_peer_costs_nobody_else_anything() {
    let postgres = Postgres::start();
    // It takes connections, and nobody is there.
    let dead = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let (a, b) = (Member::new(1), Member::new(2));
    let dead = format!(
        "3 = host=127.0.0.1 port={} pool_size=2",
        dead.local_addr().unwrap().port()
    );
    let peers = [b.at_port(), dead];
    let a = a.start(Kind::Pgweir, &postgres, &peers);
    let b = b.start(Kind::Pgweir, &postgres, &[]);
    let lost = i32::from_be_bytes([1, 3, 0, 1]);
    let mut lingering: Vec<_> = (0..30)
        .map(|_| {
            let mut raw = Raw::connect(a.port());
            raw.write(&cancel_request(lost, &[1, 1, 1, 0xff]))
                .expect("it is open");
            raw
        })
        .collect();
    eventually("they wait", || {
        peer_pools(&a).contains(&vec![3, 2, 28, 2, 0])
    });
    let begun = Instant::now();
    let mut near = Sleeper::begin(&postgres, a.port(), 1005);
    let mut far = Sleeper::begin(&postgres, b.port(), 1006);
    near.is_cancelled_at(a.port());
    far.is_cancelled_at(a.port());
    assert!(
        peer_pools(&a).contains(&vec![3, 2, 28, 2, 0]) || begun.elapsed() > Duration::from_secs(2)
    );
    // They are let go when their time is over.
    for raw in &mut lingering {
        assert!(raw.read_to_end().is_empty());
    }
    assert!(peer_pools(&a).contains(&vec![3, 0, 0, 0, 0]));
}

#[test]
fn peers_and_the_own_number_change_at_a_reload() {
    let postgres = Postgres::start();
    let (a, b) = (Member::new(1), Member::new(2));
    let here = a.at_port();
    let (a, b) = (
        a.start(Kind::Pgweir, &postgres, &[]),
        b.start(Kind::Pgweir, &postgres, &[here]),
    );
    let reload = |process: &Running, id, peers: &[String]| {
        let text = ini(&process.place, &postgres, id, "", peers);
        process.place.write("pgbouncer.ini", &text);
        let reloads = || process.place.read("log").matches("reloaded").count();
        let before = reloads();
        process.signal("HUP");
        eventually("it reloads", || reloads() > before);
    };
    let mut old = Sleeper::begin(&postgres, a.port(), 1007);
    old.is_cancelled_at(b.port());
    old.again(&postgres);
    let (process, secret) = old.key();
    reload(&b, 2, &[]);
    cancel(b.port(), process, &secret);
    assert!(
        b.place
            .read("log")
            .contains("could not find peer to forward request to")
    );
    reload(&a, 7, &[]);
    reload(&b, 2, &[format!("7 = host=127.0.0.1 port={}", a.port())]);
    let mut new = Sleeper::begin(&postgres, a.port(), 1008);
    new.is_cancelled_at(b.port());
    assert!(sleeps(&postgres, 1007));
    old.is_cancelled_at(a.port());
}

#[test]
fn two_processes_share_one_port_and_clients_do_not_notice() {
    let postgres = Postgres::start();
    let (a, mut b) = (Member::new(1), Member::new(2));
    b.place.port = a.place.port;
    let peers = [a.in_directory(), b.in_directory()];
    let start = |mut member: Member| {
        "so_reuseport = 1".clone_into(&mut member.more);
        member.start(Kind::Pgweir, &postgres, &peers)
    };
    let group = [start(a), start(b)];
    let port = group[0].port();
    // Until both have clients.
    let mut sleepers = Vec::new();
    let count = |process: &Running| {
        let path = process.socket();
        let mut raw = Raw::connect_unix(&path).expect("it listens");
        let startup = [("user", "postgres"), ("database", "pgbouncer")];
        raw.log_in(&startup, None).expect("an admin");
        let rows = raw.query("show clients").expect("a table");
        rows.iter()
            .filter(|row| row[2].as_deref() == Some("postgres"))
            .count()
    };
    for nap in 2000.. {
        sleepers.push(Sleeper::begin(&postgres, port, nap));
        if sleepers.len() >= 8 && group.iter().all(|process| count(process) >= 2) {
            break;
        }
        assert!(sleepers.len() < 60, "all clients went to one");
    }
    for sleeper in &mut sleepers {
        for _ in 0..4 {
            sleeper.is_cancelled_at(port);
            sleeper.again(&postgres);
        }
        sleeper.is_cancelled_at(port);
    }
    // libpq's own way.
    for nap in 3000..3008 {
        let mut psql = support::postgres::psql(port, "postgres", "postgres");
        psql.args(["-c", &format!("select pg_sleep({nap})")])
            .stderr(Stdio::null());
        let mut psql = Guarded::spawn(&mut psql, "KILL", group[0].place.path());
        eventually("it sleeps", || sleeps(&postgres, nap));
        send_signal(psql.id(), "INT");
        psql.await_end(Duration::from_secs(20));
        assert!(!sleeps(&postgres, nap));
    }
}
