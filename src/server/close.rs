//! The end of a server connection: brought back to order where its client left it half-way, or closed so that Postgres
//! has freed the slot before anybody counts it as free.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::Connection;
use super::end::Settled;
use super::facts::Facts;
use super::secure::Route;
use crate::config::checked::Tcp;
use crate::wire::exchange::Status;
use crate::wire::reply::{TERMINATE, query};
use crate::wire::startup::{CancelKey, cancel_request};

/// How long Postgres may take to free the slot of a connection that was told to end. It does so within a millisecond unless it
/// is busy or gone; then the slot is counted as free, because nobody will ever tell us.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// How cancel requests are sent.
#[derive(Debug, Clone)]
pub struct CancelWay {
    /// Socket options.
    pub tcp: Tcp,
    /// How long one may take.
    pub limit: Duration,
    /// How many may be on their way at once: each costs Postgres a process.
    pub gate: Arc<Semaphore>,
}

/// Why a cancel request came to nothing that is known.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// It was not sent.
    #[error("not sent: {0}")]
    Unsent(#[source] io::Error),
    /// It was sent. Nobody knows whether its effect is still to come.
    #[error("not answered: {0}")]
    Stray(#[source] io::Error),
}

/// Cancels what the connection runs and waits until Postgres has sent the signal, which is when it closes the cancel's socket.
pub async fn cancel(
    route: &Route,
    key: &CancelKey,
    way: &CancelWay,
    facts: &Arc<Facts>,
) -> Result<(), CancelError> {
    let deadline = Instant::now() + way.limit;
    let noted = facts.cancels();
    let connect = async {
        let turn = way.gate.acquire().await.map_err(io::Error::other)?;
        noted.is_sent();
        Ok((route.connect(&way.tcp).await?, turn))
    };
    let connected = timeout_at(deadline, connect).await;
    let (mut stream, _turn) = flat(connected).map_err(CancelError::Unsent)?;
    let send = async {
        stream.write_all(&cancel_request(key)).await?;
        stream.flush().await?;
        // Nothing is ever sent back: this waits for the end.
        stream.read_to_end(&mut Vec::new()).await
    };
    flat(timeout_at(deadline, send).await).map_err(CancelError::Stray)?;
    Ok(())
}

fn flat<T>(outcome: Result<io::Result<T>, Elapsed>) -> io::Result<T> {
    outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Brings a connection whose client went away back to order: what runs is cancelled, replies are read off, the transaction is
/// rolled back. `None` if that was not possible within `limit`: then it must be closed.
pub async fn recover(
    connection: &mut Connection,
    way: &CancelWay,
    limit: Duration,
) -> Option<Settled> {
    if connection.end.is_half_sent() || connection.end.exchange().is_lost() {
        return None;
    }
    timeout(limit, quieten(connection, way)).await.ok()?.ok()?;
    connection.end.forget_client();
    connection.end.settled()
}

async fn quieten(connection: &mut Connection, way: &CancelWay) -> io::Result<()> {
    let other = |error: crate::net::end::EndError| io::Error::other(error.to_string());
    let canceled = connection.is_being_canceled();
    connection.canceled().await.map_err(io::Error::other)?;
    let busy = !connection.end.exchange().is_answered();
    if busy {
        let canceled = cancel(&connection.route, &connection.key, way, connection.facts()).await;
        canceled.map_err(io::Error::other)?;
        connection.wind_up().await.map_err(other)?;
    }
    if busy || canceled {
        // One more round trip: a signal that was still on its way hits this and nobody's query.
        connection.ask(&query("")).await.map_err(other)?;
    }
    if connection.end.exchange().status() != Status::Idle {
        connection.ask(&query("ROLLBACK")).await.map_err(other)?;
    }
    Ok(())
}

/// Ends a connection, and returns when Postgres has closed its side: by then it has freed the slot.
pub async fn close(mut connection: Connection, way: &CancelWay) {
    let _ = timeout(CLOSE_LIMIT, connection.canceled()).await;
    let busy = !connection.end.exchange().is_answered();
    if busy {
        // If it fails, Postgres ends the session when it next writes to the closed socket.
        let _ = cancel(&connection.route, &connection.key, way, connection.facts()).await;
    }
    let (mut stream, _unwritten) = connection.end.into_parts();
    let _ = timeout(CLOSE_LIMIT, async {
        stream.write_all(&TERMINATE).await?;
        stream.shutdown().await?;
        let mut scratch = vec![0; 16 * 1024];
        while stream.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}
