//! What drivers and tools ask of Postgres' catalog. The console's own tables are in `information_schema.tables` and `.columns`, which
//! editors of queries read. Of everything else there is nothing: no type, no extension, no relation, as drivers that look for some
//! of their own types want to hear. Such a query is not computed; it has no rows.

use sqlparser::ast::{self, Expr as Sql, GroupByExpr, SelectItem, TableFactor};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::aggregate::Function;
use super::tables;
use crate::admin::command::{Command, Run};
use crate::admin::process::Access;
use crate::admin::table::{Column, Kind, int4, text};
use crate::row;

/// The schema of the console's tables.
pub(super) const SCHEMA: &str = "public";

/// Its tables that can be read like the console's others, by their name in `information_schema`.
const TABLES: &[Command] = &[
    Command {
        name: "tables",
        takes: &[],
        access: Access::Stats,
        help: "the console's tables",
        run: Run::Show {
            columns: &[
                text("table_catalog"),
                text("table_schema"),
                text("table_name"),
                text("table_type"),
            ],
            rows: |call| {
                let row = |(name, _)| row![call.caller.database.clone(), SCHEMA, name, "VIEW"];
                Ok(tables().map(row).collect())
            },
        },
    },
    Command {
        name: "columns",
        takes: &[],
        access: Access::Stats,
        help: "their columns",
        run: Run::Show {
            columns: &[
                text("table_catalog"),
                text("table_schema"),
                text("table_name"),
                text("column_name"),
                int4("ordinal_position"),
                text("is_nullable"),
                text("data_type"),
            ],
            rows: |call| {
                let database = &call.caller.database;
                let rows = tables().flat_map(|(table, command)| {
                    let columns = columns(command).iter().enumerate();
                    columns.map(move |(place, column)| {
                        let (column, kind) = (column.name.clone().into_owned(), column.kind.name());
                        row![
                            database.clone(),
                            SCHEMA,
                            table.clone(),
                            column,
                            place + 1,
                            "YES",
                            kind
                        ]
                    })
                });
                Ok(rows.collect())
            },
        },
    },
];

fn columns(command: &Command) -> &'static [Column] {
    match command.run {
        Run::Show { columns, .. } => columns,
        Run::Tell(_) | Run::Act(_) => &[],
    }
}

/// The table of that name in `information_schema`, if it is one that can be read.
pub(super) fn table(name: &str) -> Option<&'static Command> {
    TABLES.iter().find(|table| table.name == name)
}

/// Whether all that a query reads are tables of the catalog that are empty here.
pub(super) fn is_empty(from: &[ast::TableWithJoins]) -> bool {
    let mut tables = from.iter().flat_map(|from| {
        [&from.relation]
            .into_iter()
            .chain(from.joins.iter().map(|join| &join.relation))
    });
    let reads_one_that_is_not =
        matches!(from, [one] if one.joins.is_empty() && !is_empty_table(&one.relation));
    !from.is_empty() && !reads_one_that_is_not && tables.all(is_of_catalog)
}

fn name_of(table: &TableFactor) -> Option<(String, String)> {
    let TableFactor::Table { name, .. } = table else {
        return None;
    };
    let parts = name.0.iter().filter_map(|part| part.as_ident());
    let parts: Vec<_> = parts.map(|part| part.value.to_ascii_lowercase()).collect();
    match parts.as_slice() {
        [table] => Some((String::new(), table.clone())),
        [schema, table] => Some((schema.clone(), table.clone())),
        _ => None,
    }
}

fn is_of_catalog(table: &TableFactor) -> bool {
    name_of(table).is_some_and(|(schema, table)| match schema.as_str() {
        "pg_catalog" | "information_schema" => true,
        // It is looked into without being named.
        "" => table.starts_with("pg_"),
        _ => false,
    })
}

fn is_empty_table(of: &TableFactor) -> bool {
    is_of_catalog(of)
        && !name_of(of)
            .is_some_and(|(schema, name)| schema == "information_schema" && table(&name).is_some())
}

/// Whether a query would have a row even so.
pub(super) fn is_counted(select: &ast::Select) -> bool {
    let is_grouped =
        !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let is_aggregate = |expr: &Sql| {
        let Sql::Function(function) = expr else {
            return false;
        };
        let name = function.name.0.last().and_then(|part| part.as_ident());
        name.is_some_and(|name| Function::named(&name.value.to_ascii_lowercase()).is_some())
    };
    !is_grouped
        && select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                is_aggregate(expr)
            }
            _ => false,
        })
}

/// As many texts as a statement has parameters: nothing is compared with them.
pub(super) fn parameters(statement: &str, most: usize) -> Vec<Kind> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, statement).tokenize();
    let numbers = tokens
        .unwrap_or_default()
        .into_iter()
        .filter_map(|token| match token {
            Token::Placeholder(name) => name.strip_prefix('$')?.parse::<usize>().ok(),
            _ => None,
        });
    vec![Kind::Text; numbers.max().unwrap_or(0).min(most)]
}
