//! All clients at once, at one of the two entrances, and somebody who counts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::client::Client;
use super::postgres::Watch;
use super::progress::Progress;
use super::services::{Login, MAX_CONNECTIONS, SERVICES, identity_of, service_of};
use super::tally::Outcome;
use super::{DemoError, Options};

/// The time between two arrivals: all in one instant would measure the length of the listening queue.
const ARRIVAL: Duration = Duration::from_micros(2500);

/// How often Postgres' connections are counted.
pub(super) const CENSUS: Duration = Duration::from_millis(50);

/// Where a crowd connects.
pub(super) struct Entrance<'a> {
    /// What the progress line calls it.
    pub(super) name: &'static str,
    /// Its port on 127.0.0.1.
    pub(super) port: u16,
    /// How the services log in.
    pub(super) logins: &'a [Login],
}

impl Entrance<'_> {
    /// Lets all clients come, stay and go.
    pub(super) async fn admit(
        &self,
        options: &Options,
        watch: &mut Watch,
        progress: &mut Progress,
    ) -> Result<Outcome, DemoError> {
        let outcome = Rc::default();
        let begun = Instant::now();
        let mut clients = self.clients(options, begun, &outcome);
        let mut census = interval(CENSUS);
        census.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = census.tick() => {
                    let seen = watch.census().await?;
                    outcome.borrow_mut().note(seen);
                    let line = || self.line(begun.elapsed(), options, &outcome.borrow(), seen.total);
                    progress.now(line)?;
                }
                ended = clients.join_next() => match ended {
                    Some(ended) => ended?,
                    None => return Ok(outcome.take()),
                }
            }
        }
    }

    fn clients(
        &self,
        options: &Options,
        begun: Instant,
        outcome: &Rc<RefCell<Outcome>>,
    ) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        let unanswered = Rc::new(Cell::new(options.clients.into()));
        let all_arrived = begun + ARRIVAL * options.clients.into();
        for place in 0..options.clients {
            let nth = usize::from(place);
            let index = service_of(nth);
            let client = Client {
                nth,
                service: &SERVICES[index],
                index,
                identity: identity_of(nth, self.logins),
                port: self.port,
                from: begun + ARRIVAL * place.into(),
                until: all_arrived + options.stay,
                outcome: Rc::clone(outcome),
                unanswered: Rc::clone(&unanswered),
            };
            clients.spawn_local(client.live());
        }
        clients
    }

    fn line(&self, elapsed: Duration, options: &Options, outcome: &Outcome, now: usize) -> String {
        format!(
            "{:6} {:5.1} s  {:4}/{} in  {:4} out  {:7} transactions  {now:3}/{MAX_CONNECTIONS} connections",
            self.name,
            elapsed.as_secs_f32(),
            outcome.sum(|tally| tally.connected),
            options.clients,
            outcome.sum(|tally| tally.shut_out),
            outcome.sum(|tally| tally.transaction.len()),
        )
    }
}
