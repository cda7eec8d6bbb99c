//! What an idle client costs is part of what is promised (docs/performance.md), so what it consists of is held here.

use std::mem::size_of;

use crate::client::directory::Entry;
use crate::session::run::{Session, Terms};

#[test]
fn an_idle_client_stays_small() {
    let sizes = [size_of::<Entry>(), size_of::<Session>(), size_of::<Terms>()];
    // Who makes one of them larger measures what that does to an idle client, by `benches/pgbench.sh memory`.
    assert_eq!(sizes, [0, 0, 0]);
}
