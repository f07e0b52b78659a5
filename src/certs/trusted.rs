//! What the API server is seen to trust: the `caBundle` of the MutatingWebhookConfiguration, and for how long it has carried what.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use tokio::time::Instant;

use super::authority::{CaCertificate, SETTLED, certificates};

/// What is trusted by every webhook of the configuration.
///
/// The moments are of the monotonic clock: nobody sets that.
#[derive(Debug, Default)]
pub(crate) enum Trusted {
    /// The configuration has not been seen yet.
    #[default]
    Unknown,
    /// There is no configuration, or one without webhooks, since this moment: nobody calls.
    Nobody(Instant),
    /// These certificates, each since this moment.
    Since(Vec<(CaCertificate, Instant)>),
}

impl Trusted {
    /// Takes note of the live configuration.
    pub(crate) fn observe(&mut self, configuration: Option<&MutatingWebhookConfiguration>, at: Instant) {
        self.observe_bundles(&bundles(configuration), at);
    }

    /// The same from the bundles of its webhooks.
    pub(super) fn observe_bundles(&mut self, bundles: &[&[u8]], at: Instant) {
        let mut bundles = bundles.iter().map(|bundle| certificates(bundle));
        let Some(mut trusted) = bundles.next() else {
            if !matches!(self, Self::Nobody(_)) {
                *self = Self::Nobody(at);
            }
            return;
        };
        for other in bundles {
            trusted.retain(|certificate| other.contains(certificate));
        }
        let before = match self {
            Self::Since(all) => std::mem::take(all),
            Self::Unknown | Self::Nobody(_) => Vec::new(),
        };
        let since =
            |certificate: &_| before.iter().find(|(carried, _)| carried == certificate).map_or(at, |&(_, at)| at);
        *self =
            Self::Since(trusted.into_iter().map(|certificate| (certificate.clone(), since(&certificate))).collect());
    }

    /// The certificates of the live bundle.
    pub(crate) fn certificates(&self) -> Vec<CaCertificate> {
        match self {
            Self::Unknown | Self::Nobody(_) => Vec::new(),
            Self::Since(all) => all.iter().map(|(certificate, _)| certificate.clone()).collect(),
        }
    }

    /// Whether what this authority signs would be trusted now.
    pub(super) fn carries(&self, certificate: &CaCertificate) -> bool {
        self.since(certificate).is_some()
    }

    /// The same, by every API server of the cluster.
    pub(crate) fn is_settled(&self, certificate: &CaCertificate, at: Instant) -> bool {
        self.since(certificate).is_some_and(|since| at >= since + SETTLED)
    }

    fn since(&self, certificate: &CaCertificate) -> Option<Instant> {
        match self {
            Self::Unknown => None,
            Self::Nobody(since) => Some(*since),
            Self::Since(all) => all.iter().find(|(carried, _)| carried == certificate).map(|&(_, since)| since),
        }
    }
}

fn bundles(configuration: Option<&MutatingWebhookConfiguration>) -> Vec<&[u8]> {
    let webhooks = configuration.and_then(|configuration| configuration.webhooks.as_deref()).unwrap_or_default();
    webhooks.iter().map(bundle).collect()
}

fn bundle(webhook: &MutatingWebhook) -> &[u8] {
    webhook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::macros::datetime;

    use super::*;
    use crate::certs::authority::Stored;

    #[test]
    fn what_only_one_webhook_trusts_is_not_trusted() {
        let now = datetime!(2026-01-01 00:00 UTC);
        let (one, two) = (Stored::replace(&[], now).unwrap(), Stored::replace(&[], now).unwrap());
        let both = one.bundle() + &two.bundle();
        let mut trusted = Trusted::default();
        trusted.observe_bundles(&[both.as_bytes(), one.bundle().as_bytes()], Instant::now());
        assert!(trusted.carries(one.current.certificate()));
        assert!(!trusted.carries(two.current.certificate()));
        trusted.observe_bundles(&[both.as_bytes(), b""], Instant::now());
        assert!(!trusted.carries(one.current.certificate()));
    }

    #[test]
    fn a_certificate_settles_ten_seconds_after_it_was_first_carried_without_a_break() {
        let stored = Stored::replace(&[], datetime!(2026-01-01 00:00 UTC)).unwrap();
        let (certificate, bundle) = (stored.current.certificate(), stored.bundle());
        let (start, mut trusted) = (Instant::now(), Trusted::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!trusted.is_settled(certificate, start), "not seen yet");
        trusted.observe_bundles(&[bundle.as_bytes()], start);
        trusted.observe_bundles(&[bundle.as_bytes()], after(9));
        assert!(!trusted.is_settled(certificate, after(9)));
        assert!(trusted.is_settled(certificate, after(10)));
        trusted.observe_bundles(&[b""], after(11));
        trusted.observe_bundles(&[bundle.as_bytes()], after(12));
        assert!(!trusted.is_settled(certificate, after(20)));
        trusted.observe_bundles(&[], after(21));
        assert!(
            !trusted.is_settled(certificate, after(30)),
            "not every API server has heard that there is nobody to call"
        );
        assert!(trusted.is_settled(certificate, after(31)), "nobody calls");
    }
}
