//! One incident as the status page tells it: what happened in its order, whom it hurt, and who held what at its worst.
//!
//! The facts are those of `incident::export`. Texts in them come from clients and files: each is made fit to be shown, and of
//! everything only so much comes.

use serde::Serialize;

use super::feed::Rows;
use super::printable::{line, name, text};
use super::read::{self, epoch};
use crate::incident::export::{in_a_line, story, suffered, words, worst};
use crate::incident::{Clients, Foreign, Holder, Incident, Snapshot, Transaction};

/// Lines of the story: the first and the last ones, because the beginning tells most.
const MOST_FIRST: usize = 50;
const MOST_LAST: usize = 150;

/// All that is shown of it.
#[derive(Debug, Serialize)]
pub(super) struct Story {
    #[serde(flatten)]
    summary: super::feed::Incident,
    /// What it was about, in words.
    about: Vec<&'static str>,
    timeline: Timeline,
    hurt: Rows<Hurt>,
    /// `None`: no snapshot was taken.
    worst: Option<Worst>,
}

#[derive(Debug, Serialize)]
struct Timeline {
    first: Vec<Moment>,
    left_off: usize,
    last: Vec<Moment>,
}

#[derive(Debug, Serialize)]
struct Moment {
    at: u64,
    text: String,
}

#[derive(Debug, Serialize)]
struct Hurt {
    service: String,
    refused: u64,
    waiting: u64,
    longest_wait_ms: u64,
}

/// How things stood at the worst moment.
#[derive(Debug, Serialize)]
struct Worst {
    at: u64,
    text: String,
    holders: Rows<Holder>,
    clients: Rows<Clients>,
    transactions: Rows<Transaction>,
    foreign: Rows<Foreign>,
}

/// `None`: the incident's beginning is lost.
pub(super) fn tell(incident: &Incident) -> Option<Story> {
    let summary = incident.summary()?;
    let hurt = suffered(incident).into_iter().map(|row| Hurt {
        service: name(row.service),
        refused: row.refused,
        waiting: row.waiting,
        longest_wait_ms: row.longest,
    });
    Some(Story {
        about: summary.causes.iter().copied().map(words).collect(),
        summary: read::incident(&summary),
        timeline: Timeline::of(story(incident)),
        hurt: Rows::first(hurt.collect()),
        worst: worst(incident).map(|(at, snapshot)| Worst::of(at, snapshot)),
    })
}

impl Timeline {
    fn of(mut story: Vec<(i64, String)>) -> Self {
        let moment = |(at, text): (i64, String)| Moment {
            at: epoch(at),
            text: line(&text),
        };
        let last = story.split_off(story.len().min(MOST_FIRST));
        let left_off = last.len().saturating_sub(MOST_LAST);
        Self {
            first: story.into_iter().map(moment).collect(),
            left_off,
            last: last.into_iter().skip(left_off).map(moment).collect(),
        }
    }
}

impl Worst {
    fn of(at: i64, snapshot: &Snapshot) -> Self {
        let Snapshot {
            holders,
            clients,
            transactions,
            foreign,
            ..
        } = snapshot.clone();
        Self {
            at: epoch(at),
            text: line(&in_a_line(snapshot)),
            holders: Rows::first(holders).map(|row| Holder {
                service: name(&row.service),
                deployment: name(&row.deployment),
                address: name(&row.address),
                state: name(&row.state),
                statement: text(&row.statement),
                ..row
            }),
            clients: Rows::first(clients).map(|row| Clients {
                service: name(&row.service),
                deployment: name(&row.deployment),
                ..row
            }),
            transactions: Rows::first(transactions).map(|row| Transaction {
                service: name(&row.service),
                deployment: name(&row.deployment),
                user: name(&row.user),
                state: name(&row.state),
                statement: text(&row.statement),
                ..row
            }),
            foreign: Rows::first(foreign).map(|row| Foreign {
                application_name: name(&row.application_name),
                user: name(&row.user),
                address: name(&row.address),
                state: name(&row.state),
                ..row
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Cause, Note, What};

    fn long() -> Incident {
        let opened = What::Opened {
            number: 7,
            cause: Cause::Headroom,
            text: "x\u{202e}".repeat(5000),
            pgweir: "pgweir".to_owned(),
        };
        let deeds = (0..1000).map(|n| What::Done {
            text: format!("deed {n}"),
        });
        let row = Holder {
            service: "<b>".repeat(1000),
            count: 3,
            ..Holder::default()
        };
        let snapshot = What::Stood(Box::new(Snapshot {
            holders: vec![row; 5000],
            ..Snapshot::default()
        }));
        let whats = [opened].into_iter().chain(deeds).chain([snapshot]);
        Incident {
            notes: whats.map(|what| Note { at: 5, what }).collect(),
        }
    }

    #[test]
    fn of_a_long_story_the_beginning_and_the_end_are_told() {
        let story = tell(&long()).unwrap();
        let Timeline {
            first,
            left_off,
            last,
        } = story.timeline;
        assert_eq!((first.len(), last.len()), (MOST_FIRST, MOST_LAST));
        assert_eq!(first.len() + left_off + last.len(), 1002);
        assert!(first[0].text.starts_with("It began") && first[1].text == "deed 0");
        assert!(last[MOST_LAST - 2].text == "deed 999");
    }

    #[test]
    fn whatever_was_recorded_the_answer_is_bounded_and_tame() {
        let text = serde_json::to_string(&tell(&long()).unwrap()).unwrap();
        assert!(text.len() < 100_000, "{}", text.len());
        assert!(!text.contains('\u{202e}'), "{text}");
    }

    #[test]
    fn an_incident_without_its_beginning_is_not_told() {
        assert!(tell(&Incident::default()).is_none());
    }
}
