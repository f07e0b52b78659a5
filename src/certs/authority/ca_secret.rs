//! The content of the Secret `spillway-ca`.
//!
//! | key | content |
//! | --- | --- |
//! | `tls.crt`, `tls.key` | the current CA, which signs |
//! | `next.crt`, `next.key` | its successor, during a rotation |
//! | `old.crt`, `old.until` | former CAs, without keys, and when they leave the `caBundle` (RFC 3339) |

use std::collections::BTreeMap;

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    certificate::{Authority, AuthorityError, CaCertificate, certificates},
    durations::OLD_CA_RETENTION,
};

const CURRENT_KEYS: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT_KEYS: [&str; 2] = ["next.crt", "next.key"];
const OLD_CERTIFICATES_KEY: &str = "old.crt";
const OLD_UNTIL_KEY: &str = "old.until";

/// Maximum number of former CAs. Repeated deletion of the Secret must not grow the bundle without limit.
const MAX_OLD_CAS: usize = 8;

/// The data of a Secret.
pub(crate) type Data<T> = BTreeMap<String, T>;

/// The reason why the Secret has no usable CA.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The Secret does not exist.
    #[error("the Secret does not exist")]
    Missing,
    /// The content of the Secret is unusable.
    #[error("the Secret is malformed")]
    Malformed(#[from] MalformedSecret),
}

/// The error in the content of the Secret. It never includes the content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedSecret {
    /// A key of the Secret is missing or empty.
    #[error("no {0}")]
    Missing(&'static str),
    /// Not the PEM of exactly one CA certificate.
    #[error("{0}: expected exactly one PEM CA certificate")]
    Certificate(&'static str),
    /// Not the PEM of a private key.
    #[error("{0}: expected a PEM private key")]
    Key(&'static str),
    /// The private key does not match the certificate.
    #[error("{0} does not match its certificate")]
    Mismatch(&'static str),
    /// Not a time.
    #[error("{OLD_UNTIL_KEY}: expected a time such as 2026-01-31T12:00:00Z")]
    Until,
}

/// Former CAs that are still trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredCas {
    /// Their certificates, latest first.
    pub certificates: Vec<CaCertificate>,
    /// The time when they leave the bundle.
    pub until: OffsetDateTime,
}

/// The current CA, its successor and its predecessors.
#[derive(Debug)]
pub struct CaSecret {
    /// The CA that signs.
    pub current: Authority,
    /// The CA that signs after the rotation.
    pub next: Option<Authority>,
    /// The CAs that signed before.
    pub old: Option<RetiredCas>,
}

impl CaSecret {
    /// Reads the data of the Secret.
    ///
    /// # Errors
    ///
    /// [`MalformedSecret`], with the wrong key.
    pub fn read<T: AsRef<[u8]>>(data: &Data<T>) -> Result<Self, MalformedSecret> {
        let text = |key: &'static str| data.get(key).map(T::as_ref).filter(|text| !text.is_empty());
        let current = authority(CURRENT_KEYS, text)?;
        let next = NEXT_KEYS.iter().any(|key| text(key).is_some()).then(|| authority(NEXT_KEYS, text)).transpose()?;
        let old = text(OLD_CERTIFICATES_KEY).map(|bundle| {
            let until = text(OLD_UNTIL_KEY).and_then(|until| std::str::from_utf8(until).ok());
            let until = OffsetDateTime::parse(until.ok_or(MalformedSecret::Until)?, &Rfc3339);
            Ok(RetiredCas {
                certificates: certificates(bundle),
                until: until.map_err(|_parse| MalformedSecret::Until)?,
            })
        });
        Ok(Self { current, next, old: old.transpose()? })
    }

    /// Returns the data of the Secret. Drops unknown keys of the Secret.
    pub fn data(&self) -> Data<String> {
        let Self { current, next, old } = self;
        let mut data = Data::new();
        let mut put = |[certificate, key]: [&str; 2], authority: &Authority| {
            data.insert(certificate.to_owned(), authority.certificate().pem());
            data.insert(key.to_owned(), authority.key_pem());
        };
        put(CURRENT_KEYS, current);
        if let Some(next) = next {
            put(NEXT_KEYS, next);
        }
        if let Some(RetiredCas { certificates, until }) = old {
            data.insert(OLD_CERTIFICATES_KEY.to_owned(), pem(certificates));
            // Years with four digits can always be formatted.
            data.insert(OLD_UNTIL_KEY.to_owned(), until.format(&Rfc3339).unwrap_or_default());
        }
        data
    }

    /// Returns the content of `caBundle`.
    pub fn bundle(&self) -> String {
        pem(self.certificates())
    }

    /// Returns all certificates. The certificates of signing CAs are first.
    pub fn certificates(&self) -> impl Iterator<Item = &CaCertificate> {
        let signing = [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Authority::certificate);
        signing.chain(self.old.iter().flat_map(|old| &old.certificates))
    }

    /// Returns a new CA that replaces all others. The bundle keeps the CAs that the API server trusts (`trusted`) for
    /// [`OLD_CA_RETENTION`], because replicas use them until they observe the new CA in the bundle.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn replace(trusted: &[CaCertificate], now: OffsetDateTime) -> Result<Self, AuthorityError> {
        Ok(Self { current: Authority::generate(now)?, next: None, old: retired(trusted.iter().cloned(), now) })
    }

    /// Adds a successor to the current CA.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn prepare(self, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        Ok(Self { next: Some(Authority::generate(now)?), ..self })
    }

    /// Makes the successor the current CA. Without a successor, nothing changes.
    #[must_use]
    pub fn promote(self, now: OffsetDateTime) -> Self {
        let Self { current, next, old } = self;
        let Some(next) = next else { return Self { current, next, old } };
        let former = std::iter::once(current.certificate().clone());
        let all = former.chain(old.into_iter().flat_map(|old| old.certificates));
        Self { current: next, next: None, old: retired(all, now) }
    }

    /// Removes the former CAs from the bundle.
    #[must_use]
    pub fn retire(self) -> Self {
        Self { old: None, ..self }
    }
}

fn retired(former: impl Iterator<Item = CaCertificate>, now: OffsetDateTime) -> Option<RetiredCas> {
    let mut certificates: Vec<CaCertificate> = Vec::new();
    for certificate in former.filter(|former| former.not_after() > now) {
        if certificates.len() < MAX_OLD_CAS && !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }
    (!certificates.is_empty()).then(|| RetiredCas { certificates, until: now + OLD_CA_RETENTION })
}

fn pem<'a>(certificates: impl IntoIterator<Item = &'a CaCertificate>) -> String {
    certificates.into_iter().map(CaCertificate::pem).collect()
}

fn authority<'a>(
    [certificate, key]: [&'static str; 2],
    text: impl Fn(&'static str) -> Option<&'a [u8]>,
) -> Result<Authority, MalformedSecret> {
    let pem = text(certificate).ok_or(MalformedSecret::Missing(certificate))?;
    let mut all = CertificateDer::pem_slice_iter(pem);
    let (first, second) = (all.next(), all.next());
    let read = match (first, second) {
        (Some(Ok(der)), None) => CaCertificate::new(der).ok(),
        _ => None,
    };
    let read = read.ok_or(MalformedSecret::Certificate(certificate))?;
    let pem = text(key).ok_or(MalformedSecret::Missing(key))?;
    let pem = std::str::from_utf8(pem).map_err(|_utf8| MalformedSecret::Key(key))?;
    let pair = KeyPair::from_pem(pem).map_err(|_content| MalformedSecret::Key(key))?;
    Authority::from_parts(read, pair).ok_or(MalformedSecret::Mismatch(key))
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn new_secret() -> CaSecret {
        CaSecret::replace(&[], NOW).unwrap()
    }

    #[test]
    fn the_secret_round_trips() {
        let former = new_secret();
        let stored = CaSecret::replace(&[former.current.certificate().clone()], NOW).unwrap();
        let stored = stored.prepare(NOW).unwrap();
        let data = stored.data();
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            ["next.crt", "next.key", "old.crt", "old.until", "tls.crt", "tls.key"]
        );
        assert_eq!(data["old.until"], "2026-01-02T02:00:00Z");
        let read = CaSecret::read(&data).unwrap();
        assert_eq!(read.data(), data);
        assert_eq!(read.bundle(), data["tls.crt"].clone() + &data["next.crt"] + &data["old.crt"]);
        assert_eq!(certificates(read.bundle().as_bytes()).len(), 3);
    }

    #[test]
    fn invalid_data_is_rejected_with_its_key() {
        let data = new_secret().prepare(NOW).unwrap().promote(NOW).prepare(NOW).unwrap().data();
        let (other, leaf) = (new_secret().data(), crate::certs::generate(&[], NOW).unwrap());
        let twice = data["tls.crt"].repeat(2);
        for (key, value, expected) in [
            ("tls.crt", "", "no tls.crt"),
            ("tls.key", "", "no tls.key"),
            ("next.crt", "", "no next.crt"),
            ("next.key", "", "no next.key"),
            ("tls.crt", "garbage", "tls.crt: expected exactly one PEM CA certificate"),
            ("tls.crt", twice.as_str(), "tls.crt: expected exactly one PEM CA certificate"),
            ("tls.crt", &leaf.certificate, "tls.crt: expected exactly one PEM CA certificate"),
            ("tls.key", "garbage", "tls.key: expected a PEM private key"),
            ("tls.key", &data["tls.crt"], "tls.key: expected a PEM private key"),
            ("tls.key", &other["tls.key"], "tls.key does not match its certificate"),
            ("next.key", &data["tls.key"], "next.key does not match its certificate"),
            ("old.until", "", "old.until: expected a time such as 2026-01-31T12:00:00Z"),
            ("old.until", "tomorrow", "old.until: expected a time such as 2026-01-31T12:00:00Z"),
        ] {
            let mut edited = data.clone();
            edited.insert(key.to_owned(), value.to_owned());
            assert_eq!(CaSecret::read(&edited).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn debug_output_has_no_private_key() {
        let stored = new_secret().prepare(NOW).unwrap();
        let shown = format!("{stored:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains("KeyPair"), "{shown}");
        for data in stored.data().values().filter(|pem| pem.contains("PRIVATE KEY")) {
            assert!(!shown.contains(data.lines().nth(1).unwrap()));
        }
    }

    #[test]
    fn the_bundle_is_bounded_and_has_no_expired_certificates() {
        let mut stored = new_secret();
        for _ in 0..20 {
            let trusted = certificates(stored.bundle().as_bytes());
            stored = CaSecret::replace(&trusted, NOW).unwrap();
        }
        assert_eq!(certificates(stored.bundle().as_bytes()).len(), 1 + MAX_OLD_CAS);
        let trusted = certificates(stored.bundle().as_bytes());
        let later = CaSecret::replace(&trusted, NOW + Duration::days(366)).unwrap();
        assert_eq!(later.old, None);
    }

    #[test]
    fn each_ca_has_its_own_subject() {
        let subject = |stored: &CaSecret| {
            let der = stored.current.certificate().der().clone();
            x509_parser::parse_x509_certificate(&der).unwrap().1.subject().to_string()
        };
        let (one, two) = (subject(&new_secret()), subject(&new_secret()));
        assert!(one.starts_with("CN=Spillway CA 2026-01-01 "), "{one}");
        assert_ne!(one, two);
    }
}
