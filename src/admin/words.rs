//! The text of a query as statements and words: enough for commands, and to find out where a statement ends.

/// A word of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// As it stands there: a keyword, a name, a number, `=`.
    Bare(String),
    /// A name or a text in quotes, without them.
    Quoted(String),
    /// `$1` and so on.
    Parameter(u16),
}

impl Word {
    /// Whether it is this keyword.
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Bare(word) if word.eq_ignore_ascii_case(keyword))
    }
}

/// A quote or a comment that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished;

/// The statements of a query: what stands between semicolons, if it is anything but blanks and comments.
pub fn statements(query: &str) -> Result<Vec<&str>, Unfinished> {
    let (mut statements, mut rest) = (Vec::new(), Lexer(query));
    let (mut start, mut is_empty) = (query, true);
    loop {
        let before = rest.0;
        rest.skip_blanks()?;
        let here = rest.0;
        let token = rest.next()?;
        if matches!(token, Some(Token::Word(_))) {
            if is_empty {
                (start, is_empty) = (here, false);
            }
            continue;
        }
        if !is_empty {
            statements.push(&start[..start.len() - before.len()]);
            is_empty = true;
        }
        if token.is_none() {
            return Ok(statements);
        }
    }
}

/// The words of a statement.
pub fn words(statement: &str) -> Result<Vec<Word>, Unfinished> {
    let (mut words, mut rest) = (Vec::new(), Lexer(statement));
    while let Some(token) = rest.next()? {
        if let Token::Word(word) = token {
            words.push(word);
        }
    }
    Ok(words)
}

enum Token {
    Word(Word),
    Semicolon,
}

/// What was not read yet.
struct Lexer<'a>(&'a str);

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<Token>, Unfinished> {
        self.skip_blanks()?;
        let Some(first) = self.0.chars().next() else {
            return Ok(None);
        };
        Ok(Some(match first {
            ';' => {
                self.0 = &self.0[1..];
                Token::Semicolon
            }
            '=' => {
                self.0 = &self.0[1..];
                Token::Word(Word::Bare("=".to_owned()))
            }
            '\'' | '"' => Token::Word(Word::Quoted(self.quoted(first)?)),
            _ => Token::Word(self.bare()),
        }))
    }

    fn skip_blanks(&mut self) -> Result<(), Unfinished> {
        loop {
            self.0 = self.0.trim_start();
            if self.0.starts_with("--") {
                let end = self.0.find('\n').unwrap_or(self.0.len());
                self.0 = &self.0[end..];
            } else if self.0.starts_with("/*") {
                let end = self.0.find("*/").ok_or(Unfinished)?;
                self.0 = &self.0[end + 2..];
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, Unfinished> {
        let mut text = String::new();
        loop {
            let rest = &self.0[1..];
            let end = rest.find(quote).ok_or(Unfinished)?;
            text.push_str(&rest[..end]);
            self.0 = &rest[end + 1..];
            if !self.0.starts_with(quote) {
                return Ok(text);
            }
            // Doubled, it stands for itself.
            text.push(quote);
        }
    }

    fn bare(&mut self) -> Word {
        let ends = |c: char| c.is_whitespace() || matches!(c, ';' | '=' | '\'' | '"');
        let mut end = self.0.find(ends).unwrap_or(self.0.len());
        for comment in ["--", "/*"] {
            end = end.min(self.0.find(comment).unwrap_or(end));
        }
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        let number = word
            .strip_prefix('$')
            .and_then(|number| number.parse().ok());
        match number {
            Some(number @ 1..) => Word::Parameter(number),
            _ => Word::Bare(word.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_cut_at_semicolons_outside_of_quotes_and_comments() {
        for (query, expected) in [
            ("", vec![]),
            (" ; ;; -- nothing\n", vec![]),
            ("SHOW POOLS", vec!["SHOW POOLS"]),
            ("show pools ;", vec!["show pools"]),
            (
                "/* a; b */ BEGIN; SHOW 'x;y' -- ;\n; COMMIT",
                vec!["BEGIN", "SHOW 'x;y'", "COMMIT"],
            ),
        ] {
            assert_eq!(statements(query), Ok(expected), "{query}");
        }
        assert_eq!(statements("KILL 'x"), Err(Unfinished));
        assert_eq!(statements("/* KILL"), Err(Unfinished));
    }

    #[test]
    fn words_are_bare_quoted_or_parameters() {
        let bare = |word: &str| Word::Bare(word.to_owned());
        let quoted = |word: &str| Word::Quoted(word.to_owned());
        for (statement, expected) in [
            (
                "PAUSE \"my \"\"db\"",
                vec![bare("PAUSE"), quoted("my \"db")],
            ),
            (
                "set a='b c'",
                vec![bare("set"), bare("a"), bare("="), quoted("b c")],
            ),
            (
                "kill_client $1",
                vec![bare("kill_client"), Word::Parameter(1)],
            ),
            ("kill $0--x", vec![bare("kill"), bare("$0")]),
        ] {
            assert_eq!(words(statement), Ok(expected), "{statement}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a'\";=$1/*\\- \né-]{0,20}") {
            let whole = words(&text);
            if let Ok(parts) = statements(&text) {
                let parts = parts.into_iter().flat_map(|part| words(part).unwrap());
                prop_assert_eq!(Ok(parts.collect::<Vec<_>>()), whole);
            }
        }
    }
}
