//! A decision as a JSON patch (RFC 6902).
//!
//! `failurePolicy: Ignore` does not protect a pod from a patch that does not apply (kubernetes/kubernetes#129459), so every
//! operation is an `add` below a parent that the view has seen: a missing parent is added whole, with its content; a list is
//! appended to with `/-`; an existing value is replaced only where it is one of Spillway's own annotations.

use serde::Serialize;
use serde_json::json;

use super::{ADDED, DECISION, Decision, Part, Verdict, identity_label, network, placement};
use crate::{
    config::VirtualNodes,
    pod::{Pod, StringMap},
};

/// The patch that carries out a decision on the very pod it was made for; nothing when there is nothing to change.
pub fn json_patch(pod: &Pod<'_>, decision: &Decision<'_>) -> Option<Vec<u8>> {
    if decision.verdict == Verdict::OptedOut {
        return None;
    }
    let mut patch = Patch::new();
    let label = [(identity_label::KEY, identity_label::VALUE)];
    let labels = if decision.adds(Part::IdentityLabel) { &label[..] } else { &[] };
    patch.add_entries("/metadata/labels", pod.metadata.labels.as_ref(), labels.iter().copied());

    let verdict = decision.verdict.to_string();
    let added = added(pod, decision);
    let annotations = [
        decision.adds(Part::KubeProxy).then_some((network::KUBE_PROXY, network::OPT_OUT)),
        decision.adds(Part::Dns).then_some((network::DNS, network::OPT_OUT)),
        added.as_deref().map(|added| (ADDED, added)),
        Some((DECISION, verdict.as_str())),
    ];
    patch.add_entries("/metadata/annotations", pod.metadata.annotations.as_ref(), annotations.into_iter().flatten());

    if let Some(virtual_nodes) = decision.virtual_nodes {
        if decision.adds(Part::Toleration) {
            patch.append("/spec/tolerations", pod.spec.tolerations.is_some(), &virtual_nodes.toleration);
        }
        if decision.adds(Part::Affinity) {
            add_preferred_term(&mut patch, pod, virtual_nodes);
        }
    }
    patch.finish()
}

/// The new value of `spillway.dev/added`, if this decision adds to it: what stood there before and what comes now.
fn added(pod: &Pod<'_>, decision: &Decision<'_>) -> Option<String> {
    decision.added().next()?;
    let before = pod.annotation(ADDED).unwrap_or_default();
    let stands = |part: &Part| before.split(',').any(|name| name.trim() == part.as_str());
    let names = Part::ALL.into_iter().filter(|part| decision.adds(*part) || stands(part)).map(Part::as_str);
    let mut list = String::with_capacity(48); // all five names
    for name in names {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(name);
    }
    Some(list)
}

fn add_preferred_term(patch: &mut Patch, pod: &Pod<'_>, virtual_nodes: &VirtualNodes) {
    #[derive(Serialize)]
    struct Term<'t> {
        weight: u8,
        preference: Preference<'t>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Preference<'t> {
        match_expressions: [Expression<'t>; 1],
    }
    #[derive(Serialize)]
    struct Expression<'t> {
        key: &'t str,
        operator: &'static str,
        values: [&'t str; 1],
    }
    let selector = &virtual_nodes.selector;
    let expression = Expression { key: &selector.key, operator: "NotIn", values: [&selector.value] };
    let term = Term { weight: placement::WEIGHT, preference: Preference { match_expressions: [expression] } };

    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let affinity = pod.spec.affinity.as_ref();
    match (affinity, affinity.and_then(|affinity| affinity.node_affinity.as_ref())) {
        (None, _) => patch.add("/spec/affinity", &json!({"nodeAffinity": {PREFERRED: [term]}})),
        (Some(_), None) => patch.add("/spec/affinity/nodeAffinity", &json!({PREFERRED: [term]})),
        (Some(_), Some(node)) => patch.append(
            "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution",
            node.preferred.is_some(),
            &term,
        ),
    }
}

/// Operations in the making: the text of a JSON array.
struct Patch(Vec<u8>);

impl Patch {
    fn new() -> Self {
        const USUAL: usize = 1024; // all five parts in place take about 800 bytes
        Self(Vec::with_capacity(USUAL))
    }

    /// Sets entries of a map: adds the map when it is absent, and leaves out what stands there already.
    fn add_entries<'e>(
        &mut self,
        path: &str,
        existing: Option<&StringMap<'_>>,
        entries: impl Iterator<Item = (&'e str, &'e str)>,
    ) {
        match existing {
            None => {
                let map: serde_json::Map<_, _> = entries.map(|(key, value)| (key.to_owned(), value.into())).collect();
                if !map.is_empty() {
                    self.add(path, &map);
                }
            }
            Some(existing) => {
                for (key, value) in entries.filter(|(key, value)| existing.get(key) != Some(value)) {
                    self.add(&format!("{path}/{}", Escaped(key)), value);
                }
            }
        }
    }

    /// Appends to a list, or adds the list when it is absent.
    fn append(&mut self, path: &str, exists: bool, value: &impl Serialize) {
        if exists { self.add(&format!("{path}/-"), value) } else { self.add(path, &[value]) }
    }

    fn add(&mut self, path: &str, value: &(impl Serialize + ?Sized)) {
        #[derive(Serialize)]
        struct Add<'o, V: ?Sized> {
            op: &'static str,
            path: &'o str,
            value: &'o V,
        }
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        // Writing to memory fails only for maps with keys that are no strings; there are none here.
        let _ = serde_json::to_writer(&mut self.0, &Add { op: "add", path, value });
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.push(b']');
        Some(self.0)
    }
}

/// A key as one segment of a JSON pointer (RFC 6901, section 3).
struct Escaped<'k>(&'k str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        self.0.chars().try_for_each(|c| match c {
            '~' => f.write_str("~0"),
            '/' => f.write_str("~1"),
            c => f.write_char(c),
        })
    }
}
