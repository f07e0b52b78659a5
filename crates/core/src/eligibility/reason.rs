//! Reasons: their texts, their severity, and the virtual nodes that they apply to.

use super::{Generation, Generations};

/// Start of [`Reason::fix`] if the pod's owner cannot or need not fix the pod.
const NO_FIX: &str = "no fix";

/// Reason why a pod stays on VMs, or information for the pod's owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// Name in UpperCamelCase, such as `HostPathVolume`. It appears in `spillway.dev/decision`, in metrics and in
    /// `eligibility.allow`.
    pub code: &'static str,
    /// Effect on the decision.
    pub severity: Severity,
    /// Virtual nodes that the reason applies to.
    pub applies: Applies,
    /// Meaning, as one clause.
    pub meaning: &'static str,
    /// Effect on the pod on a virtual node.
    pub on_virtual_node: &'static str,
    /// Fix for the pod. Starts with `no fix` if the owner cannot or need not fix the pod.
    pub fix: &'static str,
    /// `true` if the pod's owner can accept the reason (`spillway.dev/allow`).
    pub can_be_allowed: bool,
    /// Source: `owner/repo path`, or a page of documentation.
    pub source: &'static str,
}

impl Reason {
    /// Returns whether the pod's owner can fix the pod.
    pub fn has_fix(&self) -> bool {
        !self.fix.starts_with(NO_FIX)
    }
}

/// Effect of a reason on the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The pod stays on VMs.
    Refusal,
    /// The pod may overflow, but its owner should fix something.
    Warning,
    /// The pod may overflow, and its owner need not fix anything.
    Note,
}

/// Virtual nodes that a reason applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// Both generations.
    Any,
    /// Only the first generation: the AKS add-on and virtual-kubelet/azure-aci.
    V1,
    /// Only the second generation: microsoft/virtualnodesOnAzureContainerInstances and the AKS extension.
    V2,
}

impl Severity {
    /// Returns the word for output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl Applies {
    /// Returns the word for output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "v1, v2",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    pub(super) fn to_any_of(self, candidates: Generations) -> bool {
        match self {
            Self::Any => true,
            Self::V1 => candidates.has(Generation::V1),
            Self::V2 => candidates.has(Generation::V2),
        }
    }
}

/// Reason that applies to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The reason.
    pub reason: &'static Reason,
    /// Detail, such as `container web`. May be empty.
    pub detail: String,
}

impl Finding {
    /// Creates a finding without detail.
    pub fn plain(reason: &'static Reason) -> Self {
        Self { reason, detail: String::new() }
    }
}

/// Formats `meaning (detail)`, in one line.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason.meaning)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}
