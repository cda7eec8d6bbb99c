//! From the text of a query to what is done: names are found, types are checked, what is not known here is refused.

use sqlparser::ast::{
    self, Distinct, GroupByExpr, Ident, LimitClause, OrderByKind, OrderBySort, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableFactor, Value, WildcardAdditionalOptions,
};

use super::aggregate::Aggregate;
use super::expr::Expr;
use super::{By, Grouping, Key, Query, catalog, tables};
use crate::admin::command::{Command, Run};
use crate::admin::table::{Cell, Column, Kind};
use crate::wire::reply::{Report, SqlState};

mod function;
mod parse;
mod refusal;
mod value;

use parse::parse;
use refusal::{cut, misplaced_aggregate, no_table, refuse, ungrouped, unsupported};

/// The most parameters.
const MOST_PARAMETERS: usize = 100;

/// Schemas that a table may be asked for in.
const SCHEMAS: [&str; 3] = ["pgweir", "pgbouncer", catalog::SCHEMA];

type Read<T> = Result<T, Report>;

/// An expression with its type; `None`: of a text, a parameter or NULL, which are what their neighbour needs.
#[derive(Debug, Clone)]
struct Typed {
    expr: Expr,
    kind: Option<Kind>,
}

fn typed(expr: Expr, kind: Kind) -> Typed {
    let kind = Some(kind);
    Typed { expr, kind }
}

/// A column of the result.
struct Output {
    name: String,
    value: Typed,
}

pub(super) fn query(statement: &str) -> Read<Query> {
    let query = parse(statement)?;
    let refused = [
        (query.with.is_some(), "WITH"),
        (query.fetch.is_some(), "FETCH"),
        (!query.locks.is_empty(), "FOR UPDATE"),
        (!query.pipe_operators.is_empty(), "pipe operators"),
    ];
    refuse(&refused)?;
    let select = match *query.body {
        SetExpr::Select(select) => *select,
        SetExpr::SetOperation { .. } => return Err(unsupported("UNION, INTERSECT and EXCEPT")),
        SetExpr::Values(_) => return Err(unsupported("VALUES")),
        _ => return Err(unsupported("anything but SELECT ... FROM one table")),
    };
    let refused = [
        (select.into.is_some(), "SELECT INTO"),
        (!select.named_window.is_empty(), "WINDOW"),
        (select.qualify.is_some(), "QUALIFY"),
        (select.top.is_some(), "TOP"),
        (!select.lateral_views.is_empty(), "LATERAL VIEW"),
    ];
    refuse(&refused)?;
    if catalog::is_empty(&select.from) {
        return of_empty_catalog(&select, statement);
    }
    refuse(&[(select.from.len() > 1, "more than one table")])?;
    let mut reader = Reader::of(select.from.first())?;
    let filter = select
        .selection
        .as_ref()
        .map(|filter| reader.condition(filter));
    let filter = filter.transpose()?;
    reader.aggregates = Some(vec![]);
    let mut outputs = reader.outputs(&select.projection)?;
    let (exprs, modifiers) = match &select.group_by {
        GroupByExpr::Expressions(exprs, modifiers) => (exprs.as_slice(), modifiers),
        GroupByExpr::All(_) => return Err(unsupported("GROUP BY ALL")),
    };
    refuse(&[(!modifiers.is_empty(), "GROUP BY with modifiers")])?;
    let keys = exprs.iter().map(|expr| reader.group_key(expr, &outputs));
    let keys = keys.collect::<Read<Vec<_>>>()?;
    let having = select
        .having
        .as_ref()
        .map(|having| reader.condition(having));
    let having = having.transpose()?;
    let mut order = reader.order(query.order_by.as_ref(), &outputs)?;
    let is_distinct = match select.distinct {
        None | Some(Distinct::All) => false,
        Some(Distinct::Distinct) => true,
        Some(Distinct::On(_)) => return Err(unsupported("DISTINCT ON")),
    };
    if is_distinct && order.iter().any(|key| matches!(key.by, By::Value(_))) {
        return Err(Report::new(
            SqlState(*b"42P10"),
            "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
        ));
    }
    let (limit, offset) = reader.bounds(query.limit_clause.as_ref())?;
    let grouping = reader.grouping(keys, having, &mut outputs, &mut order)?;
    let parameters = reader.parameters.iter();
    let column = |output: &Output| Column {
        name: output.name.clone().into(),
        kind: output.value.kind.unwrap_or(Kind::Text),
    };
    Ok(Query {
        source: reader.source,
        columns: outputs.iter().map(column).collect(),
        parameters: parameters.map(|kind| kind.unwrap_or(Kind::Text)).collect(),
        filter,
        grouping,
        outputs: outputs
            .into_iter()
            .map(|output| output.value.expr)
            .collect(),
        is_distinct,
        order,
        limit,
        offset,
    })
}

/// A query that has no rows, with the columns that it would have.
fn of_empty_catalog(select: &ast::Select, statement: &str) -> Read<Query> {
    // What depends on what there is in it cannot be told.
    let table = || no_table(&select.from[0].relation.to_string());
    if catalog::is_counted(select) {
        return Err(table());
    }
    let mut columns = Vec::with_capacity(select.projection.len());
    for item in &select.projection {
        let (name, expr) = match item {
            SelectItem::UnnamedExpr(expr) => (name_of(expr), expr),
            SelectItem::ExprWithAlias { expr, alias } => (folded(alias), expr),
            _ => return Err(table()),
        };
        let kind = match expr {
            ast::Expr::Cast { data_type, .. } => value::kind_named(&data_type.to_string()),
            _ => None,
        };
        columns.push(Column {
            name: name.into(),
            kind: kind.unwrap_or(Kind::Text),
        });
    }
    Ok(Query {
        source: None,
        outputs: vec![Expr::Constant(Cell::Null); columns.len()],
        columns,
        parameters: catalog::parameters(statement, MOST_PARAMETERS),
        filter: Some(Expr::Constant(Cell::Bool(false))),
        grouping: None,
        is_distinct: false,
        order: vec![],
        limit: None,
        offset: None,
    })
}

/// What is known while a query is read.
struct Reader {
    source: Option<&'static Command>,
    /// What its columns may be called by.
    qualifier: Option<String>,
    columns: &'static [Column],
    parameters: Vec<Option<Kind>>,
    /// `None`: there must be none here.
    aggregates: Option<Vec<Aggregate>>,
}

impl Reader {
    /// Finds the table.
    fn of(from: Option<&ast::TableWithJoins>) -> Read<Self> {
        let mut reader = Self {
            source: None,
            qualifier: None,
            columns: &[],
            parameters: vec![],
            aggregates: None,
        };
        let Some(from) = from else {
            return Ok(reader);
        };
        refuse(&[(!from.joins.is_empty(), "JOIN")])?;
        let TableFactor::Table {
            name, alias, args, ..
        } = &from.relation
        else {
            return Err(unsupported("anything but a table after FROM"));
        };
        refuse(&[(args.is_some(), "functions after FROM")])?;
        let parts: Vec<_> = name
            .0
            .iter()
            .filter_map(|part| part.as_ident())
            .map(folded)
            .collect();
        let table = match parts.as_slice() {
            [table] => Some(table),
            [schema, table] => SCHEMAS.contains(&schema.as_str()).then_some(table),
            _ => None,
        };
        let found = match parts.as_slice() {
            [schema, table] if schema == "information_schema" => {
                catalog::table(table).map(|command| (table.clone(), command))
            }
            _ => table.and_then(|table| tables().find(|(known, _)| known == table)),
        };
        let Some((table, command)) = found else {
            return Err(no_table(&parts.join(".")));
        };
        if let Run::Show { columns, .. } = command.run {
            reader.columns = columns;
        }
        reader.source = Some(command);
        reader.qualifier = Some(match alias {
            Some(alias) if !alias.columns.is_empty() => {
                return Err(unsupported("names for the columns of a table"));
            }
            Some(alias) => folded(&alias.name),
            None => table,
        });
        Ok(reader)
    }

    fn outputs(&mut self, items: &[SelectItem]) -> Read<Vec<Output>> {
        let mut outputs = Vec::new();
        for item in items {
            match item {
                SelectItem::UnnamedExpr(expr) => outputs.push(Output {
                    name: name_of(expr),
                    value: self.expr(expr)?,
                }),
                SelectItem::ExprWithAlias { expr, alias } => outputs.push(Output {
                    name: folded(alias),
                    value: self.expr(expr)?,
                }),
                SelectItem::Wildcard(options) => outputs.extend(self.all(options)?),
                SelectItem::QualifiedWildcard(
                    SelectItemQualifiedWildcardKind::ObjectName(name),
                    options,
                ) => {
                    let parts: Vec<_> = name
                        .0
                        .iter()
                        .filter_map(|part| part.as_ident())
                        .map(folded)
                        .collect();
                    self.check_qualifier(&parts)?;
                    outputs.extend(self.all(options)?);
                }
                other => return Err(unsupported(&cut(&other.to_string()))),
            }
        }
        for output in &mut outputs {
            if output.value.kind.is_none() {
                output.value = self.as_kind(output.value.clone(), Kind::Text)?;
            }
        }
        Ok(outputs)
    }

    fn all(&self, options: &WildcardAdditionalOptions) -> Read<Vec<Output>> {
        let WildcardAdditionalOptions {
            opt_ilike,
            opt_exclude,
            opt_except,
            opt_replace,
            opt_rename,
            opt_alias,
            ..
        } = options;
        let has_options = opt_ilike.is_some()
            || opt_exclude.is_some()
            || opt_except.is_some()
            || opt_replace.is_some()
            || opt_rename.is_some()
            || opt_alias.is_some();
        refuse(&[(has_options, "* with options")])?;
        if self.source.is_none() {
            let words = "SELECT * with no tables specified is not valid";
            return Err(Report::new(SqlState::SYNTAX_ERROR, words));
        }
        let output = |(index, column): (usize, &Column)| Output {
            name: column.name.clone().into_owned(),
            value: typed(Expr::Column(index), column.kind),
        };
        Ok(self.columns.iter().enumerate().map(output).collect())
    }

    /// A key of GROUP BY: an expression, the number of an output, or its name where no column has that.
    fn group_key(&mut self, expr: &ast::Expr, outputs: &[Output]) -> Read<Expr> {
        let aggregates = self.aggregates.take();
        let key = match output_of(expr, outputs, Some(self.columns))? {
            Some(index) => outputs[index].value.expr.clone(),
            None => self.expr(expr)?.expr,
        };
        self.aggregates = aggregates;
        if key.has_aggregate() {
            return Err(misplaced_aggregate());
        }
        Ok(key)
    }

    fn order(&mut self, order: Option<&ast::OrderBy>, outputs: &[Output]) -> Read<Vec<Key>> {
        let Some(order) = order else {
            return Ok(vec![]);
        };
        let OrderByKind::Expressions(exprs) = &order.kind else {
            return Err(unsupported("ORDER BY ALL"));
        };
        let mut keys = Vec::new();
        for ordered in exprs {
            refuse(&[(ordered.with_fill.is_some(), "WITH FILL")])?;
            let is_descending = match &ordered.options.sort {
                None | Some(OrderBySort::Asc) => false,
                Some(OrderBySort::Desc) => true,
                Some(OrderBySort::Using(_)) => return Err(unsupported("ORDER BY ... USING")),
            };
            let named = output_of(&ordered.expr, outputs, None)?;
            keys.push(Key {
                by: if let Some(index) = named {
                    By::Output(index)
                } else {
                    let expr = self.expr(&ordered.expr)?.expr;
                    let same = outputs.iter().position(|output| output.value.expr == expr);
                    same.map_or(By::Value(expr), By::Output)
                },
                is_descending,
                are_nulls_first: ordered.options.nulls_first.unwrap_or(is_descending),
            });
        }
        Ok(keys)
    }

    /// GROUP BY and HAVING, if there is one of them or an aggregate. What comes after them is put in terms of groups then.
    fn grouping(
        &mut self,
        keys: Vec<Expr>,
        having: Option<Expr>,
        outputs: &mut [Output],
        order: &mut [Key],
    ) -> Read<Option<Grouping>> {
        let aggregates = self.aggregates.take().unwrap_or_default();
        if keys.is_empty() && aggregates.is_empty() && having.is_none() {
            return Ok(None);
        }
        let of_group = |expr: Expr| {
            let grouped = expr.grouped(&keys);
            grouped.map_err(|column| ungrouped(&self.columns[column]))
        };
        for output in outputs {
            output.value.expr = of_group(output.value.expr.clone())?;
        }
        for key in order {
            if let By::Value(expr) = &key.by {
                key.by = By::Value(of_group(expr.clone())?);
            }
        }
        let having = having.map(of_group).transpose()?;
        Ok(Some(Grouping {
            keys,
            aggregates,
            having,
        }))
    }

    /// LIMIT and OFFSET.
    fn bounds(&mut self, clause: Option<&LimitClause>) -> Read<(Option<Expr>, Option<Expr>)> {
        let (limit, offset) = match clause {
            None => return Ok((None, None)),
            Some(LimitClause::LimitOffset {
                limit,
                offset,
                limit_by,
            }) if limit_by.is_empty() => (limit.as_ref(), offset.as_ref()),
            Some(_) => return Err(unsupported("LIMIT in this form")),
        };
        let aggregates = self.aggregates.take();
        let columns = std::mem::take(&mut self.columns);
        let mut bound = |expr: Option<&ast::Expr>| {
            let Some(expr) = expr else {
                return Ok(None);
            };
            let value = self.expr(expr)?;
            Ok(Some(self.as_kind(value, Kind::Int8)?.expr))
        };
        let bounds = (bound(limit)?, bound(offset.map(|offset| &offset.value))?);
        (self.aggregates, self.columns) = (aggregates, columns);
        Ok(bounds)
    }
}

/// Which output an expression of ORDER BY or GROUP BY names, by number or name. A column of the table goes before, where given.
fn output_of(
    expr: &ast::Expr,
    outputs: &[Output],
    columns: Option<&[Column]>,
) -> Read<Option<usize>> {
    match expr {
        ast::Expr::Identifier(name) => {
            let name = folded(name);
            if columns.is_some_and(|columns| columns.iter().any(|column| column.name == name)) {
                return Ok(None);
            }
            Ok(outputs.iter().position(|output| output.name == name))
        }
        // `user` is a function to SQL.
        ast::Expr::Function(_) if columns.is_none() => {
            let name = expr.to_string().to_ascii_lowercase();
            Ok(outputs.iter().position(|output| output.name == name))
        }
        ast::Expr::Value(value) => {
            let Value::Number(number, false) = &value.value else {
                return Ok(None);
            };
            let place = number
                .parse::<usize>()
                .ok()
                .and_then(|number| number.checked_sub(1));
            match place.filter(|place| *place < outputs.len()) {
                Some(place) => Ok(Some(place)),
                None => Err(Report::new(
                    SqlState(*b"42P10"),
                    format!("position {} is not in select list", cut(number)),
                )),
            }
        }
        _ => Ok(None),
    }
}

/// What a column of the result is called that was given no name.
fn name_of(expr: &ast::Expr) -> String {
    match expr {
        ast::Expr::Identifier(name) => folded(name),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(folded).unwrap_or_default(),
        ast::Expr::Function(function) => {
            let last = function.name.0.last().and_then(|part| part.as_ident());
            last.map(folded).unwrap_or_default()
        }
        ast::Expr::Nested(expr) => name_of(expr),
        ast::Expr::Cast {
            expr, data_type, ..
        } => match name_of(expr).as_str() {
            "?column?" => data_type.to_string().to_ascii_lowercase(),
            name => name.to_owned(),
        },
        _ => "?column?".to_owned(),
    }
}

/// A name as Postgres takes it: in small letters unless in quotes.
fn folded(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_ascii_lowercase(),
    }
}
