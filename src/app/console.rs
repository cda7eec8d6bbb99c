//! The door of the console: who may come in, and what the process lets the console see.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admit::Reception;
use super::admit::denied::Denied;
use super::admit::proof::Proof;
use super::monitor::Reading;
use super::serve::App;
use crate::admin::DATABASES;
use crate::admin::console::{Console, Standing, hello};
use crate::admin::own::Own;
use crate::admin::process::{Access, ActError, Process, Shutdown, State};
use crate::client::directory::{Directory, Quota, Seat, Who};
use crate::client::greet::Greeted;
use crate::client::login::LoginError;
use crate::client::reaped::ReapedLog;
use crate::config::checked::{Config, Database};
use crate::config::ini::Setting;
use crate::incident::{Incident, Summary};
use crate::metrics::Metrics;
use crate::net::line::Line;
use crate::net::listen::Peer;
use crate::net::stream::Stream;
use crate::policy::alert::Measured;
use crate::policy::budget::{Backend, Whose};
use crate::policy::deployment::{DeploymentRow, Unknown};
use crate::pool::book::Gate;
use crate::pool::pools::{Pools, Shutting, Vouched};
use crate::server::names::{NameRow, ZoneRow, names};
use crate::server::peers::PeerRow;
use crate::wire::parameters::Parameters;
use crate::wire::startup::{Startup, secret_length};

/// Admins on the console at once. They are let in where `max_clients` is reached, so something else must bound them.
const MOST_ADMINS: u32 = 32;

/// The service of the console's own sessions, in lists and metrics.
pub(super) const SERVICE: &str = "(console)";

/// Whether a database is the console.
pub(super) fn is_console(database: &str) -> bool {
    DATABASES.contains(&database)
}

impl Reception<'_> {
    /// Lets a client of the console in: on return it has been told ReadyForQuery.
    pub(super) async fn receive_at_console(
        &self,
        mut greeted: Greeted,
        seat: Option<Seat>,
    ) -> Result<Console, (Greeted, Denied)> {
        match self.let_in(&mut greeted, seat).await {
            Ok((standing, seat)) => self.start(greeted, standing, seat).await,
            Err(denied) => Err((greeted, denied)),
        }
    }

    async fn let_in(
        &self,
        greeted: &mut Greeted,
        seat: Option<Seat>,
    ) -> Result<(Standing, Seat), Denied> {
        self.check_tls(&greeted.startup, greeted.peer, greeted.secured.as_ref())?;
        if let Some(answer) = greeted.startup.negotiate() {
            let written = greeted.packets.write(&answer).await;
            written.map_err(LoginError::Io)?;
        }
        if is_owner(greeted.packets.stream(), &greeted.startup) {
            self.tell_attempt(&greeted.packets, &greeted.startup, greeted.peer);
            return Ok((Standing::Owner, self.seat_of_admin()?));
        }
        let proof = self.identify(greeted).await?;
        // Whoever claims a name without proof may be anybody on the network. On this machine it is who could reach Postgres alike.
        if matches!(proof, Proof::None) && !is_local(greeted.peer) {
            return Err(Denied::Unproved);
        }
        let user = &greeted.startup.user;
        let access = Access::of(&self.world.config.auth, user);
        let seat = match access {
            Some(Access::Admin) => self.seat_of_admin()?,
            Some(Access::Stats) => seat.ok_or(Denied::Full("max_clients"))?,
            None => return Err(Denied::NotAllowed(user.clone())),
        };
        if !self.app.lets_in() && access != Some(Access::Admin) {
            return Err(Denied::Draining);
        }
        Ok((Standing::Listed, seat))
    }

    /// The client shows who it is, to pgweir or to Postgres, as for any other database.
    async fn identify(&self, greeted: &mut Greeted) -> Result<Proof, Denied> {
        let Greeted {
            packets,
            startup,
            secured,
            peer,
            ..
        } = greeted;
        let (place, database) = self.voucher().ok_or(Denied::Unproved)?;
        let (peer, secured) = (*peer, secured.as_ref());
        let elsewhere = Startup {
            database: place.to_owned(),
            ..startup.clone()
        };
        let found = self.in_time(self.find(&elsewhere)).await?;
        self.tell_stranger(&found, startup, peer);
        self.tell_attempt(packets, startup, peer);
        if !self.world.passes_through() {
            // The HBA file knows the console by its own name.
            let proving = self.prove(packets, startup, peer, secured, &found.credential);
            return self.in_time(proving).await.inspect_err(|_| found.doubt());
        }
        let startup = elsewhere;
        let ignored = &self.world.config.pool.ignore_startup_parameters;
        let asked = Parameters::of_startup(&startup, ignored).ok();
        let (service, _) = self.classify(&startup, asked.as_ref(), peer, secured);
        let pool = self.pool(&startup, database, &found.credential);
        self.vouch(packets, &pool, service).await?;
        let vouched = pool.vouched().lock().await;
        Ok(match *vouched {
            Some(Vouched::By(_)) => Proof::Given,
            Some(Vouched::Trusted) | None => Proof::None,
        })
    }

    /// The database in which users of the console are looked up or vouched for: that of `auth.query_database`, `postgres`, or
    /// the first there is. The console itself is none that Postgres knows.
    fn voucher(&self) -> Option<(&str, &Database)> {
        let asked = self.world.config.auth.query_database.as_deref();
        let names = [asked, Some("postgres")].into_iter().flatten();
        let known = names.filter_map(|name| Some((name, self.world.database(name)?)));
        let first = self.world.config.databases.iter();
        known
            .chain(first.map(|(name, database)| (name.as_str(), database)))
            .next()
    }

    fn seat_of_admin(&self) -> Result<Seat, Denied> {
        self.app
            .admins
            .enter(MOST_ADMINS)
            .ok_or(Denied::Full("32 admins on the console"))
    }

    async fn start(
        &self,
        mut greeted: Greeted,
        standing: Standing,
        seat: Seat,
    ) -> Result<Console, (Greeted, Denied)> {
        let application_name = greeted.startup.parameter("application_name");
        let who = Who {
            user: greeted.startup.user.clone(),
            database: greeted.startup.database.clone(),
            service: SERVICE.to_owned(),
            application_name: application_name.unwrap_or_default().to_owned(),
            ..Who::default()
        };
        let line = Line::of(greeted.packets.stream());
        let length = secret_length(greeted.startup.spoken());
        let listed = self
            .app
            .directory
            .list_as(self.id, greeted.peer, line, who, None, length);
        let hello = hello(listed.entry().key());
        let telling = async { greeted.packets.write(&hello).await.map_err(LoginError::Io) };
        if let Err(denied) = self.in_time(telling).await {
            return Err((greeted, denied));
        }
        let logins = &self.app.metrics.console_logins;
        logins.fetch_add(1, Ordering::Relaxed);
        self.app.console.logged_in();
        if self.world.config.log.connections && !self.app.logs_as_pgbouncer() {
            let who = listed.entry().who();
            tracing::info!(
                id = listed.entry().id(), user = who.user, database = who.database, peer = %greeted.peer, ?standing,
                "login to the console"
            );
        }
        let process: Arc<dyn Process> = Arc::clone(self.app) as _;
        Ok(Console::new(
            greeted.packets,
            process,
            listed,
            standing,
            seat,
        ))
    }
}

/// Whether the client is the user that this process runs as, and asks for the console under one of its names.
fn is_owner(stream: &Stream, startup: &Startup) -> bool {
    is_console(&startup.user)
        && stream
            .peer_user()
            .is_some_and(|user| user == rustix::process::geteuid().as_raw())
}

/// Whether it came from this machine.
fn is_local(peer: Peer) -> bool {
    peer.ip()
        .is_none_or(|address| address.to_canonical().is_loopback())
}

impl Process for App {
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.world().config)
    }

    fn settings_of_pgbouncer(&self) -> Vec<Setting> {
        self.world().theirs.clone()
    }

    fn directory(&self) -> &Directory {
        &self.directory
    }

    fn clients(&self) -> &Quota {
        &self.clients
    }

    fn users(&self) -> Vec<String> {
        let world = self.world();
        let listed = world.config.users.keys().map(String::as_str);
        listed
            .chain(world.credentials.names())
            .map(str::to_owned)
            .collect()
    }

    fn pools(&self) -> &Pools {
        &self.pools
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn names(&self) -> Vec<NameRow> {
        names().rows()
    }

    fn zones(&self) -> Vec<ZoneRow> {
        names().zone_rows()
    }

    fn peers(&self) -> Vec<PeerRow> {
        self.peers.rows()
    }

    fn own(&self) -> &Own {
        &self.console
    }

    fn state(&self) -> State {
        match self.pools.gate() {
            Gate::Open => State::Active,
            Gate::Suspended => State::Suspended,
            Gate::Paused => State::Paused,
        }
    }

    fn find(&self, database: Option<&str>) -> Result<(), ActError> {
        self.find(database)
    }

    fn pause(&self, database: Option<&str>) -> Result<Shutting, ActError> {
        self.pause(database)
    }

    fn suspend(&self) -> Result<Shutting, ActError> {
        self.suspend()
    }

    fn resume(&self, database: Option<&str>) -> Result<(), ActError> {
        self.resume(database)
    }

    fn disable(&self, database: &str, disabled: bool) -> Result<(), ActError> {
        self.disable(database, disabled)
    }

    fn reconnect(&self, database: Option<&str>) -> Result<(), ActError> {
        self.reconnect(database)
    }

    fn kill(&self, database: Option<&str>) -> Result<Shutting, ActError> {
        self.kill(database)
    }

    fn kill_client(&self, id: u32) -> Result<(), ActError> {
        self.kill_client(id)
    }

    fn shut_down(&self, how: Shutdown) -> bool {
        let command = match how {
            Shutdown::WaitForClients => "SHUTDOWN WAIT_FOR_CLIENTS",
            Shutdown::WaitForServers => "SHUTDOWN WAIT_FOR_SERVERS",
            Shutdown::Immediate | Shutdown::Drain => "SHUTDOWN",
        };
        self.issued(command, None, "told to end");
        self.shut_down(how)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), ActError> {
        self.set(name, value)
    }

    fn reload(&self) -> Result<(), ActError> {
        self.issued("RELOAD", None, "told to read the configuration again");
        self.reload().map_err(|error| {
            self.tell_not_reloaded(&error);
            ActError::Reload(error.to_string())
        })
    }

    fn deployments(&self) -> Vec<DeploymentRow> {
        self.deployment_rows()
    }

    fn reaped(&self) -> &ReapedLog {
        &self.reaping.log
    }

    fn promote(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        self.promote_deployment(service, deployment)
    }

    fn supersede(&self, service: &str, deployment: &str) -> Result<(), Unknown> {
        self.supersede_deployment(service, deployment)
    }

    fn backends(&self) -> Vec<(String, Whose, Backend)> {
        let grounds = self.pools.grounds().into_iter();
        let readings = grounds.filter_map(|ground| self.watch.reading(ground.id));
        let of_one = |reading: Arc<Reading>| {
            let backends = reading.backends.iter();
            let named =
                backends.map(|(whose, backend)| (reading.name.clone(), *whose, backend.clone()));
            named.collect::<Vec<_>>()
        };
        readings.flat_map(of_one).collect()
    }

    fn alerts(&self) -> Vec<(i64, Measured)> {
        let raised = self.watch.alerts();
        let alerts = raised.iter();
        alerts
            .map(|raised| (raised.since, raised.alert.measured.clone()))
            .collect()
    }

    fn incidents(&self) -> Arc<[Summary]> {
        self.watch.incidents()
    }

    fn incident(&self, number: u64) -> Result<Incident, String> {
        self.watch
            .incident(number)
            .map_err(|error| error.to_string())
    }

    fn kill_stale(&self, service: Option<&str>) -> usize {
        self.close_stale(service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_its_loopback_and_its_unix_sockets() {
        let tcp = |address: &str| Peer::Tcp(address.parse().unwrap());
        for (peer, expected) in [
            (Peer::Unix(None), true),
            (tcp("127.0.0.1:1"), true),
            (tcp("127.9.9.9:1"), true),
            (tcp("[::1]:1"), true),
            (tcp("[::ffff:127.0.0.1]:1"), true),
            (tcp("10.0.0.1:1"), false),
            (tcp("[::ffff:10.0.0.1]:1"), false),
        ] {
            assert_eq!(is_local(peer), expected, "{peer}");
        }
    }
}
