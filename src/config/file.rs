//! The shape of the SpillwayConfiguration file.
//!
//! Doc comments here are the descriptions in the JSON schema (`spillway config schema`). Values are checked while they are
//! read, so that an error knows its line.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    load::did_you_mean,
    words::{
        CertificateSource, Cloud, Dns, Effect, GenerationSetting, IdentityLabel, KubeProxy, LogLevel, Mode, Operator,
        Override,
    },
};
use crate::{
    eligibility::{self, Reason, Severity},
    identity::{azure::ResourceId, is_guid},
};

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
    /// Which pods are fit for virtual nodes.
    pub eligibility: Option<Eligibility>,
    /// Who may override what by annotation.
    pub overrides: Option<OverridePolicy>,
    /// The webhook's serving certificate.
    pub certificates: Option<Certificates>,
    /// What is logged.
    pub logging: Option<Logging>,
    /// What a namespace names in its label `spillway.dev/burst`. Each overrides the defaults above. `enabled` and
    /// `high-scale`, which opts out of kube-proxy, exist even if they are not listed; what is listed under their names
    /// is laid over them, field by field. None can be named `disabled`: that is the label's word for a namespace that is out.
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
    /// Which pods are fit for virtual nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eligibility: Option<Eligibility>,
}

impl Overridable {
    /// These settings laid over others, field by field: what is not said here is as it was below.
    pub(super) fn over(self, below: Self) -> Self {
        let Self { mode, network, identity, late, eligibility } = self;
        Self {
            mode: mode.or(below.mode),
            network: merged(network, below.network, |above, below| Network {
                kube_proxy: above.kube_proxy.or(below.kube_proxy),
                dns: above.dns.or(below.dns),
            }),
            identity: merged(identity, below.identity, |above, below| ProfileIdentity {
                label: above.label.or(below.label),
            }),
            late: merged(late, below.late, |above, below| Late { after: above.after.or(below.after) }),
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

/// Sections may be left empty in YAML, but a schema that says so turns every typo inside of them into "not valid under any
/// of the given schemas". So the schema does not say it.
fn without_null(schema: &mut schemars::Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) else { return };
    for property in properties.values_mut() {
        drop_null(property);
    }
}

fn drop_null(property: &mut serde_json::Value) {
    if let Some(types) = property.get_mut("type")
        && let [kind, null] = types.as_array().map(Vec::as_slice).unwrap_or_default()
        && null == "null"
    {
        *types = kind.clone();
    }
    if let Some(branches) = property.get("anyOf").and_then(|b| b.as_array()).cloned()
        && let [only, null] = branches.as_slice()
        && null["type"] == "null"
        && let (Some(property), Some(only)) = (property.as_object_mut(), only.as_object())
    {
        property.remove("anyOf");
        property.extend(only.clone());
    }
    if let Some(values) = property.get_mut("additionalProperties") {
        drop_null(values);
    }
}

/// The profiles that exist in every installation.
pub(super) fn shipped_profiles() -> BTreeMap<String, Overridable> {
    let opt_out = Network { kube_proxy: Some(KubeProxy::OptOut), dns: None };
    BTreeMap::from([
        ("enabled".to_owned(), Overridable::default()),
        ("high-scale".to_owned(), Overridable { network: Some(opt_out), ..Overridable::default() }),
    ])
}

/// A label that virtual nodes carry and no other node does.
///
/// One label, not a list: "prefer other nodes" has to be said in one preferred term, and the opposite of "this and that" is
/// not one term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[^=,!() ]+=[^=,!() ]+$"))]
pub struct Selector {
    /// The label's key.
    pub key: String,
    /// The label's value.
    pub value: String,
}

impl Default for Selector {
    fn default() -> Self {
        Self { key: "type".to_owned(), value: "virtual-kubelet".to_owned() }
    }
}

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        match parts {
            Some((key, value)) if is_label_key(key) && !value.is_empty() && is_label_value(value) => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!(
                "invalid selector \"{text}\", expected one label as KEY=VALUE, such as type=virtual-kubelet"
            )),
        }
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        format!("{}={}", selector.key, selector.value)
    }
}

/// The toleration that lets a pod onto virtual nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "WrittenToleration")]
#[schemars(with = "WrittenToleration")]
pub struct Toleration {
    /// The taint's key.
    pub key: String,
    /// How the taint's value is compared.
    pub operator: Operator,
    /// The taint's value, with `Equal` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The taint's effect.
    pub effect: Effect,
}

/// What a pod needs to be allowed onto virtual nodes. `key` and `effect` are required: a toleration of every key or every
/// effect would also tolerate the taint that keeps virtual nodes the last resort.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Toleration", transform = without_null)]
struct WrittenToleration {
    /// The taint's key.
    key: String,
    /// `Exists` or `Equal`. Default: `Exists`.
    operator: Option<Operator>,
    /// The taint's value, with `Equal` only.
    value: Option<String>,
    /// The taint's effect.
    #[schemars(with = "Effect")]
    effect: Option<Effect>,
}

impl Default for Toleration {
    fn default() -> Self {
        Self {
            key: "virtual-kubelet.io/provider".to_owned(),
            operator: Operator::Exists,
            value: None,
            effect: Effect::NoSchedule,
        }
    }
}

impl TryFrom<WrittenToleration> for Toleration {
    type Error = String;

    fn try_from(written: WrittenToleration) -> Result<Self, String> {
        let WrittenToleration { key, operator, value, effect } = written;
        let operator = operator.unwrap_or_default();
        let effect = effect.ok_or("missing field \"effect\"")?;
        if !is_label_key(&key) {
            return Err(format!("invalid toleration: key \"{key}\" is not a qualified name"));
        }
        if key.starts_with(super::PREFIX) {
            return Err(format!(
                "invalid toleration: key \"{key}\" is Spillway's own, for a taint that no pod may tolerate"
            ));
        }
        match (operator, &value) {
            (Operator::Exists, Some(_)) => {
                Err("invalid toleration: value goes with operator Equal, not with Exists".to_owned())
            }
            (Operator::Equal, None) => Err("invalid toleration: operator Equal needs a value".to_owned()),
            (Operator::Equal, Some(value)) if !is_label_value(value) => {
                Err(format!("invalid toleration: value \"{value}\" is not a label value"))
            }
            _ => Ok(Self { key, operator, value, effect }),
        }
    }
}

/// The name of a profile: what can stand in a label, except `disabled`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct ProfileName(String);

impl TryFrom<String> for ProfileName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == super::DISABLED {
            Err("invalid profile name \"disabled\": as a label value it means that the namespace is out".to_owned())
        } else if name.is_empty() || !is_label_value(&name) {
            Err(format!("invalid profile name \"{name}\", expected what can stand in a label value"))
        } else {
            Ok(Self(name))
        }
    }
}

impl From<ProfileName> for String {
    fn from(name: ProfileName) -> Self {
        name.0
    }
}

/// A length of time, such as `90s`, `3m` or `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Wait(pub Duration);

impl Wait {
    /// Longer than any autoscaler takes; a pod that waits for days has another trouble.
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
}

impl Default for Wait {
    fn default() -> Self {
        Self(Duration::from_secs(180))
    }
}

impl TryFrom<String> for Wait {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        duration(&text)
            .filter(|duration| *duration <= Self::LONGEST)
            .map(Self)
            .ok_or_else(|| format!("invalid duration \"{text}\", expected from 0s to 24h, such as 90s, 3m or 1h30m"))
    }
}

impl From<Wait> for String {
    fn from(Wait(duration): Wait) -> Self {
        format!("{}s", duration.as_secs())
    }
}

/// A text of a certain form.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $is_right:expr, $expected:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let is_right: fn(&str) -> bool = $is_right;
                if is_right(&text) { Ok(Self(text)) } else { Err(format!(concat!("{:?}: expected ", $expected), text)) }
            }
        }

        impl From<$name> for String {
            fn from($name(text): $name) -> Self {
                text
            }
        }
    )+};
}

texts! {
    /// The name of a namespace.
    NamespaceName: is_dns_label, "the name of a namespace: at most 63 of a-z, 0-9 and -";
    /// The id of a subscription.
    SubscriptionId: is_guid, "the id of a subscription, such as 00000000-1111-4222-8333-444444444444";
    /// The client id of a managed identity.
    ClientId: is_guid, "a client id, such as 00000000-1111-4222-8333-444444444444";
    /// A version of an Azure API.
    AzureApiVersion: is_api_version, "a version of an Azure API, such as 2024-11-30";
    /// Where an API answers.
    Endpoint: is_endpoint, "a URL such as https://management.azure.com, without a path";
}

/// RFC 1123, section 2.1, as namespaces must keep to it.
fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A day, and perhaps `-preview`.
fn is_api_version(text: &str) -> bool {
    text.strip_suffix("-preview")
        .unwrap_or(text)
        .parse::<jiff::civil::Date>()
        .is_ok_and(|day| text.starts_with(&day.to_string()))
}

/// Tokens are sent there. In plain text they may only go to this machine, as tests do it.
fn is_endpoint(text: &str) -> bool {
    let is_host = |rest: &str| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'))
    };
    let is_here = |rest: &str| rest.split(':').next().is_some_and(|host| matches!(host, "127.0.0.1" | "localhost"));
    text.strip_prefix("https://").is_some_and(is_host)
        || text.strip_prefix("http://").is_some_and(|rest| is_host(rest) && is_here(rest))
}

/// How often Azure is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Refresh(pub Duration);

impl Default for Refresh {
    fn default() -> Self {
        Self(Duration::from_secs(10 * 60))
    }
}

impl TryFrom<String> for Refresh {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let range = Duration::from_secs(5 * 60)..=Duration::from_secs(60 * 60);
        duration(&text)
            .filter(|duration| range.contains(duration))
            .map(Self)
            .ok_or_else(|| format!("invalid duration \"{text}\", expected from 5m to 1h, such as 10m"))
    }
}

impl From<Refresh> for String {
    fn from(Refresh(duration): Refresh) -> Self {
        Wait(duration).into()
    }
}

fn duration(text: &str) -> Option<Duration> {
    text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok())
}

/// A reason that can be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AllowedReason(pub &'static Reason);

impl TryFrom<String> for AllowedReason {
    type Error = String;

    fn try_from(code: String) -> Result<Self, String> {
        let code = code.trim();
        match eligibility::rule(code).map(|rule| &rule.reason) {
            Some(reason) if reason.can_be_allowed => Ok(Self(reason)),
            Some(reason) if reason.severity == Severity::Refusal => {
                Err(format!("{code} can never be allowed: {}", reason.meaning))
            }
            Some(_) => Err(format!("{code} is a warning: there is nothing to allow")),
            None => {
                let codes: Vec<_> = eligibility::rules().map(|rule| rule.reason.code).collect();
                let hint = did_you_mean(code, &codes);
                Err(format!("unknown reason \"{code}\"{hint}"))
            }
        }
    }
}

impl From<AllowedReason> for String {
    fn from(AllowedReason(reason): AllowedReason) -> Self {
        reason.code.to_owned()
    }
}

/// A label value: at most 63 characters, alphanumeric at both ends, `-`, `_` and `.` between (Kubernetes, "Labels and
/// Selectors", syntax and character set).
fn is_label_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.chars().all(inner)
        && text.chars().next().is_none_or(end)
        && text.chars().next_back().is_none_or(end)
}

/// A label or taint key: a name, or a DNS prefix, a slash and a name.
fn is_label_key(text: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && is_label_value(name);
    match text.split_once('/') {
        None => is_name(text),
        Some((prefix, name)) => {
            let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let is_domain = prefix.len() <= 253 && prefix.split('.').all(|p| !p.is_empty() && p.chars().all(label));
            is_domain && is_name(name)
        }
    }
}
