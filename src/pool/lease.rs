//! A server connection on loan, and a place in the queue for one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::book::{ServerId, ThreadId, WaiterId};
use super::errand::{Discard, Errand, Task};
use super::pools::{Granted, Pool, Refused};
use crate::metrics::{Stint, in_micros};
use crate::server::connection::Connection;
use crate::server::end::Settled;

/// A server connection on loan. Dropped, it is brought back to order or closed: it may be in mid-reply.
#[must_use = "a lease that is dropped costs its server connection a cancel and a rollback"]
#[derive(Debug)]
pub struct Lease {
    connection: Option<Box<Connection>>,
    server: ServerId,
    thread: ThreadId,
    pool: Arc<Pool>,
}

impl Lease {
    /// Takes over what was granted. `None`: it turned out to be dead and is being closed.
    pub(super) fn begin(pool: &Arc<Pool>, thread: ThreadId, granted: Granted) -> Option<Self> {
        let Granted {
            server,
            connection,
            moves,
            at,
        } = granted;
        let mut lease = Self {
            connection: Some(connection),
            server,
            thread,
            pool: Arc::clone(pool),
        };
        lease.connection().lent = at;
        // Before it moves: its old reactor may not have noticed yet that Postgres has said something, a new one even less.
        let fit = if moves {
            lease.connection().end.stream().is_quiet()
        } else {
            lease.connection().is_fit()
        };
        if fit {
            if moves {
                lease.settle_in()?;
            }
            return Some(lease);
        }
        lease.discard(Discard::Died);
        None
    }

    /// Registers the socket with this thread's reactor.
    fn settle_in(&mut self) -> Option<()> {
        let connection = self
            .connection
            .take()
            .expect("a lease has its connection until it ends");
        match connection
            .unregister()
            .and_then(crate::server::connection::Moving::register)
        {
            Ok(connection) => self.connection = Some(Box::new(connection)),
            Err(error) => {
                // The socket is closed already; Postgres frees the slot when it notices, which is at once.
                tracing::warn!(%error, reason = Discard::MoveFailed.as_str(), "server connection lost");
                self.pool.lost(self.server, Discard::MoveFailed);
                return None;
            }
        }
        Some(())
    }

    /// The connection.
    pub fn connection(&mut self) -> &mut Connection {
        self.connection
            .as_mut()
            .expect("a lease has its connection until it ends")
    }

    /// Gives the connection back for the next client.
    pub fn release(mut self, _proof: Settled) {
        if self.pool.is_for_one() || self.connection().is_being_canceled() {
            return;
        }
        if let Some(mut connection) = self.connection.take() {
            connection.is_left();
            let mut stint = std::mem::take(&mut connection.stint);
            let now = self.pool.put_back(self.server, connection);
            stint.end(in_micros(now), self.pool.traffic(self.thread));
        }
    }

    /// A transaction has ended, and the connection is kept.
    pub fn lap(&mut self) {
        let now = in_micros(self.pool.now());
        let traffic = self.pool.traffic(self.thread);
        if let Some(connection) = &mut self.connection {
            connection.stint.end(now, traffic);
        }
    }

    /// Gives the connection back after `server_reset_query` made it as new.
    pub fn reset(mut self, _proof: Settled) {
        // Dropped, it is made as new once the cancel is over: that must not hit the reset, nor the next client's query.
        if self.pool.is_for_one() || self.connection().is_being_canceled() {
            return;
        }
        self.lap();
        self.hand_over(Task::Reset);
    }

    /// Whether it was unused for so long that Postgres is to be asked first whether it is still there.
    pub fn wants_check(&mut self) -> bool {
        let connection = self.connection();
        let unused = connection.lent.saturating_sub(connection.rested);
        self.pool.wants_check(unused)
    }

    /// Has Postgres asked whether it is still there.
    pub fn check(mut self) -> Checking {
        let (to, answer) = oneshot::channel();
        self.hand_over(|connection| Task::Check(connection, to));
        let lease = Some(self);
        Checking { lease, answer }
    }

    /// Cancels what the connection runs. It is not lent to anybody else before that cancel is over.
    /// `cancelers` are dropped when that was passed on.
    pub fn cancel(&mut self, cancelers: Vec<oneshot::Sender<()>>) {
        let way = self.pool.cancel_way();
        self.connection().cancel(way, cancelers);
    }

    /// Closes the connection.
    pub fn discard(mut self, reason: Discard) {
        self.close(reason);
    }

    fn close(&mut self, reason: Discard) {
        if let Some(mut connection) = self.connection.take() {
            connection.is_left();
            self.pool
                .discard(self.server, connection, self.thread, reason);
        }
    }

    fn hand_over(&mut self, task: impl FnOnce(Box<Connection>) -> Task) {
        if let Some(mut connection) = self.connection.take() {
            connection.is_left();
            connection.stint = Stint::default();
            let (pool, thread, server) = (Arc::clone(&self.pool), self.thread, self.server);
            self.pool.send(Errand {
                pool,
                thread,
                server,
                task: task(connection),
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.pool.is_for_one() {
            self.close(Discard::Replication);
        }
        self.hand_over(Task::Recover);
    }
}

/// A server connection on loan over which Postgres is being asked whether it is still there. Dropped, it goes back.
#[derive(Debug)]
pub struct Checking {
    /// Without its connection.
    lease: Option<Lease>,
    answer: oneshot::Receiver<Box<Connection>>,
}

impl Checking {
    /// What came of it; `None`: it is being closed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Lease>> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        let lease = answer
            .ok()
            .zip(self.lease.take())
            .map(|(mut connection, mut lease)| {
                connection.lent = in_micros(lease.pool.now());
                lease.connection = Some(connection);
                lease
            });
        Poll::Ready(lease)
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        // From here on it is given back where it is asked.
        self.answer.close();
        if let (Ok(connection), Some(lease)) = (self.answer.try_recv(), &self.lease) {
            lease.pool.put_back(lease.server, connection);
        }
    }
}

/// A place in the queue. Dropped, it is given up.
#[derive(Debug)]
pub struct Ticket {
    waiter: Option<WaiterId>,
    thread: ThreadId,
    pool: Arc<Pool>,
}

/// What came of waiting.
#[derive(Debug)]
pub enum Called {
    /// A server connection.
    Lease(Lease),
    /// It died before it could be used: ask again.
    Again,
    /// None will come.
    Refused(Refused),
}

impl Ticket {
    pub(super) fn new(pool: &Arc<Pool>, thread: ThreadId, waiter: WaiterId) -> Self {
        Self {
            waiter: Some(waiter),
            thread,
            pool: Arc::clone(pool),
        }
    }

    /// What came of it. Pending: the waker given to `ask` will be woken.
    pub fn poll(&mut self) -> Poll<Called> {
        let Some(waiter) = self.waiter else {
            return Poll::Ready(Called::Again);
        };
        let Some(outcome) = self.pool.inquire(waiter, self.thread) else {
            return Poll::Pending;
        };
        self.waiter = None;
        Poll::Ready(match outcome {
            Ok(granted) => {
                Lease::begin(&self.pool, self.thread, granted).map_or(Called::Again, Called::Lease)
            }
            Err(refused) => Called::Refused(refused),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.pool.leave(waiter, self.thread);
        }
    }
}
