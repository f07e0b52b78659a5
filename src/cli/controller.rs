//! `spillway controller`: run the controller.

use std::path::PathBuf;

use anyhow::Context;
use tokio::sync::{mpsc, watch};

use super::{
    kube_client,
    output::{ExitStatus, print_stdout},
    pod_args::PodArgs,
    process,
};
use crate::{
    admin::{self, AdminArgs},
    controller::{self, Controller, Leadership, last_resort},
    telemetry::{self, ControllerMetrics, logs},
};

/// Run the controller
///
/// The controller keeps the CA of the webhook in Secret spillway-ca, and the caBundle of the
/// MutatingWebhookConfiguration aci-spillway. It keeps virtual nodes the last resort, and closes them at a cap. It lets
/// pods in mode late overflow, and repairs pods that the webhook missed. It checks workload identity.
///
/// Only the leader acts. The replicas elect it with the Lease spillway-controller.
///
/// The controller finds the cluster as kubectl does: through KUBECONFIG or ~/.kube/config. In a pod without these, it
/// uses the service account.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the SpillwayConfiguration file; by default the built-in configuration
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Remove Spillway's taints from all nodes and exit. To uninstall, stop the controller first, because it adds
    /// them again
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

/// Maximum number of configuration changes that wait to be reported. The program drops others.
const MAX_QUEUED_CONFIG_CHANGES: usize = 8;

pub(super) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let Args { config, cleanup, admin, pod, runtime, logs } = args;
    let logs = logs::start(logs);
    if *cleanup {
        return runtime.start()?.block_on(cleanup_taints());
    }
    let pod_name = pod.pod_name().context("--pod-name: cannot read the host name")?;
    runtime.start()?.block_on(async {
        let mut registry = telemetry::registry();
        telemetry::count_panics(&mut registry);
        logs.register(&mut registry);
        let (report, config_changes) = mpsc::channel(MAX_QUEUED_CONFIG_CHANGES);
        let report = move |change: Result<(), &_>| drop(report.try_send(change.err().map(ToString::to_string)));
        let configuration = process::configuration(config.as_deref(), logs, &mut registry, report).await?;
        let admin = admin::bind(admin).await?;
        let client = client().await?;
        let metrics = ControllerMetrics::new(&mut registry);
        let controller = Controller::new(client, &pod.namespace, &pod_name, configuration, metrics);
        let signals = process::Signals::listen()?;
        tracing::info!(admin = %admin.address()?, probes = %admin.probe_address()?, pod = pod_name, "listening");
        let leadership = controller.leadership();
        let admin = tokio::spawn(admin.serve(move || not_ready_reasons(&leadership), registry));
        signals.run_until_signal(|stop| controller.run(stop.received(), config_changes)).await;
        admin.abort();
        Ok(ExitStatus::Success)
    })
}

async fn client() -> anyhow::Result<kube::Client> {
    kube::Client::try_from(kube_client::config(None, controller::NAME).await?)
        .context("cannot create a Kubernetes client")
}

async fn cleanup_taints() -> anyhow::Result<ExitStatus> {
    let cleaned = last_resort::cleanup(&client().await?).await?;
    let message = match cleaned.as_slice() {
        [] => "no node has a Spillway taint\n".to_owned(),
        nodes => format!("removed Spillway's taints from {}\n", nodes.join(", ")),
    };
    print_stdout(message.as_bytes())
}

/// Returns the missing conditions for readiness. The configuration is always present, because the program does not start
/// without it.
fn not_ready_reasons(leadership: &watch::Receiver<Leadership>) -> Vec<&'static str> {
    match *leadership.borrow() {
        Leadership::Unknown => vec!["lease"],
        Leadership::StandingBy | Leadership::Leading => Vec::new(),
    }
}
