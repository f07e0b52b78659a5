//! A value of YAML or JSON as a type of the API.

use serde::Deserialize;
use serde_json::Value;

/// Reads a value as a type of the API; an error names the path to the field and what was expected there.
pub(super) fn typed<'de, T: Deserialize<'de>>(value: &'de Value, path: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => path.trim_end_matches('.').to_owned(),
            field => format!("{path}{field}"),
        };
        let separator = if field.is_empty() { "" } else { ": " };
        format!("{field}{separator}{}", in_api_words(&error.inner().to_string()))
    })
}

/// Returns the message of an error without its position: that is a position in JSON which no user wrote.
pub(super) fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    in_api_words(text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message))
}

/// serde's "invalid type: X, expected Y" without the names of Rust's types.
fn in_api_words(message: &str) -> String {
    if message.starts_with("invalid length") {
        // serde's derive takes a list for the fields of a struct, and counts them.
        return "expected a map of fields, got a list".to_owned();
    }
    let parts = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((got, expected)) = parts.and_then(|parts| parts.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let is_scalar = ["boolean", "integer", "floating point"].iter().any(|kind| got.starts_with(kind));
    let (expected, cure) = match expected {
        "a string" if is_scalar => ("a string", "; put it in quotes"),
        "i32" | "i64" | "u16" | "u32" | "u64" => ("a whole number", ""),
        "a sequence" => ("a list", ""),
        name if name.starts_with("struct ") || name == "a map" => ("a map of fields", ""),
        other => (other, ""),
    };
    let got = if got == "sequence" { "a list" } else { got };
    format!("expected {expected}, got {got}{cure}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::Pod;

    #[test]
    fn a_list_in_place_of_a_map_is_named_by_its_path() {
        for (pod, expected) in [
            (json!([{}, {}]), "expected a map of fields, got a list"),
            (json!({"metadata": {}, "spec": [null]}), "spec: expected a map of fields, got a list"),
            (
                json!({"metadata": {}, "spec": {"tolerations": [{"key": "k"}, ["k", "Exists"]]}}),
                "spec.tolerations[1]: expected a map of fields, got a list",
            ),
            (json!({"metadata": {}, "spec": {"hostPID": 1}}), "spec.hostPID: expected a boolean, got integer `1`"),
        ] {
            assert_eq!(typed::<Pod<'_>>(&pod, "").unwrap_err(), expected, "{pod}");
        }
    }
}
