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

/// The protocol's name in ALPN (Postgres manual, "SSL Session Encryption").
pub const ALPN: &[u8] = b"postgresql";

/// The cryptography: of rustls' two providers the one that takes less CPU for a small record.
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}
