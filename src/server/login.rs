//! Logs in to Postgres over an open stream (manual, "Start-up").

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::state::parameter;
use crate::config::checked::Secret;
use crate::net::packet::{Packet, Packets};
use crate::wire::md5::Md5Secret;
use crate::wire::reply::{Message, ServerError, authentication, query};
use crate::wire::scram::{
    self, ClientAuth, ClientBinding, ClientExchange, KeyCache, ScramError, ScramKeys,
};
use crate::wire::startup::{CancelKey, LONGEST_KEY, startup_message};

/// The longest message that is read before the login is over. A server's error may be long; 64 kB is plenty.
const LONGEST_LOGIN_MESSAGE: usize = 256 * 1024;

/// What pgweir can show to Postgres for a user.
#[derive(Debug, Clone)]
pub enum ServerLogin {
    /// The password, good for every method, and the SCRAM keys already derived from it.
    Password {
        /// The password.
        password: Secret,
        /// Its keys.
        keys: Arc<KeyCache>,
    },
    /// A hash, good for MD5 alone.
    Md5(Md5Secret),
    /// Keys that a client's login has shown, good for SCRAM where Postgres has the same secret.
    Keys(ScramKeys),
    /// Nothing: only a Postgres that trusts us lets us in.
    Nothing,
}

impl ServerLogin {
    /// A password, with no keys derived from it yet.
    pub fn password(password: &Secret) -> Self {
        Self::Password {
            password: password.clone(),
            keys: Arc::new(KeyCache::new(password.expose())),
        }
    }

    /// The answer to AuthenticationCleartextPassword.
    pub fn cleartext(&self) -> Option<&Secret> {
        match self {
            Self::Password { password, .. } => Some(password),
            _ => None,
        }
    }

    /// What answers AuthenticationMD5Password for `user`.
    pub fn md5(&self, user: &str) -> Option<Md5Secret> {
        match self {
            Self::Password { password, .. } => {
                Some(Md5Secret::derive(user, password.expose().as_bytes()))
            }
            Self::Md5(hash) => Some(hash.clone()),
            Self::Keys(_) | Self::Nothing => None,
        }
    }

    /// Whether both show the same.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Password { password, .. },
                Self::Password {
                    password: theirs, ..
                },
            ) => password == theirs,
            (Self::Md5(hash), Self::Md5(theirs)) => hash == theirs,
            (Self::Keys(keys), Self::Keys(theirs)) => keys == theirs,
            (Self::Nothing, Self::Nothing) => true,
            _ => false,
        }
    }

    /// What answers AuthenticationSASL.
    pub fn scram(&self) -> Option<ClientAuth> {
        match self {
            Self::Password { keys, .. } => Some(ClientAuth::Password(Arc::clone(keys))),
            Self::Keys(keys) => Some(ClientAuth::Keys(keys.clone())),
            Self::Md5(_) | Self::Nothing => None,
        }
    }
}

/// Whom to log in as.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// The proof.
    pub proof: ServerLogin,
    /// application_name of the connection until a client sets another.
    pub application_name: String,
    /// What else its startup message says.
    pub parameters: Vec<(String, String)>,
    /// The minor protocol version to ask for. A server that has only older ones says so, or refuses.
    pub minor: u16,
}

impl Identity {
    /// Whether it speaks the replication protocol.
    pub fn replicates(&self) -> bool {
        self.parameters
            .iter()
            .any(|(name, _)| name == "replication")
    }
}

/// What Postgres told at login.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// ParameterStatus messages, in order.
    pub parameters: Vec<(Box<str>, Box<str>)>,
    /// Bodies of the NoticeResponse messages that came with them.
    pub notices: Vec<Box<[u8]>>,
}

impl Welcome {
    /// Keeps a notice for the clients, unless there are too many.
    fn notice(&mut self, body: &[u8]) {
        const MOST: usize = 64 * 1024;
        let kept: usize = self.notices.iter().map(|notice| notice.len()).sum();
        if kept + body.len() <= MOST {
            self.notices.push(body.into());
        }
    }
}

/// A row of an answer to pgweir's own query; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Postgres refused, in its own words.
    #[error("{0}")]
    Refused(ServerError),
    /// Postgres wants a proof that we do not have.
    #[error("Postgres asks for {0}, for which pgweir has no usable secret of this user")]
    NoProof(&'static str),
    /// An authentication method that pgweir does not speak.
    #[error("Postgres asks for authentication method {0}, which is not supported")]
    Method(u32),
    /// The SCRAM exchange went wrong.
    #[error("SCRAM with Postgres failed: {0}")]
    Scram(#[from] ScramError),
    /// What came was no login dialogue.
    #[error("unexpected {0} from Postgres during login")]
    Unexpected(&'static str),
}

/// Logs in. Returns when the server is ready for a query and has nothing more to say.
///
/// `end_point`: the hash of the server's certificate, for channel binding.
pub async fn login<S>(
    packets: &mut Packets<S>,
    identity: &Identity,
    end_point: Option<&[u8]>,
) -> Result<(Welcome, CancelKey), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let own = [
        ("user", identity.user.as_str()),
        ("database", &identity.database),
        ("application_name", &identity.application_name),
    ];
    let more = identity.parameters.iter();
    let more = more.map(|(name, value)| (name.as_str(), value.as_str()));
    packets
        .write(&startup_message(
            identity.minor,
            own.into_iter().chain(more),
        ))
        .await?;
    authenticate(packets, identity, end_point).await?;
    welcome(packets).await
}

/// The next message; an error ends the login.
async fn next<S>(packets: &mut Packets<S>) -> Result<Packet, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let packet = packets.read(LONGEST_LOGIN_MESSAGE).await?;
        match packet.tag {
            b'E' => return Err(LoginError::Refused(ServerError::parse(&packet.body))),
            // NegotiateProtocolVersion: it speaks an older version, and nothing else differs but the length of its keys.
            b'v' => {}
            _ => return Ok(packet),
        }
    }
}

/// The next authentication request: its code and data.
async fn request<S>(packets: &mut Packets<S>) -> Result<(u32, Bytes), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut body = loop {
        match next(packets).await? {
            Packet { tag: b'R', body } => break body,
            Packet { tag: b'N', .. } => {}
            _ => return Err(LoginError::Unexpected("message")),
        }
    };
    let code = body
        .try_get_u32()
        .map_err(|_| LoginError::Unexpected("authentication request"))?;
    Ok((code, body))
}

async fn authenticate<S>(
    packets: &mut Packets<S>,
    identity: &Identity,
    end_point: Option<&[u8]>,
) -> Result<(), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (code, data) = request(packets).await?;
    match code {
        authentication::OK => return Ok(()),
        authentication::CLEARTEXT => {
            let password = identity
                .proof
                .cleartext()
                .ok_or(LoginError::NoProof("a password"))?;
            packets
                .write(&Message::new(b'p').text(password.expose()).done())
                .await?;
        }
        authentication::MD5 => {
            let salt = *data.first_chunk().ok_or(LoginError::Unexpected("salt"))?;
            let secret = identity
                .proof
                .md5(&identity.user)
                .ok_or(LoginError::NoProof("an MD5 password"))?;
            let response = secret.response(salt);
            packets
                .write(&Message::new(b'p').text(&response).done())
                .await?;
        }
        authentication::SASL => scram(packets, identity, &data, end_point).await?,
        method => return Err(LoginError::Method(method)),
    }
    match request(packets).await? {
        (authentication::OK, _) => Ok(()),
        (method, _) => Err(LoginError::Method(method)),
    }
}

async fn scram<S>(
    packets: &mut Packets<S>,
    identity: &Identity,
    mechanisms: &[u8],
    end_point: Option<&[u8]>,
) -> Result<(), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offers = |name: &str| {
        mechanisms
            .split(|byte| *byte == 0)
            .any(|offered| offered == name.as_bytes())
    };
    let binding = match end_point {
        Some(hash) if offers(scram::MECHANISM_PLUS) => ClientBinding::EndPoint(hash),
        Some(_) => ClientBinding::NotOffered,
        None => ClientBinding::Unable,
    };
    if !offers(binding.mechanism()) {
        return Err(LoginError::Unexpected("list of SASL mechanisms"));
    }
    let auth = identity
        .proof
        .scram()
        .ok_or(LoginError::NoProof("a SCRAM password"))?;
    let (exchange, first) = ClientExchange::begin(scram::nonce(rand::random()), auth, binding);
    let length = u32::try_from(first.len()).expect("a nonce and a header");
    packets
        .write(
            &Message::new(b'p')
                .text(binding.mechanism())
                .u32(length)
                .bytes(&first)
                .done(),
        )
        .await?;
    let (authentication::SASL_CONTINUE, challenge) = request(packets).await? else {
        return Err(LoginError::Unexpected("SASL step"));
    };
    let (exchange, answer) = exchange.answer(&challenge)?;
    packets
        .write(&Message::new(b'p').bytes(&answer).done())
        .await?;
    let (authentication::SASL_FINAL, signature) = request(packets).await? else {
        return Err(LoginError::Unexpected("SASL step"));
    };
    Ok(exchange.verify(&signature)?)
}

/// Reads up to ReadyForQuery, and past whatever was sent with it.
async fn welcome<S>(packets: &mut Packets<S>) -> Result<(Welcome, CancelKey), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut welcome = Welcome::default();
    let mut key = CancelKey {
        pid: 0,
        secret: Box::default(),
    };
    loop {
        let mut packet = next(packets).await?;
        match packet.tag {
            b'S' => welcome
                .parameters
                .push(parameter(&packet.body).ok_or(LoginError::Unexpected("ParameterStatus"))?),
            b'K' => {
                key.pid = packet
                    .body
                    .try_get_u32()
                    .map_err(|_| LoginError::Unexpected("BackendKeyData"))?;
                if packet.body.len() > LONGEST_KEY {
                    return Err(LoginError::Unexpected("length of a cancel key"));
                }
                key.secret = packet.body[..].into();
            }
            b'N' => welcome.notice(&packet.body),
            b'Z' => break,
            _ => return Err(LoginError::Unexpected("message")),
        }
    }
    while packets.has_more() {
        if let Packet { tag: b'N', body } = next(packets).await? {
            welcome.notice(&body);
        }
    }
    Ok((welcome, key))
}

/// Runs a query of pgweir's own and gives the first column of its first row.
pub async fn ask<S>(packets: &mut Packets<S>, sql: &str) -> Result<Option<String>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    ask_noting(packets, sql, &mut Welcome::default()).await
}

/// The same for a query that belongs to the login: its notices are kept with those of the login.
pub async fn ask_noting<S>(
    packets: &mut Packets<S>,
    sql: &str,
    welcome: &mut Welcome,
) -> Result<Option<String>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    packets.write(&query(sql)).await?;
    let (mut value, mut failed) = (None, None);
    loop {
        let packet = packets.read(LONGEST_LOGIN_MESSAGE).await?;
        match packet.tag {
            b'D' if value.is_none() => value = first_column(packet.body),
            b'N' => welcome.notice(&packet.body),
            b'E' => failed = Some(ServerError::parse(&packet.body)),
            b'Z' => break,
            _ => {}
        }
    }
    failed.map_or(Ok(value), |error| Err(LoginError::Refused(error)))
}

/// Runs a query of pgweir's own with one parameter, which never becomes a part of its text, and gives its first rows. Whatever
/// Postgres thinks of it, the connection is ready for the next query on return.
pub async fn ask_with<S>(
    packets: &mut Packets<S>,
    sql: &str,
    parameter: &str,
) -> Result<Result<Vec<Row>, ServerError>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// One more than anybody wants.
    const ROWS: u32 = 2;
    let length = u32::try_from(parameter.len()).map_err(|_| LoginError::Unexpected("length"))?;
    let bind = Message::new(b'B').text("").text("").u16(0).u16(1);
    let bind = bind.u32(length).bytes(parameter.as_bytes()).u16(0);
    let messages = [
        Message::new(b'P').text("").text(sql).u16(0),
        bind,
        Message::new(b'E').text("").u32(ROWS),
        Message::new(b'S'),
    ];
    packets.write(&messages.map(Message::done).concat()).await?;
    let (mut rows, mut failed) = (Vec::new(), None);
    loop {
        let packet = packets.read(LONGEST_LOGIN_MESSAGE).await?;
        match packet.tag {
            b'D' => rows.push(row(packet.body).ok_or(LoginError::Unexpected("DataRow"))?),
            b'E' => failed = Some(ServerError::parse(&packet.body)),
            b'Z' if packet.body[..] == *b"I" => break,
            b'Z' => return Err(LoginError::Unexpected("transaction")),
            _ => {}
        }
    }
    if packets.has_more() {
        return Err(LoginError::Unexpected("message"));
    }
    Ok(failed.map_or(Ok(rows), Err))
}

/// Runs a query of pgweir's own and gives all its rows. Whatever Postgres thinks of it, the connection is ready for the next query
/// on return.
pub async fn ask_rows<S>(
    packets: &mut Packets<S>,
    sql: &str,
) -> Result<Result<Vec<Row>, ServerError>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Far more than a Postgres has connections.
    const MOST_ROWS: usize = 100_000;
    packets.write(&query(sql)).await?;
    let (mut rows, mut failed) = (Vec::new(), None);
    loop {
        let packet = packets.read(LONGEST_LOGIN_MESSAGE).await?;
        match packet.tag {
            b'D' if rows.len() == MOST_ROWS => return Err(LoginError::Unexpected("row")),
            b'D' => rows.push(row(packet.body).ok_or(LoginError::Unexpected("DataRow"))?),
            b'E' => failed = Some(ServerError::parse(&packet.body)),
            b'Z' if packet.body[..] == *b"I" => break,
            b'Z' => return Err(LoginError::Unexpected("transaction")),
            _ => {}
        }
    }
    Ok(failed.map_or(Ok(rows), Err))
}

fn first_column(row: Bytes) -> Option<String> {
    self::row(row)?.into_iter().next()?
}

/// The columns of a DataRow; those that are no UTF-8 are NULL to pgweir.
fn row(mut body: Bytes) -> Option<Row> {
    let columns = body.try_get_u16().ok()?;
    let mut column = || {
        let Ok(length) = usize::try_from(body.try_get_i32().ok()?) else {
            return Some(None);
        };
        let value = body.get(..length)?.to_vec();
        body.advance(length);
        Some(String::from_utf8(value).ok())
    };
    (0..columns).map(|_| column()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::wire::reply::{
        Report, Severity, SqlState, backend_key_data, parameter_status, ready_for_query,
    };
    use crate::wire::startup::{Initial, NEWEST_MINOR, body_len, cancel_request, parse};

    fn identity() -> Identity {
        Identity {
            user: "ann".into(),
            database: "site".into(),
            proof: ServerLogin::Nothing,
            application_name: "test".into(),
            parameters: Vec::new(),
            minor: NEWEST_MINOR,
        }
    }

    /// Logs in to a server that says this; the minor version that it was asked for.
    async fn log_in_to(says: &[Vec<u8>]) -> (u16, Result<(Welcome, CancelKey), LoginError>) {
        let (near, far) = duplex(64 * 1024);
        let mut server = Packets::new(far);
        server.write(&says.concat()).await.expect("there is room");
        let outcome = login(&mut Packets::new(near), &identity(), None).await;
        let length = server.array().await.expect("a startup message");
        let length = body_len(length).expect("a startup message");
        let body = server.bytes(length).await.expect("a startup message");
        let Ok(Initial::Startup(startup)) = parse(&body) else {
            panic!("{body:?}")
        };
        (startup.minor, outcome)
    }

    fn ok() -> Vec<u8> {
        authentication::request(authentication::OK, &[])
    }

    #[tokio::test]
    async fn keys_of_any_length_are_kept_whole_and_longer_ones_refused() {
        for length in [4, 32, 255, 256] {
            let secret: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let says = [
                ok(),
                parameter_status("server_version", "18.0"),
                backend_key_data(77, &secret),
                ready_for_query(),
            ];
            let (minor, outcome) = log_in_to(&says).await;
            assert_eq!(minor, 2);
            let (_, key) = outcome.expect("it is let in");
            assert_eq!((key.pid, &*key.secret), (77, &secret[..]));
            assert_eq!(parse(&cancel_request(&key)[4..]), Ok(Initial::Cancel(key)));
        }
        let says = [ok(), backend_key_data(77, &[0; 257]), ready_for_query()];
        let (_, outcome) = log_in_to(&says).await;
        assert!(
            matches!(outcome, Err(LoginError::Unexpected(_))),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_server_that_has_only_3_0_is_logged_in_to_as_well() {
        let negotiated = Message::new(b'v').u32(3 << 16).u32(0).done();
        let says = [
            negotiated,
            ok(),
            backend_key_data(77, b"abcd"),
            ready_for_query(),
        ];
        let (_, key) = log_in_to(&says).await.1.expect("it is let in");
        assert_eq!(&*key.secret, b"abcd");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_servers_words() {
        let refusal = Report::new(SqlState::NOT_SUPPORTED, "unsupported frontend protocol 3.2");
        let (_, outcome) = log_in_to(&[refusal.error(Severity::Fatal)]).await;
        let error = outcome.expect_err("it is refused").to_string();
        assert_eq!(error, "unsupported frontend protocol 3.2 (0A000)");
    }
}
