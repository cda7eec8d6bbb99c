//! Conversations written down as text, and what was replied to them.
//!
//! A line is a word and its arguments: bare words, or strings in double quotes with `\n`, `\t`, `\\`, `\"`, `\0` and
//! `\xNN`. `"abc"*1000` is a string a thousand times over. `#` begins a comment line.
//!
//! | line | what it does |
//! |---|---|
//! | `setup SQL` | the rest of the line is run as superuser, once, before all runs of the script |
//! | `before SQL` | the same, before each run: both ways begin with the same tables |
//! | `client NAME [name=value ...]` | who speaks from now on; connects at first, with these startup parameters |
//! | `Query SQL`, `Parse STATEMENT SQL [OID ...]`, `Sync`, ... | a message, held back until the next `read` or `send` |
//! | `Bind PORTAL STATEMENT [VALUE ...] [->binary]` | values are text, `NULL`, or binary as in `0x0000002a` |
//! | `Message TAG BYTES` | any other message |
//! | `send` | sends what is held back, and waits for nothing |
//! | `read TAG [COUNT]` | sends what is held back and reads up to the COUNTth message with this tag |
//! | `end` | sends what is held back and reads until the connection is closed |
//!
//! At the end each client is asked for one more row, so that a superfluous reply is seen, and says goodbye.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::raw::{Batch, Message, Raw};

/// A reply that has not come after this time does not come.
const SILENCE: Duration = Duration::from_secs(10);

/// A conversation.
pub struct Script {
    /// SQL to be run once.
    pub setup: Vec<String>,
    /// SQL to be run before each run.
    pub before: Vec<String>,
    steps: Vec<(usize, Step)>,
}

enum Step {
    Client {
        name: String,
        startup: Vec<(String, String)>,
    },
    Say(Batch),
    Send,
    Read {
        tag: char,
        count: usize,
    },
    End,
}

/// What was replied in each step that reads.
pub type Transcript = Vec<Replies>;

/// What was replied in one step.
pub struct Replies {
    /// The line of the script.
    pub line: usize,
    /// The messages, as text that shows every byte; secrets are left out.
    pub replies: Vec<String>,
}

impl Script {
    /// Reads a script; panics at a line that it does not understand.
    pub fn read(path: &Path) -> Self {
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut script = Self {
            setup: Vec::new(),
            before: Vec::new(),
            steps: Vec::new(),
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(sql) = line.strip_prefix("setup ") {
                script.setup.push(sql.to_owned());
            } else if let Some(sql) = line.strip_prefix("before ") {
                script.before.push(sql.to_owned());
            } else {
                let step = step(line).unwrap_or_else(|| {
                    panic!(
                        "{}, line {}: not understood: {line}",
                        path.display(),
                        index + 1
                    )
                });
                script.steps.push((index + 1, step));
            }
        }
        script
    }

    /// Holds the conversation with whoever listens on this port; `between` is called before each message or batch that
    /// begins outside a transaction.
    pub fn run(&self, port: u16, between: &mut dyn FnMut()) -> Transcript {
        let mut run = Run {
            port,
            clients: BTreeMap::new(),
            current: String::new(),
            transcript: Vec::new(),
            between,
        };
        for (line, step) in &self.steps {
            if !run.step(*line, step) {
                return run.transcript;
            }
        }
        run.finish();
        run.transcript
    }
}

struct Client {
    raw: Raw,
    pending: Batch,
    /// Nothing is open: its next message may go anywhere.
    free: bool,
}

struct Run<'a> {
    port: u16,
    clients: BTreeMap<String, Client>,
    current: String,
    transcript: Transcript,
    between: &'a mut dyn FnMut(),
}

impl Run<'_> {
    /// Does a step; false when the conversation cannot go on.
    fn step(&mut self, line: usize, step: &Step) -> bool {
        match step {
            Step::Client { name, startup } => {
                self.current.clone_from(name);
                self.clients.contains_key(name) || self.log_in(line, startup)
            }
            Step::Say(batch) => {
                if !self.clients.contains_key(&self.current) && !self.log_in(line, &[]) {
                    return false;
                }
                let client = self.client();
                client.pending = std::mem::take(&mut client.pending).then(batch);
                true
            }
            Step::Send => {
                self.send();
                true
            }
            Step::Read { tag, count } => self.read(line, *tag, *count),
            Step::End => {
                self.send();
                let mut replies = Vec::new();
                while let Some(message) = heard(&mut self.client().raw) {
                    replies.push(shown(&message));
                }
                self.clients.remove(&self.current);
                self.transcript.push(Replies { line, replies });
                true
            }
        }
    }

    fn client(&mut self) -> &mut Client {
        self.clients
            .get_mut(&self.current)
            .expect("a client speaks after it has connected")
    }

    /// Connects the current client. What it is told of the server's parameters is compared by name: their order is free.
    fn log_in(&mut self, line: usize, startup: &[(String, String)]) -> bool {
        let mut raw = Raw::connect(self.port);
        let mut parameters = vec![("user", "postgres"), ("database", "postgres")];
        parameters.extend(
            startup
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let outcome = raw.log_in(&parameters, None);
        let mut replies: Vec<String> = raw
            .parameters
            .iter()
            .map(|(name, value)| format!("parameter {name} = {value}"))
            .collect();
        if let Err(error) = &outcome {
            replies.push(format!("refused: {}", error.body.escape_ascii()));
        }
        self.transcript.push(Replies { line, replies });
        self.clients.insert(
            self.current.clone(),
            Client {
                raw,
                pending: Batch::new(),
                free: true,
            },
        );
        outcome.is_ok()
    }

    fn send(&mut self) {
        if self.clients.values().all(|client| client.free) {
            (self.between)();
        }
        let client = self.client();
        let batch = std::mem::take(&mut client.pending);
        if !batch.bytes().is_empty() {
            client.free = false;
            // Whoever has hung up is noticed when reading.
            let _ = client.raw.write(batch.bytes());
        }
    }

    fn read(&mut self, line: usize, tag: char, count: usize) -> bool {
        self.send();
        let client = self.client();
        let mut replies = Vec::new();
        let mut left = count;
        while left > 0 {
            let Some(message) = heard(&mut client.raw) else {
                replies.push("silence, or the end of the connection".to_owned());
                break;
            };
            replies.push(shown(&message));
            if message.tag == 'Z' {
                client.free = message.body == b"I";
            }
            if message.tag == tag {
                left -= 1;
            }
        }
        self.transcript.push(Replies { line, replies });
        left == 0
    }

    fn finish(&mut self) {
        for name in self.clients.keys().cloned().collect::<Vec<_>>() {
            self.current = name;
            let client = self.client();
            client.pending = std::mem::take(&mut client.pending).query("select 'the end'");
            self.read(0, 'Z', 1);
            if let Some(client) = self.clients.remove(&self.current) {
                client.raw.goodbye();
            }
        }
    }
}

fn heard(raw: &mut Raw) -> Option<Message> {
    if raw.hears_within(SILENCE) {
        raw.receive().ok()
    } else {
        None
    }
}

/// A message as text. What differs by nature is left out: keys, the numbers of tables and types that a script makes, and
/// how a violation of the protocol is put into words.
fn shown(message: &Message) -> String {
    match message.tag {
        'K' => "K (a key)".to_owned(),
        'T' => format!("T {}", columns(&message.body)),
        'E' if message.error().code() == "08P01" && message.error().severity() == "FATAL" => {
            "E FATAL 08P01".to_owned()
        }
        tag => format!("{tag} {}", message.body.escape_ascii()),
    }
}

/// RowDescription: name, table, column number, type, size, modifier and format of each column.
fn columns(body: &[u8]) -> String {
    const FIRST_OF_USERS: u32 = 16_384;
    let oid = |bytes: &[u8]| match bytes.try_into().map(u32::from_be_bytes) {
        Ok(oid) if oid >= FIRST_OF_USERS => "own".to_owned(),
        Ok(oid) => oid.to_string(),
        Err(_) => "cut".to_owned(),
    };
    let mut rest = &body[2..];
    let mut columns = vec![format!("{} columns", body[..2].escape_ascii())];
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let Some((numbers, tail)) = rest[end + 1..].split_at_checked(18) else {
            break;
        };
        columns.push(format!(
            "{} of {} {} type {} {}",
            rest[..end].escape_ascii(),
            oid(&numbers[..4]),
            numbers[4..6].escape_ascii(),
            oid(&numbers[6..10]),
            numbers[10..].escape_ascii()
        ));
        rest = tail;
    }
    columns.push(rest.escape_ascii().to_string());
    columns.join("; ")
}

fn step(line: &str) -> Option<Step> {
    let words = words(line)?;
    let (verb, arguments) = words.split_first()?;
    let batch = Batch::new();
    let step = match (verb.text(), arguments) {
        ("client", [name, startup @ ..]) => Step::Client {
            name: name.text().to_owned(),
            startup: startup
                .iter()
                .map(|word| {
                    let (name, value) = word.text().split_once('=')?;
                    Some((name.to_owned(), value.to_owned()))
                })
                .collect::<Option<_>>()?,
        },
        ("send", []) => Step::Send,
        ("end", []) => Step::End,
        ("read", [tag]) => Step::Read {
            tag: tag.text().chars().next()?,
            count: 1,
        },
        ("read", [tag, count]) => Step::Read {
            tag: tag.text().chars().next()?,
            count: count.text().parse().ok()?,
        },
        ("Query", [sql]) => Step::Say(batch.message(b'Q', &with_zero(&sql.bytes))),
        ("Parse", [name, sql, types @ ..]) => {
            Step::Say(batch.message(b'P', &parse(name, sql, types)?))
        }
        ("Bind", [portal, statement, values @ ..]) => {
            Step::Say(batch.message(b'B', &bind(portal, statement, values)?))
        }
        ("Describe", [kind, name]) => Step::Say(batch.message(b'D', &kind_and_name(kind, name))),
        ("Close", [kind, name]) => Step::Say(batch.message(b'C', &kind_and_name(kind, name))),
        ("Execute", [portal]) => Step::Say(batch.execute(portal.text())),
        ("Execute", [portal, rows]) => {
            Step::Say(batch.execute_rows(portal.text(), rows.text().parse().ok()?))
        }
        ("Flush", []) => Step::Say(batch.flush()),
        ("Sync", []) => Step::Say(batch.sync()),
        ("CopyData", [data]) => Step::Say(batch.copy_data(&data.bytes)),
        ("CopyDone", []) => Step::Say(batch.copy_done()),
        ("CopyFail", [reason]) => Step::Say(batch.copy_fail(reason.text())),
        ("FunctionCall", [oid, arguments @ ..]) => {
            Step::Say(batch.message(b'F', &function_call(oid, arguments)?))
        }
        ("Message", [tag, bytes]) => Step::Say(batch.message(*tag.bytes.first()?, &bytes.bytes)),
        _ => return None,
    };
    Some(step)
}

/// An argument of a line.
struct Word {
    bytes: Vec<u8>,
    /// It was in quotes: not a number, NULL or anything else but itself.
    quoted: bool,
}

impl Word {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("only data and values are not text")
    }
}

fn words(line: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, tail) = if let Some(inside) = rest.strip_prefix('"') {
            quoted(inside)?
        } else {
            let (bare, tail) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            let word = Word {
                bytes: bare.as_bytes().to_vec(),
                quoted: false,
            };
            (word, tail)
        };
        words.push(word);
        rest = tail.trim_start();
    }
    Some(words)
}

/// What is inside the quotes, and what follows them.
fn quoted(inside: &str) -> Option<(Word, &str)> {
    let mut bytes = Vec::new();
    let mut characters = inside.char_indices();
    loop {
        match characters.next()? {
            (end, '"') => {
                let mut tail = &inside[end + 1..];
                if let Some(times) = tail.strip_prefix('*') {
                    let end = times.find(' ').unwrap_or(times.len());
                    bytes = bytes.repeat(times[..end].parse().ok()?);
                    tail = &times[end..];
                }
                let word = Word {
                    bytes,
                    quoted: true,
                };
                return Some((word, tail));
            }
            (_, '\\') => match characters.next()?.1 {
                'n' => bytes.push(b'\n'),
                't' => bytes.push(b'\t'),
                '0' => bytes.push(0),
                'x' => {
                    let digits: String = [characters.next()?.1, characters.next()?.1]
                        .iter()
                        .collect();
                    bytes.push(u8::from_str_radix(&digits, 16).ok()?);
                }
                other => bytes.extend(other.to_string().as_bytes()),
            },
            (_, other) => bytes.extend(other.to_string().as_bytes()),
        }
    }
}

fn with_zero(bytes: &[u8]) -> Vec<u8> {
    [bytes, b"\0"].concat()
}

fn kind_and_name(kind: &Word, name: &Word) -> Vec<u8> {
    [&kind.bytes[..1], &with_zero(&name.bytes)].concat()
}

fn parse(name: &Word, sql: &Word, types: &[Word]) -> Option<Vec<u8>> {
    let mut body = [with_zero(&name.bytes), with_zero(&sql.bytes)].concat();
    body.extend(u16::try_from(types.len()).ok()?.to_be_bytes());
    for oid in types {
        body.extend(oid.text().parse::<u32>().ok()?.to_be_bytes());
    }
    Some(body)
}

fn bind(portal: &Word, statement: &Word, values: &[Word]) -> Option<Vec<u8>> {
    let is_arrow = |word: &Word| !word.quoted && word.bytes == b"->binary";
    let (results, values) = match values.split_last() {
        Some((last, values)) if is_arrow(last) => (1_u16, values),
        _ => (0, values),
    };
    let mut body = [with_zero(&portal.bytes), with_zero(&statement.bytes)].concat();
    body.extend(parameters(values)?);
    // One format for all columns.
    body.extend(1_u16.to_be_bytes());
    body.extend(results.to_be_bytes());
    Some(body)
}

fn function_call(oid: &Word, arguments: &[Word]) -> Option<Vec<u8>> {
    let mut body = oid.text().parse::<u32>().ok()?.to_be_bytes().to_vec();
    body.extend(parameters(arguments)?);
    body.extend(0_u16.to_be_bytes());
    Some(body)
}

/// Formats and values, as Bind and FunctionCall have them.
fn parameters(values: &[Word]) -> Option<Vec<u8>> {
    let hex = |word: &Word| !word.quoted && word.bytes.starts_with(b"0x");
    let count = u16::try_from(values.len()).ok()?.to_be_bytes();
    let mut body = count.to_vec();
    for value in values {
        body.extend(u16::from(hex(value)).to_be_bytes());
    }
    body.extend(count);
    for value in values {
        let bytes = if !value.quoted && value.bytes == b"NULL" {
            body.extend((-1_i32).to_be_bytes());
            continue;
        } else if hex(value) {
            (2..value.bytes.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(value.text().get(at..at + 2)?, 16).ok())
                .collect::<Option<Vec<u8>>>()?
        } else {
            value.bytes.clone()
        };
        body.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
        body.extend(bytes);
    }
    Some(body)
}
