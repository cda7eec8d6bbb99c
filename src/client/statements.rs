//! The prepared statements of one client: its names, and what they stand for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::wire::reply::{Report, SqlState};
use crate::wire::scan::bytes_of_cut_messages;
use crate::wire::statement::{
    Dropped, Names, Note, Statement, UnnamedId, bytes_of_all, out_of_memory,
};

/// Names that one client may have at a time. Drivers keep hundreds; who has more has lost count.
pub const MOST_NAMES: usize = 16 * 1024;

/// Bytes of text that the statements of one client may have in all.
pub const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Beyond that, who has no more than this goes on as if nothing were: it is not their doing.
pub const MODEST: usize = 64 * 1024;

/// What a name costs beside its letters: about what the table takes for it.
const BYTES_OF_NAME: usize = 64;

/// The longest unnamed statement that is remembered, in bytes. One that is longer works as long as its client keeps its server
/// connection.
pub const LONGEST_UNNAMED: usize = 1024 * 1024;

/// Bytes of the names and unnamed statements of all clients.
static BYTES_OF_CLIENTS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that all clients together may make pgweir keep: texts of statements, of which many have the same, their names, and messages
/// that have not come to their end.
static MOST_BYTES_OF_ALL: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Says how many bytes all clients together may make pgweir keep; 0 = as many as they like.
pub fn bound_memory(bytes: u64) {
    let bytes = Some(bytes).filter(|bytes| *bytes > 0);
    let bytes = bytes.map_or(usize::MAX, |bytes| {
        usize::try_from(bytes).unwrap_or(usize::MAX)
    });
    MOST_BYTES_OF_ALL.store(bytes, Ordering::Relaxed);
}

/// Whether all clients together have made pgweir keep more than they may: who wants more than is [`MODEST`] is refused it.
pub fn is_memory_short() -> bool {
    let bytes = BYTES_OF_CLIENTS.load(Ordering::Relaxed);
    bytes + bytes_of_all() + bytes_of_cut_messages() > MOST_BYTES_OF_ALL.load(Ordering::Relaxed)
}

/// The statements of one client. Made when it prepares its first.
#[derive(Debug)]
pub struct Statements {
    /// Unlike that of any other client.
    id: u64,
    named: Names,
    /// Bytes of all names and texts.
    bytes: usize,
    /// Bytes of those that are dropped as soon as Postgres has said so.
    leaving: usize,
    /// What is counted of it in [`BYTES_OF_CLIENTS`].
    counted: usize,
    /// The portal that was bound last to a text that drops names, and what it drops.
    drops: Option<Box<Drops>>,
    /// The Parse message of the unnamed statement; empty = there is none, or it was too long.
    unnamed: Vec<u8>,
    /// The unnamed statement's text may change the state of the session that runs it.
    unnamed_has_effects: bool,
    /// Counts unnamed statements.
    serial: u32,
}

/// A portal whose execution drops names.
#[derive(Debug)]
pub struct Drops {
    /// The portal's name.
    pub portal: Box<[u8]>,
    /// The names that are dropped one by one.
    pub each: Vec<Box<[u8]>>,
    /// All are.
    pub all: bool,
}

/// A client has more statements than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// By itself.
    #[error("too many prepared statements: at most {MOST_NAMES} of together {MOST_BYTES} bytes")]
    OfClient,
    /// As things are, because all together have too much.
    #[error("out of memory")]
    OfAll,
}

impl TooMany {
    /// What the client is told.
    pub fn report(self) -> Report {
        match self {
            Self::OfClient => Report::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, self.to_string()),
            Self::OfAll => out_of_memory(),
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Default for Statements {
    fn default() -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            named: Names::new(),
            bytes: 0,
            leaving: 0,
            counted: 0,
            drops: None,
            unnamed: Vec::new(),
            unnamed_has_effects: false,
            serial: 0,
        }
    }
}

impl Statements {
    /// How many have names.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// What `name` stands for.
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// The client's name for the statement `id`.
    pub fn name_of(&self, id: u64) -> Option<&[u8]> {
        let (name, _) = self
            .named
            .iter()
            .find(|(_, statement)| statement.id == id)?;
        Some(name)
    }

    /// Gives a name to a statement.
    pub fn name(&mut self, name: &[u8], statement: &Arc<Statement>) -> Result<(), TooMany> {
        let bytes = self.bytes + self.leaving + name.len() + statement.body.len();
        if self.named.len() >= MOST_NAMES || bytes > MOST_BYTES {
            return Err(TooMany::OfClient);
        }
        if bytes > MODEST && is_memory_short() {
            return Err(TooMany::OfAll);
        }
        self.put(name.into(), Arc::clone(statement));
        self.count();
        Ok(())
    }

    fn put(&mut self, name: Box<[u8]>, statement: Arc<Statement>) {
        self.forget(&name);
        self.bytes += name.len() + statement.body.len();
        self.named.insert(name, statement);
    }

    /// Forgets a name, and says what it stood for.
    pub fn forget(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let statement = self.named.remove(name)?;
        self.bytes -= name.len() + statement.body.len();
        Some(statement)
    }

    /// Forgets all names, and says what they stood for.
    pub fn forget_all(&mut self) -> Names {
        self.leaving += std::mem::take(&mut self.bytes);
        std::mem::take(&mut self.named)
    }

    /// Everything is answered: what was to be dropped is.
    pub fn settled(&mut self) {
        self.leaving = 0;
        self.count();
    }

    /// Counts what it has among what all clients have.
    fn count(&mut self) {
        let bytes = self.named.capacity() * BYTES_OF_NAME + self.unnamed.capacity();
        if bytes != self.counted {
            BYTES_OF_CLIENTS.fetch_add(bytes, Ordering::Relaxed);
            BYTES_OF_CLIENTS.fetch_sub(self.counted, Ordering::Relaxed);
            self.counted = bytes;
        }
    }

    /// What the execution of this portal drops, if it is known to drop anything. Whoever asks takes it.
    pub fn drops(&mut self, portal: &[u8]) -> Option<Box<Drops>> {
        self.drops.take_if(|drops| *drops.portal == *portal)
    }

    /// Whether the execution of some portal drops anything.
    pub fn has_drops(&self) -> bool {
        self.drops.is_some()
    }

    /// Notes what the execution of a portal will drop.
    pub fn will_drop(&mut self, drops: Drops) {
        self.drops = Some(Box::new(drops));
    }

    /// Takes back what a message was to do that came to nothing.
    pub fn undo(&mut self, note: Note) {
        match note {
            Note::Named {
                name, statement, ..
            } => {
                if self
                    .named(&name)
                    .is_some_and(|known| known.id == statement.id)
                {
                    self.forget(&name);
                }
            }
            // There was room for them before.
            Note::Unnamed { name, statement } => self.put(name, statement),
            Note::Dropped(Dropped { each, all }) => {
                for (name, statement) in each.into_iter().flatten().chain(all) {
                    if self.named(&name).is_none() {
                        self.put(name, statement);
                    }
                }
            }
            Note::Prepared(_) | Note::Evicted(_) => {}
        }
    }

    /// Remembers the Parse message of the unnamed statement, unless it is too long, and says which it is. While memory is short it is
    /// too long sooner.
    pub fn remember_unnamed(&mut self, message: Option<&[u8]>, has_effects: bool) -> UnnamedId {
        let message = message.filter(|message| message.len() <= MODEST || !is_memory_short());
        let message = message.unwrap_or_default();
        if self.unnamed != message {
            self.unnamed.clear();
            self.unnamed.extend_from_slice(message);
            self.count();
        }
        self.unnamed_has_effects = has_effects;
        self.serial = self.serial.wrapping_add(1);
        (self.id, self.serial)
    }

    /// The client has no unnamed statement any more.
    pub fn forget_unnamed(&mut self) {
        if !self.unnamed.is_empty() {
            self.unnamed = Vec::new();
            self.count();
        }
        self.unnamed_has_effects = false;
        self.serial = self.serial.wrapping_add(1);
    }

    /// The Parse of this unnamed statement came to nothing.
    pub fn unnamed_failed(&mut self, serial: u32) {
        if self.serial == serial {
            self.forget_unnamed();
        }
    }

    /// Which the unnamed statement is, and its Parse message: empty = a server that does not have it cannot be given it.
    pub fn unnamed(&self) -> (UnnamedId, &[u8]) {
        ((self.id, self.serial), &self.unnamed)
    }

    /// Whether running the unnamed statement may change the state of the session.
    pub fn unnamed_has_effects(&self) -> bool {
        self.unnamed_has_effects
    }
}

impl Drop for Statements {
    fn drop(&mut self) {
        BYTES_OF_CLIENTS.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn statement(id: u64) -> Arc<Statement> {
        Arc::new(Statement::new(id, b"select 1\0\0\0", ""))
    }

    #[test]
    fn names_stand_for_what_they_were_given_last() {
        let mut statements = Statements::default();
        statements.name(b"a", &statement(1)).unwrap();
        statements.name(b"a", &statement(2)).unwrap();
        assert_eq!(statements.named(b"a").unwrap().id, 2);
        assert_eq!(statements.name_of(2), Some(&b"a"[..]));
        assert_eq!(statements.name_of(1), None);
        assert_eq!(statements.bytes, 12);
        statements.forget_all();
        assert_eq!(statements.bytes, 0);
    }

    /// Held by tests that set the bound of the whole process, and by those that need more than it gives while it is short.
    static MEMORY: Mutex<()> = Mutex::new(());

    #[test]
    fn their_number_is_bounded() {
        let _memory = MEMORY.lock();
        let mut statements = Statements::default();
        let one = statement(1);
        for n in 0..MOST_NAMES {
            statements.name(n.to_string().as_bytes(), &one).unwrap();
        }
        assert_eq!(statements.name(b"one more", &one), Err(TooMany::OfClient));
    }

    #[test]
    fn what_all_clients_have_is_counted_and_given_back() {
        let _memory = MEMORY.lock();
        let counted = || BYTES_OF_CLIENTS.load(Ordering::Relaxed);
        let (mut one, text) = (Statements::default(), vec![b'P'; 4 * MODEST]);
        one.remember_unnamed(Some(&text), false);
        assert!(one.counted >= text.len() && counted() >= one.counted);
        one.name(b"a", &statement(1)).unwrap();
        assert!(one.counted > text.len());
        one.forget_unnamed();
        assert!(one.counted < text.len());
    }

    #[test]
    fn while_memory_is_short_the_modest_go_on() {
        let _memory = MEMORY.lock();
        bound_memory(1);
        let (mut modest, mut greedy) = (Statements::default(), Statements::default());
        let long = Arc::new(Statement::new(2, &vec![b'x'; 2 * MODEST], ""));
        let names: Vec<_> = (0..100)
            .map(|n: u8| modest.name(&[n], &statement(1)))
            .collect();
        let refused = greedy.name(b"a", &long);
        greedy.remember_unnamed(Some(&vec![b'P'; 2 * MODEST]), false);
        modest.remember_unnamed(Some(b"short"), false);
        bound_memory(0);
        assert!(names.iter().all(Result::is_ok));
        assert_eq!(refused, Err(TooMany::OfAll));
        assert_eq!(greedy.unnamed().1, b"", "works while its server is held");
        assert_eq!(modest.unnamed().1, b"short");
        assert!(greedy.name(b"a", &long).is_ok());
    }

    #[test]
    fn what_was_dropped_in_vain_is_back_unless_the_name_was_given_again() {
        let mut statements = Statements::default();
        for name in [b"a", b"b"] {
            statements.name(name, &statement(1)).unwrap();
        }
        let all = statements.forget_all();
        assert!(statements.named(b"a").is_none());
        assert_eq!(statements.leaving, 24, "as long as that is not certain");
        statements.name(b"b", &statement(2)).unwrap();
        statements.undo(Note::Dropped(Dropped {
            all,
            ..Dropped::default()
        }));
        statements.settled();
        assert_eq!(statements.named(b"a").unwrap().id, 1);
        assert_eq!(statements.named(b"b").unwrap().id, 2);
        assert_eq!((statements.bytes, statements.leaving), (24, 0));
    }

    #[test]
    fn a_parse_that_failed_names_nothing_unless_the_name_was_given_again() {
        let mut statements = Statements::default();
        let failed = Note::Named {
            name: (*b"a").into(),
            statement: statement(1),
            sent: true,
        };
        statements.name(b"a", &statement(1)).unwrap();
        statements.undo(failed.clone());
        assert!(statements.named(b"a").is_none());
        statements.name(b"a", &statement(2)).unwrap();
        statements.undo(failed.clone());
        assert!(statements.named(b"a").is_some());
    }
}
