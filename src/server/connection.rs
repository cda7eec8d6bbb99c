//! A server connection that is logged in.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::close::{CancelError, CancelWay, cancel};
use super::end::ServerEnd;
use super::facts::Facts;
use super::login::{LoginError, Row, Welcome, ask_rows, ask_with};
use super::secure::Route;
use super::state::Answer;
use crate::metrics::Stint;
use crate::net::end::EndError;
use crate::net::line::Line;
use crate::net::packet::Packets;
use crate::net::stream::{Stream, Unregistered};
use crate::wire::exchange::Exchange;
use crate::wire::parameters::{Parameters, question, question_context};
use crate::wire::reply::{Message, ServerError};
use crate::wire::scan::Seen;
use crate::wire::startup::CancelKey;

/// How often a session is given parameters again because the timeout of the client before has stopped that.
const TRIES: u8 = 10;

/// A server connection that is logged in.
#[derive(Debug)]
pub struct Connection {
    /// Its socket and what is outstanding on it.
    pub end: ServerEnd<Stream>,
    /// Names it in a cancel request; `pid` is Postgres' process id.
    pub key: CancelKey,
    /// What Postgres told at login.
    pub welcome: Arc<Welcome>,
    /// Where it leads, and how.
    pub route: Route,
    /// When it was last lent, in microseconds of the pools' clock.
    pub lent: u64,
    /// When it last came back, or was made; likewise.
    pub rested: u64,
    /// Times what its client does.
    pub stint: Stint,
    facts: Arc<Facts>,
    /// The parameters that stand in its facts.
    told: Arc<Parameters>,
    /// The cancel request that was last sent for it, if its effect is not known to be over.
    canceling: Option<Canceling>,
}

#[derive(Debug)]
struct Canceling {
    task: JoinHandle<()>,
    /// This one, or one before it, may still have its effect at any time.
    stray: Arc<AtomicBool>,
    /// Who waits for it to be passed on. Dropped then.
    cancelers: Arc<Mutex<Vec<oneshot::Sender<()>>>>,
}

/// A cancel request was sent, and nobody knows when it will have its effect. The connection must not serve anybody else.
#[derive(Debug, thiserror::Error)]
#[error("a cancel request is still on its way")]
pub struct Stray;

/// A connection whose socket left one thread's reactor and is not yet with another's.
#[derive(Debug)]
pub struct Moving {
    end: ServerEnd<Unregistered>,
    key: CancelKey,
    welcome: Arc<Welcome>,
    route: Route,
    lent: u64,
    rested: u64,
    facts: Arc<Facts>,
    told: Arc<Parameters>,
}

impl Connection {
    /// A connection that has just been logged in.
    pub fn new(stream: Stream, key: CancelKey, welcome: Arc<Welcome>, route: Route) -> Self {
        let line = Line::of(&stream);
        let facts = Facts::new(key.pid, route.place().clone(), line, Arc::clone(&welcome));
        Self {
            end: ServerEnd::new(stream),
            key,
            welcome,
            route,
            lent: 0,
            rested: 0,
            stint: Stint::default(),
            facts: Arc::new(facts),
            told: Arc::default(),
            canceling: None,
        }
    }

    /// What everybody may see of it.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Notes that this session has it from now on.
    pub fn serves(&mut self, client: u32) {
        self.facts.serves(client);
    }

    /// Notes what its session is like now. Costs next to nothing if that is what it was.
    pub fn note_state(&mut self) {
        let parameters = self.end.state().parameters();
        if !Arc::ptr_eq(&self.told, parameters) {
            self.facts.is_like(parameters);
            self.told = Arc::clone(parameters);
        }
        self.facts.has_prepared(self.end.prepared());
    }

    /// Notes that no session has it any more.
    pub fn is_left(&mut self) {
        self.facts.serves(0);
        self.note_state();
    }

    /// Sends a cancel request for what it runs, unless one is on its way. Must be called inside a `LocalRuntime`.
    /// `cancelers` are dropped when it was passed on, or there was no need for it.
    pub fn cancel(&mut self, way: CancelWay, cancelers: Vec<oneshot::Sender<()>>) {
        let before = self.canceling.as_ref();
        if let Some(before) = before.filter(|before| !before.task.is_finished()) {
            before.cancelers.lock().extend(cancelers);
            return;
        }
        if self.end.exchange().is_answered() {
            return;
        }
        let stray = before.map_or_else(Arc::default, |before| Arc::clone(&before.stray));
        let (route, key) = (self.route.clone(), self.key.clone());
        let told = Arc::clone(&stray);
        let cancelers = Arc::new(Mutex::new(cancelers));
        let waiting = Arc::clone(&cancelers);
        let facts = Arc::clone(&self.facts);
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = cancel(&route, &key, &way, &facts).await {
                tracing::info!(pid = key.pid, %error, "cancel request failed");
                told.fetch_or(matches!(error, CancelError::Stray(_)), Ordering::AcqRel);
            }
            waiting.lock().clear();
        });
        self.canceling = Some(Canceling {
            task,
            stray,
            cancelers,
        });
    }

    /// Whether a cancel was sent whose effect is not known to be over.
    pub fn is_being_canceled(&self) -> bool {
        self.canceling.is_some()
    }

    /// Waits until the last cancel request was answered.
    pub async fn canceled(&mut self) -> Result<(), Stray> {
        let Some(Canceling { task, stray, .. }) = self.canceling.take() else {
            return Ok(());
        };
        // It fails only if it panicked, and then nobody knows.
        let known = task.await.is_ok() && !stray.load(Ordering::Acquire);
        if known { Ok(()) } else { Err(Stray) }
    }

    /// Takes a settled connection out of the reactor it is registered with.
    pub fn unregister(self) -> std::io::Result<Moving> {
        let Self {
            end,
            key,
            welcome,
            route,
            lent,
            rested,
            stint: _,
            facts,
            told,
            canceling: _,
        } = self;
        Ok(Moving {
            end: end.map_stream(Stream::unregister)?,
            key,
            welcome,
            route,
            lent,
            rested,
            facts,
            told,
        })
    }

    /// Reads what Postgres said while the connection was idle. `false`: it is dead, or said what only the end explains.
    ///
    /// Costs no system call when nothing was said.
    pub fn is_fit(&mut self) -> bool {
        self.fitness().is_ok()
    }

    /// The same, with the tag of the message that speaks against it, if one came.
    pub fn fitness(&mut self) -> Result<(), Option<u8>> {
        if !self.end.stream().is_readable() {
            return Ok(());
        }
        let mut cx = Context::from_waker(Waker::noop());
        let (mut scratch, mut out) = ([0; 4096], Vec::new());
        let mut unasked = None;
        loop {
            // NoticeResponse, ParameterStatus and NotificationResponse may come at any time (manual, "Asynchronous Operations").
            match self
                .end
                .poll_replies(&mut cx, &mut scratch, &mut out, |seen| {
                    if !matches!(seen.tag, b'N' | b'S' | b'A') {
                        unasked.get_or_insert(seen.tag);
                    }
                    None
                }) {
                Poll::Ready(Ok(_)) if unasked.is_none() => {}
                Poll::Ready(_) => return Err(unasked),
                Poll::Pending => break,
            }
        }
        // What changed on its own is no client's doing.
        drop(self.end.touched());
        self.end.settled().map(drop).ok_or(unasked)
    }

    /// Gives the session these parameters and asks what has become of them. The answer, or the error with which Postgres refused.
    /// **Not cancel-safe.**
    pub async fn take_on(
        &mut self,
        parameters: &Arc<Parameters>,
    ) -> Result<Result<Answer, ServerError>, EndError> {
        let mut tries = TRIES;
        loop {
            let names = parameters.iter().map(|(name, _)| name);
            let change = self.end.change_to(parameters).unwrap_or_default();
            let question = self.end.question(&question(names));
            match self.hear_out(&[change, question].concat()).await? {
                Ok(answer) if !answer.canceled => return Ok(Ok(answer)),
                Err(error) => return Ok(Err(error)),
                // It was the timeout of the client before.
                Ok(_) if tries > 0 => tries -= 1,
                Ok(_) => return Err(EndError::Closed),
            }
        }
    }

    /// When a parameter can be set (see [`question_context`]). **Not cancel-safe.**
    pub async fn context_of(&mut self, name: &str) -> Result<Option<Box<str>>, EndError> {
        let question = self.end.question(&question_context(name));
        let answer = self.hear_out(&question).await?;
        Ok(answer.ok().and_then(|answer| {
            let (_, context) = answer.rows.into_iter().next()?;
            context
        }))
    }

    async fn hear_out(&mut self, asked: &[u8]) -> Result<Result<Answer, ServerError>, EndError> {
        poll_fn(|cx| Poll::Ready(self.end.send(cx, asked, true))).await?;
        self.drain().await?;
        if self.end.said_why() {
            return Err(EndError::Closed);
        }
        let answer = self.end.state_mut().answer().unwrap_or_default();
        Ok(match self.end.state_mut().error() {
            Some(error) => Err(ServerError::parse(&error)),
            None => Ok(*answer),
        })
    }

    /// Sends a message of pgweir's own. **Not cancel-safe.**
    pub async fn say(&mut self, message: &[u8]) -> Result<(), EndError> {
        poll_fn(|cx| {
            self.end.exchange_mut().client_sent(message[0]);
            Poll::Ready(self.end.send(cx, message, true))
        })
        .await
    }

    /// Sends a message of pgweir's own and waits until everything is answered. Replies are dropped; an ErrorResponse's
    /// body is given back. **Not cancel-safe.**
    pub async fn ask(&mut self, message: &[u8]) -> Result<Option<Box<[u8]>>, EndError> {
        self.say(message).await?;
        self.drain().await
    }

    /// Runs a query of pgweir's own with one parameter, and gives its rows. Dropped half-way, the connection is not used again.
    pub async fn look_up(&mut self, sql: &str, parameter: &str) -> Result<Vec<Row>, LoginError> {
        // This talk goes past the exchange, which knows nothing until it is over.
        self.end.exchange_mut().lose();
        let mut packets = Packets::new(self.end.stream_mut());
        let answer = ask_with(&mut packets, sql, parameter).await?;
        *self.end.exchange_mut() = Exchange::default();
        answer.map_err(LoginError::Refused)
    }

    /// Runs a query of pgweir's own, and gives its rows. Dropped half-way, the connection is not used again.
    pub async fn select(&mut self, sql: &str) -> Result<Vec<Row>, LoginError> {
        self.end.exchange_mut().lose();
        let mut packets = Packets::new(self.end.stream_mut());
        let answer = ask_rows(&mut packets, sql).await?;
        *self.end.exchange_mut() = Exchange::default();
        answer.map_err(LoginError::Refused)
    }

    /// Reads until everything is answered, inside a transaction or not, or until nobody knows what is owed.
    pub async fn drain(&mut self) -> Result<Option<Box<[u8]>>, EndError> {
        let (mut scratch, mut error) = (vec![0; 16 * 1024], None);
        while self.owes() {
            self.hear(&mut scratch, &mut error).await?;
        }
        Ok(error)
    }

    /// The same in the place of a client that will say nothing more, where Postgres waits for it. **Not cancel-safe.**
    pub async fn wind_up(&mut self) -> Result<(), EndError> {
        let mut scratch = vec![0; 16 * 1024];
        while self.owes() {
            // A COPY may begin only now: its statement may be in flight still.
            if self.end.exchange().in_copy_in() {
                let fail = Message::new(b'f').text("client went away").done();
                self.say(&fail).await?;
            }
            if self.end.exchange().needs_sync() {
                self.say(&Message::new(b'S').done()).await?;
            }
            self.hear(&mut scratch, &mut None).await?;
        }
        Ok(())
    }

    fn owes(&self) -> bool {
        !self.end.exchange().is_answered() && !self.end.exchange().is_lost()
    }

    /// Reads once, and keeps the body of the last ErrorResponse.
    async fn hear(
        &mut self,
        scratch: &mut [u8],
        error: &mut Option<Box<[u8]>>,
    ) -> Result<(), EndError> {
        let mut out = Vec::new();
        poll_fn(|cx| {
            if let Poll::Ready(Err(failed)) = self.end.poll_flush(cx) {
                return Poll::Ready(Err(failed));
            }
            let see = |seen: Seen<'_>| {
                if seen.tag == b'E' {
                    *error = Some(seen.body.into());
                }
                None
            };
            self.end
                .poll_replies(cx, scratch, &mut out, see)
                .map_ok(|_| ())
        })
        .await
    }
}

impl Moving {
    /// Registers the socket with the reactor of the thread that calls.
    pub fn register(self) -> std::io::Result<Connection> {
        let Self {
            end,
            key,
            welcome,
            route,
            lent,
            rested,
            facts,
            told,
        } = self;
        Ok(Connection {
            end: end.map_stream(Unregistered::register)?,
            key,
            welcome,
            route,
            lent,
            rested,
            stint: Stint::default(),
            facts,
            told,
            canceling: None,
        })
    }
}
