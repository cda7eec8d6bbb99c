//! What it costs to find the messages in a read: per message where they are small, per byte where they are large.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgweir::wire::exchange::Exchange;
use pgweir::wire::reply::Message;
use pgweir::wire::scan::{LARGEST_MESSAGE, Next, Scanner};

/// As much as one read moves at most.
const READ: usize = 64 * 1024;

fn rows(size: usize, total: usize) -> Vec<u8> {
    let row = Message::new(b'D').bytes(&vec![b'.'; size]).done();
    row.repeat(total / row.len())
}

/// Walks `stream` in reads of [`READ`] bytes, as a relay does, and counts the messages.
fn walk(stream: &[u8], mut seen: impl FnMut(u8, &[u8])) {
    let (mut scanner, mut at) = (Scanner::default(), 0);
    while at < stream.len() {
        let buffer = &stream[at..stream.len().min(at + READ)];
        let (used, in_order) = scanner.scan(buffer, LARGEST_MESSAGE, |message| {
            seen(message.tag, message.body);
            Next::Go
        });
        in_order.expect("rows are well-formed");
        if used == 0 {
            break;
        }
        at += used;
    }
}

fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scan");
    for size in [5, 30, 200] {
        let stream = rows(size, READ);
        group.throughput(Throughput::Elements((stream.len() / (size + 5)) as u64));
        group.bench_function(format!("rows of {size} bytes, per message"), |bencher| {
            bencher.iter(|| {
                let mut count = 0_u64;
                walk(black_box(&stream), |_, _| count += 1);
                count
            });
        });
        group.bench_function(
            format!("rows of {size} bytes, noted, per message"),
            |bencher| {
                bencher.iter(|| {
                    let mut exchange = Exchange::default();
                    exchange.client_sent(b'Q');
                    walk(black_box(&stream), |tag, body| {
                        exchange.server_sent(tag, body);
                    });
                    exchange
                });
            },
        );
    }
    for size in [10_000, 1_000_000] {
        let stream = rows(size, 16 << 20);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function(format!("rows of {size} bytes, per byte"), |bencher| {
            bencher.iter(|| {
                let mut count = 0_u64;
                walk(black_box(&stream), |_, _| count += 1);
                count
            });
        });
    }
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
