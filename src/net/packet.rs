//! Whole messages over a stream, for login and other talk off the hot path.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The least that is read at once: most messages of a login are shorter, and some come together.
const READ: usize = 512;

/// Reads and writes whole messages. Holds what was read beyond the last one.
#[derive(Debug)]
pub struct Packets<S> {
    stream: S,
    read: BytesMut,
}

/// A whole message: type and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The type byte.
    pub tag: u8,
    /// What follows the length field.
    pub body: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Packets<S> {
    /// Talks over `stream`.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
        }
    }

    /// The stream itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Gives the stream up, and the bytes read beyond the last message.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.read)
    }

    /// Whether bytes were read beyond the last message.
    pub fn has_more(&self) -> bool {
        !self.read.is_empty()
    }

    /// The next byte, which stays. Cancel-safe.
    pub async fn peek(&mut self) -> io::Result<u8> {
        self.fill(1).await?;
        Ok(self.read[0])
    }

    /// Reads exactly `N` bytes. Cancel-safe: what was read stays.
    pub async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.fill(N).await?;
        let array = *self
            .read
            .first_chunk()
            .expect("fill() read at least N bytes");
        self.read.advance(N);
        Ok(array)
    }

    /// Reads exactly `len` bytes, which the caller has bounded. Cancel-safe.
    pub async fn bytes(&mut self, len: usize) -> io::Result<Bytes> {
        self.fill(len).await?;
        Ok(self.read.split_to(len).freeze())
    }

    /// Reads on until `parse` has found what it looks for at the beginning of what came, and takes that away. It says how long it is, or
    /// that there is more to come, which it has to bound. Cancel-safe.
    pub async fn take<T, E: From<io::Error>>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
    ) -> Result<T, E> {
        loop {
            if let Some((found, length)) = parse(&self.read)? {
                self.read.advance(length);
                return Ok(found);
            }
            self.fill(self.read.len() + 1).await?;
        }
    }

    /// Reads one message with a body of at most `limit` bytes. Cancel-safe.
    pub async fn read(&mut self, limit: usize) -> io::Result<Packet> {
        self.fill(5).await?;
        let tag = self.read[0];
        let length =
            u32::from_be_bytes([self.read[1], self.read[2], self.read[3], self.read[4]]) as usize;
        if length < 4 || length - 4 > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "message {:?} has the impossible or excessive length {length}",
                    tag as char
                ),
            ));
        }
        self.fill(1 + length).await?;
        self.read.advance(5);
        Ok(Packet {
            tag,
            body: self.read.split_to(length - 4).freeze(),
        })
    }

    /// Writes all of `bytes`. **Not cancel-safe**: a part may have been written.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Says that nothing more will come, and reads until the peer has closed its side too.
    pub async fn await_end(&mut self) {
        // If it fails the peer is gone already.
        let _ = self.stream.shutdown().await;
        while matches!(self.stream.read_buf(&mut self.read).await, Ok(1..)) {
            self.read.clear();
        }
    }

    async fn fill(&mut self, len: usize) -> io::Result<()> {
        while self.read.len() < len {
            self.read.reserve((len - self.read.len()).max(READ));
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}
