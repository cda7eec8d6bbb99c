//! The directory of one demo. Dropping it removes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use super::DemoError;
use super::find::User;

/// Memory instead of a disk, where there is enough of it.
const IN_MEMORY: &str = "/dev/shm";

/// What the database and its log need, several times over. Containers often have 64 MiB there, which is not enough.
const ROOM: u64 = 512 << 20;

/// A directory that is removed with all that is in it when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    user: Option<User>,
}

impl Place {
    /// Makes the directory: under TMPDIR if that is set, else in memory, else under /tmp. `user`: who runs Postgres.
    pub(super) fn make(user: Option<User>) -> Result<Self, DemoError> {
        let asked_for = std::env::var_os("TMPDIR").map(PathBuf::from);
        let parent = asked_for
            .or_else(|| has_room(IN_MEMORY).then(|| IN_MEMORY.into()))
            .unwrap_or_else(std::env::temp_dir);
        let path = parent.join(format!("pgweir-demo-{:016x}", rand::random::<u64>()));
        // The user who runs Postgres must be able to pass through, nobody has to list it.
        make_directory(&path, 0o711)?;
        Ok(Self { path, user })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whom to run Postgres as.
    pub(super) fn user(&self) -> Option<User> {
        self.user
    }

    /// A directory that is for Postgres alone.
    pub(super) fn directory_for_postgres(&self, name: &str) -> Result<PathBuf, DemoError> {
        let path = self.path.join(name);
        make_directory(&path, 0o700)?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// A file that only Postgres can read.
    pub(super) fn file_for_postgres(&self, name: &str, text: &str) -> Result<PathBuf, DemoError> {
        let path = self.file(name, text)?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// A file that only we can read.
    pub(super) fn file(&self, name: &str, text: &str) -> Result<PathBuf, DemoError> {
        let path = self.path.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(DemoError::system(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// A log to append to, and its path.
    pub(super) fn log(&self, name: &str) -> Result<(File, PathBuf), DemoError> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(DemoError::system(format!("write {}", path.display())))?;
        Ok((file, path))
    }

    fn hand_over(&self, path: &Path) -> Result<(), DemoError> {
        let Some(User { uid, gid }) = self.user else {
            return Ok(());
        };
        chown(path, Some(uid), Some(gid)).map_err(DemoError::system(format!(
            "give {} to the user who runs Postgres",
            path.display()
        )))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), DemoError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(DemoError::system(format!("make {}", path.display())))
}

/// Whether a directory can be written to, and has room enough.
fn has_room(directory: &str) -> bool {
    use rustix::fs::{Access, access, statvfs};
    let may = access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    may && statvfs(directory).is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) >= ROOM)
}
