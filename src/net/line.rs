//! What is worth telling about a connection's line: where it ends on this side, and how it is secured.

use std::net::SocketAddr;

use super::stream::Stream;

/// How a connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TlsInUse {
    /// The protocol's version.
    pub version: &'static str,
    /// The cipher suite, by its registered name.
    pub cipher: &'static str,
}

impl std::fmt::Display for TlsInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.version)?;
        // rustls marks the suites of TLS 1.3, the registry does not.
        match self.cipher.strip_prefix("TLS13_") {
            Some(name) => write!(f, "TLS_{name}"),
            None => f.write_str(self.cipher),
        }
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
    fn a_cipher_suite_has_its_registered_name() {
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
            "TLSv1.3/TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
        );
    }
}
