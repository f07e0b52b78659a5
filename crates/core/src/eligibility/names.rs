//! Rules about names that the first generation passes to Azure.

use super::{Applies, Reason, Rule, Severity};

pub(super) const RULES: &[&Rule] = &[&CONTAINER_GROUP_NAME];

const MAX_GROUP_NAME_CHARS: usize = 63;
/// The API server cuts the prefix to 58 characters and adds five, so that a generated name has at most 63.
const MAX_GENERATE_NAME_CHARS: usize = 58;
const GENERATED: usize = 5;

static CONTAINER_GROUP_NAME: Rule = Rule {
    reason: Reason {
        code: "ContainerGroupName",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "Azure does not accept the name of the container group",
        on_virtual_node: "Azure Container Instances refuses the name <namespace>-<name>; it allows at most 63 lower-case letters, digits and single hyphens",
        fix: "shorten both names to 62 characters in total, without dots and double hyphens",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (containerGroupName); learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules",
    },
    reads: "metadata.{name,generateName}, the namespace",
    check: |subject| {
        let namespace = Some(subject.cluster.namespace).filter(|namespace| !namespace.is_empty())?;
        let metadata = &subject.pod.metadata;
        let (name, generated) = match (metadata.name.as_deref(), metadata.generate_name.as_deref()) {
            (Some(name), _) if !name.is_empty() => (name, 0),
            (_, Some(prefix)) if !prefix.is_empty() => (prefix, GENERATED),
            _ => return None,
        };
        let length = namespace.len()
            + 1
            + generated
            + if generated > 0 { name.len().min(MAX_GENERATE_NAME_CHARS) } else { name.len() };
        let is_fine = length <= MAX_GROUP_NAME_CHARS
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !name.contains("--")
            && !namespace.contains("--");
        let random = if generated > 0 { "xxxxx" } else { "" };
        (!is_fine).then(|| format!("{namespace}-{name}{random}, {length} characters"))
    },
};
