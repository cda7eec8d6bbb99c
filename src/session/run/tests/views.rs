//! What others see of sessions, server connections, queues and counts.

use std::time::Duration;

use super::house::{until, with_pool};
use crate::config::checked::Mode;
use crate::pool::stats::Totals;
use crate::pool::view::{ServerState, held};
use crate::wire::reply::{Message, TERMINATE};

#[test]
fn who_holds_and_who_waits_is_seen() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let (mut one, mut other) = (thread.client(), thread.client());
        assert_eq!(one.row().state(), "idle");
        assert_eq!(one.ask("begin").await, "CZT");
        other.query("rows 1 1").await;
        until("the other waits", || other.row().state() == "waiting").await;

        let servers = thread.pools().servers();
        assert_eq!(servers.len(), 1);
        let server = &servers[0];
        assert_eq!(server.state, ServerState::Active);
        assert_eq!(&*server.service, "site");
        assert!(server.requested.is_some() && !server.close_needed);
        let session = server.session.as_ref().expect("it is logged in");
        assert_eq!((session.address, session.tls), (None, None));
        let held = held(&servers);
        let held = held.get(&one.row().id).expect("one holds it");
        assert_eq!((held.number, held.pid), (server.number, session.pid));
        assert_eq!(server.client, Some(one.row().id));

        let waiters = thread.pools().waiters();
        assert_eq!(waiters.len(), 1);
        assert_eq!(waiters[0].client, Some(other.row().id));
        assert_eq!((&*waiters[0].service, waiters[0].place), ("site", 1));

        let rows = thread.pools().rows();
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.clients, row.clients_active(), row.waiters), (2, 1, 1));
        assert_eq!(row.servers.of(ServerState::Active), 1);
        assert_eq!((row.parts[0].tally.lent(), row.parts[0].waiters), (1, 1));
        let services = thread.pools().services();
        assert_eq!((services[0].tally.lent(), services[0].waiters), (1, 1));

        assert_eq!(one.ask("commit").await, "CZI");
        assert_eq!(other.answer().await, "DCZI");
        until("it rests", || {
            thread.pools().servers()[0].state == ServerState::Idle
        })
        .await;
        assert_eq!(thread.pools().servers()[0].client, None);
        assert!(thread.pools().waiters().is_empty());
        let row = one.row();
        assert_eq!((row.transactions, row.queries), (1, 2));
        drop(one);
    });
}

#[test]
fn places_in_the_queue_are_counted_from_the_first() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let mut first = thread.client();
        assert_eq!(first.ask("begin").await, "CZT");
        let mut waiting = vec![];
        for count in 1..=300_u32 {
            let mut client = thread.client();
            client.query("rows 1 1").await;
            until("it waits", || thread.view().waiters == count).await;
            waiting.push(client);
        }
        let seen = thread.pools().waiters();
        let expected = waiting
            .iter()
            .zip(1..)
            .map(|(client, place)| (client.row().id, place));
        let seen = seen
            .iter()
            .map(|row| (row.client.expect("a session"), row.place));
        assert!(seen.eq(expected));
    });
}

#[test]
fn what_a_client_does_is_counted_and_timed() {
    with_pool(Mode::Transaction, 1, async |_house, thread| {
        let mut one = thread.client();
        let batch = [
            Message::new(b'P').text("").text("rows 1 1").u16(0).done(),
            Message::new(b'B')
                .text("")
                .text("")
                .u16(0)
                .u16(0)
                .u16(0)
                .done(),
            Message::new(b'E').text("").u32(0).done(),
            Message::new(b'S').done(),
        ];
        one.send(&batch.concat()).await;
        assert!(one.answer().await.ends_with("ZI"));
        assert_eq!(one.ask("begin").await, "CZT");
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(one.ask("commit").await, "CZI");
        let counted = thread.pools().stats().remove(0);
        assert_eq!(&*counted.database, "site");
        let Totals {
            assignments,
            transactions,
            queries,
            client_parses,
            server_parses,
            binds,
            transaction_time,
            query_time,
            ..
        } = counted.totals;
        assert_eq!((assignments, transactions, queries), (2, 2, 3));
        assert_eq!((client_parses, server_parses, binds), (1, 1, 1));
        assert!(
            query_time > 0 && query_time + 2000 <= transaction_time,
            "the client's own time is its transaction's and no query's: {query_time} of {transaction_time}"
        );
        one.send(&TERMINATE).await;
        assert_eq!(one.end().await, "goodbye");
    });
}

#[test]
fn a_server_connection_that_is_brought_back_to_order_is_no_clients() {
    with_pool(Mode::Session, 1, async |house, thread| {
        let mut one = thread.client();
        one.query("wait").await;
        until("it runs", || {
            let servers = thread.pools().servers();
            servers.first().map(|row| row.state) == Some(ServerState::Active)
        })
        .await;
        until("it is heard", || !house.server().heard().is_empty()).await;
        one.vanish().await;
        until("it rests", || {
            let row = thread.pools().servers().remove(0);
            assert_eq!(row.client, None);
            row.state == ServerState::Idle
        })
        .await;
    });
}
