//! A certificate and its key from files that change, such as a mounted Secret that cert-manager renews, or a CSI
//! volume.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::timeout;

use super::{
    key_pair::{KeyPairError, parse_key_pair},
    serving_certificate::{Leaf, ServingCertificate},
};
use crate::{
    reload::{ReadError, WatchedFiles},
    telemetry::{Causes, CertificateMetrics},
};

/// Interval of checks of the wall clock.
const WALL_CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Paths of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// The certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl KeyPairFiles {
    /// `tls.crt` and `tls.key`, as a Secret of type `kubernetes.io/tls` names them.
    pub fn in_directory(directory: &Path) -> Self {
        Self { certificate: directory.join("tls.crt"), key: directory.join("tls.key") }
    }
}

/// The reason why the webhook does not serve the pair in the files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum RejectedPair {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("unusable certificate or key")]
    Pair(#[from] KeyPairError),
    #[error("cannot parse the certificate")]
    Certificate(#[from] x509_parser::prelude::X509Error),
    #[error("the certificate expired on {0}")]
    Expired(OffsetDateTime),
}

/// Serves the pair in the files, and follows changes. Never returns. While the files have no valid pair, it
/// keeps the last valid pair.
pub async fn watch_certificate_files(files: KeyPairFiles, serving: ServingCertificate, metrics: CertificateMetrics) {
    let mut content = WatchedFiles::new([files.certificate.clone(), files.key.clone()]);
    let mut watcher = FileWatcher { files, serving, metrics, pending: None, has_logged_expiry: false };
    loop {
        // Each check of the clock cancels the wait for a change. The wait is cancel safe.
        let changed = timeout(WALL_CLOCK_CHECK_INTERVAL, content.changed()).await;
        let now = OffsetDateTime::now_utc();
        match changed {
            Ok(read) => watcher.update(read, now),
            Err(_elapsed) => watcher.check_validity(now),
        }
    }
}

struct FileWatcher {
    files: KeyPairFiles,
    serving: ServingCertificate,
    metrics: CertificateMetrics,
    /// A pair that is not valid yet, while an older pair still is.
    pending: Option<Leaf>,
    has_logged_expiry: bool,
}

impl FileWatcher {
    fn update(&mut self, read: Result<Vec<Vec<u8>>, ReadError>, now: OffsetDateTime) {
        self.pending = None;
        match self.validate(read, now) {
            Ok(leaf) if leaf.not_before() > now && self.serves_valid_certificate(now) => {
                let certificate = self.files.certificate.display();
                tracing::warn!(%certificate, notBefore = %leaf.not_before(), "the new certificate is not valid yet, keeping the old one");
                self.pending = Some(leaf);
            }
            Ok(leaf) => self.serve(leaf, now),
            Err(rejected) => {
                let KeyPairFiles { certificate, key } = &self.files;
                let error = Causes(&rejected);
                tracing::error!(%error, certificate = %certificate.display(), key = %key.display(), "cannot use the serving certificate");
                self.metrics.load_failed();
            }
        }
    }

    fn validate(&self, read: Result<Vec<Vec<u8>>, ReadError>, now: OffsetDateTime) -> Result<Leaf, RejectedPair> {
        let content = read?;
        let [certificate, key] = content.as_slice() else { return Err(KeyPairError::NoCertificate.into()) };
        let leaf = Leaf::new(parse_key_pair(certificate, key)?)?;
        // An expired certificate never replaces a valid one. Without a valid one, the webhook serves an expired
        // certificate, so that users see the reason for the failure.
        if leaf.not_after() < now && self.serves_valid_certificate(now) {
            return Err(RejectedPair::Expired(leaf.not_after()));
        }
        Ok(leaf)
    }

    fn serves_valid_certificate(&self, now: OffsetDateTime) -> bool {
        self.serving.current().is_some_and(|leaf| leaf.is_valid(now))
    }

    fn serve(&mut self, leaf: Leaf, now: OffsetDateTime) {
        let (certificate, not_after) = (self.files.certificate.display(), leaf.not_after());
        tracing::info!(%certificate, notAfter = %not_after, "serving a certificate");
        if leaf.not_before() > now {
            tracing::warn!(%certificate, notBefore = %leaf.not_before(), "the certificate is not valid yet");
        }
        self.metrics.loaded(not_after);
        self.serving.replace(leaf);
        self.has_logged_expiry = false;
        self.check_validity(now);
    }

    fn check_validity(&mut self, now: OffsetDateTime) {
        if let Some(leaf) = self.pending.take() {
            if leaf.not_before() <= now || !self.serves_valid_certificate(now) {
                self.serve(leaf, now);
            } else {
                self.pending = Some(leaf);
            }
        }
        let expired = self.serving.current().filter(|leaf| leaf.not_after() < now);
        if let (Some(leaf), false) = (&expired, self.has_logged_expiry) {
            let certificate = self.files.certificate.display();
            tracing::error!(%certificate, notAfter = %leaf.not_after(), "the certificate has expired");
        }
        self.has_logged_expiry = expired.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use time::{Duration as Span, macros::datetime};

    use super::*;
    use crate::certs::{DevCertificates, generate};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn watcher(directory: &Path) -> FileWatcher {
        let files = KeyPairFiles::in_directory(directory);
        let (serving, metrics) = (ServingCertificate::default(), CertificateMetrics::default());
        FileWatcher { files, serving, metrics, pending: None, has_logged_expiry: false }
    }

    fn pair(made: &DevCertificates) -> Vec<Vec<u8>> {
        [&made.certificate, &made.key].map(|pem| pem.clone().into_bytes()).into()
    }

    fn served_until(serving: &ServingCertificate) -> Option<OffsetDateTime> {
        serving.current().map(|leaf| leaf.not_after())
    }

    /// Updates a volume as the kubelet does. The files are links through `..data` into a directory that never changes.
    fn publish(volume: &Path, revision: &str, certificate: &str, key: &str) {
        let directory = volume.join(revision);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("tls.crt"), certificate).unwrap();
        fs::write(directory.join("tls.key"), key).unwrap();
        symlink(revision, volume.join("..next")).unwrap();
        fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
        for file in ["tls.crt", "tls.key"].map(|name| (name, volume.join(name))) {
            if fs::symlink_metadata(&file.1).is_err() {
                symlink(Path::new("..data").join(file.0), file.1).unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_pairs_keep_the_last_valid_one_and_the_watch() {
        let volume = tempfile::tempdir().unwrap();
        let mut registry = crate::telemetry::registry();
        let (serving, metrics) = (ServingCertificate::default(), CertificateMetrics::new(&mut registry));
        let now = OffsetDateTime::now_utc();
        let [one, two, three] = [1, 2, 3].map(|days| generate(&[], now + Span::days(days) - Span::days(10)).unwrap());
        let expiry = |days: i64| (now + Span::days(80 + days)).replace_nanosecond(0).unwrap();
        let metric = |line: &str| crate::telemetry::encode(&registry).contains(line);
        tokio::spawn(watch_certificate_files(KeyPairFiles::in_directory(volume.path()), serving.clone(), metrics));
        let wait_for_poll = || tokio::time::sleep(Duration::from_secs(15));

        wait_for_poll().await;
        assert_eq!(serving.not_ready_reason(now), Some("certificate"), "before the volume is filled");
        publish(volume.path(), "..one", &one.certificate, &one.key);
        wait_for_poll().await;
        assert_eq!(served_until(&serving), Some(expiry(1)));
        assert_eq!(serving.not_ready_reason(now), None);
        for (revision, certificate, key) in [
            ("..a", &two.certificate, &one.key),
            ("..b", &"garbage".to_owned(), &two.key),
            ("..c", &two.certificate, &String::new()),
        ] {
            publish(volume.path(), revision, certificate, key);
            wait_for_poll().await;
            assert_eq!(served_until(&serving), Some(expiry(1)), "{revision}");
            assert!(metric("spillway_certificate_last_reload_failed 1"), "{revision}");
        }
        fs::remove_file(volume.path().join("..data")).unwrap();
        wait_for_poll().await;
        assert_eq!(served_until(&serving), Some(expiry(1)), "the volume has no data");
        publish(volume.path(), "..three", &three.certificate, &three.key);
        wait_for_poll().await;
        assert_eq!(served_until(&serving), Some(expiry(3)));
        assert!(metric("spillway_certificate_last_reload_failed 0"));
        assert!(metric(r#"spillway_certificate_reloads_total{result="failure"} 5"#), "each change is counted once");
    }

    #[test]
    fn an_expired_pair_does_not_replace_a_valid_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher = watcher(directory.path());
        let (expired, good) = (generate(&[], NOW - Span::days(100)).unwrap(), generate(&[], NOW).unwrap());
        watcher.update(Ok(pair(&expired)), NOW);
        assert_eq!(served_until(&watcher.serving), Some(NOW - Span::days(10)), "no valid certificate to keep");
        assert_eq!(watcher.serving.not_ready_reason(NOW), Some("certificate that has not expired"));
        watcher.update(Ok(pair(&good)), NOW);
        assert_eq!(served_until(&watcher.serving), Some(NOW + Span::days(90)));
        watcher.update(Ok(pair(&expired)), NOW);
        assert_eq!(served_until(&watcher.serving), Some(NOW + Span::days(90)));
        assert_eq!(watcher.serving.not_ready_reason(NOW), None);
    }

    #[test]
    fn a_pair_that_is_not_valid_yet_is_pending() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher = watcher(directory.path());
        let (old, new) = (generate(&[], NOW).unwrap(), generate(&[], NOW + Span::days(2)).unwrap());
        watcher.update(Ok(pair(&old)), NOW);
        watcher.update(Ok(pair(&new)), NOW);
        watcher.check_validity(NOW + Span::days(1));
        assert_eq!(served_until(&watcher.serving), Some(NOW + Span::days(90)));
        watcher.check_validity(NOW + Span::days(2));
        assert_eq!(served_until(&watcher.serving), Some(NOW + Span::days(92)));
    }
}
