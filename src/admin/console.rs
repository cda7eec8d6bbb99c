//! One client of the console, from login to goodbye: both query protocols (manual, "Message Flow").
//!
//! Commands may take time. Meanwhile the client's cancel request and its leaving are listened for: the command is dropped then, and
//! undoes what must be undone.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::PGBOUNCER;
use super::command::{Argument, Call, Done, Outcome, Plan, Run, unfinished};
use super::extended::Prepared;
use super::process::{Access, Process};
use super::query::{Environment, Query};
use super::table::{Formats, Row, Table, data_row, row_description};
use super::words;
use crate::client::directory::{Ask, Entry, Listed, Seat};
use crate::client::patience::Activity;
use crate::net::packet::{Packet, Packets};
use crate::net::stream::Stream;
use crate::repeats::POOLER_ERROR;
use crate::wire::reply::{
    Message, Report, Severity, SqlState, authentication, backend_key_data, parameter_status,
};

/// The longest message that is read. Commands are short, and so are queries of their tables.
const LONGEST_MESSAGE: usize = 64 * 1024;

/// The type and the length of a message.
const HEADER: usize = 5;

/// So much is gathered before it is written.
const GATHERED: usize = 64 * 1024;

/// How long a client may take to read why its session ends.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// What Postgres reports at login, as PgBouncer's console does: drivers wait for some of these.
const PARAMETERS: [(&str, &str); 10] = [
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("IntervalStyle", "postgres"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
    ("in_hot_standby", "off"),
    ("default_transaction_read_only", "off"),
];

/// Why a console's session ended.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye.
    Goodbye,
    /// It is gone.
    ClientGone(io::Error),
    /// It sent what the protocol does not allow.
    Violation(Report),
    /// The process ends.
    Drained,
    /// It was told to leave.
    Killed,
}

impl End {
    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Goodbye => "goodbye",
            Self::ClientGone(_) => "client_gone",
            Self::Violation(_) => "protocol_violation",
            Self::Drained => "drained",
            Self::Killed => "killed",
        }
    }

    /// Why PgBouncer would say that it closes the client's connection.
    pub fn as_pgbouncer(&self) -> &str {
        match self {
            Self::Goodbye => "client close request",
            Self::ClientGone(_) => "client unexpected eof",
            Self::Violation(report) => &report.message,
            Self::Drained => "pooler is shutting down",
            Self::Killed => "admin forced disconnect",
        }
    }

    /// What the client is told; `None`: it has left.
    fn last_words(&self) -> Option<Report> {
        match self {
            Self::Goodbye | Self::ClientGone(_) => None,
            Self::Violation(report) => Some(report.clone()),
            Self::Drained | Self::Killed => Some(Report::new(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command",
            )),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goodbye => f.write_str("client said goodbye"),
            Self::ClientGone(error) => write!(f, "client went away: {error}"),
            Self::Violation(report) => f.write_str(&report.message),
            Self::Drained => f.write_str("pgweir ends"),
            Self::Killed => f.write_str("told to leave"),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidData {
            Self::Violation(Report::new(SqlState::PROTOCOL_VIOLATION, error.to_string()))
        } else {
            Self::ClientGone(error)
        }
    }
}

/// What a client of the console is told at login, from AuthenticationOk on.
pub fn hello((id, secret): (u32, &[u8])) -> Vec<u8> {
    let mut bytes = authentication::request(authentication::OK, &[]);
    bytes.extend(parameter_status("server_version", &server_version()));
    for (name, value) in PARAMETERS {
        bytes.extend(parameter_status(name, value));
    }
    bytes.extend(backend_key_data(id, secret));
    bytes.extend(Status::Idle.ready());
    bytes
}

/// What drivers are told as the server's version.
pub fn server_version() -> String {
    format!("{PGBOUNCER}/bouncer")
}

/// Whether a client may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As the configuration in force says of its user.
    Listed,
    /// Everything: it runs as the same user of the operating system.
    Owner,
}

/// A client of the console.
#[derive(Debug)]
pub struct Console {
    packets: Packets<Stream>,
    process: Arc<dyn Process>,
    listed: Listed,
    standing: Standing,
    /// Its place under a cap on clients.
    _seat: Seat,
    prepared: Prepared,
    status: Status,
    /// Replies that are not written yet.
    replies: Vec<u8>,
    /// A part of the replies may have been written: nothing may follow but the rest.
    is_writing: bool,
    /// An error was answered in the extended protocol: what comes up to Sync is passed over.
    skips: bool,
}

/// What ReadyForQuery tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Outside of a transaction.
    Idle,
    /// Between BEGIN and its end. Nothing here can be undone by ROLLBACK, but drivers keep count.
    InTransaction,
}

impl Status {
    fn ready(self) -> Vec<u8> {
        let status = match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
        };
        Message::new(b'Z').u8(status).done()
    }
}

impl Console {
    /// A client that has been told [`hello`].
    pub fn new(
        packets: Packets<Stream>,
        process: Arc<dyn Process>,
        listed: Listed,
        standing: Standing,
        seat: Seat,
    ) -> Self {
        Self {
            packets,
            process,
            listed,
            standing,
            _seat: seat,
            prepared: Prepared::default(),
            status: Status::Idle,
            replies: Vec::new(),
            is_writing: false,
            skips: false,
        }
    }

    /// Its entry in the directory.
    pub fn entry(&self) -> &Arc<Entry> {
        self.listed.entry()
    }

    /// Serves the client until it leaves or has to.
    pub async fn run(mut self) -> End {
        let entry = Arc::clone(self.entry());
        let end = tokio::select! {
            end = self.converse() => end,
            () = asked(&entry, Ask::Leave) => End::Killed,
        };
        if let Some(report) = end.last_words()
            && !self.is_writing
        {
            let words = report.error(Severity::Fatal);
            // It may be gone; it was to be told, no more.
            let _ = timeout(LAST_WORDS_LIMIT, self.packets.write(&words)).await;
        }
        end
    }

    async fn converse(&mut self) -> End {
        loop {
            let packet = match self.next().await {
                Ok(packet) => packet,
                Err(end) => return end,
            };
            self.listed.does(Activity::Active);
            if let Err(end) = self.answer(packet).await {
                return end;
            }
            self.listed.does(Activity::Idle);
        }
    }

    /// The client's next message.
    async fn next(&mut self) -> Result<Packet, End> {
        let listed = &self.listed;
        let drained = poll_fn(|cx| {
            let entry = listed.entry();
            entry.attend(cx.waker());
            // There is nothing to cancel; whoever asked for it waits for that.
            if entry.asked(Ask::Cancel) {
                drop(listed.cancelers());
            }
            if entry.asked(Ask::Drain) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        tokio::select! {
            packet = self.packets.read(LONGEST_MESSAGE) => {
                let packet = packet?;
                self.process.own().received(HEADER + packet.body.len());
                Ok(packet)
            }
            () = drained => Err(End::Drained),
        }
    }

    async fn answer(&mut self, Packet { tag, body }: Packet) -> Result<(), End> {
        match tag {
            b'Q' => self.query(&body).await,
            b'X' => Err(End::Goodbye),
            b'S' => {
                self.skips = false;
                self.ready().await
            }
            b'P' | b'B' | b'D' | b'E' | b'C' if self.skips => Ok(()),
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                if let Err(report) = self.extended(tag, &body).await? {
                    self.refuse(&report);
                    self.skips = true;
                }
                self.flush_if_large().await
            }
            b'H' => self.flush().await,
            b'F' => {
                let report = Report::new(
                    SqlState::NOT_SUPPORTED,
                    "the console has no functions to call",
                );
                self.refuse(&report);
                self.ready().await
            }
            // Left over from a COPY that nobody began; Postgres passes it over as well.
            b'd' | b'c' | b'f' => Ok(()),
            tag => Err(End::Violation(Report::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {tag}"),
            ))),
        }
    }

    /// Answers a Query message: every statement in it up to the first that fails.
    async fn query(&mut self, body: &[u8]) -> Result<(), End> {
        self.skips = false;
        self.prepared.forget_unnamed();
        match text_of(body).and_then(|query| words::statements(query).map_err(|_| unfinished())) {
            Ok(statements) if statements.is_empty() => self.replies.extend(EMPTY_QUERY),
            Ok(statements) => {
                for statement in statements {
                    if let Err(report) = self.statement(statement).await? {
                        self.refuse(&report);
                        break;
                    }
                }
            }
            Err(report) => self.refuse(&report),
        }
        self.ready().await
    }

    /// Tells the client that something cannot be done, and the log as PgBouncer does.
    fn refuse(&mut self, report: &Report) {
        self.replies.extend(report.error(Severity::Error));
        let config = self.process.config();
        let entry = self.listed.entry();
        let (id, who, text) = (entry.id(), entry.who(), &report.message);
        let Some(said) = config.log.words(text) else {
            return tracing::debug!(id, user = who.user, "refused: {text}");
        };
        tracing::error!(said, "refused");
        let said = format!("pooler error: {text}");
        tracing::warn!(
            target: POOLER_ERROR, id, user = who.user, database = who.database, peer = %entry.peer, said, "refused"
        );
    }

    async fn statement(&mut self, statement: &str) -> Result<Result<(), Report>, End> {
        let outcome = match Plan::of(statement) {
            Ok(plan) => self.perform(&plan, &[]).await?,
            Err(report) => Err(report),
        };
        let Outcome {
            notices,
            table,
            tag,
        } = match outcome {
            Ok(outcome) => outcome,
            Err(report) => return Ok(Err(report)),
        };
        self.notices(&notices);
        if let Some(table) = table {
            let formats = Formats::default();
            self.replies
                .extend(row_description(&table.columns, &formats));
            for row in &table.rows {
                self.replies.extend(data_row(&table.columns, row, &formats));
                self.flush_if_large().await?;
            }
        }
        self.complete(&tag);
        Ok(Ok(()))
    }

    /// Does what was planned, if this client may. The only place where that is asked.
    async fn perform(
        &mut self,
        plan: &Plan,
        parameters: &[Option<String>],
    ) -> Result<Result<Outcome, Report>, End> {
        self.process.own().answered();
        if self.access() < Some(plan.access()) {
            let report = Report::new(SqlState::PROTOCOL_VIOLATION, "admin access needed");
            return Ok(Err(report));
        }
        let (command, arguments) = match plan {
            Plan::Command(command, arguments) => (command, arguments),
            Plan::Empty => return Ok(Ok(Outcome::tagged(""))),
            Plan::Query(query) => return Ok(self.select(query, parameters).await),
            Plan::Known(outcome) => return Ok(Ok(outcome.clone())),
            Plan::Forget(name, tag) => {
                let forgotten = self.prepared.forget(name.as_deref());
                return Ok(forgotten.map(|()| Outcome::tagged(tag)));
            }
            Plan::Begin => {
                self.status = Status::InTransaction;
                return Ok(Ok(Outcome::tagged("BEGIN")));
            }
            Plan::End(tag) => {
                self.status = Status::Idle;
                return Ok(Ok(Outcome::tagged(tag)));
            }
        };
        let arguments = match fill_in(arguments, parameters) {
            Ok(arguments) => arguments,
            Err(report) => return Ok(Err(report)),
        };
        let call = self.call(arguments);
        let tag = command.tag().to_owned();
        let outcome = match command.run {
            Run::Show { columns, rows } => aside(move || rows(&call)).await.map(|rows| Outcome {
                notices: vec![],
                table: Some(Table {
                    columns: columns.into(),
                    rows,
                }),
                tag,
            }),
            Run::Tell(tell) => Ok(Outcome {
                notices: vec![tell(&call)],
                table: None,
                tag,
            }),
            Run::Act(act) => self.act(act(call)).await?.map(|done| Outcome {
                notices: done.notices,
                table: None,
                tag: done.tag.unwrap_or(tag),
            }),
        };
        Ok(outcome)
    }

    /// Answers a query over a table.
    async fn select(
        &self,
        query: &Arc<Query>,
        parameters: &[Option<String>],
    ) -> Result<Outcome, Report> {
        let who = self.entry().who();
        let environment = Environment {
            user: who.user.clone(),
            database: who.database.clone(),
            pid: self.entry().key().0,
            parameters: query.read_parameters(parameters)?,
        };
        let (call, asked) = (self.call(vec![]), Arc::clone(query));
        let rows = aside(move || {
            let rows = match asked.source.map(|table| table.run) {
                Some(Run::Show { rows, .. }) => rows(&call)?,
                Some(Run::Tell(_) | Run::Act(_)) => vec![],
                None => vec![vec![]],
            };
            asked.run(rows, &environment)
        });
        let rows = rows.await?;
        Ok(Outcome {
            notices: vec![],
            tag: format!("SELECT {}", rows.len()),
            table: Some(Table {
                columns: query.columns.clone().into(),
                rows,
            }),
        })
    }

    fn call(&self, arguments: Vec<String>) -> Call {
        Call {
            process: Arc::clone(&self.process),
            caller: self.entry().who(),
            arguments,
        }
    }

    /// Waits for a command. One that is cancelled, or whose client leaves, is dropped.
    async fn act(
        &mut self,
        acting: impl Future<Output = Result<Done, Report>>,
    ) -> Result<Result<Done, Report>, End> {
        // What was answered before it is not to wait for it.
        self.flush().await?;
        let listed = &self.listed;
        tokio::select! {
            biased;
            done = acting => Ok(done),
            () = asked(listed.entry(), Ask::Cancel) => {
                drop(listed.cancelers());
                let words = "canceling statement due to user request";
                Ok(Err(Report::new(SqlState::QUERY_CANCELED, words)))
            }
            () = poll_fn(|cx| self.packets.stream().poll_hung_up(cx)) => {
                Err(End::ClientGone(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }

    /// What the client may do by now.
    fn access(&self) -> Option<Access> {
        match self.standing {
            Standing::Owner => Some(Access::Admin),
            Standing::Listed => Access::of(&self.process.config().auth, &self.entry().who().user),
        }
    }

    fn notices(&mut self, notices: &[Report]) {
        for notice in notices {
            self.replies.extend(notice.notice());
        }
    }

    fn complete(&mut self, tag: &str) {
        self.replies.extend(Message::new(b'C').text(tag).done());
    }

    async fn ready(&mut self) -> Result<(), End> {
        if self.status == Status::Idle {
            self.prepared.forget_portals();
        }
        self.replies.extend(self.status.ready());
        self.flush().await
    }

    async fn flush_if_large(&mut self) -> Result<(), End> {
        if self.replies.len() < GATHERED {
            return Ok(());
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.replies.is_empty() {
            return Ok(());
        }
        self.is_writing = true;
        self.process.own().sent(self.replies.len());
        let written = self.packets.write(&self.replies).await;
        self.is_writing = false;
        self.replies.clear();
        // A console that rests keeps no buffer.
        self.replies.shrink_to(0);
        Ok(written?)
    }

    /// Answers a message of the extended protocol, but for Sync and Flush.
    async fn extended(&mut self, tag: u8, body: &[u8]) -> Result<Result<(), Report>, End> {
        let answered = match tag {
            b'P' => self.prepared.parse(body),
            b'B' => self.prepared.bind(body),
            b'C' => self.prepared.close(body),
            b'D' => self.prepared.describe(body),
            _ => return self.execute(body).await,
        };
        Ok(answered.map(|reply| self.replies.extend(reply)))
    }

    async fn execute(&mut self, body: &[u8]) -> Result<Result<(), Report>, End> {
        let (name, most) = match super::extended::execute(body) {
            Ok(asked) => asked,
            Err(report) => return Ok(Err(report)),
        };
        let Some(mut portal) = self.prepared.take(&name) else {
            return Ok(Err(super::extended::no_portal(&name)));
        };
        if portal.is_new() {
            match self.perform(&portal.plan, &portal.parameters).await? {
                Ok(outcome) => {
                    self.notices(&outcome.notices);
                    portal.start(outcome);
                }
                Err(report) => return Ok(Err(report)),
            }
        }
        let mut left = most;
        while let Some(row) = portal.next(&mut left) {
            self.replies.extend(row);
            self.flush_if_large().await?;
        }
        self.replies.extend(portal.pause());
        Ok(self.prepared.put_back(name, portal))
    }
}

/// EmptyQueryResponse.
pub(super) const EMPTY_QUERY: [u8; 5] = [b'I', 0, 0, 0, 4];

/// Makes a table on a thread where it delays no client.
async fn aside(
    make: impl FnOnce() -> Result<Vec<Row>, Report> + Send + 'static,
) -> Result<Vec<Row>, Report> {
    let rows = tokio::task::spawn_blocking(make).await;
    rows.unwrap_or_else(|error| {
        tracing::error!(%error, "a table of the console could not be made");
        Err(Report::new(
            SqlState(*b"XX000"),
            "the table could not be made",
        ))
    })
}

/// Ready when a session is asked this.
async fn asked(entry: &Entry, ask: Ask) {
    poll_fn(|cx| {
        entry.attend(cx.waker());
        if entry.asked(ask) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// The string of a Query message.
fn text_of(body: &[u8]) -> Result<&str, Report> {
    let text = body.strip_suffix(b"\0").unwrap_or(body);
    std::str::from_utf8(text).map_err(|_| not_utf8())
}

pub(super) fn not_utf8() -> Report {
    Report::new(
        SqlState(*b"22021"),
        "invalid byte sequence for encoding \"UTF8\"",
    )
}

/// A command's arguments, with parameters in their places.
fn fill_in(arguments: &[Argument], parameters: &[Option<String>]) -> Result<Vec<String>, Report> {
    let fill = |argument: &Argument| match argument {
        Argument::Text(text) => Ok(text.clone()),
        Argument::Parameter(number) => {
            let value = parameters.get(usize::from(*number) - 1);
            let value = value.ok_or_else(|| {
                Report::new(
                    SqlState(*b"42P02"),
                    format!("there is no parameter ${number}"),
                )
            })?;
            value.clone().ok_or_else(|| {
                Report::new(SqlState(*b"22004"), format!("parameter ${number} is null"))
            })
        }
    };
    arguments.iter().map(fill).collect()
}
