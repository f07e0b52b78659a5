//! Builder for JSON patches.

use std::fmt;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use crate::pod::StringMap;

/// Operations, in the order in which they apply.
pub(crate) struct PatchBuilder(Vec<PatchOperation>);

impl PatchBuilder {
    pub(crate) fn new() -> Self {
        const CAPACITY: usize = 8; // two labels and annotations maps, their entries, toleration and affinity
        Self(Vec::with_capacity(CAPACITY))
    }

    /// Sets entries of a map. Adds a missing map, and skips entries that already have the value.
    pub(crate) fn set_entries<'e>(
        &mut self,
        path: &str,
        existing: Option<&StringMap<'_>>,
        entries: impl Iterator<Item = (&'e str, &'e str)>,
    ) {
        match existing {
            None => {
                let entries: Map<_, _> = entries.map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
                if !entries.is_empty() {
                    self.push_add(format_args!("{path}"), entries.into());
                }
            }
            Some(existing) => {
                for (key, value) in entries.filter(|(key, value)| existing.get(key) != Some(value)) {
                    self.push_add(format_args!("{path}/{}", Escaped(key)), value.into());
                }
            }
        }
    }

    /// Appends to a list, or adds a missing list.
    pub(crate) fn append(&mut self, path: fmt::Arguments<'_>, exists: bool, value: &impl Serialize) {
        if exists { self.add(format_args!("{path}/-"), value) } else { self.add(path, &[value]) }
    }

    pub(crate) fn add(&mut self, path: fmt::Arguments<'_>, value: &(impl Serialize + ?Sized)) {
        // This fails only for maps with keys that are not strings. No map here has such keys.
        if let Ok(value) = serde_json::to_value(value) {
            self.push_add(path, value);
        }
    }

    pub(crate) fn remove(&mut self, path: fmt::Arguments<'_>) {
        self.0.extend(pointer(path).map(|path| PatchOperation::Remove(RemoveOperation { path })));
    }

    fn push_add(&mut self, path: fmt::Arguments<'_>, value: Value) {
        self.0.extend(pointer(path).map(|path| PatchOperation::Add(AddOperation { path, value })));
    }

    /// Returns the patch, or `None` if it changes nothing.
    pub(crate) fn finish(self) -> Option<Patch> {
        (!self.0.is_empty()).then_some(Patch(self.0))
    }
}

/// Never returns `None`, because every path here starts with a slash, and keys are escaped.
fn pointer(path: fmt::Arguments<'_>) -> Option<PointerBuf> {
    PointerBuf::parse(path.to_string()).ok()
}

/// Object with one field whose name is not known at compile time.
pub(super) struct Field<'o, V: ?Sized> {
    field: &'o str,
    value: &'o V,
}

impl<'o, V: Serialize + ?Sized> Field<'o, V> {
    pub(super) fn of(field: &'o str, value: &'o V) -> Self {
        Self { field, value }
    }
}

impl<V: Serialize + ?Sized> Serialize for Field<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.field, self.value)?;
        map.end()
    }
}

/// Key as one segment of a JSON pointer (RFC 6901, section 3).
pub(crate) struct Escaped<'k>(pub(crate) &'k str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Writes runs instead of single characters, because each write is a call.
        for (i, part) in self.0.split('/').enumerate() {
            f.write_str(if i > 0 { "~1" } else { "" })?;
            for (i, run) in part.split('~').enumerate() {
                f.write_str(if i > 0 { "~0" } else { "" })?;
                f.write_str(run)?;
            }
        }
        Ok(())
    }
}
