//! Cipher suites and curves of TLS, by the names that OpenSSL has for them. These are the ones that rustls has.

use super::checked::TlsVersion;

/// A cipher suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite(&'static str);

impl Suite {
    /// All of them, in OpenSSL's order of preference.
    const ALL: [Self; 9] = [
        Self("TLS_AES_256_GCM_SHA384"),
        Self("TLS_CHACHA20_POLY1305_SHA256"),
        Self("TLS_AES_128_GCM_SHA256"),
        Self("ECDHE-ECDSA-AES256-GCM-SHA384"),
        Self("ECDHE-RSA-AES256-GCM-SHA384"),
        Self("ECDHE-ECDSA-CHACHA20-POLY1305"),
        Self("ECDHE-RSA-CHACHA20-POLY1305"),
        Self("ECDHE-ECDSA-AES128-GCM-SHA256"),
        Self("ECDHE-RSA-AES128-GCM-SHA256"),
    ];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|suite| suite.0.eq_ignore_ascii_case(name))
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(|suite| suite.0)
    }

    /// OpenSSL's name.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// In which version of TLS it is used.
    pub fn version(self) -> TlsVersion {
        if self.0.starts_with("TLS_") {
            TlsVersion::V1_3
        } else {
            TlsVersion::V1_2
        }
    }

    /// Those of a version, in order of preference.
    fn of(version: TlsVersion) -> Vec<Self> {
        let mut suites = Self::ALL.to_vec();
        suites.retain(|suite| suite.version() == version);
        suites
    }

    /// Whether one word of OpenSSL's language means it.
    fn is(self, word: &str) -> Option<bool> {
        let has = |part| self.0.contains(part);
        Some(match word {
            "ALL" | "DEFAULT" | "HIGH" | "ECDHE" | "kECDHE" | "EECDH" | "kEECDH" | "ECDH"
            | "TLSv1.2" | "AEAD" => true,
            "RSA" | "aRSA" => has("-RSA-"),
            "ECDSA" | "aECDSA" => has("-ECDSA-"),
            "AES" | "AESGCM" => has("AES"),
            "AES128" => has("AES128"),
            "AES256" => has("AES256"),
            "CHACHA20" => has("CHACHA20"),
            "SHA256" => has("SHA256"),
            "SHA384" => has("SHA384"),
            // What rustls has none of, and lists take away.
            "aNULL"
            | "eNULL"
            | "NULL"
            | "LOW"
            | "MEDIUM"
            | "EXP"
            | "EXPORT"
            | "MD5"
            | "SHA"
            | "SHA1"
            | "RC4"
            | "DES"
            | "3DES"
            | "IDEA"
            | "SEED"
            | "CAMELLIA"
            | "ARIA"
            | "PSK"
            | "kPSK"
            | "SRP"
            | "kSRP"
            | "DSS"
            | "aDSS"
            | "DH"
            | "DHE"
            | "kDHE"
            | "EDH"
            | "kEDH"
            | "ADH"
            | "AECDH"
            | "kRSA"
            | "COMPLEMENTOFDEFAULT"
            | "COMPLEMENTOFALL"
            | "SSLv3"
            | "TLSv1"
            | "AESCCM"
            | "AESCCM8"
            | "GOST" => false,
            name => return Self::named(name).map(|named| named == self),
        })
    }
}

/// What a list comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The suites in their order.
    pub suites: Vec<Suite>,
    /// Names that mean nothing here.
    pub unknown: Vec<String>,
}

/// The suites up to TLS 1.2 that `text` names in OpenSSL's language, or by one of PgBouncer's words.
pub fn older(text: &str) -> Chosen {
    let all = Suite::of(TlsVersion::V1_2);
    let word = text.trim().to_ascii_lowercase();
    if ["default", "secure", "normal", "fast", "all"].contains(&word.as_str()) {
        return Chosen {
            suites: all,
            ..Chosen::default()
        };
    }
    let mut chosen = Chosen::default();
    let mut banned: Vec<Suite> = Vec::new();
    for item in words(text) {
        // @STRENGTH and @SECLEVEL=2 sort and limit what is left; all of these are strong.
        let item = item.split('@').next().unwrap_or_default();
        if item.is_empty() {
            continue;
        }
        let (mark, words) = match item.as_bytes()[0] {
            mark @ (b'!' | b'-' | b'+') => (mark, &item[1..]),
            _ => (b' ', item),
        };
        let Some(meant) = meant(words, &all) else {
            // What is not there need not be taken away.
            if mark == b' ' {
                chosen.unknown.push(item.to_owned());
            }
            continue;
        };
        let suites = &mut chosen.suites;
        match mark {
            b' ' => {
                let fresh = meant
                    .into_iter()
                    .filter(|suite| !banned.contains(suite) && !suites.contains(suite));
                let fresh: Vec<_> = fresh.collect();
                suites.extend(fresh);
            }
            b'+' => {
                let (last, first) = suites.iter().partition(|suite| meant.contains(suite));
                *suites = first;
                suites.extend::<Vec<_>>(last);
            }
            mark => {
                suites.retain(|suite| !meant.contains(suite));
                if mark == b'!' {
                    banned.extend(meant);
                }
            }
        }
    }
    chosen
}

/// The suites that all of these words mean together.
fn meant(words: &str, all: &[Suite]) -> Option<Vec<Suite>> {
    let mut meant = all.to_vec();
    for word in words.split('+') {
        all.first()?.is(word)?;
        meant.retain(|suite| suite.is(word) == Some(true));
    }
    Some(meant)
}

/// The suites of TLS 1.3 that a list names.
pub fn newer(text: &str) -> Chosen {
    let mut chosen = Chosen::default();
    for name in words(text) {
        match Suite::named(name).filter(|suite| suite.version() == TlsVersion::V1_3) {
            Some(suite) if chosen.suites.contains(&suite) => {}
            Some(suite) => chosen.suites.push(suite),
            None => chosen.unknown.push(name.to_owned()),
        }
    }
    chosen
}

/// All suites of TLS 1.3.
pub fn every_newer() -> Vec<Suite> {
    Suite::of(TlsVersion::V1_3)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([':', ',', ' ', ';'])
        .filter(|word| !word.is_empty())
}

/// A curve on which keys are agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// X25519.
    X25519,
    /// P-256.
    P256,
    /// P-384.
    P384,
}

impl Curve {
    /// The one that people call so.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "x25519" => Self::X25519,
            "p-256" | "prime256v1" | "secp256r1" => Self::P256,
            "p-384" | "secp384r1" => Self::P384,
            _ => return None,
        })
    }

    /// OpenSSL's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519 => "X25519",
            Self::P256 => "prime256v1",
            Self::P384 => "secp384r1",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(chosen: &Chosen) -> Vec<&str> {
        chosen.suites.iter().map(|suite| suite.name()).collect()
    }

    #[test]
    fn a_list_is_read_as_openssl_reads_it() {
        let all: Vec<_> = Suite::of(TlsVersion::V1_2)
            .iter()
            .map(|suite| suite.name())
            .collect();
        for word in [
            "default",
            "secure",
            "normal",
            "fast",
            "all",
            "HIGH",
            "DEFAULT:!aNULL:@STRENGTH",
            "DEFAULT@SECLEVEL=2",
        ] {
            assert_eq!(names(&older(word)), all, "{word}");
            assert!(older(word).unknown.is_empty(), "{word}");
        }
        for (text, suites, unknown) in [
            (
                "ECDHE-RSA-AES128-GCM-SHA256",
                &["ECDHE-RSA-AES128-GCM-SHA256"][..],
                &[][..],
            ),
            (
                "AES128-SHA:ECDHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES256-GCM-SHA384",
                &["ECDHE-RSA-AES256-GCM-SHA384"],
                &["AES128-SHA", "DHE-RSA-AES256-GCM-SHA384"],
            ),
            (
                "ECDHE+AESGCM:!ECDSA",
                &["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"],
                &[],
            ),
            (
                "HIGH:!AES:-ECDSA:ECDSA",
                &[
                    "ECDHE-RSA-CHACHA20-POLY1305",
                    "ECDHE-ECDSA-CHACHA20-POLY1305",
                ],
                &[],
            ),
            (
                "aRSA:+AES256 !aNULL,!MD5",
                &[
                    "ECDHE-RSA-CHACHA20-POLY1305",
                    "ECDHE-RSA-AES128-GCM-SHA256",
                    "ECDHE-RSA-AES256-GCM-SHA384",
                ],
                &[],
            ),
            ("RC4:3DES", &[], &[]),
            ("nosuch", &[], &["nosuch"]),
            ("", &[], &[]),
        ] {
            let chosen = older(text);
            assert_eq!(names(&chosen), suites, "{text}");
            assert_eq!(chosen.unknown, unknown, "{text}");
        }
        let chosen = newer(
            "TLS_AES_128_GCM_SHA256:TLS_AES_128_CCM_SHA256:tls_aes_256_gcm_sha384:TLS_AES_128_GCM_SHA256",
        );
        assert_eq!(
            names(&chosen),
            ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]
        );
        assert_eq!(chosen.unknown, ["TLS_AES_128_CCM_SHA256"]);
        assert_eq!(newer("ECDHE-RSA-AES128-GCM-SHA256").suites, []);
    }

    #[test]
    fn everything_has_a_name_by_which_it_is_found() {
        for suite in Suite::ALL {
            assert_eq!(Suite::named(suite.name()), Some(suite));
        }
        for curve in [Curve::X25519, Curve::P256, Curve::P384] {
            assert_eq!(Curve::named(curve.name()), Some(curve));
        }
        assert_eq!(Curve::named("none"), None);
    }

    proptest! {
        #[test]
        fn no_list_panics(text in "\\PC{0,40}", words in "((ECDHE|AES|HIGH|!|-|\\+|:|@| ){1,3}){0,9}") {
            for text in [text, words] {
                let _ = older(&text);
                let _ = newer(&text);
            }
        }
    }
}
