//! Connections to Postgres: dialling, logging in, looking after idle ones, closing. Knows nothing of pools.

pub mod close;
pub mod connection;
pub mod dial;
pub mod end;
pub mod facts;
pub mod login;
pub mod name_servers;
pub mod names;
pub mod peers;
pub mod prepared;
pub mod reach;
pub mod secure;
pub mod state;
pub mod told;
