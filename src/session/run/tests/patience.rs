//! What a session does when it has done the same for too long.

use std::time::Duration;

use super::house::{turns, until, with_pool};
use crate::client::patience::{Activity, Patience};
use crate::config::checked::Mode;
use crate::wire::reply::query;

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

const IDLE: Patience = Patience {
    client_idle: SECOND,
    ..NONE
};

const IDLE_TRANSACTION: Patience = Patience {
    idle_transaction: SECOND,
    ..NONE
};

const TRANSACTION: Patience = Patience {
    transaction: SECOND,
    ..NONE
};

const QUERY: Patience = Patience {
    query: SECOND,
    ..NONE
};

const NOTICE: Patience = Patience {
    notice: SECOND,
    ..NONE
};

const NONE: Patience = Patience {
    client_idle: None,
    idle_transaction: None,
    transaction: None,
    query: None,
    notice: None,
};

/// What a client does that does nothing.
fn rests(mode: Mode) -> Activity {
    match mode {
        Mode::Session => Activity::Holding,
        Mode::Transaction | Mode::Statement => Activity::Idle,
    }
}

#[test]
fn an_idle_client_is_closed_and_one_in_a_transaction_is_not() {
    for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
        with_pool(mode, 1, async |house, thread| {
            let mut client = thread.client();
            assert_eq!(client.ask("rows 1 1").await, "DCZI");
            client.does(rests(mode)).await;
            if mode != Mode::Statement {
                client.hurry_at(5, NONE);
                assert_eq!(client.ask("begin").await, "CZT");
                client.does(Activity::InTransaction).await;
                client.hurry_at(9, IDLE);
                turns(3).await;
                assert_eq!(client.ask("commit").await, "CZI");
                client.does(rests(mode)).await;
                assert_eq!(client.doing().1, 9);
            }
            client.hurry_at(12, IDLE);
            let words = ("57P05".to_owned(), "client_idle");
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
fn a_client_idle_in_a_transaction_is_rolled_back_and_closed() {
    for mode in [Mode::Transaction, Mode::Session] {
        with_pool(mode, 1, async |house, thread| {
            let (mut client, mut other) = (thread.client(), thread.client());
            assert_eq!(client.ask("begin").await, "CZT");
            assert_eq!(client.ask("fail").await, "EZE");
            client.does(Activity::InTransaction).await;
            client.hurry_at(2, IDLE_TRANSACTION);
            let words = ("25P03".to_owned(), "idle_transaction");
            assert_eq!(client.last_words().await, words, "{mode:?}");
            assert_eq!(other.ask("rows 1 1").await, "DCZI");
            let heard = house.server().heard();
            assert_eq!(heard[..3], ["begin", "fail", "ROLLBACK"], "{mode:?}");
        });
    }
}

#[test]
fn a_query_that_takes_too_long_is_canceled_and_its_server_connection_kept() {
    for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
        with_pool(mode, 1, async |house, thread| {
            let (mut client, mut other) = (thread.client(), thread.client());
            client.query("wait").await;
            client.does(Activity::Active).await;
            until("it runs", || {
                house.servers().iter().any(|server| server.is_running())
            })
            .await;
            client.hurry_at(2, QUERY);
            let words = ("57014".to_owned(), "query");
            assert_eq!(client.last_words().await, words, "{mode:?}");
            assert_eq!(other.ask("rows 1 1").await, "DCZI");
            assert_eq!(house.server().heard()[..2], ["wait", "cancel"], "{mode:?}");
        });
    }
}

#[test]
fn each_query_of_a_pipeline_has_its_own_time() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        client.send(&[query("wait"), query("wait")].concat()).await;
        let running = || house.servers().iter().any(|server| server.is_running());
        until("the first runs", running).await;
        client.hurry_at(1, QUERY);
        client.is_asked(crate::client::directory::Ask::Cancel);
        assert_eq!(client.answer().await, "EZI");
        until("the second is timed", || {
            client.doing() == (Activity::Active, 1)
        })
        .await;
        client.hurry_at(2, QUERY);
        turns(3).await;
        assert_eq!(client.doing(), (Activity::Active, 1));
        client.hurry_at(3, QUERY);
        assert_eq!(client.last_words().await, ("57014".to_owned(), "query"));
    });
}

#[test]
fn a_transaction_of_short_queries_may_be_too_long() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut client, mut other) = (thread.client(), thread.client());
        assert_eq!(client.ask("begin").await, "CZT");
        for second in 2..5 {
            client.hurry_at(second, QUERY);
            assert_eq!(client.ask("rows 1 1").await, "DCZT");
            client.does(Activity::InTransaction).await;
        }
        client.hurry_at(5, TRANSACTION);
        assert_eq!(
            client.last_words().await,
            ("25P04".to_owned(), "transaction")
        );
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        assert_eq!(house.servers().len(), 1);
        // In session mode transactions end although the server connection stays.
    });
    with_pool(Mode::Session, 1, async |_house, thread| {
        let mut client = thread.client();
        for second in [2, 4, 6] {
            assert_eq!(client.ask("rows 1 1").await, "DCZI");
            client.does(Activity::Holding).await;
            client.hurry_at(second, TRANSACTION);
        }
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
    });
}

#[test]
fn a_client_that_waits_is_told_so_once() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        other.query("rows 1 1").await;
        other.does(Activity::Waiting).await;
        other.hurry_at(2, NOTICE);
        let notice = other.packet().await;
        assert_eq!(notice.tag as char, 'N');
        let text = String::from_utf8_lossy(&notice.body).into_owned();
        assert!(text.contains("client being queued"), "{text}");
        assert_eq!(
            other.doing(),
            (Activity::WaitingTold, 0),
            "it has waited since then"
        );
        other.hurry_at(9, NOTICE);
        turns(3).await;
        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(other.answer().await, "DCZI");
        other.does(Activity::Idle).await;
    });
}

#[test]
fn words_are_not_put_into_the_middle_of_a_message() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let mut client = thread.client();
        // Far more than the sockets hold: the session has read a part of a row.
        client.query("rows 400 10000").await;
        client.does(Activity::Active).await;
        turns(5).await;
        client.hurry_at(2, QUERY);
        assert_eq!(client.rest().await, "query");
    });
}
