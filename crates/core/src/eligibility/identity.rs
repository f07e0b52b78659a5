//! Tokens of the pod's service account. On the first generation there are none since Kubernetes 1.24.

use super::{Applies, Reason, Rule, Severity, at_fault};
use crate::{pod::Volume, workload_identity::USE};

pub(super) const RULES: &[&Rule] = &[&API_TOKEN, &SERVICE_ACCOUNT_TOKEN, &WORKLOAD_IDENTITY];

static API_TOKEN: Rule = Rule {
    reason: Reason {
        code: "ApiTokenUnavailable",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 has no token for the API server",
        on_virtual_node: "/var/run/secrets/kubernetes.io/serviceaccount holds no token; whoever calls the API server fails",
        fix: "set automountServiceAccountToken: false if the pod does not call the API server; else keep it on VMs",
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
        meaning: "v1 has no token of the service account",
        on_virtual_node: "the connector looks for a token Secret of the old kind, which Kubernetes has not made since 1.24, and never asks for one with an audience: the file is missing",
        fix: "nothing to mend on v1; v2 projects tokens as any kubelet does",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (Projected); virtual-kubelet/azure-aci#189; virtual-kubelet/azure-aci#543",
    },
    reads: "spec.volumes[*].projected.sources[*].serviceAccountToken",
    check: |subject| {
        let volumes = subject.pod.volumes().iter().filter(|v| !v.is_api_access() && v.has_token());
        at_fault("volume", volumes.map(Volume::display_name))
    },
};

/// The label counts whoever has set it, and before Spillway adds it as well as after: the decision does not change with its result.
static WORKLOAD_IDENTITY: Rule = Rule {
    reason: Reason {
        code: "WorkloadIdentityUnavailable",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 has no token for workload identity",
        on_virtual_node: "the token's file is missing, so every sign-in fails",
        fix: "nothing to mend on v1; v2 supports workload identity",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-overview.md (Limitations); Azure/azure-workload-identity pkg/webhook/webhook.go",
    },
    reads: "metadata.labels[azure.workload.identity/use], also when Spillway is about to add it",
    check: |subject| {
        let is_labelled = subject.pod.label(USE) == Some("true");
        (is_labelled || subject.overflow.gets_identity_label).then(String::new)
    },
};
