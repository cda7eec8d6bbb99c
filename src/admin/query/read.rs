//! From the text of a query to what is done: names are found, types are checked, what is not known here is refused.

use sqlparser::ast::{
    self, BinaryOperator, CastKind, Distinct, DuplicateTreatment, FunctionArg, FunctionArgExpr,
    FunctionArguments, GroupByExpr, Ident, InTarget, LimitClause, OrderByKind, OrderBySort,
    SelectItem, SelectItemQualifiedWildcardKind, SetExpr, TableFactor, UnaryOperator, Value,
    WildcardAdditionalOptions,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer};

use super::aggregate::{Aggregate, Function};
use super::expr::{self, Asked, Comparison, Expr, Math};
use super::{By, Grouping, Key, Query, tables};
use crate::admin::chatter;
use crate::admin::command::{Command, Run};
use crate::admin::table::{Cell, Column, Kind};
use crate::wire::reply::{Report, SqlState};

/// The longest query that is read.
const LONGEST: usize = 16 * 1024;

/// Its most words, numbers and signs.
const MOST_TOKENS: usize = 1000;

/// Its most of them that may be operators. Chains of these become as deep as they are long, whatever the parser's limit; unoptimised, each
/// takes 12 KB of a stack of 2 MB.
const MOST_OPERATORS: usize = 100;

/// How deep parentheses and what else the parser nests may go.
const DEEPEST: usize = 25;

/// The longest part of a query that is repeated to its sender.
const LONGEST_QUOTE: usize = 100;

/// The most parameters.
const MOST_PARAMETERS: usize = 100;

/// Schemas that a table may be asked for in.
const SCHEMAS: [&str; 3] = ["pgweir", "pgbouncer", "public"];

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
        (select.from.len() > 1, "more than one table"),
    ];
    refuse(&refused)?;
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
    let mut having = having.transpose()?;
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
    let aggregates = reader.aggregates.take().unwrap_or_default();
    let mut grouping = None;
    if !(keys.is_empty() && aggregates.is_empty() && having.is_none()) {
        let of_group = |expr: Expr| {
            let grouped = expr.grouped(&keys);
            grouped.map_err(|column| ungrouped(&reader.columns[column]))
        };
        for output in &mut outputs {
            output.value.expr = of_group(output.value.expr.clone())?;
        }
        for key in &mut order {
            if let By::Value(expr) = &key.by {
                key.by = By::Value(of_group(expr.clone())?);
            }
        }
        having = having.map(of_group).transpose()?;
        grouping = Some(Grouping {
            keys: keys.clone(),
            aggregates,
            having,
        });
    }
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

fn parse(statement: &str) -> Read<ast::Query> {
    let too_complex = || Report::new(SqlState(*b"54001"), "the query is too long or too deep");
    if statement.len() > LONGEST {
        return Err(too_complex());
    }
    let dialect = PostgreSqlDialect {};
    let syntax = |message: &str| {
        let message = format!("syntax error: {}", cut(message));
        Report::new(SqlState::SYNTAX_ERROR, message)
    };
    let tokens = Tokenizer::new(&dialect, statement).tokenize();
    let tokens = tokens.map_err(|error| syntax(&error.message))?;
    let words = tokens
        .iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)));
    let operators = words.clone().filter(|token| may_operate(token));
    if words.count() > MOST_TOKENS || operators.count() > MOST_OPERATORS {
        return Err(too_complex());
    }
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(DEEPEST)
        .with_tokens(tokens);
    let parsed = parser.parse_query().and_then(|query| {
        let next = parser.peek_token().token;
        if next == Token::EOF {
            Ok(query)
        } else {
            Err(ParserError::ParserError(format!("unexpected {next}")))
        }
    });
    match parsed {
        Ok(query) => Ok(*query),
        Err(ParserError::RecursionLimitExceeded) => Err(too_complex()),
        Err(ParserError::ParserError(message) | ParserError::TokenizerError(message)) => {
            Err(syntax(&message))
        }
    }
}

/// Whether it can make an expression deeper without the parser's knowing: no name, value or what stands around them.
fn may_operate(token: &Token) -> bool {
    !matches!(
        token,
        Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Comma
            | Token::LParen
            | Token::RParen
    ) && !matches!(token, Token::Word(word) if word.keyword == Keyword::NoKeyword)
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
        let found = table.and_then(|table| tables().find(|(known, _)| known == table));
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
            keys.push(Key {
                by: match output_of(&ordered.expr, outputs, None)? {
                    Some(index) => By::Output(index),
                    None => By::Value(self.expr(&ordered.expr)?.expr),
                },
                is_descending,
                are_nulls_first: ordered.options.nulls_first.unwrap_or(is_descending),
            });
        }
        Ok(keys)
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

    fn condition(&mut self, expr: &ast::Expr) -> Read<Expr> {
        let value = self.expr(expr)?;
        self.boolean(value).map(|value| value.expr)
    }

    fn boolean(&mut self, value: Typed) -> Read<Typed> {
        match value.kind {
            Some(Kind::Bool) => Ok(value),
            None => self.as_kind(value, Kind::Bool),
            Some(kind) => {
                let name = kind.name();
                let words = format!("a condition must be of type boolean, not of type {name}");
                Err(Report::new(SqlState(*b"42804"), words))
            }
        }
    }

    fn expr(&mut self, expr: &ast::Expr) -> Read<Typed> {
        use ast::Expr as Sql;
        match expr {
            Sql::Nested(expr) => self.expr(expr),
            Sql::Identifier(name) => self.column(&folded(name)),
            Sql::CompoundIdentifier(parts) => {
                let parts: Vec<_> = parts.iter().map(folded).collect();
                let (name, qualifiers) = parts.split_last().ok_or_else(|| not_known(expr))?;
                self.check_qualifier(qualifiers)?;
                self.column(name)
            }
            Sql::Value(value) => self.value(&value.value),
            Sql::UnaryOp { op, expr: inner } => self.unary(*op, inner, expr),
            Sql::BinaryOp { left, op, right } => self.operator(left, op, right),
            Sql::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr: value,
                data_type,
                format: None,
            } => self.cast(value, &data_type.to_string()),
            Sql::Function(function) => self.function(function, expr),
            other => {
                let (test, is_negated) = self.test(other)?;
                Ok(typed(negated(test, is_negated), Kind::Bool))
            }
        }
    }

    /// An expression that asks whether something is so, or with a NOT in it whether it is not.
    fn test(&mut self, expr: &ast::Expr) -> Read<(Expr, bool)> {
        use ast::Expr as Sql;
        Ok(match expr {
            Sql::IsNull(expr) => (self.is(expr, Cell::Null)?, false),
            Sql::IsNotNull(expr) => (self.is(expr, Cell::Null)?, true),
            Sql::IsTrue(expr) => (self.is(expr, Cell::Bool(true))?, false),
            Sql::IsNotTrue(expr) => (self.is(expr, Cell::Bool(true))?, true),
            Sql::IsFalse(expr) => (self.is(expr, Cell::Bool(false))?, false),
            Sql::IsNotFalse(expr) => (self.is(expr, Cell::Bool(false))?, true),
            Sql::IsDistinctFrom(one, other) | Sql::IsNotDistinctFrom(one, other) => {
                let (one, other) = self.pair(one, other, "IS DISTINCT FROM")?;
                let differs = Expr::Differs(one.expr.into(), other.expr.into());
                (differs, matches!(expr, Sql::IsNotDistinctFrom(..)))
            }
            Sql::In {
                expr: value,
                target: InTarget::List(list),
                negated,
                ..
            } => (self.is_in(value, list)?, *negated),
            Sql::Between {
                expr: value,
                negated,
                low,
                high,
            } => {
                let (one, low) = self.pair(value, low, ">=")?;
                let (other, high) = self.pair(value, high, "<=")?;
                let above = compare(Comparison::GreaterOrEqual, one, low);
                let below = compare(Comparison::LessOrEqual, other, high);
                (Expr::And(above.into(), below.into()), *negated)
            }
            Sql::Like {
                negated,
                any: false,
                expr: text,
                pattern,
                escape_char: None,
            } => (self.like(text, pattern, false)?, *negated),
            Sql::ILike {
                negated,
                any: false,
                expr: text,
                pattern,
                escape_char: None,
            } => (self.like(text, pattern, true)?, *negated),
            other => return Err(not_known(other)),
        })
    }

    fn is_in(&mut self, value: &ast::Expr, list: &[ast::Expr]) -> Read<Expr> {
        let mut values = Vec::with_capacity(list.len());
        let mut of = self.expr(value)?;
        for other in list {
            let other = self.expr(other)?;
            let (one, other) = self.fit(of, other, "=")?;
            values.push(other.expr);
            of = one;
        }
        Ok(Expr::In(of.expr.into(), values))
    }

    fn unary(&mut self, op: UnaryOperator, inner: &ast::Expr, whole: &ast::Expr) -> Read<Typed> {
        let value = self.expr(inner)?;
        match op {
            UnaryOperator::Not => {
                let value = self.boolean(value)?;
                Ok(typed(negated(value.expr, true), Kind::Bool))
            }
            UnaryOperator::Plus => self.number(value, "+"),
            UnaryOperator::Minus => {
                let value = self.number(value, "-")?;
                let zero = Expr::Constant(Cell::Int(0));
                let minus = Expr::Math(Math::Subtract, zero.into(), value.expr.into());
                let kind = value.kind;
                Ok(Typed { expr: minus, kind })
            }
            _ => Err(not_known(whole)),
        }
    }

    fn cast(&mut self, value: &ast::Expr, name: &str) -> Read<Typed> {
        let value = self.expr(value)?;
        let to = kind_named(name).ok_or_else(|| {
            let words = format!("type \"{}\" does not exist", cut(name));
            Report::new(SqlState(*b"42704"), words)
        })?;
        match value.kind {
            None => self.as_kind(value, to),
            Some(from) => Ok(typed(Expr::Cast(value.expr.into(), from, to), to)),
        }
    }

    fn column(&self, name: &str) -> Read<Typed> {
        let place = self.columns.iter().position(|column| column.name == name);
        let place = place.ok_or_else(|| {
            let name = cut(name);
            let report = Report::new(
                SqlState(*b"42703"),
                format!("column \"{name}\" does not exist"),
            );
            let names: Vec<_> = self.columns.iter().map(|column| &*column.name).collect();
            if names.is_empty() {
                report
            } else {
                report.hint(format!("The columns are: {}", names.join(", ")))
            }
        })?;
        Ok(typed(Expr::Column(place), self.columns[place].kind))
    }

    fn check_qualifier(&self, parts: &[String]) -> Read<()> {
        let is_it = match parts {
            [] => true,
            [table] => self.qualifier.as_ref() == Some(table),
            [schema, table] => {
                SCHEMAS.contains(&schema.as_str()) && self.qualifier.as_ref() == Some(table)
            }
            _ => false,
        };
        if is_it {
            return Ok(());
        }
        let name = cut(&parts.join("."));
        Err(Report::new(
            SqlState(*b"42P01"),
            format!("missing FROM-clause entry for table \"{name}\""),
        ))
    }

    fn value(&mut self, value: &Value) -> Read<Typed> {
        match value {
            Value::Number(text, false) => {
                let cell = expr::number(text).ok_or_else(expr::out_of_range)?;
                let kind = match cell {
                    Cell::Int(value) if i32::try_from(value).is_ok() => Kind::Int4,
                    Cell::Int(_) => Kind::Int8,
                    _ => Kind::Numeric,
                };
                Ok(typed(Expr::Constant(cell), kind))
            }
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Ok(Typed {
                expr: Expr::Constant(text.clone().into()),
                kind: None,
            }),
            Value::Boolean(value) => Ok(typed(Expr::Constant(Cell::Bool(*value)), Kind::Bool)),
            Value::Null => Ok(Typed {
                expr: Expr::Constant(Cell::Null),
                kind: None,
            }),
            Value::Placeholder(name) => {
                let number = name
                    .strip_prefix('$')
                    .and_then(|digits| digits.parse().ok());
                let number = number.filter(|number| (1..=MOST_PARAMETERS).contains(number));
                let number: usize = number.ok_or_else(|| {
                    let words = format!("there is no parameter {}", cut(name));
                    Report::new(SqlState(*b"42P02"), words)
                })?;
                if self.parameters.len() < number {
                    self.parameters.resize(number, None);
                }
                Ok(Typed {
                    expr: Expr::Parameter(number - 1),
                    kind: self.parameters[number - 1],
                })
            }
            other => Err(unsupported(&cut(&other.to_string()))),
        }
    }

    fn is(&mut self, expr: &ast::Expr, cell: Cell) -> Read<Expr> {
        let mut value = self.expr(expr)?;
        if cell != Cell::Null {
            value = self.boolean(value)?;
        }
        Ok(Expr::Is(value.expr.into(), cell))
    }

    fn like(&mut self, text: &ast::Expr, pattern: &ast::Expr, ignores_case: bool) -> Read<Expr> {
        let mut side = |expr| {
            let value = self.expr(expr)?;
            match value.kind {
                Some(Kind::Text | Kind::Time) => Ok(Box::new(value.expr)),
                None => Ok(Box::new(self.as_kind(value, Kind::Text)?.expr)),
                Some(kind) => Err(no_operator(kind, "~~", Kind::Text)),
            }
        };
        Ok(Expr::Like {
            text: side(text)?,
            pattern: side(pattern)?,
            ignores_case,
        })
    }

    fn operator(
        &mut self,
        left: &ast::Expr,
        op: &BinaryOperator,
        right: &ast::Expr,
    ) -> Read<Typed> {
        let comparison = match op {
            BinaryOperator::Lt => Comparison::Less,
            BinaryOperator::LtEq => Comparison::LessOrEqual,
            BinaryOperator::Eq => Comparison::Equal,
            BinaryOperator::NotEq => Comparison::NotEqual,
            BinaryOperator::GtEq => Comparison::GreaterOrEqual,
            BinaryOperator::Gt => Comparison::Greater,
            BinaryOperator::And | BinaryOperator::Or => {
                let one = Box::new(self.condition(left)?);
                let other = Box::new(self.condition(right)?);
                let expr = match op {
                    BinaryOperator::And => Expr::And(one, other),
                    _ => Expr::Or(one, other),
                };
                return Ok(typed(expr, Kind::Bool));
            }
            BinaryOperator::StringConcat => {
                let (one, other) = (self.expr(left)?, self.expr(right)?);
                let text = |value: Typed| (Box::new(value.expr), value.kind.unwrap_or(Kind::Text));
                let one = if one.kind.is_none() {
                    self.as_kind(one, Kind::Text)?
                } else {
                    one
                };
                let other = if other.kind.is_none() {
                    self.as_kind(other, Kind::Text)?
                } else {
                    other
                };
                let ((one, kind), (other, other_kind)) = (text(one), text(other));
                return Ok(typed(Expr::Join(one, kind, other, other_kind), Kind::Text));
            }
            _ => return self.math(left, op, right),
        };
        let (one, other) = self.pair(left, right, &op.to_string())?;
        Ok(typed(compare(comparison, one, other), Kind::Bool))
    }

    fn math(&mut self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Read<Typed> {
        let sign = op.to_string();
        let math = match op {
            BinaryOperator::Plus => Math::Add,
            BinaryOperator::Minus => Math::Subtract,
            BinaryOperator::Multiply => Math::Multiply,
            BinaryOperator::Divide => Math::DivideWhole,
            BinaryOperator::Modulo => Math::Modulo,
            _ => return Err(unsupported(&format!("the operator {}", cut(&sign)))),
        };
        let (one, other) = self.pair(left, right, &sign)?;
        let one = self.number(one, &sign)?;
        let other = self.number(other, &sign)?;
        let is_exact = one.kind == Some(Kind::Numeric) || other.kind == Some(Kind::Numeric);
        let (math, kind) = match (math, is_exact) {
            (Math::DivideWhole, true) => (Math::Divide, Kind::Numeric),
            (math, true) => (math, Kind::Numeric),
            (math, false) => (math, Kind::Int8),
        };
        Ok(typed(
            Expr::Math(math, one.expr.into(), other.expr.into()),
            kind,
        ))
    }

    fn number(&mut self, value: Typed, sign: &str) -> Read<Typed> {
        match value.kind {
            None => self.as_kind(value, Kind::Numeric),
            Some(kind) if kind.is_number() => Ok(value),
            Some(kind) => Err(no_operator(kind, sign, kind)),
        }
    }

    /// Two sides of an operator, as types that fit.
    fn pair(&mut self, one: &ast::Expr, other: &ast::Expr, sign: &str) -> Read<(Typed, Typed)> {
        let (one, other) = (self.expr(one)?, self.expr(other)?);
        self.fit(one, other, sign)
    }

    fn fit(&mut self, one: Typed, other: Typed, sign: &str) -> Read<(Typed, Typed)> {
        match (one.kind, other.kind) {
            (None, None) => Ok((
                self.as_kind(one, Kind::Text)?,
                self.as_kind(other, Kind::Text)?,
            )),
            (Some(kind), None) => Ok((one, self.as_kind(other, kind)?)),
            (None, Some(kind)) => Ok((self.as_kind(one, kind)?, other)),
            (Some(kind), Some(other_kind)) if family(kind) == family(other_kind) => {
                Ok((one, other))
            }
            (Some(kind), Some(other_kind)) => Err(no_operator(kind, sign, other_kind)),
        }
    }

    /// A text, parameter or NULL as what it has to be.
    fn as_kind(&mut self, value: Typed, kind: Kind) -> Read<Typed> {
        let expr = match (value.kind, value.expr) {
            (None, Expr::Constant(Cell::Text(text))) => Expr::Constant(expr::read(&text, kind)?),
            (None, Expr::Parameter(index)) => {
                self.parameters[index].get_or_insert(kind);
                Expr::Parameter(index)
            }
            (Some(from), _) if family(from) != family(kind) => {
                return Err(Report::new(
                    SqlState(*b"42804"),
                    format!("type {} where {} is needed", from.name(), kind.name()),
                ));
            }
            (_, expr) => expr,
        };
        Ok(typed(expr, kind))
    }

    fn function(&mut self, function: &ast::Function, whole: &ast::Expr) -> Read<Typed> {
        let parts: Vec<_> = function
            .name
            .0
            .iter()
            .filter_map(|part| part.as_ident())
            .map(folded)
            .collect();
        let name = match parts.as_slice() {
            [name] => name.as_str(),
            [schema, name] if schema == "pg_catalog" => name.as_str(),
            _ => return Err(not_known(whole)),
        };
        let refused = [
            (function.over.is_some(), "window functions"),
            (function.filter.is_some(), "FILTER"),
            (!function.within_group.is_empty(), "WITHIN GROUP"),
        ];
        refuse(&refused)?;
        let list = match &function.args {
            // Some names of columns are functions to SQL.
            FunctionArguments::None if self.column(name).is_ok() => return self.column(name),
            FunctionArguments::None => &[],
            FunctionArguments::List(list) => {
                refuse(&[(
                    !list.clauses.is_empty(),
                    "clauses in a function's arguments",
                )])?;
                list.args.as_slice()
            }
            FunctionArguments::Subquery(_) => return Err(unsupported("queries in queries")),
        };
        if let Some(found) = Function::named(name) {
            let is_distinct = matches!(
                &function.args,
                FunctionArguments::List(list)
                    if list.duplicate_treatment == Some(DuplicateTreatment::Distinct)
            );
            return self.aggregate(found, list, is_distinct, whole);
        }
        let mut arguments = Vec::with_capacity(list.len());
        for argument in list {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) = argument else {
                return Err(not_known(whole));
            };
            arguments.push(self.expr(argument)?);
        }
        self.call(name, arguments, whole)
    }

    fn call(&mut self, name: &str, arguments: Vec<Typed>, whole: &ast::Expr) -> Read<Typed> {
        let constant = |text: String| Ok(typed(Expr::Constant(text.into()), Kind::Text));
        let asked = |asked, kind| Ok(typed(Expr::Asked(asked), kind));
        match (name, arguments.as_slice()) {
            ("version", []) => constant(chatter::version()),
            ("current_schema", []) => constant("public".to_owned()),
            ("current_database" | "current_catalog", []) => asked(Asked::Database, Kind::Text),
            ("current_user" | "session_user" | "user" | "current_role", []) => {
                asked(Asked::User, Kind::Text)
            }
            ("pg_backend_pid", []) => asked(Asked::Pid, Kind::Int4),
            ("now" | "current_timestamp" | "clock_timestamp", []) => asked(Asked::Now, Kind::Time),
            ("pg_is_in_recovery", []) => Ok(typed(Expr::Constant(Cell::Bool(false)), Kind::Bool)),
            ("pg_advisory_unlock_all", []) => constant(String::new()),
            ("current_setting", [name] | [name, _]) => {
                let Expr::Constant(Cell::Text(text)) = &name.expr else {
                    return Err(not_known(whole));
                };
                match chatter::setting(text) {
                    Some(value) => constant(value),
                    None if arguments.len() == 2 => {
                        Ok(typed(Expr::Constant(Cell::Null), Kind::Text))
                    }
                    None => Err(chatter::no_setting(text)),
                }
            }
            ("set_config", [_, value, _]) => self.as_kind(value.clone(), Kind::Text),
            ("lower" | "upper" | "length" | "char_length", [value]) => {
                let value = Box::new(self.as_kind(value.clone(), Kind::Text)?.expr);
                Ok(match name {
                    "lower" => typed(Expr::Lower(value), Kind::Text),
                    "upper" => typed(Expr::Upper(value), Kind::Text),
                    _ => typed(Expr::Length(value), Kind::Int4),
                })
            }
            ("coalesce", [_, ..]) => {
                let kind = arguments.iter().find_map(|value| value.kind);
                let kind = kind.unwrap_or(Kind::Text);
                let values = arguments.into_iter().map(|value| self.as_kind(value, kind));
                let exprs = values.map(|value| value.map(|value| value.expr));
                Ok(typed(Expr::Coalesce(exprs.collect::<Read<_>>()?), kind))
            }
            _ => Err(Report::new(
                SqlState(*b"42883"),
                format!("the console has no function {}", cut(&whole.to_string())),
            )),
        }
    }

    fn aggregate(
        &mut self,
        function: Function,
        list: &[FunctionArg],
        is_distinct: bool,
        whole: &ast::Expr,
    ) -> Read<Typed> {
        // There is none within another, and none in WHERE.
        let Some(mut aggregates) = self.aggregates.take() else {
            return Err(misplaced_aggregate());
        };
        let of = match list {
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if function == Function::Count => {
                None
            }
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => Some(self.expr(expr)?),
            _ => return Err(not_known(whole)),
        };
        let of_kind = of.as_ref().and_then(|of| of.kind).unwrap_or(Kind::Text);
        let kind = function.kind(of_kind).ok_or_else(|| {
            let words = format!("{} of type {}", cut(&whole.to_string()), of_kind.name());
            Report::new(SqlState(*b"42883"), format!("cannot compute {words}"))
        })?;
        aggregates.push(Aggregate {
            function,
            of: of.map(|of| of.expr),
            is_distinct,
        });
        let expr = Expr::Aggregate(aggregates.len() - 1);
        self.aggregates = Some(aggregates);
        Ok(typed(expr, kind))
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

fn compare(comparison: Comparison, one: Typed, other: Typed) -> Expr {
    Expr::Compare(comparison, one.expr.into(), other.expr.into())
}

fn negated(expr: Expr, is_negated: bool) -> Expr {
    if is_negated {
        Expr::Not(expr.into())
    } else {
        expr
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

fn kind_named(name: &str) -> Option<Kind> {
    Some(match name.to_ascii_lowercase().as_str() {
        "int" | "int4" | "integer" | "smallint" | "int2" => Kind::Int4,
        "bigint" | "int8" => Kind::Int8,
        "numeric" | "decimal" | "real" | "float4" | "float8" | "float" | "double precision" => {
            Kind::Numeric
        }
        "text" | "varchar" | "character varying" | "name" => Kind::Text,
        "bool" | "boolean" => Kind::Bool,
        _ => return None,
    })
}

/// Types that can be compared with each other.
fn family(kind: Kind) -> u8 {
    match kind {
        Kind::Bool => 0,
        Kind::Int4 | Kind::Int8 | Kind::Numeric => 1,
        Kind::Text | Kind::Time => 2,
    }
}

fn refuse(what: &[(bool, &str)]) -> Read<()> {
    match what.iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(unsupported(what)),
        None => Ok(()),
    }
}

fn unsupported(what: &str) -> Report {
    let words = format!("the console does not support {what}");
    Report::new(SqlState::NOT_SUPPORTED, words)
        .hint("It knows SELECT ... FROM one of its tables, with WHERE, GROUP BY, HAVING, ORDER BY and LIMIT.")
}

fn not_known(expr: &ast::Expr) -> Report {
    unsupported(&format!("the expression {}", cut(&expr.to_string())))
}

fn no_table(name: &str) -> Report {
    let names: Vec<_> = tables().map(|(name, _)| name).collect();
    Report::new(
        SqlState(*b"42P01"),
        format!("relation \"{}\" does not exist", cut(name)),
    )
    .detail("This is the console of a connection pooler: it has no database and no catalog.")
    .hint(format!("The console's tables are: {}", names.join(", ")))
}

fn no_operator(one: Kind, sign: &str, other: Kind) -> Report {
    let (one, other) = (one.name(), other.name());
    Report::new(
        SqlState(*b"42883"),
        format!("operator does not exist: {one} {} {other}", cut(sign)),
    )
}

fn misplaced_aggregate() -> Report {
    Report::new(
        SqlState(*b"42803"),
        "aggregate functions are not allowed here",
    )
}

fn ungrouped(column: &Column) -> Report {
    let name = &column.name;
    Report::new(
        SqlState(*b"42803"),
        format!(
            "column \"{name}\" must appear in the GROUP BY clause or be used in an aggregate function"
        ),
    )
}

/// The front of a text that came from outside.
fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
