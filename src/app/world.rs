//! The configuration in force and what is made from it, swapped as a whole at a reload.

mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::files::{Files, Users, name_servers, users};
use crate::admin::process::Shutdown;
use crate::client::credentials::{Credential, Credentials};
use crate::client::directory::Who;
use crate::client::greet::Secured;
use crate::client::ldap::{self, trust::Trust};
use crate::client::patience::Patience;
use crate::config::change::between;
use crate::config::checked::{
    self, AuthMethod, Balance, Config, Database, MaxServers, Process, Secret, Timeouts,
};
use crate::config::hba_file::HbaFile;
use crate::config::ident_file::IdentMap;
use crate::config::ini::{self, Note, Setting, Weight};
use crate::config::ldap_options::Safety;
use crate::config::{self, Mistakes, Overrides, SetError};
use crate::net::listen::Peer;
use crate::net::tls::accept::Acceptor;
use crate::net::tls::connect::Connector;
use crate::net::tls::files::TlsError;
use crate::policy::service::Classifier;
use crate::pool::book::{PoolLimits, ServiceLimits};
use crate::pool::pools::{Check, PoolSettings};
use crate::server::dial::Target;
use crate::server::login::{Identity, ServerLogin};
use crate::server::name_servers::NameServers;
use crate::server::secure::Security;
use crate::server::told::Lines;
use crate::wire::startup::NEWEST_MINOR;

/// PgBouncer's name for a query without words.
const NO_WORDS: &str = "<empty>";

/// How long a connection may take to be brought back to order after its client has gone, before it is closed instead.
const RECOVER_LIMIT: Duration = Duration::from_secs(10);

/// Server connections of one database for looking up users.
const LOOK_UP_CONNECTIONS: u32 = 2;

/// What Postgres sees as application_name until a client sets its own.
const APPLICATION_NAME: &str = "pgweir";

/// The map of `auth.ident_file` that is for the names in certificates.
const CERTIFICATES: &str = "cert";

/// Stands for "no limit of ours" where a limit is asked for.
const FOR_EVER: Duration = Duration::from_hours(365 * 24);

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read again at each reload.
    File(PathBuf),
    /// One of PgBouncer's, read again at each reload.
    Ini {
        /// The file.
        path: PathBuf,
        /// What the command line adds to it.
        options: IniOptions,
    },
    /// The command line.
    Url {
        /// The Postgres to serve.
        to: String,
        /// The addresses to listen on.
        listen: Vec<String>,
    },
}

/// What PgBouncer's command line can say that its file says too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IniOptions {
    /// How often `-v` was given.
    pub verbose: u8,
    /// Nothing on standard error.
    pub quiet: bool,
    /// Whom the process becomes.
    pub user: Option<String>,
}

impl IniOptions {
    /// `overrides`: what was set later, and is as it was set.
    fn apply(&self, config: &mut Config, overrides: &Overrides) {
        const LEVELS: [&str; 3] = ["info", "debug", "trace"];
        if self.verbose > 0 && !overrides.give(&["log", "level"]) {
            let given = LEVELS.iter().position(|level| *level == config.log.level);
            let level = given.unwrap_or(0) + usize::from(self.verbose);
            LEVELS[level.min(LEVELS.len() - 1)].clone_into(&mut config.log.level);
        }
        if self.quiet {
            config.log.stderr = false;
        }
        if self.user.is_some() {
            config.process.user.clone_from(&self.user);
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file, or the command line, has mistakes: all of them.
    #[error("{0}")]
    Config(#[from] config::Mistakes),
    /// PAM is to be asked, and this program cannot.
    #[error("this pgweir was built without PAM")]
    NoPam,
    /// The directory cannot be asked that way.
    #[error("LDAP options: {0}")]
    Directory(String),
    /// The certificates, keys or authorities are not right. The first words are PgBouncer's.
    #[error("TLS setup failed: {0}")]
    Tls(#[from] TlsError),
    /// The users file, the ident file or the list of name servers cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// What TLS is made with, on both sides.
#[derive(Debug, Clone)]
pub struct TlsSides {
    /// Towards clients; `None`: none is offered.
    pub client: Option<Arc<Acceptor>>,
    /// Towards Postgres.
    pub server: Arc<Connector>,
}

impl TlsSides {
    /// Reads the files. What the ones before were made of stays as it is.
    fn read(config: &Config, before: Option<&Self>) -> Result<Self, TlsError> {
        let client = before.and_then(|sides| sides.client.as_ref());
        let server = before.map(|sides| &sides.server);
        Ok(Self {
            client: Acceptor::read(&config.tls_client, client)?,
            server: Connector::read(&config.tls_server, server)?,
        })
    }
}

/// How users who are listed nowhere are looked up.
#[derive(Debug)]
pub struct HowToLookUp<'a> {
    /// The role that does so.
    pub role: &'a str,
    /// The database in which it does so, as clients call it.
    pub database: String,
    /// The query of the configuration; `None`: pgweir's own.
    pub query: Option<&'a str>,
    /// Its pool's settings.
    pub settings: PoolSettings,
}

/// The configuration in force.
#[derive(Debug)]
pub struct World {
    /// As checked.
    pub config: Arc<Config>,
    /// Who may log in.
    pub credentials: Arc<Credentials>,
    /// Which service a session belongs to.
    pub classifier: Classifier,
    /// Certificates, keys and authorities.
    pub tls: TlsSides,
    /// TLS towards directories, where the options of `ldap` want it.
    pub directory: Option<Arc<Connector>>,
    /// Whom the names in certificates may log in as; `None`: as that name.
    idents: Option<Arc<IdentMap>>,
    /// Whom to ask for the addresses of names; `None`: the system's resolver.
    pub name_servers: Option<Arc<NameServers>>,
    /// Who may come in how, with `method = "hba"`.
    pub hba: Arc<HbaFile>,
    /// What stood in the users file, for a reload that does not find it.
    in_file: Arc<Users>,
    /// There is to be a users file, and it is not there.
    lacks_users: bool,
    /// What is to be told of files that are not there.
    missing: Vec<String>,
    /// Records of PgBouncer's HBA file that were passed over when it was read.
    passed_over: Option<Mistakes>,
    /// Where a file of PgBouncer's means something else here, when it was read.
    notes: Vec<Note>,
    /// The keys of PgBouncer's file as they are in force; none where there is no such file.
    pub theirs: Vec<Setting>,
    /// The file as it was read, where there is one, a file of PgBouncer's as the pooler.toml that means the same: what is set at
    /// run time is laid over this, not over what the file holds by then.
    text: Option<Secret>,
    /// What was set at run time.
    overrides: Overrides,
}

/// What the file says.
#[derive(Default)]
struct Written {
    /// Its text, where there is a file, that of PgBouncer's as the pooler.toml which means the same.
    text: Option<Secret>,
    notes: Vec<Note>,
    theirs: Vec<Setting>,
}

impl Source {
    /// A file, of whichever kind.
    pub fn of(path: PathBuf) -> Self {
        if ini::is_one(&path) {
            let options = IniOptions::default();
            return Self::Ini { path, options };
        }
        Self::File(path)
    }

    /// Whether it is PgBouncer's.
    pub(super) fn is_ini(&self) -> bool {
        matches!(self, Self::Ini { .. })
    }

    /// What SIGTERM and SIGINT ask for: with PgBouncer's file what they do there.
    pub(super) fn ways_to_end(&self) -> (Shutdown, Shutdown) {
        match self {
            Self::Ini { .. } => (Shutdown::WaitForClients, Shutdown::WaitForServers),
            Self::File(_) | Self::Url { .. } => (Shutdown::Drain, Shutdown::Drain),
        }
    }

    /// What a reload reads: the same, unless PgBouncer's file named another one by its key `conffile`.
    pub(super) fn after(&self, world: &World) -> Self {
        let mut source = self.clone();
        if let (Self::Ini { path, .. }, Some(next)) = (&mut source, ini::next(&world.theirs)) {
            next.clone_into(path);
        }
        source
    }

    /// Reads the configuration and everything that it names. `known`: who was known so far; what their logins have taught is
    /// kept.
    ///
    /// `before`: what is in force. What TLS was made with is kept as long as the files hold the same.
    pub fn load(&self, known: &Credentials, before: Option<&World>) -> Result<World, SourceError> {
        let Written {
            text,
            notes,
            theirs,
        } = self.read()?;
        let overrides = Overrides::default();
        let config = self.config(text.as_ref(), &overrides)?;
        let mut files = self.files(before);
        let (hba, passed_over) = files.hba(&config)?;
        let in_file = files.users(&config)?;
        let users = users(&config, &in_file);
        Ok(World {
            credentials: Arc::new(known.successor(config.auth.scram_iterations, users)),
            classifier: Classifier::new(&config.services),
            tls: TlsSides::read(&config, before.map(|before| &before.tls))?,
            directory: elsewhere(&config, &hba)?,
            idents: files.idents(&config)?,
            name_servers: name_servers(&config)?,
            hba,
            in_file: files.kept(in_file),
            passed_over,
            lacks_users: files.lacks_users,
            missing: files.missing,
            notes,
            theirs,
            config: Arc::new(config),
            text,
            overrides,
        })
    }

    /// What the process is to be: of the configuration alone, since neither certificates nor users are to be read before the
    /// process is who reads them.
    pub fn process(&self) -> Result<Process, Mistakes> {
        let written = self.read()?;
        let config = self.config(written.text.as_ref(), &Overrides::default())?;
        Ok(config.process)
    }

    /// Where it is to listen; likewise.
    pub fn listen(&self) -> Result<checked::Listen, Mistakes> {
        let written = self.read()?;
        let config = self.config(written.text.as_ref(), &Overrides::default())?;
        Ok(config.listen)
    }

    fn read(&self) -> Result<Written, Mistakes> {
        match self {
            Self::File(path) => Ok(Written {
                text: Some(Secret::new(config::read(path)?)),
                ..Written::default()
            }),
            Self::Ini { path, .. } => {
                let imported = ini::load(path)?;
                Ok(Written {
                    text: Some(Secret::new(imported.toml)),
                    notes: imported.notes,
                    theirs: imported.settings,
                })
            }
            Self::Url { .. } => Ok(Written::default()),
        }
    }

    fn config(&self, text: Option<&Secret>, overrides: &Overrides) -> Result<Config, Mistakes> {
        let parse = |path: &Path, env: &dyn Fn(&str) -> Option<String>| {
            let text = text.map_or("", Secret::expose);
            config::parse_over(text, overrides, &path.display().to_string(), env)
        };
        match self {
            Self::File(path) => parse(path, &config::environment),
            Self::Ini { path, options } => {
                // What looks like a variable in PgBouncer's file is none.
                let mut config = parse(path, &|_| None)?;
                options.apply(&mut config, overrides);
                Ok(config)
            }
            Self::Url { to, listen } => config::from_url_over(to, listen, overrides),
        }
    }

    /// The configuration in force with one setting changed. What the files beside it hold is read again only if the setting names
    /// one.
    pub fn set(&self, world: &World, name: &str, value: &str) -> Result<World, SetError> {
        let read = |overrides: &Overrides| self.config(world.text.as_ref(), overrides);
        let (overrides, config) = world.overrides.with(name, value, &world.config, read)?;
        let changes = between(&world.config, &config);
        let touches = |tables: &[&str]| {
            let mut names = changes.iter().map(|change| &change.name);
            names.any(|name| tables.iter().any(|table| name.starts_with(table)))
        };
        let wrong = |error: SourceError| SetError::Wrong(error.to_string());
        let mut files = self.files(Some(world));
        let (credentials, in_file, lacks_users) = if touches(&["auth.", "users", "databases"]) {
            let in_file = files.users(&config).map_err(wrong)?;
            let users = users(&config, &in_file);
            let iterations = config.auth.scram_iterations;
            let credentials = world.credentials.successor(iterations, users);
            (
                Arc::new(credentials),
                files.kept(in_file),
                files.lacks_users,
            )
        } else {
            let in_file = Arc::clone(&world.in_file);
            (Arc::clone(&world.credentials), in_file, world.lacks_users)
        };
        let (idents, hba, passed_over, directory) = if touches(&["auth."]) {
            let (hba, passed_over) = files.hba(&config).map_err(wrong)?;
            let idents = files.idents(&config).map_err(wrong)?;
            let directory = elsewhere(&config, &hba).map_err(wrong)?;
            (idents, hba, passed_over, directory)
        } else {
            let directory = world.directory.clone();
            (
                world.idents.clone(),
                Arc::clone(&world.hba),
                None,
                directory,
            )
        };
        let tls = if touches(&["tls."]) {
            TlsSides::read(&config, Some(&world.tls)).map_err(|error| wrong(error.into()))?
        } else {
            world.tls.clone()
        };
        let name_servers = if touches(&["process.resolv_conf"]) {
            name_servers(&config).map_err(wrong)?
        } else {
            world.name_servers.clone()
        };
        Ok(World {
            credentials,
            classifier: Classifier::new(&config.services),
            tls,
            directory,
            idents,
            name_servers,
            hba,
            in_file,
            passed_over,
            lacks_users,
            missing: files.missing,
            // They are of the file, and were told when that was read.
            notes: Vec::new(),
            theirs: ini::with(&world.theirs, name, value),
            config: Arc::new(config),
            text: world.text.clone(),
            overrides,
        })
    }

    fn files<'a>(&self, before: Option<&'a World>) -> Files<'a> {
        Files::new(self.is_ini(), before)
    }
}

/// Whether others can be asked about passwords as it is configured, and what TLS towards directories takes, where it is wanted.
fn elsewhere(config: &Config, hba: &HbaFile) -> Result<Option<Arc<Connector>>, SourceError> {
    if cfg!(not(feature = "pam")) && (config.auth.method == AuthMethod::Pam || hba.asks_pam()) {
        return Err(SourceError::NoPam);
    }
    let own = config
        .auth
        .ldap_options
        .iter()
        .filter(|_| config.auth.method == AuthMethod::Ldap);
    let mut wanted = false;
    for options in own.chain(hba.ldap()) {
        ldap::check(options).map_err(SourceError::Directory)?;
        wanted |= options.safety != Safety::None;
    }
    let connector = wanted.then(|| Trust::of_this_machine().connector());
    Ok(connector.transpose()?)
}

impl World {
    /// Where a file of PgBouncer's means something else here.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Which files are not there, as PgBouncer tells it.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Says in the log which settings have no effect yet.
    pub fn warn(&self) {
        for missing in &self.missing {
            tracing::error!("{missing}");
        }
        if let Some(mistakes) = &self.passed_over {
            tracing::warn!("passed over in the HBA file:\n{mistakes}");
        }
        for note in &self.notes {
            match note.weight {
                Weight::Idle => tracing::info!("{note}"),
                Weight::Differs | Weight::Without => tracing::warn!("{note}"),
            }
        }
        if self.passes_through()
            && self
                .config
                .listen
                .addresses
                .iter()
                .any(|address| !address.ip().is_loopback())
        {
            tracing::warn!(
                "no users are configured: Postgres decides who may log in, passwords cross the network in clear, and \
                 whom Postgres trusts without a password from here, pgweir lets in from anywhere"
            );
        }
    }

    /// Whether pgweir was never to know anybody. A users file that is not there says that there are some.
    pub(super) fn was_told_nobody(&self) -> bool {
        self.credentials.is_empty() && !self.lacks_users
    }

    /// Whether Postgres itself is asked who may log in: nobody told pgweir.
    pub fn passes_through(&self) -> bool {
        let auth = &self.config.auth;
        let asks_secrets = !matches!(
            auth.method,
            AuthMethod::Trust
                | AuthMethod::Any
                | AuthMethod::Cert
                | AuthMethod::Hba
                | AuthMethod::Ldap
                | AuthMethod::Pam
        );
        // A forced user says nothing about who the client is.
        let forces = self
            .config
            .databases
            .values()
            .chain(&self.config.any_database)
            .any(|database| database.user.is_some());
        asks_secrets && self.was_told_nobody() && !self.looks_up() && !forces
    }

    /// Whether users who are listed nowhere are looked up, be it for one database alone.
    fn looks_up(&self) -> bool {
        let Config {
            auth,
            databases,
            any_database,
            ..
        } = &*self.config;
        let mut all = databases.values().chain(any_database);
        auth.query_user.is_some() || all.any(|database| database.auth_user.is_some())
    }

    /// Whether a client's certificate is good for logging in as `user`.
    pub fn certificate_is_for(&self, secured: Option<&Secured>, user: &str) -> bool {
        let Some(subject) = secured.and_then(|secured| secured.subject.as_ref()) else {
            return false;
        };
        match (&self.idents, &subject.common_name) {
            (Some(map), Some(name)) => map.admits(CERTIFICATES, name, user),
            (Some(_), None) => false,
            (None, _) => subject.is(user),
        }
    }

    /// Whether a client's certificate is good for logging in as `user` by a record of the HBA file with that map.
    pub fn certificate_by(&self, map: Option<&str>, secured: Option<&Secured>, user: &str) -> bool {
        let subject = secured.and_then(|secured| secured.subject.as_ref());
        let name = subject.and_then(|subject| subject.common_name.as_deref());
        name.is_some_and(|name| self.is_mapped(map, name, user))
    }

    /// Whether `name`, which was proved elsewhere, may log in as `user`: by that map, or as itself.
    pub fn is_mapped(&self, map: Option<&str>, name: &str, user: &str) -> bool {
        match (map, &self.idents) {
            (None, _) => name == user,
            (Some(map), Some(idents)) => idents.admits(map, name, user),
            (Some(_), None) => false,
        }
    }

    /// The entry for a database as clients call it.
    pub fn database(&self, name: &str) -> Option<&Database> {
        self.config
            .databases
            .get(name)
            .or(self.config.any_database.as_ref())
    }

    /// The role that clients who log in as `user` get at Postgres, and the proof for it.
    pub fn server_login(
        &self,
        database: &Database,
        user: &str,
        credential: &Credential,
    ) -> (String, ServerLogin) {
        match (&database.user, &database.password) {
            (Some(forced), Some(password)) => (forced.clone(), ServerLogin::password(password)),
            (Some(forced), None) => (
                forced.clone(),
                self.credentials.look_up(forced).server_login(),
            ),
            (None, _) => (user.to_owned(), credential.server_login()),
        }
    }

    /// How users who are listed nowhere are looked up for clients of `database`; `None`: they are not.
    pub fn look_up(&self, database: &str) -> Option<HowToLookUp<'_>> {
        let auth = &self.config.auth;
        let own = self.database(database);
        let own_user = own.and_then(|own| own.auth_user.as_deref());
        let role = own_user.or(auth.query_user.as_deref())?;
        let own_query = own.and_then(|own| own.auth_query.as_deref());
        let own_place = own.and_then(|own| own.auth_dbname.as_deref());
        let name = own_place
            .or(auth.query_database.as_deref())
            .unwrap_or(database);
        let mut settings = self.pool_settings(
            name,
            self.database(name)?,
            role,
            self.credentials.look_up(role).server_login(),
        );
        // A few are enough: an answer takes a millisecond and serves everybody who waits for it.
        settings.limits = PoolLimits {
            size: LOOK_UP_CONNECTIONS,
            min_size: 0,
            reserve_size: 0,
            ..settings.limits
        };
        // What a query names without a schema is Postgres' own and nobody else's.
        let search_path = ("search_path".to_owned(), "pg_catalog".to_owned());
        settings.target.identity.parameters = vec![search_path];
        settings.target.connect_query = None;
        Some(HowToLookUp {
            role,
            database: name.to_owned(),
            query: own_query.or(auth.query.as_deref()),
            settings,
        })
    }

    /// The settings of the pool of `name` and `server_user`.
    pub fn pool_settings(
        &self,
        name: &str,
        database: &Database,
        server_user: &str,
        proof: ServerLogin,
    ) -> PoolSettings {
        let Config {
            pool,
            timeouts,
            limits,
            budget,
            users,
            ..
        } = &*self.config;
        let user = users.get(server_user);
        let is_auto = !self.config.databases.contains_key(name);
        PoolSettings {
            target: Target {
                hosts: database.hosts.iter().cloned().map(Arc::new).collect(),
                turn: (database.load_balance_hosts == Balance::RoundRobin).then(Arc::default),
                identity: Identity {
                    user: server_user.to_owned(),
                    database: database.dbname.clone().unwrap_or_else(|| name.to_owned()),
                    proof,
                    application_name: database
                        .parameters
                        .application_name
                        .clone()
                        .unwrap_or_else(|| APPLICATION_NAME.to_owned()),
                    minor: NEWEST_MINOR,
                    parameters: database.parameters.for_startup(),
                },
                connect_query: database.connect_query.clone(),
                tcp: self.config.tcp.clone(),
                security: Security::new(
                    database.sslmode.unwrap_or(self.config.tls_server.mode),
                    database.sslnegotiation.unwrap_or_default(),
                    &self.tls.server,
                ),
                limit: if timeouts.server_connect.is_zero() {
                    FOR_EVER
                } else {
                    timeouts.server_connect
                },
            },
            mode: user
                .and_then(|user| user.mode)
                .or(database.mode)
                .unwrap_or(pool.mode),
            errors: pool.errors,
            is_auto,
            lines: Lines::of(&self.config.log),
            limits: PoolLimits {
                size: user
                    .and_then(|user| user.pool_size)
                    .or(database.pool_size)
                    .unwrap_or(pool.size),
                min_size: database.min_size.unwrap_or(pool.min_size),
                reserve_size: user
                    .and_then(|user| user.reserve_size)
                    .or(database.reserve_size)
                    .unwrap_or(pool.reserve_size),
                reserve_after: pool.reserve_after,
                server_idle: timeouts.server_idle,
                in_turn: pool.server_round_robin,
            },
            query_wait: self.timeouts(server_user, database).query_wait,
            cancel_limit: self.cancel_limit(),
            server_lifetime: match database.server_lifetime {
                Some(own) => Some(own).filter(|own| !own.is_zero()),
                None => timeouts.server_lifetime,
            },
            server_login_retry: timeouts.server_login_retry,
            server_reset_query: pool.server_reset_query.clone(),
            resets_always: pool.server_reset_query_always && !pool.server_reset_query.is_empty(),
            check: pool.server_check_query.as_deref().map(|query| Check {
                query: if query == NO_WORDS { "" } else { query }.to_owned(),
                delay: pool.server_check_delay,
            }),
            closes_fast: pool.server_fast_close,
            forget_after: if is_auto {
                timeouts.auto_database_idle
            } else {
                timeouts.pool_idle
            },
            max_prepared_statements: pool.max_prepared_statements,
            recover_limit: RECOVER_LIMIT,
            budget: match budget.max_servers {
                MaxServers::Auto => None,
                MaxServers::Exactly(most) => Some(most),
            },
            headroom: budget.headroom,
            is_watched: self.is_watched(),
            is_probe: false,
            database_cap: database
                .max_servers
                .unwrap_or(limits.max_servers_per_database),
            user_cap: user
                .and_then(|user| user.max_servers)
                .unwrap_or(limits.max_servers_per_user),
        }
    }

    /// Whether each Postgres is watched over a connection of its own. Not if that one would be all that it may have.
    pub fn is_watched(&self) -> bool {
        let budget = &self.config.budget;
        budget.check_every.is_some() && budget.max_servers != MaxServers::Exactly(1)
    }

    /// The cap on clients of a service.
    pub fn service_clients(&self, name: &str) -> u32 {
        self.limits_of(name).max_clients
    }

    /// How deployments of a service are told apart and retired.
    pub fn deployments_of(&self, service: &str) -> &checked::Deployments {
        let services = &self.config.services;
        let listed = services.listed.iter().find(|listed| listed.name == service);
        listed.map_or(&services.deployments, |listed| &listed.deployments)
    }

    pub(super) fn limits_of(&self, service: &str) -> &checked::ServiceLimits {
        let services = &self.config.services;
        let listed = services.listed.iter().find(|listed| listed.name == service);
        listed.map_or(&services.limits, |listed| &listed.limits)
    }

    /// The timeouts of a user in a database, before services have their say.
    fn timeouts(&self, user: &str, database: &Database) -> Timeouts {
        let user = self.config.users.get(user).map(|user| user.timeouts);
        let own = user.unwrap_or_default().or(database.timeouts);
        own.over(&self.config.timeouts)
    }

    /// Whether connections from there begin with the header of a proxy.
    pub fn is_proxy(&self, peer: Peer) -> bool {
        let networks = &self.config.listen.proxy_protocol_from;
        let address = peer.ip();
        address.is_some_and(|ip| networks.iter().any(|network| network.contains(&ip)))
    }

    /// How long a cancel request may take.
    pub fn cancel_limit(&self) -> Duration {
        match self.config.timeouts.cancel {
            Duration::ZERO => FOR_EVER,
            limit => limit,
        }
    }

    /// How long a session may do what. A service's limits come before those of the user, the database and the process.
    pub fn patience(&self, who: &Who) -> Patience {
        let service = self.limits_of(&who.service);
        let general = match self.database(&who.database) {
            Some(database) => from_timeouts(&self.timeouts(&who.user, database)),
            None => from_timeouts(&self.config.timeouts),
        };
        Patience {
            client_idle: service.client_idle.or(general.client_idle),
            idle_transaction: service.idle_transaction.or(general.idle_transaction),
            ..general
        }
    }

    /// What the most patient look at any session can spare: no session's patience is shorter.
    pub fn least_patience(&self) -> Patience {
        let Config {
            timeouts,
            users,
            services,
            ..
        } = &*self.config;
        let databases = self
            .config
            .databases
            .values()
            .chain(&self.config.any_database);
        let own = databases.map(|database| database.timeouts);
        let own = own.chain(users.values().map(|user| user.timeouts));
        let own = own.map(|own| from_timeouts(&own.over(timeouts)));
        let listed = services.listed.iter().map(|service| &service.limits);
        let services = listed.chain([&services.limits]).map(|limits| Patience {
            client_idle: limits.client_idle,
            idle_transaction: limits.idle_transaction,
            ..Patience::default()
        });
        own.chain(services)
            .fold(from_timeouts(timeouts), Patience::least)
    }

    /// The limits of a service, by its place in the file.
    pub fn service_limits(&self, listed: Option<usize>) -> ServiceLimits {
        let services = &self.config.services;
        let limits = listed.map_or(&services.limits, |index| &services.listed[index].limits);
        ServiceLimits {
            max_servers: limits.max_servers,
            min_servers: limits.min_servers,
            weight: limits.weight,
            kept_servers: kept_for_the_next(limits.max_servers),
        }
    }
}

/// What is kept of a service's cap for its next deployment: an eighth, with which a rollout may begin. Nothing of a single one.
pub(super) fn kept_for_the_next(most: u32) -> u32 {
    const PART: u32 = 8;
    if most < 2 { 0 } else { most.div_ceil(PART) }
}

fn from_timeouts(timeouts: &Timeouts) -> Patience {
    Patience {
        client_idle: timeouts.client_idle,
        idle_transaction: timeouts.idle_transaction,
        transaction: timeouts.transaction,
        query: timeouts.query,
        notice: timeouts.query_wait_notify,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(text: &str) -> World {
        let file = format!("[databases.\"*\"]\nurl = \"postgres://db\"\n{text}");
        let config = config::parse(&file, "test", &|_| None).unwrap();
        World {
            name_servers: None,
            credentials: Arc::new(Credentials::new([0; 32], [])),
            classifier: Classifier::new(&config.services),
            tls: TlsSides::read(&config, None).unwrap(),
            directory: None,
            idents: None,
            notes: Vec::new(),
            theirs: Vec::new(),
            hba: Arc::default(),
            in_file: Arc::default(),
            lacks_users: false,
            missing: Vec::new(),
            passed_over: None,
            config: Arc::new(config),
            text: None,
            overrides: Overrides::default(),
        }
    }

    fn who(user: &str, database: &str, service: &str) -> Who {
        Who {
            user: user.into(),
            database: database.into(),
            service: service.into(),
            ..Who::default()
        }
    }

    #[test]
    fn the_service_beats_the_user_beats_the_database_beats_the_rest() {
        let world = world(
            "query = \"4s\"\nclient_idle = \"4s\"\ntransaction = \"4s\"\nquery_wait = \"4s\"\n\
             [timeouts]\nquery = \"5s\"\nclient_idle = \"5s\"\nidle_transaction = \"5s\"\n\
             [users.ann]\nquery = \"3s\"\nclient_idle = \"3s\"\ntransaction = 0\n\
             [services.site]\nclient_idle = \"2s\"\n",
        );
        let second = |n| Some(Duration::from_secs(n));
        let ann = world.patience(&who("ann", "x", "site"));
        assert_eq!(
            [
                ann.client_idle,
                ann.query,
                ann.transaction,
                ann.idle_transaction
            ],
            [second(2), second(3), None, second(5)]
        );
        let bob = world.patience(&who("bob", "x", "other"));
        assert_eq!(
            [bob.client_idle, bob.query, bob.transaction, bob.notice],
            [second(4), second(4), second(4), second(5)]
        );
        let database = world.database("x").unwrap();
        let settings = world.pool_settings("x", database, "bob", ServerLogin::Nothing);
        assert_eq!(settings.query_wait, second(4));
        let least = world.least_patience();
        assert_eq!(
            [
                least.client_idle,
                least.query,
                least.transaction,
                least.notice
            ],
            [second(2), second(3), second(4), second(5)]
        );
    }
}
