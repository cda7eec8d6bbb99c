//! Prepared statements and portals of a console (manual, "Extended Query").

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::command::{Outcome, Plan, unfinished};
use super::console::{EMPTY_QUERY, not_utf8};
use super::table::{
    Cell, Format, Formats, Kind, Row, SINCE_2000, Table, data_row, row_description, to_text,
};
use super::words;
use crate::wire::reply::{Message, Report, SqlState};

/// Prepared statements of one client. Drivers keep some hundred.
const MOST_STATEMENTS: usize = 500;

/// Bytes of their texts together.
const LONGEST_STATEMENTS: usize = 1024 * 1024;

/// Portals of one client at once. Most are gone at the next Sync.
const MOST_PORTALS: usize = 16;

/// Of these, portals that hold rows which were not asked for yet.
const MOST_SUSPENDED: usize = 2;

/// Type numbers in Postgres' catalog that parameters come with.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
}

/// What a client has prepared.
#[derive(Debug, Default)]
pub struct Prepared {
    statements: HashMap<String, Statement>,
    portals: HashMap<String, Portal>,
}

#[derive(Debug, Clone)]
struct Statement {
    plan: Arc<Plan>,
    /// Of its parameters.
    types: Arc<[u32]>,
    length: usize,
}

/// A statement with its parameters, and how far its result was told.
#[derive(Debug)]
pub struct Portal {
    /// What to do.
    pub plan: Arc<Plan>,
    /// With what.
    pub parameters: Vec<Option<String>>,
    formats: Formats,
    /// `None`: it was not done yet.
    result: Option<Told>,
}

#[derive(Debug)]
struct Told {
    /// What was not told yet of the rows.
    rows: std::vec::IntoIter<Row>,
    columns: Arc<[super::table::Column]>,
    tag: String,
}

impl Prepared {
    /// Answers Parse.
    pub fn parse(&mut self, body: &[u8]) -> Result<Vec<u8>, Report> {
        let mut body = Reader::new(body, "Parse");
        let (name, text) = (body.text()?, body.text()?);
        let count = body.count()?;
        let given: Vec<u32> = (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?;
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(Report::new(
                SqlState(*b"42P05"),
                format!("prepared statement \"{name}\" already exists"),
            ));
        }
        let statement = Statement::new(&text, &given)?;
        self.statements.remove("");
        let length: usize = self.statements.values().map(|known| known.length).sum();
        if self.statements.len() >= MOST_STATEMENTS || length + text.len() > LONGEST_STATEMENTS {
            return Err(too_many("prepared statements"));
        }
        self.statements.insert(name, statement);
        Ok(Message::new(b'1').done())
    }

    /// Answers Bind.
    pub fn bind(&mut self, body: &[u8]) -> Result<Vec<u8>, Report> {
        let mut body = Reader::new(body, "Bind");
        let (portal, statement) = (body.text()?, body.text()?);
        let statement = self.statement(&statement)?.clone();
        let given = body.formats()?;
        let count = body.count()?;
        if count != statement.types.len() {
            let expected = statement.types.len();
            return Err(Report::new(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {count} parameters, but the prepared statement requires {expected}"
                ),
            ));
        }
        let given = Formats::new(given, count)?;
        let mut parameters = Vec::with_capacity(count);
        for (index, oid) in statement.types.iter().enumerate() {
            parameters.push(match body.value()? {
                Some(value) => Some(decode(*oid, &value, given.of(index))?),
                None => None,
            });
        }
        let columns = statement.plan.columns().map_or(0, <[_]>::len);
        let formats = Formats::new(body.formats()?, columns)?;
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            return Err(Report::new(
                SqlState(*b"42P03"),
                format!("cursor \"{portal}\" already exists"),
            ));
        }
        if self.portals.len() >= MOST_PORTALS && !self.portals.contains_key(&portal) {
            return Err(too_many("portals"));
        }
        self.portals.insert(
            portal,
            Portal {
                plan: statement.plan,
                parameters,
                formats,
                result: None,
            },
        );
        Ok(Message::new(b'2').done())
    }

    /// Answers Describe.
    pub fn describe(&self, body: &[u8]) -> Result<Vec<u8>, Report> {
        let (kind, name) = Reader::new(body, "Describe").target()?;
        if kind == b'P' {
            let portal = self.portals.get(&name).ok_or_else(|| no_portal(&name))?;
            return Ok(described(&portal.plan, &portal.formats));
        }
        let statement = self.statement(&name)?;
        let count = u16::try_from(statement.types.len()).expect("Parse counts them in 16 bits");
        let message = Message::new(b't').u16(count);
        let types = statement.types.iter();
        let mut reply = types.fold(message, |message, oid| message.u32(*oid)).done();
        reply.extend(described(&statement.plan, &Formats::default()));
        Ok(reply)
    }

    /// Answers Close. What is not there is closed already.
    pub fn close(&mut self, body: &[u8]) -> Result<Vec<u8>, Report> {
        let (kind, name) = Reader::new(body, "Close").target()?;
        if kind == b'P' {
            self.portals.remove(&name);
        } else {
            self.statements.remove(&name);
        }
        Ok(Message::new(b'3').done())
    }

    fn statement(&self, name: &str) -> Result<&Statement, Report> {
        self.statements.get(name).ok_or_else(|| {
            let words = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            Report::new(SqlState(*b"26000"), words)
        })
    }

    /// Takes a portal, to execute it.
    pub fn take(&mut self, name: &str) -> Option<Portal> {
        self.portals.remove(name)
    }

    /// Forgets a prepared statement, or all of them with the portals.
    pub fn forget(&mut self, name: Option<&str>) -> Result<(), Report> {
        match name {
            None => {
                self.statements.clear();
                self.portals.clear();
            }
            Some(name) => {
                self.statement(name)?;
                self.statements.remove(name);
            }
        }
        Ok(())
    }

    /// Puts it back. Few may hold rows.
    pub fn put_back(&mut self, name: String, portal: Portal) -> Result<(), Report> {
        let suspended = self.portals.values().filter(|other| other.holds_rows());
        if portal.holds_rows() && suspended.count() >= MOST_SUSPENDED {
            return Err(too_many("suspended portals"));
        }
        self.portals.insert(name, portal);
        Ok(())
    }

    /// The unnamed statement and portal last up to the next Query.
    pub fn forget_unnamed(&mut self) {
        self.statements.remove("");
        self.portals.remove("");
    }

    /// Portals last as long as their transaction.
    pub fn forget_portals(&mut self) {
        self.portals.clear();
    }
}

impl Statement {
    fn new(text: &str, given: &[u32]) -> Result<Self, Report> {
        let statements = words::statements(text).map_err(|_| unfinished())?;
        let plan = match statements.as_slice() {
            [] => Plan::Empty,
            [statement] => Plan::of(statement)?,
            _ => {
                return Err(Report::new(
                    SqlState::SYNTAX_ERROR,
                    "cannot insert multiple commands into a prepared statement",
                ));
            }
        };
        let expected = plan.parameters();
        let count = expected.len().max(given.len());
        let of = |index: usize| match given.get(index) {
            None | Some(0 | &oid::UNKNOWN) => {
                expected.get(index).map_or(oid::TEXT, |kind| kind.oid())
            }
            Some(oid) => *oid,
        };
        Ok(Self {
            plan: Arc::new(plan),
            types: (0..count).map(of).collect(),
            length: text.len(),
        })
    }
}

impl Portal {
    /// Whether it was not done yet.
    pub fn is_new(&self) -> bool {
        self.result.is_none()
    }

    fn holds_rows(&self) -> bool {
        let left = self.result.as_ref().map(|told| told.rows.len());
        left.is_some_and(|left| left > 0)
    }

    /// Notes what came of it.
    pub fn start(&mut self, outcome: Outcome) {
        let table = outcome.table.unwrap_or(Table {
            columns: (&[]).into(),
            rows: vec![],
        });
        self.result = Some(Told {
            rows: table.rows.into_iter(),
            columns: table.columns.into(),
            tag: outcome.tag,
        });
    }

    /// The next of its rows, as long as there are some `left` to tell; `None` there stands for all.
    pub fn next(&mut self, left: &mut Option<u32>) -> Option<Vec<u8>> {
        let told = self.result.as_mut()?;
        if *left == Some(0) {
            return None;
        }
        let row = told.rows.next()?;
        *left = left.map(|left| left - 1);
        Some(data_row(&told.columns, &row, &self.formats))
    }

    /// What follows the rows.
    pub fn pause(&self) -> Vec<u8> {
        match &self.result {
            _ if self.holds_rows() => Message::new(b's').done(),
            Some(told) if !matches!(*self.plan, Plan::Empty) => {
                Message::new(b'C').text(&told.tag).done()
            }
            _ => EMPTY_QUERY.to_vec(),
        }
    }
}

/// What Execute asks for: the portal's name, and how many rows at most.
pub fn execute(body: &[u8]) -> Result<(String, Option<u32>), Report> {
    let mut body = Reader::new(body, "Execute");
    let (name, most) = (body.text()?, body.u32()?);
    // None, and what is negative, is all.
    let most = (1..=i32::MAX.unsigned_abs())
        .contains(&most)
        .then_some(most);
    Ok((name, most))
}

/// There is no portal of that name.
pub fn no_portal(name: &str) -> Report {
    Report::new(
        SqlState(*b"34000"),
        format!("portal \"{name}\" does not exist"),
    )
}

fn described(plan: &Plan, formats: &Formats) -> Vec<u8> {
    match plan.columns() {
        Some(columns) => row_description(columns, formats),
        None => Message::new(b'n').done(),
    }
}

fn too_many(what: &str) -> Report {
    Report::new(
        SqlState(*b"54000"),
        format!("too many {what} for a console session"),
    )
}

/// A parameter as text.
fn decode(oid: u32, value: &[u8], format: Format) -> Result<String, Report> {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).map_err(|_| not_utf8());
    if format == Format::Text {
        return text(value);
    }
    let number = || -> Option<String> {
        Some(match oid {
            oid::BOOL => (*value.first()? != 0).to_string(),
            oid::INT2 => i16::from_be_bytes(value.try_into().ok()?).to_string(),
            oid::INT4 => i32::from_be_bytes(value.try_into().ok()?).to_string(),
            oid::INT8 => i64::from_be_bytes(value.try_into().ok()?).to_string(),
            oid::FLOAT4 => f32::from_be_bytes(value.try_into().ok()?).to_string(),
            oid::FLOAT8 => f64::from_be_bytes(value.try_into().ok()?).to_string(),
            oid::NUMERIC => numeric(value)?,
            oid::TIMESTAMP | oid::TIMESTAMPTZ => {
                let since_2000 = i128::from(i64::from_be_bytes(value.try_into().ok()?));
                to_text(Kind::Instant, &Cell::Int(since_2000 + SINCE_2000))
            }
            _ => return None,
        })
    };
    match oid {
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME => text(value),
        _ => number().ok_or_else(|| {
            Report::new(
                SqlState(*b"22P03"),
                format!("the console cannot read a binary parameter of type {oid}"),
            )
        }),
    }
}

/// What `numeric_send` wrote, unless it is no number or beyond all columns.
fn numeric(mut value: &[u8]) -> Option<String> {
    let (count, weight) = (value.try_get_u16().ok()?, value.try_get_i16().ok()?);
    let (sign, scale) = (value.try_get_u16().ok()?, value.try_get_u16().ok()?);
    if !matches!(sign, 0 | 0x4000) || !(-8..=8).contains(&weight) || scale > 30 || count > 16 {
        return None;
    }
    let digits: Vec<u16> = (0..count)
        .map(|_| value.try_get_u16().ok())
        .collect::<Option<_>>()?;
    // The digit that stands for so many ten thousands to that power.
    let at = |power: i16| {
        let index = usize::try_from(weight - power).ok();
        index
            .and_then(|index| digits.get(index))
            .copied()
            .unwrap_or(0)
    };
    let written = |powers: Vec<i16>| {
        let digits = powers.into_iter().map(|power| format!("{:04}", at(power)));
        digits.collect::<Vec<_>>().concat()
    };
    let whole = written((0..=weight.max(0)).rev().collect());
    let whole = whole.trim_start_matches('0');
    let fraction = written((1..=8).map(|power: i16| -power).collect());
    let fraction = &fraction[..usize::from(scale)];
    let sign = if sign == 0 { "" } else { "-" };
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some([sign, whole, point, fraction].concat())
}

/// Reads the body of a message.
struct Reader {
    body: Bytes,
    message: &'static str,
}

impl Reader {
    fn new(body: &[u8], message: &'static str) -> Self {
        Self {
            body: Bytes::copy_from_slice(body),
            message,
        }
    }

    fn malformed(&self) -> Report {
        Report::new(
            SqlState::PROTOCOL_VIOLATION,
            format!("malformed {} message", self.message),
        )
    }

    fn text(&mut self) -> Result<String, Report> {
        let end = self.body.iter().position(|byte| *byte == 0);
        let text = self.body.split_to(end.ok_or_else(|| self.malformed())?);
        self.body.advance(1);
        String::from_utf8(text.into()).map_err(|_| not_utf8())
    }

    fn u32(&mut self) -> Result<u32, Report> {
        self.body.try_get_u32().map_err(|_| self.malformed())
    }

    /// How many of something follow. Nobody has room for more than there are bytes.
    fn count(&mut self) -> Result<usize, Report> {
        let count = self.body.try_get_u16().map_err(|_| self.malformed())?;
        Ok(usize::from(count))
    }

    fn formats(&mut self) -> Result<Vec<Format>, Report> {
        let code = |reader: &mut Self| {
            let code = reader.body.try_get_i16();
            Format::of_code(code.map_err(|_| reader.malformed())?)
        };
        (0..self.count()?).map(|_| code(self)).collect()
    }

    fn value(&mut self) -> Result<Option<Bytes>, Report> {
        let length = self.body.try_get_i32().map_err(|_| self.malformed())?;
        match usize::try_from(length) {
            Err(_) if length == -1 => Ok(None),
            Ok(length) if length <= self.body.len() => Ok(Some(self.body.split_to(length))),
            _ => Err(self.malformed()),
        }
    }

    fn target(&mut self) -> Result<(u8, String), Report> {
        let kind = self.body.try_get_u8().map_err(|_| self.malformed())?;
        if !matches!(kind, b'S' | b'P') {
            return Err(self.malformed());
        }
        Ok((kind, self.text()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[ndigits, weight, sign, dscale, digits...]`.
    fn numeric_of(words: &[u16]) -> Option<String> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        numeric(&bytes)
    }

    #[test]
    fn a_binary_numeric_is_read() {
        for (words, expected) in [
            (&[0, 0, 0, 0][..], Some("0")),
            (&[1, 0, 0, 0, 7], Some("7")),
            (&[3, 2, 0, 0, 1, 2345, 6789], Some("123456789")),
            (&[2, 0, 0x4000, 6, 1, 5000], Some("-1.500000")),
            (&[1, 0xffff, 0, 6, 1], Some("0.000100")),
            (&[1, 1, 0, 0, 1], Some("10000")),
            (&[0, 0, 0xc000, 0], None),
            (&[1, 900, 0, 0, 1], None),
            (&[2, 0, 0, 0, 1], None),
            (&[1], None),
        ] {
            assert_eq!(numeric_of(words).as_deref(), expected, "{words:?}");
        }
    }
}
