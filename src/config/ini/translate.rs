//! From PgBouncer's words to those of pooler.toml.
//!
//! A `pgbouncer.ini` is not read into a configuration beside the one of pooler.toml: it is written anew as a pooler.toml, and that
//! is what is read. So both mean the same by construction, and `pgweir import` gives what would have been in force.

mod entries;
mod group;
mod settings;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use super::keys::{self, KEYS, Key, Kind};
use super::syntax::{Entry, Lines, Section};
use super::toml::{self, Origin};
use super::{Note, Place, Setting, Surroundings, Weight, value};
use crate::config::ldap_options::LdapOptions;
use crate::config::raw::DEFAULTS;

/// PgBouncer's built-in query, which is what `query = "default"` does here.
pub(super) const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END \
                                     FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

/// PgBouncer's reserved name: the console.
const CONSOLE: &str = "pgbouncer";

/// The order of the tables; others, the databases and users, come before the last.
const ORDER: [&str; 10] = [
    "process",
    "listen",
    "pool",
    "limits",
    "timeouts",
    "tcp",
    "auth",
    "tls.client",
    "tls.server",
    "log",
];

/// What came of a file.
pub(super) struct Translated {
    pub(super) file: toml::File,
    pub(super) notes: Vec<Note>,
    pub(super) files: Vec<String>,
    pub(super) wrong: Vec<(Place, String)>,
    pub(super) settings: Vec<Setting>,
}

/// Translates a whole file, with all that it includes.
pub(super) fn translate(path: &str, around: &dyn Surroundings) -> Translated {
    let lines = Lines::read(path, around);
    let mut translator = Translator {
        around,
        file: toml::File::default(),
        settings: Named::default(),
        notes: Vec::new(),
        wrong: lines.wrong,
        written: HashSet::new(),
    };
    let (mut databases, mut users, mut peers) =
        (Named::default(), Named::default(), Named::default());
    for entry in lines.entries {
        match entry.section {
            Section::Pgbouncer => translator.keep(entry),
            Section::Databases => databases.put(entry),
            Section::Users => users.put(entry),
            Section::Peers => peers.put(entry),
        }
    }
    translator.settings(&databases);
    translator.databases(databases);
    translator.users(users);
    translator.peers(peers);
    translator.finish(lines.trailing, lines.files)
}

/// Entries by name, in the order of their first appearance. The last of a name counts; the comments of all are kept.
#[derive(Default)]
struct Named(Vec<Entry>);

impl Named {
    fn put(&mut self, mut entry: Entry) {
        match self.0.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => {
                let mut comments = std::mem::take(&mut known.comments);
                comments.append(&mut entry.comments);
                *known = Entry { comments, ..entry };
            }
            None => self.0.push(entry),
        }
    }

    fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == name)
    }
}

struct Translator<'a> {
    around: &'a dyn Surroundings,
    file: toml::File,
    settings: Named,
    notes: Vec<Note>,
    wrong: Vec<(Place, String)>,
    /// Keys of `[pgbouncer]` that have become keys of pooler.toml.
    written: HashSet<&'static str>,
}

impl Translator<'_> {
    /// Keeps a setting of `[pgbouncer]` whose name and value are right.
    fn keep(&mut self, entry: Entry) {
        let Some(key) = keys::find(&entry.key) else {
            let message = unknown(
                "parameter: pgbouncer/",
                &entry.key,
                KEYS.iter().map(|k| k.name),
            );
            return self.wrong.push((entry.at, message));
        };
        if self.literal(key.kind, &entry.value).is_some() {
            return self.settings.put(entry);
        }
        let expected = match key.kind {
            Kind::Count => "a whole number from 0",
            Kind::Switch => "0 or 1",
            Kind::Seconds => "seconds, such as 15 or 0.5",
            Kind::WholeSeconds => "whole seconds",
            Kind::Milliseconds => "milliseconds",
            Kind::Word(words) => &words.join(", "),
            Kind::Text | Kind::File | Kind::List => "a path whose home directory is known",
        };
        let Entry {
            value, value_at, ..
        } = entry;
        let shown = crate::config::value::quoted(&value);
        let name = key.name;
        let message = format!("invalid value {shown} for parameter {name}: expected {expected}");
        self.wrong.push((value_at, message));
    }

    /// A value as pooler.toml writes it; `None` if it is wrong.
    fn literal(&self, kind: Kind, text: &str) -> Option<String> {
        Some(match kind {
            Kind::Text => toml::text(text),
            Kind::File => toml::text(&self.path(text)?),
            Kind::List => toml::texts(value::list(text)),
            Kind::Count => value::count(text)?.to_string(),
            Kind::Switch => value::switch(text)?.to_string(),
            Kind::Seconds => toml::duration(value::seconds(text)?),
            Kind::WholeSeconds => toml::duration(Duration::from_secs(value::count(text)?.into())),
            Kind::Milliseconds => toml::duration(Duration::from_millis(value::count(text)?.into())),
            Kind::Word(words) => {
                let word = text.to_ascii_lowercase();
                toml::text(words.iter().find(|known| **known == word)?)
            }
        })
    }

    /// A path with the home directory put in.
    fn path(&self, text: &str) -> Option<String> {
        match text.strip_prefix('~') {
            None => Some(text.to_owned()),
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                Some(format!("{}{rest}", self.around.home()?))
            }
            Some(_) => None,
        }
    }

    /// The value of a setting: as written, or PgBouncer's default.
    fn text(&self, name: &str) -> &str {
        match self.settings.get(name) {
            Some(entry) => &entry.value,
            None => keys::find(name).map_or("", |key| key.default),
        }
    }

    fn count(&self, name: &str) -> u32 {
        value::count(self.text(name)).unwrap_or_default()
    }

    fn seconds(&self, name: &str) -> Duration {
        value::seconds(self.text(name)).unwrap_or_default()
    }

    fn word(&self, name: &str) -> String {
        self.text(name).to_ascii_lowercase()
    }

    fn is_written(&self, name: &str) -> bool {
        self.settings.get(name).is_some()
    }

    /// Where a setting is; the whole file if it is not written.
    fn place(&self, name: &str) -> Place {
        self.settings
            .get(name)
            .map_or(Place::whole(0), |entry| entry.value_at)
    }

    /// The place and the comments of settings that become one key. Comments go with the first key that takes them.
    fn origin(&mut self, names: &[&'static str]) -> Origin {
        let mut origin = Origin::default();
        for name in names {
            self.written.insert(name);
            let found = self.settings.0.iter_mut().find(|entry| entry.key == *name);
            if let Some(entry) = found {
                origin.at = origin.at.or(Some(entry.value_at));
                origin.comments.append(&mut entry.comments);
            }
        }
        if origin.at.is_none() {
            origin.remark = Some("PgBouncer's default".to_owned());
        }
        origin
    }

    /// Writes a key that stands for these settings; one that was not written only if pgweir's default is another.
    fn write(&mut self, table: &str, key: &'static str, literal: String, from: &[&'static str]) {
        let written = from.iter().any(|name| self.is_written(name));
        if written || !is_shipped(table, key, &literal) {
            let origin = self.origin(from);
            self.file.set(table, key, literal, origin);
        }
    }

    fn note(&mut self, weight: Weight, at: Place, setting: String, text: impl Into<String>) {
        self.notes.push(Note {
            weight,
            at,
            file: String::new(),
            setting,
            text: text.into(),
        });
    }

    fn note_setting(&mut self, weight: Weight, name: &str, text: &str) {
        let setting = format!("{name} = {}", self.text(name));
        self.note(weight, self.place(name), setting, text);
    }

    fn wrong_setting(&mut self, name: &str, text: impl Into<String>) {
        self.wrong.push((self.place(name), text.into()));
    }

    /// What did not become a key is told in comments, and no comment is lost.
    fn finish(mut self, trailing: Vec<String>, files: Vec<String>) -> Translated {
        let settings = KEYS.iter().map(|key| self.told(key)).collect();
        for entry in &mut self.settings.0 {
            self.file.trailing.append(&mut entry.comments);
            if !self.written.contains(entry.key.as_str()) {
                let mut line = format!("{} = {}", entry.key, entry.value);
                let note = self.notes.iter().find(|note| note.at == entry.value_at);
                if let Some(note) = note {
                    line = format!("{line}: {}", note.text);
                }
                self.file.trailing.push(line);
            }
        }
        self.file.trailing.extend(trailing);
        self.file.sort(&ORDER, ORDER.len() - 1);
        for note in &mut self.notes {
            note.file.clone_from(&files[note.at.file]);
        }
        Translated {
            file: self.file,
            notes: self.notes,
            files,
            wrong: self.wrong,
            settings,
        }
    }

    /// A key as SHOW CONFIG tells it.
    fn told(&self, key: &Key) -> Setting {
        let text = self.text(key.name);
        let value = match key.kind {
            Kind::Count | Kind::Switch | Kind::WholeSeconds | Kind::Milliseconds => {
                value::count(text).map_or_else(|| text.to_owned(), |number| number.to_string())
            }
            Kind::Seconds => value::seconds(text)
                .map_or_else(|| text.to_owned(), |time| time.as_secs_f64().to_string()),
            // There may be a password in it.
            Kind::Text if key.name == "auth_ldap_options" && !text.is_empty() => {
                LdapOptions::parse(text)
                    .map_or_else(|_| "***".to_owned(), |options| options.shown().to_owned())
            }
            Kind::Text | Kind::File | Kind::List | Kind::Word(_) => text.to_owned(),
        };
        Setting {
            name: key.name,
            value,
            default: key.default,
            is_live: !keys::AT_START.contains(&key.name),
        }
    }
}

fn unknown<'k>(what: &str, key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let message = format!("unknown {what}{}", key.escape_debug());
    match crate::config::raw::nearest(key, known) {
        Some(near) => format!("{message}; did you mean {near}?"),
        None => message,
    }
}

/// Whether pooler.toml has the same value when nothing is written.
fn is_shipped(table: &str, key: &str, literal: &str) -> bool {
    static SHIPPED: LazyLock<::toml::Table> =
        LazyLock::new(|| DEFAULTS.parse().expect("a test reads it"));
    let mut place = &*SHIPPED;
    for part in table.split('.') {
        match place.get(part).and_then(::toml::Value::as_table) {
            Some(inner) => place = inner,
            None => return false,
        }
    }
    let Ok(given) = format!("x = {literal}").parse::<::toml::Table>() else {
        return false;
    };
    let (Some(shipped), Some(given)) = (place.get(key), given.get("x")) else {
        return false;
    };
    let time = |value: &::toml::Value| value.as_str().and_then(crate::config::value::duration_of);
    shipped == given || time(shipped).is_some() && time(shipped) == time(given)
}

/// The addresses that a name in listen_addr stands for.
pub(super) fn every_address(has_ipv6: bool) -> Vec<IpAddr> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let mut addresses = vec![IpAddr::from(Ipv4Addr::UNSPECIFIED)];
    if has_ipv6 {
        addresses.push(Ipv6Addr::UNSPECIFIED.into());
    }
    addresses
}
