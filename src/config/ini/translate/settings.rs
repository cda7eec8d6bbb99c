//! `[pgbouncer]`.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::super::keys::{Fate, KEYS, Key};
use super::super::syntax::Entry;
use super::super::toml::{self, Origin};
use super::super::{Weight, connect_string, keys, value};
use super::group::{RESERVED_PLACE, once, unlimited};
use super::{AUTH_QUERY, CONSOLE, Named, Translator};
use crate::config::ciphers::{self, Chosen, Curve};

/// The largest message of the protocol that is let through.
const LARGEST_MESSAGE: u32 = 1 << 30;

/// As many as pgweir accepts of Postgres.
const MOST_ITERATIONS: u32 = 1_000_000;

impl Translator<'_> {
    /// `[pgbouncer]`.
    pub(super) fn settings(&mut self, databases: &Named) {
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
        self.syslog();
        if self.is_written("conffile") {
            let text = "a reload of this file reads that one instead; a pooler.toml is always read again itself";
            self.note_setting(Weight::Differs, "conffile", text);
        }
        self.write("log", "level", toml::text(self.level()), &["verbose"]);
        let remark = Origin::remark("as PgBouncer writes them; \"text\" and \"json\" say more");
        self.file
            .set("log", "format", toml::text("pgbouncer"), remark);
    }

    fn setting(&mut self, key: &'static Key) {
        let Key {
            name, kind, fate, ..
        } = key;
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
            Fate::Own | Fate::Idle(_) => {}
        }
    }

    /// A facility that PgBouncer does not know is libc's own default there.
    fn syslog(&mut self) {
        // Of whoever does not go to syslog nothing is written that was not.
        if self.is_written("syslog_ident") || self.count("syslog") != 0 {
            let ident = toml::text(self.text("syslog_ident"));
            self.write("log", "syslog_ident", ident, &["syslog_ident"]);
        }
        let mut word = self.text("syslog_facility").to_owned();
        if !keys::FACILITIES.contains(&word.as_str()) {
            let text = "no such facility; as with PgBouncer it is \"user\"";
            self.note_setting(Weight::Differs, "syslog_facility", text);
            "user".clone_into(&mut word);
        }
        self.write(
            "log",
            "syslog_facility",
            toml::text(&word),
            &["syslog_facility"],
        );
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
        // Whoever does not ask for a check gets none: a dead connection is noticed without.
        if self.is_written("server_check_query") {
            let query = toml::text(self.text("server_check_query"));
            self.write("pool", "server_check_query", query, &["server_check_query"]);
        }
        let remark =
            Origin::remark("as PgBouncer puts them; \"postgres\" gives the codes of Postgres");
        self.file
            .set("pool", "errors", toml::text("pgbouncer"), remark);
    }

    /// A timeout of 0 turns the reserve off, where pooler.toml's would open it at once.
    pub(super) fn has_reserve(&self) -> bool {
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
        let period = once(self.seconds("stats_period"));
        self.write(
            "log",
            "stats_period",
            toml::duration(period),
            &["stats_period"],
        );
        let retry = once(self.seconds("server_login_retry"));
        self.write(
            "timeouts",
            "server_login_retry",
            toml::duration(retry),
            &["server_login_retry"],
        );
    }

    fn auth(&mut self, databases: &Named) {
        let iterations = self.count("scram_iterations");
        let bounded = iterations.clamp(1, MOST_ITERATIONS);
        let from = ["scram_iterations"];
        self.write("auth", "scram_iterations", bounded.to_string(), &from);
        if bounded != iterations {
            let text = format!("between 1 and {MOST_ITERATIONS} are made");
            self.note_setting(Weight::Differs, "scram_iterations", &text);
        }
        let method = self.word("auth_type");
        let named = match method.as_str() {
            "plain" => "password",
            same => same,
        };
        self.write("auth", "method", toml::text(named), &["auth_type"]);
        if matches!(method.as_str(), "pam" | "hba") {
            let service = toml::text("pgbouncer");
            self.write("auth", "pam_service", service, &[]);
        }
        let options = self.text("auth_ldap_options");
        if method == "ldap" {
            let options = toml::text(options);
            self.write("auth", "ldap_options", options, &["auth_ldap_options"]);
        } else if !options.is_empty() {
            let text = "of use with auth_type = ldap alone";
            self.note_setting(Weight::Idle, "auth_ldap_options", text);
        }
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
        self.spoken_versions(TABLE, "client_tls_protocols");
        self.suites(TABLE, "client_tls_ciphers", "client_tls13_ciphers");
        self.curve(TABLE, "client_tls_ecdhcurve");
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
        // PgBouncer asks for TLS with `allow` as it does with `prefer`; libpq's meaning is another.
        let mode = match self.word("server_tls_sslmode") {
            mode if mode == "allow" => "prefer".to_owned(),
            mode => mode,
        };
        self.write(TABLE, "mode", toml::text(&mode), &["server_tls_sslmode"]);
        self.spoken_versions(TABLE, "server_tls_protocols");
        if self.word("server_tls_sslmode") != "disable" {
            self.suites(TABLE, "server_tls_ciphers", "server_tls13_ciphers");
        }
    }

    /// The lists of cipher suites up to TLS 1.2 and from TLS 1.3 on become one.
    fn suites(&mut self, table: &str, older: &'static str, newer: &'static str) {
        let chosen = ciphers::older(self.text(older));
        let recent = match self.text(newer) {
            "" => Chosen {
                suites: ciphers::every_newer(),
                ..Chosen::default()
            },
            text => ciphers::newer(text),
        };
        if chosen.suites.is_empty() {
            let text = format!(
                "failed to set ciphers: none of {:?} is known",
                self.text(older)
            );
            return self.wrong_setting(older, text);
        }
        if recent.suites.is_empty() {
            let text = format!(
                "failed to set the TLSv1.3 cipher suites: none of {:?} is known",
                self.text(newer)
            );
            return self.wrong_setting(newer, text);
        }
        for (name, Chosen { unknown, .. }) in [(older, &chosen), (newer, &recent)] {
            if !unknown.is_empty() {
                let text = format!(
                    "left out, since rustls has no such suite: {}",
                    unknown.join(", ")
                );
                self.note_setting(Weight::Differs, name, &text);
            }
        }
        let is_given = |name| keys::find(name).is_some_and(|key| key.default != self.text(name));
        if is_given(older) || is_given(newer) {
            let names = recent.suites.iter().chain(&chosen.suites);
            let names = toml::texts(names.map(|suite| suite.name()));
            self.write(table, "ciphers", names, &[older, newer]);
        }
    }

    fn curve(&mut self, table: &str, name: &'static str) {
        let text = self.text(name);
        let (known, unknown): (Vec<_>, Vec<_>) = text
            .split([':', ','])
            .map(str::trim)
            .partition(|word| Curve::named(word).is_some());
        if text.eq_ignore_ascii_case("auto") {
            return;
        }
        // Without curves there would be no forward secrecy, and no suite of rustls.
        if text.eq_ignore_ascii_case("none") {
            let text = "the curves are those of rustls: X25519, P-256, P-384";
            return self.note_setting(Weight::Without, name, text);
        }
        if known.is_empty() {
            let text = format!("failed to set ecdhcurve: none of {text:?} is known");
            return self.wrong_setting(name, text);
        }
        let literal = toml::texts(known);
        if !unknown.is_empty() {
            let text = format!(
                "left out, since rustls has no such curve: {}",
                unknown.join(", ")
            );
            self.note_setting(Weight::Differs, name, &text);
        }
        self.write(table, "curves", literal, &[name]);
    }

    fn write_file(&mut self, table: &str, key: &'static str, name: &'static str) {
        let Some(path) = self.path(self.text(name)) else {
            return;
        };
        // Here this word stands for the authorities of the system.
        let path = if path == "system" { "./system" } else { &path };
        self.write(table, key, toml::text(path), &[name]);
    }

    fn spoken_versions(&mut self, table: &str, name: &'static str) {
        let Some(spoken) = versions(self.text(name)) else {
            let text = format!("{name}: expected tlsv1.0 to tlsv1.3, all, legacy or secure");
            return self.wrong_setting(name, text);
        };
        let (oldest, newest) = match spoken {
            [_, _, true, true] => ("1.2", "1.3"),
            [_, _, true, false] => ("1.2", "1.2"),
            [_, _, false, true] => ("1.3", "1.3"),
            [_, _, false, false] => {
                let text = format!("{name}: only TLS 1.2 and 1.3 are spoken, and neither is named");
                return self.wrong_setting(name, text);
            }
        };
        if spoken[0] || spoken[1] {
            let text = "TLS 1.0 and 1.1 are not spoken";
            self.note_setting(Weight::Without, name, text);
        }
        self.write(table, "min_version", toml::text(oldest), &[name]);
        self.write(table, "max_version", toml::text(newest), &[name]);
    }
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
