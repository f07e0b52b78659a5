//! TLS: protocol versions and client certificates.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ALL_VERSIONS, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, pem, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    certs::ServingCertificate,
    reload::{ReadError, WatchedFiles},
};

/// The ALPN name of HTTP/2. The API server calls webhooks over HTTP/1.1 only (kubernetes/kubernetes#82090). Other
/// clients may use HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// Options of TLS.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsArgs {
    /// Minimum TLS version
    #[arg(long, env = "SPILLWAY_TLS_MIN_VERSION", default_value = "1.2", value_name = "VERSION")]
    pub tls_min_version: MinVersion,

    /// Accept only clients with a certificate of this CA, PEM; the file is reloaded when it changes
    ///
    /// The API server sends no client certificate by default. It sends one if its AdmissionConfiguration names a
    /// kubeconfig with one for webhooks (kubernetes.io, "Dynamic Admission Control", "Authenticate API servers").
    /// AKS does not let you set that. The API server does not send its certificates for kubelets and aggregated API
    /// servers to webhooks.
    #[arg(long, env = "SPILLWAY_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// Minimum TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3 only.
    #[value(name = "1.3")]
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static TLS13_ONLY: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Tls12 => ALL_VERSIONS,
            Self::Tls13 => &TLS13_ONLY,
        }
    }
}

/// Error in the TLS options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file could not be read.
    #[error("--client-ca-file: {0}")]
    Read(ReadError),
    /// The file is not PEM, or has PEM of another type.
    #[error("--client-ca-file: not PEM certificates")]
    Pem(#[source] pem::Error),
    /// The file has no certificate, or one that is not of a CA.
    #[error("--client-ca-file: contains no CA certificate")]
    NoCaCertificate(#[source] VerifierBuilderError),
    /// A certificate cannot be parsed, or the TLS versions are inconsistent.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// The TLS configuration, which is rebuilt when the client CA file changes.
pub(super) struct ReloadableTls {
    min_version: MinVersion,
    certificate: ServingCertificate,
    client_ca: Option<WatchedFiles>,
    server_config: Arc<ArcSwap<ServerConfig>>,
}

impl ReloadableTls {
    pub(super) async fn new(args: &TlsArgs, certificate: ServingCertificate) -> Result<Self, TlsError> {
        let TlsArgs { tls_min_version: min_version, client_ca_file } = args;
        let mut client_ca = client_ca_file.clone().map(|file| WatchedFiles::new([file]));
        let pem = match &mut client_ca {
            Some(files) => Some(files.changed().await.map_err(TlsError::Read)?.concat()),
            None => None,
        };
        let server_config = server_config(*min_version, &certificate, pem.as_deref())?;
        let server_config = Arc::new(ArcSwap::from_pointee(server_config));
        Ok(Self { min_version: *min_version, certificate, client_ca, server_config })
    }

    /// Returns the configuration for new handshakes.
    pub(super) fn current_tls(&self) -> CurrentTls {
        CurrentTls(self.server_config.clone())
    }

    /// Reloads the client CA file when it changes. Never returns. An invalid file does not change the configuration.
    pub(super) async fn reload_client_ca(mut self) {
        let Some(mut files) = self.client_ca.take() else { return std::future::pending().await };
        loop {
            let read = files.changed().await.map_err(TlsError::Read);
            match read.and_then(|pem| server_config(self.min_version, &self.certificate, Some(&pem.concat()))) {
                Ok(server_config) => {
                    self.server_config.store(Arc::new(server_config));
                    tracing::info!("reloaded the client CA");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "cannot reload the client CA, keeping the current one");
                }
            }
        }
    }
}

/// The current TLS configuration.
pub(super) struct CurrentTls(Arc<ArcSwap<ServerConfig>>);

impl CurrentTls {
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.0.load_full().into()
    }
}

fn server_config(
    min_version: MinVersion,
    certificate: &ServingCertificate,
    client_ca: Option<&[u8]>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(min_version.versions())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => builder.with_client_cert_verifier(client_verifier(pem, provider)?),
    };
    let mut server_config = builder.with_cert_resolver(Arc::new(certificate.clone()));
    server_config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    // Go's client resumes sessions only with a cache (crypto/tls, ClientSessionCache), and the API server sets
    // none. Session tickets would waste work and memory.
    server_config.send_tls13_tickets = 0;
    server_config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(server_config)
}

fn client_verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(TlsError::Pem)?)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
    builder.build().map_err(TlsError::NoCaCertificate)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    };
    use rustls::version::TLS12;
    use tokio::time;

    use super::{
        super::test_server::{ClientOptions, TestServer},
        *,
    };
    use crate::certs::DevCertificates;

    /// Returns a client certificate and its CA.
    fn client_certificate() -> DevCertificates {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut client = CertificateParams::default();
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = client.signed_by(&key, &authority).unwrap().pem();
        DevCertificates { ca: authority.pem(), certificate, key: key.serialize_pem() }
    }

    #[tokio::test]
    async fn the_minimum_tls_version_is_enforced() {
        static OLD: [&SupportedProtocolVersion; 1] = [&TLS12];
        let server = TestServer::start(&[]).await;
        let old = |server: &TestServer| ClientOptions { versions: &OLD, ..server.client_options() }.connect();
        assert!(old(&server).await.unwrap().get("/").await.is_some());
        let strict = TestServer::start(&["--tls-min-version=1.3"]).await;
        assert!(old(&strict).await.is_err());
        assert!(strict.client().await.get("/").await.is_some());
    }

    /// Returns whether the server responds to a client with this certificate. In TLS 1.3, a client sees a rejection
    /// only after its own handshake.
    async fn is_served(server: &TestServer, certificate: Option<&DevCertificates>) -> bool {
        let options = ClientOptions { certificate: certificate.cloned(), ..server.client_options() };
        match options.connect().await {
            Ok(mut client) => client.get("/").await.is_some(),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn the_client_ca_is_enforced_and_reloaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let (one, two) = (client_certificate(), client_certificate());
        fs::write(&file, &one.ca).unwrap();
        let server = TestServer::start(&["--client-ca-file", file.to_str().unwrap()]).await;
        assert!(is_served(&server, Some(&one)).await);
        assert!(!is_served(&server, Some(&two)).await, "of another CA");
        assert!(!is_served(&server, None).await, "without a certificate");

        for (content, first, second) in [("no PEM", true, false), (&two.ca, false, true)] {
            fs::write(&file, content).unwrap();
            time::pause();
            time::sleep(std::time::Duration::from_secs(5)).await;
            time::resume();
            assert_eq!(is_served(&server, Some(&one)).await, first, "{content}");
            assert_eq!(is_served(&server, Some(&two)).await, second, "{content}");
        }
    }

    #[tokio::test]
    async fn a_client_ca_file_without_a_ca_fails_at_startup() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let args = TlsArgs { tls_min_version: MinVersion::Tls12, client_ca_file: Some(file.clone()) };
        let refusal =
            async || ReloadableTls::new(&args, ServingCertificate::default()).await.err().unwrap().to_string();
        assert_eq!(refusal().await, format!("--client-ca-file: cannot read {}", file.display()));
        fs::write(&file, "").unwrap();
        assert_eq!(refusal().await, "--client-ca-file: contains no CA certificate");
    }
}
