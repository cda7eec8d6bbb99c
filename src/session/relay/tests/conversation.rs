//! Conversations of every legal kind, through pipes of any width: both sides receive exactly what the other sent, and a
//! server is given up when, and only when, it could go to another client.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, split};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::peers::{Far, Seen, Sizes, Wire, in_paused_time, quiet};
use crate::net::end::EndError;
use crate::net::packet::Packets;
use crate::session::fake::Fake;
use crate::session::relay::RelayError;
use crate::wire::reply::{Message, query};

/// What a client does.
#[derive(Debug, Clone)]
enum Act {
    Send(Text),
    /// Waits until so many more CopyInResponse than before have come.
    AwaitCopy,
    /// Waits until every request is answered.
    AwaitAnswers,
    /// Waits until nothing moves, and compares the lease with what the server knows.
    Rest,
}

/// A message, shown as people read it.
#[derive(Clone)]
struct Text(Vec<u8>);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.0[5..self.0.len().min(40)]);
        write!(f, "{}({}) {body:?}", self.0[0] as char, self.0.len())
    }
}

/// One thing that clients do with a database.
#[derive(Debug, Clone)]
enum Talk {
    /// Queries, pipelined.
    Queries(Vec<String>),
    /// A transaction block, its queries one by one or pipelined.
    Block(Vec<String>, bool),
    /// Extended batches, their Syncs in flight together.
    Batches(Vec<Vec<String>>),
    /// An extended batch with a Flush in its middle, and a wait there.
    Flushed(String),
    Copy {
        extended: bool,
        /// The size of each CopyData.
        data: Vec<usize>,
        /// The server fails at this one.
        fails: Option<usize>,
        done: bool,
        /// A Sync is sent inside, which the server ignores.
        sync_inside: bool,
    },
}

/// A client's acts, as they are put together.
#[derive(Debug, Default)]
struct Script {
    acts: Vec<Act>,
}

impl Script {
    fn send(&mut self, bytes: Vec<u8>) {
        self.acts.push(Act::Send(Text(bytes)));
    }

    fn empty(&mut self, tags: &str) {
        for tag in tags.bytes() {
            self.send(Message::new(tag).done());
        }
    }

    fn batch(&mut self, sql: &str) {
        self.send(Message::new(b'P').text("").text(sql).u16(0).done());
        self.empty("BDE");
    }

    fn talk(&mut self, talk: &Talk) {
        match talk {
            Talk::Queries(queries) => queries.iter().for_each(|sql| self.send(query(sql))),
            Talk::Block(queries, pipelined) => {
                let block = [&["begin".to_owned()], &queries[..], &["commit".to_owned()]].concat();
                for sql in block {
                    self.send(query(&sql));
                    if !pipelined {
                        self.acts.push(Act::Rest);
                    }
                }
            }
            Talk::Batches(batches) => {
                for batch in batches {
                    for sql in batch {
                        self.batch(sql);
                    }
                    self.empty("S");
                }
            }
            Talk::Flushed(sql) => {
                self.batch(sql);
                self.empty("H");
                self.acts.push(Act::Rest);
                self.batch("rows 1 5");
                self.empty("S");
            }
            Talk::Copy { .. } => self.copy(talk),
        }
    }

    fn copy(&mut self, talk: &Talk) {
        let Talk::Copy {
            extended,
            data,
            fails,
            done,
            sync_inside,
        } = talk
        else {
            unreachable!("called for a COPY only")
        };
        let sql = fails.map_or("copy in".to_owned(), |at| format!("copy in fails {at}"));
        self.acts.push(Act::AwaitAnswers);
        if *extended {
            self.batch(&sql);
            self.empty("H");
        } else {
            self.send(query(&sql));
        }
        self.acts.push(Act::AwaitCopy);
        // Where a COPY fails with a Sync in it nobody can tell whether that is answered: the connection is given up.
        let harmless = *done && fails.is_none_or(|at| at > data.len());
        if *sync_inside && harmless {
            self.empty("S");
        }
        for size in data {
            self.send(Message::new(b'd').bytes(&vec![b','; *size]).done());
        }
        self.empty(if *done { "c" } else { "f" });
        if *extended {
            self.empty("S");
        }
    }
}

/// The parties of one conversation.
struct Table {
    /// Postgres.
    fake: RefCell<Fake>,
    /// Everything that it has said, and heard.
    said: RefCell<Vec<u8>>,
    heard: Cell<usize>,
    /// Everything that the client was told.
    told: RefCell<Vec<u8>>,
    /// Requests that the client has sent and waits for, less answers.
    owed: Cell<i32>,
    copies: Cell<i32>,
    news: Notify,
    seen: Rc<Seen>,
}

impl Table {
    async fn serve(&self, pipe: DuplexStream) {
        let mut packets = Packets::new(pipe);
        while let Ok(packet) = packets.read(1 << 20).await {
            let said = self.fake.borrow_mut().hear(packet.tag, &packet.body);
            self.heard.set(self.heard.get() + 5 + packet.body.len());
            self.said.borrow_mut().extend(&said);
            packets.write(&said).await.expect("the relay reads");
        }
    }

    /// The server's state once it has heard what was sent to it; it must not have anything to say to that.
    fn server_after_all(&self) -> Fake {
        let mut fake = self.fake.borrow().clone();
        let sent = self.seen.server.written.borrow();
        let (said, cut) = fake.hear_all(&sent[self.heard.get()..]);
        assert_eq!(
            (said.len(), cut.len()),
            (0, 0),
            "said, and cut, at a settled lease"
        );
        fake
    }

    /// Called at the end of each lease.
    fn settled(&self) {
        assert!(
            self.server_after_all().is_idle(),
            "settled, and the server is not idle"
        );
        assert_eq!(
            self.said.borrow().len(),
            self.seen.server.read.get(),
            "a reply is left"
        );
    }

    async fn listen(&self, mut pipe: impl AsyncReadExt + Unpin, chunk: usize) {
        let (mut buffer, mut at) = (vec![0; chunk], 0);
        loop {
            let read = pipe.read(&mut buffer).await.expect("a pipe");
            self.hear(&buffer[..read], &mut at);
            yield_now().await;
        }
    }

    /// Counts the whole messages of what the client was told, from `at`.
    fn hear(&self, bytes: &[u8], at: &mut usize) {
        let mut told = self.told.borrow_mut();
        told.extend(bytes);
        while let Some((&[tag, a, b, c, d], rest)) = told[*at..].split_first_chunk() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if rest.len() < length - 4 {
                break;
            }
            *at += 1 + length;
            match tag {
                b'Z' => self.owed.set(self.owed.get() - 1),
                b'G' => self.copies.set(self.copies.get() + 1),
                _ => {}
            }
            self.news.notify_one();
        }
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.news.notified().await;
        }
    }

    /// Does as the script says. Returns what it sent.
    async fn speak(
        &self,
        acts: &[Act],
        mut pipe: impl AsyncWriteExt + Unpin,
        chunks: &[usize],
    ) -> Vec<u8> {
        let (mut sent, mut chunks) = (vec![], chunks.iter().cycle());
        let (mut pending, mut copies, mut in_copy) = (vec![], 0, false);
        for act in acts.iter().chain([&Act::Rest]) {
            if let Act::Send(Text(bytes)) = act {
                let answered = match bytes[0] {
                    b'Q' => true,
                    b'c' | b'f' => {
                        in_copy = false;
                        false
                    }
                    b'S' => !in_copy,
                    _ => false,
                };
                self.owed.set(self.owed.get() + i32::from(answered));
                pending.extend(bytes);
                continue;
            }
            for part in std::mem::take(&mut pending).chunks(*chunks.next().expect("it cycles")) {
                pipe.write_all(part).await.expect("the relay reads");
                sent.extend(part);
                yield_now().await;
            }
            match act {
                Act::Send(_) => {}
                Act::AwaitCopy => {
                    (copies, in_copy) = (copies + 1, true);
                    self.until(|| self.copies.get() == copies).await;
                }
                Act::AwaitAnswers => self.until(|| self.owed.get() == 0).await,
                Act::Rest => {
                    self.until(|| self.owed.get() == 0).await;
                    quiet().await;
                    let idle = self.server_after_all().is_idle();
                    assert_eq!(
                        self.seen.leased.get(),
                        !idle,
                        "leased, and not idle, at rest"
                    );
                }
            }
        }
        sent
    }
}

/// Has the conversation, and checks all that is to be checked.
fn converse(acts: &[Act], sizes: Sizes, chunks: &[usize]) {
    in_paused_time(async {
        let (mut wire, far) = Wire::new(sizes);
        let table = Table {
            fake: RefCell::default(),
            said: RefCell::default(),
            heard: Cell::new(0),
            told: RefCell::default(),
            owed: Cell::new(0),
            copies: Cell::new(0),
            news: Notify::new(),
            seen: Rc::clone(&wire.seen),
        };
        let Far { client, server } = far;
        let (reader, writer) = split(client);
        let sent = tokio::select! {
            biased;
            error = wire.run(|_proof| table.settled()) => panic!("{error}"),
            () = table.serve(server) => panic!("the relay has closed the server's pipe"),
            () = table.listen(reader, chunks[0]) => unreachable!("it listens for ever"),
            sent = table.speak(acts, writer, chunks) => sent,
        };
        assert!(
            *table.told.borrow() == *table.said.borrow(),
            "the client was told something else"
        );
        forwarded_but_for_late_copies(&sent, &table.seen.server.written.borrow());
        // The pipes are closed by now, and the client held no server.
        let error = wire.run(drop).await;
        assert!(
            matches!(error, RelayError::ClientGone(EndError::Closed)),
            "{error}"
        );
    });
}

/// Asserts that `arrived` is what was `sent` but for whole messages of a COPY that had failed.
fn forwarded_but_for_late_copies(mut sent: &[u8], mut arrived: &[u8]) {
    while let Some((&[tag, a, b, c, d], _)) = sent.split_first_chunk() {
        let (message, rest) = sent.split_at(1 + u32::from_be_bytes([a, b, c, d]) as usize);
        sent = rest;
        match arrived.strip_prefix(message) {
            Some(rest) => arrived = rest,
            None => assert!(b"dcf".contains(&tag), "{:?} did not arrive", tag as char),
        }
    }
    assert!(arrived.is_empty(), "more arrived than was sent");
}

fn sql() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0_usize..4, 0_usize..60).prop_map(|(rows, size)| format!("rows {rows} {size}")),
        1 => Just("rows 1 3000".to_owned()),
        1 => Just("fail".to_owned()),
        1 => (0_usize..4, 0_usize..60).prop_map(|(rows, size)| format!("copy out {rows} {size}")),
        1 => Just(String::new()),
        1 => "[x-z]{200,900}",
    ]
}

fn talk() -> impl Strategy<Value = Talk> {
    let copy = (
        any::<bool>(),
        vec(0_usize..200, 0..5),
        proptest::option::of(1_usize..5),
        any::<bool>(),
        any::<bool>(),
    );
    prop_oneof![
        2 => vec(sql(), 1..5).prop_map(Talk::Queries),
        2 => (vec(sql(), 0..4), any::<bool>()).prop_map(|(queries, pipelined)| Talk::Block(queries, pipelined)),
        2 => vec(vec(sql(), 0..3), 1..4).prop_map(Talk::Batches),
        1 => sql().prop_map(Talk::Flushed),
        3 => copy.prop_map(|(extended, data, fails, done, sync_inside)| Talk::Copy { extended, data, fails, done, sync_inside }),
    ]
}

/// Each talk, and whether the client rests after it.
fn acts() -> impl Strategy<Value = Vec<Act>> {
    vec((talk(), any::<bool>()), 1..7).prop_map(|talks| {
        let mut script = Script::default();
        for (talk, rests) in talks {
            script.talk(&talk);
            if rests {
                script.acts.push(Act::Rest);
            }
        }
        script.acts
    })
}

fn pipes() -> impl Strategy<Value = Sizes> {
    let width = prop_oneof![3 => 1_usize..=64, 1 => 65_usize..10_000];
    let scratch = prop_oneof![3 => 6_usize..=64, 1 => 65_usize..10_000];
    (width, scratch).prop_map(|(width, scratch)| Sizes { width, scratch })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn however_it_is_cut_a_conversation_arrives_whole_and_settles_when_the_server_is_idle(
        acts in acts(), sizes in pipes(), chunks in vec(1_usize..500, 1..20),
    ) {
        converse(&acts, sizes, &chunks);
    }
}
