//! `[databases]`, `[users]` and `[peers]`.

use std::collections::BTreeMap;

use super::super::connect_string::{self, Pair};
use super::super::syntax::Entry;
use super::super::toml::{self, Origin};
use super::super::value;
use super::group::{Group, Pairs, once, unlimited};
use super::{CONSOLE, Named, Translator, unknown};

impl Translator<'_> {
    pub(super) fn databases(&mut self, databases: Named) {
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

    pub(super) fn users(&mut self, users: Named) {
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

    pub(super) fn peers(&mut self, peers: Named) {
        for entry in peers.0 {
            let id = value::integer(&entry.key).filter(|id| (1..=0xFFFF).contains(id));
            let Some(id) = id else {
                let message = "ids of peers must be a number larger than 0 and at most 65535";
                self.wrong.push((entry.at, message.to_owned()));
                continue;
            };
            let table = toml::name("peers", &id.to_string());
            self.begin(&table, &entry);
            let Some(pairs) = self.pairs(&entry, "connection string") else {
                continue;
            };
            let known = ["host", "port", "pool_size"];
            let pairs = self.known(pairs, &entry, "connection parameter: ", &known);
            let mut group = Group {
                translator: self,
                table: &table,
                pairs: &pairs,
            };
            match group.get("host") {
                Some(_) => group.text("host", "host"),
                None => group.wrong(
                    entry.value_at,
                    format!("host was not provided for peer {}", entry.key),
                ),
            }
            if let Some((at, port)) = group.port() {
                group.set("port", port.to_string(), at);
            }
            if let Some((at, size)) = group.number("pool_size") {
                group.set("pool_size", unlimited(size).to_string(), at);
            }
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
}
