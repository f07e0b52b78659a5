//! Aggregates events by object and reason: 2,000 pods of one ReplicaSet cause one event.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use tokio::time::{Instant, sleep};

use super::recorder::EventRecorder;

/// How often pending events are written.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The most events that are written at once.
const MAX_EVENTS: usize = 10;

/// Time until the next attempt at an event that the API server did not accept.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The subject of an event. `docs/runbook.md` lists all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::controller) struct EventKind {
    /// The reason of the event.
    pub(in crate::controller) reason: &'static str,
    /// `true` if the event has type `Warning`.
    pub(in crate::controller) is_warning: bool,
    /// The least time between two events about the same object.
    pub(in crate::controller) interval: Duration,
}

impl EventKind {
    /// An action of the controller on one of many objects.
    pub(in crate::controller) const fn action(reason: &'static str) -> Self {
        Self { reason, is_warning: false, interval: Duration::from_secs(60) }
    }

    /// An action of the controller that users should look at.
    pub(in crate::controller) const fn warning(reason: &'static str) -> Self {
        Self { is_warning: true, ..Self::action(reason) }
    }

    /// A problem: repeated each hour while it lasts.
    pub(in crate::controller) const fn problem(reason: &'static str) -> Self {
        Self { reason, is_warning: true, interval: Duration::from_secs(3600) }
    }

    /// Advice: repeated each day.
    pub(in crate::controller) const fn advice(reason: &'static str) -> Self {
        Self { reason, is_warning: true, interval: Duration::from_secs(24 * 3600) }
    }
}

/// An event about an object.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::controller) struct ObjectEvent {
    pub(in crate::controller) about: ObjectReference,
    pub(in crate::controller) kind: EventKind,
    pub(in crate::controller) note: String,
}

/// Kind, namespace, name and uid of the object, and the reason.
type Key = ([String; 4], &'static str);

#[derive(Debug)]
struct PendingEvent {
    kind: EventKind,
    about: ObjectReference,
    /// The note of the last occurrence.
    note: String,
    /// Number of occurrences since the last event.
    count: u32,
    /// When the first of these occurrences was recorded.
    since: Instant,
    /// The earliest time of the next event.
    next: Option<Instant>,
}

impl PendingEvent {
    fn is_within_interval(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| now < next)
    }

    fn take(&mut self, now: Instant) -> ObjectEvent {
        self.next = Some(now + self.kind.interval);
        let (count, note) = (std::mem::take(&mut self.count), std::mem::take(&mut self.note));
        let note = if count == 1 { note } else { format!("{count} times, the last: {note}") };
        ObjectEvent { about: self.about.clone(), kind: self.kind, note }
    }
}

/// Events that are pending, or that were written within their interval.
#[derive(Debug, Default)]
pub(in crate::controller) struct EventAggregator(Mutex<BTreeMap<Key, PendingEvent>>);

impl EventAggregator {
    /// Records an occurrence without waiting for the API server.
    pub(in crate::controller) fn record(&self, about: ObjectReference, kind: EventKind, note: String) {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = all.entry(key(&about, kind)).or_insert_with(|| PendingEvent {
            kind,
            about,
            note: String::new(),
            count: 0,
            since: now,
            next: None,
        });
        if pending.count == 0 {
            pending.since = now;
        }
        pending.note = note;
        pending.count += 1;
    }

    /// Writes pending events until the future is dropped.
    pub(in crate::controller) async fn publish(&self, recorder: &EventRecorder) {
        loop {
            for event in self.take_due(Instant::now()) {
                let type_ = if event.kind.is_warning { EventType::Warning } else { EventType::Normal };
                if !recorder.publish(&event.about, type_, event.kind.reason, event.note.clone()).await {
                    self.put_back(event, Instant::now());
                }
            }
            sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Takes the events that are due, up to a limit, and marks them as written. Warnings come first, then the oldest events, so that
    /// many actions do not delay a warning.
    pub(in crate::controller) fn take_due(&self, now: Instant) -> Vec<ObjectEvent> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, pending| pending.count > 0 || pending.is_within_interval(now));
        let due = all.values_mut().filter(|pending| pending.count > 0 && !pending.is_within_interval(now));
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|pending| (!pending.kind.is_warning, pending.since));
        due.into_iter().take(MAX_EVENTS).map(|pending| pending.take(now)).collect()
    }

    /// Keeps an event that the API server did not accept, for another attempt. A newer note has precedence.
    fn put_back(&self, event: ObjectEvent, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = all.get_mut(&key(&event.about, event.kind)) else { return };
        if pending.count == 0 {
            pending.note = event.note;
            pending.since = now;
        }
        pending.count += 1;
        pending.next = Some(now + RETRY_INTERVAL.min(event.kind.interval));
    }
}

fn key(about: &ObjectReference, kind: EventKind) -> Key {
    let field = |field: &Option<String>| field.clone().unwrap_or_default();
    ([&about.kind, &about.namespace, &about.name, &about.uid].map(field), kind.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> ObjectReference {
        ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() }
    }

    fn published(aggregator: &EventAggregator, at: Instant) -> Vec<(String, String)> {
        aggregator.take_due(at).into_iter().map(|event| (event.about.name.unwrap(), event.note)).collect()
    }

    #[test]
    fn two_thousand_pods_of_one_owner_make_one_event_a_minute() {
        const DONE: EventKind = EventKind::action("Done");
        let (aggregator, start) = (EventAggregator::default(), Instant::now());
        for pod in 0..2000 {
            aggregator.record(about("web"), DONE, format!("pod {pod}"));
        }
        aggregator.record(about("api"), DONE, "pod 7".to_owned());
        let owned = |name: &str, note: &str| (name.to_owned(), note.to_owned());
        let first = [owned("web", "2000 times, the last: pod 1999"), owned("api", "pod 7")];
        assert_eq!(published(&aggregator, start), first);
        aggregator.record(about("web"), DONE, "pod 2000".to_owned());
        assert_eq!(published(&aggregator, start + Duration::from_secs(59)), []);
        assert_eq!(published(&aggregator, start + Duration::from_secs(60)), [owned("web", "pod 2000")]);
        assert_eq!(published(&aggregator, start + Duration::from_secs(3600)), []);
        assert!(aggregator.0.lock().unwrap().is_empty(), "old events are removed");
    }

    #[test]
    fn many_owners_do_not_flood_the_api_server() {
        let (aggregator, start) = (EventAggregator::default(), Instant::now());
        for owner in 0..25 {
            aggregator.record(about(&owner.to_string()), EventKind::action("Done"), String::new());
        }
        let counts: Vec<_> = (0..4).map(|_| published(&aggregator, start).len()).collect();
        assert_eq!(counts, [10, 10, 5, 0]);
    }

    #[test]
    fn many_actions_do_not_delay_a_warning() {
        let (aggregator, start) = (EventAggregator::default(), Instant::now());
        for job in 0..2_000 {
            aggregator.record(about(&format!("a-job-{job}")), EventKind::action("Done"), String::new());
        }
        aggregator.record(about("node"), EventKind::problem("Wrong"), "full".to_owned());
        assert_eq!(published(&aggregator, start)[0], ("node".to_owned(), "full".to_owned()));
    }

    #[test]
    fn an_event_that_was_not_written_is_tried_again() {
        let (aggregator, start) = (EventAggregator::default(), Instant::now());
        aggregator.record(about("node"), EventKind::problem("Wrong"), "full".to_owned());
        let event = aggregator.take_due(start).remove(0);
        aggregator.put_back(event, start);
        assert_eq!(published(&aggregator, start + Duration::from_secs(59)), []);
        let full = ("node".to_owned(), "full".to_owned());
        assert_eq!(published(&aggregator, start + Duration::from_secs(60)), [full]);
    }

    #[test]
    fn a_problem_that_lasts_makes_one_event_an_hour() {
        let (aggregator, start) = (EventAggregator::default(), Instant::now());
        let mut events = 0;
        for minute in 0..120 {
            aggregator.record(about("node"), EventKind::problem("Wrong"), "still".to_owned());
            events += published(&aggregator, start + Duration::from_secs(60 * minute)).len();
        }
        assert_eq!(events, 2);
    }
}
