//! Several hundred generated pods on the real API server.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use serde_json::Value;
use spillway::{
    admission,
    burst::{self, ClusterContext, ServiceAccount},
    config::{Configuration, Overrides},
    eligibility::VirtualNode,
};

use crate::{
    generated_pods::{self, Allow},
    harness::{control_plane, spillway},
};

const SAMPLE: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_patch_applies_on_the_api_server_and_loses_nothing() {
    spillway();
    let plane = control_plane();
    let (plain, opted_in) = (plane.namespace(None), plane.namespace(Some("high-scale")));
    plain.identity("web");
    opted_in.known_identity("web");
    let client = plane.client().await;
    let pods = |namespace: &str| -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Pod>(&()))
    };
    let (without, with) = (pods(&plain.name), pods(&opted_in.name));

    let mut runner = TestRunner::deterministic();
    let (mut accepted, mut changed) = (0, 0);
    for _ in 0..SAMPLE {
        let pod = generated_pods::pod(Allow::Valid).new_tree(&mut runner).unwrap().current();
        // The API server refuses invalid pods by itself, so they do not count.
        let Ok(before) = dry_run(&without, &pod).await else { continue };
        let after = dry_run(&with, &pod).await.unwrap_or_else(|error| panic!("{error}\n{pod:#}"));
        accepted += 1;
        assert_eq!(generated_pods::lost(&before, &after), None, "{pod:#}");
        assert_eq!(decide_again(&after), None, "the second decision must be empty: {after:#}");
        changed += usize::from(before != after);
    }
    assert!(
        accepted > SAMPLE / 2 && changed > SAMPLE / 2,
        "{accepted} accepted, {changed} changed: the sample is too thin"
    );
}

async fn dry_run(api: &Api<DynamicObject>, pod: &Value) -> kube::Result<Value> {
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let object: DynamicObject = serde_json::from_value(pod.clone()).unwrap();
    let created = api.create(&params, &object).await?;
    let mut value = serde_json::to_value(created).unwrap();
    let metadata = value["metadata"].as_object_mut().unwrap();
    for own in ["namespace", "uid", "creationTimestamp", "managedFields", "generation"] {
        metadata.remove(own);
    }
    Ok(without_random_names(&value))
}

/// The token volume's name ends in five random characters.
pub(crate) fn without_random_names(pod: &Value) -> Value {
    let volumes = pod["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = volumes.iter().filter_map(|volume| volume["name"].as_str());
    let token = names.filter(|name| name.starts_with("kube-api-access-")).map(str::to_owned).next();
    match token {
        None => pod.clone(),
        Some(token) => serde_json::from_str(&pod.to_string().replace(&token, "kube-api-access-x")).unwrap(),
    }
}

fn decide_again(pod: &Value) -> Option<String> {
    let (text, configuration) = (pod.to_string(), Configuration::default());
    let view = serde_json::from_str(&text).unwrap();
    let overrides = Overrides::read(annotations(&view));
    let settings = configuration.settings("high-scale", &Overrides::default(), &overrides);
    let labels = [("type", "virtual-kubelet"), ("virtualization", "virtualnode2"), ("kubernetes.io/os", "linux")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let nodes = [VirtualNode::new("virtualnode-0".to_owned(), labels)];
    let cluster = ClusterContext { virtual_nodes: &nodes, ..ClusterContext::only(ServiceAccount::WithClientId) };
    let decision = burst::decide(&view, &settings, &cluster);
    burst::json_patch(&view, &decision).map(|patch| String::from_utf8(admission::encode(&patch)).unwrap())
}

fn annotations<'v>(pod: &'v spillway::pod::Pod<'_>) -> impl Iterator<Item = (&'v str, &'v str)> {
    pod.annotations()
}
