//! A session on which a sentence was passed.

use super::house::{turns, until, with_pool};
use crate::client::patience::{Activity, Patience};
use crate::config::checked::Mode;

const SHARED_AND_KEPT: [(Mode, Activity); 2] = [
    (Mode::Transaction, Activity::Idle),
    (Mode::Session, Activity::Holding),
];

#[test]
fn an_idle_one_leaves_and_its_server_connection_stays() {
    for (mode, rests) in SHARED_AND_KEPT {
        with_pool(mode, 1, async |house, thread| {
            let mut client = thread.client();
            assert_eq!(client.ask("rows 1 1").await, "DCZI");
            client.does(rests).await;
            client.is_condemned(client.doing());
            let words = ("57P01".to_owned(), "stale");
            assert_eq!(client.last_words().await, words, "{mode:?}");
            until("the server connection is free", || {
                thread.view().tally.idle() == 1
            })
            .await;
            assert_eq!(house.servers().len(), 1);
        });
    }
}

#[test]
fn one_idle_in_a_transaction_is_rolled_back() {
    for (mode, _) in SHARED_AND_KEPT {
        with_pool(mode, 1, async |house, thread| {
            let (mut client, mut other) = (thread.client(), thread.client());
            assert_eq!(client.ask("begin").await, "CZT");
            client.does(Activity::InTransaction).await;
            client.is_condemned(client.doing());
            let words = ("57P01".to_owned(), "stale");
            assert_eq!(client.last_words().await, words, "{mode:?}");
            assert_eq!(other.ask("rows 1 1").await, "DCZI");
            assert_eq!(house.server().heard()[..2], ["begin", "ROLLBACK"]);
        });
    }
}

#[test]
fn one_that_has_done_something_since_stays() {
    for (mode, rests) in SHARED_AND_KEPT {
        with_pool(mode, 1, async |_, thread| {
            let mut client = thread.client();
            assert_eq!(client.ask("rows 1 1").await, "DCZI");
            client.does(rests).await;
            let seen = client.doing();
            client.hurry_at(5, Patience::default());
            assert_eq!(client.ask("begin").await, "CZT");
            client.is_condemned(seen);
            turns(3).await;
            assert_eq!(client.ask("commit").await, "CZI");
            client.does(rests).await;
            client.is_condemned(seen);
            turns(3).await;
            assert_eq!(client.ask("rows 1 1").await, "DCZI", "{mode:?}");
        });
    }
}

#[test]
fn one_whose_next_request_has_come_is_answered_first() {
    for (mode, rests) in SHARED_AND_KEPT {
        with_pool(mode, 1, async |_, thread| {
            let mut client = thread.client();
            assert_eq!(client.ask("rows 1 1").await, "DCZI");
            client.does(rests).await;
            let seen = client.doing();
            client.query("rows 1 1").await;
            client.is_condemned(seen);
            assert_eq!(client.answer().await, "DCZI", "{mode:?}");
        });
    }
}
