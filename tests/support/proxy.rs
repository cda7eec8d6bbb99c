//! A bad network on demand: a TCP proxy that delays, cuts, resets, refuses or swallows, all connections alike or each in
//! its own way.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;

use super::process::free_port;
use super::wait::until;

/// The direction in which bytes flow, by where they go: `Server` is the one that the proxy connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every piece is late by this much, both ways.
    Delay(Duration),
    /// After so many bytes towards `Side`, counted for each connection, both sides are closed.
    CloseAfter(Side, usize),
    /// The same by RST.
    ResetAfter(Side, usize),
    /// After so many bytes towards `Side`, that direction alone is closed.
    HalfCloseAfter(Side, usize),
    /// After so many bytes towards `Side`, nothing arrives any more, either way.
    SwallowAfter(Side, usize),
    /// Nobody listens: "connection refused".
    Refuse,
    /// Connections are accepted and what is sent vanishes, on open ones too.
    Swallow,
}

impl Fault {
    /// How many bytes may pass towards this side.
    fn limit(self, towards: Side) -> Option<usize> {
        match self {
            Self::CloseAfter(side, limit)
            | Self::ResetAfter(side, limit)
            | Self::HalfCloseAfter(side, limit)
            | Self::SwallowAfter(side, limit) => (side == towards).then_some(limit),
            _ => None,
        }
    }
}

/// Chooses what goes wrong with the next connection.
type Plan = Box<dyn FnMut() -> Fault + Send>;

struct State {
    fault: Fault,
    plan: Option<Plan>,
    listener: Option<TcpListener>,
    open: Vec<Weak<Link>>,
    accepted: usize,
    over: bool,
}

/// A connection through the proxy. Its sockets close when the last of its two directions has ended.
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// What goes wrong with this one, whatever the others meet, until something is said for all.
    own: Mutex<Option<Fault>>,
    doomed: AtomicBool,
    /// Nothing passes any more.
    silent: AtomicBool,
}

impl Link {
    /// Both directions end, and nothing more is said on either socket.
    fn doom(&self) {
        self.doomed.store(true, Ordering::Relaxed);
        // Wakes the readers; unlike closing the sending half, it sends nothing.
        let _ = self.client.shutdown(Shutdown::Read);
        let _ = self.server.shutdown(Shutdown::Read);
    }

    /// Closes by RST: with no time to linger, that is what the last close of a socket sends.
    fn reset(&self) {
        for stream in [&self.client, &self.server] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.doom();
    }

    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
        self.doom();
    }
}

/// The proxy; it closes everything on drop.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of its own and forwards to `target`.
    pub fn to(target: u16) -> Self {
        let (port, listener) = until("a free port", Duration::from_secs(5), || {
            let port = free_port();
            listen(port).ok().map(|listener| (port, listener))
        });
        let state = Arc::new(Mutex::new(State {
            fault: Fault::None,
            plan: None,
            listener: Some(listener),
            open: Vec::new(),
            accepted: 0,
            over: false,
        }));
        let shared = Arc::clone(&state);
        let acceptor = thread::spawn(move || accept(&shared, target));
        Self {
            port,
            state,
            acceptor: Some(acceptor),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, `plan` says of each new connection what goes wrong with it, until [`Self::set`] says something for all.
    pub fn each(&self, plan: impl FnMut() -> Fault + Send + 'static) {
        self.state.lock().plan = Some(Box::new(plan));
    }

    /// From now on, this goes wrong, on open connections too. Bytes are counted for each connection from its beginning.
    #[track_caller]
    pub fn set(&self, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = fault;
        state.plan = None;
        for link in state.open.iter().filter_map(Weak::upgrade) {
            *link.own.lock() = None;
        }
        if fault == Fault::Refuse {
            state.listener = None;
        } else if state.listener.is_none() {
            state.listener = Some(listen(self.port).expect("the port was ours"));
        }
    }

    /// Resets every open connection.
    pub fn reset_all(&self) {
        for link in self.take_open() {
            link.reset();
        }
    }

    /// Closes every open connection.
    pub fn close_all(&self) {
        for link in self.take_open() {
            link.close();
        }
    }

    fn take_open(&self) -> Vec<Arc<Link>> {
        let open = std::mem::take(&mut self.state.lock().open);
        open.iter().filter_map(Weak::upgrade).collect()
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.state.lock().accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.lock().over = true;
        self.close_all();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.close_all();
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(state: &Arc<Mutex<State>>, target: u16) {
    loop {
        let client = {
            let mut state = state.lock();
            if state.over {
                return;
            }
            let client = state
                .listener
                .as_ref()
                .and_then(|listener| listener.accept().ok());
            state.accepted += usize::from(client.is_some());
            client
        };
        match client {
            Some((client, _)) => {
                let state = Arc::clone(state);
                thread::spawn(move || connect(&state, client, target));
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Connects on to the target and moves bytes both ways. A target that refuses is passed on as a close.
fn connect(state: &Arc<Mutex<State>>, client: TcpStream, target: u16) {
    let own = state.lock().plan.as_mut().map(|plan| plan());
    if own == Some(Fault::Refuse) {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    }
    let link = Arc::new(Link {
        client,
        server,
        own: Mutex::new(own),
        doomed: AtomicBool::new(false),
        silent: AtomicBool::new(false),
    });
    {
        let mut state = state.lock();
        if state.over {
            return;
        }
        if state.plan.is_none() {
            *link.own.lock() = None;
        }
        state.open.retain(|link| link.strong_count() > 0);
        state.open.push(Arc::downgrade(&link));
    }
    let (there, shared) = (Arc::clone(&link), Arc::clone(state));
    thread::spawn(move || pump(&shared, Side::Server, &there));
    pump(state, Side::Client, &link);
}

/// Moves bytes one way until something ends it.
fn pump(state: &Mutex<State>, towards: Side, link: &Link) {
    let (mut from, to) = match towards {
        Side::Server => (&link.client, &link.server),
        Side::Client => (&link.server, &link.client),
    };
    let mut chunk = vec![0; 64 * 1024];
    let mut moved = 0;
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let own = *link.own.lock();
        let fault = own.unwrap_or_else(|| state.lock().fault);
        match fault {
            Fault::Swallow => continue,
            _ if link.silent.load(Ordering::Relaxed) => continue,
            Fault::Delay(delay) => thread::sleep(delay),
            _ => {}
        }
        let left = fault
            .limit(towards)
            .map_or(usize::MAX, |limit| limit.saturating_sub(moved));
        if !write(link, to, &chunk[..count.min(left)]) {
            break;
        }
        moved += count;
        if count >= left {
            match fault {
                Fault::ResetAfter(..) => link.reset(),
                Fault::CloseAfter(..) => link.close(),
                Fault::SwallowAfter(..) => link.silent.store(true, Ordering::Relaxed),
                _ => break,
            }
        }
    }
    if !link.doomed.load(Ordering::Relaxed) {
        // The other direction may still have something to say.
        let _ = to.shutdown(Shutdown::Write);
    }
}

/// Writes all of it, unless the link is doomed meanwhile.
fn write(link: &Link, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() && !link.doomed.load(Ordering::Relaxed) {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(_) => return false,
        }
    }
    bytes.is_empty()
}
