//! Fields of which only it matters that they are there.

use bounded_static::ToStatic;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

/// Something that is there and not null; what it says is skipped. `Option<Present>` is the field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ToStatic)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
