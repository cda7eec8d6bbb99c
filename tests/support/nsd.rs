//! A name server: NLnet Labs' nsd with one zone, `pgweir.test`, in which a `db` can move.

use std::cell::Cell;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::process::{Guarded, scratch};
use super::wait::eventually;

/// A running server, ended on drop. [`Self::resolv_conf`] is how it is asked.
pub struct Nsd {
    address: Ipv4Addr,
    ttl: u32,
    serial: Cell<u32>,
    process: Guarded,
    directory: TempDir,
}

impl Nsd {
    /// Starts one that says for how many seconds its answers count; `None` where the port of name servers cannot be had, which takes
    /// root, and is said.
    pub fn start(ttl: u32, db: &str) -> Option<Self> {
        let directory = scratch();
        let path = directory.path().to_owned();
        let Some(address) = free_address() else {
            eprintln!("not run: the port of name servers cannot be had here");
            return None;
        };
        fs::write(
            path.join("nsd.conf"),
            configuration(&path.display().to_string(), address),
        )
        .expect("the directory is ours");
        fs::write(path.join("zone"), zone(1, ttl, db)).expect("likewise");
        let mut command = Command::new("/usr/sbin/nsd");
        // "-d" keeps it in the foreground.
        command
            .arg("-d")
            .arg("-c")
            .arg(path.join("nsd.conf"))
            .stderr(Stdio::null());
        let mut process = Guarded::spawn(&mut command, "TERM", &path);
        eventually("the name server listens", || {
            assert!(process.ended().is_none(), "nsd ended");
            TcpStream::connect((address, 53)).is_ok()
        });
        Some(Self {
            address,
            ttl,
            serial: Cell::new(1),
            process,
            directory,
        })
    }

    /// The text of a resolv.conf by which it is asked.
    pub fn resolv_conf(&self) -> String {
        format!("nameserver {}\n", self.address)
    }

    /// `db` has another address from now on, and the zone another serial number.
    pub fn move_to(&self, db: &str) {
        self.serial.set(self.serial.get() + 1);
        let text = zone(self.serial.get(), self.ttl, db);
        let path = self.directory.path().join("zone");
        fs::write(&path, text).expect("the directory is ours");
        // nsd reads a file again whose time has changed, in whole seconds.
        let later = SystemTime::now() + Duration::from_secs(self.serial.get().into());
        let file = fs::File::options().append(true).open(path);
        let changed = file.and_then(|file| file.set_modified(later));
        changed.expect("the file is ours");
        self.process.signal("HUP");
    }
}

/// One of the loopback's, on which nobody serves names.
fn free_address() -> Option<Ipv4Addr> {
    let [.., high, low] = std::process::id().to_be_bytes();
    (53..73)
        .map(|second| Ipv4Addr::new(127, second, high, low.max(1)))
        .find(|address| TcpListener::bind((*address, 53)).is_ok())
}

fn configuration(path: &str, address: Ipv4Addr) -> String {
    format!(
        "server:\n  ip-address: {address}@53\n  username: \"\"\n  chroot: \"\"\n  server-count: 1\n  database: \"\"\n  \
         zonesdir: \"{path}\"\n  pidfile: \"{path}/pid\"\n  xfrdfile: \"\"\n  xfrdir: \"{path}\"\n  zonelistfile: \"{path}/zones\"\n\
         remote-control:\n  control-enable: no\nzone:\n  name: pgweir.test\n  zonefile: zone\n"
    )
}

fn zone(serial: u32, ttl: u32, db: &str) -> String {
    format!(
        "$ORIGIN pgweir.test.\n$TTL {ttl}\n@ SOA ns root {serial} 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\ndb A {db}\n"
    )
}
