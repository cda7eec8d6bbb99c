//! Rows of a table: a pgbouncer.ini, what clients do, and where pgweir may differ from PgBouncer.
//!
//! ```text
//! === max_client_conn                   a row and its name
//! since 1.24                            what PgBouncer it needs; `since 1.25` is compared with the `=` lines alone
//! [pgbouncer]                           lines of the file, behind those of every row
//! max_client_conn = 1
//! ---                                   what clients do, a line for each step
//! a connect                             with user=alice database=shop and whatever else is given as name=value
//! b connect
//! = FATAL 08P01 ...                     what each program must say
//! ! FATAL 53300 ...                     what pgweir says instead
//! ? why
//! ```
//!
//! | step | what it does |
//! |---|---|
//! | `NAME connect [name=value ...]` | logs in; `password=` and `socket=1` are not sent |
//! | `NAME sql SQL` | a simple query, up to ReadyForQuery or the end |
//! | `NAME say SQL`, `NAME hear` | its two halves |
//! | `NAME bind SQL` | the same as Parse, Bind, Execute, Sync |
//! | `NAME prepare STATEMENT SQL`, `NAME execute STATEMENT` | a named statement |
//! | `NAME parameter PARAMETER ...` | what the client was told of these |
//! | `NAME columns COMMAND` | the columns of a command of the console, with their types |
//! | `NAME show COLUMN,... of COMMAND [where COLUMN=VALUE]` | some columns of the rows |
//! | `NAME tcp BYTES` | connects without a login and sends these (`\\0`, `\\xff`) |
//! | `NAME leave` | closes the socket without a word |
//! | `NAME iterations` | how often SCRAM had its password hashed |
//! | `NAME freeze` | stops the process of Postgres that it had last, until the end of the row |
//! | `NAME end` | what comes until the connection is closed |
//! | `NAME close`, `NAME cancel` | Terminate; a cancel request |
//! | `NAME until VALUE SQL` | asks until the answer is this |
//! | `postgres SQL` | asks Postgres itself |
//! | `until VALUE SQL` | asks Postgres until the answer is this |
//! | `ini LINE` | one more line at the end of the file |
//! | `without TEXT` | no line of the file begins with this any more |
//! | `users LINE`, `hba LINE` | one more line at the end of the users file, of the HBA file |
//! | `psql [name=value ...]` | a whole psql, with libpq's parameters: who it is, or what it complains of |
//! | `file NAME LINE` | one more line at the end of any file; above the `---`, of one that is there from the start |
//! | `pause MILLISECONDS` | time that a timeout needs |
//! | `log TEXT` | waits until the log has it |
//! | `signal NAME` | sends a signal |
//! | `ended` | the status with which the process ends |
//!
//! In the text `{port}`, `{postgres}`, `{sockets}` and `{dir}` stand for the ports, Postgres' socket directory and the directory, `{me}`
//! for the user of this machine, `{certs}` for certificates (`ca`, `server`, `alice`, `robert`) and `{strangers}` for those of
//! another authority.
//! `*` in `=` and `!` lines is any text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::certs::{Authority, HERE};
use super::pgbouncer::{Kind, Place, Running};
use super::postgres::{Method, Postgres};
use super::process::{run, send_signal};
use super::raw::{Batch, Message, Raw, cancel_request};
use super::wait::{PATIENCE, eventually, until, until_else};

/// What every row begins with.
const COMMON: &str = "\
[databases]
shop = host=127.0.0.1 port={postgres} dbname=postgres
[pgbouncer]
{listen}
auth_type = trust
auth_file = {dir}/users.txt
admin_users = admin
stats_users = stats
";

/// Users as they are in Postgres.
const USERS: &str = "\
\"alice\" \"wonder\"
\"bob\" \"builder\"
\"carol\" \"carols\"
\"admin\" \"admins\"
\"stats\" \"statistics\"
\"nopass\" \"\"
";

/// The roles of Postgres with their passwords.
pub const ROLES: [(&str, &str); 4] = [
    ("alice", "wonder"),
    ("bob", "builder"),
    ("carol", "carols"),
    ("dave", "unlisted"),
];

/// What the rows of a file share.
pub struct Stage {
    postgres: Postgres,
    certificates: Authority,
    strangers: Authority,
}

impl Stage {
    pub fn new(is_secured: bool) -> Self {
        let (certificates, strangers) =
            (readable_authority("ours"), readable_authority("strangers"));
        let setup = Postgres::setup().method(Method::Scram);
        let setup = if is_secured {
            setup.tls(&certificates, "server")
        } else {
            setup
        };
        let postgres = setup.start();
        for (role, password) in ROLES {
            postgres.create_role(role, password);
        }
        postgres.sql("grant select on pg_catalog.pg_authid to carol");
        Self {
            postgres,
            certificates,
            strangers,
        }
    }
}

/// An authority whose files whoever the pooler becomes can read.
fn readable_authority(name: &str) -> Authority {
    let authority = Authority::named(name);
    authority.issue("server", "localhost", &HERE);
    authority.issue("alice", "alice", &[]);
    authority.issue("robert", "robert", &[]);
    authority.open(&["server"]);
    authority
}

/// A row.
#[derive(Default)]
pub struct Case {
    pub name: String,
    since: Option<u32>,
    ini: String,
    files: Vec<(String, String)>,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Step {
    text: String,
    expected: Vec<String>,
    ours: Vec<String>,
    why: String,
}

impl Case {
    /// The rows of a file; panics at a line that it does not understand.
    pub fn read_all(text: &str) -> Vec<Self> {
        let mut cases: Vec<Self> = Vec::new();
        let mut is_ini = true;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("=== ") {
                is_ini = true;
                cases.push(Self {
                    name: name.trim().to_owned(),
                    ..Self::default()
                });
                continue;
            }
            let Some(case) = cases.last_mut() else {
                continue;
            };
            if line.starts_with("# ") || line.trim().is_empty() && !is_ini {
                continue;
            }
            if line == "---" {
                is_ini = false;
            } else if let Some(since) = line.strip_prefix("since 1.").filter(|_| is_ini) {
                case.since = Some(since.parse().expect("a version"));
            } else if let Some(file) = line.strip_prefix("file ").filter(|_| is_ini) {
                let (name, text) = file.split_once(' ').expect("a name and a line");
                case.files.push((name.to_owned(), format!("{text}\n")));
            } else if is_ini {
                case.ini.push_str(line);
                case.ini.push('\n');
            } else {
                case.take(line);
            }
        }
        cases
    }

    fn take(&mut self, line: &str) {
        let Some((mark, text)) = line
            .split_at_checked(2)
            .filter(|(mark, _)| ["= ", "! ", "? "].contains(mark))
        else {
            return self.steps.push(Step {
                text: line.to_owned(),
                ..Step::default()
            });
        };
        let step = self.steps.last_mut().expect("a step comes first");
        match mark {
            "= " => step.expected.push(text.to_owned()),
            "! " => step.ours.push(text.to_owned()),
            _ => step.why.push_str(text),
        }
    }

    /// Runs it with all programs that can, and tells where pgweir differs without a reason.
    pub fn differences(&self, stage: &Stage) -> Vec<String> {
        let since = self.since.unwrap_or(18);
        let mut told = Vec::new();
        let ours = self.run(Kind::Pgweir, stage);
        let mut differs = vec![false; self.steps.len()];
        for (kind, version) in [(Kind::PgBouncer118, 18), (Kind::PgBouncer124, 24)] {
            if version < since {
                continue;
            }
            let theirs = self.run(kind, stage);
            for (index, step) in self.steps.iter().enumerate() {
                let (their, our) = (&theirs[index], &ours[index]);
                if !step.expected.is_empty() && !fits(&step.expected, their) {
                    told.push(self.tell(step, kind, their, &step.expected));
                }
                differs[index] |= their != our;
                if step.ours.is_empty() && their != our && step.expected.is_empty() {
                    told.push(self.tell(step, Kind::Pgweir, our, their));
                }
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            let our = &ours[index];
            let wanted = if step.ours.is_empty() {
                &step.expected
            } else {
                &step.ours
            };
            if !wanted.is_empty() && !fits(wanted, our) {
                told.push(self.tell(step, Kind::Pgweir, our, wanted));
            }
            if !step.ours.is_empty() && since < 25 && !differs[index] {
                told.push(format!("{}: {}: differs no more", self.name, step.text));
            }
            if !step.ours.is_empty() && step.why.is_empty() {
                told.push(format!("{}: {}: no reason given", self.name, step.text));
            }
        }
        told
    }

    fn tell(&self, step: &Step, who: Kind, said: &[String], wanted: &[String]) -> String {
        let mut text = format!("{}: {}\n  {} says\n", self.name, step.text, who.name());
        for line in said {
            let _ = writeln!(text, "    {line}");
        }
        text.push_str("  instead of\n");
        for line in wanted {
            let _ = writeln!(text, "    {line}");
        }
        text
    }

    /// What was heard at each step.
    fn run(&self, kind: Kind, stage: &Stage) -> Vec<Vec<String>> {
        let mut attempts = 0;
        let running = loop {
            attempts += 1;
            let place = Place::new();
            place.write("users.txt", USERS);
            place.write("hba", "");
            for (name, line) in &self.files {
                if !place.path().join(name).exists() {
                    place.write(name, "");
                }
                place.append(name, &filled(line, &place, stage));
            }
            let ini = together(COMMON, &self.ini);
            place.write("pgbouncer.ini", &filled(&ini, &place, stage));
            let busy = std::net::TcpListener::bind(("127.0.0.1", place.port)).is_err();
            if !busy || attempts > 9 {
                break place.start(kind);
            }
        };
        let mut talk = Talk {
            running,
            stage,
            clients: BTreeMap::new(),
            frozen: Vec::new(),
            name: &self.name,
        };
        let said = self.steps.iter().map(|step| talk.step(&step.text));
        let said: Vec<_> = said.collect();
        if std::env::var_os("PGWEIR_TEST_TALK").is_some() {
            for (step, said) in self.steps.iter().zip(&said) {
                eprintln!("{} {}: {}: {said:#?}", self.name, kind.name(), step.text);
            }
        }
        said
    }
}

/// Whoever works on a row sees the whole log, also when a step failed.
impl Drop for Talk<'_> {
    fn drop(&mut self) {
        for process in &self.frozen {
            send_signal(*process, "CONT");
        }
        if std::env::var_os("PGWEIR_TEST_TALK").is_some() {
            let log = self.running.place.read("log");
            eprintln!(
                "{} {}: the log:\n{log}",
                self.name,
                self.running.kind.name()
            );
        }
    }
}

/// Two files in one, each section once: PgBouncer forgets what the first `[pgbouncer]` said when there is a second.
fn together(first: &str, second: &str) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    let mut current = "[databases]";
    for line in first.lines().chain(second.lines()) {
        if line.starts_with('[') {
            current = line;
            continue;
        }
        match sections.iter_mut().find(|(name, _)| *name == current) {
            Some((_, lines)) => {
                let _ = writeln!(lines, "{line}");
            }
            None => sections.push((current, format!("{line}\n"))),
        }
    }
    // Lines that a step adds belong to the last one.
    sections.sort_by_key(|(name, _)| *name == "[pgbouncer]");
    let sections = sections
        .iter()
        .map(|(name, lines)| format!("{name}\n{lines}"));
    sections.collect()
}

fn filled(text: &str, place: &Place, stage: &Stage) -> String {
    let shown = |path: &Path| path.display().to_string();
    place
        .fill(text, stage.postgres.port())
        .replace("{sockets}", &shown(stage.postgres.socket_dir()))
        .replace("{me}", &ME)
        .replace("{certs}", &shown(stage.certificates.directory()))
        .replace("{strangers}", &shown(stage.strangers.directory()))
}

/// Who runs the tests.
static ME: LazyLock<String> = LazyLock::new(|| {
    let name = run(Command::new("id").arg("-un"));
    name.trim().to_owned()
});

fn fits(wanted: &[String], said: &[String]) -> bool {
    wanted.len() == said.len()
        && wanted
            .iter()
            .zip(said)
            .all(|(wanted, said)| is_like(wanted, said))
}

/// Whether a line is like a pattern in which `*` is any text.
fn is_like(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == line,
        Some((front, rest)) => line.strip_prefix(front).is_some_and(|line| {
            (0..=line.len())
                .filter(|at| line.is_char_boundary(*at))
                .any(|at| is_like(rest, &line[at..]))
        }),
    }
}

struct Talk<'a> {
    running: Running,
    stage: &'a Stage,
    clients: BTreeMap<String, Raw>,
    /// Processes of Postgres that do not run.
    frozen: Vec<u32>,
    name: &'a str,
}

impl Talk<'_> {
    fn step(&mut self, text: &str) -> Vec<String> {
        let text = filled(text, &self.running.place, self.stage);
        let (first, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match first {
            "postgres" => return self.ask_postgres(rest),
            "until" => {
                let (value, sql) = rest.split_once(' ').expect("a value and a query");
                until(&format!("{sql} gives {value}"), PATIENCE, || {
                    (self.ask_postgres(sql) == [value]).then_some(())
                });
            }
            "without" => {
                let ini = self.running.place.read("pgbouncer.ini");
                let mut kept = String::new();
                for line in ini.lines().filter(|line| !line.starts_with(rest)) {
                    let _ = writeln!(kept, "{line}");
                }
                self.running.place.write("pgbouncer.ini", &kept);
            }
            "ini" => self
                .running
                .place
                .append("pgbouncer.ini", &format!("{rest}\n")),
            "hba" => self.running.place.append("hba", &format!("{rest}\n")),
            "file" => {
                let (name, line) = rest.split_once(' ').expect("a name and a line");
                self.running.place.append(name, &format!("{line}\n"));
            }
            "psql" => return self.psql(rest),
            "users" => self.running.place.append("users.txt", &format!("{rest}\n")),
            "pause" => {
                std::thread::sleep(Duration::from_millis(rest.parse().expect("milliseconds")));
            }
            "log" => self.await_log(rest),
            "signal" => self.running.signal(rest),
            "ended" => return vec![self.running.await_end(PATIENCE).to_string()],
            _ => {
                let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                return self.client_step(first, verb, rest);
            }
        }
        Vec::new()
    }

    /// Who psql says it is, or what it complains of.
    fn psql(&self, parameters: &str) -> Vec<String> {
        let port = self.running.port();
        let common = format!("host=127.0.0.1 port={port} dbname=shop user=alice {parameters}");
        let output = Command::new("psql")
            .args(["-XAtw", "-c", "select current_user", "-d", &common])
            .env("PGCONNECT_TIMEOUT", "20")
            .env("HOME", "/nonexistent")
            .output()
            .expect("psql is installed");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let words = |line: &str| match line.split_once(" failed: ") {
            Some((_, words)) => words.to_owned(),
            None => line.to_owned(),
        };
        text.lines().map(words).collect()
    }

    fn await_log(&self, text: &str) {
        let pattern = format!("*{text}*");
        let what = || {
            let (who, log) = (self.running.kind.name(), self.running.place.read("log"));
            format!("{}: {text:?} in the log of {who}:\n{log}", self.name)
        };
        until_else(what, PATIENCE, || {
            let log = self.running.place.read("log");
            log.lines()
                .any(|line| is_like(&pattern, line))
                .then_some(())
        });
    }

    fn ask_postgres(&self, sql: &str) -> Vec<String> {
        let rows = self.stage.postgres.sql(sql);
        rows.iter().map(|row| shown_row(row)).collect()
    }

    fn client_step(&mut self, name: &str, verb: &str, rest: &str) -> Vec<String> {
        match verb {
            "connect" => return self.connect(name, rest),
            "tcp" => {
                let mut raw = Raw::connect(self.running.port());
                raw.write(&unescaped(rest)).expect("it listens");
                self.clients.insert(name.to_owned(), raw);
                return Vec::new();
            }
            _ => {}
        }
        let port = self.running.port();
        let Some(client) = self.clients.get_mut(name) else {
            return vec!["is not connected".to_owned()];
        };
        match verb {
            "sql" => {
                client.send(&Batch::new().query(rest));
                hear(client)
            }
            "say" => {
                client.send(&Batch::new().query(rest));
                Vec::new()
            }
            "hear" => hear(client),
            "bind" => {
                let batch = Batch::new().parse("", rest).bind("", "", &[]).execute("");
                client.send(&batch.sync());
                hear(client)
            }
            "prepare" => {
                let (statement, sql) = rest.split_once(' ').expect("a name and a query");
                client.send(&Batch::new().parse(statement, sql).sync());
                hear(client)
            }
            "execute" => {
                client.send(&Batch::new().bind("", rest, &[]).execute("").sync());
                hear(client)
            }
            "parameter" => rest
                .split(' ')
                .map(|name| {
                    format!(
                        "{name} = {}",
                        client.parameters.get(name).map_or("(not told)", |v| v)
                    )
                })
                .collect(),
            "columns" => {
                client.send(&Batch::new().query(rest));
                columns(&client.read_until('Z'))
            }
            "show" => show(client, rest),
            "end" => {
                let heard = shown(&client.receive_end());
                self.clients.remove(name);
                heard
            }
            "iterations" => vec![format!("{:?}", client.iterations)],
            "freeze" => {
                let process = client.value("select pg_backend_pid()");
                let process = process.parse().expect("a number");
                send_signal(process, "STOP");
                self.frozen.push(process);
                Vec::new()
            }
            "leave" => {
                drop(self.clients.remove(name));
                Vec::new()
            }
            "close" => {
                if let Some(client) = self.clients.remove(name) {
                    client.goodbye();
                }
                Vec::new()
            }
            "cancel" => {
                let (process, secret) = client.key.clone().expect("a key was told");
                let mut line =
                    Raw::over_tcp(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
                let _ = line.write(&cancel_request(process, &secret));
                line.receive_end();
                Vec::new()
            }
            "until" => {
                let (value, sql) = rest.split_once(' ').expect("a value and a query");
                until(&format!("{sql} gives {value}"), PATIENCE, || {
                    client.send(&Batch::new().query(sql));
                    hear(client)
                        .iter()
                        .any(|line| is_like(value, line))
                        .then_some(())
                });
                Vec::new()
            }
            other => panic!("{}: no step is called {other}", self.name),
        }
    }

    fn connect(&mut self, name: &str, rest: &str) -> Vec<String> {
        let mut parameters = vec![
            ("user".to_owned(), "alice".to_owned()),
            ("database".to_owned(), "shop".to_owned()),
        ];
        let (mut password, mut socket) = (None, false);
        for (key, value) in pairs(rest) {
            match key.as_str() {
                "password" => password = Some(value),
                "socket" => socket = true,
                _ => match parameters.iter_mut().find(|(known, _)| *known == key) {
                    Some(known) => known.1 = value,
                    None => parameters.push((key, value)),
                },
            }
        }
        let mut raw = if socket {
            Raw::connect_unix(&self.running.socket()).expect("there is a socket")
        } else {
            Raw::connect(self.running.port())
        };
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        match raw.log_in(&parameters, password.as_deref()) {
            Ok(()) => {
                let notices = raw.heard.matches('N').count();
                self.clients.insert(name.to_owned(), raw);
                let mut said = vec!["connected".to_owned()];
                said.extend((0..notices).map(|_| "a notice".to_owned()));
                said
            }
            Err(error) => vec![shown_error(&error)],
        }
    }
}

/// A text with `\0` and `\xff` in it as bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = match part.strip_prefix('x') {
            Some(hex) => (
                u8::from_str_radix(&hex[..2], 16).expect("two digits"),
                &hex[2..],
            ),
            None => (0, &part[1..]),
        };
        bytes.push(byte);
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

/// `name=value name='a value'`.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while let Some((key, tail)) = rest.split_once('=') {
        let (value, tail) = match tail.strip_prefix('\'') {
            Some(tail) => tail.split_once('\'').expect("a closing quote"),
            None => tail.split_once(' ').unwrap_or((tail, "")),
        };
        pairs.push((key.to_owned(), value.to_owned()));
        rest = tail.trim();
    }
    pairs
}

/// Everything up to ReadyForQuery or the end of the connection.
fn hear(client: &mut Raw) -> Vec<String> {
    let mut heard = Vec::new();
    while let Ok(message) = client.receive() {
        let is_ready = message.tag == 'Z';
        heard.push(message);
        if is_ready {
            return shown(&heard);
        }
    }
    let mut lines = shown(&heard);
    lines.push("closed".to_owned());
    lines
}

fn shown(messages: &[Message]) -> Vec<String> {
    let mut lines = Vec::new();
    for message in messages {
        match message.tag {
            'D' => lines.push(shown_row(&message.row())),
            'C' => lines.push(message.command()),
            'E' => lines.push(shown_error(&message.error())),
            'N' => {
                let notice = message.error();
                lines.push(format!("{} {}", notice.severity(), notice.text()));
            }
            'S' => lines.push(format!(
                "parameter {}",
                message
                    .body
                    .escape_ascii()
                    .to_string()
                    .replace("\\x00", " ")
                    .trim()
            )),
            'Z' if message.body != b"I" => {
                lines.push(format!("in a transaction: {}", message.body.escape_ascii()));
            }
            // A description of rows is looked at by `columns`; the rest says that something was done.
            'T' | 'Z' | '1' | '2' | 'n' | 't' | '3' | 'I' => {}
            tag => lines.push(format!("message {tag}")),
        }
    }
    lines
}

fn shown_error(error: &super::raw::ServerError) -> String {
    if error.text().is_empty() && error.code().is_empty() {
        return "closed".to_owned();
    }
    format!("{} {} {}", error.severity(), error.code(), error.text())
}

fn shown_row(row: &[Option<String>]) -> String {
    let values = row.iter().map(|value| value.as_deref().unwrap_or("(null)"));
    values.collect::<Vec<_>>().join("|")
}

/// Name and type of each column.
fn described(messages: &[Message]) -> Vec<(String, u32)> {
    let Some(message) = messages.iter().find(|message| message.tag == 'T') else {
        return Vec::new();
    };
    let mut rest = &message.body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let numbers = &rest[end + 1..];
        let kind = u32::from_be_bytes(numbers[6..10].try_into().expect("four bytes"));
        columns.push((name, kind));
        rest = &numbers[18..];
    }
    columns
}

fn columns(messages: &[Message]) -> Vec<String> {
    let columns = described(messages);
    columns
        .iter()
        .map(|(name, kind)| format!("{name} {kind}"))
        .collect()
}

/// `COLUMN,... of COMMAND [where COLUMN=VALUE]`.
fn show(client: &mut Raw, rest: &str) -> Vec<String> {
    let (wanted, command) = rest.split_once(" of ").expect("columns of a command");
    let (command, condition) = match command.split_once(" where ") {
        Some((command, condition)) => (command, condition.split_once('=')),
        None => (command, None),
    };
    client.send(&Batch::new().query(command));
    let messages = client.read_until('Z');
    let columns = described(&messages);
    let place = |name: &str| columns.iter().position(|(column, _)| column == name);
    let mut lines = Vec::new();
    for message in messages.iter().filter(|message| message.tag == 'D') {
        let row = message.row();
        let value = |name: &str| match place(name) {
            Some(at) => row[at].clone().unwrap_or("(null)".to_owned()),
            None => "(no such column)".to_owned(),
        };
        if condition.is_none_or(|(name, wanted)| value(name) == wanted) {
            lines.push(wanted.split(',').map(value).collect::<Vec<_>>().join("|"));
        }
    }
    lines
}
