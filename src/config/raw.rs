//! The file as a tree with places, and typed readers that note every mistake and go on.
//!
//! Not derived with serde: its readers stop at the first mistake, and an operator who fixes a file at night wants to see
//! them all. Reading is instead asking a [`Table`] for its keys. What was asked for is what is known, so that no second
//! list of keys exists: the rest of the table is unknown, and [`Notes::asked`] is the list that the manual is checked
//! against. Nor is there a list of defaults in code: they are the repository's `pooler.toml`, laid under every file.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::env::Lookup;
use super::mistake::{Mistake, line_and_column};
use super::value::{Given, Parsed, kind_of, quoted};

/// The text of the shipped `pooler.toml`: every default.
pub(super) const DEFAULTS: &str = include_str!("../../pooler.toml");

static DEFAULT_TABLE: LazyLock<DeTable<'static>> =
    LazyLock::new(|| DeTable::parse_recoverable(DEFAULTS).0.into_inner());

/// A parsed file: as much as could be parsed, and the syntax errors.
pub(super) struct Document<'t> {
    text: &'t str,
    table: DeTable<'t>,
    syntax: Vec<(usize, String)>,
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        // Only the message: toml's own report shows the line, and the line may hold a password.
        let place = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
        let syntax = errors
            .iter()
            .map(|error| (place(error), error.message().to_owned()))
            .collect();
        Self {
            text,
            table: table.into_inner(),
            syntax,
        }
    }

    /// A file with what was set over it. What is set takes the place of what is written, or comes behind it.
    pub(super) fn parse_over(text: &'t str, overrides: &'t str) -> Self {
        let mut document = Self::parse(text);
        let (over, errors) = DeTable::parse_recoverable(overrides);
        let places = errors.iter().map(|error| {
            let message = error.message().to_owned();
            (text.len(), message)
        });
        document.syntax.extend(places);
        overlay(&mut document.table, over.into_inner(), text.len());
        document
    }

    /// The root table, with the defaults under it.
    pub(super) fn root<'n, 'a>(&'a self, notes: &'n mut Notes<'a>) -> Table<'n, 'a> {
        let layers = vec![
            Layer {
                table: &self.table,
                ours: true,
            },
            Layer {
                table: &DEFAULT_TABLE,
                ours: false,
            },
        ];
        Table {
            notes,
            path: String::new(),
            at: 0,
            layers,
            known: Vec::new(),
        }
    }

    /// Every mistake of the file.
    ///
    /// After a syntax error the rest of the file was guessed at: what is wrong there may be an echo, and is left for the
    /// next time. A key given twice is no such error: the rest can be trusted.
    pub(super) fn mistakes(&self, notes: Notes<'_>) -> Vec<Mistake> {
        let guessed_from = self
            .syntax
            .iter()
            .filter(|(_, message)| message != "duplicate key")
            .map(|(at, _)| *at)
            .min();
        let sure =
            |at: usize| guessed_from.is_none_or(|from| self.line_of(at) < self.line_of(from));
        let contradictions = if self.syntax.is_empty() {
            notes.contradictions
        } else {
            Vec::new()
        };
        let judged = notes
            .wrong
            .into_iter()
            .filter(|(at, _)| sure(*at))
            .chain(contradictions);
        self.syntax
            .iter()
            .cloned()
            .chain(judged)
            .map(|(at, message)| self.mistake(at, message))
            .collect()
    }

    fn mistake(&self, at: usize, message: String) -> Mistake {
        let (line, column) = line_and_column(self.text, at);
        Mistake {
            line,
            column,
            message,
        }
    }

    fn line_of(&self, at: usize) -> usize {
        line_and_column(self.text, at).0
    }
}

/// Lays one table over another, as if it stood `shift` bytes further on.
fn overlay<'t>(under: &mut DeTable<'t>, over: DeTable<'t>, shift: usize) {
    let shifted = |span: std::ops::Range<usize>| span.start + shift..span.end + shift;
    for (key, value) in over {
        let at = shifted(value.span());
        let mut value = value.into_inner();
        if let DeValue::Table(inner) = &mut value {
            let inner = std::mem::take(inner);
            let there = under.get_mut(key.get_ref().as_ref());
            if let Some(DeValue::Table(there)) = there.map(Spanned::get_mut) {
                overlay(there, inner, shift);
                continue;
            }
            let mut fresh = DeTable::new();
            overlay(&mut fresh, inner, shift);
            value = DeValue::Table(fresh);
        }
        let key = Spanned::new(shifted(key.span()), key.into_inner());
        under.insert(key, Spanned::new(at, value));
    }
}

/// What was noted while reading.
pub(super) struct Notes<'a> {
    lookup: Lookup<'a>,
    wrong: Vec<(usize, String)>,
    contradictions: Vec<(usize, String)>,
    asked: BTreeMap<String, Source>,
}

/// Where a setting's value came from.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// This byte of the file.
    Written(usize),
    /// Nothing was given.
    Default,
    /// Something wrong was given, and is noted.
    Broken,
}

impl<'a> Notes<'a> {
    /// Nothing noted yet. Variables will be looked up there.
    pub(super) fn new(lookup: Lookup<'a>) -> Self {
        Self {
            lookup,
            wrong: Vec::new(),
            contradictions: Vec::new(),
            asked: BTreeMap::new(),
        }
    }

    /// The dotted names of all settings that were asked for.
    pub(super) fn asked(&self) -> impl Iterator<Item = &str> {
        self.asked.keys().map(String::as_str)
    }

    /// Whether the file itself gives the setting a value.
    pub(super) fn is_written(&self, name: &str) -> bool {
        matches!(self.asked.get(name), Some(Source::Written(_)))
    }

    /// Notes that settings which are right one by one do not go together, at the first of them that is written.
    ///
    /// Nothing is noted if one of them is wrong by itself: its value is not known then.
    pub(super) fn contradiction(&mut self, names: &[String], message: impl Into<String>) {
        let sources = || names.iter().filter_map(|name| self.asked.get(name));
        if sources().any(|source| *source == Source::Broken) {
            return;
        }
        let at = sources().find_map(|source| match source {
            Source::Written(at) => Some(*at),
            _ => None,
        });
        self.contradictions.push((at.unwrap_or(0), message.into()));
    }

    /// Notes that something is missing from the table that begins there.
    pub(super) fn missing(&mut self, at: usize, message: impl Into<String>) {
        self.contradictions.push((at, message.into()));
    }

    /// As [`Notes::missing`], unless one of the settings is there and wrong.
    pub(super) fn missing_one_of(&mut self, names: &[String], at: usize, message: &str) {
        if !names
            .iter()
            .any(|name| self.asked.get(name) == Some(&Source::Broken))
        {
            self.missing(at, message);
        }
    }

    /// The first thing noted of a setting stays: what stands in for a broken value is not what was given.
    fn note(&mut self, name: String, source: Source) {
        self.asked.entry(name).or_insert(source);
    }
}

/// One table as it appears in one text.
#[derive(Clone, Copy)]
struct Layer<'t> {
    table: &'t DeTable<'t>,
    /// Of the file that is being read, not of the defaults: its places mean something.
    ours: bool,
}

/// A table with those that stand behind it: the first that gives a key a value decides.
pub(super) struct Table<'n, 't> {
    pub(super) notes: &'n mut Notes<'t>,
    /// Dotted name.
    pub(super) path: String,
    /// Where it begins.
    pub(super) at: usize,
    layers: Vec<Layer<'t>>,
    known: Vec<&'static str>,
}

/// A named table in `[databases]`, `[users]` or `[services]`.
pub(super) struct Entry<'t> {
    pub(super) name: &'t str,
    pub(super) at: usize,
    layer: Layer<'t>,
}

impl<'t> Table<'_, 't> {
    /// A setting that has a default.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> T {
        self.find(key, parse)
            .expect("the shipped pooler.toml, which a test reads, gives it a value")
    }

    /// A setting that may be left out. After a mistake the next layer's value stands in, so that reading can go on.
    pub(super) fn find<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> Option<T> {
        self.first_right(key, |notes, value, at| {
            notes.read(key, value, at, &parse).ok_or(())
        })
    }

    /// A list that may be left out.
    pub(super) fn find_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> Option<Vec<T>> {
        self.first_right(key, |notes, value, at| match value {
            DeValue::Array(items) => {
                let read = items
                    .iter()
                    .map(|item| notes.read(key, item.get_ref(), item.span().start, &parse));
                // All are read before the first failure counts, so that each mistake is noted.
                read.collect::<Vec<_>>()
                    .into_iter()
                    .collect::<Option<_>>()
                    .ok_or(())
            }
            other => {
                notes
                    .wrong
                    .push((at, format!("{key} must be a list, not {}", kind_of(other))));
                Err(())
            }
        })
    }

    /// A list that has a default.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> Vec<T> {
        self.find_list(key, parse)
            .expect("the shipped pooler.toml, which a test reads, gives it a value")
    }

    /// A list that may be left out, or one value in its place.
    pub(super) fn one_or_more<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> Vec<T> {
        let is_one = |layer: &Layer<'_>| layer.table.get(key).map(|value| value.get_ref().is_str());
        match self.layers.iter().find_map(is_one) {
            Some(true) => self.find(key, parse).into_iter().collect(),
            _ => self.find_list(key, parse).unwrap_or_default(),
        }
    }

    fn first_right<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Notes<'t>, &'t DeValue<'t>, usize) -> Result<T, ()>,
    ) -> Option<T> {
        self.known.push(key);
        let name = dotted(&self.path, key);
        for layer in &self.layers {
            let Some(value) = layer.table.get(key) else {
                continue;
            };
            let at = value.span().start;
            if let Ok(right) = read(self.notes, value.get_ref(), at) {
                self.notes.note(
                    name,
                    if layer.ours {
                        Source::Written(at)
                    } else {
                        Source::Default
                    },
                );
                return Some(right);
            }
            self.notes.note(name.clone(), Source::Broken);
        }
        self.notes.note(name, Source::Default);
        None
    }

    /// A table inside this one; empty if it is not there.
    pub(super) fn child(&mut self, key: &'static str) -> Table<'_, 't> {
        self.known.push(key);
        let mut child = Table {
            path: dotted(&self.path, key),
            at: self.at,
            layers: Vec::new(),
            known: Vec::new(),
            notes: &mut *self.notes,
        };
        for layer in &self.layers {
            let Some((found, value)) = layer.table.get_key_value(key) else {
                continue;
            };
            if layer.ours {
                child.at = found.span().start;
            }
            child.push(key, value.get_ref(), value.span().start, layer.ours);
        }
        child
    }

    fn push(&mut self, key: &str, value: &'t DeValue<'t>, at: usize, ours: bool) {
        match value {
            DeValue::Table(table) => self.layers.push(Layer { table, ours }),
            other => self
                .notes
                .wrong
                .push((at, format!("{key} must be a table, not {}", kind_of(other)))),
        }
    }

    /// The tables that the file has in this one, in its order.
    pub(super) fn entries(&mut self) -> Vec<Entry<'t>> {
        let mut entries = Vec::new();
        for layer in self.layers.iter().filter(|layer| layer.ours) {
            for (name, value) in layer.table {
                match value.get_ref() {
                    DeValue::Table(table) => {
                        let layer = Layer { table, ours: true };
                        entries.push(Entry {
                            name: name.get_ref(),
                            at: name.span().start,
                            layer,
                        });
                    }
                    other => {
                        let message = format!(
                            "{} must be a table, not {}",
                            quoted(name.get_ref()),
                            kind_of(other)
                        );
                        self.notes.wrong.push((value.span().start, message));
                    }
                }
            }
        }
        entries.sort_by_key(|entry| entry.at);
        entries
    }

    /// The table of an entry.
    pub(super) fn entry(&mut self, entry: &Entry<'t>) -> Table<'_, 't> {
        let path = dotted(&self.path, entry.name);
        Table {
            notes: &mut *self.notes,
            path,
            at: entry.at,
            layers: vec![entry.layer],
            known: Vec::new(),
        }
    }

    /// The table of an entry, with the entry `*` behind it.
    pub(super) fn entry_over_star(&mut self, entry: &Entry<'t>) -> Table<'_, 't> {
        let behind = self.child("*").layers;
        let mut table = self.entry(entry);
        table.layers.extend(behind);
        table
    }

    /// The dotted name of one of its settings.
    pub(super) fn name_of(&self, key: &str) -> String {
        dotted(&self.path, key)
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        let Some(layer) = self.layers.first().filter(|layer| layer.ours) else {
            return;
        };
        for (key, _) in layer
            .table
            .iter()
            .filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref()))
        {
            let message = unknown(key.get_ref(), &self.path, &self.known);
            self.notes.wrong.push((key.span().start, message));
        }
    }
}

impl Notes<'_> {
    fn read<T>(
        &mut self,
        key: &str,
        value: &DeValue<'_>,
        at: usize,
        parse: impl Fn(&Given<'_>) -> Parsed<T>,
    ) -> Option<T> {
        let read = Given::new(value, self.lookup).map_err(|why| format!(": {why}"));
        let read = read.and_then(|given| parse(&given).map_err(|why| format!(" {why}")));
        read.map_err(|why| self.wrong.push((at, format!("{key}{why}"))))
            .ok()
    }
}

/// A dotted name as TOML writes it.
pub(super) fn dotted(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let key = if !key.is_empty() && key.chars().all(is_bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

fn unknown(key: &str, path: &str, known: &[&str]) -> String {
    let place = if path.is_empty() {
        "pooler.toml".to_owned()
    } else {
        format!("[{path}]")
    };
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("{place} has no key {}; did you mean {near:?}?", quoted(key)),
        None => format!("{place} has no key {}", quoted(key)),
    }
}

/// What may have been meant.
pub(super) fn nearest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let (distance, near) = known.map(|known| (distance(key, known), known)).min()?;
    // A third of the letters may differ: closer than that nobody means something else.
    (distance * 3 <= near.len().max(3)).then_some(near)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour to turn one word into the other.
fn distance(one: &str, other: &str) -> usize {
    // A long key is no slip of the finger, and the table below is quadratic.
    const LONGEST: usize = 64;
    let (one, other): (Vec<_>, Vec<_>) = (one.chars().collect(), other.chars().collect());
    if one.len().max(other.len()) > LONGEST {
        return usize::MAX / 4;
    }
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_two_words_counts_slips() {
        for (one, other, slips) in [
            ("size", "size", 0),
            ("sise", "size", 1),
            ("szie", "size", 1),
            ("min_sizes", "min_size", 1),
            ("", "ab", 2),
        ] {
            assert_eq!(distance(one, other), slips, "{one} {other}");
            assert_eq!(distance(other, one), slips, "{other} {one}");
        }
    }
}
