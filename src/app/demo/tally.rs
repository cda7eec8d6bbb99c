//! What the clients counted and measured.

use std::collections::BTreeSet;
use std::time::Duration;

use super::postgres::Seen;
use super::services::SERVICES;

/// Different failures that are kept of each service.
const KEPT: usize = 5;

/// Durations, to be asked for percentiles.
#[derive(Debug, Default, Clone)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those below which these percentages lie, by nearest rank; `None` if nothing was measured.
    pub(super) fn percentiles<const N: usize>(
        &self,
        percents: [usize; N],
    ) -> Option<[Duration; N]> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        Some(percents.map(|percent| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted[rank.saturating_sub(1).min(last)]
        }))
    }

    fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

/// What some clients lived through.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    /// How many there are.
    pub(super) clients: usize,
    /// Those that got a session.
    pub(super) connected: usize,
    /// Those that were refused with 53300 and have not got one since.
    pub(super) shut_out: usize,
    /// Refused logins: a client that is shut out tries again and again.
    pub(super) refusals: usize,
    /// Sessions and logins that ended in an error other than that.
    pub(super) failed: usize,
    /// What these said: the first few different ones.
    pub(super) failures: BTreeSet<String>,
    /// From the first byte of a login that succeeded to its end.
    pub(super) login: Times,
    /// From BEGIN to its answer: through a pooler, the wait for a server connection.
    pub(super) wait: Times,
    /// From BEGIN to the answer to COMMIT.
    pub(super) transaction: Times,
}

impl Tally {
    /// Notes an error that should not be.
    pub(super) fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            self.failures.insert(what);
        }
    }

    fn add(&mut self, other: &Self) {
        self.clients += other.clients;
        self.connected += other.connected;
        self.shut_out += other.shut_out;
        self.refusals += other.refusals;
        self.failed += other.failed;
        self.failures.extend(other.failures.iter().cloned());
        self.login.add(&other.login);
        self.wait.add(&other.wait);
        self.transaction.add(&other.transaction);
    }
}

/// What one crowd lived through, and the most server connections that Postgres saw of it.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    /// In the order of [`SERVICES`].
    pub(super) services: [Tally; SERVICES.len()],
    /// The highest count each; not all of one moment.
    pub(super) most: Seen,
}

impl Outcome {
    /// All services together.
    pub(super) fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.services.iter().for_each(|tally| total.add(tally));
        total
    }

    /// A sum over the services, without copying what was measured.
    pub(super) fn sum(&self, count: impl Fn(&Tally) -> usize) -> usize {
        self.services.iter().map(count).sum()
    }

    /// Notes how many server connections there are now.
    pub(super) fn note(&mut self, seen: Seen) {
        self.most.raise(&seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: impl IntoIterator<Item = u64>) -> Times {
        Times(millis.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_measured_values() {
        let percentiles = |times: &Times| {
            times
                .percentiles([0, 50, 99, 100])
                .map(|all| all.map(|time| time.as_millis()))
        };
        assert_eq!(percentiles(&Times::default()), None);
        assert_eq!(percentiles(&millis([7])), Some([7; 4]));
        assert_eq!(
            percentiles(&millis((1..=200).rev())),
            Some([1, 100, 198, 200])
        );
    }

    #[test]
    fn the_most_is_kept_for_each_and_for_all() {
        let mut outcome = Outcome::default();
        for services in [[5, 0, 1, 0], [2, 9, 0, 0]] {
            let total = services.iter().sum();
            outcome.note(Seen { services, total });
        }
        assert_eq!(outcome.most.services, [5, 9, 1, 0]);
        assert_eq!(outcome.most.total, 11);
    }

    #[test]
    fn the_total_counts_everybody_and_tells_each_failure_once() {
        let mut outcome = Outcome::default();
        for tally in &mut outcome.services {
            tally.clients = 2;
            tally.fail("alas".into());
        }
        let total = outcome.total();
        assert_eq!((total.clients, total.failed), (8, 4));
        assert_eq!(total.failures.len(), 1);
        assert_eq!(outcome.sum(|tally| tally.clients), 8);
    }
}
