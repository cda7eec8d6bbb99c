//! A server connection that is logged in.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::task::JoinHandle;

use super::close::cancel;
use super::end::ServerEnd;
use super::login::{LoginError, Row, Welcome, ask_with};
use crate::config::checked::{Host, Tcp};
use crate::net::end::EndError;
use crate::net::packet::Packets;
use crate::net::stream::{Stream, Unregistered};
use crate::wire::exchange::Exchange;
use crate::wire::startup::CancelKey;

/// A server connection that is logged in.
#[derive(Debug)]
pub struct Connection {
    /// Its socket and what is outstanding on it.
    pub end: ServerEnd<Stream>,
    /// Names it in a cancel request; `pid` is Postgres' process id.
    pub key: CancelKey,
    /// What Postgres told at login.
    pub welcome: Arc<Welcome>,
    /// Where it leads.
    pub host: Arc<Host>,
    /// The cancel request that was last sent for it, if its effect is not known to be over.
    canceling: Option<JoinHandle<()>>,
}

/// A connection whose socket left one thread's reactor and is not yet with another's.
#[derive(Debug)]
pub struct Moving {
    socket: Unregistered,
    key: CancelKey,
    welcome: Arc<Welcome>,
    host: Arc<Host>,
}

impl Connection {
    /// A connection that has just been logged in.
    pub fn new(stream: Stream, key: CancelKey, welcome: Arc<Welcome>, host: Arc<Host>) -> Self {
        Self {
            end: ServerEnd::new(stream),
            key,
            welcome,
            host,
            canceling: None,
        }
    }

    /// Sends a cancel request for what it runs, unless one is on its way. Must be called inside a `LocalRuntime`.
    pub fn cancel(&mut self, tcp: Tcp) {
        if self
            .canceling
            .as_ref()
            .is_some_and(|canceling| !canceling.is_finished())
        {
            return;
        }
        let (host, key) = (Arc::clone(&self.host), self.key.clone());
        self.canceling = Some(tokio::task::spawn_local(async move {
            if let Err(error) = cancel(&host, &key, &tcp).await {
                tracing::info!(pid = key.pid, %error, "cancel request failed");
            }
        }));
    }

    /// Whether a cancel was sent whose effect is not known to be over.
    pub fn is_being_canceled(&self) -> bool {
        self.canceling.is_some()
    }

    /// Waits until the last cancel request was answered.
    pub async fn canceled(&mut self) {
        if let Some(canceling) = self.canceling.take() {
            // It fails only if it panicked, and then there is nothing to wait for.
            let _ = canceling.await;
        }
    }

    /// Takes a settled connection out of the reactor it is registered with.
    pub fn unregister(self) -> std::io::Result<Moving> {
        debug_assert!(
            self.end.settled().is_some(),
            "only settled connections move"
        );
        let Self {
            end,
            key,
            welcome,
            host,
            canceling: _,
        } = self;
        let (stream, _nothing) = end.into_parts();
        Ok(Moving {
            socket: stream.unregister()?,
            key,
            welcome,
            host,
        })
    }

    /// Reads what Postgres said while the connection was idle. `false`: it is dead, or said what only the end explains.
    ///
    /// Costs no system call when nothing was said.
    pub fn is_fit(&mut self) -> bool {
        if !self.end.stream().is_readable() {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut scratch = [0; 4096];
        let mut benign = true;
        loop {
            // NoticeResponse, ParameterStatus and NotificationResponse may come at any time (manual, "Asynchronous Operations").
            match self.end.poll_replies(&mut cx, &mut scratch, |seen| {
                benign &= matches!(seen.tag, b'N' | b'S' | b'A');
            }) {
                Poll::Ready(Ok(_)) if benign => {}
                Poll::Ready(_) => return false,
                Poll::Pending => return self.end.settled().is_some(),
            }
        }
    }

    /// Sends a message of pgweir's own. **Not cancel-safe.**
    pub async fn say(&mut self, message: &[u8]) -> Result<(), EndError> {
        std::future::poll_fn(|cx| {
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

    /// Reads until everything is answered, inside a transaction or not.
    pub async fn drain(&mut self) -> Result<Option<Box<[u8]>>, EndError> {
        let (mut scratch, mut error) = (vec![0; 16 * 1024], None);
        while !self.end.exchange().is_answered() {
            std::future::poll_fn(|cx| {
                if let Poll::Ready(Err(failed)) = self.end.poll_flush(cx) {
                    return Poll::Ready(Err(failed));
                }
                self.end.poll_replies(cx, &mut scratch, |seen| {
                    if seen.tag == b'E' {
                        error = Some(seen.body.into());
                    }
                })
            })
            .await?;
        }
        Ok(error)
    }
}

impl Moving {
    /// Registers the socket with the reactor of the thread that calls.
    pub fn register(self) -> std::io::Result<Connection> {
        let Self {
            socket,
            key,
            welcome,
            host,
        } = self;
        Ok(Connection::new(socket.register()?, key, welcome, host))
    }
}
