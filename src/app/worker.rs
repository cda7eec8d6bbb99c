//! A data thread: it owns its clients, and the sockets of the server connections that they use.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_local;

use super::admit::attend;
use super::serve::App;
use crate::net::listen::Peer;
use crate::net::stream::Unregistered;
use crate::pool::book::ThreadId;
use crate::pool::errand::Errand;

/// A client that was accepted for this thread.
#[derive(Debug)]
pub struct Arrival {
    /// Its socket.
    pub socket: Unregistered,
    /// Where it came from.
    pub peer: Peer,
}

/// Starts a data thread. It ends when `arrivals` is closed.
pub fn start(
    thread: ThreadId,
    app: Arc<App>,
    mut arrivals: UnboundedReceiver<Arrival>,
    mut errands: UnboundedReceiver<Errand>,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("the system gives a thread its epoll instance");
        runtime.block_on(async {
            loop {
                tokio::select! {
                    arrival = arrivals.recv() => match arrival {
                        Some(arrival) => drop(spawn_local(attend(Arc::clone(&app), thread, arrival))),
                        None => break,
                    },
                    Some(errand) = errands.recv() => drop(spawn_local(errand.run())),
                }
            }
        });
    };
    std::thread::Builder::new()
        .name(format!("data-{}", thread.0))
        .spawn(run)
}
