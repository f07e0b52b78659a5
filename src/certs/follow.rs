//! A certificate and its key from files that change: a mounted Secret that cert-manager renews, or what a CSI driver brings.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::timeout;

use super::{KeyPairError, Leaf, Serving, from_pem};
use crate::{
    reload::{Files, ReadError},
    telemetry::{Causes, CertificateMetrics},
};

/// How often the wall clock is read.
const PERIOD: Duration = Duration::from_secs(10);

/// Where a certificate and its key are.
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

/// Why what is in the files was not put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum Refusal {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("no usable pair")]
    Pair(#[from] KeyPairError),
    #[error("cannot read the certificate")]
    Certificate(#[from] x509_parser::prelude::X509Error),
    #[error("it expired on {0}")]
    Expired(OffsetDateTime),
}

/// Keeps what is in the files in `serving`. Never ends; while the files hold no good pair, the last good one stays.
pub async fn follow_files(files: KeyPairFiles, serving: Serving, metrics: CertificateMetrics) {
    let mut content = Files::new([files.certificate.clone(), files.key.clone()]);
    let mut follower = Follower { files, serving, metrics, early: None, has_told_of_expiry: false };
    loop {
        // The wait for a change is given up at each look at the clock, and taken up again: that loses nothing.
        let changed = timeout(PERIOD, content.changed()).await;
        let now = OffsetDateTime::now_utc();
        match changed {
            Ok(read) => follower.take(read, now),
            Err(_elapsed) => follower.look_at_the_clock(now),
        }
    }
}

struct Follower {
    files: KeyPairFiles,
    serving: Serving,
    metrics: CertificateMetrics,
    /// A good certificate that is not valid yet, while an older one still is.
    early: Option<Leaf>,
    has_told_of_expiry: bool,
}

impl Follower {
    fn take(&mut self, read: Result<Vec<Vec<u8>>, ReadError>, now: OffsetDateTime) {
        self.early = None;
        match self.judge(read, now) {
            Ok(leaf) if leaf.not_before() > now && self.serves_a_valid_one(now) => {
                let certificate = self.files.certificate.display();
                tracing::warn!(%certificate, notBefore = %leaf.not_before(), "the new certificate is not valid yet, keeping the old one");
                self.early = Some(leaf);
            }
            Ok(leaf) => self.put_in_force(leaf, now),
            Err(refusal) => {
                let KeyPairFiles { certificate, key } = &self.files;
                let error = Causes(&refusal);
                tracing::error!(%error, certificate = %certificate.display(), key = %key.display(), "cannot use the serving certificate");
                self.metrics.load_failed();
            }
        }
    }

    fn judge(&self, read: Result<Vec<Vec<u8>>, ReadError>, now: OffsetDateTime) -> Result<Leaf, Refusal> {
        let content = read?;
        let [certificate, key] = content.as_slice() else { return Err(KeyPairError::NoCertificate.into()) };
        let leaf = Leaf::new(from_pem(certificate, key)?)?;
        // Better than none, for who looks at it finds out why it is not trusted; but never in the place of a good one.
        if leaf.not_after() < now && self.serves_a_valid_one(now) {
            return Err(Refusal::Expired(leaf.not_after()));
        }
        Ok(leaf)
    }

    fn serves_a_valid_one(&self, now: OffsetDateTime) -> bool {
        self.serving.current().is_some_and(|leaf| leaf.is_valid(now))
    }

    fn put_in_force(&mut self, leaf: Leaf, now: OffsetDateTime) {
        let (certificate, not_after) = (self.files.certificate.display(), leaf.not_after());
        tracing::info!(%certificate, notAfter = %not_after, "serving a certificate");
        if leaf.not_before() > now {
            tracing::warn!(%certificate, notBefore = %leaf.not_before(), "the certificate is not valid yet");
        }
        self.metrics.loaded(not_after);
        self.serving.replace(leaf);
        self.has_told_of_expiry = false;
        self.look_at_the_clock(now);
    }

    fn look_at_the_clock(&mut self, now: OffsetDateTime) {
        if let Some(leaf) = self.early.take() {
            if leaf.not_before() <= now || !self.serves_a_valid_one(now) {
                self.put_in_force(leaf, now);
            } else {
                self.early = Some(leaf);
            }
        }
        let expired = self.serving.current().filter(|leaf| leaf.not_after() < now);
        if let (Some(leaf), false) = (&expired, self.has_told_of_expiry) {
            let certificate = self.files.certificate.display();
            tracing::error!(%certificate, notAfter = %leaf.not_after(), "the certificate has expired");
        }
        self.has_told_of_expiry = expired.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use time::{Duration as Span, macros::datetime};

    use super::*;
    use crate::certs::{DevCertificates, generate};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn follower(directory: &Path) -> Follower {
        let files = KeyPairFiles::in_directory(directory);
        let (serving, metrics) = (Serving::default(), CertificateMetrics::default());
        Follower { files, serving, metrics, early: None, has_told_of_expiry: false }
    }

    fn pair(made: &DevCertificates) -> Vec<Vec<u8>> {
        [&made.certificate, &made.key].map(|pem| pem.clone().into_bytes()).into()
    }

    fn in_force(serving: &Serving) -> Option<OffsetDateTime> {
        serving.current().map(|leaf| leaf.not_after())
    }

    /// As kubelet does it: the files are links through `..data` into a directory that is never written again.
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
    async fn a_malformed_pair_leaves_the_last_good_one_and_does_not_end_the_following() {
        let volume = tempfile::tempdir().unwrap();
        let mut registry = crate::telemetry::registry();
        let (serving, metrics) = (Serving::default(), CertificateMetrics::new(&mut registry));
        let now = OffsetDateTime::now_utc();
        let [one, two, three] = [1, 2, 3].map(|days| generate(&[], now + Span::days(days) - Span::days(10)).unwrap());
        let expiry = |days: i64| (now + Span::days(80 + days)).replace_nanosecond(0).unwrap();
        let metric = |line: &str| crate::telemetry::encode(&registry).contains(line);
        tokio::spawn(follow_files(KeyPairFiles::in_directory(volume.path()), serving.clone(), metrics));
        let after_a_while = || tokio::time::sleep(Duration::from_secs(15));

        after_a_while().await;
        assert_eq!(serving.missing(now), Some("certificate"), "before the volume is filled");
        publish(volume.path(), "..one", &one.certificate, &one.key);
        after_a_while().await;
        assert_eq!(in_force(&serving), Some(expiry(1)));
        assert_eq!(serving.missing(now), None);
        for (revision, certificate, key) in [
            ("..a", &two.certificate, &one.key),
            ("..b", &"garbage".to_owned(), &two.key),
            ("..c", &two.certificate, &String::new()),
        ] {
            publish(volume.path(), revision, certificate, key);
            after_a_while().await;
            assert_eq!(in_force(&serving), Some(expiry(1)), "{revision}");
            assert!(metric("spillway_certificate_last_reload_failed 1"), "{revision}");
        }
        fs::remove_file(volume.path().join("..data")).unwrap();
        after_a_while().await;
        assert_eq!(in_force(&serving), Some(expiry(1)), "the volume is gone");
        publish(volume.path(), "..three", &three.certificate, &three.key);
        after_a_while().await;
        assert_eq!(in_force(&serving), Some(expiry(3)));
        assert!(metric("spillway_certificate_last_reload_failed 0"));
        assert!(metric(r#"spillway_certificate_reloads_total{result="failure"} 5"#), "each change is counted once");
    }

    #[test]
    fn a_pair_that_has_expired_does_not_take_the_place_of_a_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut follower = follower(directory.path());
        let (expired, good) = (generate(&[], NOW - Span::days(100)).unwrap(), generate(&[], NOW).unwrap());
        follower.take(Ok(pair(&expired)), NOW);
        assert_eq!(in_force(&follower.serving), Some(NOW - Span::days(10)), "better than none");
        assert_eq!(follower.serving.missing(NOW), Some("certificate that has not expired"));
        follower.take(Ok(pair(&good)), NOW);
        assert_eq!(in_force(&follower.serving), Some(NOW + Span::days(90)));
        follower.take(Ok(pair(&expired)), NOW);
        assert_eq!(in_force(&follower.serving), Some(NOW + Span::days(90)));
        assert_eq!(follower.serving.missing(NOW), None);
    }

    #[test]
    fn a_pair_that_is_not_valid_yet_waits_while_the_old_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut follower = follower(directory.path());
        let (old, new) = (generate(&[], NOW).unwrap(), generate(&[], NOW + Span::days(2)).unwrap());
        follower.take(Ok(pair(&old)), NOW);
        follower.take(Ok(pair(&new)), NOW);
        follower.look_at_the_clock(NOW + Span::days(1));
        assert_eq!(in_force(&follower.serving), Some(NOW + Span::days(90)));
        follower.look_at_the_clock(NOW + Span::days(2));
        assert_eq!(in_force(&follower.serving), Some(NOW + Span::days(92)));
    }
}
