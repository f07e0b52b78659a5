//! Structs that are read only from maps.
//!
//! serde's derive also reads a struct from a list with the values of its fields. A patch for such a pod would not
//! apply. So a list in place of a map is an error, at every depth.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Struct with a derived function that reads its fields.
pub(crate) trait ReadFields<'de>: Sized {
    /// Reads the fields from a map.
    fn read_fields<D: Deserializer<'de>>(map: D) -> Result<Self, D::Error>;
}

/// Visitor that accepts only a map.
pub(crate) struct FromMap<T>(pub(crate) PhantomData<T>);

impl<'de, T: ReadFields<'de>> Visitor<'de> for FromMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of fields")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<T, M::Error> {
        T::read_fields(MapAccessDeserializer::new(map))
    }
}

/// Implements `Deserialize` for structs with `#[serde(remote = "Self")]`. With this attribute, the derive creates a
/// function and no implementation.
macro_rules! from_map {
    ($($name:ident $(<$life:lifetime>)?),+ $(,)?) => {$(
        impl<'de $(: $life, $life)?> $crate::pod::from_map::ReadFields<'de> for $name $(<$life>)? {
            #[inline]
            fn read_fields<D: serde::Deserializer<'de>>(map: D) -> Result<Self, D::Error> {
                Self::deserialize(map)
            }
        }

        impl<'de $(: $life, $life)?> serde::Deserialize<'de> for $name $(<$life>)? {
            #[inline]
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map($crate::pod::from_map::FromMap(std::marker::PhantomData))
            }
        }
    )+};
}
pub(crate) use from_map;
