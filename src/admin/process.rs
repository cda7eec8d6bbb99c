//! What the console needs of the process around it.

use std::fmt::Debug;
use std::sync::Arc;

use super::own::Own;
use crate::client::directory::{Directory, Quota};
use crate::client::reaped::ReapedLog;
use crate::config::SetError;
use crate::config::checked::{Auth, Config};
use crate::config::ini::Setting;
use crate::incident::{Incident, Summary};
use crate::metrics::Metrics;
use crate::policy::alert::Measured;
use crate::policy::budget::{Backend, Whose};
use crate::policy::deployment::{DeploymentRow, Unknown};
use crate::pool::pools::{Pools, Shutting, SteerError};
use crate::server::names::{NameRow, ZoneRow};
use crate::server::peers::PeerRow;

/// The process, as the console sees it. `app` is it; a test may be another.
pub trait Process: Debug + Send + Sync {
    /// The configuration in force.
    fn config(&self) -> Arc<Config>;
    /// The keys of the pgbouncer.ini that it was started from; none where there is no such file.
    fn settings_of_pgbouncer(&self) -> Vec<Setting>;
    /// Sessions.
    fn directory(&self) -> &Directory;
    /// Client sockets, logged in or not.
    fn clients(&self) -> &Quota;
    /// Everybody who is listed as a user.
    fn users(&self) -> Vec<String>;
    /// Server connections.
    fn pools(&self) -> &Pools;
    /// Every series.
    fn metrics(&self) -> &Metrics;
    /// What names of hosts were found to be.
    fn names(&self) -> Vec<NameRow>;
    /// Their zones, if these are asked whether they have changed.
    fn zones(&self) -> Vec<ZoneRow>;
    /// What is under way to other processes.
    fn peers(&self) -> Vec<PeerRow>;
    /// What the console counts of itself.
    fn own(&self) -> &Own;
    /// Whether clients are served.
    fn state(&self) -> State;

    /// Whether a database may be named in a command; `None`: all.
    fn find(&self, database: Option<&str>) -> Result<(), ActError>;
    /// Begins to pause a database, or all.
    fn pause(&self, database: Option<&str>) -> Result<Shutting, ActError>;
    /// Begins to suspend everything.
    fn suspend(&self) -> Result<Shutting, ActError>;
    /// Undoes what was paused, suspended or killed.
    fn resume(&self, database: Option<&str>) -> Result<(), ActError>;
    /// Refuses new clients of a database, or lets them in again.
    fn disable(&self, database: &str, disabled: bool) -> Result<(), ActError>;
    /// Has the server connections of a database, or of all, replaced as they come free.
    fn reconnect(&self, database: Option<&str>) -> Result<(), ActError>;
    /// Drops every client of a database, or of all, and leaves it paused. Their server connections are brought back to order, which
    /// cancels what they run, and closed.
    fn kill(&self, database: Option<&str>) -> Result<Shutting, ActError>;
    /// Drops one client, by the number that `SHOW CLIENTS` gives it.
    fn kill_client(&self, id: u32) -> Result<(), ActError>;
    /// Begins to end the process. False if it is ending as fast already.
    fn shut_down(&self, how: Shutdown) -> bool;
    /// Changes a setting until the configuration is read again. Takes time.
    fn set(&self, name: &str, value: &str) -> Result<(), ActError>;
    /// Reads the configuration again. Takes time.
    fn reload(&self) -> Result<(), ActError>;
    /// Deployments, by service, the oldest first.
    fn deployments(&self) -> Vec<DeploymentRow>;
    /// Sessions that were closed because of their deployment.
    fn reaped(&self) -> &ReapedLog;
    /// Says which deployment of a service counts.
    fn promote(&self, service: &str, deployment: &str) -> Result<(), Unknown>;
    /// Says that a deployment does not count any more.
    fn supersede(&self, service: &str, deployment: &str) -> Result<(), Unknown>;
    /// Who is connected to each Postgres, as the monitor saw it last.
    fn backends(&self) -> Vec<(String, Whose, Backend)>;
    /// The alerts that are raised, and since when, in milliseconds since 1970.
    fn alerts(&self) -> Vec<(i64, Measured)>;
    /// The incidents that are kept, the newest first.
    fn incidents(&self) -> Arc<[Summary]>;
    /// One incident, or why it cannot be told. Reads a file.
    fn incident(&self, number: u64) -> Result<Incident, String>;
    /// Asks sessions of superseded deployments to leave that do nothing, of one service or of all; how many.
    fn kill_stale(&self, service: Option<&str>) -> usize;
}

/// Whether clients are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They are.
    Active,
    /// They wait.
    Paused,
    /// They wait, and nothing is read from them.
    Suspended,
}

/// What a user may do on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// SHOW.
    Stats,
    /// Everything.
    Admin,
}

impl Access {
    /// What the configuration lets a user do; `None` = nothing.
    pub fn of(auth: &Auth, user: &str) -> Option<Self> {
        let is_in = |names: &[String]| names.iter().any(|name| name == user);
        if is_in(&auth.admins) {
            Some(Self::Admin)
        } else {
            is_in(&auth.stats).then_some(Self::Stats)
        }
    }
}

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Immediate,
    /// When no server connection is left, of which none is lent any more.
    WaitForServers,
    /// When the last client has left by itself.
    WaitForClients,
    /// When every client has ended its transaction, or a limit has passed.
    Drain,
}

/// Why something cannot be done: in PgBouncer's words.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// No such database is served.
    #[error("no such database: {0}")]
    NoDatabase(String),
    /// The console's own database was named.
    #[error("cannot pause admin db: {0}")]
    Console(String),
    /// That is no number of a client.
    #[error("invalid client pointer supplied")]
    NoNumber,
    /// What follows the command is none of what may.
    #[error("bad arguments")]
    Arguments,
    /// No client has this number.
    #[error("client not found")]
    NoClient,
    /// It is too late.
    #[error("pooler is shutting down")]
    ShuttingDown,
    /// The pools are not as they would have to be.
    #[error("{0}")]
    Steer(#[from] SteerError),
    /// The configuration is wrong.
    #[error("RELOAD failed, see logs for additional details")]
    Reload(String),
    /// A setting cannot be set.
    #[error("SET failed")]
    Set(SetError),
}
