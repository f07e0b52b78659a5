//! Events, as `kubectl get events` and `kubectl describe` show them. `docs/runbook.md` says what to do about each.
//!
//! An event is in the namespace of its object. Events about cluster-scoped objects, such as nodes, are in `default`.
//! The "owner" of a pod is its controller, such as a ReplicaSet. A pod without a controller is its own owner.
//!
//! | reason | about | type |
//! | --- | --- | --- |
//! | `AuthorityCreated` | Secret `spillway-ca` | Normal |
//! | `AuthorityReplaced`: the former authority was unusable | Secret `spillway-ca` | Warning |
//! | `AuthorityRotating`, `AuthorityRotated`, `AuthorityRetired`: the steps of a rotation | Secret `spillway-ca` | Normal |
//! | `ConfigurationInvalid`: the last valid configuration stays in force | ConfigMap `spillway-config` | Warning |
//! | `ConfigurationReloaded`: the file is valid again | ConfigMap `spillway-config` | Normal |
//! | `IdentityF3` and other ids of `docs/identity.md`: a finding | the ServiceAccount, or ConfigMap `spillway-config` for the cluster as a whole | Warning |
//! | `IdentityHealed`: the problem is resolved | the same | Normal |
//! | `IdentityManyFindings`: the number of findings without an event | ConfigMap `spillway-config` | Warning, Normal |
//! | `LateBurst`: a pod of mode `late` may run on virtual nodes now | owner | Normal, a minute |
//! | `LateWithheld`: a due pod gets no toleration: virtual nodes are closed, its namespace is at `maxPods`, or the write failed | owner | Warning, an hour |
//! | `MissedPodHealed`: the controller decided on a pending pod that the webhook had missed | owner | Normal, a minute |
//! | `PodMissed`: the webhook missed a pod that already has a node | owner | Warning, an hour |
//! | `MissedPodEvicted`: the controller evicted such a pod, so that its owner recreates it | owner | Normal, a minute |
//! | `MissedUnknown`: the controller cannot find missed pods, because a matchCondition of the webhook configuration is not Spillway's | MutatingWebhookConfiguration `aci-spillway` | Warning, an hour |
//! | `LastResortTaint`: the taint `spillway.dev/last-resort` was added or removed | the node | Normal, a minute |
//! | `TaintStripped`: another webhook undoes a change of Spillway's taint | the node | Warning, an hour |
//! | `VirtualNodesFull`: closed at `virtualNodes.maxPods` | each virtual node | Warning, a minute |
//! | `BreakerOpen`: closed at `breaker.failures` | each virtual node | Warning, a minute |
//! | `VirtualNodesReopened` | each virtual node | Normal, a minute |
//! | `GhostNode`: the pod that runs the node no longer exists | the virtual node | Warning, an hour |
//! | `GhostNodeCordoned` | the virtual node | Warning, a minute |
//! | `GhostNodeBack`: no longer cordoned, and why | the virtual node | Normal, a minute |
//! | `TaintNotTolerated`: `virtualNodes.toleration` does not tolerate a taint of the node | the virtual node | Warning, an hour |
//! | `VirtualNodeNearlyFull`: a node of the second generation, which runs at most 200 pods, has 180 or more | the virtual node | Warning, an hour |
//! | `PreferDrainsVMs`: mode `prefer` in a cluster with a node autoscaler | the Namespace | Warning, a day |
//! | `KubeProxyOnVirtualNodes`: more than 1,000 pods run a kube-proxy | each Namespace of these pods | Warning, a day |
//!
//! Events with an interval are aggregated by object and reason (`aggregator.rs`). The controller writes the first event within about a
//! second. It combines all occurrences in the interval after that into one event, with their number and the last note. It writes at most
//! ten events per second. The leader keeps this state in memory, so a new leader may repeat an event.

mod aggregator;
mod recorder;

pub(super) use aggregator::{EventAggregator, EventKind, ObjectEvent};
pub use recorder::EventRecorder;
