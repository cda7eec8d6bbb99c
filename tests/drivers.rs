//! Python's drivers and Django, through pgweir in transaction mode, as their users run them.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::process::run;
use support::{Method, Pooler, Postgres, Watch};

with_one_and_two_threads!(
    psycopg_works_as_with_postgres,
    asyncpg_works_as_with_postgres,
    django_migrates_and_passes_its_tests,
);

const POOL_SIZE: usize = 4;

fn psycopg_works_as_with_postgres(threads: usize) {
    through_pgweir(threads, 1, ".", &[&["with_psycopg.py"]]);
}

fn asyncpg_works_as_with_postgres(threads: usize) {
    through_pgweir(threads, 1, ".", &[&["with_asyncpg.py"]]);
}

fn django_migrates_and_passes_its_tests(threads: usize) {
    let runs: &[&[&str]] = &[
        &["manage.py", "migrate", "--no-input"],
        &["manage.py", "check", "--database", "default"],
        &["manage.py", "migrate", "--no-input", "library", "zero"],
        // Dropping the test database would need all pooled connections to it closed first.
        &["manage.py", "test", "--no-input", "--keepdb"],
        &["manage.py", "test", "--no-input", "--keepdb", "--reverse"],
    ];
    // Its test run uses three databases: postgres, app and test_app.
    through_pgweir(threads, 3, "django_site", runs);
}

/// Runs Python with each of these arguments, in a folder of `tests/drivers`; programs find the database in PGHOST and so on.
fn through_pgweir(threads: usize, databases: usize, folder: &str, runs: &[&[&str]]) {
    let postgres = Postgres::setup().method(Method::Scram).start();
    postgres.sql("create role app login createdb password 'app''s secret'");
    postgres.sql("create database app owner app");
    let pooler = Pooler::serve_with_users(
        &postgres,
        &format!(
            "[runtime]\nthreads = {threads}\n\n[pool]\nsize = {POOL_SIZE}\n\n\
             [auth]\nmethod = \"scram-sha-256\"\nusers_file = \"{{dir}}/users.txt\"\n"
        ),
        "\"app\" \"app's secret\"\n",
    );
    let watch = Watch::start(&postgres);
    for arguments in runs {
        run(Command::new(interpreter())
            .args(*arguments)
            .current_dir(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/drivers")
                    .join(folder),
            )
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", pooler.port().to_string())
            .env("PGUSER", "app")
            .env("PGPASSWORD", "app's secret")
            .env("PGDATABASE", "app"));
    }
    let seen = watch.finish();
    assert!(seen.total <= databases * POOL_SIZE, "{seen:?}");
    postgres.await_all_idle();
}

fn interpreter() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    assert!(
        python.exists(),
        "the drivers are not installed: run scripts/install-deps.sh (make test does)"
    );
    python
}
