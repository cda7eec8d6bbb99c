//! A PostgreSQL of one's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::certs::Authority;
use super::process::{Guarded, free_port, run, scratch};
use super::raw::{Raw, ServerError};
use super::wait::{PATIENCE, eventually};

/// The application_name of the fixtures' own connections, which no count includes.
pub const OWN: &str = "fixture";

/// How Postgres asks clients on TCP for proof. Its unix socket trusts everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Trust,
    Password,
    Md5,
    Scram,
}

impl Method {
    /// The word in pg_hba.conf and in pooler.toml.
    pub fn word(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::Scram => "scram-sha-256",
        }
    }
}

/// What a Postgres is like; see [`Postgres::setup`].
pub struct Setup {
    max_connections: u32,
    method: Method,
    settings: Vec<String>,
    hba: Vec<String>,
    /// Files to be copied into the data directory, where nobody else can read them.
    files: Vec<(PathBuf, &'static str)>,
    binaries: Binaries,
}

impl Setup {
    /// A major version of its own, out of those that `scripts/install-deps.sh` puts into `.postgres`.
    pub fn version(mut self, major: u32) -> Self {
        self.binaries = Binaries::Version(major);
        self
    }

    pub fn max_connections(mut self, count: u32) -> Self {
        self.max_connections = count;
        self
    }

    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// A setting, as on postgres' command line: `name=value`.
    pub fn setting(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// A line of pg_hba.conf, ahead of the method's own.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// TLS with this certificate, and client certificates of that authority.
    pub fn tls(self, authority: &Authority, certificate: &str) -> Self {
        self.tls_files(
            authority.ca(),
            authority.certificate(certificate),
            authority.key(certificate),
        )
    }

    /// The same from any files.
    pub fn tls_files(
        self,
        ca: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        let mut setup = self
            .setting("ssl=on")
            .setting("ssl_ca_file=root.crt")
            .setting("ssl_cert_file=server.crt")
            .setting("ssl_key_file=server.key");
        setup.files = vec![
            (ca.into(), "root.crt"),
            (certificate.into(), "server.crt"),
            (key.into(), "server.key"),
        ];
        setup
    }

    pub fn start(self) -> Postgres {
        let directory = scratch();
        let data = directory.path().join("data");
        run(Command::new("cp")
            .arg("-a")
            .arg(template(self.binaries))
            .arg(&data));
        if let Some(account) = account() {
            chown(directory.path(), Some(account.uid), Some(account.gid)).expect("root may chown");
        }
        let mut hba = String::from("local all all trust\n");
        for line in &self.hba {
            hba.push_str(line);
            hba.push('\n');
        }
        for address in ["127.0.0.1/32", "::1/128"] {
            hba.push_str("host all all ");
            hba.push_str(address);
            hba.push(' ');
            hba.push_str(self.method.word());
            hba.push('\n');
        }
        fs::write(data.join("pg_hba.conf"), hba).expect("the data directory can be written");
        for (from, name) in &self.files {
            fs::copy(from, data.join(name)).expect("the data directory can be written");
            if let Some(account) = account() {
                chown(data.join(name), Some(account.uid), Some(account.gid))
                    .expect("root may chown");
            }
            fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o600))
                .expect("root may chmod");
        }
        let mut postgres = Postgres {
            port: 0,
            setup: self,
            server: Mutex::new(None),
            directory,
        };
        postgres.start_on_a_free_port();
        postgres
    }
}

/// A running PostgreSQL, stopped and removed on drop.
pub struct Postgres {
    port: u16,
    setup: Setup,
    server: Mutex<Option<Guarded>>,
    directory: TempDir,
}

impl Postgres {
    /// One with `max_connections = 100` that trusts everybody.
    pub fn start() -> Self {
        Self::setup().start()
    }

    /// One to be described further.
    pub fn setup() -> Setup {
        Setup {
            max_connections: 100,
            method: Method::Trust,
            settings: Vec::new(),
            hba: Vec::new(),
            files: Vec::new(),
            binaries: Binaries::Usual,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of its unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// `psql` connected directly, as superuser, quiet and unaligned.
    pub fn psql(&self) -> Command {
        psql(self.port, "postgres", "postgres")
    }

    /// Rows of a query run directly, as superuser in the database `postgres`.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.sql_in("postgres", sql)
    }

    /// The same in another database.
    #[track_caller]
    pub fn sql_in(&self, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        let mut control = self
            .control(database)
            .unwrap_or_else(|error| panic!("cannot log in directly: {error}"));
        control
            .query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The one value that a query gives.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        let rows = self.sql(sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_default(),
            _ => panic!("{sql}: {} rows where one value was expected", rows.len()),
        }
    }

    /// A login role; its secret is kept in the form that the method wants.
    pub fn create_role(&self, name: &str, password: &str) {
        self.sql(&format!(
            "create role \"{name}\" login password '{password}'"
        ));
    }

    pub fn create_database(&self, name: &str) {
        self.sql(&format!("create database \"{name}\""));
    }

    /// The tables of pgbench, at scale 1, in the database `postgres`.
    pub fn fill_for_pgbench(&self) {
        run(program("pgbench")
            .args(["-i", "-s", "1", "-q", "-h", "127.0.0.1", "-U", "postgres"])
            .args(["-p", &self.port.to_string(), "postgres"])
            .stderr(Stdio::null()));
    }

    /// Client connections, less the fixtures' own.
    pub fn connections(&self) -> usize {
        self.count("true")
    }

    /// Client connections that run something or are inside a transaction.
    pub fn busy(&self) -> usize {
        self.count("state <> 'idle'")
    }

    fn count(&self, condition: &str) -> usize {
        let sql = format!(
            "select count(*) from pg_stat_activity where backend_type = 'client backend' \
             and application_name <> '{OWN}' and {condition}"
        );
        self.value(&sql).parse().expect("a count is a number")
    }

    /// Waits until no client connection runs anything or is inside a transaction.
    #[track_caller]
    pub fn await_all_idle(&self) {
        eventually("all server connections are idle again", || self.busy() == 0);
    }

    /// Ends every client connection but the caller's own.
    pub fn terminate_connections(&self) {
        self.sql(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' \
             and application_name <> '{OWN}'"
        ));
    }

    /// A connection of the fixture: superuser, over the unix socket, not counted.
    pub fn control(&self, database: &str) -> Result<Raw, ServerError> {
        let socket = self
            .directory
            .path()
            .join(format!(".s.PGSQL.{}", self.port));
        let mut raw = Raw::connect_unix(&socket)?;
        raw.log_in(
            &[
                ("user", "postgres"),
                ("database", database),
                ("application_name", OWN),
            ],
            None,
        )?;
        Ok(raw)
    }

    /// Fast shutdown: every client is told and disconnected.
    pub fn stop(&self) {
        self.end("INT");
    }

    /// Immediate shutdown: nobody is told anything.
    pub fn stop_immediate(&self) {
        self.end("QUIT");
    }

    /// Starts it again, on the port that it had.
    #[track_caller]
    pub fn start_again(&self) {
        let status = self.launch();
        assert!(
            status.is_none(),
            "Postgres did not start again: {}",
            self.log()
        );
    }

    pub fn restart_with(&mut self, max_connections: u32) {
        self.stop();
        self.setup.max_connections = max_connections;
        self.start_again();
    }

    /// The same as before.
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// What Postgres has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn end(&self, signal: &str) {
        if let Some(mut server) = self.server.lock().take()
            && server.ended().is_none()
        {
            server.signal(signal);
            server.await_end(PATIENCE);
        }
    }

    fn start_on_a_free_port(&mut self) {
        for _ in 0..10 {
            self.port = free_port();
            if self.launch().is_none() {
                return;
            }
        }
        panic!("Postgres does not start:\n{}", self.log());
    }

    /// Starts the server and waits until it can be used; gives the status when it ended instead.
    fn launch(&self) -> Option<ExitStatus> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("the directory can be written");
        let mut command = self.setup.binaries.program("postgres");
        command
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .args(["-p", &self.port.to_string()])
            .arg("-k")
            .arg(self.directory.path())
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args([
                "-c",
                &format!("max_connections={}", self.setup.max_connections),
            ])
            .stdout(log.try_clone().expect("files can be shared"))
            .stderr(log);
        let hashed = if self.setup.method == Method::Md5 {
            "md5"
        } else {
            "scram-sha-256"
        };
        command.args(["-c", &format!("password_encryption={hashed}")]);
        // Nothing here needs to survive a crash, and nothing should happen in the background.
        for setting in [
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "autovacuum=off",
            "shared_buffers=16MB",
            "max_parallel_workers=0",
            "jit=off",
            "timezone=UTC",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.setup.settings {
            command.args(["-c", setting]);
        }
        if let Some(account) = account() {
            command.uid(account.uid).gid(account.gid).current_dir("/");
        }
        let mut server = Guarded::spawn(&mut command, "QUIT", self.directory.path());
        let mut status = None;
        eventually("Postgres starts", || {
            status = server.ended();
            status.is_some() || self.control("postgres").is_ok()
        });
        if status.is_none() {
            *self.server.lock() = Some(server);
        }
        status
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(20).collect();
            eprintln!("--- last lines of Postgres' log, port {}", self.port);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        if let Some(mut server) = self.server.lock().take()
            && server.ended().is_none()
        {
            server.signal("QUIT");
            // No assertion: this may run during a panic. What does not end is killed when `server` is dropped.
            let start = std::time::Instant::now();
            while server.ended().is_none() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Whose `postgres` and `initdb` are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binaries {
    /// The newest of Debian's, or those in PATH.
    Usual,
    /// Those of a major version, which has no other programs than these.
    Version(u32),
}

impl Binaries {
    fn program(self, name: &str) -> Command {
        match self {
            Self::Usual => program(name),
            Self::Version(major) => {
                let path = version_directory(major).join("bin").join(name);
                assert!(
                    path.exists(),
                    "PostgreSQL {major} is not installed: run scripts/install-deps.sh (make test does)"
                );
                Command::new(path)
            }
        }
    }
}

/// Where a major version is installed: `bin`, `lib`, `share`.
pub fn version_directory(major: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".postgres")
        .join(major.to_string())
}

/// One of PostgreSQL's programs, from PATH or where Debian keeps them.
pub fn program(name: &str) -> Command {
    Command::new(program_path(name))
}

fn program_path(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("PGWEIR_TEST_PG_BIN") {
        return Path::new(&directory).join(name);
    }
    let mut directories: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    // The newest version first; names are numbers.
    directories.sort_by_key(|path| {
        let version = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|version| version.to_str());
        std::cmp::Reverse(version.and_then(|version| version.parse::<u32>().ok()))
    });
    directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// `psql` for a server on this machine: no start-up file, quiet, unaligned, tuples only, verbose errors, stops at the first.
pub fn psql(port: u16, user: &str, database: &str) -> Command {
    let mut command = program("psql");
    command
        .args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "VERBOSITY=verbose",
        ])
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            user,
            "-d",
            database,
        ])
        .env("PGCONNECT_TIMEOUT", "20");
    command
}

struct Account {
    uid: u32,
    gid: u32,
}

/// Who Postgres runs as when the tests run as root, which it refuses for itself.
fn account() -> Option<&'static Account> {
    static ACCOUNT: OnceLock<Option<Account>> = OnceLock::new();
    ACCOUNT
        .get_or_init(|| {
            let own = run(Command::new("id").arg("-u"));
            if own.trim() != "0" {
                return None;
            }
            let accounts = fs::read_to_string("/etc/passwd").expect("there is a passwd file");
            ["postgres", "nobody"].into_iter().find_map(|name| {
                let line = accounts
                    .lines()
                    .find(|line| line.split(':').next() == Some(name))?;
                let mut fields = line.split(':').skip(2);
                Some(Account {
                    uid: fields.next()?.parse().ok()?,
                    gid: fields.next()?.parse().ok()?,
                })
            })
        })
        .as_ref()
}

/// A fresh data directory to copy. It is made once and kept with the build: `initdb` takes longer than most tests.
fn template(binaries: Binaries) -> PathBuf {
    static TEMPLATES: Mutex<BTreeMap<Binaries, PathBuf>> = Mutex::new(BTreeMap::new());
    TEMPLATES
        .lock()
        .entry(binaries)
        .or_insert_with(|| make_template(binaries))
        .clone()
}

fn make_template(binaries: Binaries) -> PathBuf {
    let version = run(binaries.program("postgres").arg("--version"));
    let name: String = version
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let owner = account().map_or_else(String::new, |account| format!("-{}", account.uid));
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{name}{owner}"));
    if template.exists() {
        return template;
    }
    let directory = scratch();
    let data = directory.path().join("data");
    let mut initdb = binaries.program("initdb");
    initdb
        .arg("-D")
        .arg(&data)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .args(["--no-locale", "--no-sync", "--no-instructions"]);
    if let Some(account) = account() {
        chown(directory.path(), Some(account.uid), Some(account.gid)).expect("root may chown");
        initdb.uid(account.uid).gid(account.gid).current_dir("/");
    }
    run(&mut initdb);
    // Copied aside and renamed, so that a half-made one is never used; another test program may have been faster.
    let aside = template.with_extension(std::process::id().to_string());
    run(Command::new("cp").arg("-a").arg(&data).arg(&aside));
    if fs::rename(&aside, &template).is_err() {
        fs::remove_dir_all(&aside).expect("it has just been made");
    }
    template
}

/// Who psql says it is, or what it complained of.
pub fn outcome(command: &mut Command, password: &str) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .env("PGPASSWORD", password)
        .args(["-c", "select current_user"])
        .output()
        .expect("psql is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if status.success() {
        Ok(text(stdout))
    } else {
        Err(text(stderr))
    }
}
