//! The status page: one page from the binary, and the numbers that it shows.
//!
//! The page asks for its numbers every two seconds. They are read at most once in [`FRESH`], however many pages are open, so
//! that a crowd in front of the screen costs what one costs.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::serve::App;

mod feed;
mod guard;
mod history;
mod printable;
mod read;
mod recent;
mod story;
mod watch;

pub use guard::guard;
pub use recent::{Recent, Whom};

/// How old numbers may be that are shown once more.
const FRESH: Duration = Duration::from_millis(500);

/// The page in three parts, which are plain files to work on, and one to load.
const PARTS: [&str; 3] = [
    include_str!("page.html"),
    include_str!("page.css"),
    include_str!("page.js"),
];

/// The whole page, and what it may do in the browser: run its own script, use its own style, ask this server.
static PAGE: LazyLock<(Bytes, String)> = LazyLock::new(|| {
    let [frame, style, script] = PARTS;
    let page = frame.replace("{style}", style).replace("{script}", script);
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(style),
        hash(script)
    );
    (page.into(), policy)
});

/// As a content security policy names what is written in the page.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// What the process remembers for the page.
#[derive(Debug)]
pub struct Page {
    started: SystemTime,
    /// The last refusals and closings.
    pub recent: Recent,
    watch: Mutex<watch::Watch>,
    /// The numbers as they were last read.
    last: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
    /// The incident that was last read, by its number.
    story: tokio::sync::Mutex<Option<(Instant, u64, Bytes)>>,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            recent: Recent::default(),
            watch: Mutex::default(),
            last: tokio::sync::Mutex::default(),
            story: tokio::sync::Mutex::default(),
        }
    }
}

impl Page {
    /// Notes for the chart what there is at this moment. Called every [`watch::EVERY`].
    pub fn look(&self, app: &App) {
        self.watch.lock().look(app);
    }
}

/// How often [`Page::look`] is to be called.
pub const LOOK: Duration = watch::EVERY;

/// The page and its numbers.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(page))
        .route("/status.json", get(numbers))
        .route("/incidents/{number}", get(incident))
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// What both answers say beside their contents: the numbers are secret to other sites, and true for a moment only.
fn headers(kind: &'static str) -> [(HeaderName, &'static str); 6] {
    [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ]
}

async fn page() -> impl IntoResponse {
    let (page, policy) = &*PAGE;
    let policy = [(CONTENT_SECURITY_POLICY, policy.as_str())];
    (headers(HTML), policy, page.clone())
}

/// Read off the thread that looks after time, and by one at a time: who comes meanwhile gets what that one has read.
async fn numbers(State(app): State<Arc<App>>) -> Result<impl IntoResponse, StatusCode> {
    let mut last = app.page.last.lock().await;
    let fresh = last.as_ref().filter(|(read, _)| read.elapsed() < FRESH);
    if let Some((_, numbers)) = fresh {
        return Ok((headers(JSON), numbers.clone()));
    }
    let reader = Arc::clone(&app);
    let numbers = spawn_blocking(move || serde_json::to_vec(&read::read(&reader))).await;
    let Ok(Ok(numbers)) = numbers else {
        tracing::error!("the status page's numbers cannot be read");
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let numbers = Bytes::from(numbers);
    *last = Some((Instant::now(), numbers.clone()));
    Ok((headers(JSON), numbers))
}

/// The story of one incident, read from its file like the numbers: off the thread, and by one at a time.
async fn incident(
    State(app): State<Arc<App>>,
    Path(number): Path<u64>,
) -> Result<impl IntoResponse, StatusCode> {
    let mut last = app.page.story.lock().await;
    let fresh = last
        .as_ref()
        .filter(|(read, of, _)| *of == number && read.elapsed() < FRESH);
    if let Some((_, _, story)) = fresh {
        return Ok((headers(JSON), story.clone()));
    }
    let reader = Arc::clone(&app);
    let story = spawn_blocking(move || {
        let incident = reader.watch.incident(number).ok()?;
        serde_json::to_vec(&story::tell(&incident)?).ok()
    });
    let Ok(Some(story)) = story.await else {
        return Err(StatusCode::NOT_FOUND);
    };
    let story = Bytes::from(story);
    *last = Some((Instant::now(), number, story.clone()));
    Ok((headers(JSON), story))
}

/// Milliseconds of the Unix epoch, which scripts count in.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_everything_in_itself() {
        let page = std::str::from_utf8(&PAGE.0).unwrap();
        assert!(!page.contains("{style}") && !page.contains("{script}"));
        for outside in ["src=", "http://", "https://", "@import", "url("] {
            let allowed = ["http://www.w3.org/2000/svg"];
            let rest = allowed
                .iter()
                .fold(page.to_owned(), |rest, name| rest.replace(name, ""));
            assert!(!rest.contains(outside), "{outside}");
        }
    }

    #[test]
    fn nothing_makes_html_of_text() {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ] {
            assert!(!PARTS[2].contains(way), "{way}");
        }
    }

    #[test]
    fn every_alert_and_every_closing_has_its_words() {
        let causes = crate::incident::Cause::ALL.map(crate::incident::Cause::as_str);
        let closings = crate::pool::errand::Discard::WORDS;
        for word in causes.into_iter().chain(closings) {
            assert!(PARTS[2].contains(&format!("\n  {word}: ")), "{word}");
        }
    }

    #[test]
    fn the_policy_allows_what_is_in_the_page_and_nothing_else() {
        let policy = &PAGE.1;
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
    }
}
