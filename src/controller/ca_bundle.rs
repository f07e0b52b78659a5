//! Keeps the `caBundle` of the MutatingWebhookConfiguration `aci-spillway`: what the authority's Secret says is trusted.
//!
//! By a JSON patch with a `test` on each webhook's name, built from the live list. Server-side apply would not do: the webhooks are a
//! list of named entries, whoever applies one field of an entry owns the entry too, and a later manifest without that webhook would
//! leave half of it behind, which the API server refuses.

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Context, FIELD_MANAGER, guarded, is_conflict,
    reconcile::{Outcome, repeat},
};
use crate::certs::self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME, read_ca_secret};

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {0}")]
struct BundleError(&'static str, #[source] kube::Error);

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context) {
    let round = async || if context.is_self_managed() { round(context).await } else { Ok(Outcome::Right) };
    Box::pin(repeat("ca-bundle", &context.metrics, context.certificate_changes(), round)).await;
}

async fn round(context: &Context) -> Result<Outcome, BundleError> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let secret =
        secrets.get_opt(CA_SECRET_NAME).await.map_err(|error| BundleError("read Secret spillway-ca", error))?;
    // The keeper of the authority mends it, and that is a change that brings us back here.
    let Ok(stored) = read_ca_secret(secret.as_ref()) else { return Ok(Outcome::Right) };
    let read_error = |error| BundleError("read MutatingWebhookConfiguration aci-spillway", error);
    let configuration = configurations.get_opt(WEBHOOK_CONFIGURATION_NAME).await.map_err(read_error)?;
    // Whoever took the webhook out of the way did not do it by mistake.
    let Some(configuration) = configuration else { return Ok(Outcome::Right) };
    let Some(patch) = plan(&configuration, &stored.bundle()) else { return Ok(Outcome::Right) };

    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Json::<()>(patch);
    match configurations.patch(WEBHOOK_CONFIGURATION_NAME, &params, &patch).await {
        Ok(_) => {
            context.metrics.bundle_written("success");
            tracing::info!(certificates = stored.certificates().count(), "wrote the caBundle");
            Ok(Outcome::Changed)
        }
        Err(error) if is_conflict(&error) => {
            context.metrics.bundle_written("conflict");
            Ok(Outcome::Conflict)
        }
        Err(error) => {
            context.metrics.bundle_written("failure");
            Err(BundleError("write the caBundle of aci-spillway", error))
        }
    }
}

/// What is to be written; nothing if every webhook has this bundle already.
fn plan(configuration: &MutatingWebhookConfiguration, bundle: &str) -> Option<JsonPatch> {
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    let wrong = webhooks
        .iter()
        .enumerate()
        .filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref().is_none_or(|live| live.0 != bundle.as_bytes()));
    let operations = wrong.map(|(index, _)| {
        let index = index.to_string();
        let path = PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]);
        let value = json!(k8s_openapi::ByteString(bundle.as_bytes().to_vec()));
        PatchOperation::Add(AddOperation { path, value })
    });
    let operations: Vec<_> = operations.collect();
    // The list is patched by index: it has to be the one that was seen.
    let version = configuration.metadata.resource_version.as_deref()?;
    (!operations.is_empty()).then(|| guarded(version, JsonPatch(operations)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundles: &[(&str, Option<&str>)]) -> MutatingWebhookConfiguration {
        let webhook = |(name, bundle): &(&str, Option<&str>)| {
            let bundle = bundle.map(|bundle| k8s_openapi::ByteString(bundle.as_bytes().to_vec()));
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"url": "https://127.0.0.1/", "caBundle": bundle},
            })
        };
        let webhooks: Vec<_> = bundles.iter().map(webhook).collect();
        serde_json::from_value(
            json!({"metadata": {"name": "aci-spillway", "resourceVersion": "7"}, "webhooks": webhooks}),
        )
        .unwrap()
    }

    #[test]
    fn only_wrong_bundles_are_written_and_only_to_the_list_that_was_seen() {
        let live = configuration(&[("a", Some("wanted")), ("b", None), ("c", Some("other"))]);
        let patch = serde_json::to_value(plan(&live, "wanted").unwrap()).unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "d2FudGVk"},
                {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "d2FudGVk"},
            ])
        );
    }

    #[test]
    fn nothing_is_written_where_all_is_right() {
        assert_eq!(plan(&configuration(&[("a", Some("wanted")), ("b", Some("wanted"))]), "wanted"), None);
        assert_eq!(plan(&configuration(&[]), "wanted"), None);
        assert_eq!(plan(&MutatingWebhookConfiguration::default(), "wanted"), None);
    }
}
