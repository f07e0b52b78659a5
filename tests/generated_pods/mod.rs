//! Generated pods of all shapes.

mod lost;

pub(crate) use lost::lost;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};

/// Which pods are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allow {
    /// Pods that an API server accepts.
    Valid,
    /// Also pods that only a broken client sends: null in place of maps and lists, and keys that fail validation.
    #[allow(dead_code)] // one of the two test binaries has an API server behind it
    Anything,
}

/// Returns a pod with any mixture of fields that Spillway reads, adds or must keep.
pub(crate) fn pod(allow: Allow) -> impl Strategy<Value = Value> {
    (metadata(allow), spec(allow))
        .prop_map(|(metadata, spec)| json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

fn metadata(allow: Allow) -> impl Strategy<Value = Value> {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]);
    let replica_set =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
    let owners = maybe(allow, prop_oneof![1 => Just(owner), 6 => Just(replica_set), 1 => Just(json!([]))]);
    (maybe(allow, labels(allow)), maybe(allow, annotations(allow)), owners).prop_map(|(labels, annotations, owners)| {
        object([
            ("name", Some(json!("web"))),
            ("labels", labels),
            ("annotations", annotations),
            ("ownerReferences", owners),
        ])
    })
}

fn labels(allow: Allow) -> impl Strategy<Value = Value> {
    let known = select(vec![
        ("azure.workload.identity/use", "true"),
        ("azure.workload.identity/use", "false"),
        ("virtualdaemonset.kubernetes.io/virtualdaemonset", "x"),
        ("app.kubernetes.io/name", "web"),
        ("a", ""),
    ]);
    entries(known, allow)
}

fn annotations(allow: Allow) -> impl Strategy<Value = Value> {
    let known = select(vec![
        ("spillway.dev/mode", "off"),
        ("spillway.dev/mode", "perfer"),
        ("spillway.dev/kube-proxy", "opt-out"),
        ("spillway.dev/kube-proxy", "keep"),
        ("spillway.dev/identity-label", "off"),
        ("spillway.dev/decision", "forged"),
        ("spillway.dev/added", "nonsense"),
        ("microsoft.containerinstance.virtualnode.injectkubeproxy", "true"),
        ("microsoft.containerinstance.virtualnode.injectdns", "true"),
        ("microsoft.containerinstance.virtualnode.ccepolicy", "cGFja2FnZQ=="),
        ("microsoft.containerinstance.virtualnode.imagecachepod", "true"),
        ("example.com/text", "quotes \" and \\ and\nlines and ünïcödé"),
        ("example.com/empty", ""),
    ]);
    entries(known, allow)
}

fn entries(known: impl Strategy<Value = (&'static str, &'static str)>, allow: Allow) -> impl Strategy<Value = Value> {
    let any_key = if allow == Allow::Valid { "[a-z]{1,5}(/[a-z]{1,5})?" } else { "[a-z~/ \"\\\\]{0,8}" };
    let any = (any_key, "[a-z0-9]{0,5}");
    let entry = prop_oneof![3 => known.prop_map(|(k, v)| (k.to_owned(), v.to_owned())), 1 => any];
    vec(entry, 0..5)
        .prop_map(|entries| entries.into_iter().map(|(k, v)| (k, Value::from(v))).collect::<Map<_, _>>().into())
}

fn spec(allow: Allow) -> impl Strategy<Value = Value> {
    let dns = select(vec![None, Some("ClusterFirst"), Some("Default"), Some("ClusterFirstWithHostNet")]);
    let selector = select(vec![
        None,
        None,
        None,
        Some(json!({"kubernetes.io/os": "linux"})),
        Some(json!({"kubernetes.io/os": "windows"})),
    ]);
    let rest = (
        select(vec![None, None, None, Some("windows"), Some("linux")]),
        select(vec![None, None, None, Some("vm-1")]),
        any::<bool>(),
    );
    (maybe(allow, tolerations()), maybe(allow, affinity(allow)), dns, selector, rest).prop_map(
        |(tolerations, affinity, dns, selector, (os, node, token))| {
            object([
                (
                    "containers",
                    Some(json!([{"name": "c", "image": "registry.example/c", "command": ["x"], "args": ["--x=~/y"]}])),
                ),
                ("serviceAccountName", Some(json!("web"))),
                ("automountServiceAccountToken", (!token).then_some(json!(false))),
                ("tolerations", tolerations),
                ("affinity", affinity),
                ("dnsPolicy", dns.map(Value::from)),
                ("nodeSelector", selector),
                ("os", os.map(|os| json!({"name": os}))),
                ("nodeName", node.map(Value::from)),
            ])
        },
    )
}

fn tolerations() -> impl Strategy<Value = Value> {
    let one = select(vec![
        json!({"operator": "Exists"}),
        json!({"operator": "Exists", "effect": "NoExecute"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Exists"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "azure", "effect": "NoSchedule"}),
        json!({"key": "virtual-kubelet.io/provider", "value": "aws", "effect": "NoSchedule"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "PreferNoSchedule"}),
        json!({"key": "azure.com/aci", "effect": "NoSchedule"}),
        json!({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 30}),
    ]);
    vec(one, 0..3).prop_map(Value::from)
}

fn affinity(allow: Allow) -> impl Strategy<Value = Value> {
    let not_virtual = json!({"weight": 1, "preference": {"matchExpressions": [
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]}});
    let zone = json!({"weight": 50, "preference": {"matchExpressions": [
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}]}});
    let both = json!({"weight": 7, "preference": {"matchExpressions": [
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}, {"key": "zone", "operator": "Exists"}]}});
    let preferred = vec(select(vec![not_virtual, zone, both]), 0..3).prop_map(Value::from);
    let required =
        json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/os", "operator": "Exists"}]}]});
    let required = prop_oneof![Just(None), Just(Some(required))];
    let node = (required, maybe(allow, preferred)).prop_map(|(required, preferred)| {
        object([
            ("requiredDuringSchedulingIgnoredDuringExecution", required),
            ("preferredDuringSchedulingIgnoredDuringExecution", preferred),
        ])
    });
    let apart = json!({"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]});
    let apart = prop_oneof![Just(None), Just(Some(apart))];
    (maybe(allow, node), apart).prop_map(|(node, apart)| object([("nodeAffinity", node), ("podAntiAffinity", apart)]))
}

/// Present, absent or, where everything is allowed, null.
fn maybe(allow: Allow, some: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    let null = if allow == Allow::Valid { None } else { Some(Value::Null) };
    prop_oneof![1 => Just(None), 1 => Just(null), 4 => some.prop_map(Some)]
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<Map<_, _>>().into()
}
