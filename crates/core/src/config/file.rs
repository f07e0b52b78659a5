//! Model of the SpillwayConfiguration file.
//!
//! Doc comments here are the descriptions in the JSON schema (`spillway config schema`). Values are checked while they
//! are read, so that an error has a line.

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
    /// Mode of pods in opted-in namespaces. Default: `prefer`.
    pub mode: Option<Mode>,
    /// Virtual nodes, and the access of pods to them.
    pub virtual_nodes: Option<VirtualNodes>,
    /// Network of pods on virtual nodes.
    pub network: Option<Network>,
    /// Workload identity.
    pub identity: Option<Identity>,
    /// Settings of mode `late`.
    pub late: Option<Late>,
    /// Maximum number of pods of one namespace on virtual nodes. At the cap, no more pods of modes `late` and `bridge`
    /// overflow. The cap does not stop other pods that tolerate virtual nodes, such as pods of mode `prefer`. Default:
    /// no cap.
    pub max_pods: Option<u32>,
    /// Eligibility of pods for virtual nodes.
    pub eligibility: Option<Eligibility>,
    /// Rate limit for late overflow.
    pub late_rate: Option<LateRate>,
    /// Scale-in of ReplicaSets.
    pub scale_in: Option<ScaleIn>,
    /// Breaker, which closes virtual nodes if pods fail to start there.
    pub breaker: Option<Breaker>,
    /// Missed pods, which were created without Spillway although the webhook applies to them.
    pub missed: Option<Missed>,
    /// Permissions for overrides by annotation.
    pub overrides: Option<OverridePolicy>,
    /// Serving certificate of the webhook.
    pub certificates: Option<Certificates>,
    /// Logging.
    pub logging: Option<Logging>,
    /// Profiles. A namespace names one in its label `spillway.dev/burst`. A profile overrides the settings above. The
    /// profiles `enabled`, `high-scale` (opts out of kube-proxy) and `autoscaled` (mode `late`) always exist. If the
    /// file lists one of them, its fields override the built-in ones. No profile can have the name `disabled`, because
    /// this label value opts a namespace out.
    #[schemars(extend("propertyNames" = {"not": {"const": super::DISABLED}}))]
    pub profiles: Option<BTreeMap<ProfileName, Option<Overridable>>>,
}

/// Version of the file format.
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

/// Settings that a profile can override.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Overridable {
    /// Mode of pods in namespaces with this profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Network of pods on virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Workload identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ProfileIdentity>,
    /// Settings of mode `late`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// Maximum number of pods of one namespace on virtual nodes. Overrides `maxPods` of the file. With a maximum, mode `prefer`
    /// is mode `late` without a delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<u32>,
    /// Eligibility of pods for virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eligibility: Option<Eligibility>,
}

impl Overridable {
    /// Merges these settings with the settings below them. Fields of `self` take precedence.
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

/// Settings of mode `late`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Late {
    /// Time that a pod must be unschedulable before it may overflow, such as `90s`, `3m` or `1h30m`. Default: `180s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Wait>,
    /// Maximum wait during a scale-up for the pod. The controller assumes a scale-up if the pod has a nominated node, if
    /// a node autoscaler has announced a VM for it, or if a new VM accepts it. A value less than `after` counts as
    /// `after`. Default: `600s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Wait>,
}

/// Rate limit for late overflow, in pods per second.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct LateRate {
    /// Limit for the cluster. Default: 20.
    pub total: Option<NonZeroU32>,
    /// Limit for one namespace. Default: 10.
    pub per_namespace: Option<NonZeroU32>,
}

/// Scale-in of ReplicaSets.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ScaleIn {
    /// Annotation `controller.kubernetes.io/pod-deletion-cost` for pods on virtual nodes that do not set it themselves.
    /// A ReplicaSet removes the pods with the lowest cost first. The cost affects only pods of ReplicaSets, and so of
    /// Deployments. 0 sets no annotation. Default: -100.
    pub deletion_cost: Option<i32>,
}

/// Breaker, which closes virtual nodes if pods fail to start there.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Breaker {
    /// Number of pods on virtual nodes that must fail to start at the same time. 0 disables the breaker. Default: 10. Each
    /// namespace counts for at most half, unless Azure reports a lack of capacity or quota.
    pub failures: Option<u32>,
}

/// Missed pods, which were created without Spillway although the webhook applies to them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Missed {
    /// `true` if the controller evicts missed pods that already run, one per owner and hour, so that their owners
    /// recreate them. Default: `false`.
    pub evict: Option<bool>,
}

/// Eligibility of pods for virtual nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Eligibility {
    /// Names of reasons that do not keep a pod on VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<AllowedReason>>,
}

/// Permissions for overrides by annotation. Spillway ignores and reports overrides that are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct OverridePolicy {
    /// Overrides that namespaces may set. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Vec<Override>>,
    /// Overrides that pods may set. Default: all except `require` and `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Vec<Override>>,
}

/// Virtual nodes, and the access of pods to them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct VirtualNodes {
    /// Label that all virtual nodes have and no other node has, as `KEY=VALUE`. Default: `type=virtual-kubelet`.
    pub selector: Option<Selector>,
    /// Toleration that lets a pod run on virtual nodes.
    pub toleration: Option<Toleration>,
    /// Generation that a pod must be eligible for. The pod must also be eligible for the virtual nodes in the cluster that
    /// it could run on. Default: `auto`.
    pub generation: Option<GenerationSetting>,
    /// `true` if the controller sets the taint `spillway.dev/last-resort:PreferNoSchedule` on virtual nodes. Without
    /// it, pods that prefer VMs may run on virtual nodes while VMs have room. Default: `true`.
    pub last_resort_taint: Option<bool>,
    /// Maximum number of pods on all virtual nodes. At the cap, virtual nodes get the taint
    /// `spillway.dev/full:NoSchedule`. The taint affects all pods that do not tolerate it, including pods that Spillway
    /// has not decided on. Default: no cap.
    pub max_pods: Option<u32>,
    /// `true` if the controller cordons a virtual node whose own pod is gone. Such a node still looks ready, but pods
    /// never start there. Default: `false`.
    pub cordon_ghosts: Option<bool>,
}

/// Network of pods on virtual nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Network {
    /// kube-proxy of pods on virtual nodes. Default: `keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kube_proxy: Option<KubeProxy>,
    /// Cluster DNS of pods that opt out of kube-proxy. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// Workload identity settings of a profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ProfileIdentity {
    /// Label that Azure Workload Identity requires on pods. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<IdentityLabel>,
}

/// Workload identity: the label on pods, and the checks by the controller. The checks only read the cluster and, if
/// `resourceManager` has subscriptions or identities, Azure.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Identity {
    /// Label that Azure Workload Identity requires on pods. Default: `auto`.
    pub label: Option<IdentityLabel>,
    /// `true` if the controller checks workload identity. Does not affect the label. Default: `true`.
    pub enabled: Option<bool>,
    /// Namespaces whose service accounts and pods the controller checks. Default: all.
    pub namespaces: Option<BTreeSet<NamespaceName>>,
    /// Azure cloud of the cluster. Default: `public`.
    pub cloud: Option<Cloud>,
    /// Files with federated credentials from `az identity federated-credential list`, in the controller's file system.
    pub credential_files: Option<Vec<PathBuf>>,
    /// Access to Azure Resource Manager. Without `subscriptions` and `identities`, the controller does not call it.
    pub resource_manager: Option<ResourceManager>,
}

/// Access to Azure Resource Manager.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct ResourceManager {
    /// IDs of subscriptions whose user-assigned managed identities the controller lists.
    pub subscriptions: Option<BTreeSet<SubscriptionId>>,
    /// Resource IDs of managed identities by client ID. The controller need not list these identities.
    pub identities: Option<BTreeMap<ClientId, ResourceId>>,
    /// API version of Microsoft.ManagedIdentity. Default: `2024-11-30`.
    pub api_version: Option<AzureApiVersion>,
    /// Endpoint, with https. Default: the endpoint of the cloud, such as `https://management.azure.com`.
    pub endpoint: Option<Endpoint>,
    /// Interval between reads, from `5m` to `1h`. Default: `10m`.
    pub refresh: Option<Refresh>,
}

/// Serving certificate of the webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Certificates {
    /// Source of the certificate. Default: `self-managed`.
    pub source: Option<CertificateSource>,
    /// Directory of `tls.crt` and `tls.key`, unless the certificate is self-managed. Default: `/etc/spillway-tls`.
    pub directory: Option<PathBuf>,
}

/// Logging.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Logging {
    /// Minimum severity of log messages. A change takes effect immediately. Default: the value of `--log-level`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
}

/// Returns the profiles that exist in every installation.
pub(super) fn shipped_profiles() -> BTreeMap<String, Overridable> {
    let opt_out = Network { kube_proxy: Some(KubeProxy::OptOut), dns: None };
    BTreeMap::from([
        ("enabled".to_owned(), Overridable::default()),
        ("high-scale".to_owned(), Overridable { network: Some(opt_out), ..Overridable::default() }),
        ("autoscaled".to_owned(), Overridable { mode: Some(Mode::Late), ..Overridable::default() }),
    ])
}
