//! PgBouncer's `userlist.txt`: `"user" "secret"` on a line.
//!
//! What a secret is (plain, `md5...`, `SCRAM-SHA-256$...`, empty) is for authentication to say.

use super::checked::Secret;
use super::mistake::{Mistake, Mistakes};

/// As PgBouncer: the longest name, in bytes.
const LONGEST_NAME: usize = 127;

/// Reads the file: users with their secrets, in its order. A user may be there twice; the last one counts.
///
/// As in PgBouncer a doubled quote is a quote, what stands between the fields and after the second is ignored, and a line
/// that begins with `;` is a comment.
pub fn parse(text: &str) -> Result<Vec<(String, Secret)>, Mistakes> {
    let mut users = Vec::new();
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with(';') {
            continue;
        }
        match entry(content) {
            Ok(user) => users.push(user),
            Err(message) => {
                let column = line.chars().count() - content.chars().count() + 1;
                wrong.push(Mistake {
                    line: index + 1,
                    column,
                    message: message.to_owned(),
                });
            }
        }
    }
    if wrong.is_empty() {
        Ok(users)
    } else {
        Err(Mistakes::new("userlist.txt", wrong))
    }
}

fn entry(line: &str) -> Result<(String, Secret), &'static str> {
    let inside = line
        .strip_prefix('"')
        .ok_or("must begin with the user's name in double quotes")?;
    let (name, rest) = field(inside).ok_or("the user's name has no closing quote")?;
    let (_, inside) = rest
        .split_once('"')
        .ok_or("has no second field in double quotes: the secret")?;
    let (secret, _) = field(inside).ok_or("the secret has no closing quote")?;
    match name.len() {
        0 => Err("the user's name is empty"),
        length if length > LONGEST_NAME => Err("the user's name is longer than 127 bytes"),
        _ => Ok((name, Secret::new(secret))),
    }
}

/// A field after its opening quote, and what follows its closing one.
fn field(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        value.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_pgbouncer_reads_them() {
        let text = concat!(
            "; a comment\n\n",
            "\"ada\" \"lovelace\"\n",
            "\t\"with \"\"quotes\"\"\"   \"se\"\"cret\" and more \"ignored\"\r\n",
            "\"empty\" \"\"\n",
            "  ; another\n",
            "\"glued\"\"\" \"x\"\n",
            "\"between\" junk \"y\"\n",
            "\"scram\" \"SCRAM-SHA-256$4096:c2FsdA==$a:b\"",
        );
        let users = parse(text).expect("all lines are right");
        let users: Vec<_> = users
            .iter()
            .map(|(name, secret)| (name.as_str(), secret.expose()))
            .collect();
        assert_eq!(
            users,
            [
                ("ada", "lovelace"),
                ("with \"quotes\"", "se\"cret"),
                ("empty", ""),
                ("glued\"", "x"),
                ("between", "y"),
                ("scram", "SCRAM-SHA-256$4096:c2FsdA==$a:b"),
            ]
        );
    }

    #[test]
    fn every_broken_line_is_named_and_no_secret_is() {
        let long = "n".repeat(128);
        let text = format!(
            "ada \"hunter2\"\n\"ok\" \"hunter2\"\n  \"ada\n\"ada\" hunter2\n\"ada\" \"hunter2\n\"\" \"hunter2\"\n\"{long}\" \"\""
        );
        let mistakes = parse(&text).expect_err("six lines are broken");
        assert_eq!(
            mistakes.to_string(),
            "userlist.txt:1:1: must begin with the user's name in double quotes\n\
             userlist.txt:3:3: the user's name has no closing quote\n\
             userlist.txt:4:1: has no second field in double quotes: the secret\n\
             userlist.txt:5:1: the secret has no closing quote\n\
             userlist.txt:6:1: the user's name is empty\n\
             userlist.txt:7:1: the user's name is longer than 127 bytes"
        );
    }

    #[test]
    fn a_password_of_65530_bytes_is_kept_whole() {
        let long = "p".repeat(65530);
        let users = parse(&format!("\"ada\" \"{long}\"")).expect("the line is right");
        assert_eq!(users[0].1.expose(), long);
    }
}
