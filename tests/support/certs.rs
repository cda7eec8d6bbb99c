//! Certificates of one's own.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

use super::process::scratch;

/// Names of this machine, for a certificate's alternative names.
pub const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

/// What libpq and PgBouncer call the ways to use TLS.
pub const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// An authority, with files of what it has signed: `ca.crt`, and `NAME.crt` and `NAME.key`.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("authority")
    }

    pub fn named(name: &str) -> Self {
        let directory = scratch();
        let key = KeyPair::generate().expect("ring makes keys");
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let authority = Self { directory, issuer };
        fs::write(authority.ca(), certificate.pem()).expect("the directory is ours");
        authority
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Lets everybody read what is there, these keys too: the pooler may become somebody else.
    pub fn open(&self, keys: &[&str]) {
        let keys = keys.iter().map(|name| (self.key(name), 0o644));
        for (path, mode) in keys.chain([(self.directory().to_owned(), 0o755)]) {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Signs `name.crt` for this common name and these alternative ones, and gives its path. A file of that name is replaced.
    pub fn issue(&self, name: &str, common_name: &str, alternatives: &[&str]) -> PathBuf {
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params(common_name, alternatives)
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        let path = self.certificate(name);
        fs::write(&path, certificate.pem()).expect("the directory is ours");
        fs::write(self.key(name), key.serialize_pem()).expect("the directory is ours");
        // libpq refuses keys that others can read.
        fs::set_permissions(self.key(name), fs::Permissions::from_mode(0o600))
            .expect("the file is ours");
        path
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.key"))
    }

    /// A client that trusts this authority, shows `name`'s certificate if given, and offers these protocols.
    pub fn client(&self, name: Option<&str>, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca()) {
            roots.add(certificate).expect("an authority");
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_root_certificates(roots);
        let mut config = match name {
            Some(name) => builder
                .with_client_auth_cert(certificates(&self.certificate(name)), self.secret(name))
                .expect("they belong together"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        Arc::new(config)
    }

    /// A server with `name`'s certificate.
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_no_client_auth()
            .with_single_cert(certificates(&self.certificate(name)), self.secret(name))
            .expect("they belong together");
        Arc::new(config)
    }

    fn secret(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.key(name)).expect("a key")
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .expect("a file")
        .map(|certificate| certificate.expect("a certificate"))
        .collect()
}

fn params(common_name: &str, alternatives: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = alternatives
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().expect("a name")),
        })
        .collect();
    params
}
