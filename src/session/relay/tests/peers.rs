//! A relay between two pipes, driven as a session drives it, and what is seen of it from outside.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::time::Instant;

use crate::client::end::{ClientEnd, Look};
use crate::metrics::{Counts, Stint, Traffic};
use crate::server::end::{ServerEnd, Settled};
use crate::server::prepared::Store;
use crate::session::relay::{Relay, RelayError};
use crate::session::translate::Tracking;
use crate::wire::parameters::Parameters;

/// The longest message that the client may send.
pub(super) const LIMIT: u32 = 2_000_000;

/// How wide the pipes are and how much is read at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes that a pipe holds.
    pub(super) width: usize,
    /// Bytes of the relay's read buffer.
    pub(super) scratch: usize,
}

/// What passed through one pipe, as the relay saw it.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Bytes that the relay read.
    pub(super) read: Cell<usize>,
    /// What the relay wrote.
    pub(super) written: RefCell<Vec<u8>>,
    /// In how many pieces.
    pub(super) writes: Cell<usize>,
}

/// The relay's end of a pipe.
#[derive(Debug)]
pub(super) struct Tap {
    pipe: DuplexStream,
    passed: Rc<Passed>,
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        let read = &self.passed.read;
        read.set(read.get() + buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.pipe).poll_write(cx, bytes))?;
        self.passed.written.borrow_mut().extend(&bytes[..written]);
        self.passed.writes.set(self.passed.writes.get() + 1);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// What others may know of a relay while it runs.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The client holds the server.
    pub(super) leased: Cell<bool>,
    /// On the client's side.
    pub(super) client: Rc<Passed>,
    /// On the server's side.
    pub(super) server: Rc<Passed>,
    /// The most that the relay held in either direction when it returned.
    pub(super) held: Cell<usize>,
}

/// Both ends, and what they are driven with.
pub(super) struct Wire {
    client: ClientEnd<Tap>,
    server: ServerEnd<Tap>,
    scratch: Vec<u8>,
    traffic: Traffic,
    pub(super) seen: Rc<Seen>,
    /// How prepared statements are kept account of, if they are.
    pub(super) tracking: Option<Kept>,
}

/// What is kept account of.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) store: Store,
    /// Statements on one server.
    pub(super) most: usize,
    /// What the client's sessions are like.
    pub(super) parameters: Arc<Parameters>,
}

/// The ends of the pipes that the scripts hold.
pub(super) struct Far {
    pub(super) client: DuplexStream,
    pub(super) server: DuplexStream,
}

impl Wire {
    pub(super) fn new(sizes: Sizes) -> (Self, Far) {
        Self::between(sizes.width, sizes.width, sizes.scratch)
    }

    /// Pipes of so many bytes to the client and to the server, and a read buffer.
    pub(super) fn between(client: usize, server: usize, scratch: usize) -> (Self, Far) {
        let seen = Rc::new(Seen::default());
        let tap = |passed: &Rc<Passed>, width| {
            let (pipe, far) = duplex(width);
            let passed = Rc::clone(passed);
            (Tap { pipe, passed }, far)
        };
        let (client, far_client) = tap(&seen.client, client);
        let (server, far_server) = tap(&seen.server, server);
        let wire = Self {
            client: ClientEnd::new(client, LIMIT),
            server: ServerEnd::new(server),
            scratch: vec![0; scratch],
            traffic: Traffic::default(),
            seen,
            tracking: None,
        };
        let far = Far {
            client: far_client,
            server: far_server,
        };
        (wire, far)
    }

    /// Another server instead of the one it has had.
    pub(super) fn change_server(&mut self, width: usize) -> DuplexStream {
        let (pipe, far) = duplex(width);
        self.server = ServerEnd::new(Tap {
            pipe,
            passed: Rc::clone(&self.seen.server),
        });
        far
    }

    /// Whether the server could go to somebody else.
    pub(super) fn server_is_settled(&self) -> bool {
        self.server.settled().is_some()
    }

    /// See [`ServerEnd::said_why`].
    pub(super) fn server_said_why(&self) -> bool {
        self.server.said_why()
    }

    /// Writes what the relay has left unwritten to the server.
    pub(super) async fn flush_server(&mut self) {
        let flushed = poll_fn(|cx| self.server.poll_flush(cx)).await;
        flushed.expect("the server reads");
    }

    /// Relays lease after lease until one end fails. `settled` is called at the end of each.
    pub(super) async fn run(&mut self, settled: impl Fn(Settled)) -> RelayError {
        loop {
            match self.one_lease().await {
                Ok(proof) => settled(proof),
                Err(error) => return error,
            }
        }
    }

    /// One lease, and all that the client is to be told.
    pub(super) async fn lease(&mut self) -> Result<Settled, RelayError> {
        let proof = self.one_lease().await?;
        let flushed = poll_fn(|cx| self.client.poll_flush(cx)).await;
        flushed.map_err(RelayError::client)?;
        Ok(proof)
    }

    /// Waits for a request and relays until the server owes nothing.
    async fn one_lease(&mut self) -> Result<Settled, RelayError> {
        let said = self.request().await?;
        self.seen.leased.set(true);
        let Self {
            client,
            server,
            scratch,
            traffic,
            seen,
            tracking,
        } = self;
        let (kept, none) = (tracking.as_ref(), Parameters::NONE);
        let front = kept.and_then(|kept| server.change_to(&kept.parameters));
        let mut relay = Relay {
            blocks: true,
            simple: true,
            tracking: kept.map(|kept| Tracking {
                store: &kept.store,
                most: kept.most,
                parameters: &kept.parameters,
                startup: &none,
                heard: &[],
            }),
            client,
            server,
            traffic,
            counts: &Counts::default(),
            stint: &mut Stint::default(),
            epoch: Instant::now(),
        };
        poll_fn(|cx| {
            Poll::Ready(relay.client_said(cx, &said, front.as_deref().unwrap_or_default()))
        })
        .await?;
        let proof = poll_fn(|cx| {
            let polled = relay.poll(cx, scratch);
            let up = seen
                .client
                .read
                .get()
                .saturating_sub(seen.server.written.borrow().len());
            let down = seen
                .server
                .read
                .get()
                .saturating_sub(seen.client.written.borrow().len());
            seen.held.set(seen.held.get().max(up).max(down));
            polled
        })
        .await?;
        self.seen.leased.set(false);
        Ok(proof)
    }

    async fn request(&mut self) -> Result<Vec<u8>, RelayError> {
        loop {
            let (input, look) = poll_fn(|cx| {
                ready!(self.client.poll_flush(cx))?;
                self.client
                    .poll_request(cx, &mut self.scratch)
                    .map_ok(|(input, look)| (input.to_vec(), look))
            })
            .await
            .map_err(RelayError::client)?;
            match look {
                Look::Nothing => {}
                Look::Goodbye => return Err(RelayError::Goodbye),
                Look::Request(at) => return Ok(input[at..].to_vec()),
            }
        }
    }
}

/// Runs `test` in paused time. It fails where everybody waits for somebody else: then time flies.
pub(super) fn in_paused_time<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    let limited = async { tokio::time::timeout(Duration::from_mins(1), test).await };
    let done = runtime.expect("a runtime without I/O").block_on(limited);
    done.expect("somebody can go on until the test is over")
}

/// Returns when nobody can go on: paused time moves only then.
pub(super) async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Writes `sent` to one pipe and reads the same bytes from the other.
pub(super) async fn pass(
    sent: &[u8],
    from: &mut DuplexStream,
    arrives: &[u8],
    at: &mut DuplexStream,
) {
    let mut heard = vec![0; arrives.len()];
    let (written, read) = tokio::join!(from.write_all(sent), at.read_exact(&mut heard));
    written.expect("the relay reads");
    read.expect("the relay writes");
    assert!(heard == arrives, "other bytes arrived");
    quiet().await;
}

/// Whether nothing can be read from a pipe.
pub(super) fn is_silent(pipe: &mut DuplexStream) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (mut bytes, pipe) = ([0; 1], Pin::new(pipe));
    pipe.poll_read(&mut cx, &mut ReadBuf::new(&mut bytes))
        .is_pending()
}

/// A message with a body of `size` bytes.
pub(super) fn message(tag: u8, size: usize) -> Vec<u8> {
    let body: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
    crate::wire::reply::Message::new(tag).bytes(&body).done()
}

/// ReadyForQuery.
pub(super) fn ready_for_query(status: u8) -> Vec<u8> {
    crate::wire::reply::Message::new(b'Z').u8(status).done()
}
