//! The last refusals and closings, for the status page.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::Serialize;

use super::printable::{name, text};
use crate::app::admit::denied::Denied;
use crate::client::directory::Who;
use crate::net::listen::Peer;
use crate::policy::reaper::Reason;
use crate::recent::{Alike, Happened, Recent as Ring};

/// Kept of each kind. What repeats takes one place.
const KEPT: usize = 50;

/// Ends of sessions that are as they should be.
const NO_NEWS: [&str; 3] = ["goodbye", "client_gone", "drained"];

/// Something that happened to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Event {
    /// The word for it in log and metrics.
    reason: &'static str,
    /// Why, in the log's words.
    text: String,
    user: String,
    database: String,
    service: String,
    deployment: String,
    /// Where it came from.
    peer: String,
}

impl Alike for Event {
    fn is_like(&self, other: &Self) -> bool {
        fn key(event: &Event) -> [&str; 5] {
            let Event {
                reason,
                user,
                database,
                service,
                deployment,
                ..
            } = event;
            [reason, user, database, service, deployment]
        }
        key(self) == key(other)
    }
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
    /// Its deployment, if it has one.
    pub deployment: &'a str,
}

impl<'a> From<&'a Who> for Whom<'a> {
    fn from(who: &'a Who) -> Self {
        let Who {
            user,
            database,
            service,
            deployment,
            ..
        } = who;
        Self {
            user,
            database,
            service,
            deployment: deployment.as_deref().unwrap_or_default(),
        }
    }
}

/// The last refusals and closings, and how many there were in all. Told of by the threads that let clients in and out, which
/// is rare enough for a lock.
#[derive(Debug)]
pub struct Recent {
    refusals: Mutex<Ring<Event>>,
    closings: Mutex<Ring<Event>>,
    /// Sessions that were closed and could not expect it.
    cut_off: AtomicU64,
}

impl Default for Recent {
    fn default() -> Self {
        let [refusals, closings] = [(); 2].map(|()| Mutex::new(Ring::new(KEPT)));
        Self {
            refusals,
            closings,
            cut_off: AtomicU64::default(),
        }
    }
}

impl Recent {
    /// A client was not let in.
    pub fn refused(&self, denied: &Denied, whom: Whom<'_>, peer: &Peer) {
        let refusal = event(denied.as_str(), denied, whom, peer);
        self.refusals.lock().note(refusal);
    }

    /// A session has ended. Those that went of their own accord, or because pgweir shuts down, are not worth a line.
    pub fn ended(&self, reason: &'static str, why: &dyn Display, whom: Whom<'_>, peer: &Peer) {
        if NO_NEWS.contains(&reason) {
            return;
        }
        self.closings.lock().note(event(reason, why, whom, peer));
        if !is_leftover(reason) {
            self.cut_off.fetch_add(1, Relaxed);
        }
    }

    /// The last refusals, the latest first.
    pub(super) fn refusals(&self) -> Vec<Happened<Event>> {
        self.refusals.lock().read()
    }

    /// The same for closings.
    pub(super) fn closings(&self) -> Vec<Happened<Event>> {
        self.closings.lock().read()
    }

    /// How many refusals there were, and closings that nobody could expect.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.refusals.lock().total(), self.cut_off.load(Relaxed))
    }
}

/// Whether a session ended as what is left of a superseded deployment should: each rollout brings some.
fn is_leftover(reason: &str) -> bool {
    Reason::ALL
        .into_iter()
        .any(|known| known != Reason::PressureIdleTransaction && known.as_str() == reason)
}

fn event(reason: &'static str, why: &dyn Display, whom: Whom<'_>, peer: &Peer) -> Event {
    Event {
        reason,
        text: text(&why.to_string()),
        user: name(whom.user),
        database: name(whom.database),
        service: name(whom.service),
        deployment: name(whom.deployment),
        peer: name(&peer.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    const PEER: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1));

    #[test]
    fn what_happens_to_one_again_and_again_is_one_line() {
        let recent = Recent::default();
        for user in ["ann", "bob", "ann"] {
            let whom = Whom {
                user,
                ..Whom::default()
            };
            recent.refused(&Denied::TooSlow, whom, &PEER);
        }
        let last = recent.refusals();
        let seen: Vec<_> = last
            .iter()
            .map(|one| (&*one.what.user, one.count))
            .collect();
        assert_eq!(seen, [("ann", 2), ("bob", 1)]);
        assert_eq!(recent.totals(), (3, 0));
    }

    #[test]
    fn what_a_rollout_closes_is_told_and_is_no_alarm() {
        let recent = Recent::default();
        for reason in ["stale", "kill_stale", "pressure_idle_transaction"] {
            recent.ended(reason, &"why", Whom::default(), &PEER);
        }
        assert_eq!((recent.closings().len(), recent.totals().1), (3, 1));
    }

    #[test]
    fn who_goes_of_its_own_accord_is_no_news() {
        let recent = Recent::default();
        for reason in ["goodbye", "drained", "killed"] {
            recent.ended(reason, &"why", Whom::default(), &PEER);
        }
        let last = recent.closings();
        assert_eq!((recent.totals().1, last[0].what.reason), (1, "killed"));
    }
}
