//! Lists that keep only relevant entries.

use std::{fmt, marker::PhantomData};

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

/// List of the entries that a rule may report. It drops the other entries while it reads them. Most pods have many
/// variables and mounts but no such entry, so that the list costs nothing.
#[derive(Debug, ToStatic)]
pub struct FilteredVec<T>(Vec<T>);

impl<T> Default for FilteredVec<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Filter for the entries of a list.
pub trait Keep {
    /// Returns whether a rule may report this entry.
    fn keep(&self) -> bool;
}

impl<T: Keep> FilteredVec<T> {
    /// Adds the next entry of the document, if it is relevant.
    pub(super) fn push(&mut self, entry: T) {
        if entry.keep() {
            self.0.push(entry);
        }
    }
}

impl<T> FilteredVec<T> {
    /// Returns the entries, in the order of the document.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<'r, T> IntoIterator for &'r FilteredVec<T> {
    type Item = &'r T;
    type IntoIter = std::slice::Iter<'r, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de, T: Deserialize<'de> + Keep> Deserialize<'de> for FilteredVec<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Keep> Visitor<'de> for Entries<T> {
            type Value = FilteredVec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = FilteredVec::default();
                while let Some(entry) = list.next_element::<T>()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}
