//! A directory checks a client's password: pgweir binds with it as the client's entry (RFC 4511, 4.2).
//!
//! Each check has a connection of its own. Nothing is remembered of it: whom the directory locks out is out at the next login.

pub mod trust;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::checked::Secret;
use crate::config::ldap_options::{LdapOptions, Naming, Safety, Scope};
use crate::net::tls::connect::Connector;
use crate::wire::ldap::{self, LdapError, Outcome, Reply, filter};

/// How long one server may take until it is connected, TLS included: as with PgBouncer.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long it may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Characters that PgBouncer and Postgres accept in no name that is searched for. They would be harmless here, but a name with a
/// star in it is an attempt.
const UNFIT: [char; 5] = ['*', '(', ')', '\\', '/'];

/// Why a directory did not say yes. What it says goes to the log; the client hears that it failed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// An empty password would prove nothing, and many directories take it for a greeting.
    #[error("empty password")]
    EmptyPassword,
    /// A name that is not searched for.
    #[error("invalid character in user name for LDAP authentication")]
    UnfitName,
    /// No server can be reached.
    #[error("could not connect to LDAP server {server}: {cause}")]
    Unreachable {
        /// The last one that was tried.
        server: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It does not protect the connection.
    #[error("could not start LDAP TLS session with {server}: {why}")]
    NoTls {
        /// Which.
        server: String,
        /// Why.
        why: String,
    },
    /// The connection failed.
    #[error("LDAP server {server} gave no answer: {cause}")]
    NoAnswer {
        /// Which.
        server: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// pgweir's own entry is refused.
    #[error(
        "could not perform initial LDAP bind for ldapbinddn \"{dn}\" on server {server}: {outcome}"
    )]
    OwnBind {
        /// The entry.
        dn: String,
        /// Which.
        server: String,
        /// How.
        outcome: String,
    },
    /// The search failed.
    #[error("could not search LDAP for filter \"{filter}\" on server {server}: {outcome}")]
    Search {
        /// For what.
        filter: String,
        /// Which.
        server: String,
        /// How.
        outcome: String,
    },
    /// Nothing was found.
    #[error("LDAP user \"{0}\" does not exist")]
    NoEntry(String),
    /// More than one was found.
    #[error("LDAP user \"{0}\" is not unique")]
    NotUnique(String),
    /// The password is wrong, or the entry may not log in.
    #[error("LDAP login failed for user \"{dn}\" on server {server}: {outcome}")]
    Refused {
        /// The entry.
        dn: String,
        /// Which.
        server: String,
        /// How.
        outcome: String,
    },
}

impl Refusal {
    /// Whether the directory, and not the client, is at fault.
    pub fn is_the_directorys(&self) -> bool {
        !matches!(
            self,
            Self::EmptyPassword
                | Self::UnfitName
                | Self::NoEntry(_)
                | Self::NotUnique(_)
                | Self::Refused { .. }
        )
    }
}

/// Whether the options can be used; what they say of a filter is known when it is read.
pub fn check(options: &LdapOptions) -> Result<(), String> {
    let Naming::Search { filter, .. } = &options.naming else {
        return Ok(());
    };
    let tried = filter::of_user(filter, "x");
    filter::parse(&tried)
        .map(|_| ())
        .map_err(|_| format!("{filter:?} is no LDAP search filter"))
}

/// Has the directory check the password. `connector`: for the options that want TLS.
pub async fn verify(
    options: &LdapOptions,
    connector: Option<&Connector>,
    user: &str,
    password: &Secret,
) -> Result<(), Refusal> {
    if password.expose().is_empty() {
        return Err(Refusal::EmptyPassword);
    }
    if matches!(options.naming, Naming::Search { .. }) && user.contains(UNFIT) {
        return Err(Refusal::UnfitName);
    }
    let mut directory = Connected::connect(options, connector).await?;
    let dn = match &options.naming {
        Naming::Around { prefix, suffix } => name_around(prefix, user, suffix),
        Naming::Search {
            base,
            scope,
            filter,
            bind_dn,
            bind_password,
        } => {
            let outcome = directory.bind(bind_dn, bind_password.expose()).await?;
            if outcome.code != Outcome::SUCCESS {
                return Err(Refusal::OwnBind {
                    dn: bind_dn.clone(),
                    outcome: told(&outcome),
                    server: directory.server,
                });
            }
            let filter = filter::of_user(filter, user);
            directory.find(base, *scope, &filter, user).await?
        }
    };
    let outcome = directory.bind(&dn, password.expose()).await?;
    directory.leave().await;
    if outcome.code == Outcome::SUCCESS {
        return Ok(());
    }
    Err(Refusal::Refused {
        dn,
        outcome: told(&outcome),
        server: directory.server,
    })
}

/// The user's entry. In a distinguished name the user's part is nothing but a value; other names (`user@example.com`,
/// `EXAMPLE\user`) have no escapes.
fn name_around(prefix: &str, user: &str, suffix: &str) -> String {
    if prefix.trim_end().ends_with('=') {
        [prefix, &ldap::escaped(user), suffix].concat()
    } else {
        [prefix, user, suffix].concat()
    }
}

fn told(outcome: &Outcome) -> String {
    if outcome.message.is_empty() {
        return outcome.words();
    }
    // A line of the log is one line.
    let message: String = outcome
        .message
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    format!("{} ({})", outcome.words(), message.trim())
}

/// A socket, with TLS or without.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A connection to a server.
struct Connected {
    socket: Box<dyn Socket>,
    server: String,
    /// What was read of the next message.
    read: Vec<u8>,
    last_id: i32,
}

impl Connected {
    /// Connects to the first server that is there.
    async fn connect(
        options: &LdapOptions,
        connector: Option<&Connector>,
    ) -> Result<Self, Refusal> {
        let mut last = None;
        for (host, port) in &options.servers {
            let server = format!("{host}:{port}");
            let connecting = Self::connect_to(host, *port, &server, options.safety, connector);
            let connected = timeout(CONNECT_LIMIT, connecting)
                .await
                .unwrap_or_else(|_| {
                    Err(Refusal::Unreachable {
                        server,
                        cause: late(CONNECT_LIMIT),
                    })
                });
            match connected {
                Ok(directory) => return Ok(directory),
                Err(refusal) => last = Some(refusal),
            }
        }
        Err(last.expect("options name at least one server"))
    }

    async fn connect_to(
        host: &str,
        port: u16,
        server: &str,
        safety: Safety,
        connector: Option<&Connector>,
    ) -> Result<Self, Refusal> {
        let socket = TcpStream::connect((host, port)).await;
        let mut socket = socket.map_err(|cause| Refusal::Unreachable {
            server: server.to_owned(),
            cause,
        })?;
        let of = |socket, last_id| Self {
            socket,
            server: server.to_owned(),
            read: Vec::new(),
            last_id,
        };
        if safety == Safety::None {
            return Ok(of(Box::new(socket), 0));
        }
        let no_tls = |why: String| Refusal::NoTls {
            server: server.to_owned(),
            why,
        };
        let mut last_id = 0;
        if safety == Safety::StartTls {
            last_id = 1;
            socket = start_tls(socket, server).await?;
        }
        let connector = connector.ok_or_else(|| no_tls("TLS is not set up".to_owned()))?;
        let secured = connector.connect(socket, host, true).await;
        let secured = secured.map_err(|error| no_tls(error.to_string()))?;
        Ok(of(secured, last_id))
    }

    async fn bind(&mut self, dn: &str, password: &str) -> Result<Outcome, Refusal> {
        let id = self.next_id();
        match self.ask(id, &ldap::bind(id, dn, password)).await? {
            Reply::Bind(outcome) => Ok(outcome),
            _ => Err(self.no_answer(malformed(LdapError::Malformed))),
        }
    }

    /// The one entry that fits.
    async fn find(
        &mut self,
        base: &str,
        scope: Scope,
        text: &str,
        user: &str,
    ) -> Result<String, Refusal> {
        let refused = |server: &str, outcome: String| Refusal::Search {
            filter: text.to_owned(),
            server: server.to_owned(),
            outcome,
        };
        let filter = filter::parse(text);
        let filter = filter.map_err(|error| refused(&self.server, error.to_string()))?;
        let scope = match scope {
            Scope::Base => ldap::Scope::Base,
            Scope::One => ldap::Scope::One,
            Scope::Subtree => ldap::Scope::Subtree,
        };
        let id = self.next_id();
        // Whether it is the only one is told by a second.
        let mut reply = self
            .ask(id, &ldap::search(id, base, scope, &filter, 2))
            .await?;
        let mut found = Vec::new();
        loop {
            match reply {
                Reply::Entry(dn) => found.push(dn),
                Reply::Reference => {}
                Reply::SearchDone(outcome) => {
                    let cut = outcome.code == Outcome::SIZE_LIMIT && found.len() > 1;
                    if outcome.code != Outcome::SUCCESS && !cut {
                        return Err(refused(&self.server, told(&outcome)));
                    }
                    break;
                }
                Reply::Bind(_) | Reply::Extended(_) => {
                    return Err(self.no_answer(malformed(LdapError::Malformed)));
                }
            }
            if found.len() > 1 {
                break;
            }
            reply = self.answer(id).await?;
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(dn), None) => Ok(dn),
            (None, _) => Err(Refusal::NoEntry(user.to_owned())),
            (Some(_), Some(_)) => Err(Refusal::NotUnique(user.to_owned())),
        }
    }

    /// Says goodbye. The server closes then; whether it hears it is its own matter.
    async fn leave(&mut self) {
        let id = self.next_id();
        let goodbye = async {
            self.socket.write_all(&ldap::unbind(id)).await?;
            self.socket.flush().await
        };
        let _ = timeout(CONNECT_LIMIT, goodbye).await;
    }

    fn next_id(&mut self) -> i32 {
        self.last_id += 1;
        self.last_id
    }

    async fn ask(&mut self, id: i32, request: &[u8]) -> Result<Reply, Refusal> {
        let writing = async {
            self.socket.write_all(request).await?;
            self.socket.flush().await
        };
        in_time(writing)
            .await
            .map_err(|cause| self.no_answer(cause))?;
        self.answer(id).await
    }

    async fn answer(&mut self, id: i32) -> Result<Reply, Refusal> {
        let reading = in_time(next_reply(&mut self.socket, &mut self.read)).await;
        let (of, reply) = reading.map_err(|cause| self.no_answer(cause))?;
        if of == id {
            return Ok(reply);
        }
        let cause = match reply {
            // It says goodbye, unasked.
            Reply::Extended(outcome) if of == 0 => {
                io::Error::new(io::ErrorKind::ConnectionAborted, told(&outcome))
            }
            _ => malformed(LdapError::Malformed),
        };
        Err(self.no_answer(cause))
    }

    fn no_answer(&self, cause: io::Error) -> Refusal {
        Refusal::NoAnswer {
            server: self.server.clone(),
            cause,
        }
    }
}

/// Asks for TLS on this connection. What comes behind the answer is TLS: nothing of it may have been read yet, or somebody has put
/// words between.
async fn start_tls(mut socket: TcpStream, server: &str) -> Result<TcpStream, Refusal> {
    let no_tls = |why: String| Refusal::NoTls {
        server: server.to_owned(),
        why,
    };
    let mut read = Vec::new();
    let asking = async {
        socket.write_all(&ldap::start_tls(1)).await?;
        next_reply(&mut socket, &mut read).await
    };
    let answer = asking.await.map_err(|error| no_tls(error.to_string()))?;
    match answer {
        (1, Reply::Extended(outcome)) if outcome.code == Outcome::SUCCESS => {}
        (_, Reply::Extended(outcome)) => return Err(no_tls(told(&outcome))),
        _ => return Err(no_tls(LdapError::Malformed.to_string())),
    }
    if read.is_empty() {
        Ok(socket)
    } else {
        Err(no_tls("it says more than was asked for".to_owned()))
    }
}

/// The next message of the server, and whose answer it is.
async fn next_reply<S>(socket: &mut S, read: &mut Vec<u8>) -> io::Result<(i32, Reply)>
where
    S: AsyncRead + Unpin + ?Sized,
{
    loop {
        if let Some(length) = ldap::first_message(read).map_err(malformed)? {
            let reply = ldap::parse(&read[..length]).map_err(malformed)?;
            read.drain(..length);
            return Ok(reply);
        }
        // A message that is too long is told by its first bytes, so this comes to an end.
        read.reserve(1024);
        if socket.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(ANSWER_LIMIT, step)
        .await
        .unwrap_or_else(|_| Err(late(ANSWER_LIMIT)))
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {limit:?}"))
}

fn malformed(error: LdapError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_dn_is_escaped_and_another_is_left_alone() {
        for (prefix, user, suffix, name) in [
            ("uid=", "ann", ",dc=x", "uid=ann,dc=x"),
            (
                "uid=",
                "ann,ou=admins",
                ",dc=x",
                "uid=ann\\,ou\\=admins,dc=x",
            ),
            ("", "a+b", "@example.com", "a+b@example.com"),
            ("EXAMPLE\\", "ann", "", "EXAMPLE\\ann"),
        ] {
            assert_eq!(name_around(prefix, user, suffix), name);
        }
    }
}
