//! The common parts of the two long-running commands: runtime, configuration and signals.

use std::{num::NonZeroUsize, path::Path, sync::Arc, thread::available_parallelism};

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};

use crate::{
    reload::configuration::{ConfigReceiver, ConfigurationFile, LoadError},
    telemetry::{ConfigurationMetrics, logs},
};

/// Options of the runtime.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RuntimeArgs {
    /// Number of worker threads; by default the CPUs of the container, at most two
    #[arg(long, env = "SPILLWAY_WORKER_THREADS", value_name = "NUMBER")]
    worker_threads: Option<NonZeroUsize>,
}

/// Maximum number of worker threads by default. A request takes about 40 µs of CPU, so one thread serves 20,000
/// requests per second. The second thread is for handshakes and lists.
const MAX_DEFAULT_WORKERS: usize = 2;

impl RuntimeArgs {
    /// Starts the runtime. With one worker it is single-threaded: on one CPU, waking another thread costs 5 µs per
    /// request.
    pub(super) fn start(&self) -> anyhow::Result<Runtime> {
        let workers = match self.worker_threads {
            Some(workers) => workers.get(),
            // Respects the CPU affinity and the cgroup quota, and returns 1 for less than two CPUs.
            None => available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_DEFAULT_WORKERS),
        };
        let mut builder = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
        let runtime = builder.worker_threads(workers).enable_all().build().context("cannot start the runtime")?;
        tracing::debug!(workers, "runtime started");
        Ok(runtime)
    }
}

/// Loads the configuration and starts reloading it. The log level follows the configuration. `on_change` is called for
/// each change of the file. Without a file, the configuration is the built-in one.
pub(super) async fn configuration(
    file: Option<&Path>,
    logs: logs::Logs,
    registry: &mut Registry,
    on_change: impl FnMut(Result<(), &LoadError>) + Send + 'static,
) -> anyhow::Result<ConfigReceiver> {
    let metrics = ConfigurationMetrics::new(registry);
    let Some(file) = file else {
        metrics.replaced();
        return Ok(watch::channel(Arc::default()).1);
    };
    let file = ConfigurationFile::load(file, metrics).await?;
    let configuration = file.subscribe();
    tokio::spawn(logs.follow(configuration.clone()));
    tokio::spawn(file.follow(on_change));
    Ok(configuration)
}

/// SIGTERM, from the kubelet, and SIGINT, from Ctrl-C.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts listening. The signals then no longer terminate the process.
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Runs `work`, which shuts down after the first signal. A second signal cancels it immediately.
    pub(super) async fn run_until_signal<W: Future<Output = ()>>(mut self, work: impl FnOnce(ShutdownSignal) -> W) {
        let (notify, stop) = oneshot::channel();
        let work = work(ShutdownSignal(stop));
        let signals = async {
            self.next().await;
            let _ = notify.send(());
            self.next().await;
        };
        tokio::select! {
            () = work => tracing::info!("stopped"),
            () = signals => tracing::warn!("received a second signal, stopping immediately"),
        }
    }
}

/// The first signal.
pub(super) struct ShutdownSignal(oneshot::Receiver<()>);

impl ShutdownSignal {
    /// Waits for the first signal.
    pub(super) async fn received(self) {
        // The sender lives as long as this future is polled.
        let _ = self.0.await;
    }
}
