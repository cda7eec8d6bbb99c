//! What pgweir rewrites, puts in and leaves out costs no write of its own.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::peers::{Kept, Sizes, Wire, in_paused_time, quiet, ready_for_query};
use crate::wire::reply::{Message, query};

/// Pipes that hold all that is said at once.
const WIDE: Sizes = Sizes {
    width: 65_536,
    scratch: 65_536,
};

/// Bytes that lie in a pipe.
async fn heard(pipe: &mut DuplexStream) -> Vec<u8> {
    quiet().await;
    let mut bytes = vec![0; WIDE.width];
    let read = pipe.read(&mut bytes).await.expect("the relay writes");
    bytes.truncate(read);
    bytes
}

/// The types of messages.
fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while let Some((&[tag, a, b, c, d], rest)) = bytes.split_first_chunk() {
        tags.push(tag as char);
        bytes = &rest[u32::from_be_bytes([a, b, c, d]) as usize - 4..];
    }
    tags
}

/// What a client says and the server answers, and what becomes of both.
struct Lease {
    client: Vec<Vec<u8>>,
    /// What the server hears.
    up: &'static str,
    server: &'static str,
    /// What the client hears.
    down: &'static str,
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    Message::new(b'P').text(name).text(sql).u16(0).done()
}

fn bind(name: &str) -> Vec<u8> {
    let bind = Message::new(b'B').text("").text(name);
    bind.u16(0).u16(0).u16(0).done()
}

fn of_name(tag: u8, name: &str) -> Vec<u8> {
    Message::new(tag).u8(b'S').text(name).done()
}

fn execute() -> Vec<u8> {
    Message::new(b'E').text("").u32(0).done()
}

fn sync() -> Vec<u8> {
    Message::new(b'S').done()
}

/// Plays the lease, in which each side says all it has to say at once, and is told all at once.
async fn play(
    wire: &mut Wire,
    client: &mut DuplexStream,
    server: &mut DuplexStream,
    lease: &Lease,
) {
    let passed = |wire: &Wire| (wire.seen.server.writes.get(), wire.seen.client.writes.get());
    let before = passed(wire);
    client
        .write_all(&lease.client.concat())
        .await
        .expect("it reads");
    let said = async {
        let up = heard(server).await;
        assert_eq!(tags(&up), lease.up);
        let replies: Vec<u8> = lease.server.bytes().flat_map(reply).collect();
        server.write_all(&replies).await.expect("it reads");
    };
    let (settled, ()) = tokio::join!(wire.lease(), said);
    drop(settled.expect("it ends"));
    assert_eq!(tags(&heard(client).await), lease.down);
    let after = passed(wire);
    let writes = (after.0 - before.0, after.1 - before.1);
    assert_eq!(
        writes,
        (1, 1),
        "writes to the server and to the client for {}",
        lease.up
    );
}

fn reply(tag: u8) -> Vec<u8> {
    match tag {
        b'Z' => ready_for_query(b'I'),
        b'C' => Message::new(b'C').text("SELECT 1").done(),
        tag => Message::new(tag).u16(0).done(),
    }
}

#[test]
fn what_is_rewritten_put_in_and_left_out_leaves_in_the_write_of_what_it_stands_beside() {
    in_paused_time(async {
        let (mut wire, mut far) = Wire::new(WIDE);
        wire.tracking = Some(Kept {
            most: 1,
            ..Kept::default()
        });
        let first = [
            // Prepared under another name.
            Lease {
                client: vec![parse("a", "select 1"), of_name(b'D', "a"), sync()],
                up: "PDS",
                server: "1tnZ",
                down: "1tnZ",
            },
            Lease {
                client: vec![bind("a"), execute(), sync()],
                up: "BES",
                server: "2DCZ",
                down: "2DCZ",
            },
            // It is there already: pgweir answers in the server's place, before and behind its replies.
            Lease {
                client: vec![
                    parse("b", "select 1"),
                    bind("b"),
                    execute(),
                    of_name(b'C', "b"),
                    sync(),
                ],
                up: "BES",
                server: "2DCZ",
                down: "12DC3Z",
            },
            // What was there is closed first, and nobody hears of it.
            Lease {
                client: vec![parse("c", "select 2"), bind("c"), execute(), sync()],
                up: "CPBES",
                server: "312DCZ",
                down: "12DCZ",
            },
        ];
        for lease in first {
            play(&mut wire, &mut far.client, &mut far.server, &lease).await;
        }
        // Another server has to be given the statement, and the client's parameters.
        far.server = wire.change_server(WIDE.width);
        let kept = wire.tracking.as_mut().expect("as set above");
        kept.parameters = Arc::new([("TimeZone", "CET")].into_iter().collect());
        let elsewhere = [
            Lease {
                client: vec![bind("a"), of_name(b'D', "a"), execute(), sync()],
                up: "QPBDES",
                server: "TDCZ12tnDCZ",
                down: "2tnDCZ",
            },
            Lease {
                client: vec![bind("c"), execute(), sync(), query("select 3")],
                up: "CPBESQ",
                server: "312DCZDCZ",
                down: "2DCZDCZ",
            },
        ];
        for lease in elsewhere {
            play(&mut wire, &mut far.client, &mut far.server, &lease).await;
        }
    });
}
