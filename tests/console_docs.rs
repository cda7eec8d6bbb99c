//! `docs/console.md` is made from the console's table of commands.

use std::fmt::Write;
use std::path::Path;

use pgweir::admin::command::{COMMANDS, Command, Run};
use pgweir::admin::process::Access;

/// What stands before the tables.
const FRONT: &str = "\
# The console

`psql -h pgweir -p 6432 pgweir` (or database `pgbouncer`). `auth.admins` may give every command, `auth.stats` may look; who is in
neither is refused. The user that pgweir runs as needs no password over the unix socket, as user `pgweir` or `pgbouncer`.

Columns, tags and errors are PgBouncer 1.25's. Both query protocols work, so drivers can read the tables; what drivers say to every
server (`SET extra_float_digits`, `SHOW server_version`, `BEGIN`, `DISCARD ALL`) is answered and changes nothing.

Every table can be asked a question:

```sql
SELECT * FROM pools WHERE cl_waiting > 0 ORDER BY maxwait DESC LIMIT 5;
SELECT application_name, count(*) FROM clients GROUP BY 1 ORDER BY 2 DESC;
SELECT database, sum(sv_active) AS busy FROM pools GROUP BY database HAVING sum(sv_active) > 10;
```

One table at a time: `WHERE`, `GROUP BY`, `HAVING`, `DISTINCT`, `ORDER BY`, `LIMIT`, `OFFSET`, parameters (`$1`), comparisons, `LIKE`, `IN`,
`BETWEEN`, `CASE`, arithmetic, casts, `count`, `sum`, `avg`, `min`, `max`, `coalesce`, `lower`, `upper`, `length`, `floor`, `now()`,
`extract(epoch from ...)`. Joins and queries in queries are refused. `SELECT pools` is `SHOW POOLS`, as in PgBouncer. Times are texts, as
in PgBouncer; `connect_time::timestamptz` makes one that can be compared.

The answers are Postgres'; `tests/console_queries.rs` compares them. Bounds keep a query from harming the pool: 16 KiB, 1000 words and
signs of which 100 may be operators, 25 levels of parentheses, patterns of 256 bytes; beyond them it is refused with `54001` or `54000`.
`SAVEPOINT`, `RELEASE` and `ROLLBACK TO` are answered, for drivers that nest transactions.

## Tools

* **psycopg, asyncpg, SQLAlchemy (on psycopg, psycopg2 and asyncpg), node-postgres, pgjdbc** read the console with their default settings.
* **Postgres' catalog** is empty here: what drivers look up in `pg_catalog` and `information_schema` (the type `hstore`, extensions,
  relations) is answered with no rows. `information_schema.tables` and `.columns` hold the console's own tables.
* **Grafana's Postgres data source**: the test of the connection, its editor's lists of tables and columns, and queries in both formats,
  `$__time`, `$__timeFilter` and `$__timeGroup` among them. Ask with `SELECT`: it passes over what `SHOW` answers. For a time series of
  what is so now: `SELECT now() AS time, database AS metric, cl_waiting FROM pools`.
* **`sql_exporter`** (Debian's `prometheus-sql-exporter`) reads both `SELECT` and `SHOW`. Give columns called `database` and `user` other
  names (`AS pool_database`): it has labels of its own by these.
* **`prometheus-pgbouncer-exporter`** from PyPI works as it is. Debian's package of that name (1.7, of 2015) does not, nor before any
  PgBouncer since 1.8, Debian's own 1.18 among them: it wants `total_requests` of `SHOW STATS`. With the columns' present names in
  (`tests/drivers/console/debians_exporter.py`) it does. The exporter of prometheus-community and Datadog's integration find every
  column that they read.
* For all of these `auth.stats` is enough. Where `auth.method` is `trust`, only this machine gets at the console.

Where it differs: a session's `id` and a server connection's are counted apart; `ptr` and `link` are those numbers, marked; the columns
about buffers are 0, since a connection has none at rest; SHOW FDS has no descriptors and no secrets; SHOW MEM tells what the process holds.

This page is made from the table of commands: see `tests/console_docs.rs`.
";

fn page() -> String {
    let mut page = FRONT.to_owned();
    let is_table = |command: &&Command| matches!(command.run, Run::Show { .. });
    page.push_str("\n## Commands\n\n| command | for | what it does |\n|---|---|---|\n");
    for command in COMMANDS.iter().filter(|command| !is_table(command)) {
        let usage = command.usage().replace('|', "\\|");
        writeln!(page, "| `{usage}` | {} | {} |", who(command), command.help).unwrap();
    }
    page.push_str(
        "\n## Tables\n\n| command | for | what it shows | columns |\n|---|---|---|---|\n",
    );
    for command in COMMANDS.iter().filter(is_table) {
        let Run::Show { columns, .. } = command.run else {
            continue;
        };
        let names: Vec<_> = columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.kind.name()))
            .collect();
        let usage = command.usage().replace('|', "\\|");
        writeln!(
            page,
            "| `{usage}` | {} | {} | {} |",
            who(command),
            command.help,
            names.join(", ")
        )
        .unwrap();
    }
    page
}

fn who(command: &Command) -> &'static str {
    match command.access {
        Access::Admin => "admins",
        Access::Stats => "stats",
    }
}

#[test]
fn docs_console_md_is_current() {
    let current = page();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/console.md");
    if std::fs::read_to_string(&file).unwrap_or_default() != current {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console.md");
        std::fs::write(&made, current).unwrap();
        panic!(
            "docs/console.md is out of date: cp {} {}",
            made.display(),
            file.display()
        );
    }
}
