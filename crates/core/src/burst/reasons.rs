//! Reasons that do not come from an eligibility rule, and the list of all reasons.

use crate::eligibility::{self, Applies, Reason, Severity};

const DESIGN: &str = "docs/design.md";

/// `mode: off` applies to the pod.
pub static MODE_OFF: Reason = Reason {
    code: "ModeOff",
    severity: Severity::Refusal,
    applies: Applies::Any,
    meaning: "mode \"off\" applies to this pod",
    on_virtual_node: "no effect: the pod stays on VMs",
    fix: "no fix is needed; to change the mode, set it in the configuration, its profile or the annotation spillway.dev/mode",
    can_be_allowed: false,
    source: DESIGN,
};

/// The namespace names a profile that does not exist.
pub static UNKNOWN_PROFILE: Reason = Reason {
    code: "UnknownProfile",
    severity: Severity::Refusal,
    applies: Applies::Any,
    meaning: "the namespace's label spillway.dev/burst names a profile that does not exist",
    on_virtual_node: "no effect: the pod stays on VMs, because its settings are unknown",
    fix: "set the label to a profile of the configuration (spillway config show), or to disabled",
    can_be_allowed: false,
    source: "docs/decisions/0007-an-unknown-profile-adds-only-the-decision.md",
};

/// A list of the pod is too long to evaluate. Spillway evaluates no other rule.
pub static TOO_LARGE: Reason = Reason {
    code: "TooLarge",
    severity: Severity::Refusal,
    applies: Applies::Any,
    meaning: "the pod is too large to evaluate",
    on_virtual_node: "Azure Container Instances runs at most 60 containers and 20 volumes in a container group",
    fix: "shorten the list",
    can_be_allowed: false,
    source: "docs/design.md; MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md",
};

/// The pod's own constraints allow only virtual nodes.
pub static ALREADY_PINNED: Reason = Reason {
    code: "AlreadyPinned",
    severity: Severity::Note,
    applies: Applies::Any,
    meaning: "the pod's own constraints allow only virtual nodes, so Spillway adds no preference",
    on_virtual_node: "the pod runs only there, and waits if all virtual nodes are gone or full",
    fix: "drop the selector or affinity if the pod may also run on VMs",
    can_be_allowed: false,
    source: "docs/decisions/0014-a-pinned-pod-gets-the-toleration-immediately.md",
};

/// The identity label would make Azure Workload Identity refuse the pod.
pub static IDENTITY_WOULD_BE_REFUSED: Reason = Reason {
    code: "IdentityWouldBeRefused",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "with the identity label, Azure Workload Identity would refuse this pod, so Spillway does not add the label",
    on_virtual_node: "no effect: with the label, the API server would refuse the pod on any node",
    fix: "fix the annotation azure.workload.identity/service-account-token-expiration (3600 to 86400), or drop the proxy sidecar or hostNetwork",
    can_be_allowed: false,
    source: "Azure/azure-workload-identity pkg/webhook/webhook.go",
};

/// Spillway keeps the pod on VMs, but the pod's own toleration allows virtual nodes.
pub static TOLERATES_BY_ITSELF: Reason = Reason {
    code: "ToleratesByItself",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "the pod is not eligible, but its own toleration lets it run on virtual nodes",
    on_virtual_node: "the pod may fail there; its other reasons describe the failures",
    fix: "narrow the pod's toleration, which has no key or names virtual-kubelet.io/provider",
    can_be_allowed: false,
    source: "kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration",
};

/// In mode `require`, one of the pod's own terms excludes virtual nodes.
pub static TERM_NEVER_MET: Reason = Reason {
    code: "TermNeverMet",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "mode require adds virtual nodes to every required term, but one of the pod's own terms excludes them",
    on_virtual_node: "the pod runs there by its other terms; no node can match the term that excludes virtual nodes",
    fix: "drop the term, or choose another mode for the pod",
    can_be_allowed: false,
    source: DESIGN,
};

const OWN: &[&Reason] = &[
    &TOO_LARGE,
    &UNKNOWN_PROFILE,
    &MODE_OFF,
    &ALREADY_PINNED,
    &TOLERATES_BY_ITSELF,
    &TERM_NEVER_MET,
    &IDENTITY_WOULD_BE_REFUSED,
];

/// Returns all reasons, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Reason> {
    OWN.iter().copied().chain(eligibility::rules().map(|rule| &rule.reason))
}
