//! What the demo finds on this machine: Postgres' programs, and a user to run them as.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::DemoError;

/// Where distributions put the server's programs outside of PATH; `*` stands for the version.
const PLACES: [&str; 6] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/lib/postgresql*/bin",
    "/usr/libexec/postgresql*",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
];

/// Postgres' programs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl Programs {
    fn of(directory: &Path) -> Option<Self> {
        let program = |name| Some(directory.join(name)).filter(|path| path.is_file());
        Some(Self {
            initdb: program("initdb")?,
            postgres: program("postgres")?,
        })
    }
}

/// Finds Postgres: the one in PATH is the user's choice, then comes the newest that the distribution has.
pub(super) fn programs() -> Result<Programs, DemoError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(said_by_pg_config())
        .chain(PLACES.into_iter().flat_map(newest_first))
        .find_map(|directory| Programs::of(&directory))
        .ok_or_else(|| DemoError::NoPostgres {
            places: PLACES.join(", "),
        })
}

fn said_by_pg_config() -> Option<PathBuf> {
    // It is part of the development packages: most machines do not have it.
    let said = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(said.stdout).ok()?.trim()))
}

/// The directories that a pattern with one `*` stands for; the highest version first.
fn newest_first(pattern: &str) -> Vec<PathBuf> {
    let (before, after) = pattern.split_once('*').expect("every place has a star");
    let (parent, prefix) = before.rsplit_once('/').expect("every place is absolute");
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let rest = entry.file_name().to_str()?.strip_prefix(prefix)?.to_owned();
            let path = format!("{}{after}", entry.path().display());
            Some((version(&rest), PathBuf::from(path)))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// The first number of a name such as `@16` or `15.4`; 0 without one.
fn version(name: &str) -> u32 {
    let digits = name
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .split(|c: char| !c.is_ascii_digit())
        .next();
    digits
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_default()
}

/// Somebody whom Postgres may be run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Whom to run Postgres as, which refuses root; `None` where we are not root and it runs as ourselves.
pub(super) fn user_for_postgres() -> Result<Option<User>, DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd =
        fs::read_to_string("/etc/passwd").map_err(DemoError::system("read /etc/passwd"))?;
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| user(&passwd, name))
        .map(Some)
        .ok_or(DemoError::NoUser)
}

/// A user by name from the text of /etc/passwd; never root.
fn user(passwd: &str, name: &str) -> Option<User> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok().filter(|uid| *uid != 0)?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { uid, gid })
}

/// Whether a variable of our environment would tell Postgres' programs something that is not meant for this one.
pub(super) fn is_for_another_postgres(variable: &OsStr) -> bool {
    variable.to_string_lossy().starts_with("PG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name_and_is_never_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgresql:x:5:6:::\npostgres:x:104:107:,:/:\n\
            toor:x:0:0:::\nbroken:x\n";
        let found = |name| user(passwd, name);
        assert_eq!(found("postgres"), Some(User { uid: 104, gid: 107 }));
        for nobody in ["root", "toor", "broken", "postgre", ""] {
            assert_eq!(found(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn the_highest_version_comes_first_and_by_number() {
        let place = tempfile::tempdir().unwrap();
        for name in ["9", "15", "14", "lost+found"] {
            fs::create_dir_all(place.path().join(name).join("bin")).unwrap();
        }
        let found = newest_first(&format!("{}/*/bin", place.path().display()));
        let expected = ["15", "14", "9", "lost+found"];
        assert_eq!(
            found,
            expected.map(|name| place.path().join(name).join("bin"))
        );
        assert_eq!(newest_first("/nowhere/at/all/*/bin"), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_directory_counts_only_with_both_programs() {
        let place = tempfile::tempdir().unwrap();
        let initdb = place.path().join("initdb");
        fs::write(&initdb, "").unwrap();
        assert_eq!(Programs::of(place.path()), None);
        let postgres = place.path().join("postgres");
        fs::write(&postgres, "").unwrap();
        let programs = Programs { initdb, postgres };
        assert_eq!(Programs::of(place.path()), Some(programs));
    }
}
