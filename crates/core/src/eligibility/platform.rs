//! Rules about pods that need another platform. Virtual nodes run Linux on amd64, in a runtime that Azure chooses.

use super::{Applies, Reason, Rule, Severity};

pub(super) const RULES: &[&Rule] = &[&WINDOWS, &ARCHITECTURE, &RUNTIME_CLASS];

static WINDOWS: Rule = Rule {
    reason: Reason {
        code: "Windows",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes run Linux only",
        on_virtual_node: "no virtual node of AKS runs Windows containers",
        fix: "no fix exists",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances README.md; MicrosoftDocs/azure-aks-docs articles/aks/virtual-nodes.md",
    },
    reads: "spec.os.name, spec.nodeSelector[kubernetes.io/os, beta.kubernetes.io/os]",
    check: |subject| {
        let spec = &subject.pod.spec;
        let os = spec.os.as_ref().and_then(|os| os.name.as_deref());
        let selected = |key| spec.node_selector.as_ref().and_then(|selector| selector.get(key));
        let said = [os, selected("kubernetes.io/os"), selected("beta.kubernetes.io/os")];
        said.contains(&Some("windows")).then(String::new)
    },
};

static ARCHITECTURE: Rule = Rule {
    reason: Reason {
        code: "Architecture",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes run amd64 only",
        on_virtual_node: "Azure Container Instances supports no architecture other than x64",
        fix: "build the image also for amd64, and drop the selector",
        can_be_allowed: false,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-faq.yml; virtual-kubelet/azure-aci#478",
    },
    reads: "spec.nodeSelector[kubernetes.io/arch, beta.kubernetes.io/arch]",
    check: |subject| {
        let selector = subject.pod.spec.node_selector.as_ref()?;
        let architecture = selector.get("kubernetes.io/arch").or(selector.get("beta.kubernetes.io/arch"))?;
        (architecture != "amd64").then(|| architecture.to_owned())
    },
};

static RUNTIME_CLASS: Rule = Rule {
    reason: Reason {
        code: "RuntimeClass",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod requests a container runtime",
        on_virtual_node: "v1 ignores the field; v2 documents no runtime classes",
        fix: "drop spec.runtimeClassName if the pod works without it",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go, which does not read the field",
    },
    reads: "spec.runtimeClassName",
    check: |subject| {
        let name = subject.pod.spec.runtime_class_name.as_deref().filter(|name| !name.is_empty())?;
        Some(format!("runtime class {name}"))
    },
};
