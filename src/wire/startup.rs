//! The first packets of a connection: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.

use super::reply::Message;

/// The longest startup packet that is read. Postgres itself stops at 10,000 bytes; the margin is for what only a
/// pooler understands.
pub const LONGEST_STARTUP: usize = 16 * 1024;

/// The longest cancel key of protocol 3.2 in bytes (Postgres manual, "BackendKeyData").
pub const LONGEST_KEY: usize = 256;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const MAJOR: u32 = 3;

/// The newest minor protocol version that is spoken: with 3.2 cancel keys may be long (Postgres manual, "Protocol Versions").
pub const NEWEST_MINOR: u16 = 2;

/// The length of a secret that is given to a client, by the minor version that it speaks.
pub const fn secret_length(minor: u16) -> usize {
    if minor >= 2 { 32 } else { 4 }
}

/// Why a startup packet was refused. The text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Too short to be one, or too long to be read.
    #[error("invalid length of startup packet")]
    Length,
    /// Another major version.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{NEWEST_MINOR}")]
    Version(u16, u16),
    /// The list of parameters does not end with an empty name.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Terminator,
    /// A name or value is no UTF-8.
    #[error("invalid byte sequence in startup packet")]
    Encoding,
    /// `user` is missing.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A cancel request with an empty or oversized key.
    #[error("invalid length of query cancel packet")]
    CancelKey,
}

/// The first packet, or the one after a refused or settled encryption request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initial {
    /// May we speak TLS?
    SslRequest,
    /// May we speak GSSAPI?
    GssEncRequest,
    /// Stop what that session runs.
    Cancel(CancelKey),
    /// Log me in.
    Startup(Startup),
}

/// Names a session towards the process that issued it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// The process id as BackendKeyData gave it.
    pub pid: u32,
    /// The secret: 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Box<[u8]>,
}

/// The bits of a key that say how often a request with it may still be passed on. They are all set when it is given out.
const HOPS: u8 = 0b11;

/// Where they are: in the last byte of the secret that protocol 3.0 has.
const HOPS_AT: usize = 3;

/// Where several processes stand behind one address, a key says whose it is, so that a cancel request finds its way. The layout is
/// PgBouncer's, for both to be peers of each other: the id of the process is in the second and third byte of the process id, the
/// lower half first, and what is left of the process id is random.
impl CancelKey {
    /// The process id and the secret that a client of the process `peer` is told.
    pub fn among_peers(peer: u16, random: u32, mut secret: Box<[u8]>) -> Self {
        let [first, _, _, last] = random.to_be_bytes();
        let [low, high] = peer.to_le_bytes();
        if let Some(byte) = secret.get_mut(HOPS_AT) {
            *byte |= HOPS;
        }
        Self {
            // Process ids are positive int4 to most drivers.
            pid: u32::from_be_bytes([first & 0x7f, low, high, last]),
            secret,
        }
    }

    /// The id of the process that gave it out, if that has any.
    pub fn peer(&self) -> u16 {
        let [_, low, high, _] = self.pid.to_be_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The key for the next process; `None` if the request was passed on as often as it may be.
    pub fn passed_on(&self) -> Option<Self> {
        let mut next = self.clone();
        let byte = next.secret.get_mut(HOPS_AT)?;
        if *byte & HOPS == 0 {
            return None;
        }
        *byte -= 1;
        Some(next)
    }

    /// As it was given out, however often the request was passed on.
    #[must_use]
    pub fn as_given_out(&self) -> Self {
        let mut key = self.clone();
        if let Some(byte) = key.secret.get_mut(HOPS_AT) {
            *byte |= HOPS;
        }
        key
    }
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, ***)", self.pid)
    }
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The minor protocol version that was asked for.
    pub minor: u16,
    /// The role to log in as; never empty.
    pub user: String,
    /// The database; the user's name if the client named none.
    pub database: String,
    /// Every other parameter, in order.
    pub parameters: Vec<(String, String)>,
    /// Names of the `_pq_.` protocol options, none of which is understood.
    pub unknown_options: Vec<String>,
}

impl Startup {
    /// The last value given for a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The minor protocol version that is spoken.
    pub fn spoken(&self) -> u16 {
        self.minor.min(NEWEST_MINOR)
    }

    /// Whether it wants to speak the replication protocol. A value that Postgres does not know counts: Postgres says so.
    pub fn is_replication(&self) -> bool {
        let is_no = |value: &str| {
            let no = ["false", "off", "no", "0"];
            // Postgres takes the beginning of a word for the word, as long as no other begins so.
            no.iter().any(|word| word.eq_ignore_ascii_case(value))
                || matches!(
                    value.to_ascii_lowercase().as_str(),
                    "f" | "fa" | "fal" | "fals" | "of" | "n"
                )
        };
        self.parameter("replication")
            .is_some_and(|value| !is_no(value))
    }

    /// Answers a client that asked for more than there is; `None` if it did not.
    pub fn negotiate(&self) -> Option<Vec<u8>> {
        if self.minor <= NEWEST_MINOR && self.unknown_options.is_empty() {
            return None;
        }
        let mut message = Message::new(b'v').u32(MAJOR << 16 | u32::from(self.spoken()));
        message = message.u32(u32::try_from(self.unknown_options.len()).unwrap_or(u32::MAX));
        Some(
            self.unknown_options
                .iter()
                .fold(message, |message, name| message.text(name))
                .done(),
        )
    }
}

/// Body length of the packet whose first four bytes are `length`.
pub fn body_len(length: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length) as usize;
    if (8..=LONGEST_STARTUP).contains(&length) {
        Ok(length - 4)
    } else {
        Err(StartupError::Length)
    }
}

/// Reads the body of a packet, that is, what follows its length field.
pub fn parse(body: &[u8]) -> Result<Initial, StartupError> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Length)?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(Initial::SslRequest),
        GSSENC_REQUEST if rest.is_empty() => Ok(Initial::GssEncRequest),
        CANCEL_REQUEST => cancel(rest).map(Initial::Cancel),
        version => startup(version, rest).map(Initial::Startup),
    }
}

/// The bytes of an SSLRequest.
pub fn ssl_request() -> [u8; 8] {
    let [a, b, c, d] = SSL_REQUEST.to_be_bytes();
    [0, 0, 0, 8, a, b, c, d]
}

/// The bytes of a CancelRequest.
pub fn cancel_request(key: &CancelKey) -> Vec<u8> {
    let length = u32::try_from(12 + key.secret.len()).expect("a key has at most 256 bytes");
    [
        &length.to_be_bytes(),
        &CANCEL_REQUEST.to_be_bytes(),
        &key.pid.to_be_bytes(),
        &key.secret[..],
    ]
    .concat()
}

/// The bytes of a StartupMessage for this minor version.
pub fn startup_message<'a>(
    minor: u16,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend((MAJOR << 16 | u32::from(minor)).to_be_bytes());
    for (name, value) in parameters {
        for text in [name, value] {
            packet.extend(text.bytes().filter(|byte| *byte != 0));
            packet.push(0);
        }
    }
    packet.push(0);
    let length = u32::try_from(packet.len())
        .expect("parameters are bounded by the startup packet they came from");
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

fn cancel(rest: &[u8]) -> Result<CancelKey, StartupError> {
    let (pid, secret) = rest
        .split_first_chunk::<4>()
        .ok_or(StartupError::CancelKey)?;
    if secret.is_empty() || secret.len() > LONGEST_KEY {
        return Err(StartupError::CancelKey);
    }
    Ok(CancelKey {
        pid: u32::from_be_bytes(*pid),
        secret: secret.into(),
    })
}

fn startup(version: u32, rest: &[u8]) -> Result<Startup, StartupError> {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let (major, minor) = ((version >> 16) as u16, version as u16);
    if u32::from(major) != MAJOR {
        return Err(StartupError::Version(major, minor));
    }
    let (mut user, mut database) = (String::new(), String::new());
    let (mut parameters, mut unknown_options) = (vec![], vec![]);
    for (name, value) in pairs(rest)? {
        match name.as_str() {
            "user" => user = value,
            "database" => database = value,
            _ if name.starts_with("_pq_.") => unknown_options.push(name),
            _ => parameters.push((name, value)),
        }
    }
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if database.is_empty() {
        database.clone_from(&user);
    }
    Ok(Startup {
        minor,
        user,
        database,
        parameters,
        unknown_options,
    })
}

/// Name and value, each ended by a zero byte, until the empty name that must be the packet's last byte.
fn pairs(mut rest: &[u8]) -> Result<Vec<(String, String)>, StartupError> {
    let mut pairs = vec![];
    loop {
        let name = text(&mut rest)?;
        if name.is_empty() {
            return if rest.is_empty() {
                Ok(pairs)
            } else {
                Err(StartupError::Terminator)
            };
        }
        pairs.push((name, text(&mut rest)?));
    }
}

fn text(rest: &mut &[u8]) -> Result<String, StartupError> {
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(StartupError::Terminator)?;
    let text = std::str::from_utf8(&rest[..end]).map_err(|_| StartupError::Encoding)?;
    *rest = &rest[end + 1..];
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(minor: u16, tail: &[u8]) -> Vec<u8> {
        [&3u16.to_be_bytes(), &minor.to_be_bytes(), tail].concat()
    }

    #[test]
    fn replication_is_asked_for_by_anything_but_no() {
        let asks = |value: &str| {
            let startup = Startup {
                minor: 0,
                user: "a".into(),
                database: "a".into(),
                parameters: vec![("replication".into(), value.into())],
                unknown_options: vec![],
            };
            startup.is_replication()
        };
        for yes in ["true", "on", "yes", "1", "database", "t", "perhaps", ""] {
            assert!(asks(yes), "{yes}");
        }
        for no in ["false", "off", "no", "0", "FALSE", "f", "of", "n"] {
            assert!(!asks(no), "{no}");
        }
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        let Ok(Initial::Startup(startup)) = parse(&packet(0, b"user\0ann\0DateStyle\0ISO\0\0"))
        else {
            panic!()
        };
        assert_eq!(
            (startup.user.as_str(), startup.database.as_str()),
            ("ann", "ann")
        );
        assert_eq!(startup.parameter("DateStyle"), Some("ISO"));
        assert_eq!(startup.negotiate(), None);
    }

    #[test]
    fn malformed_packets_have_an_error_each() {
        let cases: [(&[u8], StartupError); 8] = [
            (b"", StartupError::Length),
            (&packet(0, b"user\0ann\0"), StartupError::Terminator),
            (&packet(0, b"user\0ann"), StartupError::Terminator),
            (&packet(0, b"user\0ann\0\0\0"), StartupError::Terminator),
            (&packet(0, b"user\0\xff\0\0"), StartupError::Encoding),
            (&packet(0, b"database\0x\0\0"), StartupError::NoUser),
            (&[0, 2, 0, 0, 0], StartupError::Version(2, 0)),
            (
                &[&CANCEL_REQUEST.to_be_bytes()[..], &[0; 4]].concat(),
                StartupError::CancelKey,
            ),
        ];
        for (body, error) in cases {
            assert_eq!(parse(body), Err(error), "{body:?}");
        }
    }

    #[test]
    fn an_ssl_request_is_read_as_one() {
        let request = ssl_request();
        assert_eq!(body_len(*request.first_chunk().unwrap()), Ok(4));
        assert_eq!(parse(&request[4..]), Ok(Initial::SslRequest));
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        for length in [0u32, 4, 7, 16 * 1024 + 1, u32::MAX] {
            assert_eq!(body_len(length.to_be_bytes()), Err(StartupError::Length));
        }
        assert_eq!(body_len(8u32.to_be_bytes()), Ok(4));
    }

    #[test]
    fn what_is_newer_than_3_2_is_negotiated_down_and_unknown_options_are_named() {
        type Case = (u16, &'static [u8], Option<&'static [u8]>, usize);
        let cases: [Case; 6] = [
            (0, b"", None, 4),
            (2, b"", None, 32),
            (9, b"", Some(b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0"), 32),
            (
                0,
                b"_pq_.x\0y\0",
                Some(b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0"),
                4,
            ),
            (
                2,
                b"_pq_.x\0y\0",
                Some(b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0"),
                32,
            ),
            (u16::MAX, b"", Some(b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0"), 32),
        ];
        for (minor, options, answer, secret) in cases {
            let body = packet(minor, &[b"user\0a\0", options, b"\0"].concat());
            let Ok(Initial::Startup(startup)) = parse(&body) else {
                panic!("{minor}")
            };
            assert_eq!(startup.negotiate().as_deref(), answer, "{minor}");
            assert_eq!(secret_length(startup.spoken()), secret, "{minor}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(user in "[a-z]{1,9}", database in "[a-z]{1,9}", value in "[^\0]{0,40}") {
            let bytes = startup_message(2, [("user", user.as_str()), ("database", &database), ("options", &value)]);
            let length = body_len(*bytes.first_chunk().unwrap()).unwrap();
            prop_assert_eq!(length, bytes.len() - 4);
            let Ok(Initial::Startup(startup)) = parse(&bytes[4..]) else { panic!() };
            prop_assert_eq!((&startup.user, &startup.database, startup.minor), (&user, &database, 2));
            prop_assert_eq!(startup.parameter("options"), Some(value.as_str()));
        }

        #[test]
        fn cancel_requests_survive_the_trip(pid: u32, secret in proptest::collection::vec(any::<u8>(), 1..=256)) {
            let key = CancelKey { pid, secret: secret.into() };
            prop_assert_eq!(parse(&cancel_request(&key)[4..]), Ok(Initial::Cancel(key)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&body);
            let _ = parse(&packet(0, &body));
        }
    }
}
