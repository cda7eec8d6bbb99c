//! What is outstanding between one client and the server connection it holds.
//!
//! [`Exchange`] sees the type of every message in both directions and answers one question: does the server owe
//! nothing, outside a transaction? Where the two directions race and the answer cannot be known, it says no: the
//! connection then stays with this client, which is always safe. (Postgres manual, "Message Flow".)

use std::collections::VecDeque;

use super::statement::{Dropped, Note};

/// The status byte of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `I`: outside a transaction.
    Idle,
    /// `T`: inside a transaction block.
    InTransaction,
    /// `E`: inside a failed transaction block.
    Failed,
}

impl Status {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// A message that was sent and that the server has not dealt with yet, as far as it matters in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Parse; `noted`: of a named statement that is kept account of.
    Parse {
        noted: bool,
    },
    /// Parse of the unnamed statement, which has this number with its client.
    ParseUnnamed(u32),
    Bind,
    Describe,
    Close,
    /// `noted`: it drops names of the client's.
    Execute {
        noted: bool,
    },
    Sync,
    /// Query or FunctionCall; `noted`: it drops names of the client's.
    Query {
        noted: bool,
    },
    /// CopyDone or CopyFail.
    CopyEnd,
    /// Not sent at all: the client gets this answer once everything before it is answered.
    Answer(Answer),
    /// In place of a message that pgweir refuses, one that Postgres refuses.
    Refused,
    /// A message of pgweir's own, whose replies are not for the client.
    Own(Own),
}

/// An answer that pgweir gives in the server's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The statement is on the server already.
    ParseComplete,
    /// The name is forgotten; the statement stays on the server.
    CloseComplete,
}

impl Answer {
    /// The message.
    pub const fn bytes(self) -> [u8; 5] {
        match self {
            Self::ParseComplete => [b'1', 0, 0, 0, 4],
            Self::CloseComplete => [b'3', 0, 0, 0, 4],
        }
    }
}

/// A message of pgweir's own between those of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// Parse or Close of a statement that is kept account of.
    Noted,
    /// Parse or Close of any other.
    Part,
    /// Sync.
    Sync,
    /// Query.
    Query,
}

/// For whom a message from the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// The client.
    Client,
    /// Nobody but pgweir, which asked for it.
    Pgweir,
    /// The client, to whom pgweir says why it refuses what it was sent.
    Refused,
}

/// The COPY IN that a statement has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// None is running.
    No,
    /// The server reads CopyData. `syncs`: Syncs were sent meanwhile, which it ignores, unless it has failed already.
    In { extended: bool, syncs: bool },
    /// CopyDone or CopyFail is on its way; the server has not answered yet.
    Ending { extended: bool, syncs: bool },
    /// Streaming replication: both sides send until the end of the connection.
    Both,
}

/// Requests in flight beyond which the memory for them is given back once they are answered.
const USUAL_DEPTH: usize = 64;

/// Messages in flight beyond which no more are sent before some are answered. Postgres answers long before that: its replies fill
/// its buffer. Those that pgweir answers itself fill nothing.
const DEEP: usize = 64 * 1024;

/// The same for those of which something is to be remembered, which costs more.
const DEEP_NOTES: usize = 4 * 1024;

/// State of the conversation over one server connection. Begins settled.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "any of them may hold without the others"
)]
pub struct Exchange {
    /// What was sent and not dealt with, oldest first. Bounded: see [`Exchange::is_deep`].
    sent: VecDeque<Sent>,
    /// What is to be remembered of those of them that are noted, in the same order.
    notes: VecDeque<Note>,
    /// So many of the notes, from the front, are of batches that have ended: what became of them will be heard without anything
    /// more being sent.
    ended: usize,
    /// Notes of messages that came to nothing: they failed or were skipped.
    undone: Vec<Note>,
    /// Extended-protocol messages were sent since the last Sync: the server waits for one.
    batch_open: bool,
    /// An extended-protocol message failed: the server skips to the next Sync.
    skipping: bool,
    /// And none was sent yet, so that whatever is sent but a Sync comes to nothing.
    sync_to_come: bool,
    /// A Flush was sent because too much is in flight.
    flushed: bool,
    /// The COPY IN that runs, if any.
    copy: Copy,
    /// As of the last ReadyForQuery.
    status: Status,
    /// The last Parse of the unnamed statement that came to nothing.
    unnamed_failed: Option<u32>,
    /// The directions raced so that the count may be off: never settled again.
    lost_count: bool,
    /// Parse messages that were sent, since this was last asked.
    parses: u32,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            notes: VecDeque::new(),
            ended: 0,
            undone: Vec::new(),
            batch_open: false,
            skipping: false,
            sync_to_come: false,
            flushed: false,
            copy: Copy::No,
            status: Status::Idle,
            unnamed_failed: None,
            lost_count: false,
            parses: 0,
        }
    }
}

impl Exchange {
    /// Whether the server owes nothing and is outside a transaction.
    pub fn is_settled(&self) -> bool {
        self.is_answered() && self.status == Status::Idle
    }

    /// Whether every request was answered, inside a transaction or not.
    pub fn is_answered(&self) -> bool {
        self.sent.is_empty() && !self.batch_open && self.copy == Copy::No && !self.lost_count
    }

    /// Whether the server will say something without being sent anything more.
    pub fn will_be_answered(&self) -> bool {
        !self.sent.is_empty() && !self.batch_open && self.copy == Copy::No
    }

    /// Whether every request was answered and a transaction block is open.
    pub fn is_in_transaction(&self) -> bool {
        self.is_answered() && self.status != Status::Idle
    }

    /// Whether the server streams for good (replication).
    pub fn is_streaming(&self) -> bool {
        self.copy == Copy::Both
    }

    /// Whether it can no longer be known what the server owes.
    pub fn is_lost(&self) -> bool {
        self.lost_count
    }

    /// Gives up knowing what the server owes: what was noted as sent was not.
    pub fn lose(&mut self) {
        self.lost_count = true;
    }

    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the server answers nothing more until it gets a Sync.
    pub fn needs_sync(&self) -> bool {
        self.batch_open
    }

    /// Whether the server waits for CopyData.
    pub fn in_copy_in(&self) -> bool {
        matches!(self.copy, Copy::In { .. })
    }

    /// Notes a message that the client sent to the server.
    pub fn client_sent(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => self.query(Sent::Query { noted: false }),
            b'S' => self.sync(Sent::Sync),
            b'P' => {
                self.parses += 1;
                self.part(Sent::Parse { noted: false });
            }
            b'B' => self.part(Sent::Bind),
            b'D' => self.part(Sent::Describe),
            b'C' => self.part(Sent::Close),
            b'E' => self.part(Sent::Execute { noted: false }),
            b'c' | b'f' => self.copy_end(),
            // Flush and CopyData are answered by nothing of their own.
            _ => {}
        }
    }

    /// Notes a Parse of the client's, with what to remember of it.
    pub fn client_prepares(&mut self, note: Note) {
        self.parses += 1;
        self.notes.push_back(note);
        self.part(Sent::Parse { noted: true });
    }

    /// Notes a Parse of the client's unnamed statement.
    pub fn client_prepares_unnamed(&mut self, serial: u32) {
        self.parses += 1;
        self.part(Sent::ParseUnnamed(serial));
    }

    /// Notes a Query or Execute of the client's that drops these of its names.
    pub fn client_drops(&mut self, tag: u8, dropped: Dropped) {
        if dropped.is_empty() {
            return self.client_sent(tag);
        }
        self.notes.push_back(Note::Dropped(dropped));
        if tag == b'Q' {
            self.query(Sent::Query { noted: true });
        } else {
            self.part(Sent::Execute { noted: true });
        }
    }

    /// Notes a message that is not sent, but answered by pgweir in its turn.
    pub fn answer(&mut self, answer: Answer, note: Note) {
        self.notes.push_back(note);
        self.part(Sent::Answer(answer));
    }

    /// Notes a Parse or Close of pgweir's own, with what to remember of it.
    pub fn pgweir_notes(&mut self, note: Note) {
        self.parses += u32::from(matches!(note, Note::Prepared(_)));
        self.notes.push_back(note);
        self.part(Sent::Own(Own::Noted));
    }

    /// Notes a Parse of pgweir's own of which nothing is to be remembered.
    pub fn pgweir_parses(&mut self) {
        self.parses += 1;
        self.pgweir_sent(Own::Part);
    }

    /// How many Parse messages were sent since this was last asked.
    pub fn parses(&mut self) -> u32 {
        std::mem::take(&mut self.parses)
    }

    /// Notes any other message of pgweir's own.
    pub fn pgweir_sent(&mut self, own: Own) {
        match own {
            Own::Query => self.query(Sent::Own(own)),
            Own::Sync => self.sync(Sent::Own(own)),
            Own::Part | Own::Noted => self.part(Sent::Own(Own::Part)),
        }
    }

    /// Notes a message that Postgres will refuse, in place of one that pgweir refuses: the batch fails as any does.
    pub fn refuse(&mut self) {
        self.part(Sent::Refused);
    }

    /// The answer that is due to the client now: everything before it is answered. Gives each once.
    pub fn due(&mut self) -> Option<Answer> {
        let Some(Sent::Answer(answer)) = self.sent.front() else {
            return None;
        };
        if self.skipping {
            return None;
        }
        let answer = *answer;
        self.done();
        Some(answer)
    }

    /// Whether it is not known yet what a client's name stands for: what a batch that has ended does to it may come to nothing.
    pub fn is_undecided(&self, name: &[u8]) -> bool {
        let mut ended = self.notes.iter().take(self.ended);
        self.has_undecided() && ended.any(|note| note.concerns(name))
    }

    /// Whether anything may be undecided that will be decided without anything more being sent. A server that copies in answers
    /// only to what comes next.
    pub fn has_undecided(&self) -> bool {
        self.ended > 0 && !self.in_copy_in()
    }

    /// Whether so much is unanswered that nothing more should be sent before some of it is.
    pub fn is_deep(&self) -> bool {
        self.sent.len() >= DEEP || self.notes.len() >= DEEP_NOTES
    }

    /// Whether the server must be told to answer what it has, because too much is unanswered. Says so once.
    pub fn needs_flush(&mut self) -> bool {
        let needs = self.batch_open && self.is_deep() && !self.flushed;
        self.flushed |= needs;
        needs
    }

    /// Notes of messages that came to nothing, oldest first. Whoever reads them takes them.
    pub fn undone(&mut self) -> &mut Vec<Note> {
        &mut self.undone
    }

    /// The last Parse of the unnamed statement that failed or was skipped since this was last asked.
    pub fn unnamed_failed(&mut self) -> Option<u32> {
        self.unnamed_failed.take()
    }

    /// Whether the server skips to the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether what the server says now answers a query of pgweir's own.
    pub fn answers_pgweir(&self) -> bool {
        self.sent.front() == Some(&Sent::Own(Own::Query))
    }

    /// The server ends amid what it runs. If that is a query of pgweir's own, nothing more is owed for it, and what stands behind it
    /// fails by the same words.
    pub fn server_ends(&mut self) {
        if self.answers_pgweir() {
            self.sent.pop_front();
        }
    }

    /// Whether all that is owed is the ReadyForQuery of one request of the client's, outside a transaction block.
    pub fn owes_one_end(&self) -> bool {
        let is_end = |sent: &Sent| {
            matches!(
                sent,
                Sent::Sync | Sent::Query { .. } | Sent::Own(Own::Sync | Own::Query)
            )
        };
        let last = matches!(self.sent.back(), Some(Sent::Sync | Sent::Query { .. }));
        let known = !self.lost_count && !self.batch_open && self.copy == Copy::No;
        let outside = known && self.status == Status::Idle;
        outside && last && self.sent.iter().filter(|sent| is_end(sent)).count() == 1
    }

    /// Whether an error now would end a simple query, and no more than that.
    pub fn in_simple_query(&self) -> bool {
        matches!(self.sent.front(), Some(Sent::Query { .. }))
    }

    /// Whether a message with this tag is a row of what the client asked for: most of what comes, and nothing is to be noted of it.
    pub fn is_row(&self, tag: u8) -> bool {
        tag == b'D'
            && matches!(
                self.sent.front(),
                Some(Sent::Query { .. } | Sent::Execute { .. })
            )
    }

    /// Whether nothing but a Sync was sent behind the command that was completed just now.
    pub fn is_last_command(&self) -> bool {
        let mut behind = self.sent.iter().skip(usize::from(self.in_simple_query()));
        behind.all(|sent| matches!(sent, Sent::Sync))
    }

    fn query(&mut self, query: Sent) {
        // In the middle of COPY IN it makes the copy fail, and is gone with it.
        self.lost_count |= self.in_copy_in();
        self.sent.push_back(query);
        if self.sync_to_come {
            return self.is_skipped_as_well();
        }
        self.ended = self.notes.len();
        self.batch_open = false;
    }

    fn sync(&mut self, sync: Sent) {
        if let Copy::In { syncs, .. } = &mut self.copy {
            // Sync inside COPY IN gets no reply, so nothing is owed for it, unless the server has failed meanwhile.
            *syncs = true;
            return;
        }
        self.sync_to_come = false;
        self.sent.push_back(sync);
        self.ended = self.notes.len();
        self.batch_open = false;
    }

    fn part(&mut self, part: Sent) {
        self.lost_count |= self.in_copy_in();
        self.sent.push_back(part);
        self.batch_open = true;
        if self.sync_to_come {
            self.is_skipped_as_well();
        }
    }

    /// The server skips what was sent last, which is known already: there is nothing to be kept of it.
    fn is_skipped_as_well(&mut self) {
        match self.sent.pop_back() {
            Some(Sent::ParseUnnamed(serial)) => self.unnamed_failed = Some(serial),
            Some(sent) if has_note(sent) => self.undone.extend(self.notes.pop_back()),
            _ => {}
        }
    }

    fn copy_end(&mut self) {
        match self.copy {
            Copy::In { extended, syncs } => self.copy = Copy::Ending { extended, syncs },
            // Sent before the server said that it copies. If it does not, it ignores this.
            Copy::No if !self.sent.is_empty() && !self.sync_to_come => {
                self.sent.push_back(Sent::CopyEnd);
            }
            Copy::No | Copy::Ending { .. } | Copy::Both => {}
        }
    }

    /// Notes a message from the server, and says for whom it is. `body` begins the message's body: one byte of
    /// ReadyForQuery's is enough.
    pub fn server_sent(&mut self, tag: u8, body: &[u8]) -> Receiver {
        let receiver = match self.sent.front() {
            Some(Sent::Own(_)) if is_reply(tag) => Receiver::Pgweir,
            // ParameterStatus and notices of a query of pgweir's own. Notifications come when they come.
            Some(Sent::Own(Own::Query)) if tag != b'A' => Receiver::Pgweir,
            _ => Receiver::Client,
        };
        match tag {
            b'Z' => return self.ready(body),
            b'1' | b'2' | b'3' => self.part_done(tag),
            b'T' | b'n' if self.sent.front() == Some(&Sent::Describe) => self.done(),
            // It was to be refused.
            b'T' | b'n' if self.sent.front() == Some(&Sent::Refused) => self.lost_count = true,
            b'C' => {
                self.drops(body);
                self.completed();
            }
            b'I' | b's' => self.completed(),
            b'E' => {
                let receiver = self.failed();
                let mut sent = self.sent.iter();
                self.sync_to_come = self.skipping
                    && !sent.any(|sent| matches!(sent, Sent::Sync | Sent::Own(Own::Sync)));
                return receiver;
            }
            b'G' => self.copy_in_begins(),
            b'W' => self.copy = Copy::Both,
            _ => {}
        }
        receiver
    }

    fn ready(&mut self, body: &[u8]) -> Receiver {
        match body.first().and_then(|byte| Status::from_byte(*byte)) {
            Some(status) => self.status = status,
            None => self.lost_count = true,
        }
        let skipping = std::mem::take(&mut self.skipping);
        self.sync_to_come = false;
        let answered = |sent: &Sent| match sent {
            Sent::Sync | Sent::Own(Own::Sync) => true,
            Sent::Query { .. } | Sent::Own(Own::Query) => !skipping,
            _ => false,
        };
        let Some(at) = self.sent.iter().position(answered) else {
            self.lost_count = true;
            return Receiver::Client;
        };
        for _ in 0..at {
            self.skipped();
        }
        let receiver = match self.sent.pop_front() {
            Some(Sent::Own(_)) => Receiver::Pgweir,
            Some(sent) if has_note(sent) => {
                // What it has not come to drop.
                let note = self.next_note();
                self.undone.extend(note);
                Receiver::Client
            }
            _ => Receiver::Client,
        };
        self.flushed = false;
        self.drop_stray_copy_ends();
        if self.sent.is_empty() && self.sent.capacity() > USUAL_DEPTH {
            self.sent = VecDeque::new();
        }
        receiver
    }

    /// ParseComplete, BindComplete or CloseComplete has come.
    fn part_done(&mut self, tag: u8) {
        let fits = match self.sent.front() {
            Some(Sent::Parse { .. } | Sent::ParseUnnamed(_)) => tag == b'1',
            Some(Sent::Bind) => tag == b'2',
            Some(Sent::Close) => tag == b'3',
            Some(Sent::Own(Own::Noted | Own::Part)) => tag != b'2',
            _ => false,
        };
        if fits {
            self.done();
        } else {
            self.lost_count = true;
        }
    }

    /// A command is complete: if it drops names, these are gone.
    fn drops(&mut self, command: &[u8]) {
        let noted = self.sent.front().is_some_and(|sent| has_note(*sent));
        if let Some(Note::Dropped(dropped)) = self.notes.front_mut().filter(|_| noted) {
            dropped.is_done(command);
        }
    }

    /// The message at the front is dealt with, and what was to be remembered of it may be forgotten.
    fn done(&mut self) {
        self.flushed = false;
        if self.sent.pop_front().is_some_and(has_note) {
            self.next_note();
        }
    }

    fn next_note(&mut self) -> Option<Note> {
        self.ended = self.ended.saturating_sub(1);
        self.notes.pop_front()
    }

    /// The message at the front was passed over.
    fn skipped(&mut self) {
        match self.sent.pop_front() {
            Some(Sent::ParseUnnamed(serial)) => self.unnamed_failed = Some(serial),
            Some(sent) if has_note(sent) => {
                let note = self.next_note();
                self.undone.extend(note);
            }
            _ => {}
        }
    }

    /// A statement is done.
    fn completed(&mut self) {
        if let Copy::In { .. } | Copy::Ending { .. } = self.copy {
            self.copy = Copy::No;
        }
        if matches!(self.statement(), Some(Sent::Execute { .. })) {
            self.done();
        }
        self.drop_stray_copy_ends();
    }

    fn failed(&mut self) -> Receiver {
        if let Copy::In { extended, syncs } | Copy::Ending { extended, syncs } = self.copy {
            // A Sync sent before the failure was seen: ignored by the copy, or answered after it? Unknown.
            self.lost_count |= syncs;
            self.copy = Copy::No;
            self.skipping = extended;
            return Receiver::Client;
        }
        // An error outside of any request (57P01 while idle) is the last thing that a server says.
        self.skipping = match self.sent.front() {
            Some(Sent::Own(Own::Query)) => return Receiver::Pgweir,
            Some(Sent::Query { .. }) => false,
            Some(Sent::Refused) => {
                self.skipping = true;
                return Receiver::Refused;
            }
            Some(_) => true,
            None => self.batch_open,
        };
        Receiver::Client
    }

    fn copy_in_begins(&mut self) {
        let extended = match self.statement() {
            Some(Sent::Execute { .. }) => true,
            Some(Sent::Query { .. }) => false,
            _ => {
                self.lost_count = true;
                return;
            }
        };
        self.copy = Copy::In {
            extended,
            syncs: false,
        };
        self.batch_open |= extended;
        self.swallow_syncs(extended);
    }

    /// What was sent behind the statement reaches a server that copies: it ignores Sync, and takes the first CopyDone.
    fn swallow_syncs(&mut self, extended: bool) {
        let behind = self
            .sent
            .iter()
            .skip(1)
            .position(|sent| *sent != Sent::Sync);
        let syncs = behind.unwrap_or(self.sent.len() - 1);
        self.sent.drain(1..=syncs);
        match self.sent.get(1) {
            None => {}
            Some(Sent::CopyEnd) => {
                self.sent.remove(1);
                self.copy = Copy::Ending {
                    extended,
                    syncs: false,
                };
                self.batch_open =
                    extended && !self.sent.iter().skip(1).any(|sent| *sent == Sent::Sync);
            }
            // Anything else makes the copy fail, and is gone with it.
            Some(_) => self.lost_count = true,
        }
    }

    /// The statement that the server is at.
    fn statement(&self) -> Option<Sent> {
        self.sent.front().copied()
    }

    fn drop_stray_copy_ends(&mut self) {
        while self.sent.front() == Some(&Sent::CopyEnd) {
            self.sent.pop_front();
        }
    }
}

fn has_note(sent: Sent) -> bool {
    matches!(
        sent,
        Sent::Parse { noted: true }
            | Sent::Execute { noted: true }
            | Sent::Query { noted: true }
            | Sent::Answer(_)
            | Sent::Own(Own::Noted)
    )
}

/// Whether a message answers a Parse or a Close.
fn is_reply(tag: u8) -> bool {
    matches!(tag, b'1' | b'3')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::statement::Statement;

    /// Plays `script`: client messages as their letter, server messages after `<`, ReadyForQuery as `<ZI`.
    fn play(script: &str) -> Exchange {
        let mut exchange = Exchange::default();
        for step in script.split_whitespace() {
            match step.as_bytes() {
                [b'<', tag, body @ ..] => drop(exchange.server_sent(*tag, body)),
                tags => tags.iter().for_each(|tag| exchange.client_sent(*tag)),
            }
        }
        exchange
    }

    #[test]
    fn settled_and_not() {
        let cases = [
            ("", true, "nothing was asked"),
            ("Q", false, "a query is running"),
            ("Q <T <D <C <ZI", true, "it is answered"),
            ("Q <C <ZT", false, "a transaction is open"),
            ("Q <C <ZT Q <E <ZE", false, "it failed, and is still open"),
            ("Q <C <ZT Q <C <ZI", true, "it was committed"),
            ("QQQ <C <ZI <C <ZI", false, "the third query is still owed"),
            ("PBES", false, "Sync is owed"),
            ("PBES <1 <2 <C <ZI", true, "extended query answered"),
            ("P", false, "a Parse without Sync keeps the lease"),
            ("PBEH <1 <2 <C", false, "Flush is no Sync"),
            ("PBEH <1 <2 <C S <ZI", true, "the late Sync is answered"),
            ("PBESPBES <1 <2 <C <ZI", false, "two Syncs in flight"),
            ("PBESPBES <E <ZI <E <ZI", true, "both answered, with errors"),
            ("H", true, "a Flush alone opens nothing"),
            ("F <V <ZI", true, "function call"),
            ("Q <G", false, "COPY IN runs"),
            ("Q <G dddc <C <ZI", true, "COPY IN, simple"),
            ("Q <G ddf <E <ZI", true, "CopyFail"),
            (
                "Q <G dd <E <ZI dd c",
                true,
                "failed half-way; what is still sent is ignored by the server",
            ),
            (
                "Q <G S dc <C <ZI",
                true,
                "Sync inside COPY IN is not answered",
            ),
            (
                "PBES <1 <2 <G",
                false,
                "COPY IN, extended; the Sync was swallowed",
            ),
            ("PBES <1 <2 <G ddc", false, "it must be sent again"),
            ("PBES <1 <2 <G ddc S <C <ZI", true, "and is answered"),
            (
                "PBES <1 <2 <G dd <E",
                false,
                "failed; the server skips to the next Sync",
            ),
            ("PBES <1 <2 <G dd <E c S <ZI", true, "which is answered"),
            (
                "PBES <1 <2 <G ddc S <E <ZI",
                true,
                "the error and the end crossed",
            ),
            ("PBEH <1 <2 <G ddc S <C <ZI", true, "tokio-postgres' way"),
            ("Q <H <d <d <c <C <ZI", true, "COPY OUT"),
            ("Q <W", false, "replication never settles"),
            ("Q <W c <c <C", false, "not even so"),
        ];
        for (script, settled, why) in cases {
            assert_eq!(play(script).is_settled(), settled, "{script}: {why}");
        }
    }

    #[test]
    fn one_end_is_owed_or_more_than_that() {
        let cases = [
            ("", false),
            ("Q", true),
            ("Q <T <D", true),
            ("Q <E", true),
            ("QQ <E", false),
            ("QQ <E <ZI", true),
            ("Q <C <ZT Q <E", false),
            ("PBES <1 <2 <E", true),
            ("PBE <1 <2 <E", false),
            ("PBE <1 <2 <E S", true),
            ("PBESS <1 <2 <E", false),
            ("PBESQ <1 <2 <E", false),
            ("Q <G dd <E", true),
            ("PBES <1 <2 <G dd <E", false),
            ("Q <W", false),
            ("P <1", false),
        ];
        for (script, expected) in cases {
            assert_eq!(play(script).owes_one_end(), expected, "{script}");
        }
    }

    fn names(wanted: &[&str]) -> Dropped {
        let statement = std::sync::Arc::new(Statement::new(1, b"select 1\0\0\0", ""));
        let each = wanted
            .iter()
            .map(|name| Some((name.as_bytes().into(), std::sync::Arc::clone(&statement))));
        Dropped {
            each: each.collect(),
            ..Dropped::default()
        }
    }

    /// Names that are to be given back.
    fn undone(exchange: &mut Exchange) -> String {
        let mut names = String::new();
        for note in exchange.undone().drain(..) {
            let Note::Dropped(dropped) = note else {
                continue;
            };
            for (name, _) in dropped.each.iter().flatten() {
                names.push_str(std::str::from_utf8(name).unwrap());
            }
        }
        names
    }

    #[test]
    fn names_are_dropped_as_far_as_postgres_says_so() {
        for (script, left) in [
            ("C1 C1 ZI", ""),
            ("C1 E ZI", "b"),
            ("E ZI", "ab"),
            ("C2 C1 E ZI", "b"),
        ] {
            let mut exchange = Exchange::default();
            exchange.client_drops(b'Q', names(&["a", "b"]));
            assert!(exchange.is_undecided(b"a") && !exchange.is_undecided(b"c"));
            for word in script.split(' ') {
                let (tag, body): (_, &[u8]) = match word {
                    "C1" => (b'C', b"DEALLOCATE\0"),
                    "C2" => (b'C', b"SELECT 1\0"),
                    "E" => (b'E', b""),
                    _ => (b'Z', b"I"),
                };
                exchange.server_sent(tag, body);
            }
            assert!(exchange.is_settled() && !exchange.has_undecided());
            assert_eq!(undone(&mut exchange), left, "{script}");
        }
    }

    #[test]
    fn what_is_sent_into_a_failed_batch_is_not_kept_and_comes_to_nothing() {
        let mut exchange = play("PBE <E");
        for _ in 0..10 {
            exchange.client_drops(b'E', names(&["a"]));
            exchange.client_prepares_unnamed(7);
            b"PBDECQc".iter().for_each(|tag| exchange.client_sent(*tag));
        }
        assert_eq!(exchange.sent.len(), 3, "what stood in front of the error");
        assert_eq!(undone(&mut exchange), "a".repeat(10));
        assert_eq!(exchange.unnamed_failed(), Some(7));
        assert!(exchange.needs_sync() && !exchange.is_answered());
        exchange.client_sent(b'S');
        // What is behind a Sync is kept again.
        exchange.client_sent(b'Q');
        exchange.server_sent(b'Z', b"I");
        assert!(!exchange.is_settled());
        exchange.server_sent(b'C', b"SELECT 1\0");
        exchange.server_sent(b'Z', b"I");
        assert!(exchange.is_settled());
    }

    #[test]
    fn too_much_in_flight_is_told_and_a_flush_asked_for_once() {
        let mut exchange = play("P");
        while !exchange.is_deep() {
            exchange.client_sent(b'B');
        }
        assert!(exchange.needs_flush() && !exchange.needs_flush());
        exchange.server_sent(b'1', b"");
        exchange.server_sent(b'2', b"");
        assert!(!exchange.is_deep());
        exchange.client_sent(b'B');
        exchange.client_sent(b'B');
        assert!(exchange.needs_flush());
    }

    #[test]
    fn where_the_directions_race_it_never_settles() {
        for script in [
            "<ZI",
            "Q <ZI <ZI",
            "Q <G S <E <ZI",
            "Q <Z?",
            "Q <Z",
            "PBESPBES <1 <2 <G c S <C <ZI",
            "QQ <G dc <C <ZI <C <ZI",
        ] {
            let exchange = play(script);
            assert!(!exchange.is_settled(), "{script}");
            let mut later = exchange.clone();
            later.client_sent(b'Q');
            later.server_sent(b'Z', b"I");
            assert!(!later.is_settled(), "{script}, and one query later");
        }
    }

    proptest::proptest! {
        /// Whatever is sent and heard in whatever order: who is answered owes no note, and nothing panics.
        #[test]
        fn notes_go_with_their_messages(steps in proptest::collection::vec(0_usize..22, 0..60)) {
            let mut exchange = Exchange::default();
            for step in steps {
                let tags = b"QFSPBDCEcfH12CIETGZA";
                match step {
                    0 => exchange.client_drops(b'Q', names(&["a"])),
                    1 => exchange.client_drops(b'E', names(&["a", "b"])),
                    step if step < 13 => exchange.client_sent(tags[step - 2]),
                    step => drop(exchange.server_sent(tags[step - 2], b"I")),
                }
                let noted = exchange.sent.iter().filter(|sent| has_note(**sent)).count();
                proptest::prop_assert_eq!(noted, exchange.notes.len());
                proptest::prop_assert!(exchange.ended <= exchange.notes.len());
                proptest::prop_assert!(!exchange.is_answered() || !exchange.has_undecided());
            }
        }
    }
}
