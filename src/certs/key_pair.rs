//! A certificate and its key from PEM files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};

/// Error in a certificate and its key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPairError {
    /// The certificate is not PEM, or PEM of another type.
    #[error("the certificate is not PEM")]
    Certificate(#[source] pem::Error),
    /// The key is not PEM, or PEM of another type.
    #[error("the key is not a PEM private key")]
    Key(#[source] pem::Error),
    /// The PEM has no certificate.
    #[error("the PEM has no certificate")]
    NoCertificate,
    /// The key does not match the certificate, or is of an unsupported type.
    #[error("the key does not match the certificate, or its type is not supported")]
    Mismatch(#[source] rustls::Error),
}

/// Error in a pair of files, with the wrong flag.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPairFilesError {
    /// A file could not be read.
    #[error("{flag}: cannot read {}", path.display())]
    Read {
        /// The flag with the path of the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content of the files is unusable.
    #[error("--tls-cert-file, --tls-key-file: unusable certificate or key")]
    Pair(#[from] KeyPairError),
}

/// Reads a certificate chain and its private key, and checks that they match.
///
/// # Errors
///
/// [`KeyPairFilesError`], with the wrong flag.
pub fn load_key_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, KeyPairFilesError> {
    let read = |flag, path: &Path| {
        fs::read(path).map_err(|source| KeyPairFilesError::Read { flag, path: path.to_owned(), source })
    };
    Ok(parse_key_pair(&read("--tls-cert-file", certificate)?, &read("--tls-key-file", key)?)?)
}

/// Parses a certificate chain and its private key from PEM, and checks that they match.
///
/// # Errors
///
/// [`KeyPairError`].
pub fn parse_key_pair(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, KeyPairError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(KeyPairError::Certificate)?;
    if chain.is_empty() {
        return Err(KeyPairError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(KeyPairError::Key)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(KeyPairError::Mismatch)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::certs::generate;

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let now = datetime!(2026-01-01 00:00 UTC);
        let (one, two) = (generate(&[], now).unwrap(), generate(&[], now).unwrap());
        assert!(parse_key_pair(one.certificate.as_bytes(), one.key.as_bytes()).is_ok());
        let mismatch = parse_key_pair(one.certificate.as_bytes(), two.key.as_bytes());
        assert!(matches!(mismatch, Err(KeyPairError::Mismatch(_))));
        assert!(matches!(parse_key_pair(b"", one.key.as_bytes()), Err(KeyPairError::NoCertificate)));
        assert!(matches!(parse_key_pair(one.certificate.as_bytes(), b""), Err(KeyPairError::Key(_))));
        assert!(matches!(parse_key_pair(one.key.as_bytes(), one.key.as_bytes()), Err(KeyPairError::NoCertificate)));
    }

    #[test]
    fn an_unreadable_file_is_reported_with_its_flag() {
        let error = load_key_pair(Path::new("/nonexistent/tls.crt"), Path::new("/nonexistent/tls.key")).unwrap_err();
        assert_eq!(error.to_string(), "--tls-cert-file: cannot read /nonexistent/tls.crt");
    }
}
