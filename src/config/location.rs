//! Where a database is: a url or the keys of libpq.
//!
//! No message quotes any part: where a password has an unexpected letter in it, any part may be the password.

use std::net::Ipv6Addr;

use super::checked::{Host, Negotiation, Secret, TlsMode};

const DEFAULT_PORT: u16 = 5432;

/// Parameters that a url may have after its `?`.
const UNDERSTOOD: &str = "host, port, user, password, dbname, sslmode and sslnegotiation";

/// What a url says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Location {
    pub(super) hosts: Vec<Host>,
    pub(super) dbname: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) sslmode: Option<TlsMode>,
    pub(super) sslnegotiation: Option<Negotiation>,
}

/// Reads `postgres://user:password@host:port,host:port/dbname?parameter=value`.
pub(super) fn parse_url(url: &str) -> Result<Location, String> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("must begin with postgres:// or postgresql://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, addresses) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));

    let mut parts = Parts::default();
    parts.set("dbname", decode(dbname)?)?;
    parts.set("user", decode(user)?)?;
    parts.set("password", decode(password)?)?;
    parts.set_addresses(addresses)?;
    for (parameter, value) in query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| pair.split_once('='))
    {
        parts.set(parameter, decode(value)?)?;
    }
    if query
        .split('&')
        .any(|pair| !pair.is_empty() && !pair.contains('='))
    {
        return Err("has a parameter without a value".to_owned());
    }
    parts.into_location()
}

/// The hosts of the keys `host` and `port`: as many ports as hosts, or one for all, or none.
pub(super) fn pair(hosts: &str, ports: Option<&str>) -> Result<Vec<Host>, String> {
    let hosts: Vec<_> = hosts.split(',').map(str::trim).collect();
    let ports: Vec<_> = ports.map_or(Vec::new(), |ports| {
        ports.split(',').map(str::trim).collect()
    });
    if !matches!(ports.len(), 0 | 1) && ports.len() != hosts.len() {
        return Err("must name one port, or as many ports as there are hosts".to_owned());
    }
    let port_of = |index: usize| {
        ports
            .get(index)
            .or(ports.first())
            .map_or(Ok(DEFAULT_PORT), |text| port(text))
    };
    hosts
        .iter()
        .enumerate()
        .map(|(index, name)| host(name, port_of(index)?))
        .collect()
}

/// The parts of a url, each empty until it is set.
#[derive(Default)]
struct Parts {
    host: String,
    port: String,
    user: String,
    password: String,
    dbname: String,
    sslmode: String,
    sslnegotiation: String,
}

impl Parts {
    fn set(&mut self, part: &str, value: String) -> Result<(), String> {
        let slot = match part {
            "host" => &mut self.host,
            "port" => &mut self.port,
            "user" => &mut self.user,
            "password" => &mut self.password,
            "dbname" => &mut self.dbname,
            "sslmode" => &mut self.sslmode,
            "sslnegotiation" => &mut self.sslnegotiation,
            tls if tls.starts_with("ssl") && is_libpq(tls) => {
                return Err(format!(
                    "has the parameter {tls}; TLS towards Postgres is set in [tls.server]"
                ));
            }
            known if is_libpq(known) => {
                return Err(format!(
                    "has the parameter {known}; only {UNDERSTOOD} are understood"
                ));
            }
            _ => {
                return Err(format!(
                    "has an unknown parameter; {UNDERSTOOD} are understood"
                ));
            }
        };
        if !slot.is_empty() && !value.is_empty() {
            return Err(format!("gives its {part} twice"));
        }
        if !value.is_empty() {
            *slot = value;
        }
        Ok(())
    }

    /// `host:port,host:port` as the comma lists that libpq makes of it.
    fn set_addresses(&mut self, addresses: &str) -> Result<(), String> {
        if addresses.is_empty() {
            return Ok(());
        }
        let pairs = addresses
            .split(',')
            .map(split_address)
            .collect::<Result<Vec<_>, _>>()?;
        let hosts = pairs
            .iter()
            .map(|(host, _)| decode(host))
            .collect::<Result<Vec<_>, _>>()?;
        // Hosts or ports of which nothing is said here may stand among the parameters.
        if hosts.iter().any(|host| !host.is_empty()) {
            self.host = hosts.join(",");
        }
        if pairs.iter().any(|(_, port)| !port.is_empty()) {
            let default = DEFAULT_PORT.to_string();
            let ports: Vec<_> = pairs
                .iter()
                .map(|(_, port)| if port.is_empty() { &default } else { *port })
                .collect();
            self.port = ports.join(",");
        }
        Ok(())
    }

    fn into_location(self) -> Result<Location, String> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let host = given(self.host).ok_or("names no host")?;
        let hosts = pair(&host, given(self.port).as_deref())?;
        let (user, password) = (given(self.user), given(self.password).map(Secret::new));
        if password.is_some() && user.is_none() {
            return Err("has a password but no user".to_owned());
        }
        Ok(Location {
            hosts,
            dbname: given(self.dbname),
            user,
            password,
            sslmode: given(self.sslmode)
                .map(|mode| tls_mode(&mode))
                .transpose()?,
            sslnegotiation: given(self.sslnegotiation)
                .map(|how| negotiation(&how))
                .transpose()?,
        })
    }
}

fn tls_mode(text: &str) -> Result<TlsMode, String> {
    Ok(match text {
        "disable" => TlsMode::Disable,
        "allow" => TlsMode::Allow,
        "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => return Err("has an sslmode that is not one of libpq's six".to_owned()),
    })
}

fn negotiation(text: &str) -> Result<Negotiation, String> {
    match text {
        "postgres" => Ok(Negotiation::Postgres),
        "direct" => Ok(Negotiation::Direct),
        _ => Err("has an sslnegotiation that is neither postgres nor direct".to_owned()),
    }
}

/// Host and port of one address; an IPv6 address stands in brackets.
fn split_address(address: &str) -> Result<(&str, &str), String> {
    if let Some(bracketed) = address.strip_prefix('[') {
        let (host, port) = bracketed
            .split_once(']')
            .ok_or("has a `[` without its `]`")?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| "has brackets around something that is no IPv6 address")?;
        return match port.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if port.is_empty() => Ok((host, "")),
            None => Err("has something other than a port after an IPv6 address".to_owned()),
        };
    }
    if address.matches(':').count() > 1 {
        return Err("has two colons in one address; an IPv6 address stands in brackets".to_owned());
    }
    Ok(address.split_once(':').unwrap_or((address, "")))
}

pub(super) fn host(name: &str, port: u16) -> Result<Host, String> {
    if name.starts_with(['/', '@']) && name.len() > 1 {
        return Ok(Host::Unix(name.to_owned(), port));
    }
    let is_name = |name: &str| {
        !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/:@?#[]".contains(c))
    };
    if !name.is_empty() && (is_name(name) || name.parse::<Ipv6Addr>().is_ok()) {
        return Ok(Host::Tcp(name.to_owned(), port));
    }
    Err(
        "must name hosts: a name, an address, a directory (unix socket) or @name, without the port"
            .to_owned(),
    )
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|port| digits && *port > 0);
    number.ok_or_else(|| "has a port that is not a number from 1 to 65535".to_owned())
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next())
                .zip(hex(rest.next()))
                .map_or(0, |(high, low)| high << 4 | low),
            other => other,
        });
    }
    // A zero byte stands for what could not be decoded: it can be in no name and no password of Postgres.
    if bytes.contains(&0) {
        return Err(
            "has a `%` that is not followed by two hexadecimal digits (a literal one is `%25`)"
                .to_owned(),
        );
    }
    String::from_utf8(bytes).map_err(|_| "has percent-encoded bytes that are not UTF-8".to_owned())
}

fn hex(digit: Option<u8>) -> Option<u8> {
    let value = char::from(digit?).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Parameters of libpq: these names may be quoted, they are no part of a password.
fn is_libpq(parameter: &str) -> bool {
    const NAMES: &[&str] = &[
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "load_balance_hosts",
        "options",
        "passfile",
        "requirepeer",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
    ];
    NAMES.contains(&parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(name: &str, port: u16) -> Host {
        Host::Tcp(name.to_owned(), port)
    }

    fn unix(name: &str, port: u16) -> Host {
        Host::Unix(name.to_owned(), port)
    }

    #[test]
    fn urls_say_where_and_as_whom() {
        let text = |text: &str| {
            Some(text)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        for (url, hosts, dbname, user, password) in [
            ("postgres://db", vec![tcp("db", 5432)], "", "", ""),
            ("postgresql://db:6000/", vec![tcp("db", 6000)], "", "", ""),
            (
                "postgres://u:p@db/site",
                vec![tcp("db", 5432)],
                "site",
                "u",
                "p",
            ),
            ("postgres://u@db", vec![tcp("db", 5432)], "", "u", ""),
            (
                "postgres://u%40x:p%3A%2F%25@db/a%20b",
                vec![tcp("db", 5432)],
                "a b",
                "u@x",
                "p:/%",
            ),
            (
                "postgres://u:p@ss@db",
                vec![tcp("db", 5432)],
                "",
                "u",
                "p@ss",
            ),
            ("postgres://[::1]:7/x", vec![tcp("::1", 7)], "x", "", ""),
            (
                "postgres://[fe80::1]",
                vec![tcp("fe80::1", 5432)],
                "",
                "",
                "",
            ),
            (
                "postgres://a:1,b,[::2]:3/x",
                vec![tcp("a", 1), tcp("b", 5432), tcp("::2", 3)],
                "x",
                "",
                "",
            ),
            (
                "postgres:///db?host=/run/postgresql",
                vec![unix("/run/postgresql", 5432)],
                "db",
                "",
                "",
            ),
            (
                "postgres://%2Frun%2Fpg:7/db",
                vec![unix("/run/pg", 7)],
                "db",
                "",
                "",
            ),
            (
                "postgres:///?host=@pg&port=7",
                vec![unix("@pg", 7)],
                "",
                "",
                "",
            ),
            ("postgres://:7/?host=h", vec![tcp("h", 7)], "", "", ""),
            (
                "postgres://a,b?port=7",
                vec![tcp("a", 7), tcp("b", 7)],
                "",
                "",
                "",
            ),
            (
                "postgres://?host=a,b&port=1,2&user=u&password=p&dbname=d",
                vec![tcp("a", 1), tcp("b", 2)],
                "d",
                "u",
                "p",
            ),
        ] {
            let (dbname, user, password) =
                (text(dbname), text(user), text(password).map(Secret::new));
            assert_eq!(
                parse_url(url),
                Ok(Location {
                    hosts,
                    dbname,
                    user,
                    password,
                    ..Location::default()
                }),
                "{url}"
            );
        }
    }

    #[test]
    fn urls_may_say_how_tls_is_spoken() {
        let location =
            parse_url("postgres://db?sslmode=verify-full&sslnegotiation=direct").unwrap();
        assert_eq!(location.sslmode, Some(TlsMode::VerifyFull));
        assert_eq!(location.sslnegotiation, Some(Negotiation::Direct));
        let location = parse_url("postgres://db?sslnegotiation=postgres").unwrap();
        assert_eq!(location.sslmode, None);
        assert_eq!(location.sslnegotiation, Some(Negotiation::Postgres));
    }

    #[test]
    fn bad_urls_say_what_is_wrong_and_repeat_nothing() {
        for (url, part) in [
            ("", "must begin with"),
            ("hunter2", "must begin with"),
            ("mysql://u:hunter2@db", "must begin with"),
            ("postgres://", "names no host"),
            ("postgres:///db", "names no host"),
            ("postgres://u:hunter2@", "names no host"),
            ("postgres://u:hunter2@db:port", "port that is not"),
            ("postgres://u:hunter2@db:0", "port that is not"),
            ("postgres://u:hunter2@db:65536", "port that is not"),
            ("postgres://u:hunter2@db:+5", "port that is not"),
            ("postgres://u:hunter2@::1", "in brackets"),
            ("postgres://u:hunter2@a,,b", "must name hosts"),
            ("postgres://u:hunter2@[db]", "no IPv6"),
            ("postgres://u:hunter2@[::1", "without its"),
            ("postgres://u:hunter2@[::1]5", "other than a port"),
            ("postgres://u:hunter2%@db", "two hexadecimal"),
            ("postgres://u:hunter2%zz@db", "two hexadecimal"),
            ("postgres://u:hunter2%00@db", "two hexadecimal"),
            ("postgres://u:hunter2%ff@db", "UTF-8"),
            ("postgres://:hunter2@db", "no user"),
            ("postgres://u:hunter2@db?host=x", "host twice"),
            ("postgres://u:hunter2@db?sslcert=x", "sslcert; TLS"),
            ("postgres://u:hunter2@db?sslmode=hunter2", "an sslmode that"),
            (
                "postgres://db?sslnegotiation=hunter2",
                "an sslnegotiation that",
            ),
            ("postgres://db?sslmode=allow&sslmode=allow", "sslmode twice"),
            (
                "postgres://u:hunter2@db?options=x",
                "options; only host, port",
            ),
            (
                "postgres://u:ab?hunter2=@db",
                "unknown parameter; host, port",
            ),
            ("postgres://u:ab?hunter2@db", "without a value"),
            ("postgres://u:hunter2@a:2,b?port=1", "port twice"),
        ] {
            let error = parse_url(url).expect_err(url);
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn hosts_and_ports_of_keys_go_in_pairs() {
        assert_eq!(pair("a", None), Ok(vec![tcp("a", 5432)]));
        assert_eq!(pair("a, b", Some("7")), Ok(vec![tcp("a", 7), tcp("b", 7)]));
        assert_eq!(
            pair("a,::1,/run", Some("1,2,3")),
            Ok(vec![tcp("a", 1), tcp("::1", 2), unix("/run", 3)])
        );
        for (hosts, ports) in [
            ("", None),
            ("a:5", None),
            ("a", Some("1,2")),
            ("a,b,c", Some("1,2")),
            ("a", Some("")),
        ] {
            assert!(pair(hosts, ports).is_err(), "{hosts} {ports:?}");
        }
    }
}
