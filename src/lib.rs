//! pgweir: a connection-pooling proxy for PostgreSQL.
//!
//! Modules stand on floors and point down only; `docs/architecture.md` shows them.

pub mod admin;
pub mod app;
pub mod client;
pub mod config;
pub mod incident;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod pool;
pub mod recent;
pub mod repeats;
pub mod server;
pub mod session;
pub mod wire;
