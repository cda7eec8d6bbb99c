//! What the session behind a server connection is like: its parameters, as far as they differ from those it began with, and what
//! the client that holds it has done to it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::wire::exchange::{Exchange, Receiver, Status};
use crate::wire::parameters::{Parameters, ROLES, row};
use crate::wire::scan::Seen;
use crate::wire::sql::Effects;
use crate::wire::statement::mentioned;

use super::prepared::Prepared;

/// Names of parameters that are kept apart, of those that one transaction sets.
const MOST_NAMES: usize = 256;

const TIMEOUT: &str = "statement_timeout";

/// A query that is not under the statement_timeout of whoever had the session before: that ends with the first statement, which takes
/// no time.
fn unhurried(sql: &str) -> String {
    format!("SET LOCAL {TIMEOUT} = 0; {sql}")
}

/// What a session is like.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub struct State {
    /// What differs from what it began with.
    parameters: Arc<Parameters>,
    /// What it was like before the change that is on its way.
    before: Option<Arc<Parameters>>,
    /// What the client did to it.
    touched: Option<Box<Touched>>,
    /// Something lives in it that cannot be moved.
    pinned: bool,
    /// What its transaction has done to what statements are about.
    remade: Remade,
    /// A database that its client wants nobody else connected to.
    vacates: Option<Box<str>>,
    /// Parameters may be set in it that Postgres does not list and whose names nobody knows: those with a dot.
    unlisted: bool,
    /// The last thing the server said was that it ends.
    fatal: bool,
    /// All names of statements were dropped without a message that said so before.
    forgets: bool,
    /// What a question of pgweir's own was answered, while there is one.
    answer: Option<Box<Answer>>,
    /// The body of the ErrorResponse with which a query of pgweir's own failed.
    error: Option<Box<[u8]>>,
}

/// What a transaction has done to what statements are about: tables, types, functions. Until it has ended, nobody else sees that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Remade {
    /// Nothing.
    #[default]
    Nothing,
    /// It has made something new.
    Added,
    /// It has changed or dropped something.
    Altered,
}

/// What a client may have done to the session that it was lent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub struct Touched {
    /// Parameters that it may have set, by name.
    pub names: Vec<Box<str>>,
    /// Parameters that it may have reset.
    pub reset: Vec<Box<str>>,
    /// It may have set any.
    pub any: bool,
    /// It has reset all.
    pub resets_all: bool,
    /// Whether it has is not known: something failed, or was rolled back.
    pub unsure: bool,
    /// Parameters that the server has reported since, with their values.
    pub reported: Vec<(Box<str>, Box<str>)>,
    /// Postgres was asked what has become of them, and was stopped before it could answer.
    pub asked_in_vain: bool,
}

impl Touched {
    /// Each parameter is kept once: a session that is never given back may set them for ever.
    fn report(&mut self, (name, value): (Box<str>, Box<str>)) {
        match self.reported.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.reported.push((name, value)),
        }
    }
}

/// What a query of pgweir's own was answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Rows of name and value.
    pub rows: Vec<(Box<str>, Option<Box<str>>)>,
    /// Parameters that were reported meanwhile.
    pub reported: Vec<(Box<str>, Box<str>)>,
    /// Postgres was stopped before it could answer.
    pub canceled: bool,
}

impl Touched {
    /// Whether this parameter may have been set or reset.
    fn concerns(&self, name: &str) -> bool {
        let mut names = self.names.iter().chain(&self.reset);
        let mut reported = self.reported.iter();
        self.any
            || self.resets_all
            || names.any(|known| known.eq_ignore_ascii_case(name))
            || reported.any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    /// Whether this parameter may have been reset.
    pub fn resets(&self, name: &str) -> bool {
        self.resets_all
            || self
                .reset
                .iter()
                .any(|reset| reset.eq_ignore_ascii_case(name))
    }
}

impl State {
    /// What differs from what it began with.
    pub fn parameters(&self) -> &Arc<Parameters> {
        &self.parameters
    }

    /// Whether it is known, without a closer look, to be like this. The usual answer is yes.
    pub fn is_plainly(&self, parameters: &Arc<Parameters>) -> bool {
        Arc::ptr_eq(&self.parameters, parameters)
    }

    /// Says what it is like, as was found out.
    pub fn set_parameters(&mut self, parameters: &Arc<Parameters>) {
        self.parameters = Arc::clone(parameters);
    }

    /// Says that what it is like cannot be found out: it stays with its client.
    pub fn pin(&mut self) {
        self.pinned = true;
    }

    /// The SQL that gives it these parameters, which it is taken to have from now on.
    pub(super) fn change_to(&mut self, parameters: &Arc<Parameters>) -> Option<String> {
        if self.is_plainly(parameters) {
            return None;
        }
        let sql = parameters.change_from(&self.parameters);
        let before = std::mem::replace(&mut self.parameters, Arc::clone(parameters));
        let sql = sql?;
        let sql = match before.value(TIMEOUT) {
            Some(_) => unhurried(&sql),
            None => sql,
        };
        self.before = Some(before);
        Some(sql)
    }

    /// Whether the statement_timeout in force is so short that even a query of pgweir's own may meet it.
    pub fn is_hasty(&self) -> bool {
        self.parameters.value(TIMEOUT).is_some_and(|timeout| {
            let digits = timeout.trim_end_matches(|letter: char| !letter.is_ascii_digit());
            let long = timeout.ends_with(['s', 'n', 'h', 'd']) && !timeout.ends_with("ms");
            !(long && digits.parse().is_ok_and(|count: u32| count > 0))
                && digits
                    .parse()
                    .is_ok_and(|count: u32| (1..1000).contains(&count))
        })
    }

    /// Whether something lives in it that cannot be moved to another connection.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Whether this parameter may be another than the book says: the client may have set it, or Postgres is being asked what it has set.
    pub fn may_have_other(&self, name: &str) -> bool {
        let touched = self.touched.as_deref();
        self.answer.is_some() || touched.is_some_and(|touched| touched.concerns(name))
    }

    /// Whether a statement may mean something else here than with others: under a `search_path` that is not known, beside tables that
    /// live in this session, or after a change that others do not see yet.
    pub fn reads_otherwise(&self) -> bool {
        self.pinned || self.remade != Remade::Nothing || self.may_have_other("search_path")
    }

    /// The transaction has ended. `true`: it may have changed what statements are about.
    pub fn has_altered(&mut self) -> bool {
        std::mem::take(&mut self.remade) == Remade::Altered
    }

    /// A database that its client is about to drop or rename, since this was last asked.
    pub fn vacates(&mut self) -> Option<Box<str>> {
        self.vacates.take()
    }

    /// Whether it may have parameters that no other client may see, and whose names nobody knows.
    pub fn is_unlisted(&self) -> bool {
        self.unlisted
    }

    /// Whether it is not as a new client may expect it, and no book tells how: not yet, if that is being asked.
    pub fn is_touched(&self) -> bool {
        self.touched.is_some() || self.pinned || self.unlisted || self.answer.is_some()
    }

    /// If the client resets parameters, or has just done so: what it has done so far.
    pub fn resetting(&self) -> Option<Touched> {
        let touched = self.touched.as_deref()?;
        (touched.resets_all || !touched.reset.is_empty()).then(|| touched.clone())
    }

    /// Whether a change to these parameters is one of the role, which decides what its client may do.
    pub fn changes_role(&self, parameters: &Parameters) -> bool {
        ROLES
            .iter()
            .any(|role| self.parameters.value(role) != parameters.value(role))
    }

    /// Notes what a client's text does.
    pub fn note_effects(&mut self, effects: &Effects<'_>, status: Status) {
        self.pinned |= effects.pins || (effects.creates && self.makes_temporary());
        if let Some(database) = &effects.vacates {
            self.vacates = Some((**database).into());
        }
        if effects.alters {
            self.remade = Remade::Altered;
        } else if effects.creates {
            self.remade = self.remade.max(Remade::Added);
        }
        let named = effects.sets.len() + effects.resets.len() > 0;
        if !named && !effects.sets_unknown && !effects.resets_all {
            return;
        }
        let touched = self.touched.get_or_insert_default();
        let all = keep_each(&mut touched.names, &effects.sets)
            & keep_each(&mut touched.reset, &effects.resets);
        let unlisted = effects.sets_unknown || !all;
        self.unlisted |= unlisted;
        touched.any |= unlisted;
        touched.resets_all |= effects.resets_all;
        touched.unsure |= status != Status::Idle;
    }

    /// Whether tables that are made in it without another word may live in it alone.
    fn makes_temporary(&self) -> bool {
        let search_path = self.parameters.value("search_path");
        search_path.is_some_and(|path| path.contains("pg_temp"))
    }

    pub(super) fn take_touched(&mut self) -> Option<Box<Touched>> {
        self.touched.take()
    }

    /// Notes what the client had done before what is noted already.
    pub fn touched_before(&mut self, mut touched: Touched) {
        if let Some(since) = self.touched.take() {
            let Touched {
                names,
                reset,
                any,
                resets_all,
                unsure,
                reported,
                asked_in_vain,
            } = *since;
            touched.asked_in_vain |= asked_in_vain;
            touched.names.extend(names);
            touched.reset.extend(reset);
            touched.any |= any;
            touched.resets_all |= resets_all;
            touched.unsure |= unsure;
            for parameter in reported {
                touched.report(parameter);
            }
        }
        self.touched = Some(Box::new(touched));
    }

    pub(super) fn said_fatal(&self) -> bool {
        self.fatal
    }

    /// Whether all names of statements were dropped since this was last asked, by what nobody saw coming.
    pub fn forgets(&mut self) -> bool {
        std::mem::take(&mut self.forgets)
    }

    /// Keeps what queries of pgweir's own are answered from now on.
    pub(super) fn listen(&mut self) {
        self.answer = Some(Box::default());
    }

    /// What they were answered; `None`: nothing was asked.
    pub fn answer(&mut self) -> Option<Box<Answer>> {
        self.answer.take()
    }

    /// The body of the ErrorResponse with which a query of pgweir's own failed.
    pub fn error(&mut self) -> Option<Box<[u8]>> {
        self.error.take()
    }

    /// Hears a message of the server's, and says for whom it is.
    pub(super) fn hear(
        &mut self,
        exchange: &mut Exchange,
        prepared: &mut Prepared,
        seen: Seen<'_>,
    ) -> Receiver {
        let batch = seen.tag == b'E' && !exchange.in_simple_query();
        if seen.tag == b'Z' && exchange.is_skipping() {
            // What pgweir sent of it behind the error was skipped too.
            prepared.set_unnamed(None);
        }
        if seen.tag == b'E' && is_last_word(seen.body) {
            exchange.server_ends();
        }
        let receiver = exchange.server_sent(seen.tag, seen.body);
        if seen.tag == b'Z' && exchange.is_answered() {
            prepared.settled();
        }
        self.fatal = false;
        match (seen.tag, receiver) {
            (b'C', Receiver::Client) => self.completed(exchange, prepared, seen.body),
            (b'S', Receiver::Client) => {
                if let Some(parameter) = parameter(seen.body) {
                    self.touched.get_or_insert_default().report(parameter);
                }
            }
            (b'E', Receiver::Client | Receiver::Refused) => {
                self.failed(prepared, seen.body, batch);
                if !has_field(seen.body, b"C26000") {
                    // It has a reason of its own.
                    return Receiver::Client;
                }
            }
            (b'Z', Receiver::Pgweir) => self.before = None,
            (tag, Receiver::Pgweir) => self.answered(tag, seen.body),
            _ => {}
        }
        receiver
    }

    fn completed(&mut self, exchange: &Exchange, prepared: &mut Prepared, tag: &[u8]) {
        match tag {
            b"DISCARD ALL\0" => {
                self.forgets |= prepared.discarded();
                // What was sent behind it may have been noted already.
                if exchange.is_last_command() {
                    (self.pinned, self.unlisted) = (false, false);
                }
                let touched = self.touched.get_or_insert_default();
                touched.resets_all = true;
            }
            b"DEALLOCATE ALL\0" => self.forgets |= prepared.discarded(),
            b"ROLLBACK\0" => {
                if let Some(touched) = &mut self.touched {
                    touched.unsure = true;
                }
            }
            _ => {}
        }
    }

    fn failed(&mut self, prepared: &mut Prepared, body: &[u8], batch: bool) {
        if let Some(touched) = &mut self.touched {
            touched.unsure = true;
        }
        if batch {
            prepared.set_unnamed(None);
        }
        let has = |wanted: &[u8]| has_field(body, wanted);
        self.fatal = is_last_word(body);
        // "cached plan must not change result type": its text is translated, the place where it is raised is not.
        if has(b"RRevalidateCachedQuery") {
            prepared.outdate_all();
        }
        // The server has other statements than the book says: somebody dropped them, or failed to, where no word told.
        if mentioned(body).is_some() && (has(b"C26000") || has(b"C42P05")) {
            prepared.doubt_all();
        }
    }

    fn answered(&mut self, tag: u8, body: &[u8]) {
        match (tag, &mut self.answer) {
            (b'D', Some(answer)) => {
                if let Some((name, value)) = row(body) {
                    answer.rows.push((name.into(), value.map(Into::into)));
                }
            }
            (b'S', Some(answer)) => answer.reported.extend(parameter(body)),
            (b'E', answer) => {
                match answer {
                    Some(answer) if has_field(body, b"C57014") => answer.canceled = true,
                    _ => self.error = Some(body.into()),
                }
                if let Some(before) = self.before.take() {
                    self.parameters = before;
                }
            }
            _ => {}
        }
    }
}

/// Whether the body of an ErrorResponse has this field.
fn has_field(body: &[u8], wanted: &[u8]) -> bool {
    body.split(|byte| *byte == 0).any(|field| field == wanted)
}

/// Whether the body of an ErrorResponse is the last thing that a server says.
fn is_last_word(body: &[u8]) -> bool {
    has_field(body, b"VFATAL") || has_field(body, b"VPANIC")
}

/// Adds the names that are not there yet. `false`: there are too many to be kept apart.
fn keep_each(names: &mut Vec<Box<str>>, more: &[Cow<'_, str>]) -> bool {
    for name in more {
        if names.iter().any(|known| **known == **name) {
            continue;
        }
        if names.len() >= MOST_NAMES {
            return false;
        }
        names.push((**name).into());
    }
    true
}

/// Name and value of a ParameterStatus.
pub fn parameter(body: &[u8]) -> Option<(Box<str>, Box<str>)> {
    let mut texts = body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    Some((texts.next()?.into(), texts.next()?.into()))
}
