//! Listening sockets that a supervisor has opened (systemd's socket activation). As with PgBouncer they take the place of all that the
//! configuration names.

use std::io;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;

use crate::config::checked::Tcp;
use crate::net::listen::Listener;

/// The sockets that were handed to this process; none if they were meant for another.
pub(super) fn sockets(tcp: &Tcp) -> io::Result<Vec<Listener>> {
    // LISTEN_PID is compared with our own.
    let mut handed = ListenFd::from_env();
    (0..handed.len())
        .map(|index| Listener::from_socket(take(&mut handed, index)?, tcp))
        .collect()
}

fn take(handed: &mut ListenFd, index: usize) -> io::Result<OwnedFd> {
    let refused = || {
        let message = format!("socket {index} of LISTEN_FDS is no listening stream socket");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    if let Ok(Some(listener)) = handed.take_tcp_listener(index) {
        return Ok(listener.into());
    }
    match handed.take_unix_listener(index) {
        Ok(Some(listener)) => Ok(listener.into()),
        _ => Err(refused()),
    }
}
