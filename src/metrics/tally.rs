//! Counters of the hot path: each has one writer, and adding costs no locked instruction.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A counter that one thread writes and any thread reads: adding costs no locked instruction.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds `n`. Only the owning thread may call this: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The first bucket ends at 128 microseconds, each next one at twice as much, the last but one at 67 seconds.
const FIRST_BOUND: u32 = 7;

/// How many buckets there are; the last one has no bound.
const BUCKETS: usize = 21;

/// Where a bucket ends, in microseconds; `None`: nowhere.
pub fn bound(bucket: usize) -> Option<u64> {
    (bucket + 1 < BUCKETS).then(|| 1 << (FIRST_BOUND as usize + bucket))
}

/// The bucket of a time in microseconds. Bounds belong to the bucket below them, as Prometheus wants it.
fn bucket(micros: u64) -> usize {
    let bits = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST_BOUND) as usize).min(BUCKETS - 1)
}

/// Times by their length, of one thread.
#[derive(Debug, Default)]
pub struct Buckets([Tally; BUCKETS]);

impl Buckets {
    /// So many took so many microseconds each. Only the owning thread may call this.
    pub fn add(&self, micros: u64, count: u64) {
        self.0[bucket(micros)].add(count);
    }
}

/// Times by their length, as read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How many lie in each bucket.
    pub buckets: [u64; BUCKETS],
    /// Microseconds of all of them.
    pub sum: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

impl Times {
    /// What these buckets hold, with the sum that was counted beside them.
    pub fn of(buckets: &Buckets, sum: &Tally) -> Self {
        Self {
            buckets: std::array::from_fn(|index| buckets.0[index].read()),
            sum: sum.read(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.sum += other.sum;
    }
}

/// Times by their length that any thread may add to: for what happens rarely.
#[derive(Debug, Default)]
pub struct SharedTimes {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl SharedTimes {
    /// One more took so long.
    pub fn add(&self, time: Duration) {
        let micros = in_micros(time);
        self.buckets[bucket(micros)].fetch_add(1, Relaxed);
        self.sum.fetch_add(micros, Relaxed);
    }

    /// What it holds.
    pub fn read(&self) -> Times {
        Times {
            buckets: std::array::from_fn(|index| self.buckets[index].load(Relaxed)),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// What one thread moved for one pool.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes read from clients.
    pub received: Tally,
    /// Bytes read from Postgres.
    pub sent: Tally,
    /// ReadyForQuery messages: a simple query, or an extended batch up to its Sync.
    pub queries: Tally,
    /// Leases that ended settled.
    pub transactions: Tally,
    /// Times that a session got a server connection.
    pub assignments: Tally,
    /// Microseconds in transactions, and in statements outside of one.
    pub transaction_time: Tally,
    /// Microseconds from requests to their ReadyForQuery.
    pub query_time: Tally,
    /// Microseconds that somebody waited for a server connection.
    pub wait_time: Tally,
    /// Parse messages of clients.
    pub client_parses: Tally,
    /// Parse messages of theirs and of pgweir's own that went to Postgres.
    pub server_parses: Tally,
    /// Bind messages of clients.
    pub binds: Tally,
    /// Sessions that were let in.
    pub logins: Tally,
    /// What [`transaction_time`](Self::transaction_time) is the sum of.
    pub transaction_times: Buckets,
    /// What [`query_time`](Self::query_time) is the sum of.
    pub query_times: Buckets,
    /// What [`wait_time`](Self::wait_time) is the sum of.
    pub wait_times: Buckets,
}

impl Traffic {
    /// Somebody's wait for a server connection is over; 0: it got one at once.
    pub fn waited(&self, micros: u64) {
        self.wait_time.add(micros);
        self.wait_times.add(micros, 1);
    }

    /// A transaction has ended.
    pub fn took(&self, micros: u64) {
        self.transaction_time.add(micros);
        self.transaction_times.add(micros, 1);
    }

    /// So many queries were answered within this time.
    pub fn answered(&self, micros: u64, queries: u64) {
        if let Some(each) = micros.checked_div(queries) {
            self.query_time.add(micros);
            self.query_times.add(each, queries);
        }
    }
}

/// What one session did. Its own task writes it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes read from its client.
    pub received: Tally,
    /// Bytes read from Postgres for it.
    pub sent: Tally,
    /// ReadyForQuery messages.
    pub queries: Tally,
    /// Transactions, and statements outside of one.
    pub transactions: Tally,
}

/// A time in microseconds.
pub fn in_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_the_bucket_whose_bound_it_does_not_exceed() {
        for micros in [
            0,
            1,
            127,
            128,
            129,
            255,
            256,
            257,
            1_000_000,
            1 << 26,
            (1 << 26) + 1,
            u64::MAX,
        ] {
            let found = bucket(micros);
            assert!(bound(found).is_none_or(|bound| micros <= bound), "{micros}");
            let below = found.checked_sub(1).and_then(bound);
            assert!(below.is_none_or(|below| micros > below), "{micros}");
        }
        assert_eq!(
            (bound(0), bound(19), bound(20)),
            (Some(128), Some(1 << 26), None)
        );
    }

    #[test]
    fn queries_that_are_answered_together_share_their_time() {
        let traffic = Traffic::default();
        traffic.answered(3000, 3);
        traffic.answered(100, 0);
        let times = Times::of(&traffic.query_times, &traffic.query_time);
        assert_eq!((times.count(), times.buckets[3], times.sum), (3, 3, 3000));
    }
}
