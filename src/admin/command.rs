//! What the console can do: one table, from which dispatch, permission, `SHOW HELP` and `docs/console.md` are made.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use super::chatter;
use super::deployments;
use super::process::{Access, Process};
use super::query::Query;
use super::table::{Column, Kind, Row, Table, boolean, int4, int8, text, time};
use super::words::{self, Unfinished, Word};
use super::{act, show};
use crate::client::directory::Who;
use crate::wire::reply::{Report, SqlState};

/// The longest part of a wrong command that is repeated to its sender.
const LONGEST_QUOTE: usize = 100;

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its words.
    pub name: &'static str,
    /// What follows them; in brackets what may be left out.
    pub takes: &'static [&'static str],
    /// Who may give it.
    pub access: Access,
    /// What it does, for people.
    pub help: &'static str,
    /// What it does.
    pub run: Run,
}

/// What a command does.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// It answers with a table.
    Show {
        /// The table's columns.
        columns: &'static [Column],
        /// The table's rows.
        rows: fn(&Call) -> Result<Vec<Row>, Report>,
    },
    /// It answers with a notice.
    Tell(fn(&Call) -> Report),
    /// It does something, which may take time.
    Act(fn(Call) -> Acting),
}

/// A command under way. **Dropped when its sender cancels it or goes away**: whatever must be undone then, a guard undoes in it.
pub type Acting = Pin<Box<dyn Future<Output = Result<Done, Report>>>>;

/// What a command has done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Done {
    /// What the sender is told beside that.
    pub notices: Vec<Report>,
    /// Instead of the first word of the command's name.
    pub tag: Option<String>,
}

/// A command with everything that it is about.
#[derive(Debug, Clone)]
pub struct Call {
    /// The process.
    pub process: Arc<dyn Process>,
    /// Who gave it.
    pub caller: Arc<Who>,
    /// What followed its name: as many as it takes, or those up to the first that may be left out.
    pub arguments: Vec<String>,
}

impl Call {
    /// That argument, if it was given.
    pub fn argument(&self, index: usize) -> Option<&str> {
        self.arguments.get(index).map(String::as_str)
    }
}

/// Every command.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "SHOW HELP",
        takes: &[],
        access: Access::Stats,
        help: "every command",
        run: Run::Tell(|_| help()),
    },
    Command::show("SHOW VERSION", "the version", show::process::VERSION),
    Command::show(
        "SHOW STATE",
        "whether clients are served, paused or suspended",
        show::process::STATE,
    ),
    Command::show(
        "SHOW CONFIG",
        "every setting with its value in force, without secrets",
        show::process::CONFIG,
    ),
    Command::show(
        "SHOW MEM",
        "memory that the process holds, and how many things there are",
        show::process::MEM,
    ),
    Command::show(
        "SHOW DATABASES",
        "one row for each database",
        show::databases::DATABASES,
    ),
    Command::show("SHOW USERS", "one row for each user", show::users::USERS),
    Command::show(
        "SHOW POOLS",
        "one row for each pool: a database and a role at Postgres",
        show::pools::POOLS,
    ),
    Command::show(
        "SHOW CLIENTS",
        "one row for each session",
        show::sockets::CLIENTS,
    ),
    Command::show(
        "SHOW SERVERS",
        "one row for each connection to Postgres",
        show::sockets::SERVERS,
    ),
    Command::show(
        "SHOW SOCKETS",
        "sessions and connections to Postgres",
        show::sockets::SOCKETS,
    ),
    Command::show(
        "SHOW ACTIVE_SOCKETS",
        "the same, without those that rest",
        show::sockets::ACTIVE_SOCKETS,
    ),
    Command::show(
        "SHOW STATS",
        "totals since the start and averages over the last minute, for each database; times in microseconds",
        show::stats::STATS,
    ),
    Command::show(
        "SHOW STATS_TOTALS",
        "the totals alone",
        show::stats::STATS_TOTALS,
    ),
    Command::show(
        "SHOW STATS_AVERAGES",
        "the averages alone",
        show::stats::STATS_AVERAGES,
    ),
    Command::show(
        "SHOW TOTALS",
        "both, over all databases",
        show::stats::TOTALS,
    ),
    Command::show(
        "SHOW LISTS",
        "how many there are of what",
        show::lists::LISTS,
    ),
    Command::show(
        "SHOW PEERS",
        "other processes that cancel requests are passed on to",
        show::pools::PEERS,
    ),
    Command::show(
        "SHOW PEER_POOLS",
        "the cancel requests that are under way to them",
        show::pools::PEER_POOLS,
    ),
    Command::show(
        "SHOW DNS_HOSTS",
        "names of hosts that were looked up, and for how many seconds that counts",
        show::lists::DNS_HOSTS,
    ),
    Command::show(
        "SHOW DNS_ZONES",
        "their zones and the serial numbers of these, with `timeouts.dns_zone_check`",
        show::lists::DNS_ZONES,
    ),
    Command {
        name: "SHOW FDS",
        takes: &[],
        access: Access::Admin,
        help: "connections that would be handed to the next process, without descriptors and secrets",
        run: show::sockets::FDS,
    },
    Command {
        name: "PAUSE",
        takes: &["[database]"],
        access: Access::Admin,
        help: "closes server connections as they come free, has clients wait, and waits until none is left; Ctrl-C undoes it",
        run: Run::Act(act::pause),
    },
    Command {
        name: "RESUME",
        takes: &["[database]"],
        access: Access::Admin,
        help: "undoes PAUSE, SUSPEND and KILL",
        run: Run::Act(act::resume),
    },
    Command {
        name: "DISABLE",
        takes: &["database"],
        access: Access::Admin,
        help: "refuses new clients of a database",
        run: Run::Act(act::disable),
    },
    Command {
        name: "ENABLE",
        takes: &["database"],
        access: Access::Admin,
        help: "lets them in again",
        run: Run::Act(act::enable),
    },
    Command {
        name: "RECONNECT",
        takes: &["[database]"],
        access: Access::Admin,
        help: "has server connections replaced as they come free",
        run: Run::Act(act::reconnect),
    },
    Command {
        name: "WAIT_CLOSE",
        takes: &["[database]"],
        access: Access::Admin,
        help: "waits until those that are to be replaced are gone",
        run: Run::Act(act::wait_close),
    },
    Command {
        name: "KILL",
        takes: &["[database]"],
        access: Access::Admin,
        help: "drops clients and server connections at once, and leaves the database paused",
        run: Run::Act(act::kill),
    },
    Command {
        name: "KILL_CLIENT",
        takes: &["id"],
        access: Access::Admin,
        help: "drops one client, by its id in SHOW CLIENTS",
        run: Run::Act(act::kill_client),
    },
    Command {
        name: "SUSPEND",
        takes: &[],
        access: Access::Admin,
        help: "lends no server connection any more, and waits for those that are lent; Ctrl-C undoes it",
        run: Run::Act(act::suspend),
    },
    Command {
        name: "RELOAD",
        takes: &[],
        access: Access::Admin,
        help: "reads the configuration again, which ends what SET has set",
        run: Run::Act(act::reload),
    },
    Command {
        name: "SET",
        takes: &["key", "value"],
        access: Access::Admin,
        help: "changes a setting until the next RELOAD",
        run: Run::Act(act::set),
    },
    Command {
        name: "SHUTDOWN",
        takes: &["[WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]"],
        access: Access::Admin,
        help: "ends pgweir: at once, when no server connection is lent, or when the last client has left",
        run: Run::Act(act::shutdown),
    },
    Command::show(
        "SHOW BUDGET",
        "one row for each Postgres: how many connections pgweir may have there, and what others leave",
        show::watch::BUDGET,
    ),
    Command::show(
        "SHOW FOREIGN",
        "who is connected to Postgres past this pgweir",
        show::watch::FOREIGN,
    ),
    Command::show(
        "SHOW ALERTS",
        "the alerts that are raised, who holds most, and what to type",
        show::watch::ALERTS,
    ),
    Command::show(
        "SHOW INCIDENTS",
        "the incidents that are kept, the newest first",
        show::watch::INCIDENTS,
    ),
    Command {
        name: "SHOW INCIDENT",
        takes: &["id"],
        access: Access::Stats,
        help: "the story of one incident: a post-mortem to be filled in",
        run: show::watch::INCIDENT,
    },
    Command {
        name: "SHOW SERVICES",
        takes: &[],
        access: Access::Stats,
        help: "one row for each service: what it has, what it may have, who waits",
        run: Run::Show {
            columns: &[
                text("service"),
                text("deployment"),
                int4("clients"),
                int4("stale_clients"),
                int4("max_clients"),
                int4("cl_waiting"),
                int8("maxwait_ms"),
                int4("servers"),
                int4("sv_idle"),
                int4("max_servers"),
                int4("min_servers"),
                int4("weight"),
            ],
            rows: deployments::services,
        },
    },
    Command {
        name: "SHOW DEPLOYMENTS",
        takes: &[],
        access: Access::Stats,
        help: "one row for each deployment: current, superseded by whom and since when",
        run: Run::Show {
            columns: &[
                text("service"),
                text("deployment"),
                text("state"),
                int4("clients"),
                time("first_seen"),
                time("last_seen"),
                text("superseded_by"),
                time("superseded_at"),
            ],
            rows: deployments::deployments,
        },
    },
    Command {
        name: "SHOW WAITERS",
        takes: &[],
        access: Access::Stats,
        help: "one row for each client that waits for a server connection, by pool, who came first before",
        run: Run::Show {
            columns: &[
                int8("id"),
                text("database"),
                text("user"),
                text("service"),
                text("deployment"),
                text("addr"),
                int8("wait_ms"),
                int4("place"),
            ],
            rows: deployments::waiters,
        },
    },
    Command {
        name: "SHOW REAPED",
        takes: &[],
        access: Access::Stats,
        help: "the sessions that were closed because of their deployment, and why; the last 1000",
        run: Run::Show {
            columns: &[
                time("time"),
                int8("id"),
                text("user"),
                text("database"),
                text("service"),
                text("deployment"),
                text("addr"),
                text("reason"),
                int8("idle_seconds"),
                text("superseded_by"),
                time("superseded_at"),
                boolean("dry_run"),
            ],
            rows: deployments::reaped,
        },
    },
    Command {
        name: "PROMOTE",
        takes: &["service", "deployment"],
        access: Access::Admin,
        help: "this deployment of the service counts, and every other one is superseded",
        run: Run::Act(deployments::promote),
    },
    Command {
        name: "SUPERSEDE",
        takes: &["service", "deployment"],
        access: Access::Admin,
        help: "this deployment of the service counts no more",
        run: Run::Act(deployments::supersede),
    },
    Command {
        name: "KILL STALE",
        takes: &["[service]"],
        access: Access::Admin,
        help: "closes the sessions of superseded deployments that do nothing",
        run: Run::Act(deployments::kill_stale),
    },
];

impl Command {
    /// A table for everybody who may look.
    const fn show(name: &'static str, help: &'static str, run: Run) -> Self {
        Self {
            name,
            takes: &[],
            access: Access::Stats,
            help,
            run,
        }
    }

    /// Its name and what it takes.
    pub fn usage(&self) -> String {
        [&[self.name], self.takes].concat().join(" ")
    }

    /// What the protocol calls it once it is done.
    pub fn tag(&self) -> &'static str {
        self.name.split(' ').next().unwrap_or(self.name)
    }

    /// How many words its name has, if the statement begins with them.
    fn begins(&self, words: &[Word]) -> Option<usize> {
        let names = self.name.split(' ');
        let count = names.clone().count();
        let fits = words.len() >= count && names.zip(words).all(|(name, word)| word.is(name));
        fits.then_some(count)
    }

    fn accepts(&self, arguments: usize) -> bool {
        let optional = |name: &&&str| name.starts_with('[');
        let least = self.takes.iter().filter(|name| !optional(name)).count();
        (least..=self.takes.len()).contains(&arguments)
    }
}

/// What a statement is to do, known before it is done: a client may ask what columns to expect.
#[derive(Debug, Clone)]
pub enum Plan {
    /// Nothing: there was no statement.
    Empty,
    /// A command.
    Command(&'static Command, Vec<Argument>),
    /// The begin of a transaction: nothing but what drivers expect to be told.
    Begin,
    /// Its end, by that word.
    End(&'static str),
    /// A query over a table.
    Query(Arc<Query>),
    /// Something of no consequence that drivers say to every server.
    Known(Outcome),
    /// Prepared statements are to be forgotten: that one, or all.
    Forget(Option<String>, &'static str),
}

/// An argument of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// As given.
    Text(String),
    /// The parameter of that number, from 1.
    Parameter(u16),
}

/// What a statement's sender is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Notices.
    pub notices: Vec<Report>,
    /// Columns and rows.
    pub table: Option<Table>,
    /// What was done.
    pub tag: String,
}

impl Outcome {
    /// Nothing but a tag.
    pub fn tagged(tag: &str) -> Self {
        Self {
            notices: vec![],
            table: None,
            tag: tag.to_owned(),
        }
    }
}

impl Plan {
    /// Reads a statement.
    pub fn of(statement: &str) -> Result<Self, Report> {
        let words = words::words(statement).map_err(|Unfinished| unfinished())?;
        if words.is_empty() {
            return Ok(Self::Empty);
        }
        if let Some(plan) = transaction(&words) {
            return Ok(plan);
        }
        if let Some(plan) = chatter::plan(&words) {
            return Ok(plan);
        }
        if words[0].is("SELECT") {
            // PgBouncer has SELECT x for SHOW x.
            let as_show = [&[Word::Bare("SHOW".to_owned())], &words[1..]].concat();
            if let Some(plan) = command(&as_show).and_then(Result::ok) {
                return Ok(plan);
            }
        }
        if is_query(&words[0]) {
            return Query::read(statement).map(|query| Self::Query(Arc::new(query)));
        }
        command(&words).unwrap_or_else(|| Err(invalid(statement)))
    }

    /// The least that its sender must be allowed.
    pub fn access(&self) -> Access {
        match self {
            Self::Command(command, _) => command.access,
            Self::Query(query) => query.source.map_or(Access::Stats, |table| table.access),
            Self::Empty | Self::Begin | Self::End(_) | Self::Known(_) | Self::Forget(..) => {
                Access::Stats
            }
        }
    }

    /// The columns that it answers with, if it does.
    pub fn columns(&self) -> Option<&[Column]> {
        match self {
            Self::Command(command, _) => match command.run {
                Run::Show { columns, .. } => Some(columns),
                Run::Tell(_) | Run::Act(_) => None,
            },
            Self::Query(query) => Some(&query.columns),
            Self::Known(outcome) => outcome.table.as_ref().map(|table| &*table.columns),
            Self::Empty | Self::Begin | Self::End(_) | Self::Forget(..) => None,
        }
    }

    /// The types of its parameters.
    pub fn parameters(&self) -> Vec<Kind> {
        match self {
            Self::Command(_, arguments) => {
                let numbers = arguments.iter().map(|argument| match argument {
                    Argument::Parameter(number) => usize::from(*number),
                    Argument::Text(_) => 0,
                });
                vec![Kind::Text; numbers.max().unwrap_or(0)]
            }
            Self::Query(query) => query.parameters.clone(),
            Self::Empty | Self::Begin | Self::End(_) | Self::Known(_) | Self::Forget(..) => vec![],
        }
    }
}

/// The command that a statement begins with, if it is one.
fn command(words: &[Word]) -> Option<Result<Plan, Report>> {
    let found = COMMANDS
        .iter()
        .filter_map(|command| Some((command, command.begins(words)?)))
        .max_by_key(|(_, count)| *count);
    let (command, count) = found?;
    let arguments = arguments(command, &words[count..]);
    Some(if command.accepts(arguments.len()) {
        Ok(Plan::Command(command, arguments))
    } else {
        let usage = format!("Usage: {};", command.usage());
        // PgBouncer's words.
        let words = match (command.takes, arguments.len()) {
            (["database"], 0) => "a database is required",
            _ => "bad arguments",
        };
        Err(Report::new(SqlState::PROTOCOL_VIOLATION, words).hint(usage))
    })
}

/// Whether a statement that begins so is a query. `SELECT(1)` is one as well.
fn is_query(first: &Word) -> bool {
    let Word::Bare(all) = first else {
        return false;
    };
    let end = all.find(|c: char| !c.is_ascii_alphabetic());
    let word = &all[..end.unwrap_or(all.len())];
    let begins = ["SELECT", "WITH", "VALUES", "TABLE"];
    // A query in parentheses has no word in front of them.
    end == Some(0) && all.starts_with('(')
        || begins.iter().any(|begin| word.eq_ignore_ascii_case(begin))
}

/// The begin or the end of a transaction, or of a part of one.
fn transaction(words: &[Word]) -> Option<Plan> {
    let first = words.first()?;
    let is_to = |word: &Word| word.is("TO");
    if first.is("ROLLBACK") && words[1..].iter().any(is_to) {
        return Some(Plan::Known(Outcome::tagged("ROLLBACK")));
    }
    let parts = ["SAVEPOINT", "RELEASE"];
    if let Some(part) = parts.iter().find(|word| first.is(word)) {
        return Some(Plan::Known(Outcome::tagged(part)));
    }
    let begins = first.is("BEGIN")
        || first.is("START") && words.get(1).is_some_and(|word| word.is("TRANSACTION"));
    let ends = [
        ("COMMIT", "COMMIT"),
        ("END", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ABORT", "ROLLBACK"),
    ];
    let end = ends.iter().find(|(word, _)| first.is(word));
    end.map(|(_, tag)| Plan::End(tag))
        .or(begins.then_some(Plan::Begin))
}

/// What follows a command's name. Between a setting and its value may stand `=` or TO.
fn arguments(command: &Command, words: &[Word]) -> Vec<Argument> {
    let is_filler = |(index, word): &(usize, &Word)| {
        command.name == "SET" && *index == 1 && (word.is("=") || word.is("TO"))
    };
    let words = words.iter().enumerate().filter(|word| !is_filler(word));
    let argument = |word: &Word| match word {
        Word::Bare(text) | Word::Quoted(text) => Argument::Text(text.clone()),
        Word::Parameter(number) => Argument::Parameter(*number),
    };
    words.map(|(_, word)| argument(word)).collect()
}

/// A statement that is nothing the console knows, in PgBouncer's words.
pub fn invalid(statement: &str) -> Report {
    let quote: Cow<'_, str> = match statement.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}...", &statement[..end]).into(),
        None => statement.into(),
    };
    Report::new(
        SqlState::PROTOCOL_VIOLATION,
        format!("invalid command '{quote}', use SHOW HELP;"),
    )
}

/// A query whose quotes or comments do not end.
pub fn unfinished() -> Report {
    Report::new(SqlState::SYNTAX_ERROR, "unterminated quote or comment")
}

/// What SHOW HELP tells.
fn help() -> Report {
    let usages = COMMANDS
        .iter()
        .map(|command| format!("\n\t{}", command.usage()));
    Report::new(SqlState::SUCCESSFUL_COMPLETION, "Console usage").detail(usages.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(statement: &str) -> Result<(&'static str, Vec<Argument>), String> {
        match Plan::of(statement) {
            Ok(Plan::Command(command, arguments)) => Ok((command.name, arguments)),
            Ok(other) => panic!("{other:?}"),
            Err(report) => Err(report.message),
        }
    }

    #[test]
    fn a_command_is_found_by_its_words_in_any_case() {
        for statement in ["SHOW POOLS", "show pools", " Show /* all */ Pools -- now"] {
            assert_eq!(arguments_of(statement), Ok(("SHOW POOLS", vec![])));
        }
    }

    #[test]
    fn what_is_no_command_is_refused_in_pgbouncers_words() {
        let long = format!("SHOW {}", "é".repeat(200));
        for statement in ["SHOW", "SHOW \"pools\"", "FLY", &long] {
            let refused = arguments_of(statement).unwrap_err();
            assert!(refused.starts_with("invalid command '"), "{refused}");
            assert!(refused.ends_with("', use SHOW HELP;"), "{refused}");
            assert!(refused.len() < 300);
        }
        assert_eq!(
            arguments_of("SHOW POOLS now"),
            Err("bad arguments".to_owned())
        );
    }

    #[test]
    fn a_select_is_a_query_or_pgbouncers_other_word_for_show() {
        for (statement, is_command) in [
            ("SELECT pools", true),
            ("select version;", true),
            ("SELECT version()", false),
            ("SELECT * FROM pools", false),
            ("SELECT(1)", false),
            ("(SELECT 1)", false),
        ] {
            match Plan::of(statement.trim_end_matches(';')) {
                Ok(Plan::Command(..)) => assert!(is_command, "{statement}"),
                Ok(Plan::Query(_)) => assert!(!is_command, "{statement}"),
                Err(report) => {
                    assert!(!is_command, "{statement}");
                    assert_eq!(report.code, SqlState::NOT_SUPPORTED, "{statement}");
                }
                other => panic!("{statement}: {other:?}"),
            }
        }
    }

    #[test]
    fn names_are_unique_and_only_what_shows_is_for_stats_users() {
        let mut names: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COMMANDS.len());
        for command in COMMANDS {
            let acts = matches!(command.run, Run::Act(_));
            assert!(!acts || command.access == Access::Admin, "{}", command.name);
        }
    }
}
