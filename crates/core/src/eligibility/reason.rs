//! What a reason says of itself.

use super::{Generation, Generations};

/// Why a pod stays on VMs, or what its owner should know.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// One UpperCamelCase word, such as `HostPathVolume`. It is what stands in `spillway.dev/decision`, in metrics and in
    /// `eligibility.allow`.
    pub code: &'static str,
    /// Whether it keeps the pod on VMs.
    pub severity: Severity,
    /// For which virtual nodes it holds.
    pub applies: Applies,
    /// What it means, in one clause.
    pub meaning: &'static str,
    /// What would happen to the pod on a virtual node.
    pub on_virtual_node: &'static str,
    /// How to mend the pod.
    pub fix: &'static str,
    /// Whether the pod's owner can accept it (`spillway.dev/allow`).
    pub can_be_allowed: bool,
    /// Where that is written: `owner/repo path`, or a page of documentation.
    pub source: &'static str,
}

/// Whether a reason keeps the pod on VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The pod stays.
    Refusal,
    /// The pod may overflow; its owner should know, for there is something to mend.
    Warning,
    /// The pod may overflow; there is nothing to mend.
    Note,
}

/// For which virtual nodes a reason holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// For both generations.
    Any,
    /// For the first only: the AKS add-on and virtual-kubelet/azure-aci.
    V1,
    /// For the second only: microsoft/virtualnodesOnAzureContainerInstances and the AKS extension.
    V2,
}

impl Severity {
    /// For output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl Applies {
    /// For output.
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

/// A reason found in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The reason.
    pub reason: &'static Reason,
    /// What is at fault, such as `container web`; may be empty.
    pub detail: String,
}

impl Finding {
    /// A finding that needs no detail.
    pub fn plain(reason: &'static Reason) -> Self {
        Self { reason, detail: String::new() }
    }
}

/// `meaning: detail`, in one line.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason.meaning)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}
