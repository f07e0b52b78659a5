//! What the tests stand on: a control plane, the webhook, stub webhooks.
//!
//! Nothing outlives the test process, however it ends: every child reads its standard input and stops when that closes, and
//! the kernel closes it with us.

mod api;
mod control_plane;
mod controller;
mod https;
mod namespace;
mod sandbox;
mod service;
mod stub;
mod webhook;

use std::{
    thread,
    time::{Duration, Instant},
};

pub(crate) use control_plane::{ControlPlane, control_plane};
pub(crate) use controller::Controller;
pub(crate) use namespace::Namespace;
pub(crate) use sandbox::{Sandbox, sandbox};
pub(crate) use service::Service;
pub(crate) use stub::{Stub, allowed, in_namespace, register_url};
#[allow(unused_imports)] // what is not about tests installs it as it is
pub(crate) use webhook::installed_configuration;
pub(crate) use webhook::{
    PATIENCE, Pair, Webhook, directory, install, manifest_webhooks, patient, register_spillway, spillway,
    spillway_command, webhook_configuration,
};

/// Waits for a condition, and gives up after a time that no healthy machine needs.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    const TIMEOUT: Duration = Duration::from_secs(60);
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
