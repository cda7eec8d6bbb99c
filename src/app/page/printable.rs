//! Names and texts that came from somewhere else, made fit to be shown.

/// The longest name that Postgres keeps.
const LONGEST_NAME: usize = 63;

/// Enough for any error that is worth a line.
const LONGEST_TEXT: usize = 240;

/// Enough for what is told of an incident at once.
const LONGEST_LINE: usize = 1000;

/// A name as it may be shown: bounded, and without what a screen would act upon.
pub(super) fn name(from: &str) -> String {
    printable(from, LONGEST_NAME)
}

/// The same for a sentence.
pub(super) fn text(from: &str) -> String {
    printable(from, LONGEST_TEXT)
}

/// The same for a sentence that tells of several things.
pub(super) fn line(from: &str) -> String {
    printable(from, LONGEST_LINE)
}

fn printable(from: &str, longest: usize) -> String {
    let mut characters = from.chars();
    let mut shown: String = characters.by_ref().take(longest).map(tame).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, and what turns text around or hides it, stand there as a replacement character.
fn tame(character: char) -> char {
    let acts = character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    if acts {
        char::REPLACEMENT_CHARACTER
    } else {
        character
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_screen_would_act_upon_is_replaced() {
        assert_eq!(name("<b>Zoë</b>"), "<b>Zoë</b>");
        assert_eq!(
            name("a\u{202e}b\u{200b}c\nd\u{1b}"),
            "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"
        );
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        let cut = name(&"ü".repeat(1000));
        assert_eq!(cut.chars().count(), LONGEST_NAME + 1);
        assert!(cut.ends_with("ü…"));
        assert_eq!(name(&"x".repeat(63)).len(), 63);
        assert_eq!(text(&"x".repeat(10_000)).chars().count(), LONGEST_TEXT + 1);
    }
}
