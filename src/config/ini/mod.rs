//! `pgbouncer.ini`: what stands in it, as the pooler.toml that means the same.
//!
//! Lines ([`syntax`]) become settings of PgBouncer ([`keys`]), these a pooler.toml ([`translate`], [`toml`]), and that a
//! [`Config`] in the usual way. What has no counterpart is in the [`Note`]s: nothing is passed over in silence.

mod connect_string;
mod keys;
mod syntax;
mod toml;
mod translate;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;

use self::toml::Written;
use super::checked::Config;
use super::mistake::{Mistake, Mistakes};
use translate::{Translated, every_address, translate};

/// What the pooler.toml says of itself.
const HEADING: &str = "Written by `pgweir import` from a pgbouncer.ini.";

/// What came of a `pgbouncer.ini`.
#[derive(Debug)]
pub struct Imported {
    /// The configuration.
    pub config: Config,
    /// The pooler.toml that means the same, with the comments of the file.
    pub toml: String,
    /// What differs, and why.
    pub notes: Vec<Note>,
    /// Every key of `[pgbouncer]`, as SHOW CONFIG tells it.
    pub settings: Vec<Setting>,
}

/// A key of `[pgbouncer]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub name: &'static str,
    /// As written, a number in digits.
    pub value: String,
    /// PgBouncer's default.
    pub default: &'static str,
    /// Whether PgBouncer follows a change without a restart.
    pub is_live: bool,
}

/// The key that says what a reload reads.
const CONFFILE: &str = "conffile";

/// The file that a reload reads, by the settings of the one that was read last.
pub fn next(settings: &[Setting]) -> Option<&Path> {
    let setting = settings.iter().find(|setting| setting.name == CONFFILE)?;
    Some(Path::new(&setting.value))
}

/// These settings with one of them changed, if it is one of PgBouncer's.
pub fn with(settings: &[Setting], name: &str, value: &str) -> Vec<Setting> {
    let mut settings = settings.to_vec();
    let named = |setting: &&mut Setting| setting.name.eq_ignore_ascii_case(name);
    if let Some(setting) = settings.iter_mut().find(named) {
        value.clone_into(&mut setting.value);
    }
    settings
}

/// Something that pgweir does not do as PgBouncer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub weight: Weight,
    /// The file in which it is.
    pub file: String,
    /// What it is about, as written.
    pub setting: String,
    /// What happens instead.
    pub text: String,
    at: Place,
}

/// How much a [`Note`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The setting cannot matter here.
    Idle,
    /// It means something slightly different.
    Differs,
    /// It should have an effect, and has none.
    Without,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            weight,
            file,
            setting,
            text,
            at,
        } = self;
        let word = match weight {
            Weight::Idle => "does not matter here",
            Weight::Differs => "differs",
            Weight::Without => "has no effect",
        };
        match at.line {
            0 => write!(f, "{file}: {setting}: {word}: {text}"),
            line => write!(f, "{file}:{line}: {setting}: {word}: {text}"),
        }
    }
}

/// Where something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Of all files that were read.
    file: usize,
    /// From 1; 0 = the file as a whole.
    line: usize,
    /// In characters, from 1.
    column: usize,
}

impl Place {
    fn whole(file: usize) -> Self {
        Self {
            file,
            line: 0,
            column: 0,
        }
    }

    /// The place of `part`, which is a part of `line`, that begins here.
    fn further(self, line: &str, part: &str) -> Self {
        let offset = part.as_ptr().addr().saturating_sub(line.as_ptr().addr());
        self.behind(&line[..line.floor_char_boundary(offset.min(line.len()))])
    }

    /// The place behind `text`, which begins here.
    fn behind(self, text: &str) -> Self {
        Self {
            column: self.column + text.chars().count(),
            ..self
        }
    }
}

/// What a file refers to beyond itself.
pub trait Surroundings {
    /// The bytes of a file.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
    /// The addresses of a name; `*` is every address of this machine.
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
    /// The home directory.
    fn home(&self) -> Option<String>;
}

/// This machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Surroundings for Machine {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if host == "*" {
            return Ok(every_address(UdpSocket::bind("[::]:0").is_ok()));
        }
        let found = (host, 0).to_socket_addrs()?;
        Ok(found.map(|address| address.ip()).collect())
    }

    fn home(&self) -> Option<String> {
        std::env::var("HOME").ok().filter(|home| !home.is_empty())
    }
}

/// Whether a file is one of PgBouncer's, by its name or by the first section in it.
pub fn is_one(path: &Path) -> bool {
    if path.extension().is_some_and(|extension| extension == "ini") {
        return true;
    }
    // Neither a directory nor a pipe that somebody else is to read.
    if !path.is_file() {
        return false;
    }
    let Ok(bytes) = std::fs::read(path) else {
        return false;
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().map(str::trim);
    let first = lines.find_map(|line| line.strip_prefix('['));
    let name = first.and_then(|line| line.split(']').next());
    // [databases] and [users] are tables of pooler.toml too, where no line is a connection string.
    match name.and_then(syntax::Section::of) {
        Some(syntax::Section::Pgbouncer | syntax::Section::Peers) => true,
        Some(_) => text
            .lines()
            .any(|line| line.trim().starts_with("[pgbouncer]")),
        None => false,
    }
}

/// Reads a file and those that it includes.
pub fn load(path: &Path) -> Result<Imported, Mistakes> {
    import(&path.display().to_string(), &Machine)
}

/// The same, in other surroundings.
pub fn import(path: &str, surroundings: &dyn Surroundings) -> Result<Imported, Mistakes> {
    let Translated {
        file,
        notes,
        files,
        wrong,
        mut settings,
    } = translate(path, surroundings);
    let conffile = settings.iter_mut().find(|setting| setting.name == CONFFILE);
    if let Some(setting) = conffile.filter(|setting| setting.value.is_empty()) {
        path.clone_into(&mut setting.value);
    }
    let mut mistakes: Vec<_> = wrong
        .into_iter()
        .map(|(at, message)| mistake(&files, Some(at), message))
        .collect();
    let Written { text, places } = file.write(HEADING);
    let read = super::parse(&text, path, &|_| None);
    match read {
        Ok(config) if mistakes.is_empty() => Ok(Imported {
            config,
            toml: text,
            notes,
            settings,
        }),
        Ok(_) => Err(Mistakes::of_files(mistakes)),
        Err(others) => {
            // What was left out because it is wrong may be missing to the rest.
            if mistakes.is_empty() {
                let place = |line: usize| places.get(line.checked_sub(1)?).copied().flatten();
                mistakes = others
                    .iter()
                    .map(|other| mistake(&files, place(other.line), other.message.clone()))
                    .collect();
            }
            Err(Mistakes::of_files(mistakes))
        }
    }
}

fn mistake(files: &[String], at: Option<Place>, message: String) -> (String, Mistake) {
    let Place { file, line, column } = at.unwrap_or(Place::whole(0));
    let mistake = Mistake {
        line,
        column,
        message,
    };
    (files[file].clone(), mistake)
}
