//! What the two long-running commands share.

use tokio::signal::unix::{SignalKind, signal};

/// Done at SIGTERM, which the kubelet sends, or SIGINT, which Ctrl-C sends.
pub(super) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
