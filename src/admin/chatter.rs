//! What drivers and tools say to every server before and between their user's queries. It is answered so that they go on; none of it
//! changes anything.

use super::command::{Outcome, Plan};
use super::console::server_version;
use super::show::process::versions;
use super::table::{Cell, Column, Kind, Table};
use super::words::Word;
use crate::wire::reply::{Report, SqlState};

/// What SHOW and `current_setting` tell, the first five as PgBouncer does.
const SETTINGS: [(&str, &str); 25] = [
    ("client_encoding", "UTF-8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_min_messages", "notice"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "on"),
    ("jit", "off"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("row_security", "on"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version_num", "10025"),
    ("statement_timeout", "0"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

/// The value of a setting that drivers ask every server for.
pub fn setting(name: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("server_version") {
        return Some(server_version());
    }
    let known = SETTINGS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map(|(_, value)| (*value).to_owned())
}

/// There is none of that name.
pub fn no_setting(name: &str) -> Report {
    let name: String = name.chars().take(63).collect();
    Report::new(
        SqlState(*b"42704"),
        format!("unrecognized configuration parameter \"{name}\""),
    )
}

/// What `version()` tells. Tools look for the first word, and for a number after it.
pub fn version() -> String {
    format!(
        "PostgreSQL {}, the console of {}",
        server_version(),
        versions()
    )
}

/// What to do with a statement, if it is of this kind.
pub fn plan(words: &[Word]) -> Option<Plan> {
    let is = |index: usize, word: &str| words.get(index).is_some_and(|found| found.is(word));
    let first = words.first()?;
    if first.is("SHOW") {
        return show(&words[1..]);
    }
    if first.is("SET") {
        return is_setting(&words[1..]).then(|| {
            let ignored = Report::new(SqlState::SUCCESSFUL_COMPLETION, "SET ignored");
            answer("SET", vec![ignored])
        });
    }
    if first.is("DISCARD") && is(1, "ALL") {
        return Some(Plan::Forget(None, "DISCARD ALL"));
    }
    if first.is("DEALLOCATE") {
        let name = if is(1, "PREPARE") { 2 } else { 1 };
        return match words.get(name) {
            Some(all) if all.is("ALL") => Some(Plan::Forget(None, "DEALLOCATE ALL")),
            Some(Word::Bare(name)) => {
                Some(Plan::Forget(Some(name.to_ascii_lowercase()), "DEALLOCATE"))
            }
            Some(Word::Quoted(name)) => Some(Plan::Forget(Some(name.clone()), "DEALLOCATE")),
            Some(Word::Parameter(_)) | None => None,
        };
    }
    let tags = [
        ("RESET", None, "RESET"),
        ("DISCARD", None, "DISCARD"),
        ("UNLISTEN", None, "UNLISTEN"),
        ("CLOSE", Some("ALL"), "CLOSE CURSOR ALL"),
    ];
    let tag = tags
        .iter()
        .find(|(word, second, _)| first.is(word) && second.is_none_or(|second| is(1, second)));
    tag.map(|(_, _, tag)| answer(tag, vec![]))
}

/// SHOW of something that is a setting of every server.
fn show(words: &[Word]) -> Option<Plan> {
    let name = match words {
        [Word::Bare(name) | Word::Quoted(name)] => name.to_ascii_lowercase(),
        [one, other, third]
            if one.is("TRANSACTION") && other.is("ISOLATION") && third.is("LEVEL") =>
        {
            "transaction_isolation".to_owned()
        }
        [one, other] if one.is("TIME") && other.is("ZONE") => "timezone".to_owned(),
        _ => return None,
    };
    let value = setting(&name)?;
    Some(Plan::Known(Outcome {
        notices: vec![],
        table: Some(Table {
            columns: vec![Column {
                name: name.into(),
                kind: Kind::Text,
            }]
            .into(),
            rows: vec![vec![Cell::from(value)]],
        }),
        tag: "SHOW".to_owned(),
    }))
}

/// Whether what follows SET is a setting of every server, and not one of pgweir's.
fn is_setting(words: &[Word]) -> bool {
    let is_scope = |word: &Word| word.is("SESSION") || word.is("LOCAL");
    let words = match words {
        [scope, rest @ ..] if is_scope(scope) && !rest.is_empty() => rest,
        words => words,
    };
    let Some(Word::Bare(name) | Word::Quoted(name)) = words.first() else {
        return false;
    };
    let phrases = [
        "NAMES",
        "TIME",
        "TRANSACTION",
        "CHARACTERISTICS",
        "ROLE",
        "AUTHORIZATION",
    ];
    setting(name).is_some()
        || phrases
            .iter()
            .any(|phrase| name.eq_ignore_ascii_case(phrase))
}

fn answer(tag: &str, notices: Vec<Report>) -> Plan {
    Plan::Known(Outcome {
        notices,
        ..Outcome::tagged(tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::words::words;

    fn planned(statement: &str) -> Option<Plan> {
        plan(&words(statement).unwrap())
    }

    fn tag(statement: &str) -> Option<String> {
        Some(match planned(statement)? {
            Plan::Known(outcome) => outcome.tag,
            Plan::Forget(name, tag) => format!("{tag} {name:?}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_every_server_is_told_is_answered_and_what_is_for_pgweir_is_not() {
        for (statement, expected) in [
            ("SET extra_float_digits = 3", Some("SET")),
            ("set DateStyle='ISO'", Some("SET")),
            ("SET SESSION statement_timeout TO 0", Some("SET")),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                Some("SET"),
            ),
            ("SET TIME ZONE 'UTC'", Some("SET")),
            ("SET default_pool_size = 3", None),
            ("SHOW server_version", Some("SHOW")),
            ("SHOW TRANSACTION ISOLATION LEVEL", Some("SHOW")),
            ("SHOW pools", None),
            ("RESET ALL", Some("RESET")),
            ("UNLISTEN *", Some("UNLISTEN")),
            ("CLOSE ALL", Some("CLOSE CURSOR ALL")),
            ("DISCARD ALL", Some("DISCARD ALL None")),
            ("DEALLOCATE ALL", Some("DEALLOCATE ALL None")),
            ("deallocate prepare S_1", Some("DEALLOCATE Some(\"s_1\")")),
            ("RELOAD", None),
        ] {
            assert_eq!(tag(statement).as_deref(), expected, "{statement}");
        }
    }
}
