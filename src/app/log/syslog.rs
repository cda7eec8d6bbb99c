//! Lines for syslog, as libc's `syslog(3)` sends them: one datagram each, in the shape of RFC 3164.
//!
//! Nobody waits for it: a line that the other side has no room for is lost, and counted.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::RwLock;
use tracing::Level;

use crate::config::checked::{Facility, Log, LogFormat};

/// What is sent of a line at most. Syslogs cut at a few kilobytes.
const LONGEST: usize = 8 * 1024;

/// Lines that were lost since they were last told.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The way to syslog.
#[derive(Debug)]
pub(super) struct Syslog {
    place: std::path::PathBuf,
    ident: String,
    facility: Facility,
    format: LogFormat,
    /// `None`: nobody was there.
    socket: RwLock<Option<UnixDatagram>>,
}

impl Syslog {
    /// The one that is configured, if any is.
    pub(super) fn of(log: &Log) -> Option<Self> {
        log.syslog.then(|| Self {
            place: log.syslog_socket.clone(),
            ident: log.syslog_ident.clone(),
            facility: log.syslog_facility,
            format: log.format,
            socket: RwLock::new(connect(&log.syslog_socket).ok()),
        })
    }

    /// Sends a line as it is written elsewhere.
    pub(super) fn send(&self, level: Level, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let now = Timestamp::now().to_zoned_datetime(TimeZone::system());
        let head = format!(
            "<{}>{} {}[{}]: ",
            self.facility.number() << 3 | severity(level),
            now.strftime("%b %e %H:%M:%S"),
            self.ident,
            std::process::id()
        );
        let mut datagram = head + without_time(self.format, &line);
        datagram.truncate(datagram.floor_char_boundary(LONGEST));
        if self.pass(datagram.as_bytes()).is_err() {
            LOST.fetch_add(1, Relaxed);
        }
    }

    fn pass(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = match &*self.socket.read() {
            Some(socket) => socket.send(datagram),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        match sent {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // It was started anew, and its socket is another.
            Err(_) => {
                let socket = connect(&self.place)?;
                let sent = socket.send(datagram);
                *self.socket.write() = Some(socket);
                sent.map(drop)
            }
        }
    }
}

fn connect(place: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(place)?;
    Ok(socket)
}

/// How many lines were lost since this was last asked.
pub(super) fn lost() -> u64 {
    LOST.swap(0, Relaxed)
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// What syslog says itself is left out: the time, and in PgBouncer's lines process and level, as PgBouncer does.
fn without_time(format: LogFormat, line: &str) -> &str {
    let line = line.trim_end_matches('\n');
    let rest = match format {
        LogFormat::Json => None,
        LogFormat::Text => line.split_once(' ').map(|(_, rest)| rest.trim_start()),
        LogFormat::PgBouncer => {
            let rest = line.split_once("] ").map(|(_, rest)| rest);
            rest.and_then(|rest| rest.split_once(' ').map(|(_, rest)| rest))
        }
    };
    rest.unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syslog(place: &Path) -> Syslog {
        Syslog {
            place: place.to_owned(),
            ident: "weir".into(),
            facility: Facility::Local3,
            format: LogFormat::Text,
            socket: RwLock::new(connect(place).ok()),
        }
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut heard = vec![0; 2 * LONGEST];
        let length = socket.recv(&mut heard).expect("something was sent");
        String::from_utf8(heard[..length].to_vec()).expect("UTF-8")
    }

    #[test]
    fn a_line_is_sent_as_libc_would() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let socket = UnixDatagram::bind(&place).unwrap();
        let syslog = syslog(&place);
        syslog.send(Level::WARN, b"2026-11-27T19:12:00Z  WARN what\n");
        let heard = heard(&socket);
        let (begin, text) = heard.split_once(": ").unwrap();
        assert_eq!(text, "WARN what");
        // local3.warning, and a time of 15 letters.
        let tail = format!(" weir[{}]", std::process::id());
        assert!(
            begin.starts_with("<156>") && begin.ends_with(&tail),
            "{begin}"
        );
        assert_eq!(begin.len(), "<156>".len() + 15 + tail.len(), "{begin}");
    }

    #[test]
    fn nobody_waits_for_a_reader_and_one_who_comes_back_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let syslog = syslog(&place);
        let line = vec![b'x'; 20_000];
        syslog.send(Level::INFO, &line);
        let socket = UnixDatagram::bind(&place).unwrap();
        for _ in 0..10_000 {
            syslog.send(Level::INFO, &line);
        }
        assert!(lost() > 1);
        assert_eq!(heard(&socket).len(), LONGEST);
        drop(socket);
        std::fs::remove_file(&place).unwrap();
        let socket = UnixDatagram::bind(&place).unwrap();
        syslog.send(Level::ERROR, b"0 ERROR back\n");
        assert!(heard(&socket).ends_with("]: ERROR back"));
    }

    #[test]
    fn only_what_syslog_says_itself_is_left_out() {
        for (format, line, rest) in [
            (LogFormat::Text, "2026Z  INFO a b=1\n", "INFO a b=1"),
            (
                LogFormat::PgBouncer,
                "2026-11-27 19:12:00.123 UTC [4711] LOG C-0x2a: a/b@x closing because: z (age=3s)\n",
                "C-0x2a: a/b@x closing because: z (age=3s)",
            ),
            (LogFormat::Json, "{\"a\": 1}\n", "{\"a\": 1}"),
            (LogFormat::PgBouncer, "odd", "odd"),
            (LogFormat::Text, "", ""),
        ] {
            assert_eq!(without_time(format, line), rest);
        }
    }
}
