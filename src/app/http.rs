//! HTTP: status page, metrics and health. Reachable until the very end.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use super::page;
use super::scrape::scrape;
use super::serve::App;

/// What Prometheus calls its text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves on `listener`, until the future is dropped.
pub fn serve(
    listener: std::net::TcpListener,
    app: Arc<App>,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let listener = TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .merge(page::routes())
        // What is above tells names; what is below tells probes whether to send clients here, and asks nobody for a password.
        .route_layer(from_fn_with_state(Arc::clone(&app), page::guard))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(app);
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "http ended");
        }
    })
}

/// Off the thread that looks after time: it takes some milliseconds.
async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, StatusCode> {
    let text = spawn_blocking(move || scrape(&app)).await;
    text.map(|text| ([(CONTENT_TYPE, TEXT)], text))
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether new clients are let in and can be served.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match app.ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
