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

use rustls::SupportedProtocolVersion;

use crate::config::checked::TlsVersion;

/// The protocol's name in ALPN (Postgres manual, "SSL Session Encryption").
pub const ALPN: &[u8] = b"postgresql";

/// The versions of TLS that are spoken, by the oldest of them.
fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    use rustls::version::TLS13;
    const ONLY_1_3: &[&SupportedProtocolVersion] = &[&TLS13];
    match oldest {
        TlsVersion::V1_2 => rustls::DEFAULT_VERSIONS,
        TlsVersion::V1_3 => ONLY_1_3,
    }
}

/// The cryptography: of rustls' two providers the one that takes less CPU for a small record.
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}
