//! A TCP socket that speaks TLS.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::records::Records;

/// Plaintext that is sealed at once, and what is read at once.
const TURN: usize = 64 * 1024;

/// The longest record of TLS 1.2 on the wire.
const RECORD: usize = 5 + 16 * 1024 + 2048;

thread_local! {
    /// Where a thread's records are opened and sealed: borrowed inside one poll, never across a return.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        // Made when the thread first meets TLS.
        scratch.resize(TURN + 2 * RECORD, 0);
        work(scratch)
    })
}

/// A TCP socket that speaks TLS. Dropped, it says goodbye if the socket takes that at once.
///
/// A write counts as done when all of it is sealed; what the socket did not take is sent by [`AsyncWrite::poll_flush`] and
/// before anything else is accepted.
pub struct TlsStream {
    /// `None` only between two threads.
    socket: Option<TcpStream>,
    records: Records,
}

/// A [`TlsStream`] whose socket is registered with no reactor.
#[derive(Debug)]
pub struct Detached {
    socket: std::net::TcpStream,
    stream: Box<TlsStream>,
}

impl Detached {
    /// The socket alone.
    #[cfg(test)]
    pub(super) fn into_socket(self) -> std::net::TcpStream {
        self.socket
    }

    /// Registers the socket with the reactor of the thread that calls.
    pub fn register(self) -> io::Result<Box<TlsStream>> {
        let Self { socket, mut stream } = self;
        stream.socket = Some(TcpStream::from_std(socket)?);
        Ok(stream)
    }
}

impl TlsStream {
    /// Shakes hands as a server, with a client of which `said` has been read already.
    pub async fn accept(
        socket: TcpStream,
        config: &Arc<ServerConfig>,
        said: &[u8],
    ) -> io::Result<Box<Self>> {
        let session =
            UnbufferedServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Self::shake_hands(socket, Records::server(session, said)).await
    }

    /// Shakes hands as a client.
    pub async fn connect(
        socket: TcpStream,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Box<Self>> {
        let session =
            UnbufferedClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Self::shake_hands(socket, Records::client(session)).await
    }

    async fn shake_hands(socket: TcpStream, records: Records) -> io::Result<Box<Self>> {
        let mut stream = Box::new(Self {
            socket: Some(socket),
            records,
        });
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let opened = self.records.open_heard();
            let sent = self.poll_unsent(cx)?;
            opened?;
            ready!(sent);
            if !self.records.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let Self { socket, records } = self;
            let read = with_scratch(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                ready!(Pin::new(connected(socket)).poll_read(cx, &mut buffer))?;
                records.hear(buffer.filled());
                Poll::Ready(io::Result::Ok(buffer.filled().len()))
            });
            if ready!(read)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Takes the socket out of the reactor it is registered with. The keys and what was read go with it.
    pub fn unregister(mut self: Box<Self>) -> io::Result<Detached> {
        let socket = self.socket.take().expect("a stream in use has its socket");
        Ok(Detached {
            socket: socket.into_std()?,
            stream: self,
        })
    }

    /// Whether something may be read: data, the end, an error. Costs no system call.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.records.is_readable() {
            return Poll::Ready(Ok(()));
        }
        self.socket().poll_read_ready(cx)
    }

    /// As [`Self::poll_readable`], for a glance that nobody waits on.
    pub fn is_readable(&self) -> bool {
        let glance = self.socket().try_io(Interest::READABLE, || Ok(()));
        self.records.is_readable() || glance.is_ok()
    }

    /// Whether nothing of the peer waits to be read, in the socket or before. Costs a system call.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = SockRef::from(self.socket()).peek(&mut byte);
        self.records.is_quiet()
            && peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The protocol that ALPN chose.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.records.state()?.alpn_protocol()
    }

    /// The peer's own certificate, which was checked as configured.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.records.state()?.peer_certificates()?.first()
    }

    /// The protocol's version, as people write it.
    pub fn version(&self) -> &'static str {
        use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
        let state = self.records.state();
        match state.and_then(CommonState::protocol_version) {
            Some(TLSv1_2) => "TLSv1.2",
            Some(TLSv1_3) => "TLSv1.3",
            _ => "unknown",
        }
    }

    /// The cipher suite.
    pub fn cipher(&self) -> &'static str {
        let state = self.records.state();
        let suite = state.and_then(CommonState::negotiated_cipher_suite);
        suite
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown")
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        let state = self.records.state();
        state.and_then(CommonState::handshake_kind) == Some(HandshakeKind::Resumed)
    }

    /// Whether the peer said goodbye, and did not only close the socket.
    #[cfg(test)]
    pub(super) fn is_goodbye_heard(&self) -> bool {
        self.records.is_peer_closed()
    }

    /// The socket under it.
    pub(in crate::net) fn socket(&self) -> &TcpStream {
        self.socket
            .as_ref()
            .expect("a stream in use has its socket")
    }

    /// Sends what the socket did not take yet. Ready when nothing is left.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, records } = self;
        while !records.unsent().is_empty() {
            let socket = Pin::new(connected(socket));
            let written = ready!(socket.poll_write(cx, records.unsent().get()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            records.unsent_mut().advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `sealed` as far as the socket takes it, and keeps the rest.
    fn send(&mut self, cx: &mut Context<'_>, mut sealed: &[u8]) -> io::Result<()> {
        let Self { socket, records } = self;
        while records.unsent().is_empty() && !sealed.is_empty() {
            match Pin::new(connected(socket)).poll_write(cx, sealed)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => sealed = &sealed[written..],
                Poll::Pending => records.unsent_mut().add(sealed),
            }
        }
        Ok(())
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let Self { socket, records } = self;
        let room = buffer.remaining();
        let mut filled = records.lay_out(scratch);
        let outcome = loop {
            // Where nothing is kept there is nothing to be opened, which is so whenever the socket is asked in vain. What failed
            // fails again.
            if filled > 0 || records.is_over() {
                let used = records.open(&mut scratch[..filled], buffer)?;
                scratch.copy_within(used..filled, 0);
                filled -= used;
            }
            if buffer.remaining() < room || records.is_peer_closed() {
                break Poll::Ready(Ok(()));
            }
            // No more than there is room for, or what is missing of a record: the rest stays with the kernel, and the
            // peer hears from it that we are slow.
            let more = room
                .max(if filled > 0 { RECORD } else { 0 })
                .min(scratch.len() - filled);
            let mut read = ReadBuf::new(&mut scratch[filled..filled + more]);
            match Pin::new(connected(socket)).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => break Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => filled += read.filled().len(),
                other => break other,
            }
        };
        records.keep(&scratch[..filled]);
        outcome
    }
}

fn connected(socket: &mut Option<TcpStream>) -> &mut TcpStream {
    socket.as_mut().expect("a stream in use has its socket")
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.remaining();
        this.records.pass_opened(buffer);
        if buffer.remaining() < before || before == 0 {
            return Poll::Ready(Ok(()));
        }
        let outcome = with_scratch(|scratch| this.poll_open(cx, buffer, scratch));
        // What rustls answers by itself (an alert, new keys). If the socket is full it goes with the next write.
        let _ = this.poll_unsent(cx);
        outcome
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        plain: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        let plain = &plain[..plain.len().min(TURN)];
        with_scratch(|scratch| {
            let length = this.records.seal(plain, scratch)?;
            if this.records.unsent().is_empty() {
                this.send(cx, &scratch[..length])?;
            } else {
                this.records.unsent_mut().add(&scratch[..length]);
                let _ = this.poll_unsent(cx)?;
            }
            Poll::Ready(Ok(plain.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.close()?;
        ready!(this.poll_unsent(cx))?;
        Pin::new(connected(&mut this.socket)).poll_shutdown(cx)
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        let Some(socket) = &self.socket else { return };
        // A goodbye behind a record that is cut off means nothing.
        if !self.records.unsent().is_empty() || self.records.is_handshaking() {
            return;
        }
        if self.records.close().is_ok() {
            let _ = socket.try_write(self.records.unsent().get());
        }
    }
}
