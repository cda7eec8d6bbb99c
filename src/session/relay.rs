//! The bytes of one lease: both directions in one poll, until the exchange is settled.
//!
//! The relay moves bytes and decides nothing. Headers are looked at in the scratch buffer, and everything is written
//! from that same buffer.

use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::end::{Behind, ClientEnd, Forward};
use crate::metrics::Traffic;
use crate::net::end::EndError;
use crate::server::end::{ServerEnd, Settled};
use crate::wire::WireError;

/// Full buffers moved in one poll before others get their turn.
const TURNS: u32 = 8;

/// Why a relay ended without being settled.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The client said goodbye.
    #[error("client said goodbye")]
    Goodbye,
    /// The client's socket closed or failed.
    #[error("client went away: {0}")]
    ClientGone(#[source] EndError),
    /// The client broke the protocol.
    #[error("client broke the protocol: {0}")]
    Violation(#[source] WireError),
    /// The server connection closed or failed, or what came from it was no protocol.
    #[error("server connection failed: {0}")]
    ServerLost(#[source] EndError),
    /// A transaction block was opened where none is allowed.
    #[error("transaction block in statement mode")]
    TransactionBlock,
}

impl RelayError {
    /// The client is at fault.
    pub fn client(error: EndError) -> Self {
        match error {
            EndError::Wire(error) => Self::Violation(error),
            error => Self::ClientGone(error),
        }
    }
}

/// Both ends, and where this thread counts.
#[derive(Debug)]
pub struct Relay<'a, C, S> {
    /// The client's end.
    pub client: &'a mut ClientEnd<C>,
    /// The server's end.
    pub server: &'a mut ServerEnd<S>,
    /// The counters.
    pub traffic: &'a Traffic,
    /// Whether the client may open transaction blocks.
    pub blocks: bool,
}

impl<C, S> Relay<'_, C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Moves bytes both ways until they leave the exchange settled. Pending when neither side has anything to move.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Settled, RelayError>> {
        for _ in 0..TURNS {
            let down = self.server_to_client(cx, scratch)?;
            if down.is_ready()
                && let Some(proof) = self.server.settled()
            {
                return Poll::Ready(Ok(proof));
            }
            let up = self.client_to_server(cx, scratch)?;
            if up.is_ready()
                && let Some(proof) = self.server.settled()
            {
                return Poll::Ready(Ok(proof));
            }
            if down.is_pending() && up.is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends on what the client said.
    pub fn client_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), RelayError> {
        let Forward {
            used,
            whole,
            behind,
        } = self.client.forward(bytes, self.server.exchange_mut());
        self.traffic.received.add(used as u64);
        // A connection that Postgres has closed may still hold its last words: reading finds them, and then its end.
        let _ = self.server.send(cx, &bytes[..used], whole);
        match behind {
            Behind::More => Ok(()),
            Behind::Goodbye => Err(RelayError::Goodbye),
            Behind::Violation(error) => Err(RelayError::Violation(error)),
        }
    }

    fn server_to_client(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, RelayError> {
        if self
            .client
            .poll_flush(cx)
            .map_err(RelayError::client)?
            .is_pending()
        {
            return Ok(Poll::Pending);
        }
        let traffic = self.traffic;
        let count = |seen: crate::wire::scan::Seen<'_>| {
            if seen.tag == b'Z' {
                traffic.queries.add(1);
            }
        };
        let Poll::Ready(used) = self
            .server
            .poll_replies(cx, scratch, count)
            .map_err(RelayError::ServerLost)?
        else {
            return Ok(Poll::Pending);
        };
        if !self.blocks && self.server.exchange().is_in_transaction() {
            return Err(RelayError::TransactionBlock);
        }
        traffic.sent.add(used as u64);
        self.client
            .send(cx, &scratch[..used])
            .map_err(RelayError::client)?;
        Ok(Poll::Ready(()))
    }

    fn client_to_server(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, RelayError> {
        let owing = !self.server.is_flushed();
        // If it fails, reading from the server will say why.
        if !matches!(self.server.poll_flush(cx), Poll::Ready(Ok(()))) {
            return Ok(Poll::Pending);
        }
        let Poll::Ready(filled) = self
            .client
            .poll_bytes(cx, scratch)
            .map_err(RelayError::client)?
        else {
            // What was written just now may have been all that was missing to be settled.
            return Ok(if owing {
                Poll::Ready(())
            } else {
                Poll::Pending
            });
        };
        self.client_said(cx, &scratch[..filled])?;
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests;
