//! What an idle client costs is part of what is promised (docs/performance.md), so what it consists of is held here.

use std::mem::size_of;

use crate::client::directory::Entry;
use crate::session::run::{Session, Terms};

#[test]
fn an_idle_client_stays_small() {
    // Who makes one of them larger measures what that does to an idle client: `ONLY=idle_memory benches/pgbench.sh`.
    for (what, size, most) in [
        ("its entry in the directory", size_of::<Entry>(), 192),
        ("its session", size_of::<Session>(), 256),
        ("of that, its terms", size_of::<Terms>(), 64),
    ] {
        assert!(size <= most, "{what}: {size} bytes");
    }
}
