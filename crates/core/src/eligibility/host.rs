//! Rules about pods that need a part of the node itself. A virtual node is not a machine, so it cannot provide one.

use super::{Applies, Reason, Rule, Severity, at_fault};
use crate::pod::{Container, ContainerPort};

pub(super) const RULES: &[&Rule] = &[&HOST_NETWORK, &HOST_PID, &HOST_IPC, &HOST_PORT, &PRIVILEGED];

static HOST_NETWORK: Rule = Rule {
    reason: Reason {
        code: "HostNetwork",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod uses the host network",
        on_virtual_node: "v1 ignores the field and gives the pod its own address; v2 documents no host network",
        fix: "drop spec.hostNetwork if the pod works with its own network",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field",
    },
    reads: "spec.hostNetwork",
    check: |subject| (subject.pod.spec.host_network == Some(true)).then(String::new),
};

static HOST_PID: Rule = Rule {
    reason: Reason {
        code: "HostPID",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod uses the host's PID namespace",
        on_virtual_node: "v1 ignores the field, so the pod sees only its own processes; v2 documents no host processes",
        fix: "drop spec.hostPID if the pod works without it",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field",
    },
    reads: "spec.hostPID",
    check: |subject| (subject.pod.spec.host_pid == Some(true)).then(String::new),
};

static HOST_IPC: Rule = Rule {
    reason: Reason {
        code: "HostIPC",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod uses the host's IPC namespace",
        on_virtual_node: "v1 ignores the field, so the pod shares no memory; v2 documents no host to share with",
        fix: "drop spec.hostIPC if the pod works without it",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field",
    },
    reads: "spec.hostIPC",
    check: |subject| (subject.pod.spec.host_ipc == Some(true)).then(String::new),
};

static HOST_PORT: Rule = Rule {
    reason: Reason {
        code: "HostPort",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a container has a hostPort",
        on_virtual_node: "no virtual node opens the port: v1 sends only containerPort, and pods share no address of the node",
        fix: "drop hostPort, and use a Service for the pod",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getContainers)",
    },
    reads: "spec.{initContainers,containers}[*].ports[*].hostPort",
    check: |subject| {
        let has = |port: &ContainerPort<'_>| port.host_port.is_some_and(|port| port != 0);
        let containers = subject.pod.all_containers().filter(|c| c.ports.iter().flatten().any(has));
        at_fault("container", containers.map(Container::display_name))
    },
};

static PRIVILEGED: Rule = Rule {
    reason: Reason {
        code: "PrivilegedContainer",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a container is privileged",
        on_virtual_node: "v1 ignores the field, so privileged operations fail; Azure Container Instances does not support them",
        fix: "drop securityContext.privileged if the container works without it",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field; MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-faq.yml",
    },
    reads: "spec.{initContainers,containers}[*].securityContext.privileged",
    check: |subject| {
        let containers = subject
            .pod
            .all_containers()
            .filter(|c| c.security_context.as_ref().is_some_and(|context| context.privileged == Some(true)));
        at_fault("container", containers.map(Container::display_name))
    },
};
