//! Events: what people find with `kubectl get events` and `kubectl describe`. `docs/runbook.md` says what to do about each.
//!
//! An event is in the namespace of its object. Events about nodes and the webhook configuration, which have none, are in `default`.
//! The "owner" of a pod is its controller, such as its ReplicaSet, or the pod itself if it has none.
//!
//! | reason | about | type |
//! | --- | --- | --- |
//! | `AuthorityCreated` | Secret `spillway-ca` | Normal |
//! | `AuthorityReplaced`: it was malformed, or not valid | Secret `spillway-ca` | Warning |
//! | `AuthorityRotating`, `AuthorityRotated`, `AuthorityRetired`: the steps of a rotation | Secret `spillway-ca` | Normal |
//! | `ConfigurationInvalid`: the last valid one stays in force | ConfigMap `spillway-config` | Warning |
//! | `ConfigurationReloaded`: it was invalid, and is valid again | ConfigMap `spillway-config` | Normal |
//! | `IdentityF3` and the like: a finding of `docs/identity.md` by its id | the ServiceAccount, or ConfigMap `spillway-config` for the cluster as a whole | Warning |
//! | `IdentityHealed`: the finding is gone | the same | Normal |
//! | `IdentityManyFindings`: more findings than have events of their own | ConfigMap `spillway-config` | Warning, Normal |
//! | `LateBurst`: a pod of mode `late` may go to virtual nodes now | owner | Normal, a minute |
//! | `LateWithheld`: a pod is due, but virtual nodes are closed, its namespace is at `maxPods`, or the toleration is refused | owner | Warning, an hour |
//! | `MissedPodHealed`: the controller decided on a pending pod that the webhook had missed | owner | Normal, a minute |
//! | `PodMissed`: a pod that the webhook had missed has a node already | owner | Warning, an hour |
//! | `MissedPodEvicted`: the controller evicted such a pod, so that its owner recreates it | owner | Normal, a minute |
//! | `MissedUnknown`: missed pods are unknown, because a matchCondition of the webhook configuration is not Spillway's | MutatingWebhookConfiguration `aci-spillway` | Warning, an hour |
//! | `LastResortTaint`: the taint `spillway.dev/last-resort` was added or removed | the node | Normal, a minute |
//! | `TaintStripped`: another webhook undoes a write of a taint of Spillway | the node | Warning, an hour |
//! | `VirtualNodesFull`: closed, by `virtualNodes.maxPods` | each virtual node | Warning, a minute |
//! | `BreakerOpen`: closed, by `breaker.failures` | each virtual node | Warning, a minute |
//! | `VirtualNodesReopened` | each virtual node | Normal, a minute |
//! | `GhostNode`: the pod that runs the node is gone | the virtual node | Warning, an hour |
//! | `GhostNodeCordoned` | the virtual node | Warning, a minute |
//! | `GhostNodeBack`: no longer cordoned, and why | the virtual node | Normal, a minute |
//! | `TaintNotTolerated`: a taint that `virtualNodes.toleration` does not cover | the virtual node | Warning, an hour |
//! | `VirtualNodeNearlyFull`: 180 of the at most 200 pods of a virtual node of the second generation | the virtual node | Warning, an hour |
//! | `PreferDrainsVMs`: mode `prefer` in a cluster with a node autoscaler | the Namespace | Warning, a day |
//! | `KubeProxyOnVirtualNodes`: more than 1,000 pods run a kube-proxy each | each Namespace that has some of them | Warning, a day |
//!
//! Events with a time are aggregated by object and reason (`aggregator.rs`). The controller writes the first one within about a second.
//! Within the time after it, it combines all occurrences into one event, with their number and the last note. It writes at most ten
//! events in a second. The leader keeps this in memory, so a new leader may repeat an event.

mod aggregator;
mod recorder;

pub(super) use aggregator::{EventAggregator, EventKind, ObjectEvent};
pub use recorder::EventRecorder;
