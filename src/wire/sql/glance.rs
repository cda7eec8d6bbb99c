//! One cheap look at a text, which tells nearly always that the words in it do nothing to the session.

use super::goes_on_with_letters;
use super::lexer::{LONGEST_KEYWORD, after_blanks, fold, is_of_word};

/// Whether [`effects`] could find anything: one cheap look for the hot path.
pub fn may_have_effects(text: &[u8]) -> bool {
    let text = without_end(&text[after_blanks(text, 0)..]);
    if !begins_harmless(text) || (text.first() == Some(&b';') && has_effect_at(text, 0)) {
        return true;
    }
    let mut at = 0;
    while let Some(bytes) = text[at..].first_chunk() {
        if any_is_telling(bytes) && has_effect_in(text, at, bytes) {
            return true;
        }
        at += TOGETHER;
    }
    // What is left is looked at with some that was seen already.
    match text.last_chunk() {
        Some(bytes) => {
            any_is_telling(bytes) && has_effect_in(text, text.len() - bytes.len(), bytes)
        }
        None => has_effect_in(text, 0, text),
    }
}

/// Behind the last statement nothing follows the semicolon, which would ask for a closer look in nearly every text.
fn without_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b';' | b' ' | b'\n' | 0] = text {
        text = rest;
    }
    text
}

/// Pairs of neighbours that are looked at together.
const TOGETHER: usize = 16;

/// Whether a byte is worth a closer look, by its neighbour before it.
#[expect(
    clippy::needless_bitwise_bool,
    reason = "with a branch for each byte the compiler cannot look at many together"
)]
#[inline]
fn is_telling(before: u8, byte: u8) -> bool {
    const CASE: u8 = b'a' ^ b'A';
    let before = before | CASE;
    let in_name = (byte == b'_') & ((before == b't') | (before == b'g'));
    let in_temp = (before == b'm') & (byte | CASE == b'p');
    (byte == b';') | in_name | in_temp
}

#[inline]
fn any_is_telling(bytes: &[u8; TOGETHER + 1]) -> bool {
    (0..TOGETHER).fold(false, |any, at| any | is_telling(bytes[at], bytes[at + 1]))
}

/// Whether something is found among `bytes`, behind the first of them, which stand at `from` in the text.
fn has_effect_in(text: &[u8], from: usize, bytes: &[u8]) -> bool {
    let mut telling = (1..bytes.len()).filter(|at| is_telling(bytes[at - 1], bytes[*at]));
    telling.any(|at| has_effect_at(text, from + at))
}

/// Whether a statement with effects begins behind `at`, or a word that tells of some lies around it.
fn has_effect_at(text: &[u8], at: usize) -> bool {
    match text[at] {
        // A comment there is not worth reading; nor could it be read for each of many within linear time.
        b';' => !begins_harmless(text[at + 1..].trim_ascii_start()),
        b'_' => {
            let is_set_config =
                ends_with(&text[..at], b"set") && begins_with(&text[at + 1..], b"config");
            is_set_config || is_in_telling_name(text, at)
        }
        _ => is_in_temp(text, at - 1),
    }
}

/// Whether a statement that begins here can have effects only by its functions and by the word `temp`.
fn begins_harmless(text: &[u8]) -> bool {
    let len = text.iter().position(|byte| !is_of_word(*byte));
    let mut folded = [0; LONGEST_KEYWORD];
    match fold(&text[..len.unwrap_or(text.len())], &mut folded) {
        b"" => matches!(text.first(), None | Some(b';' | 0)),
        b"select" | b"insert" | b"update" | b"delete" | b"with" | b"begin" | b"commit"
        | b"rollback" | b"start" | b"end" | b"abort" | b"savepoint" | b"release" | b"values"
        | b"merge" | b"show" | b"copy" | b"fetch" | b"move" | b"close" | b"table" | b"truncate"
        | b"notify" => true,
        _ => false,
    }
}

/// Whether the underscore at `at` is that of `pg_temp`, `pg_settings` or an advisory lock.
fn is_in_telling_name(text: &[u8], at: usize) -> bool {
    let (before, after) = (&text[..at], &text[at + 1..]);
    let goes_on = |with: &[u8]| begins_with(after, with);
    ends_with(before, b"pg")
        && (goes_on(b"advisory_lock")
            || goes_on(b"settings")
            || goes_on(b"try_advisory_lock")
            || (goes_on(b"temp") && !goes_on_with_letters(&after[4..])))
}

/// Whether the letter at `at` is the third one of the word `temp` or `temporary`.
fn is_in_temp(text: &[u8], at: usize) -> bool {
    let Some((before, temp)) = text.split_at_checked(at.wrapping_sub(2)) else {
        return false;
    };
    if !begins_with(temp, b"temp") || before.last().is_some_and(|byte| is_of_word(*byte)) {
        return false;
    }
    let after = &temp[4..];
    begins_with(after, b"orary") || !after.first().is_some_and(|byte| is_of_word(*byte))
}

fn begins_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word))
}

fn ends_with(text: &[u8], word: &[u8]) -> bool {
    text.len()
        .checked_sub(word.len())
        .is_some_and(|from| text[from..].eq_ignore_ascii_case(word))
}
