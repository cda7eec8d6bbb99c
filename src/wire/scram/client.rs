//! The client role: pgweir logs in to Postgres.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::text::{self, Attributes};
use super::{
    ClientKeys, KeyCache, MAX_ITERATIONS, MECHANISM, MECHANISM_PLUS, ScramError, ScramKeys, hmac,
    sha256, xor,
};

/// What the client says of channel binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientBinding<'a> {
    /// It cannot do any: there is no TLS.
    Unable,
    /// It could, but SCRAM-SHA-256-PLUS was not offered. A server that did offer it knows then that somebody stands between.
    NotOffered,
    /// SCRAM-SHA-256-PLUS, with the `tls-server-end-point` hash of the server's certificate.
    EndPoint(&'a [u8]),
}

impl ClientBinding<'_> {
    /// The mechanism to choose.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Unable | Self::NotOffered => MECHANISM,
            Self::EndPoint(_) => MECHANISM_PLUS,
        }
    }

    fn header(&self) -> &'static str {
        match self {
            Self::Unable => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// What is repeated under the proof's protection.
    fn repeated(&self) -> String {
        let data = match self {
            Self::EndPoint(data) => *data,
            Self::Unable | Self::NotOffered => &[],
        };
        STANDARD.encode([self.header().as_bytes(), data].concat())
    }
}

/// With what pgweir logs in.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// The password, and the keys already derived from it.
    Password(Arc<KeyCache>),
    /// Keys without a password: good only where the server has the very secret that they belong to.
    Keys(ScramKeys),
}

impl ClientAuth {
    fn keys(&self, challenge: &Challenge) -> Result<ClientKeys, ScramError> {
        match self {
            Self::Password(cache) => Ok(cache.keys(&challenge.salt, challenge.iterations)),
            Self::Keys(known) if known.fit(&challenge.salt, challenge.iterations) => {
                Ok(known.keys.clone())
            }
            Self::Keys(_) => Err(ScramError::ForeignSecret),
        }
    }
}

/// The first message is written; the server's challenge is awaited.
#[must_use]
#[derive(Debug)]
pub struct ClientExchange {
    nonce: String,
    /// The `c=` of the final message.
    binding: String,
    auth: ClientAuth,
}

impl ClientExchange {
    /// Begins with the message that goes into SASLInitialResponse. `nonce` is made by [`nonce`](super::nonce).
    pub fn begin(nonce: String, auth: ClientAuth, binding: ClientBinding<'_>) -> (Self, Vec<u8>) {
        let client_first = format!("{}n=,r={nonce}", binding.header()).into_bytes();
        let binding = binding.repeated();
        let begun = Self {
            nonce,
            binding,
            auth,
        };
        (begun, client_first)
    }

    /// Answers the server's challenge with the message that goes into SASLResponse.
    ///
    /// Runs PBKDF2 when the salt is seen for the first time, at worst with [`MAX_ITERATIONS`]: the whole value may be moved to a
    /// thread where that hurts nobody.
    pub fn answer(self, server_first: &[u8]) -> Result<(AnsweredExchange, Vec<u8>), ScramError> {
        let server_first = text::message(server_first)?;
        let challenge = Challenge::read(server_first, &self.nonce)?;
        let keys = self.auth.keys(&challenge)?;

        let without_proof = format!("c={},r={}", self.binding, challenge.nonce);
        let auth_message = format!("n=,r={},{server_first},{without_proof}", self.nonce);
        let auth_message = [auth_message.as_bytes()];
        let signature = hmac(&sha256(&keys.client_key), &auth_message);
        let proof = xor(&keys.client_key, &signature);
        let proof = Base64Display::new(&proof, &STANDARD);
        let answered = AnsweredExchange {
            server_signature: hmac(&keys.server_key, &auth_message),
        };
        Ok((answered, format!("{without_proof},p={proof}").into_bytes()))
    }
}

/// The proof is written; the server's own proof is awaited.
#[must_use = "the server is not authenticated before `verify`"]
pub struct AnsweredExchange {
    server_signature: [u8; 32],
}

impl AnsweredExchange {
    /// Checks that the server knows the secret too.
    pub fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let mut attributes = Attributes::new(text::message(server_final)?);
        let first = attributes.next().unwrap_or_default();
        if let Some(reason) = first.strip_prefix("e=") {
            return Err(ScramError::ServerRefused(reason.escape_debug().to_string()));
        }
        let signature = first
            .strip_prefix("v=")
            .ok_or(ScramError::Malformed("no server signature"))?;
        let signature =
            text::key(signature).ok_or(ScramError::Malformed("signature is not 32 bytes"))?;
        attributes.ignore_extensions()?;
        if bool::from(signature.ct_eq(&self.server_signature)) {
            Ok(())
        } else {
            Err(ScramError::WrongServer)
        }
    }
}

impl fmt::Debug for AnsweredExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnsweredExchange(***)")
    }
}

/// The server's first message.
struct Challenge<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> Challenge<'a> {
    fn read(server_first: &'a str, ours: &str) -> Result<Self, ScramError> {
        let mut attributes = Attributes::new(server_first);
        let nonce = text::nonce(attributes.expect("r=")?)?;
        let salt = STANDARD.decode(attributes.expect("s=")?);
        let salt = salt.map_err(|_| ScramError::Malformed("salt is not base64"))?;
        let iterations = text::iterations(attributes.expect("i=")?)
            .ok_or(ScramError::Malformed("iterations are no number"))?;
        attributes.ignore_extensions()?;

        // A server that adds nothing of its own could replay an exchange that it has overheard.
        if nonce.len() <= ours.len() || !nonce.starts_with(ours) {
            return Err(ScramError::Nonce);
        }
        if salt.is_empty() {
            return Err(ScramError::Malformed("salt is empty"));
        }
        if iterations > MAX_ITERATIONS {
            return Err(ScramError::Iterations(iterations));
        }
        Ok(Self {
            nonce,
            salt,
            iterations,
        })
    }
}
