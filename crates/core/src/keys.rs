//! Every label, annotation and taint key of Spillway.

/// The prefix of every label, annotation and taint of Spillway.
pub const PREFIX: &str = "spillway.dev/";

/// Namespace label: opts in and names a profile. With the value [`DISABLED`] on a pod it opts the pod out.
pub const BURST_LABEL: &str = "spillway.dev/burst";
/// The value of [`BURST_LABEL`] that opts out. No profile can have this name.
pub const DISABLED: &str = "disabled";

/// Annotation of namespaces and pods: overrides the mode.
pub const MODE: &str = "spillway.dev/mode";
/// Annotation of namespaces and pods: overrides `late.after`.
pub const LATE_AFTER: &str = "spillway.dev/late-after";
/// Annotation of namespaces and pods: overrides `network.kubeProxy`.
pub const KUBE_PROXY: &str = "spillway.dev/kube-proxy";
/// Annotation of namespaces and pods: overrides `identity.label`.
pub const IDENTITY_LABEL: &str = "spillway.dev/identity-label";
/// Annotation of namespaces and pods: reasons that do not keep a pod on VMs.
pub const ALLOW: &str = "spillway.dev/allow";
/// The annotations that override a setting.
pub const OVERRIDES: &[&str] = &[MODE, LATE_AFTER, KUBE_PROXY, IDENTITY_LABEL, ALLOW];

/// Pod annotation, written by the webhook: the decision.
pub const DECISION: &str = "spillway.dev/decision";
/// Pod annotation, written by the webhook: the parts that it added.
pub const ADDED: &str = "spillway.dev/added";
/// Pod annotation, written by the controller: since when the pod has been unschedulable (RFC 3339).
pub const UNSCHEDULABLE_SINCE: &str = "spillway.dev/unschedulable-since";
/// Pod annotation, written by the binding webhook: the kind of node that the pod was bound to.
pub const PLACED_ON: &str = "spillway.dev/placed-on";
/// The annotations that Spillway itself writes.
pub const WRITTEN: &[&str] = &[DECISION, ADDED, UNSCHEDULABLE_SINCE, PLACED_ON];

/// Node taint: the scheduler avoids virtual nodes while VMs have room.
pub const LAST_RESORT_TAINT: &str = "spillway.dev/last-resort";
/// Node taint: closes virtual nodes that are at their cap, or while too many pods do not start there.
pub const FULL_TAINT: &str = "spillway.dev/full";
/// Node taint: marks a virtual node that Spillway has cordoned because the pod that runs it is gone.
pub const GHOST_TAINT: &str = "spillway.dev/ghost";
