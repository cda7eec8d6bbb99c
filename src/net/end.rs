//! One end of a relay: a socket, and where the messages that come from it stand.

use std::io;
use std::task::{Context, Poll};

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
}

impl<S> End<S> {
    /// An end that begins with a whole message.
    pub fn new(stream: S) -> Self {
        Self {
            side: Side::new(stream),
            flow: Flow::default(),
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

    /// Keeps the cut header that a scan left at the end of its bytes.
    pub fn keep(&mut self, tail: &[u8]) {
        self.flow.keep(tail);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> End<S> {
    /// Reads into `scratch` what there is, behind the cut header of the read before, and says how many bytes stand in it.
    pub fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, EndError>> {
        let kept = self.flow.resume(scratch);
        match self.side.poll_read(cx, &mut scratch[kept..]) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(EndError::Closed)),
            Poll::Ready(Ok(read)) => Poll::Ready(Ok(kept + read)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => {
                self.flow.keep(&scratch[..kept]);
                Poll::Pending
            }
        }
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
