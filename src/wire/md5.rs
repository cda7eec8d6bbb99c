//! Postgres' MD5 passwords ("Password Authentication" in the manual), as values.
//!
//! A stored hash is as good as the password for MD5 logins, so it is handled as a secret.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// A password as `md5` and the hash of password and user name: `pg_authid.rolpassword` in its old form.
///
/// The comparison of two secrets is for configuration, not for what a peer sent: it takes no constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Secret {
    /// The hash in lower case, without `md5`.
    hex: [u8; 32],
}

impl Md5Secret {
    /// The secret of a user's password.
    pub fn derive(user: &str, password: &[u8]) -> Self {
        Self {
            hex: hex_md5(&[password, user.as_bytes()]),
        }
    }

    /// Reads `md5` and 32 digits; `None` for anything else. Upper case is none, as in Postgres.
    pub fn parse(text: &str) -> Option<Self> {
        let hex: [u8; 32] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        hex.iter().all(is_digit).then_some(Self { hex })
    }

    /// The PasswordMessage that answers AuthenticationMD5Password with this salt.
    pub fn response(&self, salt: [u8; 4]) -> String {
        let hex = hex_md5(&[&self.hex, &salt]);
        Self { hex }.to_string()
    }

    /// Whether a client's PasswordMessage (without its zero byte) answers our salt. Takes constant time.
    pub fn verify(&self, response: &[u8], salt: [u8; 4]) -> bool {
        response.ct_eq(self.response(salt).as_bytes()).into()
    }

    /// Whether this is the secret of the user's `password`. Takes constant time.
    pub fn matches_password(&self, user: &str, password: &[u8]) -> bool {
        self.hex.ct_eq(&Self::derive(user, password).hex).into()
    }
}

impl fmt::Display for Md5Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("md5")?;
        self.hex
            .iter()
            .try_for_each(|&digit| fmt::Write::write_char(f, char::from(digit)))
    }
}

impl fmt::Debug for Md5Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("md5***")
    }
}

fn hex_md5(parts: &[&[u8]]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let hash: [u8; 16] = hash.finalize().into();
    std::array::from_fn(|i| DIGITS[usize::from(hash[i / 2] >> (4 * (1 - i % 2)) & 15)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_responses_are_those_of_postgres() {
        let secret = Md5Secret::derive("postgres", b"secret");
        let theirs = postgres_protocol::authentication::md5_hash(b"postgres", b"secret", *b"salt");
        assert_eq!(secret.response(*b"salt"), theirs);
        // select 'md5' || md5('secret' || 'postgres')
        assert_eq!(secret.to_string(), "md553f48b7c4b76a86ce72276c5755f217d");
        assert!(secret.verify(theirs.as_bytes(), *b"salt"));
    }

    #[test]
    fn only_the_right_response_to_the_right_salt_verifies() {
        let secret = Md5Secret::derive("alice", b"wonder");
        let response = secret.response([1, 2, 3, 4]).into_bytes();
        assert!(!secret.verify(&response, [1, 2, 3, 5]));
        for i in 0..response.len() {
            let mut tampered = response.clone();
            tampered[i] ^= 1;
            assert!(!secret.verify(&tampered, [1, 2, 3, 4]), "byte {i}");
        }
        assert!(!secret.verify(b"", [1, 2, 3, 4]));
        assert!(!secret.verify(&response[..34], [1, 2, 3, 4]));
        assert!(!secret.verify(b"wonder", [1, 2, 3, 4]));
        assert!(secret.matches_password("alice", b"wonder"));
        assert!(!secret.matches_password("alice", b"wonder "));
        assert!(!secret.matches_password("bob", b"wonder"));
    }

    #[test]
    fn a_secret_is_read_as_postgres_reads_it() {
        let text = Md5Secret::derive("alice", b"wonder").to_string();
        assert_eq!(Md5Secret::parse(&text).unwrap().to_string(), text);
        for other in [
            "",
            "md5",
            "md5x",
            &text[..34],
            &format!("md5{}", text[3..].to_uppercase()),
            &format!("{text}0"),
        ] {
            assert!(Md5Secret::parse(other).is_none(), "{other}");
        }
        assert!(Md5Secret::parse(&text.replace(|c: char| c.is_ascii_digit(), "G")).is_none());
        assert!(Md5Secret::parse(&format!("md5{}", "é".repeat(16))).is_none());
    }

    #[test]
    fn debug_shows_no_hash() {
        assert_eq!(format!("{:?}", Md5Secret::derive("alice", b"x")), "md5***");
    }
}
