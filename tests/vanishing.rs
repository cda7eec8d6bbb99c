//! A thousand clients that begin a transaction, ask something and are never heard of again: Postgres stays within its budget, and a
//! bystander does not wait for them.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use support::process::{Guarded, scratch};
use support::{Batch, Pooler, Postgres, Raw, Watch, eventually, until};

const BUDGET: usize = 12;

/// The crowd's clients that are never heard of again but stay where they are go after this.
const PATIENCE: &str = "500ms";

/// Between two clients of the crowd: they are to crowd pgweir and Postgres, not to take the processor from both.
const PACE: Duration = Duration::from_millis(10);

/// How a client vanishes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Reset,
    HalfClose,
    /// Its process is stopped: the kernel goes on answering for it.
    Silence,
}

fn start() -> (Postgres, Pooler) {
    let postgres = Postgres::setup().max_connections(40).start();
    for role in ["alice", "bob"] {
        postgres.sql(&format!("create role {role} login"));
    }
    let pooler = Pooler::serve(
        &postgres,
        &format!(
            "[budget]\nmax_servers = {BUDGET}\ncheck_every = 0\n\n[log]\nlevel = \"warn\"\n\n\
             [services.crowd]\nmatch = {{ user = \"bob\" }}\nidle_transaction = \"{PATIENCE}\"\n\n\
             [services.bystander]\nmatch = {{ user = \"alice\" }}\nmin_servers = 1\n"
        ),
    );
    (postgres, pooler)
}

/// Logs in, begins, asks, and vanishes. What is kept must not be dropped too soon.
fn vanish(port: u16, way: Way) -> Option<Raw> {
    let mut client = Raw::login(port, "bob", "postgres");
    client.send(&Batch::new().query("begin").query("select pg_sleep(0.01)"));
    match way {
        Way::Reset => {
            client.reset();
            None
        }
        Way::HalfClose => {
            client.half_close();
            Some(client)
        }
        Way::Silence => Some(client),
    }
}

/// Tests that measure do so one after the other.
static STAGE: Mutex<()> = Mutex::new(());

/// Many of them, some hundred in a second; those whose sockets stay open are kept until all have vanished.
fn crowd(port: u16, way: Way, count: usize) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    kept.extend(vanish(port, way));
                    thread::sleep(PACE);
                }
            });
        }
    });
}

/// How long a bystander waited for server connections so far, and for how many.
fn waited(pooler: &Pooler) -> (f64, f64) {
    let (_, metrics) = pooler.http("/metrics");
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name) && line.contains("user=\"alice\""));
        let value = line
            .and_then(|line| line.rsplit_once(' '))
            .expect("the series")
            .1;
        value.parse::<f64>().expect("a number")
    };
    (
        value("pgweir_wait_seconds_sum"),
        value("pgweir_wait_seconds_count"),
    )
}

/// The 99th percentile of its queries for as long as `busy` takes.
fn p99(bystander: &mut Raw, busy: impl FnOnce() + Send) -> Duration {
    let over = AtomicBool::new(false);
    let mut times = Vec::new();
    thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            busy();
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) || times.len() < 100 {
            let start = Instant::now();
            assert_eq!(bystander.value("select 'served'"), "served");
            times.push(start.elapsed());
        }
        crowd.join().expect("no panic");
    });
    times.sort();
    times[times.len() * 99 / 100]
}

fn a_thousand_vanish(way: Way) {
    /// A round that something else on the machine has spoilt proves nothing.
    const ROUNDS: usize = 5;
    /// What a scheduler may take from anybody, however quiet.
    const GRAIN: Duration = Duration::from_millis(10);
    let _stage = STAGE.lock();
    let (postgres, pooler) = start();
    let mut bystander = Raw::login(pooler.port(), "alice", "postgres");
    bystander.value("select 1");
    let before = waited(&pooler);
    let watch = Watch::start(&postgres);
    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        quiet.push(p99(&mut bystander, || {
            thread::sleep(Duration::from_millis(200));
        }));
        loud.push(p99(&mut bystander, || {
            crowd(pooler.port(), way, 1000 / ROUNDS);
        }));
    }
    let seen = watch.finish();
    assert!(seen.total <= BUDGET, "{} of {BUDGET}", seen.total);
    let after = waited(&pooler);
    assert!(after.1 > before.1 + 500.0, "it asked all the time");
    let waits = after.0 - before.0;
    assert!(
        waits == 0.0,
        "its own connection is kept for it, and it waited for {waits} s"
    );
    let usual = *quiet.iter().max().expect("rounds");
    let best = *loud.iter().min().expect("rounds");
    eprintln!("{way:?}: the bystander's p99: quiet {quiet:?}, amid the crowd {loud:?}");
    assert!(
        best <= usual.max(GRAIN) * 3,
        "amid the crowd {loud:?}, quiet {quiet:?}"
    );
    postgres.await_all_idle();
}

#[test]
fn a_thousand_clients_vanish_by_reset() {
    a_thousand_vanish(Way::Reset);
}

#[test]
fn a_thousand_clients_vanish_by_half_close() {
    a_thousand_vanish(Way::HalfClose);
}

#[test]
fn a_thousand_clients_fall_silent() {
    a_thousand_vanish(Way::Silence);
}

/// Real processes: what they had begun is rolled back after `idle_transaction`, and those behind them in the queue get their turn.
#[test]
fn the_clients_of_a_stopped_process_hold_nothing_for_long() {
    let _stage = STAGE.lock();
    let (postgres, pooler) = start();
    let mut bystander = Raw::login(pooler.port(), "alice", "postgres");
    let place = scratch();
    let script = place.path().join("script.sql");
    std::fs::write(&script, "begin;\nselect 1;\n\\sleep 100s\ncommit;\n")
        .expect("the directory is ours");
    let mut command = support::postgres::program("pgbench");
    let (port, script) = (pooler.port().to_string(), script.display().to_string());
    command.args([
        "-n",
        "-c",
        "40",
        "-j",
        "2",
        "-T",
        "600",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "bob",
        "-f",
        &script,
        "postgres",
    ]);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let watch = Watch::start(&postgres);
    let stopped = Guarded::spawn(&mut command, "KILL", place.path());
    let begun = "select count(*) from pg_stat_activity where usename = 'bob' and state = 'idle in transaction'";
    eventually("they have begun", || postgres.value(begun) != "0");
    stopped.signal("STOP");
    let clients = || {
        let (_, metrics) = pooler.http("/metrics");
        let ours = metrics.lines().filter(|line| {
            line.starts_with("pgweir_clients{") && line.contains("service=\"crowd\"")
        });
        ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok())
            .sum::<usize>()
    };
    until("all are gone", Duration::from_mins(1), || {
        assert_eq!(bystander.value("select 'served'"), "served");
        (clients() == 0).then_some(())
    });
    let seen = watch.finish();
    assert!(seen.total <= BUDGET, "{} of {BUDGET}", seen.total);
    postgres.await_all_idle();
}
