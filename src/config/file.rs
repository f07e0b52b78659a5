//! The shape of the SpillwayConfiguration file.
//!
//! Doc comments here are the descriptions in the JSON schema (`spillway config schema`). Values are checked while they are
//! read, so that an error knows its line.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An enumeration with one spelling for file, annotation and output.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ } default $default:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl $name {
            /// Every spelling, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The spelling in file, annotation and output.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value with this spelling.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

words! {
    /// What happens to a pod of a namespace that opted in.
    Mode {
        /// VMs first; the pod may go to a virtual node when no VM has room.
        Prefer = "prefer",
        /// Never to a virtual node; the identity label is still added.
        Off = "off",
    } default Prefer
}

words! {
    /// Whether a pod on a virtual node gets a kube-proxy of its own.
    KubeProxy {
        /// Leave it as it is; ClusterIPs work.
        Keep = "keep",
        /// Opt out, as the high-scale guide advises from about 2,000 pods on; ClusterIPs are out of reach.
        OptOut = "opt-out",
    } default Keep
}

words! {
    /// What happens to cluster DNS, itself a ClusterIP, when kube-proxy is opted out of.
    Dns {
        /// Opt out of cluster DNS too, unless the pod's own DNS policy does without it.
        Auto = "auto",
        /// Cluster DNS answers on an address that needs no kube-proxy: leave it as it is.
        Keep = "keep",
    } default Auto
}

words! {
    /// Whether a pod gets the label `azure.workload.identity/use`.
    IdentityLabel {
        /// When its service account carries a client ID.
        Auto = "auto",
        /// Never.
        Off = "off",
    } default Auto
}

words! {
    /// How a toleration compares.
    Operator {
        /// Any value of the key.
        Exists = "Exists",
        /// Exactly this value of the key.
        Equal = "Equal",
    } default Exists
}

words! {
    /// The effect that is tolerated. Never empty: a toleration of every effect would also tolerate the PreferNoSchedule
    /// taint that keeps virtual nodes the last resort.
    Effect {
        /// Keeps pods away that do not tolerate it.
        NoSchedule = "NoSchedule",
        /// Evicts them as well.
        NoExecute = "NoExecute",
    } default NoSchedule
}

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
    /// What a namespace names in its label `spillway.dev/burst`. Each overrides the defaults above. `enabled` and
    /// `high-scale` exist even if they are not listed.
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
    pub identity: Option<Identity>,
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

/// Workload identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = without_null)]
pub struct Identity {
    /// Whether pods get the label that Azure Workload Identity asks for. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<IdentityLabel>,
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
    effect: Effect,
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
        if !is_label_key(&key) {
            return Err(format!("invalid toleration: key \"{key}\" is not a qualified name"));
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
