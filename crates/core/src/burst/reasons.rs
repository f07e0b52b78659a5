//! The reasons that do not come from a rule about pods, and the catalogue of all.

use crate::eligibility::{self, Applies, Reason, Severity};

const HERE: &str = "docs/design.md";

/// `mode: off` applies to the pod.
pub static MODE_OFF: Reason = Reason {
    code: "ModeOff",
    severity: Severity::Refusal,
    applies: Applies::Any,
    meaning: "mode \"off\" applies to this pod",
    on_virtual_node: "nothing: the pod is not to go there",
    fix: "nothing to mend; another mode can be set in the configuration, its profile, or the annotation spillway.dev/mode",
    can_be_allowed: false,
    source: HERE,
};

/// The namespace names a profile that does not exist.
pub static UNKNOWN_PROFILE: Reason = Reason {
    code: "UnknownProfile",
    severity: Severity::Refusal,
    applies: Applies::Any,
    meaning: "the namespace's label spillway.dev/burst names a profile that does not exist",
    on_virtual_node: "nothing: nobody knows what was meant",
    fix: "name a profile of the configuration (spillway config show), or disabled",
    can_be_allowed: false,
    source: HERE,
};

/// The pod's own constraints leave it no other place than virtual nodes.
pub static ALREADY_PINNED: Reason = Reason {
    code: "AlreadyPinned",
    severity: Severity::Note,
    applies: Applies::Any,
    meaning: "the pod's own constraints leave it no other place than virtual nodes, so no preference is added",
    on_virtual_node: "it runs there, and nowhere else; if all are gone or full it waits",
    fix: "drop the selector or affinity if the pod may run on VMs as well",
    can_be_allowed: false,
    source: HERE,
};

/// The identity label would make Azure Workload Identity refuse the pod.
pub static IDENTITY_WOULD_BE_REFUSED: Reason = Reason {
    code: "IdentityWouldBeRefused",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "with the identity label, Azure Workload Identity would refuse this pod, so the label is not added",
    on_virtual_node: "no difference: the pod would not be created at all",
    fix: "mend the annotation azure.workload.identity/service-account-token-expiration (3600 to 86400), or drop the proxy sidecar or hostNetwork",
    can_be_allowed: false,
    source: "Azure/azure-workload-identity pkg/webhook/webhook.go",
};

/// The pod stays, as far as Spillway is concerned, but its owner has let it onto virtual nodes.
pub static TOLERATES_BY_ITSELF: Reason = Reason {
    code: "ToleratesByItself",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "the pod is not fit for virtual nodes, but tolerates their taint by itself and can land there",
    on_virtual_node: "whatever the reasons say for which Spillway would have kept it on VMs",
    fix: "narrow the toleration, which has no key or names virtual-kubelet.io/provider",
    can_be_allowed: false,
    source: "kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration",
};

/// In mode `require`, a term of the pod's own that forbids virtual nodes.
pub static TERM_NEVER_MET: Reason = Reason {
    code: "TermNeverMet",
    severity: Severity::Warning,
    applies: Applies::Any,
    meaning: "mode require asks for virtual nodes in every required term, and one of the pod's own terms forbids them",
    on_virtual_node: "the pod runs there by its other terms; the one that forbids virtual nodes can never be met",
    fix: "drop the term, or choose another mode for the pod",
    can_be_allowed: false,
    source: HERE,
};

const OWN: &[&Reason] =
    &[&UNKNOWN_PROFILE, &MODE_OFF, &ALREADY_PINNED, &TOLERATES_BY_ITSELF, &TERM_NEVER_MET, &IDENTITY_WOULD_BE_REFUSED];

/// Every reason there is, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Reason> {
    OWN.iter().copied().chain(eligibility::rules().map(|rule| &rule.reason))
}
