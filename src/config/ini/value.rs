//! Values of a `pgbouncer.ini`, read as C reads them.

use std::time::Duration;

/// The most that a time is taken for, a century: more would overflow when it is added to the time of day.
const LONGEST: f64 = 100.0 * 366.0 * 24.0 * 60.0 * 60.0;

/// An integer as strtol reads it: decimal, octal after `0`, hexadecimal after `0x`.
pub(super) fn integer(text: &str) -> Option<i64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let lower = unsigned.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None if lower.starts_with('0') && lower.len() > 1 => (&lower[1..], 8),
        None => (lower.as_str(), 10),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let number = i64::from_str_radix(digits, radix).ok()?;
    Some(if text.starts_with('-') {
        -number
    } else {
        number
    })
}

/// An integer that counts something.
pub(super) fn count(text: &str) -> Option<u32> {
    integer(text).and_then(|number| u32::try_from(number).ok())
}

/// Any integer but 0 is true.
pub(super) fn switch(text: &str) -> Option<bool> {
    integer(text).map(|number| number != 0)
}

/// Seconds, with a fraction if need be.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    if !seconds.is_finite() || seconds.is_sign_negative() && seconds != 0.0 {
        return None;
    }
    // PgBouncer keeps microseconds.
    let whole = Duration::try_from_secs_f64(seconds.abs().min(LONGEST)).ok()?;
    u64::try_from(whole.as_micros())
        .ok()
        .map(Duration::from_micros)
}

/// The words of a list with commas.
pub(super) fn list(text: &str) -> Vec<&str> {
    let words = text.split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_c() {
        for (text, number) in [
            ("0", Some(0)),
            ("20", Some(20)),
            ("-1", Some(-1)),
            ("+7", Some(7)),
            ("0777", Some(0o777)),
            ("0x1F", Some(31)),
            ("08", None),
            ("", None),
            ("0x", None),
            ("1 ", None),
            ("1k", None),
            ("--1", None),
            ("0-1", None),
            ("0x-1", None),
            ("yes", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
        assert_eq!(
            (switch("2"), switch("0"), switch("on")),
            (Some(true), Some(false), None)
        );
        assert_eq!((count("-1"), count("4294967296")), (None, None));
    }

    #[test]
    fn times_are_seconds_with_fractions() {
        for (text, micros) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("120", Some(120_000_000)),
            ("0.25", Some(250_000)),
            (".0005", Some(500)),
            ("1e1", Some(10_000_000)),
            ("", None),
            ("-1", None),
            ("inf", None),
            ("nan", None),
            ("5s", None),
        ] {
            let read = seconds(text).map(|time| time.as_micros());
            assert_eq!(read, micros, "{text}");
        }
        assert!(seconds("1e300").is_some(), "for ever is long");
    }
}
