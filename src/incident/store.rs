//! Where incidents are kept: a file of JSON lines for each, bounded in number and size; in memory where there is no directory.
//!
//! A note is one line, written and synced before the next. A crash in the middle of one leaves a line without its end, which is
//! dropped when it is read; an incident that a crash left open is closed as such at the next start.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Cause, Incident, Note, Summary, What};

/// One incident takes no more than this on disk, its end apart. Snapshots stop there.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// The same in memory.
const MOST_BYTES_IN_MEMORY: u64 = 256 * 1024;

/// Kept for the notes that are no snapshots.
const FOR_THE_END: u64 = 64 * 1024;

/// What a file is read up to, whoever wrote it.
const MOST_READ: u64 = 2 * MOST_BYTES;

/// Keeps incidents.
#[derive(Debug)]
pub struct Store {
    /// `None`: in memory.
    directory: Option<PathBuf>,
    keep: usize,
    /// The oldest first. The last may be open.
    known: VecDeque<Known>,
    next: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Known {
    summary: Summary,
    /// Without a directory: its lines.
    lines: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: Option<File>,
    bytes: u64,
    is_full: bool,
}

/// A file that is no incident's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it cannot be used.
    #[error("{path}: {cause}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is no such incident.
    #[error("there is no incident {0}")]
    Unknown(u64),
}

impl Store {
    /// In memory.
    pub fn in_memory(keep: usize) -> Self {
        Self {
            directory: None,
            keep: keep.max(1),
            known: VecDeque::new(),
            next: 1,
            open: None,
        }
    }

    /// In a directory, which is made if it is missing. What a crash left open is closed; `now`: since 1970, in milliseconds.
    pub fn in_directory(directory: &Path, keep: usize, now: i64) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(|cause| at(directory, cause))?;
        let mut store = Self::in_memory(keep);
        for (number, path) in files(directory).map_err(|cause| at(directory, cause))? {
            store.next = number + 1;
            let Some(mut summary) = mend(&path, now).map_err(|cause| at(&path, cause))? else {
                continue;
            };
            summary.number = number;
            let lines = Vec::new();
            store.known.push_back(Known { summary, lines });
        }
        store.directory = Some(directory.to_owned());
        store.forget_old();
        Ok(store)
    }

    /// The incidents, the newest first.
    pub fn list(&self) -> Vec<Summary> {
        let known = self.known.iter().rev();
        known.map(|known| known.summary.clone()).collect()
    }

    /// Everything about one.
    pub fn read(&self, number: u64) -> Result<Incident, StoreError> {
        let known = self.known.iter();
        let mut known = known.filter(|known| known.summary.number == number);
        let known = known.next().ok_or(StoreError::Unknown(number))?;
        match &self.directory {
            None => Ok(parse(&known.lines).0),
            Some(directory) => read(directory, number),
        }
    }

    /// The number of the incident that is going on.
    pub fn open(&self) -> Option<u64> {
        self.open.as_ref()?;
        Some(self.known.back()?.summary.number)
    }

    /// Begins one. Does nothing if one is going on.
    pub fn begin(
        &mut self,
        at: i64,
        cause: Cause,
        text: &str,
        pgweir: &str,
    ) -> Result<(), StoreError> {
        if self.open.is_some() {
            return Ok(());
        }
        let number = self.next;
        self.next += 1;
        let file = match &self.directory {
            Some(directory) => Some(create(&path(directory, number))?),
            None => None,
        };
        self.open = Some(Open {
            file,
            bytes: 0,
            is_full: false,
        });
        let summary = Summary {
            number,
            opened: at,
            closed: None,
            cause,
            text: text.to_owned(),
            causes: vec![cause],
            snapshots: 0,
        };
        let lines = Vec::new();
        self.known.push_back(Known { summary, lines });
        self.forget_old();
        self.write(&Note {
            at,
            what: What::Opened {
                number,
                cause,
                text: text.to_owned(),
                pgweir: pgweir.to_owned(),
            },
        })
    }

    /// Notes something about the incident that is going on, if there is room for it. Its end ends it.
    pub fn note(&mut self, at: i64, what: What) -> Result<(), StoreError> {
        let most = match self.directory {
            Some(_) => MOST_BYTES,
            None => MOST_BYTES_IN_MEMORY,
        };
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let ends = matches!(what, What::Closed { .. });
        let is_snapshot = matches!(what, What::Stood(_));
        let full = open.bytes > most - if is_snapshot { FOR_THE_END } else { 0 };
        let outcome = if !full || ends {
            self.write(&Note { at, what })
        } else if is_snapshot && !std::mem::replace(&mut open.is_full, true) {
            self.write(&Note {
                at,
                what: What::Full,
            })
        } else {
            Ok(())
        };
        if ends {
            self.open = None;
        }
        outcome
    }

    fn write(&mut self, note: &Note) -> Result<(), StoreError> {
        let (Some(open), Some(known)) = (&mut self.open, self.known.back_mut()) else {
            return Ok(());
        };
        known.summary.add(note);
        let mut line = serde_json::to_vec(note).unwrap_or_default();
        line.push(b'\n');
        open.bytes += line.len() as u64;
        match &mut open.file {
            None => known.lines.extend(line),
            Some(file) => {
                let written = file.write_all(&line).and_then(|()| file.sync_data());
                let directory = self.directory.as_deref().unwrap_or(Path::new(""));
                written.map_err(|cause| at(&path(directory, known.summary.number), cause))?;
            }
        }
        Ok(())
    }

    fn forget_old(&mut self) {
        while self.known.len() > self.keep {
            let Some(old) = self.known.pop_front() else {
                return;
            };
            if let Some(directory) = &self.directory {
                // Whoever took it away before has done what was to be done.
                let _ = fs::remove_file(path(directory, old.summary.number));
            }
        }
    }
}

fn at(path: &Path, cause: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        cause,
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("incident-{number:06}.jsonl"))
}

fn create(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    options.open(path).map_err(|cause| at(path, cause))
}

/// The numbers and paths of the incidents in a directory, the oldest first.
fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(|name| name.strip_prefix("incident-")?.strip_suffix(".jsonl"))
            .and_then(|number| number.parse().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    Ok(files)
}

/// Every incident in a directory, the newest first. For those who look from outside, and change nothing.
pub fn list(directory: &Path) -> Result<Vec<Summary>, StoreError> {
    let mut summaries = Vec::new();
    for (_, path) in files(directory).map_err(|cause| at(directory, cause))? {
        let (incident, _) = parse(&bytes(&path).map_err(|cause| at(&path, cause))?);
        summaries.extend(incident.summary());
    }
    summaries.reverse();
    Ok(summaries)
}

/// One incident of a directory.
pub fn read(directory: &Path, number: u64) -> Result<Incident, StoreError> {
    let path = path(directory, number);
    match bytes(&path) {
        Ok(bytes) => Ok(parse(&bytes).0),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(StoreError::Unknown(number)),
        Err(cause) => Err(at(&path, cause)),
    }
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_READ).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads lines, up to the first that is none: what a crash left of the last one. Also says where that begins.
fn parse(bytes: &[u8]) -> (Incident, usize) {
    let (mut incident, mut good) = (Incident::default(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let whole = line.strip_suffix(b"\n");
        let Some(note) = whole.and_then(|line| serde_json::from_slice(line).ok()) else {
            break;
        };
        incident.notes.push(note);
        good += line.len();
    }
    (incident, good)
}

/// Drops what a crash left of a last line, and closes an incident that it left open. `None`: there is no incident in the file.
fn mend(path: &Path, now: i64) -> io::Result<Option<Summary>> {
    let content = bytes(path)?;
    let (mut incident, good) = parse(&content);
    let Some(summary) = incident.summary() else {
        return Ok(None);
    };
    if summary.closed.is_some() && good == content.len() {
        return Ok(Some(summary));
    }
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.set_len(good as u64)?;
    file.seek(SeekFrom::End(0))?;
    if summary.closed.is_none() {
        let note = Note {
            at: now,
            what: What::Closed {
                text: "pgweir ended while it was going on; this was found at the next start"
                    .to_owned(),
            },
        };
        let mut line = serde_json::to_vec(&note)?;
        line.push(b'\n');
        file.write_all(&line)?;
        incident.notes.push(note);
    }
    file.sync_data()?;
    Ok(incident.summary())
}

#[cfg(test)]
mod tests {
    use super::super::{Ground, Snapshot};
    use super::*;

    fn snapshot(bytes: usize) -> What {
        What::Stood(Box::new(Snapshot {
            postgres: vec![Ground {
                name: "x".repeat(bytes),
                ..Ground::default()
            }],
            ..Snapshot::default()
        }))
    }

    fn closed() -> What {
        What::Closed {
            text: "over".to_owned(),
        }
    }

    /// The stores, and the directory of the second.
    fn stores(keep: usize) -> ([Store; 2], tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let on_disk = Store::in_directory(&directory.path().join("deep"), keep, 0).unwrap();
        ([Store::in_memory(keep), on_disk], directory)
    }

    #[test]
    fn what_was_noted_is_read_back() {
        let (stores, _directory) = stores(5);
        for mut store in stores {
            store.begin(1, Cause::Waiters, "they wait", "here").unwrap();
            assert_eq!(store.open(), Some(1));
            // One is enough.
            store.begin(2, Cause::Headroom, "no", "here").unwrap();
            store.note(3, snapshot(10)).unwrap();
            let (cause, text) = (Cause::Unreachable, "gone".to_owned());
            store.note(4, What::Joined { cause, text }).unwrap();
            store.note(5, closed()).unwrap();
            assert_eq!(store.open(), None);
            store.note(6, snapshot(10)).unwrap();
            let incident = store.read(1).unwrap();
            assert_eq!(incident.notes.len(), 4);
            assert_eq!(incident.snapshots().count(), 1);
            let summary = incident.summary().unwrap();
            assert_eq!(store.list(), std::slice::from_ref(&summary));
            assert_eq!(summary.causes, [Cause::Waiters, Cause::Unreachable]);
            assert_eq!((summary.opened, summary.closed), (1, Some(5)));
            assert!(matches!(store.read(2), Err(StoreError::Unknown(2))));
        }
    }

    #[test]
    fn no_more_are_kept_than_was_said() {
        let (stores, directory) = stores(3);
        for mut store in stores {
            for number in 1..=7 {
                store.begin(number, Cause::Waiters, "", "").unwrap();
                store.note(number, closed()).unwrap();
            }
            let numbers: Vec<_> = store.list().iter().map(|summary| summary.number).collect();
            assert_eq!(numbers, [7, 6, 5]);
        }
        let deep = directory.path().join("deep");
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 3);
        // Numbers go on where they were, and fewer are kept if fewer are wanted.
        let mut store = Store::in_directory(&deep, 1, 0).unwrap();
        store.begin(8, Cause::Waiters, "", "").unwrap();
        assert_eq!(store.open(), Some(8));
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1);
    }

    #[test]
    fn an_incident_is_bounded_in_size_and_still_has_its_end() {
        let (stores, _directory) = stores(3);
        for mut store in stores {
            let most = 2 * MOST_BYTES;
            store.begin(0, Cause::Waiters, "", "").unwrap();
            for at in 0..200 {
                store
                    .note(at, snapshot(usize::try_from(most / 100).unwrap()))
                    .unwrap();
            }
            for at in 200..10_000 {
                let text = "x".repeat(1000);
                store.note(at, What::Done { text }).unwrap();
            }
            store.note(10_000, closed()).unwrap();
            let incident = store.read(1).unwrap();
            let bytes = serde_json::to_vec(&incident.notes).unwrap().len() as u64;
            assert!(bytes < MOST_BYTES + most / 50, "{bytes}");
            assert_eq!(
                incident
                    .notes
                    .iter()
                    .filter(|note| note.what == What::Full)
                    .count(),
                1
            );
            assert_eq!(incident.summary().unwrap().closed, Some(10_000));
        }
    }

    #[test]
    fn a_crash_anywhere_in_a_write_costs_that_note_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::in_directory(directory.path(), 5, 0).unwrap();
        store.begin(1, Cause::Waiters, "", "").unwrap();
        store.note(2, snapshot(100)).unwrap();
        store.note(3, snapshot(100)).unwrap();
        let path = path(directory.path(), 1);
        let whole = fs::read(&path).unwrap();
        let ends: Vec<_> = (1..=whole.len())
            .filter(|at| whole[at - 1] == b'\n')
            .collect();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            // Whoever looks meanwhile sees what is whole.
            let seen = read(directory.path(), 1).unwrap().notes.len();
            let lines = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(seen, lines);
            let store = Store::in_directory(directory.path(), 5, 9).unwrap();
            if lines == 0 {
                assert!(store.list().is_empty());
                continue;
            }
            assert_eq!(store.list()[0].closed, Some(9));
            let mended = store.read(1).unwrap();
            assert_eq!(mended.notes.len(), lines + 1);
            // Mended once, it stays as it is.
            let again = Store::in_directory(directory.path(), 5, 99).unwrap();
            assert_eq!(again.read(1).unwrap(), mended);
        }
    }

    #[test]
    fn strange_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["notes.txt", "incident-x.jsonl", "incident-000002.jsonl"];
        for name in names {
            fs::write(
                directory.path().join(name),
                "\u{0}{\"at\":1,\"note\":\"closed\"}\n[]\n",
            )
            .unwrap();
        }
        let mut store = Store::in_directory(directory.path(), 1, 0).unwrap();
        assert!(store.list().is_empty() && list(directory.path()).unwrap().is_empty());
        store.begin(1, Cause::Waiters, "", "").unwrap();
        assert_eq!(store.open(), Some(3), "its number is taken");
        assert!(
            names
                .iter()
                .all(|name| directory.path().join(name).exists())
        );
    }
}
