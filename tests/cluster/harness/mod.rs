//! The test harness: control planes, the webhook, the controller, and stub webhooks.
//!
//! No child process outlives the test process: each stops when its standard input closes, which the kernel does when the test
//! process ends.

mod api;
mod config_volume;
mod control_plane;
mod controller;
mod https;
mod installed_sandbox;
mod namespace;
mod sandbox;
mod service;
mod stub;
mod webhook;

use std::{
    thread,
    time::{Duration, Instant},
};

pub(crate) use config_volume::ConfigVolume;
pub(crate) use control_plane::{ControlPlane, control_plane};
pub(crate) use controller::Controller;
pub(crate) use installed_sandbox::{AUTHORITY_SECRET, CONTROLLER_LEASE, InstalledSandbox, WEBHOOK_CONFIGURATION};
pub(crate) use namespace::Namespace;
pub(crate) use sandbox::{Sandbox, sandbox};
pub(crate) use service::Service;
pub(crate) use stub::{Stub, allowed, in_namespace, register_url};
#[allow(unused_imports)] // used by the scenarios of `make prove` and by benchmarks
pub(crate) use webhook::installed_configuration;
pub(crate) use webhook::{
    KeyPair, LONG_TIMEOUT_SECONDS, Webhook, directory, install, manifest_webhooks, register_spillway, spillway,
    spillway_command, webhook_configuration, with_long_timeouts,
};

/// Waits for a condition. Panics after a timeout that is long enough for a busy machine.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    const TIMEOUT: Duration = Duration::from_secs(120);
    const POLL_INTERVAL: Duration = Duration::from_millis(40);
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "waited {TIMEOUT:?} for {what}");
        thread::sleep(POLL_INTERVAL);
    }
}
