//! Whether a server is the one that was meant, as libpq decides it.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{Subject, is_valid_at, key};

/// Checks a server's certificate, as far as is asked for.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Whom to trust; `None`: the certificate is not looked at.
    pub(super) trusted: Option<Trusted>,
    /// Whether the host's name must be in it.
    pub(super) name: bool,
    /// What can be checked.
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Authorities.
#[derive(Debug)]
pub(super) struct Trusted {
    /// Ready for use.
    pub(super) roots: RootCertStore,
    /// As they were given. A server's own certificate may be among them: Postgres' manual makes such ones.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn chain(
        &self,
        trusted: &Trusted,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        // Compared as a whole, it needs no signature, and may be one that signs itself.
        if trusted.certificates.iter().any(|own| own == certificate) {
            return if is_valid_at(certificate, now.as_secs()) {
                Ok(())
            } else {
                Err(CertificateError::Expired.into())
            };
        }
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &trusted.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
    }
}

fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let checked = ParsedCertificate::try_from(certificate)
        .and_then(|parsed| verify_server_name(&parsed, name));
    let subject = || Subject::of(certificate).unwrap_or_default();
    match checked {
        // Certificates for Postgres often have a common name and nothing else, which libpq accepts.
        Err(_) if subject().is_host(&name.to_str()) => Ok(()),
        checked => checked,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            self.chain(trusted, certificate, intermediates, now)?;
        }
        if self.name {
            check_name(certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    // That the server has the key of its certificate is checked whatever the mode: channel binding rests on it.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let checked = verify_tls13_signature(message, certificate, signed, &self.algorithms);
        match checked {
            // What `openssl x509 -req` makes without extensions is of version 1, which webpki does not read.
            Err(Error::InvalidCertificate(_)) => match key(certificate) {
                Some(key) => {
                    verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
                }
                None => checked,
            },
            checked => checked,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
