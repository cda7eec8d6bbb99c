//! What a session does and since when, and how long it may.
//!
//! Pure: times are milliseconds of the directory's coarse clock, and arguments. The session's own task notes what it does; a
//! janitor compares that with the limits a few times a second, so that no timer belongs to a transaction.

use std::time::Duration;

/// How far the directory's clock may be behind. A limit is exceeded only when it is so by more than this: late, never early.
const GRAIN: Duration = Duration::from_millis(100);

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing, outside a transaction.
    Idle,
    /// It is in its pool's queue.
    Waiting,
    /// The same, and its client was told so.
    WaitingTold,
    /// Postgres owes an answer, or waits for the rest of a request.
    Active,
    /// Nothing, inside a transaction.
    InTransaction,
    /// It replicates, which may take for ever.
    Streaming,
    /// Nothing, outside a transaction, but it keeps a server connection: in session mode, or because of what lives on it.
    Holding,
}

/// What a session does, since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// What.
    pub activity: Activity,
    /// Since when, in milliseconds.
    pub since: u64,
}

impl Doing {
    /// Both in one word, so that they are read together.
    pub(super) fn to_word(self) -> u64 {
        self.since << 3 | self.activity as u64
    }

    pub(super) fn from_word(word: u64) -> Self {
        let activity = match word & 0b111 {
            0 => Activity::Idle,
            1 => Activity::Waiting,
            2 => Activity::WaitingTold,
            3 => Activity::Active,
            4 => Activity::InTransaction,
            5 => Activity::Streaming,
            _ => Activity::Holding,
        };
        Self {
            activity,
            since: word >> 3,
        }
    }
}

/// What a session has done for so long that it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// Nothing, outside a transaction.
    ClientIdle,
    /// Nothing, inside a transaction.
    IdleTransaction,
    /// A transaction.
    Transaction,
    /// A query.
    Query,
}

/// What is due when a session has done the same for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It waits, and its client is to be told so.
    Notice,
    /// It ends.
    End(Overdue),
    /// It ends: a sentence was passed on it.
    Reap,
}

impl Due {
    const ALL: [Self; 6] = [
        Self::Notice,
        Self::End(Overdue::ClientIdle),
        Self::End(Overdue::IdleTransaction),
        Self::End(Overdue::Transaction),
        Self::End(Overdue::Query),
        Self::Reap,
    ];

    /// Three bits, not all zero.
    pub(super) fn to_number(self) -> u64 {
        match self {
            Self::Notice => 1,
            Self::End(overdue) => 2 + overdue as u64,
            Self::Reap => 6,
        }
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|due| due.to_number() == number)
    }
}

/// How long a session may do what; `None` = as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patience {
    /// Nothing, outside a transaction.
    pub client_idle: Option<Duration>,
    /// Nothing, inside a transaction.
    pub idle_transaction: Option<Duration>,
    /// A transaction, from the moment when it has a server connection.
    pub transaction: Option<Duration>,
    /// A query, likewise.
    pub query: Option<Duration>,
    /// Waiting, before it is told so.
    pub notice: Option<Duration>,
}

impl Patience {
    /// What is due at `now`, if anything. `transaction`: since when there is one.
    pub fn exceeded(&self, doing: Doing, transaction: Option<u64>, now: u64) -> Option<Due> {
        let (limit, due) = match doing.activity {
            Activity::Idle | Activity::Holding => (self.client_idle, Due::End(Overdue::ClientIdle)),
            Activity::Waiting => (self.notice, Due::Notice),
            Activity::WaitingTold | Activity::Streaming => (None, Due::Notice),
            Activity::Active => (self.query, Due::End(Overdue::Query)),
            Activity::InTransaction => (self.idle_transaction, Due::End(Overdue::IdleTransaction)),
        };
        if is_over(doing.since, limit, now) {
            return Some(due);
        }
        let long = transaction.is_some_and(|since| is_over(since, self.transaction, now));
        long.then_some(Due::End(Overdue::Transaction))
    }

    /// The shorter one of each limit.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        let least = |one: Option<Duration>, other: Option<Duration>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            client_idle: least(self.client_idle, other.client_idle),
            idle_transaction: least(self.idle_transaction, other.idle_transaction),
            transaction: least(self.transaction, other.transaction),
            query: least(self.query, other.query),
            notice: least(self.notice, other.notice),
        }
    }
}

fn is_over(since: u64, limit: Option<Duration>, now: u64) -> bool {
    let lasted = Duration::from_millis(now.saturating_sub(since));
    limit.is_some_and(|limit| lasted > limit.saturating_add(GRAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activity; 7] = [
        Activity::Idle,
        Activity::Waiting,
        Activity::WaitingTold,
        Activity::Active,
        Activity::InTransaction,
        Activity::Streaming,
        Activity::Holding,
    ];

    #[test]
    fn each_activity_has_its_own_limit() {
        let second = |n| Some(Duration::from_secs(n));
        let patience = Patience {
            client_idle: second(1),
            idle_transaction: second(2),
            transaction: second(5),
            query: second(3),
            notice: second(4),
        };
        let at = |activity, since, transaction, now| {
            patience.exceeded(Doing { activity, since }, transaction, now)
        };
        let cases = [
            (Activity::Idle, 1, Some(Due::End(Overdue::ClientIdle))),
            (Activity::Holding, 1, Some(Due::End(Overdue::ClientIdle))),
            (
                Activity::InTransaction,
                2,
                Some(Due::End(Overdue::IdleTransaction)),
            ),
            (Activity::Active, 3, Some(Due::End(Overdue::Query))),
            (Activity::Waiting, 4, Some(Due::Notice)),
            (Activity::WaitingTold, 9, None),
        ];
        for (activity, limit, overdue) in cases {
            assert_eq!(
                at(activity, 7, None, 7 + 1000 * limit),
                None,
                "{activity:?}"
            );
            assert_eq!(
                at(activity, 7, None, 200 + 1000 * limit),
                overdue,
                "{activity:?}"
            );
            assert_eq!(
                Patience::default().exceeded(Doing { activity, since: 0 }, Some(0), u64::MAX),
                None
            );
        }
        // Each query is short, the transaction is not.
        assert_eq!(at(Activity::Active, 6000, Some(1000), 6000), None);
        assert_eq!(
            at(Activity::Active, 6000, Some(1000), 6200),
            Some(Due::End(Overdue::Transaction))
        );
        // The clock of who looks may be behind the session's.
        assert_eq!(at(Activity::Idle, 7, None, 0), None);
    }

    #[test]
    fn what_is_put_into_words_is_read_from_them() {
        for activity in ALL {
            for since in [0, 1, 1 << 40] {
                let doing = Doing { activity, since };
                assert_eq!(Doing::from_word(doing.to_word()), doing);
            }
        }
        for due in Due::ALL {
            assert_eq!(Due::from_number(due.to_number()), Some(due));
            assert!((1..8).contains(&due.to_number()));
        }
    }

    #[test]
    fn the_least_patience_is_nobodys_but_below_everybodys() {
        let second = |n| Some(Duration::from_secs(n));
        let one = Patience {
            query: second(3),
            client_idle: second(1),
            ..Patience::default()
        };
        let other = Patience {
            query: second(2),
            notice: second(4),
            ..Patience::default()
        };
        let least = Patience {
            query: second(2),
            client_idle: second(1),
            notice: second(4),
            ..Patience::default()
        };
        assert_eq!(one.least(other), least);
    }
}
