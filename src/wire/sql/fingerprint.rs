//! A statement as it may be told.

use super::lexer::{Kind, Lexer};

/// The longest fingerprint, in bytes: enough to know a statement again.
const LONGEST_FINGERPRINT: usize = 300;

/// A statement without its literals and comments, to be told from others in logs and incidents, where what users wrote has no
/// place. Where a text cannot be read with certainty it ends: rather too short than with a secret in it.
pub fn fingerprint(text: &[u8]) -> String {
    let mut out = String::new();
    let mut lexer = Lexer { text, at: 0 };
    let (mut end, mut assigns) = (0, false);
    while let Some(token) = lexer.next() {
        let range = token.inside_range();
        let apart = lexer.at > 0 && text[end..range.start].iter().any(u8::is_ascii_whitespace);
        if apart && !out.is_empty() {
            out.push(' ');
        }
        end = lexer.at;
        match token.kind {
            Kind::String | Kind::Escaped | Kind::Dollar => hide(&mut out),
            Kind::Symbol(symbol) if symbol.is_ascii_digit() => {
                end = after_number(text, range.start);
                lexer.at = end;
                // `$1` is a parameter's name.
                if text[..range.start].ends_with(b"$") {
                    out.push_str(&String::from_utf8_lossy(&text[range.start..end]));
                } else {
                    hide(&mut out);
                }
            }
            Kind::Word | Kind::Quoted | Kind::Symbol(_) => {
                out.push_str(&String::from_utf8_lossy(&text[token.range()]));
            }
        }
        // With standard_conforming_strings off, the string goes on behind `\'`.
        let unsure = token.kind == Kind::String && token.inside.ends_with(b"\\");
        // What a parameter is set to may be a bare word.
        assigns |= out.len() <= 5 && (token.is(b"set") || token.is(b"alter"));
        let assigned = assigns && (token.is_symbol(b'=') || token.is(b"to"));
        if unsure || assigned || out.len() > LONGEST_FINGERPRINT {
            out.truncate(out.floor_char_boundary(LONGEST_FINGERPRINT));
            out.push_str(" ...");
            break;
        }
    }
    out
}

/// Stands for a literal. A list of them is as good as one.
fn hide(out: &mut String) {
    let list = out.trim_end().strip_suffix(',').map(str::trim_end);
    match list.filter(|list| list.ends_with('?')).map(str::len) {
        Some(len) => out.truncate(len),
        None => out.push('?'),
    }
}

/// Behind the number at `at`, with its fraction, exponent or base.
fn after_number(text: &[u8], at: usize) -> usize {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    let len = text[at..].iter().position(|byte| !is_part(byte));
    len.map_or(text.len(), |len| at + len)
}
