//! The password of `listen.http_password`, asked for by HTTP Basic.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::app::serve::App;
use crate::config::checked::Secret;

/// What a browser is asked. It shows the realm to its user.
const CHALLENGE: &str = "Basic realm=\"pgweir\", charset=\"UTF-8\"";

/// What a script is asked: nothing that its browser would open a dialogue for, every two seconds. The page says so itself.
const CHALLENGE_FOR_SCRIPTS: &str = "X-Basic realm=\"pgweir\"";

/// Lets a request pass that shows the password, if there is one.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let world = app.world();
    let shown = request.headers().get(AUTHORIZATION);
    match &world.config.listen.http_password {
        Some(password) if !shows(shown, password) => {
            let challenge = [(WWW_AUTHENTICATE, challenge(&request))];
            (StatusCode::UNAUTHORIZED, challenge, "password needed\n").into_response()
        }
        _ => next.run(request).await,
    }
}

fn challenge(request: &Request) -> &'static str {
    match request.headers().get("sec-fetch-dest") {
        Some(destination) if destination == "empty" => CHALLENGE_FOR_SCRIPTS,
        _ => CHALLENGE,
    }
}

/// Whether a header shows the password, with any user name.
fn shows(header: Option<&HeaderValue>, password: &Secret) -> bool {
    let Some(shown) = header.and_then(password_in) else {
        return false;
    };
    // Digests are of one length, so that the time it takes tells nothing, not even the length.
    let [shown, wanted] = [&shown[..], password.expose().as_bytes()].map(Sha256::digest);
    shown.ct_eq(&wanted).into()
}

/// The password in `Basic base64(user:password)` (RFC 7617).
fn password_in(header: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let credentials = STANDARD.decode(credentials.trim()).ok()?;
    let colon = credentials.iter().position(|byte| *byte == b':')?;
    Some(credentials[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(header: &str) -> bool {
        let header = HeaderValue::from_str(header).unwrap();
        shows(Some(&header), &Secret::new("a:b ü"))
    }

    fn basic(credentials: &str) -> String {
        format!("Basic {}", STANDARD.encode(credentials))
    }

    #[test]
    fn the_password_counts_and_the_user_does_not() {
        assert!(passes(&basic("anybody:a:b ü")));
        assert!(passes(&basic(":a:b ü")));
        assert!(passes(&basic(":a:b ü").replace("Basic", "bAsIc")));
        for wrong in ["", "a:b ü", ":", ":a", ":a:b ü ", ":a:b üx", "x:A:B Ü"] {
            assert!(!passes(&basic(wrong)), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_basic_credential_does_not_pass() {
        for wrong in [
            "",
            "Basic",
            "Basic ",
            "Basic !!",
            "Bearer YTpiIMO8",
            "Basic Og",
        ] {
            assert!(!passes(wrong), "{wrong}");
        }
        assert!(!shows(None, &Secret::new("x")));
    }
}
