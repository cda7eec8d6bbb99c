//! Scripts of protocol messages (`tests/differential/*.script`), said to Postgres directly and through pgweir: every byte
//! of the replies must be the same. The format of the scripts is told in `tests/support/script.rs`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::script::{Script, Transcript};
use support::{Batch, Pooler, Postgres, Raw};

#[test]
fn replies_are_those_of_postgres_on_one_server_connection() {
    assert_none(
        &[
            differences("transaction", 1, &Crossing::Never, ""),
            differences("transaction", 1, &Crossing::Never, "parameters"),
            differences("transaction", 1, &Crossing::Never, "transaction"),
        ]
        .concat(),
    );
}

#[test]
fn replies_are_those_of_postgres_when_every_transaction_meets_another_server_connection() {
    assert_none(
        &[
            differences("transaction", 8, &Crossing::Always, ""),
            differences("transaction", 8, &Crossing::Always, "parameters"),
            differences("transaction", 8, &Crossing::Always, "transaction"),
        ]
        .concat(),
    );
}

#[test]
fn replies_are_those_of_postgres_in_session_mode() {
    assert_none(
        &[
            differences("session", 8, &Crossing::Never, ""),
            differences("session", 8, &Crossing::Never, "parameters"),
            differences("session", 8, &Crossing::Never, "session"),
        ]
        .concat(),
    );
}

fn assert_none(differences: &[String]) {
    assert!(
        differences.is_empty(),
        "{} differences:\n\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// Whether a client's transactions are made to run on different server connections.
enum Crossing {
    Never,
    Always,
}

/// The scripts in a folder of the corpus.
fn corpus(folder: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/differential")
        .join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "script"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", directory.display());
    // One script can be asked for while working on it.
    if let Ok(wanted) = std::env::var("PGWEIR_TEST_SCRIPT") {
        paths.retain(|path| path.to_string_lossy().contains(&wanted));
    }
    paths
}

/// Runs every script of a folder both ways, and tells where they differ.
fn differences(mode: &str, size: usize, crossing: &Crossing, folder: &str) -> Vec<String> {
    let postgres = Postgres::start();
    let mut reports = Vec::new();
    for path in corpus(folder) {
        let script = Script::read(&path);
        for sql in &script.setup {
            postgres.sql(sql);
        }
        let direct = prepared(&postgres, &script).run(postgres.port(), &mut || {});
        // What a script leaves on server connections must not meet the next script.
        let pooler = Pooler::serve(
            &postgres,
            &format!("[runtime]\nthreads = 1\n\n[pool]\nmode = \"{mode}\"\nsize = {size}\n"),
        );
        let script = prepared(&postgres, &script);
        let through = match crossing {
            Crossing::Never => script.run(pooler.port(), &mut || {}),
            Crossing::Always => {
                let mut carousel = Carousel::new(pooler.port());
                script.run(pooler.port(), &mut || carousel.turn())
            }
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        reports.extend(first_difference(
            &format!("{name}, {mode} mode"),
            &direct,
            &through,
        ));
    }
    reports
}

fn prepared<'a>(postgres: &Postgres, script: &'a Script) -> &'a Script {
    for sql in &script.before {
        postgres.sql(sql);
    }
    script
}

/// The first step in which the two differ; what follows it usually follows from it.
fn first_difference(name: &str, direct: &Transcript, through: &Transcript) -> Option<String> {
    let (expected, found) = direct
        .iter()
        .zip(through)
        .find(|(expected, found)| expected.replies != found.replies)?;
    let count = expected.replies.len().max(found.replies.len());
    let mut lines = vec![format!("{name}, line {}:", expected.line)];
    for index in 0..count {
        let (left, right) = (expected.replies.get(index), found.replies.get(index));
        if left == right {
            lines.push(format!("    both      {}", shown(left)));
        } else {
            lines.push(format!("    Postgres  {}", shown(left)));
            lines.push(format!("    pgweir    {}", shown(right)));
        }
    }
    Some(lines.join("\n") + "\n")
}

fn shown(reply: Option<&String>) -> String {
    let text = reply.map_or("nothing", String::as_str);
    if text.len() > 700 {
        format!("{}... ({} bytes)", &text[..700], text.len())
    } else {
        text.to_owned()
    }
}

/// Two clients that in turn hold, in a transaction, the server connection that was given back last, so that a third client finds another.
struct Carousel {
    holding: Raw,
    idle: Raw,
}

impl Carousel {
    fn new(port: u16) -> Self {
        let mut holding = Raw::login(port, "postgres", "postgres");
        say(&mut holding, "begin");
        let idle = Raw::login(port, "postgres", "postgres");
        Self { holding, idle }
    }

    /// Takes the server connection that was just given back, and gives back the one held so far.
    fn turn(&mut self) {
        say(&mut self.idle, "begin");
        say(&mut self.holding, "commit");
        std::mem::swap(&mut self.holding, &mut self.idle);
    }
}

fn say(raw: &mut Raw, sql: &str) {
    raw.send(&Batch::new().query(sql));
    raw.rows()
        .unwrap_or_else(|error| panic!("{sql} of the carousel: {error}"));
}
