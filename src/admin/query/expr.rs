//! Values of expressions, with SQL's three truth values.

use std::borrow::Cow;
use std::cmp::Ordering;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::admin::table::{Cell, Kind, to_text};
use crate::wire::reply::{Report, SqlState};

/// So many make one.
const MILLION: i128 = 1_000_000;

/// The longest pattern: what it takes to find out whether it fits grows with it.
const LONGEST_PATTERN: usize = 256;

/// What an expression may ask for beside its row.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The client's user.
    pub user: String,
    /// The database as it called it.
    pub database: String,
    /// The process id that it was told.
    pub pid: u32,
    /// Its parameters, read as the types that the query gives them.
    pub parameters: Vec<Cell>,
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// That column of the row.
    Column(usize),
    Constant(Cell),
    /// The parameter of that number, from 0.
    Parameter(usize),
    /// The so-many-th aggregate: until groups are known.
    Aggregate(usize),
    Asked(Asked),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    /// IS DISTINCT FROM.
    Differs(Box<Expr>, Box<Expr>),
    /// IS NULL, IS TRUE, IS FALSE.
    Is(Box<Expr>, Cell),
    In(Box<Expr>, Vec<Expr>),
    Like {
        text: Box<Expr>,
        pattern: Box<Expr>,
        ignores_case: bool,
    },
    Math(Math, Box<Expr>, Box<Expr>),
    Join(Box<Expr>, Kind, Box<Expr>, Kind),
    Cast(Box<Expr>, Kind, Kind),
    Coalesce(Vec<Expr>),
    /// CASE: the value of the first condition that is true, or of what follows ELSE.
    Case(Vec<(Expr, Expr)>, Box<Expr>),
    Of(Function, Box<Expr>),
}

/// A function of one value; of NULL it is NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Lower,
    Upper,
    Length,
    /// In quotes unless it can be a name without.
    QuoteIdent,
    /// The next lower whole number.
    Floor,
    /// Seconds since 1970, of a time.
    Epoch,
}

/// What drivers and people ask of every server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    User,
    Database,
    Pid,
    Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    GreaterOrEqual,
    Greater,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Math {
    Add,
    Subtract,
    Multiply,
    /// Of whole numbers: without rest.
    DivideWhole,
    Divide,
    Modulo,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Greater => order.is_gt(),
        }
    }
}

impl Expr {
    /// Its value for a row.
    pub(super) fn value(&self, row: &[Cell], environment: &Environment) -> Result<Cell, Report> {
        let of = |expr: &Self| expr.value(row, environment);
        Ok(match self {
            Self::Column(index) => row.get(*index).cloned().unwrap_or(Cell::Null),
            Self::Constant(cell) => cell.clone(),
            Self::Parameter(index) => {
                let value = environment.parameters.get(*index);
                value.cloned().unwrap_or(Cell::Null)
            }
            Self::Aggregate(_) => unreachable!("grouping puts columns in their place"),
            Self::Asked(asked) => asked.value(environment),
            Self::Not(expr) => match of(expr)? {
                Cell::Bool(value) => Cell::Bool(!value),
                _ => Cell::Null,
            },
            Self::And(one, other) => match of(one)? {
                Cell::Bool(false) => Cell::Bool(false),
                Cell::Bool(true) => of(other)?,
                _ if of(other)? == Cell::Bool(false) => Cell::Bool(false),
                _ => Cell::Null,
            },
            Self::Or(one, other) => match of(one)? {
                Cell::Bool(true) => Cell::Bool(true),
                Cell::Bool(false) => of(other)?,
                _ if of(other)? == Cell::Bool(true) => Cell::Bool(true),
                _ => Cell::Null,
            },
            Self::Compare(comparison, one, other) => match (of(one)?, of(other)?) {
                (Cell::Null, _) | (_, Cell::Null) => Cell::Null,
                (one, other) => Cell::Bool(comparison.holds(compare(&one, &other))),
            },
            Self::Differs(one, other) => Cell::Bool(compare(&of(one)?, &of(other)?).is_ne()),
            Self::Is(expr, cell) => Cell::Bool(of(expr)? == *cell),
            Self::In(expr, list) => is_in(&of(expr)?, list, of)?,
            Self::Like {
                text,
                pattern,
                ignores_case,
            } => match (of(text)?, of(pattern)?) {
                (_, Cell::Text(pattern)) if pattern.len() > LONGEST_PATTERN => {
                    let words = "the pattern is too long";
                    return Err(Report::new(SqlState(*b"54000"), words));
                }
                (Cell::Text(text), Cell::Text(pattern)) if *ignores_case => {
                    Cell::Bool(is_like(&text.to_lowercase(), &pattern.to_lowercase()))
                }
                (Cell::Text(text), Cell::Text(pattern)) => Cell::Bool(is_like(&text, &pattern)),
                _ => Cell::Null,
            },
            Self::Math(math, one, other) => math.of(&of(one)?, &of(other)?)?,
            Self::Join(one, kind, other, other_kind) => match (of(one)?, of(other)?) {
                (Cell::Null, _) | (_, Cell::Null) => Cell::Null,
                (one, other) => {
                    let text = to_text(*kind, &one) + &to_text(*other_kind, &other);
                    Cell::Text(text.into())
                }
            },
            Self::Cast(expr, from, to) => cast(&of(expr)?, *from, *to)?,
            Self::Coalesce(exprs) => {
                for expr in exprs {
                    let value = of(expr)?;
                    if value != Cell::Null {
                        return Ok(value);
                    }
                }
                Cell::Null
            }
            Self::Case(cases, otherwise) => {
                for (condition, value) in cases {
                    if of(condition)? == Cell::Bool(true) {
                        return of(value);
                    }
                }
                of(otherwise)?
            }
            Self::Of(function, expr) => function.of(&of(expr)?),
        })
    }

    /// Whether there is an aggregate in it.
    pub(super) fn has_aggregate(&self) -> bool {
        match self {
            Self::Aggregate(_) => true,
            Self::Column(_) | Self::Constant(_) | Self::Parameter(_) | Self::Asked(_) => false,
            Self::Not(expr) | Self::Is(expr, _) | Self::Cast(expr, ..) | Self::Of(_, expr) => {
                expr.has_aggregate()
            }
            Self::And(one, other)
            | Self::Or(one, other)
            | Self::Compare(_, one, other)
            | Self::Differs(one, other)
            | Self::Math(_, one, other)
            | Self::Join(one, _, other, _)
            | Self::Like {
                text: one,
                pattern: other,
                ..
            } => one.has_aggregate() || other.has_aggregate(),
            Self::In(expr, list) => expr.has_aggregate() || list.iter().any(Self::has_aggregate),
            Self::Coalesce(exprs) => exprs.iter().any(Self::has_aggregate),
            Self::Case(cases, otherwise) => {
                let each =
                    |(one, other): &(Self, Self)| one.has_aggregate() || other.has_aggregate();
                cases.iter().any(each) || otherwise.has_aggregate()
            }
        }
    }

    /// The same over the rows of groups, or the column of the source that has no place there.
    pub(super) fn grouped(self, keys: &[Self]) -> Result<Self, usize> {
        if let Some(place) = keys.iter().position(|key| *key == self) {
            return Ok(Self::Column(place));
        }
        let of = |expr: Box<Self>| expr.grouped(keys).map(Box::new);
        let each = |exprs: Vec<Self>| {
            let exprs = exprs.into_iter().map(|expr| expr.grouped(keys));
            exprs.collect::<Result<Vec<_>, _>>()
        };
        Ok(match self {
            Self::Column(index) => return Err(index),
            Self::Aggregate(index) => Self::Column(keys.len() + index),
            Self::Constant(_) | Self::Parameter(_) | Self::Asked(_) => self,
            Self::Not(expr) => Self::Not(of(expr)?),
            Self::And(one, other) => Self::And(of(one)?, of(other)?),
            Self::Or(one, other) => Self::Or(of(one)?, of(other)?),
            Self::Compare(comparison, one, other) => {
                Self::Compare(comparison, of(one)?, of(other)?)
            }
            Self::Differs(one, other) => Self::Differs(of(one)?, of(other)?),
            Self::Is(expr, cell) => Self::Is(of(expr)?, cell),
            Self::In(expr, list) => Self::In(of(expr)?, each(list)?),
            Self::Like {
                text,
                pattern,
                ignores_case,
            } => Self::Like {
                text: of(text)?,
                pattern: of(pattern)?,
                ignores_case,
            },
            Self::Math(math, one, other) => Self::Math(math, of(one)?, of(other)?),
            Self::Join(one, kind, other, other_kind) => {
                Self::Join(of(one)?, kind, of(other)?, other_kind)
            }
            Self::Cast(expr, from, to) => Self::Cast(of(expr)?, from, to),
            Self::Coalesce(exprs) => Self::Coalesce(each(exprs)?),
            Self::Case(cases, otherwise) => {
                let cases = cases
                    .into_iter()
                    .map(|(one, other)| Ok::<_, usize>((one.grouped(keys)?, other.grouped(keys)?)));
                Self::Case(cases.collect::<Result<_, _>>()?, of(otherwise)?)
            }
            Self::Of(function, expr) => Self::Of(function, of(expr)?),
        })
    }
}

impl Asked {
    fn value(self, environment: &Environment) -> Cell {
        match self {
            Self::User => environment.user.clone().into(),
            Self::Database => environment.database.clone().into(),
            Self::Pid => environment.pid.into(),
            Self::Now => Timestamp::now().as_microsecond().into(),
        }
    }
}

impl Function {
    fn of(self, cell: &Cell) -> Cell {
        match (self, cell) {
            (Self::Lower, Cell::Text(text)) => text.to_lowercase().into(),
            (Self::Upper, Cell::Text(text)) => text.to_uppercase().into(),
            (Self::Length, Cell::Text(text)) => text.chars().count().into(),
            (Self::QuoteIdent, Cell::Text(text)) => quoted(text).into(),
            (Self::Floor, Cell::Int(value)) => Cell::Int(*value),
            (Self::Floor, Cell::Millionths(value)) => Cell::Int(value.div_euclid(MILLION)),
            (Self::Epoch, Cell::Int(microseconds)) => Cell::Millionths(*microseconds),
            _ => Cell::Null,
        }
    }
}

/// A name, in quotes unless it is one in small letters. (Postgres quotes words of its grammar as well.)
fn quoted(name: &str) -> String {
    let is_plain = |(place, letter): (usize, char)| {
        letter.is_ascii_lowercase() || letter == '_' || place > 0 && letter.is_ascii_digit()
    };
    if !name.is_empty() && name.char_indices().all(is_plain) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Math {
    fn of(self, one: &Cell, other: &Cell) -> Result<Cell, Report> {
        if *one == Cell::Null || *other == Cell::Null {
            return Ok(Cell::Null);
        }
        let divides = matches!(self, Self::Divide | Self::DivideWhole | Self::Modulo);
        if divides && millionths(other) == Some(0) {
            return Err(Report::new(SqlState(*b"22012"), "division by zero"));
        }
        self.compute(one, other).ok_or_else(out_of_range)
    }

    fn compute(self, one: &Cell, other: &Cell) -> Option<Cell> {
        if let (Cell::Int(one), Cell::Int(other)) = (one, other)
            && self != Self::Divide
        {
            return Some(Cell::Int(match self {
                Self::Add => one.checked_add(*other)?,
                Self::Subtract => one.checked_sub(*other)?,
                Self::Multiply => one.checked_mul(*other)?,
                Self::DivideWhole | Self::Divide => one.checked_div(*other)?,
                Self::Modulo => one.checked_rem(*other)?,
            }));
        }
        let (one, other) = (millionths(one)?, millionths(other)?);
        Some(Cell::Millionths(match self {
            Self::Add => one.checked_add(other)?,
            Self::Subtract => one.checked_sub(other)?,
            Self::Multiply => one.checked_mul(other)? / MILLION,
            Self::DivideWhole | Self::Divide => one.checked_mul(MILLION)?.checked_div(other)?,
            Self::Modulo => one.checked_rem(other)?,
        }))
    }
}

/// The sum of two numbers.
pub(super) fn add(one: &Cell, other: &Cell) -> Option<Cell> {
    Math::Add.compute(one, other)
}

/// A part of a number.
pub(super) fn divide(sum: &Cell, count: i128) -> Option<Cell> {
    Math::Divide.compute(sum, &Cell::Int(count))
}

fn millionths(cell: &Cell) -> Option<i128> {
    match cell {
        Cell::Int(value) => value.checked_mul(MILLION),
        Cell::Millionths(value) => Some(*value),
        Cell::Null | Cell::Bool(_) | Cell::Text(_) => None,
    }
}

/// Which of two values comes first. Nulls are alike, and come last.
pub(super) fn compare(one: &Cell, other: &Cell) -> Ordering {
    match (one, other) {
        (Cell::Int(one), Cell::Int(other)) => one.cmp(other),
        (Cell::Bool(one), Cell::Bool(other)) => one.cmp(other),
        (Cell::Text(one), Cell::Text(other)) => one.cmp(other),
        (Cell::Int(_) | Cell::Millionths(_), Cell::Int(_) | Cell::Millionths(_)) => {
            millionths(one).cmp(&millionths(other))
        }
        _ => rank(one).cmp(&rank(other)),
    }
}

fn rank(cell: &Cell) -> u8 {
    match cell {
        Cell::Bool(_) => 0,
        Cell::Int(_) | Cell::Millionths(_) => 1,
        Cell::Text(_) => 2,
        Cell::Null => 3,
    }
}

/// A value as a key: in order, and equal where SQL says so.
#[derive(Debug, Clone)]
pub(super) struct Ordered(Cell);

impl From<&Cell> for Ordered {
    fn from(cell: &Cell) -> Self {
        Self(cell.clone())
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ordered {}

fn is_in(
    value: &Cell,
    list: &[Expr],
    of: impl Fn(&Expr) -> Result<Cell, Report>,
) -> Result<Cell, Report> {
    let mut has_null = *value == Cell::Null;
    for expr in list {
        match of(expr)? {
            Cell::Null => has_null = true,
            other if *value != Cell::Null && compare(value, &other).is_eq() => {
                return Ok(Cell::Bool(true));
            }
            _ => {}
        }
    }
    Ok(if has_null {
        Cell::Null
    } else {
        Cell::Bool(false)
    })
}

/// LIKE: `%` is any text, `_` any letter, a backslash takes their meaning. Goes back to the last `%` only, so its work is bounded
/// by the product of both lengths.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) =
        (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut in_pattern) = (0, 0);
    let mut back = None;
    loop {
        let fits = match pattern.get(in_pattern) {
            Some('%') => {
                in_pattern += 1;
                back = Some((at, in_pattern));
                continue;
            }
            None if at == text.len() => return true,
            None => None,
            Some('_') => (at < text.len()).then_some(1),
            Some('\\') if in_pattern + 1 < pattern.len() => {
                (text.get(at) == pattern.get(in_pattern + 1)).then_some(2)
            }
            letter => (text.get(at) == letter).then_some(1),
        };
        match (fits, &mut back) {
            (Some(length), _) => {
                at += 1;
                in_pattern += length;
            }
            (None, Some((from, after))) if *from < text.len() => {
                *from += 1;
                (at, in_pattern) = (*from, *after);
            }
            (None, _) => return false,
        }
    }
}

fn cast(cell: &Cell, from: Kind, to: Kind) -> Result<Cell, Report> {
    Ok(match (cell, to) {
        (Cell::Null, _) => Cell::Null,
        (Cell::Text(text), to) => read(text, to)?,
        (cell, Kind::Text | Kind::Time) => to_text(from, cell).into(),
        (Cell::Millionths(value), Kind::Int4 | Kind::Int8) => {
            let half = if *value < 0 {
                -MILLION / 2
            } else {
                MILLION / 2
            };
            Cell::Int((value.saturating_add(half)) / MILLION)
        }
        (Cell::Int(value), Kind::Bool) => Cell::Bool(*value != 0),
        (Cell::Bool(value), Kind::Int4 | Kind::Int8 | Kind::Numeric) => Cell::Int((*value).into()),
        (cell, _) => cell.clone(),
    })
}

/// Reads a value of a type.
pub(super) fn read(text: &str, kind: Kind) -> Result<Cell, Report> {
    let word = text.trim();
    let cell = match kind {
        Kind::Text | Kind::Time => Some(Cell::Text(Cow::Owned(text.to_owned()))),
        Kind::Int4 | Kind::Int8 => word.parse::<i64>().ok().map(Cell::from),
        Kind::Numeric => number(word),
        Kind::Instant => instant(word),
        Kind::Bool => match word.to_ascii_lowercase().as_str() {
            "t" | "true" | "yes" | "on" | "1" => Some(Cell::Bool(true)),
            "f" | "false" | "no" | "off" | "0" => Some(Cell::Bool(false)),
            _ => None,
        },
    };
    cell.ok_or_else(|| {
        let name = kind.name();
        let text: String = text.chars().take(100).collect();
        Report::new(
            SqlState(*b"22P02"),
            format!("invalid input syntax for type {name}: \"{text}\""),
        )
    })
}

/// A time: with an offset, or with the name of a zone as the console's own columns have it, or in UTC as the console's `TimeZone` says.
fn instant(text: &str) -> Option<Cell> {
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let (time, zone) = match text.rsplit_once(' ') {
            Some((time, zone)) if zone.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                (time, zone)
            }
            _ => (text, "UTC"),
        };
        let zone = match zone {
            "UTC" | "GMT" => TimeZone::UTC,
            _ => TimeZone::system(),
        };
        let time = time.parse::<DateTime>().ok()?;
        zone.to_timestamp(time).ok()
    });
    Some(time?.as_microsecond().into())
}

/// A number with up to six decimal places; more are left out.
pub(super) fn number(text: &str) -> Option<Cell> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(fraction) || digits.len() > 30 || digits.len() < 2 {
        return None;
    }
    let places: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let value = whole
        .checked_mul(MILLION)?
        .checked_add(places.parse().ok()?)?;
    Some(Cell::Millionths(sign * value))
}

pub(super) fn out_of_range() -> Report {
    Report::new(SqlState(*b"22003"), "numeric field overflow")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_knows_its_two_signs_and_the_backslash() {
        for (text, pattern, expected) in [
            ("site", "site", true),
            ("site", "si%", true),
            ("site", "%t_", true),
            ("site", "s_e", false),
            ("site", "", false),
            ("", "%", true),
            ("50%", "50\\%", true),
            ("500", "50\\%", false),
            ("aXbXc", "a%X%c", true),
            ("aaaaaaaaab", "%a%a%a%a%c", false),
            ("ünser", "_nser", true),
        ] {
            assert_eq!(is_like(text, pattern), expected, "{text} LIKE {pattern}");
        }
    }

    #[test]
    fn numbers_have_up_to_six_places() {
        assert_eq!(number("12"), Some(Cell::Int(12)));
        assert_eq!(number("-0.5"), Some(Cell::Millionths(-500_000)));
        assert_eq!(number("1.2345678"), Some(Cell::Millionths(1_234_567)));
        for wrong in ["", "-", ".", "1e3", "1.2.3", "x", &"9".repeat(40)] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
