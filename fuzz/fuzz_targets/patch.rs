//! Whatever the pod: each patch applies, nothing of the user's is lost, and doing it again changes nothing.

#![no_main]

#[path = "../../tests/generated_pods/lost.rs"]
mod lost;
mod mutation;

use std::sync::LazyLock;

use json_patch::Patch;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use lost::lost;
use serde_json::Value;
use spillway_core::{
    burst::{self, ClusterContext, ServiceAccount, Verdict},
    config::{Configuration, Mode, Overrides},
    eligibility::VirtualNode,
    pod::Pod,
};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutation::mutate(data, size, max_size, seed)
});

// A review, of which the pod is taken, or a pod by itself.
fuzz_target!(|body: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return };
    let pod = json.pointer("/request/object").unwrap_or(&json);
    // To try everything with everything would be slow. The input itself says what it is tried with.
    let mut choice = body.iter().fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let (first, second) = (Circumstances::of(&mut choice), Circumstances::of(&mut choice));
    let Some(admitted) = admit(pod, &first) else { return };
    // The namespace's owner has changed their mind.
    admit(&admitted, &second).expect("what was admitted is a pod");
    update(pod, &admitted);
    update(json.pointer("/request/oldObject").unwrap_or(&admitted), pod);
});

static CONFIGURATION: LazyLock<Configuration> = LazyLock::new(Configuration::default);

/// One virtual node of each generation.
static NODES: LazyLock<[VirtualNode; 2]> = LazyLock::new(|| {
    let node = |name: &str, labels: &[(&str, &str)]| {
        VirtualNode::new(name.to_owned(), labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    };
    let label = ("type", "virtual-kubelet");
    [node("aci-1", &[label]), node("aci-2", &[label, ("virtualization", "virtualnode2")])]
});

/// What else a decision depends on.
struct Circumstances {
    profile: &'static str,
    mode: Mode,
    account: ServiceAccount,
    virtual_nodes: &'static [VirtualNode],
}

impl Circumstances {
    /// Uses up a part of the choice.
    fn of(choice: &mut u32) -> Self {
        use ServiceAccount::{Unknown, WithBadExpiration, WithClientId, WithoutClientId};
        let virtual_nodes = [&[], &NODES[..1], &NODES[1..], &NODES[..]];
        Self {
            profile: one_of(&["enabled", "high-scale", "unknown"], choice),
            mode: one_of(Mode::ALL, choice),
            account: one_of(&[WithClientId, WithBadExpiration, WithoutClientId, Unknown], choice),
            virtual_nodes: one_of(&virtual_nodes, choice),
        }
    }
}

fn one_of<T: Copy>(things: &[T], choice: &mut u32) -> T {
    let count = things.len() as u32;
    let thing = things[(*choice % count) as usize];
    *choice /= count;
    thing
}

/// The pod as it comes out of its creation; nothing for what is no pod.
fn admit(pod: &Value, circumstances: &Circumstances) -> Option<Value> {
    let (verdict, patch) = decide(pod, circumstances)?;
    let Some(patch) = patch else { return Some(pod.clone()) };
    let after = patched(pod, &patch);
    // What the pod says that Spillway added, Spillway may take away again.
    if pod.pointer("/metadata/annotations/spillway.dev~1added").is_none() {
        let requires = verdict == Verdict::Burst(Mode::Require);
        let before = if requires { without_required_terms(pod) } else { pod.clone() };
        assert_eq!(lost(&before, &after), None);
    }
    let (again, patch) = decide(&after, circumstances).expect("the result is a pod");
    // The words of the annotation. The details behind them may name what the first decision takes away.
    assert_eq!(again.to_string(), verdict.to_string());
    assert_eq!(patch, None);
    Some(after)
}

fn decide(pod: &Value, circumstances: &Circumstances) -> Option<(Verdict, Option<Patch>)> {
    let Circumstances { profile, mode, account, virtual_nodes } = circumstances;
    let text = pod.to_string();
    let view: Pod<'_> = serde_json::from_str(&text).ok()?;
    let namespace = Overrides::read([("spillway.dev/mode", mode.as_str())].into_iter());
    let settings = CONFIGURATION.settings(profile, &namespace, &Overrides::read(view.annotations()));
    let decision = burst::decide(
        &view,
        &settings,
        &ClusterContext { virtual_nodes, namespace: "shop", ..ClusterContext::only(*account) },
    );
    let patch = burst::json_patch(&view, &decision);
    Some((decision.verdict, patch))
}

/// The same pod after an update, which must not take away what its creation added.
fn update(new: &Value, old: &Value) {
    let (old_text, new_text) = (old.to_string(), new.to_string());
    let (Ok(old), Ok(view)) = (serde_json::from_str(&old_text), serde_json::from_str(&new_text)) else { return };
    let Some(patch) = burst::restore(&view, &old, &CONFIGURATION.virtual_nodes) else { return };
    let text = patched(new, &patch).to_string();
    let view = serde_json::from_str(&text).expect("the result is a pod");
    let again = burst::restore(&view, &old, &CONFIGURATION.virtual_nodes);
    assert_eq!(again, None);
}

/// The pod after a patch, with an implementation of RFC 6902 that is not ours.
fn patched(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).expect("the patch applies");
    pod
}

/// Mode `require` adds an expression to each required term, so none of them stays as it was.
fn without_required_terms(pod: &Value) -> Value {
    const TERMS: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let mut pod = pod.clone();
    if let Some(terms) = pod.pointer_mut(TERMS) {
        *terms = Value::Null;
    }
    pod
}
