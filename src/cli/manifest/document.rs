//! One object of a manifest.

use anyhow::anyhow;
use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use crate::pod::Metadata;

/// One document and its source.
#[derive(Debug)]
pub(in crate::cli) struct Document {
    pub(in crate::cli) source: String,
    pub(in crate::cli) value: Value,
}

impl Document {
    /// Returns the kind.
    pub(in crate::cli) fn kind(&self) -> &str {
        self.text("/kind").unwrap_or_default()
    }

    /// Returns whether the object has this group and kind. Without an apiVersion, only the kind counts.
    pub(in crate::cli) fn is(&self, group: &str, kind: &str) -> bool {
        let of_group = |version: &str| version.split_once('/').map_or("", |(group, _)| group) == group;
        self.kind() == kind && self.text("/apiVersion").is_none_or(of_group)
    }

    /// Returns the string at a JSON pointer.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer)?.as_str()
    }

    /// `metadata.name`
    pub(in crate::cli) fn name(&self) -> Option<&str> {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`
    pub(in crate::cli) fn namespace(&self) -> Option<&str> {
        self.text("/metadata/namespace")
    }

    /// Decodes the metadata.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's, such as an annotation with a number.
    pub(in crate::cli) fn metadata(&self) -> anyhow::Result<Metadata<'_>> {
        let metadata = self.value.get("metadata").filter(|metadata| !metadata.is_null());
        let metadata = metadata.ok_or_else(|| anyhow!("{}: expected metadata", self.label()))?;
        decode(metadata, "metadata.").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// Decodes the object.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's.
    pub(in crate::cli) fn typed<'d, T: Deserialize<'d>>(&'d self) -> anyhow::Result<T> {
        decode(&self.value, "").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// Returns whether this Service has a ClusterIP.
    pub(in crate::cli) fn has_cluster_ip(&self) -> bool {
        let kind = self.text("/spec/type").unwrap_or("ClusterIP");
        kind != "ExternalName" && self.text("/spec/clusterIP") != Some("None")
    }

    /// Returns whether a controller owns the object.
    pub(in crate::cli) fn has_controller(&self) -> bool {
        let owners = self.value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.into_iter().flatten().any(|owner| owner.get("controller") == Some(&Value::Bool(true)))
    }

    /// Returns kind and name.
    pub(in crate::cli) fn title(&self) -> String {
        format!("{} {}", self.kind(), name_of(&self.value)).trim_end().to_owned()
    }

    /// Returns file, kind and name, for errors.
    pub(super) fn label(&self) -> String {
        format!("{}: {}", self.source, self.title())
    }
}

/// Returns the object's name, or `web-*` for a generated name.
pub(super) fn name_of(object: &Value) -> String {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    let generated = || text("generateName").map(|prefix| format!("{prefix}*"));
    text("name").map(str::to_owned).or_else(generated).unwrap_or_default()
}
