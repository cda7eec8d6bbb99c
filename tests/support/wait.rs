//! Waiting for a condition, with a deadline. Tests never wait for time itself.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer; panics after `limit`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, ask: impl FnMut() -> Option<T>) -> T {
    until_else(|| what.to_owned(), limit, ask)
}

/// The same, where what there was instead is told when it was in vain.
#[track_caller]
pub fn until_else<T>(
    what: impl FnOnce() -> String,
    limit: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain: {}",
            what()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds; panics when it does not within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, PATIENCE, || condition().then_some(()));
}
