//! What the text of a query does to the session, as far as its words tell: `SET`, `DEALLOCATE`, temporary tables, and what
//! else outlives a transaction.
//!
//! No parser: it knows where Postgres' words begin and end (Postgres manual, "Lexical Structure"), which word a statement
//! begins with, and the names of a few functions. What functions and dynamic SQL do inside of the server is hidden from
//! it; so are strings with backslashes under `standard_conforming_strings = off`. Where it is not sure, it says more
//! rather than less.

mod fingerprint;
mod glance;
mod lexer;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

pub use self::fingerprint::fingerprint;
pub use self::glance::may_have_effects;
use self::lexer::{Kind, LONGEST_KEYWORD, Lexer, Token, is_of_word};

/// What a text does to the session beyond its transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a text may do any of these")]
pub struct Effects<'a> {
    /// Parameters that it sets for the session, in lower case unless they were quoted.
    pub sets: Vec<Cow<'a, str>>,
    /// Parameters that it resets.
    pub resets: Vec<Cow<'a, str>>,
    /// It sets parameters whose names the words do not tell: `set_config` with an expression.
    pub sets_unknown: bool,
    /// It resets all parameters: `RESET ALL`, `DISCARD ALL`.
    pub resets_all: bool,
    /// It drops all prepared statements: `DEALLOCATE ALL`, `DISCARD ALL`.
    pub discards: bool,
    /// The names that `DEALLOCATE` drops: where each is written, with its quotes, and the name itself.
    /// Not `DEALLOCATE ALL`.
    pub deallocates: Vec<(Range<usize>, Cow<'a, str>)>,
    /// Some of what it does stands in the code of a `DO`, of whose statements Postgres does not say whether they were done.
    pub in_code: bool,
    /// It makes something that lives where `search_path` says.
    pub creates: bool,
    /// It changes or drops what statements are about, so that what they take and give may be another than before.
    pub alters: bool,
    /// A database that it drops, renames or copies, which Postgres does only where nobody is connected to it.
    pub vacates: Option<Cow<'a, str>>,
    /// It makes something that lives in the server's session and cannot be moved to another: `PREPARE`, `LISTEN`, temporary
    /// tables, cursors `WITH HOLD`, `LOAD`, advisory locks of the session.
    pub pins: bool,
}

impl<'a> Effects<'a> {
    fn sets(&mut self, name: Option<Cow<'a, str>>) {
        match name {
            // These belong to the transaction, whichever way they are set.
            Some(name) if TRANSACTION_PARAMETERS.contains(&&*name) => {}
            Some(name) => self.sets.push(name),
            None => self.sets_unknown = true,
        }
    }

    fn sets_known(&mut self, name: &'static str) {
        self.sets.push(Cow::Borrowed(name));
    }
}

const TRANSACTION_PARAMETERS: [&str; 3] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
];

/// Functions that take an advisory lock until the end of the session.
const LOCKS: [&[u8]; 4] = [
    b"pg_advisory_lock",
    b"pg_advisory_lock_shared",
    b"pg_try_advisory_lock",
    b"pg_try_advisory_lock_shared",
];

/// Code within strings within the code of a `DO` is looked at, no deeper: a bound on the work.
const MOST_NESTED: u8 = 2;

/// Tokens behind a word that are looked at for its sake. A bound on the work, and more than usual texts have.
const LOOK_AHEAD: usize = 32;

/// What `text`, of a Query or Parse message, does to the session.
pub fn effects(text: &[u8]) -> Effects<'_> {
    let mut effects = Effects::default();
    walk(Lexer { text, at: 0 }, 0, &mut effects);
    // Whatever is made in such a path is temporary, also where the path is that of one transaction.
    effects.pins |= mentions_temp(text) && mentions(text, b"search_path");
    // An UPDATE of this view is a SET.
    effects.sets_unknown |= mentions(text, b"pg_settings") && mentions(text, b"update");
    effects
}

/// Whether `pg_temp` or the like of `pg_temp_1` stands anywhere in a text.
fn mentions_temp(text: &[u8]) -> bool {
    let mut windows = text.windows(b"pg_temp".len()).enumerate();
    windows.any(|(at, window)| {
        window.eq_ignore_ascii_case(b"pg_temp") && !goes_on_with_letters(&text[at + window.len()..])
    })
}

fn goes_on_with_letters(text: &[u8]) -> bool {
    text.first()
        .is_some_and(|byte| is_of_word(*byte) && *byte != b'_')
}

/// Whether these letters stand anywhere in a text.
fn mentions(text: &[u8], letters: &[u8]) -> bool {
    let mut windows = text.windows(letters.len());
    windows.any(|window| window.eq_ignore_ascii_case(letters))
}

/// Notes the effects of every statement. `nesting` counts the strings around them that are code.
fn walk<'a>(mut lexer: Lexer<'a>, nesting: u8, effects: &mut Effects<'a>) {
    let mut statement = Statement::default();
    let mut begins = true;
    loop {
        let here = lexer;
        let Some(token) = lexer.next() else { break };
        if begins {
            head(here, effects);
            statement.has_code = nesting > 0 || token.is(b"do");
        }
        if token.is_symbol(b';') {
            effects.pins |= statement.makes_temporary;
            statement = Statement::default();
        } else {
            word(token, lexer, effects);
            if statement.has_code && nesting < MOST_NESTED {
                code(token, lexer.text, nesting, effects);
            }
            statement.note(token);
        }
        begins = token.is_symbol(b';') || (nesting > 0 && token.opens_block());
    }
    effects.pins |= statement.makes_temporary;
}

/// What is known of a statement from its words so far.
#[derive(Default)]
struct Statement<'a> {
    /// The last token and the one before it.
    last: [Option<Token<'a>>; 2],
    /// A temporary relation that the end of the transaction does not drop.
    makes_temporary: bool,
    /// Its strings are code.
    has_code: bool,
}

impl<'a> Statement<'a> {
    fn note(&mut self, token: Token<'a>) {
        if token.is(b"temp") || token.is(b"temporary") {
            self.makes_temporary |= self.expects_temporary();
        }
        if token.is(b"drop") && self.follows(b"commit", 0) && self.follows(b"on", 1) {
            self.makes_temporary = false;
        }
        self.last = [Some(token), self.last[0]];
    }

    /// `CREATE [OR REPLACE] [LOCAL|GLOBAL]` or the `INTO` of a SELECT stands before.
    fn expects_temporary(&self) -> bool {
        let by = usize::from(self.follows(b"local", 0) || self.follows(b"global", 0));
        let into_table = self.follows(b"insert", by + 1) || self.follows(b"merge", by + 1);
        self.follows(b"create", by)
            || self.follows(b"replace", by)
            || (self.follows(b"into", by) && !into_table)
    }

    /// Whether the token `back` before the last one is this word.
    fn follows(&self, word: &[u8], back: usize) -> bool {
        self.last
            .get(back)
            .is_some_and(|token| token.is_some_and(|token| token.is(word)))
    }
}

/// Notes what the statement that begins here does by its first words.
fn head<'a>(mut lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    let Some(first) = lexer.next() else { return };
    match first.keyword(&mut [0; LONGEST_KEYWORD]) {
        b"set" => set(lexer, effects),
        b"create" => {
            effects.creates = true;
            effects.alters |= lexer.next_is(b"or");
            vacates(lexer, b"template", effects);
        }
        b"alter" | b"drop" => {
            effects.alters = true;
            vacates(lexer, b"database", effects);
        }
        b"reset" => reset(lexer, effects),
        b"discard" if lexer.next_is(b"all") => {
            effects.resets_all = true;
            effects.discards = true;
        }
        b"deallocate" => deallocate(lexer, effects),
        b"prepare" => effects.pins |= !prepares_transaction(lexer),
        b"listen" | b"load" => effects.pins = true,
        b"declare" => effects.pins |= declares_with_hold(lexer),
        _ => {}
    }
}

/// Notes the database that a `CREATE`, `ALTER` or `DROP DATABASE` wants for itself: its name stands behind this word.
fn vacates<'a>(lexer: Lexer<'a>, word: &[u8], effects: &mut Effects<'a>) {
    if !lexer.next_is(b"database") {
        return;
    }
    let tokens = lexer.take(LOOK_AHEAD);
    let tokens = tokens.take_while(|token| !token.is_symbol(b';'));
    let name = tokens
        .skip_while(|token| !token.is(word))
        .skip(1)
        .find(|token| !(token.is(b"if") || token.is(b"exists") || token.is_symbol(b'=')));
    if let Some(name) = name.and_then(Token::identifier) {
        effects.vacates = Some(name);
    }
}

fn set<'a>(lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    let mut lexer = after_session(lexer);
    if assigns(lexer) {
        let name = parameter(&mut lexer);
        lexer.next();
        match name {
            Some(name) if lexer.next_is(b"default") => effects.resets.push(name),
            name => effects.sets(name),
        }
        return;
    }
    let mut rest = lexer;
    let Some(first) = rest.next() else { return };
    match first.keyword(&mut [0; LONGEST_KEYWORD]) {
        b"local" | b"transaction" | b"constraints" => {}
        b"session" if rest.next_is(b"authorization") => effects.sets_known("session_authorization"),
        b"time" => effects.sets_known("timezone"),
        b"names" => effects.sets_known("client_encoding"),
        b"role" => effects.sets_known("role"),
        b"schema" => effects.sets_known("search_path"),
        b"xml" => effects.sets_known("xmloption"),
        _ => effects.sets_unknown = true,
    }
}

/// Behind `SESSION` where it only says that the setting is not `LOCAL`.
fn after_session(lexer: Lexer<'_>) -> Lexer<'_> {
    let mut rest = lexer;
    let is_noise = rest.next().is_some_and(|first| first.is(b"session"))
        && !assigns(lexer)
        && !rest.next_is(b"authorization")
        && !rest.next_is(b"characteristics");
    if is_noise { rest } else { lexer }
}

/// Whether it goes on with a parameter's name and what stands between name and value.
fn assigns(mut lexer: Lexer<'_>) -> bool {
    parameter(&mut lexer);
    lexer
        .next()
        .is_some_and(|next| next.is_symbol(b'=') || next.is(b"to"))
}

fn reset<'a>(mut lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    let mut rest = lexer;
    let Some(first) = rest.next() else { return };
    match first.keyword(&mut [0; LONGEST_KEYWORD]) {
        b"all" => effects.resets_all = true,
        b"session" if rest.next_is(b"authorization") => {
            effects.resets.push(Cow::Borrowed("session_authorization"));
        }
        b"time" if rest.next_is(b"zone") => effects.resets.push(Cow::Borrowed("timezone")),
        b"transaction" => {}
        _ => match parameter(&mut lexer).filter(|_| lexer.ends_statement()) {
            Some(name) => effects.resets.push(name),
            None => effects.sets_unknown = true,
        },
    }
}

/// Reads a parameter's name, which may have dots.
fn parameter<'a>(lexer: &mut Lexer<'a>) -> Option<Cow<'a, str>> {
    let mut name = lexer.next()?.identifier()?;
    loop {
        let mut rest = *lexer;
        if !rest.next().is_some_and(|token| token.is_symbol(b'.')) {
            return Some(name);
        }
        let part = rest.next()?;
        *lexer = rest;
        name.to_mut().push('.');
        name.to_mut().push_str(&part.identifier()?);
    }
}

fn deallocate<'a>(mut lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    let mut behind_prepare = lexer;
    if behind_prepare
        .next()
        .is_some_and(|word| word.is(b"prepare"))
        && !behind_prepare.ends_statement()
    {
        lexer = behind_prepare;
    }
    let Some(token) = lexer.next() else { return };
    if token.is(b"all") {
        effects.discards = true;
        return;
    }
    if !lexer.ends_statement() {
        return;
    }
    if let Some(name) = token.identifier() {
        effects.deallocates.push((token.range(), name));
    }
}

/// `PREPARE TRANSACTION 'name'`, not `PREPARE name AS ...`.
fn prepares_transaction(mut lexer: Lexer<'_>) -> bool {
    lexer.next().is_some_and(|word| word.is(b"transaction"))
        && lexer.next().is_some_and(Token::is_string)
}

fn declares_with_hold(lexer: Lexer<'_>) -> bool {
    let mut with = false;
    for token in lexer.take(LOOK_AHEAD) {
        if token.is_symbol(b';') || token.is(b"for") {
            return false;
        }
        if with && token.is(b"hold") {
            return true;
        }
        with = token.is(b"with");
    }
    false
}

/// Notes what a word does wherever it stands. `lexer` goes on behind it.
fn word<'a>(token: Token<'a>, mut lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    if !matches!(token.kind, Kind::Word | Kind::Quoted) || token.inside.len() < "pg_temp".len() {
        return;
    }
    if token.names(b"set_config") {
        if lexer.next().is_some_and(|next| next.is_symbol(b'(')) {
            configure(lexer, effects);
        }
    } else if token.names(b"pg_temp") {
        effects.pins |= lexer.next().is_some_and(|next| next.is_symbol(b'.'));
    } else if LOCKS.iter().any(|lock| token.names(lock)) {
        effects.pins |= lexer.next().is_some_and(|next| next.is_symbol(b'('));
    }
}

/// Notes what `set_config` does with the arguments that begin here.
fn configure<'a>(lexer: Lexer<'a>, effects: &mut Effects<'a>) {
    let arguments = arguments(lexer);
    if arguments[2].is_true() {
        return;
    }
    effects.sets(arguments[0].string());
}

/// An argument that is a single token, or more than that.
#[derive(Clone, Copy, Default)]
enum Argument<'a> {
    #[default]
    Missing,
    Single(Token<'a>),
    Expression,
}

impl<'a> Argument<'a> {
    fn with(self, token: Token<'a>) -> Self {
        match self {
            Self::Missing => Self::Single(token),
            Self::Single(_) | Self::Expression => Self::Expression,
        }
    }

    fn string(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Single(token) if token.is_string() => token.value(),
            _ => None,
        }
    }

    fn is_true(self) -> bool {
        match self {
            Self::Single(token) => token.is(b"true") || matches!(token.string(), b"true" | b"t"),
            _ => false,
        }
    }
}

/// The first three arguments of a call, as far as [`LOOK_AHEAD`] reaches.
fn arguments(lexer: Lexer<'_>) -> [Argument<'_>; 3] {
    let mut arguments = [Argument::Missing; 3];
    let (mut current, mut depth) = (0, 0_usize);
    for token in lexer.take(LOOK_AHEAD) {
        match token.kind {
            Kind::Symbol(b',') if depth == 0 => {
                current += 1;
                continue;
            }
            Kind::Symbol(b')' | b']') if depth == 0 => return arguments,
            Kind::Symbol(b'(' | b'[') => depth += 1,
            Kind::Symbol(b')' | b']') => depth -= 1,
            _ => {}
        }
        if let Some(argument) = arguments.get_mut(current) {
            *argument = argument.with(token);
        }
    }
    // What was cut off may go on.
    if let Some(argument) = arguments.get_mut(current) {
        *argument = Argument::Expression;
    }
    arguments
}

/// Notes the effects of a string that is code.
fn code<'a>(token: Token<'a>, text: &'a [u8], nesting: u8, effects: &mut Effects<'a>) {
    if token.is_string() {
        let inside = token.inside_range();
        let lexer = Lexer {
            text: &text[..inside.end],
            at: inside.start,
        };
        let before = (effects.deallocates.len(), effects.discards);
        walk(lexer, nesting + 1, effects);
        effects.in_code |= before != (effects.deallocates.len(), effects.discards);
    }
}
