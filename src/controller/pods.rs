//! Writes to pods.

use json_patch::{Patch as JsonPatch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Context, FIELD_MANAGER, is_conflict, observed::Name, reconcile::Outcome};

/// Requests that are under way at the same time.
pub(super) const AT_ONCE: usize = 8;

/// Why something could not be done about a pod.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} pod {namespace}/{name}")]
pub(super) struct PodError {
    verb: &'static str,
    namespace: String,
    name: String,
    #[source]
    source: kube::Error,
}

impl PodError {
    pub(super) fn new(verb: &'static str, (namespace, name): &Name, source: kube::Error) -> Self {
        Self { verb, namespace: namespace.clone(), name: name.clone(), source }
    }
}

/// Writes to a pod; counts that.
pub(super) async fn write(
    context: &Context,
    pod: &Name,
    action: &'static str,
    patch: &Patch<Value>,
) -> Result<Outcome, PodError> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.0);
    let (result, outcome) = match pods.patch_metadata(&pod.1, &params, patch).await {
        Ok(_) => ("success", Ok(Outcome::Changed)),
        // It is gone, or has changed since: what it is now will be seen.
        Err(error) if is_conflict(&error) => ("conflict", Ok(Outcome::Conflict)),
        Err(error) => ("failure", Err(PodError::new("write", pod, error))),
    };
    context.metrics.overflow.acted(action, result);
    outcome
}

/// A patch that applies to this version of a pod alone, which it was made for.
pub(super) fn guarded(resource_version: &str, patch: JsonPatch) -> JsonPatch {
    let version = PointerBuf::from_tokens(["metadata", "resourceVersion"]);
    let test = PatchOperation::Test(TestOperation { path: version, value: json!(resource_version) });
    JsonPatch(std::iter::once(test).chain(patch.0).collect())
}

/// What a number of writes comes to. A conflict is no reason to look again at once: the change that caused it brings us back.
pub(super) fn together<E>(outcomes: Vec<Result<Outcome, E>>) -> Result<Outcome, E> {
    let mut all = Outcome::Right;
    for outcome in outcomes {
        if outcome? == Outcome::Changed {
            all = Outcome::Changed;
        }
    }
    Ok(all)
}
