//! `spillway controller`: keep the cluster right.

use std::path::PathBuf;

use anyhow::Context;
use tokio::sync::{mpsc, watch};

use super::{Ended, cluster, pod::PodArgs, print_out, process};
use crate::{
    admin::{self, AdminArgs},
    controller::{self, Controller, Leadership, last_resort},
    telemetry::{self, ControllerMetrics, logs},
};

/// Run the controller
///
/// Keeps the certificate authority of the webhook in Secret spillway-ca, and the caBundle of the MutatingWebhookConfiguration
/// aci-spillway; keeps virtual nodes the last resort, and closes them at a cap; lets pods of mode late onto them; mends what the webhook
/// has missed; and checks workload identity. Of several replicas one acts, elected by the Lease spillway-controller. Finds the
/// cluster as kubectl does: through KUBECONFIG or ~/.kube/config, and where there is none, in a pod, through its service account.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The SpillwayConfiguration file; without one, the built-in defaults
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Take the taints of Spillway off all nodes, and end. For when Spillway is removed: a controller that still runs puts them back
    #[arg(long)]
    cleanup: bool,

    #[command(flatten)]
    admin: AdminArgs,

    #[command(flatten)]
    pod: PodArgs,

    #[command(flatten)]
    runtime: process::RuntimeArgs,

    #[command(flatten)]
    logs: logs::LogArgs,
}

/// Changes of the configuration file that wait to be told of. More than these at once are of no interest.
const TOLD: usize = 8;

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let Args { config, cleanup, admin, pod, runtime, logs } = args;
    let logs = logs::start(logs);
    if *cleanup {
        return runtime.start()?.block_on(clean_up());
    }
    let pod_name = pod.pod_name().context("--pod-name: cannot read the name of this host")?;
    runtime.start()?.block_on(async {
        let mut registry = telemetry::registry();
        telemetry::count_panics(&mut registry);
        logs.register(&mut registry);
        let (tell, told) = mpsc::channel(TOLD);
        let tell = move |change: Result<(), &_>| drop(tell.try_send(change.err().map(ToString::to_string)));
        let configuration = process::configuration(config.as_deref(), logs, &mut registry, tell).await?;
        let admin = admin::bind(admin).await?;
        let client = client().await?;
        let metrics = ControllerMetrics::new(&mut registry);
        let controller = Controller::new(client, &pod.namespace, &pod_name, configuration, metrics);
        let signals = process::Signals::listen()?;
        tracing::info!(admin = %admin.address()?, pod = pod_name, "listening");
        let leadership = controller.leadership();
        let admin = tokio::spawn(admin.serve(move || missing(&leadership), registry));
        signals.end(|stop| controller.run(stop.asked(), told)).await;
        admin.abort();
        Ok(Ended::Fine)
    })
}

async fn client() -> anyhow::Result<kube::Client> {
    kube::Client::try_from(cluster::find(None, controller::NAME).await?).context("cannot make a client of the cluster")
}

async fn clean_up() -> anyhow::Result<Ended> {
    let cleaned = last_resort::cleanup(&client().await?).await?;
    let said = match cleaned.as_slice() {
        [] => "no node has a taint of Spillway\n".to_owned(),
        nodes => format!("took the taints of Spillway off {}\n", nodes.join(", ")),
    };
    print_out(said.as_bytes())
}

/// What is missing before the controller does its part, acting or standing by. The configuration never is: without one it does not
/// start.
fn missing(leadership: &watch::Receiver<Leadership>) -> Vec<&'static str> {
    match *leadership.borrow() {
        Leadership::Unknown => vec!["lease"],
        Leadership::StandingBy | Leadership::Leading => Vec::new(),
    }
}
