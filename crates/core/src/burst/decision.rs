//! What was decided, in a form that the patch, the log, the metrics and a person can all read.

use std::fmt;

use super::{ADDED, placement::Form, reasons};
use crate::{
    config::{Mode, VirtualNodes},
    eligibility::Finding,
    pod::Pod,
};

/// The decision on one pod.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// Whether the pod may overflow.
    pub verdict: Verdict,
    /// What became of each part that Spillway can add, in the order of [`Part`].
    pub steps: [Step; Part::ALL.len()],
    /// What the owner should know, without consequence for the verdict.
    pub notes: Vec<Finding>,
    /// What would have kept the pod on VMs, had its owner not accepted it.
    pub accepted: Vec<Finding>,
    /// What toleration and affinity are made of; nothing when neither is touched.
    pub(super) virtual_nodes: Option<&'a VirtualNodes>,
    /// Which affinity the pod is to have from Spillway.
    pub(super) form: Form,
}

/// Whether a pod may overflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may, in this mode.
    Burst(Mode),
    /// It stays on VMs, for these reasons; never empty.
    Stay(Vec<Finding>),
    /// The pod's owner wants nothing from Spillway; nothing is written, not even the decision.
    OptedOut,
}

/// A part of a pod that Spillway can add. The names are the words of the annotation `spillway.dev/added`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The toleration of the virtual nodes' taint.
    Toleration,
    /// The node affinity: preferred against virtual nodes, or required towards them in mode `require`.
    Affinity,
    /// The annotation that opts out of kube-proxy.
    KubeProxy,
    /// The annotation that opts out of cluster DNS.
    Dns,
    /// The label of Azure Workload Identity.
    IdentityLabel,
}

impl Part {
    /// All of them, in the order they are written.
    pub const ALL: [Self; 5] = [Self::Toleration, Self::Affinity, Self::KubeProxy, Self::Dns, Self::IdentityLabel];

    /// The name of the part.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Toleration => "toleration",
            Self::Affinity => "affinity",
            Self::KubeProxy => "kube-proxy",
            Self::Dns => "dns",
            Self::IdentityLabel => "identity-label",
        }
    }
}

/// The parts that a pod's annotation says Spillway added earlier.
///
/// Whoever forges it gains nothing but the removal of exactly such an entry from his own pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    parts: [bool; Part::ALL.len()],
    /// The required terms that got an expression, where not all did: `affinity:0+2`.
    pub(super) terms: Option<Vec<usize>>,
}

impl Added {
    /// Reads the annotation; words that are no parts are skipped.
    pub fn read(pod: &Pod<'_>) -> Self {
        let mut added = Self::default();
        for word in pod.annotation(ADDED).unwrap_or_default().split(',') {
            let (name, terms) = word.trim().split_once(':').unwrap_or((word.trim(), ""));
            for (part, is_added) in Part::ALL.iter().zip(&mut added.parts) {
                *is_added |= part.as_str() == name;
            }
            if name == Part::Affinity.as_str() && !terms.is_empty() {
                added.terms = terms.split('+').map(|index| index.parse().ok()).collect();
            }
        }
        added
    }

    /// Whether this part was added.
    pub fn has(&self, part: Part) -> bool {
        Part::ALL.iter().zip(self.parts).any(|(other, is_added)| *other == part && is_added)
    }
}

/// What became of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which part.
    pub part: Part,
    /// Added, withdrawn or left.
    pub outcome: Outcome,
}

/// Added or not, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is added.
    Added,
    /// It was added earlier, is there, and stays.
    Kept,
    /// It was added earlier and no longer fits: it is taken away again.
    Withdrawn,
    /// The pod is left as it is in this respect.
    Left(Why),
}

/// Why a part is not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The pod does not overflow.
    NotBursting,
    /// One of its tolerations covers the taint already.
    Tolerated,
    /// The controller adds it when the pod has found no VM.
    NotAtAdmission,
    /// One of its terms says the same already.
    SaysTheSame,
    /// Its own constraints leave it no other place than virtual nodes.
    Pinned,
    /// The settings keep kube-proxy.
    KubeProxyKept,
    /// The pod carries one of the two network annotations, so both are its owner's.
    NetworkSetOnPod,
    /// The pod's own DNS policy does without cluster DNS.
    DnsPolicy,
    /// The settings say that cluster DNS needs no kube-proxy.
    DnsKept,
    /// The settings switch the identity label off.
    IdentityOff,
    /// The pod carries the label already, with whatever value.
    LabelSetOnPod,
    /// Its service account has no client ID.
    NoClientId,
    /// Its service account could not be looked up.
    ServiceAccountUnknown,
    /// Azure Workload Identity would refuse the pod.
    WouldBeRefused,
    /// A mirror pod has no service account.
    MirrorPod,
    /// What the label brings would break a confidential pod's policy.
    ConfidentialPod,
    /// The pod exists already, and this can no longer be changed, or would no longer have an effect.
    TooLate,
    /// Nothing is known of what the namespace wants: its profile does not exist.
    UnknownProfile,
    /// The pod is opted out.
    OptedOut,
}

impl Why {
    /// For output, in one clause.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotBursting => "the pod stays on VMs",
            Self::Tolerated => "the pod tolerates the taint already",
            Self::NotAtAdmission => "in this mode the controller adds it to a pod that has found no VM",
            Self::SaysTheSame => "the pod has an equivalent term already",
            Self::Pinned => "the pod's own constraints leave it no other place than virtual nodes",
            Self::KubeProxyKept => "kube-proxy is kept by the settings",
            Self::NetworkSetOnPod => "the pod sets one of injectkubeproxy and injectdns itself, so both are left alone",
            Self::DnsPolicy => "the pod's DNS policy does without cluster DNS",
            Self::DnsKept => "cluster DNS is kept by the settings",
            Self::IdentityOff => "switched off by the settings",
            Self::LabelSetOnPod => "the pod carries the label already",
            Self::NoClientId => "the service account has no azure.workload.identity/client-id",
            Self::ServiceAccountUnknown => "the service account is not known",
            Self::WouldBeRefused => "with it, Azure Workload Identity would refuse the pod",
            Self::MirrorPod => "a mirror pod has no service account",
            Self::ConfidentialPod => "what the label brings would break the confidential pod's policy",
            Self::TooLate => "the pod exists already",
            Self::UnknownProfile => "the namespace's profile does not exist",
            Self::OptedOut => "the pod is opted out",
        }
    }
}

impl Decision<'_> {
    /// Nothing is wanted of Spillway, so nothing is written.
    pub fn opted_out() -> Self {
        Self::left(Verdict::OptedOut, Why::OptedOut)
    }

    /// Nobody knows what is wanted, so nothing is added; what was added earlier stays, for the same reason.
    pub(super) fn unknown_profile(added: &Added) -> Self {
        let verdict = Verdict::Stay(vec![Finding::plain(&reasons::UNKNOWN_PROFILE)]);
        let mut decision = Self::left(verdict, Why::UnknownProfile);
        for step in &mut decision.steps {
            if added.has(step.part) {
                step.outcome = Outcome::Kept;
            }
        }
        decision
    }

    fn left(verdict: Verdict, why: Why) -> Self {
        let steps = Part::ALL.map(|part| Step { part, outcome: Outcome::Left(why) });
        Self { verdict, steps, notes: Vec::new(), accepted: Vec::new(), virtual_nodes: None, form: Form::None }
    }

    /// The parts with this outcome, in order.
    pub fn parts(&self, outcome: Outcome) -> impl Iterator<Item = Part> {
        self.steps.iter().filter(move |step| step.outcome == outcome).map(|step| step.part)
    }

    /// What became of a part.
    pub fn outcome(&self, part: Part) -> Outcome {
        let step = self.steps.iter().find(|step| step.part == part);
        step.map_or(Outcome::Left(Why::NotBursting), |step| step.outcome)
    }
}

impl Verdict {
    /// What keeps the pod on VMs; nothing when it may overflow or is opted out.
    pub fn refusals(&self) -> &[Finding] {
        if let Self::Stay(findings) = self { findings } else { &[] }
    }
}

/// The text of the annotation `spillway.dev/decision`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burst(mode) => f.write_str(mode.as_str()),
            Self::OptedOut => f.write_str("opted out"),
            Self::Stay(findings) => {
                f.write_str("stay: ")?;
                for (i, finding) in findings.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{}", finding.reason.code)?;
                }
                Ok(())
            }
        }
    }
}
