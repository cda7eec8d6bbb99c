//! A connection's first packets, up to the startup message (manual, "Start-up", "Canceling Requests in Progress").

use std::io;

use crate::net::listen::Peer;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::wire::reply::{Report, Severity, SqlState};
use crate::wire::startup::{CancelKey, Initial, Startup, StartupError, body_len, parse};

/// Encryption requests before a startup packet: one for GSSAPI, one for TLS. More is no client's way.
const ENCRYPTION_REQUESTS: u32 = 2;

/// A client that said who it is; TLS is settled.
#[derive(Debug)]
pub struct Greeted {
    /// Its connection.
    pub packets: Packets<Stream>,
    /// Where it came from.
    pub peer: Peer,
    /// What it asked for.
    pub startup: Startup,
}

/// What a connection is for.
#[derive(Debug)]
pub enum Greeting {
    /// A session.
    Startup(Box<Greeted>),
    /// Stopping another session's query.
    Cancel(CancelKey),
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
}

/// Reads up to the startup message or the cancel request.
pub async fn greet(stream: Stream, peer: Peer) -> Result<Greeting, GreetError> {
    let mut packets = Packets::new(stream);
    match first_packet(&mut packets).await {
        Ok(Initial::Cancel(key)) => Ok(Greeting::Cancel(key)),
        Ok(Initial::Startup(startup)) => Ok(Greeting::Startup(Box::new(Greeted {
            packets,
            peer,
            startup,
        }))),
        Ok(Initial::SslRequest | Initial::GssEncRequest) => Err(GreetError::Insistent),
        Err(GreetError::Startup(error)) => {
            let code = match error {
                StartupError::Version(..) => SqlState::NOT_SUPPORTED,
                StartupError::NoUser => SqlState::INVALID_AUTHORIZATION,
                _ => SqlState::PROTOCOL_VIOLATION,
            };
            packets
                .write(&Report::new(code, error.to_string()).error(Severity::Fatal))
                .await?;
            Err(error.into())
        }
        Err(error) => Err(error),
    }
}

/// The first packet that is no encryption request.
async fn first_packet(packets: &mut Packets<Stream>) -> Result<Initial, GreetError> {
    for _ in 0..=ENCRYPTION_REQUESTS {
        let length = packets.array().await?;
        let body = packets.bytes(body_len(length)?).await?;
        match parse(&body)? {
            Initial::SslRequest | Initial::GssEncRequest => packets.write(b"N").await?,
            initial => return Ok(initial),
        }
    }
    Err(GreetError::Insistent)
}
