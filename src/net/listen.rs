//! Listening sockets of both kinds, as one stream of accepted connections.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Weak};

use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::names;
use super::stream::{Unregistered, tune, unix_path};
use crate::config::checked::{Listen, Tcp};

/// Where a client connected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket, with the process id at the other end if the kernel told.
    Unix(Option<i32>),
}

impl Peer {
    /// Over TCP from there. An IPv4 address that a socket for both families tells as an IPv6 one is what it is.
    pub fn of(address: SocketAddr) -> Self {
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

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

/// A listening socket, not yet registered with a reactor. A unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<Socket>,
    name: String,
    file: Option<SocketFile>,
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
    /// Listens on a TCP address. On Linux what is accepted inherits the options of `tcp` from it.
    pub fn tcp(address: SocketAddr, tcp: &Tcp, listen: &Listen) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(listen.reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        tune(&socket, tcp)?;
        socket.bind(&address.into())?;
        let bound = socket.local_addr()?.as_socket();
        let name = bound.unwrap_or(address).to_string();
        Self::start(socket, name, None, listen.backlog)
    }

    /// Listens on `.s.PGSQL.{port}` in `directory`; `@name` is abstract. A file that nobody answers on is replaced.
    pub fn unix(directory: &str, port: u16, listen: &Listen) -> io::Result<Self> {
        let path = unix_path(directory, port);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        if let Some(name) = path.strip_prefix('@') {
            socket.bind(&socket2::SockAddr::unix(format!("\0{name}"))?)?;
            return Self::start(socket, path, None, listen.backlog);
        }
        if fs::exists(&path)? {
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "unix socket is in use, cannot continue: another process answers on it",
                ));
            }
            fs::remove_file(&path)?;
        }
        socket.bind(&socket2::SockAddr::unix(&path)?)?;
        if let Some(group) = &listen.unix_socket_group {
            let group = names::group(group)?;
            std::os::unix::fs::chown(&path, None, Some(group))?;
        }
        let mode = fs::Permissions::from_mode(listen.unix_socket_mode);
        fs::set_permissions(&path, mode)?;
        Self::start(socket, path.clone(), Some(SocketFile(path)), listen.backlog)
    }

    /// One that listens already and was handed to this process. Its file, if it has one, is left to whoever made it.
    pub fn from_socket(socket: OwnedFd, tcp: &Tcp) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let address = socket.local_addr()?;
        let name = match address.as_socket() {
            Some(address) => {
                tune(&socket, tcp)?;
                address.to_string()
            }
            None => unix_name(&address),
        };
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Arc::new(socket),
            name,
            file: None,
        })
    }

    fn start(
        socket: Socket,
        name: String,
        file: Option<SocketFile>,
        backlog: u32,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        let socket = Arc::new(socket);
        Ok(Self { socket, name, file })
    }

    /// The same, with the file of its unix socket as our own.
    #[must_use]
    pub fn with_file(mut self) -> Self {
        self.file = Some(SocketFile(self.name.clone()));
        self
    }

    /// The socket itself, for as long as this process listens on it.
    pub fn socket(&self) -> Weak<Socket> {
        Arc::downgrade(&self.socket)
    }

    /// The address as bound, with the port that the kernel chose for port 0.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Registers with the reactor of the thread that calls.
    pub fn register(self) -> io::Result<Accepting> {
        let Self { socket, name, file } = self;
        let is_unix = socket.local_addr()?.is_unix();
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that may be closed meanwhile; ours is owned"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Accepting {
            socket,
            name,
            is_unix,
            file,
        })
    }
}

fn unix_name(address: &socket2::SockAddr) -> String {
    match (address.as_pathname(), address.as_abstract_namespace()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        (None, None) => "unix".to_owned(),
    }
}

/// A listening socket whose connections are being accepted.
#[derive(Debug)]
pub struct Accepting {
    socket: AsyncFd<Arc<Socket>>,
    name: String,
    is_unix: bool,
    file: Option<SocketFile>,
}

impl Accepting {
    /// Whether it is a unix socket.
    pub fn is_unix(&self) -> bool {
        self.is_unix
    }

    /// The address as bound.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it up to another process, which has it too: the file stays.
    pub fn leave(mut self) {
        if let Some(file) = self.file.take() {
            std::mem::forget(file);
        }
    }

    /// Waits for the next connection, which is registered with no reactor. Cancel-safe.
    pub async fn accept(&self) -> io::Result<(Unregistered, Peer)> {
        const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
        let accept = |socket: &Arc<Socket>| Ok(rustix::net::acceptfrom_with(socket, FLAGS)?);
        let (socket, address) = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(
            match address.and_then(|address| SocketAddr::try_from(address).ok()) {
                Some(address) => (Unregistered::Tcp(socket.into()), Peer::of(address)),
                None => local(socket),
            },
        )
    }
}

fn local(socket: OwnedFd) -> (Unregistered, Peer) {
    let peer = rustix::net::sockopt::socket_peercred(&socket);
    let pid = peer.ok().map(|peer| peer.pid.as_raw_nonzero().get());
    (Unregistered::Unix(socket.into()), Peer::Unix(pid))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::config;

    fn defaults() -> (Tcp, Listen) {
        let text = "[databases.\"*\"]\nurl = \"postgres://db\"\n";
        let config = config::parse(text, "pooler.toml", &|_| None).unwrap();
        (config.tcp, config.listen)
    }

    #[track_caller]
    fn notices_a_dead_peer_within_a_minute(socket: &SockRef<'_>) {
        assert!(socket.keepalive().unwrap());
        let idle = socket.tcp_keepalive_time().unwrap();
        let probes =
            socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert!(
            idle + probes < Duration::from_mins(1),
            "{idle:?} + {probes:?}"
        );
        let unanswered = socket.tcp_user_timeout().unwrap().expect("a limit");
        assert!(idle + unanswered < Duration::from_mins(1), "{unanswered:?}");
    }

    #[tokio::test]
    async fn a_dead_peer_is_noticed_within_a_minute_on_both_sides() {
        let (tcp, listen) = defaults();
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), &tcp, &listen).unwrap();
        let place = listener.name().parse().unwrap();
        let accepting = listener.register().unwrap();
        let dialing = crate::net::stream::Stream::connect_to(place, &tcp);
        let (accepted, dialed) = tokio::join!(accepting.accept(), dialing);
        let (Unregistered::Tcp(accepted), _) = accepted.unwrap() else {
            panic!("it is a TCP socket");
        };
        notices_a_dead_peer_within_a_minute(&SockRef::from(&accepted));
        let crate::net::stream::Stream::Tcp(dialed) = dialed.unwrap() else {
            panic!("it is one, too");
        };
        notices_a_dead_peer_within_a_minute(&SockRef::from(&dialed));
    }
}
