//! Statistics of each database: totals since the process began, and averages over the last period, as PgBouncer defines them.

use std::collections::HashMap;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Tally, Times, Traffic};

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident: $column:literal = $tally:ident,)*) => {
        /// What was counted. Times are microseconds.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Totals {$(
            $(#[$doc])*
            pub $name: u64,
        )*}

        impl Totals {
            /// Each with PgBouncer's name for it, in the order of its columns.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$(($column, self.$name)),*].into_iter()
            }

            fn with(mut self, other: Self, both: impl Fn(u64, u64) -> u64) -> Self {
                $(self.$name = both(self.$name, other.$name);)*
                self
            }
        }

        impl From<&Traffic> for Totals {
            fn from(traffic: &Traffic) -> Self {
                Self {$($name: Tally::read(&traffic.$tally),)*}
            }
        }
    };
}

totals! {
    /// Times that a session got a server connection.
    assignments: "server_assignment_count" = assignments,
    /// Transactions, and statements outside of one.
    transactions: "xact_count" = transactions,
    /// Queries: ReadyForQuery messages.
    queries: "query_count" = queries,
    /// Bytes of clients.
    received: "bytes_received" = received,
    /// Bytes of Postgres.
    sent: "bytes_sent" = sent,
    /// In transactions.
    transaction_time: "xact_time" = transaction_time,
    /// From requests to their ReadyForQuery.
    query_time: "query_time" = query_time,
    /// Waiting for a server connection.
    wait_time: "wait_time" = wait_time,
    /// Parse messages of clients.
    client_parses: "client_parse_count" = client_parses,
    /// Parse messages to Postgres.
    server_parses: "server_parse_count" = server_parses,
    /// Bind messages of clients.
    binds: "bind_count" = binds,
    /// Sessions that were let in.
    logins: "client_login_count" = logins,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::saturating_add);
    }
}

impl Sub for Totals {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }
}

impl Totals {
    /// What all threads have counted.
    pub fn of(traffic: &[Traffic]) -> Self {
        let mut sum = Self::default();
        for traffic in traffic {
            sum += traffic.into();
        }
        sum
    }

    /// What was counted within `period`, as averages: counts, bytes and waiting per second, the times of transactions and
    /// queries per transaction and query.
    #[must_use]
    pub fn averages(self, period: Duration) -> Self {
        let millis = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
        let per = |total: u64, count: u64| total.checked_div(count).unwrap_or(0);
        let rates = self.with(self, |total, _| total.saturating_mul(1000) / millis);
        Self {
            transaction_time: per(self.transaction_time, self.transactions),
            query_time: per(self.query_time, self.queries),
            ..rates
        }
    }
}

/// Everything that was counted for a database and a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// What is counted once.
    pub totals: Totals,
    /// Waits for a server connection.
    pub waits: Times,
    /// Transactions, and statements outside of one.
    pub transactions: Times,
    /// Queries.
    pub queries: Times,
}

impl Counted {
    /// What all threads have counted.
    pub fn of(traffic: &[Traffic]) -> Self {
        let mut sum = Self::default();
        for of in traffic {
            sum += Self {
                totals: of.into(),
                waits: Times::of(&of.wait_times, &of.wait_time),
                transactions: Times::of(&of.transaction_times, &of.transaction_time),
                queries: Times::of(&of.query_times, &of.query_time),
            };
        }
        sum
    }
}

impl AddAssign for Counted {
    fn add_assign(&mut self, other: Self) {
        self.totals += other.totals;
        self.waits += other.waits;
        self.transactions += other.transactions;
        self.queries += other.queries;
    }
}

/// The statistics of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseStats {
    /// As clients call it.
    pub database: Arc<str>,
    /// Since the process began.
    pub totals: Totals,
    /// Over the last period that is over; zero before.
    pub averages: Totals,
}

/// What was there at the end of the last two periods.
#[derive(Debug, Default)]
pub struct Periods {
    before: HashMap<Arc<str>, Totals>,
    averages: HashMap<Arc<str>, Totals>,
}

impl Periods {
    /// A period is over. Gives the averages of all databases together.
    pub fn roll(&mut self, now: HashMap<Arc<str>, Totals>, period: Duration) -> Totals {
        let sum = |totals: &HashMap<_, Totals>| {
            let mut sum = Totals::default();
            for one in totals.values() {
                sum += *one;
            }
            sum
        };
        let all = sum(&now) - sum(&self.before);
        let average = |(database, totals): (&Arc<str>, &Totals)| {
            let before = self.before.get(database).copied().unwrap_or_default();
            (Arc::clone(database), (*totals - before).averages(period))
        };
        self.averages = now.iter().map(average).collect();
        self.before = now;
        all.averages(period)
    }

    /// The averages of a database.
    pub fn averages(&self, database: &str) -> Totals {
        self.averages.get(database).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(count: u64, micros: u64) -> Totals {
        Totals {
            transactions: count,
            queries: 2 * count,
            received: 100 * count,
            transaction_time: micros,
            query_time: micros,
            wait_time: micros,
            ..Totals::default()
        }
    }

    #[test]
    fn averages_are_of_the_last_period_alone() {
        let mut periods = Periods::default();
        let site: Arc<str> = "site".into();
        let now = |totals| HashMap::from([(Arc::clone(&site), totals)]);
        periods.roll(now(totals(60, 6000)), Duration::from_mins(1));
        assert_eq!(
            periods.averages("site"),
            Totals {
                transactions: 1,
                queries: 2,
                received: 100,
                transaction_time: 100,
                query_time: 50,
                wait_time: 100,
                ..Totals::default()
            }
        );
        periods.roll(now(totals(60, 6000)), Duration::from_mins(1));
        assert_eq!(periods.averages("site"), Totals::default());
        assert_eq!(periods.averages("unknown"), Totals::default());
    }
}
