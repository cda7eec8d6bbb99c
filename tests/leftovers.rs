//! What is left at Postgres by a pgweir that was killed, and by old deployments that never came through pgweir.

mod support;

use std::time::Duration;

use support::process::scratch;
use support::{Pooler, Postgres, Proxy, Raw, eventually};

/// Asks Postgres often, and knows deployments quickly.
const QUICK: &str = "[budget]\nmax_servers = 20\ncheck_every = \"100ms\"\n\n\
    [services.\"*\".deployments]\npromote_after = \"400ms\"\nstale_grace = \"1h\"\nstale_idle = 0\n";

fn with_memory(directory: &std::path::Path, mode: &str) -> String {
    format!(
        "[incidents]\ndirectory = \"{}\"\n\n[pool]\nmode = \"{mode}\"\n\n{QUICK}",
        directory.display()
    )
}

fn kill(mut pooler: Pooler) {
    pooler.signal("KILL");
    pooler.await_end(Duration::from_secs(10));
}

/// How many connections of this role there are.
fn of(postgres: &Postgres, role: &str) -> usize {
    let sql = format!("select count(*) from pg_stat_activity where usename = '{role}'");
    postgres.value(&sql).parse().expect("a number")
}

/// Waits until the file that the next process reads names this many processes of Postgres.
fn await_noted(directory: &std::path::Path, count: usize) {
    eventually("they are noted", || {
        let text = std::fs::read_to_string(directory.join("memory.json")).unwrap_or_default();
        text.matches("\"pid\"").count() >= count
    });
}

/// A network that has swallowed everything since pgweir was killed, so that Postgres has not heard of it.
#[test]
fn what_a_killed_pgweir_left_is_terminated_at_the_next_start_and_a_living_siblings_is_not() {
    let postgres = Postgres::start();
    for role in ["bob", "alice"] {
        postgres.sql(&format!("create role {role} login"));
    }
    postgres.sql("grant pg_signal_backend, pg_monitor to bob");
    let (place, other) = (scratch(), scratch());
    // The siblings have the same name, the same roles and the same Postgres.
    let sibling = Pooler::serve(&postgres, &with_memory(other.path(), "session"));
    let mut of_sibling = Raw::login_as(sibling.port(), "bob", "postgres", "site@v1");
    assert_eq!(of_sibling.value("select 1"), "1");
    eventually("it is watched", || of(&postgres, "bob") == 2);
    let before = 2;

    let proxy = Proxy::to(postgres.port());
    let first = Pooler::serve_port(proxy.port(), &with_memory(place.path(), "session"));
    let mut clients: Vec<_> = ["bob", "bob", "alice"]
        .map(|role| Raw::login_as(first.port(), role, "postgres", "site@v1"))
        .into();
    for client in &mut clients {
        client.value("select 1");
    }
    // Three and its monitor.
    eventually("all are there", || {
        of(&postgres, "bob") + of(&postgres, "alice") == before + 4
    });
    // A proxy in between has other ports than those that pgweir knows: nothing can be proved, so nothing is noted.
    let text = || std::fs::read_to_string(place.path().join("memory.json")).unwrap_or_default();
    eventually("it has looked", || text().contains("boot"));
    assert!(!text().contains("\"pid\""), "{}", text());
    kill(first);
    drop(proxy);

    // Direct: a query that goes on holds what the kernel would have closed.
    eventually("they are gone", || {
        of(&postgres, "bob") == before && of(&postgres, "alice") == 0
    });
    let first = Pooler::serve(&postgres, &with_memory(place.path(), "session"));
    let login = |role| Raw::login_as(first.port(), role, "postgres", "site@v1");
    let mut clients = vec![login("bob")];
    // It and its monitor, which sees the others.
    await_noted(place.path(), 2);
    clients.extend([login("bob"), login("alice")]);
    for client in &mut clients {
        client.send(&support::Batch::new().query("select pg_sleep(600)"));
    }
    await_noted(place.path(), 4);
    let second = Pooler::serve(&postgres, &with_memory(place.path(), "session"));
    second.await_log("it is up", |line| line.contains("listening"));
    let mut of_second = Raw::login_as(second.port(), "bob", "postgres", "site@v1");
    assert_eq!(of_second.value("select 1"), "1");
    let sleeping = "select count(*) from pg_stat_activity where query like 'select pg_sleep(600)%' and state = 'active'";
    assert_eq!(
        postgres.value(sleeping),
        "3",
        "the first one lives, with the same directory"
    );
    kill(first);
    // Now the lock is the second one's.
    second.await_log("it is said", |line| {
        line.contains("left connections behind: terminated")
    });
    eventually("they are gone", || postgres.value(sleeping) == "0");
    assert_eq!(of_sibling.value("select 1"), "1", "of another directory");
    assert_eq!(of_second.value("select 1"), "1");
}

#[test]
fn without_the_right_it_is_said_once_and_they_are_foreign() {
    let postgres = Postgres::start();
    for role in ["bob", "alice"] {
        postgres.sql(&format!("create role {role} login in role pg_monitor"));
    }
    let place = scratch();
    // The monitor is bob, who may not end what is alice's.
    let config = format!(
        "{}\n[databases.postgres]\nurl = \"postgres://127.0.0.1:{{postgres}}\"\n",
        with_memory(place.path(), "session")
    );
    let first = Pooler::serve(&postgres, &config);
    let mut bob = Raw::login_as(first.port(), "bob", "postgres", "site@v1");
    bob.value("select 1");
    eventually("it is watched", || of(&postgres, "bob") == 2);
    let mut alice = Raw::login_as(first.port(), "alice", "postgres", "site@v1");
    alice.send(&support::Batch::new().query("select pg_sleep(600)"));
    await_noted(place.path(), 3);
    kill(first);

    let second = Pooler::serve(&postgres, &config);
    let mut bob = Raw::login_as(second.port(), "bob", "postgres", "site@v1");
    bob.value("select 1");
    let line = second.await_log("it is said", |line| line.contains("counts as foreign"));
    assert!(line.contains("GRANT pg_signal_backend TO"), "{line}");
    bob.value("select pg_sleep(1)");
    assert_eq!(second.log().matches("counts as foreign").count(), 1);
    assert_eq!(of(&postgres, "alice"), 1);
    let foreign = support::process::run(second.psql("postgres", "pgweir").args([
        "-c",
        "SELECT whose, user, connections FROM foreign WHERE user = 'alice'",
    ]));
    assert_eq!(foreign.trim(), "foreign|alice|1");
    postgres.terminate_connections();
}

#[test]
fn who_is_current_is_remembered_over_a_crash() {
    let postgres = Postgres::start();
    let place = scratch();
    let config = with_memory(place.path(), "transaction");
    let first = Pooler::serve(&postgres, &config);
    let login =
        |pooler: &Pooler, name: &str| Raw::login_as(pooler.port(), "postgres", "postgres", name);
    let await_word = |pooler: &Pooler, deployment: &str, word: &str| {
        eventually(&format!("{deployment} is {word}"), || {
            let sql = format!(
                "SELECT state FROM deployments WHERE service = 'site' AND deployment = '{deployment}'"
            );
            support::process::run(pooler.psql("postgres", "pgweir").args(["-c", &sql])).trim()
                == word
        });
    };
    let early = login(&first, "early@v1");
    first.await_log("the beginning is over", |line| {
        line.contains("deployment is current")
    });
    let _old = login(&first, "site@v1");
    await_word(&first, "v1", "current");
    let _new = login(&first, "site@v2");
    await_word(&first, "v1", "superseded");
    drop(early);
    eventually("it is noted", || {
        let text = std::fs::read_to_string(place.path().join("memory.json")).unwrap_or_default();
        text.contains("\"v2\"")
    });
    kill(first);

    let second = Pooler::serve(&postgres, &config);
    // The new one is back at once, the old one long after the beginning.
    let _new = login(&second, "site@v2");
    await_word(&second, "v2", "current");
    let _old = login(&second, "site@v1");
    await_word(&second, "v1", "superseded");
    await_word(&second, "v2", "current");
}

/// Connections past pgweir, each of which does something else.
fn direct(postgres: &Postgres, role: &str, name: &str) -> Raw {
    let mut client = Raw::login_as(postgres.port(), role, "postgres", name);
    client.value("select 1");
    client
}

fn close_foreign(extra: &str, grant: &str) -> (Postgres, Pooler, Vec<Raw>) {
    let postgres = Postgres::setup().max_connections(30).start();
    for role in ["bob", "alice"] {
        postgres.sql(&format!("create role {role} login in role pg_monitor"));
    }
    if !grant.is_empty() {
        postgres.sql(&format!("grant {grant} to bob"));
    }
    let pooler = Pooler::serve(&postgres, &format!("{QUICK}{extra}"));
    let login = |name: &str| {
        let mut client = Raw::login_as(pooler.port(), "bob", "postgres", name);
        client.value("select 1");
        client
    };
    let await_current = |service: &str, deployment: &str| {
        pooler.await_log("it is current", |line| {
            line.contains("deployment is current")
                && line.contains(&format!("service={service} "))
                && line.contains(&format!("deployment={deployment} "))
        });
    };
    let mut through = vec![login("early@v0")];
    await_current("early", "v0");
    for deployment in ["v1", "v2"] {
        through.push(login(&format!("site@{deployment}")));
        await_current("site", deployment);
    }
    (postgres, pooler, through)
}

/// Under pressure all the time: nothing is ever free enough.
const PRESSED: &str = "\n[pressure]\nmin_headroom = 28\n";

#[test]
fn close_foreign_ends_idle_connections_of_superseded_deployments_and_no_others() {
    let (postgres, pooler, mut through) = close_foreign(
        &format!("{PRESSED}close_foreign = true\n"),
        "pg_signal_backend",
    );
    let mut idle = direct(&postgres, "alice", "site@v1");
    let mut current = direct(&postgres, "alice", "site@v2");
    let mut unknown = direct(&postgres, "alice", "site@v9");
    let mut nameless = direct(&postgres, "alice", "report");
    let mut in_transaction = direct(&postgres, "alice", "site@v1");
    in_transaction.query("begin").expect("a transaction");
    let mut active = direct(&postgres, "alice", "site@v1");
    active.send(&support::Batch::new().query("select 'done' from pg_sleep(4)"));

    let said = idle.read_to_end();
    assert_eq!(said.last().expect("last words").error().code(), "57P01");
    let done = active.rows().expect("it was left alone");
    assert_eq!(done.len(), 1);
    // Then it is idle itself.
    assert_eq!(
        active
            .read_to_end()
            .last()
            .expect("last words")
            .error()
            .code(),
        "57P01"
    );
    for client in [
        &mut current,
        &mut unknown,
        &mut nameless,
        &mut in_transaction,
    ] {
        assert_eq!(client.value("select 1"), "1");
    }
    for client in &mut through {
        assert_eq!(client.value("select 1"), "1");
    }
    let reaped = support::process::run(pooler.psql("postgres", "pgweir").args([
        "-c",
        "SELECT user, service, deployment, reason, superseded_by FROM reaped",
    ]));
    let line = "alice|site|v1|pressure_foreign|v2";
    assert_eq!(reaped.trim(), format!("{line}\n{line}"));
    assert_eq!(
        pooler
            .log()
            .matches("a connection past pgweir was closed")
            .count(),
        2
    );
    let (_, metrics) = pooler.http("/metrics");
    let series = metrics
        .lines()
        .find(|line| line.contains("reason=\"pressure_foreign\""));
    assert!(
        series.is_some_and(|series| series.ends_with(" 2")),
        "{series:?}"
    );
}

#[test]
fn nothing_foreign_is_closed_without_the_setting_the_right_or_in_a_dry_run() {
    let dry = format!("dry_run = true\n{PRESSED}close_foreign = true\n");
    let set = format!("{PRESSED}close_foreign = true\n");
    for (extra, grant, says) in [
        (PRESSED, "pg_signal_backend", None),
        (&*set, "", Some("GRANT pg_signal_backend")),
        (
            &*dry,
            "pg_signal_backend",
            Some("would be closed, but for dry_run"),
        ),
    ] {
        let (postgres, pooler, _through) = close_foreign(extra, grant);
        let mut idle = direct(&postgres, "alice", "site@v1");
        if let Some(says) = says {
            let is_said = |line: &str| {
                line.contains(says) && (grant.is_empty() || line.contains("pressure_foreign"))
            };
            pooler.await_log("it is said", is_said);
        }
        // Several looks later.
        let mut other = direct(&postgres, "bob", "clock");
        other.value("select pg_sleep(2)");
        assert_eq!(idle.value("select 1"), "1", "{extra}");
        if let Some(says) = says {
            let said = pooler.log();
            let said = said
                .lines()
                .filter(|line| line.contains(says) && !line.contains(" id="));
            assert_eq!(said.count(), 1, "once: {}", pooler.log());
        }
    }
}
