//! What the Secret `spillway-ca` holds.
//!
//! | key | content |
//! | --- | --- |
//! | `tls.crt`, `tls.key` | the current authority, which signs |
//! | `next.crt`, `next.key` | its successor, while one is being brought in |
//! | `old.crt`, `old.until` | former ones, without keys, and when they leave the bundle (RFC 3339) |

use std::collections::BTreeMap;

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Authority, AuthorityError, CaCertificate, RETENTION, certificates};

const CURRENT: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const OLD: &str = "old.crt";
const UNTIL: &str = "old.until";

/// Former authorities at the most: a Secret that somebody deletes again and again must not make the bundle grow without end.
const MOST_OLD: usize = 8;

/// The data of a Secret.
pub(crate) type Data<T> = BTreeMap<String, T>;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// There is no Secret.
    #[error("there is none")]
    Missing,
    /// What is in the Secret cannot be used.
    #[error("it is malformed")]
    Malformed(#[from] Malformed),
}

/// What is wrong with the content of the Secret. Tells nothing of the content itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A key of the Secret is not there, or empty.
    #[error("no {0}")]
    Missing(&'static str),
    /// Not the PEM of exactly one certificate that may sign others.
    #[error("{0}: expected one PEM certificate of an authority")]
    Certificate(&'static str),
    /// Not the PEM of a private key.
    #[error("{0}: expected a PEM private key")]
    Key(&'static str),
    /// The two are not a pair.
    #[error("{0} does not belong to its certificate")]
    Mismatch(&'static str),
    /// Not a time.
    #[error("{UNTIL}: expected a time such as 2026-01-31T12:00:00Z")]
    Until,
}

/// Former authorities that are still trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retiring {
    /// Their certificates, the latest first.
    pub certificates: Vec<CaCertificate>,
    /// When they leave the bundle.
    pub until: OffsetDateTime,
}

/// The authority in all its generations.
#[derive(Debug)]
pub struct Stored {
    /// What signs.
    pub current: Authority,
    /// What will sign.
    pub next: Option<Authority>,
    /// What signed.
    pub old: Option<Retiring>,
}

impl Stored {
    /// Reads the data of the Secret.
    ///
    /// # Errors
    ///
    /// [`Malformed`], which names the key at fault.
    pub fn read<T: AsRef<[u8]>>(data: &Data<T>) -> Result<Self, Malformed> {
        let text = |key: &'static str| data.get(key).map(T::as_ref).filter(|text| !text.is_empty());
        let current = authority(CURRENT, text)?;
        let next = NEXT.iter().any(|key| text(key).is_some()).then(|| authority(NEXT, text)).transpose()?;
        let old = text(OLD).map(|bundle| {
            let until = text(UNTIL).and_then(|until| std::str::from_utf8(until).ok());
            let until = OffsetDateTime::parse(until.ok_or(Malformed::Until)?, &Rfc3339);
            Ok(Retiring { certificates: certificates(bundle), until: until.map_err(|_parse| Malformed::Until)? })
        });
        Ok(Self { current, next, old: old.transpose()? })
    }

    /// The data of the Secret; what was in it beside is not kept.
    pub fn data(&self) -> Data<String> {
        let Self { current, next, old } = self;
        let mut data = Data::new();
        let mut put = |[certificate, key]: [&str; 2], authority: &Authority| {
            data.insert(certificate.to_owned(), authority.certificate().pem());
            data.insert(key.to_owned(), authority.key_pem());
        };
        put(CURRENT, current);
        if let Some(next) = next {
            put(NEXT, next);
        }
        if let Some(Retiring { certificates, until }) = old {
            data.insert(OLD.to_owned(), pem(certificates));
            // Years of four digits, which these are, can always be written.
            data.insert(UNTIL.to_owned(), until.format(&Rfc3339).unwrap_or_default());
        }
        data
    }

    /// What the API server is to trust: the content of `caBundle`.
    pub fn bundle(&self) -> String {
        pem(self.certificates())
    }

    /// All of them, those that sign first.
    pub fn certificates(&self) -> impl Iterator<Item = &CaCertificate> {
        let signing = [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Authority::certificate);
        signing.chain(self.old.iter().flat_map(|old| &old.certificates))
    }

    /// A new authority in the place of all others. What the API server has trusted so far, `trusted`, stays in the bundle for a
    /// while: replicas serve with it until they have seen the new one in the bundle.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn replace(trusted: &[CaCertificate], now: OffsetDateTime) -> Result<Self, AuthorityError> {
        Ok(Self { current: Authority::make(now)?, next: None, old: retiring(trusted.iter().cloned(), now) })
    }

    /// A successor beside the current one.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn prepare(self, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        Ok(Self { next: Some(Authority::make(now)?), ..self })
    }

    /// The successor becomes the current one. Without one nothing changes.
    #[must_use]
    pub fn promote(self, now: OffsetDateTime) -> Self {
        let Self { current, next, old } = self;
        let Some(next) = next else { return Self { current, next, old } };
        let former = std::iter::once(current.certificate().clone());
        let all = former.chain(old.into_iter().flat_map(|old| old.certificates));
        Self { current: next, next: None, old: retiring(all, now) }
    }

    /// The former ones leave the bundle.
    #[must_use]
    pub fn retire(self) -> Self {
        Self { old: None, ..self }
    }
}

fn retiring(former: impl Iterator<Item = CaCertificate>, now: OffsetDateTime) -> Option<Retiring> {
    let mut certificates: Vec<CaCertificate> = Vec::new();
    for certificate in former.filter(|former| former.not_after() > now) {
        if certificates.len() < MOST_OLD && !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }
    (!certificates.is_empty()).then(|| Retiring { certificates, until: now + RETENTION })
}

fn pem<'a>(certificates: impl IntoIterator<Item = &'a CaCertificate>) -> String {
    certificates.into_iter().map(CaCertificate::pem).collect()
}

fn authority<'a>(
    [certificate, key]: [&'static str; 2],
    text: impl Fn(&'static str) -> Option<&'a [u8]>,
) -> Result<Authority, Malformed> {
    let pem = text(certificate).ok_or(Malformed::Missing(certificate))?;
    let mut all = CertificateDer::pem_slice_iter(pem);
    let (first, second) = (all.next(), all.next());
    let read = match (first, second) {
        (Some(Ok(der)), None) => CaCertificate::new(der).ok(),
        _ => None,
    };
    let read = read.ok_or(Malformed::Certificate(certificate))?;
    let pem = text(key).ok_or(Malformed::Missing(key))?;
    let pem = std::str::from_utf8(pem).map_err(|_utf8| Malformed::Key(key))?;
    let pair = KeyPair::from_pem(pem).map_err(|_content| Malformed::Key(key))?;
    Authority::pair(read, pair).ok_or(Malformed::Mismatch(key))
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn made() -> Stored {
        Stored::replace(&[], NOW).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let former = made();
        let stored = Stored::replace(&[former.current.certificate().clone()], NOW).unwrap();
        let stored = stored.prepare(NOW).unwrap();
        let data = stored.data();
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            ["next.crt", "next.key", "old.crt", "old.until", "tls.crt", "tls.key"]
        );
        assert_eq!(data["old.until"], "2026-01-02T02:00:00Z");
        let read = Stored::read(&data).unwrap();
        assert_eq!(read.data(), data);
        assert_eq!(read.bundle(), data["tls.crt"].clone() + &data["next.crt"] + &data["old.crt"]);
        assert_eq!(certificates(read.bundle().as_bytes()).len(), 3);
    }

    #[test]
    fn data_that_somebody_edited_is_refused_by_the_name_of_its_key() {
        let data = made().prepare(NOW).unwrap().promote(NOW).prepare(NOW).unwrap().data();
        let (other, leaf) = (made().data(), crate::certs::generate(&[], NOW).unwrap());
        let twice = data["tls.crt"].repeat(2);
        for (key, value, expected) in [
            ("tls.crt", "", "no tls.crt"),
            ("tls.key", "", "no tls.key"),
            ("next.crt", "", "no next.crt"),
            ("next.key", "", "no next.key"),
            ("tls.crt", "garbage", "tls.crt: expected one PEM certificate of an authority"),
            ("tls.crt", twice.as_str(), "tls.crt: expected one PEM certificate of an authority"),
            ("tls.crt", &leaf.certificate, "tls.crt: expected one PEM certificate of an authority"),
            ("tls.key", "garbage", "tls.key: expected a PEM private key"),
            ("tls.key", &data["tls.crt"], "tls.key: expected a PEM private key"),
            ("tls.key", &other["tls.key"], "tls.key does not belong to its certificate"),
            ("next.key", &data["tls.key"], "next.key does not belong to its certificate"),
            ("old.until", "", "old.until: expected a time such as 2026-01-31T12:00:00Z"),
            ("old.until", "tomorrow", "old.until: expected a time such as 2026-01-31T12:00:00Z"),
        ] {
            let mut edited = data.clone();
            edited.insert(key.to_owned(), value.to_owned());
            assert_eq!(Stored::read(&edited).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_private_key_is_shown_by_no_debug_output() {
        let stored = made().prepare(NOW).unwrap();
        let shown = format!("{stored:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains("KeyPair"), "{shown}");
        for data in stored.data().values().filter(|pem| pem.contains("PRIVATE KEY")) {
            assert!(!shown.contains(data.lines().nth(1).unwrap()));
        }
    }

    #[test]
    fn a_bundle_does_not_grow_without_end_nor_hold_what_has_expired() {
        let mut stored = made();
        for _ in 0..20 {
            let trusted = certificates(stored.bundle().as_bytes());
            stored = Stored::replace(&trusted, NOW).unwrap();
        }
        assert_eq!(certificates(stored.bundle().as_bytes()).len(), 1 + MOST_OLD);
        let trusted = certificates(stored.bundle().as_bytes());
        let later = Stored::replace(&trusted, NOW + Duration::days(366)).unwrap();
        assert_eq!(later.old, None);
    }

    #[test]
    fn the_names_of_two_authorities_differ() {
        let subject = |stored: &Stored| {
            let der = stored.current.certificate().der().clone();
            x509_parser::parse_x509_certificate(&der).unwrap().1.subject().to_string()
        };
        let (one, two) = (subject(&made()), subject(&made()));
        assert!(one.starts_with("CN=Spillway CA 2026-01-01 "), "{one}");
        assert_ne!(one, two);
    }
}
