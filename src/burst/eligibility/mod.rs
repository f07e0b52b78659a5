//! Which pods a virtual node cannot run, whatever its generation. One rule, one function: the pod fields that it reads, and
//! the reason that it gives.

mod placement;
mod platform;

use super::Reason;
use crate::pod::Pod;

/// A rule: whether it refuses the pod.
type Rule = (Reason, fn(&Pod<'_>) -> bool);

/// Every rule, in the order in which reasons are listed.
const RULES: &[Rule] = &[
    (Reason::DaemonSet, placement::daemon_set),
    (Reason::MirrorPod, placement::mirror_pod),
    (Reason::NodeName, placement::node_name),
    (Reason::Windows, platform::windows),
];

pub(super) use placement::mirror_pod;

/// All reasons for which this pod must stay on VMs; none if it may overflow.
pub(super) fn refusals(pod: &Pod<'_>) -> Vec<Reason> {
    RULES.iter().filter(|(_, refuses)| refuses(pod)).map(|(reason, _)| *reason).collect()
}
