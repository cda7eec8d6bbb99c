//! Tells a supervisor that speaks systemd's protocol how far the process is (`Type=notify`).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

/// It serves.
pub(super) const READY: &str = "READY=1";

/// It has begun to end.
pub(super) const STOPPING: &str = "STOPPING=1";

/// It reads its configuration again, until this is dropped (`Type=notify-reload`).
#[derive(Debug)]
pub(super) struct Reloading(());

impl Reloading {
    pub(super) fn begin() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        Self(())
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        tell(READY);
    }
}

/// Says so to whoever waits for it; nobody does where the variable is not set.
pub(super) fn tell(state: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else {
        return;
    };
    if let Err(error) = send(&place, state) {
        tracing::warn!("cannot tell {} {state}: {error}", place.display());
    }
}

fn send(place: &OsStr, state: &str) -> io::Result<()> {
    let address = match place.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_it_at_a_path_and_under_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("@{}", path.display());
        let abstract_name = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let sockets = [
            (path.as_os_str(), UnixDatagram::bind(&path).unwrap()),
            (
                OsStr::new(&name),
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
            ),
        ];
        for (place, socket) in sockets {
            send(place, READY).unwrap();
            let mut heard = [0; 16];
            let length = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        assert!(send(OsStr::new("/nonexistent/socket"), READY).is_err());
    }
}
