//! `spillway off` and `spillway on`: the emergency switch.
//!
//! A user can interrupt both commands at any time without loss. `off` stores a copy, and removes the configuration only
//! if it equals the copy. `on` deletes the copy only after it has restored the configuration.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams,
        Preconditions,
    },
};
use serde_json::json;

use super::{
    kube_client::{self, with_timeout, with_timeout_result},
    output::{ExitStatus, print_stdout},
};
use crate::certs::self_managed::WEBHOOK_CONFIGURATION_NAME;

const COPY_NAME: &str = "spillway-switched-off";
/// Key of the configuration, for `kubectl create -f` without this program.
const CONFIGURATION_KEY: &str = "aci-spillway.json";
/// Key of the managed fields.
const MANAGED_FIELDS_KEY: &str = "managed-fields.json";
const FIELD_MANAGER: &str = "spillway";

/// Maximum number of attempts to copy and remove a configuration that changes at the same time.
const MAX_ATTEMPTS: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Namespace of the installation
    #[arg(short, long, env = "SPILLWAY_NAMESPACE", default_value = "spillway-system")]
    namespace: String,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Only print the change
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn off(args: &Args) -> anyhow::Result<ExitStatus> {
    print_message(&run(async { Switch::connect(args).await?.off(args.dry_run).await })?)
}

pub(super) fn on(args: &Args) -> anyhow::Result<ExitStatus> {
    print_message(&run(async { Switch::connect(args).await?.on(args.dry_run).await })?)
}

fn run<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(task)
}

fn print_message(text: &str) -> anyhow::Result<ExitStatus> {
    print_stdout(format!("{text}\n").as_bytes())
}

/// The copy that `off` stored.
struct StoredCopy {
    map: ConfigMap,
    object: DynamicObject,
    managers: ObjectMeta,
}

struct Switch {
    configurations: Api<DynamicObject>,
    maps: Api<ConfigMap>,
    /// The name of the copy, for messages.
    location: String,
}

impl Switch {
    async fn connect(Args { namespace, context, dry_run: _ }: &Args) -> anyhow::Result<Self> {
        let client = Client::try_from(kube_client::config(context.as_deref(), FIELD_MANAGER).await?)?;
        // Untyped, so that the copy also has fields that this program does not know.
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
        let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingwebhookconfigurations");
        Ok(Self {
            configurations: Api::all_with(client.clone(), &resource),
            maps: Api::namespaced(client, namespace),
            location: format!("ConfigMap {namespace}/{COPY_NAME}"),
        })
    }

    async fn off(&self, dry_run: bool) -> anyhow::Result<String> {
        let location = &self.location;
        for _ in 0..MAX_ATTEMPTS {
            let Some(live) = self.live().await? else {
                return Ok(match self.stored().await? {
                    Some(_) => {
                        format!(
                            "Already off: {WEBHOOK_CONFIGURATION_NAME} is removed, and `spillway on` restores it from {location}."
                        )
                    }
                    None => format!(
                        "Already off: the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} does not exist, and {location} has no copy. \
                         To switch Spillway on, apply the manifests."
                    ),
                });
            };
            if dry_run {
                return Ok(format!(
                    "Would remove the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME}, so that the API server no longer calls \
                     Spillway, and store a copy in {location}. Dry run: nothing changed."
                ));
            }
            self.store(&live).await?;
            if self.remove(&live).await? {
                return Ok(format!(
                    "Switched off: the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} is removed, and the API server no longer calls \
                     Spillway.\n\
                     New pods stay on VMs, and get no workload identity label from Spillway. Existing pods do not change.\n\
                     A copy is in {location}, and `spillway on` restores it. A GitOps tool, `helm upgrade` or \
                     `kubectl apply` can also restore it."
                ));
            }
        }
        bail!(
            "{WEBHOOK_CONFIGURATION_NAME} changed during each of {MAX_ATTEMPTS} attempts to remove it, so Spillway is still on"
        )
    }

    async fn on(&self, dry_run: bool) -> anyhow::Result<String> {
        let location = &self.location;
        match (self.stored().await?, self.live().await?) {
            (None, Some(_)) => Ok(format!("Already on: {WEBHOOK_CONFIGURATION_NAME} exists.")),
            (None, None) => bail!(
                "nothing to restore: neither {WEBHOOK_CONFIGURATION_NAME} nor {location} exists; \
                 apply the manifests (kubectl apply -k manifests/base, or helm upgrade)"
            ),
            (Some(_), _) if dry_run => Ok(format!(
                "Would restore the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} from {location} unless it exists, and \
                 delete the copy. Dry run: nothing changed."
            )),
            (Some(stored), Some(live)) => {
                self.restore_managed_fields(&stored, live).await?;
                self.delete_copy(&stored.map).await?;
                Ok(format!("Already on: {WEBHOOK_CONFIGURATION_NAME} exists. The copy in {location} is deleted."))
            }
            (Some(stored), None) => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let created = with_timeout(self.configurations.create(&params, &stored.object)).await;
                let created = created.with_context(|| format!("cannot create {WEBHOOK_CONFIGURATION_NAME}"))?;
                self.restore_managed_fields(&stored, created).await?;
                self.delete_copy(&stored.map).await?;
                Ok(format!(
                    "Switched on: the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} is restored, and the API server calls \
                     Spillway for new pods.\n\
                     Pods created in the meantime do not change. The copy in {location} is deleted."
                ))
            }
        }
    }

    async fn live(&self) -> anyhow::Result<Option<DynamicObject>> {
        let found = with_timeout(self.configurations.get_opt(WEBHOOK_CONFIGURATION_NAME)).await;
        found.with_context(|| format!("cannot get {WEBHOOK_CONFIGURATION_NAME}"))
    }

    async fn stored(&self) -> anyhow::Result<Option<StoredCopy>> {
        let location = &self.location;
        let found =
            with_timeout(self.maps.get_opt(COPY_NAME)).await.with_context(|| format!("cannot get {location}"))?;
        let Some(map) = found else { return Ok(None) };
        let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str);
        let object = text(CONFIGURATION_KEY).with_context(|| format!("{location} has no {CONFIGURATION_KEY}"))?;
        let object = serde_json::from_str(object).with_context(|| format!("{location}: {CONFIGURATION_KEY}"))?;
        let managers = serde_json::from_str(text(MANAGED_FIELDS_KEY).unwrap_or("{}"));
        let managers = managers.with_context(|| format!("{location}: {MANAGED_FIELDS_KEY}"))?;
        Ok(Some(StoredCopy { map, object, managers }))
    }

    /// Writes the copy of the live configuration. It replaces an older copy.
    async fn store(&self, live: &DynamicObject) -> anyhow::Result<()> {
        let (object, managers) = split_managed_fields(live);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": COPY_NAME, "labels": {"app.kubernetes.io/name": "spillway"}},
            "data": {
                CONFIGURATION_KEY: serde_json::to_string_pretty(&object)?,
                MANAGED_FIELDS_KEY: serde_json::to_string_pretty(&managers)?,
            },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let stored = with_timeout(self.maps.patch(COPY_NAME, &params, &Patch::Apply(&map))).await;
        stored.with_context(|| format!("cannot write {}; Spillway is still on", self.location))?;
        Ok(())
    }

    /// Removes the configuration, unless it has changed since it was read. Returns whether it was removed.
    async fn remove(&self, live: &DynamicObject) -> anyhow::Result<bool> {
        let preconditions =
            Preconditions { uid: live.metadata.uid.clone(), resource_version: live.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match with_timeout_result(self.configurations.delete(WEBHOOK_CONFIGURATION_NAME, &params)).await? {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {WEBHOOK_CONFIGURATION_NAME}")),
        }
    }

    /// Restores the former field managers, so that the next `kubectl apply --server-side` has no conflict with
    /// Spillway. Does not change a configuration that another client restored.
    async fn restore_managed_fields(&self, stored: &StoredCopy, mut live: DynamicObject) -> anyhow::Result<()> {
        let fields = live.metadata.managed_fields.iter().flatten();
        let is_ours = fields.into_iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
        if !is_ours || stored.managers.managed_fields.is_none() {
            return Ok(());
        }
        live.metadata.managed_fields.clone_from(&stored.managers.managed_fields);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let replaced = with_timeout(self.configurations.replace(WEBHOOK_CONFIGURATION_NAME, &params, &live)).await;
        let context =
            || format!("{WEBHOOK_CONFIGURATION_NAME} is restored, but not its field managers; run `spillway on` again");
        replaced.with_context(context)?;
        Ok(())
    }

    async fn delete_copy(&self, map: &ConfigMap) -> anyhow::Result<()> {
        let preconditions =
            Preconditions { uid: map.metadata.uid.clone(), resource_version: map.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = with_timeout(self.maps.delete(COPY_NAME, &params)).await;
        deleted.with_context(|| {
            format!("{WEBHOOK_CONFIGURATION_NAME} is restored, but {} cannot be deleted", self.location)
        })?;
        Ok(())
    }
}

/// Returns the object without fields that the API server sets, and the managed fields.
fn split_managed_fields(live: &DynamicObject) -> (DynamicObject, ObjectMeta) {
    let mut object = live.clone();
    let from = &live.metadata;
    object.metadata = ObjectMeta {
        name: from.name.clone(),
        labels: from.labels.clone(),
        annotations: from.annotations.clone(),
        owner_references: from.owner_references.clone(),
        finalizers: from.finalizers.clone(),
        ..ObjectMeta::default()
    };
    (object, ObjectMeta { managed_fields: from.managed_fields.clone(), ..ObjectMeta::default() })
}
