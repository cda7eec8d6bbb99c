//! The operator's console: the virtual databases `pgweir` and `pgbouncer`, which any Postgres client can ask.
//!
//! [`command::COMMANDS`] says what there is. [`console`] speaks the protocol with one client, [`process`] is what the console needs of
//! the process around it, which it does not know.

pub mod act;
pub mod chatter;
pub mod command;
pub mod console;
pub mod deployments;
pub mod extended;
pub mod own;
pub mod process;
pub mod query;
pub mod show;
pub mod table;
pub mod words;

/// The release of PgBouncer whose console this is. Drivers and exporters read it from the front of the version.
pub const PGBOUNCER: &str = "1.25.0";

/// The databases that are the console's. Nobody may have one of that name.
pub const DATABASES: [&str; 2] = ["pgweir", "pgbouncer"];
