//! The toleration that lets a pod onto virtual nodes, and the preference that it had rather not go there.

use super::{Outcome, Part, Step, Why};
use crate::{
    config::VirtualNodes,
    pod::{Pod, Taint},
};

/// The value that Azure's virtual nodes give their taint, in both generations, unless they are told otherwise
/// (virtual-kubelet/azure-aci chart, `taint.value`).
const TAINT_VALUE: &str = "azure";

/// The weight that survives beside other preferred terms. Alone, every weight is the same: the scheduler normalises it away.
pub(super) const WEIGHT: u8 = 100;

pub(super) fn steps(pod: &Pod<'_>, virtual_nodes: &VirtualNodes) -> [Step; 2] {
    let toleration = &virtual_nodes.toleration;
    let taint = Taint {
        key: &toleration.key,
        value: toleration.value.as_deref().unwrap_or(TAINT_VALUE),
        effect: toleration.effect.as_str(),
    };
    let tolerated = pod.tolerations().iter().any(|existing| existing.tolerates(taint));

    let selector = &virtual_nodes.selector;
    let says_the_same = |term: &crate::pod::PreferredSchedulingTerm<'_>| {
        term.preference.as_ref().is_some_and(|p| p.is_only_not_in(&selector.key, &selector.value))
    };
    let preferred = pod.preferred_node_terms().iter().any(says_the_same);

    let unless = |there: bool, why| if there { Outcome::Left(why) } else { Outcome::Added };
    [
        Step { part: Part::Toleration, outcome: unless(tolerated, Why::Tolerated) },
        Step { part: Part::Affinity, outcome: unless(preferred, Why::Preferred) },
    ]
}
