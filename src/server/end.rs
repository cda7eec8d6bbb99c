//! The server's end of a relay: what is outstanding on it, what state its session is in, and the proof that it owes nothing.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::prepared::Prepared;
use super::state::{State, Touched};
use crate::net::end::{End, EndError, Input};
use crate::wire::edit::Edit;
use crate::wire::exchange::{Exchange, Own, Receiver};
use crate::wire::parameters::Parameters;
use crate::wire::reply::{Severity, query, ready_for_query};
use crate::wire::scan::{HEADER, LARGEST_MESSAGE, Next, Seen};
use crate::wire::statement::{Note, out_of_memory};

/// Proof that the server owes nothing and is outside a transaction. Only [`ServerEnd::settled`] makes one.
#[derive(Debug)]
#[must_use = "a server connection is released against this"]
pub struct Settled(());

/// A socket to Postgres, what is outstanding on it, and what its session is like.
#[derive(Debug)]
pub struct ServerEnd<S> {
    end: End<S>,
    exchange: Exchange,
    prepared: Prepared,
    state: State,
    /// The last message that was sent to it is not whole yet.
    half_sent: bool,
    /// The rest of the message that is being read is for nobody.
    swallowing: bool,
    /// What the client prepared or forgot in messages that came to nothing.
    undone: Vec<Note>,
}

/// What whoever sends something to the server keeps account of.
#[derive(Debug)]
pub struct Books<'a> {
    /// What is outstanding.
    pub exchange: &'a mut Exchange,
    /// Its statements.
    pub prepared: &'a mut Prepared,
    /// What its session is like.
    pub state: &'a mut State,
}

impl<S> ServerEnd<S> {
    /// A connection that is ready for a query.
    pub fn new(stream: S) -> Self {
        Self {
            end: End::new(stream),
            exchange: Exchange::default(),
            prepared: Prepared::default(),
            state: State::default(),
            half_sent: false,
            swallowing: false,
            undone: Vec::new(),
        }
    }

    /// The same connection over another socket.
    pub fn map_stream<T>(
        self,
        map: impl FnOnce(S) -> std::io::Result<T>,
    ) -> std::io::Result<ServerEnd<T>> {
        debug_assert!(self.settled().is_some(), "only settled connections move");
        let (stream, _nothing) = self.end.into_parts();
        Ok(ServerEnd {
            end: End::new(map(stream)?),
            exchange: self.exchange,
            prepared: self.prepared,
            state: self.state,
            half_sent: false,
            swallowing: false,
            undone: self.undone,
        })
    }

    /// The socket.
    pub fn stream(&self) -> &S {
        self.end.stream()
    }

    /// The socket, to talk over it past what this keeps account of.
    pub fn stream_mut(&mut self) -> &mut S {
        self.end.stream_mut()
    }

    /// Gives the socket up, and what was not written to it yet.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        self.end.into_parts()
    }

    /// What is outstanding.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// What is outstanding, for who scans what will be sent.
    pub fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// What whoever sends something keeps account of.
    pub fn books(&mut self) -> Books<'_> {
        Books {
            exchange: &mut self.exchange,
            prepared: &mut self.prepared,
            state: &mut self.state,
        }
    }

    /// How many prepared statements are kept account of.
    pub fn prepared(&self) -> usize {
        self.prepared.len()
    }

    /// What its session is like.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What its session is like, to be changed.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The query that gives its session these parameters, to be sent in front of the client's next message; `None` if it has them.
    pub fn change_to(&mut self, parameters: &Arc<Parameters>) -> Option<Vec<u8>> {
        let sql = self.state.change_to(parameters)?;
        Some(self.own_query(&sql))
    }

    /// A query of pgweir's own, to be sent now, whose answer is kept.
    pub fn question(&mut self, sql: &str) -> Vec<u8> {
        self.state.listen();
        self.own_query(sql)
    }

    /// A query of pgweir's own, to be sent now.
    pub fn own_query(&mut self, sql: &str) -> Vec<u8> {
        self.prepared.set_unnamed(None);
        self.exchange.pgweir_sent(Own::Query);
        query(sql)
    }

    /// What the client prepared or forgot in messages that came to nothing. Whoever reads it takes it.
    pub fn undone(&mut self) -> &mut Vec<Note> {
        &mut self.undone
    }

    /// Its session was made as new.
    pub fn renewed(&mut self) {
        self.prepared = Prepared::default();
        self.state = State::default();
        self.undone.clear();
    }

    /// The client has gone: what its requests came to is for nobody, the next client the least.
    pub(super) fn forget_client(&mut self) {
        self.undone.clear();
        self.exchange.unnamed_failed();
        self.state.forgets();
        // That something was asked is not forgotten: what the client did to the session is known to nobody then.
        drop(self.state.error());
    }

    /// Whether the last message that was sent is not whole yet.
    pub fn is_half_sent(&self) -> bool {
        self.half_sent
    }

    /// Whether everything sent was written.
    pub fn is_flushed(&self) -> bool {
        self.end.is_flushed()
    }

    /// Whether the last thing it said was that its session ends: if the connection ends here, the client knows why.
    pub fn said_why(&self) -> bool {
        self.state.said_fatal()
    }

    /// Whether the last message that came from it is not whole yet.
    pub fn is_half_read(&self) -> bool {
        !self.end.flow().at_boundary()
    }

    /// The proof, if the server owes nothing, nothing is half read, nothing is half sent, and it has not said that it ends.
    pub fn settled(&self) -> Option<Settled> {
        let quiet = !self.half_sent && self.end.flow().is_empty() && self.end.is_flushed();
        let settled = quiet && self.exchange.is_settled() && !self.said_why();
        settled.then_some(Settled(()))
    }

    /// The connection has ended. If Postgres has said why in answer to the one request that was outstanding, and nothing else
    /// is lost with it, gives what ends that request, so that the client's session can go on without this one.
    pub fn last_answer<'a>(&mut self, out: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let whole = self.end.flow().is_empty() && !self.half_sent;
        let alone = self.exchange.owes_one_end() && !self.state.is_touched();
        if !(self.said_why() && whole && alone) {
            return None;
        }
        let ready = ready_for_query();
        let (_, edited) = self.hear(&ready, out, |_| None).ok()?;
        if !edited {
            out.extend(ready);
        }
        Some(out)
    }

    /// What the client did to the session since this was last asked; `None`: nothing.
    pub fn touched(&mut self) -> Option<Box<Touched>> {
        self.state.take_touched()
    }

    /// Looks at what was read. Gives what the first messages have become in `out`, or `None` and how many bytes may go as they are.
    fn hear(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut see: impl FnMut(Seen<'_>) -> Option<Vec<u8>>,
    ) -> Result<(usize, bool), EndError> {
        let Self {
            end,
            exchange,
            prepared,
            state,
            swallowing,
            ..
        } = self;
        let mut edit = Edit::new(input, out);
        if *swallowing {
            edit.replace(0, end.flow().to_come());
            *swallowing = end.flow().to_come() > input.len();
        }
        let mut wanted = 0;
        let (used, scanned) = end.scan(input, LARGEST_MESSAGE, |seen| {
            if exchange.is_row(seen.tag) {
                return Next::Go;
            }
            let needed = needed(exchange, seen);
            if !seen.has(needed) {
                wanted = HEADER + needed.min(seen.body_len as usize);
                return Next::Stop;
            }
            while let Some(answer) = exchange.due() {
                edit.insert(seen.at).extend(answer.bytes());
            }
            match state.hear(exchange, prepared, seen) {
                Receiver::Client => {
                    if let Some(other) = see(seen) {
                        edit.replace(seen.at, seen.at + seen.length()).extend(other);
                    }
                }
                Receiver::Pgweir => {
                    edit.replace(seen.at, seen.at + seen.length());
                    *swallowing = !seen.is_whole();
                }
                Receiver::Refused => {
                    let error = out_of_memory().error(Severity::Error);
                    edit.replace(seen.at, seen.at + seen.length()).extend(error);
                    *swallowing = !seen.is_whole();
                }
            }
            Next::Go
        });
        scanned?;
        if end.flow().at_boundary() {
            while let Some(answer) = exchange.due() {
                edit.insert(used).extend(answer.bytes());
            }
        }
        let edited = edit.done(used);
        end.keep(&input[used..], wanted);
        self.take_back();
        Ok((used, edited))
    }

    /// Takes back what messages were to do that were sent into nothing. `true`: there were some.
    pub fn take_back_at_once(&mut self) -> bool {
        self.take_back();
        !self.undone.is_empty()
    }

    /// Takes back what messages were to do that came to nothing; the last one first, because it was built on those before.
    fn take_back(&mut self) {
        if self.exchange.undone().is_empty() {
            return;
        }
        for note in mem::take(self.exchange.undone()).into_iter().rev() {
            self.prepared.undo(&note);
            self.undone.push(note);
        }
    }
}

/// How many bytes of a message's body must be there before it is looked at.
fn needed(exchange: &Exchange, seen: Seen<'_>) -> usize {
    /// Postgres' command tags are shorter than this; errors and parameters that matter are too.
    const TAG: usize = 64;
    const PARAMETER: usize = 1024;
    const ERROR: usize = 8 * 1024;
    const OWN_ROW: usize = 1024 * 1024;
    match seen.tag {
        b'Z' => 1,
        b'C' => TAG,
        b'S' => PARAMETER,
        b'E' => ERROR,
        b'D' if exchange.answers_pgweir() => OWN_ROW,
        _ => 0,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerEnd<S> {
    /// Reads replies, notes and shows them, and gives what is to go to the client. `see` is shown what is for the client, but no rows,
    /// and may put another message in the place of one that is wholly there.
    pub fn poll_replies<'a>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'a mut [u8],
        out: &'a mut Vec<u8>,
        see: impl FnMut(Seen<'_>) -> Option<Vec<u8>>,
    ) -> Poll<Result<&'a [u8], EndError>> {
        let input = ready!(self.end.poll_input(cx, scratch))?;
        let (used, edited) = self.hear(&input, out, see)?;
        Poll::Ready(Ok(match input {
            _ if edited => out,
            Input::Scratch(bytes) => &bytes[..used],
            Input::Own(bytes) => {
                out.extend_from_slice(&bytes[..used]);
                out
            }
        }))
    }

    /// Sends bytes whose messages were noted in the exchange. `whole`: they end with a whole message.
    pub fn send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        whole: bool,
    ) -> Result<(), EndError> {
        self.half_sent = !whole;
        self.end.send(cx, bytes)
    }

    /// Writes what could not be written at once.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        self.end.poll_flush(cx)
    }
}
