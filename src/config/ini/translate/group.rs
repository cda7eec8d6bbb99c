//! One table of pooler.toml in the making, from what stands behind the name of a database or user.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::keys::MODES;
use super::super::syntax::Entry;
use super::super::toml::{self, Origin};
use super::super::{Place, Weight, value};
use super::{CONSOLE, Translator};

/// What stands for "as many as there are" where PgBouncer writes 0.
const UNLIMITED: u32 = 1_000_000;

/// What stands for "used once".
const ONCE: Duration = Duration::from_millis(1);

const DEFAULT_POSTGRES_PORT: u32 = 5432;

pub(super) const RESERVED_PLACE: &str =
    "cannot use the reserved \"pgbouncer\" database as an auth_dbname";

/// The pairs of one entry.
pub(super) struct Pairs(pub(super) BTreeMap<String, (Place, String)>);

/// One table in the making, from the pairs of one entry.
pub(super) struct Group<'t, 'a> {
    pub(super) translator: &'t mut Translator<'a>,
    pub(super) table: &'t str,
    pub(super) pairs: &'t Pairs,
}

impl Group<'_, '_> {
    pub(super) fn get(&self, key: &str) -> Option<(Place, &str)> {
        let (at, value) = self.pairs.0.get(key)?;
        Some((*at, value))
    }

    pub(super) fn set(&mut self, key: &'static str, literal: String, at: Place) {
        let origin = Origin {
            at: Some(at),
            ..Origin::default()
        };
        self.translator.file.set(self.table, key, literal, origin);
    }

    pub(super) fn wrong(&mut self, at: Place, message: impl Into<String>) {
        self.translator.wrong.push((at, message.into()));
    }

    pub(super) fn text(&mut self, from: &str, to: &'static str) {
        if let Some((at, text)) = self.get(from) {
            let reserved = from == "auth_dbname" && text == CONSOLE;
            let literal = toml::text(text);
            self.set(to, literal, at);
            if reserved {
                self.wrong(at, RESERVED_PLACE);
            }
        }
    }

    /// A number that is given and not negative: that means "not set".
    pub(super) fn number(&mut self, key: &str) -> Option<(Place, u32)> {
        let (at, text) = self.get(key)?;
        match (value::count(text), value::integer(text)) {
            (Some(number), _) => Some((at, number)),
            (None, Some(..0)) => None,
            (None, _) => {
                self.wrong(at, format!("{key} must be a whole number"));
                None
            }
        }
    }

    pub(super) fn count(&mut self, from: &str, to: &'static str) {
        if let Some((at, number)) = self.number(from) {
            self.set(to, number.to_string(), at);
        }
    }

    pub(super) fn time(
        &mut self,
        from: &str,
        to: &'static str,
        meant: impl Fn(Duration) -> Duration,
    ) {
        let Some((at, text)) = self.get(from) else {
            return;
        };
        match (value::seconds(text), value::integer(text)) {
            (Some(time), _) => self.set(to, toml::duration(meant(time)), at),
            (None, Some(..0)) => {}
            (None, _) => self.wrong(at, format!("{from} must be a number of seconds")),
        }
    }

    pub(super) fn mode(&mut self) {
        let Some((at, text)) = self.get("pool_mode") else {
            return;
        };
        let word = text.to_ascii_lowercase();
        let shown = crate::config::value::quoted(text);
        if MODES.contains(&word.as_str()) {
            self.set("mode", toml::text(&word), at);
        } else {
            self.wrong(at, format!("invalid pool mode: {shown}"));
        }
    }

    pub(super) fn port(&mut self) -> Option<(Place, u32)> {
        let (at, number) = self.number("port")?;
        if (1..=0xFFFF).contains(&number) {
            return Some((at, number));
        }
        self.wrong(at, format!("invalid port: {number}"));
        None
    }

    /// Where the database is, and as whom.
    pub(super) fn place(&mut self, entry: &Entry) {
        let (at, host) = match self.get("host") {
            Some((at, host)) => (at, host.to_owned()),
            None => (entry.at, self.translator.text("unix_socket_dir").to_owned()),
        };
        if host.is_empty() {
            self.wrong(at, "unix socket dir not configured, and no host is given");
        }
        let (port_at, port) = self.port().unwrap_or((at, DEFAULT_POSTGRES_PORT));
        let is_many = host.contains(',');
        self.set("host", toml::text(&host), at);
        self.set("port", port.to_string(), port_at);
        self.text("dbname", "dbname");
        self.text("user", "user");
        if self.get("user").is_some() {
            self.text("password", "password");
        } else if let Some((at, _)) = self.get("password") {
            let text = "a password without a user is never used";
            self.note(Weight::Idle, at, "password", text, entry);
        }
        self.balance(entry, is_many);
    }

    pub(super) fn balance(&mut self, entry: &Entry, is_many: bool) {
        let given = self.get("load_balance_hosts");
        let word = given.map_or("round-robin".to_owned(), |(_, word)| {
            word.to_ascii_lowercase()
        });
        let at = given.map_or(entry.at, |(at, _)| at);
        match word.as_str() {
            "round-robin" if is_many => self.set("load_balance_hosts", toml::text(&word), at),
            "round-robin" | "disable" => {}
            _ => self.wrong(at, "load_balance_hosts must be round-robin or disable"),
        }
    }

    pub(super) fn note(&mut self, weight: Weight, at: Place, key: &str, text: &str, entry: &Entry) {
        let setting = format!("[databases] {}: {key}", entry.key);
        self.translator.note(weight, at, setting, text);
    }

    /// The size of the pool, and what is always kept of it: never more than the former.
    pub(super) fn sizes(&mut self) {
        let (given, least) = (self.number("pool_size"), self.number("min_pool_size"));
        let size = given.map_or(self.translator.count("default_pool_size"), |(_, size)| size);
        let size = unlimited(size);
        if let Some((at, _)) = given {
            self.set("pool_size", size.to_string(), at);
        }
        let general = self.translator.count("min_pool_size");
        match (least, given) {
            (Some((at, least)), _) => self.set("min_size", least.min(size).to_string(), at),
            (None, Some((at, _))) if general > size => self.set("min_size", size.to_string(), at),
            (None, _) => {}
        }
    }

    pub(super) fn reserve(&mut self) {
        let given = match self.number("reserve_pool_size") {
            None => self.number("reserve_pool"),
            given => given,
        };
        if let Some((at, size)) = given {
            let size = if self.translator.has_reserve() {
                size
            } else {
                0
            };
            self.set("reserve_size", size.to_string(), at);
        }
    }
}

/// 0 means as many as there are.
pub(super) fn unlimited(size: u32) -> u32 {
    if size == 0 { UNLIMITED } else { size }
}

/// As the lifetime of a server connection 0 means that it is used once.
pub(super) fn once(lifetime: Duration) -> Duration {
    lifetime.max(ONCE)
}
