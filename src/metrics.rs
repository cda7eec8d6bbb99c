//! Every metric series, declared once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// A counter that one thread writes and any thread reads: adding costs no locked instruction.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds `n`. Only the owning thread may call this: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one thread moved for one pool.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes read from clients.
    pub received: Tally,
    /// Bytes read from Postgres.
    pub sent: Tally,
    /// ReadyForQuery messages: a simple query, or an extended batch up to its Sync.
    pub queries: Tally,
    /// Leases that ended settled.
    pub transactions: Tally,
    /// Times that a session got a server connection.
    pub assignments: Tally,
    /// Microseconds in transactions, and in statements outside of one.
    pub transaction_time: Tally,
    /// Microseconds from requests to their ReadyForQuery.
    pub query_time: Tally,
    /// Microseconds that somebody waited for a server connection.
    pub wait_time: Tally,
    /// Parse messages of clients.
    pub client_parses: Tally,
    /// Parse messages of theirs and of pgweir's own that went to Postgres.
    pub server_parses: Tally,
    /// Bind messages of clients.
    pub binds: Tally,
    /// Sessions that were let in.
    pub logins: Tally,
}

impl Traffic {
    /// Somebody's wait for a server connection is over.
    pub fn waited(&self, micros: u64) {
        self.wait_time.add(micros);
    }
}

/// What one session did. Its own task writes it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes read from its client.
    pub received: Tally,
    /// Bytes read from Postgres for it.
    pub sent: Tally,
    /// ReadyForQuery messages.
    pub queries: Tally,
    /// Transactions, and statements outside of one.
    pub transactions: Tally,
}

/// A time in microseconds.
pub fn in_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Times what a client does on a server connection, in microseconds of whatever clock the caller has. That is read when a
/// server connection is lent and comes back, which reads it anyway, and between two queries of one transaction.
#[derive(Debug, Default)]
pub struct Stint {
    transaction: Option<u64>,
    query: Option<u64>,
    /// Queries that were answered and not timed yet.
    answered: u64,
}

impl Stint {
    /// A transaction begins with its first query.
    pub fn begin(&mut self, now: u64) {
        (self.transaction, self.query) = (Some(now), Some(now));
    }

    /// The client has said something. Begins what has not begun.
    pub fn asked(&mut self, now: impl FnOnce() -> u64) {
        if self.query.is_none() {
            let now = now();
            self.query = Some(now);
            self.transaction.get_or_insert(now);
        }
    }

    /// So many queries were answered.
    pub fn answered(&mut self, count: u64) {
        self.answered += count;
    }

    /// Counts the queries that were answered. `goes_on`: others are in flight.
    pub fn lap(&mut self, now: impl FnOnce() -> u64, goes_on: bool, traffic: &Traffic) {
        if self.answered == 0 {
            return;
        }
        let now = now();
        self.count_queries(now, traffic);
        self.query = goes_on.then_some(now);
    }

    /// The transaction has ended, and with it the last query.
    pub fn end(&mut self, now: u64, traffic: &Traffic) {
        self.count_queries(now, traffic);
        if let Some(began) = self.transaction.take() {
            traffic.transaction_time.add(now.saturating_sub(began));
        }
        self.query = None;
    }

    fn count_queries(&mut self, now: u64, traffic: &Traffic) {
        self.answered = 0;
        if let Some(began) = self.query {
            traffic.query_time.add(now.saturating_sub(began));
        }
    }
}

/// Why metrics could not be written.
pub type RenderError = prometheus::Error;

/// Every series of the process that is counted where it happens. What the pools and the directory know is read from them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Sessions that were let in.
    pub logins: IntCounter,
    login_failures: IntCounterVec,
    sessions_ended: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let logins = IntCounter::new("pgweir_logins_total", "Clients that were let in.");
        let reasons = |name, help| IntCounterVec::new(Opts::new(name, help), &["reason"]);
        let login_failures = reasons(
            "pgweir_login_failures_total",
            "Clients that were not let in, by reason.",
        );
        let sessions_ended = reasons(
            "pgweir_sessions_ended_total",
            "Sessions that ended, by reason.",
        );
        let proof = "names and labels are constants that prometheus accepts";
        let metrics = Self {
            registry,
            logins: logins.expect(proof),
            login_failures: login_failures.expect(proof),
            sessions_ended: sessions_ended.expect(proof),
        };
        let Self {
            registry,
            logins,
            login_failures,
            sessions_ended,
        } = &metrics;
        registry.register(Box::new(logins.clone())).expect(proof);
        registry
            .register(Box::new(login_failures.clone()))
            .expect(proof);
        registry
            .register(Box::new(sessions_ended.clone()))
            .expect(proof);
        metrics
    }
}

impl Metrics {
    /// Counts a client that was not let in.
    pub fn login_failed(&self, reason: &str) {
        self.login_failures.with_label_values(&[reason]).inc();
    }

    /// Counts a session that ended.
    pub fn session_ended(&self, reason: &str) {
        self.sessions_ended.with_label_values(&[reason]).inc();
    }

    /// The text of a scrape; `more` adds what is read rather than counted.
    pub fn render(&self, more: Vec<MetricFamily>) -> Result<String, RenderError> {
        let mut families = self.registry.gather();
        // A family without a series is an error to the encoder: nobody is logged in, say.
        families.extend(
            more.into_iter()
                .filter(|family| !family.get_metric().is_empty()),
        );
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Series of one name that are read at the time of a scrape.
#[derive(Debug)]
pub struct Reading {
    family: MetricFamily,
    labels: &'static [&'static str],
}

impl Reading {
    /// A gauge.
    pub fn gauge(name: &str, help: &str, labels: &'static [&'static str]) -> Self {
        Self::new(name, help, labels, MetricType::GAUGE)
    }

    /// A counter.
    pub fn counter(name: &str, help: &str, labels: &'static [&'static str]) -> Self {
        Self::new(name, help, labels, MetricType::COUNTER)
    }

    fn new(name: &str, help: &str, labels: &'static [&'static str], kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self { family, labels }
    }

    /// Adds a value under these labels.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has only floats")]
    pub fn add(&mut self, values: &[&str], value: u64) {
        let mut metric = Metric::default();
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        if self.family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value as f64);
            metric.set_gauge(gauge);
        }
        self.family.mut_metric().push(metric);
    }

    /// The family, for [`Metrics::render`].
    pub fn done(self) -> MetricFamily {
        self.family
    }
}
