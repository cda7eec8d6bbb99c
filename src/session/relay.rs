//! The bytes of one lease: both directions in one poll, until the exchange is settled.
//!
//! The relay moves bytes and decides nothing. Headers are looked at in the scratch buffer, and everything is written
//! from that same buffer.

use std::cell::RefCell;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::translate::{Tracking, Translator, in_clients_words, reset_parameter};
use crate::client::end::{Behind, ClientEnd, Forward, Take};
use crate::client::statements::TooMany;
use crate::metrics::{Counts, Stint, Traffic, in_micros};
use crate::net::end::EndError;
use crate::server::end::{ServerEnd, Settled};
use crate::wire::WireError;
use crate::wire::edit::Edit;
use crate::wire::reply::ServerError;
use crate::wire::scan::Seen;

/// Bytes that a client has not taken beyond which nothing more is read of it. Postgres would read nothing as soon as it is stuck.
const MOST_UNWRITTEN: usize = 128 * 1024;

/// Flush.
const FLUSH: [u8; 5] = [b'H', 0, 0, 0, 4];

/// Full buffers moved in one poll before others get their turn.
const TURNS: u32 = 8;

/// Why a relay ended without being settled.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The client said goodbye.
    #[error("client said goodbye")]
    Goodbye,
    /// The client's socket closed or failed.
    #[error("client went away: {0}")]
    ClientGone(#[source] EndError),
    /// The client broke the protocol.
    #[error("client broke the protocol: {0}")]
    Violation(#[source] WireError),
    /// The server connection closed or failed, or what came from it was no protocol.
    #[error("server connection failed: {0}")]
    ServerLost(#[source] EndError),
    /// A transaction block was opened where none is allowed.
    #[error("transaction block in statement mode")]
    TransactionBlock,
    /// The client has more prepared statements than it may.
    #[error("{0}")]
    TooManyStatements(#[source] TooMany),
    /// A simple query, where those are refused.
    #[error("PQexec disallowed")]
    SimpleQuery,
    /// Postgres does not give the session the parameters that the client's sessions have. What the client sent was answered with
    /// others.
    #[error("Postgres refuses the session's parameters: {0}")]
    Parameters(#[source] ServerError),
}

impl RelayError {
    /// The client is at fault.
    pub fn client(error: EndError) -> Self {
        match error {
            EndError::Wire(error) => Self::Violation(error),
            error => Self::ClientGone(error),
        }
    }
}

/// Both ends, and where this thread counts.
#[derive(Debug)]
pub struct Relay<'a, C, S> {
    /// The client's end.
    pub client: &'a mut ClientEnd<C>,
    /// The server's end.
    pub server: &'a mut ServerEnd<S>,
    /// The counters.
    pub traffic: &'a Traffic,
    /// The client's own counters.
    pub counts: &'a Counts,
    /// Times what the client does.
    pub stint: &'a mut Stint,
    /// Where its time begins.
    pub epoch: Instant,
    /// Whether the client may open transaction blocks.
    pub blocks: bool,
    /// Whether it may use the simple query protocol.
    pub simple: bool,
    /// How prepared statements are kept account of; `None`: they are not.
    pub tracking: Option<Tracking<'a>>,
}

thread_local! {
    /// Where messages are put together that are not what one side sent: borrowed as the read buffer is.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What [`OUT`] may keep of its size from one poll to the next.
const OUT_KEPT: usize = 256 * 1024;

/// Lends the buffer.
fn with_out<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    OUT.with_borrow_mut(|out| {
        out.clear();
        let done = work(out);
        out.shrink_to(OUT_KEPT);
        done
    })
}

fn micros_since(epoch: Instant) -> u64 {
    in_micros(epoch.elapsed())
}

impl<C, S> Relay<'_, C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Moves bytes both ways until they leave the exchange settled. Pending when neither side has anything to move.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Settled, RelayError>> {
        for _ in 0..TURNS {
            let down = self.server_to_client(cx, scratch)?;
            if down.is_ready()
                && let Some(proof) = self.server.settled()
            {
                return Poll::Ready(Ok(proof));
            }
            let up = self.client_to_server(cx, scratch)?;
            if up.is_ready()
                && let Some(proof) = self.server.settled()
            {
                return Poll::Ready(Ok(proof));
            }
            if down.is_pending() && up.is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The server connection has ended. Whether the client's session can go on: it has heard what became of its request.
    pub fn outlive(&mut self, cx: &mut Context<'_>) -> bool {
        let heard = with_out(|out| {
            let answer = self.server.last_answer(out)?;
            self.client.send(cx, answer).ok()
        });
        self.take_back();
        heard.is_some()
    }

    /// Sends on what the client said, behind `front`, which was noted already.
    pub fn client_said(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        front: &[u8],
    ) -> Result<(), RelayError> {
        let Forward {
            used,
            whole,
            behind,
        } = with_out(|out| {
            let mut edit = Edit::new(bytes, out);
            if !front.is_empty() {
                edit.insert(0).extend_from_slice(front);
            }
            let forward = self.translate(bytes, &mut edit);
            let sent: &[u8] = if edit.done(forward.used) {
                out
            } else {
                &bytes[..forward.used]
            };
            // A connection that Postgres has closed may still hold its last words: reading finds them, and then its end.
            let _ = self.server.send(cx, sent, forward.whole);
            forward
        });
        self.traffic.received.add(used as u64);
        self.counts.received.add(used as u64);
        let parses = self.server.exchange_mut().parses();
        if parses > 0 {
            self.traffic.server_parses.add(parses.into());
        }
        self.stint.asked(|| micros_since(self.epoch));
        // Those that the server's replies will follow go with these.
        if !self.server.exchange().will_be_answered() {
            self.give_due_answers(cx)?;
        }
        if self.server.take_back_at_once() {
            self.take_back();
        }
        if whole && self.server.exchange_mut().needs_flush() {
            let _ = self.server.send(cx, &FLUSH, true);
        }
        match behind {
            Behind::More => Ok(()),
            Behind::Goodbye => Err(RelayError::Goodbye),
            Behind::Violation(error) => Err(RelayError::Violation(error)),
            Behind::TooMany(error) => Err(RelayError::TooManyStatements(error)),
            Behind::SimpleQuery => Err(RelayError::SimpleQuery),
        }
    }

    /// Notes the messages in `bytes`, and edits them.
    fn translate(&mut self, bytes: &[u8], edit: &mut Edit<'_>) -> Forward {
        let (mut books, tracking) = (self.server.books(), self.tracking);
        let (traffic, simple) = (self.traffic, self.simple);
        self.client.forward(bytes, |statements, seen| {
            let taken = match tracking {
                _ if !simple && seen.tag == b'Q' => Take::Refuse(Behind::SimpleQuery),
                None => {
                    books.exchange.client_sent(seen.tag);
                    Take::Done
                }
                Some(how) => {
                    let books = &mut books;
                    Translator {
                        statements,
                        books,
                        how,
                    }
                    .take(seen, edit)
                }
            };
            match (seen.tag, &taken) {
                (b'P', Take::Done) => traffic.client_parses.add(1),
                (b'B', Take::Done) => traffic.binds.add(1),
                _ => {}
            }
            taken
        })
    }

    /// Gives the client the answers that pgweir has for it, if it is their turn.
    fn give_due_answers(&mut self, cx: &mut Context<'_>) -> Result<(), RelayError> {
        if self.server.is_half_read() {
            return Ok(());
        }
        while let Some(answer) = self.server.exchange_mut().due() {
            self.client
                .send(cx, &answer.bytes())
                .map_err(RelayError::client)?;
        }
        Ok(())
    }

    fn server_to_client(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, RelayError> {
        if self
            .client
            .poll_flush(cx)
            .map_err(RelayError::client)?
            .is_pending()
        {
            return Ok(Poll::Pending);
        }
        with_out(|out| self.hear_server(cx, scratch, out))
    }

    fn hear_server(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Poll<()>, RelayError> {
        let (traffic, client) = (self.traffic, &mut *self.client);
        let resetting = self.server.state().resetting();
        let resetting = self.tracking.zip(resetting);
        let mut answered = 0;
        let see = |seen: Seen<'_>| {
            match (seen.tag, client.statements()) {
                (b'Z', _) => answered += 1,
                (b'E', Some(statements)) => return in_clients_words(statements, seen),
                (b'S', _) => {
                    let (how, touched) = resetting.as_ref()?;
                    return reset_parameter(how, touched, seen);
                }
                _ => {}
            }
            None
        };
        let Poll::Ready(replies) = self
            .server
            .poll_replies(cx, scratch, out, see)
            .map_err(RelayError::ServerLost)?
        else {
            return Ok(Poll::Pending);
        };
        if !self.blocks && self.server.exchange().is_in_transaction() {
            return Err(RelayError::TransactionBlock);
        }
        traffic.sent.add(replies.len() as u64);
        self.counts.sent.add(replies.len() as u64);
        self.note_answers(answered);
        self.client.send(cx, replies).map_err(RelayError::client)?;
        self.take_back();
        match self.server.state_mut().error() {
            Some(error) => Err(RelayError::Parameters(ServerError::parse(&error))),
            None => Ok(Poll::Ready(())),
        }
    }

    /// Counts ReadyForQuery messages. The last one of a transaction is timed when the server connection comes back.
    fn note_answers(&mut self, answered: u64) {
        if answered == 0 {
            return;
        }
        self.traffic.queries.add(answered);
        self.counts.queries.add(answered);
        self.stint.answered(answered);
        let exchange = self.server.exchange();
        if !exchange.is_settled() {
            let goes_on = !exchange.is_answered();
            let epoch = self.epoch;
            self.stint
                .lap(|| micros_since(epoch), goes_on, self.traffic);
        }
    }

    /// Takes back what the client's messages were to do that came to nothing.
    fn take_back(&mut self) {
        if self.server.exchange().is_settled()
            && self.server.state_mut().has_altered()
            && let Some(how) = &self.tracking
        {
            how.store.begin_anew();
        }
        let (forgets, unnamed_failed) = (
            self.server.state_mut().forgets(),
            self.server.exchange_mut().unnamed_failed(),
        );
        let answered = self.server.exchange().is_answered();
        let undone = self.server.undone();
        let Some(statements) = self.client.statements() else {
            return;
        };
        for note in undone.drain(..) {
            statements.undo(note);
        }
        if let Some(serial) = unnamed_failed {
            statements.unnamed_failed(serial);
        }
        if forgets {
            statements.forget_all();
        }
        if answered {
            statements.settled();
        }
    }

    fn client_to_server(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, RelayError> {
        let owing = !self.server.is_flushed();
        // If it fails, reading from the server will say why.
        if !matches!(self.server.poll_flush(cx), Poll::Ready(Ok(()))) {
            return Ok(Poll::Pending);
        }
        let exchange = self.server.exchange();
        let holds = self.client.is_held() && exchange.has_undecided();
        // What pgweir answers itself takes no room in the server's socket, and what it answers none in a client's that does not read.
        let is_full = (exchange.is_deep() && !self.server.is_half_sent())
            || self.client.unwritten() > MOST_UNWRITTEN;
        let input = if holds || is_full {
            Poll::Pending
        } else {
            self.client
                .poll_input(cx, scratch)
                .map_err(RelayError::client)?
        };
        let Poll::Ready(input) = input else {
            // What was written just now may have been all that was missing to be settled.
            return Ok(if owing {
                Poll::Ready(())
            } else {
                Poll::Pending
            });
        };
        self.client_said(cx, &input, &[])?;
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests;
