//! The lines of a `pgbouncer.ini`: sections, keys, values, comments and includes. What they mean is for others.

use super::{Place, Surroundings};

/// As PgBouncer: how deep files may include others.
const DEEPEST: usize = 10;

/// How many files may be included in all: at the deepest, two includes in each would already be a thousand.
const MOST_FILES: usize = 1000;

/// The sections that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Databases,
    Users,
    Peers,
    Pgbouncer,
}

impl Section {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "databases" => Self::Databases,
            "users" => Self::Users,
            "peers" => Self::Peers,
            "pgbouncer" => Self::Pgbouncer,
            _ => return None,
        })
    }
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) section: Section,
    pub(super) key: String,
    pub(super) value: String,
    /// Where the key is.
    pub(super) at: Place,
    /// Where the value is.
    pub(super) value_at: Place,
    /// The comments before it, without their marks.
    pub(super) comments: Vec<String>,
}

/// What stands in a file and in those that it includes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) entries: Vec<Entry>,
    /// Comments behind the last entry.
    pub(super) trailing: Vec<String>,
    /// The files, by their place in [`Place`].
    pub(super) files: Vec<String>,
    pub(super) wrong: Vec<(Place, String)>,
    /// What was read of late and belongs to the next entry.
    comments: Vec<String>,
    section: Current,
}

/// The section that an entry belongs to.
#[derive(Debug, Clone, Copy, Default)]
enum Current {
    /// None has begun.
    #[default]
    None,
    Known(Section),
    /// One that is not known was noted; what stands in it is no further mistake.
    Unknown,
}

impl Lines {
    /// Reads a file and what it includes.
    pub(super) fn read(path: &str, surroundings: &dyn Surroundings) -> Self {
        let mut lines = Self::default();
        lines.file(path, None, 0, surroundings);
        lines.trailing = std::mem::take(&mut lines.comments);
        lines
    }

    /// `from`: where it is included.
    fn file(&mut self, path: &str, from: Option<Place>, depth: usize, around: &dyn Surroundings) {
        let file = self.files.len();
        self.files.push(path.to_owned());
        let bytes = match around.read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let message = match from {
                    Some(_) => format!("{path} cannot be included: {error}"),
                    None => format!("cannot be read: {error}"),
                };
                let at = from.unwrap_or(Place::whole(file));
                return self.wrong.push((at, message));
            }
        };
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let start = Place {
                file,
                line: index + 1,
                column: 1,
            };
            match std::str::from_utf8(line) {
                Ok(line) => self.line(line, start, depth, around),
                Err(_) => self.wrong.push((start, "is not UTF-8".to_owned())),
            }
        }
    }

    fn line(&mut self, line: &str, start: Place, depth: usize, around: &dyn Surroundings) {
        let mut rest = line.trim();
        // What stands behind a section's name belongs to the section.
        loop {
            let at = start.further(line, rest);
            if rest.is_empty() {
                return;
            }
            if let Some(comment) = rest.strip_prefix(['#', ';']) {
                let text = comment.trim_start_matches(['#', ';']);
                return self.comments.push(text.trim().to_owned());
            }
            if let Some(path) = include(rest) {
                return self.include(path, at, depth, around);
            }
            let Some(name) = rest.strip_prefix('[') else {
                return self.entry(line, rest, at, start);
            };
            let Some((name, behind)) = name.split_once(']') else {
                return self.wrong.push((at, syntax("[ has no ]")));
            };
            self.section = Section::of(name).map_or(Current::Unknown, Current::Known);
            if matches!(self.section, Current::Unknown) {
                self.wrong.push((at, format!("unknown section: {name}")));
            }
            rest = behind.trim_start();
        }
    }

    fn include(&mut self, path: &str, at: Place, depth: usize, around: &dyn Surroundings) {
        if path.is_empty() {
            self.wrong.push((at, syntax("%include names no file")));
        } else if depth >= DEEPEST {
            let message = format!("{path} is not included: at most {DEEPEST} files deep");
            self.wrong.push((at, message));
        } else if self.files.len() >= MOST_FILES {
            let message = format!("{path} is not included: at most {MOST_FILES} files in all");
            self.wrong.push((at, message));
        } else {
            self.file(path, Some(at), depth + 1, around);
        }
    }

    fn entry(&mut self, line: &str, text: &str, at: Place, start: Place) {
        let Some((key, rest)) = key(text) else {
            return self.wrong.push((at, syntax("expected KEY = VALUE")));
        };
        let Some(value) = rest.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            let message = syntax("expected KEY = VALUE");
            return self.wrong.push((at, message));
        };
        let value = value.trim_start();
        match self.section {
            Current::Known(section) => self.entries.push(Entry {
                section,
                key,
                value: value.to_owned(),
                at,
                value_at: start.further(line, value),
                comments: std::mem::take(&mut self.comments),
            }),
            Current::None => self
                .wrong
                .push((at, format!("value without section: {key}"))),
            Current::Unknown => {}
        }
    }
}

fn syntax(what: &str) -> String {
    format!("syntax error in configuration: {what}")
}

/// The file of an `%include`, if the line is one.
fn include(line: &str) -> Option<&str> {
    let path = line.strip_prefix("%include")?;
    (path.is_empty() || path.starts_with(char::is_whitespace)).then(|| path.trim())
}

/// The key at the beginning of a line, and what follows it: letters, digits and `_.-*`, or anything in single quotes, or in
/// double quotes of which two stand for one.
fn key(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('\'') {
        let (key, rest) = quoted.split_once('\'')?;
        return Some((key.to_owned(), rest));
    }
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut key = String::new();
        loop {
            let (before, behind) = rest.split_once('"')?;
            key.push_str(before);
            match behind.strip_prefix('"') {
                Some(more) => {
                    key.push('"');
                    rest = more;
                }
                None => return Some((key, behind)),
            }
        }
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let (key, rest) = text.split_at(end);
    (!key.is_empty()).then(|| (key.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::tests::Files;
    use super::*;

    fn read(files: &[(&str, &str)]) -> Lines {
        Lines::read("f", &Files::of(files))
    }

    fn pairs(lines: &Lines) -> Vec<(Section, &str, &str)> {
        let entries = lines.entries.iter();
        entries
            .map(|entry| (entry.section, entry.key.as_str(), entry.value.as_str()))
            .collect()
    }

    fn wrong(lines: &Lines) -> Vec<(usize, usize, usize, &str)> {
        let wrong = lines.wrong.iter();
        wrong
            .map(|(at, text)| (at.file, at.line, at.column, text.as_str()))
            .collect()
    }

    #[test]
    fn lines_are_read_as_pgbouncer_reads_them() {
        use Section::{Databases, Pgbouncer};
        let text = "; a comment\n\t# another\r\n [databases] a = host=x ; no comment  \r\n* =\n'it s'=1\n\
                    \"a\"\"b\" \t=\t 2 \n[pgbouncer]\npidfile = \nauth_type=md5\n[databases]\na = host=y";
        let lines = read(&[("f", text)]);
        assert_eq!(wrong(&lines), []);
        assert_eq!(
            pairs(&lines),
            [
                (Databases, "a", "host=x ; no comment"),
                (Databases, "*", ""),
                (Databases, "it s", "1"),
                (Databases, "a\"b", "2"),
                (Pgbouncer, "pidfile", ""),
                (Pgbouncer, "auth_type", "md5"),
                (Databases, "a", "host=y"),
            ]
        );
        assert_eq!(lines.entries[0].comments, ["a comment", "another"]);
        let Place { line, column, .. } = lines.entries[0].value_at;
        assert_eq!((line, column), (3, 18));
    }

    #[test]
    fn every_broken_line_is_named() {
        let text = "x = 1\n[pgbouncer\n[nosuch]\ny = 1\n[pgbouncer]\nno value\n= 1\n'a = 1\n%include\n%include nosuch\n";
        let lines = read(&[("f", text)]);
        let lines: Vec<_> = wrong(&lines)
            .into_iter()
            .map(|(_, line, column, text)| {
                (line, column, text.split(':').next().unwrap().to_owned())
            })
            .collect();
        let syntax = "syntax error in configuration".to_owned();
        assert_eq!(
            lines,
            [
                (1, 1, "value without section".to_owned()),
                (2, 1, syntax.clone()),
                (3, 1, "unknown section".to_owned()),
                (6, 1, syntax.clone()),
                (7, 1, syntax.clone()),
                (8, 1, syntax.clone()),
                (9, 1, syntax.clone()),
                (10, 1, "nosuch cannot be included".to_owned()),
            ]
        );
    }

    #[test]
    fn files_are_included_in_place_and_not_for_ever() {
        let lines = read(&[
            ("f", "[pgbouncer]\na = 1\n%include g\nb = 2\n"),
            ("g", "c = 3\n[users]\nd = pool_mode=session\nbroken\n"),
        ]);
        let keys: Vec<_> = pairs(&lines).iter().map(|(_, key, _)| *key).collect();
        assert_eq!(keys, ["a", "c", "d", "b"]);
        assert_eq!(lines.entries[3].section, Section::Users);
        assert_eq!(lines.files, ["f", "g"]);
        assert_eq!(wrong(&lines)[0].0, 1);

        let itself = read(&[("f", "%include f\n%include f\n")]);
        assert!(itself.files.len() <= MOST_FILES);
        assert!(
            wrong(&itself)
                .iter()
                .any(|(.., text)| text.contains("files deep"))
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_a_mistake_of_the_whole() {
        let lines = read(&[]);
        assert_eq!(wrong(&lines)[0].1, 0);
        let error = io::Error::from(io::ErrorKind::NotFound).to_string();
        assert!(wrong(&lines)[0].3.contains(&error), "{:?}", lines.wrong);
    }
}
