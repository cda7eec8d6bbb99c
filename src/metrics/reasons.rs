//! Counts by reason, of what happens rarely.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// How often something happened, by its reason. Reasons are words of the code's, so there are few.
#[derive(Debug, Default)]
pub struct Reasons(Mutex<BTreeMap<&'static str, u64>>);

impl Reasons {
    /// Nothing has happened, for any of these reasons.
    pub fn new(known: &[&'static str]) -> Self {
        Self(Mutex::new(known.iter().map(|word| (*word, 0)).collect()))
    }

    /// It happened once more.
    pub fn add(&self, reason: &'static str) {
        *self.0.lock().entry(reason).or_default() += 1;
    }

    /// How often for each reason.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        self.0
            .lock()
            .iter()
            .map(|(word, count)| (*word, *count))
            .collect()
    }
}
