//! Fixtures of the integration tests: a Postgres, a pgweir in front of it, a faulty network between them, and a client
//! that speaks raw protocol. Everything is on loopback, on free ports, in temporary directories, and is gone afterwards.
//!
//! ```ignore
//! let postgres = Postgres::start();
//! let pooler = Pooler::serve(&postgres, "[pool]\nsize = 2\n");
//! let mut client = Raw::login(pooler.port(), "postgres", "postgres");
//! assert_eq!(client.value("select 1"), "1");
//! ```
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "compiled into every test program, and each uses a part of it"
)]

pub mod browser;
pub mod case;
pub mod certs;
pub mod nsd;
pub mod pgbouncer;
pub mod pooler;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod script;
pub mod slapd;
pub mod wait;
pub mod watch;

pub use browser::{Browser, Screen};
pub use certs::Authority;
pub use nsd::Nsd;
pub use pooler::Pooler;
pub use postgres::{Method, Postgres};
pub use proxy::{Fault, Proxy, Side};
pub use raw::{Batch, Message, Raw, ServerError};
pub use slapd::Slapd;
pub use wait::{eventually, until};
pub use watch::Watch;

/// Makes each function, which takes a number of threads, into two tests.
#[macro_export]
macro_rules! with_one_and_two_threads {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {
        mod one_thread {
            $(#[test] $(#[$attribute])* fn $name() { super::$name(1); })+
        }
        mod two_threads {
            $(#[test] $(#[$attribute])* fn $name() { super::$name(2); })+
        }
    };
}
