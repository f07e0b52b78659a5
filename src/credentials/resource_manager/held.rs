//! An answer that is kept for a while.

use std::{collections::hash_map::RandomState, hash::BuildHasher, time::Duration};

use tokio::time::Instant;

use super::failure::Failure;

/// What failed is asked for again after this time, and nothing sooner.
pub(super) const FLOOR: Duration = Duration::from_secs(60);

/// How long an answer is kept.
#[derive(Debug, Clone)]
pub(super) struct Keep {
    refresh: Duration,
    random: RandomState,
}

impl Keep {
    pub(super) fn new(refresh: Duration) -> Self {
        Self { refresh, random: RandomState::new() }
    }

    /// Up to a tenth less, so that what was asked for together is not asked for together again.
    fn until(&self, now: Instant, key: &str) -> Instant {
        let part = u32::try_from(self.random.hash_one((key, now)) % 1_000).unwrap_or_default();
        now + self.refresh - self.refresh / 10 * part / 1_000
    }
}

/// An answer, and when it is to be asked for again.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) answer: Result<T, Failure>,
    /// When it was given.
    pub(super) read: Instant,
    /// When it was asked for last, with or without success.
    pub(super) asked: Instant,
    pub(super) due: Instant,
    /// Until when it counts although nobody answers any more.
    lasts: Instant,
}

impl<T> Held<T> {
    pub(super) fn new(answer: Result<T, Failure>, key: &str, keep: &Keep) -> Self {
        let now = Instant::now();
        let is_passing = answer.as_ref().is_err_and(Failure::is_passing);
        let due = if is_passing { now + FLOOR } else { keep.until(now, key) };
        Self { answer, read: now, asked: now, due, lasts: now + keep.refresh * 3 }
    }

    /// Whether it is to be asked for again, by somebody who may want it since it was given.
    pub(super) fn is_due(&self, now: Instant, wanted_since: Option<Instant>) -> bool {
        let is_older = wanted_since.is_some_and(|since| self.read < since);
        self.due <= now || (is_older && self.asked + FLOOR <= now)
    }

    /// Whether it was given before somebody wanted it, and would be given at once if it was asked for.
    pub(super) fn is_outdated(&self, wanted_since: Instant) -> bool {
        self.read < wanted_since && self.read == self.asked && self.answer.is_ok()
    }

    /// Takes a newer answer; one that says nothing does not replace what is known.
    pub(super) fn renew(&mut self, newer: Self) {
        let is_empty = newer.answer.as_ref().is_err_and(Failure::is_passing);
        if is_empty && self.answer.is_ok() && newer.asked < self.lasts {
            (self.asked, self.due) = (newer.asked, newer.due);
        } else {
            *self = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    const REFRESH: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_the_time_that_is_set_or_a_little_less() {
        let keep = Keep::new(REFRESH);
        let now = Instant::now();
        let kept: Vec<_> = (0..200).map(|key| Held::new(Ok(()), &key.to_string(), &keep).due - now).collect();
        let (least, most) = (kept.iter().min().unwrap(), kept.iter().max().unwrap());
        assert!(*least >= REFRESH * 9 / 10 && *most <= REFRESH, "{least:?} {most:?}");
        assert!(*most > *least + Duration::from_secs(30), "they spread");
        assert_eq!(Held::<()>::new(Err(Failure::OutOfTime), "", &keep).due - now, FLOOR);
        assert!(Held::<()>::new(Err(Failure::Endless), "", &keep).due - now > FLOOR, "it will not be better soon");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_outlasts_an_outage_but_not_a_word_to_the_contrary() {
        let keep = Keep::new(REFRESH);
        let slow = || Held::new(Err(Failure::Slow(FLOOR)), "", &keep);
        let mut held = Held::new(Ok(1), "", &keep);
        time::advance(REFRESH * 2).await;
        held.renew(slow());
        assert_eq!((&held.answer, held.due - Instant::now()), (&Ok(1), FLOOR));
        time::advance(REFRESH).await;
        held.renew(slow());
        assert_eq!(held.answer, Err(Failure::Slow(FLOOR)), "for three times as long as it was to be kept");
        let mut held = Held::new(Ok(1), "", &keep);
        held.renew(Held::new(Err(Failure::Endless), "", &keep));
        assert_eq!(held.answer, Err(Failure::Endless));
    }
}
