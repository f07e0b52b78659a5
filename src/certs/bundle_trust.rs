//! The CAs that the API server trusts, from the `caBundle` of the MutatingWebhookConfiguration, with the time since which
//! the bundle has each CA.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use tokio::time::Instant;

use super::authority::{BUNDLE_PROPAGATION_TIME, CaCertificate, certificates};

/// The CAs that every webhook of the configuration trusts.
///
/// Times are monotonic, because a user can set the wall clock.
#[derive(Debug, Default)]
pub(crate) enum BundleTrust {
    /// The configuration has not been observed yet.
    #[default]
    Unknown,
    /// Since this time, no configuration with webhooks exists, so the API server calls no webhook.
    NoWebhooks(Instant),
    /// The trusted CAs, each with the time since which the bundle has it.
    TrustedSince(Vec<(CaCertificate, Instant)>),
}

impl BundleTrust {
    /// Observes the live configuration.
    pub(crate) fn observe(&mut self, configuration: Option<&MutatingWebhookConfiguration>, at: Instant) {
        self.observe_bundles(&bundles(configuration), at);
    }

    /// Observes the bundles of the webhooks.
    pub(super) fn observe_bundles(&mut self, bundles: &[&[u8]], at: Instant) {
        let mut bundles = bundles.iter().map(|bundle| certificates(bundle));
        let Some(mut trusted) = bundles.next() else {
            if !matches!(self, Self::NoWebhooks(_)) {
                *self = Self::NoWebhooks(at);
            }
            return;
        };
        for other in bundles {
            trusted.retain(|certificate| other.contains(certificate));
        }
        let before = match self {
            Self::TrustedSince(all) => std::mem::take(all),
            Self::Unknown | Self::NoWebhooks(_) => Vec::new(),
        };
        let since =
            |certificate: &_| before.iter().find(|(trusted, _)| trusted == certificate).map_or(at, |&(_, at)| at);
        *self = Self::TrustedSince(
            trusted.into_iter().map(|certificate| (certificate.clone(), since(&certificate))).collect(),
        );
    }

    /// Returns the certificates of the live bundle.
    pub(crate) fn certificates(&self) -> Vec<CaCertificate> {
        match self {
            Self::Unknown | Self::NoWebhooks(_) => Vec::new(),
            Self::TrustedSince(all) => all.iter().map(|(certificate, _)| certificate.clone()).collect(),
        }
    }

    /// Returns whether the bundle has this CA.
    pub(super) fn trusts(&self, certificate: &CaCertificate) -> bool {
        self.since(certificate).is_some()
    }

    /// Returns whether the bundle has had this CA for long enough that every API server of the cluster trusts it.
    pub(crate) fn is_propagated(&self, certificate: &CaCertificate, at: Instant) -> bool {
        self.since(certificate).is_some_and(|since| at >= since + BUNDLE_PROPAGATION_TIME)
    }

    fn since(&self, certificate: &CaCertificate) -> Option<Instant> {
        match self {
            Self::Unknown => None,
            Self::NoWebhooks(since) => Some(*since),
            Self::TrustedSince(all) => all.iter().find(|(trusted, _)| trusted == certificate).map(|&(_, since)| since),
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
    use crate::certs::authority::CaSecret;

    #[test]
    fn a_ca_must_be_in_the_bundle_of_every_webhook() {
        let now = datetime!(2026-01-01 00:00 UTC);
        let (one, two) = (CaSecret::replace(&[], now).unwrap(), CaSecret::replace(&[], now).unwrap());
        let both = one.bundle() + &two.bundle();
        let mut trusted = BundleTrust::default();
        trusted.observe_bundles(&[both.as_bytes(), one.bundle().as_bytes()], Instant::now());
        assert!(trusted.trusts(one.current.certificate()));
        assert!(!trusted.trusts(two.current.certificate()));
        trusted.observe_bundles(&[both.as_bytes(), b""], Instant::now());
        assert!(!trusted.trusts(one.current.certificate()));
    }

    #[test]
    fn a_ca_is_propagated_after_ten_seconds_in_the_bundle() {
        let stored = CaSecret::replace(&[], datetime!(2026-01-01 00:00 UTC)).unwrap();
        let (certificate, bundle) = (stored.current.certificate(), stored.bundle());
        let (start, mut trusted) = (Instant::now(), BundleTrust::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!trusted.is_propagated(certificate, start), "not observed yet");
        trusted.observe_bundles(&[bundle.as_bytes()], start);
        trusted.observe_bundles(&[bundle.as_bytes()], after(9));
        assert!(!trusted.is_propagated(certificate, after(9)));
        assert!(trusted.is_propagated(certificate, after(10)));
        trusted.observe_bundles(&[b""], after(11));
        trusted.observe_bundles(&[bundle.as_bytes()], after(12));
        assert!(!trusted.is_propagated(certificate, after(20)));
        trusted.observe_bundles(&[], after(21));
        assert!(!trusted.is_propagated(certificate, after(30)), "other API servers may still call webhooks");
        assert!(trusted.is_propagated(certificate, after(31)), "no webhooks");
    }
}
