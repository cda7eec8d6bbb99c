//! `pgweir demo` as its users start it: what it shows, and that it leaves nothing behind however it ends.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A directory for the demo's own. Run as root it starts Postgres as another user, who must be able to pass through.
fn place() -> TempDir {
    let place = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("it is ours");
    place
}

fn demo(place: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command
        .args(["demo", "--clients", "150", "--seconds", "1"])
        .env("TMPDIR", place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The processes that have to do with `place`, by their command line or their working directory.
fn processes_of(place: &Path) -> Vec<String> {
    let place = place.display().to_string();
    let processes = fs::read_dir("/proc").expect("Linux has it").flatten();
    processes
        .filter_map(|process| {
            // A process may end while it is looked at.
            let command = fs::read(process.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).into_owned();
            let works_in = fs::read_link(process.path().join("cwd"));
            let works_in = works_in.unwrap_or_default().display().to_string();
            (command.contains(&place) || works_in.starts_with(&place)).then_some(command)
        })
        .collect()
}

fn assert_nothing_is_left(place: &Path) {
    assert_eq!(processes_of(place), [] as [String; 0]);
    let left: Vec<PathBuf> = fs::read_dir(place)
        .expect("the place itself stays")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(left, [] as [PathBuf; 0]);
}

/// The two numbers of a row of the first table.
fn row(table: &str, name: &str) -> (u32, u32) {
    let line = table
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no row {name:?} in:\n{table}"));
    let numbers: Vec<u32> = line
        .split_whitespace()
        .map(|number| number.parse().unwrap_or_else(|_| panic!("{name}{line}")))
        .collect();
    (numbers[0], numbers[1])
}

#[test]
fn more_clients_than_postgres_takes_are_all_served_and_nothing_is_left() {
    let place = place();
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let report = elsewhere.path().join("incident.md");
    let mut demo = demo(place.path());
    let ended = demo.arg("--report").arg(&report).output();
    let ended = ended.expect("it starts");
    let table = String::from_utf8(ended.stdout).expect("text");
    let errors = String::from_utf8(ended.stderr).expect("text");
    assert!(ended.status.success(), "{table}\n{errors}");
    assert_eq!(errors, "");
    assert!(table.contains(&format!("{}/pgweir-demo-", place.path().display())));

    assert_eq!(row(&table, "clients"), (150, 150));
    let (direct, through) = row(&table, "refused with 53300");
    assert!(direct > 0 && through == 0, "{table}");
    let (direct, through) = row(&table, "connected");
    assert!(direct < 100 && through == 150, "{table}");
    assert_eq!(row(&table, "failed"), (0, 0));
    let (direct, through) = row(&table, "server connections (of 100)");
    assert!(direct > through && (1..=40).contains(&through), "{table}");

    let (_, incident) = table.split_once("The incident").expect("a second part");
    assert_eq!(row(incident, "site v1, sessions of 20"), (20, 20));
    assert_eq!(row(incident, "site v6, sessions of 20").1, 20);
    assert_eq!(row(incident, "  old ones closed"), (0, 100));
    let (direct, through) = row(incident, "  refused with 53300");
    assert!(direct > 0 && through == 0, "{table}");
    for part in [
        "The alert: service site has",
        "most clients are of deployment v1",
        "deployment \"v1\" of service \"site\" was superseded by \"v2\"",
        &report.display().to_string(),
    ] {
        assert!(incident.contains(part), "{part} is missing:\n{table}");
    }
    let export = fs::read_to_string(&report).expect("the export is kept");
    assert!(export.contains("## Detection"), "{export}");
    assert_nothing_is_left(place.path());
}

#[test]
fn an_interrupted_demo_leaves_nothing_at_any_stage() {
    // While the cluster is made, while clients are connected directly, and while they are through pgweir.
    for stage in ["A Postgres with", "  direct", "  pgweir"] {
        let place = place();
        let mut demo = demo(place.path()).spawn().expect("it starts");
        let said = demo.stdout.take().expect("it is piped");
        let mut said = BufReader::new(said).lines().map(|line| line.expect("text"));
        assert!(said.any(|line| line.starts_with(stage)), "{stage}");
        kill_process(Pid::from_child(&demo), Signal::INT).expect("it runs");

        // The pipe stays open to the end, so that nothing else ends it.
        let rest: Vec<String> = said.collect();
        let ended = demo.wait_with_output().expect("it ends");
        assert!(!ended.status.success(), "{stage}: {rest:?}");
        let errors = String::from_utf8(ended.stderr).expect("text");
        assert!(errors.starts_with("interrupted"), "{stage}: {errors}");
        assert_nothing_is_left(place.path());
    }
}

#[test]
fn a_demo_whose_reader_goes_away_leaves_nothing() {
    let place = place();
    let mut demo = demo(place.path()).spawn().expect("it starts");
    drop(demo.stdout.take());
    let ended = demo.wait_with_output().expect("it ends");
    assert!(!ended.status.success());
    assert_nothing_is_left(place.path());
}
