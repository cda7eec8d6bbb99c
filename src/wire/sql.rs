//! What the text of a query does to the session, as far as its words tell: `SET`, `DEALLOCATE`, temporary tables, and what
//! else outlives a transaction.
//!
//! No parser: it knows where Postgres' words begin and end (Postgres manual, "Lexical Structure"), which word a statement
//! begins with, and the names of a few functions. What functions and dynamic SQL do inside of the server is hidden from
//! it; so are strings with backslashes under `standard_conforming_strings = off`. Where it is not sure, it says more
//! rather than less.

use std::borrow::Cow;
use std::ops::Range;

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

/// Whether [`effects`] could find anything: one cheap look for the hot path.
pub fn may_have_effects(text: &[u8]) -> bool {
    let text = &text[after_blanks(text, 0)..];
    if !begins_harmless(text) {
        return true;
    }
    let is_telling = |byte: &u8| TELLING[usize::from(*byte)];
    let mut at = 0;
    while let Some(step) = text[at..].iter().position(is_telling) {
        at += step;
        if has_effect_at(text, at) {
            return true;
        }
        at += 1;
    }
    false
}

/// Bytes at which a closer look is worth it. A table, because every byte of every query is looked up in it.
const TELLING: [bool; 256] = {
    let mut telling = [false; 256];
    telling[b';' as usize] = true;
    telling[b'_' as usize] = true;
    telling[b'm' as usize] = true;
    telling[b'M' as usize] = true;
    telling
};

/// Whether a statement with effects begins behind `at`, or a word that tells of some lies around it. Not inlined: the loop over
/// all bytes is half as long without it.
#[inline(never)]
fn has_effect_at(text: &[u8], at: usize) -> bool {
    let is = |at: usize, letter: u8| {
        text.get(at)
            .is_some_and(|byte| byte.eq_ignore_ascii_case(&letter))
    };
    match text[at] {
        // A comment there is not worth reading; nor could it be read for each of many within linear time.
        b';' => !begins_harmless(text[at + 1..].trim_ascii_start()),
        // The letters beside it decide nearly always.
        b'_' if is(at.wrapping_sub(1), b't') => {
            ends_with(&text[..at], b"set") && begins_with(&text[at + 1..], b"config")
        }
        b'_' => is(at.wrapping_sub(1), b'g') && is_in_telling_name(text, at),
        _ => is(at + 1, b'p') && is_in_temp(text, at),
    }
}

/// The longest fingerprint, in bytes: enough to know a statement again.
const LONGEST_FINGERPRINT: usize = 300;

/// A statement without its literals and comments, to be told from others in logs and incidents, where what users wrote has no
/// place. Where a text cannot be read with certainty it ends: rather too short than with a secret in it.
pub fn fingerprint(text: &[u8]) -> String {
    let mut out = String::new();
    let mut lexer = Lexer { text, at: 0 };
    let (mut end, mut assigns) = (0, false);
    while let Some(token) = lexer.next() {
        let range = token.inside_range();
        let apart = lexer.at > 0 && text[end..range.start].iter().any(u8::is_ascii_whitespace);
        if apart && !out.is_empty() {
            out.push(' ');
        }
        end = lexer.at;
        match token.kind {
            Kind::String | Kind::Escaped | Kind::Dollar => hide(&mut out),
            Kind::Symbol(symbol) if symbol.is_ascii_digit() => {
                end = after_number(text, range.start);
                lexer.at = end;
                // `$1` is a parameter's name.
                if text[..range.start].ends_with(b"$") {
                    out.push_str(&String::from_utf8_lossy(&text[range.start..end]));
                } else {
                    hide(&mut out);
                }
            }
            Kind::Word | Kind::Quoted | Kind::Symbol(_) => {
                out.push_str(&String::from_utf8_lossy(&text[token.range()]));
            }
        }
        // With standard_conforming_strings off, the string goes on behind `\'`.
        let unsure = token.kind == Kind::String && token.inside.ends_with(b"\\");
        // What a parameter is set to may be a bare word.
        assigns |= out.len() <= 5 && (token.is(b"set") || token.is(b"alter"));
        let assigned = assigns && (token.is_symbol(b'=') || token.is(b"to"));
        if unsure || assigned || out.len() > LONGEST_FINGERPRINT {
            out.truncate(out.floor_char_boundary(LONGEST_FINGERPRINT));
            out.push_str(" ...");
            break;
        }
    }
    out
}

/// Stands for a literal. A list of them is as good as one.
fn hide(out: &mut String) {
    let list = out.trim_end().strip_suffix(',').map(str::trim_end);
    match list.filter(|list| list.ends_with('?')).map(str::len) {
        Some(len) => out.truncate(len),
        None => out.push('?'),
    }
}

/// Behind the number at `at`, with its fraction, exponent or base.
fn after_number(text: &[u8], at: usize) -> usize {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    let len = text[at..].iter().position(|byte| !is_part(byte));
    len.map_or(text.len(), |len| at + len)
}

/// Whether a statement that begins here can have effects only by its functions and by the word `temp`.
fn begins_harmless(text: &[u8]) -> bool {
    let len = text.iter().position(|byte| !is_of_word(*byte));
    let mut folded = [0; LONGEST_KEYWORD];
    match fold(&text[..len.unwrap_or(text.len())], &mut folded) {
        b"" => matches!(text.first(), None | Some(b';' | 0)),
        b"select" | b"insert" | b"update" | b"delete" | b"with" | b"begin" | b"commit"
        | b"rollback" | b"start" | b"end" | b"abort" | b"savepoint" | b"release" | b"values"
        | b"merge" | b"show" | b"copy" | b"fetch" | b"move" | b"close" | b"table" | b"truncate"
        | b"notify" => true,
        _ => false,
    }
}

/// Whether the underscore at `at` is that of `pg_temp`, `pg_settings` or an advisory lock.
fn is_in_telling_name(text: &[u8], at: usize) -> bool {
    let (before, after) = (&text[..at], &text[at + 1..]);
    let goes_on = |with: &[u8]| begins_with(after, with);
    ends_with(before, b"pg")
        && (goes_on(b"advisory_lock")
            || goes_on(b"settings")
            || goes_on(b"try_advisory_lock")
            || (goes_on(b"temp") && !goes_on_with_letters(&after[4..])))
}

/// Whether the letter at `at` is the third one of the word `temp` or `temporary`.
fn is_in_temp(text: &[u8], at: usize) -> bool {
    let Some((before, temp)) = text.split_at_checked(at.wrapping_sub(2)) else {
        return false;
    };
    if !begins_with(temp, b"temp") || before.last().is_some_and(|byte| is_of_word(*byte)) {
        return false;
    }
    let after = &temp[4..];
    begins_with(after, b"orary") || !after.first().is_some_and(|byte| is_of_word(*byte))
}

fn begins_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word))
}

fn ends_with(text: &[u8], word: &[u8]) -> bool {
    text.len()
        .checked_sub(word.len())
        .is_some_and(|from| text[from..].eq_ignore_ascii_case(word))
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An identifier or key word.
    Word,
    /// `"..."`.
    Quoted,
    /// `'...'`.
    String,
    /// `E'...'`.
    Escaped,
    /// `$tag$...$tag$`.
    Dollar,
    /// Any other byte; numbers and parameters are several.
    Symbol(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    kind: Kind,
    /// As written, without the quotes around it.
    inside: &'a [u8],
    /// Where `inside` begins in the text.
    at: usize,
}

const LONGEST_KEYWORD: usize = 16;

impl<'a> Token<'a> {
    /// Whether it is this key word.
    fn is(self, word: &[u8]) -> bool {
        self.kind == Kind::Word && self.inside.eq_ignore_ascii_case(word)
    }

    /// Whether it is this name, quoted or not.
    fn names(self, name: &[u8]) -> bool {
        self.is(name) || (self.kind == Kind::Quoted && self.inside == name)
    }

    fn is_symbol(self, symbol: u8) -> bool {
        self.kind == Kind::Symbol(symbol)
    }

    fn is_string(self) -> bool {
        matches!(self.kind, Kind::String | Kind::Escaped | Kind::Dollar)
    }

    /// Whether statements follow it in PL/pgSQL.
    fn opens_block(self) -> bool {
        [&b"begin"[..], b"then", b"else", b"loop"]
            .iter()
            .any(|word| self.is(word))
    }

    /// In lower case, if it is a word that is not longer than any that matters.
    fn keyword(self, folded: &mut [u8; LONGEST_KEYWORD]) -> &[u8] {
        if self.kind == Kind::Word {
            fold(self.inside, folded)
        } else {
            b""
        }
    }

    /// What stands in a string, unless it is none.
    fn string(self) -> &'a [u8] {
        if self.is_string() { self.inside } else { b"" }
    }

    /// The name, if it is one and can be read.
    fn identifier(self) -> Option<Cow<'a, str>> {
        matches!(self.kind, Kind::Word | Kind::Quoted)
            .then(|| self.value())
            .flatten()
    }

    /// What it stands for, if that can be read.
    fn value(self) -> Option<Cow<'a, str>> {
        let inside = std::str::from_utf8(self.inside).ok()?;
        Some(match self.kind {
            Kind::Word if inside.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                Cow::Owned(inside.to_ascii_lowercase())
            }
            Kind::Quoted if inside.contains('"') => Cow::Owned(inside.replace("\"\"", "\"")),
            Kind::Escaped if inside.contains('\\') => return None,
            Kind::String | Kind::Escaped if inside.contains('\'') => {
                Cow::Owned(inside.replace("''", "'"))
            }
            _ => Cow::Borrowed(inside),
        })
    }

    fn inside_range(self) -> Range<usize> {
        self.at..self.at + self.inside.len()
    }

    /// Where a name stands, with its quotes.
    fn range(self) -> Range<usize> {
        let inside = self.inside_range();
        match self.kind {
            Kind::Quoted => inside.start - 1..inside.end + 1,
            _ => inside,
        }
    }
}

/// `word` in lower case; nothing if it is too long.
fn fold<'b>(word: &[u8], folded: &'b mut [u8; LONGEST_KEYWORD]) -> &'b [u8] {
    let Some(folded) = folded.get_mut(..word.len()) else {
        return b"too long";
    };
    folded.copy_from_slice(word);
    folded.make_ascii_lowercase();
    folded
}

/// Cuts a text into tokens. What is not closed ends the text: Postgres then refuses the whole of it.
#[derive(Clone, Copy)]
struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

#[expect(
    clippy::copy_iterator,
    reason = "to look ahead is to read on with a copy"
)]
impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.at = after_blanks(self.text, self.at);
        let token = self.token();
        if token.is_none() {
            self.at = self.text.len();
        }
        token
    }
}

impl<'a> Lexer<'a> {
    /// Whether this word is next. It stays there.
    fn next_is(mut self, word: &[u8]) -> bool {
        self.next().is_some_and(|token| token.is(word))
    }

    fn ends_statement(self) -> bool {
        let next = self.text.get(after_blanks(self.text, self.at));
        matches!(next, None | Some(b';' | 0))
    }

    fn token(&mut self) -> Option<Token<'a>> {
        let rest = &self.text[self.at..];
        match *rest {
            [b'e' | b'E', b'\'', ..] => self.quoted(Kind::Escaped, 2, escaped_end(&rest[2..])?, 1),
            [b'\'', ..] => self.quoted(Kind::String, 1, quoted_end(&rest[1..], b'\'')?, 1),
            [b'"', ..] => self.quoted(Kind::Quoted, 1, quoted_end(&rest[1..], b'"')?, 1),
            [first, ..] if begins_word(first) => {
                let len = rest.iter().position(|byte| !is_of_word(*byte));
                self.quoted(Kind::Word, 0, len.unwrap_or(rest.len()), 0)
            }
            [b'$', ..] if let Some(tag) = dollar_tag(rest) => self.quoted(
                Kind::Dollar,
                tag.len(),
                dollar_end(&rest[tag.len()..], tag)?,
                tag.len(),
            ),
            // A zero byte ends the text for Postgres.
            [] | [0, ..] => None,
            [first, ..] => self.quoted(Kind::Symbol(first), 0, 1, 0),
        }
    }

    /// A token with so many bytes before, in and behind it.
    #[expect(clippy::unnecessary_wraps, reason = "every caller returns an Option")]
    fn quoted(
        &mut self,
        kind: Kind,
        before: usize,
        len: usize,
        behind: usize,
    ) -> Option<Token<'a>> {
        let at = self.at + before;
        self.at = at + len + behind;
        Some(Token {
            kind,
            inside: &self.text[at..at + len],
            at,
        })
    }
}

/// Behind the white space and comments at `at`.
fn after_blanks(text: &[u8], mut at: usize) -> usize {
    loop {
        match text[at..] {
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, ..] => at += 1,
            [b'-', b'-', ..] => at += line_len(&text[at..]),
            [b'/', b'*', ..] => at += comment_len(&text[at..]),
            _ => return at,
        }
    }
}

fn line_len(text: &[u8]) -> usize {
    text.iter()
        .position(|byte| matches!(byte, b'\n' | b'\r'))
        .unwrap_or(text.len())
}

/// Comments nest.
fn comment_len(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match text[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            [_, ..] => at += 1,
            [] => return at,
        }
        if depth == 0 {
            return at;
        }
    }
}

/// Length of what stands before the closing quote; a doubled one does not close.
fn quoted_end(text: &[u8], quote: u8) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text[at..].iter().position(|byte| *byte == quote)?;
        if text.get(at + 1) != Some(&quote) {
            return Some(at);
        }
        at += 2;
    }
}

/// The same where a backslash escapes.
fn escaped_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *text.get(at..)? {
            [b'\\', ..] | [b'\'', b'\'', ..] => at += 2,
            [b'\'', ..] => return Some(at),
            [_, ..] => at += 1,
            [] => return None,
        }
    }
}

/// The `$tag$` that `text` begins with.
fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let len = text[1..]
        .iter()
        .position(|byte| *byte == b'$' || !is_of_word(*byte))?;
    let tag = &text[..len + 2];
    let is_tag = tag.ends_with(b"$") && !tag[1].is_ascii_digit();
    is_tag.then_some(tag)
}

/// A tag has no `$` inside, so that no byte is compared twice.
fn dollar_end(text: &[u8], tag: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text[at..].iter().position(|byte| *byte == b'$')?;
        if text[at..].starts_with(tag) {
            return Some(at);
        }
        at += 1;
    }
}

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_of_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Effects in one line: parameters, `?` for unknown ones, `*` for all, `#` for all statements, `-name` deallocated, `!` for a pin.
    fn told(text: &[u8]) -> String {
        let effects = effects(text);
        let mut told: Vec<String> = effects.sets.iter().map(ToString::to_string).collect();
        told.extend(effects.resets.iter().map(|name| format!("~{name}")));
        told.extend(effects.sets_unknown.then(|| "?".to_owned()));
        told.extend(effects.resets_all.then(|| "*".to_owned()));
        told.extend(effects.discards.then(|| "#".to_owned()));
        told.extend(
            effects
                .deallocates
                .iter()
                .map(|(_, name)| format!("-{name}")),
        );
        told.extend(effects.pins.then(|| "!".to_owned()));
        told.join(" ")
    }

    fn check(cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            assert_eq!(told(text.as_bytes()), *expected, "{text}");
            if !expected.is_empty() {
                assert!(may_have_effects(text.as_bytes()), "{text}");
            }
        }
    }

    #[test]
    fn a_fingerprint_holds_no_literal() {
        for (text, told) in [
            ("select 1", "select ?"),
            (
                "SELECT * FROM t WHERE a=1.5e3 AND b = 'x''y'",
                "SELECT * FROM t WHERE a=? AND b = ?",
            ),
            ("select $1, 0x1F, E'a\\'b', $$ body $$", "select $1, ?"),
            (
                "insert into t values (1, 2, 'three'),(4,5,6)",
                "insert into t values (?),(?)",
            ),
            (
                "select /* 17 */ a1 -- 'secret'\n from \"T 1\"",
                "select a1 from \"T 1\"",
            ),
            (
                "alter role bob password 'secret'",
                "alter role bob password ?",
            ),
            ("set app.token to abc123", "set app.token to ..."),
            ("SET x = abc123", "SET x = ..."),
            (
                "update t set a = 5 where b = 'c'",
                "update t set a = ? where b = ?",
            ),
            ("select 'it\\'s secret'", "select ? ..."),
            ("select 'cut in the mid", "select"),
            ("", ""),
        ] {
            assert_eq!(fingerprint(text.as_bytes()).trim_end(), told, "{text}");
        }
        let long = "a, ".repeat(10_000);
        assert!(fingerprint(long.as_bytes()).len() < 400);
    }

    #[test]
    fn set_names_its_parameter() {
        check(&[
            ("SET search_path = a, b", "search_path"),
            ("set Statement_Timeout to 5", "statement_timeout"),
            (
                "UPDATE pg_settings SET setting = 'off' WHERE name = 'geqo'",
                "?",
            ),
            ("select setting from pg_catalog.pg_settings", ""),
            ("SET SESSION work_mem='1MB';", "work_mem"),
            ("SET app.user_id = '5'", "app.user_id"),
            ("SET app . \"User\" TO 5", "app.User"),
            ("SET \"DateStyle\" = iso", "DateStyle"),
            ("SET TIME ZONE 'UTC'", "timezone"),
            ("SET SESSION TIME ZONE 'UTC'", "timezone"),
            ("SET NAMES 'latin1'", "client_encoding"),
            ("SET ROLE none", "role"),
            ("SET SESSION ROLE none", "role"),
            ("SET SCHEMA 'x'", "search_path"),
            ("SET XML OPTION DOCUMENT", "xmloption"),
            ("SET SESSION AUTHORIZATION bob", "session_authorization"),
            (
                "SET SESSION SESSION AUTHORIZATION bob",
                "session_authorization",
            ),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "?"),
            ("SET U&\"\\0061\" = 1", "?"),
            ("SET local.x = 1", "local.x"),
            ("SET a.1 = 1", "?"),
            ("SET session.x = 1", "session.x"),
            ("SET time.x = 1", "time.x"),
            ("SET a = 1; SET b = 2;;", "a b"),
            ("SET", ""),
        ]);
    }

    #[test]
    fn what_ends_with_the_transaction_is_no_effect() {
        check(&[
            ("SET LOCAL search_path = a", ""),
            ("SET LOCAL ROLE a", ""),
            ("SET LOCAL SESSION AUTHORIZATION a", ""),
            ("SET TRANSACTION READ ONLY", ""),
            ("SET SESSION TRANSACTION READ ONLY", ""),
            ("SET CONSTRAINTS ALL DEFERRED", ""),
            ("SET transaction_isolation = serializable", ""),
            ("RESET TRANSACTION ISOLATION LEVEL", ""),
            ("select set_config('a', 'b', true)", ""),
            ("select set_config($1, $2, TRUE)", ""),
            ("select set_config('a', 'b', 't')", ""),
            ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", ""),
            ("PREPARE TRANSACTION 'x'", ""),
            ("DECLARE c CURSOR FOR SELECT 1", ""),
            (
                "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1)",
                "",
            ),
        ]);
    }

    #[test]
    fn reset_names_its_parameter() {
        check(&[
            ("RESET search_path", "~search_path"),
            ("reset all", "*"),
            ("RESET ROLE", "~role"),
            ("RESET SESSION AUTHORIZATION", "~session_authorization"),
            ("RESET TIME ZONE", "~timezone"),
            ("RESET app.x;", "~app.x"),
            ("RESET \"all\"", "~all"),
            ("RESET u&\"x\"", "?"),
            ("DISCARD ALL", "* #"),
            ("DISCARD TEMP; DISCARD PLANS", ""),
        ]);
    }

    #[test]
    fn set_config_is_found_wherever_it_stands() {
        check(&[
            (
                "SELECT set_config('search_path', 'x', false)",
                "search_path",
            ),
            ("SELECT pg_catalog.Set_Config('a', 'b'||'c', $1)", "a"),
            (
                "SELECT \"set_config\" /* c */ ('a', f(1, array[2, 3]), false)",
                "a",
            ),
            (
                "with x as (select set_config($$a.b$$,'1',false)) select 1",
                "a.b",
            ),
            ("select set_config(E'a\\x', 'b', false)", "?"),
            ("select set_config($1, $2, $3)", "?"),
            ("select set_config('a' || 'b', 'c', false)", "?"),
            ("select set_config(name, 'c', false) from t", "?"),
            (
                "select set_config(is_local => true, setting_name => 'a')",
                "?",
            ),
            (
                "select set_config('a', set_config('b', 'c', false), true)",
                "b",
            ),
            (
                "select set_config, 'set_config(''a'', ''b'', false)' from set_config",
                "",
            ),
            ("select \"SET_CONFIG\"('a','b',false)", ""),
        ]);
        let long = format!("select set_config('a', {} '', true)", "'' ||".repeat(100));
        assert_eq!(
            told(long.as_bytes()),
            "a",
            "the third argument is too far away"
        );
    }

    #[test]
    fn deallocate_names_its_statement() {
        check(&[
            ("DEALLOCATE a", "-a"),
            ("deallocate prepare Abc;", "-abc"),
            ("DEALLOCATE \"A\"\"b\"", "-A\"b"),
            ("DEALLOCATE PREPARE", "-prepare"),
            ("DEALLOCATE ALL", "#"),
            ("DEALLOCATE PREPARE ALL", "#"),
            ("DEALLOCATE \"all\"", "-all"),
            ("deallocate/**/a;deallocate--\nb", "-a -b"),
            ("DEALLOCATE u&\"x\"", ""),
            ("DEALLOCATE", ""),
            ("DEALLOCATE a\"never closed", ""),
        ]);
        let told_when = [
            ("DEALLOCATE a", true),
            ("do $$ begin deallocate all; end $$", false),
        ];
        for (text, is_told) in told_when {
            assert_eq!(!effects(text.as_bytes()).in_code, is_told, "{text}");
        }
        let text = b"select 1; DEALLOCATE \"a b\" ; deallocate c";
        let ranges: Vec<_> = effects(text)
            .deallocates
            .into_iter()
            .map(|(at, _)| at)
            .collect();
        assert_eq!(ranges, [21..26, 40..41]);
        assert_eq!(&text[21..26], b"\"a b\"");
    }

    #[test]
    fn what_changes_tables_alters() {
        for text in [
            "alter table t add n int",
            "/* so */ DROP type t",
            "create or replace view v as select 1",
            "select 1; drop table t",
            "do $$ begin alter table t add n int; end $$",
        ] {
            assert!(effects(text.as_bytes()).alters, "{text}");
            assert!(may_have_effects(text.as_bytes()), "{text}");
        }
        for text in [
            "create table t ()",
            "select 'drop table t'",
            "set x to 'alter'",
        ] {
            assert!(!effects(text.as_bytes()).alters, "{text}");
        }
    }

    #[test]
    fn a_database_is_wanted_without_others() {
        for (text, wanted) in [
            ("drop database test_app", "test_app"),
            ("DROP DATABASE IF EXISTS \"Test\" WITH (FORCE);", "Test"),
            ("alter database A rename to b", "a"),
            ("create database b with owner x template = a", "a"),
            ("select 1; create database b template a", "a"),
        ] {
            assert_eq!(
                effects(text.as_bytes()).vacates.as_deref(),
                Some(wanted),
                "{text}"
            );
        }
        for text in [
            "create database b",
            "create table template (a int)",
            "drop table database",
        ] {
            assert_eq!(effects(text.as_bytes()).vacates, None, "{text}");
        }
    }

    #[test]
    fn what_lives_in_the_session_pins() {
        check(&[
            ("PREPARE a AS SELECT 1", "!"),
            ("prepare transaction (int) as select 1", "!"),
            ("LISTEN a", "!"),
            ("LOAD 'auto_explain'", "!"),
            ("CREATE TEMP TABLE a (b int)", "!"),
            ("create temporary sequence a", "!"),
            ("CREATE LOCAL TEMP TABLE a ()", "!"),
            ("CREATE OR REPLACE TEMP VIEW a AS SELECT 1", "!"),
            ("CREATE TEMP TABLE a () ON COMMIT DELETE ROWS", "!"),
            (
                "CREATE TEMP TABLE a () ON COMMIT DROP; CREATE TEMP TABLE b ()",
                "!",
            ),
            ("CREATE TABLE pg_temp.a ()", "!"),
            ("EXPLAIN ANALYZE CREATE TEMP TABLE a AS SELECT 1", "!"),
            ("SELECT 1 INTO TEMP a", "!"),
            ("select 1 into local temporary table a", "!"),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "!"),
            (
                "declare c no scroll cursor with /* */ hold for select 1",
                "!",
            ),
            ("select pg_advisory_lock(1)", "!"),
            ("set local search_path = pg_temp, public", "!"),
            (
                "select nspname from pg_namespace where nspname = 'pg_temp_1'",
                "",
            ),
            ("select PG_TRY_ADVISORY_LOCK_SHARED (1, 2)", "!"),
            ("insert into temp values (1)", ""),
            ("select temp, temperature from template", ""),
            ("create table temp_a (temp int)", ""),
            ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", ""),
            ("DECLARE c CURSOR FOR WITH hold AS (SELECT 1) SELECT 1", ""),
            ("UNLISTEN a; NOTIFY a", ""),
        ]);
    }

    #[test]
    fn words_end_where_postgres_ends_them() {
        check(&[
            ("select 'SET a = 1; SET b = 2'", ""),
            ("select 'it''s; SET a = 1'", ""),
            ("select 'a\\'; SET a = 1; --'", "a"),
            ("select E'a\\'; SET a = 1; --'", ""),
            ("select e'\\\\'; SET a = 1", "a"),
            ("select \"a;\"\";\"; SET a = 1", "a"),
            ("select $$; SET a = 1;$$", ""),
            ("select $a$; $b$ $$; SET a = 1; $a$; SET b = 1", "b"),
            ("select a$b$; SET a = 1; select $b$;$b$", "a"),
            ("select $1; SET a = 1", "a"),
            ("select $1$; SET a = 1", "a"),
            ("select 1 -- ; SET a = 1", ""),
            ("select 1 -- '\n; SET a = 1", "a"),
            ("select 1 --\r; SET a = 1", "a"),
            (
                "select 1 /* ; SET a = 1; /* */ ; SET b = 1 */; SET c = 1",
                "c",
            ),
            ("select 1 +/**/-- \n-1; SET a = 1", "a"),
            ("/* app */ -- x\n SET/**/a/**/=/**/1", "a"),
            (" \t\n\x0b\x0cSET a = 1", "a"),
            ("select 1; /* b */ SET a = 1", "a"),
            ("select 'never closed; SET a = 1", ""),
            ("select /* never closed; SET a = 1", ""),
            ("select 1\0; SET a = 1", ""),
            ("update t set a = 1; update t set local = 1", ""),
            ("alter role a set search_path = b", ""),
            ("begin; set a = 1; commit", "a"),
        ]);
        assert_eq!(told(b"SET \xff = 1"), "?");
        assert_eq!(told(b"DEALLOCATE \xff"), "");
        assert_eq!(told("SET Ä = 1".as_bytes()), "Ä");
    }

    #[test]
    fn the_code_of_a_do_is_looked_at() {
        check(&[
            (
                "DO $$ begin perform set_config('a', 'b', false); end $$",
                "a",
            ),
            ("DO LANGUAGE plpgsql 'begin set a = 1; end'", "a"),
            (
                "do $$ begin if x then set a = 1; else reset b; end if; end $$",
                "a ~b",
            ),
            ("do $$ begin update t set a = 1; end $$", ""),
            ("do $$ begin execute 'set a = 1'; end $$", "a"),
            ("do $$ begin create temp table a (); end $$", "!"),
            (
                "do $$ begin create temp table a () on commit drop; end $$; select 1",
                "",
            ),
            (
                "create function f() returns void as $$ set a = 1 $$ language sql",
                "",
            ),
        ]);
    }

    #[test]
    fn harmless_texts_are_told_at_the_first_look() {
        for text in [
            "",
            ";",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 5;",
            "UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 2;",
            "BEGIN; INSERT INTO temperatures VALUES (1); END;",
            "/* app */ select template, item from pg_template limit 1 offset 5",
        ] {
            assert!(!may_have_effects(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        const SIZE: usize = 1 << 20;
        for (piece, tail) in [
            ("/*", ""),
            (";/*", ""),
            ("set_config(", ""),
            ("begin declare ", "$$"),
            ("set a.", ""),
            ("a.", "= 1"),
            ("$a$b", ""),
            ("set session ", ""),
            ("''", ""),
            ("; ", ""),
            ("$$ do $$ ", ""),
        ] {
            for start in ["", "do $$ begin ", "set ", ";/*"] {
                let mut text = start.to_owned();
                text.push_str(&piece.repeat(SIZE / piece.len()));
                text.push_str(tail);
                let _ = may_have_effects(text.as_bytes());
                let _ = effects(text.as_bytes());
            }
        }
    }

    /// Texts of the words and signs that matter.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => proptest::sample::select(vec![
                "set", "reset", "session", "local", "all", "deallocate", "prepare", "discard", "listen", "set_config",
                "create", "temp", "into", "temporary", "declare", "with", "hold", "for", "do", "begin", "pg_temp.", "select",
                "pg_advisory_lock", "a", "U&", "e", "'", "''", "\"", "$$", "$a$", "$", "(", ")", ",", ";", ";", "--", "\n",
                "/*", "*/", "=", "to", ".", "1", "\\", "\0", "\x0b", "true", "replace", "on commit drop",
                "alter", "drop", "database", "template",
            ]).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 1..4),
        ];
        proptest::collection::vec((piece, any::<bool>(), any::<bool>()), 0..30).prop_map(|pieces| {
            let spaced = pieces.into_iter().map(|(mut piece, upper, space)| {
                if upper {
                    piece.make_ascii_uppercase();
                }
                piece.extend(space.then_some(b' '));
                piece
            });
            spaced.collect::<Vec<_>>().concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn the_quick_look_never_misses_an_effect(text in text()) {
            if effects(&text) != Effects::default() {
                prop_assert!(may_have_effects(&text));
            }
        }

        #[test]
        fn a_deallocated_name_can_be_replaced(text in text()) {
            let mut replaced = text.clone();
            let found = effects(&text).deallocates;
            for (range, _) in found.iter().rev() {
                prop_assert!(range.end <= text.len());
                replaced.splice(range.clone(), *b"\"another one\"");
            }
            let again = effects(&replaced).deallocates;
            prop_assert_eq!(again.len(), found.len());
            for (_, name) in again {
                prop_assert_eq!(name, "another one");
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let found = effects(&bytes);
            prop_assert!(may_have_effects(&bytes) || found == Effects::default());
        }
    }
}
