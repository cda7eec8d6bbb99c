//! Who is accepted and sent where; start, reload, drain.

pub mod admit;
pub mod built;
mod console;
pub mod demo;
pub mod http;
pub mod log;
pub mod look_up;
pub mod reap;
pub mod serve;
pub mod worker;
pub mod world;
