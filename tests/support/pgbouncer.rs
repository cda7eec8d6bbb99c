//! Programs that start from a pgbouncer.ini: PgBouncer in two versions, and pgweir.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use super::pooler::program;
use super::postgres;
use super::process::{Guarded, free_port, run, scratch};
use super::wait::eventually;

/// Who is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Debian 12's.
    PgBouncer118,
    /// Debian 13's, with its own libraries.
    PgBouncer124,
    Pgweir,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::PgBouncer118 => "PgBouncer 1.18",
            Self::PgBouncer124 => "PgBouncer 1.24",
            Self::Pgweir => "pgweir",
        }
    }

    fn command(self) -> Command {
        match self {
            Self::PgBouncer118 => Command::new("/usr/sbin/pgbouncer"),
            Self::PgBouncer124 => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".pgbouncer/1.24");
                let libraries = root.join("usr/lib/x86_64-linux-gnu");
                let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
                command
                    .arg("--library-path")
                    .arg(&libraries)
                    .arg(root.join("usr/sbin/pgbouncer"));
                command
            }
            Self::Pgweir => Command::new(program()),
        }
    }
}

/// See [`Place::fill`].
const LISTEN: &str = "\
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {dir}
logfile = {dir}/log";

/// A directory with a pgbouncer.ini and what belongs to it.
pub struct Place {
    pub directory: TempDir,
    pub port: u16,
}

impl Place {
    pub fn new() -> Self {
        let directory = scratch();
        // Whoever the program becomes has to read and write there.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))
            .expect("the directory is ours");
        Self {
            directory,
            port: free_port(),
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A text in which `{port}`, `{postgres}` and `{dir}` stand for the ports and the directory, and `{listen}` for the lines by which a
    /// pooler listens here and writes its log.
    pub fn fill(&self, text: &str, postgres: u16) -> String {
        text.replace("{listen}", LISTEN)
            .replace("{port}", &self.port.to_string())
            .replace("{postgres}", &postgres.to_string())
            .replace("{dir}", &self.path().display().to_string())
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("the directory is ours");
    }

    pub fn append(&self, name: &str, text: &str) {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(self.path().join(name))
            .expect("it is there");
        file.write_all(text.as_bytes())
            .expect("the directory is ours");
    }

    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts the program on `pgbouncer.ini`, which has to make it listen on the port and write `log`.
    pub fn start(self, kind: Kind) -> Running {
        let command = kind.command();
        self.start_as(kind, command)
    }

    /// The same in a mount namespace of its own, in which a command has been run; `{dir}` in it is the directory.
    pub fn start_in(self, kind: Kind, mount: &str) -> Running {
        let program = kind.command();
        let mount = mount.replace("{dir}", &self.path().display().to_string());
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-c",
                &format!("{mount} && exec \"$@\""),
                "sh",
            ])
            .arg(program.get_program())
            .args(program.get_args());
        self.start_as(kind, command)
    }

    fn start_as(self, kind: Kind, mut command: Command) -> Running {
        command.args(self.arguments());
        let errors = fs::File::create(self.path().join("stderr")).expect("the directory is ours");
        let output = errors.try_clone().expect("files can be shared");
        command.stderr(errors).stdout(output).current_dir("/");
        let mut process = Guarded::spawn(&mut command, "KILL", self.path());
        eventually("the pooler listens", || {
            if let Some(status) = process.ended() {
                panic!(
                    "{} ended with {status}:\n{}",
                    kind.name(),
                    self.read("stderr")
                );
            }
            // No connection is made to find out: it would count as a client for a moment.
            // Sockets are made one by one, and a unix socket gets its mode after its line.
            self.read("log").contains("process up")
        });
        Running {
            kind,
            place: self,
            process,
        }
    }

    /// Runs the program to its end, and gives its status and what it said. `None`: it serves.
    pub fn attempt(&self, kind: Kind, arguments: &[String]) -> (Option<i32>, String) {
        let errors = fs::File::create(self.path().join("stderr")).expect("the directory is ours");
        let output = errors.try_clone().expect("files can be shared");
        let mut command = kind.command();
        command.args(arguments).stderr(errors).stdout(output);
        let mut process = Guarded::spawn(command.current_dir("/"), "KILL", self.path());
        let mut status = None;
        eventually("it ends or serves", || {
            status = process.ended();
            let log = self.read("log") + &self.read("stderr");
            status.is_some() || log.contains("process up")
        });
        let code = status.and_then(|status| status.code());
        (code, self.read("stderr"))
    }

    /// What it takes to start on `pgbouncer.ini`.
    pub fn arguments(&self) -> Vec<String> {
        let own = run(Command::new("id").arg("-u"));
        let mut arguments = Vec::new();
        if own.trim() == "0" {
            arguments.extend(["-u".to_owned(), "nobody".to_owned()]);
        }
        arguments.push(self.path().join("pgbouncer.ini").display().to_string());
        arguments
    }
}

/// A running one; killed and removed on drop.
pub struct Running {
    pub kind: Kind,
    pub place: Place,
    process: Guarded,
}

impl Running {
    pub fn port(&self) -> u16 {
        self.place.port
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn await_end(&mut self, limit: Duration) -> ExitStatus {
        self.process.await_end(limit)
    }

    pub fn socket(&self) -> PathBuf {
        self.place
            .path()
            .join(format!(".s.PGSQL.{}", self.place.port))
    }
}

/// Twenty clients of pgbench, as alice over TLS, with prepared statements: all they ask is answered.
#[track_caller]
pub fn alice_runs_pgbench(directory: &Path, port: u16) {
    let script = directory.join("script");
    fs::write(&script, "\\set x random(1, 9)\nselect :x + 1;\n").expect("the directory is ours");
    let said = run(postgres::program("pgbench")
        .args(["-n", "-M", "prepared", "-c", "20", "-t", "20"])
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "alice"])
        .arg("-f")
        .arg(script)
        .arg("shop")
        .env("PGPASSWORD", "wonder")
        .env("PGSSLMODE", "require"));
    assert!(said.contains("400/400"), "{said}");
}
