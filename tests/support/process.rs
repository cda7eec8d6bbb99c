//! Child processes and temporary directories that never outlive the test program, however it ends.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::wait::until;

/// A child process with a guardian: a shell that waits for its standard input to end. When the test program dies without
/// running destructors (Ctrl-C, abort), the guardian ends the child and removes its directory.
pub struct Guarded {
    child: Child,
    guardian: Child,
}

impl Guarded {
    /// Starts `command`; `signal` is what ends it at once.
    pub fn spawn(command: &mut Command, signal: &str, directory: &Path) -> Self {
        Self::guard(command.stdin(Stdio::null()), signal, directory)
    }

    /// The same, with pipes to its standard input and from its standard output.
    pub fn spawn_piped(
        command: &mut Command,
        signal: &str,
        directory: &Path,
    ) -> (Self, ChildStdin, ChildStdout) {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guarded = Self::guard(command, signal, directory);
        let input = guarded.child.stdin.take().expect("it is piped");
        let output = guarded.child.stdout.take().expect("it is piped");
        (guarded, input, output)
    }

    fn guard(command: &mut Command, signal: &str, directory: &Path) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let guardian = Command::new("sh")
            .arg("-c")
            .arg("read -r word; if [ \"$word\" != done ]; then kill -s \"$2\" \"$1\"; sleep 1; rm -rf \"$3\"; fi")
            .arg("guardian")
            .arg(child.id().to_string())
            .arg(signal)
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        Self { child, guardian }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by name without SIG.
    pub fn signal(&self, name: &str) {
        send_signal(self.id(), name);
    }

    /// The status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits for the end; panics after `limit`.
    #[track_caller]
    pub fn await_end(&mut self, limit: Duration) -> ExitStatus {
        until("the process ends", limit, || self.ended())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(mut input) = self.guardian.stdin.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.guardian.wait();
    }
}

/// Sends a signal, by name without SIG, to one process.
pub fn send_signal(process: u32, name: &str) {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "kill"])
        .args([name, &process.to_string()])
        .stderr(Stdio::null())
        .status()
        .expect("there is a shell");
    assert!(status.success(), "cannot send {name} to process {process}");
}

/// Runs a command to its end and gives its standard output; panics with its errors when it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A new temporary directory, in memory where there is room.
pub fn scratch() -> TempDir {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        if available_kib(memory).is_some_and(|kib| kib > 3 << 20) {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        }
    });
    tempfile::Builder::new()
        .prefix("pgweir-test-")
        .tempdir_in(base)
        .expect("temporary directories can be made")
}

fn available_kib(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}

/// A port on which nobody listens, below the range from which the system takes the ports of outgoing connections. Somebody
/// else may take it before its user does: who starts a server on it tries again.
pub fn free_port() -> u16 {
    let random = RandomState::new();
    (0_u32..)
        .find_map(|attempt| {
            let mut hasher = random.build_hasher();
            hasher.write_u32(attempt);
            let port = u16::try_from(10_000 + hasher.finish() % 22_000).expect("below 32000");
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .is_ok()
                .then_some(port)
        })
        .expect("the search does not end before it has found one")
}

/// User and system CPU time of a process and all its threads, to the nanosecond where the kernel keeps it.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_cpu = text
            .split_whitespace()
            .next()
            .and_then(|field| field.parse().ok());
        total += Duration::from_nanos(on_cpu.unwrap_or(0));
    }
    Ok(total)
}

/// Resident bytes of a process.
pub fn resident(process: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("no VmRSS line"))
}
