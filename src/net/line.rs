//! What is worth telling about a connection's line: where it ends on this side, and how it is secured.

use std::net::SocketAddr;

use super::stream::Stream;

/// How a connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TlsInUse {
    /// The protocol's version.
    pub version: &'static str,
    /// The cipher suite, as rustls calls it.
    pub cipher: &'static str,
}

impl std::fmt::Display for TlsInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.version)?;
        // rustls marks the suites of TLS 1.3, the registry does not.
        if let Some(name) = self.cipher.strip_prefix("TLS13_") {
            return write!(f, "TLS_{name}");
        }
        // For older ones OpenSSL, and so Postgres and PgBouncer, have names of their own.
        let Some(name) = self.cipher.strip_prefix("TLS_") else {
            return f.write_str(self.cipher);
        };
        let name = name.replace("_WITH_", "-").replace("AES_", "AES");
        let name = name.replace("POLY1305_SHA256", "POLY1305");
        f.write_str(&name.replace('_', "-"))
    }
}

/// One connection's line. Few differ, so whoever keeps many shares them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// Our own address; `None`: a unix socket.
    pub local: Option<SocketAddr>,
    /// `None`: in clear.
    pub tls: Option<TlsInUse>,
}

impl Line {
    /// The line of a connected socket. Costs a system call.
    pub fn of(stream: &Stream) -> Self {
        let local = match stream {
            Stream::Tcp(socket) => socket.local_addr().ok(),
            Stream::Unix(_) => None,
            Stream::Tls(stream) => stream.socket().local_addr().ok(),
        };
        let tls = stream.tls().map(|stream| TlsInUse {
            version: stream.version(),
            cipher: stream.cipher(),
        });
        Self { local, tls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cipher_suite_has_the_name_that_openssl_gives_it() {
        let shown = |cipher| {
            let version = "TLSv1.3";
            TlsInUse { version, cipher }.to_string()
        };
        assert_eq!(
            shown("TLS13_AES_256_GCM_SHA384"),
            "TLSv1.3/TLS_AES_256_GCM_SHA384"
        );
        assert_eq!(
            shown("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
            "TLSv1.3/ECDHE-RSA-AES128-GCM-SHA256"
        );
        assert_eq!(
            shown("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
            "TLSv1.3/ECDHE-ECDSA-CHACHA20-POLY1305"
        );
    }
}
