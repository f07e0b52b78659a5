//! Fields of which Spillway reads only whether they exist.

use bounded_static::ToStatic;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

/// Existing value that is not null. Its content is skipped. The type of such a field is `Option<Present>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ToStatic)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
