//! TLS towards Postgres: pgweir is the client.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::accept::roots;
use super::files::{Files, TlsError};
use super::stream::TlsStream;
use super::verify::{Trusted, Verifier};
use super::{ALPN, provider, provider_of, versions};
use crate::config::checked::Tls;

/// Shakes hands with servers.
pub struct Connector {
    /// Any server; where authorities are given, one that they have signed.
    usual: Arc<ClientConfig>,
    /// That, and its certificate must bear the host's name. Apart, because a session that began without that check must not
    /// be resumed here.
    named: Arc<ClientConfig>,
    tls: Tls,
    files: Files,
}

impl Connector {
    /// Reads the files of `tls`. What `previous` was made of is not set up again: sessions are resumed, and connections
    /// made with it are as good as new ones.
    pub fn read(tls: &Tls, previous: Option<&Arc<Self>>) -> Result<Arc<Self>, TlsError> {
        let files = Files::read(tls)?;
        let same = |previous: &&Arc<Self>| previous.files == files && previous.tls.speaks_as(tls);
        if let Some(previous) = previous.filter(same) {
            return Ok(Arc::clone(previous));
        }
        Ok(Arc::new(Self::new(tls, files, &[ALPN])?))
    }

    /// The same for servers that are no Postgres.
    pub fn for_others(tls: &Tls) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self::new(tls, Files::read(tls)?, &[])?))
    }

    fn new(tls: &Tls, files: Files, protocols: &[&[u8]]) -> Result<Self, TlsError> {
        Ok(Self {
            usual: Arc::new(config(tls, &files, false, protocols)?),
            named: Arc::new(config(tls, &files, true, protocols)?),
            tls: tls.clone(),
            files,
        })
    }

    /// What rustls is given for a host whose name nobody looks at.
    #[cfg(test)]
    pub(super) fn any_host(&self) -> &Arc<ClientConfig> {
        &self.usual
    }

    /// Shakes hands with `host` over `socket`. `named`: its certificate must bear that name.
    pub async fn connect(
        &self,
        socket: TcpStream,
        host: &str,
        named: bool,
    ) -> io::Result<Box<TlsStream>> {
        let name = match ServerName::try_from(host) {
            Ok(name) => name.to_owned(),
            // Nobody looks at it: an address that is sent to nobody.
            Err(_) if !named => ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidInput, error)),
        };
        let config = if named { &self.named } else { &self.usual };
        TlsStream::connect(socket, config, name).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

fn config(
    tls: &Tls,
    files: &Files,
    named: bool,
    protocols: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let own = tls.certificate.clone().unwrap_or_default();
    let unusable = |cause| TlsError::Unusable {
        path: own.clone(),
        cause,
    };
    let trusted = match &tls.ca {
        Some(path) => Some(Trusted {
            roots: roots(path, files)?,
            certificates: files.ca.clone(),
        }),
        None => None,
    };
    let verifier = Verifier {
        trusted,
        name: named,
        algorithms: provider().signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider_of(tls))
        .with_protocol_versions(&versions(tls))
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &files.key {
        Some(key) => builder
            .with_client_auth_cert(files.certificate.clone(), key.clone_key())
            .map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}
