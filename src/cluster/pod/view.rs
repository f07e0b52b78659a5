//! The part of a pod that scheduling depends on, bounded in size.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher},
};

use kube::api::ObjectMeta;

use super::meta::annotations;
use crate::pod::{Container, Metadata, Pod, Spec, StringMap};

/// The most that is kept of one pod for scheduling, in bytes of its `Debug` output. A pod takes some kilobytes; the API server accepts
/// more than a megabyte. A pod beyond this has no [`SchedulingView`]: it gets no late toleration.
const MAX_VIEW_BYTES: usize = 64 * 1024;

/// The part of a pod that scheduling depends on.
#[derive(Debug, Default)]
pub(crate) struct SchedulingView {
    pod: Option<Pod<'static>>,
    /// Two views with the same digest say the same.
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
            containers: spec.containers.map(slim),
            init_containers: spec.init_containers.map(slim),
            ..spec
        };
        let pod = Pod { metadata: Metadata { annotations: Some(kept), ..Metadata::default() }, spec };
        let mut measure = Measure::default();
        if fmt::Write::write_fmt(&mut measure, format_args!("{pod:?}")).is_ok() {
            return Self { pod: Some(pod.into_owned()), digest: measure.digest.finish() };
        }
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        tracing::debug!(namespace, pod = name, "pod is too large: it gets no late toleration");
        Self::default()
    }

    /// The pod; `None` if it is larger than [`MAX_VIEW_BYTES`], or was not kept.
    pub(super) fn pod(&self) -> Option<&Pod<'static>> {
        self.pod.as_ref()
    }
}

/// What scheduling needs of containers.
fn slim(containers: Vec<Container<'_>>) -> Vec<Container<'_>> {
    let slim = |Container { name, restart_policy, resources, .. }| Container {
        name,
        restart_policy,
        resources,
        ..Container::default()
    };
    containers.into_iter().map(slim).collect()
}

/// Measures what is written, up to [`MAX_VIEW_BYTES`].
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
