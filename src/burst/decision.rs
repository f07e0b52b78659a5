//! What was decided, in a form that the patch, the log, the metrics and a person can all read.

use std::fmt;

use crate::config::{Mode, Settings, VirtualNodes};

/// The decision on one pod.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// Whether the pod may overflow.
    pub verdict: Verdict,
    /// What became of each part that Spillway can add, in the order of [`Part`].
    pub steps: [Step; Part::ALL.len()],
    /// What the toleration and the affinity term are made of; nothing when neither is added.
    pub(super) virtual_nodes: Option<&'a VirtualNodes>,
}

/// Whether a pod may overflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may, in this mode.
    Burst(Mode),
    /// It stays on VMs, for these reasons; never empty.
    Stay(Vec<Reason>),
    /// The pod's owner wants nothing from Spillway; nothing is written, not even the decision.
    OptedOut,
}

/// Why a pod stays. The names are the words of the annotation `spillway.dev/decision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A DaemonSet runs one pod on each node; virtual nodes have their own counterpart.
    DaemonSet,
    /// The mirror of a static pod, which its node runs already.
    MirrorPod,
    /// `mode: off` applies to the pod.
    ModeOff,
    /// `spec.nodeName` is set: the pod is bound already.
    NodeName,
    /// The namespace names a profile that does not exist.
    UnknownProfile,
    /// Virtual nodes run Linux only.
    Windows,
}

impl Reason {
    /// The name of the reason; a closed set, fit for a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DaemonSet => "DaemonSet",
            Self::MirrorPod => "MirrorPod",
            Self::ModeOff => "ModeOff",
            Self::NodeName => "NodeName",
            Self::UnknownProfile => "UnknownProfile",
            Self::Windows => "Windows",
        }
    }

    /// What the reason means, in one sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::DaemonSet => "a DaemonSet runs one pod on each node; virtual nodes do not support them",
            Self::MirrorPod => "the mirror of a static pod, which its node runs already",
            Self::ModeOff => "mode \"off\" applies to this pod",
            Self::NodeName => "spec.nodeName is set, so the scheduler has no say",
            Self::UnknownProfile => "the namespace's label spillway.dev/burst names a profile that does not exist",
            Self::Windows => "virtual nodes run Linux only",
        }
    }

    /// Whether the pod is held back although its owner wanted it to overflow, as opposed to having chosen that it stays.
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::ModeOff)
    }
}

/// A part of a pod that Spillway can add. The names are the words of the annotation `spillway.dev/added`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The toleration of the virtual nodes' taint.
    Toleration,
    /// The preferred node affinity against virtual nodes.
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

/// What became of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which part.
    pub part: Part,
    /// Added or not.
    pub outcome: Outcome,
}

/// Added or not, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is added.
    Added,
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
    /// One of its preferred terms says the same already.
    Preferred,
    /// The settings keep kube-proxy.
    KubeProxyKept,
    /// The pod carries one of the two network annotations, so both are its owner's.
    NetworkSetOnPod,
    /// A confidential pod, an image cache pod or a companion of a VirtualDaemonSet: not to be touched.
    NetworkNotOurs,
    /// The pod's own DNS policy does without cluster DNS.
    DnsPolicy,
    /// The settings say that cluster DNS needs no kube-proxy.
    DnsKept,
    /// The settings switch the identity label off.
    IdentityOff,
    /// The pod carries the label with a value of its owner's.
    LabelSetOnPod,
    /// Its service account has no client ID.
    NoClientId,
    /// Its service account could not be looked up.
    ServiceAccountUnknown,
    /// A mirror pod has no service account.
    MirrorPod,
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
            Self::Preferred => "the pod has an equivalent preferred term already",
            Self::KubeProxyKept => "kube-proxy is kept by the settings",
            Self::NetworkSetOnPod => "the pod sets one of injectkubeproxy and injectdns itself, so both are left alone",
            Self::NetworkNotOurs => {
                "confidential pods, image cache pods and VirtualDaemonSet companions are left alone"
            }
            Self::DnsPolicy => "the pod's DNS policy does without cluster DNS",
            Self::DnsKept => "cluster DNS is kept by the settings",
            Self::IdentityOff => "switched off by the settings",
            Self::LabelSetOnPod => "the pod carries the label already",
            Self::NoClientId => "the service account has no azure.workload.identity/client-id",
            Self::ServiceAccountUnknown => "the service account is not known",
            Self::MirrorPod => "a mirror pod has no service account",
            Self::UnknownProfile => "the namespace's profile does not exist",
            Self::OptedOut => "the pod is opted out",
        }
    }
}

impl<'a> Decision<'a> {
    /// Nothing is wanted of Spillway, so nothing is written.
    pub fn opted_out() -> Self {
        Self::nothing_added(Verdict::OptedOut, Why::OptedOut)
    }

    pub(super) fn stay(reasons: Vec<Reason>) -> Self {
        let why = if reasons.contains(&Reason::UnknownProfile) { Why::UnknownProfile } else { Why::NotBursting };
        Self::nothing_added(Verdict::Stay(reasons), why)
    }

    pub(super) fn burst(settings: &Settings<'a>, steps: [Step; Part::ALL.len()]) -> Self {
        Self { verdict: Verdict::Burst(settings.mode.value), steps, virtual_nodes: Some(settings.virtual_nodes) }
    }

    fn nothing_added(verdict: Verdict, why: Why) -> Self {
        let steps = Part::ALL.map(|part| Step { part, outcome: Outcome::Left(why) });
        Self { verdict, steps, virtual_nodes: None }
    }

    /// The same decision with another outcome for one part.
    pub(super) fn with(mut self, step: Step) -> Self {
        for other in &mut self.steps {
            if other.part == step.part {
                *other = step;
            }
        }
        self
    }

    /// The parts that are added, in order.
    pub fn added(&self) -> impl Iterator<Item = Part> {
        self.steps.iter().filter(|step| step.outcome == Outcome::Added).map(|step| step.part)
    }

    /// Whether this part is added.
    pub fn adds(&self, part: Part) -> bool {
        self.added().any(|added| added == part)
    }
}

/// The text of the annotation `spillway.dev/decision`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burst(mode) => f.write_str(mode.as_str()),
            Self::OptedOut => f.write_str("opted out"),
            Self::Stay(reasons) => {
                f.write_str("stay: ")?;
                for (i, reason) in reasons.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{}", reason.as_str())?;
                }
                Ok(())
            }
        }
    }
}
