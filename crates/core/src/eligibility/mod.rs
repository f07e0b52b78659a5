//! Eligibility rules: which pods a virtual node can run, and how other pods fail there.
//!
//! Each rule is one function, and each file has the rules of one family of fields. A rule names the fields that it
//! reads and the generation that it applies to. It describes the effect on a virtual node, the fix and the source.
//! `docs/reasons.md` is generated from the rules.
//!
//! On the first generation, a wrong "eligible" is an outage of the pod. It stays bound, and nothing moves it back to a
//! VM. A wrong "ineligible" only prevents overflow. So the rules are strict, and a pod's owner can accept most of them
//! by name (decision 11).

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

use std::iter;

pub use cluster_context::{
    ClusterContext, Generation, Generations, LabelSelector, NAMESPACE_ANNOTATIONS, NAMESPACE_LABELS, NetworkPolicy,
    Requirement, V2_LABEL, VirtualNode,
};
pub use reason::{Applies, Finding, Reason, Severity};

pub use self::kind::{is_companion, is_confidential, is_image_cache, is_mirror};
use crate::{
    excerpt::{self, excerpt},
    pod::{Pod, TolerationFields},
};

/// A rule about pods.
#[derive(Debug)]
pub struct Rule {
    /// Reason that the rule reports.
    pub reason: Reason,
    /// Pod fields that the rule reads, as paths.
    pub reads: &'static str,
    /// Returns the detail, such as a container's name, or `None` if the rule finds nothing.
    check: fn(&Subject<'_>) -> Option<String>,
}

/// Planned overflow of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Overflow<'s> {
    /// Generations that the configuration names. Both if it says `auto`.
    pub generations: Generations,
    /// Toleration that Spillway would add.
    pub toleration: TolerationFields<'s>,
    /// `true` if Spillway is about to add the identity label.
    pub gets_identity_label: bool,
}

/// A pod, the cluster around it, and its planned overflow.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'s> {
    /// The pod.
    pub pod: &'s Pod<'s>,
    /// The cluster.
    pub cluster: &'s ClusterContext<'s>,
    /// The planned overflow.
    pub overflow: Overflow<'s>,
    /// Generations that the pod could run on.
    pub candidates: Generations,
}

/// Families of rules, in the order of the reasons.
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

/// Returns all rules, in the order of the reasons.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}

/// Returns the rule with this code.
pub fn rule(code: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.reason.code == code)
}

/// Returns the findings of all rules, for every generation that the pod could run on.
pub fn findings(pod: &Pod<'_>, cluster: &ClusterContext<'_>, overflow: Overflow<'_>) -> Vec<Finding> {
    let candidates = placement::candidates(pod, cluster.virtual_nodes, overflow.generations);
    let subject = Subject { pod, cluster, overflow, candidates };
    let holds = |rule: &&Rule| rule.reason.applies.to_any_of(candidates);
    rules()
        .filter(holds)
        .filter_map(|rule| {
            let mut detail = (rule.check)(&subject)?;
            excerpt::shorten(&mut detail, excerpt::DETAIL);
            Some(Finding { reason: &rule.reason, detail })
        })
        .collect()
}

/// Effect on a pod that the connector of the first generation cannot translate.
const NEVER_RUNS: &str = "the connector refuses the pod, which stays bound and never runs";

/// Formats the names at fault: `container a`, or `containers a, b`. Returns `None` if there are no names.
fn at_fault<'n>(what: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let mut names = names.peekable();
    let first = names.next()?;
    let plural = if names.peek().is_some() { "s" } else { "" };
    Some(format!("{what}{plural} {}", join(", ", iter::once(first).chain(names))?))
}

/// Joins texts. Stops behind the maximum size of a detail. Returns `None` if there are no texts.
fn join<T: AsRef<str>>(separator: &str, texts: impl IntoIterator<Item = T>) -> Option<String> {
    let mut texts = texts.into_iter();
    let mut all = excerpt(texts.next()?.as_ref(), excerpt::DETAIL).into_owned();
    for text in texts {
        if all.len() > excerpt::DETAIL {
            break;
        }
        all.push_str(separator);
        all.push_str(&excerpt(text.as_ref(), excerpt::DETAIL));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_all_texts_and_a_unique_code() {
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
