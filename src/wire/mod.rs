//! The Postgres protocol, as values: bytes in, events and bytes out. No socket, no clock, no task.

pub mod md5;
pub mod scram;
