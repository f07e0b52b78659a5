//! Rules about the pod's network: policies and meshes that do not cover virtual nodes, and ports that Azure reserves.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::{Applies, Reason, Rule, Severity, Subject, at_fault, join};
use crate::{
    pod::StringMap,
    workload_identity::{USE, USE_VALUE},
};

pub(super) const RULES: &[&Rule] = &[&NETWORK_POLICY, &SERVICE_MESH, &RESERVED_PORT, &TOO_MANY_PORTS];

static NETWORK_POLICY: Rule = Rule {
    reason: Reason {
        code: "NetworkPolicyNotEnforced",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes do not enforce the pod's NetworkPolicy",
        on_virtual_node: "all connections to and from the pod are allowed, without a message, as if the policy did not exist",
        fix: "exempt the pod from the policy, or allow it if the subnet's network security group has the same rules",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-aks-docs articles/aks/virtual-nodes.md (Limitations); microsoft/virtualnodesOnAzureContainerInstances README.md",
    },
    reads: "metadata.labels, with the label that Spillway is about to add, and the namespace's NetworkPolicies",
    check: |subject| {
        let policies = subject.cluster.network_policies;
        if policies.is_empty() {
            return None;
        }
        let mut labels: BTreeMap<_, _> = subject.pod.metadata.labels.iter().flat_map(StringMap::iter).collect();
        // The pod has the label that Spillway is about to add before any policy could apply.
        if subject.overflow.gets_identity_label {
            labels.insert(USE, USE_VALUE);
        }
        let label = |key: &str| labels.get(key).copied();
        let selecting = policies.iter().filter(|policy| policy.pod_selector.selects(label));
        join(", ", selecting.map(|policy| &policy.name))
    },
};

static SERVICE_MESH: Rule = Rule {
    reason: Reason {
        code: "ServiceMesh",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "service meshes do not cover virtual nodes",
        on_virtual_node: "no sidecar can redirect connections there, and no node agent runs; connections fail, or bypass encryption and authorization",
        fix: "exclude the pod from the mesh (sidecar.istio.io/inject: \"false\", istio.io/dataplane-mode: none, linkerd.io/inject: disabled)",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-aks-docs articles/aks/istio-about.md (Limitations); istio.io/latest/docs/setup/additional-setup/sidecar-injection; linkerd.io/2/features/proxy-injection",
    },
    reads: "metadata.{labels,annotations}, spec.{initContainers,containers}[*].name, the namespace's labels and annotations",
    check: |subject| {
        let mesh = is_in_istio(subject).then_some("Istio").or_else(|| is_in_linkerd(subject).then_some("Linkerd"));
        mesh.map(str::to_owned)
    },
};

/// Ports that Azure Container Instances reserves.
const RESERVED: &[RangeInclusive<i64>] = &[
    22..=22,
    1025..=1027,
    3389..=3399,
    9999..=9999,
    19000..=19000,
    19080..=19080,
    19100..=19100,
    19390..=19390,
    20000..=30000,
    49152..=65534,
];
const MAX_PORTS: usize = 5;

static RESERVED_PORT: Rule = Rule {
    reason: Reason {
        code: "ReservedPort",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "Azure Container Instances documents the port as reserved",
        on_virtual_node: "Azure may refuse the container group, so that the pod never runs; its documentation does not mention virtual networks",
        fix: "listen on another port",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-troubleshooting.md",
    },
    reads: "spec.containers[*].ports[*].containerPort",
    check: |subject| {
        let ports = ports(subject).into_iter().filter(|port| RESERVED.iter().any(|range| range.contains(port)));
        let ports: Vec<_> = ports.map(|port| port.to_string()).collect();
        at_fault("port", ports.iter().map(String::as_str))
    },
};

static TOO_MANY_PORTS: Rule = Rule {
    reason: Reason {
        code: "TooManyPorts",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "Azure Container Instances documents a limit of 5 ports for a container group",
        on_virtual_node: "Azure may refuse the container group, so that the pod never runs; its documentation does not mention virtual networks",
        fix: "drop unused ports from the containers, or split the pod",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md",
    },
    reads: "spec.containers[*].ports[*].containerPort",
    check: |subject| {
        let count = ports(subject).len();
        (count > MAX_PORTS).then(|| format!("{count} ports"))
    },
};

/// Returns the distinct ports of all containers. Init containers never run together with them, so their ports do not
/// count.
fn ports(subject: &Subject<'_>) -> BTreeSet<i64> {
    let ports = subject.pod.containers().iter().flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| port.container_port).collect()
}

/// Returns whether the pod is in an Istio mesh, or will be. The pod takes precedence over its namespace, and a label
/// takes precedence over the old annotation.
fn is_in_istio(subject: &Subject<'_>) -> bool {
    let (pod, namespace) = (subject.pod, subject.cluster.namespace_labels);
    let of_namespace = |key: &str| namespace.get(key).map(String::as_str);
    let has_proxy = pod.annotation("sidecar.istio.io/status").is_some() || has_container(subject, "istio-proxy");

    let inject = pod.label("sidecar.istio.io/inject").or_else(|| pod.annotation("sidecar.istio.io/inject"));
    let revision = pod.label("istio.io/rev").or_else(|| of_namespace("istio.io/rev"));
    let is_injected = match inject {
        Some("true") => true,
        Some("false") => false,
        _ => of_namespace("istio-injection") == Some("enabled") || revision.is_some_and(|name| !name.is_empty()),
    };

    const MODE: &str = "istio.io/dataplane-mode";
    let is_ambient = pod.label(MODE).or_else(|| of_namespace(MODE)) == Some("ambient");
    has_proxy || is_injected || is_ambient
}

fn is_in_linkerd(subject: &Subject<'_>) -> bool {
    const INJECT: &str = "linkerd.io/inject";
    let of_namespace = || subject.cluster.namespace_annotations.get(INJECT).map(String::as_str);
    let inject = subject.pod.annotation(INJECT).or_else(of_namespace);
    has_container(subject, "linkerd-proxy") || matches!(inject, Some("enabled" | "ingress"))
}

fn has_container(subject: &Subject<'_>, name: &str) -> bool {
    subject.pod.all_containers().any(|container| container.name.as_deref() == Some(name))
}
