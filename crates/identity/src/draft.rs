//! Findings as the functions of checks return them.

use serde::{Deserialize, Serialize};

use super::{difference::Difference, object::Object};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Sign-in fails, or pods are refused.
    Error,
    /// Sign-in may fail, fails for some pods, or there is a risk.
    Warning,
    /// Information. No action is necessary.
    Info,
    /// An input could not be read. This is never an error.
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
    /// Two texts that must be equal byte for byte.
    Difference(Difference),
}

/// A finding without the fields that [`Finding`](super::Finding) takes from the check and the checked object.
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

    /// Replaces the check's severity.
    pub(super) fn severity(self, severity: Severity) -> Self {
        Self { severity: Some(severity), ..self }
    }

    /// Replaces the checked object.
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

/// Returns the first names of a list, and the number of the others.
pub(super) fn abbreviate(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names.get(..SHOWN).unwrap_or(names).join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
