//! Which service, and which deployment of it, a session belongs to.
//!
//! What clients say of themselves is hostile: names are made short and printable before anybody sees them. Nothing they say
//! can make the choice slow either: it takes time in proportion to the length of their names.
//!
//! Many call themselves `name@host` (`celery@worker-3`). Taken for deployments, hosts would supersede each other. So what the default
//! pattern finds counts as a deployment only if it looks like a release; who writes a pattern of their own knows their names.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use regex::Regex;

use crate::config::LONGEST_SERVICE_NAME;
use crate::config::checked::{DEFAULT_PATTERN, Match, Pattern, Services};

/// What is known of a session when it has logged in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The user it logged in as.
    pub user: &'a str,
    /// The database it asked for.
    pub database: &'a str,
    /// Its `application_name`; empty if it gave none.
    pub application_name: &'a str,
    /// Where it comes from; `None` over a unix socket.
    pub address: Option<IpAddr>,
    /// The common name of its certificate.
    pub certificate: Option<&'a str>,
    /// The deployment that it named at startup, apart from its `application_name`.
    pub deployment: Option<&'a str>,
}

/// Where a session belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// The service.
    pub service: Arc<str>,
    /// Its place in [`Services::listed`], whose limits it has; `None` = those of a service that is not listed.
    pub listed: Option<usize>,
    /// The deployment, if the session names one.
    pub deployment: Option<String>,
}

/// The rules of `[services]`, ready for use.
#[derive(Debug)]
pub struct Classifier {
    listed: Vec<Rule>,
    /// For a session that no rule fits.
    pattern: Naming,
}

/// How `application_name` tells the service and the deployment.
#[derive(Debug)]
struct Naming {
    pattern: Regex,
    /// It is the default: it fits more than deployments.
    releases_only: bool,
}

impl Naming {
    fn new(pattern: &Pattern) -> Self {
        Self {
            pattern: pattern.as_regex().clone(),
            releases_only: pattern.as_regex().as_str() == DEFAULT_PATTERN,
        }
    }

    fn service(&self, application_name: &str) -> Option<String> {
        group(&self.pattern, "service", application_name)
    }

    fn deployment(&self, application_name: &str) -> Option<String> {
        let found = group(&self.pattern, "deployment", application_name)?;
        (!self.releases_only || looks_like_a_release(&found)).then_some(found)
    }
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    fits: Fits,
    pattern: Naming,
}

impl Classifier {
    /// Makes the rules ready.
    pub fn new(services: &Services) -> Self {
        let rules = services.listed.iter().map(|service| Rule {
            name: service.name.as_str().into(),
            fits: Fits::new(&service.matches),
            pattern: Naming::new(&service.deployments.pattern),
        });
        let pattern = Naming::new(&services.deployments.pattern);
        Self {
            listed: rules.collect(),
            pattern,
        }
    }

    /// Says where a session belongs: to the first listed service that fits it, else to the one that its application_name
    /// names, else to one named as its user.
    pub fn classify(&self, session: &Facts<'_>) -> Classified {
        if let Some(index) = self.listed.iter().position(|rule| rule.fits.all(session)) {
            return self.member_of(index, session);
        }
        let name = self
            .pattern
            .service(session.application_name)
            .unwrap_or_else(|| presentable(session.user));
        // One name is one service, with one set of limits, however the session came by it.
        if let Some(index) = self.listed.iter().position(|rule| *rule.name == *name) {
            return self.member_of(index, session);
        }
        Classified {
            service: name.into(),
            listed: None,
            deployment: deployment(&self.pattern, session),
        }
    }

    fn member_of(&self, index: usize, session: &Facts<'_>) -> Classified {
        let rule = &self.listed[index];
        Classified {
            service: Arc::clone(&rule.name),
            listed: Some(index),
            deployment: deployment(&rule.pattern, session),
        }
    }
}

/// The deployment that a session names: in so many words, or in its `application_name`.
fn deployment(pattern: &Naming, session: &Facts<'_>) -> Option<String> {
    let named = session.deployment.map(presentable);
    named
        .filter(|name| !name.is_empty())
        .or_else(|| pattern.deployment(session.application_name))
}

/// Whether a name is one that people and their tools give to a release: a version or a number (`v41`, `1.2.3-rc1`, `2026-11-27`), the hash of
/// a commit or of a pod's template, or one of these behind a word for it (`release-41`, `sha-4f2c9d1`). Hosts (`web-1`,
/// `10.0.0.7`, `db.internal`), containers and environments (`prod`, `blue`) do not look so.
fn looks_like_a_release(name: &str) -> bool {
    /// What stands before a number and says that it is one of a release.
    const WORDS: [&str; 14] = [
        "v",
        "ver",
        "version",
        "r",
        "rev",
        "rel",
        "release",
        "b",
        "build",
        "deploy",
        "deployment",
        "git",
        "sha",
        "tag",
    ];
    let behind = |word: &str| {
        let rest = name.strip_prefix(word)?;
        let rest = rest.strip_prefix(['-', '_', '.']).unwrap_or(rest);
        Some(rest).filter(|rest| !rest.is_empty())
    };
    is_version(name)
        || is_hash(name)
        || WORDS
            .iter()
            .filter_map(|word| behind(word))
            .any(|rest| is_version(rest) || is_hash(rest))
}

/// Begins with a digit, and is neither an address nor a host's name nor a container's.
fn is_version(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    // The last label of a host's full name has no digits.
    let last = name.rsplit('.').next().filter(|last| *last != name);
    let is_host =
        last.is_some_and(|last| last.len() > 1 && last.chars().all(|c| c.is_ascii_alphabetic()));
    name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(plain)
        && name.parse::<IpAddr>().is_err()
        && !is_host
        && !is_container(name)
}

/// The hash of a commit, short or whole, or of a pod's template.
fn is_hash(name: &str) -> bool {
    let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    // Kubernetes spells hashes without vowels, and without what looks like them.
    let safe =
        |c: char| matches!(c, '2' | '4'..='9') || (c.is_ascii_lowercase() && !"aeiouy".contains(c));
    let is_commit = (7..=64).contains(&name.len()) && name.chars().all(hex) && !is_container(name);
    let is_template = (8..=10).contains(&name.len())
        && name.chars().all(safe)
        && name.contains(|c: char| c.is_ascii_digit());
    is_commit || is_template
}

/// What a container's host is called by default: nobody can tell it from the hash of a commit, but those are rarely so long.
fn is_container(name: &str) -> bool {
    name.len() == 12 && name.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// What a group of the pattern found, made presentable. An empty name is none.
fn group(pattern: &Regex, group: &str, application_name: &str) -> Option<String> {
    let found = pattern.captures(application_name)?.name(group)?;
    Some(presentable(found.as_str())).filter(|name| !name.is_empty())
}

/// A name that is short, and safe to print on a terminal.
fn presentable(name: &str) -> String {
    let end = name.floor_char_boundary(LONGEST_SERVICE_NAME);
    name[..end].replace(is_unprintable, "?")
}

/// Control characters, and those that turn the direction of a line or cannot be seen: an operator must be able to trust
/// what a table shows.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A [`Match`], ready for use.
#[derive(Debug)]
struct Fits {
    user: Option<Glob>,
    database: Option<Glob>,
    application_name: Option<Glob>,
    address: Vec<IpNet>,
    certificate: Option<Glob>,
    /// No key is given: nothing is matched, rather than everything.
    is_empty: bool,
}

impl Fits {
    fn new(matches: &Match) -> Self {
        let glob = |pattern: &Option<String>| pattern.as_deref().map(Glob::new);
        Self {
            user: glob(&matches.user),
            database: glob(&matches.database),
            application_name: glob(&matches.application_name),
            address: matches.address.clone(),
            certificate: glob(&matches.certificate),
            is_empty: *matches == Match::default(),
        }
    }

    fn all(&self, session: &Facts<'_>) -> bool {
        let fits = |glob: &Option<Glob>, value: &str| glob.as_ref().is_none_or(|g| g.fits(value));
        !self.is_empty
            && fits(&self.user, session.user)
            && fits(&self.database, session.database)
            && fits(&self.application_name, session.application_name)
            && self.fits_address(session.address)
            && self
                .certificate
                .as_ref()
                .is_none_or(|glob| session.certificate.is_some_and(|name| glob.fits(name)))
    }

    fn fits_address(&self, address: Option<IpAddr>) -> bool {
        // A socket that listens on [::] reports IPv4 clients as ::ffff:10.0.0.1.
        let address = address.map(|address| address.to_canonical());
        self.address.is_empty()
            || address.is_some_and(|address| self.address.iter().any(|net| net.contains(&address)))
    }
}

/// A pattern in which `*` is any text and `?` any one character; upper and lower case differ.
#[derive(Debug)]
struct Glob {
    /// What stands between the stars; at least one piece.
    pieces: Vec<Vec<char>>,
}

impl Glob {
    fn new(pattern: &str) -> Self {
        let pieces = pattern.split('*').map(|piece| piece.chars().collect());
        Self {
            pieces: pieces.collect(),
        }
    }

    fn fits(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let [first, between @ .., last] = self.pieces.as_slice() else {
            return self
                .pieces
                .iter()
                .all(|only| only.len() == text.len() && begins(&text, only));
        };
        if text.len() < first.len() + last.len() || !begins(&text, first) {
            return false;
        }
        let (middle, end) = text[first.len()..].split_at(text.len() - first.len() - last.len());
        // The earliest place for each piece leaves the most room for the next.
        let rest = between.iter().try_fold(middle, |rest, piece| {
            let at = (0..=rest.len()).find(|at| begins(&rest[*at..], piece))?;
            Some(&rest[at + piece.len()..])
        });
        rest.is_some() && begins(end, last)
    }
}

fn begins(text: &[char], piece: &[char]) -> bool {
    text.len() >= piece.len() && piece.iter().zip(text).all(|(p, t)| *p == '?' || p == t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn classifier(services: &str) -> Classifier {
        let text = format!("[databases.\"*\"]\nurl = \"postgres://db\"\n{services}");
        let config = config::parse(&text, "pooler.toml", &|_| None).expect("the file is right");
        Classifier::new(&config.services)
    }

    fn named(user: &'static str, application_name: &'static str) -> Facts<'static> {
        Facts {
            user,
            application_name,
            database: "site",
            ..Facts::default()
        }
    }

    #[test]
    fn globs_fit_as_in_a_shell() {
        for (pattern, fitting, others) in [
            ("", &[""][..], &["a"][..]),
            ("site", &["site"], &["Site", "sit", "sites", ""]),
            ("*", &["", "a", "*"], &[]),
            ("site*", &["site", "site@v1"], &["my site"]),
            ("*bot", &["bot", "chatbot"], &["bots"]),
            ("a?c", &["abc", "aéc", "a?c"], &["ac", "abbc"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["acb", "ab", "abcd"]),
            ("*a?*", &["ab", "xaby"], &["a", "xa"]),
            ("ab*ba", &["abba", "abXba"], &["aba"]),
            ("**x**", &["x", "axb"], &["y"]),
            ("[a]*", &["[a]b"], &["ab"]),
        ] {
            for text in fitting {
                assert!(Glob::new(pattern).fits(text), "{pattern} fits {text}");
            }
            for text in others {
                assert!(
                    !Glob::new(pattern).fits(text),
                    "{pattern} does not fit {text}"
                );
            }
        }
    }

    #[test]
    fn the_first_rule_that_fits_wins() {
        let rules = classifier(concat!(
            "[services.worker]\nmatch = { user = \"site\", application_name = \"celery*\" }\n",
            "[services.site]\nmatch = { user = \"site\" }\n",
            "[services.all]\nmatch = { database = \"*\" }\n",
        ));
        for (facts, index, service) in [
            (named("site", "celery@7"), 0, "worker"),
            (named("site", "gunicorn@7"), 1, "site"),
            (named("other", "celery@7"), 2, "all"),
        ] {
            let classified = rules.classify(&facts);
            assert_eq!(
                (classified.listed, &*classified.service),
                (Some(index), service)
            );
        }
    }

    #[test]
    fn without_a_rule_the_application_name_decides_and_then_the_user() {
        let rules = classifier(
            "[services.site]\nmax_servers = 3\n[services.bot]\nmatch = { user = \"bot*\" }\n",
        );
        for (facts, service, listed, deployment) in [
            (named("ada", "psql"), "ada", None, None),
            (named("ada", "report@v2"), "report", None, Some("v2")),
            (named("ada", "report/v2"), "report", None, Some("v2")),
            (named("ada", "site@v2"), "site", Some(0), Some("v2")),
            (named("site", "psql"), "site", Some(0), None),
            (named("bot1", "site@v2"), "bot", Some(1), Some("v2")),
            (named("ada", "@v2"), "ada", None, None),
        ] {
            let expected = Classified {
                service: service.into(),
                listed,
                deployment: deployment.map(str::to_owned),
            };
            assert_eq!(rules.classify(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn hosts_and_environments_are_no_deployments_unless_a_pattern_says_so() {
        let by_default = classifier("");
        let own = classifier(
            "[services.\"*\".deployments]\npattern = \"^(?<service>[^@]+)@(?<deployment>.+)$\"\n",
        );
        for host in [
            "worker-3",
            "host",
            "web01",
            "celery-0",
            "ip-10-0-0-7",
            "10.0.0.7",
            "fe80::1",
            "7.internal.example",
            "db.internal",
            "3f2a9c1b7d4e",
            "worker-6d4cf56db6-x7k2p",
            "prod",
            "blue",
            "canary",
            "main",
            "v",
            "rc-host",
            "release",
            "",
        ] {
            let name: &'static str = format!("celery@{host}").leak();
            let found = by_default.classify(&named("ada", name));
            assert_eq!(found.deployment, None, "{host}");
            let service = if host.is_empty() { "ada" } else { "celery" };
            assert_eq!(&*found.service, service, "{host}");
            let found = own.classify(&named("ada", name));
            assert_eq!(found.deployment.is_some(), !host.is_empty(), "{host}");
        }
        for release in [
            "v1",
            "v41",
            "41",
            "1.2.3",
            "1.2.3-rc1",
            "v2026.11.27",
            "2026-11-27",
            "20261127.3",
            "4f2c9d1",
            "deadbee",
            "a7b8c9d0",
            "3f2a9c1b7d4e5f60718293a4b5c6d7e8f9012345",
            "6d4cf56db6",
            "release-41",
            "build_123",
            "r41",
            "rev.7",
            "sha-4f2c9d1",
            "git-deadbee",
            "v1.4.0+build.7",
        ] {
            for name in [format!("site@{release}"), format!("site/{release}")] {
                let found = by_default.classify(&named("ada", name.leak()));
                assert_eq!(found.deployment.as_deref(), Some(release));
            }
        }
    }

    #[test]
    fn the_default_pattern_is_known_as_such() {
        assert!(classifier("").pattern.releases_only);
    }

    #[test]
    fn every_key_of_a_rule_must_fit() {
        let rules = classifier(concat!(
            "[services.inside]\n",
            "match = { address = [\"10.0.0.0/8\", \"fd00::/8\"], certificate = \"site-*\", database = \"site\" }\n",
        ));
        let fitting = Facts {
            user: "ada",
            database: "site",
            application_name: "",
            address: Some("10.1.2.3".parse().expect("an address")),
            certificate: Some("site-1"),
            deployment: None,
        };
        let address = |text: &str| Some(text.parse().expect("an address"));
        for (facts, fits) in [
            (fitting, true),
            (
                Facts {
                    address: address("::ffff:10.1.2.3"),
                    ..fitting
                },
                true,
            ),
            (
                Facts {
                    address: address("fd00::1"),
                    ..fitting
                },
                true,
            ),
            (
                Facts {
                    address: address("11.1.2.3"),
                    ..fitting
                },
                false,
            ),
            (
                Facts {
                    address: None,
                    ..fitting
                },
                false,
            ),
            (
                Facts {
                    certificate: None,
                    ..fitting
                },
                false,
            ),
            (
                Facts {
                    certificate: Some("bot-1"),
                    ..fitting
                },
                false,
            ),
            (
                Facts {
                    database: "bot",
                    ..fitting
                },
                false,
            ),
        ] {
            assert_eq!(rules.classify(&facts).listed.is_some(), fits, "{facts:?}");
        }
    }

    #[test]
    fn a_service_tells_its_deployments_apart_by_its_own_pattern() {
        let rules = classifier(concat!(
            "[services.site]\nmatch = { user = \"site\" }\n",
            "deployments.pattern = \"^(?<service>.+)-(?<deployment>[0-9]+)$\"\n",
        ));
        assert_eq!(
            rules
                .classify(&named("site", "web-17"))
                .deployment
                .as_deref(),
            Some("17")
        );
        assert_eq!(rules.classify(&named("site", "web@17")).deployment, None);
        assert_eq!(
            rules
                .classify(&named("bot", "web@17"))
                .deployment
                .as_deref(),
            Some("17")
        );
    }

    #[test]
    fn a_deployment_that_is_named_in_so_many_words_wins() {
        let rules = classifier("[services.bot]\nmatch = { user = \"bot\" }\n");
        for (user, given, deployment) in [
            ("ada", Some("v7"), "v7"),
            ("bot", Some("v7"), "v7"),
            ("bot", Some(""), "v2"),
            ("ada", None, "v2"),
            ("ada", Some("v\n7"), "v?7"),
        ] {
            let facts = Facts {
                deployment: given,
                ..named(user, "site@v2")
            };
            let found = rules.classify(&facts).deployment;
            assert_eq!(found.as_deref(), Some(deployment), "{facts:?}");
        }
    }

    #[test]
    fn names_from_clients_are_short_and_printable() {
        let rules = classifier("");
        let long = format!("{}@{}", "é".repeat(40), "1".repeat(100));
        let facts = Facts {
            user: "ada",
            application_name: &long,
            ..Facts::default()
        };
        let classified = rules.classify(&facts);
        assert_eq!(&*classified.service, "é".repeat(32));
        assert_eq!(classified.deployment.map(|name| name.len()), Some(64));
        for (user, shown) in [
            ("a\u{1b}[2Jb\n", "a?[2Jb?"),
            ("\u{202e}ada\u{feff}", "?ada?"),
            ("", ""),
        ] {
            assert_eq!(&*rules.classify(&named(user, "")).service, shown);
        }
    }
}
