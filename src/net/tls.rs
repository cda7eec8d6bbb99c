//! TLS over a TCP socket, by rustls. Knows nothing of Postgres.
//!
//! rustls' unbuffered connections are used: its buffered ones keep 4 KiB for their next read and copy everything twice. Here an
//! idle connection owns no buffer, a read and a write are one system call each, and a connection can change its thread.

pub mod accept;
pub mod certificate;
pub mod connect;
pub mod files;
mod records;
pub mod stream;
#[cfg(test)]
mod tests;
mod verify;

pub use self::records::of_openssl;

use rustls::crypto::SupportedKxGroup;
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

use crate::config::checked::{Tls, TlsVersion};
use crate::config::ciphers::Curve;

/// The protocol's name in ALPN (Postgres manual, "SSL Session Encryption").
pub const ALPN: &[u8] = b"postgresql";

/// The versions of TLS that are spoken.
fn versions(tls: &Tls) -> Vec<&'static SupportedProtocolVersion> {
    let versions = [
        (TlsVersion::V1_3, &rustls::version::TLS13),
        (TlsVersion::V1_2, &rustls::version::TLS12),
    ];
    let spoken = versions
        .into_iter()
        .filter(|(version, _)| tls.speaks(*version));
    spoken.map(|(_, version)| version).collect()
}

/// The cryptography of one side: the suites and curves that its settings name, by their preference.
fn provider_of(tls: &Tls) -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    let mut ours = rustls::crypto::ring::default_provider();
    if !tls.ciphers.is_empty() {
        let suites = tls.ciphers.iter().map(|suite| ring_suite(suite.name()));
        ours.cipher_suites = suites.collect();
    }
    if !tls.curves.is_empty() {
        ours.kx_groups = tls.curves.iter().map(|curve| ring_group(*curve)).collect();
    }
    std::sync::Arc::new(ours)
}

/// rustls' suite of OpenSSL's name.
fn ring_suite(name: &str) -> SupportedCipherSuite {
    use rustls::crypto::ring::cipher_suite as suites;
    match name {
        "TLS_AES_256_GCM_SHA384" => suites::TLS13_AES_256_GCM_SHA384,
        "TLS_AES_128_GCM_SHA256" => suites::TLS13_AES_128_GCM_SHA256,
        "TLS_CHACHA20_POLY1305_SHA256" => suites::TLS13_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-AES256-GCM-SHA384" => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-AES128-GCM-SHA256" => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-CHACHA20-POLY1305" => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        other => unreachable!("{other} is none of the suites"),
    }
}

fn ring_group(curve: Curve) -> &'static dyn SupportedKxGroup {
    use rustls::crypto::ring::kx_group;
    match curve {
        Curve::X25519 => kx_group::X25519,
        Curve::P256 => kx_group::SECP256R1,
        Curve::P384 => kx_group::SECP384R1,
    }
}

/// The cryptography: of rustls' two providers the one that takes less CPU for a small record.
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}
