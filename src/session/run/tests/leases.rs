//! When a session takes, keeps and gives back a server connection.

use std::rc::Rc;
use std::time::Duration;

use super::house::{House, Server, Thread, on_a_thread, turns, until, with_pool};
use crate::client::directory::Ask;
use crate::client::patience::Patience;
use crate::config::checked::Mode;
use crate::session::run::TRIES;
use crate::wire::reply::{
    Message, Report, ServerError, SqlState, TERMINATE, parameter_status, query,
};

#[test]
fn transaction_mode_gives_the_connection_back_between_transactions() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("rows 2 10").await, "DDCZI");
        assert_eq!(other.ask("begin").await, "CZT");
        one.query("rows 1 1").await;
        until("one waits", || thread.view().waiters == 1).await;
        assert_eq!(other.ask("fail").await, "EZE");
        assert_eq!(other.ask("rollback").await, "CZI");
        assert_eq!(one.answer().await, "DCZI");
        let heard = house.server().heard();
        assert_eq!(
            heard,
            ["rows 2 10", "begin", "fail", "rollback", "rows 1 1"]
        );
        until("nothing is lent", || thread.view().tally.idle() == 1).await;
    });
}

#[test]
fn session_mode_keeps_the_connection_and_makes_it_as_new_behind_the_client() {
    with_pool(Mode::Session, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("set x").await, "CZI");
        other.query("rows 1 1").await;
        until("the other waits", || thread.view().waiters == 1).await;
        assert_eq!(one.ask("set y").await, "CZI");
        assert_eq!(thread.view().waiters, 1, "it has waited since");
        one.send(&TERMINATE).await;
        assert_eq!(one.end().await, "goodbye");
        assert_eq!(other.answer().await, "DCZI");
        let heard = house.server().heard();
        assert_eq!(heard, ["set x", "set y", "DISCARD ALL", "rows 1 1"]);
    });
}

#[test]
fn statement_mode_refuses_a_transaction_block() {
    with_pool(Mode::Statement, 1, async |house, thread| {
        let mut client = thread.client();
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        client.query("begin").await;
        assert_eq!(
            client.last_words().await,
            ("0A000".to_owned(), "transaction_block")
        );
        until("it is rolled back", || thread.view().tally.idle() == 1).await;
        assert_eq!(house.server().heard(), ["rows 1 1", "begin", "ROLLBACK"]);
    });
}

#[test]
fn a_flush_alone_keeps_no_connection() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        one.send(&Message::new(b'H').done()).await;
        until("it has been lent", || thread.view().tally.total() == 1).await;
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        assert_eq!(one.ask("rows 1 1").await, "DCZI");
    });
}

#[test]
fn what_a_client_adds_while_it_waits_is_heard_in_order() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        let queries: Vec<u8> = (0..1000).flat_map(|i| query(&format!("q{i}"))).collect();
        let (first, rest) = queries.split_at(3);
        other.send(first).await;
        for part in rest.chunks(1500) {
            other.send(part).await;
        }
        until("the other waits", || thread.view().waiters == 1).await;
        assert_eq!(one.ask("commit").await, "CZI");
        for _ in 0..1000 {
            assert_eq!(other.answer().await, "CZI");
        }
        let expected = ["begin".to_owned(), "commit".to_owned()].into_iter();
        let expected: Vec<_> = expected.chain((0..1000).map(|i| format!("q{i}"))).collect();
        assert_eq!(house.server().heard(), expected);
    });
}

#[test]
fn a_waiter_that_goes_leaves_the_queue() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut gone, mut last) = (thread.client(), thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        gone.query("never").await;
        until("one waits", || thread.view().waiters == 1).await;
        last.query("rows 1 1").await;
        until("two wait", || thread.view().waiters == 2).await;
        assert_eq!(gone.vanish().await, "client_gone");
        assert_eq!(thread.view().waiters, 1);
        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(last.answer().await, "DCZI");
        assert_eq!(house.server().heard(), ["begin", "commit", "rows 1 1"]);
    });
}

#[test]
fn a_cancel_answers_a_waiting_query_and_the_session_goes_on() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        other.query("never").await;
        until("it waits", || thread.view().waiters == 1).await;
        other.is_asked(Ask::Cancel);
        let packet = other.packet().await;
        assert!(
            packet.body.windows(5).any(|code| code == b"57014"),
            "{packet:?}"
        );
        assert_eq!(other.answer().await, "ZI");
        assert_eq!(thread.view().waiters, 0);
        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        assert_eq!(house.server().heard(), ["begin", "commit", "rows 1 1"]);
    });
}

#[test]
fn a_cancel_stops_what_its_session_runs() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        client.query("wait").await;
        until("it runs", || {
            house.servers().iter().any(|server| server.is_running())
        })
        .await;
        client.is_asked(Ask::Cancel);
        assert_eq!(client.answer().await, "EZI");
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
    });
}

/// A cancel comes while the server connection is made one of the client's.
fn cancel_amid_own_query(parameter: &str) {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client_with(&[(parameter, "slow")]);
        client.query("wait").await;
        until("pgweir's own query runs", || {
            house.servers().iter().any(|server| server.is_running())
        })
        .await;
        let server = house.server();
        client.is_asked(Ask::Cancel);
        turns(20).await;
        assert!(!server.heard().contains(&"cancel".to_owned()));
        server.finish();
        assert_eq!(client.answer().await, "EZI");
        assert_eq!(server.hit(), ["wait"]);
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
    });
}

#[test]
fn a_cancel_hits_the_clients_query_and_never_pgweirs_own_in_front_of_it() {
    cancel_amid_own_query("TimeZone");
}

#[test]
fn a_cancel_hits_the_clients_query_and_not_the_change_of_role_before_it() {
    cancel_amid_own_query("role");
}

/// A client cancels its query, and leaves its connection to another while the signal may still be on its way.
fn cancel_in_flight(mode: Mode) {
    with_pool(mode, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        one.query("wait").await;
        until("it runs", || {
            house.servers().iter().any(|server| server.is_running())
        })
        .await;
        house.finishes_cancels(false);
        one.is_asked(Ask::Cancel);
        assert_eq!(one.answer().await, "EZI");
        one.send(&TERMINATE).await;
        assert_eq!(one.end().await, "goodbye");
        other.query("rows 1 1").await;
        until("the other waits", || thread.view().waiters == 1).await;
        turns(20).await;
        assert_eq!(
            house.server().heard(),
            ["wait", "cancel"],
            "in {mode:?} mode"
        );
        house.finishes_cancels(true);
        assert_eq!(other.answer().await, "DCZI");
        let behind = match mode {
            Mode::Session => vec!["wait", "cancel", "", "DISCARD ALL", "rows 1 1"],
            _ => vec!["wait", "cancel", "", "rows 1 1"],
        };
        assert_eq!(house.server().heard(), behind);
    });
}

#[test]
fn a_connection_is_not_lent_while_a_cancel_for_it_is_in_flight() {
    cancel_in_flight(Mode::Transaction);
}

#[test]
fn a_connection_is_not_reset_while_a_cancel_for_it_is_in_flight() {
    cancel_in_flight(Mode::Session);
}

#[test]
fn a_server_that_died_while_idle_is_never_lent() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        let first = house.server();
        first.die();
        until("it is closed", || first.is_closed.get()).await;
        assert_eq!(client.ask("rows 2 1").await, "DDCZI");
        assert_eq!(first.heard(), ["rows 1 1"]);
        assert_eq!(house.servers()[1].heard(), ["rows 2 1"]);
    });
}

#[test]
fn what_postgres_says_to_an_idle_connection_costs_it_nothing_and_reaches_nobody() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        let server = house.server();
        let notice = Report::new(SqlState::SUCCESSFUL_COMPLETION, "by the way").notice();
        let news = Message::new(b'A').u32(1).text("news").text("").done();
        server.say(&[notice, news, parameter_status("TimeZone", "CET")].concat());
        until("it is said", || server.has_said()).await;
        turns(5).await;
        assert_eq!(client.ask("rows 2 1").await, "DDCZI");
        assert_eq!(house.server().heard(), ["rows 1 1", "rows 2 1"]);
        // Nor is it the client's wish elsewhere.
        server.die();
        until("it is closed", || server.is_closed.get()).await;
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        assert_eq!(house.servers()[1].heard(), ["rows 1 1"]);
    });
}

#[test]
fn a_sweep_drops_what_died_while_idle() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        assert_eq!(thread.client().ask("rows 1 1").await, "DCZI");
        let first = house.server();
        until("it is idle", || thread.view().tally.idle() == 1).await;
        first.die();
        until("it is swept", || {
            thread.pools().sweep();
            thread.view().tally.total() == 0
        })
        .await;
    });
}

#[test]
fn a_request_that_dies_with_its_server_fails_and_the_session_goes_on() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        assert_eq!(client.ask("die").await, "EZI");
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        client.send(&batch("die")).await;
        let answer = client.answer().await;
        assert_eq!(answer, "12EZI");
        assert_eq!(client.ask("rows 2 1").await, "DDCZI");
        assert_eq!(house.servers().len(), 3);
        until("nothing is lent", || thread.view().tally.idle() == 1).await;
    });
}

/// A server of `house` runs pgweir's own query.
async fn amid_own_query(house: &House) -> Rc<Server> {
    let running = || {
        let mut servers = house.servers().into_iter();
        servers.find(|server| server.is_running() && !server.is_closed.get())
    };
    until("pgweir's own query runs", || running().is_some()).await;
    running().expect("it runs until it is told otherwise")
}

#[test]
fn a_question_that_was_stopped_is_asked_once_more_and_then_the_client_keeps_its_server() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut client, mut other) = (thread.client(), thread.client());
        for stopped in [1, 2] {
            assert_eq!(client.ask("set slow = 1").await, "CZI");
            let server = amid_own_query(&house).await;
            for _ in 0..stopped {
                let before = server.heard().len();
                server.times_out();
                let again = || server.heard().len() > before;
                until("it is over", || again() || !server.is_running()).await;
                turns(2).await;
            }
            server.finish();
            assert_eq!(
                client.ask("rows 1 1").await,
                "DCZI",
                "stopped {stopped} times"
            );
            let heard = server.heard();
            let asked = heard.iter().filter(|said| said.contains("'slow'")).count();
            assert_eq!(asked, if stopped == 1 { 2 } else { 4 });
        }
        other.query("rows 2 1").await;
        until("it is kept", || thread.view().waiters == 1).await;
        client.send(&TERMINATE).await;
        assert_eq!(other.answer().await, "DDCZI");
    });
}

#[test]
fn a_timeout_of_the_client_before_ends_pgweirs_own_query_and_no_session() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut hasty = thread.client_with(&[("statement_timeout", "1ms")]);
        assert_eq!(hasty.ask("rows 1 1").await, "DCZI");
        let mut other = thread.client_with(&[("TimeZone", "slow")]);
        other.query("rows 2 1").await;
        let server = amid_own_query(&house).await;
        let before = server.heard().len();
        server.times_out();
        until("it is tried again", || server.heard().len() > before).await;
        server.finish();
        assert_eq!(other.answer().await, "DDCZI");
        assert_eq!(server.heard().last().map(String::as_str), Some("rows 2 1"));
        assert_eq!(server.heard().len(), before + 2);
    });
}

#[test]
fn a_server_that_ends_amid_pgweirs_own_query_fails_the_request_behind_it_and_no_more() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client_with(&[("TimeZone", "slow")]);
        client.query("rows 1 1").await;
        amid_own_query(&house).await.is_terminated();
        let error = client.packet().await;
        assert_eq!(
            ServerError::parse(&error.body).code,
            SqlState::ADMIN_SHUTDOWN
        );
        assert_eq!(client.answer().await, "ZI");
        client.send(&batch("rows 2 1")).await;
        amid_own_query(&house).await.is_terminated();
        assert_eq!(client.answer().await, "EZI");
        client.query("rows 3 1").await;
        amid_own_query(&house).await.finish();
        assert_eq!(client.answer().await, "DDDCZI");
        assert_eq!(house.servers().len(), 3);
        until("nothing is lent", || thread.view().tally.idle() == 1).await;
    });
}

#[test]
fn a_server_that_ends_before_it_was_sent_anything_of_the_clients_is_replaced_unseen() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client_with(&[("role", "slow")]);
        client.query("rows 1 1").await;
        amid_own_query(&house).await.is_terminated();
        until("another is asked", || house.servers().len() == 2).await;
        amid_own_query(&house).await.die();
        until("another is asked", || house.servers().len() == 3).await;
        amid_own_query(&house).await.finish();
        assert_eq!(client.answer().await, "DCZI");
        until("nothing is lent", || thread.view().tally.idle() == 1).await;
        // Not for ever: perhaps it is that query that they die of.
        client.send(&TERMINATE).await;
        let mut client = thread.client_with(&[("role", "too 'slow'")]);
        client.query("rows 1 1").await;
        for _ in 0..=TRIES {
            let server = amid_own_query(&house).await;
            server.is_terminated();
            until("it is gone", || server.is_closed.get()).await;
        }
        assert_eq!(
            client.last_words().await,
            ("08006".to_owned(), "server_lost")
        );
    });
}

#[test]
fn a_server_that_ends_while_it_is_asked_what_its_client_has_set_ends_the_session_in_its_own_words()
{
    for goes_on in [false, true] {
        with_pool(Mode::Transaction, 1, async |house, thread| {
            let mut client = thread.client();
            assert_eq!(client.ask("set slow = 1").await, "CZI");
            let server = amid_own_query(&house).await;
            if goes_on {
                client.query("rows 1 1").await;
                turns(5).await;
            }
            server.is_terminated();
            let words = ("57P01".to_owned(), "server_lost");
            assert_eq!(client.last_words().await, words);
        });
    }
}

#[test]
fn a_cancel_that_comes_late_and_meets_a_reset_ends_no_session() {
    with_pool(Mode::Session, 1, async |house, thread| {
        let mut client = thread.client_with(&[("TimeZone", "slow")]);
        client.query("wait").await;
        amid_own_query(&house).await.finish();
        let server = house.server();
        until("the client's query runs", || server.heard().len() == 2).await;
        house.signals_late(true);
        house.finishes_cancels(false);
        client.is_asked(Ask::Cancel);
        until("it is on its way", || server.heard().len() == 3).await;
        server.finish();
        assert_eq!(client.answer().await, "CZI");
        assert_eq!(client.ask("reset all").await, "CZI");
        amid_own_query(&house).await;
        client.query("rows 1 1").await;
        house.finishes_cancels(true);
        until("it is tried again", || server.heard().len() == 6).await;
        amid_own_query(&house).await.finish();
        assert_eq!(client.answer().await, "DCZI");
        let heard = server.heard();
        let own = heard[0].as_str();
        assert_eq!(
            heard,
            [own, "wait", "cancel", "reset all", own, own, "rows 1 1"]
        );
        assert_eq!(server.hit(), [own]);
    });
}

#[test]
fn more_than_a_failed_request_lost_ends_the_session_with_the_servers_last_words() {
    let scripts: [(Mode, &[&str], Vec<u8>); 4] = [
        (Mode::Transaction, &["begin"], query("die")),
        (Mode::Session, &[], query("die")),
        (
            Mode::Transaction,
            &[],
            [query("die"), query("rows 1 1")].concat(),
        ),
        (Mode::Transaction, &[], query("die; set x = 1")),
    ];
    for (mode, before, last) in scripts {
        with_pool(mode, 1, async |house, thread| {
            let (mut one, mut other) = (thread.client(), thread.client());
            for sql in before {
                one.ask(sql).await;
            }
            one.send(&last).await;
            assert_eq!(one.last_words().await, ("57P01".to_owned(), "server_lost"));
            assert_eq!(other.ask("rows 1 1").await, "DCZI");
            assert_eq!(house.servers().len(), 2);
        });
    }
}

#[test]
fn a_server_that_dies_without_a_word_is_explained_also_behind_an_error() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        client.query("wait").await;
        until("it runs", || {
            house.servers().iter().any(|server| server.is_running())
        })
        .await;
        house.server().die();
        let words = ("08006".to_owned(), "server_lost");
        assert_eq!(client.last_words().await, words);

        // An ordinary error is no reason.
        let mut client = thread.client();
        client.send(&[query("fail"), query("wait")].concat()).await;
        assert_eq!(client.answer().await, "EZI");
        until("it runs", || house.servers()[1].is_running()).await;
        house.servers()[1].die();
        assert_eq!(client.last_words().await, words);
    });
}

/// An extended query, whole.
fn batch(sql: &str) -> Vec<u8> {
    let parse = Message::new(b'P').text("").text(sql).u16(0).done();
    let bind = Message::new(b'B')
        .text("")
        .text("")
        .u16(0)
        .u16(0)
        .u16(0)
        .done();
    let execute = Message::new(b'E').text("").u32(0).done();
    [parse, bind, execute, Message::new(b'S').done()].concat()
}

#[test]
fn a_client_that_breaks_the_protocol_harms_nobody_else() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut one = thread.client();
        assert_eq!(one.ask("rows 1 1").await, "DCZI");
        for bad in [
            &b"z\0\0\0\x04"[..],
            b"Q\0\0\0\x03",
            b"Q\x7f\xff\xff\xff",
            b"p\0\0\0\x05\0",
        ] {
            for before in [vec![], query("rows 1 2")] {
                let mut rude = thread.client();
                rude.send(&[&before[..], bad].concat()).await;
                assert_eq!(rude.last_words().await.1, "protocol_violation");
            }
            assert_eq!(one.ask("rows 1 1").await, "DCZI");
        }
        // What stood before the violation was run, or cancelled; the connection is the same throughout.
        let heard = house.server().heard();
        let own = heard.iter().filter(|said| **said == "rows 1 1").count();
        assert_eq!((own, house.servers().len()), (5, 1), "{heard:?}");
    });
}

/// Replies of which the client reads nothing before it is to leave: some fit into its socket, some do not, and of some
/// the session itself holds the end. `early`: it is told to leave before the server has answered.
fn drain_behind_a_slow_client(mode: Mode, early: bool) {
    for rows in (0..480).step_by(24) {
        with_pool(mode, 1, async |house, thread| {
            let mut slow = thread.client();
            let large = query(&format!("rows {rows} 1000"));
            slow.send(&[query("wait"), large].concat()).await;
            until("it runs", || {
                house.servers().iter().any(|server| server.is_running())
            })
            .await;
            if early {
                slow.is_asked(Ask::Drain);
            }
            slow.is_asked(Ask::Cancel);
            turns(5).await;
            slow.is_asked(Ask::Drain);
            turns(2).await;
            assert_eq!(slow.answer().await, "EZI");
            assert_eq!(slow.answer().await, format!("{}CZI", "D".repeat(rows)));
            // It is asked again and again. If it is still too slow for its last words, it goes without.
            slow.is_asked(Ask::Drain);
            assert_eq!(slow.end().await, "drained");
        });
    }
}

#[test]
fn a_drain_waits_until_a_slow_client_has_its_reply() {
    drain_behind_a_slow_client(Mode::Transaction, false);
    drain_behind_a_slow_client(Mode::Transaction, true);
}

#[test]
fn a_drain_in_session_mode_waits_until_a_slow_client_has_its_reply() {
    drain_behind_a_slow_client(Mode::Session, false);
    drain_behind_a_slow_client(Mode::Session, true);
}

#[test]
fn a_server_whose_cancel_is_not_answered_in_time_serves_nobody_else() {
    on_a_thread(async {
        let house = House::open();
        let mut settings = house.settings(Mode::Transaction, 1);
        settings.cancel_limit = Duration::from_millis(50);
        let (thread, inbox) = Thread::several(1, settings).pop().expect("one");
        Thread::run_errands(inbox);
        let (mut one, mut other) = (thread.client(), thread.client());
        one.query("wait").await;
        let running = || house.servers().iter().any(|server| server.is_running());
        until("it runs", running).await;
        house.finishes_cancels(false);
        one.is_asked(Ask::Cancel);
        assert_eq!(one.answer().await, "EZI");
        // The signal may still be on its way.
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
        let heard: Vec<_> = house
            .servers()
            .iter()
            .map(|server| server.heard())
            .collect();
        assert_eq!(heard, [vec!["wait", "cancel"], vec!["rows 1 1"]]);
    });
}

#[test]
fn a_cancel_of_a_session_that_runs_nothing_goes_nowhere() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let mut client = thread.client();
        client.is_asked(Ask::Cancel);
        assert_eq!(client.ask("begin").await, "CZT");
        client.is_asked(Ask::Cancel);
        turns(5).await;
        assert_eq!(client.ask("commit").await, "CZI");
        client.is_asked(Ask::Cancel);
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        assert_eq!(house.server().heard(), ["begin", "commit", "rows 1 1"]);
    });
}

#[test]
fn a_server_that_refuses_the_newest_protocol_is_asked_for_the_oldest() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        house.knows_minor(0);
        let mut client = thread.client();
        assert_eq!(client.ask("rows 1 1").await, "DCZI");
        assert_eq!(house.servers().len(), 1);
    });
}

#[test]
fn a_cancel_answers_the_first_of_several_waiting_requests_also_an_extended_one() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        let whole = [batch("never"), query("nor this"), query("but this")].concat();
        let (early, late) = whole.split_at(batch("never").len() - 1);
        other.send(early).await;
        until("it waits", || thread.view().waiters == 1).await;
        // Its Sync is missing: there is nothing to answer yet.
        other.is_asked(Ask::Cancel);
        turns(3).await;
        other.send(late).await;
        turns(3).await;
        for _ in 0..2 {
            other.is_asked(Ask::Cancel);
            assert_eq!(other.answer().await, "EZI");
        }
        assert_eq!(thread.view().waiters, 1, "for the last one");
        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(other.answer().await, "CZI");
        assert_eq!(house.server().heard(), ["begin", "commit", "but this"]);
        other.is_asked(Ask::Cancel);
        assert_eq!(other.ask("rows 1 1").await, "DCZI");
    });
}

#[test]
fn a_waiter_that_goes_behind_a_long_request_leaves_the_queue() {
    with_pool(Mode::Transaction, 1, async |house, thread| {
        let (mut one, mut gone) = (thread.client(), thread.client());
        assert_eq!(one.ask("begin").await, "CZT");
        gone.query(&"x".repeat(20_000)).await;
        until("it waits", || thread.view().waiters == 1).await;
        turns(3).await;
        gone.hurry_at(1, Patience::default());
        turns(3).await;
        assert_eq!(thread.view().waiters, 1, "it is still there");
        gone.leaves_and_is_looked_for().await;
        assert_eq!(thread.view().waiters, 0);
        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(house.server().heard(), ["begin", "commit"]);
    });
}
