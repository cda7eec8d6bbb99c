//! From PgBouncer's words to those of pooler.toml.
//!
//! A `pgbouncer.ini` is not read into a configuration beside the one of pooler.toml: it is written anew as a pooler.toml, and that
//! is what is read. So both mean the same by construction, and `pgweir import` gives what would have been in force.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use super::connect_string::{self, Pair};
use super::keys::{self, Fate, KEYS, Key, Kind, MODES};
use super::syntax::{Entry, Lines, Section};
use super::toml::{self, Origin};
use super::{Note, Place, Setting, Surroundings, Weight, value};
use crate::config::raw::DEFAULTS;

/// PgBouncer's built-in query, which is what `query = "default"` does here.
pub(super) const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END \
                                     FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

/// What stands for "as many as there are" where PgBouncer writes 0.
const UNLIMITED: u32 = 1_000_000;

/// The largest message of the protocol that is let through.
const LARGEST_MESSAGE: u32 = 1 << 30;

/// What stands for "used once".
const ONCE: Duration = Duration::from_millis(1);

const DEFAULT_POSTGRES_PORT: u32 = 5432;

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

    /// `[pgbouncer]`.
    fn settings(&mut self, databases: &Named) {
        // Those written first, in their order; then what PgBouncer's defaults add.
        let written: Vec<_> = self
            .settings
            .0
            .iter()
            .map(|entry| entry.key.clone())
            .collect();
        let written = written.iter().filter_map(|name| keys::find(name));
        let others = KEYS.iter().filter(|key| !self.is_written(key.name));
        for key in written.chain(others).collect::<Vec<_>>() {
            self.setting(key);
        }
        self.listen();
        self.pool();
        self.limits_and_times();
        self.auth(databases);
        self.client_tls();
        self.server_tls();
        self.write("log", "level", toml::text(self.level()), &["verbose"]);
        let remark = Origin::remark("as PgBouncer writes them; \"text\" and \"json\" say more");
        self.file
            .set("log", "format", toml::text("pgbouncer"), remark);
    }

    fn setting(&mut self, key: &'static Key) {
        let Key {
            name,
            default,
            kind,
            fate,
        } = key;
        let is_other = self.literal(*kind, self.text(name)) != self.literal(*kind, default);
        match *fate {
            Fate::Same(table, own) => {
                let literal = self.literal(*kind, self.text(name));
                if let Some(literal) = literal {
                    self.write(table, own, literal, &[name]);
                }
            }
            Fate::Idle(why) if self.is_written(name) => {
                self.note_setting(Weight::Idle, name, why);
            }
            Fate::Without(why) if is_other => self.note_setting(Weight::Without, name, why),
            Fate::Refused(why) if is_other => {
                let message = format!("{name} = {}: {why}", self.text(name));
                self.wrong_setting(name, message);
            }
            Fate::Own | Fate::Idle(_) | Fate::Without(_) | Fate::Refused(_) => {}
        }
    }

    fn level(&self) -> &'static str {
        match self.count("verbose") {
            0 => "info",
            1 => "debug",
            _ => "trace",
        }
    }

    fn listen(&mut self) {
        let addresses = self.addresses();
        let names: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        let from = ["listen_addr", "listen_port"];
        self.write("listen", "addresses", toml::texts(names), &from);
        if self.is_written("listen_port") {
            let port = self.count("listen_port").to_string();
            let origin = self.origin(&["listen_port"]);
            self.file.set("listen", "unix_socket_port", port, origin);
        }
        let mode = format!("{:04o}", self.count("unix_socket_mode"));
        self.write(
            "listen",
            "unix_socket_mode",
            toml::text(&mode),
            &["unix_socket_mode"],
        );
        if self.is_written("listen_backlog") {
            let backlog = self.count("listen_backlog").max(1).to_string();
            self.write("listen", "backlog", backlog, &["listen_backlog"]);
        }
        let remark =
            Origin::remark("PgBouncer has none; \"127.0.0.1:9930\" gives metrics and health");
        self.file.set("listen", "http", toml::text(""), remark);
    }

    /// The addresses of listen_addr, each once.
    fn addresses(&mut self) -> Vec<SocketAddr> {
        let Ok(port) = u16::try_from(self.count("listen_port")) else {
            self.wrong_setting("listen_port", "listen_port must be a port, at most 65535");
            return Vec::new();
        };
        let hosts = value::list(self.text("listen_addr"));
        let hosts: Vec<_> = hosts.into_iter().map(str::to_owned).collect();
        let mut addresses = Vec::new();
        for host in hosts {
            match self.around.resolve(&host) {
                Ok(found) => {
                    addresses.extend(found.into_iter().map(|ip| SocketAddr::new(ip, port)));
                }
                Err(error) => self.wrong_setting(
                    "listen_addr",
                    format!("listen_addr: {host:?} is no address: {error}"),
                ),
            }
        }
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses
    }

    fn pool(&mut self) {
        let size = unlimited(self.count("default_pool_size"));
        self.write("pool", "size", size.to_string(), &["default_pool_size"]);
        let least = self.count("min_pool_size");
        self.write(
            "pool",
            "min_size",
            least.min(size).to_string(),
            &["min_pool_size"],
        );
        if least > size {
            let text = "no more than default_pool_size are kept";
            self.note_setting(Weight::Differs, "min_pool_size", text);
        }
        let reserve = if self.has_reserve() {
            self.count("reserve_pool_size")
        } else {
            0
        };
        self.write(
            "pool",
            "reserve_size",
            reserve.to_string(),
            &["reserve_pool_size"],
        );
        let after = toml::duration(self.seconds("reserve_pool_timeout"));
        self.write("pool", "reserve_after", after, &["reserve_pool_timeout"]);
        let remark =
            Origin::remark("as PgBouncer puts them; \"postgres\" gives the codes of Postgres");
        self.file
            .set("pool", "errors", toml::text("pgbouncer"), remark);
    }

    /// A timeout of 0 turns the reserve off, where pooler.toml's would open it at once.
    fn has_reserve(&self) -> bool {
        !self.seconds("reserve_pool_timeout").is_zero()
    }

    fn limits_and_times(&mut self) {
        let clients = self.count("max_client_conn");
        if clients == 0 {
            let text = "max_client_conn = 0 lets nobody in with PgBouncer; give a number";
            self.wrong_setting("max_client_conn", text);
        }
        self.write(
            "limits",
            "max_clients",
            clients.to_string(),
            &["max_client_conn"],
        );
        let largest = self.count("max_packet_size").min(LARGEST_MESSAGE);
        if largest < LARGEST_MESSAGE {
            self.write(
                "limits",
                "max_message_size",
                largest.to_string(),
                &["max_packet_size"],
            );
        } else if self.is_written("max_packet_size") {
            let literal = toml::text("1GiB");
            self.write("limits", "max_message_size", literal, &["max_packet_size"]);
        }
        let lifetime = toml::duration(once(self.seconds("server_lifetime")));
        self.write(
            "timeouts",
            "server_lifetime",
            lifetime,
            &["server_lifetime"],
        );
        let retry = self.seconds("server_login_retry").max(ONCE);
        self.write(
            "timeouts",
            "server_login_retry",
            toml::duration(retry),
            &["server_login_retry"],
        );
    }

    fn auth(&mut self, databases: &Named) {
        let method = self.word("auth_type");
        let named = match method.as_str() {
            "plain" => "password",
            "pam" | "ldap" => {
                let text = format!("auth_type = {method} is not part of this version");
                return self.wrong_setting("auth_type", text);
            }
            same => same,
        };
        self.write("auth", "method", toml::text(named), &["auth_type"]);
        let has_own = |entry: &Entry| has_key(&entry.value, "auth_user");
        let looks_up = !self.text("auth_user").is_empty() || databases.0.iter().any(has_own);
        if method == "trust" && !looks_up && self.text("auth_file").is_empty() {
            let text = "auth_type = trust lets in whom auth_file lists, and there is none; auth_type = any asks nobody for anything";
            self.wrong_setting("auth_type", text);
        }
        if method == "cert" && self.word("client_tls_sslmode") != "verify-full" {
            let text = "auth_type=cert requires client_tls_sslmode=verify-full";
            self.wrong_setting("auth_type", text);
        }
        if self.text("auth_dbname") == CONSOLE {
            self.wrong_setting("auth_dbname", RESERVED_PLACE);
        }
        if !looks_up {
            return;
        }
        let place = toml::text(self.text("auth_dbname"));
        self.write("auth", "query_database", place, &["auth_dbname"]);
        let query = self.text("auth_query");
        let query = if query == AUTH_QUERY {
            "default"
        } else {
            query
        };
        let query = toml::text(query);
        self.write("auth", "query", query, &["auth_query"]);
    }

    fn client_tls(&mut self) {
        const TABLE: &str = "tls.client";
        let mode = self.word("client_tls_sslmode");
        // Both demand a certificate of our authorities, and neither wants a user's name in it.
        let named = if mode == "verify-full" {
            "verify-ca"
        } else {
            &mode
        };
        self.write(TABLE, "mode", toml::text(named), &["client_tls_sslmode"]);
        if mode == "disable" {
            return;
        }
        let files = [
            ("certificate", "client_tls_cert_file"),
            ("key", "client_tls_key_file"),
            ("ca", "client_tls_ca_file"),
        ];
        let is_missing = |name: &&str| self.text(name).is_empty();
        if let Some(missing) = ["client_tls_key_file", "client_tls_cert_file"]
            .iter()
            .find(|name| is_missing(name))
        {
            let text = format!("client_tls_sslmode = {mode} needs {missing}");
            self.wrong_setting("client_tls_sslmode", text);
        }
        for (key, name) in files {
            self.write_file(TABLE, key, name);
        }
        self.oldest_version(TABLE, "client_tls_protocols");
    }

    fn server_tls(&mut self) {
        const TABLE: &str = "tls.server";
        // In the other modes PgBouncer does not look at it, and pgweir would.
        if self.word("server_tls_sslmode").starts_with("verify-") {
            self.write_file(TABLE, "ca", "server_tls_ca_file");
        } else if !self.text("server_tls_ca_file").is_empty() {
            let text = "checked with server_tls_sslmode = verify-ca and verify-full alone";
            self.note_setting(Weight::Idle, "server_tls_ca_file", text);
        }
        self.oldest_version(TABLE, "server_tls_protocols");
    }

    fn write_file(&mut self, table: &str, key: &'static str, name: &'static str) {
        let Some(path) = self.path(self.text(name)) else {
            return;
        };
        // Here this word stands for the authorities of the system.
        let path = if path == "system" { "./system" } else { &path };
        self.write(table, key, toml::text(path), &[name]);
    }

    fn oldest_version(&mut self, table: &str, name: &'static str) {
        let Some(spoken) = versions(self.text(name)) else {
            let text = format!("{name}: expected tlsv1.0 to tlsv1.3, all, legacy or secure");
            return self.wrong_setting(name, text);
        };
        let oldest = match spoken {
            [_, _, true, _] => "1.2",
            [_, _, false, true] => "1.3",
            _ => {
                let text = format!("{name}: only TLS 1.2 and 1.3 are spoken, and neither is named");
                return self.wrong_setting(name, text);
            }
        };
        if spoken[0] || spoken[1] || !spoken[3] {
            let text = "TLS 1.0 and 1.1 are not spoken, and 1.3 always is";
            self.note_setting(Weight::Without, name, text);
        }
        self.write(table, "min_version", toml::text(oldest), &[name]);
    }

    fn databases(&mut self, databases: Named) {
        for entry in databases.0 {
            if entry.key == CONSOLE {
                let message = format!("database name \"{CONSOLE}\" is reserved");
                self.wrong.push((entry.at, message));
                continue;
            }
            let table = toml::name("databases", &entry.key);
            self.begin(&table, &entry);
            let known = [
                "dbname",
                "host",
                "port",
                "user",
                "password",
                "auth_user",
                "auth_dbname",
                "auth_query",
                "client_encoding",
                "datestyle",
                "timezone",
                "application_name",
                "pool_size",
                "min_pool_size",
                "reserve_pool_size",
                "reserve_pool",
                "pool_mode",
                "connect_query",
                "max_db_connections",
                "max_db_client_connections",
                "server_lifetime",
                "query_wait_timeout",
                "load_balance_hosts",
            ];
            let Some(pairs) = self.pairs(&entry, "connection string") else {
                continue;
            };
            let pairs = self.known(pairs, &entry, "connection parameter: ", &known);
            self.database(&table, &entry, &pairs);
        }
    }

    fn database(&mut self, table: &str, entry: &Entry, pairs: &Pairs) {
        let mut group = Group {
            translator: self,
            table,
            pairs,
        };
        group.place(entry);
        for (from, to) in [
            ("auth_user", "auth_user"),
            ("auth_dbname", "auth_dbname"),
            ("auth_query", "auth_query"),
            ("client_encoding", "client_encoding"),
            ("datestyle", "datestyle"),
            ("timezone", "timezone"),
            ("application_name", "application_name"),
            ("connect_query", "connect_query"),
        ] {
            group.text(from, to);
        }
        group.mode();
        group.sizes();
        group.reserve();
        group.count("max_db_connections", "max_servers");
        group.count("max_db_client_connections", "max_clients");
        group.time("query_wait_timeout", "query_wait", |time| time);
        group.time("server_lifetime", "server_lifetime", once);
    }

    fn users(&mut self, users: Named) {
        for entry in users.0 {
            let table = toml::name("users", &entry.key);
            self.begin(&table, &entry);
            let known = [
                "pool_mode",
                "pool_size",
                "reserve_pool_size",
                "max_user_connections",
                "max_user_client_connections",
                "query_timeout",
                "query_wait_timeout",
                "idle_transaction_timeout",
                "transaction_timeout",
                "client_idle_timeout",
            ];
            let Some(pairs) = self.pairs(&entry, "user settings") else {
                continue;
            };
            let pairs = self.known(pairs, &entry, "user parameter: ", &known);
            let mut group = Group {
                translator: self,
                table: &table,
                pairs: &pairs,
            };
            group.mode();
            if let Some((at, size)) = group.number("pool_size") {
                group.set("pool_size", unlimited(size).to_string(), at);
            }
            group.reserve();
            group.count("max_user_connections", "max_servers");
            group.count("max_user_client_connections", "max_clients");
            for (from, to) in [
                ("query_timeout", "query"),
                ("query_wait_timeout", "query_wait"),
                ("idle_transaction_timeout", "idle_transaction"),
                ("transaction_timeout", "transaction"),
                ("client_idle_timeout", "client_idle"),
            ] {
                group.time(from, to, |time| time);
            }
        }
    }

    fn peers(&mut self, peers: Named) {
        for entry in peers.0 {
            let id = value::integer(&entry.key).filter(|id| (1..=0xFFFF).contains(id));
            if id.is_none() {
                let message = "ids of peers must be a number larger than 0 and at most 65535";
                self.wrong.push((entry.at, message.to_owned()));
            }
            let Some(pairs) = self.pairs(&entry, "connection string") else {
                continue;
            };
            let known = ["host", "port", "pool_size"];
            let pairs = self.known(pairs, &entry, "connection parameter: ", &known);
            let mut group = Group {
                translator: self,
                table: "peers",
                pairs: &pairs,
            };
            let _ = (group.port(), group.number("pool_size"));
            if !pairs.0.contains_key("host") {
                let message = format!("host was not provided for peer {}", entry.key);
                self.wrong.push((entry.value_at, message));
            }
            let text = "cancel requests are not passed on to other processes yet";
            let setting = format!("[peers] {}", entry.key);
            self.note(Weight::Without, entry.at, setting, text);
            self.file.trailing.extend(entry.comments);
        }
    }

    /// Begins the table of an entry.
    fn begin(&mut self, table: &str, entry: &Entry) {
        let origin = Origin {
            at: Some(entry.at),
            comments: entry.comments.clone(),
            remark: None,
        };
        self.file.table(table, origin);
    }

    fn pairs(&mut self, entry: &Entry, what: &str) -> Option<Vec<Pair>> {
        match connect_string::parse(&entry.value) {
            Ok(pairs) => Some(pairs),
            Err(at) => {
                let place = entry.value_at.behind(&entry.value[..at]);
                self.wrong.push((place, format!("syntax error in {what}")));
                None
            }
        }
    }

    /// The pairs with a known key, by key: the last of each counts.
    fn known(&mut self, pairs: Vec<Pair>, entry: &Entry, what: &str, known: &[&str]) -> Pairs {
        let mut found = BTreeMap::new();
        for Pair { at, key, value } in pairs {
            let at = entry.value_at.behind(&entry.value[..at]);
            if known.contains(&key.as_str()) {
                found.insert(key, (at, value));
            } else {
                let message = unknown(what, &key, known.iter().copied());
                let message = message.replacen("unknown", "unrecognized", 1);
                self.wrong.push((at, message));
            }
        }
        Pairs(found)
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

const RESERVED_PLACE: &str = "cannot use the reserved \"pgbouncer\" database as an auth_dbname";

/// The pairs of one entry.
struct Pairs(BTreeMap<String, (Place, String)>);

/// One table in the making, from the pairs of one entry.
struct Group<'t, 'a> {
    translator: &'t mut Translator<'a>,
    table: &'t str,
    pairs: &'t Pairs,
}

impl Group<'_, '_> {
    fn get(&self, key: &str) -> Option<(Place, &str)> {
        let (at, value) = self.pairs.0.get(key)?;
        Some((*at, value))
    }

    fn set(&mut self, key: &'static str, literal: String, at: Place) {
        let origin = Origin {
            at: Some(at),
            ..Origin::default()
        };
        self.translator.file.set(self.table, key, literal, origin);
    }

    fn wrong(&mut self, at: Place, message: impl Into<String>) {
        self.translator.wrong.push((at, message.into()));
    }

    fn text(&mut self, from: &str, to: &'static str) {
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
    fn number(&mut self, key: &str) -> Option<(Place, u32)> {
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

    fn count(&mut self, from: &str, to: &'static str) {
        if let Some((at, number)) = self.number(from) {
            self.set(to, number.to_string(), at);
        }
    }

    fn time(&mut self, from: &str, to: &'static str, meant: impl Fn(Duration) -> Duration) {
        let Some((at, text)) = self.get(from) else {
            return;
        };
        match (value::seconds(text), value::integer(text)) {
            (Some(time), _) => self.set(to, toml::duration(meant(time)), at),
            (None, Some(..0)) => {}
            (None, _) => self.wrong(at, format!("{from} must be a number of seconds")),
        }
    }

    fn mode(&mut self) {
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

    fn port(&mut self) -> Option<(Place, u32)> {
        let (at, number) = self.number("port")?;
        if (1..=0xFFFF).contains(&number) {
            return Some((at, number));
        }
        self.wrong(at, format!("invalid port: {number}"));
        None
    }

    /// Where the database is, and as whom.
    fn place(&mut self, entry: &Entry) {
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

    fn balance(&mut self, entry: &Entry, is_many: bool) {
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

    fn note(&mut self, weight: Weight, at: Place, key: &str, text: &str, entry: &Entry) {
        let setting = format!("[databases] {}: {key}", entry.key);
        self.translator.note(weight, at, setting, text);
    }

    /// The size of the pool, and what is always kept of it: never more than the former.
    fn sizes(&mut self) {
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

    fn reserve(&mut self) {
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
fn unlimited(size: u32) -> u32 {
    if size == 0 { UNLIMITED } else { size }
}

/// As the lifetime of a server connection 0 means that it is used once.
fn once(lifetime: Duration) -> Duration {
    lifetime.max(ONCE)
}

fn has_key(connect_string: &str, key: &str) -> bool {
    connect_string::parse(connect_string)
        .is_ok_and(|pairs| pairs.iter().any(|pair| pair.key == key))
}

/// The versions that are spoken, from 1.0 to 1.3, of a list in which `!` takes one away.
fn versions(text: &str) -> Option<[bool; 4]> {
    let mut spoken = [false; 4];
    for word in text.split([',', ':']).map(str::trim) {
        let word = word.to_ascii_lowercase();
        let (wanted, word) = match word.strip_prefix('!') {
            Some(word) => (false, word),
            None => (true, word.as_str()),
        };
        let named = match word {
            "all" | "legacy" | "tlsv1" => [true; 4],
            "secure" | "default" => [false, false, true, true],
            "tlsv1.0" => [true, false, false, false],
            "tlsv1.1" => [false, true, false, false],
            "tlsv1.2" => [false, false, true, false],
            "tlsv1.3" => [false, false, false, true],
            _ => return None,
        };
        for (spoken, named) in spoken.iter_mut().zip(named) {
            *spoken = if named { wanted } else { *spoken };
        }
    }
    Some(spoken)
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
