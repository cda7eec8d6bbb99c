//! One client: it wants a session, holds it as applications do, and runs short transactions over it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::postgres::{connect, is_refusal};
use super::services::Service;
use super::tally::{Outcome, Tally};
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::server::login::{Identity, LoginError, ask};
use crate::wire::reply::TERMINATE;

/// How long a client that was refused waits before it tries again, on average; each time as much longer. Shorter, and the refused
/// ones would slow down those who have a session: Postgres starts a process for each try.
const RETRY: Duration = Duration::from_secs(2);

/// Nobody tries again later than this before the others leave.
const TOO_LATE: Duration = Duration::from_secs(1);

/// The longest that a login or a transaction may take. Nothing in the demo comes near it unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that has not arrived yet.
pub(super) struct Client {
    /// Its number, by which it knows its own answers again.
    pub(super) nth: usize,
    pub(super) service: &'static Service,
    /// The place of its service in an [`Outcome`].
    pub(super) index: usize,
    pub(super) identity: Identity,
    /// Where it connects.
    pub(super) port: u16,
    /// When it arrives, and when it leaves.
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) outcome: Rc<RefCell<Outcome>>,
    /// How many clients of the crowd have not been answered once. Nobody leaves before that: who gets in because others leave
    /// was shut out all the same.
    pub(super) unanswered: Rc<Cell<usize>>,
}

/// Why a client's session ended early.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Session(#[from] LoginError),
    #[error("no answer within {PATIENCE:?}")]
    Hangs(#[from] tokio::time::error::Elapsed),
    #[error("another answer than its own: {0:?}")]
    Foreign(Option<String>),
}

impl Client {
    /// Its life, from arrival to goodbye.
    pub(super) async fn live(self) {
        sleep_until(self.from).await;
        self.note(|tally| tally.clients += 1);
        if let Err(trouble) = self.hold_a_session().await {
            self.note(|tally| tally.fail(format!("{}: {trouble}", self.identity.application_name)));
        }
    }

    /// Notes something. Never held over an `await`.
    fn note(&self, what: impl FnOnce(&mut Tally)) {
        what(&mut self.outcome.borrow_mut().services[self.index]);
    }

    async fn hold_a_session(&self) -> Result<(), Trouble> {
        let Some(mut session) = self.enter().await? else {
            return Ok(());
        };
        loop {
            self.transact(&mut session).await?;
            sleep(about(self.service.think)).await;
            if Instant::now() >= self.until && self.unanswered.get() == 0 {
                break;
            }
        }
        Ok(session.write(&TERMINATE).await.map_err(LoginError::Io)?)
    }

    /// Tries to log in until it works or there is no point any more.
    async fn enter(&self) -> Result<Option<Packets<Stream>>, Trouble> {
        let mut refused = 0u32;
        loop {
            let begun = Instant::now();
            let tried = timeout(PATIENCE, connect(self.port, &self.identity)).await;
            if refused == 0 {
                self.unanswered.update(|others| others - 1);
            }
            match tried? {
                Ok(session) => {
                    self.note(|tally| {
                        tally.connected += 1;
                        tally.shut_out -= usize::from(refused > 0);
                        tally.login.push(begun.elapsed());
                    });
                    return Ok(Some(session));
                }
                Err(error) if is_refusal(&error) => {
                    self.note(|tally| {
                        tally.refusals += 1;
                        tally.shut_out += usize::from(refused == 0);
                    });
                    refused += 1;
                }
                Err(error) => return Err(error.into()),
            }
            let next = Instant::now() + about(RETRY * refused);
            if next + TOO_LATE > self.until {
                return Ok(None);
            }
            sleep_until(next).await;
        }
    }

    async fn transact(&self, session: &mut Packets<Stream>) -> Result<(), Trouble> {
        let me = format!("{} {}", self.nth, rand::random::<u32>());
        let work = self.service.work.as_secs_f64();
        let begun = Instant::now();
        timeout(PATIENCE, ask(session, "BEGIN")).await??;
        let wait = begun.elapsed();
        let work = format!("SELECT '{me}', pg_sleep({work})");
        let answer = timeout(PATIENCE, ask(session, &work)).await??;
        if answer.as_ref() != Some(&me) {
            return Err(Trouble::Foreign(answer));
        }
        timeout(PATIENCE, ask(session, "COMMIT")).await??;
        self.note(|tally| {
            tally.wait.push(wait);
            tally.transaction.push(begun.elapsed());
        });
        Ok(())
    }
}

/// Something around it, so that clients do not march in step.
fn about(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.5..1.5))
}
