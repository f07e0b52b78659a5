//! Writes that apply only to the version of an object that was observed.

use json_patch::{Patch, PatchOperation, ReplaceOperation, jsonptr::PointerBuf};

/// Makes a patch apply only to this version of an object.
///
/// The API server responds with 409 if the object has another version, as for an update with a `resourceVersion`
/// (kubernetes.io/docs/reference/using-api/api-concepts). For a failed `test` operation it would respond with 422, like
/// an admission policy or validation.
pub(crate) fn conditional_patch(resource_version: &str, patch: Patch) -> Patch {
    let version = ReplaceOperation {
        path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
        value: resource_version.into(),
    };
    Patch(std::iter::once(PatchOperation::Replace(version)).chain(patch.0).collect())
}

/// Returns whether a conditional write failed because the object already exists, was deleted, or has changed.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// Returns whether the API server did not respond. The error does not depend on the object, so the next request will
/// fail too.
pub(crate) fn is_unanswered(error: &kube::Error) -> bool {
    matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conditional_patch_carries_the_observed_version() {
        let change: Patch = serde_json::from_value(json!([{"op": "add", "path": "/spec", "value": 1}])).unwrap();
        let mut newer = json!({"metadata": {"resourceVersion": "8"}});
        json_patch::patch(&mut newer, &conditional_patch("7", change)).unwrap();
        assert_eq!(newer, json!({"metadata": {"resourceVersion": "7"}, "spec": 1}), "the API server responds with 409");
    }
}
