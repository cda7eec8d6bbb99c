//! Who is accepted and sent where; start, reload, drain.

mod activation;
pub mod admit;
pub mod background;
mod cancel;
mod console;
pub mod demo;
pub mod http;
pub mod incident;
pub mod log;

pub mod look_up;
pub mod memory;
pub mod monitor;
mod notify;
pub mod page;
pub mod pgbouncer;
pub mod phase;
mod process;
pub mod ready;
pub mod reap;
mod scrape;
pub mod serve;
pub mod steer;
pub mod takeover;
pub mod watch;
pub mod webhook;
pub mod worker;
pub mod world;
