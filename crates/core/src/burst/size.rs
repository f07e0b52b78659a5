//! The size up to which Spillway evaluates a pod.
//!
//! Some rules compare lists with each other. With a maximum for each list, the cost of a decision is linear in the size
//! of the pod. Every maximum is several times that of a pod that a container group or a node could run.

use crate::pod::{NodeSelectorTerm, Pod, StringMap};

const MAX_CONTAINERS: usize = 100;
const MAX_VOLUMES: usize = 500;
const MAX_LABELS_AND_ANNOTATIONS: usize = 2000;
const MAX_TOLERATIONS: usize = 500;
const MAX_NODE_SELECTOR_ENTRIES: usize = 500;
const MAX_TERMS: usize = 64;
const MAX_REQUIREMENTS: usize = 64;
const MAX_SPREADS: usize = 64;
const MAX_OWNERS: usize = 64;

/// Returns the first list of the pod that is too long, such as `101 containers, expected at most 100`.
pub(super) fn excess(pod: &Pod<'_>) -> Option<String> {
    let (metadata, spec) = (&pod.metadata, &pod.spec);
    let entries = |map: &Option<StringMap<'_>>| map.as_ref().map_or(0, StringMap::len);
    let required = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    let preferred = pod.preferred_node_terms();
    let lists = [
        (pod.containers().len() + pod.init_containers().len(), MAX_CONTAINERS, "containers"),
        (pod.volumes().len(), MAX_VOLUMES, "volumes"),
        (
            entries(&metadata.labels) + entries(&metadata.annotations),
            MAX_LABELS_AND_ANNOTATIONS,
            "labels and annotations",
        ),
        (pod.tolerations().len(), MAX_TOLERATIONS, "tolerations"),
        (entries(&spec.node_selector), MAX_NODE_SELECTOR_ENTRIES, "nodeSelector entries"),
        (required.len(), MAX_TERMS, "required node affinity terms"),
        (preferred.len(), MAX_TERMS, "preferred node affinity terms"),
        (spec.topology_spread_constraints.as_ref().map_or(0, Vec::len), MAX_SPREADS, "topology spread constraints"),
        (metadata.owner_references.as_ref().map_or(0, Vec::len), MAX_OWNERS, "owner references"),
    ];
    let too_long = lists.into_iter().find(|(count, max, _)| count > max);
    let in_term = || {
        let preferences = preferred.iter().filter_map(|term| term.preference.as_ref());
        let count = |term: &NodeSelectorTerm<'_>| term.expressions().len() + term.fields().len();
        let longest = required.iter().chain(preferences).map(count).max()?;
        (longest > MAX_REQUIREMENTS).then_some((longest, MAX_REQUIREMENTS, "requirements in a node affinity term"))
    };
    let (count, max, what) = too_long.or_else(in_term)?;
    Some(format!("{count} {what}, expected at most {max}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Path of a list, its maximum, and the list with so many entries.
    type Case<'c> = (&'c [&'c str], usize, &'c dyn Fn(usize) -> Value);

    fn many(count: usize, entry: &Value) -> Value {
        vec![entry.clone(); count].into()
    }

    fn map(count: usize) -> Value {
        (0..count).map(|i| (format!("k{i}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
    }

    /// Returns a pod with this value at a path.
    fn pod(path: &[&str], value: Value) -> String {
        let mut pod = json!({"metadata": {}, "spec": {}});
        let place = path.iter().fold(&mut pod, |at, key| &mut at[*key]);
        *place = value;
        pod.to_string()
    }

    #[test]
    fn every_list_that_is_compared_with_another_has_a_maximum() {
        const AFFINITY: [&str; 3] = ["spec", "affinity", "nodeAffinity"];
        const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
        const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
        let required = [&AFFINITY[..], &[REQUIRED, "nodeSelectorTerms"]].concat();
        let preferred = [&AFFINITY[..], &[PREFERRED]].concat();
        let (expression, object) = (json!({"key": "a", "operator": "Exists"}), json!({}));
        let term = |n| json!([{"matchExpressions": many(n, &expression)}]);
        let preference = |n| json!([{"weight": 1, "preference": {"matchFields": many(n, &expression)}}]);
        let cases: [Case<'_>; 12] = [
            (&["spec", "containers"], 100, &|n| many(n, &object)),
            (&["spec", "initContainers"], 100, &|n| many(n, &object)),
            (&["spec", "volumes"], 500, &|n| many(n, &object)),
            (&["metadata", "labels"], 2000, &map),
            (&["metadata", "annotations"], 2000, &map),
            (&["metadata", "ownerReferences"], 64, &|n| many(n, &object)),
            (&["spec", "tolerations"], 500, &|n| many(n, &object)),
            (&["spec", "nodeSelector"], 500, &map),
            (&["spec", "topologySpreadConstraints"], 64, &|n| many(n, &object)),
            (&required, 64, &|n| many(n, &object)),
            (&required, 64, &term),
            (&preferred, 64, &preference),
        ];
        for (path, max, value) in cases {
            let read = |n| excess(&serde_json::from_str(&pod(path, value(n))).unwrap());
            assert_eq!(read(max), None, "{path:?}");
            let found = read(max + 1).unwrap_or_else(|| panic!("{path:?} has no maximum"));
            assert!(found.starts_with(&format!("{} ", max + 1)), "{path:?}: {found}");
        }
    }
}
