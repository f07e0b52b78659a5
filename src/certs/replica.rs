//! One replica's serving certificate under the shared authority: which authority signs it, and when. Pure: time is a parameter.

use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    authority::{Authority, AuthorityError, Lacking, Stored},
    trusted::Trusted,
};

/// A clock that is never set back.
///
/// The wall clock alone would let a certificate expire when it is set back; the monotonic clock alone stands still while a
/// machine is suspended. So it is the later one: what the wall says, or what it said before and the time that has passed since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    wall: OffsetDateTime,
    at: Instant,
}

impl Clock {
    pub(super) fn start(wall: OffsetDateTime, at: Instant) -> Self {
        Self { wall, at }
    }

    pub(super) fn read(&mut self, wall: OffsetDateTime, at: Instant) -> OffsetDateTime {
        let passed = self.wall + at.saturating_duration_since(self.at);
        *self = Self { wall: wall.max(passed), at };
        self.wall
    }
}

/// What was signed last. The authority is kept: until its successor is known and trusted, it signs on.
#[derive(Debug, Clone)]
struct Signed {
    by: Authority,
    at: OffsetDateTime,
    until: OffsetDateTime,
}

impl Signed {
    fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.until - (self.until - self.at) / 3
    }
}

/// What a replica has seen, and what it has signed.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// The authority; nothing until the Secret has been looked for.
    pub(super) stored: Option<Result<Stored, Lacking>>,
    pub(super) trusted: Trusted,
    signed: Option<Signed>,
}

impl Replica {
    /// Signs a certificate if that is called for, else nothing.
    pub(super) fn renew(
        &mut self,
        names: &[String],
        now: OffsetDateTime,
        at: Instant,
    ) -> Result<Option<CertifiedKey>, AuthorityError> {
        let Some(authority) = self.signer(now, at) else { return Ok(None) };
        let key = authority.sign(names, now)?;
        self.signed = Some(Signed { until: authority.end_of_leaf(now), by: authority, at: now });
        Ok(Some(key))
    }

    /// The authority that is to sign a certificate now; none while the one in use is to be kept.
    ///
    /// The newest authority signs that every API server trusts. Until there is one, the one in use goes on, as long as it is in the
    /// bundle, and also while nothing is that could take its place. Otherwise the authority signs that has been in the bundle for
    /// longest; a first certificate waits for that, since until then nobody would trust it.
    fn signer(&self, now: OffsetDateTime, at: Instant) -> Option<Authority> {
        let stored = self.stored.as_ref().and_then(|stored| stored.as_ref().ok());
        let (current, next) = (stored.map(|stored| &stored.current), stored.and_then(|stored| stored.next.as_ref()));
        let is_trusted = self.signed.as_ref().is_some_and(|signed| self.trusted.carries(signed.by.certificate()));
        let mut oldest_first = [current, next].into_iter().flatten();
        let carried = oldest_first.find(|authority| self.trusted.carries(authority.certificate()));
        if let (Some(carried), false) = (carried, is_trusted) {
            return self.gains(carried, now).then(|| carried.clone());
        }
        let signed = self.signed.as_ref()?;
        let mut newest_first = [next, current].into_iter().flatten();
        let settled = newest_first.find(|authority| self.trusted.is_settled(authority.certificate(), at));
        let chosen = settled.unwrap_or(&signed.by);
        let is_other = chosen.certificate() != signed.by.certificate();
        (is_other || (signed.is_due(now) && self.gains(chosen, now))).then(|| chosen.clone())
    }

    /// Whether a certificate that this authority signs now would end later than the one in use: an authority at its own end signs
    /// none that does.
    fn gains(&self, authority: &Authority, now: OffsetDateTime) -> bool {
        let signed = self.signed.as_ref().filter(|signed| signed.by.certificate() == authority.certificate());
        signed.is_none_or(|signed| authority.end_of_leaf(now) > signed.until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::{Duration as Span, macros::datetime};

    use super::*;
    use crate::certs::authority::{CaCertificate, LEAF_LIFETIME, LIFETIME};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn replica(stored: Stored, bundles: &[&str], at: Instant) -> Replica {
        let mut replica = Replica { stored: Some(Ok(stored)), ..Replica::default() };
        see(&mut replica, bundles, at);
        replica
    }

    fn see(replica: &mut Replica, bundles: &[&str], at: Instant) {
        replica.trusted.observe_bundles(&bundles.iter().map(|bundle| bundle.as_bytes()).collect::<Vec<_>>(), at);
    }

    /// Renews, and says who signed if somebody did.
    fn renewed(replica: &mut Replica, now: OffsetDateTime, at: Instant) -> Option<CaCertificate> {
        let key = replica.renew(&["localhost".to_owned()], now, at).unwrap();
        key.map(|_| replica.signed.clone().unwrap().by.certificate().clone())
    }

    #[test]
    fn a_new_authority_signs_only_once_the_bundle_has_carried_it_for_a_while() {
        let stored = Stored::replace(&[], NOW).unwrap();
        let (old, old_bundle, start) = (stored.current.certificate().clone(), stored.bundle(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut replica = replica(stored, &[&old_bundle], start);
        assert_eq!(renewed(&mut replica, NOW, start).as_ref(), Some(&old), "nothing to lose: at once");
        let stored = replica.stored.take().unwrap().unwrap().prepare(NOW).unwrap();
        let (new, both) = (stored.next.as_ref().unwrap().certificate().clone(), stored.bundle());
        replica.stored = Some(Ok(stored));
        assert_eq!(renewed(&mut replica, NOW, at(1000)), None, "not in the bundle");
        see(&mut replica, &[&both, &old_bundle], at(1000));
        assert_eq!(renewed(&mut replica, NOW, at(2000)), None, "not in the bundle of both webhooks");
        see(&mut replica, &[&both, &both], at(2000));
        assert_eq!(renewed(&mut replica, NOW, at(2009)), None, "not long enough");
        assert_eq!(renewed(&mut replica, NOW, at(2010)), Some(new.clone()));
        see(&mut replica, &[""], at(3000));
        assert_eq!(renewed(&mut replica, NOW, at(3010)), None, "somebody emptied the bundle");
        see(&mut replica, &[&old_bundle], at(3020));
        assert_eq!(renewed(&mut replica, NOW, at(3020)), Some(old), "somebody put an old bundle back: at once");
        see(&mut replica, &[], at(4000));
        assert_eq!(renewed(&mut replica, NOW, at(4010)), Some(new), "nobody calls: the newest");
    }

    #[test]
    fn a_certificate_outlives_the_secret_it_came_from() {
        let (stored, start) = (Stored::replace(&[], NOW).unwrap(), Instant::now());
        let (old, bundle) = (stored.current.certificate().clone(), stored.bundle());
        let mut replica = replica(stored, &[&bundle], start);
        assert!(renewed(&mut replica, NOW, start).is_some());
        let mut now = NOW;
        for lacking in [Lacking::Missing, Lacking::Malformed(super::super::authority::Malformed::Missing("tls.crt"))] {
            replica.stored = Some(Err(lacking));
            assert_eq!(renewed(&mut replica, now + Span::hours(15), start), None);
            now += Span::hours(16);
            assert_eq!(renewed(&mut replica, now, start).as_ref(), Some(&old), "it is still trusted");
        }
        // A new one that is not in the bundle yet does not take over.
        replica.stored = Some(Stored::replace(&[], NOW).map_err(|_| Lacking::Missing));
        assert_eq!(renewed(&mut replica, now, start), None);
        assert_eq!(renewed(&mut replica, now + Span::hours(16), start), Some(old));
        let new = replica.stored.as_ref().unwrap().as_ref().unwrap().bundle();
        see(&mut replica, &[&(new.clone() + &bundle)], start);
        assert_eq!(renewed(&mut replica, now, start), None, "another API server may not have the new bundle yet");
        see(&mut replica, &[&new], start);
        assert!(renewed(&mut replica, now, start).is_some(), "nothing to lose any more");
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_and_never_outlives_its_authority() {
        let (stored, start) = (Stored::replace(&[], NOW).unwrap(), Instant::now());
        let (bundle, end) = (stored.bundle(), stored.current.certificate().not_after());
        let mut replica = replica(stored, &[&bundle], start);
        let hours = |hours| NOW + Span::hours(hours);
        assert!(renewed(&mut replica, NOW, start).is_some());
        assert!(renewed(&mut replica, hours(15), start).is_none());
        assert!(renewed(&mut replica, hours(16), start).is_some());
        assert_eq!(replica.signed.as_ref().unwrap().until, hours(16) + LEAF_LIFETIME);
        assert!(renewed(&mut replica, end - Span::hours(1), start).is_some());
        assert_eq!(replica.signed.as_ref().unwrap().until, end);
        assert!(renewed(&mut replica, end - Span::minutes(1), start).is_none(), "it would end no later");
        assert!(renewed(&mut replica, end + Span::hours(1), start).is_none());
        assert_eq!(end, NOW + LIFETIME);
    }

    #[test]
    fn a_clock_that_is_set_back_goes_on_and_one_that_slept_catches_up() {
        let start = Instant::now();
        let mut clock = Clock::start(NOW, start);
        let hours = |hours: u64| start + Duration::from_secs(3600 * hours);
        assert_eq!(clock.read(NOW + Span::hours(1), hours(1)), NOW + Span::hours(1));
        assert_eq!(clock.read(NOW - Span::days(30), hours(17)), NOW + Span::hours(17), "set back by a month");
        assert_eq!(clock.read(NOW + Span::days(3), hours(18)), NOW + Span::days(3), "suspended for some days");
    }
}
