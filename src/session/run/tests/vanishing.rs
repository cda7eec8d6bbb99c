//! Clients that go without a word, and what becomes of the connections they held.

use super::house::{until, with_pool};
use crate::config::checked::Mode;
use crate::wire::reply::{Message, query};

#[test]
fn a_query_whose_client_vanished_is_cancelled_and_rolled_back_and_the_connection_is_used_again() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        one.query("wait").await;
        until("it runs", || house.server().is_running()).await;
        other.query("rows 1 1").await;
        until("the other waits", || thread.view().waiters == 1).await;
        assert_eq!(one.vanish().await, "client_gone");
        assert_eq!(other.answer().await, "DCZI");
        let heard = house.server().heard();
        assert_eq!(
            heard,
            ["begin", "wait", "cancel", "", "ROLLBACK", "rows 1 1"]
        );
    });
}

#[test]
fn a_transaction_whose_client_vanished_between_queries_is_rolled_back() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        assert_eq!(one.ask("fail").await, "EZE");
        assert_eq!(one.vanish().await, "client_gone");
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        assert_eq!(
            house.server().heard(),
            ["begin", "fail", "ROLLBACK", "rows 1 1"]
        );
    });
}

#[test]
fn an_open_batch_and_a_copy_whose_client_vanished_are_ended() {
    let batch = |sql: &str| {
        let parse = Message::new(b'P').text("").text(sql).u16(0).done();
        [
            &parse[..],
            &Message::new(b'B').done(),
            &Message::new(b'E').done(),
        ]
        .concat()
    };
    let flush = Message::new(b'H').done();
    let cases = [
        (batch("rows 1 1"), None),
        ([batch("rows 1 1"), flush.clone()].concat(), Some(b'C')),
        ([batch("fail"), flush.clone()].concat(), Some(b'E')),
        ([batch("copy in"), flush].concat(), Some(b'G')),
        (
            [batch("copy in"), Message::new(b'S').done()].concat(),
            Some(b'G'),
        ),
        (query("copy in"), Some(b'G')),
        (query("copy out 1000 1000"), Some(b'H')),
    ];
    for (said, awaited) in cases {
        with_pool(Mode::Transaction, 1, async |house, thread| {
            let (mut one, mut other) = (thread.client(), thread.client());
            one.send(&said).await;
            while let Some(tag) = awaited {
                if one.packet().await.tag == tag {
                    break;
                }
            }
            until("it is lent", || thread.view().tally.lent() == 1).await;
            assert_eq!(one.vanish().await, "client_gone");
            assert_eq!(other.ask("rows 1 1").await, "DCZI", "after {awaited:?}");
            assert_eq!(house.servers().len(), 1, "after {awaited:?}");
        });
    }
}

#[test]
fn a_session_mode_client_that_vanished_in_a_transaction_leaves_a_connection_as_new() {
    with_pool(Mode::Session, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        assert_eq!(one.vanish().await, "client_gone");
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        assert_eq!(
            house.server().heard(),
            ["begin", "ROLLBACK", "DISCARD ALL", "rows 1 1"]
        );
    });
}

#[test]
fn after_a_half_sent_message_the_slot_is_free_only_when_postgres_has_closed_its_side() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        house.closes(false);
        // A query is read as a whole before it is sent.
        let call = Message::new(b'F').bytes(&[b'x'; 1000]).done();
        one.send(&call[..500]).await;
        until("it is sent", || thread.view().tally.lent() == 1).await;
        let first = house.server();
        other.query("rows 1 1").await;
        until("the other waits", || thread.view().waiters == 1).await;
        assert_eq!(one.vanish().await, "client_gone");
        until("the server hears of it", || first.is_leaving.get()).await;
        let view = thread.view();
        assert_eq!(
            (view.tally.closing(), view.tally.total(), view.waiters),
            (1, 1, 1)
        );
        assert_eq!(house.servers().len(), 1);
        house.closes(true);
        assert_eq!(other.answer().await, "DCZI");
        assert!(first.is_closed.get());
        assert_eq!(first.heard(), ["cancel"], "the half message is no query");
        assert_eq!(house.servers()[1].heard(), ["rows 1 1"]);
    });
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody_once_it_vanishes() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        one.query("rows 3000 10000").await;
        until("it is lent", || thread.view().tally.lent() == 1).await;
        other.query("rows 1 1").await;
        until("the other waits", || thread.view().waiters == 1).await;
        assert_eq!(one.vanish().await, "client_gone");
        assert_eq!(other.answer().await, "DCZI");
        assert_eq!(house.servers().len(), 1);
    });
}
