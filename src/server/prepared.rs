//! Which statements a server connection has, and the statements that all connections of a pool share.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::wire::exchange::{Exchange, Own};
use crate::wire::reply::Message;
use crate::wire::statement::{Note, Statement, UnnamedId};

/// The statements of one database by what they are, so that the same text is one statement, whoever prepares it.
#[derive(Debug, Default)]
pub struct Store {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<u64, Vec<Weak<Statement>>>,
    /// Entries beyond which those that nobody has any more are looked for.
    tidy_at: usize,
}

/// The first size at which [`Store`] looks for what nobody has any more.
const TIDY_FIRST: usize = 1024;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Store {
    /// The statement of this body (see [`Statement`]), prepared under this `search_path`.
    pub fn statement(&self, body: &[u8], search_path: &str) -> Arc<Statement> {
        let hash = self.hasher.hash_one((body, search_path));
        let mut known = self.known.lock();
        known.tidy();
        let alike = known.by_hash.entry(hash).or_default();
        let same =
            |known: &Arc<Statement>| *known.body == *body && *known.search_path == *search_path;
        if let Some(statement) = alike.iter().filter_map(Weak::upgrade).find(same) {
            return statement;
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let statement = Arc::new(Statement::new(id, body, search_path));
        alike.push(Arc::downgrade(&statement));
        statement
    }

    /// Tables, types or functions were changed. Whoever prepares a text from now on is to hear what it takes and gives now, so that is
    /// another statement than before; who has an older one keeps it, as with Postgres.
    pub fn begin_anew(&self) {
        let before = std::mem::take(&mut *self.known.lock());
        drop(before);
    }
}

/// A statement that is nobody else's.
pub fn private(body: &[u8]) -> Arc<Statement> {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    Arc::new(Statement::new(id, body, ""))
}

impl Known {
    fn tidy(&mut self) {
        if self.by_hash.len() < self.tidy_at.max(TIDY_FIRST) {
            return;
        }
        self.by_hash.retain(|_, alike| {
            alike.retain(|statement| statement.strong_count() > 0);
            !alike.is_empty()
        });
        self.tidy_at = 2 * self.by_hash.len();
    }
}

/// Spreads the numbers of statements over a table. Nobody outside chooses them, so they need no more than that.
#[derive(Debug, Clone, Copy, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio. The product's upper bits are the better ones, and tables look at the lower ones first.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The statements that one server connection has.
#[derive(Debug, Default)]
pub struct Prepared {
    named: HashMap<u64, Held, BuildHasherDefault<Spread>>,
    /// Grows with each use.
    clock: u64,
    /// Whose unnamed statement it has, if that is known, and the batch in which it was sent.
    unnamed: Option<(UnnamedId, u64)>,
    /// The batch that is being sent: how many Syncs were sent.
    batch: u64,
    /// The batches before this one are answered.
    answered: u64,
    /// `DISCARD ALL` and the like on their way to it.
    discards: u32,
}

#[derive(Debug)]
struct Held {
    statement: Arc<Statement>,
    /// See [`Statement::edition`]; `None`: it may be gone.
    edition: Option<u32>,
    used: u64,
    /// The batch for which pgweir sent it, of whose fate the client knows nothing.
    brought: Option<u64>,
}

/// Whether what was sent in this batch is there for whoever is sent next: with it, or after it and nothing took it back.
fn is_certain(batch: u64, current: u64, answered: u64) -> bool {
    batch == current || batch < answered
}

impl Prepared {
    /// Has `statement` prepared in front of what is sent next, unless it is there. At most `most` are kept; what was not used for
    /// longest goes.
    pub fn ensure<'a>(
        &mut self,
        statement: &Arc<Statement>,
        most: usize,
        exchange: &mut Exchange,
        out: impl FnOnce() -> &'a mut Vec<u8>,
    ) {
        if self.use_again(statement) {
            return;
        }
        let out = out();
        self.make_room(statement, most, exchange, out);
        statement.parse_into(out);
        exchange.pgweir_notes(Note::Prepared(Arc::clone(statement)));
        self.put(statement, Some(self.batch));
    }

    /// Whether `statement` is there, and as it should be. If so it counts as used now.
    pub fn use_again(&mut self, statement: &Statement) -> bool {
        self.clock += 1;
        let (current, answered) = (self.batch, self.answered);
        let Some(held) = self.named.get_mut(&statement.id) else {
            return false;
        };
        let is_certain = |batch| is_certain(batch, current, answered);
        let fit = held.edition == Some(statement.edition()) && held.brought.is_none_or(is_certain);
        if fit {
            held.used = self.clock;
        }
        fit
    }

    /// Sends what must be closed before `statement` can be prepared.
    pub fn make_room(
        &mut self,
        statement: &Arc<Statement>,
        most: usize,
        exchange: &mut Exchange,
        out: &mut Vec<u8>,
    ) {
        let mut close = |statement: Arc<Statement>| {
            statement.close_into(out);
            exchange.pgweir_notes(Note::Evicted(statement));
        };
        // An outdated one of the same name, or one that is perhaps there, because what closed it may be skipped with a batch that is
        // not answered yet: closing what is not there is no error.
        let same = self.named.remove(&statement.id).is_some();
        if same || self.answered < self.batch {
            close(Arc::clone(statement));
        }
        while self.named.len() >= most.max(1)
            && let Some(oldest) = self.oldest()
        {
            close(oldest.statement);
        }
    }

    /// Closes all that are kept, because memory is short: those that no client has cost nothing but memory.
    pub fn evict_all(&mut self, exchange: &mut Exchange, out: &mut Vec<u8>) {
        for (_, Held { statement, .. }) in self.named.drain() {
            statement.close_into(out);
            exchange.pgweir_notes(Note::Evicted(statement));
        }
    }

    /// A Sync was sent.
    pub fn batch_ends(&mut self) {
        self.batch += 1;
    }

    fn oldest(&mut self) -> Option<Held> {
        let (id, _) = self.named.iter().min_by_key(|(_, held)| held.used)?;
        let id = *id;
        self.named.remove(&id)
    }

    /// Notes that `statement` was sent to be prepared.
    pub fn hold(&mut self, statement: &Arc<Statement>) {
        self.put(statement, None);
    }

    fn put(&mut self, statement: &Arc<Statement>, brought: Option<u64>) {
        self.clock += 1;
        let held = Held {
            statement: Arc::clone(statement),
            edition: Some(statement.edition()),
            used: self.clock,
            brought,
        };
        self.named.insert(statement.id, held);
    }

    /// Takes back what a message was to do that came to nothing.
    pub fn undo(&mut self, note: &Note) {
        match note {
            Note::Named {
                statement,
                sent: true,
                ..
            }
            | Note::Prepared(statement) => {
                // What was sent since may have prepared it after all.
                if let Some(held) = self.named.get_mut(&statement.id) {
                    (held.edition, held.used) = (None, 0);
                }
            }
            // It is still there. Its edition may be out of date, which its next use finds out by closing it.
            Note::Evicted(statement) => {
                let held = Held {
                    statement: Arc::clone(statement),
                    edition: None,
                    used: 0,
                    brought: None,
                };
                self.named.insert(statement.id, held);
            }
            Note::Named { sent: false, .. } | Note::Unnamed { .. } | Note::Dropped(_) => {}
        }
    }

    /// A table was changed under one of the statements: all are prepared anew, here and elsewhere.
    pub fn outdate_all(&self) {
        self.named
            .values()
            .for_each(|held| held.statement.outdate());
    }

    /// What drops all statements was sent: they may be gone.
    pub fn discard_sent(&mut self) {
        self.discards += 1;
        self.doubt_all();
    }

    /// Any of the statements may be gone.
    pub fn doubt_all(&mut self) {
        self.unnamed = None;
        self.named.values_mut().for_each(|held| held.edition = None);
    }

    /// The server says that it has dropped all statements. `true`: nobody knew that this would come.
    pub fn discarded(&mut self) -> bool {
        self.unnamed = None;
        let known = self.discards > 0;
        self.discards = self.discards.saturating_sub(1);
        self.named.retain(|_, held| known && held.edition.is_some());
        !known
    }

    /// Nothing is on its way any more.
    pub fn settled(&mut self) {
        self.discards = 0;
        self.answered = self.batch;
    }

    /// Whose unnamed statement the server has, for what is sent next.
    pub fn unnamed(&self) -> Option<UnnamedId> {
        let (id, batch) = self.unnamed?;
        is_certain(batch, self.batch, self.answered).then_some(id)
    }

    /// Says whose unnamed statement the server has; `None` = nobody's, or nobody knows.
    pub fn set_unnamed(&mut self, unnamed: Option<UnnamedId>) {
        self.unnamed = unnamed.map(|id| (id, self.batch));
    }

    /// How many it has.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// Appends a Close and a Parse that leave an empty statement of this name, to be deallocated. They are accepted in a failed
/// transaction too.
pub fn prepare_gone(name: &str, exchange: &mut Exchange, out: &mut Vec<u8>) {
    out.extend(Message::new(b'C').u8(b'S').text(name).done());
    exchange.pgweir_sent(Own::Part);
    out.extend(Message::new(b'P').text(name).text("").u16(0).done());
    exchange.pgweir_parses();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ensure(prepared: &mut Prepared, statement: &Arc<Statement>) -> Vec<u8> {
        let (mut exchange, mut out) = (Exchange::default(), vec![]);
        prepared.ensure(statement, 2, &mut exchange, || &mut out);
        out
    }

    fn tags(mut bytes: &[u8]) -> String {
        let mut tags = String::new();
        while let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk() {
            tags.push(tag as char);
            bytes = &bytes[1 + u32::from_be_bytes([a, b, c, d]) as usize..];
        }
        tags
    }

    #[test]
    fn the_same_text_is_one_statement_as_long_as_somebody_has_it() {
        let store = Store::default();
        let one = store.statement(b"select 1\0\0\0", "");
        assert_eq!(store.statement(b"select 1\0\0\0", "").id, one.id);
        assert_ne!(store.statement(b"select 1\0\0\0", "a").id, one.id);
        assert_ne!(store.statement(b"select 2\0\0\0", "").id, one.id);
        let id = one.id;
        drop(one);
        assert_ne!(store.statement(b"select 1\0\0\0", "").id, id);
    }

    #[test]
    fn the_same_text_is_another_statement_once_tables_were_changed() {
        let store = Store::default();
        let before = store.statement(b"select 1\0\0\0", "");
        store.begin_anew();
        let after = store.statement(b"select 1\0\0\0", "");
        assert_ne!(before.id, after.id);
        assert_eq!(store.statement(b"select 1\0\0\0", "").id, after.id);
    }

    #[test]
    fn the_store_forgets_what_nobody_has() {
        let store = Store::default();
        for n in 0..5 * TIDY_FIRST {
            store.statement(n.to_string().as_bytes(), "");
        }
        assert!(store.known.lock().by_hash.len() <= TIDY_FIRST);
    }

    #[test]
    fn a_statement_is_prepared_once_and_the_oldest_goes_for_a_third() {
        let (store, mut prepared) = (Store::default(), Prepared::default());
        let [a, b, c] = ["a", "b", "c"].map(|text| store.statement(text.as_bytes(), ""));
        assert_eq!(tags(&ensure(&mut prepared, &a)), "P");
        assert_eq!(tags(&ensure(&mut prepared, &b)), "P");
        assert_eq!(tags(&ensure(&mut prepared, &a)), "");
        assert_eq!(tags(&ensure(&mut prepared, &c)), "CP");
        assert!(prepared.use_again(&a) && !prepared.use_again(&b) && prepared.use_again(&c));
    }

    #[test]
    fn an_outdated_statement_is_closed_and_prepared_anew() {
        let (store, mut prepared) = (Store::default(), Prepared::default());
        let a = store.statement(b"a", "");
        ensure(&mut prepared, &a);
        prepared.outdate_all();
        assert_eq!(tags(&ensure(&mut prepared, &a)), "CP");
        assert_eq!(tags(&ensure(&mut prepared, &a)), "");
    }

    #[test]
    fn what_was_skipped_is_taken_back() {
        let (store, mut prepared) = (Store::default(), Prepared::default());
        let [a, b, c] = ["a", "b", "c"].map(|text| store.statement(text.as_bytes(), ""));
        ensure(&mut prepared, &a);
        ensure(&mut prepared, &b);
        ensure(&mut prepared, &c);
        // In the order in which they were sent: Close a, Parse c.
        for note in [
            Note::Prepared(Arc::clone(&c)),
            Note::Evicted(Arc::clone(&a)),
        ] {
            prepared.undo(&note);
        }
        assert!(!prepared.use_again(&c) && prepared.use_again(&b));
        assert_eq!(tags(&ensure(&mut prepared, &a)), "CCP", "both may be there");
        assert_eq!(prepared.len(), 2);
    }

    #[test]
    fn what_was_sent_in_a_batch_that_is_not_answered_is_not_taken_to_be_there() {
        let (store, mut prepared) = (Store::default(), Prepared::default());
        let [a, b] = ["a", "b"].map(|text| store.statement(text.as_bytes(), ""));
        prepared.set_unnamed(Some((1, 1)));
        ensure(&mut prepared, &a);
        assert_eq!(prepared.unnamed(), Some((1, 1)), "or neither is reached");
        prepared.batch_ends();
        assert_eq!(prepared.unnamed(), None, "it may have been skipped");
        assert_eq!(tags(&ensure(&mut prepared, &a)), "CP");
        assert_eq!(tags(&ensure(&mut prepared, &b)), "CP");
        prepared.batch_ends();
        prepared.settled();
        assert_eq!(prepared.unnamed(), Some((1, 1)));
        assert_eq!(tags(&ensure(&mut prepared, &a)), "");
    }

    #[test]
    fn what_may_be_discarded_is_prepared_again_in_either_case() {
        let (store, mut prepared) = (Store::default(), Prepared::default());
        let [a, b] = ["a", "b"].map(|text| store.statement(text.as_bytes(), ""));
        ensure(&mut prepared, &a);
        ensure(&mut prepared, &b);
        prepared.discard_sent();
        assert_eq!(tags(&ensure(&mut prepared, &a)), "CP");
        assert!(!prepared.discarded(), "it was known to come");
        assert_eq!(prepared.len(), 1, "what was prepared behind it stays");
        assert!(prepared.discarded(), "this one was not");
        assert!(prepared.is_empty());
    }
}
