//! Strings and string maps that borrow from the JSON text.

use std::{borrow::Cow, fmt, ops::Deref};

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

/// String of the JSON text. It borrows the text if the string has no escapes.
///
/// It is a newtype, because serde's `borrow` does not reach into `Option<Cow<str>>` or `Vec<Cow<str>>`. A plain `&str`
/// would fail at run time for strings with escapes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToStatic)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a, T: Into<Cow<'a, str>>> From<T> for Text<'a> {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Map of strings such as labels or annotations, in the order of the document.
#[derive(Debug, Default, ToStatic)]
pub struct StringMap<'a>(Vec<(Text<'a>, Text<'a>)>);

impl<'a> StringMap<'a> {
    /// Adds the next entry of the document. A null value is the empty string, as Go decodes it.
    pub(super) fn push(&mut self, key: Text<'a>, value: Option<Text<'a>>) {
        self.0.push((key, value.unwrap_or_default()));
    }

    /// Returns the value of `key`. If a key occurs twice, the last value counts, as in Go.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| &**name == key).map(|(_, value)| &**value)
    }

    /// Returns the number of entries. A key that occurs twice counts twice.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the map has no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the entries, in the order of the document.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for StringMap<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(entries: I) -> Self {
        let text = |text: &'a str| Text(Cow::Borrowed(text));
        Self(entries.into_iter().map(|(key, value)| (text(key), text(value))).collect())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for StringMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = StringMap<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = StringMap::default();
                while let Some((key, value)) = map.next_entry()? {
                    entries.push(key, value);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_borrows_unless_it_has_an_escape() {
        let plain: Text<'_> = serde_json::from_str(r#""web""#).unwrap();
        let escaped: Text<'_> = serde_json::from_str(r#""a\"b""#).unwrap();
        assert!(matches!(plain.0, Cow::Borrowed("web")));
        assert_eq!(&*escaped, "a\"b");
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let map: StringMap<'_> = serde_json::from_str(r#"{"a":"1","b":null,"a":"2"}"#).unwrap();
        assert_eq!(map.get("a"), Some("2"));
        assert_eq!(map.get("b"), Some(""));
        assert_eq!(map.get("c"), None);
    }
}
