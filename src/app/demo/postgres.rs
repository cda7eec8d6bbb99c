//! The throw-away Postgres, and the one connection that sets it up and counts who is connected.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::DemoError;
use super::child::{Child, Ending};
use super::find::{Programs, User, is_for_another_postgres};
use super::place::Place;
use super::services::{Login, MAX_CONNECTIONS, SERVICES, password};
use crate::config::checked::{Host, Secret, Tcp};
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::server::login::{Identity, LoginError, ServerLogin, ask, login};
use crate::wire::reply::SqlState;

/// The superuser of the throw-away Postgres.
const SUPERUSER: &str = "postgres";

/// How long a program may take to accept connections.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How often a starting program, or the last of a crowd, is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long Postgres may take to notice that its clients have left.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// Fast shutdown, then immediate shutdown, which Postgres itself limits to five seconds (manual, "Shutting Down the Server").
const ENDING: Ending = &[
    (Signal::INT, Duration::from_secs(5)),
    (Signal::QUIT, Duration::from_secs(10)),
];

/// initdb cleans up and ends its own children.
const INITDB_ENDING: Ending = &[(Signal::TERM, Duration::from_secs(5))];

/// Another program may take the port between our looking for it and Postgres' listening on it.
const TRIES: usize = 3;

/// A running Postgres with no databases of its own yet.
pub(super) struct Postgres {
    /// Dropped first: ends before its directory goes.
    _child: Child,
    port: u16,
    password: Secret,
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub(super) async fn start(programs: &Programs, place: &Place) -> Result<Self, DemoError> {
        let password = password();
        let data = place.directory_for_postgres("data")?;
        let secret = place.file_for_postgres("password", password.expose())?;
        let mut initdb = as_user(&programs.initdb, place.user());
        initdb
            .arg("--pgdata")
            .arg(&data)
            .arg("--pwfile")
            .arg(&secret)
            .args(["--username", SUPERUSER, "--auth=scram-sha-256"])
            .args(["--no-sync", "--no-locale", "--encoding=UTF8"]);
        Child::start("initdb", initdb, place, INITDB_ENDING)?
            .finish()
            .await?;

        let mut tries = TRIES;
        loop {
            tries -= 1;
            let port = free_port()?;
            let mut postgres = as_user(&programs.postgres, place.user());
            postgres.arg("-D").arg(&data).args(settings(port));
            let mut child = Child::start("postgres", postgres, place, ENDING)?;
            let watch = async || Watch::connect(port, &password).await;
            match until_ready(&mut child, watch).await {
                Ok(_connected) => {
                    return Ok(Self {
                        _child: child,
                        port,
                        password,
                    });
                }
                Err(DemoError::Ended { .. }) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A connection of the superuser's, for whom Postgres keeps some back.
    pub(super) async fn watch(&self) -> Result<Watch, DemoError> {
        Ok(Watch::connect(self.port, &self.password).await?)
    }
}

/// A Postgres that is about to be thrown away need not survive a crash. It has no unix socket, whose path might be too long.
fn settings(port: u16) -> Vec<String> {
    [
        format!("port={port}"),
        format!("max_connections={MAX_CONNECTIONS}"),
        "listen_addresses=127.0.0.1".into(),
        "unix_socket_directories=".into(),
        "password_encryption=scram-sha-256".into(),
        "fsync=off".into(),
        "synchronous_commit=off".into(),
        "full_page_writes=off".into(),
        "autovacuum=off".into(),
    ]
    .into_iter()
    .flat_map(|setting| ["-c".to_owned(), setting])
    .collect()
}

/// One of Postgres' programs, as the user who may run it.
fn as_user(program: &std::path::Path, user: Option<User>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_for_another_postgres(name)) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
    command
}

/// A port of 127.0.0.1 that nobody listens on at this moment.
pub(super) fn free_port() -> Result<u16, DemoError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(DemoError::system("find a free port"))
}

/// Tries to connect until it succeeds, as long as the program runs.
pub(super) async fn until_ready<T>(
    child: &mut Child,
    connect: impl AsyncFn() -> Result<T, LoginError>,
) -> Result<T, DemoError> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        child.must_run()?;
        let why = match timeout(START_LIMIT, connect()).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(DemoError::NotReady {
                program: child.program(),
                limit: START_LIMIT,
                why,
            });
        }
        sleep(LOOK).await;
    }
}

/// Connects to `port` and logs in, as an application does.
pub(super) async fn connect(port: u16, identity: &Identity) -> Result<Packets<Stream>, LoginError> {
    let tcp = Tcp {
        keepalive_idle: Duration::from_secs(15),
        keepalive_interval: Duration::from_secs(5),
        keepalive_count: 3,
        user_timeout: None,
        keepalive: true,
        socket_buffer: 0,
    };
    let stream = Stream::connect(&Host::Tcp("127.0.0.1".to_owned(), port), &tcp).await?;
    let mut packets = Packets::new(stream);
    login(&mut packets, identity, None).await?;
    Ok(packets)
}

/// How many server connections each service has, in the order of [`SERVICES`], and all together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) services: [usize; SERVICES.len()],
    pub(super) total: usize,
}

impl Seen {
    /// Keeps the highest count each; not all of one moment.
    pub(super) fn raise(&mut self, now: &Self) {
        self.total = self.total.max(now.total);
        for (most, now) in self.services.iter_mut().zip(now.services) {
            *most = now.max(*most);
        }
    }
}

/// Everybody's sessions but our own. pgweir's monitor uses the role of a service, and is not one of its sessions.
const CENSUS: &str = "SELECT coalesce(string_agg(name || ' ' || n, ' '), '') FROM ( \
    SELECT CASE application_name WHEN 'pgweir monitor' THEN 'monitor' ELSE usename END AS name, count(*) AS n \
    FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1) AS everybody";

/// The connection that sets Postgres up and counts who is connected.
pub(super) struct Watch(Packets<Stream>);

impl Watch {
    async fn connect(port: u16, password: &Secret) -> Result<Self, LoginError> {
        let identity = Identity {
            user: SUPERUSER.to_owned(),
            database: "postgres".to_owned(),
            proof: ServerLogin::password(password),
            application_name: "pgweir demo".to_owned(),
            parameters: Vec::new(),
            minor: 0,
        };
        connect(port, &identity).await.map(Self)
    }

    /// Lets pgweir's monitor see what the services' sessions do, whichever of their roles it uses.
    pub(super) async fn let_them_look(&mut self, logins: &[Login]) -> Result<(), DemoError> {
        for Login { name, .. } in logins {
            ask(&mut self.0, &format!("GRANT pg_monitor TO {name}")).await?;
        }
        Ok(())
    }

    /// Makes role and database of each service.
    pub(super) async fn set_up(&mut self, logins: &[Login]) -> Result<(), DemoError> {
        for Login { name, password, .. } in logins {
            let password = password.expose();
            let role = format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'");
            ask(&mut self.0, &role).await?;
            ask(&mut self.0, &format!("CREATE DATABASE {name} OWNER {name}")).await?;
        }
        Ok(())
    }

    /// Who is connected now.
    pub(super) async fn census(&mut self) -> Result<Seen, DemoError> {
        let answer = ask(&mut self.0, CENSUS).await?.unwrap_or_default();
        Ok(seen(&answer))
    }

    /// Returns when everybody else has left.
    pub(super) async fn empty(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + LEAVE_LIMIT;
        loop {
            let Seen { total, .. } = self.census().await?;
            if total == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(DemoError::NotEmpty(total));
            }
            sleep(LOOK).await;
        }
    }
}

/// Reads the census: names and numbers in turn.
fn seen(answer: &str) -> Seen {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let counts: HashMap<&str, usize> = words
        .chunks_exact(2)
        .filter_map(|pair| Some((pair[0], pair[1].parse().ok()?)))
        .collect();
    Seen {
        services: std::array::from_fn(|index| {
            let name = SERVICES[index].name;
            counts.get(name).copied().unwrap_or_default()
        }),
        total: counts.values().sum(),
    }
}

/// Whether Postgres, or pgweir, had no room for a session.
pub(super) fn is_refusal(error: &LoginError) -> bool {
    matches!(error, LoginError::Refused(error) if error.code == SqlState::TOO_MANY_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_census_counts_strangers_in_the_total_only() {
        let seen = seen("bot 3 site 20 somebody 2");
        assert_eq!(seen.services, [20, 0, 3, 0]);
        assert_eq!(seen.total, 25);
        assert_eq!(super::seen(""), Seen::default());
    }
}
