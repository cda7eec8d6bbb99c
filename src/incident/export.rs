//! An incident as people read it: in full for the console, and as the skeleton of a post-mortem in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Cause, Foreign, Holder, Incident, Snapshot, Summary, What, time};

/// Rows of a table: enough to see who it was.
const MOST_ROWS: usize = 20;

/// The Markdown, with blanks for what only people know. `None` if the incident's beginning is lost.
pub fn markdown(incident: &Incident) -> Option<String> {
    let summary = incident.summary()?;
    let mut out = String::new();
    head(&mut out, incident, &summary);
    detection(&mut out, incident);
    impact(&mut out, incident);
    holders(&mut out, incident);
    timeline(&mut out, incident);
    done(&mut out, incident);
    out.push_str(
        "## Why it happened\n\n_To be written by people: what was changed before, and why nobody noticed._\n\n\
         ## What we change\n\n| what | who | until |\n|---|---|---|\n| | | |\n\n\
         ## Lessons\n\n* What went well:\n* What went badly:\n* Where we were lucky:\n",
    );
    Some(out)
}

/// Adds a line. Writing to a String cannot fail.
macro_rules! line {
    ($out:expr $(, $($arguments:tt)*)?) => {{
        $(let _ = write!($out, $($arguments)*);)?
        $out.push('\n');
    }};
}

fn head(out: &mut String, incident: &Incident, summary: &Summary) {
    line!(
        out,
        "# Incident {}: {}",
        summary.number,
        plain(&summary.text)
    );
    line!(out);
    line!(out, "## Summary");
    line!(out);
    line!(out, "* Began: {}", time(summary.opened));
    if let Some(closed) = summary.closed {
        let lasted = span((closed - summary.opened).max(0).unsigned_abs() / 1000);
        line!(out, "* Ended: {} (after {lasted})", time(closed));
    } else {
        line!(out, "* Ended: not yet");
    }
    let causes: Vec<_> = summary.causes.iter().map(|cause| words(*cause)).collect();
    line!(out, "* What happened: {}", causes.join("; "));
    if let Some((at, worst)) = worst(incident) {
        line!(out, "* At the worst ({}): {}", time(at), in_a_line(worst));
        if let Some(holder) = most(worst) {
            line!(out, "* Most were held by: {holder}");
        }
    }
    line!(out, "* What users noticed: _to be written by people_");
    line!(out);
}

fn detection(out: &mut String, incident: &Incident) {
    line!(out, "## Detection");
    line!(out);
    for note in &incident.notes {
        match &note.what {
            What::Opened { cause, text, .. } | What::Joined { cause, text } => {
                line!(
                    out,
                    "* {} `{}`: {}",
                    time(note.at),
                    cause.as_str(),
                    plain(text)
                );
            }
            _ => {}
        }
    }
    line!(
        out,
        "* Who was told, and when did they look: _to be written by people_"
    );
    line!(out);
}

fn impact(out: &mut String, incident: &Incident) {
    line!(out, "## Impact");
    line!(out);
    let rows = suffered(incident);
    if rows.is_empty() {
        line!(out, "No service was seen waiting, and none was refused.");
    } else {
        line!(
            out,
            "| service | refused | most waiting at once | longest wait seen |"
        );
        line!(out, "|---|---|---|---|");
        for row in rows {
            let Suffered {
                service,
                refused,
                waiting,
                longest,
            } = row;
            line!(
                out,
                "| {} | {refused} | {waiting} | {longest} ms |",
                cell(service)
            );
        }
    }
    line!(out);
}

fn holders(out: &mut String, incident: &Incident) {
    line!(out, "## Holders");
    line!(out);
    let Some((at, worst)) = worst(incident) else {
        line!(out, "No snapshot was taken.");
        line!(out);
        return;
    };
    line!(out, "As they were at {}:", time(at));
    line!(out);
    snapshot_tables(out, worst);
}

fn snapshot_tables(out: &mut String, snapshot: &Snapshot) {
    line!(
        out,
        "| service | deployment | address | state | server connections | oldest | last statement |"
    );
    line!(out, "|---|---|---|---|---|---|---|");
    for holder in snapshot.holders.iter().take(MOST_ROWS) {
        let Holder {
            service,
            deployment,
            address,
            state,
            count,
            oldest,
            statement,
        } = holder;
        let [service, deployment, address, state, statement] =
            [service, deployment, address, state, statement].map(|text| cell(text));
        let oldest = span(*oldest);
        line!(
            out,
            "| {service} | {deployment} | {address} | {state} | {count} | {oldest} | {statement} |"
        );
    }
    more(out, snapshot.holders.len());
    line!(out);
    if !snapshot.clients.is_empty() {
        line!(out, "| service | deployment | clients |");
        line!(out, "|---|---|---|");
        for clients in snapshot.clients.iter().take(MOST_ROWS) {
            line!(
                out,
                "| {} | {} | {} |",
                cell(&clients.service),
                cell(&clients.deployment),
                clients.count
            );
        }
        more(out, snapshot.clients.len());
        line!(out);
    }
    if !snapshot.transactions.is_empty() {
        line!(out, "The oldest transactions:");
        line!(out);
        line!(
            out,
            "| service | deployment | user | pid | state | age | last statement |"
        );
        line!(out, "|---|---|---|---|---|---|---|");
        for transaction in snapshot.transactions.iter().take(MOST_ROWS) {
            let [service, deployment, user, state, statement] = [
                &transaction.service,
                &transaction.deployment,
                &transaction.user,
                &transaction.state,
                &transaction.statement,
            ]
            .map(|text| cell(text));
            let (pid, age) = (transaction.pid, span(transaction.seconds));
            line!(
                out,
                "| {service} | {deployment} | {user} | {pid} | {state} | {age} | {statement} |"
            );
        }
        line!(out);
    }
    if !snapshot.foreign.is_empty() {
        line!(out, "Connected around pgweir:");
        line!(out);
        line!(
            out,
            "| application_name | user | address | state | connections | oldest |"
        );
        line!(out, "|---|---|---|---|---|---|");
        for foreign in snapshot.foreign.iter().take(MOST_ROWS) {
            let Foreign {
                application_name,
                user,
                address,
                state,
                count,
                oldest,
            } = foreign;
            let [application_name, user, address, state] =
                [application_name, user, address, state].map(|text| cell(text));
            let oldest = oldest.map_or(String::new(), span);
            line!(
                out,
                "| {application_name} | {user} | {address} | {state} | {count} | {oldest} |"
            );
        }
        more(out, snapshot.foreign.len());
        line!(out);
    }
}

fn more(out: &mut String, rows: usize) {
    if rows > MOST_ROWS {
        line!(out);
        line!(out, "and {} more.", rows - MOST_ROWS);
    }
}

fn timeline(out: &mut String, incident: &Incident) {
    line!(out, "## Timeline");
    line!(out);
    line!(out, "| time (UTC) | what |");
    line!(out, "|---|---|");
    for (at, text) in story(incident) {
        line!(out, "| {} | {} |", time(at), cell(&text));
    }
    line!(out);
}

fn done(out: &mut String, incident: &Incident) {
    line!(out, "## What was done about it");
    line!(out);
    for note in &incident.notes {
        if let What::Done { text } = &note.what {
            line!(out, "* {} {}", time(note.at), plain(text));
        }
    }
    line!(out, "* By people: _to be written by people_");
    line!(out);
}

/// What happened, in its order: times in milliseconds since 1970, and sentences.
pub fn story(incident: &Incident) -> Vec<(i64, String)> {
    let told = incident.notes.iter().map(|note| {
        let text = match &note.what {
            What::Opened { text, pgweir, .. } => format!("It began, as {pgweir} saw it: {text}"),
            What::Joined { text, .. } | What::Passed { text, .. } | What::Done { text } => {
                text.clone()
            }
            What::Stood(snapshot) => in_a_line(snapshot),
            What::Full => "No more snapshots are kept of this incident".to_owned(),
            What::Closed { text } => format!("It ended: {text}"),
        };
        (note.at, text)
    });
    let mut story: Vec<(i64, String)> = told.collect();
    // Most snapshots of a long incident say the same.
    story.dedup_by(|later, earlier| later.1 == earlier.1);
    story
}

/// What an incident did to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suffered<'a> {
    /// The service.
    pub service: &'a str,
    /// Clients that were told that there is no server connection for them.
    pub refused: u64,
    /// The most that waited at once.
    pub waiting: u64,
    /// The longest wait that was seen, in milliseconds.
    pub longest: u64,
}

/// What an incident did to each service, by their names.
pub fn suffered(incident: &Incident) -> Vec<Suffered<'_>> {
    let mut rows: BTreeMap<&str, Suffered<'_>> = BTreeMap::new();
    for (_, snapshot) in incident.snapshots() {
        let harm = snapshot.harm.iter().map(|harm| Suffered {
            service: &harm.service,
            refused: harm.refused,
            waiting: harm.waiting,
            longest: 0,
        });
        let queue = snapshot.queue.iter().map(|queue| Suffered {
            service: &queue.service,
            refused: 0,
            waiting: queue.waiting.into(),
            longest: queue.longest,
        });
        for seen in harm.chain(queue) {
            let row = rows.entry(seen.service).or_insert(seen);
            row.refused = seen.refused.max(row.refused);
            row.waiting = seen.waiting.max(row.waiting);
            row.longest = seen.longest.max(row.longest);
        }
    }
    rows.into_values().collect()
}

/// What a cause is in words.
pub fn words(cause: Cause) -> &'static str {
    match cause {
        Cause::ServiceServers => "a service had more server connections than its alert",
        Cause::ServiceClients => "a service had more clients than its alert",
        Cause::TotalServers => "there were more server connections in all than the alert",
        Cause::Headroom => "Postgres had few connections left",
        Cause::Waiters => "the budget was spent and clients waited",
        Cause::LoginFailures => "many logins failed",
        Cause::Unreachable => "Postgres could not be reached",
        Cause::TooManyConnections => "Postgres refused connections (53300)",
    }
}

/// The snapshot in which the most waited, and among those the one in which the most was held.
pub fn worst(incident: &Incident) -> Option<(i64, &Snapshot)> {
    let weight = |snapshot: &Snapshot| {
        let waiting: u32 = snapshot.queue.iter().map(|queue| queue.waiting).sum();
        let held: u32 = snapshot.postgres.iter().map(|ground| ground.held).sum();
        (waiting, held)
    };
    // Of those that are alike, the first: it is nearest to the cause.
    incident
        .snapshots()
        .rev()
        .max_by_key(|(_, snapshot)| weight(snapshot))
}

/// Who held the most, by service and deployment.
fn most(snapshot: &Snapshot) -> Option<String> {
    let mut sums: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for holder in &snapshot.holders {
        *sums
            .entry((&holder.service, &holder.deployment))
            .or_default() += holder.count;
    }
    let ((service, deployment), count) = sums.into_iter().max_by_key(|(_, count)| *count)?;
    Some(match deployment {
        "" => format!("service `{}`: {count}", plain(service)),
        _ => format!(
            "service `{}`, deployment `{}`: {count}",
            plain(service),
            plain(deployment)
        ),
    })
}

/// How things stood, in a sentence.
pub fn in_a_line(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for ground in &snapshot.postgres {
        let _ = write!(out, "{}: pgweir has {}", ground.name, ground.held);
        if let Some(budget) = ground.budget {
            let _ = write!(out, " of {budget}");
        }
        if let Some(others) = ground.others {
            let _ = write!(out, ", others {others}");
        }
        if let (Some(free), Some(max)) = (ground.free, ground.max_connections) {
            let _ = write!(out, ", free {free} of {max}");
        }
        if let Some(trouble) = &ground.trouble {
            let _ = write!(out, " ({trouble})");
        }
        out.push_str("; ");
    }
    let waiting: u32 = snapshot.queue.iter().map(|queue| queue.waiting).sum();
    let longest = snapshot.queue.iter().map(|queue| queue.longest).max();
    match longest {
        Some(longest) if waiting > 0 => {
            let _ = write!(out, "{waiting} clients wait, the first for {longest} ms");
        }
        _ => out.push_str("nobody waits"),
    }
    out
}

/// Seconds as people say them.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A text that came from clients, on one line.
fn plain(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

/// The same within a table, and without what Markdown would take for its own.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for char in plain(text).chars() {
        if matches!(char, '|' | '\\' | '`' | '*' | '_' | '<' | '[') {
            out.push('\\');
        }
        out.push(char);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Clients, Ground, Harm, Note, Queue, Transaction};
    use super::*;

    fn incident() -> Incident {
        let snapshot = |held: u32, waiting: u32| {
            What::Stood(Box::new(Snapshot {
                postgres: vec![Ground {
                    name: "db:5432".into(),
                    max_connections: Some(100),
                    budget: Some(90),
                    held,
                    others: Some(3),
                    free: Some(7),
                    trouble: None,
                }],
                holders: vec![
                    Holder {
                        service: "site".into(),
                        deployment: "v41".into(),
                        address: "10.0.0.7".into(),
                        state: "idle in transaction".into(),
                        count: 57,
                        oldest: 3720,
                        statement: "select * from t where a = ?".into(),
                    },
                    Holder {
                        service: "a|b".into(),
                        count: 2,
                        ..Holder::default()
                    },
                ],
                clients: vec![Clients {
                    service: "site".into(),
                    deployment: "v41".into(),
                    count: 57,
                }],
                transactions: vec![Transaction {
                    service: "site".into(),
                    pid: 4711,
                    seconds: 3720,
                    ..Transaction::default()
                }],
                queue: vec![Queue {
                    service: "bot".into(),
                    waiting,
                    longest: 2500,
                }],
                harm: vec![Harm {
                    service: "bot".into(),
                    refused: 4,
                    waiting: 9,
                }],
                foreign: vec![Foreign {
                    application_name: "psql".into(),
                    count: 3,
                    ..Foreign::default()
                }],
            }))
        };
        let note = |at: i64, what| Note {
            at: 1_772_371_440_000 + at,
            what,
        };
        Incident {
            notes: vec![
                note(
                    0,
                    What::Opened {
                        number: 7,
                        cause: Cause::ServiceServers,
                        text: "service site has 57 server connections".into(),
                        pgweir: "pgweir".into(),
                    },
                ),
                note(1000, snapshot(60, 0)),
                note(
                    5000,
                    What::Joined {
                        cause: Cause::Waiters,
                        text: "the budget is spent".into(),
                    },
                ),
                note(6000, snapshot(90, 9)),
                note(
                    7000,
                    What::Done {
                        text: "closed 20 idle sessions".into(),
                    },
                ),
                note(
                    65_000,
                    What::Closed {
                        text: "nothing was found any more".into(),
                    },
                ),
            ],
        }
    }

    #[test]
    fn an_export_tells_the_story() {
        let text = markdown(&incident()).unwrap();
        for part in [
            "# Incident 7: service site has 57 server connections",
            "## Summary",
            "* Began: 2026-03-01T13:24:00Z",
            "(after 1 min 5 s)",
            "* At the worst (2026-03-01T13:24:06Z): db:5432: pgweir has 90 of 90, others 3, free 7 of 100; 9 clients wait",
            "* Most were held by: service `site`, deployment `v41`: 57",
            "## Detection",
            "`service_servers`: service site has",
            "`waiters`: the budget is spent",
            "## Impact",
            "| bot | 4 | 9 | 2500 ms |",
            "## Holders",
            "| site | v41 | 10.0.0.7 | idle in transaction | 57 | 1 h 2 min | select \\* from t where a = ? |",
            "| a\\|b |",
            "| psql |",
            "## Timeline",
            "## What was done about it",
            "closed 20 idle sessions",
            "to be written by people",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(text.ends_with('\n') && !text.contains("\n\n\n"));
    }

    #[test]
    fn texts_of_clients_stay_in_their_place() {
        let mut incident = incident();
        if let What::Opened { text, .. } = &mut incident.notes[0].what {
            "x\n## Forged\n| y |".clone_into(text);
        }
        let text = markdown(&incident).unwrap();
        assert!(!text.contains("\n## Forged"), "{text}");
    }

    #[test]
    fn an_incident_without_its_beginning_is_none() {
        let mut incident = incident();
        incident.notes.remove(0);
        assert_eq!(markdown(&incident), None);
        assert_eq!(markdown(&Incident::default()), None);
    }
}
