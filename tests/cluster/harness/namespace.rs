//! A namespace that belongs to one test.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Method;
use serde_json::{Value, json};

use super::{ControlPlane, api::collection, eventually};

/// The prefix of the names of tests' namespaces.
pub(super) const PREFIX: &str = "test-";

pub(crate) struct Namespace {
    plane: &'static ControlPlane,
    pub(crate) name: String,
}

impl ControlPlane {
    /// Creates a namespace with this value of the label `spillway.dev/burst`, or without the label.
    pub(crate) fn namespace(&'static self, profile: Option<&str>) -> Namespace {
        self.annotated_namespace(profile, &json!({}))
    }

    /// Creates a namespace with annotations.
    pub(crate) fn annotated_namespace(&'static self, profile: Option<&str>, annotations: &Value) -> Namespace {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{PREFIX}{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut labels = json!({});
        if let Some(profile) = profile {
            labels["spillway.dev/burst"] = profile.into();
        }
        self.create(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
        }));
        // The API server refuses pods until the service account exists.
        eventually("the default service account", || {
            self.find(&format!("/api/v1/namespaces/{name}/serviceaccounts/default")).map(drop)
        });
        Namespace { plane: self, name }
    }
}

impl Namespace {
    /// Runs kubectl in this namespace.
    pub(crate) fn kubectl(&self, args: &[&str], stdin: &str) -> String {
        self.plane.kubectl_with(&[&["-n", &self.name], args].concat(), stdin)
    }

    /// Creates an object and returns it as the API server stored it.
    pub(crate) fn create(&self, object: &Value) -> Value {
        self.plane.create_in(Some(&self.name), object)
    }

    /// Creates an object, or replaces it.
    pub(crate) fn apply(&self, object: &Value) {
        self.plane.create_or_replace(Some(&self.name), object);
    }

    /// Changes an object, such as `pods/web`, by a patch.
    pub(crate) fn patch(&self, object: &str, change: &Value) -> Value {
        self.plane.patch(&format!("/api/v1/namespaces/{}/{object}", self.name), change)
    }

    /// Deletes a pod without a grace period.
    pub(crate) fn delete_pod(&self, name: &str) {
        self.plane.delete(&format!("/api/v1/namespaces/{}/pods/{name}?gracePeriodSeconds=0", self.name));
    }

    /// Sets labels and annotations of the namespace; null removes one.
    pub(crate) fn set_metadata(&self, metadata: &Value) {
        self.plane.patch(&format!("/api/v1/namespaces/{}", self.name), &json!({"metadata": metadata}));
    }

    /// Returns the object that the API server would create.
    pub(crate) fn dry_run(&self, object: &Value) -> Value {
        let path = format!("{}?dryRun=All", collection(Some(&self.name), object));
        match self.plane.send(Method::POST, &path, object) {
            Ok(created) => created,
            Err(failure) => panic!("POST {path}: {}\n{object:#}", failure.message),
        }
    }

    /// Returns what `kubectl apply --dry-run=server` prints.
    pub(crate) fn kubectl_dry_run(&self, object: &Value) -> Value {
        let text = self.kubectl(&["apply", "--dry-run=server", "-o", "json", "-f", "-"], &object.to_string());
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the pods.
    pub(crate) fn pods(&self) -> Vec<Value> {
        self.plane.list(&format!("/api/v1/namespaces/{}/pods", self.name))
    }

    /// Returns a pod by its name.
    pub(crate) fn pod(&self, name: &str) -> Value {
        self.plane.get(&format!("/api/v1/namespaces/{}/pods/{name}", self.name))
    }

    /// Returns the events with this reason.
    pub(crate) fn events(&self, reason: &str) -> Vec<Value> {
        let mut events = self.plane.events(&self.name);
        events.retain(|event| event["reason"] == reason);
        events
    }

    /// Creates a service account with a client ID, and waits until the webhook that all tests share knows it. Before that, the webhook
    /// looks the account up within a time that a busy machine may exceed.
    pub(crate) fn known_identity(&self, name: &str) {
        self.identity(name);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
            "spec": {"serviceAccountName": name, "containers": [{"name": "c", "image": "registry.example/c"}]},
        });
        eventually("the webhook to know the service account", || {
            (self.dry_run(&pod)["metadata"]["labels"]["azure.workload.identity/use"] == "true").then_some(())
        });
    }

    /// Creates a service account with a client ID.
    pub(crate) fn identity(&self, name: &str) {
        self.create(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "annotations": {"azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000000"}},
        }));
    }
}
