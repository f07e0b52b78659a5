//! JSON: a deserializer that is fast at leaving things out, and strings written without looking at each byte.
//!
//! Of a review's 10 kB the view keeps a few hundred bytes. serde_json looks at every token of what it skips, and that is most of the
//! work. This reader finds the end of a skipped value by its quotes and brackets, 64 bytes at a time.
//!
//! What is read is checked as serde_json checks it: numbers, and strings with escapes, are even handed to it. **What is
//! skipped may be no JSON at all**, as long as its strings end and it has as many brackets that close as brackets that open; nothing is decided by it.
//! Whatever serde_json accepts is accepted here and means the same, with one exception:
//!
//! **Structs are read from maps alone.** serde's derive reads a struct from a list as well, field by field. The API never writes
//! one so, and a patch for a pod that was read from a list where a map belongs would not apply. So that is an error, at every depth.

mod skip;

use std::{borrow::Cow, fmt, io::Write};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Unexpected, Visitor},
    forward_to_deserialize_any,
};
use serde_json::Number;

use self::skip::{nested_length, plain_run, string_length, word_length};

/// Reads a value from JSON text.
///
/// # Errors
///
/// When the text is not JSON, a field is of another type than the API gives it, or a list stands where a map belongs.
pub fn from_json<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, JsonError> {
    let mut reader = Reader { text, at: 0, room: DEEPEST };
    let read = T::deserialize(&mut reader).and_then(|value| match reader.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::of("expected the end of the text")),
    });
    // An error stays where it is found, and so does the reader.
    read.map_err(|JsonError(why)| JsonError(Box::new(Why { at: reader.at, ..*why })))
}

/// Appends a text as a JSON string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    if plain_run(text.as_bytes()) < text.len() {
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(out, text);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// The same with what is displayed.
pub(crate) fn push_display(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    let start = out.len();
    // Writing to memory cannot fail.
    let _ = write!(out, "\"{text}\"");
    let written = out.get(start + 1..out.len() - 1).unwrap_or_default();
    if plain_run(written) < written.len() {
        out.truncate(start);
        let _ = serde_json::to_writer(out, &text);
    }
}

/// Why a text could not be read, and where.
#[derive(Debug, thiserror::Error)]
#[error("{} at byte {}", .0.message, .0.at)]
pub struct JsonError(Box<Why>); // thin: every step of reading hands on a result

#[derive(Debug)]
struct Why {
    message: String,
    at: usize,
}

impl JsonError {
    /// The reason alone, for whoever did not write the text that was read.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    #[cold]
    fn missing(byte: u8) -> Self {
        de::Error::custom(format_args!("expected '{}'", char::from(byte)))
    }

    #[cold]
    fn of(message: &str) -> Self {
        de::Error::custom(message)
    }
}

impl de::Error for JsonError {
    #[cold]
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(Box::new(Why { message: message.to_string(), at: 0 }))
    }
}

/// Maps and lists that are read may lie this deep in each other, as with serde_json; each takes some of the stack. What is
/// skipped takes none.
const DEEPEST: u8 = 127;

struct Reader<'de> {
    text: &'de str,
    at: usize,
    /// How much deeper it may go.
    room: u8,
}

impl<'de> Reader<'de> {
    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no white space. It is not passed.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                byte => return byte,
            }
        }
    }

    #[inline]
    fn expect(&mut self, wanted: u8) -> Result<(), JsonError> {
        if self.peek() != Some(wanted) {
            return Err(JsonError::missing(wanted));
        }
        self.at += 1;
        Ok(())
    }

    /// Passes a value and returns its text.
    fn skipped(&mut self) -> Result<&'de str, JsonError> {
        let start = self.at;
        self.skip()?;
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    fn word(&mut self, word: &str) -> Result<(), JsonError> {
        if self.skipped()? == word { Ok(()) } else { Err(JsonError::of(NO_VALUE)) }
    }

    fn number(&mut self) -> Result<Number, JsonError> {
        serde_json::from_str(self.skipped()?).map_err(|_| JsonError::of("expected a number"))
    }

    /// Reads a string, of which the first quote is known to be there.
    fn string(&mut self) -> Result<Cow<'de, str>, JsonError> {
        let text = self.text.get(self.at + 1..).unwrap_or_default();
        let plain = plain_run(text.as_bytes());
        if text.as_bytes().get(plain) == Some(&b'"') {
            self.at += plain + 2;
            return Ok(Cow::Borrowed(text.get(..plain).unwrap_or_default()));
        }
        let unescaped = serde_json::from_str(self.skipped()?);
        unescaped.map(Cow::Owned).map_err(|_| JsonError::of("expected a string with the escapes of JSON"))
    }

    /// Passes a value of any kind, without going down into it.
    fn skip(&mut self) -> Result<(), JsonError> {
        let start = self.peek();
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let length = match start {
            Some(b'{' | b'[') => nested_length(rest),
            Some(b'"') => string_length(rest),
            _ => Some(word_length(rest)),
        };
        match length {
            Some(0) => Err(JsonError::of(NO_VALUE)),
            Some(length) => {
                self.at += length;
                Ok(())
            }
            None => Err(JsonError::of(ENDS)),
        }
    }

    /// Reads what stands between two brackets, the first of which is known to be there.
    fn nested<T>(
        &mut self,
        close: u8,
        read: impl FnOnce(Members<'_, 'de>) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        self.at += 1;
        self.room = self.room.checked_sub(1).ok_or_else(|| JsonError::of("nested too deep"))?;
        let value = read(Members { reader: self, close, is_first: true })?;
        self.expect(close)?;
        self.room += 1;
        Ok(value)
    }
}

const NO_VALUE: &str = "expected a value";
const ENDS: &str = "the text ends too early";

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.peek() {
            Some(b'"') => match self.string()? {
                Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
                Cow::Owned(text) => visitor.visit_string(text),
            },
            Some(b'{') => self.nested(b'}', |entries| visitor.visit_map(entries)),
            Some(b'[') => self.nested(b']', |elements| visitor.visit_seq(elements)),
            Some(b't') => self.word("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.word("false").and_then(|()| visitor.visit_bool(false)),
            Some(b'n') => self.word("null").and_then(|()| visitor.visit_unit()),
            Some(b'-' | b'0'..=b'9') => {
                let number = self.number()?;
                match (number.as_u64(), number.as_i64(), number.as_f64()) {
                    (Some(natural), ..) => visitor.visit_u64(natural),
                    (_, Some(integer), _) => visitor.visit_i64(integer),
                    (.., float) => visitor.visit_f64(float.unwrap_or(f64::NAN)),
                }
            }
            Some(_) => Err(JsonError::of(NO_VALUE)),
            None => Err(JsonError::of(ENDS)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.peek() == Some(b'n') {
            self.word("null")?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        if self.peek() == Some(b'[') {
            return Err(de::Error::invalid_type(Unexpected::Seq, &visitor));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.skip()?;
        visitor.visit_unit()
    }

    // Of enums and newtypes the view has none that reach this.
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct map enum identifier
    }
}

/// The entries of a map or the elements of a list.
struct Members<'r, 'de> {
    reader: &'r mut Reader<'de>,
    close: u8,
    is_first: bool,
}

impl Members<'_, '_> {
    /// Goes to the next one, if there is one.
    #[inline]
    fn next(&mut self) -> Result<bool, JsonError> {
        if self.reader.peek() == Some(self.close) {
            return Ok(false);
        }
        if !self.is_first {
            self.reader.expect(b',')?;
        }
        self.is_first = false;
        Ok(true)
    }
}

impl<'de> SeqAccess<'de> for Members<'_, 'de> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonError> {
        if self.next()? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        if !self.next()? {
            return Ok(None);
        }
        if self.reader.peek() != Some(b'"') {
            return Err(JsonError::of("expected a key in quotes"));
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, JsonError> {
        self.reader.expect(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;
    use crate::pod::Pod;

    #[test]
    fn a_list_in_place_of_a_map_is_no_pod_at_any_depth() {
        let pods = [
            r"[{},{}]",
            r#"{"metadata":["n",null,null,null,null],"spec":{}}"#,
            r#"{"metadata":{},"spec":[null,null]}"#,
            r#"{"metadata":{},"spec":{"affinity":[{}]}}"#,
            r#"{"metadata":{},"spec":{"affinity":[null,null]}}"#,
            r#"{"metadata":{},"spec":{"affinity":{"nodeAffinity":[null,null]}}}"#,
            r#"{"metadata":{},"spec":{"os":["windows"]}}"#,
            r#"{"metadata":{},"spec":{"tolerations":[["virtual-kubelet.io/provider","Exists",null,null]]}}"#,
            r#"{"metadata":{"ownerReferences":[["DaemonSet",true]]},"spec":{}}"#,
        ];
        for pod in pods {
            assert!(from_json::<Pod<'_>>(pod).is_err(), "{pod}");
        }
        let sound = r#"{"metadata":{"labels":{"a":"b"}},"spec":{"affinity":{"nodeAffinity":null},"tolerations":[{"key":"k"}]}}"#;
        let pod: Pod<'_> = from_json(sound).unwrap();
        assert_eq!((pod.label("a"), pod.tolerations().len()), (Some("b"), 1));
    }

    #[test]
    fn an_error_says_what_is_wrong_and_where() {
        for (json, expected) in [
            ("", "the text ends too early at byte 0"),
            (r#"{"metadata":{},"spec":{"#, "expected a key in quotes at byte 23"),
            (r#"{"metadata":{},"spec":{}} x"#, "expected the end of the text at byte 26"),
            (r#"{"metadata":{},"metadata":{},"spec":{}}"#, "duplicate field `metadata` at byte 25"),
            (
                r#"{"metadata":{},"spec":{"hostPID":"yes"}}"#,
                r#"invalid type: string "yes", expected a boolean at byte 38"#,
            ),
            (
                r#"{"metadata":{},"spec":{"nodeName":"\ud800"}}"#,
                "expected a string with the escapes of JSON at byte 42",
            ),
            (r#"{"metadata":{},"spec":{"x":}}"#, "expected a value at byte 27"),
            (r#"{"metadata":{},"spec":{"x":["#, "the text ends too early at byte 27"),
        ] {
            assert_eq!(from_json::<Pod<'_>>(json).unwrap_err().to_string(), expected, "{json}");
        }
    }

    #[test]
    fn depth_takes_stack_only_where_something_is_read() {
        let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(from_json::<Value>(&lists(127)).unwrap(), serde_json::from_str::<Value>(&lists(127)).unwrap());
        assert!(from_json::<Value>(&lists(128)).is_err() && serde_json::from_str::<Value>(&lists(128)).is_err());
        from_json::<IgnoredAny>(&lists(1_000_000)).unwrap();
        assert!(from_json::<IgnoredAny>(&"[".repeat(1_000_000)).is_err());
    }

    /// JSON with all that a writer may choose: white space, escapes, the form of numbers.
    fn json() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "null",
            "true",
            "false",
            "\"\"",
            "{}",
            "[ ]",
            "-0",
            "1E+2",
            "18446744073709551616",
        ]);
        let character = prop_oneof![
            6 => "[ -!#-\\[\\]-~ü€😀]",
            1 => r#"\\["\\/bfnrt]"#,
            1 => r"\\u[0-9a-fA-F]{4}",
            1 => r"\\ud83d\\ude0[0-9]",
        ];
        let string =
            prop::collection::vec(character, 0..40).prop_map(|characters| format!("\"{}\"", characters.concat()));
        let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
        let leaf = prop_oneof![word.prop_map(str::to_owned), string.clone(), number];
        let space = "[ \t\r\n]{0,2}";
        leaf.prop_recursive(4, 64, 6, move |value| {
            let spaced = (space, value, space).prop_map(|(before, value, after)| format!("{before}{value}{after}"));
            let entry = (space, string.clone(), space, spaced.clone())
                .prop_map(|(before, key, after, value)| format!("{before}{key}{after}:{value}"));
            prop_oneof![
                prop::collection::vec(spaced, 0..6).prop_map(|values| format!("[{}]", values.join(","))),
                prop::collection::vec(entry, 0..6).prop_map(|entries| format!("{{{}}}", entries.join(","))),
            ]
        })
    }

    fn agrees(text: &str) -> Result<(), TestCaseError> {
        let (ours, theirs) = (from_json::<Value>(text).ok(), serde_json::from_str::<Value>(text).ok());
        prop_assert_eq!(&ours, &theirs, "{}", text);
        prop_assert!(theirs.is_none() || from_json::<IgnoredAny>(text).is_ok(), "skip {}", text);
        Ok(())
    }

    proptest! {
        #[test]
        fn a_text_means_what_it_means_to_serde_json(text in json()) {
            agrees(&text)?;
        }

        #[test]
        fn a_text_cut_short_is_refused_or_read_as_serde_json_does(text in json()) {
            for (cut, _) in text.char_indices() {
                agrees(&text[..cut])?;
            }
        }

        #[test]
        fn a_damaged_text_is_refused_or_read_as_serde_json_does(
            text in json(),
            at in any::<prop::sample::Index>(),
            damage in "[\\[\\]{}\",:\\\\ \u{1}0-9a-z.+-]{1,2}",
        ) {
            let places: Vec<_> = text.char_indices().map(|(place, _)| place).collect();
            let place = places[at.index(places.len())];
            agrees(&format!("{}{damage}{}", &text[..place], &text[place..]))?;
            let next = text[place..].chars().next().map_or(0, char::len_utf8);
            agrees(&format!("{}{damage}{}", &text[..place], &text[place + next..]))?;
        }

        #[test]
        fn what_is_skipped_changes_nothing(ignored in json()) {
            let text = format!(
                r#"{{"x":{ignored},"metadata":{{"managedFields":{ignored},"name":"n"}},"spec":{{"y":{ignored},"hostPID":true}}}}"#
            );
            let pod: Pod<'_> = from_json(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            let plain: Pod<'_> = from_json(r#"{"metadata":{"name":"n"},"spec":{"hostPID":true}}"#).unwrap();
            prop_assert_eq!(format!("{pod:?}"), format!("{plain:?}"));
        }
    }
}
