//! A running pgweir.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::postgres::{Postgres, psql};
use super::process::{Guarded, cpu_time, free_port, resident, scratch};
use super::wait::{PATIENCE, eventually, until};

/// Who pgweir knows when a test does not say otherwise; nobody has a password.
const USERS: &str = "\"postgres\" \"\"\n\"alice\" \"\"\n\"bob\" \"\"\n";

/// A running pgweir; killed and removed on drop. When a test panics, the end of its log is printed.
pub struct Pooler {
    port: u16,
    http: u16,
    postgres_port: u16,
    process: Guarded,
    directory: TempDir,
}

/// A pgweir that ended instead of serving.
#[derive(Debug)]
pub struct Refused {
    pub status: ExitStatus,
    pub log: String,
}

impl Pooler {
    /// Starts `pgweir serve FILE`. In the text, `{port}`, `{http}`, `{postgres}`, `{dir}` stand for pgweir's ports, the
    /// port of Postgres and the temporary directory (where `{dir}/users.txt` is); see [`Pooler::complete`] for the tables
    /// that may be left out.
    #[track_caller]
    pub fn serve(postgres: &Postgres, toml: &str) -> Self {
        Self::must_serve(postgres.port(), toml, USERS)
    }

    /// The same, with a users file of the test's own.
    #[track_caller]
    pub fn serve_with_users(postgres: &Postgres, toml: &str, users: &str) -> Self {
        Self::must_serve(postgres.port(), toml, users)
    }

    /// The same, with its server connections going to any port: to a [`Proxy`](super::Proxy), for instance.
    #[track_caller]
    pub fn serve_port(postgres_port: u16, toml: &str) -> Self {
        Self::must_serve(postgres_port, toml, USERS)
    }

    /// Both.
    #[track_caller]
    pub fn serve_with_users_at(postgres_port: u16, toml: &str, users: &str) -> Self {
        Self::must_serve(postgres_port, toml, users)
    }

    /// The same, with variables in its environment.
    #[track_caller]
    pub fn serve_with_environment(
        postgres: &Postgres,
        toml: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::must_serve_with(postgres.port(), toml, USERS, environment)
    }

    #[track_caller]
    fn must_serve(postgres_port: u16, toml: &str, users: &str) -> Self {
        Self::must_serve_with(postgres_port, toml, users, &[])
    }

    #[track_caller]
    fn must_serve_with(
        postgres_port: u16,
        toml: &str,
        users: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        for _ in 0..10 {
            match Self::try_serve_with(postgres_port, toml, users, environment) {
                Ok(pooler) => return pooler,
                Err(refused) if refused.log.contains("in use") => {}
                Err(refused) => panic!("pgweir ended with {}:\n{}", refused.status, refused.log),
            }
        }
        panic!("no free port in ten attempts");
    }

    /// The same, for configurations that pgweir should refuse.
    pub fn try_serve(postgres_port: u16, toml: &str, users: &str) -> Result<Self, Refused> {
        Self::try_serve_with(postgres_port, toml, users, &[])
    }

    fn try_serve_with(
        postgres_port: u16,
        toml: &str,
        users: &str,
        environment: &[(&str, &str)],
    ) -> Result<Self, Refused> {
        let directory = scratch();
        let (port, http) = two_ports();
        let text = Self::complete(toml, port, http, postgres_port, directory.path());
        let file = directory.path().join("pooler.toml");
        fs::write(directory.path().join("users.txt"), users).expect("the directory is ours");
        fs::write(&file, text).expect("the directory is ours");
        let arguments = ["serve".to_owned(), file.display().to_string()];
        Self::launch(
            &arguments,
            environment,
            port,
            http,
            postgres_port,
            directory,
        )
    }

    /// Starts `pgweir serve --to URL --listen ADDRESS`, without a file.
    #[track_caller]
    pub fn serve_to(url: &str) -> Self {
        let port = free_port();
        let arguments = [
            "serve",
            "--to",
            url,
            "--listen",
            &format!("127.0.0.1:{port}"),
        ]
        .map(str::to_owned);
        Self::launch(&arguments, &[], port, 0, 0, scratch()).unwrap_or_else(|refused| {
            panic!("pgweir ended with {}:\n{}", refused.status, refused.log)
        })
    }

    /// Fills the placeholders in, and adds tables that the text leaves out: `[listen]` and `[auth]` (trust, the users of
    /// `users.txt`), `[budget]` (without the monitor), and `[databases."*"]` for any database of the Postgres.
    fn complete(toml: &str, port: u16, http: u16, postgres: u16, directory: &Path) -> String {
        let mut text = toml.to_owned();
        for (table, lines) in [
            (
                "[listen]",
                "addresses = [\"127.0.0.1:{port}\"]\nhttp = \"127.0.0.1:{http}\"\n",
            ),
            (
                "[auth]",
                "method = \"trust\"\nusers_file = \"{dir}/users.txt\"\n",
            ),
            ("[budget]", "max_servers = 90\ncheck_every = 0\n"),
            ("[databases", "url = \"postgres://127.0.0.1:{postgres}\"\n"),
        ] {
            if !toml.contains(table) {
                let table = if table == "[databases" {
                    "[databases.\"*\"]"
                } else {
                    table
                };
                text = format!("{text}\n{table}\n{lines}");
            }
        }
        text.replace("{port}", &port.to_string())
            .replace("{http}", &http.to_string())
            .replace("{postgres}", &postgres.to_string())
            .replace("{dir}", &directory.display().to_string())
    }

    fn launch(
        arguments: &[String],
        environment: &[(&str, &str)],
        port: u16,
        http: u16,
        postgres_port: u16,
        directory: TempDir,
    ) -> Result<Self, Refused> {
        let log_path = directory.path().join("log");
        let log = fs::File::create(&log_path).expect("the directory is ours");
        let mut command = Command::new(program());
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(directory.path())
            .stdout(log.try_clone().expect("files can be shared"))
            .stderr(log);
        let mut pooler = Self {
            port,
            http,
            postgres_port,
            process: Guarded::spawn(&mut command, "KILL", directory.path()),
            directory,
        };
        let mut ended = None;
        eventually("pgweir listens", || {
            ended = pooler.process.ended();
            ended.is_some() || pooler.listens()
        });
        // Somebody else may be listening there.
        match ended.or_else(|| pooler.process.ended()) {
            Some(status) => Err(Refused {
                status,
                log: pooler.log(),
            }),
            None => Ok(pooler),
        }
    }

    /// Does anybody accept connections on its port?
    pub fn listens(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of `/metrics`, `/healthz` and the status page.
    pub fn http_port(&self) -> u16 {
        self.http
    }

    /// Its temporary directory, with `pooler.toml`, `users.txt` and `log`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// `psql` connected through pgweir.
    pub fn psql(&self, user: &str, database: &str) -> Command {
        psql(self.port, user, database)
    }

    /// Replaces the users file; a [`reload`](Self::reload) makes it count.
    pub fn write_users(&self, text: &str) {
        fs::write(self.directory.path().join("users.txt"), text).expect("the directory is ours");
    }

    /// Replaces the configuration file, with the same placeholders and omissions as at the start.
    pub fn rewrite(&self, toml: &str) {
        let text = Self::complete(
            toml,
            self.port,
            self.http,
            self.postgres_port,
            self.directory.path(),
        );
        fs::write(self.directory.path().join("pooler.toml"), text).expect("the directory is ours");
    }

    /// SIGHUP. What follows from it can be awaited in the log or in behaviour.
    pub fn reload(&self) {
        self.process.signal("HUP");
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// SIGTERM, and the end within `limit`.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.process.signal("TERM");
        self.process.await_end(limit)
    }

    /// Waits until it has ended on its own.
    #[track_caller]
    pub fn await_end(&mut self, limit: Duration) -> ExitStatus {
        self.process.await_end(limit)
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// CPU time used so far.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(self.id()).expect("it runs")
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        resident(self.id()).expect("it runs")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until a line of the log fits, and gives it.
    #[track_caller]
    pub fn await_log(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        until(what, PATIENCE, || {
            self.log()
                .lines()
                .find(|line| fits(line))
                .map(str::to_owned)
        })
    }

    /// GET on its HTTP port: status and body.
    #[track_caller]
    pub fn http(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.http_with(path, "");
        (status, body)
    }

    /// The same with more header lines, each with its line end: status, head and body.
    #[track_caller]
    pub fn http_with(&self, path: &str, lines: &str) -> (u16, String, String) {
        use std::io::{Read, Write};
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.http)).expect("HTTP is served");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a fresh socket");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Connection: close\r\n\r\n"
        )
        .expect("it reads the request");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("it answers in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a status");
        (status, head.to_owned(), body.to_owned())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- last lines of pgweir's log, port {}", self.port);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
            if let Some(status) = self.process.ended() {
                eprintln!("--- it had ended: {status}");
            }
        }
    }
}

/// The program under test; another build of it can be given by `PGWEIR_TEST_BIN`.
pub fn program() -> PathBuf {
    std::env::var_os("PGWEIR_TEST_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_pgweir")),
        PathBuf::from,
    )
}

/// `pgweir` with these arguments, run to its end: status and everything it said.
pub fn pgweir(arguments: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(program())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("pgweir has been built");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

fn two_ports() -> (u16, u16) {
    let first = free_port();
    let second = until("a second free port", PATIENCE, || {
        Some(free_port()).filter(|port| *port != first)
    });
    (first, second)
}
