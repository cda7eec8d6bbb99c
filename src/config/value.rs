//! One value of the file: what it may be, and what to say when it is not that.
//!
//! A message may quote what is written in the file, never what came from the environment; the readers of what may hold
//! a password (`text`, `location`, `webhook`) quote nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use super::checked::{
    AuthMethod, Balance, Errors, Facility, LogFormat, MaxServers, Mode, Negotiation, Pattern,
    Secret, TlsMode, TlsVersion,
};
use super::ciphers::{Curve, Suite};
use super::env::{self, Lookup};
use super::ldap_options::LdapOptions;

/// What a key was given, with the environment put in.
#[derive(Clone)]
pub(super) enum Given<'t> {
    /// A string: as written, and as meant. The second is `None` if they are the same.
    Text {
        written: &'t str,
        expanded: Option<String>,
    },
    /// A whole number; `None` = larger than any that makes sense.
    Integer(Option<i64>),
    /// A boolean.
    Boolean(bool),
    /// Anything else, with its article: "a table".
    Other(&'static str),
}

/// The value, or why it is not one; the key is named by the caller.
pub(super) type Parsed<T> = Result<T, String>;

impl<'t> Given<'t> {
    pub(super) fn new(value: &'t DeValue<'_>, lookup: Lookup<'_>) -> Parsed<Self> {
        Ok(match value {
            DeValue::String(text) => Self::Text {
                written: text,
                expanded: env::expand(text, lookup)?,
            },
            DeValue::Integer(number) => {
                Self::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Boolean(value) => Self::Boolean(*value),
            other => Self::Other(kind_of(other)),
        })
    }

    /// The text as meant.
    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text {
                expanded: Some(text),
                ..
            } => Some(text),
            Self::Text { written, .. } => Some(written),
            _ => None,
        }
    }

    /// The text, if the environment had a part in it: only then may a string stand for a number.
    fn as_environment_text(&self) -> Option<&str> {
        match self {
            Self::Text { expanded, .. } => expanded.as_deref(),
            _ => None,
        }
    }

    fn text_or(&self, expected: &str) -> Parsed<&str> {
        self.as_text().ok_or_else(|| self.not(expected))
    }

    /// "must be X, not Y", without showing any value but what the file itself says.
    fn not(&self, expected: &str) -> String {
        match self {
            Self::Text {
                written,
                expanded: None,
            } => format!("must be {expected}, not {}", quoted(written)),
            Self::Text {
                written,
                expanded: Some(_),
            } => format!("must be {expected}, which {} is not", quoted(written)),
            Self::Integer(Some(number)) => format!("must be {expected}, not {number}"),
            Self::Integer(None) => format!("must be {expected}; this number is too large"),
            Self::Boolean(value) => format!("must be {expected}, not {value}"),
            Self::Other(kind) => format!("must be {expected}, not {kind}"),
        }
    }
}

/// The kind of a value, with its article.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A piece of the file for a message: short, on one line.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A string that may be secret: a wrong type is named, a value never shown.
pub(super) fn text(given: &Given<'_>) -> Parsed<String> {
    match given {
        Given::Integer(_) => Err("must be a string, not an integer".to_owned()),
        _ => given.text_or("a string").map(str::to_owned),
    }
}

/// As [`text`]; the value hides itself from then on.
pub(super) fn secret(given: &Given<'_>) -> Parsed<Secret> {
    text(given).map(Secret::new)
}

/// A string that is `None` when empty.
pub(super) fn optional_text(given: &Given<'_>) -> Parsed<Option<String>> {
    text(given).map(|text| Some(text).filter(|text| !text.is_empty()))
}

/// The same; the value hides itself from then on.
pub(super) fn optional_secret(given: &Given<'_>) -> Parsed<Option<Secret>> {
    Ok(optional_text(given)?.map(Secret::new))
}

/// The file of that name; `None` when empty.
pub(super) fn path(given: &Given<'_>) -> Parsed<Option<std::path::PathBuf>> {
    Ok(optional_text(given)?.map(Into::into))
}

/// `true` or `false`.
pub(super) fn boolean(given: &Given<'_>) -> Parsed<bool> {
    match (given, given.as_environment_text()) {
        (Given::Boolean(value), _) => Ok(*value),
        (_, Some("true")) => Ok(true),
        (_, Some("false")) => Ok(false),
        _ => Err(given.not("true or false")),
    }
}

/// A whole number from 0.
pub(super) fn count(given: &Given<'_>) -> Parsed<u32> {
    let number = match given {
        Given::Integer(number) => number.and_then(|number| u32::try_from(number).ok()),
        _ => given
            .as_environment_text()
            .and_then(|text| text.trim().parse().ok()),
    };
    number.ok_or_else(|| given.not("a whole number from 0"))
}

/// A whole number from 1.
pub(super) fn positive(given: &Given<'_>) -> Parsed<u32> {
    count(given)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| given.not("a whole number from 1"))
}

/// Iterations of PBKDF2.
pub(super) fn iterations(given: &Given<'_>) -> Parsed<u32> {
    // As many as are accepted of Postgres.
    const MOST: u32 = 1_000_000;
    positive(given)
        .ok()
        .filter(|number| *number <= MOST)
        .ok_or_else(|| given.not("a whole number from 1 to 1000000"))
}

/// One port; 0 = chosen.
pub(super) fn port(given: &Given<'_>) -> Parsed<u16> {
    let number = count(given).ok();
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| given.not("a port, from 0 to 65535"))
}

/// One port.
pub(super) fn fixed_port(given: &Given<'_>) -> Parsed<u16> {
    let port = port(given).ok().filter(|port| *port > 0);
    port.ok_or_else(|| given.not("a port, from 1 to 65535"))
}

/// A process's number among its peers; 0 = none.
pub(super) fn peer_id(given: &Given<'_>) -> Parsed<u16> {
    let number = count(given).ok();
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| given.not("a whole number from 0 to 65535"))
}

/// A port, or ports with commas between them; `location::pair` reads them.
pub(super) fn ports(given: &Given<'_>) -> Parsed<String> {
    match given {
        Given::Integer(Some(number)) => Ok(number.to_string()),
        _ => given.text_or("a port").map(str::to_owned),
    }
}

/// The number of threads; 0 = chosen.
pub(super) fn threads(given: &Given<'_>) -> Parsed<usize> {
    // More is a slip of the finger: no machine of today gains from it, and the start would fail half-way.
    const MOST: u32 = 1024;
    let number = count(given).ok().filter(|number| *number <= MOST);
    number
        .map(|number| number as usize)
        .ok_or_else(|| given.not("a whole number from 0 to 1024"))
}

/// `auto` or a number.
pub(super) fn max_servers(given: &Given<'_>) -> Parsed<MaxServers> {
    match (given.as_text(), positive(given)) {
        (Some("auto"), _) => Ok(MaxServers::Auto),
        (_, Ok(number)) => Ok(MaxServers::Exactly(number)),
        _ => Err(given.not("\"auto\" or a whole number from 1")),
    }
}

/// `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"2d"`, or 0.
pub(super) fn duration(given: &Given<'_>) -> Parsed<Duration> {
    let parsed = match given {
        Given::Integer(Some(0)) => Some(Duration::ZERO),
        Given::Integer(Some(number @ 1..)) => {
            return Err(format!(
                "must have a unit: \"{number}s\" or \"{number}ms\", not {number}"
            ));
        }
        _ => given.as_text().and_then(duration_of),
    };
    parsed.ok_or_else(|| given.not("a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or 0"))
}

pub(super) fn duration_of(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(60 * 60),
        "d" => seconds(24 * 60 * 60),
        "" if number == 0 => Some(Duration::ZERO),
        _ => None,
    }
    // A century: more would overflow when it is added to the time of day.
    .filter(|duration| *duration <= Duration::from_hours(100 * 366 * 24))
}

/// A duration that is `None` when 0.
pub(super) fn timeout(given: &Given<'_>) -> Parsed<Option<Duration>> {
    duration(given).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
}

/// A duration that cannot be switched off.
pub(super) fn pause(given: &Given<'_>) -> Parsed<Duration> {
    timeout(given)?.ok_or_else(|| "must be more than 0".to_owned())
}

/// `"1GiB"`, `"64MiB"`, `"16KiB"`, `"512B"` or a number of bytes.
pub(super) fn size(given: &Given<'_>) -> Parsed<u64> {
    let parsed = match given {
        Given::Integer(number) => number.and_then(|number| u64::try_from(number).ok()),
        _ => given.as_text().and_then(size_of),
    };
    parsed.ok_or_else(|| given.not("a size such as \"64MiB\" or \"1GiB\""))
}

fn size_of(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let each: u64 = match unit.trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" if number == "0" => 0,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(each)
}

/// `"127.0.0.1:6432"` or `"[::1]:6432"`.
pub(super) fn address(given: &Given<'_>) -> Parsed<SocketAddr> {
    let expected = "an address and port such as \"127.0.0.1:6432\" or \"[::1]:6432\" (every address: \"0.0.0.0:6432\", \"[::]:6432\")";
    given
        .as_text()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| given.not(expected))
}

/// As [`address`]; `None` when empty.
pub(super) fn optional_address(given: &Given<'_>) -> Parsed<Option<SocketAddr>> {
    if given.as_text() == Some("") {
        Ok(None)
    } else {
        address(given).map(Some)
    }
}

/// `"10.0.0.0/8"`, or one address.
pub(super) fn network(given: &Given<'_>) -> Parsed<IpNet> {
    let text = given.as_text();
    let one = text
        .and_then(|text| text.parse::<IpAddr>().ok())
        .map(IpNet::from);
    let network = one
        .or_else(|| text.and_then(|text| text.parse().ok()))
        .ok_or_else(|| given.not("a network such as \"10.0.0.0/8\""))?;
    if network != network.trunc() {
        // What was meant, the one address or the whole network, only its author knows.
        return Err(format!(
            "{} (its host bits are not 0)",
            given.not("a network such as \"10.0.0.0/8\"")
        ));
    }
    Ok(network)
}

/// Permissions, as an octal string.
pub(super) fn file_mode(given: &Given<'_>) -> Parsed<u32> {
    let digits = given.as_text().filter(|text| !text.starts_with('+'));
    digits
        .and_then(|text| u32::from_str_radix(text, 8).ok())
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| given.not("an octal file mode in quotes, such as \"0777\""))
}

/// Something like `http://host/path`; may hold a token, and is never shown.
pub(super) fn webhook(given: &Given<'_>) -> Parsed<Option<Secret>> {
    let Some(text) = optional_text(given)? else {
        return Ok(None);
    };
    match url::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            Ok(Some(Secret::new(text)))
        }
        _ => Err("must be a url that begins with http:// or https://".to_owned()),
    }
}

/// A regular expression with the group `deployment`.
pub(super) fn pattern(given: &Given<'_>) -> Parsed<Pattern> {
    let text = given.text_or("a regular expression")?;
    let pattern = Pattern::new(text).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "is too large a regular expression".to_owned(),
        // The last line of regex's report says what is wrong; the others draw where.
        other => format!(
            "is not a regular expression: {}",
            last_line(&other.to_string())
        ),
    })?;
    if pattern
        .as_regex()
        .capture_names()
        .flatten()
        .any(|name| name == "deployment")
    {
        return Ok(pattern);
    }
    Err("must have a group `(?<deployment>...)`".to_owned())
}

fn last_line(report: &str) -> &str {
    report
        .lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
}

/// One of the words of a list.
fn word<T: Copy>(given: &Given<'_>, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| given.as_text() == Some(word));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        given.not(&format!("one of {}", words.join(", ")))
    })
}

/// A pool mode.
pub(super) fn mode(given: &Given<'_>) -> Parsed<Mode> {
    word(
        given,
        &[
            ("transaction", Mode::Transaction),
            ("session", Mode::Session),
            ("statement", Mode::Statement),
        ],
    )
}

/// Which of several hosts is tried first.
pub(super) fn balance(given: &Given<'_>) -> Parsed<Balance> {
    word(
        given,
        &[
            ("disable", Balance::Disable),
            ("round-robin", Balance::RoundRobin),
        ],
    )
}

/// In whose words errors are told.
pub(super) fn errors(given: &Given<'_>) -> Parsed<Errors> {
    word(
        given,
        &[
            ("postgres", Errors::Postgres),
            ("pgbouncer", Errors::PgBouncer),
        ],
    )
}

/// An authentication method.
pub(super) fn auth_method(given: &Given<'_>) -> Parsed<AuthMethod> {
    word(
        given,
        &[
            ("trust", AuthMethod::Trust),
            ("any", AuthMethod::Any),
            ("password", AuthMethod::Password),
            ("md5", AuthMethod::Md5),
            ("scram-sha-256", AuthMethod::ScramSha256),
            ("cert", AuthMethod::Cert),
            ("hba", AuthMethod::Hba),
            ("ldap", AuthMethod::Ldap),
            ("pam", AuthMethod::Pam),
        ],
    )
}

/// A cipher suite, by OpenSSL's name.
pub(super) fn suite(given: &Given<'_>) -> Parsed<Suite> {
    Suite::named(&text(given)?).ok_or_else(|| {
        let names: Vec<_> = Suite::names().collect();
        format!("the cipher suites are {}", names.join(", "))
    })
}

/// A curve.
pub(super) fn curve(given: &Given<'_>) -> Parsed<Curve> {
    Curve::named(&text(given)?)
        .ok_or_else(|| "the curves are X25519, prime256v1, secp384r1".to_owned())
}

/// The options of `ldap`.
pub(super) fn ldap_options(given: &Given<'_>) -> Parsed<Option<LdapOptions>> {
    optional_text(given)?
        .map(|text| LdapOptions::parse(&text))
        .transpose()
}

/// A TLS mode.
pub(super) fn tls_mode(given: &Given<'_>) -> Parsed<TlsMode> {
    word(
        given,
        &[
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ],
    )
}

/// A version of TLS.
pub(super) fn tls_version(given: &Given<'_>) -> Parsed<TlsVersion> {
    word(
        given,
        &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)],
    )
}

/// How TLS begins.
pub(super) fn negotiation(given: &Given<'_>) -> Parsed<Negotiation> {
    word(
        given,
        &[
            ("postgres", Negotiation::Postgres),
            ("direct", Negotiation::Direct),
        ],
    )
}

/// A log level.
pub(super) fn log_level(given: &Given<'_>) -> Parsed<String> {
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    word(given, &levels).map(str::to_owned)
}

/// A log format.
pub(super) fn facility(given: &Given<'_>) -> Parsed<Facility> {
    word(
        given,
        &[
            ("user", Facility::User),
            ("daemon", Facility::Daemon),
            ("auth", Facility::Auth),
            ("authpriv", Facility::AuthPriv),
            ("local0", Facility::Local0),
            ("local1", Facility::Local1),
            ("local2", Facility::Local2),
            ("local3", Facility::Local3),
            ("local4", Facility::Local4),
            ("local5", Facility::Local5),
            ("local6", Facility::Local6),
            ("local7", Facility::Local7),
        ],
    )
}

/// A file that must be named.
pub(super) fn needed_path(given: &Given<'_>) -> Parsed<std::path::PathBuf> {
    path(given)?.ok_or_else(|| "must be a path".to_owned())
}

/// The format of log lines.
pub(super) fn log_format(given: &Given<'_>) -> Parsed<LogFormat> {
    word(
        given,
        &[
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
            ("pgbouncer", LogFormat::PgBouncer),
        ],
    )
}
