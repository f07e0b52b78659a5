//! What the two long-running commands share: their runtime, their configuration, and how they are asked to end.

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

/// How to run.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RuntimeArgs {
    /// Threads that serve; by default the CPUs of the container, two at most
    #[arg(long, env = "SPILLWAY_WORKER_THREADS", value_name = "NUMBER")]
    worker_threads: Option<NonZeroUsize>,
}

/// A request costs some 40 µs of CPU, so one thread is enough for 20,000 a second; the second is there for handshakes and lists.
const WORKERS: usize = 2;

impl RuntimeArgs {
    /// The runtime. For one worker it is this thread alone: on one CPU, waking another one costs 5 µs a request, for nothing.
    pub(super) fn start(&self) -> anyhow::Result<Runtime> {
        let workers = match self.worker_threads {
            Some(workers) => workers.get(),
            // Counts the CPUs that affinity and the cgroup's quota leave, and 1 for less than two.
            None => available_parallelism().map_or(1, NonZeroUsize::get).min(WORKERS),
        };
        let mut builder = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
        let runtime = builder.worker_threads(workers).enable_all().build().context("cannot start the runtime")?;
        tracing::debug!(workers, "runtime started");
        Ok(runtime)
    }
}

/// The configuration, which is followed from now on, as is what it says about the log; `told` hears of each change of the file.
/// Without a file, the built-in defaults.
pub(super) async fn configuration(
    file: Option<&Path>,
    logs: logs::Logs,
    registry: &mut Registry,
    told: impl FnMut(Result<(), &LoadError>) + Send + 'static,
) -> anyhow::Result<ConfigReceiver> {
    let metrics = ConfigurationMetrics::new(registry);
    let Some(file) = file else {
        metrics.replaced();
        return Ok(watch::channel(Arc::default()).1);
    };
    let file = ConfigurationFile::load(file, metrics).await?;
    let in_force = file.in_force();
    tokio::spawn(logs.follow(in_force.clone()));
    tokio::spawn(file.follow(told));
    Ok(in_force)
}

/// SIGTERM, which the kubelet sends, and SIGINT, which Ctrl-C sends.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does the work, which is told of the first signal and then has its time to end. A second signal ends it at once.
    pub(super) async fn end<W: Future<Output = ()>>(mut self, work: impl FnOnce(Stop) -> W) {
        let (told, stop) = oneshot::channel();
        let work = work(Stop(stop));
        let signals = async {
            self.next().await;
            let _ = told.send(());
            self.next().await;
        };
        tokio::select! {
            () = work => tracing::info!("stopped"),
            () = signals => tracing::warn!("a second signal: stopped at once"),
        }
    }
}

/// Tells when the process has been asked to end.
pub(super) struct Stop(oneshot::Receiver<()>);

impl Stop {
    /// Done then.
    pub(super) async fn asked(self) {
        // The sender lives as long as whoever waits here.
        let _ = self.0.await;
    }
}
