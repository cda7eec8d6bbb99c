//! A session: idle without a buffer, waiting in a pool's queue, or leased to a server connection. One future for its life.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::adopt::{Found, Ground};
use super::relay::{Relay, RelayError};
use super::translate::Tracking;
use crate::client::directory::{Ask, Entry, Listed, Quota, Seat};
use crate::client::end::{ClientEnd, Look};
use crate::client::patience::{Activity, Due, Overdue};
use crate::client::statements::TooMany;
use crate::config::checked::{Errors, Mode};
use crate::net::end::EndError;
use crate::net::stream::Stream;
use crate::policy::reaper::Sentence;
use crate::pool::book::{ServiceId, ThreadId};
use crate::pool::errand::Discard;
use crate::pool::lease::{Called, Checking, Lease, Ticket};
use crate::pool::pools::{Checkout, Member, Refused};
use crate::repeats::POOLER_ERROR;
use crate::server::end::{ServerEnd, Settled};
use crate::server::state::{Answer, Touched};
use crate::wire::WireError;
use crate::wire::exchange::Exchange;
use crate::wire::parameters::Parameters;
use crate::wire::reply::{Report, ServerError, Severity, SqlState, ready_for_query};

/// Bytes that one read moves at most. The kernel's own socket buffers are of this order.
const SCRATCH: usize = 64 * 1024;

/// Bytes that are read of an idle client's request. If no server connection is free they are kept until one is, so this
/// bounds what a waiting client costs.
const REQUEST: usize = 4 * 1024;

/// How often pgweir's own query is tried again that a timeout of the client before, a late cancel or the end of its server has stopped.
/// It takes well under a millisecond, which is the shortest timeout.
const TRIES: u8 = 10;

/// What a client that waits is told after `query_wait_notify`: PgBouncer's words.
const QUEUED: &str = "No server connection available in postgres backend, client being queued";

thread_local! {
    /// The one read buffer of a thread: borrowed inside one poll, never across a return.
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Why a session ended. Each has its own word in log and metrics.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// Terminate.
    #[error("client said goodbye")]
    Goodbye,
    /// The socket was closed or failed without a Terminate.
    #[error("client went away: {0}")]
    ClientGone(EndError),
    /// It sent what the protocol does not allow.
    #[error("client broke the protocol: {0}")]
    Violation(WireError),
    /// Postgres closed the connection, or it failed, while this client held it.
    #[error("server connection failed: {0}")]
    ServerLost(EndError),
    /// No server connection could be had.
    #[error("{0}")]
    Refused(Refused),
    /// A transaction block in statement mode.
    #[error("transaction block in statement mode")]
    TransactionBlock,
    /// More prepared statements than a client may have.
    #[error("{0}")]
    TooManyStatements(TooMany),
    /// Postgres does not give a session the parameters that this client's sessions have.
    #[error("Postgres refuses the session's parameters: {0}")]
    Parameters(ServerError),
    /// pgweir is shutting down.
    #[error("pgweir is shutting down")]
    Drained,
    /// The server connection that it kept is to be replaced.
    #[error("database configuration changed")]
    Replaced,
    /// It sent a simple query, and those are refused.
    #[error("PQexec disallowed")]
    SimpleQuery,
    /// An operator or a limit wants it so.
    #[error("closed by an administrator")]
    Killed,
    /// It has done the same for too long.
    #[error("{}", overdue_text(*.0))]
    Overdue(Overdue),
    /// Its deployment is superseded, or others need what it holds.
    #[error("{0}")]
    Reaped(Arc<Sentence>),
}

impl End {
    fn client(error: EndError) -> Self {
        RelayError::client(error).into()
    }

    /// The words that there are.
    pub const WORDS: [&str; 24] = [
        "goodbye",
        "client_gone",
        "protocol_violation",
        "server_lost",
        "query_wait",
        "server_login",
        "pool_removed",
        "transaction_block",
        "too_many_statements",
        "parameters",
        "drained",
        "replaced",
        "simple_query",
        "killed",
        "client_idle",
        "idle_transaction",
        "transaction",
        "query",
        "stale",
        "stale_transaction",
        "pressure_stale",
        "pressure_stale_transaction",
        "pressure_idle_transaction",
        "kill_stale",
    ];

    /// Whether its client is told of an error.
    pub fn is_told(&self) -> bool {
        !matches!(self, Self::Goodbye | Self::ClientGone(_))
    }

    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Goodbye => "goodbye",
            Self::ClientGone(_) => "client_gone",
            Self::Violation(_) => "protocol_violation",
            Self::ServerLost(_) => "server_lost",
            Self::Refused(refused) => refused.as_str(),
            Self::TransactionBlock => "transaction_block",
            Self::TooManyStatements(_) => "too_many_statements",
            Self::Parameters(_) => "parameters",
            Self::Drained => "drained",
            Self::Replaced => "replaced",
            Self::SimpleQuery => "simple_query",
            Self::Killed => "killed",
            Self::Overdue(Overdue::ClientIdle) => "client_idle",
            Self::Overdue(Overdue::IdleTransaction) => "idle_transaction",
            Self::Overdue(Overdue::Transaction) => "transaction",
            Self::Overdue(Overdue::Query) => "query",
            Self::Reaped(sentence) => sentence.reason.as_str(),
        }
    }

    /// What the client is told before its socket is closed.
    fn last_words(&self, errors: Errors) -> Option<Vec<u8>> {
        let report = match self {
            Self::Goodbye | Self::ClientGone(_) => return None,
            Self::Violation(error) => Report::new(SqlState::PROTOCOL_VIOLATION, error.to_string()),
            Self::ServerLost(EndError::Wire(error)) => Report::new(
                SqlState::CONNECTION_FAILURE,
                format!("Postgres sent what is no protocol: {error}"),
            ),
            Self::ServerLost(_) => Report::new(
                SqlState::CONNECTION_FAILURE,
                "server closed the connection unexpectedly",
            )
            .hint("Postgres ended the session or crashed; its log says why."),
            Self::Refused(refused) => return Some(refused.to_client(errors)),
            Self::TransactionBlock => Report::new(
                SqlState::NOT_SUPPORTED,
                "transaction blocks not allowed in statement pooling mode",
            )
            .hint("Set mode = \"transaction\" for this database or user."),
            Self::TooManyStatements(error) => error.report(),
            Self::Parameters(error) => Report::new(error.code, error.message.clone())
                .detail("The session's parameters could not be set on another server connection."),
            Self::Drained => Report::new(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection: pgweir is shutting down",
            ),
            Self::Replaced => Report::new(SqlState::ADMIN_SHUTDOWN, self.to_string())
                .detail("The server connection that this session kept is to be replaced, as server_fast_close says."),
            Self::SimpleQuery => Report::new(SqlState::NOT_SUPPORTED, self.to_string())
                .hint("Simple queries are refused here, as disable_pqexec says: use the extended protocol."),
            Self::Killed => Report::new(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command",
            ),
            Self::Overdue(overdue) => overdue_report(*overdue),
            Self::Reaped(sentence) => Report::new(
                SqlState::ADMIN_SHUTDOWN,
                format!("terminating connection: {sentence}"),
            )
            .detail(sentence.explanation()),
        };
        let report = match errors {
            Errors::Postgres => report,
            Errors::PgBouncer => report.as_pgbouncer(self.words_of_pgbouncer()),
        };
        Some(report.error(Severity::Fatal))
    }

    /// Why PgBouncer would say that it closes the client's connection.
    pub fn as_pgbouncer(&self) -> String {
        let words = match self {
            Self::Goodbye => "client close request",
            Self::ClientGone(_) => "client unexpected eof",
            Self::Refused(refused) => return refused.as_pgbouncer(),
            Self::TransactionBlock => "transaction blocks not allowed in statement pooling mode",
            Self::Overdue(overdue) => overdue_text(*overdue),
            other => {
                return other
                    .words_of_pgbouncer()
                    .unwrap_or_else(|| other.to_string());
            }
        };
        words.to_owned()
    }

    /// PgBouncer's text, where it is another.
    fn words_of_pgbouncer(&self) -> Option<String> {
        let words = match self {
            Self::ServerLost(_) => "server conn crashed?",
            Self::Drained => "pooler is shutting down",
            Self::Killed => "admin forced disconnect",
            _ => return None,
        };
        Some(words.to_owned())
    }
}

/// PgBouncer's words, which scripts look for.
fn overdue_text(overdue: Overdue) -> &'static str {
    match overdue {
        Overdue::ClientIdle => "client_idle_timeout",
        Overdue::IdleTransaction => "idle transaction timeout",
        Overdue::Transaction => "transaction timeout",
        Overdue::Query => "query timeout",
    }
}

/// The same, with the codes that Postgres has for such timeouts of its own.
fn overdue_report(overdue: Overdue) -> Report {
    let (code, detail) = match overdue {
        Overdue::ClientIdle => (
            SqlState::IDLE_SESSION_TIMEOUT,
            "The client sent nothing for as long as client_idle allows.",
        ),
        Overdue::IdleTransaction => (
            SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
            "The client sent nothing inside a transaction for as long as idle_transaction allows.",
        ),
        Overdue::Transaction => (
            SqlState::TRANSACTION_TIMEOUT,
            "The transaction took as long as transaction allows.",
        ),
        Overdue::Query => (
            SqlState::QUERY_CANCELED,
            "The query took as long as query allows, and was canceled.",
        ),
    };
    Report::new(code, overdue_text(overdue)).detail(detail)
}

impl From<RelayError> for End {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Goodbye => Self::Goodbye,
            RelayError::ClientGone(error) => Self::ClientGone(error),
            RelayError::Violation(error) => Self::Violation(error),
            RelayError::ServerLost(error) => Self::ServerLost(error),
            RelayError::TransactionBlock => Self::TransactionBlock,
            RelayError::TooManyStatements(error) => Self::TooManyStatements(error),
            RelayError::SimpleQuery => Self::SimpleQuery,
            RelayError::Parameters(error) => Self::Parameters(error),
        }
    }
}

/// What a session needs for its life.
#[derive(Debug)]
pub struct Terms {
    /// Its pool.
    pub pool: Member,
    /// Its service.
    pub service: ServiceId,
    /// Its thread.
    pub thread: ThreadId,
    /// How long it keeps a server connection.
    pub mode: Mode,
    /// Its place in the directory.
    pub listed: Listed,
    /// Its seats under the caps on clients.
    pub seats: Box<[Seat]>,
    /// What the client asked for at startup.
    pub startup: Arc<Parameters>,
    /// How many prepared statements a server connection keeps; 0 = names are left to the client.
    pub prepared: usize,
    /// Whether it may use the simple query protocol.
    pub simple: bool,
}

/// Says where a session belongs whose client has given itself another name.
pub trait Registrar: fmt::Debug + Send + Sync {
    /// Moves it there, for everybody to see. `None`: it stays where it is.
    fn renamed(&self, listed: &Listed, application_name: &str) -> Option<Moved>;
}

/// Where a session is moved to.
#[derive(Debug)]
pub struct Moved {
    /// The service with which it asks from now on.
    pub service: ServiceId,
    /// Its seat there, if the service has a cap on clients.
    pub seat: Option<Seat>,
    /// The count of clients in which it was before.
    pub left: Arc<Quota>,
}

thread_local! {
    /// Who is asked by the sessions of a thread: they share it, so that none of them grows by it.
    static REGISTRAR: RefCell<Option<Arc<dyn Registrar>>> = const { RefCell::new(None) };
}

/// Says who is asked by the sessions of this thread. Without anybody they stay where they are.
pub fn register(registrar: Arc<dyn Registrar>) {
    REGISTRAR.set(Some(registrar));
}

/// A logged-in client. Resolves to why it ended; by then the client was told.
#[derive(Debug)]
pub struct Session {
    client: ClientEnd<Stream>,
    phase: Phase,
    terms: Terms,
    /// What its server sessions are to be like, beyond what they begin with.
    parameters: Arc<Parameters>,
    /// What it did to the session that is being asked what it is like.
    asked: Option<Box<Touched>>,
    /// How many server connections in a row have ended before anything of the client's was sent to them.
    ended: u8,
}

#[derive(Debug)]
enum Phase {
    /// Outside a transaction, without a server connection or a buffer.
    Idle,
    /// It spoke before it was told ReadyForQuery.
    Early(Box<[u8]>),
    /// The same, and it has held a server connection since its login.
    EarlyLeased(Lease, Box<[u8]>),
    /// In the pool's queue, with what it has said so far.
    Waiting(Ticket, Box<[u8]>),
    /// It has been lent a server connection, and Postgres is asked whether that is still there.
    Checking(Box<Checking>, Box<[u8]>),
    /// Holding a server connection whose session is made one of this client's (again, if it was reset) before anything is sent to it;
    /// with what the client has said so far, and how often that may be tried again.
    Becoming(Lease, Box<[u8]>, u8),
    /// Holding a server connection.
    Leased(Lease),
}

impl Session {
    /// A session of a client that has been told ReadyForQuery.
    ///
    /// `lease`: the server connection that it keeps for its life. `early`: what was read of it beyond its last login message.
    pub fn new(
        client: ClientEnd<Stream>,
        terms: Terms,
        lease: Option<Lease>,
        early: &[u8],
    ) -> Self {
        let early = Some(early).filter(|early| !early.is_empty());
        let phase = match (lease, early) {
            (None, None) => Phase::Idle,
            (None, Some(early)) => Phase::Early(early.into()),
            (Some(lease), None) => Phase::Leased(lease),
            (Some(lease), Some(early)) => Phase::EarlyLeased(lease, early.into()),
        };
        let mut session = Self {
            client,
            phase,
            parameters: Arc::clone(&terms.startup),
            terms,
            asked: None,
            ended: 0,
        };
        if let Phase::Leased(lease) | Phase::EarlyLeased(lease, _) = &mut session.phase {
            take_on(&session.terms, lease);
        }
        session
    }

    /// Its entry in the directory.
    pub fn entry(&self) -> &Arc<Entry> {
        self.terms.listed.entry()
    }

    fn step(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<End> {
        if self.entry().is_asked()
            && let Some(end) = self.heed(cx)
        {
            return Poll::Ready(self.end(cx, end));
        }
        loop {
            let next = match &self.phase {
                Phase::Idle => ready!(self.listen(cx, scratch)),
                Phase::Early(_) | Phase::EarlyLeased(..) => self.catch_up(cx),
                Phase::Waiting(..) => ready!(self.wait(cx, scratch)),
                Phase::Checking(..) => ready!(self.check(cx)),
                Phase::Becoming(..) => ready!(self.become_own(cx, scratch)),
                Phase::Leased(_) => ready!(self.relay(cx, scratch)),
            };
            match next {
                Ok(phase) => self.phase = phase,
                Err(end) => return Poll::Ready(self.end(cx, end)),
            }
        }
    }

    /// Reads an idle client's request and asks for a server connection.
    fn listen(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Phase, End>> {
        // Nothing is read while something is owed: that bounds what a slow reader costs.
        ready!(self.client.poll_flush(cx)).map_err(End::client)?;
        // Nor does it leave while its client has not got the whole of the last reply.
        if self.entry().asked(Ask::Drain) {
            return Poll::Ready(Err(End::Drained));
        }
        if self.client.is_awaited_still() {
            return Poll::Pending;
        }
        let (input, look) =
            ready!(self.client.poll_request(cx, &mut scratch[..REQUEST])).map_err(End::client)?;
        Poll::Ready(self.heard(cx, look, &input))
    }

    fn catch_up(&mut self, cx: &mut Context<'_>) -> Result<Phase, End> {
        match mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Early(said) => {
                let look = self.client.look(&said).map_err(End::Violation)?;
                self.heard(cx, look, &said)
            }
            Phase::EarlyLeased(lease, said) => self.begin(cx, lease, &said),
            _ => unreachable!("called in these phases only"),
        }
    }

    /// Does what the bytes of an idle client call for.
    fn heard(&mut self, cx: &mut Context<'_>, look: Look, said: &[u8]) -> Result<Phase, End> {
        match look {
            Look::Nothing => Ok(Phase::Idle),
            Look::Goodbye => Err(End::Goodbye),
            Look::Request(at) if !self.terms.simple && said[at] == b'Q' => Err(End::SimpleQuery),
            Look::Request(at) => self.check_out(cx, &said[at..]),
        }
    }

    /// Asks for a server connection for a request that begins with `said`.
    fn check_out(&mut self, cx: &mut Context<'_>, said: &[u8]) -> Result<Phase, End> {
        let Terms {
            pool,
            service,
            thread,
            ..
        } = &self.terms;
        match pool.ask(*service, *thread, self.entry().id(), cx.waker()) {
            Checkout::Lease(lease) => self.got(cx, lease, said),
            Checkout::Ticket(ticket) => {
                self.wait_from_now();
                Ok(Phase::Waiting(ticket, said.into()))
            }
        }
    }

    /// A ticket that led to a dead server connection is followed by another: that is one wait.
    fn wait_from_now(&self) {
        if self.entry().doing().activity != Activity::WaitingTold {
            self.terms.listed.does(Activity::Waiting);
        }
    }

    /// A server connection was lent for a transaction.
    fn got(&mut self, cx: &mut Context<'_>, mut lease: Lease, said: &[u8]) -> Result<Phase, End> {
        if lease.wants_check() {
            self.wait_from_now();
            return Ok(Phase::Checking(Box::new(lease.check()), said.into()));
        }
        self.has_got(cx, lease, said)
    }

    /// The server connection that was lent is still there, or another is asked for.
    fn check(&mut self, cx: &mut Context<'_>) -> Poll<Result<Phase, End>> {
        let Phase::Checking(checking, said) = &mut self.phase else {
            unreachable!("called in this phase only")
        };
        let lease = ready!(checking.poll(cx));
        let said = mem::take(said);
        Poll::Ready(match lease {
            Some(lease) => self.has_got(cx, lease, &said),
            None => self.check_out(cx, &said),
        })
    }

    /// Its transaction begins.
    fn has_got(
        &mut self,
        cx: &mut Context<'_>,
        mut lease: Lease,
        said: &[u8],
    ) -> Result<Phase, End> {
        take_on(&self.terms, &mut lease);
        let connection = lease.connection();
        connection.stint.begin(connection.lent);
        self.begin(cx, lease, said)
    }

    /// Sends on what was said before the lease, behind what makes the server's session one of this client's.
    fn begin(&mut self, cx: &mut Context<'_>, mut lease: Lease, said: &[u8]) -> Result<Phase, End> {
        self.terms.listed.does(Activity::Active);
        self.terms.listed.is_deaf(false);
        let end = &mut lease.connection().end;
        let state = end.state();
        let waits = !state.is_plainly(&self.parameters)
            && (state.changes_role(&self.parameters) || state.is_hasty());
        let front = end.change_to(&self.parameters).unwrap_or_default();
        lease.connection().note_state();
        let end = &mut lease.connection().end;
        if waits && !front.is_empty() {
            // If the connection is gone, reading from it will say why.
            let _ = end.send(cx, &front, true);
            return Ok(Phase::Becoming(lease, said.into(), TRIES));
        }
        self.say(cx, lease, said, &front)
    }

    /// Waits until the server's session is one of the client's: nothing of the client's runs under the role of another.
    fn become_own(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Phase, End>> {
        let Phase::Becoming(lease, _, tries) = &mut self.phase else {
            unreachable!("called in this phase only")
        };
        let (end, mut out) = (&mut lease.connection().end, Vec::new());
        // Others have nothing to hear yet: they have not got a server connection of their own.
        let listens = self.terms.mode == Mode::Session;
        loop {
            while !end.exchange().is_answered() {
                let heard = match ready!(end.poll_flush(cx)) {
                    Ok(()) => ready!(end.poll_replies(cx, scratch, &mut out, |_| None)),
                    Err(error) => Err(error),
                };
                match heard {
                    Ok(replies) if listens => self.client.send(cx, replies).map_err(End::client)?,
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(self.begin_again(cx, error)),
                }
            }
            if end.said_why() {
                return Poll::Ready(self.begin_again(cx, EndError::Closed));
            }
            let Some(error) = end.state_mut().error() else {
                break;
            };
            let error = ServerError::parse(&error);
            if error.code != SqlState::QUERY_CANCELED || *tries == 0 {
                return Poll::Ready(Err(End::Parameters(error)));
            }
            // It was the timeout of the client before, or a cancel that came late.
            *tries -= 1;
            let front = end.change_to(&self.parameters).unwrap_or_default();
            let _ = end.send(cx, &front, true);
        }
        self.ended = 0;
        let Phase::Becoming(lease, said, _) = mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("called in this phase only")
        };
        Poll::Ready(self.say(cx, lease, &said, &[]))
    }

    /// The server connection has ended before anything of the client's was sent to it: another does as well.
    fn begin_again(&mut self, cx: &mut Context<'_>, error: EndError) -> Result<Phase, End> {
        let shared = self.terms.mode != Mode::Session;
        if !shared || self.ended >= TRIES {
            return Err(End::ServerLost(error));
        }
        self.ended += 1;
        let Phase::Becoming(lease, said, _) = mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("called in this phase only")
        };
        lease.discard(Discard::Died);
        self.check_out(cx, &said)
    }

    /// Sends on what was said, behind `front`.
    fn say(
        &mut self,
        cx: &mut Context<'_>,
        mut lease: Lease,
        said: &[u8],
        front: &[u8],
    ) -> Result<Phase, End> {
        let own = own(&self.parameters, self.asked.as_deref());
        let sent =
            relaying(&mut self.client, &mut lease, &self.terms, own).client_said(cx, said, front);
        // On an error the lease is dropped here, and what was sent is brought back to order.
        sent?;
        make_way(&self.terms, &mut lease);
        // A Flush alone is never answered: there is nothing to wait for.
        let Some(proof) = lease.connection().end.settled() else {
            return Ok(Phase::Leased(lease));
        };
        self.phase = Phase::Leased(lease);
        self.boundary(cx, proof)
    }

    fn wait(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Phase, End>> {
        let Phase::Waiting(ticket, said) = &mut self.phase else {
            unreachable!("called in this phase only")
        };
        let Poll::Ready(called) = ticket.poll() else {
            overhear(&mut self.client, cx, said, scratch).map_err(End::client)?;
            self.terms.listed.is_deaf(said.len() >= REQUEST);
            return Poll::Pending;
        };
        let said = mem::take(said);
        Poll::Ready(match called {
            Called::Lease(lease) => self.got(cx, lease, &said),
            Called::Again => self.check_out(cx, &said),
            Called::Refused(refused) => Err(End::Refused(refused)),
        })
    }

    fn relay(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Phase, End>> {
        let Phase::Leased(lease) = &mut self.phase else {
            unreachable!("called in this phase only")
        };
        let own = own(&self.parameters, self.asked.as_deref());
        let mut relay = relaying(&mut self.client, lease, &self.terms, own);
        let traffic = relay.traffic;
        let answered = traffic.queries.read();
        let Poll::Ready(proof) = relay.poll(cx, scratch) else {
            // This thread's counter: nobody else has written to it since.
            let goes_on = traffic.queries.read() != answered;
            note(&self.terms.listed, relay.server.exchange(), goes_on);
            make_way(&self.terms, lease);
            // A cancel may have waited until pgweir's own query was over.
            if self.entry().is_asked() && self.entry().asked(Ask::Cancel) {
                self.cancel(cx);
            }
            return Poll::Pending;
        };
        let proof = match proof {
            Ok(proof) => proof,
            Err(error) => return Poll::Ready(self.lost(cx, error)),
        };
        if self.asked.is_none() {
            traffic.transactions.add(1);
            self.entry().counts.transactions.add(1);
        }
        Poll::Ready(self.boundary(cx, proof))
    }

    /// What a lease ended with that did not settle. A session that has lost no more than a request that failed goes on.
    fn lost(&mut self, cx: &mut Context<'_>, error: RelayError) -> Result<Phase, End> {
        let Phase::Leased(lease) = &mut self.phase else {
            return Err(error.into());
        };
        let shared = self.terms.mode != Mode::Session;
        let ended = matches!(error, RelayError::ServerLost(_));
        // What the client did to the server's session is lost with it.
        let whole = self.asked.is_none() && !lease.connection().end.state().is_touched();
        let own = own(&self.parameters, None);
        if !(shared
            && ended
            && whole
            && relaying(&mut self.client, lease, &self.terms, own).outlive(cx))
        {
            return Err(error.into());
        }
        self.terms.listed.does(Activity::Idle);
        if let Phase::Leased(lease) = mem::replace(&mut self.phase, Phase::Idle) {
            lease.discard(Discard::Died);
        }
        Ok(Phase::Idle)
    }

    /// A transaction has ended.
    fn boundary(&mut self, cx: &mut Context<'_>, proof: Settled) -> Result<Phase, End> {
        self.terms.listed.does(Activity::Idle);
        if self.entry().is_asked() && self.entry().asked(Ask::Cancel) {
            // What it was for is over.
            drop(self.terms.listed.cancelers());
        }
        if let Some(statements) = self.client.statements() {
            self.terms.listed.has_prepared(statements.len());
        }
        let Phase::Leased(mut lease) = mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(Phase::Idle);
        };
        let shared = self.terms.mode != Mode::Session;
        if shared && self.learn(cx, &mut lease) {
            return Ok(Phase::Leased(lease));
        }
        if !shared && self.restore(cx, &mut lease) {
            return Ok(Phase::Becoming(lease, Box::default(), TRIES));
        }
        let state = lease.connection().end.state();
        let resets = self.terms.pool.resets_always();
        if shared && (!state.is_pinned() || resets) {
            if state.is_unlisted() || resets {
                lease.reset(proof);
            } else {
                lease.release(proof);
            }
            return Ok(Phase::Idle);
        }
        lease.lap();
        let drain = self.entry().asked(Ask::Drain);
        self.phase = Phase::Leased(lease);
        // If the client is too slow for its reply, it is asked again later.
        if drain && self.client.is_flushed() {
            return Err(End::Drained);
        }
        if self.is_replaced() && self.client.is_flushed() {
            return Err(End::Replaced);
        }
        Ok(mem::replace(&mut self.phase, Phase::Idle))
    }

    /// A reset goes back to what the server connection began with, but its client's session began with what it asked for. `true`:
    /// that is on its way.
    fn restore(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> bool {
        let end = &mut lease.connection().end;
        let Some(touched) = end.touched() else {
            return false;
        };
        let startup = Arc::clone(&self.terms.startup);
        if touched.resets(APPLICATION_NAME) {
            self.renamed(startup.value(APPLICATION_NAME).unwrap_or_default());
        } else if let Some((_, name)) = touched
            .reported
            .iter()
            .find(|(known, _)| **known == *APPLICATION_NAME)
        {
            self.renamed(name);
        }
        let left = startup.iter().filter(|(name, _)| !touched.resets(name));
        end.state_mut().set_parameters(&Arc::new(left.collect()));
        let Some(change) = end.change_to(&startup) else {
            return false;
        };
        // If the connection is gone, reading from it will say why.
        let _ = end.send(cx, &change, true);
        true
    }

    /// Finds out what the client did to its session, if anything, so that it follows the client. `true`: Postgres is being asked.
    fn learn(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> bool {
        let end = &mut lease.connection().end;
        let answer = end.state_mut().answer();
        if !end.state().is_touched() && answer.is_none() {
            return false;
        }
        let before = Arc::clone(&self.parameters);
        let asks = self.learn_from(cx, lease, answer.as_deref());
        let now = Arc::clone(&self.parameters);
        if now.value(APPLICATION_NAME) != before.value(APPLICATION_NAME) {
            self.renamed(now.value(APPLICATION_NAME).unwrap_or_default());
        }
        asks
    }

    /// Its client calls itself by this name: it may belong to another service or deployment from now on.
    fn renamed(&mut self, application_name: &str) {
        let registrar = REGISTRAR.with_borrow(Clone::clone);
        let moved =
            registrar.and_then(|registrar| registrar.renamed(&self.terms.listed, application_name));
        if let Some(Moved {
            service,
            seat,
            left,
        }) = moved
        {
            self.terms.service = service;
            let seats = mem::take(&mut self.terms.seats).into_iter();
            let kept = seats.filter(|seat| !seat.is_of(&left));
            self.terms.seats = kept.chain(seat).collect();
        }
    }

    fn learn_from(
        &mut self,
        cx: &mut Context<'_>,
        lease: &mut Lease,
        answer: Option<&Answer>,
    ) -> bool {
        let connection = lease.connection();
        let (end, base) = (&mut connection.end, &connection.welcome.parameters);
        let given = Arc::clone(end.state().parameters());
        let mut ground = Ground {
            base,
            startup: &self.terms.startup,
            given: &given,
        };
        let answered;
        if let (Some(answer), Some(touched)) = (answer, self.asked.take()) {
            if answer.canceled {
                return self.ask_again(cx, lease, *touched);
            }
            answered = ground.answered(&touched, answer);
            self.parameters = self.settle_on(end, answered.clone());
            ground.given = &answered;
        }
        let Some(touched) = end.touched() else {
            return false;
        };
        match ground.after(&touched) {
            Found::Known(parameters) => {
                self.parameters = self.settle_on(end, parameters);
                false
            }
            Found::Ask(sql) => {
                let question = end.question(&sql);
                self.asked = Some(touched);
                // If the connection is gone, reading from it will say why.
                let _ = end.send(cx, &question, true);
                true
            }
        }
    }

    /// What was asked of Postgres was stopped by a cancel that came late, or by a timeout of the client's that is too short for any
    /// answer: the second time it is the latter, and the client keeps the server connection.
    fn ask_again(&mut self, cx: &mut Context<'_>, lease: &mut Lease, touched: Touched) -> bool {
        let state = lease.connection().end.state_mut();
        if touched.asked_in_vain {
            state.pin();
            return false;
        }
        state.touched_before(Touched {
            asked_in_vain: true,
            ..touched
        });
        self.learn(cx, lease)
    }

    /// Notes what the server's session is like, and gives what the client's are to be like.
    fn settle_on(&self, end: &mut ServerEnd<Stream>, found: Parameters) -> Arc<Parameters> {
        let mut wanted = found.clone();
        wanted.fill_from(&self.terms.startup);
        let wanted = Arc::new(wanted);
        let found = if *wanted == found {
            Arc::clone(&wanted)
        } else {
            Arc::new(found)
        };
        end.state_mut().set_parameters(&found);
        wanted
    }

    /// Does what was asked from outside, as far as it is for now and not for the next transaction boundary.
    fn heed(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let entry = self.terms.listed.entry();
        if entry.asked(Ask::Leave) {
            let drains = entry.asked(Ask::Drain);
            return Some(if drains { End::Drained } else { End::Killed });
        }
        if entry.asked(Ask::Remove) {
            return Some(End::Refused(Refused::PoolRemoved));
        }
        let due = entry.asked(Ask::Late).then(|| entry.due()).flatten();
        match due {
            Some(Due::End(overdue)) => return Some(End::Overdue(overdue)),
            Some(Due::Notice) => self.tell_that_it_waits(cx),
            Some(Due::Reap) if self.may_be_reaped() => {
                if let Some(sentence) = self.terms.listed.sentence() {
                    return Some(End::Reaped(sentence));
                }
            }
            Some(Due::Reap) | None => {}
        }
        if self.entry().asked(Ask::Look)
            && matches!(self.phase, Phase::Waiting(..))
            && self.client.stream().is_abandoned()
        {
            return Some(End::ClientGone(EndError::Closed));
        }
        if self.entry().asked(Ask::Cancel) {
            self.cancel(cx);
        }
        let drain = self.terms.listed.entry().asked(Ask::Drain);
        let replaced = self.is_replaced();
        let Phase::Leased(lease) = &mut self.phase else {
            return None;
        };
        let end = &lease.connection().end;
        // A stream ends nowhere in particular; who replicates comes back for the rest.
        let settled = end.settled().is_some() || end.exchange().is_streaming();
        if !settled || !self.client.is_flushed() {
            return None;
        }
        match (drain, replaced) {
            (true, _) => Some(End::Drained),
            (false, true) => Some(End::Replaced),
            (false, false) => None,
        }
    }

    /// Whether the server connection that it keeps for its life is to be replaced without waiting for it to leave.
    fn is_replaced(&self) -> bool {
        self.terms.mode == Mode::Session && self.entry().asked(Ask::Replace)
    }

    /// Whether nothing is under way: neither a transaction nor the client's next message.
    fn may_be_reaped(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Leased(_))
            && !self.client.is_held()
            && self.client.stream().is_quiet()
    }

    fn tell_that_it_waits(&mut self, cx: &mut Context<'_>) {
        if let Phase::Waiting(..) = self.phase {
            self.terms.listed.was_told();
            let notice = Report::new(SqlState::SUCCESSFUL_COMPLETION, QUEUED).notice();
            // If the client has gone, reading from it will say so.
            let _ = self.client.send(cx, &notice);
        }
    }

    /// Its client wants its query stopped.
    fn cancel(&mut self, cx: &mut Context<'_>) {
        if self.runs_own_query() {
            // That is not what the client wants stopped.
            return self.entry().asks_later(Ask::Cancel);
        }
        let cancelers = self.terms.listed.cancelers();
        match &mut self.phase {
            // Postgres ignores the cancel of an idle session too.
            Phase::Idle
            | Phase::Early(_)
            | Phase::EarlyLeased(..)
            | Phase::Checking(..)
            | Phase::Becoming(..) => {}
            Phase::Leased(lease) => lease.cancel(cancelers),
            Phase::Waiting(_, said) => {
                let Some(rest) = after_request(said) else {
                    return;
                };
                let stopped = Report::new(
                    SqlState::QUERY_CANCELED,
                    "canceling statement due to user request",
                );
                let words = [stopped.error(Severity::Error), ready_for_query()].concat();
                if self.client.send(cx, &words).is_err() {
                    return;
                }
                let id = self.terms.listed.entry().id();
                tracing::debug!(target: POOLER_ERROR, id, "canceled while it waited");
                if rest.is_empty() {
                    self.phase = Phase::Idle;
                    self.terms.listed.does(Activity::Idle);
                    self.terms.listed.is_deaf(false);
                } else {
                    *said = rest.into();
                }
            }
        }
    }

    /// Whether what its server connection runs is a query of pgweir's own.
    fn runs_own_query(&mut self) -> bool {
        match &mut self.phase {
            Phase::Checking(..) | Phase::Becoming(..) => true,
            Phase::Leased(lease) => lease.connection().end.exchange().answers_pgweir(),
            _ => false,
        }
    }

    /// Gives back what the session holds and tells the client why it ends.
    fn end(&mut self, cx: &mut Context<'_>, end: End) -> End {
        let mut speak = true;
        let phase = mem::replace(&mut self.phase, Phase::Idle);
        // What Postgres says to pgweir's own query is passed on to those who keep their server connection.
        let hears = matches!(phase, Phase::Leased(_)) || self.terms.mode == Mode::Session;
        if let Phase::Leased(mut lease) | Phase::Becoming(mut lease, ..) = phase {
            let server = &lease.connection().end;
            // Postgres' own last words are better than ours, and in the middle of a message there is no place for any.
            let told = hears && server.said_why() && matches!(end, End::ServerLost(_));
            speak = !told && !server.is_half_read();
            match (server.settled(), &end) {
                (_, End::ServerLost(_)) => lease.discard(Discard::Died),
                // It is closed as it comes back.
                (Some(proof), End::Replaced) => lease.release(proof),
                (Some(proof), _)
                    if self.terms.mode == Mode::Session
                        || server.state().is_touched()
                        || self.terms.pool.resets_always() =>
                {
                    lease.reset(proof);
                }
                (Some(proof), _) => lease.release(proof),
                (None, _) => drop(lease),
            }
        }
        if let Some(words) = end
            .last_words(self.terms.pool.settings().errors)
            .filter(|_| speak)
        {
            // A client that is too slow for its last words, or gone, goes without them.
            let _ = self.client.send(cx, &words);
        }
        end
    }
}

impl Future for Session {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        self.entry().attend(cx.waker());
        SCRATCH_BUFFER.with_borrow_mut(|scratch| self.step(cx, scratch))
    }
}

/// The parameter by which a session says where it belongs.
const APPLICATION_NAME: &str = "application_name";

/// Notes that a session has got this server connection.
fn take_on(terms: &Terms, lease: &mut Lease) {
    lease.connection().serves(terms.listed.entry().id());
    terms.pool.traffic(terms.thread).assignments.add(1);
}

/// Lets go of the idle server connections to a database that the session is about to drop. Postgres waits some seconds for them to
/// end, and refuses if others are connected.
fn make_way(terms: &Terms, lease: &mut Lease) {
    if let Some(database) = lease.connection().end.state_mut().vacates() {
        terms.pool.vacate(&database);
    }
}

static NO_PARAMETERS: Parameters = Parameters::NONE;

/// A client's parameters, and what it heard since they were true.
type Own<'a> = (&'a Parameters, &'a [(Box<str>, Box<str>)]);

fn own<'a>(parameters: &'a Parameters, asked: Option<&'a Touched>) -> Own<'a> {
    (parameters, asked.map_or(&[], |touched| &touched.reported))
}

/// Both ends of a lease.
fn relaying<'a>(
    client: &'a mut ClientEnd<Stream>,
    lease: &'a mut Lease,
    terms: &'a Terms,
    (parameters, heard): Own<'a>,
) -> Relay<'a, Stream, Stream> {
    // Who keeps a server connection may have set anything on it since.
    let parameters = if terms.mode == Mode::Session {
        &NO_PARAMETERS
    } else {
        parameters
    };
    let tracking = Some(Tracking {
        store: terms.pool.statements(),
        most: terms.prepared,
        parameters,
        startup: &terms.startup,
        heard,
    });
    let epoch = terms.pool.epoch();
    let connection = lease.connection();
    Relay {
        client,
        server: &mut connection.end,
        stint: &mut connection.stint,
        counts: &terms.listed.entry().counts,
        epoch,
        traffic: terms.pool.traffic(terms.thread),
        blocks: terms.mode != Mode::Statement,
        simple: terms.simple,
        tracking,
    }
}

/// Notes what a session with a server connection does. `goes_on`: a query of several was answered.
fn note(listed: &Listed, exchange: &Exchange, goes_on: bool) {
    let activity = if exchange.is_streaming() {
        Activity::Streaming
    } else if exchange.is_settled() {
        Activity::Holding
    } else if exchange.is_in_transaction() {
        Activity::InTransaction
    } else {
        Activity::Active
    };
    let same = listed.entry().doing().activity == activity;
    match (same, goes_on) {
        (true, true) => listed.does_again(),
        (true, false) => {}
        (false, _) => listed.does(activity),
    }
}

/// Reads what a waiting client adds to its request, as long as there is room, and notices when it goes.
fn overhear(
    client: &mut ClientEnd<Stream>,
    cx: &mut Context<'_>,
    said: &mut Box<[u8]>,
    scratch: &mut [u8],
) -> Result<(), EndError> {
    while said.len() < REQUEST {
        match client.poll_input(cx, &mut scratch[..REQUEST - said.len()]) {
            Poll::Ready(input) => *said = [said, &*input?].concat().into(),
            Poll::Pending => break,
        }
    }
    Ok(())
}

/// What stands behind the first request, if that is wholly there: a simple query, a function call, or an extended batch up to
/// its Sync.
fn after_request(said: &[u8]) -> Option<&[u8]> {
    let (mut rest, mut parts) = (said, 0);
    loop {
        let (&[tag, a, b, c, d], _) = rest.split_first_chunk()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        rest = rest.get(1 + length..)?;
        match tag {
            b'Q' | b'F' if parts == 0 => return Some(rest),
            b'S' if parts > 0 => return Some(rest),
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' if length >= 4 => parts += 1,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
