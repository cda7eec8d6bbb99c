//! A program that ends with the value that stands for it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

use super::DemoError;
use super::place::Place;

/// How often an ending child is looked at. Nothing else is to be done meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// How much of a log is shown when its program ended without being asked.
const LAST_LINES: usize = 12;

/// How a program is asked to end: signals, and how long each may take.
pub(super) type Ending = &'static [(Signal, Duration)];

/// A running program. Dropping it ends it, and returns when it is gone.
#[derive(Debug)]
pub(super) struct Child {
    program: &'static str,
    process: Process,
    log: PathBuf,
    ending: Ending,
}

impl Child {
    /// Starts a program whose output goes into a log of that name.
    pub(super) fn start(
        program: &'static str,
        mut command: Command,
        place: &Place,
        ending: Ending,
    ) -> Result<Self, DemoError> {
        let (out, log) = place.log(&format!("{program}.log"))?;
        let cannot = || {
            // The place is named because the user who runs Postgres may not be allowed to enter it.
            DemoError::system(format!("start {program} in {}", place.path().display()))
        };
        let err = out.try_clone().map_err(cannot())?;
        let process = command
            // A group of its own: Ctrl-C is for the demo, which then ends its children in order.
            .process_group(0)
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(cannot())?;
        Ok(Self {
            program,
            process,
            log,
            ending,
        })
    }

    /// Its name.
    pub(super) fn program(&self) -> &'static str {
        self.program
    }

    /// Waits for a program that ends on its own.
    pub(super) async fn finish(mut self) -> Result<(), DemoError> {
        let cannot = || DemoError::system(format!("wait for {}", self.program));
        // Listened to before the first look, so that no end is missed.
        let mut ended = signal(SignalKind::child()).map_err(cannot())?;
        loop {
            match self.process.try_wait().map_err(cannot())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended(status)),
                None => drop(ended.recv().await),
            }
        }
    }

    /// An error if the program, which is to go on, has ended.
    pub(super) fn must_run(&mut self) -> Result<(), DemoError> {
        let looked = self.process.try_wait();
        match looked.map_err(DemoError::system(format!("look at {}", self.program)))? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// The last lines of what it wrote.
    pub(super) fn last_lines(&self) -> Vec<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LAST_LINES);
        lines[from..].iter().map(ToString::to_string).collect()
    }

    fn ended(&self, status: ExitStatus) -> DemoError {
        DemoError::Ended {
            program: self.program,
            status,
            said: self.last_lines().join("\n"),
        }
    }

    fn is_gone(&mut self) -> bool {
        // An error means that it is no child of ours any more.
        !matches!(self.process.try_wait(), Ok(None))
    }

    fn is_gone_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.is_gone() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK);
        }
        true
    }

    fn tell(&self, signal: Signal) {
        // Not yet waited for, so the group is still its own. One that is just ending needs no signal.
        let _ = kill_process_group(Pid::from_child(&self.process), signal);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        for (signal, patience) in self.ending {
            self.tell(*signal);
            if self.is_gone_within(*patience) {
                return;
            }
        }
        self.tell(Signal::KILL);
        // A process that was killed can be waited for; one that cannot be is gone.
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, ending: Ending) -> (Child, Place) {
        let place = Place::make(None).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        (Child::start("sh", command, &place, ending).unwrap(), place)
    }

    fn is_there(pid: u32) -> bool {
        fs::exists(format!("/proc/{pid}")).unwrap()
    }

    #[test]
    fn a_child_that_does_not_heed_its_signal_is_gone_after_the_drop_nevertheless() {
        const ENDING: Ending = &[(Signal::TERM, Duration::from_millis(20))];
        let (child, _place) = shell("trap '' TERM; echo deaf; while :; do sleep 1; done", ENDING);
        let pid = child.process.id();
        while child.last_lines() != ["deaf"] {
            sleep(LOOK);
        }
        drop(child);
        assert!(!is_there(pid));
    }

    #[tokio::test]
    async fn a_child_that_fails_is_quoted() {
        let (child, _place) = shell("echo alas; exit 3", &[]);
        let error = child.finish().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("alas"));
    }

    #[tokio::test]
    async fn a_child_that_ends_on_its_own_is_waited_for_and_leaves_nothing() {
        let (child, place) = shell("exit 0", &[]);
        child.finish().await.unwrap();
        let path = place.path().to_owned();
        drop(place);
        assert!(!path.exists());
    }
}
