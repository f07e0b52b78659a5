//! Namespace and name of the pod that a long-running command runs in, from the downward API.

use std::fs;

/// Namespace and name of this pod.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PodArgs {
    /// Namespace of Spillway's own objects
    #[arg(long, env = "SPILLWAY_NAMESPACE", default_value = "spillway-system", value_name = "NAME")]
    pub(super) namespace: String,

    /// Name of this pod; by default the host name, which is the same in a pod
    #[arg(long, env = "SPILLWAY_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
}

impl PodArgs {
    pub(super) fn pod_name(&self) -> anyhow::Result<String> {
        match &self.pod_name {
            Some(name) => Ok(name.clone()),
            None => Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned()),
        }
    }
}
