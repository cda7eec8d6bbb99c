//! Whom a directory's certificate must be signed by: what OpenLDAP's tools are told on this machine, as it is for PgBouncer and
//! Postgres.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::checked::{SYSTEM_ROOTS, Tls, TlsMode, TlsVersion};
use crate::net::tls::connect::Connector;
use crate::net::tls::files::TlsError;

/// Where OpenLDAP is configured, on the one and the other kind of Linux.
const FILES: [&str; 2] = ["/etc/ldap/ldap.conf", "/etc/openldap/ldap.conf"];

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The authorities in this file.
    File(PathBuf),
    /// Those of the system.
    System,
    /// Anybody: the certificate is not looked at.
    Anybody,
}

impl Trust {
    /// As this machine says: `LDAPTLS_CACERT` and `LDAPTLS_REQCERT`, or the file `ldap.conf`.
    pub fn of_this_machine() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = variable("LDAPCONF");
        let files = file.iter().map(String::as_str).chain(FILES);
        let text = files.into_iter().find_map(|path| {
            // One that is not there says nothing.
            std::fs::read_to_string(Path::new(path)).ok()
        });
        Self::of(&variable, &text.unwrap_or_default())
    }

    /// Reads what TLS towards a directory takes.
    pub fn connector(&self) -> Result<Arc<Connector>, TlsError> {
        let ca = match self {
            Self::File(path) => Some(path.clone()),
            Self::System => Some(SYSTEM_ROOTS.into()),
            Self::Anybody => None,
        };
        Connector::for_others(&Tls {
            mode: TlsMode::VerifyFull,
            certificate: None,
            key: None,
            ca,
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            ciphers: Vec::new(),
            curves: Vec::new(),
        })
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>, file: &str) -> Self {
        let setting = |name: &str| {
            variable(&format!("LDAP{name}")).or_else(|| {
                let mut lines = file.lines().rev().map(str::trim);
                lines.find_map(|line| {
                    let (key, value) = line.split_once(char::is_whitespace)?;
                    key.eq_ignore_ascii_case(name)
                        .then(|| value.trim().to_owned())
                })
            })
        };
        let wanted = setting("TLS_REQCERT").unwrap_or_default();
        if ["never", "allow"]
            .iter()
            .any(|word| wanted.eq_ignore_ascii_case(word))
        {
            return Self::Anybody;
        }
        setting("TLS_CACERT").map_or(Self::System, |path| Self::File(path.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_counts_more_than_the_file() {
        let file = "# TLS_CACERT /no\nBASE dc=x\ntls_cacert   /from/file \nTLS_REQCERT demand\n";
        let nothing = |_: &str| None;
        assert_eq!(Trust::of(&nothing, ""), Trust::System);
        assert_eq!(Trust::of(&nothing, file), Trust::File("/from/file".into()));
        let variable = |name: &str| (name == "LDAPTLS_CACERT").then(|| "/mine".to_owned());
        assert_eq!(Trust::of(&variable, file), Trust::File("/mine".into()));
        let never = |name: &str| (name == "LDAPTLS_REQCERT").then(|| "Never".to_owned());
        assert_eq!(Trust::of(&never, file), Trust::Anybody);
        assert_eq!(Trust::of(&nothing, "TLS_REQCERT allow"), Trust::Anybody);
    }
}
