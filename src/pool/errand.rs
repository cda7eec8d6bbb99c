//! What takes time and is done for the pools by tasks of their own: dialling, closing, bringing connections back to order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

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
    /// Ask whether it is still there, and give it back to who asked.
    Check(Box<Connection>, oneshot::Sender<Box<Connection>>),
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
    /// `server_check_query` failed.
    CheckFailed,
    /// It could not be moved to another thread's reactor.
    MoveFailed,
}

impl Discard {
    /// The words that there are.
    pub const WORDS: [&str; 13] = [
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
        "check_failed",
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
            Self::CheckFailed => "check_failed",
            Self::MoveFailed => "move_failed",
        }
    }

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
            Self::Replication => "replication client was closed",
            Self::ResetFailed => "reset query failed",
            Self::CheckFailed => "test query failed",
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
                            || settings.resets_always
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
            Task::Check(mut connection, to) => {
                if answers(&mut connection, &pool).await {
                    if let Err(connection) = to.send(connection) {
                        pool.put_back(server, connection);
                    }
                } else {
                    pool.discard(server, connection, thread, Discard::CheckFailed);
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
    let own = settings.server_reset_query.as_str();
    let queries: &[&str] = match settings.mode {
        Mode::Session if own.is_empty() => return true,
        Mode::Session => &[own],
        // Where clients share connections what one of them did must be undone, and the books must be right, whatever is configured.
        _ if settings.resets_always && !own.eq_ignore_ascii_case(DISCARD_ALL) => {
            &[own, DISCARD_ALL]
        }
        _ => &[DISCARD_ALL],
    };
    for sql in queries {
        if !goes_well(connection, sql, settings.recover_limit).await {
            return false;
        }
    }
    connection.end.renewed();
    true
}

const DISCARD_ALL: &str = "DISCARD ALL";

/// Whether Postgres still answers over a connection.
async fn answers(connection: &mut Connection, pool: &Pool) -> bool {
    let settings = pool.settings();
    match &settings.check {
        // As with PgBouncer an error is an answer: whoever says it is there.
        Some(check) => ask(connection, &check.query, settings.recover_limit)
            .await
            .is_some(),
        None => true,
    }
}

/// Whether a query of pgweir's own has no error.
async fn goes_well(connection: &mut Connection, sql: &str, limit: Duration) -> bool {
    ask(connection, sql, limit).await == Some(None)
}

/// Asks Postgres, and gives the error, if that is the answer. `None`: there was no answer, or not one after which it is idle.
async fn ask(connection: &mut Connection, sql: &str, limit: Duration) -> Option<Option<Box<[u8]>>> {
    let answer = timeout(limit, connection.ask(&query(sql)))
        .await
        .ok()?
        .ok()?;
    connection.end.settled().map(|_| answer)
}
