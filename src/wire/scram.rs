//! SCRAM-SHA-256 (RFC 5802, RFC 7677; "SASL Authentication" in the Postgres manual), both roles, as values.
//!
//! [`ServerExchange`] authenticates a client, [`ClientExchange`] logs in to Postgres. Randomness comes from the caller, who also
//! frames the messages. What is dear is PBKDF2, and it runs only in [`ClientKeys::derive`]: a stored [`ScramSecret`] needs none,
//! and [`KeyCache`] remembers.

mod client;
mod server;
mod text;

#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use stringprep::tables;
use subtle::ConstantTimeEq;

pub use client::{AnsweredExchange, ClientAuth, ClientBinding, ClientExchange};
pub use server::{ChannelBinding, ServerExchange, Verified};

/// The mechanism's name in AuthenticationSASL and SASLInitialResponse.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Iterations of the secrets that pgweir derives itself: Postgres' default (`scram_iterations`).
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// Length of the salts that pgweir makes up, as in Postgres: a mock secret must look like a true one.
pub const SALT_LENGTH: usize = 16;

/// The longest message that is read. Postgres has the same limit; what drivers send has some 100 to 300 bytes.
pub const MAX_MESSAGE: usize = 1024;

/// The highest iteration count for which we compute PBKDF2, because it is the peer who names it and our thread that works.
///
/// OWASP recommends 600,000 iterations, so an honest server may ask for that many. A million takes a tenth of a second with the
/// processor's SHA instructions, and several times that without.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The peer broke the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The peer's message has more than [`MAX_MESSAGE`] bytes.
    #[error("SCRAM message is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// The peer asks for a part of SCRAM that we do not have.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The client's idea of channel binding does not fit to what was offered and chosen.
    #[error("SCRAM channel binding failed: {0}")]
    ChannelBinding(&'static str),
    /// The nonce is not the one of this exchange.
    #[error("SCRAM nonce does not match")]
    Nonce,
    /// The client does not know the password. What it hears must be the same as for an unknown user.
    #[error("SCRAM proof does not match")]
    WrongProof,
    /// The server names more than [`MAX_ITERATIONS`].
    #[error("server asks for {0} SCRAM iterations, more than {MAX_ITERATIONS}")]
    Iterations(u32),
    /// The server's salt or iterations are not those of the keys at hand: its secret differs from ours.
    #[error("server's SCRAM secret is not the one that the keys belong to")]
    ForeignSecret,
    /// The server ended the exchange with `e=`.
    #[error("server refused the SCRAM login: {0}")]
    ServerRefused(String),
    /// The server does not know the secret: it may be somebody else.
    #[error("server's SCRAM signature does not match")]
    WrongServer,
}

impl ScramError {
    /// The SQLSTATE that a client is told when the server role fails.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::WrongProof => "28P01",
            Self::Unsupported(_) => "0A000",
            Self::ChannelBinding(_) => "28000",
            _ => "08P01",
        }
    }
}

/// What a server must know of a password: `pg_authid.rolpassword` in its SCRAM form.
///
/// The comparison of two secrets is for configuration, not for what a peer sent: it takes no constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramSecret {
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// Salt of PBKDF2; never empty.
    pub salt: Vec<u8>,
    /// Checks a client's proof.
    pub stored_key: [u8; 32],
    /// Proves the server to the client.
    pub server_key: [u8; 32],
}

impl ScramSecret {
    /// Reads `SCRAM-SHA-256$iterations:salt$stored key:server key`; `None` for anything else.
    ///
    /// Only the form that Postgres writes is accepted, so that [`Display`](fmt::Display) gives the same text back.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            iterations: text::iterations(iterations)?,
            salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored_key: text::key(stored_key)?,
            server_key: text::key(server_key)?,
        })
    }

    /// Derives the secret of a password. Runs PBKDF2.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let keys = ClientKeys::derive(password, salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: sha256(&keys.client_key),
            server_key: keys.server_key,
        }
    }

    /// Whether the secret is that of `password`. Runs PBKDF2, each time; a secret above [`MAX_ITERATIONS`] matches nothing.
    pub fn matches_password(&self, password: &[u8]) -> bool {
        self.client_key_of(password).is_some()
    }

    /// The client key of `password`, if the secret is that of it. Takes as long as [`matches_password`](Self::matches_password).
    pub fn client_key_of(&self, password: &[u8]) -> Option<[u8; 32]> {
        if self.iterations > MAX_ITERATIONS {
            return None;
        }
        let ClientKeys { client_key, .. } =
            ClientKeys::derive(password, &self.salt, self.iterations);
        self.matches_client_key(&client_key).then_some(client_key)
    }

    /// Whether `client_key` is the key that this secret checks.
    pub fn matches_client_key(&self, client_key: &[u8; 32]) -> bool {
        sha256(client_key).ct_eq(&self.stored_key).into()
    }
}

impl fmt::Display for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{MECHANISM}${}:{}${}:{}",
            self.iterations,
            Base64Display::new(&self.salt, &STANDARD),
            Base64Display::new(&self.stored_key, &STANDARD),
            Base64Display::new(&self.server_key, &STANDARD),
        )
    }
}

impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MECHANISM}${}:***", self.iterations)
    }
}

/// The secret that stands in for an unknown user's: the same at each login, and no client has a proof for it.
///
/// It differs from user to user and cannot be foretold without `process_key`, as the salt of a true secret.
pub fn mock_secret(user: &str, process_key: &[u8; 32]) -> ScramSecret {
    let part = |label: &str| hmac(process_key, &[label.as_bytes(), b"\0", user.as_bytes()]);
    ScramSecret {
        iterations: DEFAULT_ITERATIONS,
        salt: part("salt")[..SALT_LENGTH].to_vec(),
        stored_key: part("stored key"),
        server_key: part("server key"),
    }
}

/// Writes a nonce. The caller takes the bytes from a cryptographic generator, afresh for each exchange.
pub fn nonce(random: [u8; 18]) -> String {
    STANDARD.encode(random)
}

/// What a client must know to log in without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeys {
    /// Proves the client to the server.
    pub client_key: [u8; 32],
    /// Checks the server's signature.
    pub server_key: [u8; 32],
}

impl ClientKeys {
    /// Derives the keys of a password. Runs PBKDF2: the time grows with `iterations`, 4096 take half a millisecond with
    /// the processor's SHA instructions.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        #[cfg(test)]
        tests::PBKDF2_RUNS.with(|runs| runs.set(runs.get() + 1));
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(&prepared(password), salt, iterations);
        Self {
            client_key: hmac(&salted, &[b"Client Key"]),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeys(***)")
    }
}

/// Client keys and the secret's parameters that they belong to: with another salt or count they are worth nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// The keys.
    pub keys: ClientKeys,
    /// The salt from which they were derived.
    pub salt: Vec<u8>,
    /// The iterations with which they were derived.
    pub iterations: u32,
}

impl ScramKeys {
    fn fit(&self, salt: &[u8], iterations: u32) -> bool {
        self.iterations == iterations && self.salt == salt
    }
}

/// One password, and the keys that were derived from it: PBKDF2 runs once for each salt, not for each login.
pub struct KeyCache {
    password: Box<[u8]>,
    /// Oldest first. The lock is held while keys are derived, so that two threads do not do the same work.
    derived: Mutex<Vec<ScramKeys>>,
}

impl KeyCache {
    /// Salts that are remembered. Each Postgres cluster has its own for a user (its replicas share it), and a user whose
    /// password changed has a new one; more clusters than this behind one pgweir are possible, and only cost time.
    pub const SALTS: usize = 16;

    /// A cache for one password.
    pub fn new(password: impl AsRef<[u8]>) -> Self {
        Self {
            password: password.as_ref().into(),
            derived: Mutex::new(Vec::new()),
        }
    }

    /// The keys for a server's salt and iterations. The first time runs PBKDF2.
    pub fn keys(&self, salt: &[u8], iterations: u32) -> ClientKeys {
        let mut derived = self.derived.lock();
        if let Some(known) = derived.iter().find(|keys| keys.fit(salt, iterations)) {
            return known.keys.clone();
        }
        if derived.len() == Self::SALTS {
            derived.remove(0);
        }
        let keys = ClientKeys::derive(&self.password, salt, iterations);
        derived.push(ScramKeys {
            keys: keys.clone(),
            salt: salt.to_vec(),
            iterations,
        });
        keys
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCache(***)")
    }
}

/// SASLprep (RFC 4013) as Postgres does it: a password that is not UTF-8 or has forbidden characters is taken as it is.
///
/// Unlike the RFC and the crate, Postgres looks for forbidden characters before the normalization, and takes a password as it is
/// that would become empty. Only the rules on writing direction are left to the crate, which applies them after it.
fn prepared(password: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(password) else {
        return Cow::Borrowed(password);
    };
    let mut mapped = text.chars().filter_map(mapped).peekable();
    if text.is_ascii() || mapped.peek().is_none() || mapped.any(is_prohibited) {
        return Cow::Borrowed(password);
    }
    match stringprep::saslprep(text) {
        Ok(text) => Cow::Owned(text.into_owned().into_bytes()),
        Err(_) => Cow::Borrowed(password),
    }
}

/// The first step of SASLprep. Zero width space is in both tables; Postgres makes it a space.
fn mapped(c: char) -> Option<char> {
    if tables::non_ascii_space_character(c) {
        Some(' ')
    } else {
        Some(c).filter(|&c| !tables::commonly_mapped_to_nothing(c))
    }
}

/// What is left of SASLprep's forbidden characters after [`mapped`], and those that Unicode 3.2 does not know.
fn is_prohibited(c: char) -> bool {
    tables::ascii_control_character(c)
        || tables::non_ascii_control_character(c)
        || tables::private_use(c)
        || tables::non_character_code_point(c)
        || tables::inappropriate_for_plain_text(c)
        || tables::inappropriate_for_canonical_representation(c)
        || tables::change_display_properties_or_deprecated(c)
        || tables::tagging_character(c)
        || tables::unassigned_code_point(c)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The proof that hides a client key behind a signature, and back again.
fn xor(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| left[i] ^ right[i])
}
