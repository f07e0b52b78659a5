//! The SpillwayConfiguration file, and the settings of a pod.
//!
//! Loading has two stages. [`mod@file`] has the values of the file, all of them optional. [`Configuration`] has all
//! values, with the defaults filled in. [`Configuration::settings`] then applies the precedence pod > namespace >
//! profile > file, and records the origin of each value.

pub mod file;
mod load;
mod schema;
mod settings;
mod values;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

pub use load::{ConfigError, describe_yaml, parse};
use serde::Serialize;
pub use settings::{IgnoredOverride, MAX_OVERRIDE_BYTES, Origin, Overrides, PodSettings, Settings, Sourced};
pub use values::{Selector, Toleration, Wait};
pub use words::{
    CertificateSource, Dns, GenerationSetting, IdentityLabel, KubeProxy, LogLevel, Mode, Operator, Override,
};

pub use crate::{
    azure::Cloud,
    keys::{BURST_LABEL, DISABLED, FULL_TAINT, LAST_RESORT_TAINT, PREFIX},
    suggestions::did_you_mean,
};
use crate::{azure::ResourceId, eligibility::Generations, pod::TolerationFields};

/// Configuration in force: the file's values over the built-in defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    api_version: file::ApiVersion,
    kind: file::Kind,
    /// All settings except the label of workload identity, which is in `identity`.
    #[serde(flatten)]
    defaults: file::Overridable,
    /// Virtual nodes, and the access of pods to them.
    pub virtual_nodes: VirtualNodes,
    /// Rate limit for late overflow.
    pub late_rate: LateRate,
    /// Scale-in of ReplicaSets.
    pub scale_in: ScaleIn,
    /// Breaker, which closes virtual nodes if pods fail to start there.
    pub breaker: Breaker,
    /// Missed pods, which were created without Spillway although the webhook applies to them.
    pub missed: Missed,
    /// Workload identity.
    pub identity: Identity,
    /// Serving certificate of the webhook.
    pub certificates: Certificates,
    /// Logging.
    pub logging: file::Logging,
    overrides: OverridePolicy,
    profiles: BTreeMap<String, file::Overridable>,
}

/// Rate limit for late overflow, in pods per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LateRate {
    /// Limit for the cluster.
    pub total: NonZeroU32,
    /// Limit for one namespace.
    pub per_namespace: NonZeroU32,
}

impl From<file::LateRate> for LateRate {
    fn from(file::LateRate { total, per_namespace }: file::LateRate) -> Self {
        const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
        const TWENTY: NonZeroU32 = NonZeroU32::new(20).unwrap();
        Self { total: total.unwrap_or(TWENTY), per_namespace: per_namespace.unwrap_or(TEN) }
    }
}

/// Scale-in of ReplicaSets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleIn {
    /// Deletion cost of pods on virtual nodes that do not set their own. 0 sets no cost.
    pub deletion_cost: i32,
}

/// Breaker, which closes virtual nodes if pods fail to start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// Number of pods that must fail to start at the same time. 0 disables the breaker.
    pub failures: u32,
}

/// Missed pods, which were created without Spillway although the webhook applies to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// `true` if the controller evicts missed pods that already run.
    pub evict: bool,
}

/// Serving certificate of the webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificates {
    /// Source of the certificate.
    pub source: CertificateSource,
    /// Directory of `tls.crt` and `tls.key`, unless the certificate is self-managed.
    pub directory: PathBuf,
}

impl From<file::Certificates> for Certificates {
    fn from(file::Certificates { source, directory }: file::Certificates) -> Self {
        Self {
            source: source.unwrap_or_default(),
            directory: directory.unwrap_or_else(|| PathBuf::from("/etc/spillway-tls")),
        }
    }
}

/// Workload identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The file's value of a setting that profiles, namespaces and pods can override.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<IdentityLabel>,
    /// `true` if the controller checks workload identity.
    pub enabled: bool,
    /// Namespaces that the controller checks. Empty means all.
    pub namespaces: BTreeSet<String>,
    /// Azure cloud of the cluster.
    pub cloud: Cloud,
    /// Files with federated credentials.
    pub credential_files: Vec<PathBuf>,
    /// Access to Azure Resource Manager.
    pub resource_manager: ResourceManager,
}

impl Identity {
    /// Returns whether the controller checks this namespace.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }
}

impl From<file::Identity> for Identity {
    fn from(file: file::Identity) -> Self {
        let file::Identity { label, enabled, namespaces, cloud, credential_files, resource_manager } = file;
        let cloud = cloud.unwrap_or_default();
        Self {
            label,
            enabled: enabled.unwrap_or(true),
            namespaces: namespaces.into_iter().flatten().map(String::from).collect(),
            cloud,
            credential_files: credential_files.unwrap_or_default(),
            resource_manager: ResourceManager::new(resource_manager.unwrap_or_default(), cloud),
        }
    }
}

/// Access to Azure Resource Manager. Without subscriptions and identities, the controller does not call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceManager {
    /// IDs of subscriptions whose user-assigned managed identities the controller lists.
    pub subscriptions: BTreeSet<String>,
    /// Resource IDs of managed identities by client ID in lower case.
    pub identities: BTreeMap<String, ResourceId>,
    /// API version of Microsoft.ManagedIdentity.
    pub api_version: String,
    /// Endpoint, without a slash at the end.
    pub endpoint: String,
    refresh: values::Refresh,
}

impl ResourceManager {
    fn new(file: file::ResourceManager, cloud: Cloud) -> Self {
        let file::ResourceManager { subscriptions, identities, api_version, endpoint, refresh } = file;
        let identities = identities.into_iter().flatten();
        Self {
            subscriptions: subscriptions.into_iter().flatten().map(String::from).collect(),
            identities: identities.map(|(id, resource)| (String::from(id).to_ascii_lowercase(), resource)).collect(),
            api_version: api_version.map_or_else(|| "2024-11-30".to_owned(), String::from),
            endpoint: endpoint.map_or_else(|| cloud.resource_manager().to_owned(), String::from),
            refresh: refresh.unwrap_or_default(),
        }
    }

    /// Returns the interval between reads.
    pub fn refresh(&self) -> Duration {
        self.refresh.0
    }
}

/// Virtual nodes, and the access of pods to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodes {
    /// Label that all virtual nodes have and no other node has.
    pub selector: Selector,
    /// Toleration that lets a pod run on virtual nodes.
    pub toleration: Toleration,
    /// Generation that a pod must be eligible for.
    pub generation: GenerationSetting,
    /// `true` if the controller sets the last-resort taint on virtual nodes.
    pub last_resort_taint: bool,
    /// Maximum number of pods on all virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<u32>,
    /// `true` if the controller cordons virtual nodes whose own pod is gone.
    pub cordon_ghosts: bool,
}

impl From<file::VirtualNodes> for VirtualNodes {
    fn from(file: file::VirtualNodes) -> Self {
        let file::VirtualNodes { selector, toleration, generation, last_resort_taint, max_pods, cordon_ghosts } = file;
        Self {
            selector: selector.unwrap_or_default(),
            toleration: toleration.unwrap_or_default(),
            generation: generation.unwrap_or_default(),
            last_resort_taint: last_resort_taint.unwrap_or(true),
            max_pods,
            cordon_ghosts: cordon_ghosts.unwrap_or(false),
        }
    }
}

impl VirtualNodes {
    /// Returns the generations that a pod must be eligible for if no virtual node is known.
    pub fn generations(&self) -> Generations {
        use crate::eligibility::Generation::{V1, V2};
        match self.generation {
            GenerationSetting::Auto => Generations::BOTH,
            GenerationSetting::V1 => Generations::only(V1),
            GenerationSetting::V2 => Generations::only(V2),
        }
    }

    /// Returns the toleration's fields as in a pod.
    pub fn toleration_fields(&self) -> TolerationFields<'_> {
        let Toleration { key, operator, value, effect } = &self.toleration;
        TolerationFields {
            key,
            operator: operator.as_str(),
            value: value.as_deref().unwrap_or_default(),
            effect: effect.as_str(),
        }
    }
}

/// Permissions for overrides by annotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct OverridePolicy {
    namespace: Vec<Override>,
    pod: Vec<Override>,
}

impl From<file::OverridePolicy> for OverridePolicy {
    fn from(file::OverridePolicy { namespace, pod }: file::OverridePolicy) -> Self {
        // A team decides for its own namespace. Its pods need the team's consent for `require` and `allow`.
        let of_pods = || Override::ALL.iter().copied().filter(|o| !matches!(o, Override::Require | Override::Allow));
        Self {
            namespace: namespace.unwrap_or_else(|| Override::ALL.to_vec()),
            pod: pod.unwrap_or_else(|| of_pods().collect()),
        }
    }
}

impl Default for Configuration {
    fn default() -> Self {
        file::SpillwayConfiguration::default().into()
    }
}

impl From<file::SpillwayConfiguration> for Configuration {
    fn from(file: file::SpillwayConfiguration) -> Self {
        let file::SpillwayConfiguration {
            api_version,
            kind,
            mode,
            virtual_nodes,
            network,
            identity,
            late,
            max_pods,
            eligibility,
            late_rate,
            scale_in,
            breaker,
            missed,
            overrides,
            certificates,
            logging,
            profiles,
        } = file;
        let mut all = file::shipped_profiles();
        for (name, profile) in profiles.unwrap_or_default() {
            let (name, profile) = (name.into(), profile.unwrap_or_default());
            let shipped = all.remove(&name).unwrap_or_default();
            all.insert(name, profile.over(shipped));
        }
        Self {
            api_version,
            kind,
            defaults: file::Overridable { mode, network, identity: None, late, max_pods, eligibility },
            virtual_nodes: virtual_nodes.unwrap_or_default().into(),
            late_rate: late_rate.unwrap_or_default().into(),
            scale_in: ScaleIn { deletion_cost: scale_in.unwrap_or_default().deletion_cost.unwrap_or(-100) },
            breaker: Breaker { failures: breaker.unwrap_or_default().failures.unwrap_or(10) },
            missed: Missed { evict: missed.unwrap_or_default().evict.unwrap_or(false) },
            identity: identity.unwrap_or_default().into(),
            certificates: certificates.unwrap_or_default().into(),
            logging: logging.unwrap_or_default(),
            overrides: overrides.unwrap_or_default().into(),
            profiles: all,
        }
    }
}

impl Configuration {
    /// Returns the names of all profiles, in order, with the built-in ones.
    pub fn profile_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// Returns the same configuration with all defaults written out, for output.
    #[must_use]
    pub fn with_defaults_shown(&self) -> Self {
        let settings = self.file_settings();
        let allowed = settings.allowed.iter().map(|allowed| values::AllowedReason(allowed.value));
        let defaults = file::Overridable {
            mode: Some(settings.mode.value),
            network: Some(file::Network { kube_proxy: Some(settings.kube_proxy.value), dns: Some(settings.dns.value) }),
            identity: None,
            late: Some(file::Late {
                after: Some(values::Wait(settings.late_after.value)),
                max: Some(values::Wait(settings.late_max)),
            }),
            max_pods: settings.max_pods,
            eligibility: Some(file::Eligibility { allow: Some(allowed.collect()) }),
        };
        let identity = Identity { label: Some(settings.identity_label.value), ..self.identity.clone() };
        Self { defaults, identity, ..self.clone() }
    }
}
