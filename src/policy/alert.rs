//! Alerts: raised once, repeated while they last, resolved when what they were raised for is over and stays so.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::incident::Cause;

/// What it is below its threshold must last this long before an alert is resolved: a rolling deployment crosses it many times.
const CALM: Duration = Duration::from_secs(10);

/// What hovers right below its threshold is resolved after this.
const LONG_CALM: Duration = Duration::from_mins(1);

/// Who holds what an alert is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// The service.
    pub service: String,
    /// Its deployment; empty if it says none.
    pub deployment: String,
    /// How many.
    pub count: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// What.
    pub kind: Cause,
    /// Of which service or Postgres; empty for the process.
    pub subject: String,
    /// How much.
    pub value: u64,
    /// An alert is raised above this; for [`Cause::Headroom`], below it.
    pub threshold: u64,
    /// Who has most of it.
    pub holder: Option<Holder>,
    /// In a sentence.
    pub text: String,
    /// What to type to see more, or to do something about it.
    pub command: String,
}

impl Measured {
    /// Whether it is beyond its threshold.
    pub fn is_beyond(&self) -> bool {
        if self.kind.falls() {
            self.value < self.threshold
        } else {
            self.value > self.threshold
        }
    }

    /// Whether it is so far from its threshold that it is not just hovering: a tenth of it, and at least one.
    fn is_clear(&self) -> bool {
        let margin = (self.threshold / 10).max(1);
        if self.kind.falls() {
            self.value >= self.threshold + margin
        } else {
            self.value <= self.threshold.saturating_sub(margin)
        }
    }
}

/// An alert that is raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What was measured last beyond the threshold.
    pub measured: Measured,
    /// When it was raised, in the caller's time.
    pub since: Duration,
    /// How often it was told.
    pub told: u32,
    last_told: Duration,
    /// Since when it has not been beyond.
    calm: Option<Duration>,
    /// Since when it has been clear.
    clear: Option<Duration>,
}

/// What became of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is new.
    Raised,
    /// It lasts.
    Repeated,
    /// It is over.
    Resolved,
}

impl Turn {
    /// The word for logs and the webhook.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Repeated => "repeated",
            Self::Resolved => "resolved",
        }
    }
}

/// All alerts that are raised.
#[derive(Debug, Default)]
pub struct Alerts(BTreeMap<(Cause, String), Alert>);

impl Alerts {
    /// Takes in what was measured and says what is to be told. What is not measured any more (a service that has gone, a threshold
    /// that was taken away) counts as calm.
    pub fn observe(
        &mut self,
        now: Duration,
        measured: Vec<Measured>,
        repeat_every: Duration,
    ) -> Vec<(Turn, Alert)> {
        let mut told = Vec::new();
        let mut seen = BTreeMap::new();
        for one in measured {
            seen.insert((one.kind, one.subject.clone()), one);
        }
        self.0.retain(|key, alert| {
            let turn = alert.go_on(now, seen.remove(key), repeat_every);
            if let Some(turn) = turn {
                told.push((turn, alert.clone()));
            }
            turn != Some(Turn::Resolved)
        });
        for (key, measured) in seen.into_iter().filter(|(_, one)| one.is_beyond()) {
            let alert = Alert {
                measured,
                since: now,
                told: 1,
                last_told: now,
                calm: None,
                clear: None,
            };
            told.push((Turn::Raised, alert.clone()));
            self.0.insert(key, alert);
        }
        told
    }

    /// Those that are raised.
    pub fn raised(&self) -> impl Iterator<Item = &Alert> {
        self.0.values()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Alert {
    fn go_on(
        &mut self,
        now: Duration,
        measured: Option<Measured>,
        repeat_every: Duration,
    ) -> Option<Turn> {
        let beyond = measured.as_ref().is_some_and(Measured::is_beyond);
        let clear = measured.as_ref().is_none_or(Measured::is_clear);
        self.calm = (!beyond).then(|| self.calm.unwrap_or(now));
        self.clear = clear.then(|| self.clear.unwrap_or(now));
        let lasts =
            |since: Option<Duration>, limit| since.is_some_and(|since| now >= since + limit);
        if lasts(self.clear, CALM) || lasts(self.calm, LONG_CALM) {
            return Some(Turn::Resolved);
        }
        if let Some(measured) = measured.filter(|_| beyond) {
            self.measured = measured;
        }
        let due = !repeat_every.is_zero() && now >= self.last_told + repeat_every;
        if due && beyond {
            self.told += 1;
            self.last_told = now;
            return Some(Turn::Repeated);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPEAT: Duration = Duration::from_mins(15);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn measured(kind: Cause, value: u64, threshold: u64) -> Measured {
        Measured {
            kind,
            subject: "site".into(),
            value,
            threshold,
            holder: None,
            text: String::new(),
            command: String::new(),
        }
    }

    /// What is told of these values, each measured at its second.
    fn turns(kind: Cause, threshold: u64, values: &[(u64, u64)]) -> Vec<(u64, Turn)> {
        let mut alerts = Alerts::default();
        let mut all = Vec::new();
        for (at, value) in values {
            let told = alerts.observe(
                seconds(*at),
                vec![measured(kind, *value, threshold)],
                REPEAT,
            );
            all.extend(told.into_iter().map(|(turn, _)| (*at, turn)));
        }
        all
    }

    #[test]
    fn an_alert_is_raised_once_above_its_threshold_and_resolved_below() {
        let values = [
            (0, 32),
            (1, 33),
            (2, 40),
            (3, 20),
            (12, 20),
            (13, 20),
            (14, 20),
        ];
        let told = turns(Cause::ServiceServers, 32, &values);
        assert_eq!(told, [(1, Turn::Raised), (13, Turn::Resolved)]);
    }

    #[test]
    fn headroom_is_alerted_about_when_it_falls() {
        let values = [(0, 5), (1, 4), (2, 0), (3, 6), (13, 6)];
        let told = turns(Cause::Headroom, 5, &values);
        assert_eq!(told, [(1, Turn::Raised), (13, Turn::Resolved)]);
    }

    #[test]
    fn what_comes_and_goes_is_one_alert() {
        let values: Vec<_> = (0..200).map(|at| (at, 30 + at % 6)).collect();
        assert_eq!(
            turns(Cause::ServiceClients, 32, &values),
            [(3, Turn::Raised)]
        );
        // What hovers right below is over too, in the end.
        let values: Vec<_> = (0..200)
            .map(|at| (at, if at == 0 { 33 } else { 32 }))
            .collect();
        let told = turns(Cause::ServiceClients, 32, &values);
        assert_eq!(told, [(0, Turn::Raised), (61, Turn::Resolved)]);
    }

    #[test]
    fn what_lasts_is_repeated() {
        let values: Vec<_> = (0..2000).map(|at| (at, 40)).collect();
        let told = turns(Cause::TotalServers, 32, &values);
        assert_eq!(
            told,
            [
                (0, Turn::Raised),
                (900, Turn::Repeated),
                (1800, Turn::Repeated)
            ]
        );
        let mut alerts = Alerts::default();
        for at in 0..5000 {
            let told = alerts.observe(
                seconds(at),
                vec![measured(Cause::Waiters, 1, 0)],
                Duration::ZERO,
            );
            assert_eq!(
                told.len(),
                usize::from(at == 0),
                "repeats can be turned off"
            );
        }
    }

    #[test]
    fn what_is_measured_no_longer_is_over() {
        let mut alerts = Alerts::default();
        let raised = alerts.observe(seconds(0), vec![measured(Cause::Unreachable, 1, 0)], REPEAT);
        assert_eq!(raised.len(), 1);
        assert!(alerts.observe(seconds(1), vec![], REPEAT).is_empty());
        assert!(!alerts.is_empty());
        let over = alerts.observe(seconds(11), vec![], REPEAT);
        assert_eq!(over[0].0, Turn::Resolved);
        assert!(alerts.is_empty());
    }

    #[test]
    fn each_subject_has_its_own() {
        let mut alerts = Alerts::default();
        let mut other = measured(Cause::ServiceServers, 9, 8);
        other.subject = "bot".into();
        let both = vec![measured(Cause::ServiceServers, 9, 8), other];
        assert_eq!(alerts.observe(seconds(0), both, REPEAT).len(), 2);
        assert_eq!(alerts.raised().count(), 2);
    }

    proptest! {
        #[test]
        fn raised_and_resolved_take_turns(values in proptest::collection::vec((0_u64..30, 0_u64..50), 0..300)) {
            let mut at = 0;
            let values: Vec<_> = values.into_iter().map(|(step, value)| { at += step; (at, value) }).collect();
            let mut is_raised = false;
            for (at, turn) in turns(Cause::ServiceServers, 25, &values) {
                let value = values.iter().rev().find(|(then, _)| *then == at).map(|(_, value)| *value);
                match turn {
                    Turn::Raised => prop_assert!(!is_raised && values.contains(&(at, value.unwrap()))),
                    Turn::Repeated => prop_assert!(is_raised),
                    Turn::Resolved => prop_assert!(is_raised),
                }
                is_raised = turn != Turn::Resolved;
            }
        }
    }
}
