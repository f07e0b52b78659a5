//! `spillway off` and `spillway on`: the emergency switch.
//!
//! Nothing is lost wherever this is interrupted: the configuration is stored before it is removed, removed only as it was stored,
//! and the stored copy goes only once the configuration is back.

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
    Ended,
    cluster::{self, in_time, patiently},
    print_out,
};
use crate::certs::self_managed::WEBHOOK_CONFIGURATION_NAME;

const STORED: &str = "spillway-switched-off";
/// What `kubectl create -f` takes, for whoever has to do without this program.
const OBJECT_KEY: &str = "aci-spillway.json";
/// Who owned which field.
const MANAGERS_KEY: &str = "managed-fields.json";
const FIELD_MANAGER: &str = "spillway";

/// How often a configuration is stored anew because somebody has changed it meanwhile.
const ATTEMPTS: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where Spillway is installed
    #[arg(short, long, env = "SPILLWAY_NAMESPACE", default_value = "spillway-system")]
    namespace: String,

    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn off(args: &Args) -> anyhow::Result<Ended> {
    say(&run(async { Switch::connect(args).await?.off(args.dry_run).await })?)
}

pub(super) fn on(args: &Args) -> anyhow::Result<Ended> {
    say(&run(async { Switch::connect(args).await?.on(args.dry_run).await })?)
}

fn run<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(task)
}

fn say(words: &str) -> anyhow::Result<Ended> {
    print_out(format!("{words}\n").as_bytes())
}

/// What `off` has put away.
struct Stored {
    map: ConfigMap,
    object: DynamicObject,
    managers: ObjectMeta,
}

struct Switch {
    configurations: Api<DynamicObject>,
    maps: Api<ConfigMap>,
    /// The stored copy as people say it.
    place: String,
}

impl Switch {
    async fn connect(Args { namespace, context, dry_run: _ }: &Args) -> anyhow::Result<Self> {
        let client = Client::try_from(cluster::find(context.as_deref(), FIELD_MANAGER).await?)?;
        // Not typed: a field that this program does not know must come back too.
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
        let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingwebhookconfigurations");
        Ok(Self {
            configurations: Api::all_with(client.clone(), &resource),
            maps: Api::namespaced(client, namespace),
            place: format!("ConfigMap {namespace}/{STORED}"),
        })
    }

    async fn off(&self, dry_run: bool) -> anyhow::Result<String> {
        let place = &self.place;
        for _ in 0..ATTEMPTS {
            let Some(live) = self.live().await? else {
                return Ok(match self.stored().await? {
                    Some(_) => {
                        format!(
                            "Already off: {WEBHOOK_CONFIGURATION_NAME} is in {place}, and `spillway on` puts it back."
                        )
                    }
                    None => format!(
                        "Already off: there is no MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME}, and no copy in {place} either. \
                         To switch on, apply the manifests."
                    ),
                });
            };
            if dry_run {
                return Ok(format!(
                    "Would remove the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME}, so that the API server no longer calls \
                     Spillway, and keep it in {place}. Dry run: nothing was changed."
                ));
            }
            self.store(&live).await?;
            if self.remove(&live).await? {
                return Ok(format!(
                    "Switched off: the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} is removed, and the API server no longer calls \
                     Spillway.\n\
                     New pods are created as they are written: they stay on VMs, and Spillway gives them no workload identity label.\n\
                     Pods that exist keep what they have.\n\
                     It is kept in {place}, and `spillway on` puts it back. A GitOps tool, `helm upgrade` or another \
                     `kubectl apply` would put it back before that."
                ));
            }
        }
        bail!(
            "{WEBHOOK_CONFIGURATION_NAME} changes all the time; tried {ATTEMPTS} times to remove it as it was stored in {place}"
        )
    }

    async fn on(&self, dry_run: bool) -> anyhow::Result<String> {
        let place = &self.place;
        match (self.stored().await?, self.live().await?) {
            (None, Some(_)) => Ok(format!("Already on: {WEBHOOK_CONFIGURATION_NAME} is there.")),
            (None, None) => bail!(
                "nothing to put back: there is neither {WEBHOOK_CONFIGURATION_NAME} nor a copy in {place}; \
                 apply the manifests (kubectl apply -k manifests/base, or helm upgrade)"
            ),
            (Some(_), _) if dry_run => Ok(format!(
                "Would put back the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} from {place}, unless it is there already, and \
                 remove the copy. Dry run: nothing was changed."
            )),
            (Some(stored), Some(live)) => {
                self.give_back_fields(&stored, live).await?;
                self.forget(&stored.map).await?;
                Ok(format!("Already on: {WEBHOOK_CONFIGURATION_NAME} is there. The copy in {place} is removed."))
            }
            (Some(stored), None) => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let created = patiently(self.configurations.create(&params, &stored.object)).await;
                let created = created.with_context(|| format!("cannot create {WEBHOOK_CONFIGURATION_NAME}"))?;
                self.give_back_fields(&stored, created).await?;
                self.forget(&stored.map).await?;
                Ok(format!(
                    "Switched on: the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} is back as it was, and the API server calls \
                     Spillway for new pods.\n\
                     Pods that were created meanwhile stay as they are. The copy in {place} is removed."
                ))
            }
        }
    }

    async fn live(&self) -> anyhow::Result<Option<DynamicObject>> {
        let found = patiently(self.configurations.get_opt(WEBHOOK_CONFIGURATION_NAME)).await;
        found.with_context(|| format!("cannot get {WEBHOOK_CONFIGURATION_NAME}"))
    }

    async fn stored(&self) -> anyhow::Result<Option<Stored>> {
        let place = &self.place;
        let found = patiently(self.maps.get_opt(STORED)).await.with_context(|| format!("cannot get {place}"))?;
        let Some(map) = found else { return Ok(None) };
        let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str);
        let object = text(OBJECT_KEY).with_context(|| format!("{place} has no {OBJECT_KEY}"))?;
        let object = serde_json::from_str(object).with_context(|| format!("{place}: {OBJECT_KEY}"))?;
        let managers = serde_json::from_str(text(MANAGERS_KEY).unwrap_or("{}"));
        let managers = managers.with_context(|| format!("{place}: {MANAGERS_KEY}"))?;
        Ok(Some(Stored { map, object, managers }))
    }

    /// Writes the copy, or another one over it: what is live counts.
    async fn store(&self, live: &DynamicObject) -> anyhow::Result<()> {
        let (object, managers) = portable(live);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": STORED, "labels": {"app.kubernetes.io/name": "spillway"}},
            "data": {
                OBJECT_KEY: serde_json::to_string_pretty(&object)?,
                MANAGERS_KEY: serde_json::to_string_pretty(&managers)?,
            },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let stored = patiently(self.maps.patch(STORED, &params, &Patch::Apply(&map))).await;
        stored.with_context(|| format!("cannot write {}; nothing was switched off", self.place))?;
        Ok(())
    }

    /// Removes the configuration exactly as it was read; false when somebody was faster.
    async fn remove(&self, live: &DynamicObject) -> anyhow::Result<bool> {
        let preconditions =
            Preconditions { uid: live.metadata.uid.clone(), resource_version: live.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match in_time(self.configurations.delete(WEBHOOK_CONFIGURATION_NAME, &params)).await? {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {WEBHOOK_CONFIGURATION_NAME}")),
        }
    }

    /// Makes the former field managers own their fields again, so that the next `kubectl apply --server-side` meets no conflict
    /// with us. A configuration that somebody else has put back is left alone.
    async fn give_back_fields(&self, stored: &Stored, mut live: DynamicObject) -> anyhow::Result<()> {
        let fields = live.metadata.managed_fields.iter().flatten();
        let is_ours = fields.into_iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
        if !is_ours || stored.managers.managed_fields.is_none() {
            return Ok(());
        }
        live.metadata.managed_fields.clone_from(&stored.managers.managed_fields);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let replaced = patiently(self.configurations.replace(WEBHOOK_CONFIGURATION_NAME, &params, &live)).await;
        let context = || {
            format!("{WEBHOOK_CONFIGURATION_NAME} is on, but its field managers are not back; try `spillway on` again")
        };
        replaced.with_context(context)?;
        Ok(())
    }

    async fn forget(&self, map: &ConfigMap) -> anyhow::Result<()> {
        let preconditions =
            Preconditions { uid: map.metadata.uid.clone(), resource_version: map.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = patiently(self.maps.delete(STORED, &params)).await;
        deleted.with_context(|| format!("{WEBHOOK_CONFIGURATION_NAME} is on, but {} cannot be removed", self.place))?;
        Ok(())
    }
}

/// The object as somebody could have written it, and the managers of its fields.
fn portable(live: &DynamicObject) -> (DynamicObject, ObjectMeta) {
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
