//! What an operator does with the process on the console.

use super::console::is_console;
use super::phase::{Phase, is_client};
use super::serve::App;
use crate::admin::process::{ActError, Shutdown};
use crate::client::directory::Ask;
use crate::pool::pools::{Shutting, SteerError};

impl App {
    /// Begins to pause a database, or all.
    pub fn pause(&self, database: Option<&str>) -> Result<Shutting, ActError> {
        self.find(database)?;
        let shutting = self.pools.pause(database)?;
        self.issued("PAUSE", database, "paused");
        Ok(shutting)
    }

    /// Begins to suspend everything.
    pub fn suspend(&self) -> Result<Shutting, ActError> {
        let shutting = self.pools.suspend()?;
        self.issued("SUSPEND", None, "suspended");
        Ok(shutting)
    }

    /// Undoes what was paused, suspended or killed.
    pub fn resume(&self, database: Option<&str>) -> Result<(), ActError> {
        if self.is_draining() {
            return Err(ActError::ShuttingDown);
        }
        self.find(database)?;
        self.pools.resume(database)?;
        self.issued("RESUME", database, "resumed");
        Ok(())
    }

    /// Refuses new clients of a database, or lets them in again.
    pub fn disable(&self, database: &str, disabled: bool) -> Result<(), ActError> {
        self.find(Some(database))?;
        self.pools.disable(database, disabled);
        let (command, what) = if disabled {
            ("DISABLE", "disabled")
        } else {
            ("ENABLE", "enabled")
        };
        self.issued(command, Some(database), what);
        Ok(())
    }

    /// Has the server connections of a database, or of all, replaced as they come free.
    pub fn reconnect(&self, database: Option<&str>) -> Result<(), ActError> {
        self.find(database)?;
        self.pools.reconnect(database);
        self.issued(
            "RECONNECT",
            database,
            "server connections are being replaced",
        );
        Ok(())
    }

    /// Drops every client of a database, or of all, and leaves it paused. Their server connections are brought back to order, which
    /// cancels what they run, and closed.
    pub fn kill(&self, database: Option<&str>) -> Result<Shutting, ActError> {
        self.find(database)?;
        let killing = match self.pools.pause(database) {
            Err(SteerError::AlreadyShut) => self.pools.pause_for_good(),
            begun => begun?.for_good(),
        };
        // PgBouncer removes one that is named.
        let ask = match database {
            Some(_) if self.source.is_ini() => Ask::Remove,
            _ => Ask::Leave,
        };
        self.directory.ask_those(ask, |who| {
            is_client(who) && database.is_none_or(|name| who.database == name)
        });
        self.issued("KILL", database, "killed");
        Ok(killing)
    }

    /// Drops one client, by the number that `SHOW CLIENTS` gives it.
    pub fn kill_client(&self, id: u32) -> Result<(), ActError> {
        let entry = self.directory.by_id(id).ok_or(ActError::NoClient)?;
        entry.ask(Ask::Leave);
        tracing::info!(id, "client killed");
        Ok(())
    }

    /// Says what a command of the console has begun.
    pub(super) fn issued(&self, command: &str, database: Option<&str>, what: &str) {
        let said = self.world().config.log.issued(command, database);
        tracing::info!(said, database, "{what}");
    }

    /// Begins to end the process. False if it is ending as fast already.
    pub fn shut_down(&self, how: Shutdown) -> bool {
        self.phases.go_on_to(match how {
            Shutdown::Immediate => Phase::Ended,
            Shutdown::WaitForServers => Phase::WaitingForServers,
            Shutdown::WaitForClients => Phase::WaitingForClients,
            Shutdown::Drain => Phase::Draining,
        })
    }

    /// Changes a setting until the configuration is read again.
    pub fn set(&self, name: &str, value: &str) -> Result<(), ActError> {
        let _one_at_a_time = self.reloading.lock();
        let old = self.world();
        let new = self.source.set(&old, name, value).map_err(ActError::Set)?;
        self.put_in_force(&old, new);
        Ok(())
    }

    /// How many sessions there are, those on the console apart, and of those who are let in still how many are on their way.
    pub fn clients_left(&self) -> usize {
        let arriving = if self.lets_in() {
            self.arriving.taken() as usize
        } else {
            0
        };
        arriving + self.directory.count_those(is_client)
    }

    /// Whether a database may be named in a command.
    pub fn find(&self, database: Option<&str>) -> Result<(), ActError> {
        let Some(name) = database else {
            return Ok(());
        };
        if is_console(name) {
            return Err(ActError::Console(name.to_owned()));
        }
        match self.world().database(name) {
            Some(_) => Ok(()),
            None => Err(ActError::NoDatabase(name.to_owned())),
        }
    }
}
