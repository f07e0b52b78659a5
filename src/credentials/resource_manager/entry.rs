//! One result in the cache, and the time of its next refresh.

use std::{collections::hash_map::RandomState, hash::BuildHasher, time::Duration};

use tokio::time::Instant;

use super::failure::Failure;

/// Minimum time between two reads of the same result, also after a failure.
pub(super) const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// Number of refresh intervals for which a result stays valid during an outage of Azure.
const STALE_INTERVALS: u32 = 3;

/// The refresh interval, with jitter.
#[derive(Debug, Clone)]
pub(super) struct CachePolicy {
    refresh_interval: Duration,
    random: RandomState,
}

impl CachePolicy {
    pub(super) fn new(refresh_interval: Duration) -> Self {
        Self { refresh_interval, random: RandomState::new() }
    }

    /// Returns the time of the next refresh. Jitter of up to 10% spreads the refreshes of results that were read
    /// together.
    fn refresh_at(&self, now: Instant, key: &str) -> Instant {
        let jitter = u32::try_from(self.random.hash_one((key, now)) % 1_000).unwrap_or_default();
        now + self.refresh_interval - self.refresh_interval / 10 * jitter / 1_000
    }
}

/// A result, and the time of its next refresh.
#[derive(Debug)]
pub(super) struct CacheEntry<T> {
    pub(super) result: Result<T, Failure>,
    /// The time of the read that returned the result.
    pub(super) read_at: Instant,
    /// The time of the last read, successful or not.
    pub(super) attempted_at: Instant,
    pub(super) refresh_at: Instant,
    /// The time until which the result stays valid although later reads fail.
    stale_until: Instant,
}

impl<T> CacheEntry<T> {
    pub(super) fn new(result: Result<T, Failure>, key: &str, policy: &CachePolicy) -> Self {
        let now = Instant::now();
        let is_transient = result.as_ref().is_err_and(Failure::is_transient);
        Self {
            result,
            read_at: now,
            attempted_at: now,
            refresh_at: if is_transient { now + MIN_REFRESH_INTERVAL } else { policy.refresh_at(now, key) },
            stale_until: now + policy.refresh_interval * STALE_INTERVALS,
        }
    }

    /// Returns whether a refresh is due. A result that is older than the reference of a service account is due earlier.
    pub(super) fn needs_refresh(&self, now: Instant, named_since: Option<Instant>) -> bool {
        let is_older = named_since.is_some_and(|since| self.read_at < since);
        self.refresh_at <= now || (is_older && self.attempted_at + MIN_REFRESH_INTERVAL <= now)
    }

    /// Returns whether the last read succeeded, but is older than the reference of a service account.
    pub(super) fn predates(&self, named_since: Instant) -> bool {
        self.read_at < named_since && self.read_at == self.attempted_at && self.result.is_ok()
    }

    /// Replaces the result. A transient failure does not replace a success that is still valid.
    pub(super) fn update(&mut self, newer: Self) {
        let is_transient = newer.result.as_ref().is_err_and(Failure::is_transient);
        if is_transient && self.result.is_ok() && newer.attempted_at < self.stale_until {
            (self.attempted_at, self.refresh_at) = (newer.attempted_at, newer.refresh_at);
        } else {
            *self = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    const REFRESH_INTERVAL: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn the_refresh_interval_has_jitter() {
        let policy = CachePolicy::new(REFRESH_INTERVAL);
        let now = Instant::now();
        let new = |key: i32| CacheEntry::new(Ok(()), &key.to_string(), &policy);
        let times: Vec<_> = (0..200).map(|key| new(key).refresh_at - now).collect();
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*least >= REFRESH_INTERVAL * 9 / 10 && *most <= REFRESH_INTERVAL, "{least:?} {most:?}");
        assert!(*most > *least + Duration::from_secs(30), "the refreshes are spread");
        let failed = |failure| CacheEntry::<()>::new(Err(failure), "", &policy).refresh_at - now;
        assert_eq!(failed(Failure::DeadlineExceeded), MIN_REFRESH_INTERVAL);
        assert!(failed(Failure::UnboundedList) > MIN_REFRESH_INTERVAL, "a permanent failure is not retried soon");
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_outlasts_an_outage_but_not_a_permanent_failure() {
        let policy = CachePolicy::new(REFRESH_INTERVAL);
        let timeout = || CacheEntry::new(Err(Failure::Timeout(MIN_REFRESH_INTERVAL)), "", &policy);
        let mut entry = CacheEntry::new(Ok(1), "", &policy);
        time::advance(REFRESH_INTERVAL * 2).await;
        entry.update(timeout());
        assert_eq!((&entry.result, entry.refresh_at - Instant::now()), (&Ok(1), MIN_REFRESH_INTERVAL));
        time::advance(REFRESH_INTERVAL).await;
        entry.update(timeout());
        assert_eq!(entry.result, Err(Failure::Timeout(MIN_REFRESH_INTERVAL)), "after three refresh intervals");
        let mut entry = CacheEntry::new(Ok(1), "", &policy);
        entry.update(CacheEntry::new(Err(Failure::UnboundedList), "", &policy));
        assert_eq!(entry.result, Err(Failure::UnboundedList));
    }
}
