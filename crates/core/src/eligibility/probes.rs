//! Rules about probes. The first generation supports exec and httpGet, for liveness and readiness.

use super::{Applies, NEVER_RUNS, Reason, Rule, Severity, Subject, at_fault};
use crate::pod::{Container, HttpGet, IntOrString, Probe};

pub(super) const RULES: &[&Rule] = &[&STARTUP, &TCP_SOCKET, &GRPC, &PORT_NAME, &HEADERS];

const SOURCE: &str = "virtual-kubelet/azure-aci pkg/provider/aci.go (getProbe)";

static STARTUP: Rule = Rule {
    reason: Reason {
        code: "StartupProbe",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a container has a startup probe",
        on_virtual_node: NEVER_RUNS,
        fix: "use initialDelaySeconds of the liveness probe instead",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getContainers); virtual-kubelet/azure-aci#566",
    },
    reads: "spec.{initContainers,containers}[*].startupProbe",
    check: |subject| containers(subject, |c| c.startup_probe.is_some()),
};

static TCP_SOCKET: Rule = Rule {
    reason: Reason {
        code: "TcpSocketProbe",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a container has a tcpSocket probe",
        on_virtual_node: NEVER_RUNS,
        fix: "use httpGet, or exec with a command that connects to the port",
        can_be_allowed: true,
        source: SOURCE,
    },
    reads: "spec.{initContainers,containers}[*].{livenessProbe,readinessProbe}.tcpSocket",
    check: |subject| containers(subject, |c| translated(c).any(|probe| probe.tcp_socket.is_some())),
};

static GRPC: Rule = Rule {
    reason: Reason {
        code: "GrpcProbe",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a container has a grpc probe",
        on_virtual_node: NEVER_RUNS,
        fix: "use exec with grpc_health_probe, or httpGet",
        can_be_allowed: true,
        source: SOURCE,
    },
    reads: "spec.{initContainers,containers}[*].{livenessProbe,readinessProbe}.grpc",
    check: |subject| containers(subject, |c| translated(c).any(|probe| probe.grpc.is_some())),
};

static PORT_NAME: Rule = Rule {
    reason: Reason {
        code: "ProbePortName",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "a probe refers to a port name that its container does not define",
        on_virtual_node: NEVER_RUNS,
        fix: "add the name to the container's ports, or use the port number",
        can_be_allowed: true,
        source: SOURCE,
    },
    reads: "spec.{initContainers,containers}[*].{livenessProbe,readinessProbe}.httpGet.port, .ports[*].name",
    check: |subject| {
        containers(subject, |c| {
            let has = |name: &str| c.ports.iter().flatten().any(|port| port.name.as_deref() == Some(name));
            let ports = translated(c).filter_map(|probe| probe.http_get.as_ref()?.port.as_ref());
            let mut names = ports.filter_map(|port| if let IntOrString::Name(name) = port { Some(name) } else { None });
            names.any(|name| !has(name))
        })
    },
};

static HEADERS: Rule = Rule {
    reason: Reason {
        code: "ProbeHeaders",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 ignores host and httpHeaders of a probe",
        on_virtual_node: "the probe calls the container's own address without the headers; an application that needs them is never ready, or restarts repeatedly",
        fix: "make the probed path work without them, or use exec",
        can_be_allowed: false,
        source: SOURCE,
    },
    reads: "spec.{initContainers,containers}[*].{livenessProbe,readinessProbe}.httpGet.{host,httpHeaders}",
    check: |subject| {
        let is_ignored = |get: &HttpGet<'_>| {
            get.host.as_deref().is_some_and(|host| !host.is_empty())
                || get.http_headers.as_ref().is_some_and(|headers| !headers.is_empty())
        };
        containers(subject, |c| translated(c).filter_map(|probe| probe.http_get.as_ref()).any(is_ignored))
    },
};

/// Returns the probes that the connector translates. It refuses any startup probe.
fn translated<'c>(container: &'c Container<'_>) -> impl Iterator<Item = &'c Probe<'c>> {
    [&container.liveness_probe, &container.readiness_probe].into_iter().flatten()
}

fn containers(subject: &Subject<'_>, matches: impl Fn(&Container<'_>) -> bool) -> Option<String> {
    let matching = subject.pod.all_containers().filter(|container| matches(container));
    at_fault("container", matching.map(Container::display_name))
}
