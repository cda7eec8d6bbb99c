//! How many server connections one Postgres may have from pgweir: what it has, less what is kept back and what others hold.
//!
//! And what is left to try after it has refused one with `53300`: that is a measurement, and lowers a ceiling that is raised
//! again one by one.

use std::time::Duration;

/// What Postgres says of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `superuser_reserved_connections` and, since Postgres 16, `reserved_connections`.
    pub reserved: u32,
}

impl Limits {
    /// Connections that ordinary users may have.
    pub fn ordinary(self) -> u32 {
        self.max_connections.saturating_sub(self.reserved)
    }

    /// Connections that ordinary users may still open, with so many open in all.
    pub fn free(self, open: u32) -> u32 {
        self.ordinary().saturating_sub(open)
    }
}

/// The budget that follows: what is left for pgweir beside `others`, with `headroom` kept free. At least 1, because nobody is
/// helped by a pooler that does not try.
pub fn automatic(ordinary: u32, others: u32, headroom: u32) -> u32 {
    ordinary
        .saturating_sub(others)
        .saturating_sub(headroom)
        .max(1)
}

/// What is left of a budget beside the connection that watches Postgres. At least 1.
pub fn beside_monitor(budget: u32, monitored: bool) -> u32 {
    budget.saturating_sub(u32::from(monitored)).max(1)
}

/// One process at Postgres that serves a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its process id.
    pub pid: u32,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// What its client calls itself.
    pub application_name: String,
    /// Where its client is; empty over a unix socket, or if Postgres does not say.
    pub address: String,
    /// What it does; empty if Postgres does not say.
    pub state: String,
    /// How old it is, in seconds, if Postgres says.
    pub age: Option<u64>,
    /// For how long it has had a transaction, in seconds.
    pub transaction: Option<u64>,
    /// For how long it has been in its state, in seconds.
    pub unchanged: Option<u64>,
    /// When it began, in microseconds since 1970, if Postgres says: with its process id that names it for ever.
    pub begun: Option<i64>,
    /// Since when it has been in its state, likewise: as long as that is the same, it has done nothing.
    pub changed: Option<i64>,
    /// The port of its client; -1: a unix socket.
    pub port: Option<i32>,
    /// Its last statement without literals; empty if Postgres does not say.
    pub statement: String,
}

/// Whose the processes of one Postgres are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Our own server connections.
    pub ours: u32,
    /// Of other processes of pgweir, as far as they can be told.
    pub siblings: u32,
    /// Everybody else's.
    pub foreign: u32,
}

impl Shares {
    /// What is not ours.
    pub fn others(&self) -> u32 {
        self.siblings + self.foreign
    }
}

/// Whose each process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Ours.
    Ours,
    /// Another process of pgweir's.
    Siblings,
    /// Anybody else's.
    Foreign,
}

/// Counts whose the processes are.
///
/// `whose`: by process id. `unsettled`: connections of ours that are being opened or closed, whose process ids nobody knows
/// yet, or any more; `may_be_unsettled`: who may be one of them. They are not held against anybody.
pub fn share(
    backends: &[Backend],
    whose: impl Fn(&Backend) -> Whose,
    unsettled: u32,
    may_be_unsettled: impl Fn(&Backend) -> bool,
) -> Shares {
    let mut shares = Shares::default();
    let mut left = unsettled;
    for backend in backends {
        match whose(backend) {
            Whose::Ours => shares.ours += 1,
            Whose::Siblings => shares.siblings += 1,
            Whose::Foreign if left > 0 && may_be_unsettled(backend) => {
                left -= 1;
                shares.ours += 1;
            }
            Whose::Foreign => shares.foreign += 1,
        }
    }
    shares
}

/// The ceiling that Postgres' refusals have put over a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// No more than this.
    most: u32,
    /// When one more is tried.
    retry_at: Duration,
    /// Refusals one after the other.
    failures: u32,
}

/// The longest pause after refusals.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Ceiling {
    /// Postgres has refused one more than `have`. `first`: the first pause, which doubles.
    pub fn refused(before: Option<Self>, have: u32, now: Duration, first: Duration) -> Self {
        let Some(before) = before else {
            return Self {
                most: have,
                retry_at: now + first.min(LONGEST_PAUSE),
                failures: 1,
            };
        };
        let most = before.most.min(have);
        // Those that were under way together are refused together: that is one refusal.
        if now < before.retry_at && before.failures > 0 {
            return Self { most, ..before };
        }
        let pause = first
            .saturating_mul(1 << before.failures.min(16))
            .min(LONGEST_PAUSE);
        Self {
            most,
            retry_at: now + pause,
            failures: before.failures + 1,
        }
    }

    /// What is allowed under it.
    pub fn over(ceiling: Option<Self>, budget: u32) -> u32 {
        ceiling.map_or(budget, |ceiling| budget.min(ceiling.most))
    }

    /// Whether one more is to be tried; `have` are there.
    pub fn is_due(&self, have: u32, now: Duration) -> bool {
        now >= self.retry_at && self.most <= have
    }

    /// One more is to be tried.
    pub fn raise(&mut self, have: u32) {
        self.most = self.most.max(have + 1);
    }

    /// Postgres let one in, `have` are there now: one more may follow at once. `None`: the ceiling is gone.
    pub fn admitted(self, have: u32, budget: u32) -> Option<Self> {
        let most = self.most.max(have + 1);
        (most < budget).then_some(Self {
            most,
            failures: 0,
            ..self
        })
    }

    /// Postgres is known to have room: one more may be tried without waiting.
    pub fn has_room(&mut self) {
        self.retry_at = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backend(pid: u32, age: u64) -> Backend {
        Backend {
            pid,
            age: Some(age),
            ..Backend::default()
        }
    }

    #[test]
    fn the_budget_is_what_others_leave() {
        let limits = Limits {
            max_connections: 100,
            reserved: 3,
        };
        assert_eq!(automatic(limits.ordinary(), 0, 5), 92);
        assert_eq!(automatic(limits.ordinary(), 60, 5), 32);
        assert_eq!(automatic(limits.ordinary(), 200, 5), 1);
        assert_eq!((limits.free(90), limits.free(99)), (7, 0));
        assert_eq!((beside_monitor(92, true), beside_monitor(1, true)), (91, 1));
        assert_eq!(beside_monitor(92, false), 92);
    }

    #[test]
    fn what_is_being_dialled_is_held_against_nobody() {
        let backends = [backend(1, 90), backend(2, 0), backend(3, 0), backend(4, 90)];
        let ours = |backend: &Backend| match backend.pid {
            1 => Whose::Ours,
            4 => Whose::Siblings,
            _ => Whose::Foreign,
        };
        let young = |backend: &Backend| backend.age.is_some_and(|age| age < 5);
        let shares = |unsettled| share(&backends, ours, unsettled, young);
        let told = |ours, foreign| Shares {
            ours,
            siblings: 1,
            foreign,
        };
        assert_eq!(shares(0), told(1, 2));
        assert_eq!(shares(1), told(2, 1));
        assert_eq!(shares(9), told(3, 0));
        assert_eq!(shares(1).others(), 2);
    }

    #[test]
    fn a_refusal_lowers_the_ceiling_to_what_is_there() {
        let first = Ceiling::refused(None, 7, SECOND, SECOND);
        assert_eq!(Ceiling::over(Some(first), 92), 7);
        assert!(!first.is_due(7, SECOND));
        // Those that were dialled with it are refused too: one refusal.
        let second = Ceiling::refused(Some(first), 5, SECOND, SECOND);
        assert_eq!(Ceiling::over(Some(second), 92), 5);
        assert!(second.is_due(5, SECOND * 2));
        let mut tried = second;
        tried.raise(5);
        assert_eq!(Ceiling::over(Some(tried), 92), 6);
        assert!(!tried.is_due(5, SECOND * 9), "one is being tried");
        // Refused again, it is tried later.
        let third = Ceiling::refused(Some(tried), 5, SECOND * 2, SECOND);
        assert_eq!(Ceiling::over(Some(third), 92), 5);
        assert!(!third.is_due(5, SECOND * 3) && third.is_due(5, SECOND * 4));
    }

    #[test]
    fn an_admission_raises_it_one_by_one_until_it_is_gone() {
        let mut ceiling = Ceiling::refused(None, 5, Duration::ZERO, SECOND);
        ceiling.raise(5);
        let mut have = 6;
        let mut left = ceiling.admitted(have, 10);
        while let Some(ceiling) = left {
            assert_eq!(Ceiling::over(Some(ceiling), 10), have + 1);
            have += 1;
            left = ceiling.admitted(have, 10);
        }
        assert_eq!(have, 9, "the next may be the tenth without it");
        assert_eq!(Ceiling::over(None, 10), 10);
    }

    proptest! {
        #[test]
        fn what_is_left_and_what_is_kept_never_exceed_what_there_is(
            max in 1_u32..5000, reserved in 0_u32..50, others in 0_u32..5000, headroom in 0_u32..50, monitored: bool,
        ) {
            let limits = Limits { max_connections: max, reserved };
            let budget = automatic(limits.ordinary(), others, headroom);
            prop_assert!(budget >= 1);
            if budget > 1 {
                prop_assert!(budget + others + headroom + reserved <= max);
            }
            let ours = beside_monitor(budget, monitored);
            prop_assert!(ours >= 1 && ours <= budget);
        }

        #[test]
        fn under_a_ceiling_one_at_a_time_is_tried(
            steps in proptest::collection::vec((0_u32..4, any::<bool>()), 0..200), budget in 1_u32..50,
        ) {
            let (mut have, mut now) = (budget / 2, Duration::ZERO);
            let mut ceiling = Some(Ceiling::refused(None, have, now, SECOND));
            for (seconds, admits) in steps {
                now += SECOND * seconds;
                if let Some(ceiling) = &mut ceiling
                    && ceiling.is_due(have, now)
                {
                    ceiling.raise(have);
                }
                let allowed = Ceiling::over(ceiling, budget);
                prop_assert!(allowed <= have + 1 || ceiling.is_none());
                if allowed <= have {
                    continue;
                }
                if admits {
                    have += 1;
                    ceiling = ceiling.and_then(|ceiling| ceiling.admitted(have, budget));
                } else {
                    ceiling = Some(Ceiling::refused(ceiling, have, now, SECOND));
                    prop_assert_eq!(Ceiling::over(ceiling, budget), have);
                }
            }
            prop_assert!(have <= budget);
        }
    }
}
