//! The options of `ldap`: how a password is shown to a directory. The same words as in Postgres' `pg_hba.conf`.

use std::fmt;

use super::checked::Secret;

/// The placeholder of a filter, which the user's name takes.
const USER_NAME: &str = "$username";

/// Where the directory is, and how it is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct LdapOptions {
    /// Its servers in the order in which they are tried: host and port.
    pub servers: Vec<(String, u16)>,
    /// How the connection is protected.
    pub safety: Safety,
    /// How a user's name becomes that of an entry.
    pub naming: Naming,
    /// The options as they stand in the file, without the password.
    written: String,
}

/// How a connection to a directory is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Not at all.
    None,
    /// By TLS that is asked for once connected.
    StartTls,
    /// By TLS from the first byte.
    Ldaps,
}

/// How a user's name becomes that of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// It is put between these two.
    Around {
        /// Before it.
        prefix: String,
        /// Behind it.
        suffix: String,
    },
    /// The entry is searched for.
    Search {
        /// Below this one.
        base: String,
        /// How far below.
        scope: Scope,
        /// By a filter in which `$username` stands for the name.
        filter: String,
        /// As whom; nobody in particular if empty.
        bind_dn: String,
        /// With which password.
        bind_password: Secret,
    },
}

/// How far below its base a search looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The base alone.
    Base,
    /// What is right below it.
    One,
    /// All of it.
    Subtree,
}

impl LdapOptions {
    /// Reads `name=value`, separated by blanks or commas; a value may stand in quotes, in which `""` is a quote.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of(words(text)?)
    }

    /// Of the options one by one. Of those that come twice, the last counts.
    pub fn of(options: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut given = Given::default();
        let mut written = Vec::new();
        for option in options {
            let (name, value) = option
                .split_once('=')
                .ok_or("has a word that is no name=value")?;
            if value.is_empty() && !["ldapprefix", "ldapsuffix"].contains(&name) {
                return Err(format!("{name} has no value"));
            }
            given.take(name, value)?;
            written.push(match name {
                "ldapbindpasswd" => format!("{name}=***"),
                _ => format!("{name}=\"{}\"", value.replace('"', "\"\"")),
            });
        }
        given.check(written.join(" "))
    }

    /// The options as they are shown: without the password.
    pub fn shown(&self) -> &str {
        &self.written
    }
}

impl fmt::Debug for LdapOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The options as they were given.
#[derive(Default)]
struct Given {
    server: Option<String>,
    port: Option<u16>,
    ldaps: bool,
    start_tls: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    base: Option<String>,
    bind_dn: Option<String>,
    bind_password: Option<String>,
    attribute: Option<String>,
    filter: Option<String>,
    scope: Option<Scope>,
}

impl Given {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = Some(value.to_owned());
        match name {
            "ldapserver" => self.server = text,
            "ldapport" => self.port = Some(port(value)?),
            "ldapscheme" => self.ldaps = is_ldaps(value)?,
            "ldaptls" => {
                self.start_tls = match value {
                    "1" => true,
                    "0" => false,
                    // Whoever writes "true" means it.
                    other => return Err(format!("ldaptls is 1 or 0, not {other:?}")),
                }
            }
            "ldapprefix" => self.prefix = text,
            "ldapsuffix" => self.suffix = text,
            "ldapbasedn" => self.base = text,
            "ldapbinddn" => self.bind_dn = text,
            "ldapbindpasswd" => self.bind_password = text,
            "ldapsearchattribute" => self.attribute = text,
            "ldapsearchfilter" => self.filter = text,
            "ldapurl" => self.take_url(value)?,
            other => return Err(format!("{other:?} is no LDAP option")),
        }
        Ok(())
    }

    /// `ldap[s]://host[:port]/base[?[attribute][?[scope][?[filter]]]]`
    fn take_url(&mut self, url: &str) -> Result<(), String> {
        let no_url = || format!("{url:?} is no LDAP URL");
        let (scheme, rest) = url.split_once("://").ok_or_else(no_url)?;
        self.ldaps = is_ldaps(scheme)?;
        let (place, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port_given) = host_and_port(place);
        self.port = port_given.map(port).transpose()?;
        let mut parts = rest.splitn(4, '?').map(decoded);
        let mut next = || match parts.next() {
            None => Ok(None),
            Some(part) => part
                .map(|part| Some(part).filter(|part| !part.is_empty()))
                .ok_or_else(no_url),
        };
        self.base = next()?.or(self.base.take());
        // Of several attributes the first.
        let attributes = next()?;
        self.attribute = attributes
            .and_then(|list| list.split(',').next().map(str::to_owned))
            .or(self.attribute.take());
        self.scope = Some(match next()?.as_deref() {
            None | Some("base") => Scope::Base,
            Some("one" | "onelevel") => Scope::One,
            Some("sub" | "subtree") => Scope::Subtree,
            Some(_) => return Err(no_url()),
        });
        self.filter = next()?.or(self.filter.take());
        if !host.is_empty() {
            self.server = Some(decoded(host).ok_or_else(no_url)?);
        }
        Ok(())
    }

    fn check(self, written: String) -> Result<LdapOptions, String> {
        if self.ldaps && self.start_tls {
            return Err("ldaps is TLS already: leave ldaptls out".to_owned());
        }
        let safety = match (self.ldaps, self.start_tls) {
            (true, _) => Safety::Ldaps,
            (_, true) => Safety::StartTls,
            _ => Safety::None,
        };
        let Some(server) = &self.server else {
            return Err(
                "needs ldapserver (directories are not looked up in DNS) or ldapurl".to_owned(),
            );
        };
        let default = self.port.unwrap_or(if self.ldaps { 636 } else { 389 });
        let servers: Result<Vec<_>, _> = server
            .split_whitespace()
            .map(|server| {
                let (host, own) = host_and_port(server);
                let port = own.map_or(Ok(default), port)?;
                Ok::<_, String>((host.to_owned(), port))
            })
            .collect();
        Ok(LdapOptions {
            servers: servers?,
            safety,
            naming: self.naming()?,
            written,
        })
    }

    fn naming(self) -> Result<Naming, String> {
        let searches = [
            ("ldapbasedn", self.base.is_some()),
            ("ldapbinddn", self.bind_dn.is_some()),
            ("ldapbindpasswd", self.bind_password.is_some()),
            ("ldapsearchattribute", self.attribute.is_some()),
            ("ldapsearchfilter", self.filter.is_some()),
        ];
        if self.prefix.is_some() || self.suffix.is_some() {
            if let Some((name, _)) = searches.into_iter().find(|(_, given)| *given) {
                return Err(format!(
                    "cannot use {name} together with ldapprefix or ldapsuffix"
                ));
            }
            return Ok(Naming::Around {
                prefix: self.prefix.unwrap_or_default(),
                suffix: self.suffix.unwrap_or_default(),
            });
        }
        let Some(base) = self.base else {
            return Err("needs ldapbasedn, ldapprefix or ldapsuffix".to_owned());
        };
        let filter = match (self.attribute, self.filter) {
            (Some(_), Some(_)) => {
                return Err(
                    "cannot use ldapsearchattribute together with ldapsearchfilter".to_owned(),
                );
            }
            (None, Some(filter)) if filter.starts_with('(') => filter,
            (None, Some(filter)) => format!("({filter})"),
            (attribute, None) => {
                let attribute = attribute.as_deref().unwrap_or("uid");
                if !attribute
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-.;".contains(&byte))
                {
                    return Err(format!("{attribute:?} is no attribute"));
                }
                format!("({attribute}={USER_NAME})")
            }
        };
        Ok(Naming::Search {
            base,
            scope: self.scope.unwrap_or(Scope::Subtree),
            filter,
            bind_dn: self.bind_dn.unwrap_or_default(),
            bind_password: Secret::new(self.bind_password.unwrap_or_default()),
        })
    }
}

fn is_ldaps(scheme: &str) -> Result<bool, String> {
    match scheme {
        "ldap" => Ok(false),
        "ldaps" => Ok(true),
        other => Err(format!("ldap and ldaps are the schemes, not {other:?}")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{text:?} is no port"))
}

/// A host, in brackets if it is a numeric one of IPv6, and the port behind it.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        // Several colons without brackets.
        Some((_, rest)) if rest.contains(':') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

/// With `%2C` and the like undone.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// The words of a text, at blanks and commas that are not in quotes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                word.push('"');
            }
            '"' => quoted = !quoted,
            end if !quoted && (end == ',' || end.is_whitespace()) => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if quoted {
        return Err("has a quote without its end".to_owned());
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(base: &str, scope: Scope, filter: &str) -> Naming {
        Naming::Search {
            base: base.into(),
            scope,
            filter: filter.into(),
            bind_dn: String::new(),
            bind_password: Secret::new(""),
        }
    }

    #[test]
    fn options_mean_what_they_mean_to_postgres() {
        let around = |prefix: &str, suffix: &str| Naming::Around {
            prefix: prefix.into(),
            suffix: suffix.into(),
        };
        let one = |host: &str, port| vec![(host.to_owned(), port)];
        for (text, servers, safety, naming) in [
            (
                "ldapserver=a ldapprefix=\"cn=\" ldapsuffix=\", dc=example, dc=net\"",
                one("a", 389),
                Safety::None,
                around("cn=", ", dc=example, dc=net"),
            ),
            (
                "ldapserver=\"a b:1 [::1]:2 ::2\",ldapport=390,ldaptls=1,ldapsuffix=@x",
                vec![
                    ("a".to_owned(), 390),
                    ("b".to_owned(), 1),
                    ("::1".to_owned(), 2),
                    ("::2".to_owned(), 390),
                ],
                Safety::StartTls,
                around("", "@x"),
            ),
            (
                "ldapscheme=ldaps ldapserver=a ldapbasedn=\"dc=x\" ldapsearchattribute=mail",
                one("a", 636),
                Safety::Ldaps,
                search("dc=x", Scope::Subtree, "(mail=$username)"),
            ),
            (
                "ldapserver=a ldapbasedn=\"dc=x\" ldapsearchfilter=\"(|(uid=$username)(cn=\"\"x\"\"))\"",
                one("a", 389),
                Safety::None,
                search("dc=x", Scope::Subtree, "(|(uid=$username)(cn=\"x\"))"),
            ),
            (
                "ldapurl=\"ldap://a:1/dc=x,dc=y?uid,cn?sub\"",
                one("a", 1),
                Safety::None,
                search("dc=x,dc=y", Scope::Subtree, "(uid=$username)"),
            ),
            (
                "ldapurl=ldaps://[::1]/dc%3dx?",
                one("::1", 636),
                Safety::Ldaps,
                search("dc=x", Scope::Base, "(uid=$username)"),
            ),
            (
                "ldapurl=ldap://a/dc=x??one?(cn=$username)",
                one("a", 389),
                Safety::None,
                search("dc=x", Scope::One, "(cn=$username)"),
            ),
        ] {
            let options = LdapOptions::parse(text).unwrap();
            assert_eq!(options.servers, servers, "{text}");
            assert_eq!(options.safety, safety, "{text}");
            assert_eq!(options.naming, naming, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_told() {
        for (text, why) in [
            ("", "needs ldapserver"),
            ("ldapprefix=x", "needs ldapserver"),
            ("ldapserver=a", "needs ldapbasedn, ldapprefix or ldapsuffix"),
            ("ldapserver=a ldapbasedn=", "ldapbasedn has no value"),
            ("ldapserver=a word", "has a word that is no name=value"),
            ("ldapserver=a ldapprefix=\"x", "quote without its end"),
            ("ldapserver=a ldapport=0", "\"0\" is no port"),
            ("ldapserver=a ldapport=70000", "\"70000\" is no port"),
            ("ldapserver=a:x ldapprefix=x", "\"x\" is no port"),
            ("ldapserver=a ldaptls=true", "ldaptls is 1 or 0"),
            ("ldapserver=a ldapscheme=ldapi", "not \"ldapi\""),
            ("ldapurl=http://a/x", "not \"http\""),
            ("ldapurl=a", "no LDAP URL"),
            ("ldapurl=ldap://a/x??deep", "no LDAP URL"),
            ("ldapurl=ldap://a/%zz", "no LDAP URL"),
            (
                "ldapserver=a ldapscheme=ldaps ldaptls=1 ldapprefix=x",
                "leave ldaptls out",
            ),
            (
                "ldapserver=a ldapprefix=x ldapbasedn=y",
                "cannot use ldapbasedn together",
            ),
            (
                "ldapserver=a ldapsuffix=x ldapbindpasswd=y",
                "cannot use ldapbindpasswd together",
            ),
            (
                "ldapserver=a ldapbasedn=y ldapsearchattribute=a ldapsearchfilter=b",
                "cannot use ldapsearchattribute together",
            ),
            (
                "ldapserver=a ldapbasedn=y ldapsearchattribute=a)(b",
                "no attribute",
            ),
            (
                "ldapserver=a ldapcolour=red",
                "\"ldapcolour\" is no LDAP option",
            ),
        ] {
            let wrong = LdapOptions::parse(text).unwrap_err();
            assert!(wrong.contains(why), "{text}: {wrong}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let text = "ldapserver=a ldapbasedn=dc=x ldapbinddn=cn=y ldapbindpasswd=secret";
        let options = LdapOptions::parse(text).unwrap();
        for shown in [options.shown().to_owned(), format!("{options:?}")] {
            assert!(!shown.contains("secret"), "{shown}");
            assert!(shown.contains("ldapbinddn=\"cn=y\""), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}", words in "((ldapserver|ldapurl|ldapport|ldapprefix|=|\"|,|ldap://|:|\\[|\\?|%|1| )){0,14}") {
            for text in [text, words] {
                let _ = LdapOptions::parse(&text);
            }
        }
    }
}
