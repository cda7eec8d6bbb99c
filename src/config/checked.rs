//! The configuration after every check: nothing is optional that must be there, nothing is a string that has a type.
//!
//! Where a duration is no `Option`, [`Duration::ZERO`] has the meaning that its comment gives.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use regex::Regex;

use super::ciphers::{Curve, Suite};
use super::ldap_options::LdapOptions;

/// A whole checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients and operators connect.
    pub listen: Listen,
    /// Defaults of every pool.
    pub pool: PoolDefaults,
    /// How many server connections one Postgres may see.
    pub budget: Budget,
    /// Caps of the whole process and of users and databases.
    pub limits: Limits,
    /// Every timeout.
    pub timeouts: Timeouts,
    /// Keepalive of client and server connections.
    pub tcp: Tcp,
    /// How clients prove who they are.
    pub auth: Auth,
    /// TLS towards clients.
    pub tls_client: Tls,
    /// TLS towards Postgres.
    pub tls_server: Tls,
    /// Databases by the name clients use, without `*`.
    pub databases: BTreeMap<String, Database>,
    /// The entry for any name that is not listed.
    pub any_database: Option<Database>,
    /// Users listed in `[users]`.
    pub users: BTreeMap<String, User>,
    /// Other processes behind the same address, by their `process.peer_id`.
    pub peers: BTreeMap<u16, Peer>,
    /// Services: the defaults, then those listed, in file order.
    pub services: Services,
    /// When the reaper shortens its patience.
    pub pressure: Pressure,
    /// Who is told when a threshold is crossed.
    pub alerts: Alerts,
    /// The recorder.
    pub incidents: Incidents,
    /// What is logged, and how.
    pub log: Log,
    /// The process itself.
    pub process: Process,
    /// Threads.
    pub runtime: Runtime,
}

/// Where clients and operators connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// TCP addresses for clients.
    pub addresses: Vec<SocketAddr>,
    /// Directory of the unix socket; `Some("@name")` is abstract.
    pub unix_socket_dir: Option<String>,
    /// File mode of the unix socket.
    pub unix_socket_mode: u32,
    /// Group of the unix socket; `None` = that of the process.
    pub unix_socket_group: Option<String>,
    /// Port in the name of the unix socket; 0 = that of the first address.
    pub unix_socket_port: u16,
    /// How many connections the kernel may hold until they are accepted.
    pub backlog: u32,
    /// Whether other processes may listen on the same TCP addresses.
    pub reuse_port: bool,
    /// HTTP: status page, metrics and health.
    pub http: Option<SocketAddr>,
    /// What the status page and the metrics ask for; `None` = nothing.
    pub http_password: Option<Secret>,
    /// Networks whose PROXY headers are believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// The port in the name of the unix socket, where no TCP address gives one.
const DEFAULT_PORT: u16 = 6432;

impl Listen {
    /// The port in the name of the unix socket.
    pub fn unix_port(&self) -> u16 {
        match self.unix_socket_port {
            0 => self
                .addresses
                .first()
                .map_or(DEFAULT_PORT, SocketAddr::port),
            given => given,
        }
    }
}

/// How long a client keeps a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Until its transaction ends.
    #[default]
    Transaction,
    /// Until it leaves.
    Session,
    /// Until its statement ends; transaction blocks are refused.
    Statement,
}

/// Which of several hosts a new server connection tries first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// The first of the list.
    #[default]
    Disable,
    /// The one behind that which was tried first before.
    RoundRobin,
}

/// In whose words clients are told pgweir's own errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Errors {
    /// With the codes that Postgres would use.
    #[default]
    Postgres,
    /// As PgBouncer puts them, all with the code 08P01.
    PgBouncer,
}

/// Defaults of every pool.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct PoolDefaults {
    /// How long a client keeps a server connection.
    pub mode: Mode,
    /// Server connections of one (database, user).
    pub size: u32,
    /// Kept open even when nobody needs them.
    pub min_size: u32,
    /// Further ones for waiters who have waited `reserve_after`.
    pub reserve_size: u32,
    /// See `reserve_size`; zero = at once.
    pub reserve_after: Duration,
    /// Prepared statements on one server connection; 0 = not tracked.
    pub max_prepared_statements: u32,
    /// Run when a session-mode client leaves; empty = nothing.
    pub server_reset_query: String,
    /// Whether it is run in every mode, whenever a server connection comes back.
    pub server_reset_query_always: bool,
    /// Asked of a server connection that was unused for `server_check_delay` before it is lent; `None` = nothing.
    pub server_check_query: Option<String>,
    /// See `server_check_query`.
    pub server_check_delay: Duration,
    /// Whether a session-mode client is closed with its server connection as soon as that is to be replaced and has no transaction.
    pub server_fast_close: bool,
    /// Whether the simple query protocol is refused.
    pub disable_pqexec: bool,
    /// Startup parameters of clients that are passed over, as if they had not been sent.
    pub ignore_startup_parameters: Vec<String>,
    /// Whether the address of a client is put behind its application_name at login.
    pub application_name_add_host: bool,
    /// Whether the server connection that has been unused for longest is lent first, not the one used last.
    pub server_round_robin: bool,
    /// In whose words clients are told pgweir's own errors.
    pub errors: Errors,
}

/// The most server connections that one Postgres may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxServers {
    /// What Postgres says it has, less its reserves and `headroom`.
    Auto,
    /// This many.
    Exactly(u32),
}

/// How many server connections one Postgres may see.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// The cap.
    pub max_servers: MaxServers,
    /// Left free for others when the cap is `auto`.
    pub headroom: u32,
    /// How often Postgres is asked; `None` = never.
    pub check_every: Option<Duration>,
}

/// Caps; 0 = none.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Client connections in all.
    pub max_clients: u32,
    /// Client connections of one user.
    pub max_clients_per_user: u32,
    /// Client connections of one database.
    pub max_clients_per_database: u32,
    /// Server connections of one user.
    pub max_servers_per_user: u32,
    /// Server connections of one database.
    pub max_servers_per_database: u32,
    /// Bytes of one protocol message; 0 = as many as the protocol allows.
    pub max_message_size: u64,
    /// Bytes that the prepared statements of all clients may take.
    pub max_statement_memory: u64,
}

/// Timeouts; `None` = off.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// From accept to logged in.
    pub client_login: Option<Duration>,
    /// A client that sends nothing, outside a transaction.
    pub client_idle: Option<Duration>,
    /// A client that sends nothing, inside a transaction.
    pub idle_transaction: Option<Duration>,
    /// A whole transaction.
    pub transaction: Option<Duration>,
    /// One query.
    pub query: Option<Duration>,
    /// Waiting for a server connection.
    pub query_wait: Option<Duration>,
    /// Waiting this long earns a notice.
    pub query_wait_notify: Option<Duration>,
    /// Connect and log in to Postgres; zero = no limit of ours.
    pub server_connect: Duration,
    /// First pause after a failed connect, never zero; grows to 15 s.
    pub server_login_retry: Duration,
    /// An idle server connection is closed after this.
    pub server_idle: Option<Duration>,
    /// A server connection is closed at this age, with jitter.
    pub server_lifetime: Option<Duration>,
    /// Forwarding a cancel request; zero = no limit of ours.
    pub cancel: Duration,
    /// How long SUSPEND waits for open transactions.
    pub suspend: Option<Duration>,
    /// What a name was found to be counts for this long.
    pub dns_max_ttl: Duration,
    /// That it was not found, for this long.
    pub dns_nxdomain_ttl: Duration,
    /// How often the zones of names are asked whether they have changed; `None` = never.
    pub dns_zone_check: Option<Duration>,
    /// A pool is forgotten that nobody has used for this long.
    pub pool_idle: Option<Duration>,
    /// The same for the pools of databases that are found by `*`.
    pub auto_database_idle: Option<Duration>,
}

/// What one database or user has instead of the general timeouts: `None` = nothing, zero = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnTimeouts {
    /// See [`Timeouts::client_idle`].
    pub client_idle: Option<Duration>,
    /// See [`Timeouts::idle_transaction`].
    pub idle_transaction: Option<Duration>,
    /// See [`Timeouts::transaction`].
    pub transaction: Option<Duration>,
    /// See [`Timeouts::query`].
    pub query: Option<Duration>,
    /// See [`Timeouts::query_wait`].
    pub query_wait: Option<Duration>,
}

impl OwnTimeouts {
    /// These, and where they say nothing, those.
    #[must_use]
    pub fn or(self, those: Self) -> Self {
        Self {
            client_idle: self.client_idle.or(those.client_idle),
            idle_transaction: self.idle_transaction.or(those.idle_transaction),
            transaction: self.transaction.or(those.transaction),
            query: self.query.or(those.query),
            query_wait: self.query_wait.or(those.query_wait),
        }
    }

    /// These in place of the general ones.
    #[must_use]
    pub fn over(self, general: &Timeouts) -> Timeouts {
        let chosen = |own: Option<Duration>, general| match own {
            Some(own) => Some(own).filter(|own| !own.is_zero()),
            None => general,
        };
        Timeouts {
            client_idle: chosen(self.client_idle, general.client_idle),
            idle_transaction: chosen(self.idle_transaction, general.idle_transaction),
            transaction: chosen(self.transaction, general.transaction),
            query: chosen(self.query, general.query),
            query_wait: chosen(self.query_wait, general.query_wait),
            ..general.clone()
        }
    }
}

/// Keepalive; applied to both sides. Zero = the system's own setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Tcp {
    /// First probe after this.
    pub keepalive_idle: Duration,
    /// Between probes.
    pub keepalive_interval: Duration,
    /// Probes until the peer counts as dead.
    pub keepalive_count: u32,
    /// TCP_USER_TIMEOUT; `None` = the system's.
    pub user_timeout: Option<Duration>,
    /// Whether there are any probes.
    pub keepalive: bool,
    /// The kernel's buffers for one socket, each direction; 0 = the system's choice.
    pub socket_buffer: u64,
}

#[cfg(test)]
impl Tcp {
    /// Everything as the system has it.
    pub const LEFT_ALONE: Self = Self {
        keepalive_idle: Duration::ZERO,
        keepalive_interval: Duration::ZERO,
        keepalive_count: 0,
        user_timeout: None,
        keepalive: true,
        socket_buffer: 0,
    };
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// No proof.
    Trust,
    /// No proof and no name: every database has its own user.
    Any,
    /// Password in clear.
    Password,
    /// MD5, or SCRAM where the secret is one.
    Md5,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// Client certificate.
    Cert,
    /// As the HBA file says.
    Hba,
    /// Password in clear, which a directory checks.
    Ldap,
    /// Password in clear, which PAM checks.
    Pam,
}

/// Authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// The method.
    pub method: AuthMethod,
    /// PgBouncer's userlist.txt format.
    pub users_file: Option<PathBuf>,
    /// HBA rules.
    pub hba_file: Option<PathBuf>,
    /// Ident maps.
    pub ident_file: Option<PathBuf>,
    /// Where the directory is, and how it is asked.
    pub ldap_options: Option<LdapOptions>,
    /// The file in `/etc/pam.d`.
    pub pam_service: String,
    /// The role that runs `query`.
    pub query_user: Option<String>,
    /// The database in which it runs.
    pub query_database: Option<String>,
    /// The query; `None` = the built-in one.
    pub query: Option<String>,
    /// Who may do everything on the console.
    pub admins: Vec<String>,
    /// Who may SHOW on the console.
    pub stats: Vec<String>,
    /// A notice to everybody who has logged in.
    pub login_notify_message: Option<String>,
    /// Iterations of the secrets that are derived from plain passwords.
    pub scram_iterations: u32,
}

/// The six modes of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// If the peer insists.
    Allow,
    /// If the peer can.
    Prefer,
    /// Always.
    Require,
    /// Always, signed by `ca`.
    VerifyCa,
    /// Always, signed by `ca` and for the right name.
    VerifyFull,
}

impl TlsMode {
    /// Whether a connection without TLS is refused.
    pub fn demands(self) -> bool {
        matches!(self, Self::Require | Self::VerifyCa | Self::VerifyFull)
    }

    /// Whether the peer's certificate must be there and right.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// 1.2
    #[default]
    V1_2,
    /// 1.3
    V1_3,
}

/// What `ca` says for the authorities that the system trusts.
pub const SYSTEM_ROOTS: &str = "system";

/// How TLS begins, as libpq's `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Negotiation {
    /// The server is asked first whether it speaks TLS.
    #[default]
    Postgres,
    /// At once: one round trip less, since Postgres 17.
    Direct,
}

/// TLS of one side.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// The mode.
    pub mode: TlsMode,
    /// Own certificate chain, PEM.
    pub certificate: Option<PathBuf>,
    /// Own private key, PEM.
    pub key: Option<PathBuf>,
    /// The cipher suites, by preference; none = all.
    pub ciphers: Vec<Suite>,
    /// The curves, by preference; none = all.
    pub curves: Vec<Curve>,
    /// Trusted authorities, PEM.
    pub ca: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The newest version that is spoken.
    pub max_version: TlsVersion,
}

impl Tls {
    /// Whether this version is spoken.
    pub fn speaks(&self, version: TlsVersion) -> bool {
        (self.min_version..=self.max_version).contains(&version)
    }

    /// Whether both speak alike, whatever their modes and files are.
    pub fn speaks_as(&self, other: &Self) -> bool {
        self.min_version == other.min_version
            && self.max_version == other.max_version
            && self.ciphers == other.ciphers
            && self.curves == other.curves
    }
}

/// A value that must never be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Where a Postgres listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// Name or address, and port.
    Tcp(String, u16),
    /// Directory of the unix socket (or `@name`), and port.
    Unix(String, u16),
}

/// Another process of pgweir or PgBouncer, behind the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it alone listens.
    pub host: Host,
    /// How many cancel requests may be on their way to it at once; `None` = as many as a pool's server connections.
    pub pool_size: Option<u32>,
}

/// One entry of `[databases]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Database {
    /// Where it lives. Several hosts stand for one Postgres that moves.
    pub hosts: Vec<Host>,
    /// Its name there; `None` = as the client calls it.
    pub dbname: Option<String>,
    /// Forced user: every client shares this one's pool.
    pub user: Option<String>,
    /// Password of the forced user.
    pub password: Option<Secret>,
    /// Overrides the mode of `[tls.server]`.
    pub sslmode: Option<TlsMode>,
    /// How TLS begins.
    pub sslnegotiation: Option<Negotiation>,
    /// Overrides of `[pool]`.
    pub mode: Option<Mode>,
    /// See [`PoolDefaults::size`].
    pub pool_size: Option<u32>,
    /// See [`PoolDefaults::min_size`].
    pub min_size: Option<u32>,
    /// See [`PoolDefaults::reserve_size`].
    pub reserve_size: Option<u32>,
    /// Server connections over all users; 0 = no cap.
    pub max_servers: Option<u32>,
    /// Client connections over all users; 0 = no cap.
    pub max_clients: Option<u32>,
    /// Overrides of `[timeouts]`.
    pub timeouts: OwnTimeouts,
    /// Which of several hosts is tried first.
    pub load_balance_hosts: Balance,
    /// Run on every new server connection.
    pub connect_query: Option<String>,
    /// Looks up users of this database.
    pub auth_query: Option<String>,
    /// See [`Auth::query_user`].
    pub auth_user: Option<String>,
    /// See [`Auth::query_database`].
    pub auth_dbname: Option<String>,
    /// See [`Timeouts::server_lifetime`]; zero = at no age.
    pub server_lifetime: Option<Duration>,
    /// What its sessions begin with.
    pub parameters: SessionDefaults,
}

/// What the sessions of a database begin with, where a client does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionDefaults {
    /// `application_name`
    pub application_name: Option<String>,
    /// `client_encoding`
    pub client_encoding: Option<String>,
    /// `DateStyle`
    pub datestyle: Option<String>,
    /// `TimeZone`
    pub timezone: Option<String>,
}

impl SessionDefaults {
    /// For the startup message of a server connection, which names its application apart from them.
    pub fn for_startup(&self) -> Vec<(String, String)> {
        let Self {
            application_name: _,
            client_encoding,
            datestyle,
            timezone,
        } = self;
        [
            ("client_encoding", client_encoding),
            ("DateStyle", datestyle),
            ("TimeZone", timezone),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect()
    }
}

/// One entry of `[users]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct User {
    /// Plain, `md5...` or `SCRAM-SHA-256$...`.
    pub password: Option<Secret>,
    /// Overrides the database's mode.
    pub mode: Option<Mode>,
    /// Overrides the database's pool size.
    pub pool_size: Option<u32>,
    /// Overrides the database's reserve.
    pub reserve_size: Option<u32>,
    /// Server connections over all databases; 0 = no cap.
    pub max_servers: Option<u32>,
    /// Client connections over all databases; 0 = no cap.
    pub max_clients: Option<u32>,
    /// Overrides of `[timeouts]`.
    pub timeouts: OwnTimeouts,
}

/// Limits of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceLimits {
    /// Server connections at most; 0 = only the budget.
    pub max_servers: u32,
    /// Kept for it even when others want them.
    pub min_servers: u32,
    /// Client connections at most; 0 = no cap.
    pub max_clients: u32,
    /// Share of what is left, relative to the others; at least 1.
    pub weight: u32,
    /// Alert above this many server connections; 0 = never.
    pub alert_servers: u32,
    /// Alert above this many clients; 0 = never.
    pub alert_clients: u32,
    /// See [`Timeouts::client_idle`]; `None` = what stands there.
    pub client_idle: Option<Duration>,
    /// See [`Timeouts::idle_transaction`]; `None` = what stands there.
    pub idle_transaction: Option<Duration>,
}

/// How deployments of a service are told apart and retired.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployments {
    /// Finds service and deployment in application_name.
    pub pattern: Pattern,
    /// A deployment is current once its sessions have lived this long; zero = at once.
    pub promote_after: Duration,
    /// Superseded sessions are left alone this long; zero = for ever.
    pub stale_grace: Duration,
    /// And must have been idle this long; zero = idle at all.
    pub stale_idle: Duration,
    /// Idle inside a transaction this long: rolled back and closed; zero = never.
    pub stale_idle_transaction: Duration,
    /// At most this many closings a second; 0 = as many as there are.
    pub close_per_second: u32,
    /// Only say what would be closed.
    pub dry_run: bool,
}

/// The pattern of the file of defaults. It fits more than deployments: see `policy::service`.
pub const DEFAULT_PATTERN: &str = "^(?<service>[^@/]+)[@/](?<deployment>.+)$";

/// A regular expression with the group `deployment` and, mostly, `service`.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles it. That it has its groups is for the caller to check.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        Regex::new(text).map(Self)
    }

    /// The regular expression.
    pub fn as_regex(&self) -> &Regex {
        &self.0
    }
}

/// Two patterns are the same if they are written the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Which sessions belong to a service. Every key given must fit; with none, no session is matched by these rules, and the
/// service is found by its name alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Glob over the user name.
    pub user: Option<String>,
    /// Glob over the database name.
    pub database: Option<String>,
    /// Glob over application_name.
    pub application_name: Option<String>,
    /// Networks of the client's address; empty = any.
    pub address: Vec<IpNet>,
    /// Glob over the client certificate's common name.
    pub certificate: Option<String>,
}

/// One entry of `[services]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Which sessions belong to it.
    pub matches: Match,
    /// Its limits.
    pub limits: ServiceLimits,
    /// Its deployments.
    pub deployments: Deployments,
}

/// All services.
#[derive(Debug, Clone, PartialEq)]
pub struct Services {
    /// Limits of a service that is not listed.
    pub limits: ServiceLimits,
    /// Deployments of a service that is not listed.
    pub deployments: Deployments,
    /// Those listed, in file order: the first match wins.
    pub listed: Vec<Service>,
}

/// When the reaper shortens its patience.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    /// Somebody has waited this long with the budget spent; zero = waiters are no sign of pressure.
    pub waiters_for: Duration,
    /// Postgres has fewer free connections than this.
    pub min_headroom: u32,
    /// Then sessions idle in a transaction this long are closed too; zero = never.
    pub idle_transaction: Duration,
    /// Then idle connections past pgweir, of superseded deployments, are closed at Postgres.
    pub close_foreign: bool,
}

/// Alerts.
#[derive(Debug, Clone, PartialEq)]
pub struct Alerts {
    /// Alert above this many server connections in all; 0 = never.
    pub total_servers: u32,
    /// Alert above this many logins that failed within a minute; 0 = never.
    pub login_failures: u32,
    /// Receives a JSON POST. Secret, because such urls hold their token.
    pub webhook: Option<Secret>,
    /// Authorities of its certificate, PEM; `None` = the system's.
    pub webhook_ca: Option<PathBuf>,
    /// An alert that lasts is repeated; zero = never.
    pub repeat_every: Duration,
}

/// The recorder.
#[derive(Debug, Clone, PartialEq)]
pub struct Incidents {
    /// Where incidents are kept; `None` = in memory.
    pub directory: Option<PathBuf>,
    /// How many are kept.
    pub keep: u32,
    /// How often a running incident is noted; zero = only its begin and its end.
    pub snapshot_every: Duration,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// As PgBouncer writes them.
    PgBouncer,
}

/// Facilities of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "syslog's own words")]
pub enum Facility {
    User,
    Daemon,
    Auth,
    AuthPriv,
    Local0,
    Local1,
    Local2,
    Local3,
    Local4,
    Local5,
    Local6,
    Local7,
}

impl Facility {
    /// Its number (RFC 3164).
    pub fn number(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Daemon => 3,
            Self::Auth => 4,
            Self::AuthPriv => 10,
            Self::Local0 => 16,
            Self::Local1 => 17,
            Self::Local2 => 18,
            Self::Local3 => 19,
            Self::Local4 => 20,
            Self::Local5 => 21,
            Self::Local6 => 22,
            Self::Local7 => 23,
        }
    }
}

/// Log.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of its own, and none has to do with another"
)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Format.
    pub format: LogFormat,
    /// One line per login.
    pub connections: bool,
    /// One line per goodbye, with its reason.
    pub disconnections: bool,
    /// One line per error that pgweir itself sends to a client.
    pub pooler_errors: bool,
    /// A line with averages at the end of each `stats_period`.
    pub stats: bool,
    /// Over how long averages are taken; never zero.
    pub stats_period: Duration,
    /// A file that lines are appended to.
    pub file: Option<PathBuf>,
    /// Whether lines go to standard error.
    pub stderr: bool,
    /// Whether lines go to syslog.
    pub syslog: bool,
    /// As whom.
    pub syslog_ident: String,
    /// Under which facility.
    pub syslog_facility: Facility,
    /// The datagram socket on which syslog listens.
    pub syslog_socket: PathBuf,
}

impl Log {
    /// The same in PgBouncer's words, where the log has them.
    pub fn words(&self, said: impl fmt::Display) -> Option<String> {
        (self.format == LogFormat::PgBouncer).then(|| said.to_string())
    }

    /// PgBouncer's words about a command of the console that has begun, for a database or for all.
    pub fn issued(&self, command: &str, database: Option<&str>) -> Option<String> {
        let on = database.map_or_else(String::new, |name| format!(" '{name}'"));
        self.words(format_args!("{command}{on} command issued"))
    }
}

/// The process itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// A file that holds its number while it runs.
    pub pidfile: Option<PathBuf>,
    /// Whom it becomes before it listens; `None` = it stays who it is.
    pub user: Option<String>,
    /// Its number among the processes behind one address; 0 = it has none.
    pub peer_id: u16,
    /// A file like `/etc/resolv.conf`, whose name servers are asked instead of the system's resolver.
    pub resolv_conf: Option<PathBuf>,
}

/// Threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Runtime {
    /// Data threads; at least 1.
    pub threads: usize,
}
