//! LDAP as far as a password check needs it (RFC 4511): simple bind, a search for one entry's name, StartTLS.
//!
//! Written here and not taken from a crate: what a server sends may not panic, and an answer may not grow without bound.

pub mod filter;

use std::fmt::Write;

/// The longest message that is read. A search asks for names alone, so an answer is short.
pub const LONGEST_MESSAGE: usize = 64 * 1024;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const BOOLEAN: u8 = 0x01;
const SEQUENCE: u8 = 0x30;
/// The password of a simple bind, the name of an extended request.
const CONTEXT_0: u8 = 0x80;

const BIND: u8 = 0x60;
const BIND_RESPONSE: u8 = 0x61;
const UNBIND: u8 = 0x42;
const SEARCH: u8 = 0x63;
const ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const REFERENCE: u8 = 0x73;
const EXTENDED: u8 = 0x77;
const EXTENDED_RESPONSE: u8 = 0x78;

const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

/// "No attributes" (RFC 4511, 4.5.1.8).
const NO_ATTRIBUTES: &[u8] = b"1.1";

/// What a server sends that is no LDAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LdapError {
    /// It cannot be read.
    #[error("malformed LDAP message")]
    Malformed,
    /// Longer than [`LONGEST_MESSAGE`].
    #[error("LDAP message of more than {LONGEST_MESSAGE} bytes")]
    TooLong,
}

/// How far below its base a search looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The base alone.
    Base = 0,
    /// What is right below it.
    One = 1,
    /// All of it.
    Subtree = 2,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The result code.
    pub code: u32,
    /// What the server says of it.
    pub message: String,
}

impl Outcome {
    /// It was done.
    pub const SUCCESS: u32 = 0;
    /// There is more than was asked for.
    pub const SIZE_LIMIT: u32 = 4;
    /// No entry of that name.
    pub const NO_SUCH_OBJECT: u32 = 32;
    /// No name at all.
    pub const INVALID_DN: u32 = 34;
    /// The password is wrong, or there is no such entry.
    pub const INVALID_CREDENTIALS: u32 = 49;

    /// The code in the words that people know from OpenLDAP.
    pub fn words(&self) -> String {
        let words = match self.code {
            0 => "Success",
            1 => "Operations error",
            2 => "Protocol error",
            3 => "Time limit exceeded",
            4 => "Size limit exceeded",
            7 => "Authentication method not supported",
            8 => "Strong(er) authentication required",
            10 => "Referral",
            13 => "Confidentiality required",
            32 => "No such object",
            34 => "Invalid DN syntax",
            48 => "Inappropriate authentication",
            49 => "Invalid credentials",
            50 => "Insufficient access",
            51 => "Server is busy",
            52 => "Server is unavailable",
            53 => "Server is unwilling to perform",
            code => return format!("result code {code}"),
        };
        words.to_owned()
    }
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To a bind.
    Bind(Outcome),
    /// An entry that a search has found, by its name.
    Entry(String),
    /// A place where a search may go on, which it does not.
    Reference,
    /// The end of a search.
    SearchDone(Outcome),
    /// To an extended request; unasked for, a goodbye.
    Extended(Outcome),
}

/// A request to prove who one is. An empty password would be none: such a bind succeeds without one (RFC 4513, 5.1.2), so it is
/// for the caller to see that there is one.
pub fn bind(id: i32, dn: &str, password: &str) -> Vec<u8> {
    message(id, |body| {
        nest(body, BIND, |body| {
            integer(body, INTEGER, 3);
            put(body, OCTETS, dn.as_bytes());
            put(body, CONTEXT_0, password.as_bytes());
        });
    })
}

/// A request for the names of what fits `filter`, at most `most` of them.
pub fn search(id: i32, base: &str, scope: Scope, filter: &[u8], most: i32) -> Vec<u8> {
    message(id, |body| {
        nest(body, SEARCH, |body| {
            put(body, OCTETS, base.as_bytes());
            integer(body, ENUMERATED, scope as i32);
            // Aliases are not followed.
            integer(body, ENUMERATED, 0);
            integer(body, INTEGER, most);
            // No limit of time: the caller has one.
            integer(body, INTEGER, 0);
            put(body, BOOLEAN, &[0]);
            body.extend_from_slice(filter);
            nest(body, SEQUENCE, |body| put(body, OCTETS, NO_ATTRIBUTES));
        });
    })
}

/// A request to go on with TLS.
pub fn start_tls(id: i32) -> Vec<u8> {
    message(id, |body| {
        nest(body, EXTENDED, |body| put(body, CONTEXT_0, START_TLS));
    })
}

/// The goodbye.
pub fn unbind(id: i32) -> Vec<u8> {
    message(id, |body| put(body, UNBIND, &[]))
}

fn message(id: i32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::new();
    nest(&mut message, SEQUENCE, |message| {
        integer(message, INTEGER, id);
        body(message);
    });
    message
}

fn nest(into: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    body(&mut inner);
    put(into, tag, &inner);
}

fn integer(into: &mut Vec<u8>, tag: u8, value: i32) {
    let bytes = value.to_be_bytes();
    // As few bytes as hold it with its sign.
    let spare = bytes
        .windows(2)
        .take_while(|pair| {
            pair[0] == 0 && pair[1] & 0x80 == 0 || pair[0] == 0xff && pair[1] & 0x80 != 0
        })
        .count();
    put(into, tag, &bytes[spare..]);
}

fn put(into: &mut Vec<u8>, tag: u8, content: &[u8]) {
    into.push(tag);
    let length = content.len();
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => into.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            into.push(0x80 | u8::try_from(bytes.len()).expect("a usize has at most 8 bytes"));
            into.extend_from_slice(bytes);
        }
    }
    into.extend_from_slice(content);
}

/// How many bytes of `read` are its first message; `None`: not all of it is there yet.
pub fn first_message(read: &[u8]) -> Result<Option<usize>, LdapError> {
    if read.first().is_some_and(|tag| *tag != SEQUENCE) {
        return Err(LdapError::Malformed);
    }
    let Some((head, length)) = length(read.get(1..).unwrap_or_default())? else {
        return Ok(None);
    };
    let whole = 1 + head + length;
    if whole > LONGEST_MESSAGE {
        return Err(LdapError::TooLong);
    }
    Ok((read.len() >= whole).then_some(whole))
}

/// The length at the front of `bytes`, behind how many bytes of its own; `None`: it is cut.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, LdapError> {
    let Some(first) = bytes.first() else {
        return Ok(None);
    };
    if *first < 0x80 {
        return Ok(Some((1, usize::from(*first))));
    }
    let count = usize::from(*first & 0x7f);
    // Without a length of its own: LDAP has no such thing.
    if count == 0 {
        return Err(LdapError::Malformed);
    }
    if count > 4 {
        return Err(LdapError::TooLong);
    }
    let Some(bytes) = bytes.get(1..=count) else {
        return Ok(None);
    };
    let length = bytes
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    Ok(Some((1 + count, length)))
}

/// Reads a message: whose answer it is, 0 if nobody asked, and what it says.
pub fn parse(message: &[u8]) -> Result<(i32, Reply), LdapError> {
    let mut whole = Reader(message);
    let mut body = Reader(whole.take(SEQUENCE)?);
    let id = int(body.take(INTEGER)?)?;
    let (tag, content) = body.next()?;
    let mut inside = Reader(content);
    let reply = match tag {
        BIND_RESPONSE => Reply::Bind(inside.outcome()?),
        ENTRY => Reply::Entry(text(inside.take(OCTETS)?)?),
        REFERENCE => Reply::Reference,
        SEARCH_DONE => Reply::SearchDone(inside.outcome()?),
        EXTENDED_RESPONSE => Reply::Extended(inside.outcome()?),
        _ => return Err(LdapError::Malformed),
    };
    Ok((id, reply))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(u8, &'a [u8]), LdapError> {
        let (tag, rest) = self.0.split_first().ok_or(LdapError::Malformed)?;
        let (head, length) = length(rest)?.ok_or(LdapError::Malformed)?;
        let content = rest.get(head..).and_then(|rest| rest.get(..length));
        let content = content.ok_or(LdapError::Malformed)?;
        self.0 = &rest[head + length..];
        Ok((*tag, content))
    }

    fn take(&mut self, tag: u8) -> Result<&'a [u8], LdapError> {
        match self.next()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(LdapError::Malformed),
        }
    }

    fn outcome(&mut self) -> Result<Outcome, LdapError> {
        let code = int(self.take(ENUMERATED)?)?;
        self.take(OCTETS)?;
        let message = String::from_utf8_lossy(self.take(OCTETS)?).into_owned();
        let code = u32::try_from(code).map_err(|_| LdapError::Malformed)?;
        Ok(Outcome { code, message })
    }
}

fn int(bytes: &[u8]) -> Result<i32, LdapError> {
    let (first, _) = bytes.split_first().ok_or(LdapError::Malformed)?;
    if bytes.len() > 4 {
        return Err(LdapError::Malformed);
    }
    let sign = if first & 0x80 == 0 { 0 } else { -1 };
    Ok(bytes
        .iter()
        .fold(sign, |value, byte| value << 8 | i32::from(*byte)))
}

fn text(bytes: &[u8]) -> Result<String, LdapError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| LdapError::Malformed)
}

/// A value inside a distinguished name, written so that it is nothing but a value (RFC 4514, 2.4).
pub fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(value.len());
    for (at, letter) in value.chars().enumerate() {
        match letter {
            '"' | '+' | ',' | ';' | '<' | '>' | '=' | '\\' => escaped.extend(['\\', letter]),
            ' ' if at == 0 || at == last => escaped.push_str("\\ "),
            '#' if at == 0 => escaped.push_str("\\#"),
            control if control.is_ascii_control() => {
                write!(escaped, "\\{:02x}", u32::from(control)).expect("a String takes everything");
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(code: u32, message: &str) -> Outcome {
        Outcome {
            code,
            message: message.into(),
        }
    }

    #[test]
    fn requests_are_those_of_the_standard() {
        // RFC 4511 in bytes, by hand.
        assert_eq!(
            bind(1, "cn=a", "pw"),
            b"\x30\x12\x02\x01\x01\x60\x0d\x02\x01\x03\x04\x04cn=a\x80\x02pw"
        );
        assert_eq!(
            search(200, "dc=x", Scope::Subtree, b"\x87\x02cn", 2),
            b"\x30\x26\x02\x02\x00\xc8\x63\x20\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x02\x02\x01\x00\x01\x01\x00\
              \x87\x02cn\x30\x05\x04\x031.1"
        );
        assert_eq!(
            start_tls(1),
            b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"
        );
        assert_eq!(unbind(3), b"\x30\x05\x02\x01\x03\x42\x00");
        let long = "x".repeat(300);
        let written = bind(1, "", &long);
        assert_eq!(first_message(&written), Ok(Some(written.len())));
        assert_eq!(written[..4], *b"\x30\x82\x01\x3c");
    }

    #[test]
    fn replies_say_whose_they_are_and_how_it_went() {
        for (message, id, reply) in [
            (
                &b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"[..],
                1,
                Reply::Bind(outcome(0, "")),
            ),
            (
                b"\x30\x0e\x02\x01\x02\x61\x09\x0a\x01\x31\x04\x00\x04\x02no",
                2,
                Reply::Bind(outcome(49, "no")),
            ),
            (
                b"\x30\x0d\x02\x01\x02\x64\x08\x04\x04cn=a\x30\x00",
                2,
                Reply::Entry("cn=a".into()),
            ),
            (
                b"\x30\x0c\x02\x01\x02\x65\x07\x0a\x01\x04\x04\x00\x04\x00",
                2,
                Reply::SearchDone(outcome(4, "")),
            ),
            // Active Directory's goodbye has its name behind the message.
            (
                b"\x30\x0f\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00\x8a\x01x",
                0,
                Reply::Extended(outcome(52, "")),
            ),
        ] {
            assert_eq!(first_message(message), Ok(Some(message.len())));
            assert_eq!(parse(message), Ok((id, reply)));
            for end in 0..message.len() {
                assert_eq!(first_message(&message[..end]), Ok(None));
                assert!(parse(&message[..end]).is_err());
            }
        }
        assert_eq!(
            first_message(b"\x30\x83\x01\x00\x00"),
            Err(LdapError::TooLong)
        );
        assert_eq!(
            first_message(b"\x30\x85\x00\x00\x00\x00\x01"),
            Err(LdapError::TooLong)
        );
        assert_eq!(first_message(b"\x30\x80"), Err(LdapError::Malformed));
        assert_eq!(first_message(b"HTTP/1.1"), Err(LdapError::Malformed));
    }

    #[test]
    fn a_value_cannot_leave_its_place_in_a_name() {
        for (value, written) in [
            ("ann", "ann"),
            ("ann,ou=admins", "ann\\,ou\\=admins"),
            ("a+b=\"c\";<d>\\", "a\\+b\\=\\\"c\\\"\\;\\<d\\>\\\\"),
            (" a ", "\\ a\\ "),
            (" ", "\\ "),
            ("#1#", "\\#1#"),
            ("a\nb", "a\\0ab"),
            ("zoë", "zoë"),
            ("", ""),
        ] {
            assert_eq!(escaped(value), written);
        }
    }

    proptest! {
        #[test]
        fn what_a_server_sends_does_not_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80), reply in 0usize..3, at in 0usize..16, byte in any::<u8>(),
        ) {
            let _ = first_message(&bytes);
            let _ = parse(&bytes);
            // And one that is nearly right.
            bytes = [
                &b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"[..],
                b"\x30\x0d\x02\x01\x02\x64\x08\x04\x04cn=a\x30\x00",
                b"\x30\x0f\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00\x8a\x01x",
            ][reply].to_vec();
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            let _ = first_message(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn numbers_are_read_as_they_were_written(number in any::<i32>()) {
            let mut written = Vec::new();
            integer(&mut written, INTEGER, number);
            prop_assert_eq!(int(Reader(&written).take(INTEGER)?)?, number);
        }
    }
}
