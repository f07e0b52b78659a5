//! Advice: changes of virtual nodes and namespaces that only users can make.

mod plan;

use std::time::Duration;

use futures_util::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use plan::{Observation, Plan, plan};
use tokio::time::Instant;

use super::{
    changes::changes_of,
    context::Context,
    events::ObjectEvent,
    reconcile::{Outcome, run_rounds},
};
use crate::cluster::Inventory;

const RECONCILER: &str = "advice";

/// How often the controller looks for a node autoscaler.
const AUTOSCALER_CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// The ConfigMap with the status of cluster-autoscaler (kubernetes/autoscaler `clusterstate/utils/status.go`).
const AUTOSCALER_STATUS: (&str, &str) = ("kube-system", "cluster-autoscaler-status");

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out whether the cluster has a node autoscaler")]
struct AutoscalerError(#[source] kube::Error);

/// The result of the last search for a node autoscaler.
struct KnownAutoscaler {
    checked: Instant,
    name: Option<&'static str>,
}

/// Runs rounds until the future is dropped. Pods change too often to start a round with each change.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = stream::select(changes_of(inventory.nodes.clone()), changes_of(context.configuration.clone()));
    let mut known = None;
    let round = async || round(context, inventory, &mut known).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, changes, round)).await;
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    known: &mut Option<KnownAutoscaler>,
) -> Result<Outcome, AutoscalerError> {
    let autoscaler = match known {
        Some(known) if known.checked.elapsed() < AUTOSCALER_CHECK_INTERVAL => known.name,
        _ => {
            let name = find_autoscaler(&context.client).await.map_err(AutoscalerError)?;
            known.insert(KnownAutoscaler { checked: Instant::now(), name }).name
        }
    };
    let configuration = context.configuration.borrow().clone();
    let plan = plan(&Observation {
        nodes: &inventory.nodes.borrow(),
        pods: &inventory.pods.borrow(),
        snapshot: &inventory.snapshot(),
        configuration: &configuration,
        autoscaler,
    });
    let Some(Plan { events, counts }) = plan else { return Ok(Outcome::NotSynced) };
    context.metrics.overflow.advice(counts);
    for ObjectEvent { about, kind, note } in events {
        context.event_aggregator.record(about, kind, note);
    }
    Ok(Outcome::UpToDate)
}

/// Returns the name of the cluster's node autoscaler, if there is one.
async fn find_autoscaler(client: &Client) -> Result<Option<&'static str>, kube::Error> {
    let (namespace, name) = AUTOSCALER_STATUS;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    if maps.get_metadata_opt(name).await?.is_some() {
        return Ok(Some("cluster-autoscaler"));
    }
    let pools =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("karpenter.sh", "v1", "NodePool"), "nodepools");
    let pools: Api<DynamicObject> = Api::all_with(client.clone(), &pools);
    match pools.list_metadata(&ListParams::default().limit(1)).await {
        Ok(found) => Ok((!found.items.is_empty()).then_some("Karpenter")),
        // Karpenter is not installed.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
