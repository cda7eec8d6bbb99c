//! What the book costs: alone, and with ten thousand waiters in its queues, which must not matter.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

use pgweir::pool::book::{
    Action, Asked, Book, PoolId, PoolLimits, PoolPlace, ServerId, ServiceId, ServiceLimits,
    ThreadId,
};

const WAITERS: u32 = 10_000;
const SERVICES: u32 = 4;
const THREADS: u16 = 2;

struct Bench {
    book: Book,
    pools: Vec<PoolId>,
    services: Vec<ServiceId>,
    now: Duration,
    out: Vec<Action>,
}

impl Bench {
    /// `pools` pools of 20 under a budget that is enough for the first one alone.
    fn new(pools: u32) -> Self {
        let mut book = Book::new();
        let host = book.add_host(Some(20));
        let limits = ServiceLimits {
            max_servers: 18,
            min_servers: 1,
            weight: 1,
            kept_servers: 0,
        };
        let services = (0..SERVICES).map(|_| book.add_service(limits)).collect();
        let pools = (0..pools).map(|_| {
            let place = PoolPlace {
                host,
                database: book.add_database(0),
                user: book.add_user(0),
            };
            let limits = PoolLimits {
                size: 20,
                min_size: 0,
                reserve_size: 0,
                reserve_after: Duration::from_secs(5),
                server_idle: Some(Duration::from_mins(10)),
                in_turn: false,
            };
            book.add_pool(place, limits)
        });
        let pools = pools.collect();
        Self {
            book,
            pools,
            services,
            now: Duration::ZERO,
            out: Vec::new(),
        }
    }

    fn ask(&mut self, number: u32) -> Asked {
        let pool = self.pools[number as usize / SERVICES as usize % self.pools.len()];
        let service = self.services[(number % SERVICES) as usize];
        let thread = ThreadId(u16::try_from(number / 2 % u32::from(THREADS)).expect("small"));
        let deadline = Some(self.now + Duration::from_mins(2));
        self.book
            .ask(self.now, pool, service, thread, deadline, &mut self.out)
    }

    /// Carries out what the book asks for; returns who was granted what.
    fn obey(&mut self) -> Vec<ServerId> {
        let mut granted = Vec::new();
        while !self.out.is_empty() {
            for action in std::mem::take(&mut self.out) {
                match action {
                    Action::Dial { server, .. } => {
                        self.book.dialed(self.now, server, None, &mut self.out);
                    }
                    Action::Grant { waiter, .. } => granted.extend(self.book.take(waiter)),
                    Action::Close { server, .. } => {
                        self.book.closed(self.now, server, &mut self.out);
                    }
                    Action::Refuse { .. } => {}
                }
            }
        }
        granted
    }

    /// All server connections are leased, and ten thousand wait.
    fn full(pools: u32) -> (Self, Vec<ServerId>) {
        let mut bench = Self::new(pools);
        let mut leased = Vec::new();
        for number in 0..WAITERS + 20 {
            bench.now += Duration::from_micros(10);
            if let Asked::Granted { server, .. } = bench.ask(number) {
                leased.push(server);
            }
            leased.extend(bench.obey());
        }
        (bench, leased)
    }

    /// One comes back, its next holder picks it up, and another session asks.
    fn turn(&mut self, leased: &mut [ServerId], number: u32) {
        self.now += Duration::from_micros(50);
        let at = number as usize % leased.len();
        self.book.release(self.now, leased[at], &mut self.out);
        for action in self.out.drain(..) {
            match action {
                Action::Grant { waiter, .. } => {
                    leased[at] = self.book.take(waiter).expect("it was granted");
                }
                other => unreachable!("nothing to dial or close: {other:?}"),
            }
        }
        let _ = black_box(self.ask(number));
    }
}

fn uncontended(criterion: &mut Criterion) {
    let mut bench = Bench::new(1);
    let _ = bench.ask(0);
    for server in bench.obey() {
        bench.book.release(bench.now, server, &mut bench.out);
    }
    criterion.bench_function("ask and release, uncontended", |bencher| {
        bencher.iter(|| {
            bench.now += Duration::from_micros(1);
            let Asked::Granted { server, .. } = bench.ask(0) else {
                unreachable!("it is idle")
            };
            bench.book.release(bench.now, server, &mut bench.out);
        });
    });
}

fn contended(criterion: &mut Criterion) {
    let (mut bench, mut leased) = Bench::full(1);
    assert_eq!(leased.len(), 20);
    let mut number = 0;
    criterion.bench_function("release, take and ask, 10,000 waiters", |bencher| {
        bencher.iter(|| {
            number += 1;
            bench.turn(&mut leased, number);
        });
    });
}

fn tick(criterion: &mut Criterion) {
    let (mut bench, _leased) = Bench::full(1);
    criterion.bench_function("tick, 10,000 waiters", |bencher| {
        bencher.iter(|| {
            bench.now += Duration::from_nanos(1);
            black_box(bench.book.tick(bench.now, &mut bench.out))
        });
    });
    let (mut bench, _leased) = Bench::full(50);
    criterion.bench_function("tick, 10,000 waiters in 50 pools", |bencher| {
        bencher.iter(|| {
            bench.now += Duration::from_nanos(1);
            black_box(bench.book.tick(bench.now, &mut bench.out))
        });
    });
}

criterion_group!(benches, uncontended, contended, tick);
criterion_main!(benches);
