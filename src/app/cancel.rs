//! A cancel request: told to the session that it names, or passed on to the process that has it.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::admit::closing;
use super::serve::App;
use crate::client::patience::Activity;
use crate::net::listen::Peer;
use crate::repeats;
use crate::server::peers::{PassError, Way};
use crate::wire::startup::CancelKey;

/// What is said of a request that reached nobody.
const NOT_PASSED: &str = "cancel request not passed on";

/// What PgBouncer says of a request that has done its work.
const SENT: &str = "successfully sent cancel request";

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// Nobody here has that key, and it is no peer's.
    #[error("nobody has that key")]
    Nobody,
    /// It was passed on as often as it may be.
    #[error("it was passed on too often")]
    Exhausted,
    /// It names a peer that is not configured.
    #[error("peer {0} is not known")]
    NoPeer(u16),
    /// The peer could not be told.
    #[error("peer {0}: {1}")]
    Lost(u16, #[source] PassError),
}

impl Untold {
    /// As PgBouncer puts it.
    fn as_pgbouncer(&self) -> &'static str {
        match self {
            Self::Nobody => "failed cancel request",
            Self::Exhausted => "failed to forward cancel request because its TTL was exhausted",
            Self::NoPeer(_) => "could not find peer to forward request to",
            Self::Lost(..) => "failed to send cancel request",
        }
    }
}

impl App {
    /// Stops what a session runs, if the key is right. Returns when that was passed on.
    pub(super) async fn cancel(&self, key: &CancelKey, peer: Peer, whose: (u32, Instant)) {
        let entry = self.directory.by_key(key);
        let is_idle = entry.is_some_and(|entry| entry.doing().activity == Activity::Idle);
        if let Some(asked) = self.directory.ask_to_cancel(key) {
            self.metrics.cancel_asked("passed");
            // Nobody ever sends anything: whoever is done with it drops the other end.
            let _ = asked.await;
            let because = if is_idle {
                "cancel request for idle client"
            } else {
                SENT
            };
            return self.tell_end(because, peer, whose);
        }
        match self.pass_on(key).await {
            Ok(()) => {
                self.metrics.cancel_asked("forwarded");
                self.tell_end(SENT, peer, whose);
            }
            Err(untold) => self.tell_of(&untold, key, peer, whose),
        }
    }

    /// Passes a request on to the peer whose session it names.
    async fn pass_on(&self, key: &CancelKey) -> Result<(), Untold> {
        let (own, id) = (self.directory.peer_id(), key.peer());
        if own == 0 || own == id {
            return self.ask_former(key).await;
        }
        let next = key.passed_on().ok_or(Untold::Exhausted)?;
        let world = self.world();
        let config = &world.config;
        let peer = config.peers.get(&id).ok_or(Untold::NoPeer(id))?;
        let way = Way {
            tcp: &config.tcp,
            limit: world.cancel_limit(),
            size: config.pool.size,
        };
        let passed = self.peers.pass_on(id, peer, &next, way).await;
        passed.map_err(|error| Untold::Lost(id, error))
    }

    /// Asks the process whose sockets this one has: its clients' requests come here.
    async fn ask_former(&self, key: &CancelKey) -> Result<(), Untold> {
        if !self.former.is_there() {
            return Err(Untold::Nobody);
        }
        let (former, key) = (Arc::clone(&self.former), key.clone());
        let limit = self.world().cancel_limit();
        let asked = spawn_blocking(move || former.cancel(&key, limit));
        match asked.await {
            Ok(true) => Ok(()),
            _ => Err(Untold::Nobody),
        }
    }

    /// PgBouncer's line about the end of the connection by which the request came.
    fn tell_end(&self, because: &str, peer: Peer, (id, began): (u32, Instant)) {
        if self.logs_as_pgbouncer() && self.logs_disconnections() {
            let said = closing(because, began.elapsed());
            tracing::info!(id, %peer, said, "cancel request");
        }
    }

    fn tell_of(&self, untold: &Untold, key: &CancelKey, peer: Peer, whose: (u32, Instant)) {
        let lost = matches!(untold, Untold::Lost(..));
        let result = if lost { "lost" } else { "unknown" };
        self.metrics.cancel_asked(result);
        if self.logs_as_pgbouncer() {
            self.tell_end(untold.as_pgbouncer(), peer, whose);
        } else if lost && repeats::is_news(NOT_PASSED, untold.to_string()) {
            tracing::warn!("{NOT_PASSED}: {untold}");
        } else {
            // Postgres answers a wrong key with silence too.
            tracing::debug!(pid = key.pid, "{NOT_PASSED}: {untold}");
        }
    }
}
