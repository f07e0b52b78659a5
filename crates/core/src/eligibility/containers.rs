//! Rules about containers and init containers. The connector of the first generation refuses some of their fields.

use super::{Applies, NEVER_RUNS, Reason, Rule, Severity, Subject, at_fault};
use crate::pod::{Container, ResourceList};

pub(super) const RULES: &[&Rule] = &[
    &ARGS_WITHOUT_COMMAND,
    &LIFECYCLE_HOOK,
    &TOO_MANY,
    &INIT_CONTAINER_PORTS,
    &INIT_CONTAINER_RESOURCES,
    &INIT_CONTAINER_PROBE,
    &NATIVE_SIDECAR,
];

const MAX_CONTAINERS: usize = 60;

static ARGS_WITHOUT_COMMAND: Rule = Rule {
    reason: Reason {
        code: "ArgsWithoutCommand",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a container has args but no command",
        on_virtual_node: NEVER_RUNS,
        fix: "set command to the image's entry point",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (verifyContainer); virtual-kubelet/azure-aci#10",
    },
    reads: "spec.{initContainers,containers}[*].{command,args}",
    check: |subject| {
        let is_empty = |list: &Option<Vec<_>>| list.as_ref().is_none_or(Vec::is_empty);
        let containers = subject.pod.all_containers().filter(|c| is_empty(&c.command) && !is_empty(&c.args));
        at_fault("container", containers.map(Container::display_name))
    },
};

static LIFECYCLE_HOOK: Rule = Rule {
    reason: Reason {
        code: "LifecycleHook",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a container has a postStart or preStop hook",
        on_virtual_node: NEVER_RUNS,
        fix: "use the container's own process: initialize in its entry point, and shut down on SIGTERM",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (hasLifecycleHook); MicrosoftDocs/azure-aks-docs articles/aks/virtual-nodes.md",
    },
    reads: "spec.{initContainers,containers}[*].lifecycle.{postStart,preStop}",
    check: |subject| {
        let has_hook = |c: &&Container<'_>| {
            c.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some() || lifecycle.pre_stop.is_some())
        };
        at_fault("container", subject.pod.all_containers().filter(has_hook).map(Container::display_name))
    },
};

static TOO_MANY: Rule = Rule {
    reason: Reason {
        code: "TooManyContainers",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a container group has at most 60 containers",
        on_virtual_node: "Azure Container Instances refuses the container group",
        fix: "split the pod",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md",
    },
    reads: "spec.{initContainers,containers}",
    check: |subject| {
        let count = subject.pod.init_containers().len() + subject.pod.containers().len();
        (count > MAX_CONTAINERS).then(|| format!("{count} containers"))
    },
};

static INIT_CONTAINER_PORTS: Rule = Rule {
    reason: Reason {
        code: "InitContainerPorts",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "an init container has ports",
        on_virtual_node: NEVER_RUNS,
        fix: "drop the ports of the init container, which are only informational",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getInitContainers)",
    },
    reads: "spec.initContainers[*].ports",
    check: |subject| init_containers(subject, |c| c.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
};

static INIT_CONTAINER_RESOURCES: Rule = Rule {
    reason: Reason {
        code: "InitContainerResources",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "an init container has resource requests or limits",
        on_virtual_node: NEVER_RUNS,
        fix: "drop the resources of the init container; if a LimitRange adds them, the pod can run only on v2",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getInitContainers)",
    },
    reads: "spec.initContainers[*].resources.{requests,limits}",
    check: |subject| {
        init_containers(subject, |c| {
            let lists = c.resources.iter().flat_map(|resources| [&resources.requests, &resources.limits]);
            lists.flatten().any(|list: &ResourceList<'_>| !list.is_empty())
        })
    },
};

static INIT_CONTAINER_PROBE: Rule = Rule {
    reason: Reason {
        code: "InitContainerProbe",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "an init container has a probe",
        on_virtual_node: NEVER_RUNS,
        fix: "make the sidecar an ordinary container, or drop its probes",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getInitContainers)",
    },
    reads: "spec.initContainers[*].{livenessProbe,readinessProbe,startupProbe}",
    check: |subject| init_containers(subject, |c| c.probes().next().is_some()),
};

static NATIVE_SIDECAR: Rule = Rule {
    reason: Reason {
        code: "NativeSidecar",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "an init container is a native sidecar",
        on_virtual_node: "the connector ignores restartPolicy, so the other containers wait for the sidecar to end, and the pod never starts",
        fix: "make the sidecar an ordinary container",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getInitContainers), which does not read the field",
    },
    reads: "spec.initContainers[*].restartPolicy",
    check: |subject| {
        let sidecars = subject.pod.init_containers().iter().filter(|container| container.is_sidecar());
        at_fault("init container", sidecars.map(Container::display_name))
    },
};

fn init_containers(subject: &Subject<'_>, matches: impl Fn(&Container<'_>) -> bool) -> Option<String> {
    let matching = subject.pod.init_containers().iter().filter(|container| matches(container));
    at_fault("init container", matching.map(Container::display_name))
}
