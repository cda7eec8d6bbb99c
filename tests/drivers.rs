//! Drivers and what is built on them, with the settings of their users, statement caches included: the same programs
//! directly on Postgres, through pgweir in session mode, and in transaction mode on fewer server connections than clients.
//!
//! A program finds the database in PGHOST and so on, and in PGWEIR_MODE what it may expect: `direct`, `session` or
//! `transaction`. It ends with status 0 when everything was as it should be.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::process::run;
use support::{Method, Pooler, Postgres, Watch};

/// Server connections in transaction mode. Most programs have eight clients at once.
const POOL_SIZE: usize = 3;

/// In session mode each client needs one; asyncpg's own pool has fifty.
const SESSION_POOL_SIZE: usize = 80;

/// A program that has not ended after this many seconds hangs.
const LIMIT: &str = "240";

with_one_and_two_threads!(
    psycopg_works_in_transaction_mode,
    asyncpg_works_in_transaction_mode,
    sqlalchemy_works_in_transaction_mode,
    django_works_in_transaction_mode,
);

fn psycopg_works_in_transaction_mode(threads: usize) {
    in_transaction_mode(threads, 1, &[python(&["with_psycopg.py"])]);
}

#[test]
fn psycopg_works_in_session_mode() {
    in_session_mode(&[python(&["with_psycopg.py"])]);
}

fn asyncpg_works_in_transaction_mode(threads: usize) {
    in_transaction_mode(threads, 1, &[python(&["with_asyncpg.py"])]);
}

#[test]
fn asyncpg_works_in_session_mode() {
    in_session_mode(&[python(&["with_asyncpg.py"])]);
}

fn sqlalchemy_works_in_transaction_mode(threads: usize) {
    in_transaction_mode(threads, 1, &[python(&["with_sqlalchemy.py"])]);
}

#[test]
fn sqlalchemy_works_in_session_mode() {
    in_session_mode(&[python(&["with_sqlalchemy.py"])]);
}

fn django_works_in_transaction_mode(threads: usize) {
    // Its test run uses three databases: postgres, app and test_app.
    in_transaction_mode(threads, 3, &django());
}

#[test]
fn django_works_in_session_mode() {
    in_session_mode(&django());
}

#[test]
fn node_postgres_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[node("with_pg.mjs")]);
}

#[test]
fn node_postgres_works_in_session_mode() {
    in_session_mode(&[node("with_pg.mjs")]);
}

#[test]
fn tokio_postgres_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[rust("with_tokio_postgres")]);
}

#[test]
fn tokio_postgres_works_in_session_mode() {
    in_session_mode(&[rust("with_tokio_postgres")]);
}

#[test]
fn sqlx_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[rust("with_sqlx")]);
}

#[test]
fn sqlx_works_in_session_mode() {
    in_session_mode(&[rust("with_sqlx")]);
}

#[test]
fn pgjdbc_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[java("WithPgjdbc.java")]);
}

#[test]
fn pgjdbc_works_in_session_mode() {
    in_session_mode(&[java("WithPgjdbc.java")]);
}

#[test]
fn pgx_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[go("with_pgx.go")]);
}

#[test]
fn pgx_works_in_session_mode() {
    in_session_mode(&[go("with_pgx.go")]);
}

#[test]
fn lib_pq_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[go("with_pq.go")]);
}

#[test]
fn lib_pq_works_in_session_mode() {
    in_session_mode(&[go("with_pq.go")]);
}

#[test]
fn ruby_pg_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[program("ruby", ".", &["with_ruby_pg.rb"])]);
}

#[test]
fn ruby_pg_works_in_session_mode() {
    in_session_mode(&[program("ruby", ".", &["with_ruby_pg.rb"])]);
}

#[test]
fn activerecord_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[program("ruby", ".", &["with_activerecord.rb"])]);
}

#[test]
fn activerecord_works_in_session_mode() {
    in_session_mode(&[program("ruby", ".", &["with_activerecord.rb"])]);
}

#[test]
fn php_pdo_works_in_transaction_mode() {
    in_transaction_mode(2, 1, &[program("php", ".", &["with_pdo.php"])]);
}

#[test]
fn php_pdo_works_in_session_mode() {
    in_session_mode(&[program("php", ".", &["with_pdo.php"])]);
}

/// A program, its folder below `tests/drivers`, and its arguments and environment.
struct Program {
    path: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
}

fn program(path: impl Into<PathBuf>, folder: &str, arguments: &[&str]) -> Program {
    Program {
        path: path.into(),
        folder: drivers().join(folder),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        environment: Vec::new(),
    }
}

fn drivers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers")
}

/// Something that `install-deps.sh` installs.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(
        path.exists(),
        "{} is missing: run scripts/install-deps.sh (make test does)",
        path.display()
    );
    path
}

fn python(arguments: &[&str]) -> Program {
    program(installed(".venv/bin/python"), ".", arguments)
}

/// Migrations and Django's own test runs, as it is by default and with prepared statements.
fn django() -> Vec<Program> {
    let manage = |prepares, arguments: &[&str]| Program {
        environment: vec![("DJANGO_PREPARES", prepares)],
        ..program(
            installed(".venv/bin/python"),
            "django_site",
            &[&["manage.py"], arguments].concat(),
        )
    };
    vec![
        manage("no", &["migrate", "--no-input"]),
        manage("no", &["check", "--database", "default"]),
        manage("yes", &["migrate", "--no-input", "library", "zero"]),
        // It makes a database for itself, and drops it.
        manage("no", &["test", "--no-input"]),
        manage("yes", &["test", "--no-input", "--keepdb", "--reverse"]),
    ]
}

fn node(script: &str) -> Program {
    installed("tests/drivers/node/node_modules");
    program("node", "node", &[script])
}

fn java(source: &str) -> Program {
    let driver = installed("/usr/share/java/postgresql.jar");
    program("java", "java", &["-cp", &driver.to_string_lossy(), source])
}

/// A program of the package in `tests/drivers/rust`, built once.
fn rust(name: &str) -> Program {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let target = BUILT.get_or_init(|| {
        let target = built();
        run(Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "--target-dir"])
            .arg(&target)
            .current_dir(drivers().join("rust")));
        target
    });
    program(target.join("debug").join(name), ".", &[])
}

/// A Go program, built with the drivers in Debian's packages, which are laid out for GOPATH.
fn go(source: &str) -> Program {
    installed("/usr/share/gocode/src/github.com");
    let binary = built().join(source.trim_end_matches(".go"));
    run(Command::new("go")
        .args(["build", "-o"])
        .arg(&binary)
        .arg(source)
        .current_dir(drivers().join("go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", built().join("go-cache"))
        .env_remove("GOFLAGS"));
    program(binary, ".", &[])
}

/// Where the drivers' programs are built.
fn built() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("drivers")
}

fn in_transaction_mode(threads: usize, databases: usize, programs: &[Program]) {
    let postgres = postgres();
    let pooler = pooler(&postgres, "transaction", POOL_SIZE, threads);
    let watch = Watch::start(&postgres);
    for program in programs {
        program.run("transaction", pooler.port());
    }
    let seen = watch.finish();
    assert!(seen.total <= databases * POOL_SIZE, "{seen:?}");
    postgres.await_all_idle();
}

/// Directly, too: what a program expects is what Postgres does.
fn in_session_mode(programs: &[Program]) {
    let postgres = postgres();
    for program in programs {
        program.run("direct", postgres.port());
    }
    let pooler = pooler(&postgres, "session", SESSION_POOL_SIZE, 2);
    for program in programs {
        program.run("session", pooler.port());
    }
    postgres.await_all_idle();
}

fn postgres() -> Postgres {
    let postgres = Postgres::setup()
        .method(Method::Scram)
        .max_connections(200)
        .start();
    postgres.sql("create role app login createdb password 'app''s secret'");
    postgres.sql("create database app owner app");
    postgres
}

fn pooler(postgres: &Postgres, mode: &str, size: usize, threads: usize) -> Pooler {
    Pooler::serve_with_users(
        postgres,
        &format!(
            "[runtime]\nthreads = {threads}\n\n[pool]\nmode = \"{mode}\"\nsize = {size}\n\n\
             [budget]\nmax_servers = 180\ncheck_every = 0\n\n\
             [auth]\nmethod = \"scram-sha-256\"\nusers_file = \"{{dir}}/users.txt\"\n"
        ),
        "\"app\" \"app's secret\"\n",
    )
}

impl Program {
    fn run(&self, mode: &str, port: u16) {
        run(Command::new("timeout")
            .arg(LIMIT)
            .arg(&self.path)
            .args(&self.arguments)
            .current_dir(&self.folder)
            .envs(self.environment.iter().copied())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", "app")
            .env("PGPASSWORD", "app's secret")
            .env("PGDATABASE", "app")
            .env("PGWEIR_MODE", mode));
    }
}
