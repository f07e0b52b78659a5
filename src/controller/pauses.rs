//! Growing pauses for what cannot be done, to a pod or to a node: it is tried again more and more rarely, and keeps nobody else waiting.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// What was tried in vain, by the uid of a pod or the name of a node, and when to try again. A new leader begins without it.
#[derive(Debug, Default)]
pub(super) struct Pauses(HashMap<String, (Instant, Duration)>);

impl Pauses {
    const FIRST: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(600);

    /// How long it is until it may be tried again; nothing if it may be now.
    pub(super) fn rest(&self, uid: &str, now: Instant) -> Option<Duration> {
        let (next, _) = self.0.get(uid)?;
        Some(next.saturating_duration_since(now)).filter(|rest| !rest.is_zero())
    }

    /// How long it is until anything may be tried again that may not be now.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        let rests = self.0.values().map(|(next, _)| next.saturating_duration_since(now));
        rests.filter(|rest| !rest.is_zero()).min()
    }

    /// It is about to be tried, or was in vain. The first is as good as the second until the opposite is known: whoever tries may never
    /// come back. Returns how long nothing is tried.
    pub(super) fn tries(&mut self, uid: &str, now: Instant) -> Duration {
        let pause = self.0.get(uid).map_or(Self::FIRST, |(_, pause)| Self::LONGEST.min(*pause * 2));
        self.0.insert(uid.to_owned(), (now + pause, pause));
        pause
    }

    /// It was not in vain, or says nothing.
    pub(super) fn end(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// Forgets what is no more.
    pub(super) fn retain<'u>(&mut self, uids: impl Iterator<Item = &'u str>) {
        if self.0.is_empty() {
            return;
        }
        let still: std::collections::HashSet<_> = uids.collect();
        self.0.retain(|uid, _| still.contains(uid.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_in_vain_is_tried_ever_more_rarely_until_it_works_or_is_gone() {
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        let mut tried = || {
            let pause = pauses.tries("p", start);
            assert_eq!(pauses.rest("p", start), Some(pause));
            pause.as_secs()
        };
        let rests: Vec<_> = (0..9).map(|_| tried()).collect();
        assert_eq!(rests, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(pauses.rest("p", start + Duration::from_secs(599)).is_some());
        assert_eq!(pauses.rest("p", start + Duration::from_secs(600)), None);
        assert_eq!(pauses.rest("other", start), None);
        assert_eq!(pauses.next(start), Some(Pauses::LONGEST));
        assert_eq!(pauses.next(start + Pauses::LONGEST), None);
        pauses.retain(["p"].into_iter());
        assert!(pauses.rest("p", start).is_some());
        pauses.end("p");
        assert_eq!(pauses.rest("p", start), None);
        assert_eq!(pauses.tries("p", start), Pauses::FIRST);
        pauses.retain(std::iter::empty());
        assert!(pauses.0.is_empty(), "what comes back under its name is tried at once");
    }
}
