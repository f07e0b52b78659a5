//! The rotation of the CA: the next step, and its reason.

use std::fmt;

use time::OffsetDateTime;

use super::ca_secret::{CaSecret, SecretError};

/// The next step. The caller writes its result before it requests another step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    /// Change nothing.
    Keep,
    /// Generate a new CA that replaces all others: [`CaSecret::replace`].
    Replace(RotationReason),
    /// Generate a successor: [`CaSecret::prepare`].
    Prepare(RotationReason),
    /// Make the successor the current CA: [`CaSecret::promote`].
    Promote(RotationReason),
    /// Remove the former CAs: [`CaSecret::retire`].
    Retire,
}

/// The reason for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationReason {
    /// The Secret does not exist.
    Missing,
    /// The Secret is unusable.
    Malformed,
    /// The current CA has expired.
    Expired,
    /// The current CA is not valid yet, because the clock was ahead when it was generated.
    NotYetValid,
    /// Two thirds of the current CA's validity have passed.
    RotationDue,
    /// The API server trusts the successor.
    Trusted,
}

impl fmt::Display for RotationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "the Secret does not exist",
            Self::Malformed => "the Secret is malformed",
            Self::Expired => "the current authority has expired",
            Self::NotYetValid => "the current authority is not valid yet",
            Self::RotationDue => "two thirds of the current authority's life have passed",
            Self::Trusted => "the API server trusts it",
        })
    }
}

/// Returns the next step for the Secret.
///
/// `next_is_trusted` is `true` if the `caBundle` has had the successor for [`BUNDLE_PROPAGATION_TIME`](super::BUNDLE_PROPAGATION_TIME). It is also
/// `true` without a MutatingWebhookConfiguration, because then no API server needs to trust the CA.
pub fn next_step(stored: Result<&CaSecret, &SecretError>, next_is_trusted: bool, now: OffsetDateTime) -> RotationStep {
    let CaSecret { current, next, old } = match stored {
        Ok(stored) => stored,
        Err(SecretError::Missing) => return RotationStep::Replace(RotationReason::Missing),
        Err(SecretError::Malformed(_)) => return RotationStep::Replace(RotationReason::Malformed),
    };
    let next = next.as_ref().filter(|next| next.certificate().is_valid(now));
    let current = current.certificate();
    if !current.is_valid(now) {
        let why = if now > current.not_after() { RotationReason::Expired } else { RotationReason::NotYetValid };
        return if next.is_some() { RotationStep::Promote(why) } else { RotationStep::Replace(why) };
    }
    match next {
        Some(_) if next_is_trusted => return RotationStep::Promote(RotationReason::Trusted),
        None if now >= current.rotation_due_at() => return RotationStep::Prepare(RotationReason::RotationDue),
        _ => {}
    }
    match old {
        Some(old) if now >= old.until => RotationStep::Retire,
        _ => RotationStep::Keep,
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::{super::ca_secret::MalformedSecret, *};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn at(stored: &CaSecret, next_is_trusted: bool, days: i64) -> RotationStep {
        next_step(Ok(stored), next_is_trusted, NOW + Duration::days(days))
    }

    #[test]
    fn an_unusable_ca_is_replaced_with_a_reason() {
        assert_eq!(next_step(Err(&SecretError::Missing), true, NOW), RotationStep::Replace(RotationReason::Missing));
        let malformed = SecretError::Malformed(MalformedSecret::Missing("tls.crt"));
        assert_eq!(next_step(Err(&malformed), true, NOW), RotationStep::Replace(RotationReason::Malformed));
        let stored = CaSecret::replace(&[], NOW).unwrap();
        assert_eq!(at(&stored, true, 366), RotationStep::Replace(RotationReason::Expired));
        assert_eq!(at(&stored, true, -1), RotationStep::Replace(RotationReason::NotYetValid));
        let stored = stored.prepare(NOW + Duration::days(300)).unwrap();
        assert_eq!(at(&stored, false, 366), RotationStep::Promote(RotationReason::Expired), "the successor exists");
        assert_eq!(at(&stored, false, 3660), RotationStep::Replace(RotationReason::Expired), "both CAs have expired");
    }

    #[test]
    fn rotation_starts_after_two_thirds_and_waits_for_trust() {
        let stored = CaSecret::replace(&[], NOW).unwrap();
        assert_eq!(at(&stored, true, 242), RotationStep::Keep);
        assert_eq!(at(&stored, true, 244), RotationStep::Prepare(RotationReason::RotationDue));
        let due = NOW + Duration::days(244);
        let stored = stored.prepare(due).unwrap();
        assert_eq!(at(&stored, false, 244), RotationStep::Keep);
        assert_eq!(at(&stored, false, 300), RotationStep::Keep);
        assert_eq!(at(&stored, true, 244), RotationStep::Promote(RotationReason::Trusted));
        let former = stored.current.certificate().clone();
        let stored = stored.promote(due);
        assert!(stored.certificates().any(|certificate| *certificate == former));
        assert_eq!(next_step(Ok(&stored), true, due + Duration::hours(25)), RotationStep::Keep);
        assert_eq!(next_step(Ok(&stored), true, due + Duration::hours(26)), RotationStep::Retire);
        let stored = stored.retire();
        assert_eq!(stored.certificates().count(), 1);
        assert_eq!(next_step(Ok(&stored), true, due + Duration::hours(26)), RotationStep::Keep);
    }
}
