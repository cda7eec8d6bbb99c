//! What pgweir reads in certificates itself: names, and the hash for channel binding.

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// The first common name.
    pub common_name: Option<String>,
    /// DNS names and mail addresses among the alternative names.
    pub alternatives: Vec<String>,
    /// Whether there are alternative names that are addresses.
    has_addresses: bool,
}

impl Subject {
    /// Reads a certificate's names; `None` if it is malformed.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?.tbs_certificate;
        let mut attributes = certificate.subject.0.iter().flat_map(|name| name.0.iter());
        let common_name = attributes.find(|attribute| attribute.oid == COMMON_NAME);
        let mut subject = Self {
            // PrintableString, UTF8String and the other usual types are all bytes of UTF-8.
            common_name: common_name.and_then(|name| text(name.value.value())),
            ..Self::default()
        };
        let extensions = certificate.extensions.unwrap_or_default();
        let alternatives = extensions.iter().find(|e| e.extn_id == SUBJECT_ALT_NAME);
        if let Some(extension) = alternatives {
            let names = SubjectAltName::from_der(extension.extn_value.as_bytes()).ok()?;
            for name in names.0 {
                match name {
                    GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) => {
                        subject.alternatives.push(name.as_str().to_owned());
                    }
                    GeneralName::IpAddress(_) => subject.has_addresses = true,
                    _ => {}
                }
            }
        }
        Some(subject)
    }

    /// Whether it is `name`'s: by its common name or an alternative one.
    pub fn is(&self, name: &str) -> bool {
        self.common_name.as_deref() == Some(name) || self.alternatives.iter().any(|n| n == name)
    }

    /// Whether the common name counts as the name of a host: as in libpq, where there is no other.
    pub(super) fn is_host(&self, host: &str) -> bool {
        let only = self.alternatives.is_empty() && !self.has_addresses;
        let common = self.common_name.as_deref();
        only && common.is_some_and(|pattern| host_fits(pattern, host))
    }
}

/// A name in a certificate may begin with `*.`, which stands for one label (RFC 6125).
fn host_fits(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// A name with a zero byte in it is one that wants to look like another.
fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| text.to_owned())
}

/// The certificate's hash for the channel binding `tls-server-end-point` (RFC 5929); `None` where none is defined.
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Box<[u8]>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm;
    let parameters = algorithm.parameters.map(|any| any.value().to_vec());
    let hash = Hash::of_signature(
        &algorithm.oid.to_string(),
        parameters.as_deref().unwrap_or_default(),
    )?;
    Some(match hash {
        Hash::Sha256 => Sha256::digest(certificate).to_vec().into(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec().into(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec().into(),
    })
}

/// The key of a certificate.
pub(super) fn key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let key = parsed.tbs_certificate.subject_public_key_info.to_der();
    Some(SubjectPublicKeyInfoDer::from(key.ok()?))
}

/// Whether a certificate is valid at this time, in seconds since 1970.
pub(super) fn is_valid_at(certificate: &CertificateDer<'_>, now: u64) -> bool {
    Certificate::from_der(certificate).is_ok_and(|certificate| {
        let validity = certificate.tbs_certificate.validity;
        let begin = validity.not_before.to_unix_duration().as_secs();
        let end = validity.not_after.to_unix_duration().as_secs();
        (begin..=end).contains(&now)
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// The hash within a signature algorithm; MD5 and SHA-1 are replaced by SHA-256 (RFC 5929).
    fn of_signature(oid: &str, parameters: &[u8]) -> Option<Self> {
        Some(match oid {
            // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
            "1.2.840.113549.1.1.4"
            | "1.2.840.113549.1.1.5"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.10045.4.1"
            | "1.2.840.10045.4.3.2" => Self::Sha256,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Self::Sha384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Self::Sha512,
            "1.2.840.113549.1.1.10" => Self::of_pss(parameters),
            _ => return None,
        })
    }

    /// RSASSA-PSS names its hash in its parameters; without any it is SHA-1.
    fn of_pss(parameters: &[u8]) -> Self {
        // 2.16.840.1.101.3.4.2.N: the first that comes is the signature's own, the second that of its mask.
        const SHA2: [u8; 8] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
        let found = parameters.windows(9).find(|bytes| bytes[..8] == SHA2);
        match found.map(|bytes| bytes[8]) {
            Some(2) => Self::Sha384,
            Some(3) => Self::Sha512,
            _ => Self::Sha256,
        }
    }
}
