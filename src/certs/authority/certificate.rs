//! One authority: its certificate and its key.

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

use super::{LEAF_LIFETIME, LIFETIME, SKEW};

/// Why an authority could not be made, or could not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The system has no randomness, or the certificate was refused.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// What was made cannot be read.
    #[error("cannot read the certificate that was made")]
    Read(#[from] X509Error),
    /// What was made cannot be served.
    #[error("cannot serve the certificate that was made")]
    Serve(#[from] rustls::Error),
}

/// The certificate of an authority. Two are equal if they are the same byte for byte.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl CaCertificate {
    /// Reads a certificate that may sign others.
    ///
    /// # Errors
    ///
    /// When it is no X.509 certificate, or must not sign others.
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

    /// When two thirds of its life are over.
    pub(super) fn two_thirds(&self) -> OffsetDateTime {
        self.not_after - (self.not_after - self.not_before) / 3
    }

    /// As PEM, with lines of 64 characters (RFC 7468).
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

/// The certificates of authorities in a bundle of PEM. What is none, or cannot be read, is left out: nobody trusts it either.
pub fn certificates(bundle: &[u8]) -> Vec<CaCertificate> {
    CertificateDer::pem_slice_iter(bundle).filter_map(|der| CaCertificate::new(der.ok()?).ok()).collect()
}

/// An authority: a certificate, and the key that signs for it. Cheap to clone.
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
    /// Makes an authority.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn make(now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // Two authorities stand in one bundle during a rotation. A name of its own for each lets people and verifiers tell them
        // apart; verifiers also have the key identifiers.
        let id = params.key_identifier(&key).iter().take(4).fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
        params.distinguished_name.push(DnType::CommonName, format!("Spillway CA {} {id:08x}", now.date()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // rcgen's own default ends in the year 4096.
        (params.not_before, params.not_after) = (now - SKEW, now + LIFETIME);
        let certificate = CaCertificate::new(params.self_signed(&key)?.into())?;
        Ok(Self { certificate, key: Arc::new(key) })
    }

    /// A certificate and a key that have been read; nothing if they do not belong together.
    pub(super) fn pair(certificate: CaCertificate, key: KeyPair) -> Option<Self> {
        let (_, x509) = parse_x509_certificate(&certificate.der).ok()?;
        let belongs = x509.public_key().raw == key.subject_public_key_info();
        belongs.then(|| Self { certificate, key: Arc::new(key) })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Its key as PEM, PKCS #8.
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// When a serving certificate ends that is signed now.
    pub(in crate::certs) fn end_of_leaf(&self, now: OffsetDateTime) -> OffsetDateTime {
        let ca = &self.certificate;
        // Earlier than the authority's making it is not, whatever the clock says.
        (now.max(ca.not_before + SKEW) + LEAF_LIFETIME).min(ca.not_after)
    }

    /// Signs a serving certificate for these names, with a new key. It ends after [`LEAF_LIFETIME`], or with its authority.
    ///
    /// It begins with its authority, and not just [`SKEW`] ago: then a replica whose clock was ahead and has been set right still
    /// serves what clients trust. There is nothing that a later beginning would protect.
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
        (params.not_before, params.not_after) = (ca.not_before, self.end_of_leaf(now));
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_der(&ca.der, &*self.key)?;
        let chain = vec![params.signed_by(&key, &issuer)?.into()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
    }
}
