//! The client's end of a relay.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::end::{End, EndError};
use crate::wire::WireError;
use crate::wire::exchange::Exchange;
use crate::wire::scan::Next;

/// A socket to a client.
#[derive(Debug)]
pub struct ClientEnd<S> {
    end: End<S>,
    /// The longest message it may send, as its length field counts.
    limit: u32,
}

/// What the bytes at the front of an idle client's stream call for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing yet: a cut header, or what Postgres would ignore too.
    Nothing,
    /// Terminate.
    Goodbye,
    /// A request: it begins at this offset.
    Request(usize),
}

/// What may be forwarded of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// This many leading bytes.
    pub used: usize,
    /// They end with a whole message.
    pub whole: bool,
    /// What stands behind them.
    pub behind: Behind,
}

/// What a client said behind what may be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behind {
    /// Nothing yet, or a cut header.
    More,
    /// Terminate.
    Goodbye,
    /// What the protocol does not allow.
    Violation(WireError),
}

impl<S> ClientEnd<S> {
    /// A client that is about to begin a message, of at most `limit` bytes as its length field counts.
    pub fn new(stream: S, limit: u32) -> Self {
        Self {
            end: End::new(stream),
            limit,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &S {
        self.end.stream()
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.end.is_flushed()
    }

    /// Looks at what an idle client sent. CopyData, CopyDone and CopyFail that were on their way when a COPY failed are
    /// passed over, as Postgres does (manual, "COPY Operations").
    pub fn look(&mut self, bytes: &[u8]) -> Result<Look, WireError> {
        let mut first = None;
        let (used, scanned) = self.end.scan(bytes, self.limit, |seen| match seen.tag {
            b'd' | b'c' | b'f' => Next::Go,
            tag => {
                first = Some(tag);
                Next::Stop
            }
        });
        scanned?;
        Ok(match first {
            Some(b'X') => Look::Goodbye,
            Some(tag) if is_known(tag) => Look::Request(used),
            Some(tag) => return Err(WireError::UnknownTag(tag as char)),
            None => {
                self.end.keep(&bytes[used..]);
                Look::Nothing
            }
        })
    }

    /// Notes the messages in `bytes` as sent to the server, and says how much of them may go, and what comes behind.
    pub fn forward(&mut self, bytes: &[u8], exchange: &mut Exchange) -> Forward {
        let mut behind = Behind::More;
        let (used, scanned) = self.end.scan(bytes, self.limit, |seen| {
            behind = match seen.tag {
                b'X' => Behind::Goodbye,
                tag if is_known(tag) => Behind::More,
                tag => Behind::Violation(WireError::UnknownTag(tag as char)),
            };
            if behind != Behind::More {
                return Next::Stop;
            }
            exchange.client_sent(seen.tag);
            Next::Go
        });
        if let Err(error) = scanned {
            behind = Behind::Violation(error);
        }
        if behind == Behind::More {
            self.end.keep(&bytes[used..]);
        }
        Forward {
            used,
            whole: self.end.flow().at_boundary(),
            behind,
        }
    }
}

/// Whether a logged-in client may send such messages. Postgres ends the session at any other, and that session may be
/// somebody else's by then.
const fn is_known(tag: u8) -> bool {
    matches!(
        tag,
        b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S' | b'd' | b'c' | b'f' | b'X'
    )
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientEnd<S> {
    /// Reads what there is into `scratch`, and says how many bytes stand in it.
    pub fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, EndError>> {
        self.end.poll_bytes(cx, scratch)
    }

    /// Reads what an idle client sends, and says how many bytes stand in `scratch` and what they call for.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<(usize, Look), EndError>> {
        let filled = ready!(self.poll_bytes(cx, scratch))?;
        let look = self.look(&scratch[..filled])?;
        Poll::Ready(Ok((filled, look)))
    }

    /// Sends bytes to the client, or keeps what it is too slow to take.
    pub fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), EndError> {
        self.end.send(cx, bytes)
    }

    /// Writes what could not be written at once.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        self.end.poll_flush(cx)
    }
}
