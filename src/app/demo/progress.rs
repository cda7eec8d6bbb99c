//! What the demo says while it runs: lines that stay, and on a terminal one line that is written over.

use std::io::{self, IsTerminal, Stdout, Write};
use std::time::Duration;

use tokio::time::Instant;

use super::DemoError;

/// How often the line is renewed on a terminal.
const ON_TERMINAL: Duration = Duration::from_millis(100);

/// How often a line is written where lines stay.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// Back to the start of the line, and erase it (ECMA-48, EL).
const OVER: &str = "\r\x1b[K";

/// Writes to standard output. A closed one is an error, not a panic.
pub(super) struct Progress {
    out: Stdout,
    is_terminal: bool,
    /// Whether a line stands there that may be written over.
    is_open: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(super) fn start() -> Self {
        let out = io::stdout();
        Self {
            is_terminal: out.is_terminal(),
            out,
            is_open: false,
            last: None,
        }
    }

    /// Writes something that stays.
    pub(super) fn say(&mut self, text: &str) -> Result<(), DemoError> {
        let over = if self.is_open { OVER } else { "" };
        self.is_open = false;
        // How things stand is told a little later: at first there is nothing to tell.
        self.last = Some(Instant::now());
        self.write(&format!("{over}{text}\n"))
    }

    /// Writes how things stand, unless that was done a moment ago.
    pub(super) fn now(&mut self, line: impl FnOnce() -> String) -> Result<(), DemoError> {
        let pause = if self.is_terminal {
            ON_TERMINAL
        } else {
            ELSEWHERE
        };
        if self.last.is_some_and(|last| last.elapsed() < pause) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        self.is_open = self.is_terminal;
        let line = line();
        self.write(&if self.is_terminal {
            format!("{OVER}  {line}")
        } else {
            format!("  {line}\n")
        })
    }

    fn write(&mut self, text: &str) -> Result<(), DemoError> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(DemoError::system("write to standard output"))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_open {
            // What comes next begins on a line of its own; a terminal that is gone needs none.
            let _ = self.write("\n");
        }
    }
}
