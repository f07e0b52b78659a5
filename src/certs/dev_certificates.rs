//! A CA and a serving certificate for development, for this machine or behind the webhook's Service.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use time::{Duration, OffsetDateTime};

/// DNS names and IP addresses of the webhook: its Service, or this machine.
const DEFAULT_SERVER_NAMES: [&str; 6] = [
    "spillway-webhook.spillway-system.svc",
    "spillway-webhook.spillway-system.svc.cluster.local",
    "spillway-webhook.spillway-system",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Validity of both certificates. Production certificates have a shorter validity and are renewed.
const DEV_CERTIFICATE_LIFETIME: Duration = Duration::days(90);

/// Maximum difference between the clocks of two machines.
const MAX_CLOCK_SKEW: Duration = Duration::hours(1);

/// A CA certificate, and a serving certificate with its key, all PEM. Does not include the CA's key.
#[derive(Clone)]
pub struct DevCertificates {
    /// The CA certificate, which is the content of `caBundle`.
    pub ca: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

/// Generates a CA and one serving certificate, valid from an hour before `now` for 90 days.
///
/// `names` are DNS names or IP addresses in addition to those of the webhook's Service and of this machine.
/// [`server_name`] checks a name.
///
/// # Errors
///
/// When a name is not ASCII, or the system has no randomness.
pub fn generate(names: &[String], now: OffsetDateTime) -> Result<DevCertificates, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "Spillway development CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    // The default of rcgen ends in the year 4096.
    (authority.not_before, authority.not_after) = (now - MAX_CLOCK_SKEW, now + DEV_CERTIFICATE_LIFETIME);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let all: Vec<String> = DEFAULT_SERVER_NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
    let mut serving = CertificateParams::new(all)?;
    serving.distinguished_name.push(DnType::CommonName, "spillway-webhook");
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    (serving.not_before, serving.not_after) = (now - MAX_CLOCK_SKEW, now + DEV_CERTIFICATE_LIFETIME);
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &authority)?;
    Ok(DevCertificates { ca: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Checks a name for a serving certificate: a DNS name, also with a leading `*.`, or an IP address.
///
/// # Errors
///
/// When clients cannot use the name.
pub fn server_name(name: &str) -> Result<String, String> {
    match ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)) {
        Ok(ServerName::IpAddress(_)) if name.starts_with('*') => Err("an IP address cannot begin with *".to_owned()),
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err("expected a DNS name or an IP address".to_owned()),
    }
}
