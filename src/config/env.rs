//! `${NAME}` and `${NAME:-default}` in a string of the file.
//!
//! Values are put in after the file is parsed, so that a quote or a newline in one can never change what the file says.

/// Where values come from: the process environment, or a table in tests.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Puts the values in. `None` = there is nothing to put in. The error names the variable and never a value.
///
/// As in a shell, the default of `:-` stands in for a variable that is unset or empty. `$${` is a literal `${`.
pub(super) fn expand(text: &str, lookup: Lookup<'_>) -> Result<Option<String>, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = (&rest[..start], &rest[start + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = reference;
            continue;
        }
        let (inside, after) = reference
            .split_once('}')
            .ok_or("`${` has no closing `}`; a literal `${` is written `$${`")?;
        expanded.push_str(before);
        expanded.push_str(&resolve(inside, lookup)?);
        rest = after;
    }
    if rest.len() == text.len() {
        return Ok(None);
    }
    expanded.push_str(rest);
    Ok(Some(expanded))
}

fn resolve(inside: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_variable_name(name) {
        return Err(
            "what stands in `${...}` is not the name of an environment variable".to_owned(),
        );
    }
    match (lookup(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment variable {name} is not set")),
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${HOST}\"\n".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn references_are_replaced_and_all_else_is_left_alone() {
        for (text, expected) in [
            ("plain", None),
            ("$HOST and $ and }", None),
            ("${HOST}", Some("db")),
            ("a${HOST}b${HOST}c", Some("adbbdbc")),
            ("${EMPTY}", Some("")),
            ("${EMPTY:-x}", Some("x")),
            ("${NONE:-x}", Some("x")),
            ("${NONE:-}", Some("")),
            ("${NONE:-a:-b}", Some("a:-b")),
            ("${HOST:-x}", Some("db")),
            ("$${HOST}", Some("${HOST}")),
            ("é$${${HOST}", Some("é${db")),
            ("${TRICKY}", Some("${HOST}\"\n")),
        ] {
            assert_eq!(
                expand(text, &environment),
                Ok(expected.map(str::to_owned)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_reference_that_cannot_be_replaced_says_why() {
        for (text, part) in [
            ("${NONE}", "variable NONE is not set"),
            ("x${HOST", "no closing"),
            ("${}", "not the name"),
            ("${1A}", "not the name"),
            ("${a b:-c}", "not the name"),
        ] {
            let error = expand(text, &environment).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
