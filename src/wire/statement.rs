//! Prepared statements: the messages that name them, read and rewritten (manual, "Extended Query", "Message Formats").
//!
//! A client's statement has one name with the client and another on every server that has it. Here are the values; who knows
//! which name lives with the client's end, who has which statement with the server's.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::reply::{Report, SqlState};
use super::sql::may_have_effects;

/// Begins every name that pgweir gives to a statement on a server.
pub const PREFIX: &[u8] = b"pgweir_";

/// The name of what no client has. Under names that begin so, statements are prepared only to be deallocated.
pub const GONE: &str = "pgweir_gone";

/// Names one client's unnamed statement among all that ever were.
pub type UnnamedId = (u64, u32);

/// Bytes of all statements that there are.
static BYTES_OF_ALL: AtomicUsize = AtomicUsize::new(0);

/// How many bytes all statements that there are take, each counted once however many clients have it.
pub fn bytes_of_all() -> usize {
    BYTES_OF_ALL.load(Ordering::Relaxed)
}

/// What a client is told when all together have so many that it gets no more.
pub fn out_of_memory() -> Report {
    Report::new(SqlState::OUT_OF_MEMORY, "out of memory")
        .detail("The prepared statements of all clients together take as much memory as they may.")
        .hint("Close what is not needed, or raise limits.max_statement_memory.")
}

/// What clients call their statements.
pub type Names = HashMap<Box<[u8]>, Arc<Statement>>;

/// A statement that was prepared under a name, by any number of clients.
#[derive(Debug)]
pub struct Statement {
    /// Unlike that of any other statement of the process.
    pub id: u64,
    /// What follows the name in Parse: the text and the parameter types.
    pub body: Box<[u8]>,
    /// `search_path` of those who prepared it, as far as it is known.
    pub search_path: Box<str>,
    /// Its text may change the state of the session that runs it.
    pub has_effects: bool,
    /// How often what servers have of it was declared out of date.
    edition: AtomicU32,
}

impl Statement {
    /// A statement as a Parse gave it.
    pub fn new(id: u64, body: &[u8], search_path: &str) -> Self {
        BYTES_OF_ALL.fetch_add(body.len() + search_path.len(), Ordering::Relaxed);
        Self {
            id,
            body: body.into(),
            search_path: search_path.into(),
            has_effects: may_have_effects(body),
            edition: AtomicU32::new(0),
        }
    }

    /// Says that what servers have of it no longer fits the tables it reads: it is to be prepared anew everywhere.
    pub fn outdate(&self) {
        self.edition.fetch_add(1, Ordering::AcqRel);
    }

    /// What a server that prepares it now has is of this edition.
    pub fn edition(&self) -> u32 {
        self.edition.load(Ordering::Acquire)
    }

    /// Its name on servers.
    pub fn name(&self) -> ServerName {
        ServerName::of(self.id)
    }

    /// Appends its Parse under pgweir's name.
    pub fn parse_into(&self, out: &mut Vec<u8>) {
        begin(out, b'P');
        let from = out.len();
        out.extend_from_slice(&self.name());
        out.push(0);
        out.extend_from_slice(&self.body);
        finish(out, from);
    }

    /// Appends its Close.
    pub fn close_into(&self, out: &mut Vec<u8>) {
        begin(out, b'C');
        let from = out.len();
        out.push(b'S');
        out.extend_from_slice(&self.name());
        out.push(0);
        finish(out, from);
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        let bytes = self.body.len() + self.search_path.len();
        BYTES_OF_ALL.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The name of a statement on servers, without its zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerName {
    bytes: [u8; LONGEST_NAME],
    len: usize,
}

/// [`PREFIX`] and 16 hexadecimal digits.
const LONGEST_NAME: usize = PREFIX.len() + 16;

impl ServerName {
    /// The name that no statement has.
    pub fn gone() -> Self {
        Self::new(GONE.bytes())
    }

    fn of(id: u64) -> Self {
        let digits = 16 - (id.leading_zeros() / 4).min(15);
        let digit = |at: u32| {
            let digit = u32::try_from((id >> (4 * at)) & 15).expect("four bits");
            char::from_digit(digit, 16).expect("a digit") as u8
        };
        Self::new(PREFIX.iter().copied().chain((0..digits).rev().map(digit)))
    }

    fn new(letters: impl Iterator<Item = u8>) -> Self {
        let mut name = Self {
            bytes: [0; LONGEST_NAME],
            len: 0,
        };
        for letter in letters {
            name.bytes[name.len] = letter;
            name.len += 1;
        }
        name
    }
}

impl Deref for ServerName {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn begin(out: &mut Vec<u8>, tag: u8) {
    out.extend_from_slice(&[tag, 0, 0, 0, 0]);
}

/// Writes the length of the message whose body begins at `from`.
fn finish(out: &mut [u8], from: usize) {
    let length = u32::try_from(out.len() - from + 4).expect("no longer than what the client sent");
    out[from - 4..from].copy_from_slice(&length.to_be_bytes());
}

/// What the front of a body names, and where the name stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head<'a> {
    /// More of the body must be there to tell.
    Cut,
    /// It is not what the manual says: Postgres will tell.
    Malformed,
    /// The unnamed statement.
    Unnamed,
    /// A named statement: its name, and the name's end in the body with its zero byte.
    Named(&'a [u8], usize),
    /// A portal.
    Portal,
}

/// The statement that a Parse names. `whole`: no more of the body will come.
pub fn of_parse(body: &[u8], whole: bool) -> Head<'_> {
    name_at(body, 0, whole)
}

/// The statement that a Bind names, and the length of the portal's name before it, with its zero byte.
pub fn of_bind(body: &[u8], whole: bool) -> (usize, Head<'_>) {
    match end_of_text(body) {
        Some(portal) => (portal, name_at(body, portal, whole)),
        None if whole => (0, Head::Malformed),
        None => (0, Head::Cut),
    }
}

/// The portal that an Execute names, if its name has ended.
pub fn of_execute(body: &[u8]) -> Option<&[u8]> {
    Some(&body[..end_of_text(body)? - 1])
}

/// What a Describe or a Close names.
pub fn of_describe_or_close(body: &[u8], whole: bool) -> Head<'_> {
    match body.first() {
        // Postgres refuses what stands behind the name, and is to see it.
        Some(b'S') => match name_at(body, 1, whole) {
            Head::Named(_, end) if end < body.len() => Head::Malformed,
            head => head,
        },
        Some(b'P') => Head::Portal,
        Some(_) => Head::Malformed,
        None if whole => Head::Malformed,
        None => Head::Cut,
    }
}

fn name_at(body: &[u8], from: usize, whole: bool) -> Head<'_> {
    match end_of_text(&body[from..]) {
        Some(1) => Head::Unnamed,
        Some(length) => Head::Named(&body[from..from + length - 1], from + length),
        None if whole => Head::Malformed,
        None => Head::Cut,
    }
}

/// Length of the text at the front of `bytes` with its zero byte.
fn end_of_text(bytes: &[u8]) -> Option<usize> {
    Some(bytes.iter().position(|byte| *byte == 0)? + 1)
}

/// Appends the front of a Bind, up to the statement's name, in which `portal` (with its zero byte) stays and the statement has this
/// name. `rest`: bytes of the body behind the name.
pub fn bind_into(name: &[u8], portal: &[u8], rest: usize, out: &mut Vec<u8>) {
    begin(out, b'B');
    let from = out.len();
    out.extend_from_slice(portal);
    out.extend_from_slice(name);
    out.push(0);
    let length = u32::try_from(out.len() - from + rest + 4)
        .expect("bounded by the longest message and the longest name");
    out[from - 4..from].copy_from_slice(&length.to_be_bytes());
}

/// Appends a Describe of the statement of this name.
pub fn describe_into(name: &[u8], out: &mut Vec<u8>) {
    begin(out, b'D');
    let from = out.len();
    out.push(b'S');
    out.extend_from_slice(name);
    out.push(0);
    finish(out, from);
}

/// What pgweir has to remember of a message until it is answered, because the answer may be that it was skipped.
#[derive(Debug, Clone)]
pub enum Note {
    /// A client prepared `statement` as `name`; `sent`: for this the server was told to prepare it.
    Named {
        /// The client's name.
        name: Box<[u8]>,
        /// What it stands for.
        statement: Arc<Statement>,
        /// Whether the server was told.
        sent: bool,
    },
    /// The server was told to prepare this.
    Prepared(Arc<Statement>),
    /// The server was told to forget this.
    Evicted(Arc<Statement>),
    /// A client's name is no more.
    Unnamed {
        /// The client's name.
        name: Box<[u8]>,
        /// What it stood for.
        statement: Arc<Statement>,
    },
    /// What `DEALLOCATE` and `DISCARD ALL` are to drop of a client's names, as far as they have not done so yet.
    Dropped(Dropped),
}

/// A client's name, and what it stands for.
pub type Name = (Box<[u8]>, Arc<Statement>);

/// Names that a text drops.
#[derive(Debug, Clone, Default)]
pub struct Dropped {
    /// By `DEALLOCATE`, in the order in which it does; `None`: the client has none of that name.
    pub each: VecDeque<Option<Name>>,
    /// All of them: `DEALLOCATE ALL`, `DISCARD ALL`.
    pub all: Names,
}

impl Dropped {
    /// Whether nothing is left to be dropped.
    pub fn is_empty(&self) -> bool {
        self.each.is_empty() && self.all.is_empty()
    }

    /// Postgres has done this (a CommandComplete's tag).
    pub fn is_done(&mut self, command: &[u8]) {
        match command {
            b"DEALLOCATE\0" => drop(self.each.pop_front()),
            b"DEALLOCATE ALL\0" | b"DISCARD ALL\0" => self.all = Names::new(),
            _ => {}
        }
    }
}

impl Note {
    /// Whether it is about this name of the client's.
    pub fn concerns(&self, wanted: &[u8]) -> bool {
        match self {
            Self::Named { name, .. } | Self::Unnamed { name, .. } => **name == *wanted,
            Self::Dropped(dropped) => {
                let mut each = dropped.each.iter().flatten();
                dropped.all.contains_key(wanted) || each.any(|(name, _)| **name == *wanted)
            }
            Self::Prepared(_) | Self::Evicted(_) => false,
        }
    }
}

/// The id in the first name of pgweir's making that `text` mentions, and where the name stands.
pub fn mentioned(text: &[u8]) -> Option<(u64, Range<usize>)> {
    let at = text
        .windows(PREFIX.len())
        .position(|window| window == PREFIX)?;
    let digits = &text[at + PREFIX.len()..];
    let count = digits
        .iter()
        .take(16)
        .take_while(|digit| digit.is_ascii_hexdigit())
        .count();
    let hex = std::str::from_utf8(&digits[..count]).ok()?;
    let id = u64::from_str_radix(hex, 16).ok()?;
    Some((id, at..at + PREFIX.len() + count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::Message;

    #[test]
    fn heads_name_statements() {
        assert_eq!(of_parse(b"\0select 1\0", true), Head::Unnamed);
        assert_eq!(of_parse(b"s1\0select 1\0", true), Head::Named(b"s1", 3));
        assert_eq!(of_parse(b"s1", false), Head::Cut);
        assert_eq!(of_parse(b"s1", true), Head::Malformed);
        assert_eq!(of_bind(b"p\0s1\0\0\0", true), (2, Head::Named(b"s1", 5)));
        assert_eq!(of_bind(b"\0\0\0\0", true), (1, Head::Unnamed));
        assert_eq!(of_bind(b"p", true), (0, Head::Malformed));
        assert_eq!(of_bind(b"p\0s", false), (2, Head::Cut));
        assert_eq!(of_describe_or_close(b"Sx\0", true), Head::Named(b"x", 3));
        assert_eq!(of_describe_or_close(b"S\0", true), Head::Unnamed);
        assert_eq!(of_describe_or_close(b"Px\0", true), Head::Portal);
        assert_eq!(of_describe_or_close(b"Sx\0Q", true), Head::Malformed);
        assert_eq!(of_describe_or_close(b"", true), Head::Malformed);
        assert_eq!(of_describe_or_close(b"", false), Head::Cut);
    }

    #[test]
    fn messages_are_written_under_pgweirs_name() {
        let statement = Statement::new(0xabc, b"select 1\0\0\0", "");
        let mut out = vec![];
        statement.parse_into(&mut out);
        let parse = Message::new(b'P').text("pgweir_abc").text("select 1");
        assert_eq!(out, parse.u16(0).done());
        out.clear();
        statement.close_into(&mut out);
        assert_eq!(out, Message::new(b'C').u8(b'S').text("pgweir_abc").done());
        out.clear();
        bind_into(&ServerName::of(0), b"c\0", 4, &mut out);
        out.extend([0; 4]);
        let bind = Message::new(b'B').text("c").text("pgweir_0").u32(0);
        assert_eq!(out, bind.done());
        out.clear();
        describe_into(&ServerName::of(u64::MAX), &mut out);
        let name = "pgweir_ffffffffffffffff";
        assert_eq!(out, Message::new(b'D').u8(b'S').text(name).done());
        assert_eq!(&*ServerName::gone(), GONE.as_bytes());
    }

    #[test]
    fn names_are_found_in_texts() {
        let text = b"prepared statement \"pgweir_1f\" already exists";
        assert_eq!(mentioned(text), Some((0x1f, 20..29)));
        assert_eq!(mentioned(b"pgweir_"), None);
        assert_eq!(mentioned(b"pgweir_gone"), None);
    }
}
