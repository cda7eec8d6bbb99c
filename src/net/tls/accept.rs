//! TLS towards clients: pgweir is the server.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;

use super::certificate::end_point;
use super::files::{Files, TlsError};
use super::stream::TlsStream;
use super::{ALPN, provider, provider_of, versions};
use crate::config::checked::{Tls, TlsMode};

/// Shakes hands with clients.
pub struct Acceptor {
    config: Arc<ServerConfig>,
    end_point: Option<Box<[u8]>>,
    tls: Tls,
    files: Files,
}

impl Acceptor {
    /// Reads the files of `tls`; `None` if no TLS is offered. What `previous` was made of is not set up again, so that the
    /// tickets that it has given out stay good.
    pub fn read(tls: &Tls, previous: Option<&Arc<Self>>) -> Result<Option<Arc<Self>>, TlsError> {
        let Some(path) = &tls.certificate else {
            return Ok(None);
        };
        if tls.mode == TlsMode::Disable {
            return Ok(None);
        }
        let files = Files::read(tls)?;
        let same = |previous: &&Arc<Self>| {
            previous.files == files && previous.tls.mode == tls.mode && previous.tls.speaks_as(tls)
        };
        if let Some(previous) = previous.filter(same) {
            return Ok(Some(Arc::clone(previous)));
        }
        Ok(Some(Arc::new(Self {
            config: Arc::new(config(tls, path, &files)?),
            end_point: files.certificate.first().and_then(end_point),
            tls: tls.clone(),
            files,
        })))
    }

    /// Shakes hands over `socket`, of which `said` has been read already.
    pub async fn accept(&self, socket: TcpStream, said: &[u8]) -> io::Result<Box<TlsStream>> {
        TlsStream::accept(socket, &self.config, said).await
    }

    /// What rustls is given.
    #[cfg(test)]
    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// What a client's channel binding must hold; `None` where it cannot be offered.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("mode", &self.tls.mode)
            .finish_non_exhaustive()
    }
}

fn config(tls: &Tls, path: &Path, files: &Files) -> Result<ServerConfig, TlsError> {
    let unusable = |cause| TlsError::Unusable {
        path: path.to_owned(),
        cause,
    };
    let builder = ServerConfig::builder_with_provider(provider_of(tls))
        .with_protocol_versions(&versions(tls))
        .map_err(unusable)?;
    let builder = match client_verifier(tls, files)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let key = files.key.as_ref().expect("a certificate has its key");
    let mut config = builder
        .with_single_cert(files.certificate.clone(), key.clone_key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Whoever gives an order means it.
    config.ignore_client_order = !tls.ciphers.is_empty();
    // Sessions are resumed by tickets, which cost no memory here. One for each connection is as many as can be used.
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(unusable)?;
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// With authorities, a client's certificate is asked for, and checked if it comes; the two `verify` modes demand it.
fn client_verifier(
    tls: &Tls,
    files: &Files,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let Some(path) = &tls.ca else {
        return Ok(None);
    };
    let roots = Arc::new(roots(path, files)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = match tls.mode {
        TlsMode::VerifyCa | TlsMode::VerifyFull => builder,
        _ => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|cause| TlsError::Authorities {
        path: path.clone(),
        cause,
    })?;
    Ok(Some(verifier))
}

/// The authorities of `ca`, ready for use.
pub(super) fn roots(path: &Path, files: &Files) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in &files.ca {
        roots
            .add(certificate.clone())
            .map_err(|cause| TlsError::Unusable {
                path: path.to_owned(),
                cause,
            })?;
    }
    Ok(roots)
}
