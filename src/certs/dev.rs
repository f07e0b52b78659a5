//! A certificate authority and a serving certificate for development: on this machine, or behind the webhook's Service.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use time::{Duration, OffsetDateTime};

/// The names by which the API server reaches the webhook: through its Service, or on this machine.
const NAMES: [&str; 6] = [
    "spillway-webhook.spillway-system.svc",
    "spillway-webhook.spillway-system.svc.cluster.local",
    "spillway-webhook.spillway-system",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Long enough for an afternoon that becomes a quarter; production certificates are short and renewed.
const LIFETIME: Duration = Duration::days(90);

/// Clocks of two machines differ.
const SKEW: Duration = Duration::hours(1);

/// An authority's certificate, and a serving certificate with its key, all PEM. The authority's key is gone.
#[derive(Clone)]
pub struct DevCertificates {
    /// What the API server trusts: the content of `caBundle`.
    pub ca: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

/// Makes an authority and one serving certificate that is valid from an hour before `now` on, for 90 days.
///
/// `names` are DNS names or IP addresses beside those of the webhook's Service and of this machine; [`server_name`] tells
/// whether a client could ask for one.
///
/// # Errors
///
/// When a name is not ASCII, or the system has no randomness.
pub fn generate(names: &[String], now: OffsetDateTime) -> Result<DevCertificates, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "Spillway development CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    // rcgen's own default ends in the year 4096.
    (authority.not_before, authority.not_after) = (now - SKEW, now + LIFETIME);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let all: Vec<String> = NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
    let mut serving = CertificateParams::new(all)?;
    serving.distinguished_name.push(DnType::CommonName, "spillway-webhook");
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    (serving.not_before, serving.not_after) = (now - SKEW, now + LIFETIME);
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &authority)?;
    Ok(DevCertificates { ca: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A name that a serving certificate can stand for: a DNS name, also with `*.` in front, or an IP address.
///
/// # Errors
///
/// When no client could ask for it.
pub fn server_name(name: &str) -> Result<String, String> {
    match ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)) {
        Ok(ServerName::IpAddress(_)) if name.starts_with('*') => Err("an IP address cannot begin with *".to_owned()),
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err("expected a DNS name or an IP address".to_owned()),
    }
}
