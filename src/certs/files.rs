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

/// Why a certificate and a key were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPairError {
    /// Not PEM, or PEM of something else.
    #[error("the certificate is not PEM")]
    Certificate(#[source] pem::Error),
    /// Not PEM, or PEM of something else.
    #[error("the key is no PEM private key")]
    Key(#[source] pem::Error),
    /// No certificate in the PEM.
    #[error("there is no certificate")]
    NoCertificate,
    /// The two are not a pair, or the key is of a kind that cannot serve.
    #[error("the key does not belong to the certificate, or is of an unknown kind")]
    Mismatch(#[source] rustls::Error),
}

/// Why a pair of files was refused. Names the flag at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPairFilesError {
    /// A file could not be read.
    #[error("{flag}: cannot read {}", path.display())]
    Read {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in them cannot be used.
    #[error("--tls-cert-file, --tls-key-file: no usable pair")]
    Pair(#[from] KeyPairError),
}

/// Reads a certificate chain and its private key, and proves that they belong together.
///
/// # Errors
///
/// [`KeyPairFilesError`], which names the flag at fault.
pub fn from_files(certificate: &Path, key: &Path) -> Result<CertifiedKey, KeyPairFilesError> {
    let read = |flag, path: &Path| {
        fs::read(path).map_err(|source| KeyPairFilesError::Read { flag, path: path.to_owned(), source })
    };
    Ok(from_pem(&read("--tls-cert-file", certificate)?, &read("--tls-key-file", key)?)?)
}

/// The same from PEM text in memory.
///
/// # Errors
///
/// [`KeyPairError`].
pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, KeyPairError> {
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
        assert!(from_pem(one.certificate.as_bytes(), one.key.as_bytes()).is_ok());
        let mismatch = from_pem(one.certificate.as_bytes(), two.key.as_bytes());
        assert!(matches!(mismatch, Err(KeyPairError::Mismatch(_))));
        assert!(matches!(from_pem(b"", one.key.as_bytes()), Err(KeyPairError::NoCertificate)));
        assert!(matches!(from_pem(one.certificate.as_bytes(), b""), Err(KeyPairError::Key(_))));
        assert!(matches!(from_pem(one.key.as_bytes(), one.key.as_bytes()), Err(KeyPairError::NoCertificate)));
    }

    #[test]
    fn a_missing_file_is_named_with_its_flag() {
        let error = from_files(Path::new("/nonexistent/tls.crt"), Path::new("/nonexistent/tls.key")).unwrap_err();
        assert_eq!(error.to_string(), "--tls-cert-file: cannot read /nonexistent/tls.crt");
    }
}
