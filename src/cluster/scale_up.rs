//! Events in which a node autoscaler announces a VM for a pod.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{self as core, ObjectReference},
    jiff::Timestamp,
};
use kube::Client;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    background::restart_on_panic,
    kubernetes::{ObjectKey, Refusal, Sink, Watch},
};

/// The reasons of these Events in cluster-autoscaler (kubernetes/autoscaler
/// `processors/status/eventing_scale_up_processor.go`) and Karpenter (kubernetes-sigs/karpenter
/// `pkg/controllers/provisioning/scheduling/events.go`).
const REASONS: [&str; 2] = ["TriggeredScaleUp", "Nominated"];

/// Default lifetime of an Event in the API server (`--event-ttl`).
const EVENT_LIFETIME: Duration = Duration::from_secs(3600);

/// Pods for which a node autoscaler has announced a VM, with the time of the last announcement.
#[derive(Debug, Default)]
pub(crate) struct ScaleUps {
    is_listed: [bool; REASONS.len()],
    by_pod: HashMap<ObjectKey, Timestamp>,
}

impl ScaleUps {
    /// Returns whether the initial lists of all reasons are complete.
    pub(crate) fn is_listed(&self) -> bool {
        self.is_listed.iter().all(|is_listed| *is_listed)
    }

    /// Returns the time when a node autoscaler last announced a VM for this pod.
    pub(crate) fn announced(&self, pod: &ObjectKey) -> Option<Timestamp> {
        self.by_pod.get(pod).copied()
    }

    /// Records an announcement. Several Events may name a pod, in any order. Returns whether this one is the newest.
    fn put(&mut self, pod: ObjectKey, at: Timestamp) -> bool {
        let is_newer = self.by_pod.get(&pod).is_none_or(|known| *known < at);
        if is_newer {
            self.by_pod.insert(pod, at);
        }
        is_newer
    }
}

#[cfg(test)]
impl FromIterator<(ObjectKey, Timestamp)> for ScaleUps {
    fn from_iter<I: IntoIterator<Item = (ObjectKey, Timestamp)>>(announced: I) -> Self {
        Self { is_listed: [true; REASONS.len()], by_pod: announced.into_iter().collect() }
    }
}

/// Starts one watch for each reason, because a field selector has no "or".
pub(super) fn start(client: &Client, tasks: &mut JoinSet<()>) -> watch::Receiver<ScaleUps> {
    let (publish, announced) = watch::channel(ScaleUps::default());
    let publish = Arc::new(publish);
    for (index, reason) in REASONS.into_iter().enumerate() {
        let events = Watch::all(client, "events").fields(&format!("reason={reason},involvedObject.kind=Pod"));
        events.spawn(tasks, announcement, ScaleUpSink { publish: publish.clone(), index });
    }
    tasks.spawn(restart_on_panic(async move || remove_expired(&publish).await));
    announced
}

/// Returns the pod of an Event, and the time when the Event was last observed.
fn announcement(event: core::Event) -> Option<(ObjectKey, Timestamp)> {
    let ObjectReference { namespace, name, .. } = event.involved_object;
    let at = event.series.and_then(|series| series.last_observed_time).or(event.event_time).map(|time| time.0);
    let at = at.or(event.last_timestamp.map(|time| time.0)).or(event.metadata.creation_timestamp.map(|time| time.0));
    Some((ObjectKey::new(namespace.unwrap_or_default(), name.unwrap_or_default()), at?))
}

/// Receives the Events of one reason. A deleted Event changes nothing: the announcement was made.
struct ScaleUpSink {
    publish: Arc<watch::Sender<ScaleUps>>,
    index: usize,
}

impl Sink<(ObjectKey, Timestamp)> for ScaleUpSink {
    fn replace(&self, all: BTreeMap<ObjectKey, (ObjectKey, Timestamp)>) {
        self.publish.send_if_modified(|known| {
            let was_listed = known.is_listed();
            if let Some(is_listed) = known.is_listed.get_mut(self.index) {
                *is_listed = true;
            }
            let mut is_changed = known.is_listed() && !was_listed;
            for (pod, at) in all.into_values() {
                is_changed |= known.put(pod, at);
            }
            is_changed
        });
    }

    fn apply(&self, _: ObjectKey, announced: Option<(ObjectKey, Timestamp)>) {
        let Some((pod, at)) = announced else { return };
        self.publish.send_if_modified(|known| known.put(pod, at));
    }

    fn refuse(&self, _: Refusal) {}
}

/// Removes announcements whose Events have expired in the API server.
async fn remove_expired(publish: &watch::Sender<ScaleUps>) {
    loop {
        tokio::time::sleep(EVENT_LIFETIME / 4).await;
        let horizon = Timestamp::now() - EVENT_LIFETIME;
        publish.send_if_modified(|known| {
            known.by_pod.retain(|_, at| *at > horizon);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_announcement_counts_in_any_order() {
        let mut known = ScaleUps::default();
        let pod = ObjectKey::new("shop", "web");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let is_newest = [10, 30, 20].map(|seconds| known.put(pod.clone(), at(seconds)));
        assert_eq!((is_newest, known.announced(&pod)), ([true, true, false], Some(at(30))));
        assert!(!known.is_listed(), "no list is complete");
    }

    #[test]
    fn scale_ups_are_listed_when_all_reasons_are_listed() {
        let publish = Arc::new(watch::Sender::new(ScaleUps::default()));
        let list = |index| ScaleUpSink { publish: publish.clone(), index }.replace(BTreeMap::new());
        let mut published = publish.subscribe();
        list(0);
        assert!(!published.borrow_and_update().is_listed() && !published.has_changed().unwrap());
        list(1);
        assert!(published.has_changed().unwrap() && published.borrow_and_update().is_listed());
        list(1);
        assert!(!published.has_changed().unwrap(), "the same list again");
    }
}
