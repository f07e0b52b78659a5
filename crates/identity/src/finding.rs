//! What a check finds.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::{Check, difference::Difference};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Sign-in fails, or pods are refused.
    Error,
    /// It may fail, it fails for some, or it is a risk.
    Warning,
    /// Good to know.
    Info,
    /// It cannot be told, for something could not be read. Never counted as wrong.
    Unknown,
}

impl Severity {
    /// For output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }
}

/// What is at fault: an object of the cluster or of Azure.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Object {
    /// Such as `ServiceAccount`, or `ManagedIdentity`.
    pub kind: String,
    /// Absent for what has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Object {
    /// An object of a namespace.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: Some(namespace.to_owned()), name: name.to_owned() }
    }

    /// An object without a namespace.
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

/// A service account by its names.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AccountName {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

/// A fact that a finding rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Evidence {
    /// Something that was read, with the name of what it is.
    Fact {
        /// Such as `pods`.
        name: &'static str,
        /// What was read there.
        value: String,
    },
    /// Two texts that should be equal to the byte.
    Difference(Difference),
}

/// A break in the chain from pod to federated credential, with its cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which check found it.
    #[serde(rename = "id")]
    pub check: &'static Check,
    /// Most often that of the check.
    pub severity: Severity,
    /// What is at fault; for pods, what makes them.
    pub object: Object,
    /// The service account whose identity it concerns, if it is one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<AccountName>,
    /// What is wrong, in one line.
    pub message: String,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// What mends it: commands to paste, or words where no command does.
    pub fix: String,
}

/// A check stands by its id.
impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id)
    }
}

/// What the function of a check returns: a finding without what follows from the check and from what it was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Found {
    pub(super) severity: Option<Severity>,
    pub(super) object: Option<Object>,
    pub(super) message: String,
    pub(super) evidence: Vec<Evidence>,
    pub(super) fix: String,
}

impl Found {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { severity: None, object: None, message: message.into(), evidence: Vec::new(), fix: String::new() }
    }

    /// Another severity than the check's.
    pub(super) fn severity(self, severity: Severity) -> Self {
        Self { severity: Some(severity), ..self }
    }

    /// Another object than the one the check was asked about.
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
