//! Why a session gets no server connection.

use std::sync::Arc;

use crate::config::checked::Errors;
use crate::wire::reply::{Report, ServerError, Severity, SqlState};

/// Why a session gets no server connection, and what its client is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// It has waited for `query_wait`.
    #[error("no server connection within query_wait")]
    QueryWait {
        /// What Postgres said at the last failed login, if that is why.
        last_error: Option<Arc<str>>,
        /// Who has the server connections.
        shortage: Arc<str>,
    },
    /// Postgres refuses the login.
    #[error("Postgres refuses the login: {cause}")]
    Login {
        /// In the log's words.
        cause: Arc<str>,
        /// The message for the client: Postgres' own words.
        message: Arc<[u8]>,
        /// Postgres' own code, if it is Postgres that refuses.
        code: Option<SqlState>,
        /// Postgres asked for a proof that pgweir does not have.
        wants_proof: bool,
    },
    /// The pool was taken away.
    #[error("the pool was removed")]
    PoolRemoved,
}

impl Refused {
    /// The word for logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::QueryWait { .. } => "query_wait",
            Self::Login { .. } => "server_login",
            Self::PoolRemoved => "pool_removed",
        }
    }

    /// Postgres' code for it, if it is Postgres that refuses.
    pub fn code(&self) -> Option<SqlState> {
        match self {
            Self::Login { code, .. } => *code,
            Self::QueryWait { .. } | Self::PoolRemoved => None,
        }
    }

    /// Why PgBouncer would say that it closes the client's connection.
    pub fn as_pgbouncer(&self) -> String {
        const HEADER: usize = 5;
        match self {
            Self::QueryWait { .. } => "query_wait_timeout".to_owned(),
            Self::Login { message, .. } => {
                ServerError::parse(message.get(HEADER..).unwrap_or_default()).message
            }
            Self::PoolRemoved => "database removed".to_owned(),
        }
    }

    /// The last words to the client.
    pub fn to_client(&self, errors: Errors) -> Vec<u8> {
        let report = match self {
            // What Postgres says goes through as it is.
            Self::Login { code: None, .. } if errors == Errors::PgBouncer => {
                Report::new(SqlState::UNABLE_TO_CONNECT, self.as_pgbouncer())
            }
            Self::Login { message, .. } => return message.to_vec(),
            Self::QueryWait {
                last_error: None,
                shortage,
            } => Report::new(SqlState::TOO_MANY_CONNECTIONS, "query_wait_timeout")
                .detail(format!(
                    "No server connection became free within query_wait. {shortage}"
                ))
                .hint("All server connections that this client may have are in use."),
            Self::QueryWait {
                last_error: Some(error),
                ..
            } => Report::new(SqlState::UNABLE_TO_CONNECT, "query_wait_timeout").detail(format!(
                "Postgres could not be reached within query_wait: {error}"
            )),
            Self::PoolRemoved => Report::new(
                SqlState::ADMIN_SHUTDOWN,
                "this database was removed from the configuration",
            ),
        };
        let report = match (errors, self) {
            (Errors::Postgres, _) => report,
            (Errors::PgBouncer, Self::PoolRemoved) => {
                report.as_pgbouncer(Some("database removed".to_owned()))
            }
            (Errors::PgBouncer, _) => report.as_pgbouncer(None),
        };
        report.error(Severity::Fatal)
    }
}
