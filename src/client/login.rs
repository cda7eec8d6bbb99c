//! A client proves who it is (manual, "Start-up", "SASL Authentication").

use std::io;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::credentials::Credential;
use crate::config::checked::Secret;
use crate::net::packet::Packets;
use crate::wire::reply::{Report, SqlState, authentication};
use crate::wire::scram::{self, ChannelBinding, ScramError, ServerExchange};

/// The longest message that is read from a client that has not logged in: passwords may be long (IAM tokens are).
const LONGEST_MESSAGE: usize = 64 * 1024;

/// How a client is to prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By its password in clear.
    Password,
    /// By MD5, or by SCRAM where the secret allows nothing else.
    Md5,
    /// By SCRAM-SHA-256.
    Scram,
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The connection failed or was closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The proof is wrong, or there is no such user: nobody is told which.
    #[error("password authentication failed for user {0:?}")]
    Password(String),
    /// None was sent: that is nobody's password.
    #[error("empty password returned by client")]
    EmptyPassword,
    /// The same as a wrong one, shown by SCRAM.
    #[error("password authentication failed for user {0:?}")]
    Proof(String),
    /// The SASL messages are malformed.
    #[error("{0}")]
    Scram(ScramError),
    /// Another message than the answer was sent.
    #[error("expected password response, got message type {0:?}")]
    Unexpected(char),
    /// No certificate, or not this user's.
    #[error("certificate authentication failed for user {0:?}")]
    Certificate(String),
    /// The user at the other end of the unix socket may not be this one.
    #[error("peer authentication failed for user {0:?}")]
    Peer(String),
    /// Whoever was asked about the password did not say yes.
    #[error("{by} authentication failed for user {user:?}")]
    Elsewhere {
        /// Who was asked.
        by: &'static str,
        /// About whom.
        user: String,
    },
    /// A mechanism that was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
}

impl LoginError {
    /// What the client is told; `None` if there is nobody to tell.
    pub fn report(&self) -> Option<Report> {
        let code = match self {
            Self::Io(_) => return None,
            Self::Password(_) | Self::Proof(_) | Self::EmptyPassword => SqlState::INVALID_PASSWORD,
            Self::Certificate(_) | Self::Peer(_) | Self::Elsewhere { .. } => {
                SqlState::INVALID_AUTHORIZATION
            }
            Self::Scram(_) | Self::Unexpected(_) | Self::Mechanism => SqlState::PROTOCOL_VIOLATION,
        };
        let text = match self {
            Self::Password(user) | Self::Proof(user) => {
                format!("password authentication failed for user \"{user}\"")
            }
            Self::Certificate(user) => {
                format!("certificate authentication failed for user \"{user}\"")
            }
            Self::Elsewhere { by, user } => {
                format!("{by} authentication failed for user \"{user}\"")
            }
            Self::Peer(user) => format!("peer authentication failed for user \"{user}\""),
            error => error.to_string(),
        };
        Some(Report::new(code, text))
    }
}

/// Asks for the proof and checks it. AuthenticationOk is left to the caller, who sends it with what follows.
///
/// `end_point`: the hash of our certificate, where channel binding can be offered.
pub async fn authenticate<S>(
    packets: &mut Packets<S>,
    user: &str,
    credential: &Credential,
    method: Method,
    end_point: Option<&[u8]>,
) -> Result<(), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let proved = match method {
        Method::Password => {
            credential.verify_password(ask_password(packets).await?.expose().as_bytes())
        }
        Method::Md5 if credential.speaks_md5() => {
            let salt: [u8; 4] = rand::random();
            packets
                .write(&authentication::request(authentication::MD5, &salt))
                .await?;
            credential.verify_md5(without_terminator(&answer(packets).await?), salt)
        }
        Method::Md5 | Method::Scram => {
            return if scram(packets, credential, end_point).await? {
                Ok(())
            } else {
                Err(LoginError::Proof(user.to_owned()))
            };
        }
    };
    if proved {
        Ok(())
    } else {
        Err(LoginError::Password(user.to_owned()))
    }
}

/// Asks for a password in clear.
pub async fn ask_password<S>(packets: &mut Packets<S>) -> Result<Secret, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    packets
        .write(&authentication::request(authentication::CLEARTEXT, &[]))
        .await?;
    let answer = answer(packets).await?;
    match without_terminator(&answer) {
        [] => Err(LoginError::EmptyPassword),
        password => Ok(Secret::new(String::from_utf8_lossy(password))),
    }
}

async fn scram<S>(
    packets: &mut Packets<S>,
    credential: &Credential,
    end_point: Option<&[u8]>,
) -> Result<bool, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mechanisms = match end_point {
        Some(_) => [scram::MECHANISM_PLUS, scram::MECHANISM, "", ""].join("\0"),
        None => [scram::MECHANISM, "", ""].join("\0"),
    };
    let offer = authentication::request(authentication::SASL, mechanisms.as_bytes());
    packets.write(&offer).await?;
    let (first, binding) = initial_response(answer(packets).await?, end_point)?;
    let nonce = scram::nonce(rand::random());
    let begun = ServerExchange::begin(&first, &nonce, credential.scram_secret(), binding);
    let (exchange, challenge) = begun.map_err(LoginError::Scram)?;
    packets
        .write(&authentication::request(
            authentication::SASL_CONTINUE,
            &challenge,
        ))
        .await?;
    match exchange.finish(&answer(packets).await?) {
        Ok(verified) => {
            packets
                .write(&authentication::request(
                    authentication::SASL_FINAL,
                    &verified.server_final,
                ))
                .await?;
            credential.learn_client_key(verified.client_key);
            Ok(true)
        }
        Err(ScramError::WrongProof) => Ok(false),
        Err(error) => Err(LoginError::Scram(error)),
    }
}

/// The client-first-message inside a SASLInitialResponse, and what the client chose of what was offered.
fn initial_response(
    mut body: Bytes,
    end_point: Option<&[u8]>,
) -> Result<(Bytes, ChannelBinding<'_>), LoginError> {
    let end = body
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(LoginError::Mechanism)?;
    let binding = match (std::str::from_utf8(&body[..end]), end_point) {
        (Ok(scram::MECHANISM), Some(_)) => ChannelBinding::Declined,
        (Ok(scram::MECHANISM), None) => ChannelBinding::NotOffered,
        (Ok(scram::MECHANISM_PLUS), Some(hash)) => ChannelBinding::Chosen(hash),
        _ => return Err(LoginError::Mechanism),
    };
    body.advance(end + 1);
    let length = body.try_get_u32().map_err(|_| LoginError::Mechanism)?;
    if length as usize == body.len() {
        Ok((body, binding))
    } else {
        Err(LoginError::Mechanism)
    }
}

/// The body of the client's next PasswordMessage, whatever it holds.
async fn answer<S>(packets: &mut Packets<S>) -> Result<Bytes, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let packet = packets.read(LONGEST_MESSAGE).await?;
    match packet.tag {
        b'p' => Ok(packet.body),
        // psql goes away to ask its user for a password, and comes back.
        b'X' => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        tag => Err(LoginError::Unexpected(tag as char)),
    }
}

fn without_terminator(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == 0).next().unwrap_or_default()
}
