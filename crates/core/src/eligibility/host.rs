//! Pods that want a part of the node itself. A virtual node is no machine: there is nothing of the kind to hand out.

use super::{Applies, Reason, Rule, Severity, at_fault};
use crate::pod::{Container, ContainerPort};

pub(super) const RULES: &[&Rule] = &[&HOST_NETWORK, &HOST_PID, &HOST_IPC, &HOST_PORT, &PRIVILEGED];

static HOST_NETWORK: Rule = Rule {
    reason: Reason {
        code: "HostNetwork",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod wants the node's own network",
        on_virtual_node: "v1 ignores the field and gives the pod an address of its own; v2 documents no host network",
        fix: "drop spec.hostNetwork if the pod runs on a network of its own",
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
        meaning: "the pod wants to see the processes of its node",
        on_virtual_node: "v1 ignores the field and the pod sees only its own; v2 documents no host to look at",
        fix: "drop spec.hostPID if the pod runs without it",
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
        meaning: "the pod wants to share memory with the processes of its node",
        on_virtual_node: "v1 ignores the field and the pod shares nothing; v2 documents no host to share with",
        fix: "drop spec.hostIPC if the pod runs without it",
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
        meaning: "the pod wants to be reached at a port of its node",
        on_virtual_node: "the port is not opened anywhere: v1 sends only containerPort, and no virtual node has an address that pods share",
        fix: "drop hostPort, and put a Service in front of the pod",
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
        meaning: "a container wants to be privileged",
        on_virtual_node: "v1 ignores the field, so the application fails at what it needs it for; Azure Container Instances has no privileged operations",
        fix: "drop securityContext.privileged if the container runs without it",
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
