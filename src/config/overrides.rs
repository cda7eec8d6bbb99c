//! Settings given at run time, by `SET` on the console: a layer over the file, under the same checks.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Mistakes;
use super::change::{Effect, Setting, between};
use super::checked::Config;
use super::raw::dotted;
use super::value::duration_of;

/// Settings given at run time. They last until the file is read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<Vec<String>, String>);

/// Why a setting cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// It is wrong, by itself or together with others.
    #[error("{0}")]
    Wrong(String),
    /// It counts from the next start on.
    #[error("{0} cannot be changed while pgweir runs: change the file and restart")]
    NeedsRestart(String),
}

/// What PgBouncer calls settings of ours.
const ALIASES: &[(&str, &str, Unit)] = &[
    ("pool_mode", "pool.mode", Unit::Same),
    ("default_pool_size", "pool.size", Unit::Same),
    ("min_pool_size", "pool.min_size", Unit::Same),
    ("reserve_pool_size", "pool.reserve_size", Unit::Same),
    ("reserve_pool_timeout", "pool.reserve_after", Unit::Seconds),
    (
        "max_prepared_statements",
        "pool.max_prepared_statements",
        Unit::Same,
    ),
    ("server_reset_query", "pool.server_reset_query", Unit::Same),
    ("max_client_conn", "limits.max_clients", Unit::Same),
    (
        "max_user_client_connections",
        "limits.max_clients_per_user",
        Unit::Same,
    ),
    (
        "max_db_client_connections",
        "limits.max_clients_per_database",
        Unit::Same,
    ),
    (
        "max_user_connections",
        "limits.max_servers_per_user",
        Unit::Same,
    ),
    (
        "max_db_connections",
        "limits.max_servers_per_database",
        Unit::Same,
    ),
    ("max_packet_size", "limits.max_message_size", Unit::Same),
    (
        "client_login_timeout",
        "timeouts.client_login",
        Unit::Seconds,
    ),
    ("client_idle_timeout", "timeouts.client_idle", Unit::Seconds),
    (
        "idle_transaction_timeout",
        "timeouts.idle_transaction",
        Unit::Seconds,
    ),
    ("transaction_timeout", "timeouts.transaction", Unit::Seconds),
    ("query_timeout", "timeouts.query", Unit::Seconds),
    ("query_wait_timeout", "timeouts.query_wait", Unit::Seconds),
    (
        "query_wait_notify",
        "timeouts.query_wait_notify",
        Unit::Seconds,
    ),
    (
        "server_connect_timeout",
        "timeouts.server_connect",
        Unit::Seconds,
    ),
    (
        "server_login_retry",
        "timeouts.server_login_retry",
        Unit::Seconds,
    ),
    ("server_idle_timeout", "timeouts.server_idle", Unit::Seconds),
    ("server_lifetime", "timeouts.server_lifetime", Unit::Seconds),
    ("cancel_wait_timeout", "timeouts.cancel", Unit::Seconds),
    ("suspend_timeout", "timeouts.suspend", Unit::Seconds),
    ("auth_file", "auth.users_file", Unit::Same),
    ("auth_user", "auth.query_user", Unit::Same),
    ("auth_dbname", "auth.query_database", Unit::Same),
    ("auth_query", "auth.query", Unit::Same),
    ("admin_users", "auth.admins", Unit::Same),
    ("stats_users", "auth.stats", Unit::Same),
    ("client_tls_sslmode", "tls.client.mode", Unit::Same),
    ("server_tls_sslmode", "tls.server.mode", Unit::Same),
    ("log_level", "log.level", Unit::Same),
    ("log_connections", "log.connections", Unit::Same),
    ("log_disconnections", "log.disconnections", Unit::Same),
    ("log_pooler_errors", "log.pooler_errors", Unit::Same),
    ("syslog", "log.syslog", Unit::Same),
    ("syslog_ident", "log.syslog_ident", Unit::Same),
    ("syslog_facility", "log.syslog_facility", Unit::Same),
    ("peer_id", "process.peer_id", Unit::Same),
    (
        "server_reset_query_always",
        "pool.server_reset_query_always",
        Unit::Same,
    ),
    ("server_check_query", "pool.server_check_query", Unit::Same),
    (
        "server_check_delay",
        "pool.server_check_delay",
        Unit::Seconds,
    ),
    ("server_fast_close", "pool.server_fast_close", Unit::Same),
    ("server_round_robin", "pool.server_round_robin", Unit::Same),
    (
        "application_name_add_host",
        "pool.application_name_add_host",
        Unit::Same,
    ),
    (
        "ignore_startup_parameters",
        "pool.ignore_startup_parameters",
        Unit::Same,
    ),
    ("dns_max_ttl", "timeouts.dns_max_ttl", Unit::Seconds),
    (
        "dns_nxdomain_ttl",
        "timeouts.dns_nxdomain_ttl",
        Unit::Seconds,
    ),
    (
        "dns_zone_check_period",
        "timeouts.dns_zone_check",
        Unit::Seconds,
    ),
    ("pool_idle_timeout", "timeouts.pool_idle", Unit::Seconds),
    (
        "autodb_idle_timeout",
        "timeouts.auto_database_idle",
        Unit::Seconds,
    ),
    ("auth_type", "auth.method", Unit::Same),
    ("auth_hba_file", "auth.hba_file", Unit::Same),
    ("auth_ident_file", "auth.ident_file", Unit::Same),
    (
        "login_notify_message",
        "auth.login_notify_message",
        Unit::Same,
    ),
    ("scram_iterations", "auth.scram_iterations", Unit::Same),
    ("client_tls_cert_file", "tls.client.certificate", Unit::Same),
    ("client_tls_key_file", "tls.client.key", Unit::Same),
    ("client_tls_ca_file", "tls.client.ca", Unit::Same),
    ("server_tls_cert_file", "tls.server.certificate", Unit::Same),
    ("server_tls_key_file", "tls.server.key", Unit::Same),
    ("server_tls_ca_file", "tls.server.ca", Unit::Same),
    ("tcp_keepalive", "tcp.keepalive", Unit::Same),
    ("tcp_keepidle", "tcp.keepalive_idle", Unit::Seconds),
    ("tcp_keepintvl", "tcp.keepalive_interval", Unit::Seconds),
    ("tcp_keepcnt", "tcp.keepalive_count", Unit::Same),
    ("tcp_socket_buffer", "tcp.socket_buffer", Unit::Same),
    ("log_stats", "log.stats", Unit::Same),
    ("stats_period", "log.stats_period", Unit::Seconds),
    ("logfile", "log.file", Unit::Same),
];

/// In what PgBouncer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// As here.
    Same,
    /// Seconds, without saying so.
    Seconds,
}

impl Unit {
    /// A setting's value as PgBouncer writes it.
    fn written(self, text: &str) -> String {
        let seconds = (self == Self::Seconds).then(|| duration_of(text)).flatten();
        seconds.map_or_else(|| text.to_owned(), |time| time.as_secs_f64().to_string())
    }
}

/// Those of these settings that PgBouncer has too, by its names and in its units: exporters and agents look for some of them.
pub fn in_pgbouncers_words(settings: &[Setting]) -> impl Iterator<Item = Setting> {
    ALIASES.iter().filter_map(|(alias, path, unit)| {
        let setting = settings.iter().find(|setting| setting.name == *path)?;
        Some(Setting {
            name: (*alias).to_owned(),
            value: unit.written(&setting.value),
            default: unit.written(&setting.default),
            effect: setting.effect,
        })
    })
}

impl Overrides {
    /// This and one more setting, with the configuration that comes of it. `now`: the one in force; `read`: what the file is with
    /// these overrides.
    ///
    /// Values come as text: `30` may be a number or a text, `a,b` a text or a list. The first of these that is right is taken.
    pub fn with(
        &self,
        name: &str,
        value: &str,
        now: &Config,
        read: impl Fn(&Self) -> Result<Config, Mistakes>,
    ) -> Result<(Self, Config), SetError> {
        let (path, unit) = path_of(name)?;
        find(now, &path)?;
        let mut first_error = None;
        for form in forms(value, unit) {
            let mut overrides = self.clone();
            overrides.0.insert(path.clone(), form);
            match read(&overrides) {
                Ok(config) => return live(now, &config).map(|()| (overrides, config)),
                Err(mistakes) => first_error.get_or_insert(mistakes),
            };
        }
        let mistakes = first_error.expect("a value has at least one form");
        let messages = mistakes.iter().map(|mistake| mistake.message.as_str());
        Err(SetError::Wrong(messages.collect::<Vec<_>>().join("; ")))
    }

    /// Whether one of them is this setting, by its keys.
    pub fn give(&self, path: &[&str]) -> bool {
        self.0.keys().any(|given| given == path)
    }

    /// As lines of a file.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for (path, value) in &self.0 {
            let name = path
                .iter()
                .fold(String::new(), |path, key| dotted(&path, key));
            writeln!(text, "{name} = {value}").expect("a string takes what is written to it");
        }
        text
    }
}

/// Whether a setting of one database or service is of one that there is.
fn find(now: &Config, path: &[String]) -> Result<(), SetError> {
    let [table, name, _, ..] = path else {
        return Ok(());
    };
    let is_there = match table.as_str() {
        "databases" if name == "*" => now.any_database.is_some(),
        "databases" => now.databases.contains_key(name),
        "services" => {
            let listed = &now.services.listed;
            name == "*" || listed.iter().any(|service| service.name == *name)
        }
        _ => true,
    };
    if is_there {
        Ok(())
    } else {
        let entry = dotted(table, name);
        Err(SetError::Wrong(format!(
            "there is no [{entry}] in the configuration"
        )))
    }
}

/// Whether what would change may change now.
fn live(now: &Config, config: &Config) -> Result<(), SetError> {
    let mut changes = between(now, config).into_iter();
    match changes.find(|change| change.effect == Effect::Restart) {
        Some(change) => Err(SetError::NeedsRestart(change.name)),
        None => Ok(()),
    }
}

/// The keys of a dotted name, or of what PgBouncer calls it. A key with dots stands in double quotes.
fn path_of(name: &str) -> Result<(Vec<String>, Unit), SetError> {
    let is_meant = |(theirs, ..): &&(&str, &str, Unit)| theirs.eq_ignore_ascii_case(name);
    let (name, unit) = match ALIASES.iter().find(is_meant) {
        Some((_, ours, unit)) => (*ours, *unit),
        None => (name, Unit::Same),
    };
    let (mut path, mut key, mut quoted) = (Vec::new(), String::new(), false);
    for c in name.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => path.push(std::mem::take(&mut key)),
            c => key.push(c),
        }
    }
    path.push(key);
    let is_right = !quoted && path.iter().all(|key| !key.is_empty() && is_printable(key));
    if is_right {
        Ok((path, unit))
    } else {
        Err(SetError::Wrong(format!("{name:?} is no name of a setting")))
    }
}

fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// What a value may be in the file.
fn forms(value: &str, unit: Unit) -> Vec<String> {
    let mut forms = Vec::new();
    if unit == Unit::Seconds
        && let Ok(seconds) = value.parse::<f64>()
        && seconds.is_finite()
        && seconds > 0.0
    {
        forms.push(format!("\"{}ms\"", (seconds * 1000.0).round()));
        return forms;
    }
    if value.parse::<i64>().is_ok() {
        forms.push(value.trim_start_matches('+').to_owned());
    }
    // Words of Postgres and PgBouncer for what is true or false.
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => forms.push("true".to_owned()),
        "false" | "off" | "no" | "0" => forms.push("false".to_owned()),
        _ => {}
    }
    forms.push(quote(value));
    let items = value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    forms.push(format!(
        "[{}]",
        items.map(quote).collect::<Vec<_>>().join(", ")
    ));
    forms
}

/// A text as TOML writes it.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\U{:08X}", u32::from(c)).expect("a string takes what is written");
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::checked::Mode;
    use crate::config::{parse, parse_over};

    const FILE: &str = "[pool]\nsize = 7\nmin_size = 5\n[databases.site]\nurl = \"postgres://db\"\n\
        [databases.\"a.b\"]\nurl = \"postgres://db\"\n[services.bot]\nmax_servers = 3\n\
        [services.last.match]\nuser = \"x\"\n";

    fn set(before: &Overrides, name: &str, value: &str) -> Result<(Overrides, Config), SetError> {
        let read = |overrides: &Overrides| parse_over(FILE, overrides, "file", &|_| None);
        before.with(name, value, &read(before).unwrap(), read)
    }

    fn config_with(name: &str, value: &str) -> Config {
        set(&Overrides::default(), name, value)
            .unwrap_or_else(|error| panic!("{name} = {value}: {error}"))
            .1
    }

    fn error_of(name: &str, value: &str) -> String {
        set(&Overrides::default(), name, value)
            .expect_err(name)
            .to_string()
    }

    #[test]
    fn settings_that_pgbouncer_has_are_told_in_its_words() {
        let config = config_with("timeouts.query_wait", "90s");
        let settings = crate::config::change::settings(&config);
        let told: Vec<_> = in_pgbouncers_words(&settings).collect();
        let of = |name: &str| {
            let setting = told.iter().find(|setting| setting.name == name);
            setting.map(|setting| (setting.value.as_str(), setting.default.as_str()))
        };
        assert_eq!(of("query_wait_timeout"), Some(("90", "120")));
        assert_eq!(of("client_idle_timeout"), Some(("0", "0")));
        assert_eq!(of("pool_mode"), Some(("transaction", "transaction")));
        assert_eq!(of("max_user_connections"), Some(("0", "0")));
        // Each name in the list is one of ours as well.
        assert_eq!(told.len(), ALIASES.len());
    }

    #[test]
    fn a_setting_is_set_by_its_dotted_name() {
        assert_eq!(config_with("pool.size", "30").pool.size, 30);
        let second = Some(Duration::from_secs(5));
        assert_eq!(config_with("timeouts.query", "5s").timeouts.query, second);
        let site = &config_with("databases.site.pool_size", "9").databases["site"];
        assert_eq!(site.pool_size, Some(9));
        let dots = &config_with("databases.\"a.b\".mode", "session").databases["a.b"];
        assert_eq!(dots.mode, Some(Mode::Session));
        let services = config_with("services.bot.max_servers", "4").services;
        let names: Vec<_> = services.listed.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            (names, services.listed[0].limits.max_servers),
            (vec!["bot", "last"], 4)
        );
        assert_eq!(
            config_with("auth.admins", "ann, bob").auth.admins,
            ["ann", "bob"]
        );
        assert!(!config_with("log.connections", "off").log.connections);
    }

    #[test]
    fn pgbouncers_names_are_known_and_count_in_its_units() {
        assert_eq!(config_with("Default_Pool_Size", "30").pool.size, 30);
        let query = |value| config_with("query_timeout", value).timeouts.query;
        assert_eq!(query("5"), Some(Duration::from_secs(5)));
        assert_eq!(query("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(query("0"), None);
        assert_eq!(config_with("max_client_conn", "9").limits.max_clients, 9);
        assert!(!config_with("log_connections", "0").log.connections);
    }

    #[test]
    fn every_alias_names_a_setting() {
        let settings = crate::config::settings();
        for (theirs, ours, _) in ALIASES {
            assert!(settings.iter().any(|name| name == ours), "{theirs}: {ours}");
        }
    }

    #[test]
    fn settings_add_up() {
        let (one, _) = set(&Overrides::default(), "pool.size", "30").unwrap();
        let (two, config) = set(&one, "pool.min_size", "20").unwrap();
        assert_eq!((config.pool.size, config.pool.min_size), (30, 20));
        let (_, config) = set(&two, "default_pool_size", "25").unwrap();
        assert_eq!((config.pool.size, config.pool.min_size), (25, 20));
    }

    #[test]
    fn what_would_be_wrong_in_the_file_is_wrong_here() {
        assert_eq!(
            error_of("pool.sice", "3"),
            "[pool] has no key \"sice\"; did you mean \"size\"?"
        );
        assert_eq!(error_of("pool.size", "4"), "min_size is more than size, 4");
        assert!(error_of("pool.mode", "sometimes").starts_with("mode must be"));
        assert!(error_of("nothing", "3").contains("has no key \"nothing\""));
        for missing in ["databases.none", "services.none"] {
            assert_eq!(
                error_of(&format!("{missing}.max_servers"), "3"),
                format!("there is no [{missing}] in the configuration")
            );
        }
        for name in ["", "pool.", "a\"b", "pool.\nsize"] {
            assert!(error_of(name, "3").ends_with("is no name of a setting"));
        }
    }

    #[test]
    fn what_needs_a_restart_is_refused_and_says_so() {
        assert_eq!(
            error_of("runtime.threads", "3"),
            "runtime.threads cannot be changed while pgweir runs: change the file and restart"
        );
        assert!(error_of("listen.http", "127.0.0.1:1").starts_with("listen.http cannot"));
    }

    proptest! {
        // Each reads several files.
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn no_value_is_more_than_a_value(value in "[\"\\\\\n\\[\\]= a\u{7f}$]{0,12}") {
            let plain = parse(FILE, "file", &|_| None).unwrap();
            if let Ok((_, config)) = set(&Overrides::default(), "pool.server_reset_query", &value) {
                prop_assert_eq!(&config.pool.server_reset_query, &value);
                let mut same = config.clone();
                same.pool.server_reset_query = plain.pool.server_reset_query.clone();
                prop_assert_eq!(between(&plain, &same), vec![]);
            }
        }
    }
}
