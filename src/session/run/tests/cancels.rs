//! Cancels at random moments, with signals as late as they may be: never does one hit another client's query.

use std::collections::BTreeSet;
use std::rc::Rc;

use proptest::prelude::*;

use super::house::{Client, House, Thread, turns, until, with_pool};
use crate::client::directory::Ask;
use crate::config::checked::Mode;

const CLIENTS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// It sends a query that lasts until it is cancelled or finished, if it waits for no answer.
    Wait(usize),
    /// It sends a query that is answered at once, likewise.
    Ask(usize),
    Cancel(usize),
    /// A server is done with what it runs.
    Finish(usize),
    /// It closes its socket, and another takes its place.
    Vanish(usize),
    /// From now on cancel requests are answered, or not.
    Answer(bool),
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..CLIENTS;
    prop_oneof![
        6 => who.clone().prop_map(Step::Wait),
        3 => who.clone().prop_map(Step::Ask),
        6 => who.clone().prop_map(Step::Cancel),
        6 => who.clone().prop_map(Step::Finish),
        1 => who.prop_map(Step::Vanish),
        6 => any::<bool>().prop_map(Step::Answer),
        2 => Just(Step::Pause),
    ]
}

struct Crowd {
    house: Rc<House>,
    thread: Thread,
    clients: Vec<Client>,
    /// What each waits for an answer to.
    asked: Vec<Option<String>>,
    /// The queries that somebody meant to stop.
    meant: BTreeSet<String>,
    queries: u32,
}

impl Crowd {
    async fn play(&mut self, step: &Step) {
        match *step {
            Step::Wait(who) => self.query(who, "wait").await,
            Step::Ask(who) => self.query(who, "say").await,
            Step::Cancel(who) => self.cancel(who),
            Step::Finish(which) => {
                let servers = self.house.servers();
                if let Some(server) = servers.get(which % servers.len().max(1)) {
                    server.finish();
                }
            }
            Step::Vanish(who) => {
                self.meant.extend(self.asked[who].take());
                let gone = std::mem::replace(&mut self.clients[who], self.thread.client());
                gone.vanish().await;
            }
            Step::Answer(does) => self.house.finishes_cancels(does),
            Step::Pause => turns(1).await,
        }
        self.listen().await;
    }

    async fn query(&mut self, who: usize, word: &str) {
        if self.asked[who].is_none() {
            self.queries += 1;
            let sql = format!("{word} {}", self.queries);
            self.clients[who].query(&sql).await;
            self.asked[who] = Some(sql);
        }
    }

    fn cancel(&mut self, who: usize) {
        self.meant.extend(self.asked[who].clone());
        self.clients[who].is_asked(Ask::Cancel);
    }

    async fn listen(&mut self) {
        for (client, asked) in self.clients.iter_mut().zip(&mut self.asked) {
            let news = client.news().await;
            let Some(sql) = asked.as_ref().filter(|_| !news.is_empty()) else {
                assert_eq!(news, "", "nothing was asked");
                continue;
            };
            match news.as_str() {
                "CZ" => {}
                "EZ" => assert!(self.meant.contains(sql), "{sql} was stopped"),
                other => panic!("{other} to {sql}"),
            }
            *asked = None;
        }
        for server in self.house.servers() {
            for hit in server.hit() {
                assert!(self.meant.contains(&hit), "{hit} was hit");
            }
        }
    }

    /// Everybody is answered in the end, and nothing is lost.
    async fn finish(&mut self, size: u32) {
        self.house.finishes_cancels(true);
        turns(3).await;
        self.listen().await;
        for _ in 0..1000 {
            for who in 0..CLIENTS {
                if self.asked[who].is_some() {
                    self.cancel(who);
                }
            }
            self.listen().await;
            if self.asked.iter().all(Option::is_none) {
                break;
            }
        }
        assert_eq!(self.asked, vec![None; CLIENTS]);
        let thread = self.thread.clone();
        until("everything rests", || {
            let tally = thread.view().tally;
            tally.idle() == tally.total() && tally.total() <= size
        })
        .await;
    }
}

fn play(mode: Mode, size: u32, late: bool, steps: &[Step]) {
    with_pool(mode, size, async |house, thread| {
        house.signals_late(late);
        let mut crowd = Crowd {
            clients: (0..CLIENTS).map(|_| thread.client()).collect(),
            house,
            thread,
            asked: vec![None; CLIENTS],
            meant: BTreeSet::new(),
            queries: 0,
        };
        for step in steps {
            crowd.play(step).await;
        }
        crowd.finish(size).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cancel_never_hits_another_clients_query(
        size in 1_u32..3,
        late in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        play(Mode::Transaction, size, late, &steps);
    }
}
