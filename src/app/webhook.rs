//! Tells a webhook about alerts and incidents: a JSON POST over http or https.
//!
//! A thread of its own does so, behind a bounded queue: a receiver that hangs or fails costs pgweir nothing but what it was not
//! told. The url is a secret, as most such urls hold their token; no log line has it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::checked::Secret;
use crate::net::tls::provider;

/// What waits to be told. More than that is dropped: who has not heard for so long is helped by the next one as well.
const MOST_WAITING: usize = 100;

/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How often one is tried.
const TRIES: u32 = 4;

/// The pause after the first try that failed; it doubles.
const PAUSE: Duration = Duration::from_secs(1);

/// Where to tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The url.
    pub url: Secret,
    /// Authorities that sign the receiver's certificate, as PEM; `None`: those of the system.
    pub ca: Option<std::path::PathBuf>,
}

/// What is told. The fields are what receivers may rely on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `raised`, `repeated`, `resolved`, `incident_opened` or `incident_closed`.
    pub event: String,
    /// What it is about: `service_servers`, `headroom`, ...
    pub alert: String,
    /// Of which service or Postgres; empty for the process.
    pub subject: String,
    /// What was measured.
    pub value: u64,
    /// What it was measured against.
    pub threshold: u64,
    /// Who holds most of it.
    pub service: String,
    /// Its deployment; empty if it says none.
    pub deployment: String,
    /// How many it holds.
    pub count: u64,
    /// In a sentence, for people. Chat programs show this one.
    pub text: String,
    /// What to type to see more, or to do something about it.
    pub command: String,
    /// The incident's number; 0: none.
    pub incident: u64,
    /// When.
    pub at: String,
    /// Which pgweir tells it.
    pub pgweir: String,
}

/// What became of messages.
#[derive(Debug, Default)]
pub struct Told {
    /// Those that were taken.
    pub sent: AtomicU64,
    /// Those that were given up.
    pub failed: AtomicU64,
    /// Those for which there was no room.
    pub dropped: AtomicU64,
}

/// The way to the thread. Dropped, the thread ends.
#[derive(Debug)]
pub struct Webhook {
    queue: SyncSender<(Place, Message)>,
    told: Arc<Told>,
}

impl Webhook {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Self> {
        let (queue, inbox) = sync_channel(MOST_WAITING);
        let told = Arc::new(Told::default());
        let counts = Arc::clone(&told);
        thread::Builder::new()
            .name("webhook".into())
            .spawn(move || work(&inbox, &counts))?;
        Ok(Self { queue, told })
    }

    /// Has something told. Never waits.
    pub fn tell(&self, place: &Place, message: Message) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send((place.clone(), message)) {
            self.told.dropped.fetch_add(1, Relaxed);
            tracing::warn!("the webhook does not keep up: a message for it was dropped");
        }
    }

    /// What became of messages.
    pub fn told(&self) -> &Told {
        &self.told
    }
}

fn work(inbox: &Receiver<(Place, Message)>, told: &Told) {
    let mut agent: Option<(Place, Agent)> = None;
    while let Ok((place, message)) = inbox.recv() {
        if agent.as_ref().is_none_or(|(known, _)| *known != place) {
            agent = match self::agent(&place) {
                Ok(agent) => Some((place.clone(), agent)),
                Err(error) => {
                    tracing::error!("webhook: {error}");
                    told.failed.fetch_add(1, Relaxed);
                    continue;
                }
            };
        }
        let Some((_, agent)) = &agent else { continue };
        match post_until_taken(agent, &place.url, &message) {
            Ok(()) => told.sent.fetch_add(1, Relaxed),
            Err(error) => {
                tracing::error!(
                    event = message.event,
                    alert = message.alert,
                    "webhook: {error}: given up"
                );
                told.failed.fetch_add(1, Relaxed)
            }
        };
    }
}

/// Why a message was not taken, without the url.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("{path}: {cause}")]
    Authorities { path: String, cause: String },
    #[error("the receiver answered {0}")]
    Status(u16),
    #[error("{0}")]
    Failed(String),
}

impl HookError {
    /// Whether the same may be taken another time.
    fn is_passing(&self) -> bool {
        match self {
            Self::Authorities { .. } => false,
            // A request that is wrong stays so, but for "timeout" and "too many".
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 429),
            Self::Failed(_) => true,
        }
    }
}

fn agent(place: &Place) -> Result<Agent, HookError> {
    let roots = match &place.ca {
        Some(path) => authorities(path)?,
        None => system_authorities(),
    };
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider())
        .root_certs(RootCerts::from(roots))
        .build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(LIMIT))
        .http_status_as_error(false)
        // To where the token was given, and nowhere else.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("pgweir/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, HookError> {
    let failed = |cause: String| HookError::Authorities {
        path: path.display().to_string(),
        cause,
    };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
    if found.is_empty() {
        return Err(failed("holds no certificate".to_owned()));
    }
    Ok(found)
}

fn system_authorities() -> Vec<Certificate<'static>> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!("webhook: an authority of the system cannot be read: {error}");
    }
    let certificates = loaded.certs.iter();
    certificates
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect()
}

fn post_until_taken(agent: &Agent, url: &Secret, message: &Message) -> Result<(), HookError> {
    let body = serde_json::to_vec(message).unwrap_or_default();
    let mut pause = PAUSE;
    let mut tries = 1;
    loop {
        let error = match post(agent, url, &body) {
            Ok(()) => return Ok(()),
            Err(error) if tries == TRIES || !error.is_passing() => return Err(error),
            Err(error) => error,
        };
        tracing::warn!(tries, "webhook: {error}: tried again in {pause:?}");
        thread::sleep(pause);
        pause *= 2;
        tries += 1;
    }
}

fn post(agent: &Agent, url: &Secret, body: &[u8]) -> Result<(), HookError> {
    let request = agent.post(url.expose());
    let answer = request.content_type("application/json").send(body);
    // What it says may hold the url.
    let failed = |error: ureq::Error| {
        HookError::Failed(match error {
            ureq::Error::BadUri(_) => "the url cannot be used".to_owned(),
            error => error.to_string().replace(url.expose(), "(url)"),
        })
    };
    let status = answer.map_err(failed)?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(HookError::Status(status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use rcgen::{CertificateParams, Issuer, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// Reads one request and gives its head and body.
    fn request(stream: &mut impl Read) -> (String, String) {
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "cut: {head}");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn answer(stream: &mut impl Write, status: &str) {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        stream.flush().unwrap();
    }

    /// A server that answers its requests like this, one after the other, and what it was asked.
    fn server(statuses: Vec<&'static str>) -> (String, Receiver<(String, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!(
            "http://{}/hook?token=hunter2",
            listener.local_addr().unwrap()
        );
        let (seen, requests) = channel();
        thread::spawn(move || {
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                seen.send(request(&mut stream)).unwrap();
                answer(&mut stream, status);
            }
        });
        (url, requests)
    }

    fn place(url: &str) -> Place {
        Place {
            url: Secret::new(url),
            ca: None,
        }
    }

    fn message(text: &str) -> Message {
        Message {
            event: "raised".into(),
            text: text.into(),
            ..Message::default()
        }
    }

    fn await_count(count: &AtomicU64, least: u64) {
        let start = Instant::now();
        while count.load(Relaxed) < least {
            assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_message_arrives_as_json() {
        let (url, requests) = server(vec!["204 No Content"]);
        let webhook = Webhook::start().unwrap();
        webhook.tell(&place(&url), message("site has 33"));
        let (head, body) = requests.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(
            head.starts_with("POST /hook?token=hunter2 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.to_lowercase()
                .contains("content-type: application/json"),
            "{head}"
        );
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["event"], "raised");
        assert_eq!(value["text"], "site has 33");
        await_count(&webhook.told().sent, 1);
    }

    #[test]
    fn what_fails_is_tried_again_and_what_is_refused_is_not() {
        let (url, requests) = server(vec!["503 Busy", "200 OK", "400 No", "200 OK"]);
        let webhook = Webhook::start().unwrap();
        for text in ["one", "two", "three"] {
            webhook.tell(&place(&url), message(text));
        }
        await_count(&webhook.told().sent, 2);
        await_count(&webhook.told().failed, 1);
        let texts: Vec<String> = requests.iter().map(|(_, body)| body).collect();
        let told: Vec<bool> = texts.iter().map(|body| body.contains("\"one\"")).collect();
        assert_eq!(told, [true, true, false, false], "{texts:?}");
    }

    #[test]
    fn a_receiver_that_hangs_blocks_nobody() {
        // It accepts into its backlog and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let webhook = Webhook::start().unwrap();
        let start = Instant::now();
        for _ in 0..MOST_WAITING * 3 {
            webhook.tell(&place(&url), message("x"));
        }
        assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
        assert!(webhook.told().dropped.load(Relaxed) >= 199);
        drop(listener);
    }

    #[test]
    fn an_error_does_not_tell_the_url() {
        let agent = agent(&place("http://127.0.0.1:1/hunter2")).unwrap();
        for url in [
            "http://127.0.0.1:1/hunter2",
            "http://hunter2.invalid/hunter2",
            "http://[hunter2",
        ] {
            let error = post(&agent, &Secret::new(url), b"").unwrap_err();
            assert!(!error.to_string().contains("/hunter2"), "{error}");
        }
    }

    #[test]
    fn https_is_believed_with_the_right_authority_alone() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().unwrap();
        let named = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = named.signed_by(&own, &issuer).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.pem()).unwrap();

        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der())),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move |socket: TcpStream| -> std::io::Result<()> {
            let tls = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
            let mut stream = StreamOwned::new(tls, socket);
            stream.read_exact(&mut [0])?;
            answer(&mut stream, "200 OK");
            Ok(())
        };
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                // Who does not believe us leaves in the middle.
                let _ = serve(socket);
            }
        });
        let url = Secret::new(format!("https://localhost:{port}/"));
        let with = |ca: Option<&Path>| {
            let place = Place {
                url: url.clone(),
                ca: ca.map(Path::to_owned),
            };
            post(&agent(&place).unwrap(), &url, b"{}")
        };
        assert!(with(Some(file.path())).is_ok());
        let error = with(None).unwrap_err().to_string();
        assert!(
            error.contains("certificate") || error.contains("UnknownIssuer"),
            "{error}"
        );
    }
}
