//! Search filters: from their text (RFC 4515) to their bytes (RFC 4511, 4.5.1.7).

use std::fmt::Write;

use super::{CONTEXT_0, OCTETS, nest, put};

/// How deep parentheses may stand in one another.
const DEEPEST: usize = 32;

/// What stands for the user's name.
const USER_NAME: &str = "$username";

/// Why a text is no filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no LDAP search filter")]
pub struct NoFilter<'t>(&'t str);

/// `template` with `user` for each `$username`, in which nothing can be more than a value.
pub fn of_user(template: &str, user: &str) -> String {
    template.replace(USER_NAME, &escaped(user))
}

/// A value as it stands in a filter: nothing in it means anything.
pub fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '*' | '(' | ')' | '\\' | '\0' => {
                write!(escaped, "\\{:02x}", u32::from(letter)).expect("a String takes everything");
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// Reads a filter. As OpenLDAP, it takes one without the outermost parentheses too.
pub fn parse(text: &str) -> Result<Vec<u8>, NoFilter<'_>> {
    let trimmed = text.trim();
    let mut bytes = Vec::new();
    let rest = if trimmed.starts_with('(') {
        filter(trimmed, 0, &mut bytes)
    } else {
        item(trimmed, &mut bytes).map(|()| "")
    };
    match rest {
        Some("") => Ok(bytes),
        _ => Err(NoFilter(text)),
    }
}

/// One filter in parentheses at the front of `text`; what is behind it.
fn filter<'t>(text: &'t str, depth: usize, into: &mut Vec<u8>) -> Option<&'t str> {
    if depth > DEEPEST {
        return None;
    }
    let inside = text.strip_prefix('(')?;
    let (tag, list) = match inside.as_bytes().first()? {
        b'&' => (0xa0, &inside[1..]),
        b'|' => (0xa1, &inside[1..]),
        b'!' => {
            let mut rest = None;
            nest(into, 0xa2, |into| {
                rest = filter(inside[1..].trim_start(), depth + 1, into);
            });
            return rest?.trim_start().strip_prefix(')');
        }
        _ => {
            let (one, rest) = inside.split_once(')')?;
            item(one, into)?;
            return Some(rest);
        }
    };
    let mut rest = Some(list.trim_start());
    nest(into, tag, |into| {
        while let Some(more) = rest.filter(|more| more.starts_with('(')) {
            rest = filter(more, depth + 1, into).map(str::trim_start);
        }
    });
    rest?.strip_prefix(')')
}

/// A comparison.
fn item(text: &str, into: &mut Vec<u8>) -> Option<()> {
    // A value has no parenthesis that is not escaped.
    let (left, right) = text
        .split_once('=')
        .filter(|_| !text.contains(['(', ')']))?;
    let (attribute, tag) = match left.as_bytes().last()? {
        b'~' => (&left[..left.len() - 1], 0xa8),
        b'>' => (&left[..left.len() - 1], 0xa5),
        b'<' => (&left[..left.len() - 1], 0xa6),
        b':' => return extensible(&left[..left.len() - 1], right, into),
        _ => (left, 0xa3),
    };
    if !is_attribute(attribute) {
        return None;
    }
    if tag != 0xa3 || !right.contains('*') {
        let value = value(right)?;
        nest(into, tag, |into| {
            put(into, OCTETS, attribute.as_bytes());
            put(into, OCTETS, &value);
        });
        return Some(());
    }
    if right == "*" {
        put(into, 0x87, attribute.as_bytes());
        return Some(());
    }
    let parts: Option<Vec<_>> = right.split('*').map(value).collect();
    let parts = parts?;
    let last = parts.len() - 1;
    // Between two stars there must be something.
    if parts[1..last].iter().any(Vec::is_empty) {
        return None;
    }
    nest(into, 0xa4, |into| {
        put(into, OCTETS, attribute.as_bytes());
        nest(into, 0x30, |into| {
            for (at, part) in parts.iter().enumerate() {
                let tag = match at {
                    0 => 0x80,
                    _ if at == last => 0x82,
                    _ => 0x81,
                };
                if !part.is_empty() {
                    put(into, tag, part);
                }
            }
        });
    });
    Some(())
}

/// `attribute:dn:rule:=value`, of which each of the first three may be missing, but not attribute and rule both.
fn extensible(left: &str, right: &str, into: &mut Vec<u8>) -> Option<()> {
    let mut parts = left.split(':');
    let attribute = parts.next()?;
    let mut parts = parts.peekable();
    let by_dn = parts
        .next_if(|part| part.eq_ignore_ascii_case("dn"))
        .is_some();
    let rule = parts.next().unwrap_or_default();
    let fits = |part: &str| part.is_empty() || is_attribute(part);
    if parts.next().is_some()
        || !fits(attribute)
        || !fits(rule)
        || attribute.is_empty() && rule.is_empty()
    {
        return None;
    }
    let value = value(right)?;
    nest(into, 0xa9, |into| {
        if !rule.is_empty() {
            put(into, 0x81, rule.as_bytes());
        }
        if !attribute.is_empty() {
            put(into, 0x82, attribute.as_bytes());
        }
        put(into, 0x83, &value);
        if by_dn {
            put(into, CONTEXT_0 | 4, &[0xff]);
        }
    });
    Some(())
}

/// A name or number, with options behind a semicolon.
pub fn is_attribute(text: &str) -> bool {
    let mut letters = text.bytes();
    letters
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || b"-.;_".contains(&byte))
}

/// A value with its escapes undone.
fn value(text: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let code = digit(bytes.next())? * 16 + digit(bytes.next())?;
        value.push(u8::try_from(code).ok()?);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_have_the_bytes_of_the_standard() {
        for (text, bytes) in [
            ("(uid=ann)", &b"\xa3\x0a\x04\x03uid\x04\x03ann"[..]),
            ("uid=ann", b"\xa3\x0a\x04\x03uid\x04\x03ann"),
            ("(uid=*)", b"\x87\x03uid"),
            ("(uid=\\2a)", b"\xa3\x08\x04\x03uid\x04\x01*"),
            ("(uid=a*b*c)", b"\xa4\x10\x04\x03uid\x30\x09\x80\x01a\x81\x01b\x82\x01c"),
            ("(uid=*b*)", b"\xa4\x0a\x04\x03uid\x30\x03\x81\x01b"),
            ("(n>=1)", b"\xa5\x06\x04\x01n\x04\x011"),
            ("(n<=1)", b"\xa6\x06\x04\x01n\x04\x011"),
            ("(n~=1)", b"\xa8\x06\x04\x01n\x04\x011"),
            ("(!(a=b))", b"\xa2\x08\xa3\x06\x04\x01a\x04\x01b"),
            (
                "(&(a=b) (|(c=d)(e=f)) )",
                b"\xa0\x1a\xa3\x06\x04\x01a\x04\x01b\xa1\x10\xa3\x06\x04\x01c\x04\x01d\xa3\x06\x04\x01e\x04\x01f",
            ),
            ("(&)", b"\xa0\x00"),
            ("(m:1.2:=x)", b"\xa9\x0b\x81\x031.2\x82\x01m\x83\x01x"),
            ("(m:dn:=x)", b"\xa9\x09\x82\x01m\x83\x01x\x84\x01\xff"),
        ] {
            assert_eq!(parse(text), Ok(bytes.to_vec()), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_told() {
        let deep = "(!".repeat(100) + "(a=b)" + &")".repeat(100);
        for text in [
            "",
            "(",
            ")",
            "()",
            "(a)",
            "(=b)",
            "(a=b",
            "a=b)",
            "(a=b))",
            "(a=b)(c=d)",
            "(&(a=b)",
            "(&x)",
            "(!)",
            "(a=\\)",
            "(a=\\2)",
            "(a=\\zz)",
            "(a=b**c)",
            "(a b=c)",
            "(:=x)",
            "(a:b:c:=x)",
            "(a=(b)",
            &deep,
        ] {
            assert_eq!(parse(text), Err(NoFilter(text)), "{text}");
        }
    }

    #[test]
    fn a_user_name_is_a_value_and_nothing_else() {
        let template = "(|(uid=$username)(mail=$username))";
        assert_eq!(of_user(template, "ann"), "(|(uid=ann)(mail=ann))");
        assert_eq!(
            of_user(template, "*)(uid=\\"),
            "(|(uid=\\2a\\29\\28uid=\\5c)(mail=\\2a\\29\\28uid=\\5c))"
        );
    }

    proptest! {
        #[test]
        fn no_user_name_makes_another_filter(user in "(\\PC|[*()\\\\&|!=\0]){0,20}") {
            let text = format!("(uid={})", escaped(&user));
            let mut expected = Vec::new();
            nest(&mut expected, 0xa3, |into| {
                put(into, OCTETS, b"uid");
                put(into, OCTETS, user.as_bytes());
            });
            prop_assert_eq!(parse(&text).unwrap(), expected);
        }

        #[test]
        fn no_text_panics(text in "(\\PC|[*()\\\\&|!=:~<>]){0,30}") {
            let _ = parse(&text);
        }
    }
}
