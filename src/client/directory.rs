//! Who is connected: sessions by id, reachable from any thread, and counts of clients against their caps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::patience::{Activity, Doing, Due, Overdue, Patience};
use super::view::{ClientRow, ClientTally};
use crate::metrics::Counts;
use crate::net::line::Line;
use crate::net::listen::Peer;
use crate::policy::reaper::Sentence;
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
    /// See what is [`Entry::due`].
    Late = 8,
    /// See whether your client is still there: you do not read from it.
    Look = 16,
    /// Leave at the next transaction boundary: the server connection that you keep is to be replaced.
    Replace = 32,
    /// Leave now: there is no such database any more.
    Remove = 64,
}

/// Whose a session is. Shared by all sessions that agree in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Who {
    /// As the client named itself.
    pub user: String,
    /// As the client called it.
    pub database: String,
    /// The application that it belongs to.
    pub service: String,
    /// The rollout of it that it belongs to, if that is known.
    pub deployment: Option<Arc<str>>,
    /// It named its deployment at startup: that stays, whatever it calls itself later.
    pub named_deployment: bool,
    /// As the session calls itself now.
    pub application_name: String,
    /// The common name of its certificate.
    pub certificate: Option<String>,
}

/// One session, as others see it.
#[derive(Debug)]
pub struct Entry {
    /// Its number, which no other session has.
    id: u32,
    /// The process id that its client was told.
    pid: u32,
    /// As long as its client's protocol allows.
    secret: Box<[u8]>,
    asked: AtomicU8,
    waker: OnceLock<Waker>,
    /// A [`Doing`], which its own task writes.
    doing: AtomicU64,
    /// One more than the time since when it has a transaction, or 0; likewise.
    transaction: AtomicU64,
    /// What the janitor found to have lasted too long: one of the two words above, and a [`Due`].
    late: AtomicU64,
    /// It waits and has read as much of its client as it keeps, so that it would not notice the client's leaving.
    deaf: AtomicBool,
    /// When its last request came; likewise.
    requested: AtomicU64,
    /// Its prepared statements; likewise.
    statements: AtomicU32,
    /// What it did.
    pub counts: Counts,
    /// Where it came from.
    pub peer: Peer,
    /// How: few differ.
    pub line: Arc<Line>,
    /// Whose it is: few differ.
    who: Mutex<Arc<Who>>,
    /// When it was logged in.
    pub since: Instant,
}

impl Entry {
    /// The key with which its client may cancel.
    pub fn key(&self) -> (u32, &[u8]) {
        (self.pid, &self.secret)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whose it is now.
    pub fn who(&self) -> Arc<Who> {
        Arc::clone(&self.who.lock())
    }

    fn has_other_pid(&self) -> bool {
        self.secret[0] & OTHER_PID != 0
    }

    /// Says which task to wake. Once, from that task.
    pub fn attend(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// Whether anything was asked. Costs one relaxed load.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0
    }

    /// Whether this was asked; forgets a Cancel, a Late and a Look, which are for one moment only.
    pub fn asked(&self, ask: Ask) -> bool {
        let bit = ask as u8;
        let asked = match ask {
            Ask::Cancel | Ask::Late | Ask::Look => self.asked.fetch_and(!bit, Ordering::AcqRel),
            Ask::Drain | Ask::Leave | Ask::Replace | Ask::Remove => {
                self.asked.load(Ordering::Acquire)
            }
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

    /// Asks the session, whose own task calls this, what it was asked already and could not do yet.
    pub fn asks_later(&self, ask: Ask) {
        self.asked.fetch_or(ask as u8, Ordering::AcqRel);
    }

    /// What it does, since when by the directory's clock.
    pub fn doing(&self) -> Doing {
        Doing::from_word(self.doing.load(Ordering::Relaxed))
    }

    /// Since when it has a transaction, if it has one.
    pub fn transaction(&self) -> Option<u64> {
        self.transaction.load(Ordering::Relaxed).checked_sub(1)
    }

    /// What the janitor found to be due, if it still is: for the session itself, which may have done something else
    /// meanwhile.
    pub fn due(&self) -> Option<Due> {
        let late = self.late.load(Ordering::Acquire);
        let due = Due::from_number(late & 0b111)?;
        let word = match due {
            Due::End(Overdue::Transaction) => &self.transaction,
            _ => &self.doing,
        };
        (late >> 3 == word.load(Ordering::Relaxed)).then_some(due)
    }

    /// Asks the session to look. What it was seen to do tells it whether it does that still.
    fn is_due(&self, due: Due, doing: Doing, transaction: Option<u64>) {
        let word = match due {
            Due::End(Overdue::Transaction) => transaction.map_or(0, |since| since + 1),
            _ => doing.to_word(),
        };
        let late = word << 3 | due.to_number();
        self.late.store(late, Ordering::Release);
        self.ask(Ask::Late);
    }
}

/// Set in the first byte of the secrets of those who were told another process id than their number.
const OTHER_PID: u8 = 0x80;

/// All sessions of the process.
#[derive(Debug)]
pub struct Directory {
    /// Where the clock begins, by the wall's.
    began: (Instant, SystemTime),
    /// Milliseconds, moved on by the janitor: reading it costs no system call.
    clock: AtomicU64,
    sessions: DashMap<u32, Arc<Entry>>,
    /// Those whose clients were told another process id than their number, by that: several may have been told the same.
    by_pid: DashMap<u32, Vec<Arc<Entry>>>,
    /// The id of this process among its peers; 0 = it has none.
    peer_id: AtomicU16,
    /// Who waits for a cancel to be passed on, by the session's number.
    cancelers: DashMap<u32, Vec<oneshot::Sender<()>>>,
    /// Why sessions are to leave that were asked to, likewise.
    sentences: DashMap<u32, Arc<Sentence>>,
    /// When sessions became another service's or deployment's than that of their login, by the clock; likewise.
    moved: DashMap<u32, u64>,
    next: AtomicU32,
    whos: DashMap<Arc<Who>, ()>,
    lines: DashMap<Arc<Line>, ()>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            began: (Instant::now(), SystemTime::now()),
            clock: AtomicU64::default(),
            sessions: DashMap::default(),
            by_pid: DashMap::default(),
            peer_id: AtomicU16::default(),
            cancelers: DashMap::default(),
            sentences: DashMap::default(),
            moved: DashMap::default(),
            next: AtomicU32::default(),
            whos: DashMap::default(),
            lines: DashMap::default(),
        }
    }
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

    /// Who waits for a cancel to be passed on. Whoever asks takes them.
    pub fn cancelers(&self) -> Vec<oneshot::Sender<()>> {
        let cancelers = self.directory.cancelers.remove(&self.entry.id);
        cancelers.map_or_else(Vec::new, |(_, cancelers)| cancelers)
    }

    /// Why the session is to leave, if it was asked to. Whoever asks takes it.
    pub fn sentence(&self) -> Option<Arc<Sentence>> {
        let (_, sentence) = self.directory.sentences.remove(&self.entry.id)?;
        Some(sentence)
    }

    /// Notes what the session does from now on. Only the session's own task may call this.
    pub fn does(&self, activity: Activity) {
        let before = self.entry.doing().activity;
        if before == activity {
            return;
        }
        let now = self.directory.now();
        let had = matches!(before, Activity::Active | Activity::InTransaction);
        let has = matches!(activity, Activity::Active | Activity::InTransaction);
        if had != has {
            let since = if has { now + 1 } else { 0 };
            self.entry.transaction.store(since, Ordering::Relaxed);
        }
        if before == Activity::Idle {
            self.entry.requested.store(now, Ordering::Relaxed);
        }
        self.store(activity, now);
    }

    /// Notes that the session does the same anew. Likewise.
    pub fn does_again(&self) {
        self.store(self.entry.doing().activity, self.directory.now());
    }

    /// Notes how many prepared statements its client has. Likewise.
    pub fn has_prepared(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.entry.statements.store(count, Ordering::Relaxed);
    }

    /// Notes whose the session is from now on. Only the session's own task may call this.
    pub fn belongs_to(&self, who: Who) {
        let who = self.directory.intern(who);
        let before = std::mem::replace(&mut *self.entry.who.lock(), Arc::clone(&who));
        if (&before.service, &before.deployment) != (&who.service, &who.deployment) {
            let now = self.directory.now();
            self.directory.moved.insert(self.entry.id, now);
        }
    }

    /// Notes that a waiting session's client was told so. Likewise.
    pub fn was_told(&self) {
        self.store(Activity::WaitingTold, self.entry.doing().since);
    }

    /// Notes whether the session reads from its client. Likewise.
    pub fn is_deaf(&self, deaf: bool) {
        if self.entry.deaf.load(Ordering::Relaxed) != deaf {
            self.entry.deaf.store(deaf, Ordering::Relaxed);
        }
    }

    fn store(&self, activity: Activity, since: u64) {
        let word = Doing { activity, since }.to_word();
        self.entry.doing.store(word, Ordering::Relaxed);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Entry { id, pid, .. } = *self.entry;
        self.directory.sessions.remove(&id);
        self.directory.cancelers.remove(&id);
        self.directory.sentences.remove(&id);
        self.directory.moved.remove(&id);
        if self.entry.has_other_pid() {
            let by_pid = &self.directory.by_pid;
            if let Some(mut others) = by_pid.get_mut(&pid) {
                others.retain(|entry| entry.id != id);
            }
            by_pid.remove_if(&pid, |_, others| others.is_empty());
        }
    }
}

impl Directory {
    /// Lists a session under a number that no other has, which its client is told as process id, with a secret of so many bytes.
    pub fn list(self: &Arc<Self>, peer: Peer, who: Who, secret_length: usize) -> Listed {
        let id = self.number();
        self.list_as(id, peer, Line::default(), who, None, secret_length)
    }

    /// Says what id this process has among its peers, from now on; 0 = none.
    pub fn set_peer_id(&self, id: u16) {
        self.peer_id.store(id, Ordering::Relaxed);
    }

    /// The id of this process among its peers; 0 = it has none.
    pub fn peer_id(&self) -> u16 {
        self.peer_id.load(Ordering::Relaxed)
    }

    /// A number for a client that is not listed yet. Process ids are positive int4 to most drivers.
    pub fn number(&self) -> u32 {
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff;
            if id != 0 && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    /// Lists a session under its number, or another if that is taken by now. `server`: the process id of the server connection that
    /// it keeps for its life, which its client is told, unless this process has peers: then a process id has to say whose it is.
    pub fn list_as(
        self: &Arc<Self>,
        id: u32,
        peer: Peer,
        line: Line,
        who: Who,
        server: Option<u32>,
        secret_length: usize,
    ) -> Listed {
        let (who, line) = (self.intern(who), self.share(line));
        let mut own = Some(id);
        loop {
            let id = own.take().unwrap_or_else(|| self.number());
            let dashmap::Entry::Vacant(place) = self.sessions.entry(id) else {
                continue;
            };
            let mut key = self.new_key(id, server, secret_length);
            let mut others =
                (key.secret[0] & OTHER_PID != 0).then(|| self.by_pid.entry(key.pid).or_default());
            while others
                .iter()
                .any(|others| others.iter().any(|other| other.secret == key.secret))
            {
                key.secret = self.new_key(id, server, secret_length).secret;
            }
            let entry = Arc::new(Entry {
                id,
                pid: key.pid,
                secret: key.secret,
                asked: AtomicU8::new(0),
                waker: OnceLock::new(),
                doing: AtomicU64::new(
                    Doing {
                        activity: Activity::Idle,
                        since: self.now(),
                    }
                    .to_word(),
                ),
                transaction: AtomicU64::new(0),
                late: AtomicU64::new(0),
                deaf: AtomicBool::new(false),
                requested: AtomicU64::new(self.now()),
                statements: AtomicU32::new(0),
                counts: Counts::default(),
                peer,
                line: Arc::clone(&line),
                who: Mutex::new(Arc::clone(&who)),
                since: Instant::now(),
            });
            place.insert(Arc::clone(&entry));
            if let Some(others) = &mut others {
                others.push(Arc::clone(&entry));
            }
            return Listed {
                entry,
                directory: Arc::clone(self),
            };
        }
    }

    /// What a client may be told. The process id is random where it has to say whose it is.
    fn new_key(&self, id: u32, server: Option<u32>, secret_length: usize) -> CancelKey {
        let secret = |other_pid| new_secret(other_pid, secret_length);
        match (self.peer_id(), server) {
            (0, None) => CancelKey {
                pid: id,
                secret: secret(false),
            },
            (0, Some(pid)) => CancelKey {
                pid,
                secret: secret(true),
            },
            (peer, _) => CancelKey::among_peers(peer, rand::random(), secret(true)),
        }
    }

    fn intern(&self, who: Who) -> Arc<Who> {
        let who = Arc::new(who);
        Arc::clone(self.whos.entry(who).or_default().key())
    }

    fn share(&self, line: Line) -> Arc<Line> {
        Arc::clone(self.lines.entry(Arc::new(line)).or_default().key())
    }

    /// Forgets whose sessions have all left. Called about once a second.
    pub fn forget_unused(&self) {
        self.lines.retain(|line, ()| Arc::strong_count(line) > 1);
        self.whos.retain(|who, ()| Arc::strong_count(who) > 1);
    }

    /// Asks the session that a cancel request names to cancel what it does; `None` if the secret is wrong. The other end is dropped
    /// when that was passed on, or there was nothing to cancel.
    pub fn ask_to_cancel(&self, key: &CancelKey) -> Option<oneshot::Receiver<()>> {
        let entry = self.by_key(key)?;
        let (canceler, asked) = oneshot::channel();
        self.cancelers.entry(entry.id).or_default().push(canceler);
        entry.ask(Ask::Cancel);
        if !self.sessions.contains_key(&entry.id) {
            // It has ended meanwhile, and looks no more.
            self.cancelers.remove(&entry.id);
        }
        Some(asked)
    }

    /// The session that a cancel request names, if its secret is right.
    pub fn by_key(&self, key: &CancelKey) -> Option<Arc<Entry>> {
        let found = self.by_exact_key(key);
        if found.is_some() || self.peer_id() == 0 {
            return found;
        }
        // It may have come from a peer, which has counted down.
        self.by_exact_key(&key.as_given_out())
    }

    fn by_exact_key(&self, key: &CancelKey) -> Option<Arc<Entry>> {
        let is_right = |entry: &&Arc<Entry>| bool::from(entry.secret.ct_eq(&key.secret));
        if let Some(entry) = self.sessions.get(&key.pid)
            && is_right(&entry.value())
        {
            return Some(Arc::clone(&entry));
        }
        let others = self.by_pid.get(&key.pid)?;
        others.iter().find(is_right).map(Arc::clone)
    }

    /// The time by which sessions note since when they do what.
    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Moves the clock on to the time since some fixed moment. Called several times a second.
    pub fn set_clock(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 8);
        self.clock.store(time, Ordering::Relaxed);
    }

    /// Finds the sessions that have done the same for too long or may have lost their client, and has them do something about it. `least` is nobody's
    /// patience in particular: what it endures needs no look at whose a session is.
    pub fn hurry(&self, least: &Patience, of: impl Fn(&Who) -> Patience) {
        let now = self.now();
        let mut known = HashMap::new();
        for entry in &self.sessions {
            let (doing, transaction) = (entry.doing(), entry.transaction());
            if entry.deaf.load(Ordering::Relaxed) {
                entry.ask(Ask::Look);
            }
            if least.exceeded(doing, transaction, now).is_none() {
                continue;
            }
            // As long as it is here nobody else's is in the same place.
            let who = entry.who();
            let (_, patience) = known.entry(Arc::as_ptr(&who)).or_insert_with(|| {
                let patience = of(&who);
                (who, patience)
            });
            if let Some(due) = patience.exceeded(doing, transaction, now) {
                entry.is_due(due, doing, transaction);
            }
        }
    }

    /// Shows every session, in no order, with the time since when it is of its service and deployment, by the clock.
    pub fn for_each(&self, mut show: impl FnMut(&Arc<Entry>, u64)) {
        let (now, instant) = (self.now(), Instant::now());
        let login = |entry: &Entry| {
            let age = instant.saturating_duration_since(entry.since);
            now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
        };
        for entry in &self.sessions {
            let moved = self.moved.get(&entry.id).map(|moved| *moved);
            show(&entry, moved.unwrap_or_else(|| login(&entry)));
        }
    }

    /// Asks a session to leave, if it still does what it was seen to do.
    pub fn condemn(&self, entry: &Entry, doing: Doing, sentence: Sentence) {
        self.sentences.insert(entry.id, Arc::new(sentence));
        entry.is_due(Due::Reap, doing, None);
        if !self.sessions.contains_key(&entry.id) {
            // It has ended meanwhile, and looks no more.
            self.sentences.remove(&entry.id);
        }
    }

    /// Asks the same of every session.
    pub fn ask_all(&self, ask: Ask) {
        self.ask_those(ask, |_| true);
    }

    /// Asks the same of every session of those.
    pub fn ask_those(&self, ask: Ask, wanted: impl Fn(&Who) -> bool) {
        let wanted = self.sessions.iter().filter(|entry| wanted(&entry.who()));
        wanted.for_each(|entry| entry.ask(ask));
    }

    /// How many sessions there are of those.
    pub fn count_those(&self, wanted: impl Fn(&Who) -> bool) -> usize {
        let wanted = self.sessions.iter().filter(|entry| wanted(&entry.who()));
        wanted.count()
    }

    /// The session of this number.
    pub fn by_id(&self, id: u32) -> Option<Arc<Entry>> {
        self.sessions.get(&id).map(|entry| Arc::clone(&entry))
    }

    /// Every session as it is now, in no order. A session that begins or ends meanwhile waits for a part of them at most.
    pub fn rows(&self) -> Vec<ClientRow> {
        let mut rows = Vec::with_capacity(self.sessions.len());
        rows.extend(self.sessions.iter().map(|entry| self.row(&entry)));
        rows
    }

    /// One session as it is now.
    pub fn row_of(&self, id: u32) -> Option<ClientRow> {
        Some(self.row(&*self.sessions.get(&id)?))
    }

    fn row(&self, entry: &Entry) -> ClientRow {
        let (doing, now) = (entry.doing(), self.now());
        let (instant, wall) = self.began;
        let ago = |since: u64| Duration::from_millis(now.saturating_sub(since));
        let Counts {
            transactions,
            queries,
            received,
            sent,
        } = &entry.counts;
        ClientRow {
            id: entry.id,
            pid: entry.pid,
            who: entry.who(),
            activity: doing.activity,
            age: ago(doing.since),
            transaction_age: entry.transaction().map(ago),
            peer: entry.peer,
            line: Arc::clone(&entry.line),
            connected: wall + entry.since.saturating_duration_since(instant),
            requested: wall + Duration::from_millis(entry.requested.load(Ordering::Relaxed)),
            statements: entry.statements.load(Ordering::Relaxed),
            close_needed: entry.asked.load(Ordering::Relaxed)
                & (Ask::Drain as u8 | Ask::Leave as u8 | Ask::Remove as u8)
                != 0,
            transactions: transactions.read(),
            queries: queries.read(),
            received: received.read(),
            sent: sent.read(),
            server: None,
        }
    }

    /// How many sessions there are of each kind.
    pub fn count(&self) -> HashMap<Arc<Who>, u64> {
        let tally = self.tally().into_iter();
        tally.map(|(who, tally)| (who, tally.total())).collect()
    }

    /// How many sessions there are of each kind and activity.
    pub fn tally(&self) -> Vec<(Arc<Who>, ClientTally)> {
        // Sessions of one kind share one allocation: its address says which.
        let mut tallies = HashMap::new();
        for entry in &self.sessions {
            let who = entry.who.lock();
            let (_, tally) = tallies
                .entry(Arc::as_ptr(&who))
                .or_insert_with(|| (Arc::clone(&who), ClientTally::default()));
            tally.add(entry.doing().activity);
        }
        tallies.into_values().collect()
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

/// A new secret. Where a session's number is the process id that another was told, this bit tells their keys apart.
fn new_secret(other_pid: bool, length: usize) -> Box<[u8]> {
    let mut secret: Box<[u8]> = (0..length).map(|_| rand::random()).collect();
    secret[0] = secret[0] & !OTHER_PID | if other_pid { OTHER_PID } else { 0 };
    secret
}

/// Counts clients against one cap.
#[derive(Debug, Default)]
pub struct Quota(AtomicU32);

/// One client, counted. Dropped, it is counted no more.
#[derive(Debug)]
pub struct Seat(Arc<Quota>);

impl Seat {
    /// Whether it counts against this cap.
    pub fn is_of(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.0, quota)
    }
}

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
    use crate::policy::reaper::Reason;

    /// Lists a session that keeps the server connection with this process id.
    fn list_for(directory: &Arc<Directory>, server: Option<u32>, length: usize) -> Listed {
        let (id, peer) = (directory.number(), Peer::Unix(None));
        directory.list_as(id, peer, Line::default(), who(), server, length)
    }

    fn who() -> Who {
        Who {
            user: "ann".into(),
            database: "site".into(),
            service: "site".into(),
            ..Who::default()
        }
    }

    #[test]
    fn a_cancel_key_with_another_secret_names_nobody() {
        for length in [4, 32] {
            let directory = Arc::new(Directory::default());
            let listed = directory.list(Peer::Unix(None), who(), length);
            let (pid, secret) = listed.entry().key();
            assert_eq!(secret.len(), length);
            let named = |secret: &[u8]| {
                let key = CancelKey {
                    pid,
                    secret: secret.into(),
                };
                directory.by_key(&key).map(|entry| entry.id())
            };
            let other: Vec<_> = secret.iter().map(|byte| !byte).collect();
            let longer = [secret, &[0]].concat();
            for wrong in [
                &other[..],
                &secret[..3],
                &secret[..length - 1],
                &longer,
                &[],
            ] {
                assert_eq!(named(wrong), None, "{wrong:?}");
            }
            assert_eq!(named(secret), Some(pid));
            let secret = secret.to_vec();
            drop(listed);
            assert_eq!(
                directory
                    .by_key(&CancelKey {
                        pid,
                        secret: secret.into()
                    })
                    .map(|entry| entry.id()),
                None
            );
            assert!(directory.is_empty());
        }
    }

    #[test]
    fn who_cancels_waits_until_it_was_passed_on_or_the_session_has_ended() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who(), 4);
        let (pid, secret) = listed.entry().key();
        let key = CancelKey {
            pid,
            secret: secret.into(),
        };
        let ask = || directory.ask_to_cancel(&key).expect("its key is right");
        let waits = |asked: &mut oneshot::Receiver<()>| {
            asked.try_recv() == Err(oneshot::error::TryRecvError::Empty)
        };
        let (mut one, mut other) = (ask(), ask());
        assert!(waits(&mut one) && waits(&mut other));
        drop(listed.cancelers());
        assert!(!waits(&mut one) && !waits(&mut other));
        let mut last = ask();
        assert!(waits(&mut last));
        drop(listed);
        assert!(!waits(&mut last));
        assert!(directory.ask_to_cancel(&key).is_none() && directory.cancelers.is_empty());
    }

    #[test]
    fn sessions_that_were_told_the_same_process_id_are_told_apart() {
        let directory = Arc::new(Directory::default());
        let list = |server| list_for(&directory, server, 4);
        let own = list(None);
        let pid = own.entry().id();
        let sessions = [own, list(Some(pid)), list(Some(pid)), list(Some(pid + 1))];
        let find = |listed: &Listed| {
            let (pid, secret) = listed.entry().key();
            let secret = secret.into();
            directory.by_key(&CancelKey { pid, secret })
        };
        for listed in &sessions {
            let found = find(listed).expect("its key is right");
            assert_eq!(found.id(), listed.entry().id());
        }
        let [own, one, two, other] = sessions;
        assert_eq!(
            [&own, &one, &two, &other].map(|listed| listed.entry().key().0),
            [pid, pid, pid, pid + 1]
        );
        let (pid, secret) = one.entry().key();
        let secret = secret.into();
        drop(one);
        assert!(directory.by_key(&CancelKey { pid, secret }).is_none());
        assert!(find(&own).is_some() && find(&two).is_some() && find(&other).is_some());
        drop((own, two, other));
        assert!(directory.is_empty() && directory.by_pid.is_empty());
    }

    #[test]
    fn among_peers_a_key_says_whose_it_is_and_is_right_however_often_it_was_passed_on() {
        for length in [4, 32] {
            let directory = Arc::new(Directory::default());
            directory.set_peer_id(0x0102);
            let list = |server| list_for(&directory, server, length);
            let sessions = [list(None), list(Some(77)), list(Some(77))];
            for listed in &sessions {
                let (pid, secret) = listed.entry().key();
                assert_eq!((pid & 0x80ff_ff00, secret[3] & 3), (0x0002_0100, 3));
                let secret: Box<[u8]> = secret.into();
                let mut key = Some(CancelKey { pid, secret });
                for _ in 0..=3 {
                    let this = key.expect("it may be passed on three times");
                    let found = directory.by_key(&this).expect("its key is right");
                    assert_eq!(found.id(), listed.entry().id());
                    key = this.passed_on();
                }
                assert_eq!(key, None);
            }
            // Whoever was told a key before the id was another keeps it.
            let (pid, secret) = sessions[0].entry().key();
            let secret: Box<[u8]> = secret.into();
            let key = CancelKey { pid, secret };
            directory.set_peer_id(9);
            assert!(directory.by_key(&key).is_some());
            drop(sessions);
            assert!(directory.is_empty() && directory.by_pid.is_empty());
        }
    }

    #[test]
    fn a_cancel_is_for_one_moment_a_drain_for_good() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who(), 4);
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
    fn who_has_done_something_else_meanwhile_is_left_alone() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who(), 4);
        let entry = listed.entry();
        let second = Some(Duration::from_secs(1));
        let patience = Patience {
            client_idle: second,
            transaction: second,
            ..Patience::default()
        };
        let hurry_at = |seconds| {
            directory.set_clock(Duration::from_secs(seconds));
            directory.hurry(&patience, |_| patience);
            entry.asked(Ask::Late)
        };
        assert!(!hurry_at(1));
        assert!(hurry_at(2));
        assert_eq!(entry.due(), Some(Due::End(Overdue::ClientIdle)));
        listed.does(Activity::Active);
        assert_eq!(entry.due(), None);
        assert!(!hurry_at(3));
        listed.does(Activity::InTransaction);
        assert!(hurry_at(4));
        assert_eq!(entry.due(), Some(Due::End(Overdue::Transaction)));
        listed.does(Activity::Idle);
        assert_eq!((entry.due(), entry.transaction()), (None, None));
        assert!(!hurry_at(5));
    }

    #[test]
    fn a_sentence_holds_only_for_who_does_the_same_still() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who(), 4);
        let entry = listed.entry();
        let sentence = || Sentence {
            reason: Reason::Stale,
            service: "site".into(),
            deployment: None,
            by: None,
            since: None,
            rested: Duration::ZERO,
        };
        directory.set_clock(Duration::from_secs(1));
        let seen = entry.doing();
        directory.condemn(entry, seen, sentence());
        assert_eq!(entry.due(), Some(Due::Reap));
        listed.does(Activity::Active);
        assert_eq!(entry.due(), None);
        directory.set_clock(Duration::from_secs(2));
        listed.does(Activity::Idle);
        assert_eq!(entry.due(), None);
        directory.condemn(entry, entry.doing(), sentence());
        assert_eq!(entry.due(), Some(Due::Reap));
        assert!(listed.sentence().is_some() && listed.sentence().is_none());
        directory.condemn(entry, entry.doing(), sentence());
        drop(listed);
        assert!(directory.sentences.is_empty());
    }

    #[test]
    fn whose_a_session_is_may_change() {
        let directory = Arc::new(Directory::default());
        let listed = directory.list(Peer::Unix(None), who(), 4);
        directory.set_clock(Duration::from_secs(3));
        let bot = Who {
            service: "bot".into(),
            ..who()
        };
        listed.belongs_to(bot.clone());
        assert_eq!(*listed.entry().who(), bot);
        let mut since = None;
        directory.for_each(|_, joined| since = Some(joined));
        assert_eq!(since, Some(3000));
        directory.forget_unused();
        assert_eq!(directory.whos.len(), 1, "nobody is the old one's any more");
    }

    #[test]
    fn a_patience_is_looked_up_once_for_all_sessions_of_a_kind() {
        let directory = Arc::new(Directory::default());
        let listed: Vec<_> = (0..5)
            .map(|_| directory.list(Peer::Unix(None), who(), 4))
            .collect();
        let patience = Patience {
            client_idle: Some(Duration::from_secs(1)),
            ..Patience::default()
        };
        directory.set_clock(Duration::from_secs(9));
        let looks = std::cell::Cell::new(0);
        directory.hurry(&patience, |_| {
            looks.set(looks.get() + 1);
            patience
        });
        assert_eq!(looks.get(), 1);
        assert!(listed.iter().all(|listed| listed.entry().asked(Ask::Late)));
        directory.hurry(&Patience::default(), |_| unreachable!("nobody can be late"));
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
