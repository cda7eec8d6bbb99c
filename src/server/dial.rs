//! Connects to Postgres and logs in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::timeout;

use super::connection::Connection;
use super::login::{Identity, LoginError, Welcome, ask, ask_noting, login};
use super::reach::{Place, Unreachable, reach};
use super::secure::{Attempt, Route, SecureError, Security, binding};
use super::told::Teller;
use crate::config::checked::{Host, Tcp};
use crate::net::line::Line;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::wire::reply::{Report, Severity, SqlState};
use crate::wire::scram::ScramError;
use crate::wire::startup::CancelKey;

/// Where to connect, as whom, and for how long to try.
#[derive(Debug, Clone)]
pub struct Target {
    /// Hosts that stand for one Postgres, tried in order.
    pub hosts: Vec<Arc<Host>>,
    /// Whose turn it is to be tried first, where they take turns.
    pub turn: Option<Arc<AtomicUsize>>,
    /// Whom to log in as.
    pub identity: Identity,
    /// Run once after login.
    pub connect_query: Option<String>,
    /// Socket options.
    pub tcp: Tcp,
    /// TLS.
    pub security: Security,
    /// For connect and login together.
    pub limit: Duration,
}

/// Why no connection came of it.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Connect and login took too long.
    #[error("no login within {0:?}")]
    Timeout(Duration),
    /// The last host tried has no address.
    #[error("cannot connect to {host}: {cause}")]
    NoAddress {
        /// The host.
        host: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// No host could be reached.
    #[error("cannot connect to {host}: {cause}")]
    Unreachable {
        /// The last host tried.
        host: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It was reached, but TLS did not come about.
    #[error("TLS with {host}: {cause}")]
    Insecure {
        /// The host.
        host: String,
        /// Why.
        #[source]
        cause: SecureError,
    },
    /// It was reached, but did not let us in.
    #[error("login failed: {0}")]
    Login(#[source] LoginError),
    /// `connect_query` failed.
    #[error("connect_query failed: {0}")]
    ConnectQuery(#[source] LoginError),
    /// Asking for max_connections failed.
    #[error("asking for max_connections failed: {0}")]
    Limit(#[source] LoginError),
}

impl Target {
    /// The hosts in the order in which they are to be tried now.
    fn hosts_in_turn(&self) -> Vec<Arc<Host>> {
        let mut hosts = self.hosts.clone();
        if let Some(turn) = self.turn.as_ref().filter(|_| hosts.len() > 1) {
            let first = turn.fetch_add(1, Relaxed) % hosts.len();
            hosts.rotate_left(first);
        }
        hosts
    }

    /// Whether a connection made for `other` is as good as one made for this.
    pub fn leads_to_the_same(&self, other: &Self) -> bool {
        let same_identity = self.identity.user == other.identity.user
            && self.identity.database == other.identity.database;
        let same_way = self.hosts == other.hosts && self.security == other.security;
        same_identity && same_way && self.connect_query == other.connect_query
    }
}

impl From<Unreachable> for DialError {
    fn from(unreachable: Unreachable) -> Self {
        let Unreachable {
            host,
            cause,
            is_unknown,
        } = unreachable;
        let host = name(&host);
        if is_unknown {
            Self::NoAddress { host, cause }
        } else {
            Self::Unreachable { host, cause }
        }
    }
}

impl DialError {
    /// Whether another try may succeed without anybody changing anything: Postgres is down, starting, or full.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Login(LoginError::Refused(error))
            | Self::ConnectQuery(LoginError::Refused(error)) => is_passing(error.code),
            Self::Login(LoginError::NoProof(_) | LoginError::Method(_) | LoginError::Scram(_)) => {
                false
            }
            Self::Insecure { cause, .. } => cause.is_passing(),
            _ => true,
        }
    }

    /// The words for metrics.
    pub const WORDS: [&str; 7] = [
        "timeout",
        "no_address",
        "unreachable",
        "tls",
        "login",
        "connect_query",
        "limit",
    ];

    /// The word for metrics.
    pub fn as_str(&self) -> &'static str {
        let place = match self {
            Self::Timeout(_) => 0,
            Self::NoAddress { .. } => 1,
            Self::Unreachable { .. } => 2,
            Self::Insecure { .. } => 3,
            Self::Login(_) => 4,
            Self::ConnectQuery(_) => 5,
            Self::Limit(_) => 6,
        };
        Self::WORDS[place]
    }

    /// Whether the protocol's version may be what the server does not like.
    fn may_depend_on_version(&self) -> bool {
        match self {
            Self::Login(LoginError::Refused(error)) => matches!(
                error.code,
                SqlState::PROTOCOL_VIOLATION | SqlState::NOT_SUPPORTED
            ),
            _ => false,
        }
    }

    /// Whether it may come from speaking TLS, or from not speaking it: Postgres' `pg_hba.conf` has no entry for such a
    /// connection, or TLS did not come about.
    fn depends_on_tls(&self) -> bool {
        match self {
            Self::Insecure { .. } => true,
            Self::Login(LoginError::Refused(error)) => {
                error.code == SqlState::INVALID_AUTHORIZATION
            }
            _ => false,
        }
    }

    /// Whether Postgres asked for a proof that we do not have.
    pub fn wants_proof(&self) -> bool {
        matches!(self, Self::Login(LoginError::NoProof(_)))
    }

    /// Postgres' code for it, if it is Postgres that refuses.
    pub fn code(&self) -> Option<SqlState> {
        match self {
            Self::Login(LoginError::Refused(error))
            | Self::ConnectQuery(LoginError::Refused(error)) => Some(error.code),
            _ => None,
        }
    }

    /// Whether Postgres as a whole has no connection left, rather than this role or this database, which have limits of their own.
    pub fn found_full(&self) -> bool {
        match self {
            Self::Login(LoginError::Refused(error)) => {
                let own_limit = ["InitializeSessionUserId", "CheckMyDatabase"];
                error.code == SqlState::TOO_MANY_CONNECTIONS
                    && !error
                        .routine()
                        .is_some_and(|routine| own_limit.contains(&&*routine))
            }
            _ => false,
        }
    }

    /// Whether what pgweir has shown was wrong: the password at Postgres is another one.
    pub fn refuses_proof(&self) -> bool {
        match self {
            Self::Login(LoginError::Refused(error)) => error.code == SqlState::INVALID_PASSWORD,
            Self::Login(LoginError::Scram(error)) => *error == ScramError::ForeignSecret,
            _ => false,
        }
    }

    /// What clients that wait for this connection are told: Postgres' own words where there are any.
    pub fn to_client(&self) -> Vec<u8> {
        match self {
            Self::Login(LoginError::Refused(error)) => error.to_bytes(),
            Self::Login(LoginError::Scram(ScramError::ForeignSecret)) => Report::new(
                SqlState::INVALID_PASSWORD,
                "the password of this role has changed at Postgres",
            )
            .hint("Log in again. If the role is in [users] or users_file, its secret is out of date there.")
            .error(Severity::Fatal),
            Self::Login(
                error @ (LoginError::NoProof(_) | LoginError::Method(_) | LoginError::Scram(_)),
            ) => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                format!("pgweir could not log in to Postgres: {error}"),
            )
            .hint("Log in again by SCRAM, or give this user's password in [users] or users_file.")
            .error(Severity::Fatal),
            error => {
                Report::new(SqlState::UNABLE_TO_CONNECT, error.to_string()).error(Severity::Fatal)
            }
        }
    }
}

/// Conditions that pass: operator intervention (57P01 to 57P05), insufficient resources (53), connection exceptions (08).
fn is_passing(code: SqlState) -> bool {
    matches!(&code.0[..2], b"57" | b"53" | b"08")
}

/// How many connections Postgres leaves to ordinary users (manual, "Connection Settings").
const LIMIT_QUERY: &str = "SELECT current_setting('max_connections')::int \
    - current_setting('superuser_reserved_connections')::int \
    - coalesce(current_setting('reserved_connections', true)::int, 0)";

/// How long Postgres may take to close a connection whose login it has refused.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Connects and logs in. With `ask_limit`, also asks how many connections Postgres leaves to ordinary users, if it says.
pub async fn dial(
    target: &Target,
    ask_limit: bool,
    teller: &Teller,
) -> Result<(Connection, Option<u32>), DialError> {
    timeout(
        target.limit,
        connect_in_some_version(target, ask_limit, teller),
    )
    .await
    .map_err(|_| DialError::Timeout(target.limit))?
}

/// Asks for the newest protocol version first. Postgres itself answers with what it has; what stands before it may refuse.
async fn connect_in_some_version(
    target: &Target,
    ask_limit: bool,
    teller: &Teller,
) -> Result<(Connection, Option<u32>), DialError> {
    match connect_and_log_in(target, ask_limit, teller).await {
        Err(error) if target.identity.minor > 0 && error.may_depend_on_version() => {
            let mut plain = target.clone();
            plain.identity.minor = 0;
            connect_and_log_in(&plain, ask_limit, teller).await
        }
        outcome => outcome,
    }
}

async fn connect_and_log_in(
    target: &Target,
    ask_limit: bool,
    teller: &Teller,
) -> Result<(Connection, Option<u32>), DialError> {
    let reached = reach(&target.hosts_in_turn(), &target.tcp, target.limit).await;
    let (stream, place) = reached?;
    let (first, second) = target.security.attempts(&place.host);
    let mut entered = enter(target, stream, place.clone(), first, teller).await;
    if let (Err(failed), Some(second)) = (&entered, second)
        && failed.may_go_well_with(&second)
    {
        let again = place.connect(&target.tcp).await;
        let stream = again.map_err(|cause| DialError::Unreachable {
            host: name(&place.host),
            cause,
        })?;
        let retried = enter(target, stream, place, second, teller).await;
        // That there is no TLS either says less than why it was tried.
        if !matches!(&retried, Err(failed) if matches!(failed.error, DialError::Insecure { .. })) {
            entered = retried;
        }
    }
    let Entered {
        mut packets,
        route,
        mut welcome,
        key,
    } = entered.map_err(|failed| failed.error)?;
    if let Some(sql) = &target.connect_query {
        ask_noting(&mut packets, sql, &mut welcome)
            .await
            .map_err(DialError::ConnectQuery)?;
    }
    let mut limit = None;
    if ask_limit {
        let answer = if target.identity.replicates() {
            limit_by_show(&mut packets).await
        } else {
            let answer = ask(&mut packets, LIMIT_QUERY).await;
            answer.map(|text| text.and_then(|text| text.parse().ok()))
        };
        limit = answer.map_err(DialError::Limit)?;
    }
    let (stream, _nothing) = packets.into_parts();
    let connection = Connection::new(stream, key, Arc::new(welcome), route);
    Ok((connection, limit))
}

/// The same for a connection that understands the replication protocol alone (manual, "Streaming Replication Protocol").
async fn limit_by_show(packets: &mut Packets<Stream>) -> Result<Option<u32>, LoginError> {
    let mut left = None;
    for name in [
        "max_connections",
        "superuser_reserved_connections",
        "reserved_connections",
    ] {
        let value = match ask(packets, &format!("SHOW {name}")).await {
            // The last one is new.
            Err(LoginError::Refused(_)) => continue,
            answer => answer?.and_then(|text| text.parse::<u32>().ok()),
        };
        left = match (left, value) {
            (None, value) => value,
            (Some(left), value) => Some(left.saturating_sub(value.unwrap_or(0))),
        };
    }
    Ok(left)
}

/// A connection that Postgres has let in.
struct Entered {
    packets: Packets<Stream>,
    route: Route,
    welcome: Welcome,
    key: CancelKey,
}

/// A connection that Postgres has not let in.
struct Failed {
    error: DialError,
    /// Whether TLS was spoken, or tried.
    secured: bool,
}

impl Failed {
    /// Whether another attempt is another thing: with TLS where there was none, or without where there was. As in libpq, the
    /// modes `allow` and `prefer` try both, because `pg_hba.conf` may have an entry for one alone.
    fn may_go_well_with(&self, attempt: &Attempt) -> bool {
        self.error.depends_on_tls() && self.secured == matches!(attempt, Attempt::Plain)
    }
}

/// Secures a fresh connection and logs in.
async fn enter(
    target: &Target,
    stream: Stream,
    place: Place,
    attempt: Attempt,
    teller: &Teller,
) -> Result<Entered, Failed> {
    teller.connected(&place, &Line::of(&stream));
    let host = Arc::clone(&place.host);
    let secured = Route::secure(place, stream, attempt).await;
    let (stream, route) = secured.map_err(|cause| Failed {
        error: DialError::Insecure {
            host: name(&host),
            cause,
        },
        secured: true,
    })?;
    teller.secured(route.place(), &Line::of(&stream));
    let secured = stream.tls().is_some();
    let end_point = binding(&stream);
    let mut packets = Packets::new(stream);
    match login(&mut packets, &target.identity, end_point.as_deref()).await {
        Ok((welcome, key)) => Ok(Entered {
            packets,
            route,
            welcome,
            key,
        }),
        Err(error) => {
            // Until Postgres has closed its side it counts the connection.
            let _ = timeout(REFUSAL_LIMIT, packets.await_end()).await;
            let error = DialError::Login(error);
            Err(Failed { error, secured })
        }
    }
}

/// A host as people write it.
pub fn name(host: &Host) -> String {
    match host {
        Host::Tcp(name, port) if name.contains(':') => format!("[{name}]:{port}"),
        Host::Tcp(name, port) => format!("{name}:{port}"),
        Host::Unix(directory, port) => crate::net::stream::unix_path(directory, *port),
    }
}

#[cfg(test)]
impl Target {
    /// Without TLS, patience or anything else that a test would have to ask for.
    pub fn sample(hosts: Vec<Arc<Host>>) -> Self {
        Self {
            hosts,
            turn: None,
            identity: Identity {
                user: "ann".into(),
                database: "site".into(),
                proof: super::login::ServerLogin::Nothing,
                application_name: "test".into(),
                minor: crate::wire::startup::NEWEST_MINOR,
                parameters: Vec::new(),
            },
            connect_query: None,
            tcp: Tcp::LEFT_ALONE,
            security: Security::NONE,
            limit: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_take_turns_are_tried_first_one_after_the_other() {
        let host = |name: &str| Arc::new(Host::Tcp(name.to_owned(), 5432));
        let mut target = Target::sample(vec![host("a"), host("b")]);
        let first = |target: &Target| match &*target.hosts_in_turn()[0] {
            Host::Tcp(name, _) | Host::Unix(name, _) => name.clone(),
        };
        assert_eq!([first(&target), first(&target)], ["a", "a"]);
        target.turn = Some(Arc::default());
        // Pools that are made of the same settings share the turn.
        let again = target.clone();
        assert_eq!([first(&target), first(&again)], ["a", "b"]);
        assert_eq!(first(&target), "a");
    }
}
