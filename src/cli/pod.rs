//! Who and where a long-running command is in its cluster: the downward API tells it by variables.

use std::fs;

/// Who this process is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PodArgs {
    /// The namespace of Spillway's own objects
    #[arg(long, env = "SPILLWAY_NAMESPACE", default_value = "spillway-system", value_name = "NAME")]
    pub(super) namespace: String,

    /// The name of this pod; by default the name of this host, which in a pod is the same
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
