//! Kubernetes manifests as a person writes them: YAML or JSON, several documents, lists; and the pods that come of them.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use super::config::read_text;

/// One document with where it came from.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) source: String,
    pub(super) value: Value,
}

/// A pod, or what a workload's pods will look like.
#[derive(Debug)]
pub(super) struct PodTemplate {
    /// Such as `Deployment`.
    pub(super) kind: String,
    pub(super) name: String,
    /// Nothing when the manifest leaves it to `kubectl -n`.
    pub(super) namespace: Option<String>,
    /// The pod with `metadata` and `spec`.
    pub(super) pod: Value,
}

/// Reads all documents of a file, or of standard input for `-`. Lists are taken apart, empty documents left out.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Document>> {
    let text = read_text(file)?;
    let values = if text.trim_start().starts_with('{') {
        let stream = serde_json::Deserializer::from_str(&text).into_iter();
        stream.collect::<Result<_, _>>().with_context(|| format!("{} is not JSON", file.display()))?
    } else {
        parse_yaml(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?
    };
    let mut documents = Vec::new();
    for value in values {
        flatten(&file.display().to_string(), value, &mut documents)?;
    }
    Ok(documents)
}

/// YAML as kubectl reads it: octal numbers such as `defaultMode: 0644`, and large files.
fn parse_yaml(text: &str) -> Result<Vec<Value>, String> {
    const LARGE: usize = 10_000_000; // a list of some ten thousand pods
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        budget: serde_saphyr::budget! { max_nodes: LARGE, max_events: 3 * LARGE, max_documents: LARGE },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let message = error.to_string();
        match error.location() {
            Some(at) if !message.contains(" line ") => format!("line {}: {message}", at.line()),
            _ => message,
        }
    })
}

fn flatten(source: &str, value: Value, documents: &mut Vec<Document>) -> anyhow::Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(mut object)
            if object.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List")) =>
        {
            let Some(Value::Array(items)) = object.remove("items") else { return Ok(()) };
            items.into_iter().try_for_each(|item| flatten(source, item, documents))
        }
        Value::Object(object) if object.get("kind").is_some_and(Value::is_string) => {
            documents.push(Document { source: source.to_owned(), value: Value::Object(object) });
            Ok(())
        }
        _ => bail!("{source}: expected Kubernetes objects with a kind"),
    }
}

impl Document {
    /// The object's kind.
    pub(super) fn kind(&self) -> &str {
        self.text("/kind").unwrap_or_default()
    }

    /// A string at a JSON pointer.
    fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer)?.as_str()
    }

    /// `metadata.name`
    pub(super) fn name(&self) -> Option<&str> {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`
    pub(super) fn namespace(&self) -> Option<&str> {
        self.text("/metadata/namespace")
    }

    /// The entries of `metadata.labels` that are strings.
    pub(super) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings("/metadata/labels")
    }

    /// The entries of `metadata.annotations` that are strings.
    pub(super) fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings("/metadata/annotations")
    }

    fn strings(&self, pointer: &str) -> impl Iterator<Item = (&str, &str)> {
        let map = self.value.pointer(pointer).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// The pods that come of this object; nothing if it is of a kind that makes none.
    ///
    /// # Errors
    ///
    /// When the object's kind makes pods but it has no pod template.
    pub(super) fn pod_template(&self) -> anyhow::Result<Option<PodTemplate>> {
        let path = match self.kind() {
            "Pod" => "",
            "Deployment" | "StatefulSet" | "ReplicaSet" | "DaemonSet" | "Job" => "/spec/template",
            "CronJob" => "/spec/jobTemplate/spec/template",
            "AdmissionReview" => "/request/object",
            _ => return Ok(None),
        };
        let (source, kind) = (&self.source, self.kind());
        let name = self.name().or(self.text("/metadata/generateName")).unwrap_or_default();
        let Some(pod) = self.value.pointer(path).and_then(Value::as_object).filter(|pod| pod.contains_key("spec"))
        else {
            bail!("{source}: {kind} {name}: expected a pod at {}", if path.is_empty() { "/" } else { path });
        };
        Ok(Some(if kind == "AdmissionReview" {
            PodTemplate {
                kind: "Pod".to_owned(),
                name: self.text("/request/name").unwrap_or_default().to_owned(),
                namespace: self.text("/request/namespace").map(str::to_owned),
                pod: Value::Object(pod.clone()),
            }
        } else {
            PodTemplate {
                kind: kind.to_owned(),
                name: name.to_owned(),
                namespace: self.namespace().map(str::to_owned),
                pod: pod_of(kind, pod.clone()),
            }
        }))
    }
}

/// The pod that a controller makes of a template: with metadata, and owned by its maker where that matters.
fn pod_of(kind: &str, mut pod: serde_json::Map<String, Value>) -> Value {
    let metadata = pod.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = json!({});
    }
    if let (Some(metadata), "DaemonSet") = (metadata.as_object_mut(), kind) {
        let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true});
        metadata.insert("ownerReferences".to_owned(), json!([owner]));
    }
    Value::Object(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_kubectl_reads_it() {
        let documents = parse_yaml("kind: Pod\nmode: 0644\nquoted: \"0644\"\n---\n---\nkind: Pod\n").unwrap();
        assert_eq!(documents[0]["mode"], 0o644);
        assert_eq!(documents[0]["quoted"], "0644");
        assert_eq!(documents.last().unwrap()["kind"], "Pod");
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let error = parse_yaml("kind: Pod\nmetadata: {name: [}\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }
}
