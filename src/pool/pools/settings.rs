//! What may change while a pool is in use.

use std::time::Duration;

use crate::config::checked::{Errors, Mode};
use crate::pool::book::PoolLimits;
use crate::server::dial::Target;
use crate::server::login::ServerLogin;
use crate::server::told::Lines;
use crate::wire::parameters::{DEPLOYMENT, options_without};
use crate::wire::startup::Startup;

/// What is asked of a server connection before it is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The question; any answer will do.
    pub query: String,
    /// Of one that was unused for so long.
    pub delay: Duration,
}

/// What may change while a pool is in use.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct PoolSettings {
    /// Where and as whom to log in.
    pub target: Target,
    /// How long a client keeps a server connection.
    pub mode: Mode,
    /// In whose words clients are told why they get no server connection, or lose it.
    pub errors: Errors,
    /// Its database is listed nowhere, and found by `*`.
    pub is_auto: bool,
    /// What is told of its server connections.
    pub lines: Lines,
    /// Sizes.
    pub limits: PoolLimits,
    /// The longest wait for a server connection.
    pub query_wait: Option<Duration>,
    /// A connection is closed at this age, give or take a tenth.
    pub server_lifetime: Option<Duration>,
    /// The first pause after a failed login.
    pub server_login_retry: Duration,
    /// Run between two clients in session mode; empty = nothing.
    pub server_reset_query: String,
    /// It is run in every mode, whenever a server connection comes back.
    pub resets_always: bool,
    /// How a server connection is asked whether it is still there.
    pub check: Option<Check>,
    /// A session-mode client is closed with its server connection as soon as that is to be replaced and has no transaction.
    pub closes_fast: bool,
    /// It is forgotten when nobody has used it for this long.
    pub forget_after: Option<Duration>,
    /// Prepared statements that a server connection keeps; 0 = names are left to the clients.
    pub max_prepared_statements: u32,
    /// How long it may take to bring a connection back to order.
    pub recover_limit: Duration,
    /// How long a cancel request may be on its way.
    pub cancel_limit: Duration,
    /// The budget of its Postgres; `None` = what Postgres says, less `headroom`.
    pub budget: Option<u32>,
    /// See `budget`.
    pub headroom: u32,
    /// Its Postgres is watched over a connection of its own, which counts in the budget.
    pub is_watched: bool,
    /// It serves once, to try one password or one client's replication, and is forgotten after that.
    pub is_probe: bool,
    /// Caps on its database and user.
    pub database_cap: u32,
    /// See `database_cap`.
    pub user_cap: u32,
}

impl PoolSettings {
    /// The same with room for one connection, made with another proof.
    #[must_use]
    pub fn as_probe(&self, proof: ServerLogin) -> Self {
        let mut probe = self.as_single();
        probe.target.identity.proof = proof;
        probe
    }

    /// The same with room for one connection that replicates, with everything that its client asked for at startup.
    #[must_use]
    pub fn as_replication(&self, startup: &Startup) -> Self {
        let mut single = self.as_single();
        single.mode = Mode::Session;
        // It may understand no SQL.
        single.target.connect_query = None;
        single.server_lifetime = None;
        let identity = &mut single.target.identity;
        let name = startup.parameter("application_name").unwrap_or_default();
        name.clone_into(&mut identity.application_name);
        identity.parameters.clone_from(&startup.parameters);
        identity.parameters.retain(|(name, _)| {
            name != "application_name" && !name.eq_ignore_ascii_case(DEPLOYMENT)
        });
        for (name, value) in &mut identity.parameters {
            if name == "options" {
                *value = options_without(value, DEPLOYMENT);
            }
        }
        single
    }

    /// The same with room for one connection, which serves once.
    fn as_single(&self) -> Self {
        let mut probe = self.clone();
        probe.is_probe = true;
        // What is left of a try that took too long serves nobody, and is closed at once.
        let server_idle = Some(Duration::ZERO);
        probe.limits = PoolLimits {
            size: 1,
            min_size: 0,
            reserve_size: 0,
            server_idle,
            ..probe.limits
        };

        probe
    }
}
