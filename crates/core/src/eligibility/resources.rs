//! Rules about resources: the size limit of container groups, and resources that virtual nodes lack.

use super::{Applies, Generation, Reason, Rule, Severity, at_fault, join};
use crate::pod::{Container, Pod, Quantity, ResourceRequirements};

pub(super) const RULES: &[&Rule] = &[
    &GROUP_TOO_LARGE,
    &LIMIT_ABOVE_GROUP_REQUEST,
    &GPU,
    &HUGE_PAGES,
    &EXTENDED_RESOURCE,
    &RESOURCE_CLAIM,
    &EPHEMERAL_STORAGE,
];

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
const EPHEMERAL_STORAGE_NAME: &str = "ephemeral-storage";
/// Largest container group: 31 vCPU and 240 GB, read as decimal gigabytes, which is the smaller value.
const MAX_CPU: Quantity = Quantity::from_units(31);
const MAX_MEMORY: Quantity = Quantity::from_units(240_000_000_000);
/// Requests of the first generation for a container without requests.
const DEFAULT_CPU: Quantity = Quantity::from_units(1);
const DEFAULT_MEMORY: Quantity = Quantity::from_units(1_500_000_000);
/// Resources that the second generation adds for kube-proxy, and the annotation that opts out of it.
const KUBE_PROXY_CPU: Quantity = Quantity::from_milli(100);
const KUBE_PROXY_MEMORY: Quantity = Quantity::from_units(100_000_000);
const INJECT_KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
const NEVER_FITS: &str = "virtual nodes do not advertise the resource, so the scheduler never considers them";

static GROUP_TOO_LARGE: Rule = Rule {
    reason: Reason {
        code: "GroupTooLarge",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a container group has at most 31 vCPU and 240 GB",
        on_virtual_node: "the virtual node seems to have room, but Azure Container Instances refuses the container group",
        fix: "request less, or split the pod (per container, v1 defaults to 1 CPU and 1.5 GB; v2 adds 0.1 CPU and 0.1 GB for kube-proxy)",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md; virtual-kubelet/azure-aci pkg/provider/aci.go (getContainers); microsoft/virtualnodesOnAzureContainerInstances Helm/virtualnode/values.yaml (kubeProxy)",
    },
    reads: "spec.{initContainers,containers}[*].resources, spec.resources, spec.overhead, metadata.annotations[microsoft.containerinstance.virtualnode.injectkubeproxy]",
    check: |subject| {
        let generations = [Generation::V1, Generation::V2].into_iter().filter(|g| subject.candidates.has(*g));
        let mut sizes = generations.map(|generation| group_size(subject.pod, generation));
        let (cpu, memory) = sizes.find(|(cpu, memory)| *cpu > MAX_CPU || *memory > MAX_MEMORY)?;
        Some(format!(
            "{} vCPU and {} GB",
            thousandths(cpu.milli()),
            tenths((memory.units() + TENTH_OF_GB - 1) / TENTH_OF_GB)
        ))
    },
};

static LIMIT_ABOVE_GROUP_REQUEST: Rule = Rule {
    reason: Reason {
        code: "LimitAboveGroupRequest",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a limit is above the sum of all containers' requests",
        on_virtual_node: "Azure Container Instances answers ContainerLimitGreaterThanContainerGroupTotalRequest, so the pod stays bound and never runs",
        fix: "lower the limit or raise a request (v1 rounds requests down to 10m and 0.1 GB; its defaults are 1 CPU and 1.5 GB)",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getContainers); virtual-kubelet/azure-aci#17; virtual-kubelet/azure-aci#149",
    },
    reads: "spec.containers[*].resources.{requests,limits}[cpu, memory]",
    check: |subject| {
        let containers = subject.pod.containers();
        let sum = |of: fn(&Container<'_>) -> i128| containers.iter().map(of).fold(0, i128::saturating_add);
        let (cpu, memory) = (sum(requested_milli), sum(requested_tenths));
        let limit = |c: &Container<'_>, resource| c.resources.as_ref()?.limit(resource);
        let above = containers.iter().flat_map(|c| {
            let milli = limit(c, CPU).map(Quantity::milli).filter(|milli| *milli > cpu);
            let gb = limit(c, MEMORY).map(in_tenths_of_gb).filter(|gb| *gb > memory);
            let name = c.display_name();
            let of_cpu = milli.map(|m| format!("container {name}: {} CPU above {}", thousandths(m), thousandths(cpu)));
            let of_memory = gb.map(|gb| format!("container {name}: {} GB above {}", tenths(gb), tenths(memory)));
            of_cpu.into_iter().chain(of_memory)
        });
        join(", ", above)
    },
};

static GPU: Rule = Rule {
    reason: Reason {
        code: "Gpu",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes have no GPU",
        on_virtual_node: "no node fits; an old connector that still advertises nvidia.com/gpu accepts the pod and never runs it",
        fix: "no fix exists; Azure Container Instances retired GPUs on 2025-07-14, and never had them in virtual networks",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-faq.yml; virtual-kubelet/azure-aci pkg/provider/aci.go (getGPUSKU)",
    },
    reads: "spec.{initContainers,containers}[*].resources.{requests,limits}",
    check: |subject| requested(subject.pod, is_gpu),
};

static HUGE_PAGES: Rule = Rule {
    reason: Reason {
        code: "HugePages",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes have no huge pages",
        on_virtual_node: NEVER_FITS,
        fix: "drop the request if the application works without it",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci pkg/provider/vk_node.go",
    },
    reads: "spec.{initContainers,containers}[*].resources.{requests,limits}, spec.resources",
    check: |subject| requested(subject.pod, |resource| resource.starts_with("hugepages-")),
};

static EXTENDED_RESOURCE: Rule = Rule {
    reason: Reason {
        code: "ExtendedResource",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes do not advertise the resource",
        on_virtual_node: NEVER_FITS,
        fix: "drop the request if the pod works without it, or allow it if the virtual nodes advertise the resource",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/vk_node.go; kubernetes.io/docs/concepts/configuration/manage-resources-containers/#extended-resources",
    },
    reads: "spec.{initContainers,containers}[*].resources.{requests,limits}",
    check: |subject| requested(subject.pod, |resource| is_extended(resource) && !is_gpu(resource)),
};

static RESOURCE_CLAIM: Rule = Rule {
    reason: Reason {
        code: "ResourceClaim",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod claims devices, which virtual nodes do not have",
        on_virtual_node: "no driver of dynamic resource allocation runs there, so the pod gets no device",
        fix: "no fix exists",
        can_be_allowed: false,
        source: "kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation; virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field",
    },
    reads: "spec.resourceClaims, spec.{initContainers,containers}[*].resources.claims",
    check: |subject| {
        let pod = subject.pod;
        let claims = |resources: &ResourceRequirements<'_>| resources.claims.as_ref().is_some_and(|c| !c.is_empty());
        let by_pod = pod.spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty());
        let by_container = pod.all_containers().any(|c| c.resources.as_ref().is_some_and(claims));
        (by_pod || by_container).then(String::new)
    },
};

static EPHEMERAL_STORAGE: Rule = Rule {
    reason: Reason {
        code: "EphemeralStorageRequest",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 does not advertise ephemeral storage",
        on_virtual_node: NEVER_FITS,
        fix: "drop the request and the limit; a container group has 50 GB",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/vk_node.go",
    },
    reads: "spec.{initContainers,containers}[*].resources.{requests,limits}[ephemeral-storage]",
    check: |subject| (subject.pod.request(EPHEMERAL_STORAGE_NAME) > Quantity::ZERO).then(String::new),
};

/// Returns the CPU and memory of the container group, which can exceed the scheduler's reservation. The connector of
/// the first generation adds default requests, and the second generation adds kube-proxy.
fn group_size(pod: &Pod<'_>, generation: Generation) -> (Quantity, Quantity) {
    let (cpu, memory) = (pod.request(CPU), pod.request(MEMORY));
    match generation {
        Generation::V1 => {
            let sum = |resource, default| {
                let request =
                    |c: &Container<'_>| c.resources.as_ref().and_then(|resources| resources.request(resource));
                let requests = pod.containers().iter().map(|container| request(container).unwrap_or(default));
                requests.fold(Quantity::ZERO, |sum, request| sum + request)
            };
            (cpu.max(sum(CPU, DEFAULT_CPU)), memory.max(sum(MEMORY, DEFAULT_MEMORY)))
        }
        Generation::V2 if pod.annotation(INJECT_KUBE_PROXY) == Some("false") => (cpu, memory),
        Generation::V2 => (cpu + KUBE_PROXY_CPU, memory + KUBE_PROXY_MEMORY),
    }
}

/// Memory step of Azure Container Instances, in bytes.
const TENTH_OF_GB: i128 = 100_000_000;

/// Returns the CPU request that the connector sends for a container, in thousandths. The step and the minimum are 10m,
/// and the default is 1 CPU.
fn requested_milli(container: &Container<'_>) -> i128 {
    let request = container.resources.as_ref().and_then(|resources| resources.request(CPU));
    (request.unwrap_or(DEFAULT_CPU).milli() / 10 * 10).max(10)
}

/// Returns the memory request that the connector sends for a container, in tenths of a GB. The minimum is 0.1 GB, and
/// the default is 1.5 GB.
fn requested_tenths(container: &Container<'_>) -> i128 {
    let request = container.resources.as_ref().and_then(|resources| resources.request(MEMORY));
    in_tenths_of_gb(request.unwrap_or(DEFAULT_MEMORY)).max(1)
}

/// Rounds down to tenths of a GB, as the connector does for requests and limits of memory. It does not round CPU
/// limits.
const fn in_tenths_of_gb(memory: Quantity) -> i128 {
    memory.units() / TENTH_OF_GB
}

fn thousandths(milli: i128) -> String {
    if milli % 1_000 == 0 { (milli / 1_000).to_string() } else { format!("{milli}m") }
}

fn tenths(tenths: i128) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Returns whether a device plugin for GPUs provides the resource.
fn is_gpu(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    domain == "nvidia.com" || domain == "gpu.intel.com" || name == "gpu"
}

/// Returns whether the resource is neither built in nor in a domain of Kubernetes.
fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

/// Formats the matching resources that the pod requests, each once.
fn requested(pod: &Pod<'_>, matches: impl Fn(&str) -> bool) -> Option<String> {
    let all = pod.all_containers().filter_map(|c| c.resources.as_ref()).chain(&pod.spec.resources);
    let mut names: Vec<_> = all.flat_map(ResourceRequirements::others).filter(|name| matches(name)).collect();
    names.sort_unstable();
    names.dedup();
    at_fault("resource", names.into_iter())
}
