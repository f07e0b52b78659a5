//! The certificate that is being served: swapped atomically, certificate, key and dates as one value.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::{parse_x509_certificate, prelude::X509Error};

/// A certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    key: Arc<CertifiedKey>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Leaf {
    /// Reads the dates from the certificate.
    ///
    /// # Errors
    ///
    /// When the certificate is no X.509 certificate.
    pub fn new(key: CertifiedKey) -> Result<Self, X509Error> {
        let end_entity = key.end_entity_cert().map_err(|_empty_chain| X509Error::InvalidCertificate)?;
        let (_, certificate) = parse_x509_certificate(end_entity)?;
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// From when on clients trust it.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// When clients stop trusting it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether clients trust it now.
    pub fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// What the handshakes are answered with: nothing until a first certificate has been put in.
///
/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Serving(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    leaf: ArcSwapOption<Leaf>,
    waiting: ArcSwap<&'static str>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { leaf: ArcSwapOption::empty(), waiting: ArcSwap::from_pointee("certificate") }
    }
}

impl Serving {
    /// Handshakes that begin from now on are answered with this certificate; connections that exist keep what they have.
    pub fn replace(&self, leaf: Leaf) {
        self.0.leaf.store(Some(Arc::new(leaf)));
    }

    /// The certificate in use.
    pub fn current(&self) -> Option<Arc<Leaf>> {
        self.0.leaf.load_full()
    }

    /// What [`Serving::missing`] says while there is no certificate.
    pub(super) fn wait_for(&self, what: &'static str) {
        self.0.waiting.store(Arc::new(what));
    }

    /// What is missing before clients can be served: a certificate, or one that has not expired. Words of a closed set.
    pub fn missing(&self, now: OffsetDateTime) -> Option<&'static str> {
        match self.0.leaf.load().as_ref() {
            None => Some(**self.0.waiting.load()),
            Some(leaf) if leaf.not_after < now => Some("certificate that has not expired"),
            Some(_) => None,
        }
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.leaf.load().as_ref().map(|leaf| leaf.key.clone())
    }
}
