//! From an accepted socket to a session: who is it, may it come in, which pool is its own.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::console::is_console;
use super::look_up::LookUpError;
use super::page::Whom;
use super::serve::{App, Capped};
use super::worker::Arrival;
use super::world::World;
use crate::client::credentials::Credential;
use crate::client::directory::{Entry, Listed, Seat, Who};
use crate::client::end::ClientEnd;
use crate::client::greet::{GreetError, Greeted, Greeting, Secured, greet};
use crate::client::login::{LoginError, Method, ask_password, authenticate};
use crate::config::checked::{AuthMethod, Config, Database, Mode, Secret, TlsMode};
use crate::config::hba_file;
use crate::metrics::Counts;
use crate::net::end::EndError;
use crate::net::line::Line;
use crate::net::listen::Peer;
use crate::net::names;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::policy::service::Facts;
use crate::pool::book::{ServiceId, ThreadId};
use crate::pool::errand::Discard;
use crate::pool::lease::{Called, Lease};
use crate::pool::pools::{Accepted, Checkout, Member, Pool, Refused, Vouched};
use crate::repeats::{self, POOLER_ERROR};
use crate::server::login::{ServerLogin, Welcome};
use crate::session::run::{End, Moved, Registrar, Session, Terms};
use crate::wire::parameters::{DEPLOYMENT, OptionsError, Parameters};
use crate::wire::reply::{
    Message, Report, ServerError, Severity, SqlState, authentication, backend_key_data,
    parameter_status, ready_for_query,
};
use crate::wire::scan::LARGEST_MESSAGE;
use crate::wire::startup::{Startup, secret_length};

/// How long a client that is refused may take to read why.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(5);

/// How long Postgres may take to say what it thinks of a client's parameters.
const TAKE_ON_LIMIT: Duration = Duration::from_secs(30);

/// What is said of a client that is not let in.
const REFUSED: &str = "login refused";
/// How often room is made for a client whose service is full, before it is refused; and how long those who are asked to leave may
/// take.
const ROOM_TRIES: u32 = 20;
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// What says where a session belongs.
const APPLICATION_NAME: &str = "application_name";

/// Why a client was not let in. Each has its own word in log and metrics.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// It did not get as far as a startup message.
    #[error("{0}")]
    Greeting(#[from] GreetError),
    /// `client_login` has passed.
    #[error("client_login timeout")]
    TooSlow,
    /// It speaks no TLS where it must.
    #[error("SSL required")]
    Insecure,
    /// It did not prove who it is.
    #[error("{0}")]
    Login(#[from] LoginError),
    /// Its `options` cannot be read.
    #[error("{0}")]
    Options(OptionsError),
    /// Postgres refuses the parameters that it asked for.
    #[error("Postgres refuses its parameters: {0}")]
    Parameters(ServerError),
    /// A cap on clients is reached.
    #[error("{0} is reached")]
    Full(&'static str),
    /// There is no such database.
    #[error("no such database")]
    NoDatabase(String),
    /// An operator has disabled it.
    #[error("the database is disabled")]
    Disabled(String),
    /// The user cannot be looked up.
    #[error("{0}")]
    LookUp(#[from] LookUpError),
    /// The user is not one that pgweir knows.
    #[error("unknown user")]
    Stranger(String),
    /// Nobody is asked for a name, and the database has none of its own.
    #[error("auth.method = \"any\" needs a user in the database's entry")]
    Nameless,
    /// The console was asked for by somebody whom it is not for.
    #[error("not an admin or stats user")]
    NotAllowed(String),
    /// The console was asked for from another machine, and nobody has asked for a proof.
    #[error("no proof for the console")]
    Unproved,
    /// pgweir is shutting down.
    #[error("pgweir is shutting down")]
    Draining,
    /// A record of the HBA file refuses it.
    #[error("pg_hba.conf rejects connection")]
    Rejected,
    /// No record of the HBA file fits.
    #[error("{0}")]
    NoRecord(String),
    /// No server connection could be had to learn what to tell the client.
    #[error("{0}")]
    Refused(Refused),
}

impl Denied {
    /// The words that there are.
    pub const WORDS: [&str; 16] = [
        "greeting",
        "client_login",
        "ssl_required",
        "parameters",
        "login",
        "too_many_clients",
        "no_database",
        "disabled",
        "auth_query",
        "unknown_user",
        "configuration",
        "hba",
        "not_allowed",
        "unproved",
        "draining",
        "refused",
    ];

    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Greeting(_) => "greeting",
            Self::TooSlow => "client_login",
            Self::Insecure => "ssl_required",
            Self::Options(_) | Self::Parameters(_) => "parameters",
            Self::Login(_) => "login",
            Self::Full(_) => "too_many_clients",
            Self::NoDatabase(_) => "no_database",
            Self::Disabled(_) => "disabled",
            Self::LookUp(_) => "auth_query",
            Self::Stranger(_) => "unknown_user",
            Self::Nameless => "configuration",
            Self::Rejected | Self::NoRecord(_) => "hba",
            Self::NotAllowed(_) => "not_allowed",
            Self::Unproved => "unproved",
            Self::Draining => "draining",
            Self::Refused(_) => "refused",
        }
    }

    /// What the client is told; `None` where it was told already, or is gone.
    fn last_words(&self) -> Option<Vec<u8>> {
        let report = match self {
            Self::Greeting(_) => return None,
            Self::Refused(refused) => return Some(refused.to_client()),
            Self::Login(error) => error.report()?,
            Self::LookUp(error) => return Some(error.to_client()),
            Self::Options(error) => Report::new(SqlState::SYNTAX_ERROR, error.to_string()),
            Self::Parameters(error) => return Some(error.to_fatal()),
            Self::TooSlow => Report::new(SqlState::PROTOCOL_VIOLATION, "client_login timeout"),
            // PgBouncer's words, Postgres' code.
            Self::Insecure => Report::new(SqlState::INVALID_AUTHORIZATION, "SSL required")
                .hint("This pgweir accepts no unencrypted connections: use sslmode=require."),
            Self::Full(limit) => {
                // PgBouncer's words, which scripts look for, with Postgres' own code.
                Report::new(
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("no more connections allowed ({limit})"),
                )
            }

            Self::NoDatabase(name) => Report::new(
                SqlState::INVALID_CATALOG_NAME,
                format!("database \"{name}\" does not exist"),
            )
            .hint("It is not in [databases], and there is no [databases.\"*\"]."),
            // PgBouncer's words, with the code that Postgres has for such a database.
            Self::Disabled(name) => Report::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("database \"{name}\" is disabled"),
            ),
            Self::Stranger(user) => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                format!("role \"{user}\" is not known to pgweir"),
            ),
            Self::NotAllowed(user) => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                format!("not allowed: \"{user}\" may not use the console"),
            )
            .hint("Who may is listed in auth.admins and auth.stats."),
            Self::Unproved => Report::new(
                SqlState::INVALID_AUTHORIZATION,
                "not allowed: the console needs a password, a certificate or a connection from its own machine",
            ),
            Self::Nameless => {
                // PgBouncer's words.
                Report::new(SqlState::INVALID_AUTHORIZATION, "bouncer config error")
            }
            Self::Rejected | Self::NoRecord(_) => {
                Report::new(SqlState::INVALID_AUTHORIZATION, self.to_string())
            }
            Self::Draining => Report::new(SqlState::CANNOT_CONNECT_NOW, "pgweir is shutting down"),
        };
        Some(report.error(Severity::Fatal))
    }
}

/// Looks after one client from accept to goodbye.
pub async fn attend(app: Arc<App>, thread: ThreadId, arrival: Arrival) {
    // Boxed, because an idle task is as large as its largest phase. The session is not looked at here: it would be kept in two places.
    let Some((entry, session)) = Box::pin(admit(&app, thread, arrival)).await else {
        return;
    };
    let end = session.await;
    if let End::Refused(Refused::QueryWait { .. }) = &end {
        app.watch.was_refused(&entry.who().service);
    }
    if let End::Reaped(sentence) = &end {
        app.reaping.log.note(&entry, sentence, false);
        app.watch.did(end.to_string());
    }
    app.metrics.session_ended(end.as_str());
    let recent = &app.page.recent;
    recent.ended(end.as_str(), &end, Whom::from(&*entry.who()), &entry.peer);
    if app.logs_disconnections() {
        farewell(&entry, end.as_str(), &end);
    } else if end.is_told() {
        let who = entry.who();
        tracing::info!(
            target: POOLER_ERROR, id = entry.id(), user = who.user, database = who.database, service = who.service,
            reason = end.as_str(), "session ended: {end}"
        );
    }
}

/// Says that a session has ended, and what it did.
fn farewell(entry: &Entry, reason: &'static str, end: &dyn Display) {
    let (who, age) = (entry.who(), entry.since.elapsed());
    let Counts {
        received,
        sent,
        queries,
        transactions,
    } = &entry.counts;
    tracing::info!(
        id = entry.id(), user = who.user, database = who.database, service = who.service,
        deployment = who.deployment.as_deref(), peer = %entry.peer, reason, seconds = age.as_secs_f32(),
        transactions = transactions.read(), queries = queries.read(), received = received.read(), sent = sent.read(),
        "session ended: {end}"
    );
}

impl App {
    /// Finds the service and the deployment of a session that calls itself so. `who`: what is known of it, with the deployment
    /// that it named in so many words, if it did.
    fn classify(
        &self,
        world: &World,
        who: Who,
        application_name: &str,
        peer: Peer,
    ) -> (ServiceId, Who) {
        let named = who.deployment.as_deref().filter(|_| who.named_deployment);
        let classified = world.classifier.classify(&Facts {
            user: &who.user,
            database: &who.database,
            application_name,
            address: peer.ip(),
            certificate: who.certificate.as_deref(),
            deployment: named,
        });
        let limits = world.service_limits(classified.listed);
        let listed = classified.listed.is_some();
        let service = self.pools.service(&classified.service, listed, limits);
        let who = Who {
            service: classified.service.to_string(),
            deployment: classified.deployment.map(Into::into),
            application_name: application_name.to_owned(),
            ..who
        };
        (service, who)
    }
}

impl Registrar for App {
    /// A session is never refused its move, so that Postgres' answer to its SET stays true: it counts at its new service even
    /// beyond a cap, which then keeps others out.
    fn renamed(&self, listed: &Listed, application_name: &str) -> Option<Moved> {
        let (entry, world) = (listed.entry(), self.world());
        let old = entry.who();
        let (service, who) = self.classify(&world, (*old).clone(), application_name, entry.peer);
        if who == *old {
            return None;
        }
        let left = self.quotas.of(Capped::Service, &old.service);
        let capped = world.service_clients(&who.service) > 0;
        let quota = capped.then(|| self.quotas.of(Capped::Service, &who.service));
        tracing::debug!(
            id = entry.id(),
            service = who.service,
            deployment = who.deployment.as_deref(),
            "moved"
        );
        listed.belongs_to(who);
        Some(Moved {
            service,
            seat: quota.and_then(|quota| quota.enter(0)),
            left,
        })
    }
}

/// Lets a client in. One of the console is served here to its end: there are few of them, and they need no small task.
async fn admit(
    app: &Arc<App>,
    thread: ThreadId,
    arrival: Arrival,
) -> Option<(Arc<Entry>, Session)> {
    let peer = arrival.peer;
    let stream = arrival.socket.register().ok()?;
    let reception = Reception {
        app,
        thread,
        began: Instant::now(),
        world: app.world(),
    };
    // Counted before it says a word, so that silent sockets are bounded too; told only once it can hear.
    let seat = app.clients.enter(reception.world.config.limits.max_clients);
    let tls = reception.world.tls.client.as_deref();
    let mut greeted = match reception.in_time(greet(stream, peer, tls)).await {
        Ok(Greeting::Startup(greeted)) => greeted,
        Ok(Greeting::Cancel(key, line)) => {
            app.cancel(&key).await;
            drop(line);
            return None;
        }
        Err(denied) => {
            // A probe that connects and leaves (a load balancer's) is no event.
            if !matches!(&denied, Denied::Greeting(GreetError::Io(_))) {
                app.metrics.login_failed(denied.as_str());
                app.page.recent.refused(&denied, Whom::default(), &peer);
                let cause = format!("{}: {denied}, from {}", denied.as_str(), place(peer));
                if repeats::is_news(REFUSED, cause) {
                    tracing::info!(%peer, reason = denied.as_str(), "login refused: {denied}");
                }
            }
            return None;
        }
    };
    if is_console(&greeted.startup.database) {
        Box::pin(serve_console(reception, *greeted, seat)).await;
        return None;
    }
    match reception.receive(&mut greeted, seat).await {
        Ok((terms, lease)) => {
            let session = session(greeted.packets, terms, lease, &reception.world);
            Some((Arc::clone(session.entry()), session))
        }
        Err(denied) => {
            refuse(app, *greeted, &denied).await;
            None
        }
    }
}

async fn serve_console(reception: Reception<'_>, greeted: Greeted, seat: Option<Seat>) {
    let app = reception.app;
    let received = reception.receive_at_console(greeted, seat).await;
    // A session may outlive the configuration under which it began.
    drop(reception);
    match received {
        Ok(console) => {
            let entry = Arc::clone(console.entry());
            let end = console.run().await;
            if app.logs_disconnections() {
                farewell(&entry, end.as_str(), &end);
            }
        }
        Err((greeted, denied)) => refuse(app, greeted, &denied).await,
    }
}

/// Where a client came from, without its port: that is another one each time.
fn place(peer: Peer) -> String {
    peer.ip()
        .map_or_else(|| peer.to_string(), |address| address.to_string())
}

/// Tells a client why it is not let in.
async fn refuse(app: &App, greeted: Greeted, denied: &Denied) {
    let Greeted {
        mut packets,
        startup: Startup { user, database, .. },
        peer,
        ..
    } = greeted;
    app.metrics.login_failed(denied.as_str());
    let whom = Whom {
        user: &user,
        database: &database,
        ..Whom::default()
    };
    app.page.recent.refused(denied, whom, &peer);
    let cause = format!(
        "{}: {denied}, {user} at {database} from {}",
        denied.as_str(),
        place(peer)
    );
    if repeats::is_news(REFUSED, cause) {
        tracing::info!(
            target: POOLER_ERROR, %peer, user, database, reason = denied.as_str(), "login refused: {denied}"
        );
    }
    if let Some(words) = denied.last_words() {
        // The client may be gone; it was to be told, no more.
        let _ = timeout(LAST_WORDS_LIMIT, packets.write(&words)).await;
    }
}

fn session(packets: Packets<Stream>, terms: Terms, lease: Option<Lease>, world: &World) -> Session {
    let limit = u32::try_from(world.config.limits.max_message_size).unwrap_or(LARGEST_MESSAGE);
    let limit = if limit == 0 {
        LARGEST_MESSAGE
    } else {
        limit.min(LARGEST_MESSAGE)
    };
    let (stream, early) = packets.into_parts();
    Session::new(ClientEnd::new(stream, limit), terms, lease, &early)
}

/// What Postgres has to say to whom it lets in.
struct Welcomed {
    welcome: Arc<Welcome>,
    accepted: Arc<Accepted>,
    /// The server connection of a client that keeps one.
    lease: Option<Lease>,
}

/// What a client has done to show who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// Enough.
    Given,
    /// Nothing: none was asked for.
    None,
}

/// What it takes to let one client in.
pub(super) struct Reception<'a> {
    pub(super) app: &'a Arc<App>,
    thread: ThreadId,
    /// When the client was accepted.
    began: Instant,
    pub(super) world: Arc<World>,
}

impl Reception<'_> {
    /// Bounds what depends on the client by `client_login`.
    pub(super) async fn in_time<T, E: Into<Denied>>(
        &self,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Denied> {
        match self.world.config.timeouts.client_login {
            Some(limit) => timeout(limit, step)
                .await
                .map_err(|_| Denied::TooSlow)?
                .map_err(E::into),
            None => step.await.map_err(E::into),
        }
    }

    /// Lets the client in: on return it has been told ReadyForQuery. With the server connection that it keeps for its life, if it
    /// does.
    async fn receive(
        &self,
        greeted: &mut Greeted,
        seat: Option<Seat>,
    ) -> Result<(Terms, Option<Lease>), Denied> {
        let Greeted {
            packets,
            peer,
            startup,
            secured,
        } = greeted;
        let secured = secured.as_ref();
        self.refuse_early()?;
        self.check_tls(startup, *peer, secured)?;
        let seat = seat.ok_or(Denied::Full("max_clients"))?;
        if let Some(answer) = startup.negotiate() {
            packets.write(&answer).await.map_err(LoginError::Io)?;
        }
        let found = self.in_time(self.find(startup)).await?;
        let credential = &found.credential;
        if !self.world.passes_through() {
            self.in_time(self.prove(packets, startup, *peer, secured, credential))
                .await
                .inspect_err(|_| found.doubt())?;
        }
        let database = self.database(startup)?;
        let replicates = startup.is_replication();
        let ignored = &self.world.config.pool.ignore_startup_parameters;
        let asked = Parameters::of_startup(startup, ignored);
        let (service, who) = self.classify(startup, asked.as_ref().ok(), *peer, secured);
        let pool = self.pool(startup, database, credential);
        if self.world.passes_through() && !replicates {
            self.vouch(packets, &pool, service).await?;
        }
        let seats = self.seats(seat, &who, database).await?;
        if self.world.passes_through() && replicates {
            self.vouch_alone(packets, &pool, service).await?;
        }
        let asked = self.for_postgres(asked, replicates, *peer, database)?;
        let settings = pool.settings();
        let welcomed = async {
            match settings.mode {
                Mode::Session if replicates => self.replicate(&pool, service).await,
                Mode::Session => self.hold(&pool, service, asked).await,
                Mode::Transaction | Mode::Statement => self.learn(&pool, service, asked).await,
            }
        };
        let Welcomed {
            welcome,
            accepted,
            mut lease,
        } = tokio::select! {
            welcomed = welcomed => welcomed?,
            () = poll_fn(|cx| packets.stream().poll_hung_up(cx)) => return Err(gone().into()),
        };
        // Whoever keeps a server connection may be known to others by its process id: in pg_stat_activity, in notifications.
        let server = lease.as_mut().map(|lease| lease.connection().key.pid);
        let server = server.filter(|pid| *pid != 0);
        let secret_length = secret_length(startup.spoken());
        let line = Line::of(packets.stream());
        let listed = self
            .app
            .directory
            .list_as(*peer, line, who, server, secret_length);
        if self.app.is_draining() {
            return Err(Denied::Draining);
        }
        let notice = self.world.config.auth.login_notify_message.as_deref();
        let hello = hello(&welcome, &accepted, listed.entry().key(), notice);
        self.in_time(async { packets.write(&hello).await.map_err(LoginError::Io) })
            .await?;
        self.app.metrics.logins.add(self.began.elapsed());
        pool.traffic(self.thread).logins.add(1);
        if self.world.config.log.connections {
            let who = listed.entry().who();
            tracing::info!(
                id = listed.entry().id(), user = who.user, database = who.database, service = who.service,
                deployment = who.deployment.as_deref(), %peer,
                tls = secured.map(|secured| secured.version), resumed = secured.map(|secured| secured.resumed), "login"
            );
        }
        let most = settings.max_prepared_statements as usize;
        let terms = Terms {
            pool: Member::of(pool),
            service,
            thread: self.thread,
            mode: settings.mode,
            listed,
            seats,
            startup: Arc::clone(&accepted.parameters),
            // In session mode the server connection is the client's own, and so are the names on it.
            prepared: if settings.mode == Mode::Session {
                0
            } else {
                most
            },
        };
        Ok((terms, lease))
    }

    /// The entry for the database that the client wants, if there is one that it may have.
    fn database(&self, startup: &Startup) -> Result<&Database, Denied> {
        let database = self
            .world
            .database(&startup.database)
            .ok_or_else(|| Denied::NoDatabase(startup.database.clone()))?;
        // Whoever says that nobody needs a name has said for whom everything is done.
        if self.world.config.auth.method == AuthMethod::Any && database.user.is_none() {
            return Err(Denied::Nameless);
        }
        if self.app.pools.is_disabled(&startup.database) {
            return Err(Denied::Disabled(startup.database.clone()));
        }
        Ok(database)
    }

    /// What pgweir asks Postgres for on a client's behalf, with what the configuration has to say about it: nothing for one that
    /// replicates, whose startup message Postgres reads itself.
    fn for_postgres(
        &self,
        asked: Result<Parameters, OptionsError>,
        replicates: bool,
        peer: Peer,
        database: &Database,
    ) -> Result<Parameters, Denied> {
        if replicates {
            return Ok(Parameters::default());
        }
        let mut asked = asked.map_err(Denied::Options)?;
        // Postgres would take it for a parameter of an extension's.
        asked.unset(DEPLOYMENT);
        if asked.value(APPLICATION_NAME).is_none() {
            // Who gives none has none, and not what pgweir calls itself.
            let default = database.parameters.application_name.as_deref();
            asked.set(APPLICATION_NAME, default.unwrap_or(""));
        }
        if self.world.config.pool.application_name_add_host {
            let named = asked
                .value(APPLICATION_NAME)
                .filter(|name| !name.is_empty());
            let with_host = format!("{} - {peer}", named.unwrap_or("app"));
            asked.set(APPLICATION_NAME, &with_host);
        }
        Ok(asked)
    }

    pub(super) fn refuse_early(&self) -> Result<(), Denied> {
        if self.app.is_draining() {
            return Err(Denied::Draining);
        }
        Ok(())
    }

    /// Whether the connection is as safe as `[tls.client]` demands.
    pub(super) fn check_tls(
        &self,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> Result<(), Denied> {
        let mode = self.world.config.tls_client.mode;
        // A unix socket needs no TLS, and cannot have it.
        if matches!(peer, Peer::Unix(_)) {
            return Ok(());
        }
        if mode.demands() && secured.is_none() {
            return Err(Denied::Insecure);
        }
        if mode == TlsMode::VerifyFull && !self.world.certificate_is_for(secured, &startup.user) {
            return Err(LoginError::Certificate(startup.user.clone()).into());
        }
        Ok(())
    }

    /// The client proves who it is to pgweir.
    pub(super) async fn prove(
        &self,
        packets: &mut Packets<Stream>,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
        credential: &Credential,
    ) -> Result<Proof, Denied> {
        let known = credential.is_known() || self.world.credentials.is_empty();
        let user = &startup.user;
        let method = match self.world.config.auth.method {
            AuthMethod::Cert if !self.world.certificate_is_for(secured, &startup.user) => {
                return Err(LoginError::Certificate(startup.user.clone()).into());
            }
            AuthMethod::Any => return Ok(Proof::None),
            AuthMethod::Trust if known => return Ok(Proof::None),
            AuthMethod::Cert if known => return Ok(Proof::Given),
            AuthMethod::Trust | AuthMethod::Cert => {
                return Err(Denied::Stranger(startup.user.clone()));
            }
            AuthMethod::Password => Method::Password,
            AuthMethod::Md5 => Method::Md5,
            AuthMethod::ScramSha256 => Method::Scram,
            AuthMethod::Hba => {
                let record = self.record(startup, peer, secured)?;
                match record {
                    hba_file::Method::Reject => return Err(Denied::Rejected),
                    // A file that names who may come in from where means those who are known.
                    hba_file::Method::Trust if credential.is_known() => return Ok(Proof::None),
                    hba_file::Method::Trust => return Err(Denied::Stranger(user.clone())),
                    hba_file::Method::Cert(map) => {
                        let map = map.as_deref();
                        if self.world.certificate_by(map, secured, user) {
                            return Ok(Proof::Given);
                        }
                        return Err(LoginError::Certificate(user.clone()).into());
                    }
                    hba_file::Method::Peer(map) => {
                        let name = owner(packets.stream());
                        let map = map.as_deref();
                        if name.is_some_and(|name| self.world.is_mapped(map, &name, user)) {
                            return Ok(Proof::Given);
                        }
                        return Err(LoginError::Peer(user.clone()).into());
                    }
                    hba_file::Method::Password => Method::Password,
                    hba_file::Method::Md5 => Method::Md5,
                    hba_file::Method::ScramSha256 => Method::Scram,
                }
            }
        };
        let end_point = secured.and_then(|secured| secured.end_point.as_deref());
        authenticate(packets, &startup.user, credential, method, end_point).await?;
        Ok(Proof::Given)
    }

    /// What the HBA file says of this client.
    fn record(
        &self,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> Result<&hba_file::Method, Denied> {
        let replicates = startup.is_replication()
            && !startup
                .parameter("replication")
                .is_some_and(|value| value.eq_ignore_ascii_case("database"));
        let asking = hba_file::Asking {
            address: peer.ip(),
            tls: secured.is_some(),
            database: &startup.database,
            user: &startup.user,
            replicates,
        };
        let found = self.world.hba.method(&asking);
        found.ok_or_else(|| {
            let host = peer.ip().map_or("[local]".to_owned(), |ip| ip.to_string());
            let Startup { user, database, .. } = startup;
            let encryption = if secured.is_some() {
                "SSL encryption"
            } else {
                "no encryption"
            };
            Denied::NoRecord(format!(
                "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
            ))
        })
    }

    pub(super) fn classify(
        &self,
        startup: &Startup,
        asked: Option<&Parameters>,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> (ServiceId, Who) {
        let subject = secured.and_then(|secured| secured.subject.as_ref());
        let said = |name| asked.and_then(|asked| asked.value(name));
        let deployment = said(DEPLOYMENT).filter(|name| !name.is_empty());
        let who = Who {
            user: startup.user.clone(),
            database: startup.database.clone(),
            named_deployment: deployment.is_some(),
            deployment: deployment.map(Into::into),
            certificate: subject.and_then(|subject| subject.common_name.clone()),
            ..Who::default()
        };
        let name = said(APPLICATION_NAME).unwrap_or_default();
        self.app.classify(&self.world, who, name, peer)
    }

    pub(super) fn pool(
        &self,
        startup: &Startup,
        database: &Database,
        credential: &Credential,
    ) -> Arc<Pool> {
        let (user, proof) = self.world.server_login(database, &startup.user, credential);
        if startup.is_replication() {
            let settings = self
                .world
                .pool_settings(&startup.database, database, &user, proof);
            let settings = settings.as_replication(startup);
            let pools = &self.app.pools;
            return pools.replication(&startup.database, &user, settings);
        }
        let pool = self.app.pools.pool(&startup.database, &user, || {
            self.world
                .pool_settings(&startup.database, database, &user, proof.clone())
        });
        // A client's SCRAM login teaches the keys with which to log in to Postgres; after a change of password, new ones.
        if !matches!(proof, ServerLogin::Nothing) {
            pool.prove_with(proof);
        }
        pool
    }

    /// Its seats under the caps on clients.
    async fn seats(
        &self,
        first: Seat,
        who: &Who,
        database: &Database,
    ) -> Result<Box<[Seat]>, Denied> {
        let Config { limits, users, .. } = &*self.world.config;
        let user = users
            .get(&who.user)
            .and_then(|user| user.max_clients)
            .unwrap_or(limits.max_clients_per_user);
        let database = database
            .max_clients
            .unwrap_or(limits.max_clients_per_database);
        // Without a cap nobody needs the count.
        let enter = |kind, name: &str, cap, limit| match cap {
            0 => Ok(None),
            cap => self
                .app
                .quotas
                .of(kind, name)
                .enter(cap)
                .map(Some)
                .ok_or(Denied::Full(limit)),
        };
        let user = enter(Capped::User, &who.user, user, "max_clients_per_user")?;
        let database = enter(
            Capped::Database,
            &who.database,
            database,
            "max_clients_per_database",
        )?;
        let service = self.service_seat(who).await?;
        let seats = [Some(first), user, database, service];
        Ok(seats.into_iter().flatten().collect())
    }

    /// A seat under the cap of its service. Where that is full of what an old deployment has left, room is made.
    async fn service_seat(&self, who: &Who) -> Result<Option<Seat>, Denied> {
        let most = self.world.service_clients(&who.service);
        if most == 0 {
            return Ok(None);
        }
        let quota = self.app.quotas.of(Capped::Service, &who.service);
        let cap = self.app.clients_for(who, most);
        for _ in 0..ROOM_TRIES {
            if let Some(seat) = quota.enter(cap) {
                return Ok(Some(seat));
            }
            if !self.app.make_room_for(who) {
                break;
            }
            sleep(ROOM_PAUSE).await;
        }
        Err(Denied::Full("max_clients of the service"))
    }

    /// What Postgres tells whom it lets in. The first client of a pool has a server connection opened for it.
    async fn welcome(&self, pool: &Arc<Pool>, service: ServiceId) -> Result<Arc<Welcome>, Denied> {
        if let Some(welcome) = pool.welcome() {
            return Ok(welcome);
        }
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let welcome = Arc::clone(&lease.connection().welcome);
        give_back(lease);
        Ok(welcome)
    }

    /// What a client is told that gets server connections when it needs them.
    async fn learn(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        asked: Parameters,
    ) -> Result<Welcomed, Denied> {
        Ok(Welcomed {
            welcome: self.welcome(pool, service).await?,
            accepted: self.accept(pool, service, asked).await?,
            lease: None,
        })
    }

    /// What a client is told that keeps a server connection from now on, and that connection.
    async fn hold(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        asked: Parameters,
    ) -> Result<Welcomed, Denied> {
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let accepted = give(&mut lease, asked).await?;
        Ok(Welcomed {
            welcome: Arc::clone(&lease.connection().welcome),
            accepted: Arc::new(accepted),
            lease: Some(lease),
        })
    }

    /// What a client is told that replicates, and the connection that was made for it and with its own startup message.
    async fn replicate(&self, pool: &Arc<Pool>, service: ServiceId) -> Result<Welcomed, Denied> {
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let accepted = Accepted {
            parameters: Arc::default(),
            reported: Vec::new(),
        };
        Ok(Welcomed {
            welcome: Arc::clone(&lease.connection().welcome),
            accepted: Arc::new(accepted),
            lease: Some(lease),
        })
    }

    /// What becomes of what the client asked for at startup: Postgres is asked once, and whatever it does not take is told to this
    /// client alone.
    async fn accept(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        asked: Parameters,
    ) -> Result<Arc<Accepted>, Denied> {
        if let Some(accepted) = pool.accepted(&asked) {
            return Ok(accepted);
        }
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let accepted = give(&mut lease, asked.clone()).await;
        give_back(lease);
        Ok(pool.accept(asked, accepted?))
    }

    pub(super) async fn lease(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
    ) -> Result<Lease, Refused> {
        loop {
            let asked =
                poll_fn(|cx| Poll::Ready(pool.ask(service, self.thread, 0, cx.waker()))).await;
            let mut ticket = match asked {
                Checkout::Lease(lease) => return Ok(lease),
                Checkout::Ticket(ticket) => ticket,
            };
            match poll_fn(|_| ticket.poll()).await {
                Called::Lease(lease) => return Ok(lease),
                Called::Refused(refused) => return Err(refused),
                Called::Again => {}
            }
        }
    }

    /// Nobody told pgweir who may log in, so Postgres is asked: with no password, and if it wants one, with the client's.
    pub(super) async fn vouch(
        &self,
        packets: &mut Packets<Stream>,
        pool: &Arc<Pool>,
        service: ServiceId,
    ) -> Result<(), Denied> {
        // One at a time: guessing passwords through pgweir is no faster than one login after the other.
        let mut vouched = pool.vouched().lock().await;
        if vouched.is_none() {
            match self.lease(pool, service).await {
                Ok(lease) => {
                    give_back(lease);
                    *vouched = Some(Vouched::Trusted);
                }
                Err(Refused::Login {
                    wants_proof: true, ..
                }) => {}
                Err(refused) => return Err(Denied::Refused(refused)),
            }
        }
        if matches!(&*vouched, Some(Vouched::Trusted)) {
            return Ok(());
        }
        drop(vouched);
        let password = self.in_time(ask_password(packets)).await?;
        let mut vouched = pool.vouched().lock().await;
        if matches!(&*vouched, Some(Vouched::By(known)) if *known == password) {
            return Ok(());
        }
        self.try_password(pool, service, &password).await?;
        pool.prove_with(ServerLogin::password(&password));
        *vouched = Some(Vouched::By(password));
        Ok(())
    }

    /// The same for a client that gets a connection of its own: it is asked for its password, and Postgres tries it when that
    /// connection is made.
    async fn vouch_alone(
        &self,
        packets: &mut Packets<Stream>,
        pool: &Arc<Pool>,
        service: ServiceId,
    ) -> Result<(), Denied> {
        match self.lease(pool, service).await {
            // It trusts; the connection is closed, and made once more for the client.
            Ok(lease) => lease.discard(Discard::Replication),
            Err(Refused::Login {
                wants_proof: true, ..
            }) => {
                let password = self.in_time(ask_password(packets)).await?;
                pool.prove_with(ServerLogin::password(&password));
            }
            Err(refused) => return Err(Denied::Refused(refused)),
        }
        Ok(())
    }

    /// Logs in to Postgres with a password that nobody has vouched for yet, within the budget like everything else.
    async fn try_password(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        password: &Secret,
    ) -> Result<(), Denied> {
        let settings = pool.settings().as_probe(ServerLogin::password(password));
        let probe = self.app.pools.probe(pool, settings);
        let tried = self
            .lease(&probe, service)
            .await
            .map(|lease| lease.discard(Discard::Probe));
        tried.map_err(Denied::Refused)
    }
}

/// Which user of this machine is at the other end of a unix socket.
fn owner(stream: &Stream) -> Option<String> {
    names::user_name(stream.peer_user()?)
}

/// Waiting for Postgres may take long, and a client that gives up leaves the queue.
fn gone() -> LoginError {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

/// Gives back a lease over which nothing was sent.
pub(super) fn give_back(mut lease: Lease) {
    if let Some(proof) = lease.connection().end.settled() {
        lease.release(proof);
    }
}

/// Gives the session of a lease what Postgres takes of these parameters.
async fn give(lease: &mut Lease, mut wanted: Parameters) -> Result<Accepted, Denied> {
    loop {
        let tried = timeout(TAKE_ON_LIMIT, take_on(lease, &wanted)).await;
        match tried.map_err(|_| Denied::TooSlow)?? {
            Taken::All(accepted) => return Ok(accepted),
            Taken::AllBut(parameter) => {
                tracing::info!(parameter, "can be set at connection start only: no effect");
                wanted.unset(&parameter);
            }
        }
    }
}

/// What Postgres takes of a client's parameters.
enum Taken {
    All(Accepted),
    /// It would have taken this one when the connection began. That is not worth a connection of one's own.
    AllBut(String),
}

/// Gives the session of a lease these parameters, and finds out what becomes of them.
async fn take_on(lease: &mut Lease, wanted: &Parameters) -> Result<Taken, Denied> {
    // Whatever the end is, it is not this client's: it may try again.
    let lost = |error: EndError| Denied::Login(LoginError::Io(io::Error::other(error)));
    let connection = lease.connection();
    match connection
        .take_on(&Arc::new(wanted.clone()))
        .await
        .map_err(lost)?
    {
        Ok(answer) => {
            let values = answer
                .rows
                .iter()
                .filter_map(|(name, value)| Some((&**name, value.as_deref()?)));
            let parameters = Arc::new(values.collect::<Parameters>());
            connection.end.state_mut().set_parameters(&parameters);
            Ok(Taken::All(Accepted {
                parameters,
                reported: answer.reported,
            }))
        }
        Err(refused) => match refused.quoted_name() {
            Some(name)
                if refused.code == SqlState::CANNOT_CHANGE_PARAMETER
                    && wanted.value(&name).is_some()
                    && connection
                        .context_of(&name)
                        .await
                        .map_err(lost)?
                        .is_some_and(|context| context.ends_with("backend")) =>
            {
                Ok(Taken::AllBut(name))
            }
            _ => Err(Denied::Parameters(refused)),
        },
    }
}

/// Everything from AuthenticationOk to ReadyForQuery.
fn hello(
    welcome: &Welcome,
    accepted: &Accepted,
    (id, secret): (u32, &[u8]),
    notice: Option<&str>,
) -> Vec<u8> {
    let mut bytes = authentication::request(authentication::OK, &[]);
    for (name, value) in &welcome.parameters {
        let reported = accepted.reported.iter().rev();
        let reported = reported.filter(|(known, _)| known == name);
        let value = accepted
            .parameters
            .value(name)
            .or(reported.map(|(_, value)| &**value).next())
            .unwrap_or(value);
        bytes.extend(parameter_status(name, value));
    }
    bytes.extend(backend_key_data(id, secret));
    for notice in &welcome.notices {
        bytes.extend(Message::new(b'N').bytes(notice).done());
    }
    if let Some(notice) = notice {
        bytes.extend(Report::new(SqlState::SUCCESSFUL_COMPLETION, notice).notice());
    }
    bytes.extend(ready_for_query());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_task<F>(_attend: fn(Arc<App>, ThreadId, Arrival) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_client_keeps_its_session_once() {
        let (task, session) = (size_of_task(attend), size_of::<Session>());
        assert!(task < session + 128, "{task} for a session of {session}");
    }
}
