//! Decodes values of YAML or JSON.

use serde::Deserialize;
use serde_json::Value;

/// Decodes a value. An error names the path of the field and the expected type.
pub(super) fn decode<'de, T: Deserialize<'de>>(value: &'de Value, path: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => path.trim_end_matches('.').to_owned(),
            field => format!("{path}{field}"),
        };
        let separator = if field.is_empty() { "" } else { ": " };
        format!("{field}{separator}{}", api_error(&error.inner().to_string()))
    })
}

/// Returns the message of an error without its position, which is one in generated JSON.
pub(super) fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    api_error(text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message))
}

/// Returns serde's "invalid type: X, expected Y" without the names of Rust types.
fn api_error(message: &str) -> String {
    if message.starts_with("invalid length") {
        // serde's derive accepts a list instead of a struct, and counts its items.
        return "expected a map of fields, got a list".to_owned();
    }
    let parts = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((got, expected)) = parts.and_then(|parts| parts.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let is_scalar = ["boolean", "integer", "floating point"].iter().any(|kind| got.starts_with(kind));
    let (expected, fix) = match expected {
        "a string" if is_scalar => ("a string", "; put it in quotes"),
        "i32" | "i64" | "u16" | "u32" | "u64" => ("a whole number", ""),
        "a sequence" => ("a list", ""),
        name if name.starts_with("struct ") || name == "a map" => ("a map of fields", ""),
        other => (other, ""),
    };
    let got = if got == "sequence" { "a list" } else { got };
    format!("expected {expected}, got {got}{fix}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::Pod;

    #[test]
    fn a_list_instead_of_a_map_is_reported_with_its_path() {
        for (pod, expected) in [
            (json!([{}, {}]), "expected a map of fields, got a list"),
            (json!({"metadata": {}, "spec": [null]}), "spec: expected a map of fields, got a list"),
            (
                json!({"metadata": {}, "spec": {"tolerations": [{"key": "k"}, ["k", "Exists"]]}}),
                "spec.tolerations[1]: expected a map of fields, got a list",
            ),
            (json!({"metadata": {}, "spec": {"hostPID": 1}}), "spec.hostPID: expected a boolean, got integer `1`"),
        ] {
            assert_eq!(decode::<Pod<'_>>(&pod, "").unwrap_err(), expected, "{pod}");
        }
    }
}
