//! From a list of hosts to a connected socket. What names lead to is asked of [`names`], so that a change in DNS is followed, and every
//! address has its share of the time: one that swallows what is sent to it does not keep us from the next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::names::names;
use crate::config::checked::{Host, Tcp};
use crate::net::stream::Stream;

/// A host, and which of its addresses.
#[derive(Debug, Clone)]
pub struct Place {
    /// The host as configured.
    pub host: Arc<Host>,
    /// `None`: a unix socket.
    pub address: Option<SocketAddr>,
}

/// No host could be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {}: {cause}", super::dial::name(.host))]
pub struct Unreachable {
    /// The last one tried.
    pub host: Arc<Host>,
    /// Why.
    #[source]
    pub cause: io::Error,
    /// Its name leads to no address.
    pub is_unknown: bool,
}

impl Place {
    /// Connects there. The caller bounds the time.
    pub async fn connect(&self, tcp: &Tcp) -> io::Result<Stream> {
        match self.address {
            Some(address) => Stream::connect_to(address, tcp).await,
            None => Stream::connect(&self.host, tcp).await,
        }
    }
}

/// Connects to the first of `hosts`, and of their addresses, that can be reached within `limit`.
pub async fn reach(
    hosts: &[Arc<Host>],
    tcp: &Tcp,
    limit: Duration,
) -> Result<(Stream, Place), Unreachable> {
    let look_up = async |name: &str, port| names().look_up(name, port).await;
    let reached = reach_by(hosts, tcp, limit, look_up).await;
    if let Err(Unreachable {
        is_unknown: false, ..
    }) = &reached
    {
        for host in hosts {
            if let Host::Tcp(name, _) = &**host {
                names().doubt(name);
            }
        }
    }
    reached
}

async fn reach_by(
    hosts: &[Arc<Host>],
    tcp: &Tcp,
    limit: Duration,
    look_up: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<(Stream, Place), Unreachable> {
    let deadline = Instant::now() + limit;
    let mut failed = None;
    for (index, host) in hosts.iter().enumerate() {
        let until = share(deadline, hosts.len() - index);
        match reach_one(host, tcp, until, &look_up).await {
            Ok(reached) => return Ok(reached),
            Err(cause) => failed = Some((host, cause)),
        }
    }
    let (host, cause) = failed.expect("a checked configuration names at least one host");
    Err(Unreachable {
        host: Arc::clone(host),
        is_unknown: matches!(cause, Failure::NoAddress(_)),
        cause: cause.into_inner(),
    })
}

/// Why one host could not be reached.
enum Failure {
    NoAddress(io::Error),
    NoConnection(io::Error),
}

impl Failure {
    fn into_inner(self) -> io::Error {
        match self {
            Self::NoAddress(error) | Self::NoConnection(error) => error,
        }
    }
}

async fn reach_one(
    host: &Arc<Host>,
    tcp: &Tcp,
    until: Instant,
    look_up: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<(Stream, Place), Failure> {
    let addresses: Vec<_> = match &**host {
        Host::Tcp(name, port) => {
            let found = within(until, look_up(name, *port)).await;
            let found = found.map_err(Failure::NoAddress)?;
            found.into_iter().map(Some).collect()
        }
        Host::Unix(..) => vec![None],
    };
    let nothing = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    let mut outcome = Err(Failure::NoAddress(nothing));
    for (index, address) in addresses.iter().enumerate() {
        let host = Arc::clone(host);
        let place = Place {
            host,
            address: *address,
        };
        let until = share(until, addresses.len() - index);
        outcome = within(until, place.connect(tcp))
            .await
            .map(|stream| (stream, place))
            .map_err(Failure::NoConnection);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Where the time of the first of so many ends, if all of them are to have as much.
fn share(deadline: Instant, of: usize) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + left / u32::try_from(of.max(1)).unwrap_or(u32::MAX)
}

async fn within<T>(until: Instant, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let left = until.saturating_duration_since(Instant::now());
    timeout(left, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::net::TcpListener;

    use super::*;

    const TCP: Tcp = Tcp::LEFT_ALONE;

    const LIMIT: Duration = Duration::from_mins(1);

    fn host(name: &str) -> Arc<Host> {
        Arc::new(Host::Tcp(name.into(), 0))
    }

    async fn listen(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((address, 0))
            .await
            .expect("a loopback address");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    }

    fn peer(stream: &Stream) -> SocketAddr {
        let Stream::Tcp(socket) = stream else {
            panic!("{stream:?} is no TCP");
        };
        socket.peer_addr().expect("it is connected")
    }

    /// An address at which nobody listens.
    async fn deserted() -> SocketAddr {
        listen("127.0.0.9").await.1
    }

    #[tokio::test]
    async fn a_change_in_dns_is_followed_by_the_next_dial_and_a_cancel_goes_to_the_old_place() {
        let (_old, before) = listen("127.0.0.2").await;
        let (_new, after) = listen("127.0.0.3").await;
        let moved = Cell::new(false);
        let look_up = async |_: &str, _| Ok(vec![if moved.get() { after } else { before }]);
        let hosts = [host("db")];
        let (stream, place) = reach_by(&hosts, &TCP, LIMIT, look_up)
            .await
            .expect("it listens");
        assert_eq!(peer(&stream), before);
        moved.set(true);
        let (stream, _) = reach_by(&hosts, &TCP, LIMIT, look_up)
            .await
            .expect("it listens");
        assert_eq!(peer(&stream), after);
        let again = place.connect(&TCP).await.expect("it still listens");
        assert_eq!(peer(&again), before);
    }

    #[tokio::test]
    async fn every_address_of_every_host_is_tried_in_order() {
        let (_listener, good) = listen("127.0.0.2").await;
        let (one, other) = (deserted().await, deserted().await);
        let look_up = async |name: &str, _| match name {
            "gone" => Err(io::Error::other("no such name")),
            "down" => Ok(vec![one]),
            _ => Ok(vec![other, good]),
        };
        let hosts = [host("gone"), host("down"), host("up")];
        let (stream, place) = reach_by(&hosts, &TCP, LIMIT, look_up)
            .await
            .expect("one listens");
        assert_eq!((peer(&stream), &place.host), (good, &hosts[2]));
        let error = reach_by(&hosts[..2], &TCP, LIMIT, look_up)
            .await
            .expect_err("nobody listens");
        assert_eq!(error.host, hosts[1]);
        let error = reach_by(&hosts[..1], &TCP, LIMIT, look_up)
            .await
            .expect_err("it has no name");
        assert!(error.to_string().contains("no such name"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_says_nothing_has_its_share_of_the_time_and_no_more() {
        let (_listener, good) = listen("127.0.0.2").await;
        let look_up = async |name: &str, _| match name {
            "silent" => pending().await,
            _ => Ok(vec![good]),
        };
        let hosts = [host("silent"), host("silent"), host("up")];
        let start = Instant::now();
        let (stream, _) = reach_by(&hosts, &TCP, LIMIT, look_up)
            .await
            .expect("one listens");
        assert_eq!(peer(&stream), good);
        assert_eq!(start.elapsed().as_secs(), 40);
        let error = reach_by(&hosts[..1], &TCP, LIMIT, look_up)
            .await
            .expect_err("it is silent");
        assert_eq!(error.cause.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 100);
    }
}
