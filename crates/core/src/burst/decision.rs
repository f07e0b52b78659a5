//! The decision on a pod, for the patch, the log, the metrics and the output.

use std::{collections::BTreeSet, fmt};

use super::{ADDED, placement::Form, reasons};
use crate::{
    config::{Mode, VirtualNodes},
    eligibility::Finding,
    pod::Pod,
};

/// Decision on one pod.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// Verdict on overflow.
    pub verdict: Verdict,
    /// Outcome of each part that Spillway can add, in the order of [`Part`].
    pub steps: [Step; Part::ALL.len()],
    /// Findings that the owner should know. They do not change the verdict.
    pub notes: Vec<Finding>,
    /// Refusals that the pod's owner has accepted.
    pub accepted: Vec<Finding>,
    /// Settings for toleration and affinity. `None` if Spillway changes neither.
    pub(super) virtual_nodes: Option<&'a VirtualNodes>,
    /// Form of the affinity from Spillway.
    pub(super) form: Form,
}

/// Verdict on overflow of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The pod may overflow, in this mode.
    Burst(Mode),
    /// The pod stays on VMs, for these reasons. Never empty.
    Stay(Vec<Finding>),
    /// The pod is opted out. Spillway writes nothing, not even the decision.
    OptedOut,
}

/// Part of a pod that Spillway can add. `spillway.dev/added` uses the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Toleration of the virtual nodes' taint.
    Toleration,
    /// Node affinity, which prefers other nodes, or requires virtual nodes in mode `require`.
    Affinity,
    /// Annotation that opts out of kube-proxy.
    KubeProxy,
    /// Annotation that opts out of cluster DNS.
    Dns,
    /// Label of Azure Workload Identity.
    IdentityLabel,
}

impl Part {
    /// All parts, in the order in which Spillway writes them.
    pub const ALL: [Self; 5] = [Self::Toleration, Self::Affinity, Self::KubeProxy, Self::Dns, Self::IdentityLabel];

    /// Returns the name of the part.
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

/// Parts that Spillway added earlier, according to the pod's annotation.
///
/// If a user forges the annotation, Spillway only removes exactly such an entry from the user's own pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    parts: [bool; Part::ALL.len()],
    pub(super) affinity: AddedAffinity,
}

/// Part of the affinity that Spillway added. The annotation is only as long as necessary: `affinity` is enough if the pod
/// has no equal term or expression of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum AddedAffinity {
    /// `affinity`: the preferred term, or an expression in every required term.
    #[default]
    Any,
    /// `affinity:preferred`: only the preferred term. An equal expression in a required term is from the user.
    Preferred,
    /// `affinity:0+2`: only an expression in each of these required terms. An equal preferred term is from the user.
    Terms(BTreeSet<usize>),
}

impl AddedAffinity {
    const PREFERRED: &str = "preferred";

    /// Reads the text after `affinity:`. An unknown text is `Any`.
    fn read(text: &str) -> Self {
        if text == Self::PREFERRED {
            return Self::Preferred;
        }
        let terms: Result<_, _> = text.split('+').map(str::parse).collect();
        terms.map_or(Self::Any, Self::Terms)
    }
}

/// Formats the annotation's word.
impl fmt::Display for AddedAffinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Part::Affinity.as_str())?;
        match self {
            Self::Any => Ok(()),
            Self::Preferred => write!(f, ":{}", Self::PREFERRED),
            Self::Terms(terms) => terms.iter().enumerate().try_for_each(|(i, term)| {
                let separator = if i == 0 { ':' } else { '+' };
                write!(f, "{separator}{term}")
            }),
        }
    }
}

impl Added {
    /// Maximum size of the annotation. With 64 terms, Spillway writes 250 bytes.
    const MAX_BYTES: usize = 512;

    /// Returns the annotation. Empty if it is absent, or longer than any that Spillway writes.
    pub fn text<'p>(pod: &'p Pod<'_>) -> &'p str {
        pod.annotation(ADDED).filter(|text| text.len() <= Self::MAX_BYTES).unwrap_or_default()
    }

    /// Reads the annotation. Skips words that are not parts.
    pub fn read(pod: &Pod<'_>) -> Self {
        let mut added = Self::default();
        for word in Self::text(pod).split(',') {
            let (name, terms) = word.trim().split_once(':').unwrap_or((word.trim(), ""));
            for (part, is_added) in Part::ALL.iter().zip(&mut added.parts) {
                *is_added |= part.as_str() == name;
            }
            if name == Part::Affinity.as_str() {
                added.affinity = AddedAffinity::read(terms);
            }
        }
        added
    }

    /// Returns whether Spillway added this part.
    pub fn has(&self, part: Part) -> bool {
        Part::ALL.iter().zip(self.parts).any(|(other, is_added)| *other == part && is_added)
    }
}

/// Part with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The part.
    pub part: Part,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Spillway adds the part.
    Added,
    /// Spillway added the part earlier, and keeps it.
    Kept,
    /// Spillway added the part earlier, and removes it because it no longer fits.
    Withdrawn,
    /// Spillway does not change this part of the pod.
    Left(Why),
}

/// Reason why Spillway does not add a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The pod does not overflow.
    NotBursting,
    /// A toleration of the pod already covers the taint.
    Tolerated,
    /// The controller adds it later if the pod gets no VM.
    NotAtAdmission,
    /// The pod already has an equivalent term.
    SaysTheSame,
    /// The pod's own constraints allow only virtual nodes.
    Pinned,
    /// The settings keep kube-proxy.
    KubeProxyKept,
    /// The pod has one of the two network annotations, so Spillway changes neither.
    NetworkSetOnPod,
    /// The pod's DNS policy does not use cluster DNS.
    DnsPolicy,
    /// The settings say that cluster DNS needs no kube-proxy.
    DnsKept,
    /// The settings disable the identity label.
    IdentityOff,
    /// The pod already has the label, with any value.
    LabelSetOnPod,
    /// The service account has no client ID.
    NoClientId,
    /// Spillway could not read the service account.
    ServiceAccountUnknown,
    /// With the label, Azure Workload Identity would refuse the pod.
    WouldBeRefused,
    /// A mirror pod has no service account.
    MirrorPod,
    /// The label leads to changes that would break a confidential pod's policy.
    ConfidentialPod,
    /// The pod already exists, so the change is impossible or has no effect.
    TooLate,
    /// The namespace's profile does not exist, so its settings are unknown.
    UnknownProfile,
    /// A list of the pod is too long to evaluate.
    TooLarge,
    /// The pod is opted out.
    OptedOut,
}

impl Why {
    /// Returns the reason as one clause, for output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotBursting => "the pod stays on VMs",
            Self::Tolerated => "the pod already tolerates the taint",
            Self::NotAtAdmission => "in this mode, the controller adds it if the pod gets no VM",
            Self::SaysTheSame => "the pod already has an equivalent term",
            Self::Pinned => "the pod's own constraints allow only virtual nodes",
            Self::KubeProxyKept => "the settings keep kube-proxy",
            Self::NetworkSetOnPod => "the pod sets injectkubeproxy or injectdns itself, so Spillway changes neither",
            Self::DnsPolicy => "the pod's DNS policy does not use cluster DNS",
            Self::DnsKept => "the settings keep cluster DNS",
            Self::IdentityOff => "the settings disable it",
            Self::LabelSetOnPod => "the pod already has the label",
            Self::NoClientId => "the service account has no azure.workload.identity/client-id",
            Self::ServiceAccountUnknown => "the service account is unknown",
            Self::WouldBeRefused => "with it, Azure Workload Identity would refuse the pod",
            Self::MirrorPod => "a mirror pod has no service account",
            Self::ConfidentialPod => "the label leads to changes that would break the confidential pod's policy",
            Self::TooLate => "the pod already exists",
            Self::UnknownProfile => "the namespace's profile does not exist",
            Self::TooLarge => "the pod is too large to evaluate",
            Self::OptedOut => "the pod is opted out",
        }
    }
}

impl Decision<'_> {
    /// Returns the decision on an opted-out pod: Spillway writes nothing.
    pub fn opted_out() -> Self {
        Self::unchanged(Verdict::OptedOut, Why::OptedOut)
    }

    /// Returns the decision for an unknown profile: Spillway adds nothing, and keeps earlier additions (decision 7).
    pub(super) fn unknown_profile(added: &Added) -> Self {
        let verdict = Verdict::Stay(vec![Finding::plain(&reasons::UNKNOWN_PROFILE)]);
        let mut decision = Self::unchanged(verdict, Why::UnknownProfile);
        for step in &mut decision.steps {
            if added.has(step.part) {
                step.outcome = Outcome::Kept;
            }
        }
        decision
    }

    /// Returns the decision on a pod that is too large to evaluate: Spillway adds nothing, and keeps what it added.
    pub(super) fn too_large(detail: String) -> Self {
        let finding = Finding { reason: &reasons::TOO_LARGE, detail };
        Self::unchanged(Verdict::Stay(vec![finding]), Why::TooLarge)
    }

    fn unchanged(verdict: Verdict, why: Why) -> Self {
        let steps = Part::ALL.map(|part| Step { part, outcome: Outcome::Left(why) });
        Self { verdict, steps, notes: Vec::new(), accepted: Vec::new(), virtual_nodes: None, form: Form::None }
    }

    /// Returns the parts with this outcome, in order.
    pub fn parts(&self, outcome: Outcome) -> impl Iterator<Item = Part> {
        self.steps.iter().filter(move |step| step.outcome == outcome).map(|step| step.part)
    }

    /// Returns the outcome of a part.
    pub fn outcome(&self, part: Part) -> Outcome {
        let step = self.steps.iter().find(|step| step.part == part);
        step.map_or(Outcome::Left(Why::NotBursting), |step| step.outcome)
    }
}

impl Verdict {
    /// Returns the reasons that keep the pod on VMs. Empty if the pod may overflow or is opted out.
    pub fn refusals(&self) -> &[Finding] {
        if let Self::Stay(findings) = self { findings } else { &[] }
    }
}

/// Formats the value of the annotation `spillway.dev/decision`.
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
