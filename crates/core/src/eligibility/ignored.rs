//! Rules about fields that the first generation ignores without a message. Pods seldom fail because of them, so these
//! rules only inform the owner.
//!
//! These fields have no rule, because pods hardly ever depend on them:
//!
//! - `medium` and `sizeLimit` of an emptyDir: Azure has its own limits.
//! - `defaultMode` of secrets and configMaps: the files are readable.
//! - `activeDeadlineSeconds`: the Job controller enforces the deadline of a Job.
//! - Empty environment variables, `hostname`, `subdomain` and `setHostnameAsFQDN`.
//! - `dnsConfig` beyond three servers and six domains.
//!
//! Resizes, ephemeral containers and in-place updates happen after admission.

use super::{Applies, Reason, Rule, Severity, at_fault};
use crate::pod::{Container, ContainerSecurityContext};

pub(super) const RULES: &[&Rule] =
    &[&SECURITY_CONTEXT, &TERMINATION_GRACE_PERIOD, &HOST_ALIASES, &SHARE_PROCESS_NAMESPACE, &READINESS_GATES];

const SOURCE: &str = "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field";
/// Default of the API server. It says nothing about the owner's intention.
const DEFAULT_GRACE: i64 = 30;

/// Fields that only remove rights do not count, such as `readOnlyRootFilesystem` and dropped capabilities. Pods run
/// without them.
static SECURITY_CONTEXT: Rule = Rule {
    reason: Reason {
        code: "SecurityContext",
        severity: Severity::Note,
        applies: Applies::V1,
        meaning: "v1 ignores user, group, added capabilities and sysctls",
        on_virtual_node: "containers run as the image's user without added capabilities, and root owns the volumes",
        fix: "set the user in the image (USER), or keep the pod on VMs if it depends on the other fields",
        can_be_allowed: false,
        source: SOURCE,
    },
    reads: "spec.securityContext.{runAsUser,runAsGroup,fsGroup,sysctls}, spec.{initContainers,containers}[*].securityContext.{runAsUser,runAsGroup,capabilities.add}",
    check: |subject| {
        let of_pod = subject.pod.spec.security_context.as_ref().is_some_and(|context| {
            let has_sysctls = context.sysctls.as_ref().is_some_and(|sysctls| !sysctls.is_empty());
            context.run_as_user.or(context.run_as_group).or(context.fs_group).is_some() || has_sysctls
        });
        let says = |context: &ContainerSecurityContext| {
            let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
            context.run_as_user.or(context.run_as_group).is_some() || added.is_some_and(|added| !added.is_empty())
        };
        let containers = subject.pod.all_containers().filter(|c| c.security_context.as_ref().is_some_and(says));
        at_fault("container", containers.map(Container::display_name)).or(of_pod.then(String::new))
    },
};

static TERMINATION_GRACE_PERIOD: Rule = Rule {
    reason: Reason {
        code: "TerminationGracePeriod",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 gives the pod no time to shut down",
        on_virtual_node: "v1 deletes the container group immediately",
        fix: "make the work safe to interrupt, or keep the pod on VMs",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci#28",
    },
    reads: "spec.terminationGracePeriodSeconds",
    check: |subject| {
        let seconds = subject.pod.spec.termination_grace_period_seconds?;
        (seconds > DEFAULT_GRACE).then(|| format!("{seconds} seconds"))
    },
};

static HOST_ALIASES: Rule = Rule {
    reason: Reason {
        code: "HostAliases",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 ignores host aliases",
        on_virtual_node: "the host names do not resolve",
        fix: "add the names to DNS",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-aks-docs articles/aks/virtual-nodes.md (Limitations)",
    },
    reads: "spec.hostAliases",
    check: |subject| {
        subject.pod.spec.host_aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()).then(String::new)
    },
};

static SHARE_PROCESS_NAMESPACE: Rule = Rule {
    reason: Reason {
        code: "ShareProcessNamespace",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 does not share the process namespace between containers",
        on_virtual_node: "each container sees only its own processes",
        fix: "keep the pod on VMs if a container signals or watches processes of another container",
        can_be_allowed: false,
        source: SOURCE,
    },
    reads: "spec.shareProcessNamespace",
    check: |subject| (subject.pod.spec.share_process_namespace == Some(true)).then(String::new),
};

static READINESS_GATES: Rule = Rule {
    reason: Reason {
        code: "ReadinessGates",
        severity: Severity::Note,
        applies: Applies::V1,
        meaning: "v1 ignores readiness gates",
        on_virtual_node: "the pod is ready as soon as its containers are ready, without waiting for the conditions",
        fix: "keep the pod on VMs if traffic must wait for the conditions",
        can_be_allowed: false,
        source: SOURCE,
    },
    reads: "spec.readinessGates",
    check: |subject| subject.pod.spec.readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty()).then(String::new),
};
