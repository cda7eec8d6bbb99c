//! `pooler.toml`: read, checked as a whole, compared with the one before.
//!
//! A file becomes a [`Config`], in which nothing is missing and nothing contradicts, or the list of all its mistakes.
//! Nothing here knows who reads the values or how they are applied.

pub mod change;
pub mod checked;
pub mod ciphers;
pub mod hba_file;
pub mod ident_file;
pub mod ini;
pub mod ldap_options;
pub mod users_file;

mod check;
mod env;
mod location;
mod mistake;
mod overrides;
mod raw;
mod sections;
mod value;
mod written;

use std::net::SocketAddr;
use std::path::Path;

use checked::{AuthMethod, Config, User};
use location::Location;
use raw::{Document, Notes};
use value::Given;

pub use mistake::{Mistake, Mistakes};
pub use overrides::{Overrides, SetError, in_pgbouncers_words};

/// The longest name of a service, in bytes: as long as Postgres lets any name be, and one more.
pub const LONGEST_SERVICE_NAME: usize = 64;

/// The smallest file: all else is the default.
const SMALLEST: &str = "[databases.\"*\"]\nurl = \"postgres://127.0.0.1:5432\"\n";

/// Reads a file, with the environment of this process.
pub fn load(path: &Path) -> Result<Config, Mistakes> {
    let name = path.display().to_string();
    parse(&read(path)?, &name, &environment)
}

/// The text of a file.
pub fn read(path: &Path) -> Result<String, Mistakes> {
    std::fs::read_to_string(path).map_err(|error| {
        Mistakes::new(
            &path.display().to_string(),
            vec![Mistake::of_the_whole(format!("cannot be read: {error}"))],
        )
    })
}

/// The environment of this process.
pub fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

/// Reads the text of a file. `env` looks up environment variables; `file_name` is for the mistakes.
pub fn parse(
    text: &str,
    file_name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Mistakes> {
    parse_over(text, &Overrides::default(), file_name, env)
}

/// As [`parse`], with what was set since over it.
pub fn parse_over(
    text: &str,
    overrides: &Overrides,
    file_name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Mistakes> {
    let overrides = overrides.to_text();
    let document = Document::parse_over(text, &overrides);
    let mut notes = Notes::new(env);
    let config = sections::read(document.root(&mut notes));
    check::contradictions(&config, &mut notes);
    match document.mistakes(notes) {
        none if none.is_empty() => Ok(config),
        mistakes => Err(Mistakes::new(file_name, mistakes)),
    }
}

/// The configuration of a pooler without a file: every database of the Postgres at `to`, for clients at `listen`.
///
/// A user with a password is who looks up all others, in the database named in `to` or in `postgres`; nobody is forced to be
/// that user. A database without a user is ignored, since each client names its own. With nothing in `listen` the default
/// address is used.
pub fn from_url(to: &str, listen: &[String]) -> Result<Config, Mistakes> {
    from_url_over(to, listen, &Overrides::default())
}

/// As [`from_url`], with what was set since over it.
pub fn from_url_over(
    to: &str,
    listen: &[String],
    overrides: &Overrides,
) -> Result<Config, Mistakes> {
    // Without anything set it is right: a test reads it.
    let mut config = parse_over(SMALLEST, overrides, "command line", &environment)?;
    let mut wrong = Vec::new();
    match location::parse_url(to) {
        Ok(location) => serve_location(&mut config, location),
        Err(why) => wrong.push(Mistake::of_the_whole(format!("--to {why}"))),
    }
    let (addresses, bad): (Vec<_>, Vec<_>) = listen
        .iter()
        .map(|text| listen_address(text))
        .partition(Result::is_ok);
    wrong.extend(bad.into_iter().filter_map(Result::err));
    if !listen.is_empty() {
        config.listen.addresses = addresses.into_iter().flatten().collect();
    }
    if wrong.is_empty() {
        Ok(config)
    } else {
        Err(Mistakes::new("command line", wrong))
    }
}

/// What everything is when nothing is given.
fn smallest() -> Config {
    parse(SMALLEST, "the smallest file", &|_| None)
        .expect("the smallest file is right: a test reads it")
}

fn serve_location(config: &mut Config, location: Location) {
    if let (Some(user), password @ Some(_)) = (location.user, location.password) {
        let database = location.dbname.unwrap_or_else(|| "postgres".to_owned());
        config.auth.query_user = Some(user.clone());
        config.auth.query_database = Some(database);
        // By SCRAM, but for a role of which Postgres itself keeps no more than an MD5 hash.
        config.auth.method = AuthMethod::Md5;
        config.users.insert(
            user,
            User {
                password,
                ..User::default()
            },
        );
    }
    if let Some(any) = config.any_database.as_mut() {
        any.hosts = location.hosts;
        any.sslmode = location.sslmode;
        any.sslnegotiation = location.sslnegotiation;
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, Mistake> {
    let given = Given::Text {
        written: text,
        expanded: None,
    };
    value::address(&given).map_err(|why| Mistake::of_the_whole(format!("--listen {why}")))
}

/// How many data threads a machine gets when the file leaves the choice to us: half of the cores, at least one.
///
/// Measured on two cores beside Postgres and its clients, a second thread cost a tenth more CPU for each transaction and gave
/// nothing (`docs/performance.md`). One thread serves some 40,000 transactions a second before its core is full, and the work
/// that these give to everybody else fills more cores than one.
pub fn default_threads(cores: usize) -> usize {
    const MOST: usize = 8;
    (cores / 2).clamp(1, MOST)
}

/// The dotted name of every setting, `NAME` standing for the name of a database, user, peer or service.
pub fn settings() -> Vec<String> {
    let document =
        Document::parse("[databases.NAME]\n[users.NAME]\n[peers.NAME]\n[services.NAME]\n");
    let mut notes = Notes::new(&|_| None);
    sections::read(document.root(&mut notes));
    notes.asked().map(str::to_owned).collect()
}
