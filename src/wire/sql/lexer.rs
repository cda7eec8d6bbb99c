//! Where Postgres' words begin and end (Postgres manual, "Lexical Structure").

use std::borrow::Cow;
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    /// As written, without the quotes around it.
    pub(super) inside: &'a [u8],
    /// Where `inside` begins in the text.
    at: usize,
}

pub(super) const LONGEST_KEYWORD: usize = 16;

impl<'a> Token<'a> {
    /// Whether it is this key word.
    pub(super) fn is(self, word: &[u8]) -> bool {
        self.kind == Kind::Word && self.inside.eq_ignore_ascii_case(word)
    }

    /// Whether it is this name, quoted or not.
    pub(super) fn names(self, name: &[u8]) -> bool {
        self.is(name) || (self.kind == Kind::Quoted && self.inside == name)
    }

    pub(super) fn is_symbol(self, symbol: u8) -> bool {
        self.kind == Kind::Symbol(symbol)
    }

    pub(super) fn is_string(self) -> bool {
        matches!(self.kind, Kind::String | Kind::Escaped | Kind::Dollar)
    }

    /// Whether statements follow it in PL/pgSQL.
    pub(super) fn opens_block(self) -> bool {
        [&b"begin"[..], b"then", b"else", b"loop"]
            .iter()
            .any(|word| self.is(word))
    }

    /// In lower case, if it is a word that is not longer than any that matters.
    pub(super) fn keyword(self, folded: &mut [u8; LONGEST_KEYWORD]) -> &[u8] {
        if self.kind == Kind::Word {
            fold(self.inside, folded)
        } else {
            b""
        }
    }

    /// What stands in a string, unless it is none.
    pub(super) fn string(self) -> &'a [u8] {
        if self.is_string() { self.inside } else { b"" }
    }

    /// The name, if it is one and can be read.
    pub(super) fn identifier(self) -> Option<Cow<'a, str>> {
        matches!(self.kind, Kind::Word | Kind::Quoted)
            .then(|| self.value())
            .flatten()
    }

    /// What it stands for, if that can be read.
    pub(super) fn value(self) -> Option<Cow<'a, str>> {
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

    pub(super) fn inside_range(self) -> Range<usize> {
        self.at..self.at + self.inside.len()
    }

    /// Where a name stands, with its quotes.
    pub(super) fn range(self) -> Range<usize> {
        let inside = self.inside_range();
        match self.kind {
            Kind::Quoted => inside.start - 1..inside.end + 1,
            _ => inside,
        }
    }
}

/// `word` in lower case; nothing if it is too long.
pub(super) fn fold<'b>(word: &[u8], folded: &'b mut [u8; LONGEST_KEYWORD]) -> &'b [u8] {
    let Some(folded) = folded.get_mut(..word.len()) else {
        return b"too long";
    };
    folded.copy_from_slice(word);
    folded.make_ascii_lowercase();
    folded
}

/// Cuts a text into tokens. What is not closed ends the text: Postgres then refuses the whole of it.
#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    pub(super) text: &'a [u8],
    pub(super) at: usize,
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
    pub(super) fn next_is(mut self, word: &[u8]) -> bool {
        self.next().is_some_and(|token| token.is(word))
    }

    pub(super) fn ends_statement(self) -> bool {
        let next = self.text.get(after_blanks(self.text, self.at));
        matches!(next, None | Some(b';' | 0))
    }

    pub(super) fn token(&mut self) -> Option<Token<'a>> {
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
    pub(super) fn quoted(
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
pub(super) fn after_blanks(text: &[u8], mut at: usize) -> usize {
    loop {
        match text[at..] {
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, ..] => at += 1,
            [b'-', b'-', ..] => at += line_len(&text[at..]),
            [b'/', b'*', ..] => at += comment_len(&text[at..]),
            _ => return at,
        }
    }
}

pub(super) fn line_len(text: &[u8]) -> usize {
    text.iter()
        .position(|byte| matches!(byte, b'\n' | b'\r'))
        .unwrap_or(text.len())
}

/// Comments nest.
pub(super) fn comment_len(text: &[u8]) -> usize {
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
pub(super) fn quoted_end(text: &[u8], quote: u8) -> Option<usize> {
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
pub(super) fn escaped_end(text: &[u8]) -> Option<usize> {
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
pub(super) fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let len = text[1..]
        .iter()
        .position(|byte| *byte == b'$' || !is_of_word(*byte))?;
    let tag = &text[..len + 2];
    let is_tag = tag.ends_with(b"$") && !tag[1].is_ascii_digit();
    is_tag.then_some(tag)
}

/// A tag has no `$` inside, so that no byte is compared twice.
pub(super) fn dollar_end(text: &[u8], tag: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text[at..].iter().position(|byte| *byte == b'$')?;
        if text[at..].starts_with(tag) {
            return Some(at);
        }
        at += 1;
    }
}

pub(super) fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

pub(super) fn is_of_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit() || byte == b'$'
}
