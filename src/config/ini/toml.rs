//! A pooler.toml in the making: tables and keys in order, each with the place that it comes from.

use std::fmt::Write;
use std::time::Duration;

use super::Place;

/// The file.
#[derive(Debug, Default)]
pub(super) struct File {
    tables: Vec<Table>,
    /// Comments behind everything else.
    pub(super) trailing: Vec<String>,
}

#[derive(Debug)]
struct Table {
    path: String,
    origin: Origin,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    name: &'static str,
    literal: String,
    origin: Origin,
}

/// Where something comes from, and what is said of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Origin {
    /// `None`: from PgBouncer's defaults.
    pub(super) at: Option<Place>,
    /// Lines of their own before it.
    pub(super) comments: Vec<String>,
    /// Behind it, on the same line.
    pub(super) remark: Option<String>,
}

impl Origin {
    pub(super) fn remark(text: &str) -> Self {
        Self {
            remark: Some(text.to_owned()),
            ..Self::default()
        }
    }
}

/// The file as text.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) text: String,
    /// Where each line comes from.
    pub(super) places: Vec<Option<Place>>,
}

impl File {
    /// Makes sure that there is such a table.
    pub(super) fn table(&mut self, path: &str, origin: Origin) {
        self.at(path).origin = origin;
    }

    /// Sets a key; one that is there already has its value replaced and its comments kept.
    pub(super) fn set(&mut self, path: &str, name: &'static str, literal: String, origin: Origin) {
        let keys = &mut self.at(path).keys;
        let Some(known) = keys.iter_mut().find(|key| key.name == name) else {
            return keys.push(Key {
                name,
                literal,
                origin,
            });
        };
        let mut comments = std::mem::take(&mut known.origin.comments);
        comments.extend(origin.comments);
        known.literal = literal;
        known.origin = Origin { comments, ..origin };
    }

    fn at(&mut self, path: &str) -> &mut Table {
        let found = self.tables.iter().position(|table| table.path == path);
        let index = found.unwrap_or_else(|| {
            self.tables.push(Table {
                path: path.to_owned(),
                origin: Origin::default(),
                keys: Vec::new(),
            });
            self.tables.len() - 1
        });
        &mut self.tables[index]
    }

    /// Puts the tables in this order; those that are not named come in theirs, where `None` stands.
    pub(super) fn sort(&mut self, order: &[&str], others: usize) {
        let place = |table: &Table| order.iter().position(|path| *path == table.path);
        self.tables.sort_by_key(|table| match place(table) {
            Some(place) if place >= others => place + 1,
            Some(place) => place,
            None => others,
        });
    }

    /// Writes it.
    pub(super) fn write(&self, heading: &str) -> Written {
        let mut lines = Lines::default();
        for line in heading.lines() {
            lines.comment(line);
        }
        for Table { path, origin, keys } in &self.tables {
            lines.push("", None);
            for comment in &origin.comments {
                lines.comment(comment);
            }
            lines.push(&with_remark(format!("[{path}]"), origin), origin.at);
            for Key {
                name,
                literal,
                origin,
            } in keys
            {
                for comment in &origin.comments {
                    lines.comment(comment);
                }
                let line = with_remark(format!("{name} = {literal}"), origin);
                lines.push(&line, origin.at);
            }
        }
        if !self.trailing.is_empty() {
            lines.push("", None);
        }
        for comment in &self.trailing {
            lines.comment(comment);
        }
        lines.0
    }
}

fn with_remark(line: String, origin: &Origin) -> String {
    /// Where remarks begin, if the line leaves room.
    const COLUMN: usize = 40;
    match &origin.remark {
        Some(remark) => format!("{line:COLUMN$}# {}", harmless(remark))
            .trim_end()
            .to_owned(),
        None => line,
    }
}

#[derive(Debug)]
struct Lines(Written);

impl Default for Lines {
    fn default() -> Self {
        Self(Written {
            text: String::new(),
            places: Vec::new(),
        })
    }
}

impl Lines {
    fn push(&mut self, line: &str, at: Option<Place>) {
        self.0.text.push_str(line);
        self.0.text.push('\n');
        self.0.places.push(at);
    }

    fn comment(&mut self, text: &str) {
        let line = format!("# {}", harmless(text));
        self.push(line.trim_end(), None);
    }
}

/// A comment may hold no control character but a tab.
fn harmless(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\t', " ")
}

/// A string in which nothing stands for a variable.
pub(super) fn text(value: &str) -> String {
    quoted(&value.replace("${", "$${"))
}

/// The name of a table, or of one in it.
pub(super) fn name(table: &str, entry: &str) -> String {
    format!("{table}.{}", quoted(entry))
}

fn quoted(value: &str) -> String {
    let mut literal = String::from('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => literal.extend(['\\', letter]),
            control if control.is_control() => {
                write!(literal, "\\u{:04X}", u32::from(control))
                    .expect("a String takes everything");
            }
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}

/// A list of strings.
pub(super) fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values
        .into_iter()
        .map(|value| text(value.as_ref()))
        .collect();
    format!("[{}]", values.join(", "))
}

/// A duration in the largest unit that has it whole.
pub(super) fn duration(value: Duration) -> String {
    let micros = value.as_micros();
    match micros {
        0 => "0".to_owned(),
        _ if micros.is_multiple_of(1_000_000) => format!("\"{}s\"", micros / 1_000_000),
        _ if micros.is_multiple_of(1_000) => format!("\"{}ms\"", micros / 1_000),
        _ => format!("\"{micros}us\""),
    }
}
