//! The fields of a pod that scheduling depends on, with a size limit.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher},
};

use kube::api::ObjectMeta;

use super::meta::annotations;
use crate::pod::{Container, Metadata, Pod, Spec, StringMap};

/// Maximum size of a view, in bytes of its `Debug` output. An ordinary pod has a few kilobytes, but the API server
/// accepts more than a megabyte. The view of a larger pod is empty, so the pod gets no late toleration.
const MAX_VIEW_BYTES: usize = 64 * 1024;

/// The fields of a pod that scheduling depends on.
#[derive(Debug, Default)]
pub(crate) struct SchedulingView {
    pod: Option<Pod<'static>>,
    /// Two views with the same digest count as equal.
    digest: u64,
}

impl PartialEq for SchedulingView {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl SchedulingView {
    pub(super) fn of(meta: &ObjectMeta, spec: Spec<'_>) -> Self {
        let annotations = annotations(meta);
        let kept: StringMap<'_> = annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let spec = Spec {
            volumes: None,
            containers: spec.containers.map(scheduling_fields),
            init_containers: spec.init_containers.map(scheduling_fields),
            ..spec
        };
        let pod = Pod { metadata: Metadata { annotations: Some(kept), ..Metadata::default() }, spec };
        let mut measure = Measure::default();
        if fmt::Write::write_fmt(&mut measure, format_args!("{pod:?}")).is_ok() {
            return Self { pod: Some(pod.into_owned()), digest: measure.digest.finish() };
        }
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        tracing::debug!(namespace, pod = name, "pod is too large for a late toleration");
        Self::default()
    }

    /// Returns the pod. Returns `None` if it is larger than [`MAX_VIEW_BYTES`], or if the view is empty.
    pub(super) fn pod(&self) -> Option<&Pod<'static>> {
        self.pod.as_ref()
    }
}

/// Removes the container fields that scheduling does not depend on.
fn scheduling_fields(containers: Vec<Container<'_>>) -> Vec<Container<'_>> {
    let scheduling_fields = |Container { name, restart_policy, resources, .. }| Container {
        name,
        restart_policy,
        resources,
        ..Container::default()
    };
    containers.into_iter().map(scheduling_fields).collect()
}

/// Measures and hashes text of up to [`MAX_VIEW_BYTES`].
#[derive(Default)]
struct Measure {
    bytes: usize,
    digest: DefaultHasher,
}

impl fmt::Write for Measure {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len();
        self.digest.write(text.as_bytes());
        if self.bytes > MAX_VIEW_BYTES { Err(fmt::Error) } else { Ok(()) }
    }
}
