//! Who is accepted and sent where; start, reload, drain.

pub mod admit;
pub mod built;
pub mod demo;
pub mod http;
pub mod log;
pub mod look_up;
pub mod pgbouncer;
pub mod process;
pub mod serve;
pub mod worker;
pub mod world;
