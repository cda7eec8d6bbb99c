//! Tables as the console answers with: typed columns, rows, and their form on the wire (manual, "Message Formats").

use std::borrow::Cow;

use jiff::Timestamp;

use crate::wire::reply::{Message, Report, SqlState};

/// Microseconds from 1970 to 2000, when Postgres' own time begins.
pub const SINCE_2000: i128 = 946_684_800_000_000;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `text`.
    Text,
    /// `bool`.
    Bool,
    /// `int4`.
    Int4,
    /// `int8`.
    Int8,
    /// `numeric`: PgBouncer's counters, since some drivers overflowed on `int8`.
    Numeric,
    /// A time, as `text` like PgBouncer's.
    Time,
    /// `timestamptz`: what queries compute with.
    Instant,
}

impl Kind {
    /// The type's number in Postgres' catalog.
    pub const fn oid(self) -> u32 {
        match self {
            Self::Bool => 16,
            Self::Int8 => 20,
            Self::Int4 => 23,
            Self::Text | Self::Time => 25,
            Self::Instant => 1184,
            Self::Numeric => 1700,
        }
    }

    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int8 => "bigint",
            Self::Int4 => "integer",
            Self::Text | Self::Time => "text",
            Self::Instant => "timestamp with time zone",
            Self::Numeric => "numeric",
        }
    }

    /// Whether it can be computed with.
    pub const fn is_number(self) -> bool {
        matches!(self, Self::Int4 | Self::Int8 | Self::Numeric)
    }

    /// Its length in bytes; -1 = it varies.
    const fn length(self) -> i16 {
        match self {
            Self::Bool => 1,
            Self::Int4 => 4,
            Self::Int8 | Self::Instant => 8,
            Self::Text | Self::Time | Self::Numeric => -1,
        }
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its type.
    pub kind: Kind,
}

impl Column {
    /// A column of that name and type.
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name: Cow::Borrowed(name),
            kind,
        }
    }
}

/// A column of `text`.
pub const fn text(name: &'static str) -> Column {
    Column::new(name, Kind::Text)
}

/// A column of `bool`.
pub const fn boolean(name: &'static str) -> Column {
    Column::new(name, Kind::Bool)
}

/// A column of `int4`.
pub const fn int4(name: &'static str) -> Column {
    Column::new(name, Kind::Int4)
}

/// A column of `int8`.
pub const fn int8(name: &'static str) -> Column {
    Column::new(name, Kind::Int8)
}

/// A column of `numeric`.
pub const fn numeric(name: &'static str) -> Column {
    Column::new(name, Kind::Numeric)
}

/// A column of times.
pub const fn time(name: &'static str) -> Column {
    Column::new(name, Kind::Time)
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Nothing.
    Null,
    /// For [`Kind::Bool`].
    Bool(bool),
    /// For the three kinds of numbers. What an `int4` cannot hold becomes the nearest that it can. For [`Kind::Instant`]: microseconds
    /// since 1970.
    Int(i128),
    /// For [`Kind::Numeric`]: so many millionths.
    Millionths(i128),
    /// For [`Kind::Text`] and [`Kind::Time`].
    Text(Cow<'static, str>),
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl From<$number> for Cell {
            fn from(value: $number) -> Self {
                Self::Int(i128::from(value))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::from(value as u64)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&'static str> for Cell {
    fn from(value: &'static str) -> Self {
        Self::Text(Cow::Borrowed(value))
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(Cow::Owned(value))
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, T::into)
    }
}

/// A row, one cell for each column.
pub type Row = Vec<Cell>;

/// Makes a row of anything that can be a cell.
#[macro_export]
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$($crate::admin::table::Cell::from($cell)),*] };
}

/// Columns and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: Cow<'static, [Column]>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As text.
    Text,
    /// As the type's `send` function writes it.
    Binary,
}

impl Format {
    /// The format of that code.
    pub fn of_code(code: i16) -> Result<Self, Report> {
        match code {
            0 => Ok(Self::Text),
            1 => Ok(Self::Binary),
            other => Err(Report::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("unsupported format code: {other}"),
            )),
        }
    }
}

/// The formats of a list of values: none = text, one = for all, else one for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Formats(Vec<Format>);

impl Formats {
    /// As a Bind message gives them, for so many values.
    pub fn new(formats: Vec<Format>, values: usize) -> Result<Self, Report> {
        if formats.len() > 1 && formats.len() != values {
            let given = formats.len();
            return Err(Report::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("bind message has {given} formats for {values} values"),
            ));
        }
        Ok(Self(formats))
    }

    /// The format of that value.
    pub fn of(&self, index: usize) -> Format {
        match self.0.as_slice() {
            [] => Format::Text,
            [all] => *all,
            each => each.get(index).copied().unwrap_or(Format::Text),
        }
    }
}

/// RowDescription.
pub fn row_description(columns: &[Column], formats: &Formats) -> Vec<u8> {
    let mut message = Message::new(b'T').u16(count(columns.len()));
    for (index, column) in columns.iter().enumerate() {
        message = message
            .text(&column.name)
            .u32(0) // of no table
            .u16(0)
            .u32(column.kind.oid())
            .bytes(&column.kind.length().to_be_bytes())
            .bytes(&(-1i32).to_be_bytes()) // no modifier
            .u16(formats.of(index) as u16);
    }
    message.done()
}

/// DataRow.
pub fn data_row(columns: &[Column], row: &[Cell], formats: &Formats) -> Vec<u8> {
    let mut message = Message::new(b'D').u16(count(columns.len()));
    for (index, (column, cell)) in columns.iter().zip(row).enumerate() {
        message = match encode(column.kind, cell, formats.of(index)) {
            Some(value) => {
                let length = u32::try_from(value.len()).expect("a cell is a name or a number");
                message.u32(length).bytes(&value)
            }
            None => message.bytes(&(-1i32).to_be_bytes()),
        };
    }
    message.done()
}

fn count(columns: usize) -> u16 {
    u16::try_from(columns).expect("a query of bounded length names no more columns than that")
}

/// The bytes of a value; `None`: it is null.
fn encode(kind: Kind, cell: &Cell, format: Format) -> Option<Vec<u8>> {
    if *cell == Cell::Null {
        return None;
    }
    Some(match (format, kind, cell) {
        (Format::Binary, Kind::Bool, Cell::Bool(value)) => vec![u8::from(*value)],
        (Format::Binary, Kind::Int4, Cell::Int(value)) => to_int4(*value).to_be_bytes().into(),
        (Format::Binary, Kind::Int8, Cell::Int(value)) => to_int8(*value).to_be_bytes().into(),
        (Format::Binary, Kind::Instant, Cell::Int(value)) => {
            to_int8(value.saturating_sub(SINCE_2000))
                .to_be_bytes()
                .into()
        }
        (Format::Binary, Kind::Numeric, cell) => binary_numeric(&to_text(kind, cell)),
        // Text in binary is text.
        _ => to_text(kind, cell).into_bytes(),
    })
}

/// A value as text.
pub fn to_text(kind: Kind, cell: &Cell) -> String {
    match (kind, cell) {
        (_, Cell::Null) => String::new(),
        (_, Cell::Bool(value)) => if *value { "t" } else { "f" }.to_owned(),
        (Kind::Int4, Cell::Int(value)) => to_int4(*value).to_string(),
        (Kind::Int8, Cell::Int(value)) => to_int8(*value).to_string(),
        (Kind::Instant, Cell::Int(value)) => match Timestamp::from_microsecond(to_int8(*value)) {
            Ok(time) => format!("{}+00", time.strftime("%Y-%m-%d %H:%M:%S%.f")),
            Err(_) => if *value < 0 { "-infinity" } else { "infinity" }.to_owned(),
        },
        (_, Cell::Int(value)) => value.to_string(),
        (_, Cell::Millionths(value)) => {
            let sign = if *value < 0 { "-" } else { "" };
            let value = value.unsigned_abs();
            format!("{sign}{}.{:06}", value / 1_000_000, value % 1_000_000)
        }
        (_, Cell::Text(value)) => value.clone().into_owned(),
    }
}

fn to_int4(value: i128) -> i32 {
    i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
}

fn to_int8(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// What `numeric_send` writes: digits to the base of 10,000, the power of the first, sign, decimal places.
fn binary_numeric(text: &str) -> Vec<u8> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (0x4000u16, text),
        None => (0, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let front = (4 - whole.len() % 4) % 4;
    let back = (4 - fraction.len() % 4) % 4;
    let padded = [&"000"[..front], whole, fraction, &"000"[..back]].concat();
    let digits = padded.as_bytes().chunks(4).map(|digits| {
        digits
            .iter()
            .fold(0u16, |sum, digit| sum * 10 + u16::from(digit - b'0'))
    });
    let mut digits: Vec<u16> = digits.collect();
    let mut weight = i16::try_from((whole.len() + front) / 4).unwrap_or(i16::MAX) - 1;
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    digits.drain(..zeros);
    weight -= i16::try_from(zeros).unwrap_or(0);
    while digits.last() == Some(&0) {
        digits.pop();
    }
    if digits.is_empty() {
        weight = 0;
    }
    let mut bytes = count(digits.len()).to_be_bytes().to_vec();
    bytes.extend(weight.to_be_bytes());
    bytes.extend(sign.to_be_bytes());
    bytes.extend(count(fraction.len()).to_be_bytes());
    bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[ndigits, weight, sign, dscale, digits...]`.
    fn numeric_of(text: &str) -> Vec<u16> {
        let bytes = binary_numeric(text);
        let words = bytes
            .chunks(2)
            .map(|two| u16::from_be_bytes([two[0], two[1]]));
        words.collect()
    }

    #[test]
    fn numbers_in_binary_are_as_postgres_sends_them() {
        // SELECT numeric_send(...)
        assert_eq!(numeric_of("0"), [0, 0, 0, 0]);
        assert_eq!(numeric_of("7"), [1, 0, 0, 0, 7]);
        assert_eq!(numeric_of("10000"), [1, 1, 0, 0, 1]);
        assert_eq!(numeric_of("123456789"), [3, 2, 0, 0, 1, 2345, 6789]);
        assert_eq!(numeric_of("-1.500000"), [2, 0, 0x4000, 6, 1, 5000]);
        assert_eq!(numeric_of("0.000100"), [1, 0xffff, 0, 6, 1]);
    }

    #[test]
    fn a_number_too_large_for_its_column_becomes_the_largest() {
        assert_eq!(to_text(Kind::Int4, &Cell::from(u64::MAX)), "2147483647");
        assert_eq!(
            to_text(Kind::Numeric, &Cell::from(u64::MAX)),
            u64::MAX.to_string()
        );
    }

    #[test]
    fn a_null_has_no_bytes_in_either_format() {
        for format in [Format::Text, Format::Binary] {
            assert_eq!(encode(Kind::Int4, &Cell::Null, format), None);
        }
    }

    #[test]
    fn a_row_is_told_in_the_formats_that_were_asked_for() {
        let columns = [text("name"), int4("n")];
        let formats = Formats::new(vec![Format::Text, Format::Binary], 2).unwrap();
        let row = row!["a", 5u32];
        let bytes = data_row(&columns, &row, &formats);
        assert_eq!(bytes, b"D\0\0\0\x13\0\x02\0\0\0\x01a\0\0\0\x04\0\0\0\x05");
        let told = row_description(&columns, &formats);
        assert_eq!(&told[told.len() - 8..], [0, 4, 255, 255, 255, 255, 0, 1]);
        assert!(Formats::new(vec![Format::Text; 3], 2).is_err());
    }
}
