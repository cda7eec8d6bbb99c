//! What takes time and is done for the pools by tasks of their own: dialling, closing, bringing connections back to order.

use std::sync::Arc;

use super::book::{CloseReason, ServerId, ThreadId};
use super::pools::Pool;
use crate::config::checked::Mode;
use crate::server::close::{close, recover};
use crate::server::connection::Connection;
use crate::wire::reply::query;

/// Something to be done on the thread that owns, or is to own, a connection's socket.
#[derive(Debug)]
pub struct Errand {
    /// The pool it is for.
    pub pool: Arc<Pool>,
    /// The thread it is for.
    pub thread: ThreadId,
    /// The server connection's id.
    pub server: ServerId,
    /// What to do.
    pub task: Task,
}

/// What an errand does.
#[derive(Debug)]
pub enum Task {
    /// Connect and log in.
    Dial {
        /// It is one of its pool's reserve.
        from_reserve: bool,
    },
    /// Close, and say when Postgres has freed the slot.
    Close(Box<Connection>, Discard),
    /// Bring it back to order after its client left it half-way.
    Recover(Box<Connection>),
    /// Make it as new after a session-mode client has left.
    Reset(Box<Connection>),
}

/// Why a server connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Discard {
    /// The book wants it so.
    Book(CloseReason),
    /// Postgres closed it, or said what only an end explains.
    Died,
    /// Its client left it in a state from which there is no way back, or the way took too long.
    Abandoned,
    /// It was made to try a password.
    Probe,
    /// Its client, for whose replication alone it was made, has left.
    Replication,
    /// `server_reset_query` failed.
    ResetFailed,
    /// It could not be moved to another thread's reactor.
    MoveFailed,
}

impl Discard {
    /// The words that there are.
    pub const WORDS: [&str; 12] = [
        "server_idle",
        "server_lifetime",
        "made_room",
        "over_budget",
        "over_limit",
        "reconnect",
        "died",
        "abandoned",
        "probe",
        "replication",
        "reset_failed",
        "move_failed",
    ];

    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Book(CloseReason::ServerIdle) => "server_idle",
            Self::Book(CloseReason::ServerLifetime) => "server_lifetime",
            Self::Book(CloseReason::MadeRoom) => "made_room",
            Self::Book(CloseReason::OverBudget) => "over_budget",
            Self::Book(CloseReason::OverLimit) => "over_limit",
            Self::Book(CloseReason::Reconnect) => "reconnect",
            Self::Book(CloseReason::Paused) => "paused",
            Self::Died => "died",
            Self::Abandoned => "abandoned",
            Self::Probe => "probe",
            Self::Replication => "replication",
            Self::ResetFailed => "reset_failed",
            Self::MoveFailed => "move_failed",
        }
    }
}

impl Discard {
    /// Why PgBouncer would say that it closes the server connection.
    pub fn as_pgbouncer(self) -> &'static str {
        match self {
            Self::Book(CloseReason::ServerIdle) => "server idle timeout",
            Self::Book(CloseReason::ServerLifetime) => "server lifetime over",
            Self::Book(
                CloseReason::MadeRoom | CloseReason::OverBudget | CloseReason::OverLimit,
            ) => "evicted",
            Self::Book(CloseReason::Reconnect) => "database configuration changed",
            Self::Book(CloseReason::Paused) => "pause mode",
            Self::Died | Self::MoveFailed => "server conn crashed?",
            Self::Abandoned => "client disconnect while server was not ready",
            Self::Probe => "auth query complete",
            Self::Replication => "client close request",
            Self::ResetFailed => "reset query failed",
        }
    }
}

impl Errand {
    /// Does it. Must run on `thread`.
    pub async fn run(self) {
        let Self {
            pool,
            thread,
            server,
            task,
        } = self;
        match task {
            Task::Dial { from_reserve } => {
                if from_reserve {
                    pool.tells_of_reserve();
                }
                pool.dial(server).await;
            }
            Task::Close(connection, reason) => {
                pool.tells_of_end(server, connection.route.place(), reason);
                let (database, user, pid) = (&pool.database, &pool.user, connection.key.pid);
                tracing::debug!(
                    database,
                    user,
                    pid,
                    reason = reason.as_str(),
                    "server connection closed"
                );
                close(*connection, &pool.cancel_way()).await;
                pool.closed(server, reason);
            }
            Task::Recover(mut connection) => {
                let settings = pool.settings();
                match recover(&mut connection, &pool.cancel_way(), settings.recover_limit).await {
                    Some(_proof)
                        if settings.mode == Mode::Session
                            || connection.end.state().is_touched() =>
                    {
                        Box::pin(
                            Self {
                                pool,
                                thread,
                                server,
                                task: Task::Reset(connection),
                            }
                            .run(),
                        )
                        .await;
                    }
                    Some(_proof) => {
                        pool.put_back(server, connection);
                    }
                    None => pool.discard(server, connection, thread, Discard::Abandoned),
                }
            }
            Task::Reset(mut connection) => {
                if reset(&mut connection, &pool).await {
                    pool.put_back(server, connection);
                } else {
                    pool.discard(server, connection, thread, Discard::ResetFailed);
                }
            }
        }
    }
}

/// Makes a session as new, if there is a way to.
async fn reset(connection: &mut Connection, pool: &Pool) -> bool {
    let settings = pool.settings();
    // Where clients share connections what one of them did must be undone, whatever is configured for those who do not.
    let sql = match settings.mode {
        Mode::Session => &settings.server_reset_query,
        Mode::Transaction | Mode::Statement => "DISCARD ALL",
    };
    if sql.is_empty() {
        return true;
    }
    let answer = tokio::time::timeout(settings.recover_limit, connection.ask(&query(sql))).await;
    connection.end.renewed();
    matches!(answer, Ok(Ok(None))) && connection.end.settled().is_some()
}
