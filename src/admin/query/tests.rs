use proptest::prelude::*;

use super::*;
use crate::admin::table::to_text;
use crate::row;

/// database, user, cl_active, cl_waiting and so on; maxwait is the fourteenth.
fn pools() -> Vec<Row> {
    let pool =
        |database: &'static str, user: &'static str, active: u32, waiting: u32, maxwait: u32| {
            let mut row = row![database, user, active, waiting];
            row.extend((0..9).map(|_| Cell::Int(0)));
            row.extend(row![maxwait, 0u8, "transaction", Cell::Null]);
            row
        };
    vec![
        pool("app", "ann", 3, 0, 0),
        pool("app", "bob", 1, 7, 2),
        pool("shop", "ann", 5, 2, 9),
        pool("shop", "eve", 0, 1, 4),
    ]
}

fn environment() -> Environment {
    Environment {
        user: "ann".to_owned(),
        database: "pgweir".to_owned(),
        pid: 7,
        parameters: vec![],
    }
}

/// The rows, their cells with bars between them; or the code of the error.
fn asked_with(statement: &str, parameters: &[Option<&str>]) -> Result<Vec<String>, String> {
    let told = |report: Report| {
        let code = String::from_utf8_lossy(&report.code.0).into_owned();
        format!("{code} {}", report.message)
    };
    let query = Query::read(statement).map_err(told)?;
    let rows = if query.source.is_some() {
        pools()
    } else {
        vec![vec![]]
    };
    let given: Vec<_> = parameters
        .iter()
        .map(|value| value.map(str::to_owned))
        .collect();
    let environment = Environment {
        parameters: query.read_parameters(&given).map_err(told)?,
        ..environment()
    };
    let rows = query.run(rows, &environment).map_err(told)?;
    let written = |row: &Row| {
        let cells = query.columns.iter().zip(row);
        let cells: Vec<_> = cells
            .map(|(column, cell)| to_text(column.kind, cell))
            .collect();
        assert_eq!(cells.len(), row.len());
        cells.join("|")
    };
    Ok(rows.iter().map(written).collect())
}

fn asked(statement: &str) -> Result<Vec<String>, String> {
    asked_with(statement, &[])
}

#[track_caller]
fn answers(statement: &str, expected: &[&str]) {
    let found = asked(statement);
    assert_eq!(
        found.as_deref(),
        Ok(&expected
            .iter()
            .map(|row| (*row).to_owned())
            .collect::<Vec<_>>()[..]),
        "{statement}"
    );
}

#[test]
fn tables_are_filtered_ordered_and_cut() {
    answers(
        "SELECT * FROM pools WHERE cl_waiting > 0 ORDER BY maxwait DESC LIMIT 2",
        &[
            "shop|ann|5|2|0|0|0|0|0|0|0|0|0|9|0|transaction|",
            "shop|eve|0|1|0|0|0|0|0|0|0|0|0|4|0|transaction|",
        ],
    );
    answers(
        "select p.database AS db, user from pgbouncer.pools p where user = 'ann' order by db desc",
        &["shop|ann", "app|ann"],
    );
    answers(
        "SELECT user FROM pools ORDER BY cl_active OFFSET 3",
        &["ann"],
    );
    answers(
        "SELECT DISTINCT database FROM pools ORDER BY 1",
        &["app", "shop"],
    );
    answers(
        "SELECT user FROM pools WHERE (database LIKE 's%' OR cl_waiting BETWEEN 5 AND 8) AND NOT user IN ('eve', 'x') ORDER BY user DESC",
        &["bob", "ann"],
    );
    answers("SELECT user FROM pools WHERE load_balance_hosts = 'x'", &[]);
    answers(
        "SELECT count(*) FROM pools WHERE load_balance_hosts IS NULL",
        &["4"],
    );
    answers(
        "SELECT user FROM pools WHERE maxwait * 2 + 1 = 9 AND database || user ilike 'SHOPE%'",
        &["eve"],
    );
    answers(
        "SELECT user FROM pools ORDER BY database DESC, cl_active LIMIT 1",
        &["eve"],
    );
}

#[test]
fn tables_are_counted_and_summed_up_by_group() {
    answers(
        "SELECT count(*), sum(cl_waiting), max(maxwait), min(user), avg(cl_active) FROM pools",
        &["4|10|9|ann|2.250000"],
    );
    answers(
        "SELECT database, sum(cl_active) AS n, count(DISTINCT user) FROM pools GROUP BY database HAVING sum(cl_active) > 4 ORDER BY n DESC",
        &["shop|5|2"],
    );
    answers(
        "SELECT user, count(*) c FROM pools GROUP BY 1 ORDER BY c DESC, user LIMIT 1",
        &["ann|2"],
    );
    // Of bigints, as in Postgres: without rest.
    answers("SELECT sum(cl_active) / count(*) FROM pools", &["2"]);
    answers(
        "SELECT sum(cl_active)::numeric / count(*) FROM pools",
        &["2.250000"],
    );
    answers(
        "SELECT count(*), sum(cl_active), coalesce(max(maxwait), -1) FROM pools WHERE database = 'none'",
        &["0||-1"],
    );
    answers(
        "SELECT user, count(*) FROM pools WHERE database = 'none' GROUP BY user",
        &[],
    );
    answers(
        "SELECT upper(database) FROM pools GROUP BY upper(database) ORDER BY sum(maxwait)",
        &["APP", "SHOP"],
    );
}

#[test]
fn what_drivers_and_people_ask_without_a_table_is_answered() {
    answers("SELECT 1", &["1"]);
    answers(
        "SELECT 1 AS x, 'a' || 'b', 7 / 2, 7 / 2.0, -5 % 3, NULL, true",
        &["1|ab|3|3.500000|-2||t"],
    );
    answers(
        "select current_user, session_user, current_database(), current_schema(), pg_backend_pid()",
        &["ann|ann|pgweir|public|7"],
    );
    answers(
        "SELECT pg_catalog.current_setting('server_version_num')::int / 100 AS version",
        &["100"],
    );
    answers("SELECT set_config('jit', 'off', false)", &["off"]);
    let version = asked("SELECT version()").unwrap();
    assert!(
        version[0].starts_with("PostgreSQL 1.25.0/bouncer"),
        "{version:?}"
    );
    let now = asked("SELECT now()").unwrap();
    assert!(now[0].starts_with("20"), "{now:?}");
}

#[test]
fn parameters_have_the_types_of_what_they_are_compared_with() {
    let statement = "SELECT user FROM pools WHERE cl_waiting > $1 AND user <> $2 LIMIT $3";
    let query = Query::read(statement).unwrap();
    assert_eq!(query.parameters, [Kind::Int4, Kind::Text, Kind::Int8]);
    let found = asked_with(statement, &[Some("1"), Some("ann"), Some("5")]);
    assert_eq!(found, Ok(vec!["bob".to_owned()]));
    let found = asked_with(statement, &[Some("x"), Some("ann"), None]);
    assert_eq!(
        found,
        Err("22P02 invalid input syntax for type integer: \"x\"".to_owned())
    );
    assert_eq!(
        asked_with("SELECT $1::int + 1", &[Some("4")]),
        Ok(vec!["5".to_owned()])
    );
}

#[test]
fn look_ups_in_postgres_catalog_find_nothing() {
    for (statement, parameters) in [
        (
            "SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'",
            0,
        ),
        (
            "SELECT typname AS name, oid::regtype::text AS regtype FROM pg_type t WHERE t.oid = to_regtype($1) ORDER BY t.oid",
            1,
        ),
        (
            "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'timescaledb'",
            0,
        ),
        (
            "SELECT relname FROM pg_class, information_schema.schemata WHERE oid = $2 AND x LIKE $1",
            2,
        ),
        ("SELECT collname FROM pg_catalog.pg_collation", 0),
    ] {
        let query = Query::read(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        assert_eq!(
            query.parameters,
            vec![Kind::Text; parameters],
            "{statement}"
        );
        let given = vec![Some("x"); parameters];
        assert_eq!(asked_with(statement, &given), Ok(vec![]), "{statement}");
    }
    let query = Query::read("SELECT a.oid::int4, attname AS name FROM pg_attribute a").unwrap();
    let columns: Vec<_> = query
        .columns
        .iter()
        .map(|column| (&*column.name, column.kind))
        .collect();
    assert_eq!(columns, [("oid", Kind::Int4), ("name", Kind::Text)]);
    // What would be told if it were empty is no answer, and tables of the console are no part of it.
    for statement in [
        "SELECT count(*) FROM pg_class",
        "SELECT * FROM pg_stat_activity",
        "SELECT relname FROM pg_class JOIN pools ON true",
        "SELECT x FROM other.pg_class",
    ] {
        let refused = asked(statement).expect_err(statement);
        assert!(
            refused.starts_with("42P01") || refused.starts_with("0A000"),
            "{refused}"
        );
    }
}

#[test]
fn what_is_not_known_is_refused_with_a_reason() {
    for (statement, expected) in [
        (
            "SELECT * FROM nonsense",
            "42P01 relation \"nonsense\" does not exist",
        ),
        (
            "SELECT * FROM pg_catalog.pg_class",
            "42P01 relation \"pg_catalog.pg_class\" does not exist",
        ),
        (
            "SELECT nonsense FROM pools",
            "42703 column \"nonsense\" does not exist",
        ),
        (
            "SELECT x.user FROM pools",
            "42P01 missing FROM-clause entry",
        ),
        ("SELECT *", "42601"),
        ("SELECT 1 FROM", "42601"),
        ("SELECT 1; SELECT 2", "42601"),
        ("SELECT user FROM pools WHERE cl_active", "42804"),
        ("SELECT user FROM pools WHERE cl_active = 'x'", "22P02"),
        (
            "SELECT user FROM pools WHERE user > 5",
            "42883 operator does not exist: text > integer",
        ),
        (
            "SELECT user, count(*) FROM pools",
            "42803 column \"user\" must appear",
        ),
        ("SELECT * FROM pools WHERE count(*) > 1", "42803"),
        ("SELECT sum(count(*)) FROM pools", "42803"),
        ("SELECT sum(user) FROM pools", "42883"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT user FROM pools ORDER BY 9", "42P10"),
        ("SELECT DISTINCT user FROM pools ORDER BY maxwait", "42P10"),
        ("SELECT user FROM pools LIMIT -1", "2201W"),
        ("SELECT user FROM pools LIMIT cl_active", "42703"),
        (
            "SELECT user FROM pools, stats",
            "0A000 the console does not support more than one table",
        ),
        (
            "SELECT user FROM pools JOIN stats ON true",
            "0A000 the console does not support JOIN",
        ),
        ("SELECT 1 UNION SELECT 2", "0A000"),
        (
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "0A000 the console does not support WITH",
        ),
        ("SELECT (SELECT 1)", "0A000"),
        ("SELECT user FROM pools WHERE user ~ 'x'", "0A000"),
        (
            "SELECT pg_sleep(5)",
            "42883 the console has no function pg_sleep(5)",
        ),
        ("SELECT current_setting('nonsense')", "42704"),
        ("SELECT 'x'::regclass", "42704"),
        ("SELECT $0", "42P02"),
        ("SELECT $9999", "42P02"),
        ("DELETE FROM pools", "0A000"),
    ] {
        let refused = asked(statement).expect_err(statement);
        assert!(refused.starts_with(expected), "{statement}: {refused}");
    }
}

#[test]
fn long_and_deep_queries_are_refused_or_answered_but_never_overflow() {
    let deep = format!("SELECT {}1{}", "(".repeat(400), ")".repeat(400));
    assert!(asked(&deep).unwrap_err().starts_with("54001"));
    let nested = format!("SELECT {}1{}", "(".repeat(8), ")".repeat(8));
    assert_eq!(asked(&nested), Ok(vec!["1".to_owned()]));
    let minus = format!("SELECT {}1", "- ".repeat(900));
    assert!(asked(&minus).unwrap_err().starts_with("54001"));
    let chain = format!("SELECT 1{}", " + 1".repeat(95));
    assert_eq!(asked(&chain), Ok(vec!["96".to_owned()]));
    let long = format!("SELECT 1{}", " + 1".repeat(105));
    assert!(asked(&long).unwrap_err().starts_with("54001"));
    let list = format!("SELECT 1 WHERE 1 IN (2{})", ", 1".repeat(490));
    assert_eq!(asked(&list), Ok(vec!["1".to_owned()]));
    let longer = format!("SELECT 1 WHERE 1 IN (2{})", ", 1".repeat(510));
    assert!(asked(&longer).unwrap_err().starts_with("54001"));
    // Each of these is as deep as it is long, or deeper.
    for (before, after) in [
        ("- ", ""),
        ("NOT ", ""),
        ("", "::int"),
        ("", " IS NULL"),
        ("", " COLLATE x"),
        ("", " AND true"),
        ("", " LIKE 'x'"),
    ] {
        for times in [20, 40, 60, 95, 190, 900] {
            let nested = format!("SELECT {}1{}", before.repeat(times), after.repeat(times));
            let _ = asked(&nested);
        }
    }
    let pattern = format!("SELECT 1 FROM pools WHERE user LIKE '{}'", "%a".repeat(200));
    assert!(asked(&pattern).unwrap_err().starts_with("54000"));
    let longest = format!("SELECT '{}'", "x".repeat(20_000));
    assert!(asked(&longest).unwrap_err().starts_with("54001"));
    let large = format!("SELECT {}{}", i64::MAX, " * 9000000000000000000".repeat(3));
    assert!(asked(&large).unwrap_err().starts_with("22003"));
}

/// What a parser may read in more than one way must not be tried in all of them at every depth.
#[test]
fn what_nests_is_refused_before_its_readings_multiply() {
    for opening in [
        "NOT ",
        "NOT (",
        "NOT NOT (",
        "(",
        "((SELECT ",
        "- (",
        "f(",
        "IF(",
        "EXISTS (",
        "CASE ",
        "CASE WHEN ",
        "CAST(",
        "ARRAY[",
        "ROW(",
        "INTERVAL ",
        "INTERVAL (",
        "EXTRACT(YEAR FROM ",
        "POSITION(",
        "SUBSTRING(",
        "TRIM(",
        "current_time(",
        "date(",
        "1 IN (",
        "1 = ANY(",
        "x[",
        "1 BETWEEN ",
    ] {
        for times in [10, 45, 150, 450] {
            let statement = format!("SELECT {}", opening.repeat(times));
            asked(&statement).expect_err(opening);
        }
    }
}

proptest! {
    #[test]
    fn no_query_panics(words in proptest::collection::vec(
        prop_oneof![
            Just("SELECT"), Just("FROM pools"), Just("*"), Just("WHERE"), Just("cl_active"), Just("user"), Just(","), Just("("),
            Just(")"), Just("count(*)"), Just("sum(maxwait)"), Just("'x'"), Just("5"), Just("1.5"), Just("NULL"), Just("="),
            Just("-"), Just("/"), Just("AND"), Just("NOT"), Just("GROUP BY"), Just("ORDER BY"), Just("LIMIT"), Just("$1"), Just("::int"),
            Just("IN"), Just("LIKE"), Just("IS NULL"), Just("HAVING"), Just("DISTINCT"), Just("AS x"), Just("coalesce("),
        ], 0..14)
    ) {
        let _ = asked_with(&format!("SELECT {}", words.join(" ")), &[Some("1")]);
    }
}
