//! Two data threads and one server connection.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::house::{Client, House, Thread, on_a_thread, until};
use crate::config::checked::Mode;
use crate::pool::errand::Errand;

/// What a thread is told: the query that its only client is to send. It says what came of it.
struct Remote {
    queries: tokio::sync::mpsc::UnboundedSender<&'static str>,
    answers: Receiver<String>,
    thread: JoinHandle<()>,
}

impl Remote {
    fn start(thread: Thread, errands: UnboundedReceiver<Errand>) -> Self {
        let (queries, orders) = unbounded_channel();
        let (results, answers) = channel();
        let thread =
            std::thread::spawn(move || on_a_thread(obey(thread, errands, orders, results)));
        Self {
            queries,
            answers,
            thread,
        }
    }

    fn says(&self, sql: &'static str) {
        self.queries.send(sql).expect("the thread runs");
    }

    /// Ends the thread and its reactor.
    fn ends(self) {
        drop(self.queries);
        self.thread.join().expect("it does not panic");
    }

    /// The answer, while the rest of the test's own thread goes on.
    async fn hears(&self) -> String {
        for _ in 0..10_000 {
            if let Ok(answer) = self.answers.try_recv() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no answer");
    }
}

async fn obey(
    thread: Thread,
    errands: UnboundedReceiver<Errand>,
    mut orders: UnboundedReceiver<&'static str>,
    results: Sender<String>,
) {
    Thread::run_errands(errands);
    let mut client: Client = thread.client();
    while let Some(sql) = orders.recv().await {
        let answer = client.ask(sql).await;
        results.send(answer).expect("the test goes on");
    }
}

#[test]
fn one_connection_goes_to_whichever_thread_wants_it() {
    on_a_thread(async {
        let house = House::open();
        let mut threads = Thread::several(2, house.settings(Mode::Transaction, 1));
        let view = threads[0].0.clone();
        let (thread, errands) = threads.pop().expect("two");
        let other = Remote::start(thread, errands);
        let (thread, errands) = threads.pop().expect("two");
        let one = Remote::start(thread, errands);

        for _ in 0..20 {
            // It is idle where the other thread wants it.
            one.says("rows 1 1");
            assert_eq!(one.hears().await, "DCZI");
            other.says("rows 2 1");
            assert_eq!(other.hears().await, "DDCZI");
            // It is granted to a waiter of the other thread.
            one.says("begin");
            assert_eq!(one.hears().await, "CZT");
            other.says("rows 3 1");
            until("the other waits", || view.view().waiters == 1).await;
            one.says("commit");
            assert_eq!(one.hears().await, "CZI");
            assert_eq!(other.hears().await, "DDDCZI");
        }
        let round = ["rows 1 1", "rows 2 1", "begin", "commit", "rows 3 1"];
        assert_eq!(house.server().heard(), round.repeat(20));
        // It belongs to the reactor of who had it last.
        one.ends();
        other.says("rows 4 1");
        assert_eq!(other.hears().await, "DDDDCZI");
        assert_eq!(house.servers().len(), 1);
    });
}

#[test]
fn a_server_that_died_while_idle_is_not_lent_to_another_thread_either() {
    on_a_thread(async {
        let house = House::open();
        let mut threads = Thread::several(2, house.settings(Mode::Transaction, 1));
        let (thread, errands) = threads.pop().expect("two");
        let other = Remote::start(thread, errands);
        let (thread, errands) = threads.pop().expect("two");
        let one = Remote::start(thread, errands);

        one.says("rows 1 1");
        assert_eq!(one.hears().await, "DCZI");
        let first = house.server();
        first.die();
        until("it is closed", || first.is_closed.get()).await;
        other.says("rows 2 1");
        assert_eq!(other.hears().await, "DDCZI");
        assert_eq!(first.heard(), ["rows 1 1"]);
    });
}
