//! Rules about volumes. The first generation translates each volume into one of Azure Container Instances, or fails.

use super::{Applies, Reason, Rule, Severity, Subject, at_fault, join};
use crate::pod::{
    Container, CsiVolume, KeysProjection, StringMap, Volume, VolumeMount, VolumeProjection, VolumeSource,
};

pub(super) const RULES: &[&Rule] = &[
    &HOST_PATH,
    &PERSISTENT_VOLUME_CLAIM,
    &EPHEMERAL,
    &CSI,
    &UNSUPPORTED,
    &TYPE_REJECTED,
    &DOWNWARD_API,
    &PROJECTED,
    &ITEMS,
    &OPTIONAL,
    &SUB_PATH,
    &TOO_MANY,
    &NAME,
];

/// The only driver of in-line CSI volumes on virtual nodes.
const AZURE_FILE: &str = "file.csi.azure.com";
const MAX_VOLUMES: usize = 20;
const SHORTEST_NAME: usize = 5;

static HOST_PATH: Rule = Rule {
    reason: Reason {
        code: "HostPathVolume",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "a hostPath volume refers to the node's own disk",
        on_virtual_node: "the path is inside the pod's own utility VM, without any files of a host",
        fix: "use an emptyDir for scratch space, or Azure Files for shared data",
        can_be_allowed: true,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs (VirtualDaemonSet)",
    },
    reads: "spec.volumes[*].hostPath",
    check: |subject| volumes(subject, |volume| matches!(volume.source, VolumeSource::HostPath)),
};

static PERSISTENT_VOLUME_CLAIM: Rule = Rule {
    reason: Reason {
        code: "PersistentVolumeClaim",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "v2 mounts only claims of Azure Files",
        on_virtual_node: "v2 mounts only Azure Files, not disks or blobs",
        fix: "allow it if the claim's storage class uses Azure Files (provisioner file.csi.azure.com)",
        can_be_allowed: true,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/StorageOptions.md",
    },
    reads: "spec.volumes[*].persistentVolumeClaim",
    check: |subject| volumes(subject, |volume| matches!(volume.source, VolumeSource::PersistentVolumeClaim)),
};

static EPHEMERAL: Rule = Rule {
    reason: Reason {
        code: "EphemeralVolume",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "v2 mounts only claims of Azure Files",
        on_virtual_node: "v2 mounts only Azure Files, not disks or blobs",
        fix: "use an emptyDir, or allow it if its storage class uses Azure Files",
        can_be_allowed: true,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/StorageOptions.md",
    },
    reads: "spec.volumes[*].ephemeral",
    check: |subject| volumes(subject, |volume| matches!(volume.source, VolumeSource::Ephemeral)),
};

static CSI: Rule = Rule {
    reason: Reason {
        code: "CsiVolume",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "v2 cannot mount this kind of in-line CSI volume",
        on_virtual_node: "v2 has only file.csi.azure.com; other drivers fail to mount, and the pod never runs",
        fix: "mount Azure Files with file.csi.azure.com, and read secrets with workload identity instead of secrets-store",
        can_be_allowed: true,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/StorageOptions.md",
    },
    reads: "spec.volumes[*].csi.driver",
    check: |subject| volumes(subject, |volume| matches!(&volume.source, VolumeSource::Csi(csi) if !is_azure_file(csi))),
};

static UNSUPPORTED: Rule = Rule {
    reason: Reason {
        code: "UnsupportedVolume",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "v2 does not document this type of volume",
        on_virtual_node: "v2 documents only Azure Files",
        fix: "use an emptyDir for scratch space, or Azure Files for shared data",
        can_be_allowed: true,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/StorageOptions.md",
    },
    reads: "spec.volumes[*]",
    check: |subject| {
        by_type(subject, |volume| match &volume.source {
            VolumeSource::Other(kind) => Some(kind),
            _ => None,
        })
    },
};

/// Volumes that the second generation may mount have their own rules, which the owner can accept. The owner cannot
/// accept this rule.
static TYPE_REJECTED: Rule = Rule {
    reason: Reason {
        code: "VolumeTypeRejected",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 mounts only in-line Azure Files, emptyDir, secret, configMap and projected volumes",
        on_virtual_node: "the connector fails to create the volume, so the pod stays bound and never runs",
        fix: "use an emptyDir for scratch space, or in-line Azure Files for shared data (azureFile, or file.csi.azure.com with volumeAttributes secretName and shareName)",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (getVolumes, getAzureFileCSI)",
    },
    reads: "spec.volumes[*], spec.volumes[*].csi.{driver,volumeAttributes[secretName, shareName]}",
    check: |subject| {
        by_type(subject, |volume| match &volume.source {
            VolumeSource::HostPath => Some("hostPath"),
            VolumeSource::PersistentVolumeClaim => Some("persistentVolumeClaim"),
            VolumeSource::Ephemeral => Some("ephemeral"),
            VolumeSource::Csi(csi) if !is_azure_file(csi) => Some(csi.driver.as_deref().unwrap_or("csi")),
            VolumeSource::Csi(csi) if !names_its_share(csi) => Some("csi without secretName and shareName"),
            VolumeSource::Other(kind) => Some(kind),
            _ => None,
        })
    },
};

static DOWNWARD_API: Rule = Rule {
    reason: Reason {
        code: "DownwardAPIVolume",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 cannot create a downwardAPI volume",
        on_virtual_node: "the connector fails to create the volume, so the pod stays bound and never runs",
        fix: "pass the fields as environment variables (metadata.name, namespace, uid, labels['x'], annotations['x'])",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go",
    },
    reads: "spec.volumes[*].downwardAPI",
    check: |subject| volumes(subject, |volume| matches!(volume.source, VolumeSource::DownwardApi)),
};

/// `identity.rs` has the rules about service account tokens.
static PROJECTED: Rule = Rule {
    reason: Reason {
        code: "ProjectedVolume",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 omits a source of the projected volume",
        on_virtual_node: "v1 creates only files that a secret or configMap source lists as items; others are missing, without a message",
        fix: "list the keys as items, or mount the secret and configMap as separate volumes",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (getVolumes, Projected)",
    },
    reads: "spec.volumes[*].projected.sources[*]",
    check: |subject| {
        let arrives = |source: &VolumeProjection<'_>| {
            let keys = [&source.secret, &source.config_map];
            source.service_account_token.is_some() || keys.into_iter().flatten().any(KeysProjection::has_items)
        };
        volumes(subject, |volume| {
            let VolumeSource::Projected(projected) = &volume.source else { return false };
            // The namespace file of the API server's volume is missing too. The rule about the token of this volume
            // covers it.
            let is_known = |source: &VolumeProjection<'_>| source.downward_api.is_some() && volume.is_api_access();
            !projected.sources.iter().flatten().all(|source| arrives(source) || is_known(source))
        })
    },
};

static ITEMS: Rule = Rule {
    reason: Reason {
        code: "VolumeItems",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 ignores the items of a secret or configMap volume",
        on_virtual_node: "each file has the name of its key, not the path from items",
        fix: "give each key the name of its file",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go, which does not read the field",
    },
    reads: "spec.volumes[*].{secret,configMap}.items",
    check: |subject| {
        volumes(subject, |volume| match &volume.source {
            VolumeSource::Secret(keys) | VolumeSource::ConfigMap(keys) => keys.has_items(),
            _ => false,
        })
    },
};

static OPTIONAL: Rule = Rule {
    reason: Reason {
        code: "OptionalVolume",
        severity: Severity::Warning,
        applies: Applies::V1,
        meaning: "v1 fails if an optional secret or configMap is missing or empty",
        on_virtual_node: "if the object is missing, v1 omits the volume, but the container still mounts it; Azure Container Instances answers 400, so the pod never runs",
        fix: "create the object with at least one key, or drop the volume",
        can_be_allowed: false,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go (getVolumes)",
    },
    reads: "spec.volumes[*].{secret,configMap}.optional",
    check: |subject| {
        volumes(subject, |volume| match &volume.source {
            VolumeSource::Secret(keys) | VolumeSource::ConfigMap(keys) => keys.optional == Some(true),
            _ => false,
        })
    },
};

static SUB_PATH: Rule = Rule {
    reason: Reason {
        code: "SubPath",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 ignores subPath and mountPropagation",
        on_virtual_node: "v1 mounts the whole volume, without a message: a file becomes a directory, and other files are visible",
        fix: "mount a separate volume instead of using subPath or subPathExpr, and drop mountPropagation",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci.go (getVolumeMounts)",
    },
    reads: "spec.{initContainers,containers}[*].volumeMounts[*].{subPath,subPathExpr,mountPropagation}",
    check: |subject| {
        let is_ignored = |mount: &VolumeMount<'_>| {
            let paths = [&mount.sub_path, &mount.sub_path_expr];
            paths.into_iter().flatten().any(|path| !path.is_empty())
                || mount.mount_propagation.as_deref().is_some_and(|propagation| !matches!(propagation, "" | "None"))
        };
        let containers = subject.pod.all_containers();
        let containers = containers.filter(|c| c.volume_mounts.iter().flatten().any(is_ignored));
        at_fault("container", containers.map(Container::display_name))
    },
};

static TOO_MANY: Rule = Rule {
    reason: Reason {
        code: "TooManyVolumes",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a container group has at most 20 volumes",
        on_virtual_node: "Azure Container Instances refuses the container group; for v2 this is likely, but not documented",
        fix: "merge volumes, such as several configMaps into one",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md",
    },
    reads: "spec.volumes",
    check: |subject| {
        let count = subject.pod.volumes().len();
        (count > MAX_VOLUMES).then(|| format!("{count} volumes"))
    },
};

/// Kubernetes itself enforces the rest of the naming rule: at most 63 lower-case letters, digits and hyphens.
static NAME: Rule = Rule {
    reason: Reason {
        code: "VolumeName",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "Azure requires volume names of at least 5 characters, without --",
        on_virtual_node: "the documentation says that Azure Container Instances refuses the name, so that the pod stays bound and never runs",
        fix: "use a longer name for the volume, such as scratch instead of tmp",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-troubleshooting.md; virtual-kubelet/azure-aci pkg/provider/aci_volumes.go",
    },
    reads: "spec.volumes[*].name",
    check: |subject| {
        volumes(subject, |volume| {
            volume.name.as_deref().is_some_and(|name| name.len() < SHORTEST_NAME || name.contains("--"))
        })
    },
};

fn volumes(subject: &Subject<'_>, matches: impl Fn(&Volume<'_>) -> bool) -> Option<String> {
    let matching = subject.pod.volumes().iter().filter(|volume| matches(volume));
    at_fault("volume", matching.map(Volume::display_name))
}

/// Formats the volumes that have a type: `volume a is nfs, volume b is rbd`.
fn by_type<'s>(subject: &Subject<'s>, kind: impl Fn(&'s Volume<'s>) -> Option<&'s str>) -> Option<String> {
    let volumes = subject.pod.volumes().iter();
    let named = volumes.filter_map(|volume| Some(format!("volume {} is {}", volume.display_name(), kind(volume)?)));
    join(", ", named)
}

fn is_azure_file(csi: &CsiVolume<'_>) -> bool {
    csi.driver.as_deref() == Some(AZURE_FILE)
}

/// Returns whether the volume names the share that the first generation mounts. The second generation can also
/// provision a share.
fn names_its_share(csi: &CsiVolume<'_>) -> bool {
    let says = |attributes: &StringMap<'_>, key| attributes.get(key).is_some_and(|value| !value.is_empty());
    csi.volume_attributes.as_ref().is_some_and(|a| says(a, "secretName") && says(a, "shareName"))
}
