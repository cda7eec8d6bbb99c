//! A client's messages in the words of the server connection that it holds: names of prepared statements become the server's own,
//! and what the server lacks is prepared in front of what needs it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::client::end::{Behind, Take};
use crate::client::statements::{
    Drops, LONGEST_UNNAMED, MODEST, Statements, TooMany, is_memory_short,
};
use crate::server::end::Books;
use crate::server::prepared::{Store, prepare_gone, private};
use crate::server::state::{Touched, parameter};
use crate::wire::WireError;
use crate::wire::edit::Edit;
use crate::wire::exchange::Answer;
use crate::wire::parameters::Parameters;
use crate::wire::reply::{Message, parameter_status};
use crate::wire::scan::{HEADER, Seen};
use crate::wire::sql::{Effects, effects, may_have_effects};
use crate::wire::statement::{
    Dropped, GONE, Head, Note, PREFIX, ServerName, Statement, bind_into, describe_into, mentioned,
    of_bind, of_describe_or_close, of_execute, of_parse,
};

/// The longest text under a name, in bytes: it must be there as a whole.
const LONGEST_NAMED: usize = 16 * 1024 * 1024;

/// The longest names of portal and statement together, in bytes. Postgres looks at the first 63 of each.
const LONGEST_HEAD: usize = 4096;

/// The longest text that is read as a whole, to see what it does to the session, in bytes.
const LONGEST_TEXT: usize = 1024 * 1024;

/// The functions for large objects, by their numbers in `pg_proc`, which are the same everywhere: libpq calls them so.
const OF_LARGE_OBJECTS: [u32; 13] = [
    715, 764, 765, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170,
];

/// Names that are deallocated by one message. Those beyond stay: Postgres says that it has none of that name.
const MOST_DEALLOCATED: usize = 16;

/// How statements are kept account of.
#[derive(Debug, Clone, Copy)]
pub struct Tracking<'a> {
    /// All statements of the database.
    pub store: &'a Store,
    /// How many one server connection keeps; 0 = names are left to the clients.
    pub most: usize,
    /// What the client's sessions are like.
    pub parameters: &'a Parameters,
    /// What the client asked for at startup.
    pub startup: &'a Parameters,
    /// What the client heard since `parameters` was true: Postgres is being asked what else it has set.
    pub heard: &'a [(Box<str>, Box<str>)],
}

/// Translates for one client and the server connection that it holds.
#[derive(Debug)]
pub struct Translator<'a, 'b> {
    /// What was prepared.
    pub statements: &'a mut Option<Box<Statements>>,
    /// The server's side.
    pub books: &'a mut Books<'b>,
    /// How.
    pub how: Tracking<'a>,
}

/// Close of the unnamed statement.
const CLOSE_UNNAMED: [u8; 7] = [b'C', 0, 0, 0, 6, b'S', 0];

impl Translator<'_, '_> {
    /// Notes a message, and edits it.
    pub fn take(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        if self.how.most == 0 {
            return self.take_as_it_is(seen);
        }
        match seen.tag {
            b'Q' => self.query(seen, edit),
            b'P' => self.parse(seen, edit),
            b'B' => self.bind(seen, edit),
            b'D' | b'C' => self.describe_or_close(seen, edit),
            b'E' => self.execute(seen),
            b'F' => self.call(seen),
            b'S' => {
                self.books.prepared.batch_ends();
                self.books.exchange.client_sent(b'S');
                Take::Done
            }
            tag => {
                self.books.exchange.client_sent(tag);
                Take::Done
            }
        }
    }

    /// Names are left to the clients; what a text does to the session is noted all the same.
    fn take_as_it_is(&mut self, seen: Seen<'_>) -> Take {
        if seen.tag == b'F' {
            return self.call(seen);
        }
        if matches!(seen.tag, b'Q' | b'P') {
            if !seen.is_whole() && may_wait(seen, LONGEST_TEXT) {
                return Take::Wait(seen.length());
            }
            if !seen.is_whole() {
                self.note_unseen();
            }
            let name = if seen.tag == b'P' {
                text_of(seen.body).len() + 1
            } else {
                0
            };
            let text = text_of(seen.body.get(name..).unwrap_or_default());
            if may_have_effects(text) {
                self.note(&effects(text));
            }
        }
        self.books.exchange.client_sent(seen.tag);
        Take::Done
    }

    fn query(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        if !seen.is_whole() && may_wait(seen, LONGEST_TEXT) {
            return Take::Wait(seen.length());
        }
        if !may_have_effects(seen.body) {
            self.forget_unnamed(seen);
            self.books.exchange.client_sent(b'Q');
            return Take::Done;
        }
        let text = seen.body.strip_suffix(b"\0").unwrap_or(seen.body);
        let effects = effects(text);
        if self.drops_undecided(&effects) {
            return Take::Hold;
        }
        self.forget_unnamed(seen);
        self.note(&effects);
        let (dropped, edited) = self.drop_names(&effects, text, seen, edit);
        if let Some(text) = edited {
            let query = Message::new(b'Q').bytes(&text).u8(0).done();
            edit.replace(seen.at, seen.at + seen.length()).extend(query);
        }
        self.books.exchange.client_drops(b'Q', dropped);
        Take::Done
    }

    /// A Query destroys the unnamed statement.
    fn forget_unnamed(&mut self, seen: Seen<'_>) {
        self.books.prepared.set_unnamed(None);
        if let Some(statements) = self.statements {
            statements.forget_unnamed();
        }
        if !seen.is_whole() {
            self.note_unseen();
        }
    }

    /// Whether what it is to drop depends on what is not answered yet.
    fn drops_undecided(&self, effects: &Effects<'_>) -> bool {
        let exchange = &self.books.exchange;
        let mut each = effects.deallocates.iter();
        exchange.has_undecided()
            && (effects.discards || each.any(|(_, name)| exchange.is_undecided(name.as_bytes())))
    }

    /// What a FunctionCall does is known of the large objects' functions alone, and these do nothing to the session.
    fn call(&mut self, seen: Seen<'_>) -> Take {
        if !seen.has(4) {
            return Take::Wait(HEADER + 4);
        }
        let function = seen.body.first_chunk().map(|id| u32::from_be_bytes(*id));
        if !function.is_some_and(|id| OF_LARGE_OBJECTS.contains(&id)) {
            self.note(&Effects {
                pins: true,
                ..Effects::default()
            });
        }
        self.books.exchange.client_sent(b'F');
        Take::Done
    }

    /// Notes that what a text does far behind its front is not seen.
    fn note_unseen(&mut self) {
        self.note(&Effects {
            sets_unknown: true,
            ..Effects::default()
        });
    }

    /// Notes what a text does to the session.
    fn note(&mut self, effects: &Effects<'_>) {
        let status = self.books.exchange.status();
        self.books.state.note_effects(effects, status);
    }

    /// What a text is about to drop of the client's names, and the text as it is to be sent: see [`Self::deallocated`].
    fn drop_names(
        &mut self,
        effects: &Effects<'_>,
        text: &[u8],
        seen: Seen<'_>,
        edit: &mut Edit<'_>,
    ) -> (Dropped, Option<Vec<u8>>) {
        let mut dropped = Dropped::default();
        if !effects.discards && effects.deallocates.is_empty() {
            return (dropped, None);
        }
        if effects.discards {
            self.books.prepared.discard_sent();
        }
        let edited = self.deallocated(effects, text, seen, edit);
        let Some(statements) = self.statements else {
            return (dropped, edited);
        };
        for (_, name) in effects.deallocates.iter().take(MOST_DEALLOCATED) {
            let name = name.as_bytes();
            let statement = statements.forget(name);
            let known = statement.map(|statement| (name.into(), statement));
            dropped.each.push_back(known);
        }
        if effects.discards {
            dropped.all = statements.forget_all();
        }
        // Of what stands in code it is never told whether it was done.
        if effects.in_code {
            dropped = Dropped::default();
        }
        (dropped, edited)
    }

    /// The text in which the names of this client's statements are those of empty ones, which are prepared in front of it. What
    /// they stand for stays for others.
    fn deallocated(
        &mut self,
        effects: &Effects<'_>,
        text: &[u8],
        seen: Seen<'_>,
        edit: &mut Edit<'_>,
    ) -> Option<Vec<u8>> {
        if !seen.is_whole() {
            return None;
        }
        let (mut edited, mut from) = (vec![], 0);
        let deallocates = effects.deallocates.iter().take(MOST_DEALLOCATED);
        for (n, (range, name)) in deallocates.enumerate() {
            let known = self.statements.as_ref();
            let is_known = known.is_some_and(|known| known.named(name.as_bytes()).is_some());
            let gone = if is_known {
                let gone = format!("{GONE}_{n}");
                prepare_gone(&gone, self.books.exchange, edit.insert(seen.at));
                gone
            } else if name.as_bytes().starts_with(PREFIX) {
                // Nobody drops what others have prepared.
                GONE.to_owned()
            } else {
                continue;
            };
            edited.extend_from_slice(&text[from..range.start]);
            edited.extend(gone.into_bytes());
            from = range.end;
        }
        edited.extend_from_slice(&text[from..]);
        (from > 0).then_some(edited)
    }

    fn parse(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        match of_parse(seen.body, seen.is_whole()) {
            Head::Cut => more_of_head(seen),
            Head::Named(name, _) if name.len() > LONGEST_HEAD => Take::Refuse(too_long(seen)),
            Head::Unnamed => self.parse_unnamed(seen, edit),
            Head::Named(name, _) if self.is_undecided(name) => Take::Hold,
            Head::Named(name, end) if seen.is_whole() => self.parse_named(name, end, seen, edit),
            Head::Named(..) if may_wait(seen, LONGEST_NAMED) => Take::Wait(seen.length()),
            Head::Named(..) if seen.length() <= LONGEST_NAMED => self.refuse(seen, edit),
            Head::Named(..) => Take::Refuse(Behind::Violation(WireError::TooLong {
                tag: 'P',
                length: seen.body_len,
                limit: u32::try_from(LONGEST_NAMED).unwrap_or(u32::MAX),
            })),
            Head::Malformed | Head::Portal => {
                self.books.exchange.client_sent(b'P');
                Take::Done
            }
        }
    }

    fn parse_unnamed(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        let short = seen.is_whole() || may_wait(seen, LONGEST_UNNAMED);
        if short && !seen.is_whole() {
            return Take::Wait(seen.length());
        }
        let text = text_of(&seen.body[1..]);
        let has_effects = !short || may_have_effects(text);
        let message = short.then(|| edit.input(seen.at, seen.at + seen.length()));
        let statements = self.statements.get_or_insert_default();
        let unnamed = statements.remember_unnamed(message, has_effects);
        if !short {
            self.note_unseen();
        }
        if has_effects {
            self.note(&effects(text));
        }
        self.books.prepared.set_unnamed(Some(unnamed));
        self.books.exchange.client_prepares_unnamed(unnamed.1);
        Take::Done
    }

    fn parse_named(
        &mut self,
        name: &[u8],
        end: usize,
        seen: Seen<'_>,
        edit: &mut Edit<'_>,
    ) -> Take {
        let statements = self.statements.get_or_insert_default();
        let (at, next) = (seen.at, seen.at + seen.length());
        let Books {
            exchange,
            prepared,
            state,
        } = &mut *self.books;
        if let Some(known) = statements.named(name) {
            // Postgres itself says that the name is taken, in the client's words in the end.
            let known = Arc::clone(known);
            prepared.ensure(&known, self.how.most, exchange, || edit.insert(at));
            known.parse_into(edit.replace(at, next));
            exchange.client_sent(b'P');
            return Take::Done;
        }
        let body = &seen.body[end..];
        let search_path = self.how.parameters.value("search_path").unwrap_or_default();
        let statement = if state.reads_otherwise() {
            private(body)
        } else {
            self.how.store.statement(body, search_path)
        };
        match statements.name(name, &statement) {
            Ok(()) => {}
            Err(TooMany::OfAll) => return self.refuse(seen, edit),
            Err(too_many) => return Take::Refuse(Behind::TooMany(too_many)),
        }
        let sent = !prepared.use_again(&statement);
        let note = Note::Named {
            name: name.into(),
            statement: Arc::clone(&statement),
            sent,
        };
        if sent {
            prepared.make_room(&statement, self.how.most, exchange, edit.insert(at));
            statement.parse_into(edit.replace(at, next));
            prepared.hold(&statement);
            exchange.client_prepares(note);
        } else {
            edit.replace(at, next);
            exchange.answer(Answer::ParseComplete, note);
        }
        Take::Done
    }

    /// All clients together have too much for this Parse, of which not all need be there. In its place Postgres is asked for what it
    /// does not have: so it fails the batch as it fails any, and its error becomes the one that the client is told. What this server
    /// has prepared is closed, so that what clients have given up goes: the next try may find room.
    fn refuse(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        if self.books.exchange.in_copy_in() {
            return Take::Refuse(Behind::TooMany(TooMany::OfAll));
        }
        let (prepared, exchange) = (&mut *self.books.prepared, &mut *self.books.exchange);
        prepared.evict_all(exchange, edit.insert(seen.at));
        if seen.is_whole() {
            let out = edit.replace(seen.at, seen.at + seen.length());
            describe_into(GONE.as_bytes(), out);
        } else {
            // What is still to come of it goes as CopyData, over which Postgres passes then (manual, "COPY Operations").
            let out = edit.replace(seen.at, seen.at + 1);
            describe_into(GONE.as_bytes(), out);
            out.push(b'd');
        }
        self.books.exchange.refuse();
        Take::Done
    }

    fn bind(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        let (portal, head) = of_bind(seen.body, seen.is_whole());
        match head {
            Head::Cut => return more_of_head(seen),
            Head::Named(name, _) if self.is_undecided(name) => return Take::Hold,
            _ => {}
        }
        if let Some(statements) = self.statements {
            // The portal is another one now.
            drop(statements.drops(portal_of(seen, portal)));
        }
        match head {
            Head::Unnamed => {
                self.bring_unnamed(seen, edit);
                if let Some(text) = self.unnamed_with_effects() {
                    self.bind_with_effects(&text, portal, portal + 1, seen, edit);
                }
            }
            Head::Named(name, end) => {
                let known = self.known(name);
                if let Some(statement) = known.as_ref().filter(|known| known.has_effects)
                    && self.bind_with_effects(&statement.body, portal, end, seen, edit)
                {
                } else if let Some(name) = self.bring(name, known, seen, edit) {
                    let rest = seen.body_len as usize - end;
                    let out = edit.replace(seen.at, seen.at + HEADER + end);
                    bind_into(&name, &seen.body[..portal], rest, out);
                }
            }
            _ => {}
        }
        self.books.exchange.client_sent(b'B');
        Take::Done
    }

    /// Notes what a statement that is bound does to the session. If it deallocates names of this client, it is run as an unnamed one
    /// in which they stand for others: `true`. `body`: its text and parameter types; `end`: where its name ends in the Bind.
    fn bind_with_effects(
        &mut self,
        body: &[u8],
        portal: usize,
        end: usize,
        seen: Seen<'_>,
        edit: &mut Edit<'_>,
    ) -> bool {
        let text = text_of(body);
        let effects = effects(text);
        self.note(&effects);
        if !effects.discards && effects.deallocates.is_empty() {
            return false;
        }
        let edited = self.deallocated(&effects, text, seen, edit);
        let name = |name: &Cow<'_, str>| name.as_bytes().into();
        let each = effects.deallocates.iter().take(MOST_DEALLOCATED);
        let each = each.map(|(_, of)| name(of));
        self.statements.get_or_insert_default().will_drop(Drops {
            portal: portal_of(seen, portal).into(),
            each: each.collect(),
            all: effects.discards,
        });
        let Some(edited) = edited else { return false };
        let types = &body[text.len()..];
        let parse = Message::new(b'P').u8(0).bytes(&edited).bytes(types);
        edit.insert(seen.at).extend(parse.done());
        self.books.exchange.pgweir_parses();
        self.books.prepared.set_unnamed(None);
        let out = edit.replace(seen.at, seen.at + HEADER + end);
        bind_into(&[], &seen.body[..portal], seen.body_len as usize - end, out);
        true
    }

    fn execute(&mut self, seen: Seen<'_>) -> Take {
        let known = self.statements.as_mut();
        let Some(statements) = known.filter(|known| known.has_drops()) else {
            self.books.exchange.client_sent(b'E');
            return Take::Done;
        };
        let Some(portal) = of_execute(seen.body) else {
            if !seen.is_whole() {
                return more_of_head(seen);
            }
            self.books.exchange.client_sent(b'E');
            return Take::Done;
        };
        let mut dropped = Dropped::default();
        if let Some(drops) = statements.drops(portal) {
            for name in drops.each {
                let statement = statements.forget(&name);
                dropped
                    .each
                    .push_back(statement.map(|statement| (name, statement)));
            }
            if drops.all {
                dropped.all = statements.forget_all();
                self.books.prepared.discard_sent();
            }
        }
        self.books.exchange.client_drops(b'E', dropped);
        Take::Done
    }

    fn describe_or_close(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        let next = seen.at + seen.length();
        // All of it is replaced: what is not there yet would go on as a message of its own.
        if !seen.is_whole() {
            return more_of_head(seen);
        }
        match of_describe_or_close(seen.body, true) {
            Head::Unnamed if seen.tag == b'D' => self.bring_unnamed(seen, edit),
            Head::Unnamed => {
                self.books.prepared.set_unnamed(None);
                if let Some(statements) = self.statements {
                    statements.forget_unnamed();
                }
            }
            Head::Named(name, _) if self.is_undecided(name) => return Take::Hold,
            Head::Named(name, _) if seen.tag == b'D' => {
                let known = self.known(name);
                if let Some(name) = self.bring(name, known, seen, edit) {
                    describe_into(&name, edit.replace(seen.at, next));
                }
            }
            Head::Named(name, _) => return self.close(name, seen, edit),
            _ => {}
        }
        self.books.exchange.client_sent(seen.tag);
        Take::Done
    }

    /// Whether an earlier batch may yet turn out to have done nothing to this name: who pipelines on waits for that. Its answer
    /// will come, because its Sync was sent.
    fn is_undecided(&self, name: &[u8]) -> bool {
        self.books.exchange.is_undecided(name)
    }

    /// The statement stays on the server, for others.
    fn close(&mut self, name: &[u8], seen: Seen<'_>, edit: &mut Edit<'_>) -> Take {
        let closed = self
            .statements
            .as_mut()
            .and_then(|statements| statements.forget(name));
        if let Some(statement) = closed {
            let name = name.into();
            let note = Note::Unnamed { name, statement };
            edit.replace(seen.at, seen.at + seen.length());
            self.books.exchange.answer(Answer::CloseComplete, note);
            return Take::Done;
        }
        if name.starts_with(PREFIX) {
            let close = Message::new(b'C').u8(b'S').text(GONE).done();
            edit.replace(seen.at, seen.at + seen.length()).extend(close);
        }
        self.books.exchange.client_sent(b'C');
        Take::Done
    }

    /// Has the client's unnamed statement on this server, or none: never another client's.
    fn bring_unnamed(&mut self, seen: Seen<'_>, edit: &mut Edit<'_>) {
        let Books {
            exchange, prepared, ..
        } = &mut *self.books;
        let known = self
            .statements
            .as_ref()
            .map(|statements| statements.unnamed());
        match known {
            Some((id, _)) if prepared.unnamed() == Some(id) => return,
            Some((id, message)) if !message.is_empty() => {
                edit.insert(seen.at).extend_from_slice(message);
                prepared.set_unnamed(Some(id));
            }
            _ => {
                edit.insert(seen.at).extend_from_slice(&CLOSE_UNNAMED);
                prepared.set_unnamed(None);
            }
        }
        exchange.pgweir_parses();
    }

    /// Text and parameter types of the unnamed statement, which may have been parsed long ago, on another server, if it does anything
    /// to the session.
    fn unnamed_with_effects(&mut self) -> Option<Vec<u8>> {
        let statements = self.statements.as_ref()?;
        if !statements.unnamed_has_effects() {
            return None;
        }
        let (_, message) = statements.unnamed();
        let body = message.get(HEADER + 1..).map(<[u8]>::to_vec);
        if body.is_none() {
            self.note_unseen();
        }
        body
    }

    /// The client's statement of this name.
    fn known(&self, name: &[u8]) -> Option<Arc<Statement>> {
        let statements = self.statements.as_ref()?;
        statements.named(name).map(Arc::clone)
    }

    /// Has the statement of this name on the server, and gives its name there. `None`: the client has none of this name (`known`), and
    /// the name may go as it is.
    fn bring(
        &mut self,
        name: &[u8],
        known: Option<Arc<Statement>>,
        seen: Seen<'_>,
        edit: &mut Edit<'_>,
    ) -> Option<ServerName> {
        let Some(statement) = known else {
            // Nobody gets at what others have prepared.
            return name.starts_with(PREFIX).then(ServerName::gone);
        };
        let Books {
            exchange, prepared, ..
        } = &mut *self.books;
        prepared.ensure(&statement, self.how.most, exchange, || edit.insert(seen.at));
        Some(statement.name())
    }
}

/// The name of the portal at the front of a Bind, which ends there with its zero byte.
fn portal_of(seen: Seen<'_>, end: usize) -> &[u8] {
    &seen.body[..end.saturating_sub(1)]
}

/// Whether a message may be waited for until all of it is there.
fn may_wait(seen: Seen<'_>, longest: usize) -> bool {
    seen.length() <= MODEST || (seen.length() <= longest && !is_memory_short())
}

/// More of the message must be there to tell what it names.
fn more(seen: Seen<'_>) -> Take {
    let body = (2 * seen.body.len()).max(64).min(seen.body_len as usize);
    Take::Wait(HEADER + body)
}

/// The same for a message whose names have not ended yet. They may not be endless: what cannot be read cannot be translated, and must
/// not go as it is, because it may name what another client has prepared.
fn more_of_head(seen: Seen<'_>) -> Take {
    if seen.body.len() < LONGEST_HEAD {
        more(seen)
    } else {
        Take::Refuse(too_long(seen))
    }
}

fn too_long(seen: Seen<'_>) -> Behind {
    Behind::Violation(WireError::TooLong {
        tag: seen.tag as char,
        length: seen.body_len,
        limit: u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX),
    })
}

/// The text at the front of `bytes`, up to its zero byte.
fn text_of(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

/// What the client hears when its parameters are reset: Postgres goes back to what the server connection began with, but for the
/// client its session began with what it asked for.
///
/// `touched`: what it has done to its session so far.
pub fn reset_parameter(how: &Tracking<'_>, touched: &Touched, seen: Seen<'_>) -> Option<Vec<u8>> {
    let (name, value) = parameter(seen.body).filter(|_| seen.is_whole())?;
    if !touched.resets(&name) {
        return None;
    }
    let own = how.startup.value(&name).filter(|own| **own != *value)?;
    let mut heard = how.heard.iter().chain(&touched.reported);
    let heard_other = heard.any(|(known, _)| *known == name);
    if !heard_other && how.parameters.value(&name) == Some(own) {
        return Some(vec![]);
    }
    Some(parameter_status(&name, own))
}

/// An error as the client may read it: in place of pgweir's name for a statement stands the client's own.
pub fn in_clients_words(statements: &Statements, seen: Seen<'_>) -> Option<Vec<u8>> {
    let (id, range) = mentioned(seen.body).filter(|_| seen.is_whole())?;
    let name = statements.name_of(id)?;
    let body = [&seen.body[..range.start], name, &seen.body[range.end..]].concat();
    Some(Message::new(seen.tag).bytes(&body).done())
}
