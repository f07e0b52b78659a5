//! Changes to the JSON schema that schemars derives.

/// Removes `null` from the types of optional properties.
///
/// YAML may leave a section empty. But a schema with `null` makes error messages useless. A validator then reports any
/// typo in a section as "not valid under any of the given schemas".
pub(super) fn without_null(schema: &mut schemars::Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) else { return };
    for property in properties.values_mut() {
        drop_null(property);
    }
}

fn drop_null(property: &mut serde_json::Value) {
    if let Some(types) = property.get_mut("type")
        && let [kind, null] = types.as_array().map(Vec::as_slice).unwrap_or_default()
        && null == "null"
    {
        *types = kind.clone();
    }
    if let Some(branches) = property.get("anyOf").and_then(|b| b.as_array()).cloned()
        && let [only, null] = branches.as_slice()
        && null["type"] == "null"
        && let (Some(property), Some(only)) = (property.as_object_mut(), only.as_object())
    {
        property.remove("anyOf");
        property.extend(only.clone());
    }
    if let Some(values) = property.get_mut("additionalProperties") {
        drop_null(values);
    }
}
