//! Control planes for tests that install, change and remove cluster-wide objects.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use axum::http::Method;
use serde_json::Value;

use super::{ControlPlane, namespace::PREFIX};

/// The number of sandboxes that run at most. Each takes about 1 GiB of memory.
const LIMIT: usize = 4;

/// The nodes of the example, with which a control plane starts.
const NODES: [&str; 4] = ["vm-1", "vm-2", "vm-3", "virtualnode-0"];

/// A control plane for the exclusive use of one test. The sandbox deletes the test's namespaces and pods.
pub(crate) struct Sandbox {
    pub(crate) plane: &'static ControlPlane,
}

/// The sandboxes of this process.
struct Pool {
    free: Vec<&'static ControlPlane>,
    /// Number of sandboxes that run or start.
    count: usize,
    /// Number of sandboxes that were ever started.
    started: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: Vec::new(), count: 0, started: 0 });
static RETURNED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a free sandbox, starts another one, or waits for one.
pub(crate) fn sandbox() -> Sandbox {
    let mut pool = lock();
    loop {
        if let Some(plane) = pool.free.pop() {
            return Sandbox { plane };
        }
        if pool.count < LIMIT {
            break;
        }
        pool = RETURNED.wait(pool).unwrap_or_else(PoisonError::into_inner);
    }
    pool.count += 1;
    pool.started += 1;
    let suffix = format!("-sandbox-{}", pool.started);
    drop(pool);
    let slot = Slot;
    let plane = Box::leak(Box::new(ControlPlane::start(&suffix)));
    mem::forget(slot);
    Sandbox { plane }
}

/// A slot of the pool. Dropping it frees the slot.
struct Slot;

impl Drop for Slot {
    fn drop(&mut self) {
        lock().count -= 1;
        RETURNED.notify_one();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let slot = Slot;
        if let Err(message) = reset(self.plane) {
            // No other test may use this control plane.
            self.plane.stop();
            assert!(thread::panicking(), "cannot reset the sandbox: {message}");
            return;
        }
        mem::forget(slot);
        lock().free.push(self.plane);
        RETURNED.notify_one();
    }
}

/// Removes the objects of the test: the registration of the webhook, nodes, namespaces and their pods.
fn reset(plane: &ControlPlane) -> Result<(), String> {
    let send = |method: Method, path: &str| {
        plane.send(method, path, &Value::Null).map_err(|failure| format!("{path}: {}", failure.message))
    };
    let configuration = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/aci-spillway";
    match plane.send(Method::DELETE, configuration, &Value::Null) {
        Err(failure) if failure.code != Some(404) => return Err(format!("{configuration}: {}", failure.message)),
        _ => {}
    }
    let nodes = send(Method::GET, "/api/v1/nodes")?;
    for name in names(&nodes).filter(|name| !NODES.contains(name)) {
        send(Method::DELETE, &format!("/api/v1/nodes/{name}"))?;
    }
    let namespaces = send(Method::GET, "/api/v1/namespaces?fieldSelector=status.phase%3DActive")?;
    for name in names(&namespaces).filter(|name| name.starts_with(PREFIX)) {
        // Nothing can be created in a namespace that terminates, so that no ReplicaSet replaces its pods.
        send(Method::DELETE, &format!("/api/v1/namespaces/{name}"))?;
        send(Method::DELETE, &format!("/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0"))?;
    }
    Ok(())
}

/// Returns the names of the objects of a list.
fn names(list: &Value) -> impl Iterator<Item = &str> {
    list["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str())
}
