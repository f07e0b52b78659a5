//! One certificate authority (CA): its certificate and its key.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::{parse_x509_certificate, prelude::X509Error};

use super::durations::{CA_LIFETIME, LEAF_LIFETIME, MAX_CLOCK_SKEW};

/// Error in generating a CA or in signing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The system has no randomness, or the parameters are invalid.
    #[error("cannot generate a certificate")]
    Make(#[from] rcgen::Error),
    /// The generated certificate cannot be parsed.
    #[error("cannot read the generated certificate")]
    Read(#[from] X509Error),
    /// The generated certificate cannot be served.
    #[error("cannot serve the generated certificate")]
    Serve(#[from] rustls::Error),
}

/// A CA certificate. Two certificates are equal if all their bytes are.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl CaCertificate {
    /// Parses a CA certificate.
    ///
    /// # Errors
    ///
    /// When it is not an X.509 certificate, or may not sign others.
    pub fn new(der: CertificateDer<'static>) -> Result<Self, X509Error> {
        let (_, x509) = parse_x509_certificate(&der)?;
        let may_sign = x509.key_usage()?.is_none_or(|usage| usage.value.key_cert_sign());
        if !x509.is_ca() || !may_sign {
            return Err(X509Error::InvalidCertificate);
        }
        let validity = x509.validity();
        let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        Ok(Self { der, not_before, not_after })
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

    /// Returns the time when two thirds of the validity have passed.
    pub(super) fn rotation_due_at(&self) -> OffsetDateTime {
        self.not_after - (self.not_after - self.not_before) / 3
    }

    /// Returns the certificate as PEM, with lines of 64 characters (RFC 7468).
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for (index, character) in text.chars().enumerate() {
            if index > 0 && index % 64 == 0 {
                pem.push('\n');
            }
            pem.push(character);
        }
        pem.push_str("\n-----END CERTIFICATE-----\n");
        pem
    }

    #[cfg(test)]
    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaCertificate({} to {})", self.not_before, self.not_after)
    }
}

/// Returns the CA certificates of a PEM bundle. Ignores other content of the bundle, as clients do.
pub fn certificates(bundle: &[u8]) -> Vec<CaCertificate> {
    CertificateDer::pem_slice_iter(bundle).filter_map(|der| CaCertificate::new(der.ok()?).ok()).collect()
}

/// A CA: its certificate and its private key. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    certificate: CaCertificate,
    key: Arc<KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    /// Generates a CA.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn generate(now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // During a rotation the bundle has two CAs. Unique subjects let users and verifiers distinguish them.
        // Verifiers also have the key identifiers.
        let id = params.key_identifier(&key).iter().take(4).fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
        params.distinguished_name.push(DnType::CommonName, format!("Spillway CA {} {id:08x}", now.date()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // The default of rcgen ends in the year 4096.
        (params.not_before, params.not_after) = (now - MAX_CLOCK_SKEW, now + CA_LIFETIME);
        let certificate = CaCertificate::new(params.self_signed(&key)?.into())?;
        Ok(Self { certificate, key: Arc::new(key) })
    }

    /// Returns the CA of a certificate and a key. `None` if they do not match.
    pub(super) fn from_parts(certificate: CaCertificate, key: KeyPair) -> Option<Self> {
        let (_, x509) = parse_x509_certificate(&certificate.der).ok()?;
        let belongs = x509.public_key().raw == key.subject_public_key_info();
        belongs.then(|| Self { certificate, key: Arc::new(key) })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Its private key as PEM, PKCS #8.
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns the end of the validity of a leaf certificate that is signed now.
    pub(in crate::certs) fn leaf_not_after(&self, now: OffsetDateTime) -> OffsetDateTime {
        let ca = &self.certificate;
        // With a slow clock, the leaf must not end before its CA is valid.
        (now.max(ca.not_before + MAX_CLOCK_SKEW) + LEAF_LIFETIME).min(ca.not_after)
    }

    /// Signs a leaf certificate for these names, with a new key. It ends after [`LEAF_LIFETIME`], or with its CA.
    ///
    /// Its validity starts with its CA's validity, not [`MAX_CLOCK_SKEW`] ago. So clients still trust the leaf of a
    /// replica whose clock was ahead and was corrected. A later start would not improve security.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn sign(&self, names: &[String], now: OffsetDateTime) -> Result<CertifiedKey, AuthorityError> {
        let ca = &self.certificate;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "spillway-webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (ca.not_before, self.leaf_not_after(now));
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_der(&ca.der, &*self.key)?;
        let chain = vec![params.signed_by(&key, &issuer)?.into()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
    }
}
