//! Rules about tokens of the pod's service account. Since Kubernetes 1.24, the first generation provides none.

use super::{Applies, Reason, Rule, Severity, at_fault};
use crate::{pod::Volume, workload_identity::USE};

pub(super) const RULES: &[&Rule] = &[&API_TOKEN, &SERVICE_ACCOUNT_TOKEN, &WORKLOAD_IDENTITY];

static API_TOKEN: Rule = Rule {
    reason: Reason {
        code: "ApiTokenUnavailable",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 provides no token for the API server",
        on_virtual_node: "/var/run/secrets/kubernetes.io/serviceaccount has no token, so calls to the API server fail",
        fix: "set automountServiceAccountToken: false if the pod does not call the API server; otherwise, keep it on VMs",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (Projected); virtual-kubelet/azure-aci#189; virtual-kubelet/azure-aci#543",
    },
    reads: "spec.volumes[kube-api-access-*].projected.sources[*].serviceAccountToken, without an audience",
    check: |subject| subject.pod.volumes().iter().any(Volume::is_api_access).then(String::new),
};

static SERVICE_ACCOUNT_TOKEN: Rule = Rule {
    reason: Reason {
        code: "ServiceAccountTokenUnavailable",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 provides no service account token",
        on_virtual_node: "the token file is missing; v1 reads a token Secret, which Kubernetes 1.24 and newer do not create",
        fix: "no fix on v1; v2 projects tokens like any kubelet",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (Projected); virtual-kubelet/azure-aci#189; virtual-kubelet/azure-aci#543",
    },
    reads: "spec.volumes[*].projected.sources[*].serviceAccountToken",
    check: |subject| {
        let volumes = subject.pod.volumes().iter().filter(|v| !v.is_api_access() && v.has_token());
        at_fault("volume", volumes.map(Volume::display_name))
    },
};

/// The label counts with any author, and already before Spillway adds it. So the decision does not depend on its own
/// result.
static WORKLOAD_IDENTITY: Rule = Rule {
    reason: Reason {
        code: "WorkloadIdentityUnavailable",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 provides no token for workload identity",
        on_virtual_node: "the token file is missing, so every sign-in fails",
        fix: "no fix on v1; v2 supports workload identity",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-overview.md (Limitations); Azure/azure-workload-identity pkg/webhook/webhook.go",
    },
    reads: "metadata.labels[azure.workload.identity/use], also if Spillway is about to add it",
    check: |subject| {
        let is_labelled = subject.pod.label(USE) == Some("true");
        (is_labelled || subject.overflow.gets_identity_label).then(String::new)
    },
};
