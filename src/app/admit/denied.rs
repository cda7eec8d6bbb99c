//! Why a client is not let in, and what it is told.

use crate::app::look_up::LookUpError;
use crate::client::greet::GreetError;
use crate::client::login::LoginError;
use crate::config::checked::Errors;
use crate::pool::pools::Refused;
use crate::wire::parameters::OptionsError;
use crate::wire::reply::{Report, ServerError, Severity, SqlState};

/// Why a client was not let in. Each has its own word in log and metrics.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// It did not get as far as a startup message.
    #[error("{0}")]
    Greeting(#[from] GreetError),
    /// `client_login` has passed.
    #[error("client_login timeout")]
    TooSlow,
    /// It speaks no TLS where it must.
    #[error("SSL required")]
    Insecure,
    /// It did not prove who it is.
    #[error("{0}")]
    Login(#[from] LoginError),
    /// Its `options` cannot be read.
    #[error("{0}")]
    Options(OptionsError),
    /// Postgres refuses the parameters that it asked for.
    #[error("Postgres refuses its parameters: {0}")]
    Parameters(ServerError),
    /// A cap on clients is reached.
    #[error("{0} is reached")]
    Full(&'static str),
    /// There is no such database.
    #[error("no such database")]
    NoDatabase(String),
    /// An operator has disabled it.
    #[error("the database is disabled")]
    Disabled(String),
    /// The user cannot be looked up.
    #[error("{0}")]
    LookUp(#[from] LookUpError),
    /// The user is not one that pgweir knows.
    #[error("unknown user")]
    Stranger(String),
    /// Nobody is asked for a name, and the database has none of its own.
    #[error("auth.method = \"any\" needs a user in the database's entry")]
    Nameless,
    /// The console was asked for by somebody whom it is not for.
    #[error("not an admin or stats user")]
    NotAllowed(String),
    /// The console was asked for from another machine, and nobody has asked for a proof.
    #[error("no proof for the console")]
    Unproved,
    /// pgweir is shutting down.
    #[error("pgweir is shutting down")]
    Draining,
    /// A record of the HBA file refuses it.
    #[error("pg_hba.conf rejects connection")]
    Rejected,
    /// No record of the HBA file fits.
    #[error("{0}")]
    NoRecord(String),
    /// The same as a wrong password: Postgres was asked, and has no such user.
    #[error("{0}")]
    NoUser(LoginError),
    /// No server connection could be had to learn what to tell the client.
    #[error("{0}")]
    Refused(Refused),
}

impl Denied {
    /// The words that there are.
    pub const WORDS: [&str; 16] = [
        "greeting",
        "client_login",
        "ssl_required",
        "parameters",
        "login",
        "too_many_clients",
        "no_database",
        "disabled",
        "auth_query",
        "unknown_user",
        "configuration",
        "hba",
        "not_allowed",
        "unproved",
        "draining",
        "refused",
    ];

    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Greeting(_) => "greeting",
            Self::TooSlow => "client_login",
            Self::Insecure => "ssl_required",
            Self::Options(_) | Self::Parameters(_) => "parameters",
            Self::Login(_) | Self::NoUser(_) => "login",
            Self::Full(_) => "too_many_clients",
            Self::NoDatabase(_) => "no_database",
            Self::Disabled(_) => "disabled",
            Self::LookUp(_) => "auth_query",
            Self::Stranger(_) => "unknown_user",
            Self::Nameless => "configuration",
            Self::Rejected | Self::NoRecord(_) => "hba",
            Self::NotAllowed(_) => "not_allowed",
            Self::Unproved => "unproved",
            Self::Draining => "draining",
            Self::Refused(_) => "refused",
        }
    }

    /// What the client is told; `None` where it was told already, or is gone.
    pub(super) fn last_words(&self, errors: Errors) -> Option<Vec<u8>> {
        let report = match self {
            Self::Greeting(_) => return None,
            Self::Refused(refused) => return Some(refused.to_client(errors)),
            Self::Login(error) | Self::NoUser(error) => error.report()?,
            Self::LookUp(error) => return Some(error.to_client(errors)),
            Self::Options(error) => Report::new(SqlState::SYNTAX_ERROR, error.to_string()),
            Self::Parameters(error) => return Some(error.to_fatal()),
            Self::TooSlow => Report::new(SqlState::PROTOCOL_VIOLATION, "client_login timeout"),
            // PgBouncer's words, Postgres' code.
            Self::Insecure => Report::new(SqlState::INVALID_AUTHORIZATION, "SSL required")
                .hint("This pgweir accepts no unencrypted connections: use sslmode=require."),
            Self::Full(limit) => {
                // PgBouncer's words, which scripts look for, with Postgres' own code.
                Report::new(
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("no more connections allowed ({limit})"),
                )
            }

            Self::NoDatabase(name) => Report::new(
                SqlState::INVALID_CATALOG_NAME,
                format!("database \"{name}\" does not exist"),
            )
            .hint("It is not in [databases], and there is no [databases.\"*\"]."),
            // PgBouncer's words, with the code that Postgres has for such a database.
            Self::Disabled(name) => Report::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("database \"{name}\" is disabled"),
            ),
            Self::Stranger(user) => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                format!("role \"{user}\" is not known to pgweir"),
            ),
            Self::NotAllowed(user) => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                format!("not allowed: \"{user}\" may not use the console"),
            )
            .hint("Who may is listed in auth.admins and auth.stats."),
            Self::Unproved => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                "not allowed: the console needs a password, a certificate or a connection from its own machine",
            ),
            Self::Nameless => {
                // PgBouncer's words.
                Report::new(SqlState::INVALID_AUTHORIZATION, "bouncer config error")
            }
            Self::Rejected | Self::NoRecord(_) => {
                Report::new(SqlState::INVALID_AUTHORIZATION, self.to_string())
            }
            Self::Draining => Report::new(SqlState::CANNOT_CONNECT_NOW, "pgweir is shutting down"),
        };
        let report = match errors {
            Errors::Postgres => report,
            Errors::PgBouncer => report.as_pgbouncer(self.words_of_pgbouncer()),
        };
        Some(report.error(Severity::Fatal))
    }

    /// Why PgBouncer would say that it closes the client's connection.
    pub(super) fn as_pgbouncer(&self) -> String {
        match self {
            Self::Login(LoginError::Io(_)) => "client unexpected eof".to_owned(),
            Self::TooSlow => "client_login_timeout".to_owned(),
            Self::NoUser(_) => "no such user".to_owned(),
            Self::LookUp(error) => error.as_pgbouncer(),
            Self::Greeting(error) => error.as_pgbouncer(),
            Self::Refused(refused) => refused.as_pgbouncer(),
            Self::Disabled(name) => format!("database \"{name}\" is disabled"),
            Self::Nameless => "bouncer config error".to_owned(),
            other => other
                .words_of_pgbouncer()
                .unwrap_or_else(|| other.to_string()),
        }
    }

    /// PgBouncer's text, where it is another.
    fn words_of_pgbouncer(&self) -> Option<String> {
        let words = match self {
            Self::Full("max_clients") => "no more connections allowed (max_client_conn)",
            Self::Full("max_clients_per_user") => {
                "client connections exceeded (max_user_client_connections)"
            }
            Self::Full("max_clients_per_database") => {
                "client connections exceeded (max_db_client_connections)"
            }
            Self::NoDatabase(name) => return Some(format!("no such database: {name}")),
            Self::Login(LoginError::Password(_)) | Self::NoUser(LoginError::Password(_)) => {
                "password authentication failed"
            }
            Self::Login(LoginError::Proof(_)) | Self::NoUser(_) => "SASL authentication failed",
            Self::Login(LoginError::Peer(_)) => "unix socket login rejected",
            Self::Login(LoginError::Certificate(_)) => "certificate authentication failed",
            Self::Login(LoginError::Elsewhere { by, .. }) => {
                return Some(format!("{by} authentication failed"));
            }
            Self::Stranger(_) => "\"trust\" authentication failed",
            Self::Rejected => "login rejected",
            Self::NoRecord(_) => "no authentication method is found",
            Self::NotAllowed(_) | Self::Unproved => "not allowed",
            Self::Draining => "pooler is shutting down",
            Self::Options(_) => {
                "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"
            }
            _ => return None,
        };
        Some(words.to_owned())
    }
}
