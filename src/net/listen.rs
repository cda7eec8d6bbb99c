//! Listening sockets of both kinds, as one stream of accepted connections.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::stream::{Unregistered, tune, unix_path};
use crate::config::checked::Tcp;

/// How many connections the kernel may hold for us. A deployment's rollout arrives at once.
const BACKLOG: i32 = 4096;

/// Where a client connected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket, with the process id at the other end if the kernel told.
    Unix(Option<i32>),
}

impl Peer {
    /// The address, if it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(Some(pid)) => write!(f, "unix({pid})"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// A listening socket. A unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Accepting,
    name: String,
    file: Option<SocketFile>,
    tcp: Tcp,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
struct SocketFile(String);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; nobody is left to tell.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on a TCP address.
    pub fn tcp(address: SocketAddr, tcp: &Tcp) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        let name = socket
            .local_addr()?
            .as_socket()
            .map_or_else(|| address.to_string(), |bound| bound.to_string());
        Self::start(socket, name, None, tcp)
    }

    /// Listens on `.s.PGSQL.{port}` in `directory`; `@name` is abstract. A file that nobody answers on is replaced.
    pub fn unix(directory: &str, port: u16, mode: u32, tcp: &Tcp) -> io::Result<Self> {
        let path = unix_path(directory, port);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        if let Some(name) = path.strip_prefix('@') {
            socket.bind(&socket2::SockAddr::unix(format!("\0{name}"))?)?;
            return Self::start(socket, path, None, tcp);
        }
        if fs::exists(&path)? {
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process answers on it",
                ));
            }
            fs::remove_file(&path)?;
        }
        socket.bind(&socket2::SockAddr::unix(&path)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Self::start(socket, path.clone(), Some(SocketFile(path)), tcp)
    }

    fn start(
        socket: Socket,
        name: String,
        file: Option<SocketFile>,
        tcp: &Tcp,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        let socket = match socket.domain()? {
            Domain::UNIX => Accepting::Unix(UnixListener::from_std(socket.into())?),
            _ => Accepting::Tcp(TcpListener::from_std(socket.into())?),
        };
        Ok(Self {
            socket,
            name,
            file,
            tcp: tcp.clone(),
        })
    }

    /// The address as bound, with the port that the kernel chose for port 0.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the next connection, and takes it out of this thread's reactor for another's. Cancel-safe.
    pub async fn accept(&self) -> io::Result<(Unregistered, Peer)> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                // A peer that has gone already fails here; reading from it will tell.
                let _ = tune(&socket, &self.tcp);
                Ok((Unregistered::Tcp(socket.into_std()?), Peer::Tcp(address)))
            }
            Accepting::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                let pid = socket.peer_cred().ok().and_then(|peer| peer.pid());
                Ok((Unregistered::Unix(socket.into_std()?), Peer::Unix(pid)))
            }
        }
    }

    /// Whether it is a unix socket.
    pub fn is_unix(&self) -> bool {
        self.file.is_some() || self.name.starts_with('@')
    }
}
