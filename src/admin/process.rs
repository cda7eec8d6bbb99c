//! What the console needs of the process around it.

use std::fmt::Debug;
use std::sync::Arc;

use crate::client::directory::{Directory, Quota};
use crate::client::reaped::ReapedLog;
use crate::config::checked::{Auth, Config};
use crate::metrics::Metrics;
use crate::policy::deployment::{DeploymentRow, Unknown};
use crate::pool::pools::Pools;

/// The process, as the console sees it. `app` is it; a test may be another.
pub trait Process: Debug + Send + Sync {
    /// The configuration in force.
    fn config(&self) -> Arc<Config>;
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
    /// Whether clients are served.
    fn state(&self) -> State;
    /// Deployments, by service, the oldest first.
    fn deployments(&self) -> Vec<DeploymentRow>;
    /// Sessions that were closed because of their deployment.
    fn reaped(&self) -> &ReapedLog;
    /// Says which deployment of a service counts.
    fn promote(&self, service: &str, deployment: &str) -> Result<(), Unknown>;
    /// Says that a deployment does not count any more.
    fn supersede(&self, service: &str, deployment: &str) -> Result<(), Unknown>;
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
