//! What is to be done about the authority, and why.

use std::fmt;

use time::OffsetDateTime;

use super::{Lacking, Stored};

/// What is to be done now. At most one thing at a time: after it has been written, look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Make a new authority in the place of all others: [`Stored::replace`].
    Replace(Why),
    /// Make a successor: [`Stored::prepare`].
    Prepare(Why),
    /// The successor takes over: [`Stored::promote`].
    Promote(Why),
    /// The former ones leave: [`Stored::retire`].
    Retire,
}

/// The reason for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no Secret.
    Missing,
    /// The Secret cannot be used.
    Malformed,
    /// The current authority has expired.
    Expired,
    /// The current authority comes from the future: it was made by a clock that was ahead.
    NotYetValid,
    /// Two thirds of the current authority's life are over.
    RotationDue,
    /// The API server trusts the successor.
    Trusted,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "there is no Secret",
            Self::Malformed => "the Secret is malformed",
            Self::Expired => "the current authority has expired",
            Self::NotYetValid => "the current authority is not valid yet",
            Self::RotationDue => "two thirds of the current authority's life are over",
            Self::Trusted => "the API server trusts it",
        })
    }
}

/// Says what is to be done about what is stored.
///
/// `next_is_trusted` tells that the live `caBundle` has carried the successor for [`super::SETTLED`], or that there is no
/// MutatingWebhookConfiguration, and so nobody who would have to trust it.
pub fn assess(stored: Result<&Stored, &Lacking>, next_is_trusted: bool, now: OffsetDateTime) -> Step {
    let Stored { current, next, old } = match stored {
        Ok(stored) => stored,
        Err(Lacking::Missing) => return Step::Replace(Why::Missing),
        Err(Lacking::Malformed(_)) => return Step::Replace(Why::Malformed),
    };
    let next = next.as_ref().filter(|next| next.certificate().is_valid(now));
    let current = current.certificate();
    if !current.is_valid(now) {
        let why = if now > current.not_after() { Why::Expired } else { Why::NotYetValid };
        return if next.is_some() { Step::Promote(why) } else { Step::Replace(why) };
    }
    match next {
        Some(_) if next_is_trusted => return Step::Promote(Why::Trusted),
        None if now >= current.two_thirds() => return Step::Prepare(Why::RotationDue),
        _ => {}
    }
    match old {
        Some(old) if now >= old.until => Step::Retire,
        _ => Step::Keep,
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::{super::Malformed, *};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn at(stored: &Stored, next_is_trusted: bool, days: i64) -> Step {
        assess(Ok(stored), next_is_trusted, NOW + Duration::days(days))
    }

    #[test]
    fn an_authority_that_cannot_be_used_is_replaced_and_the_reason_is_told() {
        assert_eq!(assess(Err(&Lacking::Missing), true, NOW), Step::Replace(Why::Missing));
        let malformed = Lacking::Malformed(Malformed::Missing("tls.crt"));
        assert_eq!(assess(Err(&malformed), true, NOW), Step::Replace(Why::Malformed));
        let stored = Stored::replace(&[], NOW).unwrap();
        assert_eq!(at(&stored, true, 366), Step::Replace(Why::Expired));
        assert_eq!(at(&stored, true, -1), Step::Replace(Why::NotYetValid));
        let stored = stored.prepare(NOW + Duration::days(300)).unwrap();
        assert_eq!(at(&stored, false, 366), Step::Promote(Why::Expired), "the successor is there already");
        assert_eq!(at(&stored, false, 3660), Step::Replace(Why::Expired), "both are gone");
    }

    #[test]
    fn a_rotation_begins_after_two_thirds_and_waits_until_the_successor_is_trusted() {
        let stored = Stored::replace(&[], NOW).unwrap();
        assert_eq!(at(&stored, true, 242), Step::Keep);
        assert_eq!(at(&stored, true, 244), Step::Prepare(Why::RotationDue));
        let due = NOW + Duration::days(244);
        let stored = stored.prepare(due).unwrap();
        assert_eq!(at(&stored, false, 244), Step::Keep);
        assert_eq!(at(&stored, false, 300), Step::Keep);
        assert_eq!(at(&stored, true, 244), Step::Promote(Why::Trusted));
        let former = stored.current.certificate().clone();
        let stored = stored.promote(due);
        assert!(stored.certificates().any(|certificate| *certificate == former));
        assert_eq!(assess(Ok(&stored), true, due + Duration::hours(25)), Step::Keep);
        assert_eq!(assess(Ok(&stored), true, due + Duration::hours(26)), Step::Retire);
        let stored = stored.retire();
        assert_eq!(stored.certificates().count(), 1);
        assert_eq!(assess(Ok(&stored), true, due + Duration::hours(26)), Step::Keep);
    }
}
