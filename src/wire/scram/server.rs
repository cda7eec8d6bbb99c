//! The server role: pgweir authenticates a client.

use std::fmt;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::text::{self, Attributes};
use super::{ScramError, ScramSecret, hmac, sha256, xor};

/// What this server offered of channel binding, and what the client chose in its SASLInitialResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding<'a> {
    /// SCRAM-SHA-256-PLUS was not offered.
    NotOffered,
    /// SCRAM-SHA-256-PLUS was offered, but the client chose SCRAM-SHA-256.
    Declined,
    /// The client chose SCRAM-SHA-256-PLUS; with the `tls-server-end-point` hash of our certificate.
    Chosen(&'a [u8]),
}

/// A client's first message was answered with a challenge.
#[must_use = "the client is not authenticated before `finish`"]
pub struct ServerExchange {
    /// What the client must repeat in `c=`.
    binding: String,
    /// Its nonce and ours.
    nonce: String,
    /// The beginning of the auth message: everything but the final message without its proof.
    heard: String,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// A client knows its password.
#[must_use]
pub struct Verified {
    /// To be sent in AuthenticationSASLFinal.
    pub server_final: Vec<u8>,
    /// Logs in as this user wherever the secret is the same one.
    pub client_key: [u8; 32],
}

impl ServerExchange {
    /// Answers a client's first message with the challenge that goes into AuthenticationSASLContinue.
    ///
    /// `nonce` is our part of the nonce, as made by [`nonce`](super::nonce). The user that the message names is not looked at, as
    /// in Postgres: the one of the startup packet counts.
    pub fn begin(
        client_first: &[u8],
        nonce: &str,
        secret: &ScramSecret,
        binding: ChannelBinding<'_>,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        let message = text::message(client_first)?;
        let (binding, bare) = read_gs2_header(message, binding)?;
        let nonce = read_client_nonce(bare)?.to_owned() + nonce;
        let salt = Base64Display::new(&secret.salt, &STANDARD);
        let server_first = format!("r={nonce},s={salt},i={}", secret.iterations);
        let exchange = Self {
            binding,
            nonce,
            heard: format!("{bare},{server_first},"),
            stored_key: secret.stored_key,
            server_key: secret.server_key,
        };
        Ok((exchange, server_first.into_bytes()))
    }

    /// Checks the client's proof. [`ScramError::WrongProof`] is a wrong password (or an unknown user's mock secret); all other
    /// errors are the protocol's.
    pub fn finish(self, client_final: &[u8]) -> Result<Verified, ScramError> {
        let message = text::message(client_final)?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("no proof"))?;
        self.check_final_message(without_proof)?;
        let proof = text::key(proof).ok_or(ScramError::Malformed("proof is not 32 bytes"))?;

        let auth_message = [self.heard.as_bytes(), without_proof.as_bytes()];
        let client_key = xor(&proof, &hmac(&self.stored_key, &auth_message));
        if !bool::from(sha256(&client_key).ct_eq(&self.stored_key)) {
            return Err(ScramError::WrongProof);
        }
        let signature = hmac(&self.server_key, &auth_message);
        Ok(Verified {
            server_final: format!("v={}", STANDARD.encode(signature)).into_bytes(),
            client_key,
        })
    }

    fn check_final_message(&self, without_proof: &str) -> Result<(), ScramError> {
        let mut attributes = Attributes::new(without_proof);
        if attributes.expect("c=")? != self.binding {
            return Err(ScramError::ChannelBinding(
                "the client's final message does not repeat its first, or names another certificate",
            ));
        }
        if attributes.expect("r=")? != self.nonce {
            return Err(ScramError::Nonce);
        }
        attributes.ignore_extensions()
    }
}

impl fmt::Debug for ServerExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerExchange(***)")
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verified(***)")
    }
}

/// Reads `n,,`, `y,,` or `p=tls-server-end-point,,`. Gives what the client must repeat in `c=`, and the message behind the header.
fn read_gs2_header<'a>(
    message: &'a str,
    binding: ChannelBinding<'_>,
) -> Result<(String, &'a str), ScramError> {
    let incomplete = ScramError::Malformed("incomplete GS2 header");
    let (flag, rest) = message.split_once(',').ok_or(incomplete.clone())?;
    let data = check_binding_flag(flag, binding)?;
    let (authorization, bare) = rest.split_once(',').ok_or(incomplete)?;
    if authorization.starts_with("a=") {
        return Err(ScramError::Unsupported("SCRAM authorization identity"));
    }
    if !authorization.is_empty() {
        return Err(ScramError::Malformed("authorization identity"));
    }
    Ok((
        STANDARD.encode([flag.as_bytes(), b",,", data].concat()),
        bare,
    ))
}

/// The channel binding data that the client's flag promises.
fn check_binding_flag<'a>(flag: &str, binding: ChannelBinding<'a>) -> Result<&'a [u8], ScramError> {
    use ChannelBinding::{Chosen, Declined, NotOffered};
    let mismatch = |text| Err(ScramError::ChannelBinding(text));
    match (flag, binding) {
        ("n", NotOffered | Declined) | ("y", NotOffered) => Ok(&[]),
        ("p=tls-server-end-point", Chosen(data)) => Ok(data),
        // Somebody between us has taken the offer away.
        ("y", Declined) => mismatch("the client believes that it was not offered, but it was"),
        ("n" | "y", Chosen(_)) => mismatch("SCRAM-SHA-256-PLUS was chosen without its data"),
        (_, NotOffered | Declined) if flag.starts_with("p=") => {
            mismatch("the client sends it, but SCRAM-SHA-256-PLUS was not offered or not chosen")
        }
        (_, Chosen(_)) if flag.starts_with("p=") => {
            mismatch("only tls-server-end-point is supported")
        }
        _ => Err(ScramError::Malformed("unknown channel binding flag")),
    }
}

fn read_client_nonce(bare: &str) -> Result<&str, ScramError> {
    let mut attributes = Attributes::new(bare);
    attributes.expect("n=")?;
    let nonce = text::nonce(attributes.expect("r=")?)?;
    attributes.ignore_extensions()?;
    Ok(nonce)
}
