//! A TLS connection without its socket: records in, plaintext out, and the other way round.

use std::io;
use std::mem;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{CommonState, Error};

/// Room for a close_notify in its record.
const GOODBYE: usize = 128;

/// Where what the peer says is put as it is opened. Gives how much it took.
pub(super) trait Reader {
    fn take(&mut self, plain: &[u8]) -> usize;
    fn is_full(&self) -> bool;
}

impl Reader for tokio::io::ReadBuf<'_> {
    fn take(&mut self, plain: &[u8]) -> usize {
        let taken = plain.len().min(self.remaining());
        self.put_slice(&plain[..taken]);
        taken
    }

    fn is_full(&self) -> bool {
        self.remaining() == 0
    }
}

/// Takes nothing: all is kept until there is a reader.
pub(super) struct NoReader;

impl Reader for NoReader {
    fn take(&mut self, _plain: &[u8]) -> usize {
        0
    }

    fn is_full(&self) -> bool {
        false
    }
}

/// Bytes of which some are done with. Owns no memory when all are.
#[derive(Debug, Default)]
pub(super) struct Rest {
    bytes: Vec<u8>,
    done: usize,
}

impl Rest {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.done += count;
        if self.done >= self.bytes.len() {
            *self = Self::default();
        }
    }

    /// Room for `size` more bytes, which `write` fills.
    fn grow(&mut self, size: usize, write: impl FnOnce(&mut [u8]) -> usize) {
        let before = self.bytes.len();
        self.bytes.resize(before + size, 0);
        let written = write(&mut self.bytes[before..]);
        self.bytes.truncate(before + written);
    }
}

/// The keys and the state of the protocol.
enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
    /// It failed. rustls must not be asked again: what it wants to see once more is gone.
    Over,
}

/// A TLS connection and what it could not pass on yet. Idle it owns no buffer.
pub(super) struct Records {
    session: Session,
    /// What came from the peer and is not opened yet: mostly the beginning of a record.
    sealed: Vec<u8>,
    /// What was opened and found no room at the reader's.
    opened: Rest,
    /// What is to be sent as it is.
    unsent: Rest,
    /// The peer said goodbye.
    peer_closed: bool,
    /// We said goodbye.
    closed: bool,
}

/// What is wanted once data may be sent.
enum Wish<'a> {
    Nothing,
    Seal(&'a [u8], &'a mut [u8]),
    Goodbye(&'a mut [u8]),
}

/// How far rustls came.
enum Step {
    /// There may be more to do.
    Again,
    /// Records were opened. There is more to do only if there is more to open.
    Opened,
    /// More bytes are needed.
    Blocked,
    /// Nothing is left to be opened; this many bytes were written for a [`Wish`].
    Done(usize),
    /// The peer said goodbye.
    PeerClosed,
}

impl Records {
    /// Begins as a client.
    pub(super) fn client(session: UnbufferedClientConnection) -> Self {
        Self::new(Session::Client(session))
    }

    /// Begins as a server, of whose client these bytes are known.
    pub(super) fn server(session: UnbufferedServerConnection, said: &[u8]) -> Self {
        Self {
            sealed: said.to_vec(),
            ..Self::new(Session::Server(session))
        }
    }

    fn new(session: Session) -> Self {
        Self {
            session,
            sealed: Vec::new(),
            opened: Rest::default(),
            unsent: Rest::default(),
            peer_closed: false,
            closed: false,
        }
    }

    /// What rustls tells of the connection, unless it failed.
    pub(super) fn state(&self) -> Option<&CommonState> {
        match &self.session {
            Session::Client(session) => Some(session),
            Session::Server(session) => Some(session),
            Session::Over => None,
        }
    }

    /// Whether the handshake is still going on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.state().is_some_and(CommonState::is_handshaking)
    }

    /// Whether it failed.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.session, Session::Over)
    }

    /// Whether rustls has something to send.
    fn wants_write(&self) -> bool {
        self.state().is_some_and(CommonState::wants_write)
    }

    /// Whether something can be read without anything more from the peer.
    pub(super) fn is_readable(&self) -> bool {
        !self.opened.is_empty() || self.peer_closed || has_whole_record(&self.sealed)
    }

    /// Whether nothing of the peer is kept.
    pub(super) fn is_quiet(&self) -> bool {
        self.opened.is_empty() && self.sealed.is_empty() && !self.peer_closed
    }

    /// Whether the peer said goodbye.
    pub(super) fn is_peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// What is to be sent.
    pub(super) fn unsent(&self) -> &Rest {
        &self.unsent
    }

    /// See [`Self::unsent`].
    pub(super) fn unsent_mut(&mut self) -> &mut Rest {
        &mut self.unsent
    }

    /// Passes on what was opened earlier.
    pub(super) fn pass_opened(&mut self, reader: &mut impl Reader) {
        let taken = reader.take(self.opened.get());
        self.opened.advance(taken);
    }

    /// Moves what is not opened yet to the front of `scratch`, and says how much that is.
    pub(super) fn lay_out(&mut self, scratch: &mut [u8]) -> usize {
        let sealed = mem::take(&mut self.sealed);
        scratch[..sealed.len()].copy_from_slice(&sealed);
        sealed.len()
    }

    /// Keeps what could not be opened.
    pub(super) fn keep(&mut self, sealed: &[u8]) {
        self.sealed = sealed.to_vec();
    }

    /// Adds what came from the peer.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.sealed.extend_from_slice(bytes);
    }

    /// Opens records at the front of `sealed` until the reader is full, and says how many bytes they had.
    pub(super) fn open(
        &mut self,
        sealed: &mut [u8],
        reader: &mut impl Reader,
    ) -> io::Result<usize> {
        let mut used = 0;
        while !reader.is_full() && !self.peer_closed {
            let (discard, step) = self.step(&mut sealed[used..], reader, &mut Wish::Nothing)?;
            used += discard;
            // To ask rustls once more costs as much as to open a small record.
            let done = match step {
                Step::Again | Step::PeerClosed => false,
                Step::Opened => used == sealed.len() && !self.wants_write(),
                Step::Blocked | Step::Done(_) => true,
            };
            if done {
                break;
            }
        }
        // Nothing that comes after the goodbye counts.
        Ok(if self.peer_closed { sealed.len() } else { used })
    }

    /// Opens what was heard, and keeps the plaintext until it is read.
    pub(super) fn open_heard(&mut self) -> io::Result<()> {
        let mut sealed = mem::take(&mut self.sealed);
        let used = self.open(&mut sealed, &mut NoReader)?;
        sealed.drain(..used);
        self.sealed = sealed;
        self.sealed.shrink_to_fit();
        Ok(())
    }

    /// Seals `plain` into `out` and says how long that is. What [`Self::unsent`] holds then goes before it.
    pub(super) fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> io::Result<usize> {
        self.fulfil(&mut Wish::Seal(plain, out))
    }

    /// Says goodbye, once.
    pub(super) fn close(&mut self) -> io::Result<()> {
        if mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let mut goodbye = [0; GOODBYE];
        let length = self.fulfil(&mut Wish::Goodbye(&mut goodbye))?;
        self.unsent.add(&goodbye[..length]);
        Ok(())
    }

    /// rustls lets nothing be sent before everything that was heard is opened.
    fn fulfil(&mut self, wish: &mut Wish<'_>) -> io::Result<usize> {
        let mut sealed = mem::take(&mut self.sealed);
        loop {
            let (discard, step) = self.step(&mut sealed, &mut NoReader, wish)?;
            sealed.drain(..discard);
            match step {
                Step::Again | Step::Opened | Step::PeerClosed => {}
                Step::Blocked => return Err(io::ErrorKind::NotConnected.into()),
                Step::Done(length) => {
                    self.sealed = sealed;
                    return Ok(length);
                }
            }
        }
    }

    fn step(
        &mut self,
        sealed: &mut [u8],
        reader: &mut impl Reader,
        wish: &mut Wish<'_>,
    ) -> io::Result<(usize, Step)> {
        let Self {
            session,
            opened,
            unsent,
            ..
        } = self;
        let mut out = Out {
            reader,
            opened,
            unsent,
        };
        let (discard, step) = match session {
            Session::Client(session) => out.handle(session.process_tls_records(sealed), wish),
            Session::Server(session) => out.handle(session.process_tls_records(sealed), wish),
            Session::Over => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        match step {
            Ok(step) => {
                self.peer_closed |= matches!(step, Step::PeerClosed);
                Ok((discard, step))
            }
            Err(error) => {
                self.fail();
                Err(broken(error))
            }
        }
    }

    /// Takes the alert that tells the peer what is wrong, and is over.
    fn fail(&mut self) {
        let (opened, unsent) = (&mut self.opened, &mut self.unsent);
        let mut out = Out {
            reader: &mut NoReader,
            opened,
            unsent,
        };
        // What rustls has to send it gives before it looks at any input.
        match &mut self.session {
            Session::Client(session) => {
                while session.wants_write() {
                    let _ = out.handle(session.process_tls_records(&mut []), &mut Wish::Nothing);
                }
            }
            Session::Server(session) => {
                while session.wants_write() {
                    let _ = out.handle(session.process_tls_records(&mut []), &mut Wish::Nothing);
                }
            }
            Session::Over => {}
        }
        self.session = Session::Over;
    }
}

/// Where the things go that rustls gives.
struct Out<'a, R> {
    reader: &'a mut R,
    opened: &'a mut Rest,
    unsent: &'a mut Rest,
}

impl<R: Reader> Out<'_, R> {
    fn handle<Data>(
        &mut self,
        status: UnbufferedStatus<'_, '_, Data>,
        wish: &mut Wish<'_>,
    ) -> (usize, Result<Step, Error>) {
        let mut discard = status.discard;
        let step = match status.state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        self.pass(record.payload);
                    }
                    Some(Err(error)) => break Err(error),
                    None => break Ok(Step::Opened),
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
                    data.encode(&mut [])
                {
                    self.unsent
                        .grow(required_size, |room| data.encode(room).unwrap_or(0));
                }
                Ok(Step::Again)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // It lies in `unsent`, in its order.
                data.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::WriteTraffic(traffic)) => grant(traffic, wish).map(Step::Done),
            Ok(ConnectionState::PeerClosed) => Ok(Step::PeerClosed),
            // Early data is not accepted, and so never comes.
            Ok(_) => Ok(Step::Blocked),
            Err(error) => Err(error),
        };
        (discard, step)
    }

    fn pass(&mut self, plain: &[u8]) {
        let taken = if self.opened.is_empty() {
            self.reader.take(plain)
        } else {
            0
        };
        self.opened.add(&plain[taken..]);
    }
}

fn grant<Data>(mut traffic: WriteTraffic<'_, Data>, wish: &mut Wish<'_>) -> Result<usize, Error> {
    let written = match wish {
        Wish::Nothing => return Ok(0),
        Wish::Seal(plain, out) => traffic.encrypt(plain, out),
        Wish::Goodbye(out) => traffic.queue_close_notify(out),
    };
    written.map_err(|error| match error {
        EncryptError::InsufficientSize(_) => Error::General("no room for a record".to_owned()),
        EncryptError::EncryptExhausted => Error::EncryptError,
    })
}

/// Whether a whole record stands at the front: its length is in the last two of its five first bytes.
fn has_whole_record(sealed: &[u8]) -> bool {
    let length = |header: &[u8; 5]| usize::from(u16::from_be_bytes([header[3], header[4]]));
    sealed
        .first_chunk()
        .is_some_and(|header| sealed.len() >= 5 + length(header))
}

/// Why there is no TLS any more. A certificate that is not right is told in OpenSSL's words, which people look for.
fn broken(error: rustls::Error) -> io::Error {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            let text = format!("certificate verify failed: {why}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// OpenSSL's words for what has broken, where it has any.
pub fn of_openssl(error: &io::Error) -> Option<&'static str> {
    use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::NoCertificatesPresented => "peer did not return a certificate",
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => "no shared cipher",
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => "unsupported protocol",
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "wrong version number",
        Error::AlertReceived(AlertDescription::UnknownCA) => "tlsv1 alert unknown ca",
        Error::AlertReceived(AlertDescription::BadCertificate) => "sslv3 alert bad certificate",
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "sslv3 alert certificate expired"
        }
        Error::AlertReceived(AlertDescription::CertificateUnknown) => {
            "sslv3 alert certificate unknown"
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => "tlsv1 alert protocol version",
        Error::AlertReceived(AlertDescription::HandshakeFailure) => "sslv3 alert handshake failure",
        _ => return None,
    })
}
