//! Who is connected: sessions by id, reachable from any thread, and counts of clients against their caps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use dashmap::DashMap;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::net::listen::Peer;
use crate::wire::startup::CancelKey;

/// What a session is asked from outside, as bits: several may be asked before it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ask {
    /// Leave at the next transaction boundary: the process ends.
    Drain = 1,
    /// Cancel what you run or wait for.
    Cancel = 2,
    /// Leave now.
    Leave = 4,
}

/// Whose a session is. Shared by all sessions that agree in it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// As the client named itself.
    pub user: String,
    /// As the client called it.
    pub database: String,
    /// The application that it belongs to.
    pub service: String,
}

/// One session, as others see it.
#[derive(Debug)]
pub struct Entry {
    /// The process id that its client was told.
    id: u32,
    secret: [u8; 4],
    asked: AtomicU8,
    waker: OnceLock<Waker>,
    /// Where it came from.
    pub peer: Peer,
    /// Whose it is.
    pub who: Arc<Who>,
    /// When it was logged in.
    pub since: Instant,
}

impl Entry {
    /// The key with which its client may cancel.
    pub fn key(&self) -> (u32, [u8; 4]) {
        (self.id, self.secret)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Says which task to wake. Once, from that task.
    pub fn attend(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// Whether anything was asked. Costs one relaxed load.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0
    }

    /// Whether this was asked; forgets a Cancel, which is for one moment only.
    pub fn asked(&self, ask: Ask) -> bool {
        let bit = ask as u8;
        let asked = match ask {
            Ask::Cancel => self.asked.fetch_and(!bit, Ordering::AcqRel),
            Ask::Drain | Ask::Leave => self.asked.load(Ordering::Acquire),
        };
        asked & bit != 0
    }

    /// Asks something of the session and wakes it.
    pub fn ask(&self, ask: Ask) {
        self.asked.fetch_or(ask as u8, Ordering::AcqRel);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// All sessions of the process.
#[derive(Debug, Default)]
pub struct Directory {
    sessions: DashMap<u32, Arc<Entry>>,
    next: AtomicU32,
    whos: DashMap<Arc<Who>, ()>,
}

/// A session's place in the directory. Dropped, it is gone from there.
#[derive(Debug)]
pub struct Listed {
    entry: Arc<Entry>,
    directory: Arc<Directory>,
}

impl Listed {
    /// The entry.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.directory.sessions.remove(&self.entry.id);
    }
}

impl Directory {
    /// Lists a session under a number that no other has.
    pub fn list(self: &Arc<Self>, peer: Peer, who: Who) -> Listed {
        let who = self.intern(who);
        loop {
            // Process ids are positive int4 to most drivers.
            let id = self.next.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff;
            let dashmap::Entry::Vacant(place) = self.sessions.entry(id) else {
                continue;
            };
            if id == 0 {
                continue;
            }
            let entry = Arc::new(Entry {
                id,
                secret: rand::random(),
                asked: AtomicU8::new(0),
                waker: OnceLock::new(),
                peer,
                who: Arc::clone(&who),
                since: Instant::now(),
            });
            place.insert(Arc::clone(&entry));
            return Listed {
                entry,
                directory: Arc::clone(self),
            };
        }
    }

    fn intern(&self, who: Who) -> Arc<Who> {
        let who = Arc::new(who);
        Arc::clone(self.whos.entry(who).or_default().key())
    }

    /// Forgets whose sessions have all left. Called about once a second.
    pub fn forget_unused(&self) {
        self.whos.retain(|who, ()| Arc::strong_count(who) > 1);
    }

    /// The session that a cancel request names, if its secret is right.
    pub fn by_key(&self, key: &CancelKey) -> Option<Arc<Entry>> {
        let entry = self.sessions.get(&key.pid)?;
        bool::from(entry.secret.ct_eq(&key.secret)).then(|| Arc::clone(&entry))
    }

    /// Asks the same of every session.
    pub fn ask_all(&self, ask: Ask) {
        self.sessions.iter().for_each(|entry| entry.ask(ask));
    }

    /// How many sessions there are of each kind.
    pub fn count(&self) -> HashMap<Arc<Who>, u64> {
        let mut counts = HashMap::new();
        for entry in &self.sessions {
            *counts.entry(Arc::clone(&entry.who)).or_default() += 1;
        }
        counts
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

/// Counts clients against one cap.
#[derive(Debug, Default)]
pub struct Quota(AtomicU32);

/// One client, counted. Dropped, it is counted no more.
#[derive(Debug)]
pub struct Seat(Arc<Quota>);

impl Quota {
    /// Takes a seat, unless `cap` (0 = none) are taken.
    pub fn enter(self: &Arc<Self>, cap: u32) -> Option<Seat> {
        let enter = |taken: u32| (cap == 0 || taken < cap).then(|| taken + 1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enter)
            .ok()?;
        Some(Seat(Arc::clone(self)))
    }

    /// How many seats are taken.
    pub fn taken(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who() -> Who {
        Who {
            user: "ann".into(),
            database: "site".into(),
            service: "site".into(),
        }
    }

    #[test]
    fn a_cancel_key_with_another_secret_names_nobody() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who());
        let (pid, secret) = listed.entry().key();
        let key = |secret: &[u8]| CancelKey {
            pid,
            secret: secret.into(),
        };
        assert_eq!(
            directory.by_key(&key(&secret)).map(|entry| entry.id()),
            Some(pid)
        );
        assert!(directory.by_key(&key(&secret.map(|byte| !byte))).is_none());
        assert!(directory.by_key(&key(&secret[..3])).is_none());
        drop(listed);
        assert!(directory.by_key(&key(&secret)).is_none());
        assert!(directory.is_empty());
    }

    #[test]
    fn a_cancel_is_for_one_moment_a_drain_for_good() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who());
        directory.ask_all(Ask::Drain);
        listed.entry().ask(Ask::Cancel);
        let entry = listed.entry();
        assert!(entry.is_asked());
        assert_eq!(
            [entry.asked(Ask::Cancel), entry.asked(Ask::Cancel)],
            [true, false]
        );
        assert_eq!(
            [entry.asked(Ask::Drain), entry.asked(Ask::Drain)],
            [true, true]
        );
        assert!(!entry.asked(Ask::Leave));
    }

    #[test]
    fn seats_are_given_up_to_the_cap_and_come_back() {
        let quota = Arc::new(Quota::default());
        let seats: Vec<_> = (0..3).map(|_| quota.enter(2)).collect();
        assert_eq!(seats.iter().filter(|seat| seat.is_some()).count(), 2);
        drop(seats);
        assert!(quota.enter(1).is_some());
    }
}
