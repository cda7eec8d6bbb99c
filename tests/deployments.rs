//! Services and deployments: who is current, and what becomes of the sessions of those that are not.

mod support;

use support::raw::tags;
use support::{Batch, Pooler, Postgres, Raw, ServerError, eventually};

/// Patience in seconds rather than minutes.
const QUICK: &str = "promote_after = \"400ms\"\nstale_grace = \"500ms\"\nstale_idle = \"200ms\"\n\
    stale_idle_transaction = \"500ms\"\n";

fn config(mode: &str, extra: &str, deployments: &str) -> String {
    format!(
        "[pool]\nmode = \"{mode}\"\n{extra}\n[services.\"*\".deployments]\n{QUICK}{deployments}\n"
    )
}

fn login(pooler: &Pooler, name: &str) -> Raw {
    Raw::login_as(pooler.port(), "postgres", "postgres", name)
}

/// A client that has logged in long enough after the start for its deployment to have a place in the order.
fn await_start(pooler: &Pooler) {
    let early = login(pooler, "early@v0");
    await_current(pooler, "early", "v0");
    early.goodbye();
}

fn await_current(pooler: &Pooler, service: &str, deployment: &str) {
    pooler.await_log("it is current", |log| {
        log.lines().any(|line| {
            line.contains("deployment is current")
                && line.contains(&format!("service={service} "))
                && line.contains(&format!("deployment={deployment} "))
        })
    });
}

fn last_words(client: &mut Raw) -> ServerError {
    let said = client.read_to_end();
    assert_eq!(tags(&said), "E");
    said[0].error()
}

#[test]
fn a_rollout_closes_what_the_old_deployment_left_behind() {
    for mode in ["transaction", "session"] {
        let postgres = Postgres::start();
        let pooler = Pooler::serve(&postgres, &config(mode, "", ""));
        await_start(&pooler);
        let mut old = login(&pooler, "site@v1");
        let mut sleeper = login(&pooler, "site@v1");
        await_current(&pooler, "site", "v1");
        old.value("select 1");
        sleeper.query("begin").unwrap();
        let mut new = login(&pooler, "site@v2");
        new.value("select 1");
        await_current(&pooler, "site", "v2");

        let error = last_words(&mut old);
        assert_eq!(error.code(), "57P01", "{mode}");
        let text = error.text();
        for part in [
            "terminating connection",
            "\"v1\"",
            "\"site\"",
            "\"v2\"",
            " UTC",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(last_words(&mut sleeper).code(), "57P01");
        postgres.await_all_idle();
        assert_eq!(new.value("select 1"), "1", "the current one is left alone");
        let (_, metrics) = pooler.http("/metrics");
        for reason in ["stale", "stale_transaction"] {
            let series =
                format!("pgweir_sessions_reaped_total{{service=\"site\",reason=\"{reason}\"}} 1");
            let swapped =
                format!("pgweir_sessions_reaped_total{{reason=\"{reason}\",service=\"site\"}} 1");
            assert!(
                metrics.contains(&series) || metrics.contains(&swapped),
                "{metrics}"
            );
        }
    }
}

/// Logs in with these startup parameters besides user and database.
fn login_with(pooler: &Pooler, parameters: &[(&str, &str)]) -> Raw {
    let mut raw = Raw::connect(pooler.port());
    let all = [
        &[("user", "postgres"), ("database", "postgres")],
        parameters,
    ]
    .concat();
    raw.log_in(&all, None).expect("a login");
    raw
}

fn sessions_of(pooler: &Pooler, service: &str) -> usize {
    let (_, metrics) = pooler.http("/metrics");
    let label = format!("service=\"{service}\"");
    let series = metrics
        .lines()
        .find(|line| line.starts_with("pgweir_clients{") && line.contains(&label));
    series.map_or(0, |series| {
        let (_, count) = series.rsplit_once(' ').expect("a value");
        count.parse().expect("a count")
    })
}

#[test]
fn a_session_that_takes_another_name_moves_to_that_service() {
    for mode in ["transaction", "session"] {
        let postgres = Postgres::start();
        let pooler = Pooler::serve(&postgres, &config(mode, "", ""));
        let mut client = login(&pooler, "first");
        assert_eq!(sessions_of(&pooler, "postgres"), 1);
        let is_of = |service: &str| {
            eventually(&format!("{service} has it"), || {
                sessions_of(&pooler, service) == 1
            });
        };
        client.query("set application_name = 'simple@v1'").unwrap();
        is_of("simple");
        client.send(
            &Batch::new()
                .parse("", "set application_name = 'extended@v1'")
                .bind("", "", &[])
                .execute("")
                .sync(),
        );
        client.rows().unwrap();
        is_of("extended");
        client.value("select set_config('application_name', 'function@v1', false)");
        is_of("function");
        // What is taken back, or is for a transaction only, does not count.
        client.query("begin").unwrap();
        client.query("set application_name = 'never@v1'").unwrap();
        client.query("rollback").unwrap();
        client
            .query("begin; set local application_name = 'never@v1'; commit")
            .unwrap();
        assert_eq!(
            client.value("show application_name"),
            "function@v1",
            "{mode}"
        );
        is_of("function");
        client.query("reset application_name").unwrap();
        is_of("postgres");
    }
}

#[test]
fn a_move_counts_under_the_caps_of_the_new_service() {
    let postgres = Postgres::start();
    let services = "[services.small]\nmax_clients = 1\n[services.big]\nmax_clients = 5\n";
    let pooler = Pooler::serve(&postgres, services);
    let mut client = login(&pooler, "big@v1");
    client.query("set application_name = 'small@v1'").unwrap();
    let refused = |name: &str| {
        let parameters = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", name),
        ];
        let mut raw = Raw::connect(pooler.port());
        raw.log_in(&parameters, None).is_err()
    };
    assert!(refused("small@v1"), "it is full");
    client.query("set application_name = 'big@v1'").unwrap();
    eventually("its seat is free", || !refused("small@v1"));
}

#[test]
fn a_deployment_may_be_named_at_startup_and_postgres_does_not_see_it() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config("transaction", "", ""));
    await_start(&pooler);
    for (nth, parameters) in [
        [("options", "-c pgweir.deployment=a7")],
        [("pgweir.deployment", "a7")],
    ]
    .iter()
    .enumerate()
    {
        let named = [parameters[0], ("application_name", "site@v1")];
        let mut client = login_with(&pooler, &named);
        let setting = client.value("select current_setting('pgweir.deployment', true)");
        assert_eq!(setting, "", "{nth}");
        client.query("set application_name = 'site@v2'").unwrap();
        await_current(&pooler, "site", "a7");
    }
}

#[test]
fn a_crash_loop_does_not_touch_the_working_deployment() {
    let postgres = Postgres::start();
    let quick = config("transaction", "", "").replace("\"400ms\"", "\"2s\"");
    let pooler = Pooler::serve(&postgres, &quick);
    let early = login(&pooler, "early@v0");
    await_current(&pooler, "early", "v0");
    let mut working = login(&pooler, "site@v1");
    working.value("select 1");
    await_current(&pooler, "site", "v1");
    // Long enough for stale sessions to be closed several times.
    for _ in 0..40 {
        let mut crashing = login(&pooler, "site@v2");
        crashing.value("select pg_sleep(0.1)");
        drop(crashing);
    }
    // A canary beside it, which lives but not yet long enough.
    let mut canary = login(&pooler, "site@v3");
    canary.value("select pg_sleep(1)");
    assert_eq!(working.value("select 1"), "1");
    assert!(
        !pooler.log().contains("deployment=v2 instead_of"),
        "{}",
        pooler.log()
    );
    early.goodbye();
}

#[test]
fn a_rollback_makes_the_old_deployment_current_again() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config("transaction", "", ""));
    await_start(&pooler);
    let old = login(&pooler, "site@v1");
    await_current(&pooler, "site", "v1");
    let new = login(&pooler, "site@v2");
    await_current(&pooler, "site", "v2");
    old.goodbye();
    let mut again = login(&pooler, "site@v1");
    new.goodbye();
    pooler.await_log("it is current again", |log| {
        log.lines().any(|line| {
            line.contains("deployment is current again") && line.contains("deployment=v1 ")
        })
    });
    let mut straggler = login(&pooler, "site@v2");
    assert_eq!(last_words(&mut straggler).code(), "57P01");
    assert_eq!(again.value("select 1"), "1");
}

#[test]
fn dry_run_says_once_what_would_be_closed() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config("session", "", "dry_run = true\n"));
    await_start(&pooler);
    let mut old = login(&pooler, "site@v1");
    await_current(&pooler, "site", "v1");
    let mut new = login(&pooler, "site@v2");
    pooler.await_log("it is said", |log| {
        log.contains("would be closed, but for dry_run")
    });
    // Several looks of the reaper later.
    new.value("select pg_sleep(1)");
    assert_eq!(pooler.log().matches("but for dry_run").count(), 1);
    assert_eq!(old.value("select 1"), "1");
}

/// What the console says to an administrator.
fn console(pooler: &Pooler, command: &str) -> String {
    support::process::run(pooler.psql("postgres", "pgweir").args(["-c", command]))
}

#[test]
fn an_operator_says_what_counts_and_closes_what_does_not() {
    let postgres = Postgres::start();
    let never =
        "[auth]\nmethod = \"trust\"\n[services.\"*\".deployments]\npromote_after = \"400ms\"\n";
    let pooler = Pooler::serve(&postgres, never);
    await_start(&pooler);
    let mut old = login(&pooler, "site@v1");
    await_current(&pooler, "site", "v1");
    let mut new = login(&pooler, "site@v2");
    await_current(&pooler, "site", "v2");
    assert_eq!(new.value("select 1"), "1");

    let deployments = console(&pooler, "SHOW DEPLOYMENTS");
    assert!(
        deployments.contains("site|v1|superseded|1|"),
        "{deployments}"
    );
    assert!(deployments.contains("site|v2|current|1|"), "{deployments}");
    let services = console(&pooler, "SHOW SERVICES");
    assert!(services.contains("site|v2|2|1|"), "{services}");
    console(&pooler, "PROMOTE site v1");
    let deployments = console(&pooler, "SHOW DEPLOYMENTS");
    assert!(deployments.contains("site|v1|current|1|"), "{deployments}");
    assert!(
        deployments.contains("site|v2|superseded|1|"),
        "{deployments}"
    );
    console(&pooler, "KILL STALE other");
    assert_eq!(new.value("select 1"), "1", "another service's were meant");
    eventually("it is idle", || {
        console(&pooler, "KILL STALE site");
        new.hears_within(std::time::Duration::from_millis(200))
    });
    assert_eq!(last_words(&mut new).code(), "57P01");
    let reaped = console(&pooler, "SHOW REAPED");
    assert!(
        reaped.contains("|site|v2|") && reaped.contains("|kill_stale|"),
        "{reaped}"
    );
    assert_eq!(old.value("select 1"), "1");

    console(&pooler, "SUPERSEDE site v1");
    let deployments = console(&pooler, "SHOW DEPLOYMENTS");
    assert!(
        deployments.contains("site|v1|superseded|1|"),
        "{deployments}"
    );
    let wrong = pooler
        .psql("postgres", "pgweir")
        .args(["-c", "PROMOTE site v9"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("42704"), "{said}");
}

#[test]
fn a_new_deployment_can_start_while_an_old_one_has_taken_all_it_may() {
    let postgres = Postgres::start();
    let more = "[services.site]\nmax_clients = 8\n[services.\"*\".deployments]\npromote_after = \"400ms\"\n";
    let pooler = Pooler::serve(&postgres, more);
    await_start(&pooler);
    let try_login = |name: &str| {
        let parameters = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", name),
        ];
        let mut raw = Raw::connect(pooler.port());
        raw.log_in(&parameters, None).ok().map(|()| raw)
    };
    let first = try_login("site@v1").expect("there is room");
    await_current(&pooler, "site", "v1");
    let mut old: Vec<_> = (0..20).filter_map(|_| try_login("site@v1")).collect();
    old.push(first);
    assert_eq!(old.len(), 7, "one place is kept for the next deployment");
    let new = try_login("site@v2").expect("that is its place");
    assert!(try_login("site@v2").is_none(), "the cap is the cap");
    await_current(&pooler, "site", "v2");
    // Now the old one's idle sessions make room, one by one, up to the place that is kept for the next.
    let more: Vec<_> = (0..20).filter_map(|_| try_login("site@v2")).collect();
    assert_eq!(more.len(), 6);
    let reaped = console(&pooler, "SHOW REAPED");
    assert_eq!(reaped.matches("|pressure_stale|").count(), 7, "{reaped}");
    let refused = refusals(&pooler, "site", "too_many_clients");
    assert_eq!(refused, 14 + 1 + 14, "each is told of by its service");
    drop((old, new, more));
}

/// Clients of a service that were sent away for this reason.
fn refusals(pooler: &Pooler, service: &str, reason: &str) -> usize {
    let (_, metrics) = pooler.http("/metrics");
    let labels = format!("{{service=\"{service}\",reason=\"{reason}\"}} ");
    let count = metrics
        .lines()
        .find_map(|line| line.split_once(&labels))
        .filter(|(name, _)| *name == "pgweir_service_refusals_total");
    count.map_or(0, |(_, count)| count.parse().expect("a number"))
}

#[test]
fn a_new_deployment_can_start_in_session_mode_while_an_old_one_has_all_the_connections_it_may() {
    let postgres = Postgres::start();
    let config = "[pool]\nmode = \"session\"\n[services.site]\nmax_servers = 4\n[timeouts]\nquery_wait = \"3s\"\n\
        [services.\"*\".deployments]\npromote_after = \"400ms\"\n";
    let pooler = Pooler::serve(&postgres, config);
    await_start(&pooler);
    let old: Vec<_> = (0..3).map(|_| login(&pooler, "site@v1")).collect();
    await_current(&pooler, "site", "v1");
    let mut refused = Raw::connect(pooler.port());
    let one_more = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", "site@v1"),
    ];
    let error = refused
        .log_in(&one_more, None)
        .expect_err("it has waited in vain");
    assert_eq!(error.code(), "53300");
    assert_eq!(refusals(&pooler, "site", "query_wait"), 1);

    let new = login(&pooler, "site@v2");
    await_current(&pooler, "site", "v2");
    // For the second one, what lies idle of the old deployment makes room: its own place, and that of the next deployment.
    let second = login(&pooler, "site@v2");
    let reaped = console(&pooler, "SHOW REAPED");
    assert_eq!(reaped.matches("|site|v1|").count(), 2, "{reaped}");
    assert_eq!(reaped.matches("|pressure_stale|").count(), 2, "{reaped}");
    let newest = login(&pooler, "site@v3");
    let services = console(&pooler, "SHOW SERVICES");
    assert!(services.contains("site|"), "{services}");
    drop((old, new, second, newest));
}

#[test]
fn under_pressure_the_mildest_step_comes_first_and_no_more_are_closed_than_are_wanted() {
    let postgres = Postgres::start();
    postgres.sql("create role alice login; create role bob login");
    // Without pressure, nobody would be closed.
    let config = "[users.alice]\nmode = \"session\"\n[budget]\nmax_servers = 5\ncheck_every = 0\n\
        [pressure]\nwaiters_for = \"200ms\"\nidle_transaction = \"2s\"\n\
        [services.\"*\".deployments]\npromote_after = \"400ms\"\nstale_grace = \"1h\"\nstale_idle_transaction = \"1h\"\n";
    let pooler = Pooler::serve(&postgres, config);
    await_start(&pooler);
    let site = |name: &str| Raw::login_as(pooler.port(), "alice", "postgres", name);
    let (mut first, mut second, mut sleeper) = (site("site@v1"), site("site@v1"), site("site@v1"));
    await_current(&pooler, "site", "v1");
    first.value("select 1");
    second.value("select 1");
    sleeper.query("begin").unwrap();
    let (mut current, mut thinker) = (site("site@v2"), site("site@v2"));
    await_current(&pooler, "site", "v2");
    thinker.query("begin").unwrap();
    // By the end of this, all have rested for long enough to be closed at any step.
    current.value("select pg_sleep(6)");

    let mut others = Vec::new();
    for (reason, gone) in [
        ("pressure_stale", &mut first),
        ("pressure_stale", &mut second),
        ("pressure_stale_transaction", &mut sleeper),
        ("pressure_idle_transaction", &mut thinker),
    ] {
        let mut other = Raw::login_as(pooler.port(), "bob", "postgres", "bot@v1");
        other.query("begin").unwrap();
        others.push(other);
        assert_eq!(last_words(gone).code(), "57P01", "{reason}");
        let reaped = console(&pooler, "SHOW REAPED");
        assert_eq!(reaped.lines().count(), others.len(), "{reaped}");
        let last = reaped.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("|{reason}|")), "{reason}: {reaped}");
    }
    assert_eq!(
        current.value("select 1"),
        "1",
        "the current one is left alone"
    );
}

#[test]
fn little_headroom_is_pressure_too() {
    let postgres = Postgres::setup().max_connections(20).start();
    postgres.sql("create role alice login");
    let config = "[pool]\nmode = \"session\"\n[budget]\nmax_servers = \"auto\"\ncheck_every = \"100ms\"\n\
        [pressure]\nmin_headroom = 5\n\
        [services.\"*\".deployments]\npromote_after = \"400ms\"\nstale_grace = \"1h\"\n";
    let pooler = Pooler::serve(&postgres, config);
    await_start(&pooler);
    let mut old: Vec<_> = (0..3).map(|_| login(&pooler, "site@v1")).collect();
    await_current(&pooler, "site", "v1");
    let mut new = login(&pooler, "site@v2");
    await_current(&pooler, "site", "v2");
    // Of 17, pgweir has four and its monitor; eight of others leave four free.
    let foreign: Vec<_> = (0..8)
        .map(|_| Raw::try_login(postgres.port(), "alice", "postgres", None).expect("there is room"))
        .collect();
    assert_eq!(last_words(&mut old[0]).code(), "57P01");
    let reaped = console(&pooler, "SHOW REAPED");
    assert!(
        reaped.contains("|site|v1|") && reaped.contains("|pressure_stale|"),
        "{reaped}"
    );
    assert_eq!(new.value("select 1"), "1");
    drop(foreign);
}
