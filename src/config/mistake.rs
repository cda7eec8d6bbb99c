//! What is wrong with a file: every mistake with its line and column, so that one reading shows them all.
//!
//! No message repeats a value that may be secret; see `value.rs` for what may be quoted.

use std::fmt;

/// One mistake, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Line, from 1; 0 = the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 = the file as a whole.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Mistake {
    /// A mistake without a place.
    pub(super) fn of_the_whole(message: impl Into<String>) -> Self {
        Self {
            line: 0,
            column: 0,
            message: message.into(),
        }
    }
}

/// All mistakes of one file, or of one and those that belong to it, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<(String, Mistake)>);

impl Mistakes {
    /// Puts mistakes in order, and names each once.
    pub(super) fn new(file: &str, mut list: Vec<Mistake>) -> Self {
        list.sort();
        list.dedup();
        Self(list.into_iter().map(|one| (file.to_owned(), one)).collect())
    }

    /// The same for several files, which stay in the order in which they are first named.
    pub(super) fn of_files(mut list: Vec<(String, Mistake)>) -> Self {
        let files: Vec<_> = list.iter().map(|(file, _)| file.clone()).collect();
        let order = |file: &String| files.iter().position(|known| known == file);
        list.sort_by(|one, other| (order(&one.0), &one.1).cmp(&(order(&other.0), &other.1)));
        list.dedup();
        Self(list)
    }

    /// The same mistakes under another file name.
    #[must_use]
    pub fn in_file(self, file: &str) -> Self {
        let list = self.0.into_iter();
        Self(list.map(|(_, one)| (file.to_owned(), one)).collect())
    }

    /// Each mistake, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter().map(|(_, mistake)| mistake)
    }
}

/// One line for each: `file:line:column: message`.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (file, mistake)) in self.0.iter().enumerate() {
            let Mistake {
                line,
                column,
                message,
            } = mistake;
            let separator = if index == 0 { "" } else { "\n" };
            match line {
                0 => write!(f, "{separator}{file}: {message}")?,
                _ => write!(f, "{separator}{file}:{line}:{column}: {message}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Line and column, both from 1, of a byte of the text.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}
