//! Spillway keeps everything that a pod had.

use serde_json::Value;

/// Returns the first place where `after` has lost or changed something of `before`.
///
/// Maps may gain entries and lists may grow at their end, at every depth. Spillway may change its own annotations.
pub(crate) fn lost(before: &Value, after: &Value) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(key, value)| {
            if matches!(key.as_str(), "spillway.dev/decision" | "spillway.dev/added") {
                return None;
            }
            let Some(after) = after.get(key) else { return Some(format!("{key} is gone")) };
            lost(value, after).map(|inner| format!("{key}.{inner}"))
        }),
        (Value::Array(before), Value::Array(after)) => {
            if after.len() < before.len() {
                return Some(format!("{} of {} entries are gone", before.len() - after.len(), before.len()));
            }
            let mut pairs = before.iter().zip(after).enumerate();
            pairs.find_map(|(i, (before, after))| lost(before, after).map(|inner| format!("[{i}].{inner}")))
        }
        (Value::Null, _) => None,
        (before, after) => (before != after).then(|| format!("was {before}, is {after}")),
    }
}
