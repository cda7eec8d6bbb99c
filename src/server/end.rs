//! The server's end of a relay, and the proof that it owes nothing.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::end::{End, EndError};
use crate::wire::exchange::Exchange;
use crate::wire::scan::{LARGEST_MESSAGE, Next, Seen};

/// Proof that the server owes nothing and is outside a transaction. Only [`ServerEnd::settled`] makes one.
#[derive(Debug)]
#[must_use = "a server connection is released against this"]
pub struct Settled(());

/// A socket to Postgres, and what is outstanding on it.
#[derive(Debug)]
pub struct ServerEnd<S> {
    end: End<S>,
    exchange: Exchange,
    /// The last message that was sent to it is not whole yet.
    half_sent: bool,
    /// Type of the last message that came from it; 0 = none yet.
    last: u8,
}

impl<S> ServerEnd<S> {
    /// A connection that is ready for a query.
    pub fn new(stream: S) -> Self {
        Self {
            end: End::new(stream),
            exchange: Exchange::default(),
            half_sent: false,
            last: 0,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &S {
        self.end.stream()
    }

    /// The socket, to talk over it past what this keeps account of.
    pub fn stream_mut(&mut self) -> &mut S {
        self.end.stream_mut()
    }

    /// Gives the socket up, and what was not written to it yet.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        self.end.into_parts()
    }

    /// What is outstanding.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// What is outstanding, for who scans what will be sent.
    pub fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// Whether the last message that was sent is not whole yet.
    pub fn is_half_sent(&self) -> bool {
        self.half_sent
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.end.is_flushed()
    }

    /// Whether the last thing it said was an error: if the connection ends here, that is why.
    pub fn said_error_last(&self) -> bool {
        self.last == b'E'
    }

    /// Whether the last message that came from it is not whole yet.
    pub fn is_half_read(&self) -> bool {
        !self.end.flow().at_boundary()
    }

    /// The proof, if the server owes nothing, nothing is half read, and nothing is half sent.
    pub fn settled(&self) -> Option<Settled> {
        let quiet = !self.half_sent && self.end.flow().is_empty() && self.end.is_flushed();
        (quiet && self.exchange.is_settled()).then_some(Settled(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerEnd<S> {
    /// Reads replies into `scratch`, notes and shows them, and says how many leading bytes may go to the client.
    pub fn poll_replies(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        mut see: impl FnMut(Seen<'_>),
    ) -> Poll<Result<usize, EndError>> {
        let filled = ready!(self.end.poll_bytes(cx, scratch))?;
        let bytes = &scratch[..filled];
        let (exchange, last) = (&mut self.exchange, &mut self.last);
        let (used, scanned) = self.end.scan(bytes, LARGEST_MESSAGE, |seen| {
            *last = seen.tag;
            exchange.server_sent(seen.tag, seen.body);
            see(seen);
            Next::Go
        });
        scanned?;
        self.end.keep(&bytes[used..]);
        Poll::Ready(Ok(used))
    }

    /// Sends bytes whose messages were noted in the exchange. `whole`: they end with a whole message.
    pub fn send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        whole: bool,
    ) -> Result<(), EndError> {
        self.half_sent = !whole;
        self.end.send(cx, bytes)
    }

    /// Writes what could not be written at once.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        self.end.poll_flush(cx)
    }
}
