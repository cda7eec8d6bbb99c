//! From an accepted socket to a session: who is it, may it come in, which pool is its own.

mod belong;
pub(super) mod denied;
pub(super) mod elsewhere;
pub(super) mod proof;
mod seats;
pub(super) mod welcome;

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use self::denied::Denied;
use self::proof::Proof;
use self::welcome::{Welcomed, hello};
use super::console::is_console;
use super::look_up::Found;
use super::page::Whom;
use super::serve::App;
use super::takeover;
use super::worker::Arrival;
use super::world::World;
use crate::client::directory::{Entry, Seat};
use crate::client::end::ClientEnd;
use crate::client::greet::{GreetError, Greeted, Greeting, Secured, announced, greet};
use crate::client::login::LoginError;
use crate::config::checked::{AuthMethod, Database, Mode};
use crate::metrics::Counts;
use crate::net::line::Line;
use crate::net::listen::Peer;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::net::tls::of_openssl;
use crate::pool::book::{Party, ThreadId};
use crate::pool::lease::Lease;
use crate::pool::pools::Member;
use crate::repeats::{self, POOLER_ERROR};
use crate::session::run::{End, Session, Terms};
use crate::wire::parameters::Parameters;
use crate::wire::scan::LARGEST_MESSAGE;
use crate::wire::startup::{Startup, secret_length};

/// How long a client that is refused may take to read why.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(5);

/// What is said of a client that is not let in.
const REFUSED: &str = "login refused";

/// Looks after one client from accept to goodbye.
pub async fn attend(app: Arc<App>, thread: ThreadId, arrival: Arrival) {
    // Boxed, because an idle task is as large as its largest phase. The session is not looked at here: it would be kept in two places.
    let Some((entry, session)) = Box::pin(admit(&app, thread, arrival)).await else {
        return;
    };
    let end = session.await;
    if let End::Refused(refused) = &end {
        app.watch
            .was_refused(&entry.who().service, refused.as_str());
    }
    if let End::Reaped(sentence) = &end {
        app.reaping.log.note(&entry, sentence, false);
        app.watch.did(end.to_string());
    }
    app.metrics.session_ended(end.as_str());
    let recent = &app.page.recent;
    recent.ended(end.as_str(), &end, Whom::from(&*entry.who()), &entry.peer);
    let as_pgbouncer = app.logs_as_pgbouncer().then(|| end.as_pgbouncer());
    let told = app.logs_disconnections();
    if told {
        let because = as_pgbouncer.as_ref();
        let said = because.map(|because| closing(because, entry.since.elapsed()));
        farewell(&entry, end.as_str(), &end, said.as_deref());
    }
    if !end.is_told() {
        return;
    }
    let who = entry.who();
    if let Some(error) = as_pgbouncer {
        pooler_error(entry.id(), &who.user, &who.database, entry.peer, &error);
    } else if !told {
        tracing::info!(
            target: POOLER_ERROR, id = entry.id(), user = who.user, database = who.database, service = who.service,
            reason = end.as_str(), "session ended: {end}"
        );
    }
}

/// Says that a session has ended, and what it did.
fn farewell(entry: &Entry, reason: &'static str, end: &dyn Display, said: Option<&str>) {
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
        said, "session ended: {end}"
    );
}

/// PgBouncer's line about what it tells a client of its own accord.
fn pooler_error(id: u32, user: &str, database: &str, peer: Peer, error: &str) {
    let said = format!("pooler error: {error}");
    tracing::warn!(target: POOLER_ERROR, id, user, database, %peer, said, "client refused");
}

/// PgBouncer's word for how a client replicates.
fn replication(startup: &Startup) -> &'static str {
    let asked = startup.parameter("replication").unwrap_or_default();
    if !startup.is_replication() {
        "no"
    } else if asked.eq_ignore_ascii_case("database") {
        "database"
    } else {
        "yes"
    }
}

/// PgBouncer's line about the end of a connection.
pub(super) fn closing(because: &str, age: Duration) -> String {
    format!("closing because: {because} (age={}s)", age.as_secs())
}

/// Lets a client in. One of the console is served here to its end: there are few of them, and they need no small task.
async fn admit(
    app: &Arc<App>,
    thread: ThreadId,
    arrival: Arrival,
) -> Option<(Arc<Entry>, Session)> {
    let Arrival {
        socket,
        mut peer,
        arriving,
    } = arrival;
    let mut packets = Packets::new(socket.register().ok()?);
    let reception = Reception {
        app,
        id: app.directory.number(),
        thread,
        began: Instant::now(),
        world: app.world(),
    };
    // Counted before it says a word, so that silent sockets are bounded too; told only once it can hear.
    let seat = app.clients.enter(reception.world.config.limits.max_clients);
    let tls = reception.world.tls.client.as_deref();
    let greeting = {
        let greeting = pin!(async {
            if reception.world.is_proxy(peer) {
                peer = announced(&mut packets, peer).await?;
            }
            greet(packets, peer, tls).await
        });
        reception.in_time(greeting).await
    };
    let mut greeted = match greeting {
        Ok(Greeting::Startup(greeted)) => greeted,
        Ok(Greeting::Cancel(key, line)) => {
            app.cancel(&key, peer, (reception.id, reception.began))
                .await;
            drop(line);
            return None;
        }
        Err(denied) => {
            // A probe that connects and leaves (a load balancer's) is no event.
            if !matches!(&denied, Denied::Greeting(GreetError::Io(_))) {
                if app.logs_as_pgbouncer() {
                    reception.tell_ungreeted(&denied, peer);
                }
                app.metrics.login_failed(denied.as_str());
                app.page.recent.refused(&denied, Whom::default(), &peer);
                let cause = format!("{}: {denied}, from {}", denied.as_str(), place(peer));
                if !app.logs_as_pgbouncer() && repeats::is_news(REFUSED, cause) {
                    tracing::info!(%peer, reason = denied.as_str(), "login refused: {denied}");
                }
            }
            return None;
        }
    };
    if takeover::is_asked(&greeted.startup) {
        drop((arriving, seat));
        Box::pin(takeover::hand_over(app, *greeted)).await;
        return None;
    }
    if is_console(&greeted.startup.database) {
        drop(arriving);
        Box::pin(serve_console(reception, *greeted, seat)).await;
        return None;
    }
    match reception.receive(&mut greeted, seat).await {
        Ok((terms, lease)) => {
            let session = session(greeted.packets, terms, lease, &reception.world);
            Some((Arc::clone(session.entry()), session))
        }
        Err(denied) => {
            refuse(app, *greeted, &denied, (reception.id, reception.began)).await;
            None
        }
    }
}

async fn serve_console(reception: Reception<'_>, greeted: Greeted, seat: Option<Seat>) {
    let (app, whose) = (reception.app, (reception.id, reception.began));
    let received = reception.receive_at_console(greeted, seat).await;
    // A session may outlive the configuration under which it began.
    drop(reception);
    match received {
        Ok(console) => {
            let entry = Arc::clone(console.entry());
            let end = console.run().await;
            if app.logs_disconnections() {
                let age = entry.since.elapsed();
                let said = app
                    .logs_as_pgbouncer()
                    .then(|| closing(end.as_pgbouncer(), age));
                farewell(&entry, end.as_str(), &end, said.as_deref());
            }
        }
        Err((greeted, denied)) => refuse(app, greeted, &denied, whose).await,
    }
}

/// Where a client came from, without its port: that is another one each time.
fn place(peer: Peer) -> String {
    peer.ip()
        .map_or_else(|| peer.to_string(), |address| address.to_string())
}

/// Tells a client why it is not let in.
async fn refuse(app: &App, greeted: Greeted, denied: &Denied, (id, began): (u32, Instant)) {
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
    // Whoever counts PgBouncer's lines misses none.
    let said = app
        .logs_as_pgbouncer()
        .then(|| closing(&denied.as_pgbouncer(), began.elapsed()));
    let last_words = denied.last_words(app.world().config.pool.errors);
    if let Some(said) = said {
        if let Some(said) = how_refused(packets.stream(), denied) {
            tracing::error!(id, %peer, user, database, said, "login refused: {denied}");
        }
        if app.logs_connections()
            && let Some(said) = failed_for(&user, &database, denied)
        {
            tracing::info!(id, %peer, user, database, said, "login refused: {denied}");
        }
        // Who leaves before having logged in may be a probe, to PgBouncer too.
        let has_left = matches!(denied, Denied::Login(LoginError::Io(_)));
        if app.logs_disconnections() && !has_left {
            tracing::info!(id, %peer, user, database, said, "login refused: {denied}");
        }
        if last_words.is_some() {
            pooler_error(id, &user, &database, peer, &denied.as_pgbouncer());
        }
    } else if repeats::is_news(REFUSED, cause) {
        tracing::info!(
            target: POOLER_ERROR, %peer, user, database, reason = denied.as_str(), "login refused: {denied}"
        );
    }
    if let Some(words) = last_words {
        // The client may be gone; it was to be told, no more.
        let _ = timeout(LAST_WORDS_LIMIT, packets.write(&words)).await;
    }
}

/// What PgBouncer says of a proof that was not good, beside the end of the connection.
fn how_refused(stream: &Stream, denied: &Denied) -> Option<&'static str> {
    Some(match denied {
        Denied::Login(LoginError::Proof(_)) | Denied::NoUser(LoginError::Proof(_)) => {
            "password authentication failed"
        }
        Denied::Login(LoginError::Certificate(_)) => {
            match stream.tls().map(|tls| tls.peer_certificate()) {
                None => "TLS connection required",
                Some(None) => "TLS client certificate required",
                Some(Some(_)) => "TLS certificate name mismatch",
            }
        }
        _ => return None,
    })
}

/// What PgBouncer says of a login to what is not there.
fn failed_for(user: &str, database: &str, denied: &Denied) -> Option<String> {
    match denied {
        Denied::NoUser(_) => Some(format!("login failed: db={database}")),
        Denied::NoDatabase(_) => Some(format!("login failed: db={database} user={user}")),
        _ => None,
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

/// What it takes to let one client in.
pub(super) struct Reception<'a> {
    pub(super) app: &'a Arc<App>,
    /// The client's number.
    pub(super) id: u32,
    thread: ThreadId,
    /// When the client was accepted.
    began: Instant,
    pub(super) world: Arc<World>,
}

impl Reception<'_> {
    /// Bounds what depends on the client by `client_login`. Steps are large, and moved several times here unless they are pinned.
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
        let found = self.in_time(pin!(self.find(startup))).await?;
        self.tell_stranger(&found, startup, *peer);
        self.tell_attempt(packets, startup, *peer);
        let mut credential = &found.credential;
        let proof = if self.world.passes_through() {
            Proof::None
        } else {
            let proving = pin!(self.prove(packets, startup, *peer, secured, credential));
            let proof = self.in_time(proving).await;
            proof.map_err(|denied| found.why(denied))?
        };
        if let Proof::Vouched(by) = &proof {
            credential = by;
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
        let counted = |denied: &Denied| self.count_refusal(&who.service, denied);
        let seats = self.seats(seat, &who, database).await;
        let seats = seats.inspect_err(counted)?;
        if self.world.passes_through() && replicates {
            self.vouch_alone(packets, &pool, service).await?;
        }
        let asked = self.for_postgres(asked, replicates, *peer, database)?;
        let settings = pool.settings();
        let reach = self.app.reach_of(&who);
        let party = Party { service, reach };
        let welcomed = async {
            match settings.mode {
                Mode::Session if replicates => self.replicate(&pool, party).await,
                Mode::Session => self.hold(&pool, party, asked).await,
                Mode::Transaction | Mode::Statement => self.learn(&pool, service, asked).await,
            }
        };
        let Welcomed {
            welcome,
            accepted,
            mut lease,
        } = tokio::select! {
            welcomed = welcomed => welcomed.inspect_err(counted)?,
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
            .list_as(self.id, *peer, line, who, server, secret_length);
        if !self.app.lets_in() {
            return Err(Denied::Draining);
        }
        let notice = self.world.config.auth.login_notify_message.as_deref();
        let hello = hello(&welcome, &accepted, listed.entry().key(), notice);
        self.in_time(async { packets.write(&hello).await.map_err(LoginError::Io) })
            .await?;
        self.app.metrics.logins.add(self.began.elapsed());
        pool.traffic(self.thread).logins.add(1);
        if self.world.config.log.connections {
            self.announce(listed.entry(), secured);
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
            simple: !self.world.config.pool.disable_pqexec,
            prepared: if settings.mode == Mode::Session {
                0
            } else {
                most
            },
        };
        Ok((terms, lease))
    }

    /// Says that a client has logged in. The log of PgBouncer has said so when it asked to.
    fn announce(&self, entry: &Entry, secured: Option<&Secured>) {
        let (who, peer) = (entry.who(), entry.peer);
        if self.app.logs_as_pgbouncer() {
            let said = "logged in";
            return tracing::debug!(said, id = entry.id(), user = who.user, database = who.database, %peer, "login");
        }
        tracing::info!(
            id = entry.id(), user = who.user, database = who.database, service = who.service,
            deployment = who.deployment.as_deref(), %peer,
            tls = secured.map(|secured| secured.version), resumed = secured.map(|secured| secured.resumed), "login"
        );
    }

    /// PgBouncer's line about who wants to log in, before anything was proved.
    pub(super) fn tell_attempt(&self, packets: &Packets<Stream>, startup: &Startup, peer: Peer) {
        if !self.world.config.log.connections || !self.app.logs_as_pgbouncer() {
            return;
        }
        let Startup { user, database, .. } = startup;
        let tls = Line::of(packets.stream()).tls.map(|tls| tls.to_string());
        let tls = tls.as_deref().unwrap_or("no");
        let replication = replication(startup);
        let said =
            format!("login attempt: db={database} user={user} tls={tls} replication={replication}");
        tracing::info!(said, id = self.id, user, database, %peer, "login attempt");
    }

    /// PgBouncer's line about somebody whom nobody knows.
    pub(super) fn tell_stranger(&self, found: &Found, startup: &Startup, peer: Peer) {
        let asks_elsewhere = matches!(
            self.world.config.auth.method,
            AuthMethod::Any | AuthMethod::Ldap | AuthMethod::Pam
        );
        if asks_elsewhere || !found.is_listed_nowhere() {
            return;
        }
        if let Some(said) = self
            .app
            .words(format_args!("no such user: {}", startup.user))
        {
            tracing::info!(said, id = self.id, %peer, "no such user");
        }
    }

    /// PgBouncer's lines about a client that has not said who it is.
    fn tell_ungreeted(&self, denied: &Denied, peer: Peer) {
        let id = self.id;
        if let Denied::Greeting(GreetError::Tls(error)) = denied {
            let why = of_openssl(error).map_or_else(|| error.to_string(), str::to_owned);
            let said = format!("TLS handshake error: handshake failed: {why}");
            return tracing::warn!(said, "login refused: {denied}");
        }
        let because = denied.as_pgbouncer();
        if self.app.logs_disconnections() {
            let said = closing(&because, self.began.elapsed());
            tracing::info!(id, %peer, said, "login refused: {denied}");
        }
        if matches!(denied, Denied::Greeting(error) if error.is_told()) {
            let said = format!("pooler error: {because}");
            tracing::warn!(target: POOLER_ERROR, id, %peer, said, "client refused");
        }
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

    pub(super) fn refuse_early(&self) -> Result<(), Denied> {
        if !self.app.lets_in() {
            return Err(Denied::Draining);
        }
        Ok(())
    }
}

/// Waiting for Postgres may take long, and a client that gives up leaves the queue.
fn gone() -> LoginError {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
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
