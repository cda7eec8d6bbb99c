//! SELECT over the SHOW tables: `SELECT * FROM pools WHERE cl_waiting > 0 ORDER BY maxwait DESC LIMIT 5`.
//!
//! One table at a time, which is filtered, grouped, projected, ordered and cut. [`read`] makes a typed [`Query`] of the text, and
//! refuses what is not known here; [`expr`] computes values. Length and depth of a query are bounded, so its work is.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use super::command::{COMMANDS, Command, Run};
use super::table::{Cell, Column, Kind, Row};
use crate::wire::reply::{Report, SqlState};

mod aggregate;
mod catalog;
mod expr;
mod read;

use aggregate::Aggregate;
pub use expr::Environment;
use expr::Expr;

/// A query, read and typed.
#[derive(Debug, Clone)]
pub struct Query {
    /// The command that makes the rows; `None`: there is one row, without columns.
    pub source: Option<&'static Command>,
    /// What its result looks like.
    pub columns: Vec<Column>,
    /// The types of its parameters.
    pub parameters: Vec<Kind>,
    filter: Option<Expr>,
    grouping: Option<Grouping>,
    outputs: Vec<Expr>,
    is_distinct: bool,
    order: Vec<Key>,
    limit: Option<Expr>,
    offset: Option<Expr>,
}

/// GROUP BY, and HAVING. What comes after it sees rows of the keys, then the aggregates.
#[derive(Debug, Clone)]
struct Grouping {
    keys: Vec<Expr>,
    aggregates: Vec<Aggregate>,
    having: Option<Expr>,
}

/// What rows are ordered by.
#[derive(Debug, Clone)]
struct Key {
    by: By,
    is_descending: bool,
    are_nulls_first: bool,
}

#[derive(Debug, Clone)]
enum By {
    /// That column of the result.
    Output(usize),
    /// A value that the result does not show.
    Value(Expr),
}

impl Query {
    /// Reads a statement.
    pub fn read(statement: &str) -> Result<Self, Report> {
        read::query(statement)
    }

    /// Its parameters as its types have them.
    pub fn read_parameters(&self, given: &[Option<String>]) -> Result<Vec<Cell>, Report> {
        let each = self.parameters.iter().zip(given);
        each.map(|(kind, value)| match value {
            Some(value) => expr::read(value, *kind),
            None => Ok(Cell::Null),
        })
        .collect()
    }

    /// Its result, of the source's rows.
    pub fn run(&self, rows: Vec<Row>, environment: &Environment) -> Result<Vec<Row>, Report> {
        let rows = match &self.filter {
            Some(filter) => kept(rows, filter, environment)?,
            None => rows,
        };
        let rows = match &self.grouping {
            Some(grouping) => grouping.group(&rows, environment)?,
            None => rows,
        };
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let output = values(&self.outputs, &row, environment)?;
            let keys = self.order.iter().map(|key| match &key.by {
                By::Output(index) => Ok(output[*index].clone()),
                By::Value(expr) => expr.value(&row, environment),
            });
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            found.push((keys, output));
        }
        if self.is_distinct {
            let mut seen = HashSet::new();
            found.retain(|(_, output)| seen.insert(output.clone()));
        }
        found.sort_by(|(one, _), (other, _)| self.compare(one, other));
        let first = bound(self.offset.as_ref(), environment)?.unwrap_or(0);
        let most = bound(self.limit.as_ref(), environment)?;
        let rows = found.into_iter().map(|(_, output)| output).skip(first);
        Ok(rows.take(most.unwrap_or(usize::MAX)).collect())
    }

    fn compare(&self, one: &[Cell], other: &[Cell]) -> Ordering {
        let each = self.order.iter().zip(one.iter().zip(other));
        each.map(|(key, (one, other))| key.compare(one, other))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

impl Key {
    fn compare(&self, one: &Cell, other: &Cell) -> Ordering {
        let nulls = |first: bool| {
            if first {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        };
        match (one, other) {
            (Cell::Null, Cell::Null) => Ordering::Equal,
            (Cell::Null, _) => nulls(self.are_nulls_first),
            (_, Cell::Null) => nulls(!self.are_nulls_first),
            _ if self.is_descending => expr::compare(other, one),
            _ => expr::compare(one, other),
        }
    }
}

impl Grouping {
    /// One row for each group: its keys, then its aggregates. Without keys all rows are one group, even if there is none.
    fn group(&self, rows: &[Row], environment: &Environment) -> Result<Vec<Row>, Report> {
        let mut places = BTreeMap::new();
        let mut groups = Vec::new();
        let fresh = || {
            self.aggregates
                .iter()
                .map(Aggregate::begin)
                .collect::<Vec<_>>()
        };
        if self.keys.is_empty() {
            groups.push((vec![], fresh()));
            places.insert(vec![], 0);
        }
        for row in rows {
            let keys = values(&self.keys, row, environment)?;
            let sortable: Vec<_> = keys.iter().map(expr::Ordered::from).collect();
            let place = *places.entry(sortable).or_insert_with(|| {
                groups.push((keys, fresh()));
                groups.len() - 1
            });
            for (aggregate, sum) in self.aggregates.iter().zip(&mut groups[place].1) {
                aggregate.add(sum, row, environment)?;
            }
        }
        let mut grouped = Vec::with_capacity(groups.len());
        for (mut row, sums) in groups {
            for (aggregate, sum) in self.aggregates.iter().zip(sums) {
                row.push(aggregate.end(sum)?);
            }
            grouped.push(row);
        }
        match &self.having {
            Some(having) => kept(grouped, having, environment),
            None => Ok(grouped),
        }
    }
}

/// The value of LIMIT or OFFSET.
fn bound(expr: Option<&Expr>, environment: &Environment) -> Result<Option<usize>, Report> {
    let Some(expr) = expr else {
        return Ok(None);
    };
    match expr.value(&[], environment)? {
        Cell::Null => Ok(None),
        Cell::Int(number) => match usize::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) if number > 0 => Ok(None),
            Err(_) => Err(Report::new(
                SqlState(*b"2201W"),
                "LIMIT and OFFSET must not be negative",
            )),
        },
        _ => Err(Report::new(
            SqlState(*b"42804"),
            "LIMIT and OFFSET must be whole numbers",
        )),
    }
}

/// The rows for which a condition is true.
fn kept(rows: Vec<Row>, filter: &Expr, environment: &Environment) -> Result<Vec<Row>, Report> {
    let mut kept = Vec::new();
    for row in rows {
        if filter.value(&row, environment)? == Cell::Bool(true) {
            kept.push(row);
        }
    }
    Ok(kept)
}

fn values(exprs: &[Expr], row: &[Cell], environment: &Environment) -> Result<Vec<Cell>, Report> {
    exprs
        .iter()
        .map(|expr| expr.value(row, environment))
        .collect()
}

/// Names of the tables that may stand after FROM.
pub fn tables() -> impl Iterator<Item = (String, &'static Command)> {
    COMMANDS.iter().filter_map(|command| {
        let name = command.name.strip_prefix("SHOW ")?;
        let is_table = command.takes.is_empty() && matches!(command.run, Run::Show { .. });
        is_table.then(|| (name.to_ascii_lowercase().replace(' ', "_"), command))
    })
}

#[cfg(test)]
mod tests;
