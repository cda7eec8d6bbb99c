//! `pg_ident.conf`: whom a name that was proved elsewhere (by a certificate) may log in as.

use regex::Regex;

use super::mistake::{Mistake, Mistakes};

/// The lines of the file.
#[derive(Debug, Default)]
pub struct IdentMap(Vec<Line>);

#[derive(Debug)]
struct Line {
    map: String,
    system: System,
    user: String,
}

/// The name that was proved.
#[derive(Debug)]
enum System {
    Exactly(String),
    /// Written with a leading slash. What its first group matched replaces `\1` in the user.
    Matching(Regex),
}

impl Line {
    fn admits(&self, name: &str, user: &str) -> bool {
        match &self.system {
            // As in Postgres, `all` is every user.
            System::Exactly(exact) => exact == name && (self.user == user || self.user == "all"),
            System::Matching(regex) => regex.captures(name).is_some_and(|found| {
                let group = found.get(1).map_or("", |group| group.as_str());
                self.user.replacen("\\1", group, 1) == user
            }),
        }
    }
}

impl IdentMap {
    /// Whether a line of `map` lets `name` log in as `user`.
    pub fn admits(&self, map: &str, name: &str, user: &str) -> bool {
        let mut lines = self.0.iter().filter(|line| line.map == map);
        lines.any(|line| line.admits(name, user))
    }
}

/// Reads the file: `MAP SYSTEM-USER POSTGRES-USER` on a line, comments after `#`, fields in double quotes if need be.
pub fn parse(text: &str) -> Result<IdentMap, Mistakes> {
    let mut lines = Vec::new();
    let mut wrong = Vec::new();
    for (index, text) in text.lines().enumerate() {
        match line(text) {
            Ok(line) => lines.extend(line),
            Err(message) => wrong.push(Mistake {
                line: index + 1,
                column: 1,
                message,
            }),
        }
    }
    if wrong.is_empty() {
        Ok(IdentMap(lines))
    } else {
        Err(Mistakes::new("pg_ident.conf", wrong))
    }
}

fn line(text: &str) -> Result<Option<Line>, String> {
    let fields = fields(text)?;
    let [map, system, user] = match <[String; 3]>::try_from(fields) {
        Ok(fields) => fields,
        Err(none) if none.is_empty() => return Ok(None),
        Err(_) => return Err("must have three fields: map, name, user".to_owned()),
    };
    let system = match system.strip_prefix('/') {
        Some(pattern) => System::Matching(
            Regex::new(pattern)
                .map_err(|error| format!("the name is no regular expression: {}", why(&error)))?,
        ),
        None => System::Exactly(system),
    };
    let groups = matches!(&system, System::Matching(regex) if regex.captures_len() > 1);
    if user.contains("\\1") && !groups {
        return Err(
            "the user has \\1, but the name is no regular expression with a group".to_owned(),
        );
    }
    Ok(Some(Line { map, system, user }))
}

/// The last line of what `regex` says: those before it draw the pattern.
fn why(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().next_back().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

/// Splits at blanks outside of double quotes, of which two stand for one.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields: Vec<String> = Vec::new();
    let (mut inside, mut quoted) = (false, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                push(&mut fields, &mut inside, '"');
            }
            '"' => {
                quoted = !quoted;
                begin(&mut fields, &mut inside);
            }
            '#' if !quoted => break,
            blank if blank.is_whitespace() && !quoted => inside = false,
            other => push(&mut fields, &mut inside, other),
        }
    }
    if quoted {
        return Err("has a quote without its end".to_owned());
    }
    Ok(fields)
}

fn begin(fields: &mut Vec<String>, inside: &mut bool) {
    if !std::mem::replace(inside, true) {
        fields.push(String::new());
    }
}

fn push(fields: &mut Vec<String>, inside: &mut bool, letter: char) {
    begin(fields, inside);
    fields.last_mut().expect("begun above").push(letter);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_admits_as_in_postgres() {
        let map = parse(concat!(
            "# a comment\n\n",
            "cert  ann  alice   # and another\n",
            "cert\tann bob\n",
            "\"cert\" \"an \"\"odd\"\" name\" \"o#dd\"\n",
            "cert /^(.*)@site\\.example$ \\1\n",
            "cert /^admin postgres\n",
            "other ann postgres\n",
        ))
        .unwrap();
        for (name, user, admitted) in [
            ("ann", "alice", true),
            ("ann", "bob", true),
            ("ann", "ann", false),
            ("ann", "postgres", false),
            ("an \"odd\" name", "o#dd", true),
            ("carl@site.example", "carl", true),
            ("carl@site.example", "ann", false),
            ("carl@site.example.evil", "carl", false),
            ("administrator", "postgres", true),
            ("no admin", "postgres", false),
            ("@site.example", "", true),
        ] {
            assert_eq!(map.admits("cert", name, user), admitted, "{name} as {user}");
        }
        assert!(map.admits("other", "ann", "postgres"));
        assert!(!map.admits("none", "ann", "alice"));
    }

    #[test]
    fn what_a_group_matched_is_no_pattern_itself() {
        let map = parse("cert /^(.*)$ \\1").unwrap();
        assert!(map.admits("cert", "\\1", "\\1"));
        assert!(map.admits("cert", "$0", "$0"));
    }

    #[test]
    fn every_broken_line_is_named() {
        let mistakes =
            parse("cert ann\ncert a b c\ncert \"a b\ncert /( b\ncert a \\1\ncert /a \\1")
                .expect_err("all lines are broken");
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6]);
    }
}
