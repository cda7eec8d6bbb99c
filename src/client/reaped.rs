//! Sessions that were closed because their deployment is superseded, or because others needed what they held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::directory::{Entry, Who};
use crate::net::listen::Peer;
use crate::policy::reaper::{Reason, Sentence};

/// Closings that are remembered.
const MOST_REAPED: usize = 1000;

/// Pairs of service and reason that are counted apart; the others are counted together.
const MOST_COUNTED: usize = 1000;

/// The account of those beyond [`MOST_COUNTED`].
const OTHERS: &str = "(others)";

/// One session that was closed, or would have been.
#[derive(Debug, Clone)]
pub struct Reaped {
    /// When.
    pub at: SystemTime,
    /// Its number; Postgres' process id if it did not come through pgweir.
    pub id: u32,
    /// Whose it was.
    pub who: Arc<Who>,
    /// Where it came from.
    pub peer: Peer,
    /// Why.
    pub sentence: Arc<Sentence>,
    /// It was only said, because of `dry_run`.
    pub dry_run: bool,
}

/// What was closed lately, and how much in all.
#[derive(Debug, Default)]
pub struct ReapedLog {
    last: Mutex<VecDeque<Reaped>>,
    counts: Mutex<BTreeMap<(String, Reason), u64>>,
}

impl ReapedLog {
    /// The sessions that were closed lately, or would have been, the last one last.
    pub fn last(&self) -> Vec<Reaped> {
        self.last.lock().iter().cloned().collect()
    }

    /// How many sessions were closed, by service and reason.
    pub fn counts(&self) -> BTreeMap<(String, Reason), u64> {
        self.counts.lock().clone()
    }

    /// Notes that a session was closed, or that it would have been.
    pub fn note(&self, entry: &Entry, sentence: &Arc<Sentence>, dry_run: bool) {
        let reaped = Reaped {
            at: SystemTime::now(),
            id: entry.id(),
            who: entry.who(),
            peer: entry.peer,
            sentence: Arc::clone(sentence),
            dry_run,
        };
        if dry_run {
            let who = &reaped.who;
            tracing::info!(
                id = entry.id(), user = who.user, database = who.database, service = who.service,
                deployment = who.deployment.as_deref(), peer = %entry.peer, reason = sentence.reason.as_str(),
                "would be closed, but for dry_run: {sentence}"
            );
        }
        self.add(reaped);
    }

    /// The same of a connection that does not come through pgweir: its number is Postgres' process id.
    pub fn note_foreign(&self, reaped: Reaped) {
        let (who, sentence) = (&reaped.who, &reaped.sentence);
        let what = if reaped.dry_run {
            "would be closed, but for dry_run"
        } else {
            "a connection past pgweir was closed"
        };
        tracing::info!(
            pid = reaped.id, user = who.user, database = who.database, service = who.service,
            deployment = who.deployment.as_deref(), peer = %reaped.peer, reason = sentence.reason.as_str(),
            "{what}: {sentence}"
        );
        self.add(reaped);
    }

    fn add(&self, reaped: Reaped) {
        let (who, sentence) = (Arc::clone(&reaped.who), Arc::clone(&reaped.sentence));
        let dry_run = reaped.dry_run;
        let mut last = self.last.lock();
        if last.len() >= MOST_REAPED {
            last.pop_front();
        }
        last.push_back(reaped);
        drop(last);
        if dry_run {
            return;
        }
        let mut counts = self.counts.lock();
        let mut key = (who.service.clone(), sentence.reason);
        if counts.len() >= MOST_COUNTED && !counts.contains_key(&key) {
            OTHERS.clone_into(&mut key.0);
        }
        *counts.entry(key).or_default() += 1;
    }
}
