//! The prepared statements of one client: its names, and what they stand for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::statement::{Note, Statement, UnnamedId};

/// Names that one client may have at a time. Drivers keep hundreds; who has more has lost count.
pub const MOST_NAMES: usize = 16 * 1024;

/// Bytes of text that the statements of one client may have in all.
pub const MOST_BYTES: usize = 64 * 1024 * 1024;

/// The longest unnamed statement that is remembered, in bytes. One that is longer works as long as its client keeps its server
/// connection.
pub const LONGEST_UNNAMED: usize = 1024 * 1024;

/// The statements of one client. Made when it prepares its first.
#[derive(Debug)]
pub struct Statements {
    /// Unlike that of any other client.
    id: u64,
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    /// Bytes of all names and texts.
    bytes: usize,
    /// The Parse message of the unnamed statement; empty = there is none, or it was too long.
    unnamed: Vec<u8>,
    /// The unnamed statement's text may change the state of the session that runs it.
    unnamed_has_effects: bool,
    /// Counts unnamed statements.
    serial: u32,
}

/// A client has more statements than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many prepared statements: at most {MOST_NAMES} of together {MOST_BYTES} bytes")]
pub struct TooMany;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Default for Statements {
    fn default() -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            named: HashMap::new(),
            bytes: 0,
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
        let bytes = self.bytes + name.len() + statement.body.len();
        if self.named.len() >= MOST_NAMES || bytes > MOST_BYTES {
            return Err(TooMany);
        }
        self.forget(name);
        self.bytes += name.len() + statement.body.len();
        self.named.insert(name.into(), Arc::clone(statement));
        Ok(())
    }

    /// Forgets a name, and says what it stood for.
    pub fn forget(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let statement = self.named.remove(name)?;
        self.bytes -= name.len() + statement.body.len();
        Some(statement)
    }

    /// Forgets all names.
    pub fn forget_all(&mut self) {
        self.named.clear();
        self.bytes = 0;
    }

    /// Takes back what a message was to do that came to nothing.
    pub fn undo(&mut self, note: &Note) {
        match note {
            Note::Named {
                name, statement, ..
            } => {
                if self
                    .named(name)
                    .is_some_and(|known| known.id == statement.id)
                {
                    self.forget(name);
                }
            }
            Note::Unnamed { name, statement } => {
                // There was room for it before.
                let _ = self.name(name, statement);
            }
            Note::Prepared(_) | Note::Evicted(_) => {}
        }
    }

    /// Remembers the Parse message of the unnamed statement, unless it is too long, and says which it is.
    pub fn remember_unnamed(&mut self, message: Option<&[u8]>, has_effects: bool) -> UnnamedId {
        let message = message.unwrap_or_default();
        if self.unnamed != message {
            self.unnamed.clear();
            self.unnamed.extend_from_slice(message);
        }
        self.unnamed_has_effects = has_effects;
        self.serial = self.serial.wrapping_add(1);
        (self.id, self.serial)
    }

    /// The client has no unnamed statement any more.
    pub fn forget_unnamed(&mut self) {
        if !self.unnamed.is_empty() {
            self.unnamed = Vec::new();
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

#[cfg(test)]
mod tests {
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

    #[test]
    fn their_number_is_bounded() {
        let mut statements = Statements::default();
        let one = statement(1);
        for n in 0..MOST_NAMES {
            statements.name(n.to_string().as_bytes(), &one).unwrap();
        }
        assert_eq!(statements.name(b"one more", &one), Err(TooMany));
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
        statements.undo(&failed);
        assert!(statements.named(b"a").is_none());
        statements.name(b"a", &statement(2)).unwrap();
        statements.undo(&failed);
        assert!(statements.named(b"a").is_some());
    }
}
