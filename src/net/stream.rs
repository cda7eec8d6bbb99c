//! A connected socket of either kind.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::tls::stream::{Detached, TlsStream};
use crate::config::checked::{Host, Tcp};

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix socket.
    Unix(UnixStream),
    /// TLS over TCP. Boxed: it is much larger than the others.
    Tls(Box<TlsStream>),
}

/// A socket on its way from one thread's reactor to another's: registered with none.
#[derive(Debug)]
pub enum Unregistered {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// Unix socket.
    Unix(std::os::unix::net::UnixStream),
    /// TLS, with its keys and what was read.
    Tls(Detached),
}

impl Unregistered {
    /// Registers the socket with the reactor of the thread that calls.
    pub fn register(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(socket) => Stream::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Stream::Unix(UnixStream::from_std(socket)?),
            Self::Tls(detached) => Stream::Tls(detached.register()?),
        })
    }
}

impl Stream {
    /// Connects to `host`. The caller bounds the time.
    pub async fn connect(host: &Host, tcp: &Tcp) -> io::Result<Self> {
        match host {
            Host::Tcp(name, port) => tuned(TcpStream::connect((name.as_str(), *port)).await?, tcp),
            Host::Unix(directory, port) => {
                let path = unix_path(directory, *port);
                // The kernel marks abstract names with a zero byte, people with an @.
                let path = path
                    .strip_prefix('@')
                    .map_or(path.clone(), |name| format!("\0{name}"));
                Ok(Self::Unix(UnixStream::connect(path).await?))
            }
        }
    }

    /// Connects to one address. The caller bounds the time.
    pub async fn connect_to(address: SocketAddr, tcp: &Tcp) -> io::Result<Self> {
        tuned(TcpStream::connect(address).await?, tcp)
    }

    /// Takes the socket out of the reactor it is registered with.
    pub fn unregister(self) -> io::Result<Unregistered> {
        Ok(match self {
            Self::Tcp(socket) => Unregistered::Tcp(socket.into_std()?),
            Self::Unix(socket) => Unregistered::Unix(socket.into_std()?),
            Self::Tls(stream) => Unregistered::Tls(stream.unregister()?),
        })
    }

    /// The TLS of the connection, if it has any.
    pub fn tls(&self) -> Option<&TlsStream> {
        match self {
            Self::Tls(stream) => Some(stream),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// The user of the operating system at the other end of a unix socket.
    pub fn peer_user(&self) -> Option<u32> {
        match self {
            Self::Unix(socket) => socket.peer_cred().ok().map(|peer| peer.uid()),
            Self::Tcp(_) | Self::Tls(_) => None,
        }
    }

    /// Whether something may be read: data, the end, an error. Costs no system call.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
            Self::Tls(stream) => stream.poll_readable(cx),
        }
    }

    /// As [`Self::poll_readable`], for a glance that nobody waits on.
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Tls(stream) => stream.is_readable(),
        }
    }

    /// Whether the peer has closed its side, also behind what was not read yet. Costs a system call.
    pub fn is_abandoned(&self) -> bool {
        let flags = PollFlags::RDHUP;
        let mut asked = [match self {
            Self::Tcp(socket) => PollFd::new(socket, flags),
            Self::Unix(socket) => PollFd::new(socket, flags),
            Self::Tls(stream) => PollFd::new(stream.socket(), flags),
        }];
        matches!(poll(&mut asked, Some(&Timespec::default())), Ok(1..))
    }

    /// Ready when the peer has gone although it had nothing more to say. One that has said something more is not found out.
    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // What TLS has read already says nothing of the socket.
            let readable = match self {
                Self::Tls(stream) => stream.socket().poll_read_ready(cx),
                plain => plain.poll_readable(cx),
            };
            if ready!(readable).is_err() {
                return Poll::Ready(());
            }
            let peeked = match self {
                Self::Tcp(socket) => socket.try_io(Interest::READABLE, || peek(socket)),
                Self::Unix(socket) => socket.try_io(Interest::READABLE, || peek(socket)),
                Self::Tls(stream) => {
                    let socket = stream.socket();
                    socket.try_io(Interest::READABLE, || peek(socket))
                }
            };
            match peeked {
                Ok(1..) => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// As [`Self::is_readable`], for a socket that is registered with another thread's reactor, which may not have noticed
    /// yet. Costs a system call.
    pub fn is_quiet(&self) -> bool {
        let peeked = match self {
            Self::Tcp(socket) => peek(socket),
            Self::Unix(socket) => peek(socket),
            Self::Tls(stream) => return stream.is_quiet(),
        };
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn peek<'a, S>(socket: &'a S) -> io::Result<usize>
where
    SockRef<'a>: From<&'a S>,
{
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()])
}

/// The path of a unix socket as Postgres names it.
pub fn unix_path(directory: &str, port: u16) -> String {
    format!("{}/.s.PGSQL.{port}", directory.trim_end_matches('/'))
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Writes to a socket, by the system call itself: the C library's function is a point at which a thread may be cancelled, and sees to
/// that each time.
fn put(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::NOSIGNAL)?)
}

fn tuned(socket: TcpStream, tcp: &Tcp) -> io::Result<Stream> {
    tune(&socket, tcp)?;
    Ok(Stream::Tcp(socket))
}

/// No Nagle delay; buffers and keepalive as configured.
pub fn tune<'a, S>(socket: &'a S, tcp: &Tcp) -> io::Result<()>
where
    SockRef<'a>: From<&'a S>,
{
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    if let Ok(size @ 1..) = usize::try_from(tcp.socket_buffer) {
        socket.set_recv_buffer_size(size)?;
        socket.set_send_buffer_size(size)?;
    }
    socket.set_tcp_user_timeout(tcp.user_timeout)?;
    if !tcp.keepalive {
        return Ok(());
    }
    let mut keepalive = TcpKeepalive::new();
    // Zero is the system's own setting; the kernel itself takes none.
    if !tcp.keepalive_idle.is_zero() {
        keepalive = keepalive.with_time(tcp.keepalive_idle);
    }
    if !tcp.keepalive_interval.is_zero() {
        keepalive = keepalive.with_interval(tcp.keepalive_interval);
    }
    if tcp.keepalive_count > 0 {
        keepalive = keepalive.with_retries(tcp.keepalive_count);
    }
    socket.set_tcp_keepalive(&keepalive)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Nearly every write finds room: only one that does not needs a place to wait in, and a task is kept from going on for ever by
        // what it reads.
        match self.get_mut() {
            Self::Tcp(socket) => match socket.try_io(Interest::WRITABLE, || put(socket, bytes)) {
                Err(error) if is_full(&error) => Pin::new(socket).poll_write(cx, bytes),
                written => Poll::Ready(written),
            },
            Self::Unix(socket) => match socket.try_io(Interest::WRITABLE, || put(socket, bytes)) {
                Err(error) if is_full(&error) => Pin::new(socket).poll_write(cx, bytes),
                written => Poll::Ready(written),
            },
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
