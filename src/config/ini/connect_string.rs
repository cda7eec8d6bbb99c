//! `key=value key='value'`: what stands behind the name of a database, user or peer.

/// One pair, with the byte at which its key begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// Reads the pairs; the error is the byte that cannot be read.
///
/// As in PgBouncer: blanks may stand around the `=`; in single quotes two stand for one; no value may be empty.
pub(super) fn parse(text: &str) -> Result<Vec<Pair>, usize> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let at = text.len() - rest.len();
        let (pair, behind) = pair(rest, at).ok_or(at)?;
        pairs.push(pair);
        rest = behind.trim_start();
    }
    Ok(pairs)
}

fn pair(text: &str, at: usize) -> Option<(Pair, &str)> {
    let end = text.find(|c: char| c == '=' || c.is_whitespace())?;
    let (key, rest) = text.split_at(end);
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let (value, rest) = if let Some(quoted) = rest.strip_prefix('\'') {
        unquote(quoted)?
    } else {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        (rest[..end].to_owned(), &rest[end..])
    };
    let pair = Pair {
        at,
        key: key.to_owned(),
        value,
    };
    (!pair.key.is_empty() && !pair.value.is_empty()).then_some((pair, rest))
}

/// A value behind its opening quote, and what follows its closing one.
fn unquote(mut rest: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    loop {
        let (before, behind) = rest.split_once('\'')?;
        value.push_str(before);
        match behind.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Some((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, usize> {
        let pairs = parse(text)?.into_iter();
        Ok(pairs.map(|pair| (pair.key, pair.value)).collect())
    }

    #[test]
    fn pairs_are_read_with_blanks_and_quotes() {
        let expected = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            Ok(pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect())
        };
        for (text, pairs) in [
            ("", &[][..]),
            ("  ", &[]),
            ("host=a port=1", &[("host", "a"), ("port", "1")]),
            ("host = a  port\t= 1 ", &[("host", "a"), ("port", "1")]),
            (
                "connect_query='select ''x = y''' user=u",
                &[("connect_query", "select 'x = y'"), ("user", "u")],
            ),
            ("password=a'b;#=c", &[("password", "a'b;#=c")]),
            ("a='b'c=d", &[("a", "b"), ("c", "d")]),
        ] {
            assert_eq!(read(text), expected(pairs), "{text}");
        }
    }

    #[test]
    fn what_is_no_pair_says_where() {
        for (text, at) in [
            ("host", 0),
            ("host=", 0),
            ("a=1 host='x", 4),
            ("a=1 host=''", 4),
            ("a=1 =2", 4),
            ("a=1 b c=2", 4),
        ] {
            assert_eq!(read(text), Err(at), "{text}");
        }
    }
}
