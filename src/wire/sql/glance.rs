//! One cheap look at a text, which tells nearly always that the words in it do nothing to the session.

use super::goes_on_with_letters;
use super::lexer::{LONGEST_KEYWORD, after_blanks, fold, is_of_word};

/// Whether [`effects`] could find anything: one cheap look for the hot path.
pub fn may_have_effects(text: &[u8]) -> bool {
    let text = &text[after_blanks(text, 0)..];
    if !begins_harmless(text) {
        return true;
    }
    let is_telling = |byte: &u8| TELLING[usize::from(*byte)];
    let mut at = 0;
    while let Some(step) = text[at..].iter().position(is_telling) {
        at += step;
        if has_effect_at(text, at) {
            return true;
        }
        at += 1;
    }
    false
}

/// Bytes at which a closer look is worth it. A table, because every byte of every query is looked up in it.
const TELLING: [bool; 256] = {
    let mut telling = [false; 256];
    telling[b';' as usize] = true;
    telling[b'_' as usize] = true;
    telling[b'm' as usize] = true;
    telling[b'M' as usize] = true;
    telling
};

/// Whether a statement with effects begins behind `at`, or a word that tells of some lies around it. Not inlined: the loop over
/// all bytes is half as long without it.
#[inline(never)]
fn has_effect_at(text: &[u8], at: usize) -> bool {
    let is = |at: usize, letter: u8| {
        text.get(at)
            .is_some_and(|byte| byte.eq_ignore_ascii_case(&letter))
    };
    match text[at] {
        // A comment there is not worth reading; nor could it be read for each of many within linear time.
        b';' => !begins_harmless(text[at + 1..].trim_ascii_start()),
        // The letters beside it decide nearly always.
        b'_' if is(at.wrapping_sub(1), b't') => {
            ends_with(&text[..at], b"set") && begins_with(&text[at + 1..], b"config")
        }
        b'_' => is(at.wrapping_sub(1), b'g') && is_in_telling_name(text, at),
        _ => is(at + 1, b'p') && is_in_temp(text, at),
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
