//! What the files of one side's TLS settings hold.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::checked::{SYSTEM_ROOTS, Tls};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file is no PEM.
    #[error("{path}: {cause}")]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: pem::Error,
    },
    /// What was looked for is not in it.
    #[error("{path}: there is no certificate in it")]
    Empty {
        /// Its path.
        path: PathBuf,
    },
    /// rustls does not accept it.
    #[error("{path}: {cause}")]
    Unusable {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rustls::Error,
    },
    /// The authorities do not make a verifier.
    #[error("{path}: {cause}")]
    Authorities {
        /// The path of `ca`.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rustls::server::VerifierBuilderError,
    },
    /// The system has no authorities to trust.
    #[error("ca = \"system\": no authorities are installed on this machine")]
    NoSystemRoots,
}

/// What the files held when they were read. The same contents mean that nothing needs to be set up anew.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// Own certificate chain; empty = none.
    pub(super) certificate: Vec<CertificateDer<'static>>,
    /// Its key.
    pub(super) key: Option<PrivateKeyDer<'static>>,
    /// Trusted authorities; empty = none given.
    pub(super) ca: Vec<CertificateDer<'static>>,
}

impl Files {
    /// Reads them.
    pub(super) fn read(tls: &Tls) -> Result<Self, TlsError> {
        let certificates = |path: &Option<PathBuf>| match path {
            Some(path) => certificates(path),
            None => Ok(Vec::new()),
        };
        Ok(Self {
            certificate: certificates(&tls.certificate)?,
            key: tls.key.as_deref().map(key).transpose()?,
            ca: match &tls.ca {
                Some(path) if path.as_os_str() == SYSTEM_ROOTS => system_roots()?,
                path => certificates(path)?,
            },
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|cause| TlsError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|cause| TlsError::Malformed {
        path: path.to_owned(),
        cause,
    })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|cause| TlsError::Malformed {
        path: path.to_owned(),
        cause,
    })
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    // Single files that cannot be read are the system's matter, as long as there is something.
    let certificates = rustls_native_certs::load_native_certs().certs;
    if certificates.is_empty() {
        return Err(TlsError::NoSystemRoots);
    }
    Ok(certificates)
}
