//! One end of a relay: a socket, and where the messages that come from it stand.

use std::io;
use std::mem;
use std::ops::Deref;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::side::Side;
use crate::wire::WireError;
use crate::wire::scan::{Flow, Next, Seen};

/// Why nothing more comes from an end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The peer closed its side.
    #[error("connection closed by the peer")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// A socket and the scan of what it sends.
#[derive(Debug)]
pub struct End<S> {
    side: Side<S>,
    flow: Flow,
    /// How many bytes must be there, of which the kept ones are the first, before it is worth looking at them again.
    wanted: usize,
    /// What is kept was read already, and is to be looked at again before anything else is read.
    held: bool,
}

/// What was read.
#[derive(Debug)]
pub enum Input<'a> {
    /// It stands in the scratch buffer.
    Scratch(&'a [u8]),
    /// It is one message that was too long for that, and what came with its end.
    Own(Vec<u8>),
}

impl Deref for Input<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Scratch(bytes) => bytes,
            Self::Own(bytes) => bytes,
        }
    }
}

impl<S> End<S> {
    /// An end that begins with a whole message.
    pub fn new(stream: S) -> Self {
        Self {
            side: Side::new(stream),
            flow: Flow::default(),
            wanted: 0,
            held: false,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &S {
        self.side.stream()
    }

    /// The socket, to talk over it past what this keeps account of.
    pub fn stream_mut(&mut self) -> &mut S {
        self.side.stream_mut()
    }

    /// Gives the socket up, and what was not written to it yet.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        self.side.into_parts()
    }

    /// Where its messages stand.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.side.is_flushed()
    }

    /// Bytes that are still to be written.
    pub fn unwritten(&self) -> usize {
        self.side.unwritten()
    }

    /// Shows the messages that begin in `bytes`, and returns how many leading bytes may be forwarded, and whether what comes
    /// behind them is in order.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        limit: u32,
        sink: impl FnMut(Seen<'_>) -> Next,
    ) -> (usize, Result<(), WireError>) {
        self.flow.scan(bytes, limit, sink)
    }

    /// Keeps what a scan left at the end of its bytes, to be looked at again later.
    pub fn hold(&mut self, tail: &[u8]) {
        self.keep(tail, 0);
        self.held = true;
    }

    /// Whether something is held.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Keeps what a scan left at the end of its bytes, until `wanted` bytes of it are there.
    pub fn keep(&mut self, tail: &[u8], wanted: usize) {
        self.flow.keep(tail);
        self.wanted = wanted;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> End<S> {
    /// Reads what there is, behind what was kept of the read before.
    pub fn poll_input<'a>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'a mut [u8],
    ) -> Poll<Result<Input<'a>, EndError>> {
        if mem::take(&mut self.held) {
            return Poll::Ready(Ok(Input::Own(self.flow.take_kept())));
        }
        if self.wanted > scratch.len() || self.flow.kept() >= scratch.len() {
            return self.poll_long(cx, scratch).map_ok(Input::Own);
        }
        let kept = self.flow.resume(scratch);
        match self.read(cx, &mut scratch[kept..]) {
            Poll::Ready(Ok(read)) => {
                // What was kept is handed out, and nobody waits for more of it until it is kept again.
                self.wanted = 0;
                Poll::Ready(Ok(Input::Scratch(&scratch[..kept + read])))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.flow.keep(&scratch[..kept]);
                Poll::Pending
            }
        }
    }

    /// Reads a message that must be there at one time but is longer than the scratch buffer.
    fn poll_long(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Vec<u8>, EndError>> {
        loop {
            let read = ready!(self.read(cx, scratch))?;
            self.flow.keep_more(&scratch[..read]);
            if self.flow.kept() >= self.wanted {
                self.wanted = 0;
                return Poll::Ready(Ok(self.flow.take_kept()));
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, EndError>> {
        Poll::Ready(match ready!(self.side.poll_read(cx, buffer)) {
            Ok(0) => Err(EndError::Closed),
            Ok(read) => Ok(read),
            Err(error) => Err(error.into()),
        })
    }

    /// See [`Side::send`].
    pub fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), EndError> {
        Ok(self.side.send(cx, bytes)?)
    }

    /// See [`Side::poll_flush`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        self.side.poll_flush(cx).map_err(EndError::Io)
    }
}
