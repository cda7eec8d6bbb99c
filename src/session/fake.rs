//! A Postgres for tests, as a value: it keeps to the message flow of the manual, and its queries say what it does.
//!
//! `begin`, `commit`, `rollback`, `fail`, `rows N SIZE`, `copy in`, `copy in fails N` (at the N-th CopyData),
//! `copy out N SIZE`, `wait` (until it is cancelled), `die`; anything else completes at once, unless `'slow'` stands in it, which
//! makes it a `wait`.

use crate::wire::reply::{Message, Report, Severity, SqlState};

/// Where a conversation stands.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    /// As ReadyForQuery tells it.
    status: u8,
    /// Extended-protocol messages came since the last Sync.
    batch: bool,
    /// It failed and skips to the next Sync.
    skipping: bool,
    copy: Option<CopyIn>,
    /// What the last Parse said.
    prepared: String,
    /// It runs `wait`, and reads nothing before it is cancelled.
    running: Option<Protocol>,
    dead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Simple,
    Extended,
}

#[derive(Debug, Clone, Copy)]
struct CopyIn {
    began: Protocol,
    /// It fails at so many more CopyData.
    fails_in: Option<usize>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            status: b'I',
            batch: false,
            skipping: false,
            copy: None,
            prepared: String::new(),
            running: None,
            dead: false,
        }
    }
}

impl Fake {
    /// Whether the connection may go to another client.
    pub(super) fn is_idle(&self) -> bool {
        self.status == b'I'
            && !self.batch
            && !self.skipping
            && self.copy.is_none()
            && !self.is_running()
    }

    /// Whether it runs a query that only a cancel ends.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Says its last words.
    pub(super) fn die(&mut self) -> Vec<u8> {
        (self.dead, self.running) = (true, None);
        Report::new(SqlState::ADMIN_SHUTDOWN, "terminating connection").error(Severity::Fatal)
    }

    /// Whether it has said its last words.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Hears a message and answers it.
    pub(super) fn hear(&mut self, tag: u8, body: &[u8]) -> Vec<u8> {
        if self.skipping && tag != b'S' {
            return vec![];
        }
        if let Some(copy) = self.copy {
            return self.hear_in_copy(copy, tag);
        }
        self.batch |= matches!(tag, b'P' | b'B' | b'D' | b'E' | b'C');
        match tag {
            b'Q' => self.run(&texts(body)[0], Protocol::Simple),
            b'P' => {
                self.prepared.clone_from(&texts(body)[1]);
                Message::new(b'1').done()
            }
            b'B' => Message::new(b'2').done(),
            b'D' => Message::new(b'n').done(),
            b'E' => self.run(&self.prepared.clone(), Protocol::Extended),
            b'C' => Message::new(b'3').done(),
            b'S' => {
                (self.batch, self.skipping) = (false, false);
                self.ready()
            }
            // Flush asks for nothing new, and what comes late of a failed COPY is ignored.
            b'H' | b'd' | b'c' | b'f' => vec![],
            tag => panic!("Postgres ends a session that sends {:?}", tag as char),
        }
    }

    /// Hears the whole messages at the front of `bytes`; what it says to them, and what is left.
    pub(super) fn hear_all<'a>(&mut self, mut bytes: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let mut said = vec![];
        while let Some((&[tag, a, b, c, d], rest)) = bytes.split_first_chunk() {
            let Some((body, rest)) =
                rest.split_at_checked(u32::from_be_bytes([a, b, c, d]) as usize - 4)
            else {
                break;
            };
            said.extend(self.hear(tag, body));
            bytes = rest;
        }
        (said, bytes)
    }

    /// Completes what it runs.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let Some(running) = self.running.take() else {
            return vec![];
        };
        let mut said = complete("waited");
        if running == Protocol::Simple {
            said.extend(self.ready());
        }
        said
    }

    /// Stops what it runs, if it runs anything.
    pub(super) fn cancel(&mut self) -> Vec<u8> {
        let Some(running) = self.running.take() else {
            return vec![];
        };
        self.fail(running)
    }

    fn hear_in_copy(&mut self, copy: CopyIn, tag: u8) -> Vec<u8> {
        match tag {
            b'd' if copy.fails_in == Some(1) => self.end_copy(copy, true),
            b'd' => {
                let fails_in = copy.fails_in.map(|left| left - 1);
                self.copy = Some(CopyIn { fails_in, ..copy });
                vec![]
            }
            b'c' => self.end_copy(copy, false),
            b'f' => self.end_copy(copy, true),
            b'S' | b'H' => vec![],
            tag => panic!("a COPY fails on {:?}; no test wants that", tag as char),
        }
    }

    fn end_copy(&mut self, copy: CopyIn, failed: bool) -> Vec<u8> {
        self.copy = None;
        if failed {
            return self.fail(copy.began);
        }
        let mut said = complete("COPY 1");
        if copy.began == Protocol::Simple {
            said.extend(self.ready());
        }
        said
    }

    fn run(&mut self, sql: &str, by: Protocol) -> Vec<u8> {
        let words: Vec<&str> = sql.split(' ').collect();
        if self.status == b'E' && !matches!(words[0], "commit" | "rollback" | "ROLLBACK") {
            return self.fail(by);
        }
        let mut said = match words[..] {
            ["begin"] => {
                self.status = b'T';
                complete("BEGIN")
            }
            ["commit" | "rollback" | "ROLLBACK"] => {
                self.status = b'I';
                complete("COMMIT")
            }
            ["fail"] => return self.fail(by),
            ["rows", count, size] => answers(b'D', number(count), number(size), "SELECT"),
            ["copy", "out", count, size] => {
                let mut said = Message::new(b'H').u8(0).u16(0).done();
                said.extend(answers(b'd', number(count), number(size), "COPY"));
                said
            }
            ["copy", "in", ref fails @ ..] => {
                let fails_in = fails.get(1).map(|at| number(at));
                self.copy = Some(CopyIn {
                    began: by,
                    fails_in,
                });
                return Message::new(b'G').u8(0).u16(0).done();
            }
            ["wait", ..] => {
                self.running = Some(by);
                return vec![];
            }
            _ if sql.contains("'slow'") => {
                self.running = Some(by);
                return vec![];
            }
            ["die" | "die;", ..] => return self.die(),
            [""] => Message::new(b'I').done(),
            _ => complete(sql),
        };
        if by == Protocol::Simple {
            said.extend(self.ready());
        }
        said
    }

    fn fail(&mut self, by: Protocol) -> Vec<u8> {
        if self.status == b'T' {
            self.status = b'E';
        }
        let mut said =
            Report::new(SqlState::QUERY_CANCELED, "as it was told").error(Severity::Error);
        if by == Protocol::Simple {
            said.extend(self.ready());
        } else {
            self.skipping = true;
        }
        said
    }

    fn ready(&self) -> Vec<u8> {
        Message::new(b'Z').u8(self.status).done()
    }
}

fn complete(tag: &str) -> Vec<u8> {
    Message::new(b'C').text(tag).done()
}

fn answers(tag: u8, count: usize, size: usize, done: &str) -> Vec<u8> {
    let row = Message::new(tag).bytes(&vec![b'.'; size]).done();
    let mut said = row.repeat(count);
    if tag == b'd' {
        said.extend(Message::new(b'c').done());
    }
    said.extend(complete(done));
    said
}

fn number(word: &str) -> usize {
    word.parse().expect("a script names numbers")
}

/// The zero-terminated strings of a body, and what stands behind the last of them.
fn texts(body: &[u8]) -> Vec<String> {
    let texts = body.split(|byte| *byte == 0);
    texts
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect()
}
