//! Expressions: columns are found, types are checked.

use sqlparser::ast::{
    self, AccessExpr, BinaryOperator, CaseWhen, CastKind, CeilFloorKind, DateTimeField,
    FunctionArg, FunctionArgExpr, FunctionArguments, InTarget, Subscript, UnaryOperator, Value,
};

use super::refusal::{cut, no_operator, not_known, unsupported};
use super::{MOST_PARAMETERS, Read, Reader, SCHEMAS, Typed, folded, typed};
use crate::admin::query::catalog;
use crate::admin::query::expr::{self, Comparison, Expr, Function, Math};
use crate::admin::table::{Cell, Kind};
use crate::wire::reply::{Report, SqlState};

impl Reader {
    pub(super) fn condition(&mut self, expr: &ast::Expr) -> Read<Expr> {
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

    pub(super) fn expr(&mut self, expr: &ast::Expr) -> Read<Typed> {
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
            Sql::Case {
                operand: None,
                conditions,
                else_result,
                ..
            } => self.case(conditions, else_result.as_deref()),
            Sql::Extract {
                field: DateTimeField::Epoch,
                expr: time,
                ..
            } => {
                let time = self.expr(time)?;
                let time = self.as_kind(time, Kind::Instant)?.expr;
                Ok(typed(Expr::Of(Function::Epoch, time.into()), Kind::Numeric))
            }
            Sql::Floor {
                expr: number,
                field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime),
            } => {
                let number = self.expr(number)?;
                let number = self.number(number, "floor")?.expr;
                Ok(typed(
                    Expr::Of(Function::Floor, number.into()),
                    Kind::Numeric,
                ))
            }
            Sql::CompoundFieldAccess { root, access_chain } => {
                part_of_name(root, access_chain).ok_or_else(|| not_known(expr))
            }
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
            // Editors ask so whether a table can be named without its schema.
            Sql::In {
                expr: value,
                target: InTarget::Subquery(query),
                negated,
                ..
            } if query.to_string().contains("'search_path'") => {
                let value = self.expr(value)?;
                let value = self.as_kind(value, Kind::Text)?.expr;
                let path = Expr::Constant(catalog::SCHEMA.into());
                (Expr::In(value.into(), vec![path]), *negated)
            }
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

    fn case(&mut self, cases: &[CaseWhen], otherwise: Option<&ast::Expr>) -> Read<Typed> {
        let mut conditions = Vec::with_capacity(cases.len());
        let mut values = Vec::with_capacity(cases.len() + 1);
        for case in cases {
            conditions.push(self.condition(&case.condition)?);
            values.push(self.expr(&case.result)?);
        }
        values.push(match otherwise {
            Some(otherwise) => self.expr(otherwise)?,
            None => Typed {
                expr: Expr::Constant(Cell::Null),
                kind: None,
            },
        });
        let kind = common(values.iter().map(|value| value.kind)).unwrap_or(Kind::Text);
        let values = values.into_iter().map(|value| self.as_kind(value, kind));
        let mut values = values.collect::<Read<Vec<_>>>()?;
        let otherwise = values.pop().expect("it was pushed last").expr;
        let values = values.into_iter().map(|value| value.expr);
        let cases = conditions.into_iter().zip(values).collect();
        Ok(typed(Expr::Case(cases, otherwise.into()), kind))
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
            Some(from) if !is_castable(from, to) => {
                let (from, to) = (from.name(), to.name());
                let words = format!("cannot cast type {from} to {to}");
                Err(Report::new(SqlState(*b"42846"), words))
            }
            Some(from) => Ok(typed(Expr::Cast(value.expr.into(), from, to), to)),
        }
    }

    pub(super) fn column(&self, name: &str) -> Read<Typed> {
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

    pub(super) fn check_qualifier(&self, parts: &[String]) -> Read<()> {
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
    pub(super) fn as_kind(&mut self, value: Typed, kind: Kind) -> Read<Typed> {
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
}

/// The parts of `parse_ident('schema.table')`.
pub(super) fn parsed_name(expr: &ast::Expr) -> Option<Vec<String>> {
    let ast::Expr::Function(function) = expr else {
        return None;
    };
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Value(name)))] = &*list.args else {
        return None;
    };
    let Value::SingleQuotedString(name) = &name.value else {
        return None;
    };
    let is_it = function
        .name
        .to_string()
        .eq_ignore_ascii_case("parse_ident");
    let part = |part: &str| match part.strip_prefix('"') {
        Some(quoted) => quoted.trim_end_matches('"').to_owned(),
        None => part.to_ascii_lowercase(),
    };
    is_it.then(|| name.split('.').map(part).collect())
}

/// One of these parts: `(parse_ident('schema.table'))[2]`.
fn part_of_name(root: &ast::Expr, access: &[AccessExpr]) -> Option<Typed> {
    let root = match root {
        ast::Expr::Nested(root) => root,
        root => root,
    };
    let [
        AccessExpr::Subscript(Subscript::Index {
            index: ast::Expr::Value(index),
        }),
    ] = access
    else {
        return None;
    };
    let Value::Number(index, false) = &index.value else {
        return None;
    };
    let parts = parsed_name(root)?;
    let index = index.parse::<usize>().ok()?.checked_sub(1);
    let part = index.and_then(|index| parts.get(index)).cloned();
    Some(typed(Expr::Constant(part.into()), Kind::Text))
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

/// Whether a value of one type can become one of another. Times come from texts only.
fn is_castable(from: Kind, to: Kind) -> bool {
    let is_time = |kind| kind == Kind::Instant;
    let is_text = |kind| matches!(kind, Kind::Text | Kind::Time | Kind::Instant);
    (is_text(from) || !is_time(to)) && (is_text(to) || !is_time(from))
}

/// The type that holds the values of all of these; `None`: they may have any.
pub(super) fn common(kinds: impl Iterator<Item = Option<Kind>>) -> Option<Kind> {
    kinds.flatten().reduce(|one, other| match (one, other) {
        (Kind::Int4 | Kind::Int8, Kind::Int8 | Kind::Numeric) => other,
        _ => one,
    })
}

/// The type of that name.
pub(super) fn kind_named(name: &str) -> Option<Kind> {
    Some(match name.to_ascii_lowercase().as_str() {
        "int" | "int4" | "integer" | "smallint" | "int2" => Kind::Int4,
        "bigint" | "int8" => Kind::Int8,
        "numeric" | "decimal" | "real" | "float4" | "float8" | "float" | "double precision" => {
            Kind::Numeric
        }
        "text" | "varchar" | "character varying" | "name" => Kind::Text,
        "bool" | "boolean" => Kind::Bool,
        "timestamptz" | "timestamp with time zone" => Kind::Instant,
        _ => return None,
    })
}

/// Types that can be compared with each other.
fn family(kind: Kind) -> u8 {
    match kind {
        Kind::Bool => 0,
        Kind::Int4 | Kind::Int8 | Kind::Numeric => 1,
        Kind::Text | Kind::Time => 2,
        Kind::Instant => 3,
    }
}
