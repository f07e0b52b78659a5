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

use super::watch::PAGE;
use crate::{
    background::restart_on_panic,
    kubernetes::{ObjectKey, Refusal, Sink, Watch},
    pod::MAX_NAME_BYTES,
    telemetry::CacheMetrics,
};

/// The reasons of these Events in cluster-autoscaler (kubernetes/autoscaler
/// `processors/status/eventing_scale_up_processor.go`) and Karpenter (kubernetes-sigs/karpenter
/// `pkg/controllers/provisioning/scheduling/events.go`).
const REASONS: [&str; 2] = ["TriggeredScaleUp", "Nominated"];

/// Default lifetime of an Event in the API server (`--event-ttl`).
const EVENT_LIFETIME: Duration = Duration::from_secs(3600);

/// The clock of a node autoscaler may be ahead by this time.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Maximum number of pods of one namespace that are remembered. Without it, one user could fill the memory.
const MAX_PODS_OF_A_NAMESPACE: usize = 1000;

/// Pods for which a node autoscaler has announced a VM, with the time of the last announcement.
#[derive(Debug, Default)]
pub(crate) struct ScaleUps {
    is_listed: [bool; REASONS.len()],
    by_pod: HashMap<ObjectKey, Timestamp>,
    /// Number of pods in `by_pod`, by namespace.
    by_namespace: HashMap<String, usize>,
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

    /// Records an announcement. Several Events may name a pod, in any order. Returns whether this one is the newest. Pods
    /// above the maximum of a namespace are not recorded: they overflow after `late.after`, as if no VM was announced.
    fn put(&mut self, pod: ObjectKey, at: Timestamp) -> bool {
        if let Some(known) = self.by_pod.get_mut(&pod) {
            let is_newer = *known < at;
            *known = at.max(*known);
            return is_newer;
        }
        let pods = self.by_namespace.entry(pod.namespace.clone()).or_default();
        let has_room = *pods < MAX_PODS_OF_A_NAMESPACE;
        if has_room {
            *pods += 1;
            self.by_pod.insert(pod, at);
        }
        has_room
    }

    /// Removes announcements from before this time.
    fn remove_before(&mut self, horizon: Timestamp) {
        self.by_pod.retain(|_, at| *at > horizon);
        self.by_namespace.clear();
        for pod in self.by_pod.keys() {
            *self.by_namespace.entry(pod.namespace.clone()).or_default() += 1;
        }
    }
}

#[cfg(test)]
impl FromIterator<(ObjectKey, Timestamp)> for ScaleUps {
    fn from_iter<I: IntoIterator<Item = (ObjectKey, Timestamp)>>(announced: I) -> Self {
        Self { is_listed: [true; REASONS.len()], by_pod: announced.into_iter().collect(), by_namespace: HashMap::new() }
    }
}

/// Starts one watch for each reason, because a field selector has no "or".
pub(super) fn start(client: &Client, metrics: &CacheMetrics, tasks: &mut JoinSet<()>) -> watch::Receiver<ScaleUps> {
    let (publish, announced) = watch::channel(ScaleUps::default());
    let publish = Arc::new(publish);
    for (index, reason) in REASONS.into_iter().enumerate() {
        let events = Watch::all(client, "events").fields(&format!("reason={reason},involvedObject.kind=Pod"));
        events.page_size(PAGE).count_undecodable(metrics).spawn(
            tasks,
            announcement,
            ScaleUpSink { publish: publish.clone(), index },
        );
    }
    tasks.spawn(restart_on_panic(async move || remove_expired(&publish).await));
    announced
}

/// Returns the pod of an Event, and the time when the Event was last observed. Returns `None` if the Event names a pod of another
/// namespace, a name that no pod can have, or a time in the future.
///
/// Any user may create Events in his namespace, and the API server checks none of these fields.
fn announcement(event: core::Event) -> Option<(ObjectKey, Timestamp)> {
    let ObjectReference { namespace, name, .. } = event.involved_object;
    let (namespace, name) = (namespace?, name?);
    if event.metadata.namespace.as_ref() != Some(&namespace) || name.len() > MAX_NAME_BYTES {
        return None;
    }
    let at = event.series.and_then(|series| series.last_observed_time).or(event.event_time).map(|time| time.0);
    let at = at.or(event.last_timestamp.map(|time| time.0)).or(event.metadata.creation_timestamp.map(|time| time.0));
    let at = at.filter(|at| *at <= Timestamp::now() + MAX_CLOCK_SKEW)?;
    Some((ObjectKey::new(namespace, name), at))
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
            known.remove_before(horizon);
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
    fn only_plausible_events_of_the_pods_own_namespace_count() {
        let now = Timestamp::now();
        let read = |namespace: &str, name: &str, at: Timestamp| {
            announcement(core::Event {
                metadata: kube::api::ObjectMeta { namespace: Some("shop".to_owned()), ..Default::default() },
                involved_object: ObjectReference {
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    ..Default::default()
                },
                last_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at)),
                ..Default::default()
            })
        };
        let skewed = now + Duration::from_secs(30);
        assert_eq!(read("shop", "web", skewed), Some((ObjectKey::new("shop", "web"), skewed)));
        assert_eq!(read("other", "web", now), None, "a pod of another namespace");
        assert_eq!(read("shop", "web", "9000-01-01T00:00:00Z".parse().unwrap()), None, "the future");
        assert_eq!(read("shop", &"n".repeat(254), now), None, "no pod has such a name");
    }

    #[test]
    fn one_namespace_cannot_fill_the_memory() {
        let mut known = ScaleUps::default();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for i in 0..2 * MAX_PODS_OF_A_NAMESPACE {
            known.put(ObjectKey::new("shop", i.to_string()), at(10));
        }
        assert_eq!(known.by_pod.len(), MAX_PODS_OF_A_NAMESPACE);
        assert!(known.put(ObjectKey::new("other", "web"), at(20)), "another namespace");
        known.remove_before(at(15));
        assert_eq!(known.by_pod.len(), 1);
        assert!(known.put(ObjectKey::new("shop", "web"), at(20)), "there is room again");
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
