//! The shape of the SpillwayConfiguration file.
//!
//! Doc comments here are the descriptions in the JSON schema (`spillway config schema`). Values are checked while they are
//! read, so that an error knows its line.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    schema::without_null,
    values::{
        AllowedReason, AzureApiVersion, ClientId, Endpoint, NamespaceName, ProfileName, Refresh, Selector,
        SubscriptionId, Toleration, Wait,
    },
    words::{CertificateSource, Dns, GenerationSetting, IdentityLabel, KubeProxy, LogLevel, Mode, Override},
};
use crate::azure::{Cloud, ResourceId};

/// Configuration of Spillway. An empty file means the defaults.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct SpillwayConfiguration {
    /// Always `spillway.dev/v1alpha1`.
    pub api_version: ApiVersion,
    /// Always `SpillwayConfiguration`.
    pub kind: Kind,
    /// What happens to pods of namespaces that opted in. Default: `prefer`.
    pub mode: Option<Mode>,
    /// Which nodes are virtual nodes and how pods get onto them.
    pub virtual_nodes: Option<VirtualNodes>,
    /// The network of pods on virtual nodes.
    pub network: Option<Network>,
    /// Workload identity.
    pub identity: Option<Identity>,
    /// Mode `late`.
    pub late: Option<Late>,
    /// How many pods of one namespace may be on virtual nodes. At the cap, modes `late` and `bridge` let no more of them overflow; pods
    /// that tolerate virtual nodes by themselves, or from their creation on as in mode `prefer`, are not held back. Default: no cap.
    pub max_pods: Option<u32>,
    /// Which pods are fit for virtual nodes.
    pub eligibility: Option<Eligibility>,
    /// How fast pods are let onto virtual nodes that have waited for a VM in vain.
    pub late_rate: Option<LateRate>,
    /// When a ReplicaSet scales in.
    pub scale_in: Option<ScaleIn>,
    /// What closes virtual nodes when pods do not start there.
    pub breaker: Option<Breaker>,
    /// Pods that the webhook should have seen and has not.
    pub missed: Option<Missed>,
    /// Who may override what by annotation.
    pub overrides: Option<OverridePolicy>,
    /// The webhook's serving certificate.
    pub certificates: Option<Certificates>,
    /// What is logged.
    pub logging: Option<Logging>,
    /// What a namespace names in its label `spillway.dev/burst`. Each overrides the defaults above. `enabled`,
    /// `high-scale`, which opts out of kube-proxy, and `autoscaled`, of mode `late`, exist even if they are not listed; what is
    /// listed under their names is laid over them, field by field. None can be named `disabled`: that is the label's word for a namespace that is out.
    #[schemars(extend("propertyNames" = {"not": {"const": super::DISABLED}}))]
    pub profiles: Option<BTreeMap<ProfileName, Option<Overridable>>>,
}

/// Version of the file's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only version so far.
    #[default]
    #[serde(rename = "spillway.dev/v1alpha1")]
    V1Alpha1,
}

/// Kind of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// The only kind.
    #[default]
    SpillwayConfiguration,
}

/// The settings that a profile can override.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Overridable {
    /// What happens to pods of namespaces with this profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The network of pods on virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Workload identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ProfileIdentity>,
    /// Mode `late`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// How many pods of one namespace may be on virtual nodes; see above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<u32>,
    /// Which pods are fit for virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eligibility: Option<Eligibility>,
}

impl Overridable {
    /// These settings laid over others, field by field: what is not said here is as it was below.
    pub(super) fn over(self, below: Self) -> Self {
        let Self { mode, network, identity, late, max_pods, eligibility } = self;
        Self {
            mode: mode.or(below.mode),
            network: merged(network, below.network, |above, below| Network {
                kube_proxy: above.kube_proxy.or(below.kube_proxy),
                dns: above.dns.or(below.dns),
            }),
            identity: merged(identity, below.identity, |above, below| ProfileIdentity {
                label: above.label.or(below.label),
            }),
            late: merged(late, below.late, |above, below| Late {
                after: above.after.or(below.after),
                max: above.max.or(below.max),
            }),
            max_pods: max_pods.or(below.max_pods),
            eligibility: merged(eligibility, below.eligibility, |above, below| Eligibility {
                allow: above.allow.or(below.allow),
            }),
        }
    }
}

fn merged<T>(above: Option<T>, below: Option<T>, merge: impl FnOnce(T, T) -> T) -> Option<T> {
    match (above, below) {
        (Some(above), Some(below)) => Some(merge(above, below)),
        (above, below) => above.or(below),
    }
}

/// Mode `late`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Late {
    /// How long a pod must stay unschedulable before it may overflow, such as `90s`, `3m` or `1h30m`. Default: `180s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Wait>,
    /// How long it waits at the most while a VM seems to be on its way: while it has a nominated node, or an autoscaler has said that it
    /// adds one. Less than `after` means no more than `after`. Default: `600s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Wait>,
}

/// How fast pods are let onto virtual nodes that have waited for a VM in vain, in pods a second.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct LateRate {
    /// In all. Default: 20.
    pub total: Option<NonZeroU32>,
    /// Of one namespace. Default: 10.
    pub per_namespace: Option<NonZeroU32>,
}

/// When a ReplicaSet scales in.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ScaleIn {
    /// The annotation `controller.kubernetes.io/pod-deletion-cost` of pods on virtual nodes that have none of their own: those of the
    /// lowest cost go first. Orders the pods of ReplicaSets, and so of Deployments, only. 0 leaves them alone. Default: -100.
    pub deletion_cost: Option<i32>,
}

/// What closes virtual nodes when pods do not start there.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Breaker {
    /// How many pods on virtual nodes must have failed to start at the same time. 0 switches it off. Default: 10.
    pub failures: Option<u32>,
}

/// Pods that the webhook should have seen and has not.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Missed {
    /// Whether those that run already are evicted, one per owner and hour, to be created anew. Default: `false`.
    pub evict: Option<bool>,
}

/// Which pods are fit for virtual nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Eligibility {
    /// Reasons, by name, that do not keep a pod on VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<AllowedReason>>,
}

/// Who may override what by annotation. Whatever is not listed is ignored and reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct OverridePolicy {
    /// What namespaces may override. Default: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Vec<Override>>,
    /// What pods may override. Default: everything but `require` and `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Vec<Override>>,
}

/// Which nodes are virtual nodes and how pods get onto them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct VirtualNodes {
    /// The label that virtual nodes carry and no other node does, as `KEY=VALUE`. Default: `type=virtual-kubelet`.
    pub selector: Option<Selector>,
    /// What a pod needs to be allowed onto them.
    pub toleration: Option<Toleration>,
    /// Which virtual nodes a pod must be fit for, beside those that the cluster has and the pod could land on. Default: `auto`.
    pub generation: Option<GenerationSetting>,
    /// Whether the controller keeps the taint `spillway.dev/last-resort:PreferNoSchedule` on them: without it, pods that prefer VMs
    /// go to virtual nodes while VMs have room. Default: `true`.
    pub last_resort_taint: Option<bool>,
    /// How many pods may be on them in all. At the cap they get the taint `spillway.dev/full:NoSchedule`, which keeps away every pod that
    /// does not tolerate it, whether or not it came through Spillway. Default: no cap.
    pub max_pods: Option<u32>,
    /// Whether a virtual node is cordoned whose pod is gone that ran it: it still looks ready, and pods that go there never start.
    /// Default: `false`.
    pub cordon_ghosts: Option<bool>,
}

/// The network of pods on virtual nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Network {
    /// Whether pods on virtual nodes get a kube-proxy of their own. Default: `keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kube_proxy: Option<KubeProxy>,
    /// What happens to cluster DNS when kube-proxy is opted out of. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// Workload identity, as a profile can set it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ProfileIdentity {
    /// Whether pods get the label that Azure Workload Identity asks for. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<IdentityLabel>,
}

/// Workload identity: the label that pods get, and the checks that the controller makes. They only read: in the cluster, and, if
/// `resourceManager` names anything, in Azure.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Identity {
    /// Whether pods get the label that Azure Workload Identity asks for. Default: `auto`.
    pub label: Option<IdentityLabel>,
    /// Whether the controller checks workload identity. Does not concern the label. Default: `true`.
    pub enabled: Option<bool>,
    /// The namespaces whose service accounts and pods are checked. Default: all.
    pub namespaces: Option<BTreeSet<NamespaceName>>,
    /// The cloud that the cluster is in. Default: `public`.
    pub cloud: Option<Cloud>,
    /// Files of federated credentials as `az identity federated-credential list` prints them, in the controller's file system.
    pub credential_files: Option<Vec<PathBuf>>,
    /// What is asked of Azure Resource Manager. Without `subscriptions` and `identities` it is not asked.
    pub resource_manager: Option<ResourceManager>,
}

/// What is asked of Azure Resource Manager.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ResourceManager {
    /// Subscriptions, by id, whose user-assigned managed identities are listed.
    pub subscriptions: Option<BTreeSet<SubscriptionId>>,
    /// Client id → resource id of a managed identity, so that nothing need be listed.
    pub identities: Option<BTreeMap<ClientId, ResourceId>>,
    /// The version of the API of Microsoft.ManagedIdentity. Default: `2024-11-30`.
    pub api_version: Option<AzureApiVersion>,
    /// Where it answers, with https. Default: that of the cloud, such as `https://management.azure.com`.
    pub endpoint: Option<Endpoint>,
    /// How often it is asked, from `5m` to `1h`. Default: `10m`.
    pub refresh: Option<Refresh>,
}

/// The webhook's serving certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Certificates {
    /// Where it comes from. Default: `self-managed`.
    pub source: Option<CertificateSource>,
    /// Where `tls.crt` and `tls.key` are, unless it is self-managed. Default: `/etc/spillway-tls`.
    pub directory: Option<PathBuf>,
}

/// What is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Logging {
    /// The least severe messages that are logged. A change takes effect at once. Default: what `--log-level` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
}

/// The profiles that exist in every installation.
pub(super) fn shipped_profiles() -> BTreeMap<String, Overridable> {
    let opt_out = Network { kube_proxy: Some(KubeProxy::OptOut), dns: None };
    BTreeMap::from([
        ("enabled".to_owned(), Overridable::default()),
        ("high-scale".to_owned(), Overridable { network: Some(opt_out), ..Overridable::default() }),
        ("autoscaled".to_owned(), Overridable { mode: Some(Mode::Late), ..Overridable::default() }),
    ])
}
