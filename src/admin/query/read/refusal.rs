//! What a query is refused with.

use sqlparser::ast;

use super::Read;
use crate::admin::query::tables;
use crate::admin::table::{Column, Kind};
use crate::wire::reply::{Report, SqlState};

/// The longest part of a query that is repeated to its sender.
const LONGEST_QUOTE: usize = 100;

pub(super) fn refuse(what: &[(bool, &str)]) -> Read<()> {
    match what.iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(unsupported(what)),
        None => Ok(()),
    }
}

pub(super) fn unsupported(what: &str) -> Report {
    let words = format!("the console does not support {what}");
    Report::new(SqlState::NOT_SUPPORTED, words)
        .hint("It knows SELECT ... FROM one of its tables, with WHERE, GROUP BY, HAVING, ORDER BY and LIMIT.")
}

pub(super) fn not_known(expr: &ast::Expr) -> Report {
    unsupported(&format!("the expression {}", cut(&expr.to_string())))
}

pub(super) fn no_table(name: &str) -> Report {
    let names: Vec<_> = tables().map(|(name, _)| name).collect();
    Report::new(
        SqlState(*b"42P01"),
        format!("relation \"{}\" does not exist", cut(name)),
    )
    .detail("This is the console of a connection pooler: it has no database and no catalog.")
    .hint(format!("The console's tables are: {}", names.join(", ")))
}

pub(super) fn no_operator(one: Kind, sign: &str, other: Kind) -> Report {
    let (one, other) = (one.name(), other.name());
    Report::new(
        SqlState(*b"42883"),
        format!("operator does not exist: {one} {} {other}", cut(sign)),
    )
}

pub(super) fn misplaced_aggregate() -> Report {
    Report::new(
        SqlState(*b"42803"),
        "aggregate functions are not allowed here",
    )
}

pub(super) fn ungrouped(column: &Column) -> Report {
    let name = &column.name;
    Report::new(
        SqlState(*b"42803"),
        format!(
            "column \"{name}\" must appear in the GROUP BY clause or be used in an aggregate function"
        ),
    )
}

/// The front of a text that came from outside.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
