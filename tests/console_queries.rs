//! Queries over the console's tables, compared with what a real Postgres answers of a table with the same rows.

mod support;

use std::fmt::Write;

use pgweir::admin::query::{Environment, Query};
use pgweir::admin::table::{Cell, Kind, Row, to_text};
use pgweir::row;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::{Postgres, Raw};

/// As many more as `PGWEIR_QUERIES` says.
const CASES: u32 = 600;

/// SHOW POOLS, with NULLs where the console has none, and pairs that are alike.
fn pools() -> Vec<Row> {
    let pool = |database: &'static str, user: &'static str, counts: [Option<i32>; 4], hosts| {
        let [active, waiting, used, maxwait] = counts;
        let mut row = row![database, user, active, waiting];
        row.extend((0..6).map(|_| Cell::Int(0)));
        row.extend(row![used, 0u8, 0u8, maxwait, 0u8, "transaction"]);
        row.push(Option::<&'static str>::into(hosts));
        row
    };
    let rows = vec![
        pool("app", "ann", [Some(3), Some(0), None, Some(0)], None),
        pool(
            "app",
            "bob",
            [Some(1), Some(7), Some(2), Some(2)],
            Some("disable"),
        ),
        pool(
            "shop",
            "ann",
            [Some(5), Some(2), None, Some(9)],
            Some("round-robin"),
        ),
        pool("shop", "eve", [Some(0), Some(1), Some(-4), None], None),
        pool("shop", "Eve_1", [Some(0), Some(1), Some(7), None], None),
        pool(
            "50%",
            "o'neil",
            [Some(12), None, Some(0), Some(2)],
            Some(""),
        ),
        pool("app", "ann", [Some(3), Some(0), None, Some(0)], None),
    ];
    let columns = Query::read("SELECT * FROM pools").expect("a query").columns;
    assert!(rows.iter().all(|row| row.len() == columns.len()));
    rows
}

/// The same in Postgres, and a connection to it.
fn in_postgres() -> (Postgres, Raw) {
    let postgres = Postgres::start();
    let columns = Query::read("SELECT * FROM pools").expect("a query").columns;
    let declared: Vec<_> = columns
        .iter()
        .map(|column| {
            let kind = match column.kind {
                Kind::Text | Kind::Time => "text collate \"C\"",
                kind => kind.name(),
            };
            format!("\"{}\" {kind}", column.name)
        })
        .collect();
    let rows: Vec<_> = pools()
        .iter()
        .map(|row| {
            let cells = columns.iter().zip(row).map(|(column, cell)| match cell {
                Cell::Null => "NULL".to_owned(),
                cell => format!("'{}'", to_text(column.kind, cell).replace('\'', "''")),
            });
            format!("({})", cells.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let mut raw = Raw::login(postgres.port(), "postgres", "postgres");
    // As the console's clock is set.
    raw.query("set timezone to 'GMT'").expect("a setting");
    raw.query(&format!("create table pools ({})", declared.join(", ")))
        .expect("a table");
    raw.query(&format!("insert into pools values {}", rows.join(", ")))
        .expect("rows");
    (postgres, raw)
}

/// Rows as text; or the error's code.
type Answer = Result<Vec<Vec<Option<String>>>, String>;

fn of_postgres(raw: &mut Raw, statement: &str) -> Answer {
    raw.query(statement)
        .map_err(|error| error.code().to_owned())
}

fn of_console(statement: &str) -> Answer {
    let code =
        |report: pgweir::wire::reply::Report| String::from_utf8_lossy(&report.code.0).into_owned();
    let query = Query::read(statement).map_err(code)?;
    let rows = if query.source.is_some() {
        pools()
    } else {
        vec![vec![]]
    };
    let rows = query.run(rows, &Environment::default()).map_err(code)?;
    let written = |row: &Row| {
        let cells = query.columns.iter().zip(row);
        cells
            .map(|(column, cell)| (*cell != Cell::Null).then(|| to_text(column.kind, cell)))
            .collect()
    };
    Ok(rows.iter().map(written).collect())
}

/// Whether both say the same. Numbers have as many decimal places as they like.
fn are_alike(one: &Answer, other: &Answer) -> bool {
    let cells = |one: &Option<String>, other: &Option<String>| match (one, other) {
        (Some(one), Some(other)) if one != other => {
            let (one, other) = (one.parse::<f64>(), other.parse::<f64>());
            matches!((one, other), (Ok(one), Ok(other)) if (one - other).abs() <= 1e-4 * one.abs().max(1.0))
        }
        (one, other) => one == other,
    };
    match (one, other) {
        (Ok(one), Ok(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| {
                    one.len() == other.len()
                        && one.iter().zip(other).all(|(one, other)| cells(one, other))
                })
        }
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

#[test]
fn answers_are_those_of_postgres() {
    let (_postgres, mut raw) = in_postgres();
    for statement in [
        // Three truth values.
        "SELECT NULL = NULL, NULL <> 1, NOT NULL::bool, NULL AND false, NULL AND true, NULL OR true, NULL OR false",
        "SELECT NULL IS NULL, 1 IS NULL, true IS NOT TRUE, NULL IS TRUE, NULL IS NOT FALSE, false IS FALSE",
        "SELECT NULL IN (1, 2), 1 IN (2, NULL), 1 IN (1, NULL), 1 NOT IN (2, NULL), 1 NOT IN (2, 3)",
        "SELECT NULL IS DISTINCT FROM NULL, 1 IS DISTINCT FROM NULL, 1 IS NOT DISTINCT FROM 1, 1 IS DISTINCT FROM 2",
        "SELECT 1 BETWEEN 1 AND 2, 2 BETWEEN 1 AND 2, 3 BETWEEN 1 AND 2, 0 NOT BETWEEN 1 AND 2, NULL BETWEEN 1 AND 2",
        "SELECT NULL LIKE 'x', 'x' LIKE NULL, 'a' || NULL, coalesce(NULL, NULL, 3), coalesce(NULL::int, 1.5)",
        // Numbers.
        "SELECT 7 / 2, -7 / 2, 7 % 3, -7 % 3, 7 / 2.0, 7.5 % 2, 2 * 3 + 4 - 1, - 3, + 3, 1.5 * 1.5",
        "SELECT 1 = 1.0, 2 > 1.5, -1 < 0.5, 1.0 <> 1, 3 >= 3, 3 <= 2",
        "SELECT 2.5::int, -2.5::int, (-2.5)::int, 2.4::int, true::int, 0::bool, 5::bool, '12'::int, ' 12 '::int, 3::text, 1.5::numeric",
        "SELECT floor(2.7), floor(-2.1), floor(3), 't'::bool, 'off'::bool, 'yes'::bool",
        "SELECT 1 / 0",
        "SELECT 1 % 0",
        "SELECT 'x'::int",
        "SELECT 'maybe'::bool",
        // Texts.
        "SELECT 'a' < 'b', 'a' || 'b' || 1, lower('AB'), upper('ab'), length('äb'), 'abc' LIKE 'a_c'",
        "SELECT 'A' ILIKE 'a', 'a' NOT LIKE 'b%', 'a%' LIKE 'a\\%', 'ab' LIKE 'a\\%', 'x' NOT ILIKE 'X'",
        "SELECT quote_ident('pools'), quote_ident('My\"Table'), quote_ident('1a'), quote_ident('a1_b')",
        "SELECT CASE WHEN false THEN 1 WHEN NULL THEN 2 WHEN true THEN 3 ELSE 4 END, CASE WHEN false THEN 'a' END",
        "SELECT CASE WHEN true THEN 1 ELSE 2.5 END",
        "SELECT extract(epoch from '2026-01-02T03:04:05Z'::timestamptz), '2026-01-02 03:04:05+02'::timestamptz < '2026-01-02 02:00:00Z'::timestamptz",
        "SELECT '2026-01-02'::timestamptz = '2026-01-02 00:00:00+00'::timestamptz, '2026-01-02T03:04:05.5Z'::timestamptz BETWEEN '2026-01-01' AND '2026-02-01'",
        // WHERE, ORDER BY, LIMIT.
        "SELECT \"user\" FROM pools WHERE cl_waiting > 0 ORDER BY maxwait DESC, \"user\" LIMIT 3",
        "SELECT \"user\", sv_used FROM pools ORDER BY sv_used, \"user\"",
        "SELECT \"user\", sv_used FROM pools ORDER BY sv_used DESC, \"user\"",
        "SELECT \"user\", sv_used FROM pools ORDER BY sv_used NULLS FIRST, \"user\" DESC",
        "SELECT \"user\", sv_used FROM pools ORDER BY sv_used DESC NULLS LAST, 1",
        "SELECT \"user\" FROM pools ORDER BY cl_active * -1, \"user\" OFFSET 2 LIMIT 2",
        "SELECT cl_active AS maxwait FROM pools ORDER BY maxwait",
        "SELECT \"user\" FROM pools ORDER BY 1 LIMIT NULL OFFSET 1",
        "SELECT \"user\" FROM pools ORDER BY 1 LIMIT 0",
        "SELECT \"user\" FROM pools ORDER BY 1 OFFSET 100",
        "SELECT \"user\" FROM pools LIMIT -1",
        "SELECT \"user\" FROM pools WHERE cl_waiting",
        "SELECT \"user\" FROM pools WHERE load_balance_hosts = NULL",
        "SELECT \"user\" FROM pools WHERE NOT (sv_used > 0) ORDER BY 1",
        "SELECT DISTINCT database, sv_used FROM pools ORDER BY 1, 2",
        "SELECT DISTINCT \"user\" FROM pools ORDER BY \"user\" DESC LIMIT 2",
        "SELECT DISTINCT \"user\" FROM pools ORDER BY maxwait",
        "SELECT DISTINCT upper(\"user\") FROM pools ORDER BY upper(\"user\") DESC",
        "SELECT DISTINCT database, count(*) FROM pools GROUP BY database ORDER BY count(*) DESC, database",
        "SELECT p.database AS d FROM pools p WHERE p.\"user\" = 'ann' ORDER BY d DESC",
        "SELECT pools.* FROM pools WHERE pools.cl_active = 12",
        "SELECT p.* FROM pools WHERE p.cl_active = 12",
        "SELECT nothing FROM pools",
        "SELECT \"user\" FROM pools ORDER BY 2",
        // Groups.
        "SELECT count(*), count(sv_used), count(DISTINCT sv_used), count(DISTINCT \"user\") FROM pools",
        "SELECT sum(sv_used), avg(sv_used), min(sv_used), max(sv_used), min(\"user\"), max(\"user\") FROM pools",
        "SELECT sum(sv_used), avg(sv_used), count(*), max(\"user\") FROM pools WHERE database = 'none'",
        "SELECT sum(DISTINCT cl_active), avg(DISTINCT cl_waiting), count(DISTINCT NULL::int) FROM pools",
        "SELECT database, count(*), sum(cl_active) FROM pools GROUP BY database ORDER BY database",
        "SELECT sv_used, count(*) FROM pools GROUP BY sv_used ORDER BY sv_used",
        "SELECT count(*) FROM pools WHERE database = 'none' GROUP BY database",
        "SELECT count(*) FROM pools HAVING count(*) > 100",
        "SELECT database FROM pools GROUP BY database HAVING sum(cl_waiting) > 3 AND count(*) < 5 ORDER BY 1",
        "SELECT database || '!', cl_active % 2 AS odd, count(*) FROM pools GROUP BY database, cl_active % 2 ORDER BY 1, odd",
        "SELECT upper(database) AS d FROM pools GROUP BY d ORDER BY count(*) DESC, d",
        "SELECT upper(database) AS database, count(*) FROM pools GROUP BY database ORDER BY 1",
        "SELECT cl_active % 2 AS cl_active, count(*) FROM pools GROUP BY cl_active ORDER BY 1, 2",
        "SELECT CASE WHEN cl_active > 2 THEN 'many' ELSE 'few' END AS what, count(*) FROM pools GROUP BY 1 ORDER BY what",
        "SELECT coalesce(sv_used, -1) + max(cl_active) FROM pools GROUP BY sv_used ORDER BY 1",
        "SELECT sum(cl_active) / count(*), sum(cl_active)::numeric / count(*) FROM pools",
        "SELECT database, cl_active FROM pools GROUP BY database",
        "SELECT count(*) FROM pools WHERE count(*) > 1",
        "SELECT sum(count(*)) FROM pools",
        "SELECT sum(\"user\") FROM pools",
        "SELECT count(*) FROM pools GROUP BY count(*)",
        "SELECT count(*) FROM pools GROUP BY 1",
        "SELECT database, count(*) AS n FROM pools GROUP BY database, n",
        "SELECT \"user\" > 5 FROM pools",
        "SELECT 1 + true",
        "SELECT true AND 1",
    ] {
        let (expected, found) = (of_postgres(&mut raw, statement), of_console(statement));
        assert!(
            are_alike(&expected, &found),
            "{statement}\nPostgres: {expected:?}\nconsole:  {found:?}"
        );
    }
}

fn number() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => prop_oneof![Just("cl_active"), Just("cl_waiting"), Just("sv_used"), Just("maxwait")].prop_map(str::to_owned),
        2 => (-3..9i32).prop_map(|number| format!("({number})")),
        1 => Just("NULL::int".to_owned()),
        1 => Just("1.5".to_owned()),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        let text = text_leaf();
        prop_oneof![
            (
                inner.clone(),
                prop_oneof![Just("+"), Just("-"), Just("*")],
                inner.clone()
            )
                .prop_map(|(one, sign, other)| format!("({one} {sign} {other})")),
            (
                inner.clone(),
                prop_oneof![Just("/ 2"), Just("% 3"), Just("/ 2.0"), Just("/ 0")]
            )
                .prop_map(|(one, rest)| format!("({one} {rest})")),
            (inner.clone(), inner.clone())
                .prop_map(|(one, other)| format!("coalesce({one}, {other})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(one, other, third)| format!(
                "CASE WHEN {one} > 1 THEN {other} ELSE {third} END"
            )),
            inner
                .clone()
                .prop_map(|one| format!("floor(({one})::numeric)")),
            inner.prop_map(|one| format!("(- {one})")),
            text.prop_map(|text| format!("length({text})")),
        ]
    })
}

fn text_leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop_oneof![Just("database"), Just("\"user\""), Just("load_balance_hosts")].prop_map(str::to_owned),
        1 => prop_oneof![Just("'shop'"), Just("'a%'"), Just("'o''neil'"), Just("''")].prop_map(|text| format!("{text}::text")),
        1 => Just("NULL::text".to_owned()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    text_leaf().prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(one, other)| format!("({one} || {other})")),
            (inner.clone(), inner.clone())
                .prop_map(|(one, other)| format!("coalesce({one}, {other})")),
            inner.clone().prop_map(|one| format!("upper({one})")),
            inner.prop_map(|one| format!("lower({one})")),
        ]
    })
}

fn condition() -> impl Strategy<Value = String> {
    let signs = || {
        prop_oneof![
            Just("<"),
            Just("<="),
            Just("="),
            Just("<>"),
            Just(">="),
            Just(">")
        ]
    };
    let patterns = || {
        prop_oneof![
            Just("'%a%'"),
            Just("'_n_'"),
            Just("'%'"),
            Just("'50\\%'"),
            Just("'S%P'"),
            Just("NULL")
        ]
    };
    let not = || prop_oneof![Just(""), Just("NOT ")];
    let leaf = prop_oneof![
        (number(), signs(), number())
            .prop_map(|(one, sign, other)| format!("{one} {sign} {other}")),
        (text(), signs(), text()).prop_map(|(one, sign, other)| format!("{one} {sign} {other}")),
        (
            text(),
            not(),
            prop_oneof![Just("LIKE"), Just("ILIKE")],
            patterns()
        )
            .prop_map(|(text, not, like, pattern)| format!("{text} {not}{like} {pattern}")),
        (number(), not(), number(), number())
            .prop_map(|(one, not, low, high)| format!("{one} {not}BETWEEN {low} AND {high}")),
        (number(), not(), number(), number())
            .prop_map(|(one, not, a, b)| format!("{one} {not}IN ({a}, {b})")),
        (text(), prop_oneof![Just("IS NULL"), Just("IS NOT NULL")])
            .prop_map(|(one, is)| format!("{one} {is}")),
        (
            number(),
            prop_oneof![Just("IS DISTINCT FROM"), Just("IS NOT DISTINCT FROM")],
            number()
        )
            .prop_map(|(one, is, other)| format!("{one} {is} {other}")),
    ];
    leaf.prop_recursive(3, 6, 2, |inner| {
        let is = prop_oneof![
            Just("IS TRUE"),
            Just("IS NOT TRUE"),
            Just("IS FALSE"),
            Just("IS NOT FALSE")
        ];
        prop_oneof![
            (
                inner.clone(),
                prop_oneof![Just("AND"), Just("OR")],
                inner.clone()
            )
                .prop_map(|(one, and, other)| format!("({one} {and} {other})")),
            inner.clone().prop_map(|one| format!("NOT ({one})")),
            (inner, is).prop_map(|(one, is)| format!("(({one}) {is})")),
        ]
    })
}

/// ORDER BY all outputs, so that there is one right order, and a part of it.
fn order_and_limit(outputs: usize) -> impl Strategy<Value = String> {
    let ways = prop_oneof![
        Just(""),
        Just(" ASC"),
        Just(" DESC"),
        Just(" NULLS FIRST"),
        Just(" DESC NULLS LAST")
    ];
    let order: Vec<usize> = (1..=outputs).collect();
    let keys = (
        Just(order).prop_shuffle(),
        proptest::collection::vec(ways, outputs),
    );
    let bounds = (proptest::option::of(0..5u8), proptest::option::of(0..3u8));
    (keys, bounds).prop_map(|((order, ways), (limit, offset))| {
        let keys: Vec<_> = order
            .iter()
            .zip(ways)
            .map(|(place, way)| format!("{place}{way}"))
            .collect();
        let mut text = format!(" ORDER BY {}", keys.join(", "));
        if let Some(limit) = limit {
            write!(text, " LIMIT {limit}").expect("a String takes all");
        }
        if let Some(offset) = offset {
            write!(text, " OFFSET {offset}").expect("a String takes all");
        }
        text
    })
}

fn plain_query() -> impl Strategy<Value = String> {
    let value = || {
        prop_oneof![
            number(),
            text(),
            condition().prop_map(|condition| format!("({condition})"))
        ]
    };
    let filter = proptest::option::of(condition());
    (any::<bool>(), value(), value(), filter, order_and_limit(2)).prop_map(
        |(distinct, one, other, filter, rest)| {
            let distinct = if distinct { "DISTINCT " } else { "" };
            let filter = filter.map_or(String::new(), |filter| format!(" WHERE {filter}"));
            format!("SELECT {distinct}{one} AS a, {other} AS b FROM pools{filter}{rest}")
        },
    )
}

fn aggregate() -> impl Strategy<Value = String> {
    let distinct = || prop_oneof![2 => Just(""), 1 => Just("DISTINCT ")];
    let functions = prop_oneof![
        Just("sum"),
        Just("avg"),
        Just("min"),
        Just("max"),
        Just("count")
    ];
    prop_oneof![
        Just("count(*)".to_owned()),
        (functions, distinct(), number())
            .prop_map(|(name, distinct, of)| format!("{name}({distinct}{of})")),
        (
            prop_oneof![Just("min"), Just("max"), Just("count")],
            distinct(),
            text()
        )
            .prop_map(|(name, distinct, of)| format!("{name}({distinct}{of})")),
    ]
}

fn grouped_query() -> impl Strategy<Value = String> {
    let key = prop_oneof![number(), text()];
    let filters = (
        proptest::option::of(condition()),
        proptest::option::of(0..3u8),
    );
    (key, aggregate(), aggregate(), filters, order_and_limit(3)).prop_map(|(key, one, other, (filter, having), rest)| {
        let filter = filter.map_or(String::new(), |filter| format!(" WHERE {filter}"));
        let having = having.map_or(String::new(), |most| format!(" HAVING count(*) > {most}"));
        format!("SELECT {key} AS k, {one} AS a, {other} AS b FROM pools{filter} GROUP BY 1{having}{rest}")
    })
}

#[test]
fn any_querys_answer_is_that_of_postgres() {
    let (_postgres, mut raw) = in_postgres();
    let more = std::env::var("PGWEIR_QUERIES").ok();
    let more: u32 = more.map_or(0, |more| more.parse().expect("PGWEIR_QUERIES is a number"));
    let mut runner = TestRunner::new(Config {
        cases: CASES + more,
        failure_persistence: None,
        ..Config::default()
    });
    let raw = std::cell::RefCell::new(&mut raw);
    let outcome = runner.run(&prop_oneof![plain_query(), grouped_query()], |statement| {
        let expected = of_postgres(&mut raw.borrow_mut(), &statement);
        let found = of_console(&statement);
        // A row that is filtered out, or a branch not taken, may be computed by one and not by the other.
        let is_error = |answer: &Answer, code: &str| matches!(answer, Err(found) if found == code);
        let divides = |answer| is_error(answer, "22012");
        if is_error(&found, "54001")
            || divides(&expected)
            || divides(&found)
            || are_alike(&expected, &found)
        {
            return Ok(());
        }
        Err(TestCaseError::fail(format!(
            "{statement}\nPostgres: {expected:?}\nconsole:  {found:?}"
        )))
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
