use proptest::prelude::*;

use super::*;

/// One service, and sessions of it, in virtual time.
struct Place {
    life: Deployments,
    now: u64,
    sessions: Vec<(&'static str, u64)>,
}

const AFTER: Duration = Duration::from_secs(30);

impl Place {
    /// Long after the start of the process.
    fn new() -> Self {
        Self {
            life: Deployments::new(0),
            now: 1_000_000,
            sessions: Vec::new(),
        }
    }

    fn login(&mut self, deployment: &'static str) {
        self.sessions.push((deployment, self.now));
        self.pass(1);
    }

    fn leave(&mut self, deployment: &str) {
        self.sessions.retain(|(other, _)| *other != deployment);
        self.pass(1);
    }

    fn pass(&mut self, seconds: u64) -> Vec<(Arc<str>, bool)> {
        let mut promotions = Vec::new();
        for _ in 0..seconds {
            self.now += 1000;
            let mut counts: HashMap<&str, Count> = HashMap::new();
            for (deployment, joined) in &self.sessions {
                let superseded = self.life.superseded("site", deployment);
                let measure = Measure {
                    promote_after: AFTER,
                    superseded: superseded.map(|superseded| superseded.since),
                };
                let count = counts.entry(*deployment).or_default();
                count.add(*joined, self.now, measure);
            }
            let seen = counts
                .into_iter()
                .map(|(name, count)| ("site", name, count));
            let found = self.life.observe(self.now, seen, |_| AFTER);
            promotions.extend(
                found
                    .into_iter()
                    .map(|found| (found.deployment, found.again)),
            );
        }
        promotions
    }

    fn words(&self) -> Vec<(&str, &str)> {
        let services = self.life.iter().flat_map(|(_, deployments)| deployments);
        services.map(|known| (&*known.name, known.word())).collect()
    }

    fn by(&self, deployment: &str) -> Option<&str> {
        self.life.superseded("site", deployment)?.by.as_deref()
    }
}

#[test]
fn the_newest_one_whose_session_has_lived_is_current() {
    let mut place = Place::new();
    place.login("v1");
    assert_eq!(place.words(), [("v1", "new")]);
    assert_eq!(place.pass(30), [("v1".into(), false)]);
    assert_eq!(place.words(), [("v1", "current")]);
    place.login("v2");
    assert_eq!(place.pass(28), []);
    assert_eq!(place.words(), [("v1", "current"), ("v2", "new")]);
    assert_eq!(place.pass(2), [("v2".into(), false)]);
    assert_eq!(place.words(), [("v1", "superseded"), ("v2", "current")]);
    assert_eq!(place.by("v1"), Some("v2"));
    place.leave("v1");
    assert_eq!(place.words(), [("v1", "gone"), ("v2", "current")]);
}

#[test]
fn a_crash_loop_never_becomes_current() {
    let mut place = Place::new();
    place.login("v1");
    place.pass(40);
    for _ in 0..100 {
        place.login("v2");
        assert_eq!(place.pass(25), []);
        place.leave("v2");
        place.pass(5);
    }
    assert_eq!(place.words(), [("v1", "current"), ("v2", "gone")]);
    assert!(place.life.is_new("site", "v2"));
}

#[test]
fn a_rollback_makes_the_old_one_current_again() {
    let mut place = Place::new();
    for name in ["v1", "v2"] {
        place.login(name);
        place.pass(40);
    }
    // The old one's pods come up while the new one's are still there.
    place.login("v1");
    place.pass(100);
    assert_eq!(place.words(), [("v1", "superseded"), ("v2", "current")]);
    place.leave("v2");
    assert_eq!(place.words(), [("v2", "gone"), ("v1", "current")]);
    assert_eq!(place.by("v2"), Some("v1"));
    // Stragglers of what was rolled back do not count.
    place.login("v2");
    place.pass(100);
    assert_eq!(place.words(), [("v2", "superseded"), ("v1", "current")]);
    // And the next rollout does.
    place.login("v3");
    place.pass(40);
    assert_eq!(place.by("v1"), Some("v3"));
}

#[test]
fn a_leftover_that_never_logged_in_again_is_no_rollback() {
    let mut place = Place::new();
    for name in ["v1", "v2"] {
        place.login(name);
        place.pass(40);
    }
    place.leave("v2");
    assert_eq!(place.pass(1000), []);
    assert_eq!(place.words(), [("v1", "superseded"), ("v2", "gone")]);
}

#[test]
fn a_rollback_during_a_crash_loop_leaves_the_newcomer_new() {
    let mut place = Place::new();
    for name in ["v1", "v2"] {
        place.login(name);
        place.pass(40);
    }
    place.login("v3");
    place.leave("v2");
    place.leave("v3");
    place.login("v1");
    place.pass(40);
    assert_eq!(
        place.words(),
        [("v2", "gone"), ("v1", "current"), ("v3", "gone")]
    );
    place.login("v3");
    assert_eq!(place.pass(40), [("v3".into(), false)]);
}

#[test]
fn what_comes_back_with_the_process_has_no_order() {
    let mut place = Place::new();
    place.life = Deployments::new(place.now);
    place.login("v2");
    place.login("v1");
    place.pass(40);
    assert_eq!(place.words(), [("v2", "current"), ("v1", "current")]);
    place.login("v3");
    place.pass(40);
    assert_eq!(
        place.words(),
        [
            ("v2", "superseded"),
            ("v1", "superseded"),
            ("v3", "current")
        ]
    );
}

/// The same place after a restart of pgweir, with what the process before it has left.
fn restarted(place: &Place) -> Place {
    let memory = place.life.memory();
    let text = serde_json::to_string(&memory).unwrap();
    let read: Memory = serde_json::from_str(&text).unwrap();
    assert_eq!(read, memory);
    Place {
        life: Deployments::after(place.now, &memory),
        now: place.now,
        sessions: Vec::new(),
    }
}

#[test]
fn after_a_restart_an_old_one_that_comes_late_supersedes_nobody() {
    let mut place = Place::new();
    for name in ["v1", "v2"] {
        place.login(name);
        place.pass(40);
    }
    // Known: it finds its place behind v1, although it came first.
    let mut late = restarted(&place);
    late.login("v2");
    late.pass(100);
    late.login("v1");
    late.pass(100);
    assert_eq!(late.words(), [("v1", "superseded"), ("v2", "current")]);

    // The old one's sessions come back first, the current one's only when they have something to do.
    let mut early = restarted(&place);
    early.login("v1");
    early.pass(100);
    assert_eq!(early.words(), [("v1", "current"), ("v2", "gone")]);
    let mut twice = restarted(&early);
    twice.login("v1");
    twice.pass(100);
    for mut place in [early, twice] {
        place.login("v2");
        assert_eq!(place.pass(40), [("v2".into(), false)]);
        assert_eq!(place.words(), [("v1", "superseded"), ("v2", "current")]);
        // Whom nobody knew is newer, whenever it comes.
        let mut place = restarted(&place);
        place.login("v3");
        place.login("v2");
        place.pass(40);
        assert_eq!(place.by("v2"), Some("v3"));
    }
}

#[test]
fn what_an_operator_or_a_rollback_has_put_back_stays_behind_after_a_restart() {
    let mut place = Place::new();
    for name in ["v1", "v2", "v3"] {
        place.login(name);
        place.pass(40);
    }
    place.life.promote(place.now, "site", "v2").unwrap();
    let mut after = restarted(&place);
    for name in ["v2", "v3", "v1"] {
        after.login(name);
        after.pass(40);
    }
    assert_eq!(after.by("v3"), Some("v2"));
    assert_eq!(after.by("v1"), Some("v2"));
    // A canary that does not count beside the current one.
    after.login("v4");
    after.pass(1);
    after.life.supersede(after.now, "site", "v4").unwrap();
    let mut after = restarted(&after);
    for name in ["v2", "v4"] {
        after.login(name);
        after.pass(40);
    }
    assert_eq!(after.by("v4"), Some("v2"));
    assert_eq!(after.by("v2"), None);
}

#[test]
fn those_that_had_no_order_have_none_after_another_restart() {
    let mut place = Place::new();
    place.life = Deployments::new(place.now);
    for name in ["v1", "v2"] {
        place.login(name);
    }
    place.pass(40);
    let mut place = restarted(&place);
    for name in ["v2", "v1"] {
        place.login(name);
        place.pass(40);
    }
    assert_eq!(place.words(), [("v1", "current"), ("v2", "current")]);
}

#[test]
fn an_operators_word_holds_until_a_newer_one_has_lived() {
    let mut place = Place::new();
    for name in ["v1", "v2"] {
        place.login(name);
        place.pass(40);
    }
    let promotion = place.life.promote(place.now, "site", "v1");
    assert_eq!(promotion.map(|promotion| promotion.again), Ok(true));
    place.pass(100);
    assert_eq!(place.words(), [("v2", "superseded"), ("v1", "current")]);
    place.login("v3");
    place.pass(40);
    assert_eq!(place.by("v1"), Some("v3"));

    // What is said not to count makes way for what else lives.
    place.life.supersede(place.now, "site", "v3").unwrap();
    assert_eq!(place.by("v3"), None);
    place.pass(1);
    assert_eq!(
        place.words(),
        [
            ("v2", "superseded"),
            ("v3", "superseded"),
            ("v1", "current")
        ]
    );
    assert_eq!(place.life.promote(0, "other", "v1"), Err(Unknown::Service));
    assert_eq!(
        place.life.supersede(0, "site", "v9"),
        Err(Unknown::Deployment)
    );
}

#[test]
fn a_year_of_deployments_takes_no_more_memory_than_a_month() {
    let mut life = Deployments::new(0);
    for day in 1..5000_u64 {
        let (service, name) = (format!("job-{}", day / 2), format!("v{day}"));
        let mut count = Count::default();
        count.add(day * 1000, day * 1000, Measure::default());
        let seen = [("site", &*name, count), (&*service, "v1", count)];
        let _ = life.observe(day * 1000, seen, |_| Duration::ZERO);
    }
    let site = life.iter().find(|(name, _)| &***name == "site");
    assert!(site.unwrap().1.len() <= MOST_REMEMBERED + 2);
    assert!(life.services.len() <= MOST_SERVICES + 2);
}

const NAMES: [&str; 4] = ["v1", "v2", "v3", "v4"];

#[derive(Debug, Clone)]
enum Event {
    Login(usize),
    Leave(usize),
    Pass(u64),
    Promote(usize),
    Supersede(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..NAMES.len();
    prop_oneof![
        6 => name.clone().prop_map(Event::Login),
        3 => name.clone().prop_map(Event::Leave),
        6 => (1..60_u64).prop_map(Event::Pass),
        1 => name.clone().prop_map(Event::Promote),
        1 => name.prop_map(Event::Supersede),
    ]
}

proptest! {
    /// Whatever happens: who becomes current has a session that lived, and with a living current one in place nobody older
    /// takes over but by an operator's word.
    #[test]
    fn nobody_is_current_who_has_not_lived(events in prop::collection::vec(event(), 0..60)) {
        let mut place = Place::new();
        for event in events {
            match event {
                Event::Login(name) => place.login(NAMES[name]),
                Event::Leave(name) => place.leave(NAMES[name]),
                Event::Promote(name) => { let _ = place.life.promote(place.now, "site", NAMES[name]); }
                Event::Supersede(name) => { let _ = place.life.supersede(place.now, "site", NAMES[name]); }
                Event::Pass(seconds) => for _ in 0..seconds {
                    let before: Vec<_> = place.life.iter().flat_map(|(_, all)| all.to_vec()).collect();
                    for (promoted, again) in place.pass(1) {
                        let lived = place.sessions.iter().any(|(name, joined)| {
                            **name == *promoted && place.now - joined >= 30_000
                        });
                        prop_assert!(lived, "{promoted} has lived");
                        let present = |known: &&Deployment| known.is_current() && known.sessions > 0
                            && place.sessions.iter().any(|(name, _)| **name == *known.name);
                        prop_assert!(!(again && before.iter().any(|known| present(&known))),
                            "{promoted} again in place of one that is there");
                    }
                },
            }
            let current = place.words().into_iter().filter(|(_, word)| *word == "current");
            prop_assert!(current.count() <= 1);
            let ranked = place.words();
            let at = ranked.iter().position(|(_, word)| *word == "current");
            let new_below = ranked.iter().take(at.unwrap_or(0)).any(|(_, word)| *word == "new");
            prop_assert!(!new_below, "whoever is older than the current one is superseded");
        }
    }

    /// Restarts at any time: with what the process before has left, nobody is superseded by one that was ranked before it, in
    /// whatever order their sessions come back; and whoever counts has lived.
    #[test]
    fn no_restart_makes_an_older_one_supersede_a_newer(
        events in prop::collection::vec(event(), 1..40),
        back in prop::collection::vec(event(), 0..40),
    ) {
        let mut place = Place::new();
        for event in events {
            match event {
                Event::Login(name) => place.login(NAMES[name]),
                Event::Leave(name) => place.leave(NAMES[name]),
                Event::Pass(seconds) => { place.pass(seconds); }
                Event::Promote(name) => { let _ = place.life.promote(place.now, "site", NAMES[name]); }
                Event::Supersede(name) => { let _ = place.life.supersede(place.now, "site", NAMES[name]); }
            }
        }
        let memory = place.life.memory();
        let order: Vec<_> = memory.get("site").into_iter().flatten().map(|known| known.name.clone()).collect();
        let rank = |name: &str| order.iter().position(|known| known == name);
        let mut place = restarted(&place);
        for event in back {
            match event {
                // A rollback needs that the current one goes: here all stay.
                Event::Login(name) => place.login(NAMES[name]),
                Event::Pass(seconds) => { place.pass(seconds); }
                Event::Leave(_) | Event::Promote(_) | Event::Supersede(_) => {}
            }
            for name in NAMES {
                let Some(by) = place.by(name) else { continue };
                if let (Some(one), Some(other)) = (rank(name), rank(by)) {
                    prop_assert!(one < other, "{name} was superseded by {by}, which is older: {order:?}");
                }
                prop_assert!(place.sessions.iter().any(|(other, joined)| *other == by && place.now - joined >= 30_000));
            }
        }
    }
}
