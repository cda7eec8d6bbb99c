//! The client's end of a relay.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::has_budget_remaining;

use super::statements::{Statements, TooMany};
use crate::net::end::{End, EndError, Input};
use crate::net::stream::Stream;
use crate::wire::WireError;
use crate::wire::scan::{Next, Seen};

/// A socket to a client, and what it has prepared.
#[derive(Debug)]
pub struct ClientEnd<S> {
    end: End<S>,
    /// The longest message it may send, as its length field counts.
    limit: u32,
    /// Its task is to be woken when something comes.
    awaited: bool,
    /// Made when it prepares its first statement.
    statements: Option<Box<Statements>>,
}

/// What becomes of a message of the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// It was dealt with.
    Done,
    /// It must be shown again when so many bytes of it are there.
    Wait(usize),
    /// It must be shown again when the server has answered more of what was sent to it.
    Hold,
    /// It ends the session.
    Refuse(Behind),
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
    /// More prepared statements than a client may have.
    TooMany(TooMany),
    /// A simple query, where those are refused.
    SimpleQuery,
}

impl<S> ClientEnd<S> {
    /// A client that is about to begin a message, of at most `limit` bytes as its length field counts.
    pub fn new(stream: S, limit: u32) -> Self {
        Self {
            end: End::new(stream),
            limit,
            awaited: false,
            statements: None,
        }
    }

    /// What it has prepared; `None` = nothing yet.
    pub fn statements(&mut self) -> &mut Option<Box<Statements>> {
        &mut self.statements
    }

    /// The socket.
    pub fn stream(&self) -> &S {
        self.end.stream()
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.end.is_flushed()
    }

    /// Bytes that it is too slow to take.
    pub fn unwritten(&self) -> usize {
        self.end.unwritten()
    }

    /// Whether something of it is held that must be looked at again before anything else is read.
    pub fn is_held(&self) -> bool {
        self.end.is_held()
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
                self.end.keep(&bytes[used..], 0);
                Look::Nothing
            }
        })
    }

    /// Shows the messages in `bytes` to `take`, and says how much of them was dealt with, and what comes behind.
    pub fn forward(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&mut Option<Box<Statements>>, Seen<'_>) -> Take,
    ) -> Forward {
        let (mut behind, mut wanted, mut holds) = (Behind::More, 0, false);
        let statements = &mut self.statements;
        let (used, scanned) = self.end.scan(bytes, self.limit, |seen| {
            let taken = match seen.tag {
                b'X' => Take::Refuse(Behind::Goodbye),
                tag if is_known(tag) => take(statements, seen),
                tag => Take::Refuse(Behind::Violation(WireError::UnknownTag(tag as char))),
            };
            match taken {
                Take::Done => return Next::Go,
                Take::Wait(bytes) => wanted = bytes,
                Take::Hold => holds = true,
                Take::Refuse(why) => behind = why,
            }
            Next::Stop
        });
        if let Err(error) = scanned {
            behind = Behind::Violation(error);
        }
        if holds {
            self.end.hold(&bytes[used..]);
        } else if behind == Behind::More {
            self.end.keep(&bytes[used..], wanted);
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

impl ClientEnd<Stream> {
    /// Whether nothing has come since its task began to wait for that: the socket need not be asked, nor the task take its place in
    /// front of it once more.
    pub fn is_awaited_still(&self) -> bool {
        self.awaited && !self.is_held() && !self.stream().is_readable()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientEnd<S> {
    /// Reads what there is.
    pub fn poll_input<'a>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'a mut [u8],
    ) -> Poll<Result<Input<'a>, EndError>> {
        let input = self.end.poll_input(cx, scratch);
        // A task that has had its share of time is told that nothing is there, and nobody waits for the socket then.
        self.awaited = input.is_pending() && has_budget_remaining();
        input
    }

    /// Reads what an idle client sends, and says what that calls for.
    pub fn poll_request<'a>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'a mut [u8],
    ) -> Poll<Result<(Input<'a>, Look), EndError>> {
        let input = ready!(self.poll_input(cx, scratch))?;
        let look = self.look(&input)?;
        Poll::Ready(Ok((input, look)))
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
