//! The SpillwayConfiguration file, and how a pod's settings follow from it.
//!
//! Two stages: [`mod@file`] is what a person wrote, read strictly and with every value optional; [`Configuration`] is what the
//! program needs, with the defaults filled in. [`Configuration::settings`] then applies the precedence
//! pod > namespace > profile > file, and remembers where each value came from.

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
pub use settings::{IgnoredOverride, Origin, Overrides, PodSettings, Settings, Sourced};
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

/// The configuration in force: the file's values over the built-in defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    api_version: file::ApiVersion,
    kind: file::Kind,
    /// All but the label of workload identity, which stands with the rest of its section.
    #[serde(flatten)]
    defaults: file::Overridable,
    /// Which nodes are virtual nodes and how pods get onto them.
    pub virtual_nodes: VirtualNodes,
    /// How fast pods are let onto virtual nodes late.
    pub late_rate: LateRate,
    /// When a ReplicaSet scales in.
    pub scale_in: ScaleIn,
    /// What closes virtual nodes when pods do not start there.
    pub breaker: Breaker,
    /// Pods that the webhook should have seen and has not.
    pub missed: Missed,
    /// Workload identity.
    pub identity: Identity,
    /// The webhook's serving certificate.
    pub certificates: Certificates,
    /// What is logged.
    pub logging: file::Logging,
    overrides: OverridePolicy,
    profiles: BTreeMap<String, file::Overridable>,
}

/// How fast pods are let onto virtual nodes late, in pods a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LateRate {
    /// In all.
    pub total: NonZeroU32,
    /// Of one namespace.
    pub per_namespace: NonZeroU32,
}

impl From<file::LateRate> for LateRate {
    fn from(file::LateRate { total, per_namespace }: file::LateRate) -> Self {
        const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
        const TWENTY: NonZeroU32 = NonZeroU32::new(20).unwrap();
        Self { total: total.unwrap_or(TWENTY), per_namespace: per_namespace.unwrap_or(TEN) }
    }
}

/// When a ReplicaSet scales in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleIn {
    /// The deletion cost of pods on virtual nodes that have none of their own; 0 for none.
    pub deletion_cost: i32,
}

/// What closes virtual nodes when pods do not start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// How many pods must have failed to start at the same time; 0 for never.
    pub failures: u32,
}

/// Pods that the webhook should have seen and has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// Whether those that run already are evicted.
    pub evict: bool,
}

/// The webhook's serving certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificates {
    /// Where it comes from.
    pub source: CertificateSource,
    /// Where `tls.crt` and `tls.key` are, unless it is self-managed.
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
    /// The file's own level of a setting that profiles, namespaces and pods can override.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<IdentityLabel>,
    /// Whether the controller checks workload identity.
    pub enabled: bool,
    /// The namespaces that are checked; all if there are none.
    pub namespaces: BTreeSet<String>,
    /// The cloud that the cluster is in.
    pub cloud: Cloud,
    /// Files of federated credentials.
    pub credential_files: Vec<PathBuf>,
    /// What is asked of Azure Resource Manager.
    pub resource_manager: ResourceManager,
}

impl Identity {
    /// Whether what is in this namespace is checked.
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

/// What is asked of Azure Resource Manager; nothing if it has neither subscriptions nor identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceManager {
    /// Subscriptions whose user-assigned managed identities are listed.
    pub subscriptions: BTreeSet<String>,
    /// Client id, in lower case, → resource id of a managed identity.
    pub identities: BTreeMap<String, ResourceId>,
    /// The version of the API of Microsoft.ManagedIdentity.
    pub api_version: String,
    /// Where it answers, without a slash at the end.
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

    /// How often it is asked.
    pub fn refresh(&self) -> Duration {
        self.refresh.0
    }
}

/// Which nodes are virtual nodes and how pods get onto them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodes {
    /// The label that virtual nodes carry and no other node does.
    pub selector: Selector,
    /// What a pod needs to be allowed onto them.
    pub toleration: Toleration,
    /// Which of them a pod must be fit for.
    pub generation: GenerationSetting,
    /// Whether the controller keeps the taint of the last resort on them.
    pub last_resort_taint: bool,
    /// How many pods may be on them in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<u32>,
    /// Whether those are cordoned whose own pod is gone.
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
    /// The generations that a pod must be fit for where nothing is known of the cluster.
    pub fn generations(&self) -> Generations {
        use crate::eligibility::Generation::{V1, V2};
        match self.generation {
            GenerationSetting::Auto => Generations::BOTH,
            GenerationSetting::V1 => Generations::only(V1),
            GenerationSetting::V2 => Generations::only(V2),
        }
    }

    /// The toleration, field by field as a pod carries it.
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

/// Who may override what by annotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct OverridePolicy {
    namespace: Vec<Override>,
    pod: Vec<Override>,
}

impl From<file::OverridePolicy> for OverridePolicy {
    fn from(file::OverridePolicy { namespace, pod }: file::OverridePolicy) -> Self {
        // What a team decides about its own namespace is its own affair; that a pod reaches for more is for the team to say.
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
    /// The names of all profiles, the shipped ones included, in order.
    pub fn profile_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// The same configuration with every default written out, for people to read.
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
