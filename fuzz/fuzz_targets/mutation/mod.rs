//! Mutates the structure of JSON. With mutated bytes, nearly every review would only test how serde_json refuses invalid JSON.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Value, json};

/// Mutates the input in place and returns its new size. `seed` selects the mutation.
pub(crate) fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(seed);
    // One input in four gets mutated bytes, which yield texts that no JSON writer produces.
    if random.below(4) > 0
        && let Ok(mut document) = serde_json::from_slice::<Value>(&data[..size])
    {
        for _ in 0..=random.below(3) {
            change(&mut document, &mut random);
        }
        let text = document.to_string();
        if text.len() <= max_size {
            data[..text.len()].copy_from_slice(text.as_bytes());
            return text.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
}

/// Pseudo-random numbers: a linear congruential generator (Numerical Recipes, chapter 7).
struct Random(u32);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % limit
    }

    fn one_of<'t, T>(&mut self, things: &'t [T]) -> &'t T {
        &things[self.below(things.len())]
    }
}

/// Names of fields that Spillway reads or adds, names of their parents, and keys with a meaning for Spillway.
const KEYS: &[&str] = &[
    "metadata",
    "spec",
    "labels",
    "annotations",
    "ownerReferences",
    "kind",
    "tolerations",
    "key",
    "operator",
    "value",
    "effect",
    "affinity",
    "nodeAffinity",
    "preferredDuringSchedulingIgnoredDuringExecution",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "nodeSelectorTerms",
    "preference",
    "matchExpressions",
    "matchFields",
    "values",
    "dnsPolicy",
    "nodeName",
    "nodeSelector",
    "kubernetes.io/os",
    "os",
    "name",
    "serviceAccountName",
    "request",
    "uid",
    "azure.workload.identity/use",
    "spillway.dev/burst",
    "spillway.dev/mode",
    "spillway.dev/kube-proxy",
    "spillway.dev/identity-label",
    "spillway.dev/decision",
    "spillway.dev/added",
    "microsoft.containerinstance.virtualnode.injectkubeproxy",
    "microsoft.containerinstance.virtualnode.injectdns",
    "microsoft.containerinstance.virtualnode.ccepolicy",
    "kubernetes.io/config.mirror",
    "~1/~0\"\\",
];

const WORDS: &[&str] = &[
    "",
    "true",
    "false",
    "off",
    "prefer",
    "late",
    "require",
    "keep",
    "opt-out",
    "disabled",
    "stay: Windows",
    "toleration,affinity,kube-proxy,dns,identity-label",
    "toleration, affinity:0+2",
    "virtual-kubelet.io/provider",
    "virtual-kubelet",
    "azure",
    "type",
    "NotIn",
    "In",
    "Exists",
    "Equal",
    "NoSchedule",
    "NoExecute",
    "DaemonSet",
    "Default",
    "None",
    "windows",
    "quotes \" and \\ and \n and ü",
];

fn fragment(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!({}),
        2 => json!([]),
        3 => json!(random.below(3)),
        4 => json!({*random.one_of(KEYS): *random.one_of(WORDS)}),
        5 => json!([{"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]),
        _ => json!(*random.one_of(WORDS)),
    }
}

/// Changes one value of the document.
fn change(document: &mut Value, random: &mut Random) {
    let pointers = pointers(document);
    let donor = document.pointer(random.one_of(&pointers)).cloned().unwrap_or_default();
    let Some(place) = document.pointer_mut(random.one_of(&pointers)) else { return };
    match (random.below(6), place) {
        (0, place) => *place = donor,
        (1, place) => *place = fragment(random),
        (2, Value::Object(map)) => {
            if let Some(key) = map.keys().nth(random.below(map.len().max(1))).cloned() {
                map.remove(&key);
            }
        }
        (_, Value::Object(map)) => {
            map.insert((*random.one_of(KEYS)).to_owned(), fragment(random));
        }
        (2, Value::Array(list)) => {
            list.pop();
        }
        (3, Value::Array(list)) => list.push(donor),
        // Work that is quadratic in a list shows only with long lists.
        (4, Value::Array(list)) => {
            let copies = random.below(300);
            list.extend(vec![donor; copies]);
        }
        (_, Value::Array(list)) => list.push(fragment(random)),
        (_, place) => *place = json!(*random.one_of(WORDS)),
    }
}

/// Returns JSON pointers to every value of the document, including the document itself.
fn pointers(document: &Value) -> Vec<String> {
    fn walk(value: &Value, at: &str, pointers: &mut Vec<String>) {
        pointers.push(at.to_owned());
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    walk(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), pointers);
                }
            }
            Value::Array(list) => {
                for (i, value) in list.iter().enumerate() {
                    walk(value, &format!("{at}/{i}"), pointers);
                }
            }
            _ => {}
        }
    }
    let mut pointers = Vec::new();
    walk(document, "", &mut pointers);
    pointers
}
