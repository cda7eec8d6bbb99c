//! A data thread: it owns its clients, and the sockets of the server connections that they use.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::admit::attend;
use super::phase::Phase;
use super::serve::App;
use crate::client::directory::Seat;
use crate::net::listen::{Listener, Peer};
use crate::net::stream::Unregistered;
use crate::pool::book::ThreadId;
use crate::pool::errand::Errand;
use crate::repeats;
use crate::session::run::{Registrar, register};

/// How long to wait after `accept` failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a data thread keeps a timer of its own after a client has come. See [`keep_pace`].
const PACE: Duration = Duration::from_secs(1);

thread_local! {
    /// Whether this thread has that timer.
    static KEEPS_PACE: Cell<bool> = const { Cell::new(false) };
}

/// A client that was accepted for this thread.
#[derive(Debug)]
pub struct Arrival {
    /// Its socket.
    pub socket: Unregistered,
    /// Where it came from.
    pub peer: Peer,
    /// Counts it until it is let in or not.
    pub arriving: Option<Seat>,
}

/// Hands clients to the data threads in turn.
#[derive(Debug)]
pub struct Dealer {
    arrivals: Vec<UnboundedSender<Arrival>>,
    next: AtomicUsize,
}

impl Dealer {
    /// Deals to these threads.
    pub fn new(arrivals: Vec<UnboundedSender<Arrival>>) -> Self {
        Self {
            arrivals,
            next: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.arrivals.len()
    }
}

/// The listening sockets. They live on the first data thread: its own clients reach it without a hop.
#[derive(Debug)]
pub struct FrontDoor {
    /// The sockets.
    pub listeners: Vec<Listener>,
    /// Who gets what they accept.
    pub dealer: Arc<Dealer>,
}

/// What comes to a data thread from others.
#[derive(Debug)]
pub struct Inbox {
    /// Clients. The thread ends when nobody can send any more.
    pub arrivals: UnboundedReceiver<Arrival>,
    /// Work for server connections.
    pub errands: UnboundedReceiver<Errand>,
}

/// Starts a data thread, with the listening sockets on it if `door` is given.
pub fn start(
    thread: ThreadId,
    app: Arc<App>,
    inbox: Inbox,
    door: Option<FrontDoor>,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("the system gives a thread its epoll instance");
        runtime.block_on(work(thread, app, inbox, door));
    };
    std::thread::Builder::new()
        .name(format!("data-{}", thread.0))
        .spawn(run)
}

async fn work(thread: ThreadId, app: Arc<App>, mut inbox: Inbox, door: Option<FrontDoor>) {
    register(Arc::clone(&app) as Arc<dyn Registrar>);
    if let Some(FrontDoor { listeners, dealer }) = door {
        for listener in listeners {
            let app = Arc::clone(&app);
            spawn_local(accept(thread, app, listener, Arc::clone(&dealer)));
        }
    }
    loop {
        tokio::select! {
            arrival = inbox.arrivals.recv() => match arrival {
                Some(arrival) => look_after(Arc::clone(&app), thread, arrival),
                None => break,
            },
            Some(errand) = inbox.errands.recv() => drop(spawn_local(errand.run())),
        }
    }
}

fn look_after(app: Arc<App>, thread: ThreadId, arrival: Arrival) {
    keep_pace();
    spawn_local(attend(app, thread, arrival));
}

/// Sees to it, as long as clients come, that a timer is due before those of their logins. tokio wakes a thread for a timer that is
/// due before all others, even the thread that sets it: an `eventfd` written and a turn of the loop in vain, for each login.
fn keep_pace() {
    if !KEEPS_PACE.replace(true) {
        spawn_local(async {
            sleep(PACE).await;
            KEEPS_PACE.set(false);
        });
    }
}

async fn accept(thread: ThreadId, app: Arc<App>, listener: Listener, dealer: Arc<Dealer>) {
    let name = listener.name().to_owned();
    let listener = match listener.register() {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, address = name, "cannot accept"),
    };
    // Where no address is needed, operators are let in until the end.
    let last = if listener.is_unix() {
        Phase::Ended
    } else {
        Phase::WaitingForClients
    };
    let mut closing = pin!(app.phases.reached(last));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.hand_over.done.cancelled() => return listener.leave(),
            () = &mut closing => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let arriving = app.arriving.enter(0);
                let arrival = Arrival {
                    socket,
                    peer,
                    arriving,
                };
                deal(thread, &app, &dealer, arrival);
            }
            // The client left before it was accepted, or the process is out of descriptors: the next one may fare better.
            Err(error) => {
                if repeats::is_news("accept failed", format!("{}: {error}", listener.name())) {
                    tracing::warn!(%error, address = listener.name(), "accept failed");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn deal(thread: ThreadId, app: &Arc<App>, dealer: &Dealer, arrival: Arrival) {
    let next = dealer.next();
    if next == usize::from(thread.0) {
        look_after(Arc::clone(app), thread, arrival);
    } else {
        // A thread that is gone takes the process with it; the socket is closed here.
        let _ = dealer.arrivals[next].send(arrival);
    }
}
