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
`BETWEEN`, arithmetic, casts, `count`, `sum`, `avg`, `min`, `max`, `coalesce`, `lower`, `upper`, `length`. Joins and queries in queries
are refused. `SELECT pools` is `SHOW POOLS`, as in PgBouncer.

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
