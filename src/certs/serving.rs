//! The certificate that is being served: swapped atomically, certificate, key and expiry as one value.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
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
    not_after: OffsetDateTime,
}

impl Leaf {
    /// Reads the expiry from the certificate.
    ///
    /// # Errors
    ///
    /// When the certificate is no X.509 certificate.
    pub fn new(key: CertifiedKey) -> Result<Self, X509Error> {
        let end_entity = key.end_entity_cert().map_err(|_empty_chain| X509Error::InvalidCertificate)?;
        let (_, certificate) = parse_x509_certificate(end_entity)?;
        let not_after = certificate.validity().not_after.to_datetime();
        Ok(Self { key: Arc::new(key), not_after })
    }

    /// When clients stop trusting it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

/// What the handshakes are answered with: nothing until a first certificate has been put in.
///
/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Serving(Arc<ArcSwapOption<Leaf>>);

impl Serving {
    /// Handshakes that begin from now on are answered with this certificate; connections that exist keep what they have.
    pub fn replace(&self, leaf: Leaf) {
        self.0.store(Some(Arc::new(leaf)));
    }

    /// The certificate in use.
    pub fn current(&self) -> Option<Arc<Leaf>> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|leaf| leaf.key.clone())
    }
}
