//! A value of YAML or JSON as a type of the API.

use serde::{
    Deserialize, Deserializer,
    de::{
        Error, IntoDeserializer, Unexpected, Visitor,
        value::{BorrowedStrDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

/// Reads a value as a type of the API; an error names the path to the field and what was expected there.
pub(super) fn typed<'de, T: Deserialize<'de>>(value: &'de Value, path: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(MapsOnly(value)).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => path.trim_end_matches('.').to_owned(),
            field => format!("{path}{field}"),
        };
        let separator = if field.is_empty() { "" } else { ": " };
        format!("{field}{separator}{}", in_api_words(&error.inner().to_string()))
    })
}

/// serde's "invalid type: X, expected Y" without the names of Rust's types.
fn in_api_words(message: &str) -> String {
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

/// A value of which structs are read from maps alone, as [`crate::pod::from_json`] does with text.
#[derive(Clone, Copy)]
struct MapsOnly<'de>(&'de Value);

impl<'de> Deserializer<'de> for MapsOnly<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(elements) => {
                let mut elements = SeqDeserializer::new(elements.iter().map(MapsOnly));
                let value = visitor.visit_seq(&mut elements)?;
                elements.end().map(|()| value)
            }
            Value::Object(entries) => {
                let entries = entries.iter().map(|(key, value)| (BorrowedStrDeserializer::new(key), MapsOnly(value)));
                let mut entries = MapDeserializer::new(entries);
                let value = visitor.visit_map(&mut entries)?;
                entries.end().map(|()| value)
            }
            leaf => leaf.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.0.is_array() {
            return Err(Error::invalid_type(Unexpected::Seq, &visitor));
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for MapsOnly<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
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
