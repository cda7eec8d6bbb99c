//! What `/metrics`, `/healthz` and `/readyz` say, and that counts only grow.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use pgweir::metrics::FAMILIES;
use support::{Method, Pooler, Postgres, Raw, eventually};

const CONSOLE: &str =
    "[auth]\nmethod = \"trust\"\nusers_file = \"{dir}/users.txt\"\nadmins = [\"postgres\"]\n";

fn scrape(pooler: &Pooler) -> String {
    let (status, text) = pooler.http("/metrics");
    assert_eq!(status, 200, "{text}");
    text
}

/// The value of one series, as it is written; `None`: it is not told.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

/// The sum of all series that begin so.
fn sum(text: &str, series: &str) -> u64 {
    let of = text.lines().filter(|line| line.starts_with(series));
    of.map(|line| {
        line.rsplit(' ')
            .next()
            .expect("a value")
            .parse::<u64>()
            .expect("a whole number")
    })
    .sum()
}

#[test]
fn what_is_declared_is_told_and_nothing_else() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[services.site]\nmax_servers = 5\nmax_clients = 50\n",
    );
    let mut client = Raw::login_as(pooler.port(), "postgres", "postgres", "site@v1");
    assert_eq!(client.value("select 1"), "1");
    // A client hears the answer a moment before its server connection is back.
    let idle = "pgweir_service_server_connections{service=\"site\",state=\"idle\"}";
    eventually("its server connection is back", || {
        value(&scrape(&pooler), idle) == Some(1.0)
    });
    let text = scrape(&pooler);
    let told: HashSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let declared: HashSet<String> = FAMILIES
        .iter()
        .map(|family| format!("{} {}", family.name, family.kind.as_str()))
        .collect();
    assert_eq!(
        told,
        declared.iter().map(String::as_str).collect::<HashSet<_>>()
    );
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = FAMILIES.iter().find(|family| {
            name.strip_prefix(family.name)
                .is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
        });
        assert!(family.is_some(), "{line}");
    }
    for (series, expected) in [
        (
            "pgweir_transactions_total{database=\"postgres\",user=\"postgres\"}",
            1.0,
        ),
        (
            "pgweir_query_seconds_count{database=\"postgres\",user=\"postgres\"}",
            1.0,
        ),
        (
            "pgweir_logins_total{database=\"postgres\",user=\"postgres\"}",
            1.0,
        ),
        ("pgweir_login_seconds_count", 1.0),
        (
            "pgweir_service_server_connections_max{service=\"site\"}",
            5.0,
        ),
        ("pgweir_service_clients_max{service=\"site\"}", 50.0),
        ("pgweir_draining", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
    let clients = "pgweir_clients{database=\"postgres\",user=\"postgres\",service=\"site\",";
    assert_eq!(sum(&text, clients), 1, "{text}");
    let postgres = format!("{{postgres=\"127.0.0.1:{}\"}}", postgres.port());
    assert_eq!(
        value(&text, &format!("pgweir_postgres_up{postgres}")),
        Some(1.0)
    );
    assert_eq!(
        value(&text, &format!("pgweir_postgres_budget{postgres}")),
        Some(90.0)
    );
    assert_eq!(
        value(&text, &format!("pgweir_dials_total{postgres}")),
        Some(1.0)
    );
}

#[test]
fn sessions_of_the_console_are_in_no_series_of_clients() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, CONSOLE);
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    eventually("its query is counted", || {
        sum(&scrape(&pooler), "pgweir_queries_total") == 1
    });
    let quiet = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| {
            [
                "pgweir_clients{",
                "pgweir_logins_total",
                "pgweir_sessions_ended",
                "pgweir_login_seconds",
                "pgweir_queries",
                "pgweir_wait",
                "pgweir_service",
            ]
            .iter()
            .any(|name| line.starts_with(name))
        });
        lines.map(str::to_owned).collect()
    };
    let before = quiet(&scrape(&pooler));
    let mut console = Raw::login(pooler.port(), "postgres", "pgweir");
    console.query("SHOW VERSION").expect("an admin may ask");
    let during = scrape(&pooler);
    assert_eq!(quiet(&during), before);
    assert_eq!(value(&during, "pgweir_console_sessions"), Some(1.0));
    assert_eq!(value(&during, "pgweir_console_logins_total"), Some(1.0));
    console.goodbye();
    eventually("the console's session is gone", || {
        value(&scrape(&pooler), "pgweir_console_sessions") == Some(0.0)
    });
    assert_eq!(quiet(&scrape(&pooler)), before);
}

#[test]
fn counts_survive_the_pool_that_was_forgotten() {
    let postgres = Postgres::setup().method(Method::Scram).start();
    // Nobody is listed, so each name gets a pool, and Postgres is asked.
    let pooler = Pooler::serve(&postgres, "[auth]\nmethod = \"scram-sha-256\"\n");
    Raw::try_login(pooler.port(), "nobody", "postgres", Some("wrong"))
        .err()
        .expect("Postgres does not know this role");
    let waits = "pgweir_wait_seconds_count{database=\"postgres\",user=\"nobody\"}";
    let had = value(&scrape(&pooler), waits).expect("somebody has asked for a server connection");
    assert!(had >= 1.0);
    eventually("the pool is forgotten", || {
        !scrape(&pooler).contains("pgweir_pool_size{database=\"postgres\",user=\"nobody")
    });
    assert_eq!(value(&scrape(&pooler), waits), Some(had));
    Raw::try_login(pooler.port(), "nobody", "postgres", Some("wrong"))
        .err()
        .expect("it still does not");
    let has = value(&scrape(&pooler), waits).expect("it is there");
    assert!(has > had, "a pool of the same name goes on counting: {has}");
}

#[test]
fn closings_dials_and_cancels_are_counted_by_reason() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[timeouts]\nserver_login_retry = \"200ms\"\n");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    let of = format!("postgres=\"127.0.0.1:{}\"", postgres.port());
    let series = |name: &str, reason: &str| format!("{name}{{{of},reason=\"{reason}\"}}");
    let died = series("pgweir_server_connections_closed_total", "died");
    let refused = series("pgweir_dial_failures_total", "unreachable");
    let text = scrape(&pooler);
    assert_eq!(
        (value(&text, &died), value(&text, &refused)),
        (Some(0.0), Some(0.0))
    );
    postgres.terminate_connections();
    eventually("the dead connection is counted", || {
        value(&scrape(&pooler), &died) == Some(1.0)
    });
    postgres.stop_immediate();
    client.send(&support::Batch::new().query("select 2"));
    eventually("the dials in vain are counted", || {
        let text = scrape(&pooler);
        value(&text, &refused) > Some(0.0)
            && value(&text, &format!("pgweir_postgres_up{{{of}}}")) == Some(0.0)
    });
    postgres.start_again();
    client.rows().expect("it was served in the end");
    let key = support::raw::cancel_request(1_000_000, &[0; 4]);
    Raw::connect(pooler.port()).write(&key).expect("it is read");
    eventually("the cancel for nobody is counted", || {
        value(
            &scrape(&pooler),
            "pgweir_cancel_requests_total{result=\"unknown\"}",
        ) == Some(1.0)
    });
}

#[test]
fn it_is_ready_while_a_postgres_can_be_reached() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    assert_eq!(
        pooler.http("/readyz"),
        (200, "ready\n".to_owned()),
        "nobody has connected yet"
    );
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("select 1"), "1");
    postgres.stop_immediate();
    eventually("it is not ready", || {
        pooler.http("/readyz") == (503, "no Postgres reachable\n".to_owned())
    });
    assert_eq!(pooler.http("/healthz").0, 200);
    postgres.start_again();
    eventually("it is ready again", || pooler.http("/readyz").0 == 200);
}

#[test]
fn http_answers_while_it_drains() {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, "");
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    client.query("begin").expect("a transaction");
    pooler.signal("TERM");
    eventually("it drains", || {
        pooler.http("/readyz") == (503, "draining\n".to_owned())
    });
    assert_eq!(pooler.http("/healthz").0, 200);
    assert_eq!(value(&scrape(&pooler), "pgweir_draining"), Some(1.0));
    client.query("commit").expect("it was let finish");
    assert!(pooler.await_end(Duration::from_secs(10)).success());
}

#[test]
fn deployments_thresholds_headroom_and_incidents_are_told() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[services.site]\nmatch = { application_name = \"site@*\" }\nalert_servers = 7\nalert_clients = 2\n\n\
         [services.site.deployments]\npromote_after = \"300ms\"\nstale_grace = \"1h\"\n\n\
         [budget]\nmax_servers = 9\ncheck_every = \"100ms\"\n\n[pressure]\nmin_headroom = 3\n\n[alerts]\ntotal_servers = 8\n",
    );
    let is = |series: &str, expected: f64| {
        eventually(&format!("{series} is {expected}"), || {
            value(&scrape(&pooler), series) == Some(expected)
        });
    };
    let login = |deployment: &str| {
        let name = format!("site@{deployment}");
        Raw::login_as(pooler.port(), "postgres", "postgres", &name)
    };
    let sessions = |deployment: &str, state: &str| {
        format!(
            "pgweir_deployment_sessions{{service=\"site\",deployment=\"{deployment}\",state=\"{state}\"}}"
        )
    };
    // What comes within promote_after of the start has no order.
    let early = login("v0");
    is(&sessions("v0", "current"), 1.0);
    early.goodbye();
    let _old = [login("v1"), login("v1")];
    is(&sessions("v1", "current"), 2.0);
    let _new = login("v2");
    is(&sessions("v1", "superseded"), 2.0);
    is(&sessions("v2", "current"), 1.0);
    let direct = Raw::login(postgres.port(), "postgres", "postgres");
    let name = format!("127.0.0.1:{}", postgres.port());
    for (series, expected) in [
        (
            "pgweir_service_server_connections_alert{service=\"site\"}",
            7.0,
        ),
        ("pgweir_service_clients_alert{service=\"site\"}", 2.0),
        ("pgweir_server_connections_alert", 8.0),
        ("pgweir_postgres_free_connections_floor", 3.0),
        (
            "pgweir_alerts{alert=\"service_clients\",subject=\"site\"}",
            1.0,
        ),
        ("pgweir_incidents_total{cause=\"service_clients\"}", 1.0),
        ("pgweir_incidents_total{cause=\"headroom\"}", 0.0),
        ("pgweir_incident_open", 1.0),
        ("pgweir_webhook_messages_total{result=\"failed\"}", 0.0),
    ] {
        is(series, expected);
    }
    let others = |whose| {
        format!("pgweir_postgres_other_connections{{postgres=\"{name}\",whose=\"{whose}\"}}")
    };
    is(&others("foreign"), 1.0);
    is(&others("pgweir"), 0.0);
    drop(direct);
    is(&others("foreign"), 0.0);
}
