//! What one process of pgweir leaves to the next, in a file beside the incidents: the order of deployments, and which processes of
//! Postgres serve it.
//!
//! The next one must never take what belongs to a process that lives. So nothing is inferred from names: a connection was left behind
//! if it is in the list that its owner has written (process id and start, to the microsecond), and if that owner is dead. It is dead if
//! the kernel gives its lock on the directory to another. A lock says nothing where two machines share a file system that keeps
//! locks apart; so what was written under another boot of the kernel is left alone, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::policy::deployment::Memory;

/// The file.
const FILE: &str = "memory.json";

/// What is not read, because it is not ours: connections and deployments are few.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A process of Postgres that serves pgweir. No other one is ever the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Its process id.
    pub pid: u32,
    /// When it began, in microseconds since 1970.
    pub begun: i64,
}

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    /// Of the kernel under which it was written.
    boot: String,
    /// By Postgres.
    backends: BTreeMap<String, Vec<Backend>>,
    /// By service.
    deployments: Memory,
}

/// Keeps the file.
#[derive(Debug)]
pub struct Keeper {
    directory: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Held as long as the process lives; `None`: another one has it.
    lock: Option<File>,
    /// What the file says.
    written: Written,
    ours: BTreeMap<String, Vec<Backend>>,
    /// What a dead process has left.
    left: BTreeMap<String, Vec<Backend>>,
    complained: bool,
}

impl Keeper {
    /// In this directory; `None`: nothing is kept. With the deployments that an earlier process has left.
    pub fn open(directory: Option<&Path>) -> (Self, Memory) {
        let written = directory.map(read).unwrap_or_default();
        let keeper = Self {
            directory: directory.map(Path::to_owned),
            state: Mutex::default(),
        };
        (keeper, written.deployments)
    }

    /// Notes which processes of one Postgres are ours.
    pub fn has(&self, postgres: &str, mut backends: Vec<Backend>) {
        backends.sort_unstable();
        self.state.lock().ours.insert(postgres.to_owned(), backends);
    }

    /// The processes of one Postgres whose owner is dead.
    pub fn left(&self, postgres: &str) -> Vec<Backend> {
        let state = self.state.lock();
        state.left.get(postgres).cloned().unwrap_or_default()
    }

    /// Forgets one that was left: it is gone, or cannot be ended.
    pub fn forget(&self, postgres: &str, gone: Backend) {
        if let Some(left) = self.state.lock().left.get_mut(postgres) {
            left.retain(|backend| *backend != gone);
        }
    }

    /// Writes down what has changed. Does nothing as long as another process has the directory.
    pub fn keep(&self, deployments: Memory) {
        let Some(directory) = &self.directory else {
            return;
        };
        let mut state = self.state.lock();
        match state.keep(directory, deployments) {
            Ok(()) => state.complained = false,
            Err(error) if !std::mem::replace(&mut state.complained, true) => {
                let directory = directory.display();
                tracing::warn!(%directory, "nothing can be kept for the next start: {error}");
            }
            Err(_) => {}
        }
    }
}

impl State {
    fn keep(&mut self, directory: &Path, deployments: Memory) -> io::Result<()> {
        if self.lock.is_none() {
            let Some(lock) = take(directory)? else {
                return Ok(());
            };
            self.lock = Some(lock);
            self.written = read(directory);
            if self.written.boot == boot() {
                self.left = self.written.backends.clone();
            }
        }
        let mut backends = self.ours.clone();
        for (postgres, left) in &self.left {
            // Should this process die before it has ended them.
            let all = backends.entry(postgres.clone()).or_default();
            all.extend(left.iter().filter(|backend| {
                !self
                    .ours
                    .get(postgres)
                    .is_some_and(|ours| ours.contains(backend))
            }));
        }
        let now = Written {
            boot: boot(),
            backends,
            deployments,
        };
        if now != self.written {
            write(directory, &now)?;
            self.written = now;
        }
        Ok(())
    }
}

/// The lock on a directory, if no living process has it.
fn take(directory: &Path) -> io::Result<Option<File>> {
    let file = File::open(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// What cannot be read is as if it were not there.
fn read(directory: &Path) -> Written {
    let path = directory.join(FILE);
    let readable = fs::metadata(&path).is_ok_and(|file| file.len() <= MOST_BYTES);
    let text = readable.then(|| fs::read(&path).ok()).flatten();
    let Some(text) = text else {
        return Written::default();
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), "what an earlier process has left cannot be read: {error}");
        Written::default()
    })
}

/// Replaces the file as a whole: a crash leaves the old one or the new one.
fn write(directory: &Path, written: &Written) -> io::Result<()> {
    let (path, fresh) = (directory.join(FILE), directory.join("memory.json.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(written)?)?;
    file.sync_data()?;
    fs::rename(fresh, path)
}

/// Names this run of the kernel.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::deployment::Remembered;

    const ONE: Backend = Backend { pid: 7, begun: 70 };
    const OTHER: Backend = Backend { pid: 8, begun: 80 };

    fn deployments() -> Memory {
        let remembered = Remembered {
            name: "v1".into(),
            company: 0,
        };
        Memory::from([("site".into(), vec![remembered])])
    }

    #[test]
    fn what_a_dead_process_has_written_is_left_and_a_living_ones_is_not() {
        let place = tempfile::tempdir().unwrap();
        let (first, nothing) = Keeper::open(Some(place.path()));
        assert_eq!(nothing, Memory::new());
        first.has("db", vec![ONE]);
        first.keep(deployments());

        let (second, known) = Keeper::open(Some(place.path()));
        assert_eq!(known, deployments(), "the order may be read at any time");
        second.has("db", vec![OTHER]);
        second.keep(Memory::new());
        assert_eq!(second.left("db"), [], "the first one lives");
        assert_eq!(
            read(place.path()).backends["db"],
            [ONE],
            "nor is its file written over"
        );

        drop(first);
        second.keep(deployments());
        assert_eq!(
            (second.left("db"), second.left("other")),
            (vec![ONE], vec![])
        );
        assert_eq!(read(place.path()).backends["db"], [OTHER, ONE]);
        second.forget("db", ONE);
        second.keep(deployments());
        assert_eq!(read(place.path()).backends["db"], [OTHER]);
    }

    #[test]
    fn what_was_written_on_another_machine_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let written = Written {
            boot: "another".into(),
            backends: BTreeMap::from([("db".into(), vec![ONE])]),
            deployments: deployments(),
        };
        write(place.path(), &written).unwrap();
        let (keeper, known) = Keeper::open(Some(place.path()));
        keeper.keep(known.clone());
        assert_eq!((keeper.left("db"), known), (vec![], deployments()));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_none() {
        let place = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            "[]",
            "{\"backends\": 7}",
            "{\"boot\": \"x\", \"unknown\": 1}",
        ] {
            fs::write(place.path().join(FILE), text).unwrap();
            assert_eq!(Keeper::open(Some(place.path())).1, Memory::new(), "{text}");
        }
        let (keeper, _) = Keeper::open(None);
        keeper.keep(deployments());
        assert_eq!(keeper.left("db"), []);
    }
}
