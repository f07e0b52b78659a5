//! Keys of all labels, annotations and taints of Spillway.

/// Prefix of all labels, annotations and taints of Spillway.
pub const PREFIX: &str = "spillway.dev/";

/// Namespace label that opts a namespace in and names its profile. On a pod, the value [`DISABLED`] opts the pod out.
pub const BURST_LABEL: &str = "spillway.dev/burst";
/// Value of [`BURST_LABEL`] that opts out. No profile can have this name.
pub const DISABLED: &str = "disabled";

/// Annotation of namespaces and pods that overrides the mode.
pub const MODE: &str = "spillway.dev/mode";
/// Annotation of namespaces and pods that overrides `late.after`.
pub const LATE_AFTER: &str = "spillway.dev/late-after";
/// Annotation of namespaces and pods that overrides `network.kubeProxy`.
pub const KUBE_PROXY: &str = "spillway.dev/kube-proxy";
/// Annotation of namespaces and pods that overrides `identity.label`.
pub const IDENTITY_LABEL: &str = "spillway.dev/identity-label";
/// Annotation of namespaces and pods with accepted reasons, which do not keep a pod on VMs.
pub const ALLOW: &str = "spillway.dev/allow";
/// Annotations that override a setting.
pub const OVERRIDES: &[&str] = &[MODE, LATE_AFTER, KUBE_PROXY, IDENTITY_LABEL, ALLOW];

/// Pod annotation with the decision. The webhook writes it; for missed pods, the controller does.
pub const DECISION: &str = "spillway.dev/decision";
/// Pod annotation with the names of the parts that Spillway added.
pub const ADDED: &str = "spillway.dev/added";
/// Pod annotation with the time since which the pod is unschedulable (RFC 3339). The controller writes it.
pub const UNSCHEDULABLE_SINCE: &str = "spillway.dev/unschedulable-since";
/// Pod annotation with the kind of node that the pod is bound to. The webhook for bindings writes it.
pub const PLACED_ON: &str = "spillway.dev/placed-on";
/// Annotations that Spillway writes.
pub const WRITTEN: &[&str] = &[DECISION, ADDED, UNSCHEDULABLE_SINCE, PLACED_ON];

/// Node taint that makes the scheduler avoid virtual nodes while VMs have room.
pub const LAST_RESORT_TAINT: &str = "spillway.dev/last-resort";
/// Node taint that closes virtual nodes at their cap, or while too many pods fail to start there.
pub const FULL_TAINT: &str = "spillway.dev/full";
/// Node taint that marks a virtual node that Spillway has cordoned, because the pod that runs the node is gone.
pub const GHOST_TAINT: &str = "spillway.dev/ghost";
