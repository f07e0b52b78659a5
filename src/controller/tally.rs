//! What is to be told of, gathered by who it is about and why: two thousand pods of one ReplicaSet are one event, not two thousand.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use tokio::time::{Instant, sleep};

use super::events::Events;

/// How often what is gathered is looked at, and how many events are written then at the most.
const ROUND: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 10;

/// What may happen, as an event says it. `docs/runbook.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Happening {
    /// The event's reason.
    pub(super) reason: &'static str,
    /// Whether a person may have to do something.
    pub(super) is_warning: bool,
    /// How long nothing is told again of the same object for the same reason; it is gathered meanwhile.
    pub(super) every: Duration,
}

impl Happening {
    /// Something that was done, to one of many.
    pub(super) const fn done(reason: &'static str) -> Self {
        Self { reason, is_warning: false, every: Duration::from_secs(60) }
    }

    /// Something that is not as it should be, for as long as it stays so.
    pub(super) const fn wrong(reason: &'static str) -> Self {
        Self { reason, is_warning: true, every: Duration::from_secs(3600) }
    }

    /// Advice that is good for a day.
    pub(super) const fn advice(reason: &'static str) -> Self {
        Self { reason, is_warning: true, every: Duration::from_secs(24 * 3600) }
    }
}

/// Kind, namespace, name and uid of the object, and the reason.
type Key = ([String; 4], &'static str);

#[derive(Debug)]
struct Gathered {
    happening: Happening,
    about: ObjectReference,
    /// What happened last.
    note: String,
    /// How often, since it was last told.
    count: u32,
    told: Option<Instant>,
}

/// What has happened and is yet to be told.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<BTreeMap<Key, Gathered>>);

impl Tally {
    /// Something happened. Returns at once.
    pub(super) fn note(&self, about: ObjectReference, happening: Happening, note: String) {
        let field = |field: &Option<String>| field.clone().unwrap_or_default();
        let object = [&about.kind, &about.namespace, &about.name, &about.uid].map(field);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gathered = all.entry((object, happening.reason)).or_insert_with(|| Gathered {
            happening,
            about,
            note: String::new(),
            count: 0,
            told: None,
        });
        gathered.note = note;
        gathered.count += 1;
    }

    /// Tells of everything, for as long as it is asked to.
    pub(super) async fn tell(&self, events: &Events) {
        loop {
            for (about, happening, note) in self.due(Instant::now()) {
                let type_ = if happening.is_warning { EventType::Warning } else { EventType::Normal };
                events.publish(&about, type_, happening.reason, note).await;
            }
            sleep(ROUND).await;
        }
    }

    /// What is to be told now; it counts as told.
    pub(super) fn due(&self, now: Instant) -> Vec<(ObjectReference, Happening, String)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh =
            |gathered: &Gathered| gathered.told.is_some_and(|told| now.duration_since(told) < gathered.happening.every);
        all.retain(|_, gathered| gathered.count > 0 || is_fresh(gathered));
        let due = all.values_mut().filter(|gathered| gathered.count > 0 && !is_fresh(gathered));
        let told = due.take(AT_ONCE).map(|gathered| {
            gathered.told = Some(now);
            let (count, note) = (std::mem::take(&mut gathered.count), std::mem::take(&mut gathered.note));
            let note = if count == 1 { note } else { format!("{count} times, the last: {note}") };
            (gathered.about.clone(), gathered.happening, note)
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> ObjectReference {
        ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() }
    }

    fn told(tally: &Tally, at: Instant) -> Vec<(String, String)> {
        tally.due(at).into_iter().map(|(about, _, note)| (about.name.unwrap(), note)).collect()
    }

    #[test]
    fn two_thousand_pods_of_one_owner_are_one_event_a_minute() {
        const DONE: Happening = Happening::done("Done");
        let (tally, start) = (Tally::default(), Instant::now());
        for pod in 0..2000 {
            tally.note(about("web"), DONE, format!("pod {pod}"));
        }
        tally.note(about("api"), DONE, "pod 7".to_owned());
        let owned = |name: &str, note: &str| (name.to_owned(), note.to_owned());
        let first = [owned("api", "pod 7"), owned("web", "2000 times, the last: pod 1999")];
        assert_eq!(told(&tally, start), first);
        tally.note(about("web"), DONE, "pod 2000".to_owned());
        assert_eq!(told(&tally, start + Duration::from_secs(59)), []);
        assert_eq!(told(&tally, start + Duration::from_secs(60)), [owned("web", "pod 2000")]);
        assert_eq!(told(&tally, start + Duration::from_secs(3600)), []);
        assert!(tally.0.lock().unwrap().is_empty(), "what was told long ago takes no memory");
    }

    #[test]
    fn many_owners_do_not_flood_the_api_server() {
        let (tally, start) = (Tally::default(), Instant::now());
        for owner in 0..25 {
            tally.note(about(&owner.to_string()), Happening::done("Done"), String::new());
        }
        let counts: Vec<_> = (0..4).map(|_| told(&tally, start).len()).collect();
        assert_eq!(counts, [10, 10, 5, 0]);
    }

    #[test]
    fn what_stays_wrong_is_told_once_an_hour() {
        let (tally, start) = (Tally::default(), Instant::now());
        let mut events = 0;
        for minute in 0..120 {
            tally.note(about("node"), Happening::wrong("Wrong"), "still".to_owned());
            events += told(&tally, start + Duration::from_secs(60 * minute)).len();
        }
        assert_eq!(events, 2);
    }
}
