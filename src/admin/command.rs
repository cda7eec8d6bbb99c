//! What the console can do: one table, from which dispatch, permission, `SHOW HELP` and `docs/console.md` are made.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use super::deployments;
use super::process::{Access, Process};
use super::show;
use super::table::{Column, Row, Table, boolean, int4, int8, text, time};
use super::words::{self, Unfinished, Word};
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
    Command {
        name: "SHOW VERSION",
        takes: &[],
        access: Access::Stats,
        help: "the version",
        run: Run::Show {
            columns: &[text("version")],
            rows: show::version,
        },
    },
    Command {
        name: "SHOW STATE",
        takes: &[],
        access: Access::Stats,
        help: "whether clients are served, paused or suspended",
        run: Run::Show {
            columns: &[text("key"), text("value")],
            rows: show::state,
        },
    },
    Command {
        name: "SHOW CONFIG",
        takes: &[],
        access: Access::Stats,
        help: "every setting with its value in force, without secrets",
        run: Run::Show {
            columns: &[
                text("key"),
                text("value"),
                text("default"),
                text("changeable"),
            ],
            rows: show::config,
        },
    },
    Command {
        name: "SHOW DATABASES",
        takes: &[],
        access: Access::Stats,
        help: "one row for each database",
        run: Run::Show {
            columns: &[
                text("name"),
                text("host"),
                int4("port"),
                text("database"),
                text("force_user"),
                int4("pool_size"),
                int4("min_pool_size"),
                int4("reserve_pool_size"),
                int4("server_lifetime"),
                text("pool_mode"),
                text("load_balance_hosts"),
                int4("max_connections"),
                int4("current_connections"),
                int4("max_client_connections"),
                int4("current_client_connections"),
                int4("paused"),
                int4("disabled"),
            ],
            rows: show::databases,
        },
    },
    Command {
        name: "SHOW USERS",
        takes: &[],
        access: Access::Stats,
        help: "one row for each user",
        run: Run::Show {
            columns: &[
                text("name"),
                text("pool_size"),
                text("reserve_pool_size"),
                text("pool_mode"),
                int4("max_user_connections"),
                int4("current_connections"),
                int4("max_user_client_connections"),
                int4("current_client_connections"),
            ],
            rows: show::users,
        },
    },
    Command {
        name: "SHOW LISTS",
        takes: &[],
        access: Access::Stats,
        help: "how many there are of what",
        run: Run::Show {
            columns: &[text("list"), int4("items")],
            rows: show::lists,
        },
    },
    Command {
        name: "SHOW POOLS",
        takes: &[],
        access: Access::Stats,
        help: "one row for each pool",
        run: Run::Show {
            columns: &[
                text("database"),
                text("user"),
                int4("cl_active"),
                int4("cl_waiting"),
                int4("cl_active_cancel_req"),
                int4("cl_waiting_cancel_req"),
                int4("sv_active"),
                int4("sv_active_cancel"),
                int4("sv_being_canceled"),
                int4("sv_idle"),
                int4("sv_used"),
                int4("sv_tested"),
                int4("sv_login"),
                int4("maxwait"),
                int4("maxwait_us"),
                text("pool_mode"),
                text("load_balance_hosts"),
            ],
            rows: show::pools,
        },
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
        let found = COMMANDS
            .iter()
            .filter_map(|command| Some((command, command.begins(&words)?)))
            .max_by_key(|(_, count)| *count);
        let (command, count) = found.ok_or_else(|| invalid(statement))?;
        let arguments = arguments(command, &words[count..]);
        if command.accepts(arguments.len()) {
            Ok(Self::Command(command, arguments))
        } else {
            let usage = format!("Usage: {};", command.usage());
            Err(Report::new(SqlState::PROTOCOL_VIOLATION, "bad arguments").hint(usage))
        }
    }

    /// The least that its sender must be allowed.
    pub fn access(&self) -> Access {
        match self {
            Self::Empty | Self::Begin | Self::End(_) => Access::Stats,
            Self::Command(command, _) => command.access,
        }
    }

    /// The columns that it answers with, if it does.
    pub fn columns(&self) -> Option<&[Column]> {
        match self {
            Self::Command(command, _) => match command.run {
                Run::Show { columns, .. } => Some(columns),
                Run::Tell(_) | Run::Act(_) => None,
            },
            Self::Empty | Self::Begin | Self::End(_) => None,
        }
    }

    /// How many parameters it has.
    pub fn parameters(&self) -> u16 {
        match self {
            Self::Command(_, arguments) => {
                let numbers = arguments.iter().map(|argument| match argument {
                    Argument::Parameter(number) => *number,
                    Argument::Text(_) => 0,
                });
                numbers.max().unwrap_or(0)
            }
            Self::Empty | Self::Begin | Self::End(_) => 0,
        }
    }
}

/// The begin or the end of a transaction.
fn transaction(words: &[Word]) -> Option<Plan> {
    let first = words.first()?;
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
