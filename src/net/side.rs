//! One end of a relay: a stream, and the rest of a write that the peer was too slow to take.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that owns a buffer only while a write was short. While it does, the other side is not read: that is all
/// of back-pressure, and it bounds memory to one read buffer for each direction.
#[derive(Debug)]
pub struct Side<S> {
    stream: S,
    rest: Option<Box<Rest>>,
}

/// What could not be written yet.
#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    written: usize,
}

impl<S> Side<S> {
    /// A side with nothing unwritten.
    pub fn new(stream: S) -> Self {
        Self { stream, rest: None }
    }

    /// The stream itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream itself, to talk over it past what this keeps account of.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Gives the stream up, and what was not written yet.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        let rest = self.rest.map(|rest| rest.bytes[rest.written..].to_vec());
        (self.stream, rest.unwrap_or_default())
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.rest.is_none()
    }

    /// Bytes that are still to be written.
    pub fn unwritten(&self) -> usize {
        let rest = self.rest.as_ref();
        rest.map_or(0, |rest| rest.bytes.len() - rest.written)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side<S> {
    /// Reads what is there into `buffer`. `Ok(0)` is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes `bytes` now as far as the socket takes them and keeps the rest. Nothing is lost, and order is kept.
    pub fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(rest) = &mut self.rest {
            rest.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        while !bytes.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => bytes = &bytes[written..],
                Poll::Pending => {
                    self.rest = Some(Box::new(Rest {
                        bytes: bytes.to_vec(),
                        written: 0,
                    }));
                    return Ok(());
                }
            }
        }
        // A stream may have taken bytes that its socket has not (TLS does).
        if Pin::new(&mut self.stream).poll_flush(cx)?.is_pending() {
            self.rest = Some(Box::default());
        }
        Ok(())
    }

    /// Writes what [`Self::send`] kept. Ready when nothing is left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(Ok(()));
        };
        while rest.written < rest.bytes.len() {
            let written =
                ready!(Pin::new(&mut self.stream).poll_write(cx, &rest.bytes[rest.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            rest.written += written;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.rest = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A stream that takes everything at once, and sends it when it may.
    #[derive(Default)]
    struct Sealing {
        taken: usize,
        may_send: bool,
    }

    impl AsyncRead for Sealing {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Sealing {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.taken += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.may_send {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_a_stream_has_taken_and_not_sent_is_owed() {
        let mut side = Side::new(Sealing::default());
        let mut cx = Context::from_waker(Waker::noop());
        side.send(&mut cx, b"taken").unwrap();
        assert!(!side.is_flushed());
        assert!(side.poll_flush(&mut cx).is_pending());
        // What comes meanwhile goes behind it.
        side.send(&mut cx, b", kept").unwrap();
        assert_eq!(side.stream().taken, 5);
        side.stream.may_send = true;
        assert!(side.poll_flush(&mut cx).is_ready());
        assert!(side.is_flushed());
        assert_eq!(side.stream().taken, 11);
    }
}
