//! Queries and rows through a relay, between peers that do nothing but answer; and the same peers without a relay, whose
//! time is to be taken off.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgweir::client::end::{ClientEnd, Look};
use pgweir::metrics::{Counts, Stint, Traffic};
use pgweir::server::end::ServerEnd;
use pgweir::session::relay::Relay;
use pgweir::wire::reply::{Message, query, ready_for_query};
use pgweir::wire::scan::LARGEST_MESSAGE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::task::spawn_local;

/// As much as one read moves at most.
const SCRATCH: usize = 64 * 1024;

trait Pipe: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Pipe for T {}

fn memory() -> (DuplexStream, DuplexStream) {
    duplex(SCRATCH)
}

fn sockets() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("two sockets")
}

/// The answer to a query: `rows` of 1000 bytes, or one of 5.
fn reply(rows: usize) -> Vec<u8> {
    let row = match rows {
        0 => Message::new(b'D').bytes(b"\0\x01\0\0\0").done(),
        rows => Message::new(b'D').bytes(&[b'.'; 1000]).done().repeat(rows),
    };
    let done = Message::new(b'C').text("SELECT 1").done();
    [row, done, ready_for_query()].concat()
}

async fn relay<S: Pipe>(client: S, server: S) {
    let mut client = ClientEnd::new(client, LARGEST_MESSAGE);
    let mut server = ServerEnd::new(server);
    let (traffic, mut scratch) = (Traffic::default(), vec![0; SCRATCH]);
    let (counts, mut stint, epoch) = (
        Counts::default(),
        Stint::default(),
        tokio::time::Instant::now(),
    );
    loop {
        let request = poll_fn(|cx| {
            ready!(client.poll_flush(cx))?;
            let (input, look) = ready!(client.poll_request(cx, &mut scratch))?;
            let Look::Request(at) = look else {
                return Poll::Ready(Ok(false));
            };
            let mut relay = Relay {
                client: &mut client,
                server: &mut server,
                traffic: &traffic,
                counts: &counts,
                stint: &mut stint,
                epoch,
                blocks: true,
                simple: true,
                tracking: None,
            };
            let said = relay.client_said(cx, &input[at..], &[]);
            Poll::Ready(
                said.map(|()| true)
                    .map_err(|_| pgweir::net::end::EndError::Closed),
            )
        });
        let Ok(true) = request.await else { return };
        let mut relay = Relay {
            client: &mut client,
            server: &mut server,
            traffic: &traffic,
            counts: &counts,
            stint: &mut stint,
            epoch,
            blocks: true,
            simple: true,
            tracking: None,
        };
        let Ok(_proof) = poll_fn(|cx| relay.poll(cx, &mut scratch)).await else {
            return;
        };
    }
}

async fn answer(mut pipe: impl Pipe, question: usize, reply: Vec<u8>) {
    let mut heard = vec![0; question];
    while pipe.read_exact(&mut heard).await.is_ok() && pipe.write_all(&reply).await.is_ok() {}
}

async fn ask(pipe: &mut impl Pipe, question: &[u8], answer: usize, scratch: &mut [u8]) {
    pipe.write_all(question).await.expect("the peer reads");
    let mut left = answer;
    while left > 0 {
        let read = pipe.read(scratch).await.expect("the peer answers");
        assert!(read > 0, "the peer has gone");
        left -= read;
    }
}

/// The time of `count` queries with a reply of so many rows; `relayed` or between the peers directly.
fn time<S: Pipe>(
    runtime: &LocalRuntime,
    pipe: fn() -> (S, S),
    (rows, relayed): (usize, bool),
    count: u64,
) -> Duration {
    runtime.block_on(async {
        let (question, reply) = (query("SELECT 1"), reply(rows));
        let answered = reply.len();
        let (mut client, mut server) = pipe();
        if relayed {
            let (far, beyond) = pipe();
            spawn_local(relay(server, far));
            server = beyond;
        }
        spawn_local(answer(server, question.len(), reply));
        let (mut scratch, begin) = (vec![0; SCRATCH], Instant::now());
        for _ in 0..count {
            ask(&mut client, &question, answered, &mut scratch).await;
        }
        begin.elapsed()
    })
}

fn compare<S: Pipe>(criterion: &mut Criterion, name: &str, pipe: fn() -> (S, S)) {
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default());
    let runtime = runtime.expect("a runtime");
    let mut group = criterion.benchmark_group(name);
    for (kind, rows) in [("query and reply", 0), ("query and 10 MB of rows", 10_000)] {
        if rows > 0 {
            group.sample_size(20);
            group.throughput(Throughput::Bytes(reply(rows).len() as u64));
        }
        for (how, relayed) in [("direct", false), ("relayed", true)] {
            group.bench_function(format!("{kind}, {how}"), |bencher| {
                bencher.iter_custom(|count| time(&runtime, pipe, (rows, relayed), count));
            });
        }
    }
    group.finish();
}

fn relays(criterion: &mut Criterion) {
    compare(criterion, "relay in memory", memory);
    compare(criterion, "relay over unix sockets", sockets);
}

criterion_group!(benches, relays);
criterion_main!(benches);
