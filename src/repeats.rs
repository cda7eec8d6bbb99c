//! What log lines of all floors have in common. Of those that say the same again and again the first is written, the others are
//! counted, and once a minute one line tells how many there were. One for the process, as its log is.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// The target of log lines about errors that pgweir itself sends to clients: `log.pooler_errors` is a filter on it.
pub const POOLER_ERROR: &str = "pooler_error";

/// Causes that are told apart. Names in them come from clients.
const MOST: usize = 1000;

/// The cause of what is beyond that.
const OTHERS: &str = "(others)";

static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::default);

/// Whether `what` has not been said of `cause` within the last minute: then it is to be said now. Otherwise it is counted.
pub fn is_news(what: &'static str, cause: String) -> bool {
    REPEATS.is_news(what, cause)
}

/// A minute is over: what was counted in it.
pub fn end_period() -> Vec<Repeated> {
    REPEATS.end_period()
}

/// Lines that were counted instead of written, since the process began.
pub fn suppressed() -> u64 {
    REPEATS.suppressed.load(Relaxed)
}

/// A line that was not written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repeated {
    /// What it says.
    pub what: &'static str,
    /// Of whom or what.
    pub cause: String,
    /// How often.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Repeats {
    /// How often each was counted since it was written or told.
    counts: Mutex<HashMap<(&'static str, String), u64>>,
    suppressed: AtomicU64,
}

impl Repeats {
    fn is_news(&self, what: &'static str, cause: String) -> bool {
        let mut counts = self.counts.lock();
        let full = counts.len() >= MOST;
        let mut key = (what, cause);
        if let Some(count) = counts.get_mut(&key) {
            *count += 1;
        } else if full {
            OTHERS.clone_into(&mut key.1);
            *counts.entry(key).or_default() += 1;
        } else {
            counts.insert(key, 0);
            return true;
        }
        self.suppressed.fetch_add(1, Relaxed);
        false
    }

    /// What came again is not news in the next minute either; what did not is forgotten.
    fn end_period(&self) -> Vec<Repeated> {
        let mut told = Vec::new();
        self.counts.lock().retain(|(what, cause), count| {
            let count = std::mem::take(count);
            if count > 0 {
                let cause = cause.clone();
                told.push(Repeated { what, cause, count });
            }
            count > 0
        });
        told.sort_unstable();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(repeats: &Repeats) -> Vec<(String, u64)> {
        let told = repeats.end_period().into_iter();
        told.map(|told| (told.cause, told.count)).collect()
    }

    #[test]
    fn what_is_said_again_is_counted_and_told_once_in_a_period() {
        let repeats = Repeats::default();
        let say = |cause: &str| repeats.is_news("refused", cause.to_owned());
        assert!(say("ann") && say("bob"));
        assert!(!say("ann") && !say("ann"));
        assert_eq!(told(&repeats), [("ann".to_owned(), 2)]);
        assert!(!say("ann"), "it goes on");
        assert!(say("bob"), "it had stopped");
        assert_eq!(told(&repeats), [("ann".to_owned(), 1)]);
        assert_eq!(told(&repeats), []);
        assert!(say("ann"));
        assert_eq!(repeats.suppressed.load(Relaxed), 3);
    }

    #[test]
    fn any_number_of_causes_takes_bounded_room() {
        let repeats = Repeats::default();
        for nth in 0..MOST + 5 {
            assert_eq!(repeats.is_news("refused", nth.to_string()), nth < MOST);
        }
        assert!(repeats.counts.lock().len() <= MOST + 1);
        assert_eq!(told(&repeats), [(OTHERS.to_owned(), 5)]);
    }
}
