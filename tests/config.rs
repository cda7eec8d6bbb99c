//! The configuration as its users meet it: files in, settings or all mistakes out.

use std::time::Duration;

use pgweir::config::change::{self, Effect};
use pgweir::config::checked::{AuthMethod, Config, Host, MaxServers, Mode, Secret};
use pgweir::config::{self, Mistakes};

/// The smallest file.
const SMALLEST: &str = "[databases.\"*\"]\nurl = \"postgres://127.0.0.1:5432\"\n";

fn environment(name: &str) -> Option<String> {
    match name {
        "PASSWORD" => Some("hunter2".to_owned()),
        "URL" => Some("postgres://ada:hunter2@db:nowhere".to_owned()),
        "SIZE" => Some("7".to_owned()),
        "WAIT" => Some("9s".to_owned()),
        "YES" => Some("true".to_owned()),
        "ADDRESS" => Some("[::1]:7000".to_owned()),
        "BREAKOUT" => Some("x\"\n[pool]\nsize = 1\n".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Mistakes> {
    config::parse(text, "f", &environment)
}

fn right(text: &str) -> Config {
    parse(text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A right file with more behind it, which begins on line 3.
fn with(more: &str) -> Result<Config, Mistakes> {
    parse(&format!("{SMALLEST}{more}"))
}

#[test]
fn the_smallest_file_means_the_shipped_one() {
    let shipped = include_str!("../pooler.toml");
    assert_eq!(right(SMALLEST), right(shipped));
}

#[test]
fn the_defaults_are_what_they_are() {
    let config = right(SMALLEST);
    assert_eq!(
        config.listen.addresses,
        ["127.0.0.1:6432".parse().expect("an address")]
    );
    assert_eq!(config.listen.unix_socket_dir, None);
    assert_eq!(config.listen.unix_socket_mode, 0o777);
    assert_eq!(config.pool.mode, Mode::Transaction);
    assert_eq!(config.pool.size, 20);
    assert_eq!(config.budget.max_servers, MaxServers::Auto);
    assert_eq!(config.limits.max_message_size, 1 << 30);
    assert_eq!(config.timeouts.client_idle, None);
    assert_eq!(config.timeouts.query_wait, Some(Duration::from_mins(2)));
    assert_eq!(config.auth.method, AuthMethod::ScramSha256);
    assert_eq!(config.auth.query, None);
    assert_eq!(config.services.limits.weight, 1);
    assert_eq!(config.alerts.webhook, None);
    assert!(config.runtime.threads >= 1);
}
