//! JSON patch operations in the making: the text of a JSON array.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::pod::StringMap;

/// Operations written one after the other.
pub(crate) struct Patch(Vec<u8>);

impl Patch {
    pub(crate) fn new() -> Self {
        const USUAL: usize = 1280; // all five parts take about 1,000 bytes
        Self(Vec::with_capacity(USUAL))
    }

    /// Sets entries of a map: adds the map when it is absent, and leaves out what stands there already.
    pub(crate) fn set_entries<'e>(
        &mut self,
        path: &str,
        existing: Option<&StringMap<'_>>,
        entries: impl Iterator<Item = (&'e str, &'e str)>,
    ) {
        match existing {
            None => {
                let entries: Vec<_> = entries.collect();
                if !entries.is_empty() {
                    self.add(format_args!("{path}"), &Map(&entries));
                }
            }
            Some(existing) => {
                for (key, value) in entries.filter(|(key, value)| existing.get(key) != Some(value)) {
                    self.add(format_args!("{path}/{}", Escaped(key)), value);
                }
            }
        }
    }

    /// Appends to a list, or adds the list when it is absent.
    pub(crate) fn append(&mut self, path: fmt::Arguments<'_>, exists: bool, value: &impl Serialize) {
        if exists { self.add(format_args!("{path}/-"), value) } else { self.add(path, &[value]) }
    }

    pub(crate) fn add(&mut self, path: fmt::Arguments<'_>, value: &(impl Serialize + ?Sized)) {
        self.begin("add", path);
        self.0.extend(br#","value":"#);
        // Writing to memory fails only for maps with keys that are no strings; there are none here.
        let _ = serde_json::to_writer(&mut self.0, value);
        self.0.push(b'}');
    }

    pub(crate) fn remove(&mut self, path: fmt::Arguments<'_>) {
        self.begin("remove", path);
        self.0.push(b'}');
    }

    /// An operation without its end.
    fn begin(&mut self, op: &'static str, path: fmt::Arguments<'_>) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        self.0.extend(br#"{"op":""#);
        self.0.extend(op.as_bytes());
        self.0.extend(br#"","path":"#);
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.0, &path);
    }

    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.push(b']');
        Some(self.0)
    }
}

/// Entries as a JSON object, in their order.
struct Map<'e>(&'e [(&'e str, &'e str)]);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// An object with one field, whose name is not known at compile time.
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

/// A key as one segment of a JSON pointer (RFC 6901, section 3).
pub(crate) struct Escaped<'k>(pub(crate) &'k str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In runs, not in characters: each write is a call.
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
