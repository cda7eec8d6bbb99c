//! A connection's first packets, up to the startup message (manual, "Start-up", "Canceling Requests in Progress",
//! "SSL Session Encryption").

use std::io;

use crate::net::listen::Peer;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::net::tls::ALPN;
use crate::net::tls::accept::Acceptor;
use crate::net::tls::certificate::Subject;
use crate::wire::proxy::{self, Header, ProxyError};
use crate::wire::reply::{Report, Severity, SqlState};
use crate::wire::startup::{CancelKey, Initial, Startup, StartupError, body_len, parse};

/// Encryption requests before a startup packet: one for GSSAPI, one for TLS. More is no client's way.
const ENCRYPTION_REQUESTS: u32 = 2;

/// The first byte of a TLS handshake. As the first of a packet's length it would make that 369 MB.
const TLS_HANDSHAKE: u8 = 0x16;

/// A client that said who it is; TLS is settled.
#[derive(Debug)]
pub struct Greeted {
    /// Its connection.
    pub packets: Packets<Stream>,
    /// Where it came from.
    pub peer: Peer,
    /// What it asked for.
    pub startup: Startup,
    /// What TLS proves; `None` without it.
    pub secured: Option<Secured>,
}

/// What TLS proves of a client, and to it.
#[derive(Debug, Clone)]
pub struct Secured {
    /// The hash of our certificate, for channel binding; `None` where it cannot be offered.
    pub end_point: Option<Box<[u8]>>,
    /// Whom its certificate names, if it showed one. It was checked against our authorities.
    pub subject: Option<Subject>,
    /// The protocol's version.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// What a connection is for.
#[derive(Debug)]
pub enum Greeting {
    /// A session.
    Startup(Box<Greeted>),
    /// Stopping another session's query.
    /// As Postgres does, who asked is left on the line until the request was passed on.
    Cancel(CancelKey, Box<Packets<Stream>>),
}

/// Why it came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The connection failed or was closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The packet was malformed. The client was told.
    #[error("{0}")]
    Startup(#[from] StartupError),
    /// Encryption was asked for again and again.
    #[error("repeated encryption requests")]
    Insistent,
    /// Something came in clear behind the request for TLS. Taken for what comes under TLS it would be a stranger's word in a
    /// client's mouth. The client was told.
    #[error("received unencrypted data after SSL request")]
    Injected,
    /// The TLS handshake failed. rustls has told the client.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// A PROXY header is demanded from this address, and did not come.
    #[error("{0}")]
    Proxy(#[from] ProxyError),
    /// It says that it speaks for somebody else, and is not believed.
    #[error("PROXY header from an address that is not in proxy_protocol_from")]
    Unbelieved,
    /// TLS without being asked, and it may be meant for somebody else. The client was told.
    #[error("direct SSL connection request without ALPN protocol negotiation extension")]
    NoAlpn,
}

impl GreetError {
    /// Why PgBouncer would say that it closes the client's connection.
    pub fn as_pgbouncer(&self) -> String {
        let words = match self {
            Self::Io(_) => "client unexpected eof",
            Self::Startup(StartupError::Version(..)) => "old V2 protocol not supported",
            Self::Startup(StartupError::NoUser) => "no username supplied",
            Self::Startup(_) => "bad packet",
            Self::Insistent => "SSL req inside SSL",
            other => return other.to_string(),
        };
        words.to_owned()
    }

    /// Whether the client was told.
    pub fn is_told(&self) -> bool {
        self.report().is_some()
    }

    /// What the client is told; `None` where it was told already, or is gone.
    fn report(&self) -> Option<Report> {
        let code = match self {
            Self::Startup(StartupError::Version(..)) => SqlState::NOT_SUPPORTED,
            Self::Startup(StartupError::NoUser) => SqlState::INVALID_AUTHORIZATION,
            Self::Startup(_) | Self::Injected | Self::NoAlpn => SqlState::PROTOCOL_VIOLATION,
            Self::Io(_) | Self::Insistent | Self::Tls(_) | Self::Proxy(_) | Self::Unbelieved => {
                return None;
            }
        };
        Some(Report::new(code, self.to_string()))
    }
}

/// Reads the header of a proxy, and says whom it speaks for; a proxy that speaks for itself is the client.
pub async fn announced(packets: &mut Packets<Stream>, proxy: Peer) -> Result<Peer, GreetError> {
    let header = packets.take(|bytes| Ok::<_, GreetError>(proxy::parse(bytes)?));
    Ok(match header.await? {
        Header::From(address) => Peer::of(address),
        Header::Own => proxy,
    })
}

/// Reads up to the startup message or the cancel request. `tls`: what is offered.
pub async fn greet(
    mut packets: Packets<Stream>,
    peer: Peer,
    tls: Option<&Acceptor>,
) -> Result<Greeting, GreetError> {
    if let Some(acceptor) = offer(&packets, tls)
        && packets.peek().await? == TLS_HANDSHAKE
    {
        packets = secure(packets, acceptor).await?;
        if packets.stream().tls().and_then(|tls| tls.alpn()) != Some(ALPN) {
            return Err(told(&mut packets, GreetError::NoAlpn).await);
        }
    }
    for _ in 0..=ENCRYPTION_REQUESTS {
        match next(&mut packets).await {
            Ok(Initial::SslRequest) => packets = answer(packets, tls).await?,
            Ok(Initial::GssEncRequest) => packets.write(b"N").await?,
            Ok(Initial::Cancel(key)) => return Ok(Greeting::Cancel(key, Box::new(packets))),
            Ok(Initial::Startup(startup)) => {
                let secured = secured(packets.stream(), tls);
                return Ok(Greeting::Startup(Box::new(Greeted {
                    packets,
                    peer,
                    startup,
                    secured,
                })));
            }
            Err(error) => return Err(told(&mut packets, error).await),
        }
    }
    Err(GreetError::Insistent)
}

async fn next(packets: &mut Packets<Stream>) -> Result<Initial, GreetError> {
    let length = packets.array().await?;
    // Both of its versions are impossible as a length.
    if [*b"PROX", *b"\r\n\r\n"].contains(&length) {
        return Err(GreetError::Unbelieved);
    }
    let body = packets.bytes(body_len(length)?).await?;
    Ok(parse(&body)?)
}

/// Answers an SSLRequest.
async fn answer(
    mut packets: Packets<Stream>,
    tls: Option<&Acceptor>,
) -> Result<Packets<Stream>, GreetError> {
    if packets.stream().tls().is_some() {
        return Err(GreetError::Insistent);
    }
    let Some(acceptor) = offer(&packets, tls) else {
        packets.write(b"N").await?;
        return Ok(packets);
    };
    if packets.has_more() {
        return Err(told(&mut packets, GreetError::Injected).await);
    }
    packets.write(b"S").await?;
    secure(packets, acceptor).await
}

/// What is offered over this connection: as in Postgres, no TLS over unix sockets.
fn offer<'a>(packets: &Packets<Stream>, tls: Option<&'a Acceptor>) -> Option<&'a Acceptor> {
    tls.filter(|_| matches!(packets.stream(), Stream::Tcp(_)))
}

async fn secure(
    packets: Packets<Stream>,
    acceptor: &Acceptor,
) -> Result<Packets<Stream>, GreetError> {
    let (Stream::Tcp(socket), said) = packets.into_parts() else {
        return Err(GreetError::Insistent);
    };
    match acceptor.accept(socket, &said).await {
        Ok(stream) => Ok(Packets::new(Stream::Tls(stream))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(GreetError::Tls(error)),
        Err(error) => Err(error.into()),
    }
}

fn secured(stream: &Stream, tls: Option<&Acceptor>) -> Option<Secured> {
    let stream = stream.tls()?;
    Some(Secured {
        end_point: tls.and_then(Acceptor::end_point).map(Into::into),
        subject: stream.peer_certificate().and_then(Subject::of),
        version: stream.version(),
        resumed: stream.is_resumed(),
    })
}

/// Tells the client what is wrong.
async fn told(packets: &mut Packets<Stream>, error: GreetError) -> GreetError {
    if let Some(report) = error.report() {
        // It may be gone; it was to be told, no more.
        let _ = packets.write(&report.error(Severity::Fatal)).await;
    }
    error
}
