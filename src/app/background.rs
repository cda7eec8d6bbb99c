//! The process before it serves: who it is, its pidfile, its place in the background.
//!
//! All of it happens while there is one thread, so that what is said of a thread is said of the process.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Pid, Uid, getuid, setsid, test_kill_process};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::config::checked::Process;
use crate::net::names;

/// Tells a process that it was started to go on in the background.
const IN_BACKGROUND: &str = "PGWEIR_IN_BACKGROUND";

/// How long a process in the background may take to write its pidfile.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked for.
const START_CHECK: Duration = Duration::from_millis(20);

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The user cannot be had.
    #[error("cannot become user {user}: {cause}")]
    User {
        /// Who.
        user: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is root and has been told of nobody else.
    #[error(
        "PgBouncer should not run as root, and pgweir in its place neither: give -u USER or user ="
    )]
    Root,
    /// The pidfile names a process that runs.
    #[error("pidfile {} exists, another instance is running as process {pid}", .path.display())]
    Running {
        /// The pidfile.
        path: PathBuf,
        /// The number in it.
        pid: i32,
    },
    /// The pidfile cannot be written.
    #[error("pidfile {}: {cause}", .path.display())]
    Pidfile {
        /// The pidfile.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is no pidfile.
    #[error("daemon needs pidfile configured")]
    NoPidfile,
    /// The process in the background ended, or did not begin.
    #[error("the process in the background did not start; see its log")]
    Background,
    /// Something else that the system refused.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Becomes the user that is configured. Nothing happens if that is who it is.
pub fn become_user(process: &Process) -> Result<(), ProcessError> {
    let Some(user) = &process.user else {
        return Ok(());
    };
    let failed = |cause| ProcessError::User {
        user: user.clone(),
        cause,
    };
    let account = names::user(user).map_err(failed)?;
    if getuid().as_raw() == account.user {
        return Ok(());
    }
    let group = Gid::from_raw(account.group);
    let others = account.groups.iter().map(|group| Gid::from_raw(*group));
    let groups: Vec<_> = others.chain([group]).collect();
    let own = Uid::from_raw(account.user);
    let change = || -> rustix::io::Result<()> {
        set_thread_groups(&groups)?;
        set_thread_res_gid(group, group, group)?;
        // Last: afterwards there is no right to the others.
        set_thread_res_uid(own, own, own)
    };
    change().map_err(|error| failed(error.into()))
}

/// As PgBouncer, whose files are often those of whoever may write them.
pub fn refuse_root() -> Result<(), ProcessError> {
    if getuid().is_root() {
        Err(ProcessError::Root)
    } else {
        Ok(())
    }
}

/// Whether this process goes on in the background.
pub fn is_in_background() -> bool {
    std::env::var_os(IN_BACKGROUND).is_some()
}

/// Starts the program once more, with its own arguments, in the background, and waits until that has written its pidfile.
///
/// `reboots`: the file may name another that runs.
pub fn start_in_background(process: &Process, reboots: bool) -> Result<(), ProcessError> {
    let path = process.pidfile.as_ref().ok_or(ProcessError::NoPidfile)?;
    if !reboots {
        check_pidfile(path)?;
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(IN_BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let own = i32::try_from(child.id()).ok();
    let start = Instant::now();
    while start.elapsed() < START_LIMIT {
        if own.is_some() && pid_in(path) == own {
            return Ok(());
        }
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(START_CHECK);
    }
    Err(ProcessError::Background)
}

/// Leaves the terminal.
pub fn detach() {
    // A process that leads its session already has none to leave.
    let _ = setsid();
}

/// A pidfile, which is removed when this is dropped.
#[derive(Debug)]
pub struct Pidfile(PathBuf);

impl Pidfile {
    /// Writes the number of this process, unless another one runs that wrote its own. One that has ended is passed over.
    pub fn write(path: &Path) -> Result<Self, ProcessError> {
        check_pidfile(path)?;
        Self::create(path).map_err(Self::failed(path))
    }

    /// Writes it in the place of another process, which leaves it alone from then on.
    pub fn take_over(path: &Path) -> Result<Self, ProcessError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let create = || {
            // At no moment is there none.
            let written = Self::create(Path::new(&beside))?;
            fs::rename(&written.0, path)?;
            Ok(Self(path.to_owned()))
        };
        create().map_err(Self::failed(path))
    }

    fn failed(path: &Path) -> impl FnOnce(io::Error) -> ProcessError {
        move |cause| ProcessError::Pidfile {
            path: path.to_owned(),
            cause,
        }
    }

    fn create(path: &Path) -> io::Result<Self> {
        let options = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .clone();
        let mut file = options.open(path)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Another process may have taken over, and have written its own.
        if pid_in(&self.0) == i32::try_from(std::process::id()).ok() {
            // It may be gone already; nobody is left to tell.
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Refuses if the process in it runs; removes it if that has ended.
fn check_pidfile(path: &Path) -> Result<(), ProcessError> {
    if !path.exists() {
        return Ok(());
    }
    match pid_in(path) {
        Some(pid) if runs(pid) => Err(ProcessError::Running {
            path: path.to_owned(),
            pid,
        }),
        _ => fs::remove_file(path).map_err(|cause| ProcessError::Pidfile {
            path: path.to_owned(),
            cause,
        }),
    }
}

fn pid_in(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn runs(pid: i32) -> bool {
    let is_own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
    if pid <= 0 || is_own {
        return false;
    }
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    // Not being allowed to ask says that it is there.
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfile_lasts_as_long_as_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(pid_in(&path), i32::try_from(std::process::id()).ok());
        drop(pidfile);
        assert!(!path.exists());

        // Process 1 always runs; no process has this number.
        fs::write(&path, "1\n").unwrap();
        assert!(matches!(
            Pidfile::write(&path),
            Err(ProcessError::Running { pid: 1, .. })
        ));
        for stale in ["2147483647\n", "", "junk", "-5"] {
            fs::write(&path, stale).unwrap();
            drop(Pidfile::write(&path).unwrap());
        }
    }

    #[test]
    fn nobody_unknown_is_become() {
        let process = |user: &str| Process {
            pidfile: None,
            user: Some(user.to_owned()),
            peer_id: 0,
            resolv_conf: None,
        };
        let error = become_user(&process("no such user")).unwrap_err();
        assert!(error.to_string().contains("no such user"), "{error}");
        let own = getuid().as_raw().to_string();
        become_user(&process(&own)).unwrap();
    }
}
