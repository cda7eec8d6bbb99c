//! The text of SCRAM messages: attributes separated by commas.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MAX_MESSAGE, ScramError};

/// A peer's message as text.
pub(super) fn message(bytes: &[u8]) -> Result<&str, ScramError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(ScramError::TooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ScramError::Malformed("not UTF-8"))?;
    if text.contains('\0') {
        return Err(ScramError::Malformed("zero byte"));
    }
    Ok(text)
}

/// The attributes of a message, in the order in which SCRAM demands them.
pub(super) struct Attributes<'a> {
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: Some(text) }
    }

    /// The value of the next attribute, which must begin with `name` (`"r="`).
    pub(super) fn expect(&mut self, name: &'static str) -> Result<&'a str, ScramError> {
        let attribute = self.next().ok_or(ScramError::Malformed("too short"))?;
        if attribute.starts_with("m=") {
            return Err(ScramError::Unsupported("mandatory SCRAM extensions"));
        }
        attribute
            .strip_prefix(name)
            .ok_or(ScramError::Malformed("an attribute is missing"))
    }

    /// Reads what follows the last attribute we know: extensions, which RFC 5802 tells us to ignore.
    pub(super) fn ignore_extensions(self) -> Result<(), ScramError> {
        for attribute in self {
            match attribute.as_bytes() {
                [b'm', b'=', ..] => {
                    return Err(ScramError::Unsupported("mandatory SCRAM extensions"));
                }
                [name, b'=', ..] if name.is_ascii_alphabetic() => {}
                _ => return Err(ScramError::Malformed("not an attribute")),
            }
        }
        Ok(())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let (attribute, rest) = rest
            .split_once(',')
            .map_or((rest, None), |(first, rest)| (first, Some(rest)));
        self.rest = rest;
        Some(attribute)
    }
}

/// A peer's nonce, which must be printable ASCII.
pub(super) fn nonce(value: &str) -> Result<&str, ScramError> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ScramError::Malformed("nonce is not printable"));
    }
    Ok(value)
}

/// An iteration count as Postgres writes it: no sign, no leading zero, not 0.
pub(super) fn iterations(value: &str) -> Option<u32> {
    let canonical = !value.starts_with(['0', '+']);
    value.parse().ok().filter(|_| canonical)
}

/// A key or signature: 32 bytes of base64.
pub(super) fn key(value: &str) -> Option<[u8; 32]> {
    STANDARD.decode(value).ok()?.try_into().ok()
}
