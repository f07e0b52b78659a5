//! Volumes. The first generation translates each into a volume of Azure Container Instances, or fails to.

use super::{Applies, Reason, Rule, Severity, Subject, at_fault};
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

/// The one driver of in-line CSI volumes that virtual nodes have.
const AZURE_FILE: &str = "file.csi.azure.com";
const MOST_VOLUMES: usize = 20;
const SHORTEST_NAME: usize = 5;

static HOST_PATH: Rule = Rule {
    reason: Reason {
        code: "HostPathVolume",
        severity: Severity::Refusal,
        applies: Applies::V2,
        meaning: "a hostPath volume promises the node's own disk",
        on_virtual_node: "the path lies inside the pod's own utility VM, so nothing of a host is there",
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
        meaning: "v2 mounts no claims but those of Azure Files",
        on_virtual_node: "only Azure Files can be mounted, disks and blobs cannot",
        fix: "allow it if the claim's storage class is one of Azure Files (provisioner file.csi.azure.com)",
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
        meaning: "v2 mounts no claims but those of Azure Files",
        on_virtual_node: "only Azure Files can be mounted, disks and blobs cannot",
        fix: "use an emptyDir, or allow it if its storage class is one of Azure Files",
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
        on_virtual_node: "only file.csi.azure.com exists there; anything else fails to mount and the pod never runs",
        fix: "mount Azure Files by file.csi.azure.com; read secrets by workload identity in place of secrets-store",
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
        meaning: "v2 is not known to mount this type of volume",
        on_virtual_node: "only Azure Files is documented",
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

/// What the second generation may mount has rules of its own, which can be allowed. Here an owner's word changes nothing.
static TYPE_REJECTED: Rule = Rule {
    reason: Reason {
        code: "VolumeTypeRejected",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 mounts Azure Files in line, emptyDir, secret, configMap and projected volumes only",
        on_virtual_node: "the connector fails to create the volume, and the pod stays bound without ever running",
        fix: "use an emptyDir for scratch space; for shared data Azure Files in line, by azureFile or by file.csi.azure.com with volumeAttributes secretName and shareName",
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
        on_virtual_node: "the connector fails to create it, and the pod stays bound without ever running",
        fix: "pass the fields as environment variables (metadata.name, namespace, uid, labels['x'], annotations['x'])",
        can_be_allowed: true,
        source: "virtual-kubelet/azure-aci pkg/provider/aci_volumes.go",
    },
    reads: "spec.volumes[*].downwardAPI",
    check: |subject| volumes(subject, |volume| matches!(volume.source, VolumeSource::DownwardApi)),
};

/// The token of a service account is the matter of `identity.rs`.
static PROJECTED: Rule = Rule {
    reason: Reason {
        code: "ProjectedVolume",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "v1 leaves out a source of the projected volume",
        on_virtual_node: "only the keys that a secret or configMap source names as items are there; without items, and from downwardAPI or clusterTrustBundle, there is no file, and no message",
        fix: "list the keys as items, or mount secret and configMap as volumes of their own",
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
            // That the API server's volume lacks the namespace's file is said with its token.
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
        on_virtual_node: "every key is there under its own name, none under the path that items give it",
        fix: "name the keys as the files are to be called, or use a projected volume if the paths are the keys",
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
        meaning: "v1 creates no group where an optional secret or configMap is missing or empty",
        on_virtual_node: "if it is there all is well; else the volume is left out but its mount is not, Azure Container Instances answers 400, and the pod stays bound without ever running",
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
        on_virtual_node: "the whole volume is mounted in place of the part, without a message: a file becomes a directory, and what else is in the volume shows",
        fix: "mount a volume of its own in place of subPath and subPathExpr; drop mountPropagation",
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
        on_virtual_node: "Azure Container Instances refuses to create the container group; that v2 is bound by it is likely, not documented",
        fix: "join volumes, such as several configMaps in one",
        can_be_allowed: true,
        source: "MicrosoftDocs/azure-compute-docs articles/container-instances/container-instances-resource-and-quota-limits.md",
    },
    reads: "spec.volumes",
    check: |subject| {
        let count = subject.pod.volumes().len();
        (count > MOST_VOLUMES).then(|| format!("{count} volumes"))
    },
};

/// The other demands of the naming rule, small letters, digits, hyphens and at most 63 of them, are those of Kubernetes.
static NAME: Rule = Rule {
    reason: Reason {
        code: "VolumeName",
        severity: Severity::Refusal,
        applies: Applies::V1,
        meaning: "Azure wants volume names of 5 characters or more, without --",
        on_virtual_node: "the connector sends the name as it is, and by its documentation Azure Container Instances refuses the container group; the pod stays bound without ever running",
        fix: "give the volume a longer name, such as scratch for tmp",
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

fn volumes(subject: &Subject<'_>, is_at_fault: impl Fn(&Volume<'_>) -> bool) -> Option<String> {
    let at_faults = subject.pod.volumes().iter().filter(|volume| is_at_fault(volume));
    at_fault("volume", at_faults.map(Volume::display_name))
}

/// `volume a is nfs, volume b is rbd`: the volumes for which there is a type to name.
fn by_type<'s>(subject: &Subject<'s>, kind: impl Fn(&'s Volume<'s>) -> Option<&'s str>) -> Option<String> {
    let volumes = subject.pod.volumes().iter();
    let named = volumes.filter_map(|volume| Some(format!("volume {} is {}", volume.display_name(), kind(volume)?)));
    named.reduce(|all, one| format!("{all}, {one}"))
}

fn is_azure_file(csi: &CsiVolume<'_>) -> bool {
    csi.driver.as_deref() == Some(AZURE_FILE)
}

/// What the first generation mounts a share by; the second can also provision one.
fn names_its_share(csi: &CsiVolume<'_>) -> bool {
    let says = |attributes: &StringMap<'_>, key| attributes.get(key).is_some_and(|value| !value.is_empty());
    csi.volume_attributes.as_ref().is_some_and(|a| says(a, "secretName") && says(a, "shareName"))
}
