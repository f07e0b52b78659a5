//! Reads a manifest and splits its text into documents, as kubectl does.

use std::path::Path;

use anyhow::{anyhow, bail};
use serde_json::{Map, Value};

use super::document::Document;
use crate::{cli::config::read_text, config::describe_yaml};

/// Reads all documents of a file, or of standard input for `-`. Flattens lists, and skips empty documents.
pub(in crate::cli) fn read(file: &Path) -> anyhow::Result<Vec<Document>> {
    let (text, file) = (read_text(file)?, file.display().to_string());
    let mut documents = Vec::new();
    for value in parse(&text).map_err(|error| anyhow!("{file}:{error}"))? {
        flatten(&file, value, &mut documents)?;
    }
    Ok(documents)
}

/// Parses all values of a text. A text that starts with a brace can be JSON, several JSON objects, or YAML in flow
/// style. Such a text is split at the separators first. The YAML parser reads every other text.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let chunks = chunks(text);
    if !chunks.iter().any(|(_, chunk)| is_braced(chunk)) {
        return parse_yaml(text, 0);
    }
    let mut values = Vec::new();
    for (line, chunk) in chunks {
        match parse_json(chunk) {
            Some(read) => values.extend(read),
            None => values.extend(parse_yaml(chunk, line)?),
        }
    }
    Ok(values)
}

/// Returns the content of a chunk after its separator.
fn content(chunk: &str) -> &str {
    chunk.strip_prefix("---").unwrap_or(chunk).trim_start()
}

fn is_braced(chunk: &str) -> bool {
    content(chunk).starts_with('{')
}

/// Splits a text at its separators, lines with `---`. Returns each part with the number of lines before it.
fn chunks(text: &str) -> Vec<(u64, &str)> {
    let (mut chunks, mut begin, mut begin_line, mut at) = (Vec::new(), 0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            chunks.push((begin_line, text.get(begin..at).unwrap_or_default()));
            (begin, begin_line) = (at, number);
        }
        at += line.len();
    }
    chunks.push((begin_line, text.get(begin..).unwrap_or_default()));
    chunks
}

/// Returns the values of a chunk if it is only JSON.
fn parse_json(chunk: &str) -> Option<Vec<Value>> {
    if !is_braced(chunk) {
        return None;
    }
    serde_json::Deserializer::from_str(content(chunk)).into_iter().collect::<Result<_, _>>().ok()
}

/// Parses YAML as kubectl does: with octal numbers such as `defaultMode: 0644`, and large files.
fn parse_yaml(text: &str, lines_above: u64) -> Result<Vec<Value>, String> {
    const LARGE: usize = 10_000_000; // a list of some ten thousand pods
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        budget: serde_saphyr::budget! { max_nodes: LARGE, max_events: 3 * LARGE, max_documents: LARGE },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| match describe_yaml(&error) {
        (Some((line, column)), message) => format!("{}:{column}: {message}", line + lines_above),
        (None, message) => format!(" {message}"),
    })
}

fn flatten(source: &str, value: Value, documents: &mut Vec<Document>) -> anyhow::Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(object) if object.get("kind").is_some_and(Value::is_string) => {
            match items(object) {
                Ok(items) => items.into_iter().try_for_each(|item| flatten(source, item, documents))?,
                Err(object) => documents.push(Document { source: source.to_owned(), value: Value::Object(object) }),
            }
            Ok(())
        }
        _ => bail!("{source}: expected Kubernetes objects with a kind"),
    }
}

/// Returns the items of a list, or the object itself. A kind that ends in `List` is not always a list. Adds the
/// kind to the items of a typed list such as `PodList`, which have no kind.
fn items(mut object: Map<String, Value>) -> Result<Vec<Value>, Map<String, Value>> {
    let kind = object.get("kind").and_then(Value::as_str).and_then(|kind| kind.strip_suffix("List")).map(Value::from);
    let (kind, mut items) = match (kind, object.remove("items")) {
        (Some(kind), Some(Value::Array(items))) if items.iter().all(Value::is_object) => (kind, items),
        (_, items) => {
            object.extend(items.map(|items| ("items".to_owned(), items)));
            return Err(object);
        }
    };
    for item in items.iter_mut().filter_map(Value::as_object_mut).filter(|_| kind != "") {
        if !item.contains_key("kind") {
            item.insert("kind".to_owned(), kind.clone());
            item.extend(object.get("apiVersion").map(|version| ("apiVersion".to_owned(), version.clone())));
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_kubectl_reads_it() {
        let documents = parse("kind: Pod\nmode: 0644\nquoted: \"0644\"\n---\n---\nkind: Pod\n").unwrap();
        assert_eq!(documents[0]["mode"], 0o644);
        assert_eq!(documents[0]["quoted"], "0644");
        assert_eq!(documents.last().unwrap()["kind"], "Pod");
    }

    #[test]
    fn a_file_can_have_json_and_yaml() {
        for text in [
            "{\"kind\": \"Pod\"}\n---\n{\"kind\": \"Job\"}\n",
            "{\"kind\": \"Pod\"}\n---\nkind: Job\n",
            "kind: Pod\n--- # the second\n{\"kind\": \"Job\"}",
            "{\"kind\": \"Pod\"}{\"kind\": \"Job\"}",
            "{kind: Pod}\n---\n{kind: Job}\n",
            "\n---\n{kind: Pod}\n--- {kind: Job}\n---\n",
        ] {
            let kinds: Vec<_> = parse(text).unwrap().iter().map(|value| value["kind"].clone()).collect();
            assert_eq!(kinds, ["Pod", "Job"], "{text}");
        }
    }

    #[test]
    fn parse_errors_have_their_line() {
        for (text, expected) in [
            ("kind: Pod\nmetadata: {name: [}\n", "2:"),
            ("{\"kind\": \"Pod\"}\n---\n\nkind: Pod\nspec: [\n", "5:7: unclosed bracket '['"),
            ("kind: Pod\nkind: Pod\n", "2:1: duplicate field \"kind\""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
