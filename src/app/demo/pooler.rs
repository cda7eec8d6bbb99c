//! pgweir itself, as a process of its own.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::TcpStream;

use super::DemoError;
use super::child::{Child, Ending};
use super::place::Place;
use super::postgres::{free_port, until_ready};
use super::replay;
use super::services::{BUDGET, Login, SERVICES};

/// Drain, which is over at once where the clients have left. After Ctrl-C they have not, and nobody will end their transactions:
/// told twice, pgweir leaves at once.
const ENDING: Ending = &[
    (Signal::TERM, Duration::from_millis(500)),
    (Signal::TERM, Duration::from_secs(5)),
];

/// See [`Postgres`](super::postgres::Postgres): the port may be taken in between.
const TRIES: usize = 3;

/// A running pgweir.
pub(super) struct Pooler {
    child: Child,
    port: u16,
}

impl Pooler {
    /// Starts this very program with a configuration for the Postgres on that port. `incidents`: it records them there, raises an
    /// alert for the site, and closes what old deployments leave behind after seconds instead of minutes.
    pub(super) async fn start(
        place: &Place,
        postgres: u16,
        logins: &[Login],
        incidents: Option<&Path>,
    ) -> Result<Self, DemoError> {
        let program = std::env::current_exe().map_err(DemoError::system("find this program"))?;
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let port = free_port()?;
            let mut text = configuration(port, postgres, logins, incidents.is_some());
            if let Some(directory) = incidents {
                text.push_str(&recording(directory));
            }
            let file = place.file(&format!("pooler-{port}.toml"), &text)?;
            let mut command = Command::new(&program);
            command.arg("serve").arg(file).env_remove("RUST_LOG");
            let mut child = Child::start("pgweir", command, place, ENDING)?;
            // A connection that is closed without a word is no event to it.
            let knock = async || Ok(TcpStream::connect(("127.0.0.1", port)).await?);
            match until_ready(&mut child, knock).await {
                Ok(_knocked) => return Ok(Self { child, port }),
                Err(DemoError::Ended { .. }) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// An error if it has ended.
    pub(super) fn must_run(&mut self) -> Result<(), DemoError> {
        self.child.must_run()
    }

    /// The end of its log.
    pub(super) fn log(&self) -> Vec<String> {
        let lines = self.child.last_lines();
        lines.iter().map(|line| format!("pgweir: {line}")).collect()
    }
}

/// The pooler.toml of the demo.
fn configuration(port: u16, postgres: u16, logins: &[Login], alerts: bool) -> String {
    let mut text = format!(
        "[listen]\n\
         addresses = [\"127.0.0.1:{port}\"]\n\
         http = \"\"\n\
         [pool]\n\
         size = {BUDGET}\n\
         [budget]\n\
         max_servers = {BUDGET}\n\
         [log]\n\
         connections = false\n\
         disconnections = false\n\
         [databases.\"*\"]\n\
         url = \"postgres://127.0.0.1:{postgres}\"\n"
    );
    for (login, service) in logins.iter().zip(&SERVICES) {
        let (name, password) = (login.name, login.password.expose());
        write!(
            text,
            "[users.{name}]\n\
             password = \"{password}\"\n\
             [services.{name}]\n\
             match = {{ application_name = \"{name}@*\" }}\n\
             max_servers = {}\n",
            service.max_servers
        )
        .expect("a String takes everything");
        if alerts && name == "site" {
            writeln!(text, "alert_clients = {}", replay::ALERT).expect("a String takes everything");
        }
    }
    text
}

/// What makes an incident short enough to be watched.
fn recording(directory: &Path) -> String {
    format!(
        "[services.\"*\".deployments]\n\
         promote_after = \"500ms\"\n\
         stale_grace = \"2s\"\n\
         stale_idle = \"500ms\"\n\
         stale_idle_transaction = \"2s\"\n\
         close_per_second = 50\n\
         [incidents]\n\
         directory = '{}'\n\
         snapshot_every = \"1s\"\n",
        directory.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::demo::services::logins;
    use crate::config;
    use crate::config::checked::MaxServers;

    #[test]
    fn the_configuration_has_no_mistakes_and_names_every_service() {
        let text = configuration(6432, 5432, &logins(), false);
        let config = config::parse(&text, "pooler.toml", &|_| None).unwrap();
        assert_eq!(config.budget.max_servers, MaxServers::Exactly(BUDGET));
        assert_eq!(config.services.listed.len(), SERVICES.len());
        assert_eq!(config.users.len(), SERVICES.len());
        assert_eq!(config.listen.http, None);

        let mut text = configuration(6432, 5432, &logins(), true);
        text.push_str(&recording(Path::new("/a place/for \"incidents\"")));
        let config = config::parse(&text, "pooler.toml", &|_| None).unwrap();
        assert_eq!(
            config.incidents.directory.as_deref(),
            Some(Path::new("/a place/for \"incidents\""))
        );
        assert_eq!(
            config.services.listed[0].limits.alert_clients as usize,
            replay::ALERT
        );
    }
}
