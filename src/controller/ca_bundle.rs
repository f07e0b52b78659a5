//! Keeps the `caBundle` of the MutatingWebhookConfiguration `aci-spillway` equal to the trusted certificates in the authority's Secret.
//!
//! The controller writes a JSON patch to the observed version. It does not use server-side apply: webhooks are a list of named entries,
//! and a client that applies one field of an entry also owns the entry. A later manifest without that webhook would leave an incomplete
//! entry, which the API server refuses.

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    context::Context,
    names::FIELD_MANAGER,
    reconcile::{Outcome, run_rounds},
};
use crate::{
    certs::self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME, read_ca_secret},
    cluster::Inventory,
    kubernetes::{conditional_patch, is_conflict},
};

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {0}")]
struct BundleError(&'static str, #[source] kube::Error);

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let round = async || if context.is_self_managed() { round(context).await } else { Ok(Outcome::UpToDate) };
    Box::pin(run_rounds("ca-bundle", &context.metrics, context.certificate_changes(inventory), round)).await;
}

async fn round(context: &Context) -> Result<Outcome, BundleError> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let secret =
        secrets.get_opt(CA_SECRET_NAME).await.map_err(|error| BundleError("read Secret spillway-ca", error))?;
    // The authority reconciler repairs the Secret. That change starts another round.
    let Ok(stored) = read_ca_secret(secret.as_ref()) else { return Ok(Outcome::UpToDate) };
    let read_error = |error| BundleError("read MutatingWebhookConfiguration aci-spillway", error);
    let configuration = configurations.get_opt(WEBHOOK_CONFIGURATION_NAME).await.map_err(read_error)?;
    // A user who deletes the configuration switches the webhook off.
    let Some(configuration) = configuration else { return Ok(Outcome::UpToDate) };
    let Some(patch) = plan(&configuration, &stored.bundle()) else { return Ok(Outcome::UpToDate) };

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

/// Returns the patch, or `None` if every webhook already has this bundle.
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
    // The indices are valid for the observed version only.
    let version = configuration.metadata.resource_version.as_deref()?;
    (!operations.is_empty()).then(|| conditional_patch(version, JsonPatch(operations)))
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
    fn only_wrong_bundles_are_written_to_the_observed_version() {
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
    fn nothing_is_written_if_all_bundles_are_right() {
        assert_eq!(plan(&configuration(&[("a", Some("wanted")), ("b", Some("wanted"))]), "wanted"), None);
        assert_eq!(plan(&configuration(&[]), "wanted"), None);
        assert_eq!(plan(&MutatingWebhookConfiguration::default(), "wanted"), None);
    }
}
