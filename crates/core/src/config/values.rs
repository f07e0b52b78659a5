//! Structured values of the SpillwayConfiguration file. Each is checked while it is read, so that an error has a line.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    schema::without_null,
    words::{Effect, Operator},
};
use crate::{
    azure::is_guid,
    eligibility::{self, Reason, Severity},
    excerpt::{self, excerpt},
    suggestions::Suggester,
};

/// Label that all virtual nodes have and no other node has.
///
/// It is one label, not a list, because one preferred term must express "prefer other nodes". One term cannot express
/// the opposite of two labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[^=,!() ]+=[^=,!() ]+$"))]
pub struct Selector {
    /// Key of the label.
    pub key: String,
    /// Value of the label.
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

/// Toleration that lets a pod run on virtual nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "WrittenToleration")]
#[schemars(with = "WrittenToleration")]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// Comparison with the value of the taint.
    pub operator: Operator,
    /// Value of the taint, only with `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Effect of the taint.
    pub effect: Effect,
}

/// Toleration that lets a pod run on virtual nodes. `key` and `effect` are required, because a toleration of all keys
/// or all effects would also tolerate the last-resort taint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Toleration", transform = without_null)]
struct WrittenToleration {
    /// Key of the taint.
    key: String,
    /// `Exists` or `Equal`. Default: `Exists`.
    operator: Option<Operator>,
    /// Value of the taint, only with `Equal`.
    value: Option<String>,
    /// Effect of the taint.
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
                "invalid toleration: key \"{key}\" is reserved for Spillway's taints, which pods must not tolerate"
            ));
        }
        match (operator, &value) {
            (Operator::Exists, Some(_)) => Err("invalid toleration: value needs operator Equal, not Exists".to_owned()),
            (Operator::Equal, None) => Err("invalid toleration: operator Equal needs a value".to_owned()),
            (Operator::Equal, Some(value)) if !is_label_value(value) => {
                Err(format!("invalid toleration: value \"{value}\" is not a label value"))
            }
            _ => Ok(Self { key, operator, value, effect }),
        }
    }
}

/// Name of a profile: any label value except `disabled`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct ProfileName(String);

impl TryFrom<String> for ProfileName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == super::DISABLED {
            Err("invalid profile name \"disabled\": this label value opts a namespace out".to_owned())
        } else if name.is_empty() || !is_label_value(&name) {
            Err(format!("invalid profile name \"{name}\", expected a label value"))
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

/// Duration, such as `90s`, `3m` or `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Wait(pub Duration);

impl Wait {
    /// Maximum duration. It is longer than any autoscaler takes.
    const MAX: Duration = Duration::from_secs(24 * 60 * 60);
}

impl Default for Wait {
    fn default() -> Self {
        Self(Duration::from_secs(180))
    }
}

impl TryFrom<String> for Wait {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        duration(&text).filter(|duration| *duration <= Self::MAX).map(Self).ok_or_else(|| {
            let text = excerpt(&text, excerpt::WORD);
            format!("invalid duration \"{text}\", expected from 0s to 24h, such as 90s, 3m or 1h30m")
        })
    }
}

impl From<Wait> for String {
    fn from(Wait(duration): Wait) -> Self {
        format!("{}s", duration.as_secs())
    }
}

/// Declares types for texts of a certain form.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $is_valid:expr, $expected:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let is_valid: fn(&str) -> bool = $is_valid;
                if is_valid(&text) { Ok(Self(text)) } else { Err(format!(concat!("{:?}: expected ", $expected), text)) }
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
    /// Name of a namespace.
    NamespaceName: is_dns_label, "the name of a namespace: at most 63 of a-z, 0-9 and -";
    /// ID of a subscription.
    SubscriptionId: is_guid, "the id of a subscription, such as 00000000-1111-4222-8333-444444444444";
    /// Client ID of a managed identity.
    ClientId: is_guid, "a client id, such as 00000000-1111-4222-8333-444444444444";
    /// Version of an Azure API.
    AzureApiVersion: is_api_version, "a version of an Azure API, such as 2024-11-30";
    /// Endpoint of an API.
    Endpoint: is_endpoint, "a URL such as https://management.azure.com, without a path";
}

/// Returns whether the text is a DNS label (RFC 1123, section 2.1), which namespaces must have as their name.
fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Returns whether the text is a date, with or without `-preview`.
fn is_api_version(text: &str) -> bool {
    text.strip_suffix("-preview")
        .unwrap_or(text)
        .parse::<jiff::civil::Date>()
        .is_ok_and(|day| text.starts_with(&day.to_string()))
}

/// Returns whether Spillway may send tokens to this endpoint. It permits plain HTTP only for the local host, as tests
/// use it.
fn is_endpoint(text: &str) -> bool {
    let is_host = |rest: &str| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'))
    };
    let is_local_host =
        |rest: &str| rest.split(':').next().is_some_and(|host| matches!(host, "127.0.0.1" | "localhost"));
    text.strip_prefix("https://").is_some_and(is_host)
        || text.strip_prefix("http://").is_some_and(|rest| is_host(rest) && is_local_host(rest))
}

/// Interval between reads of Azure.
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

/// Reason that a user can accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AllowedReason(pub &'static Reason);

impl TryFrom<String> for AllowedReason {
    type Error = String;

    fn try_from(code: String) -> Result<Self, String> {
        Self::read(&code, &mut Suggester::default())
    }
}

impl AllowedReason {
    /// Reads the code of a reason.
    ///
    /// # Errors
    ///
    /// Returns a message if no reason has this code, or if users cannot accept the reason.
    pub fn read(code: &str, suggester: &mut Suggester) -> Result<Self, String> {
        let code = code.trim();
        match eligibility::rule(code).map(|rule| &rule.reason) {
            Some(reason) if reason.can_be_allowed => Ok(Self(reason)),
            Some(reason) if reason.severity == Severity::Refusal => {
                Err(format!("{code} cannot be allowed: {}", reason.meaning))
            }
            Some(reason) => Err(format!("{code} is a {}, and only refusals can be allowed", reason.severity.as_str())),
            None => {
                let codes: Vec<_> = eligibility::rules().map(|rule| rule.reason.code).collect();
                let hint = suggester.did_you_mean(code, &codes);
                Err(format!("unknown reason \"{}\"{hint}", excerpt(code, excerpt::WORD)))
            }
        }
    }
}

impl From<AllowedReason> for String {
    fn from(AllowedReason(reason): AllowedReason) -> Self {
        reason.code.to_owned()
    }
}

/// Returns whether the text is a label value: at most 63 characters, alphanumeric at both ends, and `-`, `_` and `.` in
/// between (Kubernetes, "Labels and Selectors", syntax and character set).
fn is_label_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.chars().all(inner)
        && text.chars().next().is_none_or(end)
        && text.chars().next_back().is_none_or(end)
}

/// Returns whether the text is a label or taint key: a name, or a DNS prefix, a slash and a name.
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
