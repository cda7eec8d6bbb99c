//! Each trap of the message flow, by itself.

use std::future::pending;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peers::{
    LIMIT, Sizes, Wire, in_paused_time, is_silent, message, pass, quiet, ready_for_query,
};
use crate::net::end::EndError;
use crate::session::relay::RelayError;
use crate::wire::WireError;
use crate::wire::reply::{Report, Severity, SqlState};
use crate::wire::scan::LARGEST_MESSAGE;

/// Pipes and read buffers that cut everything, some of it, and nothing; and the size of every body.
const COURSES: [(Sizes, usize); 6] = [
    (sizes(1, 6), 0),
    (sizes(1, 64), 40),
    (sizes(5, 7), 3),
    (sizes(64, 16), 500),
    (sizes(64, 4096), 70),
    (sizes(65_536, 65_536), 3000),
];

/// Narrow pipes, for tests in which messages have a size of their own.
const NARROW: [Sizes; 4] = [sizes(1, 6), sizes(3, 64), sizes(64, 16), sizes(4096, 4096)];

const fn sizes(width: usize, scratch: usize) -> Sizes {
    Sizes { width, scratch }
}

/// Plays `script`, word by word, and asserts that every byte arrives and when the lease begins and ends.
///
/// A word is one or more messages written at once: the client's as their letters, the server's after `<`, where a
/// ReadyForQuery is `ZI`, `ZT` or `ZE`. The word `!` says that the lease ends with the word before it. It begins with
/// the first message that is no late part of a COPY.
fn play(script: &str) {
    for (sizes, body) in COURSES {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let seen = Rc::clone(&wire.seen);
            let conduct = async {
                let mut words = script.split(' ').peekable();
                let mut leased = false;
                while let Some(word) = words.next() {
                    if let Some(said) = word.strip_prefix('<') {
                        let bytes = server_says(said.as_bytes(), body);
                        pass(&bytes, &mut far.server, &bytes, &mut far.client).await;
                    } else {
                        let late = |tag: &u8| !leased && b"dcf".contains(tag);
                        let forwarded = word.bytes().skip_while(late);
                        let forwarded: Vec<u8> =
                            forwarded.flat_map(|tag| message(tag, body)).collect();
                        let bytes: Vec<u8> =
                            word.bytes().flat_map(|tag| message(tag, body)).collect();
                        pass(&bytes, &mut far.client, &forwarded, &mut far.server).await;
                        leased |= !forwarded.is_empty();
                    }
                    leased &= words.next_if_eq(&"!").is_none();
                    let moment = format!("{script}: at {word}, {sizes:?}, bodies of {body}");
                    assert_eq!(seen.leased.get(), leased, "lease in {moment}");
                    assert!(is_silent(&mut far.client), "client hears more in {moment}");
                    assert!(is_silent(&mut far.server), "server hears more in {moment}");
                }
            };
            tokio::select! {
                biased;
                error = wire.run(drop) => panic!("{script}: {error}"),
                () = conduct => {}
            }
        });
    }
}

fn server_says(said: &[u8], body: usize) -> Vec<u8> {
    let (mut bytes, mut said) = (vec![], said.iter());
    while let Some(tag) = said.next() {
        bytes.extend(match tag {
            b'Z' => ready_for_query(*said.next().expect("ReadyForQuery has a status")),
            tag => message(*tag, body),
        });
    }
    bytes
}

#[test]
fn a_simple_query_settles_at_its_ready_for_query_and_not_before() {
    play("Q <T <D <D <C <ZI !");
    play("Q <TDDCZI ! Q <I <ZI ! Q <E <ZI !");
    play("F <V <ZI !");
}

#[test]
fn a_transaction_keeps_the_lease_until_it_ends() {
    play("Q <C <ZT Q <T <D <C <ZT Q <C <ZI !");
    play("Q <CZT Q <E <ZE Q <E <ZE Q <C <ZI !");
}

#[test]
fn pipelined_queries_settle_when_the_last_is_answered() {
    play("QQQ <C <ZI <C <ZI <C <ZI !");
    play("Q Q <CZI Q <CZI <C <ZI !");
}

#[test]
fn several_syncs_in_flight_settle_when_the_last_is_answered() {
    play("PBES <12C <ZI !");
    play("PBES PBES PBDES <12C <ZI <12C <ZI <12nC <ZI !");
    play("PBESPBES <E <ZI <E <ZI !");
}

#[test]
fn a_parse_without_sync_keeps_the_lease() {
    play("P <1 BE <2C S <ZI !");
    play("QP <C <ZI <1 S <ZI !");
}

#[test]
fn a_flush_without_sync_keeps_the_lease() {
    play("PBEH <12 <C S <ZI !");
    play("PH <1 H BEH <2C S <ZI !");
}

#[test]
fn a_sync_inside_copy_in_is_not_answered() {
    play("Q <G S d dc <C <ZI !");
    play("PBES <12 <G d d c <C S <ZI !");
    play("PBES <12 <G S d c S <C <ZI !");
}

#[test]
fn what_a_client_sends_after_a_failed_copy_is_passed_over_once_settled() {
    play("Q <G d d <E d <ZI ! d d c Q <C <ZI !");
    play("Q <G d <EZI ! ddf Q <C <ZI !");
    play("Q <G d <EZI ! ddcQ <C <ZI ! d c");
}

#[test]
fn a_failed_extended_copy_settles_at_the_sync_behind_it() {
    play("PBES <12 <G dd <E d c S <ZI !");
    play("PBEH <12 <G dd <E d c S <ZI !");
    play("PBES <12 <G ddcS <E <ZI !");
}

#[test]
fn a_copy_that_the_client_fails_settles() {
    play("Q <G ddf <E <ZI !");
    play("Q <C <ZT Q <G ddf <E <ZE Q <C <ZI !");
    play("PBEH <12G d fS <E <ZI !");
}

#[test]
fn copy_out_settles_when_it_is_through() {
    play("Q <H <d <dd <c <C <ZI !");
    play("PBES <12H <d <c <C <ZI !");
}

#[test]
fn an_error_skips_to_the_next_sync() {
    play("PBE <1E PBE BES <ZI !");
    play("PBESPBES <E <ZI <12C <ZI !");
}

#[test]
fn notices_and_parameters_settle_nothing() {
    play("Q <N <S <A <C <S <ZI !");
}

#[test]
fn streaming_replication_never_settles() {
    play("Q <W d <d c <c <C <ZI");
}

#[test]
fn a_query_behind_the_one_being_answered_goes_to_the_same_server() {
    for sizes in NARROW {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let query = message(b'Q', 9);
            let conduct = async {
                let together = [&query[..], &query[..8]].concat();
                pass(&together, &mut far.client, &together, &mut far.server).await;
                let answer = ready_for_query(b'I');
                pass(&answer, &mut far.server, &answer, &mut far.client).await;
                pass(&query[8..], &mut far.client, &query[8..], &mut far.server).await;
                pass(&answer, &mut far.server, &answer, &mut far.client).await;
            };
            let ((), settled) = tokio::join!(conduct, wire.lease());
            let _ = settled.expect("both are answered");
            let proved = *wire.seen.server.written.borrow() == query.repeat(2);
            assert!(proved, "in one lease, with {sizes:?}");
        });
    }
}

#[test]
fn a_cut_header_of_the_next_query_waits_for_the_next_server() {
    for sizes in NARROW {
        for kept in 1..=4 {
            in_paused_time(async {
                let (mut wire, mut far) = Wire::new(sizes);
                let query = message(b'Q', 9);
                let answer = ready_for_query(b'I');
                let conduct = async {
                    let together = [&query[..], &query[..kept]].concat();
                    pass(&together, &mut far.client, &query, &mut far.server).await;
                    pass(&answer, &mut far.server, &answer, &mut far.client).await;
                };
                let ((), settled) = tokio::join!(conduct, wire.lease());
                let _ = settled.expect("the first is answered");
                assert!(is_silent(&mut far.server), "{kept} bytes, {sizes:?}");

                far.server = wire.change_server(sizes.width);
                let conduct = async {
                    pass(&query[kept..], &mut far.client, &query, &mut far.server).await;
                    pass(&answer, &mut far.server, &answer, &mut far.client).await;
                };
                let ((), settled) = tokio::join!(conduct, wire.lease());
                let _ = settled.expect("the second is answered");
            });
        }
    }
}

#[test]
fn a_half_sent_message_keeps_the_lease_until_it_is_whole() {
    for sizes in NARROW {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let seen = Rc::clone(&wire.seen);
            let (query, copied) = (message(b'Q', 9), message(b'd', 1000));
            let replies = [message(b'E', 20), ready_for_query(b'I')].concat();
            let conduct = async {
                pass(&query, &mut far.client, &query, &mut far.server).await;
                let copying = message(b'G', 3);
                pass(&copying, &mut far.server, &copying, &mut far.client).await;
                pass(
                    &copied[..700],
                    &mut far.client,
                    &copied[..700],
                    &mut far.server,
                )
                .await;
                pass(&replies, &mut far.server, &replies, &mut far.client).await;
                assert!(seen.leased.get(), "a CopyData is cut, {sizes:?}");
                pass(
                    &copied[700..999],
                    &mut far.client,
                    &copied[700..999],
                    &mut far.server,
                )
                .await;
                assert!(seen.leased.get(), "its last byte is missing, {sizes:?}");
                pass(
                    &copied[999..],
                    &mut far.client,
                    &copied[999..],
                    &mut far.server,
                )
                .await;
            };
            let ((), settled) = tokio::join!(conduct, wire.lease());
            let _ = settled.expect("the copy has failed and the message is whole");
        });
    }
}

#[test]
fn a_lease_ends_with_the_last_byte_that_a_slow_server_takes() {
    in_paused_time(async {
        let (mut wire, mut far) = Wire::between(4096, 1, 4096);
        let seen = Rc::clone(&wire.seen);
        let conduct = async {
            let query = message(b'Q', 9);
            pass(&query, &mut far.client, &query, &mut far.server).await;
            let copying = message(b'G', 3);
            pass(&copying, &mut far.server, &copying, &mut far.client).await;
            let rest = message(b'd', 40);
            far.client.write_all(&rest).await.unwrap();
            // It fails before it has read all that it was sent, and reads the rest later.
            let replies = [message(b'E', 20), ready_for_query(b'I')].concat();
            pass(&replies, &mut far.server, &replies, &mut far.client).await;
            assert!(seen.leased.get(), "a part of a CopyData is on its way");
            far.server
                .read_exact(&mut vec![0; rest.len()])
                .await
                .unwrap();
            quiet().await;
            assert!(
                !seen.leased.get(),
                "nothing is owed, and nobody says anything"
            );
        };
        let ((), settled) = tokio::join!(conduct, wire.lease());
        let _ = settled.expect("the copy has failed");
    });
}

#[test]
fn a_late_copy_message_cut_over_many_reads_is_passed_over() {
    for sizes in NARROW {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let conduct = async {
                let late = [message(b'd', 10_000), message(b'd', 0), message(b'c', 0)].concat();
                for part in late.chunks(777) {
                    pass(part, &mut far.client, b"", &mut far.server).await;
                    assert!(is_silent(&mut far.server));
                }
                let query = message(b'Q', 9);
                pass(&query, &mut far.client, &query, &mut far.server).await;
                let answer = ready_for_query(b'I');
                pass(&answer, &mut far.server, &answer, &mut far.client).await;
            };
            let ((), settled) = tokio::join!(conduct, wire.lease());
            let _ = settled.expect("the query alone was sent, and answered");
        });
    }
}

#[test]
fn a_message_of_a_megabyte_passes_and_the_relay_never_holds_more_than_one_buffer() {
    for (client, server) in [(64, 64), (50_000, 64), (64, 50_000)] {
        in_paused_time(async {
            let scratch = 4096;
            let (mut wire, mut far) = Wire::between(client, server, scratch);
            let seen = Rc::clone(&wire.seen);
            let query = message(b'Q', 1_000_000);
            let replies = [message(b'D', 1_000_000), ready_for_query(b'I')].concat();
            let conduct = async {
                pass(&query, &mut far.client, &query, &mut far.server).await;
                pass(&replies, &mut far.server, &replies, &mut far.client).await;
            };
            let ((), settled) = tokio::join!(conduct, wire.lease());
            let _ = settled.expect("it is answered");
            let held = seen.held.get();
            assert!(held <= scratch, "held {held} bytes");
            assert!(
                client == server || held > scratch / 2,
                "nobody was too slow: {held}"
            );
        });
    }
}

#[test]
fn a_client_that_sends_more_than_the_pipes_hold_while_replies_come_is_served() {
    for sizes in NARROW {
        in_paused_time(async {
            const QUERIES: usize = 300;
            let (mut wire, mut far) = Wire::new(sizes);
            let answer = [message(b'D', 150), ready_for_query(b'I')].concat();
            let query = message(b'Q', 100);
            // As Postgres does: nothing is read before the answer is written.
            let server = async {
                let mut heard = query.clone();
                for _ in 0..QUERIES {
                    far.server.read_exact(&mut heard).await.unwrap();
                    far.server.write_all(&answer).await.unwrap();
                }
            };
            let (mut reader, mut writer) = tokio::io::split(far.client);
            let mut answered = vec![0; answer.len() * QUERIES];
            let client = async {
                let queries = query.repeat(QUERIES);
                let (sent, read) =
                    tokio::join!(writer.write_all(&queries), reader.read_exact(&mut answered));
                sent.and(read.map(drop)).unwrap();
            };
            let both = async { tokio::join!(server, client) };
            tokio::select! {
                biased;
                error = wire.run(drop) => panic!("{error}"),
                _ = both => {}
            }
            assert!(answered == answer.repeat(QUERIES));
        });
    }
}

#[test]
fn the_last_words_of_a_server_reach_the_client_before_its_end_does() {
    for sizes in NARROW {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let report = Report::new(SqlState::ADMIN_SHUTDOWN, "x".repeat(300));
            let (query, last) = (message(b'Q', 9), report.error(Severity::Fatal));
            let conduct = async {
                pass(&query, &mut far.client, &query, &mut far.server).await;
                let mut server = far.server;
                let farewell = async {
                    server.write_all(&last).await.unwrap();
                    drop(server);
                };
                // The client does not know yet, and what it sends is lost; but not what was said to it.
                let (mut reader, mut writer) = tokio::io::split(far.client);
                let (mut heard, later) = (vec![0; last.len()], query.repeat(3));
                let unaware = async {
                    let _ = writer.write_all(&later).await;
                    pending::<()>().await;
                };
                let listening = async { tokio::join!(farewell, reader.read_exact(&mut heard)) };
                tokio::select! {
                    () = unaware => {}
                    ((), read) = listening => drop(read.unwrap()),
                }
                assert!(heard == last);
            };
            let ((), ended) = tokio::join!(conduct, wire.lease());
            let error = ended.expect_err("the server has gone");
            assert!(
                matches!(error, RelayError::ServerLost(EndError::Closed)),
                "{error:?}"
            );
            assert!(wire.server_said_why());
        });
    }
}

#[test]
fn a_client_that_goes_is_told_from_a_server_that_goes() {
    in_paused_time(async {
        let (mut wire, mut far) = Wire::new(NARROW[0]);
        let conduct = async {
            let half = &message(b'Q', 9)[..6];
            pass(half, &mut far.client, half, &mut far.server).await;
            drop(far.client);
        };
        let ((), ended) = tokio::join!(conduct, wire.lease());
        let error = ended.expect_err("the client has gone");
        assert!(
            matches!(error, RelayError::ClientGone(EndError::Closed)),
            "{error:?}"
        );
    });
}

#[test]
fn impossible_lengths_from_a_client_are_refused_and_go_nowhere() {
    let lengths = [0, 1, 2, 3, LIMIT + 1, LARGEST_MESSAGE, u32::MAX];
    for (sizes, length) in NARROW
        .into_iter()
        .flat_map(|sizes| lengths.map(|length| (sizes, length)))
    {
        let expected = if length < 4 {
            WireError::Length { tag: 'Q', length }
        } else {
            WireError::TooLong {
                tag: 'Q',
                length,
                limit: LIMIT,
            }
        };
        let bad = [&b"Q"[..], &length.to_be_bytes()].concat();
        for before in ["", "Q", "PB"] {
            let before: Vec<u8> = before.bytes().flat_map(|tag| message(tag, 9)).collect();
            in_paused_time(async {
                let (mut wire, mut far) = Wire::new(sizes);
                let conduct = async {
                    pass(&before, &mut far.client, &before, &mut far.server).await;
                    far.client.write_all(&bad).await.unwrap();
                    quiet().await;
                    assert!(is_silent(&mut far.server), "{bad:?} went through");
                };
                let ((), ended) = tokio::join!(conduct, wire.lease());
                match ended.expect_err("it is no protocol") {
                    RelayError::Violation(error) => assert_eq!(error, expected),
                    error => panic!("{error:?}"),
                }
            });
        }
    }
}

#[test]
fn what_stands_in_one_read_before_a_violation_is_sent_and_owed() {
    in_paused_time(async {
        let (mut wire, mut far) = Wire::new(sizes(64, 64));
        let good = message(b'Q', 9);
        let bad = [good.clone(), b"Q\0\0\0\x03".to_vec()].concat();
        far.client.write_all(&bad).await.unwrap();
        let error = wire.lease().await.expect_err("it is no protocol");
        assert!(matches!(error, RelayError::Violation(_)), "{error:?}");
        let mut heard = vec![0; good.len()];
        far.server.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, good);
        assert!(is_silent(&mut far.server), "and nothing behind it");
        assert!(!wire.server_is_settled());
    });
}

#[test]
fn messages_that_no_client_may_send_are_refused_and_go_nowhere() {
    // Postgres ends the session at these, and with it the connection of whoever has it by then.
    for (sizes, tag) in NARROW
        .into_iter()
        .flat_map(|sizes| [0, b'p', b'z', b'D' | 0x80].map(|tag| (sizes, tag)))
    {
        for before in ["", "Q"] {
            let before: Vec<u8> = before.bytes().flat_map(|tag| message(tag, 9)).collect();
            in_paused_time(async {
                let (mut wire, mut far) = Wire::new(sizes);
                let conduct = async {
                    pass(&before, &mut far.client, &before, &mut far.server).await;
                    // The relay may have read enough before all is written.
                    let _ = tokio::time::timeout(
                        std::time::Duration::from_millis(1),
                        far.client.write_all(&message(tag, 3)),
                    )
                    .await;
                    quiet().await;
                    assert!(is_silent(&mut far.server), "{tag} went through");
                };
                let ((), ended) = tokio::join!(conduct, wire.lease());
                match ended.expect_err("it is no protocol") {
                    RelayError::Violation(error) => {
                        assert_eq!(error, WireError::UnknownTag(tag as char));
                    }
                    error => panic!("{error:?}"),
                }
            });
        }
    }
}

#[test]
fn impossible_lengths_from_a_server_are_its_fault_and_go_nowhere() {
    for (sizes, length) in NARROW
        .into_iter()
        .flat_map(|sizes| [0, 3, LARGEST_MESSAGE + 1, u32::MAX].map(|length| (sizes, length)))
    {
        in_paused_time(async {
            let (mut wire, mut far) = Wire::new(sizes);
            let (query, row) = (message(b'Q', 9), message(b'D', 100));
            let conduct = async {
                pass(&query, &mut far.client, &query, &mut far.server).await;
                pass(&row, &mut far.server, &row, &mut far.client).await;
                let bad = [&b"D"[..], &length.to_be_bytes()].concat();
                far.server.write_all(&bad).await.unwrap();
                quiet().await;
                assert!(is_silent(&mut far.client));
            };
            let ((), ended) = tokio::join!(conduct, wire.lease());
            let error = ended.expect_err("it is no protocol");
            assert!(
                matches!(error, RelayError::ServerLost(EndError::Wire(_))),
                "{error:?}"
            );
        });
    }
}

#[test]
fn what_stands_before_a_terminate_is_forwarded_and_it_is_not() {
    for sizes in NARROW {
        for before in ["", "Q", "PBE", "QQ"] {
            in_paused_time(async {
                let (mut wire, mut far) = Wire::new(sizes);
                let before: Vec<u8> = before.bytes().flat_map(|tag| message(tag, 9)).collect();
                let sent = [&before[..], &message(b'X', 0)].concat();
                let conduct = async {
                    let mut heard = vec![0; before.len()];
                    let (written, read) = tokio::join!(
                        far.client.write_all(&sent),
                        far.server.read_exact(&mut heard)
                    );
                    written.and(read.map(drop)).unwrap();
                    assert!(heard == before);
                    quiet().await;
                    assert!(
                        is_silent(&mut far.server),
                        "Terminate went through, {sizes:?}"
                    );
                };
                let ((), ended) = tokio::join!(conduct, async {
                    let ended = wire.lease().await;
                    // What was too much for the pipe is written by whoever brings the connection back to order.
                    wire.flush_server().await;
                    ended
                });
                let error = ended.expect_err("the client said goodbye");
                assert!(matches!(error, RelayError::Goodbye), "{error:?}");
            });
        }
    }
}
