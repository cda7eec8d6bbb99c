use proptest::prelude::*;

use super::super::deployment::{Count, Deployments as Life, Measure};
use super::*;
use crate::config;

const MINUTE: u64 = 60_000;

/// The defaults, changed by these lines.
fn rules(lines: &str) -> Deployments {
    let text = format!(
        "[databases.\"*\"]\nurl = \"postgres://db\"\n[services.\"*\".deployments]\n{lines}"
    );
    let config = config::parse(&text, "pooler.toml", &|_| None).expect("the file is right");
    config.services.deployments
}

/// One that was superseded at 0 and logged in long before.
fn superseded(id: u32, rest: Rest, since: u64) -> Seen<'static> {
    Seen {
        id,
        service: "site",
        superseded: Some(0),
        joined: 0,
        rest,
        since,
    }
}

fn living(id: u32, rest: Rest, since: u64) -> Seen<'static> {
    Seen {
        superseded: None,
        ..superseded(id, rest, since)
    }
}

fn chosen(
    now: u64,
    pressure: Option<Pressure<'_>>,
    seen: &[Seen<'_>],
    rules: &Deployments,
) -> Vec<(u32, Reason)> {
    let choices = Reaper::default().choose(now, pressure.as_slice(), seen, |_| rules);
    let chosen = choices.iter().filter(|choice| !choice.dry_run);
    chosen
        .map(|choice| (seen[choice.at].id, choice.reason))
        .collect()
}

#[test]
fn an_idle_leftover_is_closed_after_its_grace() {
    let rules = rules("");
    let seen = [superseded(1, Rest::Idle, 0), superseded(2, Rest::Busy, 0)];
    assert_eq!(chosen(5 * MINUTE, None, &seen, &rules), []);
    let late = 5 * MINUTE + GRAIN + 1;
    assert_eq!(chosen(late, None, &seen, &rules), [(1, Reason::Stale)]);
    let seen = [superseded(1, Rest::Idle, late - MINUTE)];
    assert_eq!(
        chosen(late, None, &seen, &rules),
        [],
        "it was busy a minute ago"
    );
    let joined = Seen {
        joined: late - 4 * MINUTE,
        ..superseded(1, Rest::Idle, 0)
    };
    assert_eq!(
        chosen(late, None, &[joined], &rules),
        [],
        "a newcomer has its grace"
    );
}

#[test]
fn one_that_sleeps_in_a_transaction_has_a_limit_of_its_own() {
    let rules = rules("stale_grace = \"1h\"\nstale_idle_transaction = \"2m\"");
    let seen = [
        superseded(1, Rest::InTransaction, 0),
        superseded(2, Rest::InTransaction, MINUTE),
    ];
    let now = 2 * MINUTE + GRAIN + 1;
    assert_eq!(
        chosen(now, None, &seen, &rules),
        [(1, Reason::StaleTransaction)]
    );
}

#[test]
fn zero_means_never() {
    let rules = rules("stale_grace = 0\nstale_idle_transaction = 0");
    let seen = [
        superseded(1, Rest::Holding, 0),
        superseded(2, Rest::InTransaction, 0),
    ];
    let pressure = Some(Pressure {
        service: None,
        wanted: 9,
        idle_transaction: Duration::ZERO,
    });
    assert_eq!(chosen(u64::MAX / 2, pressure, &seen, &rules), []);
}

#[test]
fn whoever_holds_a_server_connection_goes_first_and_then_who_has_rested_longest() {
    let rules = rules("close_per_second = 0");
    let seen = [
        superseded(1, Rest::Idle, 10),
        superseded(2, Rest::Idle, 5),
        superseded(3, Rest::Holding, 20),
        superseded(4, Rest::Holding, 15),
    ];
    let order: Vec<_> = chosen(10 * MINUTE, None, &seen, &rules)
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(order, [4, 3, 2, 1]);
}

#[test]
fn no_more_are_closed_than_the_rate_allows() {
    let rules = rules("close_per_second = 10");
    let mut seen: Vec<_> = (0..100).map(|id| superseded(id, Rest::Idle, 0)).collect();
    let mut reaper = Reaper::default();
    let mut closed = vec![];
    for look in 0..40 {
        let now = 10 * MINUTE + look * 250;
        let choices = reaper.choose(now, &[], &seen, |_| &rules);
        closed.push(choices.len());
        let gone: Vec<_> = choices.iter().map(|choice| seen[choice.at].id).collect();
        seen.retain(|seen| !gone.contains(&seen.id));
    }
    for second in closed.windows(4) {
        assert!(second.iter().sum::<usize>() <= 15, "{closed:?}");
    }
    assert!(seen.len() <= 2, "{closed:?}");
}

#[test]
fn dry_run_says_it_once() {
    let rules = rules("dry_run = true");
    let seen = [superseded(1, Rest::Idle, 0)];
    let mut reaper = Reaper::default();
    let choices = reaper.choose(10 * MINUTE, &[], &seen, |_| &rules);
    assert_eq!(choices.len(), 1);
    assert!(choices[0].dry_run);
    let busy = [superseded(1, Rest::Busy, 0)];
    for seen in [&seen, &busy, &seen] {
        assert_eq!(reaper.choose(20 * MINUTE, &[], seen, |_| &rules), []);
    }
    assert_eq!(reaper.choose(20 * MINUTE, &[], &[], |_| &rules), []);
    assert!(reaper.told.is_empty(), "who has gone is forgotten");
}

#[test]
fn under_pressure_the_mildest_step_that_helps_is_taken() {
    let rules = rules("");
    let pressure = |wanted| {
        Some(Pressure {
            service: None,
            wanted,
            idle_transaction: Duration::from_secs(30),
        })
    };
    let now = MINUTE;
    let idle = superseded(1, Rest::Holding, 0);
    let holder = superseded(2, Rest::Holding, 10);
    let plain = superseded(3, Rest::Idle, 0);
    let sleeper = superseded(4, Rest::InTransaction, 0);
    let anybody = living(5, Rest::InTransaction, 0);
    let quick = living(6, Rest::InTransaction, now - 20_000);
    let all = [idle, holder, plain, sleeper, anybody, quick];
    let look = |wanted, seen: &[Seen<'_>]| chosen(now, pressure(wanted), seen, &rules);
    assert_eq!(chosen(now, None, &all, &rules), []);
    assert_eq!(look(1, &all), [(1, Reason::PressureStale)]);
    assert_eq!(
        look(5, &all),
        [(1, Reason::PressureStale), (2, Reason::PressureStale)]
    );
    assert_eq!(look(5, &all[2..]), [(4, Reason::PressureStaleTransaction)]);
    assert_eq!(
        look(5, &[plain, anybody, quick]),
        [(5, Reason::PressureIdleTransaction)]
    );
    assert_eq!(look(5, &[plain, quick]), []);
    assert_eq!(look(0, &all), []);
    // One that is only told of is no help.
    let mut dry = rules.clone();
    dry.dry_run = true;
    let mut reaper = Reaper::default();
    let all = [
        idle,
        Seen {
            service: "other",
            ..anybody
        },
    ];
    let of = |service: &str| if service == "site" { &dry } else { &rules };
    assert!(reaper.choose(now, pressure(1).as_slice(), &all, of)[0].dry_run);
    assert_eq!(
        reaper.choose(now, pressure(1).as_slice(), &all, of)[0].at,
        1
    );
}

#[test]
fn a_full_service_closes_its_own_leftovers_only() {
    let rules = rules("");
    let full = Pressure {
        service: Some("site"),
        wanted: 5,
        idle_transaction: Duration::from_secs(30),
    };
    let all = [
        superseded(1, Rest::Holding, 0),
        Seen {
            service: "bot",
            ..superseded(2, Rest::Holding, 0)
        },
        living(3, Rest::InTransaction, 0),
        living(4, Rest::Holding, 0),
    ];
    let look = |seen: &[Seen<'_>]| chosen(MINUTE, Some(full), seen, &rules);
    assert_eq!(look(&all), [(1, Reason::PressureStale)]);
    assert_eq!(look(&all[1..]), []);
}

#[test]
fn two_deployments_side_by_side_for_an_hour_are_left_alone() {
    let rules = rules("promote_after = \"2h\"\nstale_grace = \"1s\"\nstale_idle = \"1s\"");
    let pressure = Pressure {
        service: None,
        wanted: 10,
        idle_transaction: Duration::ZERO,
    };
    let start = 1000 * MINUTE;
    let sessions = [
        ("v1", Rest::Idle, 1),
        ("v1", Rest::InTransaction, 1),
        ("v2", Rest::Holding, start),
        ("v2", Rest::InTransaction, start),
    ];
    let (mut life, mut reaper) = (Life::new(0), Reaper::default());
    let mut look = |now: u64| {
        let counts = sessions.iter().map(|(deployment, _, joined)| {
            let superseded = life.superseded("site", deployment);
            let measure = Measure {
                promote_after: rules.promote_after,
                superseded: superseded.map(|superseded| superseded.since),
            };
            let mut count = Count::default();
            count.add(*joined, now, measure);
            ("site", *deployment, count)
        });
        let counts: Vec<_> = counts.collect();
        let _ = life.observe(now, counts, |_| rules.promote_after);
        let seen = (1..)
            .zip(&sessions)
            .map(|(id, (deployment, rest, joined))| {
                let superseded = life.superseded("site", deployment);
                Seen {
                    superseded: superseded.map(|superseded| superseded.since),
                    joined: *joined,
                    ..living(id, *rest, *joined)
                }
            });
        let seen: Vec<_> = seen.collect();
        reaper.choose(now, &[pressure], &seen, |_| &rules).len()
    };
    for second in 0..3600 {
        assert_eq!(look(start + second * 1000), 0, "after {second} s");
    }
    // An hour later the canary has lived for long enough.
    let _ = look(start + 120 * MINUTE);
    assert!(look(start + 121 * MINUTE) > 0);
}

#[test]
fn an_operator_closes_all_that_is_stale_and_idle() {
    let seen = [
        superseded(1, Rest::Idle, 0),
        superseded(2, Rest::Busy, 0),
        living(3, Rest::Idle, 0),
        superseded(4, Rest::InTransaction, 0),
    ];
    let stale: Vec<_> = stale(&seen).iter().map(|choice| choice.at).collect();
    assert_eq!(stale, [0, 3]);
}

#[test]
fn room_is_made_by_the_leftover_that_was_idle_for_longest() {
    let seen = [
        living(1, Rest::Idle, 0),
        superseded(2, Rest::Busy, 0),
        superseded(3, Rest::InTransaction, 0),
        superseded(4, Rest::Idle, 9),
        superseded(5, Rest::Holding, 7),
    ];
    let room =
        |seen: &[Seen<'_>], service: &str| room_for_one(seen, service).map(|choice| choice.at);
    assert_eq!(room(&seen, "site"), Some(4));
    assert_eq!(room(&seen[..3], "site"), None);
    assert_eq!(room(&seen, "bot"), None);
}

#[test]
fn a_sentence_names_service_deployment_successor_and_time() {
    let mut sentence = Sentence {
        reason: Reason::Stale,
        service: "site".into(),
        deployment: Some("v41".into()),
        by: Some("v42".into()),
        since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        rested: Duration::from_secs(99),
    };
    assert_eq!(
        sentence.to_string(),
        "deployment \"v41\" of service \"site\" was superseded by \"v42\" at 2023-11-14 22:13:20 UTC"
    );
    sentence.since = None;
    assert_eq!(
        sentence.to_string(),
        "idle in transaction for 99 s while others wait for server connections (service \"site\")"
    );
}

#[test]
fn each_reason_has_a_word_of_its_own() {
    let words: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(words.len(), Reason::ALL.len());
}

const NAMES: [&str; 3] = ["v1", "v2", "v3"];

#[derive(Debug, Clone)]
enum Event {
    Login(usize),
    Leave(usize),
    Does(usize, Rest),
    Pass(u64),
    Promote(usize),
    Supersede(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (name, session) = (0..NAMES.len(), 0..8_usize);
    let rest = prop_oneof![
        Just(Rest::Busy),
        Just(Rest::Idle),
        Just(Rest::Holding),
        Just(Rest::InTransaction)
    ];
    prop_oneof![
        5 => name.clone().prop_map(Event::Login),
        2 => session.clone().prop_map(Event::Leave),
        5 => (session, rest).prop_map(|(session, rest)| Event::Does(session, rest)),
        6 => (1..60_u64).prop_map(Event::Pass),
        1 => name.clone().prop_map(Event::Promote),
        1 => name.prop_map(Event::Supersede),
    ]
}

#[derive(Debug)]
struct Session {
    id: u32,
    deployment: &'static str,
    joined: u64,
    rest: Rest,
    since: u64,
}

proptest! {
    /// In any order of events, with and without pressure: the current deployment and new ones are never touched as stale, and
    /// nobody who is busy or early is touched at all.
    #[test]
    fn the_current_deployment_is_never_touched(
        events in prop::collection::vec(event(), 0..80),
        wanted in prop::option::of(0..3_u32),
    ) {
        let rules = rules("promote_after = \"30s\"\nstale_grace = \"2m\"\nstale_idle = \"10s\"");
        let pressure = wanted.map(|wanted| Pressure { service: None, wanted, idle_transaction: Duration::from_secs(30) });
        let (mut life, mut reaper) = (Life::new(0), Reaper::default());
        let (mut now, mut next, mut sessions) = (MINUTE, 0, Vec::<Session>::new());
        for event in events {
            let (mut looks, mut step) = (1, 1000);
            match event {
                Event::Login(name) => {
                    next += 1;
                    sessions.push(Session { id: next, deployment: NAMES[name], joined: now, rest: Rest::Idle, since: now });
                }
                Event::Leave(at) => if at < sessions.len() { sessions.remove(at); },
                Event::Does(at, rest) => if let Some(session) = sessions.get_mut(at) {
                    (session.rest, session.since) = (rest, now);
                },
                Event::Promote(name) => { let _ = life.promote(now, "site", NAMES[name]); }
                Event::Supersede(name) => { let _ = life.supersede(now, "site", NAMES[name]); }
                Event::Pass(more) => (looks, step) = (more, 10_000),
            }
            for _ in 0..looks {
                now += step;
                let counts = sessions.iter().map(|session| {
                    let superseded = life.superseded("site", session.deployment).map(|superseded| superseded.since);
                    let mut count = Count::default();
                    count.add(session.joined, now, Measure { promote_after: rules.promote_after, superseded });
                    ("site", session.deployment, count)
                });
                let counts: Vec<_> = counts.collect();
                let _ = life.observe(now, counts, |_| rules.promote_after);
                let words: HashMap<_, _> = life.iter().flat_map(|(_, all)| all)
                    .map(|known| (known.name.to_string(), known.word())).collect();
                let seen: Vec<_> = sessions.iter().map(|session| Seen {
                    id: session.id,
                    service: "site",
                    superseded: life.superseded("site", session.deployment).map(|superseded| superseded.since),
                    joined: session.joined,
                    rest: session.rest,
                    since: session.since,
                }).collect();
                let choices = reaper.choose(now, pressure.as_slice(), &seen, |_| &rules);
                for choice in &choices {
                    let session = &sessions[choice.at];
                    prop_assert_ne!(session.rest, Rest::Busy);
                    let rested = now - session.since;
                    match choice.reason {
                        Reason::Stale => prop_assert!(rested > 10_000 && now - session.joined > 120_000),
                        Reason::StaleTransaction => prop_assert!(rested > 300_000),
                        Reason::PressureStale => prop_assert!(rested > 1_000 && session.rest == Rest::Holding),
                        Reason::PressureStaleTransaction => prop_assert!(rested > 5_000),
                        Reason::PressureIdleTransaction => {
                            prop_assert!(rested > 30_000 && pressure.is_some());
                            continue;
                        }
                        Reason::KillStale | Reason::PressureForeign => prop_assert!(false, "nobody said so"),
                    }
                    prop_assert_eq!(words[session.deployment], "superseded");
                }
                let gone: Vec<_> = choices.iter().map(|choice| sessions[choice.at].id).collect();
                sessions.retain(|session| !gone.contains(&session.id));
            }
        }
    }
}
