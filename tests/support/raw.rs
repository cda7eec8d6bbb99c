//! A client that sees every message: for tests of the protocol itself.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::{md5_hash, sasl};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::wait::PATIENCE;

/// One row, as text; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: char,
    pub body: Vec<u8>,
}

impl Message {
    /// The error or notice in an `E` or `N` message.
    pub fn error(&self) -> ServerError {
        ServerError {
            body: self.body.clone(),
            fields: self
                .body
                .split(|byte| *byte == 0)
                .filter_map(|field| {
                    let (kind, text) = field.split_first()?;
                    Some((
                        char::from(*kind),
                        String::from_utf8_lossy(text).into_owned(),
                    ))
                })
                .collect(),
        }
    }

    /// The columns of a `D` message.
    pub fn row(&self) -> Row {
        let mut rest = &self.body[2..];
        let mut row = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
                let (value, tail) = tail.split_at_checked(length).unwrap_or_else(|| {
                    panic!("malformed row: {}", String::from_utf8_lossy(&self.body))
                });
                row.push(Some(String::from_utf8_lossy(value).into_owned()));
                rest = tail;
            } else {
                row.push(None);
                rest = tail;
            }
        }
        row
    }

    /// The text of a `C` message.
    pub fn command(&self) -> String {
        String::from_utf8_lossy(self.body.strip_suffix(b"\0").unwrap_or(&self.body)).into_owned()
    }
}

/// What the server said instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// By the protocol's letter: `S` severity, `C` code, `M` message, ...
    pub fields: BTreeMap<char, String>,
    /// The message as it came.
    pub body: Vec<u8>,
}

impl ServerError {
    pub fn code(&self) -> &str {
        self.fields.get(&'C').map_or("", String::as_str)
    }

    pub fn text(&self) -> &str {
        self.fields.get(&'M').map_or("", String::as_str)
    }

    pub fn severity(&self) -> &str {
        self.fields.get(&'S').map_or("", String::as_str)
    }

    /// The client itself has gone.
    pub fn gone() -> Self {
        Self::lost(&io::Error::other("the client went away"))
    }

    /// A failure of the connection itself; its code is no SQLSTATE.
    fn lost(error: &io::Error) -> Self {
        Self {
            body: Vec::new(),
            fields: BTreeMap::from([('C', "LOST".to_owned()), ('M', error.to_string())]),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity(), self.code(), self.text())
    }
}

impl From<io::Error> for ServerError {
    fn from(error: io::Error) -> Self {
        Self::lost(&error)
    }
}

/// Messages to be sent in one piece.
#[derive(Debug, Default, Clone)]
pub struct Batch(Vec<u8>);

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn message(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.push(tag);
        let length = u32::try_from(body.len() + 4).expect("test messages are small");
        self.0.extend(length.to_be_bytes());
        self.0.extend(body);
        self
    }

    pub fn query(self, sql: &str) -> Self {
        self.message(b'Q', &text(&[sql]))
    }

    pub fn parse(self, name: &str, sql: &str) -> Self {
        let mut body = text(&[name, sql]);
        body.extend(0_u16.to_be_bytes());
        self.message(b'P', &body)
    }

    /// Parameters and results as text.
    pub fn bind(self, portal: &str, statement: &str, parameters: &[&str]) -> Self {
        let mut body = text(&[portal, statement]);
        body.extend(0_u16.to_be_bytes());
        let count = u16::try_from(parameters.len()).expect("test statements are small");
        body.extend(count.to_be_bytes());
        for parameter in parameters {
            let length = u32::try_from(parameter.len()).expect("test parameters are small");
            body.extend(length.to_be_bytes());
            body.extend(parameter.as_bytes());
        }
        body.extend(0_u16.to_be_bytes());
        self.message(b'B', &body)
    }

    pub fn describe_statement(self, name: &str) -> Self {
        self.message(b'D', &[b"S", name.as_bytes(), b"\0"].concat())
    }

    pub fn describe_portal(self, name: &str) -> Self {
        self.message(b'D', &[b"P", name.as_bytes(), b"\0"].concat())
    }

    pub fn execute(self, portal: &str) -> Self {
        self.execute_rows(portal, 0)
    }

    /// At most `rows` of them; 0 = all.
    pub fn execute_rows(self, portal: &str, rows: u32) -> Self {
        let mut body = text(&[portal]);
        body.extend(rows.to_be_bytes());
        self.message(b'E', &body)
    }

    pub fn close_statement(self, name: &str) -> Self {
        self.message(b'C', &[b"S", name.as_bytes(), b"\0"].concat())
    }

    pub fn sync(self) -> Self {
        self.message(b'S', b"")
    }

    pub fn flush(self) -> Self {
        self.message(b'H', b"")
    }

    pub fn copy_data(self, data: &[u8]) -> Self {
        self.message(b'd', data)
    }

    pub fn copy_done(self) -> Self {
        self.message(b'c', b"")
    }

    pub fn copy_fail(self, reason: &str) -> Self {
        self.message(b'f', &text(&[reason]))
    }

    pub fn terminate(self) -> Self {
        self.message(b'X', b"")
    }

    /// These messages, and then those.
    pub fn then(mut self, more: &Self) -> Self {
        self.0.extend(&more.0);
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn text(parts: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend(part.as_bytes());
        body.push(0);
    }
    body
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection that speaks the protocol message by message. Reading panics when nothing comes for [`PATIENCE`].
pub struct Raw {
    stream: Stream,
    received: Vec<u8>,
    /// How much at the front of `received` has been read.
    taken: usize,
    /// What the server told during login and since.
    pub parameters: BTreeMap<String, String>,
    /// Process id and secret of BackendKeyData.
    pub key: Option<(i32, Vec<u8>)>,
    /// The tags of all messages so far.
    pub heard: String,
    /// How often its password was to be hashed, if it was shown by SCRAM.
    pub iterations: Option<u32>,
}

impl Raw {
    /// Connects and sends nothing.
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .unwrap_or_else(|error| panic!("cannot connect to port {port}: {error}"));
        Self::over_tcp(stream)
    }

    pub fn over_tcp(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a fresh socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a fresh socket");
        Self::over(Stream::Tcp(stream))
    }

    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(Stream::Unix(stream)))
    }

    /// Goes on under TLS: with `localhost`, on a connection over which nothing more than an SSLRequest and its answer was said.
    pub fn secure(self, config: Arc<ClientConfig>) -> io::Result<Self> {
        let Stream::Tcp(mut socket) = self.stream else {
            panic!("TLS is spoken over TCP");
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self::over(Stream::Tls(Box::new(StreamOwned::new(
            session, socket,
        )))))
    }

    /// Connects, asks for TLS and shakes hands.
    #[track_caller]
    pub fn connect_tls(port: u16, config: Arc<ClientConfig>) -> io::Result<Self> {
        let mut raw = Self::connect(port);
        raw.write(&special_request(80_877_103))?;
        assert_eq!(raw.read_byte(), 'S', "TLS is offered");
        raw.secure(config)
    }

    /// The TLS of the connection.
    pub fn tls(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Tls(stream) => &stream.conn,
            _ => panic!("there is no TLS"),
        }
    }

    fn over(stream: Stream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            taken: 0,
            parameters: BTreeMap::new(),
            key: None,
            heard: String::new(),
            iterations: None,
        }
    }

    /// Connects and logs in, without a password.
    #[track_caller]
    pub fn login(port: u16, user: &str, database: &str) -> Self {
        Self::try_login(port, user, database, None)
            .unwrap_or_else(|error| panic!("cannot log in as {user} to {database}: {error}"))
    }

    /// Connects and logs in with an application_name.
    #[track_caller]
    pub fn login_as(port: u16, user: &str, database: &str, application: &str) -> Self {
        let mut raw = Self::connect(port);
        raw.log_in(
            &[
                ("user", user),
                ("database", database),
                ("application_name", application),
            ],
            None,
        )
        .unwrap_or_else(|error| panic!("cannot log in as {user} to {database}: {error}"));
        raw
    }

    #[track_caller]
    pub fn try_login(
        port: u16,
        user: &str,
        database: &str,
        password: Option<&str>,
    ) -> Result<Self, ServerError> {
        let mut raw = Self::connect(port);
        raw.log_in(&[("user", user), ("database", database)], password)?;
        Ok(raw)
    }

    /// Startup packet and whatever authentication is asked for, up to the first ReadyForQuery.
    pub fn log_in(
        &mut self,
        startup: &[(&str, &str)],
        password: Option<&str>,
    ) -> Result<(), ServerError> {
        self.write(&startup_packet(196_608, startup))?;
        let user = startup
            .iter()
            .find(|(name, _)| *name == "user")
            .map_or("", |(_, value)| *value);
        self.authenticate(user, password.unwrap_or(""))?;
        loop {
            let message = self.receive()?;
            match message.tag {
                'E' => return Err(message.error()),
                'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    fn authenticate(&mut self, user: &str, password: &str) -> Result<(), ServerError> {
        let mut scram = None;
        loop {
            let message = self.receive()?;
            match message.tag {
                'E' => return Err(message.error()),
                'R' => {}
                // NegotiateProtocolVersion and notices may come in between.
                _ => continue,
            }
            let (kind, rest) = message.body.split_first_chunk::<4>().expect("a kind");
            match i32::from_be_bytes(*kind) {
                0 => return Ok(()),
                3 => self.answer(&text(&[password]))?,
                5 => {
                    let salt = rest.try_into().expect("four bytes of salt");
                    let hash = md5_hash(user.as_bytes(), password.as_bytes(), salt);
                    self.answer(&text(&[&hash]))?;
                }
                10 => {
                    let exchange = sasl::ScramSha256::new(
                        password.as_bytes(),
                        sasl::ChannelBinding::unsupported(),
                    );
                    let first = exchange.message();
                    let mut body = text(&["SCRAM-SHA-256"]);
                    body.extend(u32::try_from(first.len()).expect("short").to_be_bytes());
                    body.extend(first);
                    self.answer(&body)?;
                    scram = Some(exchange);
                }
                11 => {
                    let first = String::from_utf8_lossy(rest);
                    let mut parts = first.split(',');
                    let iterations = parts.find_map(|part| part.strip_prefix("i="));
                    self.iterations = iterations.and_then(|number| number.parse().ok());
                    let exchange = scram.as_mut().expect("SASL was begun");
                    exchange.update(rest)?;
                    let last = exchange.message().to_vec();
                    self.answer(&last)?;
                }
                12 => scram.as_mut().expect("SASL was begun").finish(rest)?,
                other => panic!("authentication {other} is not known here"),
            }
        }
    }

    fn answer(&mut self, body: &[u8]) -> io::Result<()> {
        self.write(Batch::new().message(b'p', body).bytes())
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    #[track_caller]
    pub fn send(&mut self, batch: &Batch) {
        self.write(batch.bytes())
            .unwrap_or_else(|error| panic!("cannot send: {error}"));
    }

    /// One byte outside the message format: the answer to SSLRequest and GSSENCRequest.
    #[track_caller]
    pub fn read_byte(&mut self) -> char {
        while self.received.len() == self.taken {
            assert!(
                self.fill().expect("readable") > 0,
                "closed instead of a byte"
            );
        }
        self.taken += 1;
        char::from(self.received[self.taken - 1])
    }

    /// The same, or `None` at the end of the stream.
    pub fn read_byte_if_any(&mut self) -> Option<char> {
        if self.received.len() == self.taken && !matches!(self.fill(), Ok(1..)) {
            return None;
        }
        self.taken += 1;
        Some(char::from(self.received[self.taken - 1]))
    }

    /// The next message; panics at the end of the stream.
    #[track_caller]
    pub fn read(&mut self) -> Message {
        self.receive()
            .unwrap_or_else(|error| panic!("no further message: {error}"))
    }

    /// Messages up to and including the first with this tag.
    #[track_caller]
    pub fn read_until(&mut self, tag: char) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.read());
            if messages.last().is_some_and(|message| message.tag == tag) {
                return messages;
            }
        }
    }

    /// Everything up to the end of the stream, in messages; a reset counts as the end.
    pub fn read_to_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok(message) = self.receive() {
            messages.push(message);
        }
        messages
    }

    /// Messages up to a proper end of the stream: under TLS, its close_notify.
    #[track_caller]
    pub fn receive_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            match self.receive() {
                Ok(message) => messages.push(message),
                Err(error) => {
                    assert!(error.text().contains("was closed"), "{error}");
                    return messages;
                }
            }
        }
    }

    /// Bytes up to the end of the stream, outside the message format.
    pub fn read_bytes_to_end(&mut self) -> Vec<u8> {
        while matches!(self.fill(), Ok(count) if count > 0) {}
        self.received.split_off(self.taken)
    }

    /// The tags of the messages, ReadyForQuery with its state: `1 2 D C Z(I)` and so on, without parameters and notices.
    #[track_caller]
    pub fn tags_until_ready(&mut self) -> String {
        let messages = self.read_until('Z');
        tags(&messages)
    }

    /// Is there a message, or the end of the stream, within this time?
    pub fn hears_within(&mut self, time: Duration) -> bool {
        if self.whole_message().is_some() {
            return true;
        }
        self.set_read_timeout(time);
        let heard = match self.fill() {
            Ok(_) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ),
        };
        self.set_read_timeout(PATIENCE);
        heard
    }

    /// Reading and writing fail when nothing moves for this time.
    pub fn set_patience(&self, time: Duration) {
        self.set_read_timeout(time);
        match &self.stream {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(time)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(time)),
            Stream::Tls(stream) => stream.sock.set_write_timeout(Some(time)),
        }
        .expect("an open socket");
    }

    fn set_read_timeout(&self, time: Duration) {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(time)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(time)),
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(time)),
        }
        .expect("an open socket");
    }

    /// Runs a simple query; gives the rows of all its statements.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>, ServerError> {
        self.write(Batch::new().query(sql).bytes())?;
        self.rows()
    }

    /// Rows up to ReadyForQuery, or the error in between.
    pub fn rows(&mut self) -> Result<Vec<Row>, ServerError> {
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let message = match self.receive() {
                Ok(message) => message,
                // A FATAL error comes before the end of the stream.
                Err(lost) => return Err(failure.unwrap_or(lost)),
            };
            match message.tag {
                'D' => rows.push(message.row()),
                'E' => failure = Some(message.error()),
                'Z' => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Bodies of the NotificationResponses up to ReadyForQuery.
    #[track_caller]
    pub fn notifications(&mut self) -> Vec<Vec<u8>> {
        let messages = self.read_until('Z').into_iter();
        let notifications = messages.filter(|message| message.tag == 'A');
        notifications.map(|message| message.body).collect()
    }

    /// The one value that a query gives.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self
            .query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_default(),
            _ => panic!("{sql}: {} rows where one value was expected", rows.len()),
        }
    }

    /// Runs a query that must fail.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> ServerError {
        match self.query(sql) {
            Ok(_) => panic!("{sql}: succeeded where an error was expected"),
            Err(error) => error,
        }
    }

    /// The process that serves this client now.
    #[track_caller]
    pub fn backend(&mut self) -> String {
        self.value("select pg_backend_pid()")
    }

    /// Says goodbye and waits until the other side has closed.
    pub fn goodbye(mut self) {
        let _ = self.write(Batch::new().terminate().bytes());
        self.read_to_end();
    }

    /// Closes the sending half.
    pub fn half_close(&self) {
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Write),
        };
    }

    /// Closes by RST: the peer hears "connection reset".
    pub fn reset(self) {
        self.reset_on_close();
    }

    /// Whenever it is dropped, it will be by RST.
    pub fn reset_on_close(&self) {
        if let Stream::Tcp(stream) = &self.stream {
            socket2::SockRef::from(stream)
                .set_linger(Some(Duration::ZERO))
                .expect("an open socket");
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Unix(_) => panic!("this is a unix socket"),
            Stream::Tls(stream) => &stream.sock,
        }
    }

    /// The next message, or how the connection was lost.
    pub fn receive(&mut self) -> Result<Message, ServerError> {
        loop {
            if let Some(total) = self.whole_message() {
                let message = &self.received[self.taken..][..total];
                let tag = char::from(message[0]);
                let body = message[5..].to_vec();
                self.taken += total;
                self.note(tag, &body);
                return Ok(Message { tag, body });
            }
            if self.fill()? == 0 {
                let end = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed");
                return Err(end.into());
            }
        }
    }

    /// The length of the first message, if all of it is here.
    fn whole_message(&self) -> Option<usize> {
        let rest = &self.received[self.taken..];
        let header = rest.first_chunk::<5>()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let total = usize::try_from(length).expect("64 bits") + 1;
        (rest.len() >= total).then_some(total)
    }

    fn note(&mut self, tag: char, body: &[u8]) {
        self.heard.push(tag);
        match tag {
            'S' => {
                let mut parts = body.split(|byte| *byte == 0);
                let mut next = || String::from_utf8_lossy(parts.next().unwrap_or(b"")).into_owned();
                self.parameters.insert(next(), next());
            }
            'K' => {
                if let Some((process, secret)) = body.split_first_chunk::<4>() {
                    self.key = Some((i32::from_be_bytes(*process), secret.to_vec()));
                }
            }
            _ => {}
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        self.received.drain(..self.taken);
        self.taken = 0;
        let mut chunk = vec![0; 64 * 1024];
        let count = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut chunk),
                Stream::Unix(stream) => stream.read(&mut chunk),
                Stream::Tls(stream) => stream.read(&mut chunk),
            };
            // A process that is stopped and goes on finds its read with a time limit interrupted.
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.received.extend(&chunk[..count]);
        Ok(count)
    }
}

/// The tags of messages in one line, ReadyForQuery with its state, without parameters and notices.
pub fn tags(messages: &[Message]) -> String {
    let words: Vec<String> = messages
        .iter()
        .filter(|message| !matches!(message.tag, 'S' | 'N'))
        .map(|message| match (message.tag, message.body.as_slice()) {
            ('Z', [state]) => format!("Z({})", char::from(*state)),
            (tag, _) => tag.to_string(),
        })
        .collect();
    words.join(" ")
}

/// A startup packet for this protocol version.
pub fn startup_packet(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(text(&[name, value]));
    }
    body.push(0);
    with_length(&body)
}

/// SSLRequest, GSSENCRequest.
pub fn special_request(code: u32) -> Vec<u8> {
    with_length(&code.to_be_bytes())
}

/// CancelRequest.
pub fn cancel_request(process: i32, secret: &[u8]) -> Vec<u8> {
    let mut body = 80_877_102_u32.to_be_bytes().to_vec();
    body.extend(process.to_be_bytes());
    body.extend(secret);
    with_length(&body)
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("test packets are small");
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend(body);
    packet
}
