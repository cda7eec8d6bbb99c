use proptest::prelude::*;

use super::*;

/// Effects in one line: parameters, `?` for unknown ones, `*` for all, `#` for all statements, `-name` deallocated, `!` for a pin.
fn told(text: &[u8]) -> String {
    let effects = effects(text);
    let mut told: Vec<String> = effects.sets.iter().map(ToString::to_string).collect();
    told.extend(effects.resets.iter().map(|name| format!("~{name}")));
    told.extend(effects.sets_unknown.then(|| "?".to_owned()));
    told.extend(effects.resets_all.then(|| "*".to_owned()));
    told.extend(effects.discards.then(|| "#".to_owned()));
    told.extend(
        effects
            .deallocates
            .iter()
            .map(|(_, name)| format!("-{name}")),
    );
    told.extend(effects.pins.then(|| "!".to_owned()));
    told.join(" ")
}

fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(told(text.as_bytes()), *expected, "{text}");
        if !expected.is_empty() {
            assert!(may_have_effects(text.as_bytes()), "{text}");
        }
    }
}

#[test]
fn a_fingerprint_holds_no_literal() {
    for (text, told) in [
        ("select 1", "select ?"),
        (
            "SELECT * FROM t WHERE a=1.5e3 AND b = 'x''y'",
            "SELECT * FROM t WHERE a=? AND b = ?",
        ),
        ("select $1, 0x1F, E'a\\'b', $$ body $$", "select $1, ?"),
        (
            "insert into t values (1, 2, 'three'),(4,5,6)",
            "insert into t values (?),(?)",
        ),
        (
            "select /* 17 */ a1 -- 'secret'\n from \"T 1\"",
            "select a1 from \"T 1\"",
        ),
        (
            "alter role bob password 'secret'",
            "alter role bob password ?",
        ),
        ("set app.token to abc123", "set app.token to ..."),
        ("SET x = abc123", "SET x = ..."),
        (
            "update t set a = 5 where b = 'c'",
            "update t set a = ? where b = ?",
        ),
        ("select 'it\\'s secret'", "select ? ..."),
        ("select 'cut in the mid", "select"),
        ("", ""),
    ] {
        assert_eq!(fingerprint(text.as_bytes()).trim_end(), told, "{text}");
    }
    let long = "a, ".repeat(10_000);
    assert!(fingerprint(long.as_bytes()).len() < 400);
}

#[test]
fn set_names_its_parameter() {
    check(&[
        ("SET search_path = a, b", "search_path"),
        ("set Statement_Timeout to 5", "statement_timeout"),
        (
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'geqo'",
            "?",
        ),
        ("select setting from pg_catalog.pg_settings", ""),
        ("SET SESSION work_mem='1MB';", "work_mem"),
        ("SET app.user_id = '5'", "app.user_id"),
        ("SET app . \"User\" TO 5", "app.User"),
        ("SET \"DateStyle\" = iso", "DateStyle"),
        ("SET TIME ZONE 'UTC'", "timezone"),
        ("SET SESSION TIME ZONE 'UTC'", "timezone"),
        ("SET NAMES 'latin1'", "client_encoding"),
        ("SET ROLE none", "role"),
        ("SET SESSION ROLE none", "role"),
        ("SET SCHEMA 'x'", "search_path"),
        ("SET XML OPTION DOCUMENT", "xmloption"),
        ("SET SESSION AUTHORIZATION bob", "session_authorization"),
        (
            "SET SESSION SESSION AUTHORIZATION bob",
            "session_authorization",
        ),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "?"),
        ("SET U&\"\\0061\" = 1", "?"),
        ("SET local.x = 1", "local.x"),
        ("SET a.1 = 1", "?"),
        ("SET session.x = 1", "session.x"),
        ("SET time.x = 1", "time.x"),
        ("SET a = 1; SET b = 2;;", "a b"),
        ("SET", ""),
    ]);
}

#[test]
fn what_ends_with_the_transaction_is_no_effect() {
    check(&[
        ("SET LOCAL search_path = a", ""),
        ("SET LOCAL ROLE a", ""),
        ("SET LOCAL SESSION AUTHORIZATION a", ""),
        ("SET TRANSACTION READ ONLY", ""),
        ("SET SESSION TRANSACTION READ ONLY", ""),
        ("SET CONSTRAINTS ALL DEFERRED", ""),
        ("SET transaction_isolation = serializable", ""),
        ("RESET TRANSACTION ISOLATION LEVEL", ""),
        ("select set_config('a', 'b', true)", ""),
        ("select set_config($1, $2, TRUE)", ""),
        ("select set_config('a', 'b', 't')", ""),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", ""),
        ("PREPARE TRANSACTION 'x'", ""),
        ("DECLARE c CURSOR FOR SELECT 1", ""),
        (
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1)",
            "",
        ),
    ]);
}

#[test]
fn reset_names_its_parameter() {
    check(&[
        ("RESET search_path", "~search_path"),
        ("reset all", "*"),
        ("RESET ROLE", "~role"),
        ("RESET SESSION AUTHORIZATION", "~session_authorization"),
        ("RESET TIME ZONE", "~timezone"),
        ("RESET app.x;", "~app.x"),
        ("RESET \"all\"", "~all"),
        ("RESET u&\"x\"", "?"),
        ("DISCARD ALL", "* #"),
        ("DISCARD TEMP; DISCARD PLANS", ""),
    ]);
}

#[test]
fn set_config_is_found_wherever_it_stands() {
    check(&[
        (
            "SELECT set_config('search_path', 'x', false)",
            "search_path",
        ),
        ("SELECT pg_catalog.Set_Config('a', 'b'||'c', $1)", "a"),
        (
            "SELECT \"set_config\" /* c */ ('a', f(1, array[2, 3]), false)",
            "a",
        ),
        (
            "with x as (select set_config($$a.b$$,'1',false)) select 1",
            "a.b",
        ),
        ("select set_config(E'a\\x', 'b', false)", "?"),
        ("select set_config($1, $2, $3)", "?"),
        ("select set_config('a' || 'b', 'c', false)", "?"),
        ("select set_config(name, 'c', false) from t", "?"),
        (
            "select set_config(is_local => true, setting_name => 'a')",
            "?",
        ),
        (
            "select set_config('a', set_config('b', 'c', false), true)",
            "b",
        ),
        (
            "select set_config, 'set_config(''a'', ''b'', false)' from set_config",
            "",
        ),
        ("select \"SET_CONFIG\"('a','b',false)", ""),
    ]);
    let long = format!("select set_config('a', {} '', true)", "'' ||".repeat(100));
    assert_eq!(
        told(long.as_bytes()),
        "a",
        "the third argument is too far away"
    );
}

#[test]
fn deallocate_names_its_statement() {
    check(&[
        ("DEALLOCATE a", "-a"),
        ("deallocate prepare Abc;", "-abc"),
        ("DEALLOCATE \"A\"\"b\"", "-A\"b"),
        ("DEALLOCATE PREPARE", "-prepare"),
        ("DEALLOCATE ALL", "#"),
        ("DEALLOCATE PREPARE ALL", "#"),
        ("DEALLOCATE \"all\"", "-all"),
        ("deallocate/**/a;deallocate--\nb", "-a -b"),
        ("DEALLOCATE u&\"x\"", ""),
        ("DEALLOCATE", ""),
        ("DEALLOCATE a\"never closed", ""),
    ]);
    let told_when = [
        ("DEALLOCATE a", true),
        ("do $$ begin deallocate all; end $$", false),
    ];
    for (text, is_told) in told_when {
        assert_eq!(!effects(text.as_bytes()).in_code, is_told, "{text}");
    }
    let text = b"select 1; DEALLOCATE \"a b\" ; deallocate c";
    let ranges: Vec<_> = effects(text)
        .deallocates
        .into_iter()
        .map(|(at, _)| at)
        .collect();
    assert_eq!(ranges, [21..26, 40..41]);
    assert_eq!(&text[21..26], b"\"a b\"");
}

#[test]
fn what_changes_tables_alters() {
    for text in [
        "alter table t add n int",
        "/* so */ DROP type t",
        "create or replace view v as select 1",
        "select 1; drop table t",
        "do $$ begin alter table t add n int; end $$",
    ] {
        assert!(effects(text.as_bytes()).alters, "{text}");
        assert!(may_have_effects(text.as_bytes()), "{text}");
    }
    for text in [
        "create table t ()",
        "select 'drop table t'",
        "set x to 'alter'",
    ] {
        assert!(!effects(text.as_bytes()).alters, "{text}");
    }
}

#[test]
fn a_database_is_wanted_without_others() {
    for (text, wanted) in [
        ("drop database test_app", "test_app"),
        ("DROP DATABASE IF EXISTS \"Test\" WITH (FORCE);", "Test"),
        ("alter database A rename to b", "a"),
        ("create database b with owner x template = a", "a"),
        ("select 1; create database b template a", "a"),
    ] {
        assert_eq!(
            effects(text.as_bytes()).vacates.as_deref(),
            Some(wanted),
            "{text}"
        );
    }
    for text in [
        "create database b",
        "create table template (a int)",
        "drop table database",
    ] {
        assert_eq!(effects(text.as_bytes()).vacates, None, "{text}");
    }
}

#[test]
fn what_lives_in_the_session_pins() {
    check(&[
        ("PREPARE a AS SELECT 1", "!"),
        ("prepare transaction (int) as select 1", "!"),
        ("LISTEN a", "!"),
        ("LOAD 'auto_explain'", "!"),
        ("CREATE TEMP TABLE a (b int)", "!"),
        ("create temporary sequence a", "!"),
        ("CREATE LOCAL TEMP TABLE a ()", "!"),
        ("CREATE OR REPLACE TEMP VIEW a AS SELECT 1", "!"),
        ("CREATE TEMP TABLE a () ON COMMIT DELETE ROWS", "!"),
        (
            "CREATE TEMP TABLE a () ON COMMIT DROP; CREATE TEMP TABLE b ()",
            "!",
        ),
        ("CREATE TABLE pg_temp.a ()", "!"),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE a AS SELECT 1", "!"),
        ("SELECT 1 INTO TEMP a", "!"),
        ("select 1 into local temporary table a", "!"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "!"),
        (
            "declare c no scroll cursor with /* */ hold for select 1",
            "!",
        ),
        ("select pg_advisory_lock(1)", "!"),
        ("set local search_path = pg_temp, public", "!"),
        (
            "select nspname from pg_namespace where nspname = 'pg_temp_1'",
            "",
        ),
        ("select PG_TRY_ADVISORY_LOCK_SHARED (1, 2)", "!"),
        ("insert into temp values (1)", ""),
        ("select temp, temperature from template", ""),
        ("create table temp_a (temp int)", ""),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", ""),
        ("DECLARE c CURSOR FOR WITH hold AS (SELECT 1) SELECT 1", ""),
        ("UNLISTEN a; NOTIFY a", ""),
    ]);
}

#[test]
fn words_end_where_postgres_ends_them() {
    check(&[
        ("select 'SET a = 1; SET b = 2'", ""),
        ("select 'it''s; SET a = 1'", ""),
        ("select 'a\\'; SET a = 1; --'", "a"),
        ("select E'a\\'; SET a = 1; --'", ""),
        ("select e'\\\\'; SET a = 1", "a"),
        ("select \"a;\"\";\"; SET a = 1", "a"),
        ("select $$; SET a = 1;$$", ""),
        ("select $a$; $b$ $$; SET a = 1; $a$; SET b = 1", "b"),
        ("select a$b$; SET a = 1; select $b$;$b$", "a"),
        ("select $1; SET a = 1", "a"),
        ("select $1$; SET a = 1", "a"),
        ("select 1 -- ; SET a = 1", ""),
        ("select 1 -- '\n; SET a = 1", "a"),
        ("select 1 --\r; SET a = 1", "a"),
        (
            "select 1 /* ; SET a = 1; /* */ ; SET b = 1 */; SET c = 1",
            "c",
        ),
        ("select 1 +/**/-- \n-1; SET a = 1", "a"),
        ("/* app */ -- x\n SET/**/a/**/=/**/1", "a"),
        (" \t\n\x0b\x0cSET a = 1", "a"),
        ("select 1; /* b */ SET a = 1", "a"),
        ("select 'never closed; SET a = 1", ""),
        ("select /* never closed; SET a = 1", ""),
        ("select 1\0; SET a = 1", ""),
        ("update t set a = 1; update t set local = 1", ""),
        ("alter role a set search_path = b", ""),
        ("begin; set a = 1; commit", "a"),
    ]);
    assert_eq!(told(b"SET \xff = 1"), "?");
    assert_eq!(told(b"DEALLOCATE \xff"), "");
    assert_eq!(told("SET Ä = 1".as_bytes()), "Ä");
}

#[test]
fn the_code_of_a_do_is_looked_at() {
    check(&[
        (
            "DO $$ begin perform set_config('a', 'b', false); end $$",
            "a",
        ),
        ("DO LANGUAGE plpgsql 'begin set a = 1; end'", "a"),
        (
            "do $$ begin if x then set a = 1; else reset b; end if; end $$",
            "a ~b",
        ),
        ("do $$ begin update t set a = 1; end $$", ""),
        ("do $$ begin execute 'set a = 1'; end $$", "a"),
        ("do $$ begin create temp table a (); end $$", "!"),
        (
            "do $$ begin create temp table a () on commit drop; end $$; select 1",
            "",
        ),
        (
            "create function f() returns void as $$ set a = 1 $$ language sql",
            "",
        ),
    ]);
}

#[test]
fn harmless_texts_are_told_at_the_first_look() {
    for text in [
        "",
        ";",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 5;",
        "UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 2;",
        "BEGIN; INSERT INTO temperatures VALUES (1); END;",
        "/* app */ select template, item from pg_template limit 1 offset 5",
    ] {
        assert!(!may_have_effects(text.as_bytes()), "{text}");
    }
}

#[test]
fn hostile_texts_take_linear_time() {
    const SIZE: usize = 1 << 20;
    for (piece, tail) in [
        ("/*", ""),
        (";/*", ""),
        ("set_config(", ""),
        ("begin declare ", "$$"),
        ("set a.", ""),
        ("a.", "= 1"),
        ("$a$b", ""),
        ("set session ", ""),
        ("''", ""),
        ("; ", ""),
        ("$$ do $$ ", ""),
    ] {
        for start in ["", "do $$ begin ", "set ", ";/*"] {
            let mut text = start.to_owned();
            text.push_str(&piece.repeat(SIZE / piece.len()));
            text.push_str(tail);
            let _ = may_have_effects(text.as_bytes());
            let _ = effects(text.as_bytes());
        }
    }
}

/// Texts of the words and signs that matter.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(vec![
            "set", "reset", "session", "local", "all", "deallocate", "prepare", "discard", "listen", "set_config",
            "create", "temp", "into", "temporary", "declare", "with", "hold", "for", "do", "begin", "pg_temp.", "select",
            "pg_advisory_lock", "a", "U&", "e", "'", "''", "\"", "$$", "$a$", "$", "(", ")", ",", ";", ";", "--", "\n",
            "/*", "*/", "=", "to", ".", "1", "\\", "\0", "\x0b", "true", "replace", "on commit drop",
            "alter", "drop", "database", "template",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ];
    proptest::collection::vec((piece, any::<bool>(), any::<bool>()), 0..30).prop_map(|pieces| {
        let spaced = pieces.into_iter().map(|(mut piece, upper, space)| {
            if upper {
                piece.make_ascii_uppercase();
            }
            piece.extend(space.then_some(b' '));
            piece
        });
        spaced.collect::<Vec<_>>().concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn the_quick_look_never_misses_an_effect(text in text()) {
        if effects(&text) != Effects::default() {
            prop_assert!(may_have_effects(&text));
        }
    }

    #[test]
    fn a_deallocated_name_can_be_replaced(text in text()) {
        let mut replaced = text.clone();
        let found = effects(&text).deallocates;
        for (range, _) in found.iter().rev() {
            prop_assert!(range.end <= text.len());
            replaced.splice(range.clone(), *b"\"another one\"");
        }
        let again = effects(&replaced).deallocates;
        prop_assert_eq!(again.len(), found.len());
        for (_, name) in again {
            prop_assert_eq!(name, "another one");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let found = effects(&bytes);
        prop_assert!(may_have_effects(&bytes) || found == Effects::default());
    }
}
