//! Rules about environment variables with values from the node. The connector of the first generation supports few of
//! them.

use super::{Applies, Reason, Rule, Severity, Subject, at_fault};
use crate::pod::{Container, EnvVarSource};

pub(super) const RULES: &[&Rule] = &[&POD_IP_FIELD_REF, &FIELD_REF, &RESOURCE_FIELD_REF];

static POD_IP_FIELD_REF: Rule = Rule {
    reason: Reason {
        code: "PodIPFieldRef",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 provides neither the pod's nor the host's address as a variable",
        on_virtual_node: "the pod stays Pending forever, without a message",
        fix: "make the application find its own address, such as by its hostname or its interfaces",
        can_be_allowed: true,
        source: "virtual-kubelet/virtual-kubelet internal/podutils/env.go; Azure/AKS#2427; dapr/dapr#2348; virtual-kubelet/azure-aci#51",
    },
    reads: "spec.{initContainers,containers}[*].env[*].valueFrom.fieldRef.fieldPath",
    check: |subject| containers(subject, |source| field_path(source).is_some_and(is_address)),
};

static FIELD_REF: Rule = Rule {
    reason: Reason {
        code: "FieldRef",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 cannot read the pod field of an environment variable",
        on_virtual_node: "the pod stays Pending forever, without a message",
        fix: "use metadata.name, namespace, uid, labels['x'] or annotations['x'], spec.nodeName or spec.serviceAccountName",
        can_be_allowed: true,
        source: "virtual-kubelet/virtual-kubelet internal/podutils/env.go",
    },
    reads: "spec.{initContainers,containers}[*].env[*].valueFrom.fieldRef.fieldPath",
    check: |subject| {
        containers(subject, |source| field_path(source).is_some_and(|path| !is_known(path) && !is_address(path)))
    },
};

static RESOURCE_FIELD_REF: Rule = Rule {
    reason: Reason {
        code: "ResourceFieldRef",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 drops environment variables with requests or limits",
        on_virtual_node: "the variable is missing, without a message",
        fix: "write the value into the manifest, or make the application work without the variable",
        can_be_allowed: false,
        source: "virtual-kubelet/virtual-kubelet internal/podutils/env.go; virtual-kubelet/azure-aci pkg/provider/aci.go (getContainers)",
    },
    reads: "spec.{initContainers,containers}[*].env[*].valueFrom.resourceFieldRef",
    check: |subject| containers(subject, |source| source.resource_field_ref.is_some()),
};

fn containers(subject: &Subject<'_>, matches: impl Fn(&EnvVarSource<'_>) -> bool) -> Option<String> {
    let has =
        |c: &&Container<'_>| c.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()).any(&matches);
    at_fault("container", subject.pod.all_containers().filter(has).map(Container::display_name))
}

fn field_path<'e>(source: &'e EnvVarSource<'_>) -> Option<&'e str> {
    source.field_ref.as_ref()?.field_path.as_deref()
}

fn is_address(path: &str) -> bool {
    matches!(path, "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs")
}

fn is_known(path: &str) -> bool {
    matches!(
        path,
        "metadata.name" | "metadata.namespace" | "metadata.uid" | "spec.nodeName" | "spec.serviceAccountName"
    ) || ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|map| path.strip_prefix(map).is_some_and(|rest| rest.ends_with("']")))
}
