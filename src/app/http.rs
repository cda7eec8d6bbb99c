//! HTTP: metrics and health. Reachable until the very end.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use prometheus::proto::MetricFamily;

use super::serve::App;
use crate::metrics::{Reading, Tally as Tally64, Traffic};
use crate::pool::book::Tally;

/// Serves on `listener`, until the future is dropped.
pub fn serve(
    listener: std::net::TcpListener,
    app: Arc<App>,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let listener = TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(app);
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "http ended");
        }
    })
}

async fn metrics(State(app): State<Arc<App>>) -> Result<String, StatusCode> {
    app.metrics.render(readings(&app)).map_err(|error| {
        tracing::error!(%error, "metrics cannot be written");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}

async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether new clients are let in.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    if app.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    (StatusCode::OK, "ready\n")
}

/// What pools and directory know at this moment.
fn readings(app: &App) -> Vec<MetricFamily> {
    let mut families = Vec::from(clients(app));
    families.extend(servers(app));
    families.extend(traffic(app));
    families.push(reaped(app));
    families
}

fn clients(app: &App) -> [MetricFamily; 2] {
    let mut sessions = Reading::gauge(
        "pgweir_clients",
        "Clients that are logged in.",
        &["database", "user", "service"],
    );
    let mut counts = BTreeMap::new();
    for (who, tally) in app.directory.tally() {
        let key = (who.database.clone(), who.user.clone(), who.service.clone());
        *counts.entry(key).or_default() += tally.total();
    }
    for ((database, user, service), count) in counts {
        sessions.add(&[&database, &user, &service], count);
    }
    let mut sockets = Reading::gauge(
        "pgweir_client_sockets",
        "Client sockets, logged in or not.",
        &[],
    );
    sockets.add(&[], u64::from(app.clients.taken()));
    [sessions.done(), sockets.done()]
}

fn reaped(app: &App) -> MetricFamily {
    let mut reaped = Reading::counter(
        "pgweir_sessions_reaped_total",
        "Sessions that were closed because their deployment is superseded or others needed what they held.",
        &["service", "reason"],
    );
    for ((service, reason), count) in app.reaping.log.counts() {
        reaped.add(&[&service, reason.as_str()], count);
    }
    reaped.done()
}

fn servers(app: &App) -> [MetricFamily; 3] {
    let mut servers = Reading::gauge(
        "pgweir_server_connections",
        "Server connections, by what they do.",
        &["database", "user", "state"],
    );
    let mut waiting = Reading::gauge(
        "pgweir_clients_waiting",
        "Clients that wait for a server connection.",
        &["database", "user"],
    );
    let mut longest = Reading::gauge(
        "pgweir_longest_wait_milliseconds",
        "How long the first of them has waited.",
        &["database", "user"],
    );
    for pool in app.pools.all() {
        let Some((view, wait)) = pool.view() else {
            continue;
        };
        let Tally {
            dialing,
            idle,
            granted,
            leased,
            closing,
        } = view.tally;
        for (state, count) in [
            ("dialing", dialing),
            ("idle", idle),
            ("leased", granted + leased),
            ("closing", closing),
        ] {
            servers.add(&[&pool.database, &pool.user, state], u64::from(count));
        }
        waiting.add(&[&pool.database, &pool.user], u64::from(view.waiters));
        longest.add(
            &[&pool.database, &pool.user],
            u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        );
    }
    [servers.done(), waiting.done(), longest.done()]
}

/// Name, help, and the count it shows.
type Series = (&'static str, &'static str, fn(&Traffic) -> &Tally64);

fn traffic(app: &App) -> Vec<MetricFamily> {
    let labels = &["database", "user"];
    let read: [Series; 4] = [
        (
            "pgweir_transactions_total",
            "Leases of a server connection that ended in order.",
            |traffic| &traffic.transactions,
        ),
        (
            "pgweir_queries_total",
            "Simple queries, and extended ones up to a Sync.",
            |traffic| &traffic.queries,
        ),
        (
            "pgweir_received_bytes_total",
            "Bytes that clients sent.",
            |traffic| &traffic.received,
        ),
        (
            "pgweir_sent_bytes_total",
            "Bytes that Postgres sent.",
            |traffic| &traffic.sent,
        ),
    ];
    let pools = app.pools.all();
    let family = |(name, help, of): Series| {
        let mut reading = Reading::counter(name, help, labels);
        for pool in &pools {
            let sum = pool
                .all_traffic()
                .iter()
                .map(|traffic| of(traffic).read())
                .sum();
            reading.add(&[&pool.database, &pool.user], sum);
        }
        reading.done()
    };
    read.into_iter().map(family).collect()
}
