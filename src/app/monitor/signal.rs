//! What the monitor ends at Postgres: connections that a dead pgweir has left behind and, where that is wished, idle ones past pgweir
//! of deployments that are superseded.
//!
//! A process is named by its id and the microsecond of its start, and Postgres itself checks both, so that no other one is ever hit.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use tokio::time::timeout;

use super::{LIMIT, Monitor, Reading, text};
use crate::app::memory::Backend;
use crate::app::reap::Leftover;
use crate::app::serve::App;
use crate::client::reaped::Reaped;
use crate::net::listen::Peer;
use crate::policy::budget::{self, Whose};
use crate::server::login::LoginError;

/// What the monitor remembers of what it has ended.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// It was said that others' connections may not be ended.
    denied: bool,
    /// Connections of which it was said that they would be closed.
    told: HashSet<Backend>,
}

/// Why a process was not ended.
enum Unended {
    /// The role may not.
    Denied(String),
    /// The monitor's own connection failed.
    Lost,
}

impl Monitor {
    /// Notes which processes are ours, for the process after this one.
    pub(super) fn remember(&self, app: &App, reading: &Reading) {
        let mut ports = app.pools.local_ports(self.host);
        let Some(own) = &reading.own else {
            return app.memory.has(&self.name, Vec::new());
        };
        if let Some((connection, _)) = &self.connection {
            let local = connection.facts().line.local;
            ports.insert(own.pid, local.map_or(-1, |local| local.port().into()));
        }
        let ours = reading
            .backends
            .iter()
            .filter(|(whose, _)| *whose == Whose::Ours);
        let ours = ours.map(|(_, backend)| backend).chain([own]);
        // Where several Postgres stand behind one name, another process may have the same id; but not at the other end of our line.
        let ours = ours.filter(|backend| {
            backend.port.is_some() && ports.get(&backend.pid) == backend.port.as_ref()
        });
        app.memory.has(&self.name, ours.filter_map(named).collect());
    }

    /// Ends what a dead process of this pgweir has left.
    pub(super) async fn end_what_was_left(&mut self, app: &App, reading: &Reading) {
        let left = app.memory.left(&self.name);
        if left.is_empty() {
            return;
        }
        let there: HashSet<_> = reading
            .backends
            .iter()
            .filter_map(|(_, backend)| named(backend))
            .collect();
        let (mut ended, mut denied) = (0, None);
        for backend in left {
            if there.contains(&backend) {
                match self.terminate(backend, "").await {
                    Ok(done) => ended += u32::from(done),
                    Err(Unended::Denied(error)) => denied = Some(error),
                    Err(Unended::Lost) => break,
                }
            }
            app.memory.forget(&self.name, backend);
        }
        if ended > 0 {
            tracing::warn!(
                postgres = self.name,
                connections = ended,
                "an earlier process of this pgweir has left connections behind: terminated"
            );
            app.watch.did(format!(
                "terminated {ended} connections that an earlier process of pgweir had left"
            ));
        }
        if let Some(error) = denied {
            self.say_denied(
                "what an earlier process of this pgweir has left behind counts as foreign",
                &error,
            );
        }
    }

    /// Under pressure, if that is wished: ends connections past pgweir that superseded deployments have left.
    pub(super) async fn close_foreign(&mut self, app: &App, reading: &Reading) {
        let leftovers = app.foreign_leftovers(&reading.backends);
        let there = reading
            .backends
            .iter()
            .filter_map(|(_, backend)| named(backend));
        let there: HashSet<_> = there.collect();
        self.signals.told.retain(|backend| there.contains(backend));
        for leftover in leftovers {
            let (Some(backend), Some(changed)) =
                (named(&leftover.backend), leftover.backend.changed)
            else {
                continue;
            };
            // Made by us while Postgres was asked.
            if app.pools.local_ports(self.host).contains_key(&backend.pid) {
                continue;
            }
            if leftover.dry_run {
                if self.signals.told.insert(backend) {
                    app.reaping.log.note_foreign(reaped(leftover));
                }
                continue;
            }
            // It still does nothing.
            let idle = format!(
                " AND a.state = 'idle' AND (extract(epoch FROM a.state_change) * 1000000)::bigint = {changed}"
            );
            match self.terminate(backend, &idle).await {
                Ok(true) => {
                    let (pid, sentence) = (backend.pid, &leftover.sentence);
                    app.watch.did(format!(
                        "terminated process {pid}, which does not come through pgweir: {sentence}"
                    ));
                    app.reaping.log.note_foreign(reaped(leftover));
                }
                Ok(false) => {}
                Err(Unended::Denied(error)) => {
                    return self.say_denied("pressure.close_foreign closes nothing", &error);
                }
                Err(Unended::Lost) => return,
            }
        }
    }

    /// False: there is no such process any more.
    async fn terminate(&mut self, backend: Backend, condition: &str) -> Result<bool, Unended> {
        let Some((connection, _)) = &mut self.connection else {
            return Err(Unended::Lost);
        };
        let Backend { pid, begun } = backend;
        let sql = format!(
            "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.pid = {pid} \
             AND (extract(epoch FROM a.backend_start) * 1000000)::bigint = {begun}{condition}"
        );
        match timeout(LIMIT, connection.select(&sql)).await {
            Ok(Ok(rows)) => Ok(rows.first().is_some_and(|row| text(row, 0) == "t")),
            Ok(Err(LoginError::Refused(error))) => Err(Unended::Denied(error.to_string())),
            Ok(Err(_)) | Err(_) => {
                self.connection = None;
                Err(Unended::Lost)
            }
        }
    }

    fn say_denied(&mut self, what: &str, error: &str) {
        if std::mem::replace(&mut self.signals.denied, true) {
            return;
        }
        let role = self.connection.as_ref();
        let role = role.map_or("", |(_, target)| &*target.identity.user);
        tracing::warn!(
            postgres = self.name,
            role,
            "{what}: {error}; GRANT pg_signal_backend TO it for that"
        );
    }
}

/// The name under which Postgres knows it for ever.
fn named(backend: &budget::Backend) -> Option<Backend> {
    let begun = backend.begun?;
    Some(Backend {
        pid: backend.pid,
        begun,
    })
}

fn reaped(leftover: Leftover) -> Reaped {
    let Leftover {
        backend,
        who,
        sentence,
        dry_run,
    } = leftover;
    let address: Option<IpAddr> = backend.address.parse().ok();
    let port = backend
        .port
        .and_then(|port| port.try_into().ok())
        .unwrap_or(0);
    Reaped {
        at: SystemTime::now(),
        id: backend.pid,
        who,
        peer: match address {
            Some(address) => Peer::Tcp(SocketAddr::new(address, port)),
            None => Peer::Unix(None),
        },
        sentence,
        dry_run,
    }
}
