//! Backoff for each pod or node whose last write failed, so that other objects do not wait for it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

/// The backoff of each item, by UID or name. A new leader starts without backoffs.
#[derive(Debug, Default)]
pub(crate) struct Backoff(HashMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    until: Instant,
    duration: Duration,
}

impl Backoff {
    const INITIAL: Duration = Duration::from_secs(5);
    const MAX: Duration = Duration::from_secs(600);

    /// Returns the remaining backoff of an item. Returns `None` if it may be retried.
    pub(crate) fn remaining(&self, id: &str, now: Instant) -> Option<Duration> {
        let remaining = self.0.get(id)?.until.saturating_duration_since(now);
        (!remaining.is_zero()).then_some(remaining)
    }

    /// Returns the time until the next backoff ends. Returns `None` if no item has a backoff.
    pub(crate) fn next_expiry(&self, now: Instant) -> Option<Duration> {
        let remaining = self.0.values().map(|entry| entry.until.saturating_duration_since(now));
        remaining.filter(|remaining| !remaining.is_zero()).min()
    }

    /// Starts the next backoff of an item, and returns its duration.
    ///
    /// Call this before an attempt, and [`reset`](Self::reset) after its success. A cancelled attempt then counts as
    /// failed.
    pub(crate) fn start(&mut self, id: &str, now: Instant) -> Duration {
        let duration = self.0.get(id).map_or(Self::INITIAL, |entry| Self::MAX.min(entry.duration * 2));
        self.0.insert(id.to_owned(), Entry { until: now + duration, duration });
        duration
    }

    /// Ends the backoff of an item after a success, or after an attempt without a result.
    pub(crate) fn reset(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// Removes items that no longer exist.
    pub(crate) fn retain<'i>(&mut self, ids: impl Iterator<Item = &'i str>) {
        if self.0.is_empty() {
            return;
        }
        let ids: HashSet<_> = ids.collect();
        self.0.retain(|id, _| ids.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_until_success_or_removal() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let mut fail = || {
            let duration = backoff.start("p", start);
            assert_eq!(backoff.remaining("p", start), Some(duration));
            duration.as_secs()
        };
        let durations: Vec<_> = (0..9).map(|_| fail()).collect();
        assert_eq!(durations, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(backoff.remaining("p", start + Duration::from_secs(599)).is_some());
        assert_eq!(backoff.remaining("p", start + Duration::from_secs(600)), None);
        assert_eq!(backoff.remaining("other", start), None);
        assert_eq!(backoff.next_expiry(start), Some(Backoff::MAX));
        assert_eq!(backoff.next_expiry(start + Backoff::MAX), None);
        backoff.retain(["p"].into_iter());
        assert!(backoff.remaining("p", start).is_some());
        backoff.reset("p");
        assert_eq!(backoff.remaining("p", start), None);
        assert_eq!(backoff.start("p", start), Backoff::INITIAL);
        backoff.retain(std::iter::empty());
        assert!(backoff.0.is_empty(), "a new item with the same name has no backoff");
    }
}
