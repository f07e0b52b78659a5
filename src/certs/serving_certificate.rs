//! The certificate that is served. Certificate, key and validity are swapped atomically as one value.

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
    /// Reads the validity from the certificate.
    ///
    /// # Errors
    ///
    /// When it is not an X.509 certificate.
    pub fn new(key: CertifiedKey) -> Result<Self, X509Error> {
        let end_entity = key.end_entity_cert().map_err(|_empty_chain| X509Error::InvalidCertificate)?;
        let (_, certificate) = parse_x509_certificate(end_entity)?;
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// Start of the validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// End of the validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Returns whether the certificate is valid now.
    pub fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// The certificate for TLS handshakes. Empty until the first certificate is set.
///
/// Cheap to clone. Clones share the certificate.
#[derive(Debug, Clone, Default)]
pub struct ServingCertificate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    leaf: ArcSwapOption<Leaf>,
    waiting_reason: ArcSwap<&'static str>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { leaf: ArcSwapOption::empty(), waiting_reason: ArcSwap::from_pointee("certificate") }
    }
}

impl ServingCertificate {
    /// Sets the certificate for new handshakes. Existing connections keep their certificate.
    pub fn replace(&self, leaf: Leaf) {
        self.0.leaf.store(Some(Arc::new(leaf)));
    }

    /// Returns the current certificate.
    pub fn current(&self) -> Option<Arc<Leaf>> {
        self.0.leaf.load_full()
    }

    /// Sets the result of [`ServingCertificate::not_ready_reason`] while there is no certificate.
    pub(super) fn set_waiting_reason(&self, reason: &'static str) {
        self.0.waiting_reason.store(Arc::new(reason));
    }

    /// Returns the reason why the webhook cannot serve clients: no certificate, or an expired one. The reasons come from
    /// a closed set. `None` if the webhook is ready.
    pub fn not_ready_reason(&self, now: OffsetDateTime) -> Option<&'static str> {
        match self.0.leaf.load().as_ref() {
            None => Some(**self.0.waiting_reason.load()),
            Some(leaf) if leaf.not_after < now => Some("certificate that has not expired"),
            Some(_) => None,
        }
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.leaf.load().as_ref().map(|leaf| leaf.key.clone())
    }
}
