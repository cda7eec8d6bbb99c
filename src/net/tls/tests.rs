use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType,
};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use sha2::{Digest, Sha256, Sha384};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::accept::Acceptor;
use super::certificate::{Subject, end_point};
use super::connect::Connector;
use super::files::TlsError;
use super::records::Records;
use super::stream::TlsStream;
use crate::config::checked::{Tls, TlsMode, TlsVersion};

/// An authority and what it has signed, in files.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { directory, issuer }
    }

    /// Signs a certificate and writes it to files of this name.
    fn issue(&self, file: &str, common_name: &str, alternatives: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let params = params(common_name, alternatives);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(file), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn tls(&self, mode: TlsMode, file: Option<&str>, ca: Option<PathBuf>) -> Tls {
        Tls {
            mode,
            certificate: file.map(|file| self.path(file)),
            key: file.map(|file| self.path(&format!("{file}.key"))),
            ca,
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            ciphers: Vec::new(),
            curves: Vec::new(),
        }
    }

    fn acceptor(&self, mode: TlsMode, file: &str, ca: Option<PathBuf>) -> Arc<Acceptor> {
        let tls = self.tls(mode, Some(file), ca);
        Acceptor::read(&tls, None).unwrap().unwrap()
    }

    fn connector(&self, file: Option<&str>, ca: Option<PathBuf>) -> Arc<Connector> {
        Connector::read(&self.tls(TlsMode::Require, file, ca), None).unwrap()
    }
}

fn params(common_name: &str, alternatives: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    for name in alternatives {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        });
    }
    params
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

async fn handshake(
    connector: &Connector,
    host: &str,
    named: bool,
    acceptor: &Acceptor,
) -> (io::Result<Box<TlsStream>>, io::Result<Box<TlsStream>>) {
    let (client, server) = sockets().await;
    tokio::join!(
        connector.connect(client, host, named),
        acceptor.accept(server, &[])
    )
}

/// Both ends of a TLS connection.
async fn pair() -> (Box<TlsStream>, Box<TlsStream>) {
    let authority = Authority::new();
    authority.issue("server", "db", &[]);
    let acceptor = authority.acceptor(TlsMode::Prefer, "server", None);
    let connector = authority.connector(None, None);
    let (client, server) = handshake(&connector, "db", false, &acceptor).await;
    (client.unwrap(), server.unwrap())
}

#[tokio::test]
async fn the_hosts_name_is_looked_for_as_libpq_does() {
    let authority = Authority::new();
    for (common_name, alternatives, host, fits) in [
        ("db.internal", &[][..], "db.internal", true),
        ("DB.internal", &[], "db.internal", true),
        ("*.internal", &[], "db.internal", true),
        ("*.internal", &[], "a.db.internal", false),
        ("*.internal", &[], "internal", false),
        ("db.internal", &[], "other.internal", false),
        ("10.0.0.1", &[], "10.0.0.1", true),
        // The common name counts only where there is no other.
        ("db.internal", &["other.internal"], "db.internal", false),
        ("db.internal", &["10.0.0.1"], "db.internal", false),
        ("x", &["db.internal", "10.0.0.1"], "db.internal", true),
        ("x", &["db.internal", "10.0.0.1"], "10.0.0.1", true),
        ("x", &["*.site.example"], "db.site.example", true),
        ("x", &["10.0.0.1"], "10.0.0.2", false),
    ] {
        authority.issue("server", common_name, alternatives);
        let acceptor = authority.acceptor(TlsMode::Prefer, "server", None);
        let connector = authority.connector(None, Some(authority.path("ca")));
        let case = format!("{common_name} {alternatives:?} {host}");
        let (client, _) = handshake(&connector, host, true, &acceptor).await;
        assert_eq!(client.is_ok(), fits, "{case}: {client:?}");
        let (client, _) = handshake(&connector, host, false, &acceptor).await;
        client.expect(&case);
    }
}

#[tokio::test]
async fn only_who_is_trusted_is_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.issue("server", "db", &["db"]);
    theirs.issue("server", "db", &["db"]);
    let connector = ours.connector(None, Some(ours.path("ca")));
    for (authority, trusted) in [(&ours, true), (&theirs, false)] {
        let acceptor = authority.acceptor(TlsMode::Prefer, "server", None);
        let (client, _) = handshake(&connector, "db", false, &acceptor).await;
        assert_eq!(client.is_ok(), trusted, "{client:?}");
        // A server's own certificate may be what is trusted.
        let pinned = ours.connector(None, Some(authority.path("server")));
        let (client, _) = handshake(&pinned, "db", true, &acceptor).await;
        client.unwrap();
        // Without authorities nobody asks.
        let careless = ours.connector(None, None);
        let (client, _) = handshake(&careless, "no host's name", false, &acceptor).await;
        client.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_trusted_while_it_is_valid() {
    let authority = Authority::new();
    for (year, valid) in [(4000, true), (2001, false)] {
        let key = KeyPair::generate().unwrap();
        let mut params = params("db", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(authority.path("self"), certificate.pem()).unwrap();
        std::fs::write(authority.path("self.key"), key.serialize_pem()).unwrap();
        let acceptor = authority.acceptor(TlsMode::Prefer, "self", None);
        let connector = authority.connector(None, Some(authority.path("self")));
        let (client, _) = handshake(&connector, "db", false, &acceptor).await;
        assert_eq!(client.is_ok(), valid, "{client:?}");
    }
}

#[tokio::test]
async fn a_clients_certificate_is_asked_for_and_checked() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.issue("server", "db", &[]);
    ours.issue("ann", "ann", &[]);
    theirs.issue("ann", "ann", &[]);
    let (with, without) = (
        ours.connector(Some("ann"), None),
        ours.connector(None, None),
    );
    let forged = theirs.connector(Some("ann"), None);
    for (mode, optional) in [(TlsMode::Require, true), (TlsMode::VerifyCa, false)] {
        let acceptor = ours.acceptor(mode, "server", Some(ours.path("ca")));
        let (_, server) = handshake(&with, "db", false, &acceptor).await;
        let certificate = server.unwrap().peer_certificate().cloned().unwrap();
        let subject = Subject::of(&certificate).unwrap();
        assert_eq!(subject.common_name.as_deref(), Some("ann"));
        let (_, server) = handshake(&without, "db", false, &acceptor).await;
        assert_eq!(server.is_ok(), optional, "{mode:?}");
        let (_, server) = handshake(&forged, "db", false, &acceptor).await;
        assert_eq!(server.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn sessions_are_resumed_as_long_as_the_files_hold_the_same() {
    let authority = Authority::new();
    authority.issue("server", "db", &[]);
    let tls = authority.tls(TlsMode::Prefer, Some("server"), None);
    let (mut acceptor, mut connector) = (None, None);
    for (renewed, resumed) in [(false, false), (false, true), (true, false), (false, true)] {
        if renewed {
            authority.issue("server", "db", &[]);
        }
        acceptor = Acceptor::read(&tls, acceptor.as_ref()).unwrap();
        let plain = authority.tls(TlsMode::Require, None, None);
        connector = Some(Connector::read(&plain, connector.as_ref()).unwrap());
        let (client, server) = handshake(
            connector.as_deref().unwrap(),
            "db",
            false,
            acceptor.as_deref().unwrap(),
        )
        .await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(server.is_resumed(), resumed);
        assert_eq!(client.is_resumed(), resumed);
        // A ticket comes behind the handshake, with the first that is read.
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }
}

#[test]
fn mistakes_name_their_file() {
    let authority = Authority::new();
    authority.issue("server", "db", &[]);
    authority.issue("other", "db", &[]);
    std::fs::write(authority.path("empty"), "").unwrap();
    std::fs::write(authority.path("broken"), "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    let right = authority.tls(TlsMode::Prefer, Some("server"), None);
    let other_key = Some(authority.path("other.key"));
    for (tls, file) in [
        (authority.tls(TlsMode::Prefer, Some("none"), None), "none"),
        (authority.tls(TlsMode::Prefer, Some("empty"), None), "empty"),
        (
            authority.tls(TlsMode::Prefer, Some("broken"), None),
            "broken",
        ),
        (
            Tls {
                key: Some(authority.path("server")),
                ..right.clone()
            },
            "server",
        ),
        // A key that belongs to another certificate.
        (
            Tls {
                key: other_key,
                ..right.clone()
            },
            "server",
        ),
        (
            Tls {
                ca: Some(authority.path("server.key")),
                ..right.clone()
            },
            "server.key",
        ),
    ] {
        let path = authority.path(file).display().to_string();
        let error: TlsError = Acceptor::read(&tls, None).expect_err(file);
        assert!(error.to_string().starts_with(&path), "{error}");
        let error: TlsError = Connector::read(&tls, None).expect_err(file);
        assert!(error.to_string().starts_with(&path), "{error}");
    }
}

#[test]
fn tls_that_is_not_offered_needs_no_files() {
    let authority = Authority::new();
    let off = authority.tls(TlsMode::Disable, Some("missing"), None);
    assert!(Acceptor::read(&off, None).unwrap().is_none());
    let without = authority.tls(TlsMode::Prefer, None, None);
    assert!(Acceptor::read(&without, None).unwrap().is_none());
}

#[test]
fn the_end_point_is_hashed_as_the_signature_is() {
    let usual = KeyPair::generate().unwrap();
    let certificate = params("db", &[]).self_signed(&usual).unwrap();
    let hash = Sha256::digest(certificate.der());
    assert_eq!(end_point(certificate.der()).as_deref(), Some(&hash[..]));

    let strong = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = params("db", &[]).self_signed(&strong).unwrap();
    let hash = Sha384::digest(certificate.der());
    assert_eq!(end_point(certificate.der()).as_deref(), Some(&hash[..]));

    // RFC 5929 does not say what it is for a signature without a hash of its own.
    let modern = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = params("db", &[]).self_signed(&modern).unwrap();
    assert_eq!(end_point(certificate.der()), None);
}

#[test]
fn a_certificate_is_for_its_names_alone() {
    let key = KeyPair::generate().unwrap();
    let certificate = params("ann", &["site.example"]).self_signed(&key).unwrap();
    let subject = Subject::of(certificate.der()).unwrap();
    for (name, is) in [
        ("ann", true),
        ("site.example", true),
        ("Ann", false),
        ("", false),
    ] {
        assert_eq!(subject.is(name), is, "{name}");
    }
    // A name that ends early for who reads it as C does.
    let certificate = params("ann\0.evil", &[]).self_signed(&key).unwrap();
    let subject = Subject::of(certificate.der()).unwrap();
    assert_eq!(subject.common_name, None);
    assert_eq!(Subject::of(&b"no certificate"[..].into()), None);
}

#[tokio::test]
async fn what_a_slow_reader_does_not_take_is_owed_and_nothing_else_is_accepted() {
    let (client, mut server) = pair().await;
    let chunk = vec![7; 200_000];
    let mut cx = Context::from_waker(Waker::noop());
    let mut accepted = 0;
    while let std::task::Poll::Ready(written) = Pin::new(&mut server).poll_write(&mut cx, &chunk) {
        accepted += written.unwrap();
        assert!(accepted < 100_000_000, "the socket has no end");
    }
    assert!(Pin::new(&mut server).poll_flush(&mut cx).is_pending());
    let mut client = client;
    let reading = async {
        let mut read = vec![0; accepted];
        client.read_exact(&mut read).await.unwrap();
        read
    };
    let (flushed, read) = tokio::join!(server.flush(), reading);
    flushed.unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
}

#[test]
fn a_connection_changes_its_thread_with_what_it_has_read() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let (moving, client) = first.block_on(async {
        let (mut client, mut server) = pair().await;
        client.write_all(b"first, second").await.unwrap();
        let mut read = [0; 7];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"first, ");
        // The rest of the record is with us, and the kernel knows nothing of it.
        assert!(!server.is_quiet());
        let noop = &mut Context::from_waker(Waker::noop());
        assert!(server.poll_readable(noop).is_ready());
        (server.unregister().unwrap(), client)
    });
    let second = std::thread::spawn(move || {
        runtime().block_on(async {
            let mut server = moving.register().unwrap();
            let mut read = [0; 6];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"second");
            assert!(server.is_quiet());
            server.write_all(b"third").await.unwrap();
            server.shutdown().await.unwrap();
        });
    });
    first.block_on(async {
        let mut client = client;
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"third");
    });
    second.join().unwrap();
}

#[tokio::test]
async fn a_stream_that_is_dropped_says_goodbye() {
    let (mut client, server) = pair().await;
    drop(server);
    let mut read = Vec::new();
    assert_eq!(client.read_to_end(&mut read).await.unwrap(), 0);
    assert!(client.is_goodbye_heard());
}

#[tokio::test]
async fn what_is_no_tls_is_told_by_an_alert() {
    let authority = Authority::new();
    authority.issue("server", "db", &[]);
    let acceptor = authority.acceptor(TlsMode::Prefer, "server", None);
    let (mut client, server) = sockets().await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = acceptor.accept(server, &[]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut heard = Vec::new();
    let _ = client.read_to_end(&mut heard).await;
    assert_eq!(heard.first(), Some(&21), "an alert: {heard:?}");
}

#[tokio::test]
async fn after_a_broken_record_nothing_more_is_said_or_heard() {
    let (client, mut server) = pair().await;
    let socket = client.unregister().unwrap().into_socket();
    let mut socket = TcpStream::from_std(socket).unwrap();
    socket
        .write_all(b"\x17\x03\x03\x00\x20AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
        .await
        .unwrap();
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(server.write_all(b"x").await.is_err());
    assert!(server.read_u8().await.is_err());
}

/// Two ends without sockets.
fn records() -> (Records, Records) {
    thread_local! {
        static CONFIGS: (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) = {
            let authority = Authority::new();
            authority.issue("server", "db", &[]);
            let acceptor = authority.acceptor(TlsMode::Prefer, "server", None);
            let connector = authority.connector(None, None);
            (connector.any_host().clone(), acceptor.config().clone())
        };
    }
    let (client, server) = CONFIGS.with(Clone::clone);
    let name = ServerName::try_from("db").unwrap();
    (
        Records::client(UnbufferedClientConnection::new(client, name).unwrap()),
        Records::server(UnbufferedServerConnection::new(server).unwrap(), &[]),
    )
}

/// Moves what `from` has to send to `to`, in pieces of `cut` bytes.
fn carry(from: &mut Records, to: &mut Records, cut: usize) {
    let sent = from.unsent().get().to_vec();
    from.unsent_mut().advance(sent.len());
    for piece in sent.chunks(cut) {
        to.hear(piece);
        to.open_heard().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn however_records_are_cut_the_same_is_read(
        said in proptest::collection::vec(0usize..40_000, 1..6),
        cut in 1usize..5000,
        room in 1usize..70_000,
    ) {
        let (mut client, mut server) = records();
        client.open_heard().unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server, cut);
            carry(&mut server, &mut client, cut);
        }
        let mut scratch = vec![0; 200_000];
        let (mut expected, mut heard) = (Vec::new(), Vec::new());
        for (index, length) in said.into_iter().enumerate() {
            let plain = vec![u8::try_from(index).unwrap(); length];
            expected.extend_from_slice(&plain);
            let sealed = client.seal(&plain, &mut scratch).unwrap();
            let sealed = scratch[..sealed].to_vec();
            for piece in sealed.chunks(cut) {
                server.hear(piece);
                // Something is sent at any moment, in the middle of a record too.
                server.seal(b"reply", &mut [0; 100]).unwrap();
                let mut room = vec![0; room];
                loop {
                    let mut buffer = ReadBuf::new(&mut room);
                    server.pass_opened(&mut buffer);
                    let filled = server.lay_out(&mut scratch);
                    let used = server.open(&mut scratch[..filled], &mut buffer).unwrap();
                    server.keep(&scratch[used..filled]);
                    heard.extend_from_slice(buffer.filled());
                    if buffer.filled().is_empty() {
                        break;
                    }
                }
            }
        }
        prop_assert!(heard == expected);
        prop_assert!(server.is_quiet() && !server.is_readable());
        client.close().unwrap();
        carry(&mut client, &mut server, cut);
        prop_assert!(server.is_peer_closed());
    }
}
