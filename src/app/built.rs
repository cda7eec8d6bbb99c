//! What of the configuration this version does not act upon yet. Nothing is passed over in silence: where ignoring a
//! setting would be unsafe the process does not start, elsewhere it says so.

use crate::config::change::between;
use crate::config::checked::Config;

/// Settings by the beginning of their dotted names. Each goes from this list in the change that puts it in force.
const NOT_IN_FORCE: [&str; 7] = [
    "auth.admins",
    "budget.check_every",
    "alerts.",
    "auth.stats",
    "incidents.",
    "pressure.",
    "log.pooler_errors",
];

/// The same within `[services.NAME]`, by the end of their names.
const NOT_IN_FORCE_BY_NAME: [&str; 2] = [".alert_servers", ".alert_clients"];

/// Settings that were given a value that has no effect yet.
pub fn without_effect(config: &Config) -> Vec<String> {
    let given = between(&defaults(config), config)
        .into_iter()
        .map(|change| change.name);
    given.filter(|name| !is_in_force(name)).collect()
}

fn is_in_force(name: &str) -> bool {
    let begins = |prefix: &&str| name.starts_with(prefix);
    let of_a_name = name.starts_with("services.");
    let ends = |suffix: &&str| name.ends_with(suffix);
    let late =
        of_a_name && (NOT_IN_FORCE_BY_NAME.iter().any(ends) || name.contains(".deployments."));
    !late && !NOT_IN_FORCE.iter().any(begins)
}

/// What everything is when nothing is given, with the databases and services of `config`, so that only their settings differ.
fn defaults(config: &Config) -> Config {
    let mut defaults = crate::config::parse(
        "[databases.\"*\"]\nurl = \"postgres://127.0.0.1\"",
        "",
        &|_| None,
    )
    .expect("the smallest file is right");
    for service in &config.services.listed {
        let mut plain = service.clone();
        plain.limits = defaults.services.limits.clone();
        plain.deployments = defaults.services.deployments.clone();
        defaults.services.listed.push(plain);
    }
    defaults.databases.clone_from(&config.databases);
    defaults
}

/// Settings that promise a protection which this version does not give.
pub fn unsafe_to_ignore(config: &Config) -> Vec<&'static str> {
    let promises = [(
        "listen.proxy_protocol_from",
        !config.listen.proxy_protocol_from.is_empty(),
    )];
    promises
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let file = format!("{text}\n[databases.\"*\"]\nurl = \"postgres://db\"\n");
        crate::config::parse(&file, "test", &|_| None).unwrap()
    }

    #[test]
    fn a_setting_without_effect_is_named() {
        let given = config(
            "[timeouts]\nquery = \"5s\"\n[pressure]\nmin_headroom = 9\n\
             [services.site]\nmax_servers = 3\nalert_servers = 2\n[services.site.deployments]\ndry_run = true",
        );
        let mut named = without_effect(&given);
        named.sort();
        assert_eq!(
            named,
            [
                "pressure.min_headroom",
                "services.site.alert_servers",
                "services.site.deployments.dry_run",
            ]
        );
    }

    #[test]
    fn the_defaults_are_all_in_order() {
        assert_eq!(without_effect(&config("")), Vec::<String>::new());
        assert!(unsafe_to_ignore(&config("")).is_empty());
    }

    #[test]
    fn a_promise_is_not_broken_in_silence() {
        assert_eq!(
            unsafe_to_ignore(&config("[listen]\nproxy_protocol_from = [\"10.0.0.0/8\"]")),
            ["listen.proxy_protocol_from"]
        );
        assert!(unsafe_to_ignore(&config("[tls.server]\nmode = \"require\"")).is_empty());
    }
}
