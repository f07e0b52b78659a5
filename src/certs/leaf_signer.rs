//! Selects the CA and the time for signing the serving certificate of one replica. Pure: time is a parameter.

use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    authority::{Authority, AuthorityError, CaSecret, SecretError},
    bundle_trust::BundleTrust,
};

/// A monotonic clock.
///
/// If a user sets the wall clock back, a certificate would expire. The system's monotonic clock stops while a machine is
/// suspended. So this clock returns the later of the wall clock, and the last result plus the elapsed time.
#[derive(Debug, Clone, Copy)]
pub(super) struct SteadyClock {
    wall: OffsetDateTime,
    at: Instant,
}

impl SteadyClock {
    pub(super) fn start(wall: OffsetDateTime, at: Instant) -> Self {
        Self { wall, at }
    }

    pub(super) fn read(&mut self, wall: OffsetDateTime, at: Instant) -> OffsetDateTime {
        let passed = self.wall + at.saturating_duration_since(self.at);
        *self = Self { wall: wall.max(passed), at };
        self.wall
    }
}

/// The last signed certificate, and its CA, which signs until its successor is known and trusted.
#[derive(Debug, Clone)]
struct SignedLeaf {
    authority: Authority,
    signed_at: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl SignedLeaf {
    fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.not_after - (self.not_after - self.signed_at) / 3
    }
}

/// The state of a replica: the CA Secret, the trusted CAs and its last certificate.
#[derive(Debug, Default)]
pub(super) struct LeafSigner {
    /// The CA Secret. `None` until it is read.
    pub(super) stored: Option<Result<CaSecret, SecretError>>,
    pub(super) trusted: BundleTrust,
    signed: Option<SignedLeaf>,
}

impl LeafSigner {
    /// Signs a certificate if one is due.
    pub(super) fn sign_if_due(
        &mut self,
        names: &[String],
        now: OffsetDateTime,
        at: Instant,
    ) -> Result<Option<CertifiedKey>, AuthorityError> {
        let Some(authority) = self.select_authority(now, at) else { return Ok(None) };
        let key = authority.sign(names, now)?;
        self.signed = Some(SignedLeaf { not_after: authority.leaf_not_after(now), authority, signed_at: now });
        Ok(Some(key))
    }

    /// Returns the CA that must sign a certificate now. `None` if no certificate is due.
    ///
    /// The newest CA that every API server trusts signs. If no CA qualifies, the CA of the current certificate keeps
    /// signing while the bundle has it, or while no other CA can replace it. Otherwise the older CA in the bundle signs.
    /// The first certificate waits for a CA in the bundle, because no API server would trust it before.
    fn select_authority(&self, now: OffsetDateTime, at: Instant) -> Option<Authority> {
        let stored = self.stored.as_ref().and_then(|stored| stored.as_ref().ok());
        let (current, next) = (stored.map(|stored| &stored.current), stored.and_then(|stored| stored.next.as_ref()));
        let is_trusted = self.signed.as_ref().is_some_and(|signed| self.trusted.trusts(signed.authority.certificate()));
        let mut oldest_first = [current, next].into_iter().flatten();
        let trusted = oldest_first.find(|authority| self.trusted.trusts(authority.certificate()));
        if let (Some(trusted), false) = (trusted, is_trusted) {
            return self.outlives_current_leaf(trusted, now).then(|| trusted.clone());
        }
        let signed = self.signed.as_ref()?;
        let mut newest_first = [next, current].into_iter().flatten();
        let settled = newest_first.find(|authority| self.trusted.is_propagated(authority.certificate(), at));
        let chosen = settled.unwrap_or(&signed.authority);
        let is_other = chosen.certificate() != signed.authority.certificate();
        (is_other || (signed.is_due(now) && self.outlives_current_leaf(chosen, now))).then(|| chosen.clone())
    }

    /// Returns whether a certificate of this CA would end later than the current one. Near the end of its
    /// validity, a CA cannot sign such a certificate.
    fn outlives_current_leaf(&self, authority: &Authority, now: OffsetDateTime) -> bool {
        let signed = self.signed.as_ref().filter(|signed| signed.authority.certificate() == authority.certificate());
        signed.is_none_or(|signed| authority.leaf_not_after(now) > signed.not_after)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::{Duration as Span, macros::datetime};

    use super::*;
    use crate::certs::authority::{CA_LIFETIME, CaCertificate, LEAF_LIFETIME};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn signer(stored: CaSecret, bundles: &[&str], at: Instant) -> LeafSigner {
        let mut signer = LeafSigner { stored: Some(Ok(stored)), ..LeafSigner::default() };
        observe(&mut signer, bundles, at);
        signer
    }

    fn observe(signer: &mut LeafSigner, bundles: &[&str], at: Instant) {
        signer.trusted.observe_bundles(&bundles.iter().map(|bundle| bundle.as_bytes()).collect::<Vec<_>>(), at);
    }

    /// Signs if due, and returns the CA that signed.
    fn renewed(signer: &mut LeafSigner, now: OffsetDateTime, at: Instant) -> Option<CaCertificate> {
        let key = signer.sign_if_due(&["localhost".to_owned()], now, at).unwrap();
        key.map(|_| signer.signed.clone().unwrap().authority.certificate().clone())
    }

    #[test]
    fn a_new_ca_signs_only_after_the_bundle_has_propagated() {
        let stored = CaSecret::replace(&[], NOW).unwrap();
        let (old, old_bundle, start) = (stored.current.certificate().clone(), stored.bundle(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signer = signer(stored, &[&old_bundle], start);
        assert_eq!(renewed(&mut signer, NOW, start).as_ref(), Some(&old), "signs the first certificate immediately");
        let stored = signer.stored.take().unwrap().unwrap().prepare(NOW).unwrap();
        let (new, both) = (stored.next.as_ref().unwrap().certificate().clone(), stored.bundle());
        signer.stored = Some(Ok(stored));
        assert_eq!(renewed(&mut signer, NOW, at(1000)), None, "not in the bundle");
        observe(&mut signer, &[&both, &old_bundle], at(1000));
        assert_eq!(renewed(&mut signer, NOW, at(2000)), None, "not in the bundle of both webhooks");
        observe(&mut signer, &[&both, &both], at(2000));
        assert_eq!(renewed(&mut signer, NOW, at(2009)), None, "not long enough");
        assert_eq!(renewed(&mut signer, NOW, at(2010)), Some(new.clone()));
        observe(&mut signer, &[""], at(3000));
        assert_eq!(renewed(&mut signer, NOW, at(3010)), None, "the bundle was emptied");
        observe(&mut signer, &[&old_bundle], at(3020));
        assert_eq!(
            renewed(&mut signer, NOW, at(3020)),
            Some(old),
            "signs immediately after an old bundle was restored"
        );
        observe(&mut signer, &[], at(4000));
        assert_eq!(renewed(&mut signer, NOW, at(4010)), Some(new), "the newest CA signs if no webhook exists");
    }

    #[test]
    fn a_replica_renews_without_the_secret() {
        let (stored, start) = (CaSecret::replace(&[], NOW).unwrap(), Instant::now());
        let (old, bundle) = (stored.current.certificate().clone(), stored.bundle());
        let mut signer = signer(stored, &[&bundle], start);
        assert!(renewed(&mut signer, NOW, start).is_some());
        let mut now = NOW;
        for error in
            [SecretError::Missing, SecretError::Malformed(super::super::authority::MalformedSecret::Missing("tls.crt"))]
        {
            signer.stored = Some(Err(error));
            assert_eq!(renewed(&mut signer, now + Span::hours(15), start), None);
            now += Span::hours(16);
            assert_eq!(renewed(&mut signer, now, start).as_ref(), Some(&old), "the CA is still trusted");
        }
        // A new CA that is not in the bundle yet does not sign.
        signer.stored = Some(CaSecret::replace(&[], NOW).map_err(|_| SecretError::Missing));
        assert_eq!(renewed(&mut signer, now, start), None);
        assert_eq!(renewed(&mut signer, now + Span::hours(16), start), Some(old));
        let new = signer.stored.as_ref().unwrap().as_ref().unwrap().bundle();
        observe(&mut signer, &[&(new.clone() + &bundle)], start);
        assert_eq!(renewed(&mut signer, now, start), None, "another API server may not have the new bundle yet");
        observe(&mut signer, &[&new], start);
        assert!(renewed(&mut signer, now, start).is_some(), "the old CA is no longer trusted");
    }

    #[test]
    fn leaves_renew_after_two_thirds_and_never_outlive_their_ca() {
        let (stored, start) = (CaSecret::replace(&[], NOW).unwrap(), Instant::now());
        let (bundle, end) = (stored.bundle(), stored.current.certificate().not_after());
        let mut signer = signer(stored, &[&bundle], start);
        let hours = |hours| NOW + Span::hours(hours);
        assert!(renewed(&mut signer, NOW, start).is_some());
        assert!(renewed(&mut signer, hours(15), start).is_none());
        assert!(renewed(&mut signer, hours(16), start).is_some());
        assert_eq!(signer.signed.as_ref().unwrap().not_after, hours(16) + LEAF_LIFETIME);
        assert!(renewed(&mut signer, end - Span::hours(1), start).is_some());
        assert_eq!(signer.signed.as_ref().unwrap().not_after, end);
        assert!(renewed(&mut signer, end - Span::minutes(1), start).is_none(), "a new leaf would not end later");
        assert!(renewed(&mut signer, end + Span::hours(1), start).is_none());
        assert_eq!(end, NOW + CA_LIFETIME);
    }

    #[test]
    fn the_clock_is_monotonic_and_advances_after_suspend() {
        let start = Instant::now();
        let mut clock = SteadyClock::start(NOW, start);
        let hours = |hours: u64| start + Duration::from_secs(3600 * hours);
        assert_eq!(clock.read(NOW + Span::hours(1), hours(1)), NOW + Span::hours(1));
        assert_eq!(clock.read(NOW - Span::days(30), hours(17)), NOW + Span::hours(17), "set back by a month");
        assert_eq!(clock.read(NOW + Span::days(3), hours(18)), NOW + Span::days(3), "suspended for some days");
    }
}
