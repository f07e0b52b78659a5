//! Findings of the checks.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::{Check, difference::Difference};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Sign-in fails, or pods are refused.
    Error,
    /// Sign-in may fail, fails for some pods, or there is a risk.
    Warning,
    /// Good to know.
    Info,
    /// An input could not be read. Never counted as an error.
    Unknown,
}

impl Severity {
    /// Returns the name for output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }
}

/// An object of the cluster or of Azure.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Object {
    /// Such as `ServiceAccount`, or `ManagedIdentity`.
    pub kind: String,
    /// Absent for cluster-scoped objects and those of Azure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `metadata.name`, or the name in Azure.
    pub name: String,
}

impl Object {
    /// Returns an object of a namespace.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: Some(namespace.to_owned()), name: name.to_owned() }
    }

    /// Returns an object without a namespace.
    pub fn global(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: None, name: name.to_owned() }
    }
}

/// `Kind namespace/name`
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Namespace and name of a service account.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AccountName {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

/// A fact that supports a finding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Evidence {
    /// A value that was read.
    Fact {
        /// Such as `pods`.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// Two texts that should be equal byte for byte.
    Difference(Difference),
}

/// A break in the chain from pod to federated credential, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check that found it.
    #[serde(rename = "id")]
    pub check: &'static Check,
    /// Usually that of the check.
    pub severity: Severity,
    /// The object at fault; for pods, their owner.
    pub object: Object,
    /// The service account whose identity it concerns, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<AccountName>,
    /// What is wrong, in one line.
    pub message: String,
    /// The facts that support it.
    pub evidence: Vec<Evidence>,
    /// The remedy: commands to paste, or words where no command exists.
    pub fix: String,
}

/// A check is serialized as its ID.
impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id)
    }
}

/// A finding as the function of a check returns it, without what follows from the check and the object that it was called for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DraftFinding {
    pub(super) severity: Option<Severity>,
    pub(super) object: Option<Object>,
    pub(super) message: String,
    pub(super) evidence: Vec<Evidence>,
    pub(super) fix: String,
}

impl DraftFinding {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { severity: None, object: None, message: message.into(), evidence: Vec::new(), fix: String::new() }
    }

    /// Another severity than the check's.
    pub(super) fn severity(self, severity: Severity) -> Self {
        Self { severity: Some(severity), ..self }
    }

    /// Another object than the one that the check was called for.
    pub(super) fn about(self, object: Object) -> Self {
        Self { object: Some(object), ..self }
    }

    pub(super) fn fact(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.evidence.push(Evidence::Fact { name, value: value.into() });
        self
    }

    pub(super) fn difference(mut self, difference: Difference) -> Self {
        self.evidence.push(Evidence::Difference(difference));
        self
    }

    pub(super) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }
}
