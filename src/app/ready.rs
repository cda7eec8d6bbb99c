//! Whether a load balancer should send clients here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::serve::App;
use crate::config::checked::{Config, Host};
use crate::net::stream::Stream;
use crate::server::dial::name;

/// How long the answer to "is any Postgres there?" is good for. Each connection that asks costs Postgres a process for a moment.
const KEPT: Duration = Duration::from_secs(5);

/// How long a Postgres may take to be reached: kubelet gives a probe one second.
const LIMIT: Duration = Duration::from_millis(750);

/// What was found when it was last asked whether any Postgres is there.
#[derive(Debug, Default)]
pub struct Reachable(Mutex<Option<(Instant, bool)>>);

/// Why no client should be sent here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It shuts down.
    #[error("draining")]
    Draining,
    /// There is nothing to pool.
    #[error("no Postgres reachable")]
    NoPostgres,
}

impl App {
    /// Whether new clients are let in and can be served.
    pub async fn ready(&self) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if self.has_servers() || self.finds_postgres().await {
            return Ok(());
        }
        Err(NotReady::NoPostgres)
    }

    /// Whether a server connection is open. Idle ones that Postgres has closed are gone within a second.
    fn has_servers(&self) -> bool {
        let hosts = self.pools.hosts();
        hosts
            .iter()
            .any(|host| host.tally.idle() + host.tally.lent() > 0)
    }

    /// Connects to what is configured, unless that was done a moment ago. Who comes meanwhile waits for the same answer.
    async fn finds_postgres(&self) -> bool {
        let mut last = self.reachable.0.lock().await;
        if let Some((asked, found)) = *last
            && asked.elapsed() < KEPT
        {
            return found;
        }
        let found = any(&self.world().config).await;
        *last = Some((Instant::now(), found));
        found
    }
}

/// Whether one of the configured hosts lets itself be connected to.
async fn any(config: &Config) -> bool {
    let databases = config.databases.values().chain(&config.any_database);
    let hosts = databases.flat_map(|database| &database.hosts);
    let hosts: HashMap<String, &Host> = hosts.map(|host| (name(host), host)).collect();
    let mut tries = JoinSet::new();
    for host in hosts.into_values() {
        let (host, tcp) = (host.clone(), config.tcp.clone());
        tries.spawn(async move { Stream::connect(&host, &tcp).await.is_ok() });
    }
    let first = async {
        while let Some(tried) = tries.join_next().await {
            if matches!(tried, Ok(true)) {
                return true;
            }
        }
        false
    };
    timeout(LIMIT, first).await.unwrap_or(false)
}
