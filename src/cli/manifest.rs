//! Manifests: YAML or JSON, several documents, lists. Also the pods of the workloads in them.

mod decode;
mod document;
mod pod_from_template;
mod pod_template;
mod read;

pub(super) use self::{document::Document, pod_template::PodTemplate, read::read};
