//! TLS: versions, and who may call.

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
    certs::Serving,
    reload::{Files, ReadError},
};

/// What an HTTP/2 client asks for in its handshake. The API server calls webhooks over HTTP/1.1 only (kubernetes/kubernetes#82090);
/// other callers may choose.
pub(super) const HTTP2: &[u8] = b"h2";

/// How to speak TLS.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsArgs {
    /// The oldest TLS version to speak
    #[arg(long, env = "SPILLWAY_TLS_MIN_VERSION", default_value = "1.2", value_name = "VERSION")]
    pub tls_min_version: MinVersion,

    /// Serve only callers with a certificate of this authority, PEM; the file is followed
    ///
    /// The API server sends none unless its AdmissionConfiguration names a kubeconfig with one for webhooks (kubernetes.io,
    /// "Dynamic Admission Control", "Authenticate API servers"), which AKS does not let you set. Its certificates for kubelets and
    /// for aggregated API servers are not sent to webhooks.
    #[arg(long, env = "SPILLWAY_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// The oldest TLS version to speak.
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

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file could not be read.
    #[error("--client-ca-file: {0}")]
    Read(ReadError),
    /// Not PEM, or PEM of something else.
    #[error("--client-ca-file: no PEM certificates")]
    Pem(#[source] pem::Error),
    /// No certificate in the file, or one that is no authority's.
    #[error("--client-ca-file: holds no certificate of an authority")]
    NotAnAuthority(#[source] VerifierBuilderError),
    /// A certificate that cannot be read, or versions that do not fit together.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// How handshakes are made: what the flags say, with the authority that its file holds now.
pub(super) struct Tls {
    min_version: MinVersion,
    certificate: Serving,
    client_ca: Option<Files>,
    settings: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    pub(super) async fn new(args: &TlsArgs, certificate: Serving) -> Result<Self, TlsError> {
        let TlsArgs { tls_min_version: min_version, client_ca_file } = args;
        let mut client_ca = client_ca_file.clone().map(|file| Files::new([file]));
        let pem = match &mut client_ca {
            Some(files) => Some(files.changed().await.map_err(TlsError::Read)?.concat()),
            None => None,
        };
        let settings = settings(*min_version, &certificate, pem.as_deref())?;
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        Ok(Self { min_version: *min_version, certificate, client_ca, settings })
    }

    /// What the next handshake is made with.
    pub(super) fn acceptor(&self) -> Acceptor {
        Acceptor(self.settings.clone())
    }

    /// Follows the file of the authority for as long as it is asked to. One that cannot be used changes nothing.
    pub(super) async fn follow(mut self) {
        let Some(mut files) = self.client_ca.take() else { return std::future::pending().await };
        loop {
            let read = files.changed().await.map_err(TlsError::Read);
            match read.and_then(|pem| settings(self.min_version, &self.certificate, Some(&pem.concat()))) {
                Ok(settings) => {
                    self.settings.store(Arc::new(settings));
                    tracing::info!("client authority replaced");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "client authority kept: the file cannot be used");
                }
            }
        }
    }
}

/// The settings in force, for the accept loop.
pub(super) struct Acceptor(Arc<ArcSwap<ServerConfig>>);

impl Acceptor {
    pub(super) fn current(&self) -> TlsAcceptor {
        self.0.load_full().into()
    }
}

fn settings(
    min_version: MinVersion,
    certificate: &Serving,
    client_ca: Option<&[u8]>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(min_version.versions())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => builder.with_client_cert_verifier(verifier(pem, provider)?),
    };
    let mut settings = builder.with_cert_resolver(Arc::new(certificate.clone()));
    settings.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    // Go's client resumes no session unless it is given a cache (crypto/tls, ClientSessionCache), and the API server gives it none:
    // tickets would be work and memory for nothing.
    settings.send_tls13_tickets = 0;
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(settings)
}

fn verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(TlsError::Pem)?)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
    builder.build().map_err(TlsError::NotAnAuthority)
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
        super::testing::{Caller, Served},
        *,
    };
    use crate::certs::DevCertificates;

    /// A caller's certificate, and its authority.
    fn caller() -> DevCertificates {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut caller = CertificateParams::default();
        caller.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = caller.signed_by(&key, &authority).unwrap().pem();
        DevCertificates { ca: authority.pem(), certificate, key: key.serialize_pem() }
    }

    #[tokio::test]
    async fn tls_1_2_is_refused_where_1_3_is_asked_for() {
        static OLD: [&SupportedProtocolVersion; 1] = [&TLS12];
        let served = Served::start(&[]).await;
        let old = |served: &Served| Caller { versions: &OLD, ..served.caller() }.connect();
        assert!(old(&served).await.unwrap().get("/").await.is_some());
        let strict = Served::start(&["--tls-min-version=1.3"]).await;
        assert!(old(&strict).await.is_err());
        assert!(strict.client().await.get("/").await.is_some());
    }

    /// Whether a caller with this certificate is answered. In TLS 1.3 it hears of a refusal only after its own handshake.
    async fn is_served(served: &Served, certificate: Option<&DevCertificates>) -> bool {
        let caller = Caller { certificate: certificate.cloned(), ..served.caller() };
        match caller.connect().await {
            Ok(mut client) => client.get("/").await.is_some(),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn only_callers_of_the_named_authority_are_served_and_its_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let (one, two) = (caller(), caller());
        fs::write(&file, &one.ca).unwrap();
        let served = Served::start(&["--client-ca-file", file.to_str().unwrap()]).await;
        assert!(is_served(&served, Some(&one)).await);
        assert!(!is_served(&served, Some(&two)).await, "of another authority");
        assert!(!is_served(&served, None).await, "without a certificate");

        for (content, first, second) in [("no PEM", true, false), (&two.ca, false, true)] {
            fs::write(&file, content).unwrap();
            time::pause();
            time::sleep(std::time::Duration::from_secs(5)).await;
            time::resume();
            assert_eq!(is_served(&served, Some(&one)).await, first, "{content}");
            assert_eq!(is_served(&served, Some(&two)).await, second, "{content}");
        }
    }

    #[tokio::test]
    async fn a_file_without_an_authority_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let args = TlsArgs { tls_min_version: MinVersion::Tls12, client_ca_file: Some(file.clone()) };
        let refusal = async || Tls::new(&args, Serving::default()).await.err().unwrap().to_string();
        assert_eq!(refusal().await, format!("--client-ca-file: cannot read {}", file.display()));
        fs::write(&file, "").unwrap();
        assert_eq!(refusal().await, "--client-ca-file: holds no certificate of an authority");
    }
}
