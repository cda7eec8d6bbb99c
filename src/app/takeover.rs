//! `-R`: the next process takes the listening sockets of the running one, so that no client is refused meanwhile, and the running one
//! goes on with its clients until they have left.
//!
//! They meet on the unix socket, where each can see that the other is of the same user. The next process asks by a startup message of its
//! own kind, is handed the sockets, and says when it serves. From then on the line carries cancel requests: clients of the old process
//! send them to the new one.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use socket2::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::console::is_console;
use super::serve::App;
use crate::admin::process::Shutdown;
use crate::client::greet::Greeted;
use crate::config::checked::Listen;
use crate::net::listen::Listener;
use crate::net::stream::{Stream, unix_path};
use crate::repeats;
use crate::wire::startup::{
    CancelKey, Initial, Startup, body_len, cancel_request, parse, startup_message,
};

/// The parameter by which a process asks for the sockets.
const ASKS: &str = "pgweir.takeover";

/// How many sockets are handed over at most.
const MOST: usize = 64;

/// How long the next process may take to serve, and the running one to answer.
const LIMIT: Duration = Duration::from_mins(1);

/// What the running process says with the sockets, and what the next one says when it serves.
const HERE: u8 = b'+';

/// What is said of whoever is not given them.
const REFUSED: &str = "another process asked for the sockets, and does not get them";

/// An answer to a cancel request: it was passed on; nobody has that key.
const PASSED: u8 = b'1';
const NOBODY: u8 = b'0';

/// The listening sockets of this process, as long as it listens, and whether another one has them now.
#[derive(Debug, Default)]
pub struct HandOver {
    sockets: Mutex<Vec<Weak<Socket>>>,
    /// They are another's.
    pub done: CancellationToken,
}

impl HandOver {
    /// Notes what this process listens on.
    pub fn note(&self, listeners: &[Listener]) {
        *self.sockets.lock() = listeners.iter().map(Listener::socket).collect();
    }
}

/// Whether a client is the next process.
pub(super) fn is_asked(startup: &Startup) -> bool {
    startup.parameter(ASKS).is_some() && is_console(&startup.database)
}

/// Hands the sockets over to whoever asks, if it is of this user, and goes on with its own clients from then on.
pub(super) async fn hand_over(app: &App, greeted: Greeted) {
    let (stream, _) = greeted.packets.into_parts();
    let is_own = stream.peer_user() == Some(geteuid().as_raw());
    let mut line = match stream {
        Stream::Unix(line) if is_own && !app.is_draining() => line,
        _ => {
            // Anybody can ask, again and again.
            if repeats::is_news(
                REFUSED,
                greeted
                    .peer
                    .ip()
                    .map_or_else(String::new, |ip| ip.to_string()),
            ) {
                tracing::warn!(peer = %greeted.peer, "{REFUSED}");
            }
            return;
        }
    };
    let sockets: Vec<_> = {
        let sockets = app.hand_over.sockets.lock();
        sockets.iter().filter_map(Weak::upgrade).collect()
    };
    let serves = async {
        let send = || Ok(send(&line, &sockets)?);
        line.async_io(Interest::WRITABLE, send).await?;
        io::Result::Ok(line.read_u8().await? == HERE)
    };
    match timeout(LIMIT, serves).await {
        Ok(Ok(true)) => {}
        _ => return tracing::warn!("the process that asked for the sockets does not serve"),
    }
    drop(sockets);
    tracing::info!("another process has the sockets: waiting for clients to leave");
    app.hand_over.done.cancel();
    app.shut_down(Shutdown::WaitForClients);
    // It may end before us; nobody asks any more then.
    let _ = pass_on_cancels(app, &mut line).await;
}

fn send(line: impl AsFd, sockets: &[Arc<Socket>]) -> rustix::io::Result<()> {
    let descriptors: Vec<_> = sockets.iter().take(MOST).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        line,
        &[IoSlice::new(&[HERE])],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Answers the cancel requests that the next process does not know.
async fn pass_on_cancels(app: &App, line: &mut tokio::net::UnixStream) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        line.read_exact(&mut length).await?;
        let mut body = vec![0; body_len(length).map_err(io::Error::other)?];
        line.read_exact(&mut body).await?;
        let answer = match parse(&body) {
            Ok(Initial::Cancel(key)) => match app.directory.ask_to_cancel(&key) {
                Some(asked) => {
                    let _ = asked.await;
                    PASSED
                }
                None => NOBODY,
            },
            _ => return Ok(()),
        };
        line.write_u8(answer).await?;
    }
}

/// Why the sockets cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// There is no place to meet.
    #[error("cannot reboot if unix dir not configured")]
    NoSocket,
    /// Who listens on an abstract one may be anybody.
    #[error("cannot reboot with abstract Unix socket")]
    Abstract,
    /// It has the sockets, and gives them to whom it starts.
    #[error("cannot reboot under service manager")]
    Supervised,
    /// The running process did not do its part.
    #[error("socket takeover failed: {0}")]
    Io(#[from] io::Error),
}

/// The process whose sockets were taken.
#[derive(Debug)]
pub struct Predecessor {
    line: UnixStream,
    sockets: Vec<OwnedFd>,
}

impl Predecessor {
    /// Takes the sockets of the process that listens on the configured unix socket; `None` if there is no such process.
    pub fn find(listen: &Listen) -> Result<Option<Self>, TakeoverError> {
        if ["NOTIFY_SOCKET", "LISTEN_FDS"]
            .iter()
            .any(|name| std::env::var_os(name).is_some())
        {
            return Err(TakeoverError::Supervised);
        }
        let directory = listen.unix_socket_dir.as_deref();
        let directory = directory.ok_or(TakeoverError::NoSocket)?;
        if directory.starts_with('@') {
            return Err(TakeoverError::Abstract);
        }
        match UnixStream::connect(unix_path(directory, listen.unix_port())) {
            Ok(line) => Ok(Some(Self::take(line)?)),
            Err(_) => Ok(None),
        }
    }

    fn take(mut line: UnixStream) -> io::Result<Self> {
        line.set_read_timeout(Some(LIMIT))?;
        let parameters = [
            ("user", "pgbouncer"),
            ("database", "pgbouncer"),
            (ASKS, "1"),
        ];
        line.write_all(&startup_message(0, parameters))?;
        let sockets = receive(&line)?;
        if sockets.is_empty() {
            let message = "the running process does not hand its sockets over";
            return Err(io::Error::other(message));
        }
        line.set_read_timeout(None)?;
        Ok(Self { line, sockets })
    }

    /// What it listened on.
    pub(super) fn sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }

    /// Tells it that this process serves.
    pub(super) fn relieve(&mut self) -> io::Result<()> {
        self.line.write_all(&[HERE])
    }

    /// Has it cancel what one of its clients runs. True if the key was somebody's.
    fn cancel(&mut self, key: &CancelKey, limit: Duration) -> io::Result<bool> {
        self.line.set_read_timeout(Some(limit))?;
        self.line.write_all(&cancel_request(key))?;
        let mut answer = [NOBODY];
        self.line.read_exact(&mut answer)?;
        Ok(answer == [PASSED])
    }
}

fn receive(line: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut said = [0];
    recvmsg(
        line,
        &mut [IoSliceMut::new(&mut said)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let sockets = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(sockets.flatten().collect())
}

/// The way back to the process whose sockets were taken, for the cancel requests of its clients: one at a time.
#[derive(Debug, Default)]
pub struct Former(Mutex<Option<Predecessor>>);

impl Former {
    /// It was relieved.
    pub(super) fn is(&self, predecessor: Predecessor) {
        *self.0.lock() = Some(predecessor);
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Has it cancel what one of its clients runs. It is forgotten when it does not answer any more. Blocks.
    pub(super) fn cancel(&self, key: &CancelKey, limit: Duration) -> bool {
        let mut former = self.0.lock();
        let Some(predecessor) = &mut *former else {
            return false;
        };
        predecessor.cancel(key, limit).unwrap_or_else(|_| {
            *former = None;
            false
        })
    }
}
