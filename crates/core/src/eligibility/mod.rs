//! Which pods a virtual node can run, and how the others would fail there.
//!
//! One rule, one function, one file for each family of fields. A rule says which fields it reads, for which generation of
//! virtual nodes it holds, what would happen there, how to mend the pod, and where that is written. `docs/reasons.md` is
//! generated from the rules.
//!
//! Wrongly "eligible" is an outage of that pod on the first generation, where it stays bound and nothing moves it back to a VM;
//! wrongly "ineligible" is merely no overflow. So the rules are strict, and an owner can accept most of them by name.

mod cluster_context;
mod containers;
mod environment;
mod host;
mod identity;
mod ignored;
mod kind;
mod names;
mod network;
mod placement;
mod platform;
mod probes;
mod reason;
mod resources;
mod volumes;

pub use cluster_context::{
    ClusterContext, Generation, Generations, LabelSelector, NAMESPACE_ANNOTATIONS, NAMESPACE_LABELS, NetworkPolicy,
    Requirement, V2_LABEL, VirtualNode,
};
pub use reason::{Applies, Finding, Reason, Severity};

pub use self::kind::{is_companion, is_confidential, is_image_cache, is_mirror};
use crate::pod::{Pod, TolerationFields};

/// A rule about pods.
#[derive(Debug)]
pub struct Rule {
    /// What is said when the rule finds something.
    pub reason: Reason,
    /// The pod fields that it reads, as paths.
    pub reads: &'static str,
    /// What is at fault, such as a container's name; nothing if the pod is fine.
    check: fn(&Subject<'_>) -> Option<String>,
}

/// How a pod would overflow.
#[derive(Debug, Clone, Copy)]
pub struct Overflow<'s> {
    /// The generations of virtual nodes that the configuration names; both for `auto`.
    pub generations: Generations,
    /// The toleration that Spillway would add.
    pub toleration: TolerationFields<'s>,
    /// `true` if Spillway is about to add the identity label.
    pub gets_identity_label: bool,
}

/// A pod, the cluster around it, and how the pod would overflow.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'s> {
    /// The pod.
    pub pod: &'s Pod<'s>,
    /// The cluster.
    pub cluster: &'s ClusterContext<'s>,
    /// How the pod would overflow.
    pub overflow: Overflow<'s>,
    /// The generations that the pod could land on.
    pub candidates: Generations,
}

/// The families of rules, in the order in which reasons are listed.
const FAMILIES: &[&[&Rule]] = &[
    kind::RULES,
    platform::RULES,
    placement::RULES,
    host::RULES,
    volumes::RULES,
    containers::RULES,
    probes::RULES,
    environment::RULES,
    resources::RULES,
    identity::RULES,
    names::RULES,
    network::RULES,
    ignored::RULES,
];

/// Every rule, in the order in which reasons are listed.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}

/// The rule with this code.
pub fn rule(code: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.reason.code == code)
}

/// Everything that the rules find in this pod, for every generation of virtual nodes that it could land on.
pub fn findings(pod: &Pod<'_>, cluster: &ClusterContext<'_>, overflow: Overflow<'_>) -> Vec<Finding> {
    let candidates = placement::candidates(pod, cluster.virtual_nodes, overflow.generations);
    let subject = Subject { pod, cluster, overflow, candidates };
    let holds = |rule: &&Rule| rule.reason.applies.to_any_of(candidates);
    rules()
        .filter(holds)
        .filter_map(|rule| Some(Finding { reason: &rule.reason, detail: (rule.check)(&subject)? }))
        .collect()
}

/// What becomes of a pod that the first generation's connector fails to translate.
const NEVER_RUNS: &str = "the connector refuses the pod, which stays bound without ever running";

/// `container a`, or `containers a, b`: who is at fault. Nothing if nobody is.
fn at_fault<'n>(what: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let names: Vec<_> = names.collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("{what} {one}")),
        several => Some(format!("{what}s {}", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rule_says_all_it_has_to_say_under_a_name_of_its_own() {
        let mut codes = BTreeSet::new();
        for Rule { reason, reads, .. } in rules() {
            let Reason { code, severity, applies: _, meaning, on_virtual_node, fix, can_be_allowed, source } = reason;
            assert!(codes.insert(code), "{code} stands for two rules");
            let is_upper_camel =
                code.starts_with(|c: char| c.is_ascii_uppercase()) && code.chars().all(|c| c.is_ascii_alphanumeric());
            assert!(is_upper_camel, "{code} is no UpperCamelCase word");
            for text in [reads, meaning, on_virtual_node, fix, source] {
                assert!(!text.trim().is_empty() && text.trim() == *text, "{code}: {text:?}");
                assert!(!text.ends_with('.') && !text.contains(['\n', '\t']), "{code}: {text:?} is one clause");
            }
            assert!(source.contains(['/', '#']), "{code}: {source:?} is neither owner/repo nor a page");
            assert!(*severity == Severity::Refusal || !can_be_allowed, "{code}: only a refusal can be allowed");
        }
    }
}
