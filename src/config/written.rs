//! Values as `pooler.toml` would have them, for people to read. A secret is never written.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::checked::{
    AuthMethod, Balance, Errors, Facility, Host, LogFormat, MaxServers, Mode, Negotiation, Pattern,
    Secret, TlsMode, TlsVersion,
};
use super::ciphers::{Curve, Suite};
use super::ldap_options::LdapOptions;

/// A value of a setting.
pub(super) trait Written {
    /// It, as the file would have it.
    fn written(&self) -> String;

    /// What stands for none of it.
    fn none() -> &'static str
    where
        Self: Sized,
    {
        ""
    }
}

macro_rules! as_displayed {
    ($($type:ty),*) => {$(
        impl Written for $type {
            fn written(&self) -> String {
                displayed(self)
            }
        }
    )*};
}

as_displayed!(bool, u16, u32, usize, String, SocketAddr, IpNet);

fn displayed(value: &dyn Display) -> String {
    value.to_string()
}

impl Written for u64 {
    /// A size in bytes.
    fn written(&self) -> String {
        let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let whole = |(bytes, _): &(u64, &str)| *self > 0 && self.is_multiple_of(*bytes);
        match units.into_iter().find(whole) {
            Some((bytes, unit)) => format!("{}{unit}", self / bytes),
            None if *self == 0 => "0".to_owned(),
            None => format!("{self}B"),
        }
    }
}

impl Written for Duration {
    fn written(&self) -> String {
        let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let length = self.as_millis();
        let whole = units
            .into_iter()
            .find(|(each, _)| length.is_multiple_of(*each));
        match whole {
            Some((each, unit)) if length > 0 => format!("{}{unit}", length / each),
            _ => "0".to_owned(),
        }
    }

    fn none() -> &'static str {
        "0"
    }
}

impl Written for PathBuf {
    fn written(&self) -> String {
        self.display().to_string()
    }
}

impl Written for Secret {
    fn written(&self) -> String {
        "***".to_owned()
    }
}

impl Written for Pattern {
    fn written(&self) -> String {
        self.as_regex().as_str().to_owned()
    }
}

impl Written for Host {
    fn written(&self) -> String {
        match self {
            Self::Tcp(name, port) | Self::Unix(name, port) => format!("{name}:{port}"),
        }
    }
}

impl<T: Written> Written for Option<T> {
    fn written(&self) -> String {
        self.as_ref()
            .map_or_else(|| T::none().to_owned(), T::written)
    }
}

impl<T: Written> Written for Vec<T> {
    fn written(&self) -> String {
        let parts: Vec<_> = self.iter().map(T::written).collect();
        parts.join(", ")
    }
}

/// Words as [`value`](super::value) reads them.
macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal),* $(,)? })*) => {$(
        impl Written for $type {
            fn written(&self) -> String {
                match self {
                    $(Self::$variant => $word,)*
                }
                .to_owned()
            }
        }
    )*};
}

words! {
    Mode { Transaction = "transaction", Session = "session", Statement = "statement" }
    AuthMethod {
        Trust = "trust", Password = "password", Md5 = "md5", ScramSha256 = "scram-sha-256", Cert = "cert", Hba = "hba",
        Any = "any", Ldap = "ldap", Pam = "pam",
    }
    TlsMode {
        Disable = "disable", Allow = "allow", Prefer = "prefer", Require = "require", VerifyCa = "verify-ca",
        VerifyFull = "verify-full",
    }
    TlsVersion { V1_2 = "1.2", V1_3 = "1.3" }
    Negotiation { Postgres = "postgres", Direct = "direct" }
    Balance { Disable = "disable", RoundRobin = "round-robin" }
    Errors { Postgres = "postgres", PgBouncer = "pgbouncer" }
    Facility {
        User = "user", Daemon = "daemon", Auth = "auth", AuthPriv = "authpriv", Local0 = "local0", Local1 = "local1",
        Local2 = "local2", Local3 = "local3", Local4 = "local4", Local5 = "local5", Local6 = "local6", Local7 = "local7",
    }
    LogFormat { Text = "text", Json = "json", PgBouncer = "pgbouncer" }
}

impl Written for Suite {
    fn written(&self) -> String {
        self.name().to_owned()
    }
}

impl Written for Curve {
    fn written(&self) -> String {
        self.name().to_owned()
    }
}

impl Written for LdapOptions {
    fn written(&self) -> String {
        self.shown().to_owned()
    }
}

impl Written for MaxServers {
    fn written(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Exactly(number) => number.to_string(),
        }
    }
}
