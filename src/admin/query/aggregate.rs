//! count, sum, avg, min and max.

use std::collections::BTreeSet;

use super::expr::{self, Environment, Expr, Ordered, out_of_range};
use crate::admin::table::{Cell, Kind};
use crate::wire::reply::Report;

/// What is computed of a group's rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Aggregate {
    pub(super) function: Function,
    /// Of what; `None`: of the rows themselves.
    pub(super) of: Option<Expr>,
    pub(super) is_distinct: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Count,
    Sum,
    Avg,
    Min,
    Max,
}

impl Function {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "count" => Self::Count,
            "sum" => Self::Sum,
            "avg" => Self::Avg,
            "min" => Self::Min,
            "max" => Self::Max,
            _ => return None,
        })
    }

    /// The type of its result, of values of that type; `None`: it cannot be computed of them.
    pub(super) fn kind(self, of: Kind) -> Option<Kind> {
        match self {
            Self::Count => Some(Kind::Int8),
            Self::Sum if of == Kind::Int4 => Some(Kind::Int8),
            Self::Sum | Self::Avg => of.is_number().then_some(Kind::Numeric),
            Self::Min | Self::Max => (of != Kind::Bool).then_some(of),
        }
    }
}

/// What was gathered of a group so far.
#[derive(Debug)]
pub(super) struct Sum {
    seen: Option<BTreeSet<Ordered>>,
    count: i128,
    value: Option<Cell>,
}

impl Aggregate {
    pub(super) fn begin(&self) -> Sum {
        Sum {
            seen: self.is_distinct.then(BTreeSet::new),
            count: 0,
            value: None,
        }
    }

    pub(super) fn add(
        &self,
        sum: &mut Sum,
        row: &[Cell],
        environment: &Environment,
    ) -> Result<(), Report> {
        let Some(of) = &self.of else {
            sum.count += 1;
            return Ok(());
        };
        let value = of.value(row, environment)?;
        let is_new = match &mut sum.seen {
            Some(seen) => seen.insert(Ordered::from(&value)),
            None => true,
        };
        if value == Cell::Null || !is_new {
            return Ok(());
        }
        sum.count += 1;
        sum.value = Some(match (self.function, sum.value.take()) {
            (Function::Count, _) => Cell::Null,
            (_, None) => value,
            (Function::Sum | Function::Avg, Some(before)) => {
                expr::add(&before, &value).ok_or_else(out_of_range)?
            }
            (Function::Min, Some(before)) if expr::compare(&value, &before).is_lt() => value,
            (Function::Max, Some(before)) if expr::compare(&value, &before).is_gt() => value,
            (_, Some(before)) => before,
        });
        Ok(())
    }

    pub(super) fn end(&self, sum: Sum) -> Result<Cell, Report> {
        match self.function {
            Function::Count => Ok(Cell::Int(sum.count)),
            Function::Avg => match sum.value {
                Some(value) => expr::divide(&value, sum.count).ok_or_else(out_of_range),
                None => Ok(Cell::Null),
            },
            Function::Sum | Function::Min | Function::Max => Ok(sum.value.unwrap_or(Cell::Null)),
        }
    }
}
