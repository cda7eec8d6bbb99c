//! TLS with Postgres, by the modes of libpq (Postgres manual, "SSL Support", "SSL Session Encryption").

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::reach::Place;
use crate::config::checked::{Host, Negotiation, Tcp, TlsMode};
use crate::net::stream::Stream;
use crate::net::tls::ALPN;
use crate::net::tls::certificate::end_point;
use crate::net::tls::connect::Connector;
use crate::wire::startup::ssl_request;

/// How connections to a Postgres are secured.
#[derive(Debug, Clone)]
pub struct Security(Option<(TlsMode, Tls)>);

/// How TLS is spoken with a Postgres.
#[derive(Debug, Clone)]
pub struct Tls {
    connector: Arc<Connector>,
    negotiation: Negotiation,
    /// Whether its certificate must bear the host's name.
    named: bool,
}

/// One way to try.
#[derive(Debug, Clone)]
pub enum Attempt {
    /// Without TLS.
    Plain,
    /// With TLS if Postgres offers it.
    IfOffered(Tls),
    /// With TLS.
    Secure(Tls),
}

/// A place and how it was spoken to: what is asked of it later (a cancel) goes the same way.
#[derive(Debug, Clone)]
pub struct Route {
    place: Place,
    tls: Option<Tls>,
}

/// Why a connection could not be secured.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// The connection failed, or the certificate is not right.
    #[error("{0}")]
    Handshake(#[from] io::Error),
    /// Postgres does not speak TLS.
    #[error("Postgres does not offer TLS, which the mode demands")]
    NotOffered,
    /// Something came in clear behind the answer: somebody may have put it there.
    #[error("unencrypted data behind the answer to SSLRequest")]
    Injected,
    /// The answer was neither yes nor no.
    #[error("{:?} is no answer to SSLRequest", *.0 as char)]
    Unexpected(u8),
    /// It did not choose the protocol, so it may be no Postgres.
    #[error("direct TLS without the protocol \"postgresql\" in ALPN")]
    NoAlpn,
}

impl SecureError {
    /// Whether another try may succeed without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Handshake(error) => error.kind() != io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

impl Security {
    /// Never TLS.
    pub const NONE: Self = Self(None);

    /// TLS as `mode` says.
    pub fn new(mode: TlsMode, negotiation: Negotiation, connector: &Arc<Connector>) -> Self {
        let tls = Tls {
            connector: Arc::clone(connector),
            negotiation,
            named: mode == TlsMode::VerifyFull,
        };
        Self((mode != TlsMode::Disable).then_some((mode, tls)))
    }

    /// What to try, and what then: as libpq, never TLS over a unix socket.
    pub fn attempts(&self, host: &Host) -> (Attempt, Option<Attempt>) {
        match &self.0 {
            Some((mode, tls)) if matches!(host, Host::Tcp(..)) => match mode {
                TlsMode::Disable => (Attempt::Plain, None),
                TlsMode::Allow => (Attempt::Plain, Some(Attempt::Secure(tls.clone()))),
                TlsMode::Prefer => (Attempt::IfOffered(tls.clone()), Some(Attempt::Plain)),
                TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => {
                    (Attempt::Secure(tls.clone()), None)
                }
            },
            _ => (Attempt::Plain, None),
        }
    }
}

/// The same if connections made by one are as good as those made by the other.
impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        let same = |ours: &Tls, theirs: &Tls| {
            Arc::ptr_eq(&ours.connector, &theirs.connector)
                && ours.negotiation == theirs.negotiation
        };
        match (&self.0, &other.0) {
            (Some((mode, ours)), Some((other, theirs))) => mode == other && same(ours, theirs),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Route {
    /// Where it leads.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Secures a connection to `place` as `attempt` says, and tells how that came out.
    pub async fn secure(
        place: Place,
        stream: Stream,
        attempt: Attempt,
    ) -> Result<(Stream, Self), SecureError> {
        match attempt {
            Attempt::Plain => Ok((stream, Self { place, tls: None })),
            Attempt::Secure(tls) => {
                let stream = tls.secure(stream, &place.host, true).await?;
                let tls = Some(tls);
                Ok((stream, Self { place, tls }))
            }
            Attempt::IfOffered(tls) => {
                let stream = tls.secure(stream, &place.host, false).await?;
                let tls = stream.tls().is_some().then_some(tls);
                Ok((stream, Self { place, tls }))
            }
        }
    }

    /// Opens another connection of the same kind.
    pub async fn connect(&self, tcp: &Tcp) -> io::Result<Stream> {
        let stream = self.place.connect(tcp).await?;
        match &self.tls {
            Some(tls) => tls
                .secure(stream, &self.place.host, true)
                .await
                .map_err(io::Error::other),
            None => Ok(stream),
        }
    }
}

impl Tls {
    /// Asks for TLS and shakes hands. `demand`: no is no answer.
    async fn secure(
        &self,
        mut stream: Stream,
        host: &Host,
        demand: bool,
    ) -> Result<Stream, SecureError> {
        if self.negotiation == Negotiation::Postgres && !ask(&mut stream).await? {
            return if demand {
                Err(SecureError::NotOffered)
            } else {
                Ok(stream)
            };
        }
        let (Stream::Tcp(socket), Host::Tcp(name, _)) = (stream, host) else {
            return Err(SecureError::NotOffered);
        };
        let stream = self.connector.connect(socket, name, self.named).await?;
        if self.negotiation == Negotiation::Direct && stream.alpn() != Some(ALPN) {
            return Err(SecureError::NoAlpn);
        }
        Ok(Stream::Tls(stream))
    }
}

/// Whether Postgres is ready for TLS.
async fn ask(stream: &mut Stream) -> Result<bool, SecureError> {
    stream.write_all(&ssl_request()).await?;
    // More than the one byte that may come: what stands behind it in clear must not be taken for what comes under TLS.
    let mut answer = [0; 2];
    match (stream.read(&mut answer).await?, answer[0]) {
        (0, _) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        (1, b'S') => Ok(true),
        (1, b'N') => Ok(false),
        (_, b'S' | b'N') => Err(SecureError::Injected),
        (_, other) => Err(SecureError::Unexpected(other)),
    }
}

/// What channel binding with this server must hold; `None` without TLS, and where no hash is defined.
pub fn binding(stream: &Stream) -> Option<Box<[u8]>> {
    stream.tls()?.peer_certificate().and_then(end_point)
}
