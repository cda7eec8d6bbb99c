//! What of the configuration this version does not act upon yet. Nothing is passed over in silence: where ignoring a
//! setting would be unsafe the process does not start, elsewhere it says so.

use crate::config::change::{between, plain};
use crate::config::checked::Config;

/// Settings by the beginning of their dotted names. Each goes from this list in the change that puts it in force; the list is
/// empty while all are.
const NOT_IN_FORCE: [&str; 0] = [];

/// Settings that were given a value that has no effect yet.
pub fn without_effect(config: &Config) -> Vec<String> {
    let given = between(&plain(config), config)
        .into_iter()
        .map(|change| change.name);
    given.filter(|name| !is_in_force(name)).collect()
}

fn is_in_force(name: &str) -> bool {
    let begins = |prefix: &&str| name.starts_with(prefix);
    !NOT_IN_FORCE.iter().any(begins)
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
    fn everything_that_can_be_given_is_in_force() {
        let given = config(
            "[timeouts]\nquery = \"5s\"\n[auth]\nmethod = \"hba\"\nhba_file = \"pg_hba.conf\"\n[services.site]\nmax_servers = 3",
        );
        assert_eq!(without_effect(&given), Vec::<String>::new());
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
