//! The last refusals and closings, for the status page.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::printable::{name, text};
use crate::app::admit::denied::Denied;
use crate::client::directory::Who;
use crate::net::listen::Peer;

/// Kept of each kind. What repeats takes one place.
const KEPT: usize = 50;

/// Ends of sessions that are as they should be.
const NO_NEWS: [&str; 3] = ["goodbye", "client_gone", "drained"];

/// Something that happened to one client, or to several alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Happening {
    /// When it happened last, in milliseconds of the Unix epoch.
    at: u64,
    /// The word for it in log and metrics.
    reason: &'static str,
    /// Why, in the log's words.
    text: String,
    user: String,
    database: String,
    service: String,
    /// Where the last one came from.
    peer: String,
    /// How often it happened on end.
    count: u64,
}

/// Whom something happened to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Whom<'a> {
    /// As the client named itself.
    pub user: &'a str,
    /// As the client called it.
    pub database: &'a str,
    /// The application, if that was known.
    pub service: &'a str,
}

impl<'a> From<&'a Who> for Whom<'a> {
    fn from(who: &'a Who) -> Self {
        let Who {
            user,
            database,
            service,
            ..
        } = who;
        Self {
            user,
            database,
            service,
        }
    }
}

/// The last refusals and closings, and how many there were in all. Told of by the threads that let clients in and out, which
/// is rare enough for a lock.
#[derive(Debug, Default)]
pub struct Recent {
    refusals: Mutex<Ring>,
    closings: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The latest first.
    kept: VecDeque<Happening>,
    total: u64,
}

impl Recent {
    /// A client was not let in.
    pub fn refused(&self, denied: &Denied, whom: Whom<'_>, peer: &Peer) {
        let refusal = new(denied.as_str(), denied, whom, peer);
        self.refusals.lock().note(refusal);
    }

    /// A session has ended. Those that went of their own accord, or because pgweir shuts down, are not worth a line.
    pub fn ended(&self, reason: &'static str, why: &dyn Display, whom: Whom<'_>, peer: &Peer) {
        if !NO_NEWS.contains(&reason) {
            self.closings.lock().note(new(reason, why, whom, peer));
        }
    }

    /// The last refusals, the latest first, and how many there were.
    pub(super) fn refusals(&self) -> (Vec<Happening>, u64) {
        self.refusals.lock().read()
    }

    /// The same for closings.
    pub(super) fn closings(&self) -> (Vec<Happening>, u64) {
        self.closings.lock().read()
    }

    /// How many refusals and closings there were.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.refusals.lock().total, self.closings.lock().total)
    }
}

fn new(reason: &'static str, why: &dyn Display, whom: Whom<'_>, peer: &Peer) -> Happening {
    Happening {
        at: super::milliseconds(SystemTime::now()),
        reason,
        text: text(&why.to_string()),
        user: name(whom.user),
        database: name(whom.database),
        service: name(whom.service),
        peer: name(&peer.to_string()),
        count: 1,
    }
}

impl Ring {
    fn note(&mut self, mut happening: Happening) {
        self.total += 1;
        let alike = |known: &Happening| {
            (known.reason, &known.user, &known.database, &known.service)
                == (
                    happening.reason,
                    &happening.user,
                    &happening.database,
                    &happening.service,
                )
        };
        // A flood of one kind pushes nothing else out.
        let known = self.kept.iter().position(alike);
        if let Some(known) = known.and_then(|at| self.kept.remove(at)) {
            happening.count += known.count;
        }
        self.kept.truncate(KEPT - 1);
        self.kept.push_front(happening);
    }

    fn read(&self) -> (Vec<Happening>, u64) {
        (self.kept.iter().cloned().collect(), self.total)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    const PEER: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1));

    fn refuse(recent: &Recent, user: &str) {
        let whom = Whom {
            user,
            ..Whom::default()
        };
        recent.refused(&Denied::TooSlow, whom, &PEER);
    }

    #[test]
    fn what_repeats_is_counted_in_one_place_and_comes_first() {
        let recent = Recent::default();
        refuse(&recent, "ann");
        for _ in 0..1000 {
            refuse(&recent, "bob");
        }
        refuse(&recent, "ann");
        let (last, total) = recent.refusals();
        let seen: Vec<_> = last.iter().map(|one| (&*one.user, one.count)).collect();
        assert_eq!(seen, [("ann", 2), ("bob", 1000)]);
        assert_eq!((total, recent.totals()), (1002, (1002, 0)));
    }

    #[test]
    fn only_so_many_are_kept() {
        let recent = Recent::default();
        for n in 0..10_000 {
            refuse(&recent, &format!("user {n}"));
        }
        let (last, total) = recent.refusals();
        assert_eq!((last.len(), total), (KEPT, 10_000));
        assert_eq!(last[0].user, "user 9999");
        assert_eq!(last[KEPT - 1].user, format!("user {}", 10_000 - KEPT));
    }

    #[test]
    fn who_goes_of_its_own_accord_is_no_news() {
        let recent = Recent::default();
        for reason in ["goodbye", "drained", "killed"] {
            recent.ended(reason, &"why", Whom::default(), &PEER);
        }
        let (last, total) = recent.closings();
        assert_eq!((total, last[0].reason), (1, "killed"));
    }
}
