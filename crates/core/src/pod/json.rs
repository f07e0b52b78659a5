//! JSON: a reader that is fast at leaving things out, and strings written without looking at each byte.
//!
//! Of a review's 10 kB the view keeps a few hundred bytes. serde_json looks at every token of what it skips, and that is most of the
//! work. This reader finds the end of a skipped value by its quotes and brackets, 64 bytes at a time. What it keeps it reads straight
//! into place, by one loop for all maps and one for all lists: serde's derive makes a loop of its own for each struct, and the code of
//! all of them is more than a processor keeps at hand between two requests.
//!
//! What is read is checked as serde_json checks it: numbers, and strings with escapes, are even handed to it. **What is
//! skipped may be no JSON at all**, as long as its strings end and it has as many brackets that close as brackets that open; nothing is decided by it.
//! Whatever serde_json accepts is accepted here and means the same, with two exceptions that the API never writes:
//!
//! **Structs are read from maps alone.** serde's derive reads a struct from a list as well, field by field. A patch for a pod that was
//! read from a list where a map belongs would not apply. So that is an error, at every depth.
//!
//! **A field that is null and comes again** counts as the second time says; serde calls it a duplicate, which here only one of two
//! values is.

mod fields;
mod skip;

use std::borrow::Cow;

use serde_json::Number;

pub(crate) use self::fields::{field, fields};
use self::skip::{nested_length, plain_run, string_length, word_length};
use super::Text;

/// Reads a value from JSON text.
///
/// # Errors
///
/// When the text is not JSON, a field is of another type than the API gives it, or a list stands where a map belongs.
pub fn from_json<'a, T: Read<'a>>(text: &'a str) -> Result<T, JsonError> {
    let mut reader = Reader { text, at: 0 };
    let mut value = T::default();
    let read = value.read(&mut reader).and_then(|()| match reader.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::of("expected the end of the text")),
    });
    // An error stays where it is found, and so does the reader.
    read.map_err(|JsonError(why)| JsonError(Box::new(Why { at: reader.at, ..*why })))
}

/// What can be read from JSON, into place.
pub trait Read<'a>: Default {
    /// Reads the value that comes next.
    ///
    /// # Errors
    ///
    /// When it is not JSON, or of another type.
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError>;
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
        Self::of(&format!("expected '{}'", char::from(byte)))
    }

    #[cold]
    pub(crate) fn of(message: &str) -> Self {
        Self(Box::new(Why { message: message.to_owned(), at: 0 }))
    }

    #[cold]
    pub(crate) fn duplicate(field: &str) -> Self {
        Self::of(&format!("duplicate field `{field}`"))
    }
}

/// A place in JSON text.
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
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
    fn skipped(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        self.skip()?;
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    /// Passes `null`, if that comes next.
    pub(crate) fn null(&mut self) -> Result<bool, JsonError> {
        if self.peek() != Some(b'n') {
            return Ok(false);
        }
        if self.skipped()? == "null" { Ok(true) } else { Err(JsonError::of(NO_VALUE)) }
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, JsonError> {
        self.peek();
        let start = self.at;
        match self.skipped()? {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => {
                self.at = start;
                Err(JsonError::of("expected a boolean"))
            }
        }
    }

    pub(crate) fn number(&mut self) -> Result<Number, JsonError> {
        self.peek();
        let start = self.at;
        serde_json::from_str(self.skipped()?).map_err(|_| {
            self.at = start;
            JsonError::of("expected a number")
        })
    }

    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(JsonError::of("expected a string"));
        }
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
    pub(crate) fn skip(&mut self) -> Result<(), JsonError> {
        let start = self.peek();
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let length = match start {
            Some(b'{' | b'[') => nested_length(rest),
            Some(b'"') => string_length(rest),
            _ => Some(word_length(rest)),
        };
        match length {
            Some(0) if start.is_none() => Err(JsonError::of(ENDS)),
            Some(0) => Err(JsonError::of(NO_VALUE)),
            Some(length) => {
                self.at += length;
                Ok(())
            }
            None => Err(JsonError::of(ENDS)),
        }
    }

    /// Reads a map, entry by entry; what reads an entry finds its key, and must pass its value.
    pub(crate) fn entries(&mut self, read: &mut Entry<'_, 'a>) -> Result<(), JsonError> {
        self.open(b'{', "expected a map")?;
        let mut is_first = true;
        while self.next(b'}', &mut is_first)? {
            if self.peek() != Some(b'"') {
                return Err(JsonError::of("expected a key in quotes"));
            }
            let mut key = Text::from(self.string()?);
            self.expect(b':')?;
            read(&mut key, self)?;
        }
        Ok(())
    }

    /// Reads a list, element by element.
    pub(crate) fn elements(
        &mut self,
        read: &mut dyn FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.open(b'[', "expected a list")?;
        let mut is_first = true;
        while self.next(b']', &mut is_first)? {
            read(self)?;
        }
        Ok(())
    }

    fn open(&mut self, bracket: u8, expected: &str) -> Result<(), JsonError> {
        match self.peek() {
            Some(byte) if byte == bracket => {
                self.at += 1;
                Ok(())
            }
            None => Err(JsonError::of(ENDS)),
            Some(_) => Err(JsonError::of(expected)),
        }
    }

    /// Goes to the next entry or element; where there is none, it passes the bracket.
    fn next(&mut self, close: u8, is_first: &mut bool) -> Result<bool, JsonError> {
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(false);
        }
        if !std::mem::replace(is_first, false) {
            self.expect(b',')?;
        }
        Ok(true)
    }
}

/// What reads an entry of a map: its key, and the place where its value begins.
type Entry<'f, 'a> = dyn FnMut(&mut Text<'a>, &mut Reader<'a>) -> Result<(), JsonError> + 'f;

const NO_VALUE: &str = "expected a value";
const ENDS: &str = "the text ends too early";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;
    use crate::pod::{IntOrString, Pod, Present, ResourceList, StringMap};

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
            (r#"{"metadata":{}}"#, "missing field `spec` at byte 15"),
            (r#"{"metadata":{},"metadata":{},"spec":{}}"#, "duplicate field `metadata` at byte 26"),
            (r#"{"metadata":{"name":"a","name":"b"},"spec":{}}"#, "duplicate field `name` at byte 31"),
            (r#"{"metadata":null,"spec":{}}"#, "expected a map at byte 12"),
            (r#"{"metadata":{},"spec":{"hostPID":"yes"}}"#, "expected a boolean at byte 33"),
            (r#"{"metadata":{"name":7},"spec":{}}"#, "expected a string at byte 20"),
            (r#"{"metadata":{},"spec":{"volumes":{}}}"#, "expected a list at byte 33"),
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
    fn depth_takes_no_stack() {
        let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        from_json::<Present>(&lists(1_000_000)).unwrap();
        assert!(from_json::<Present>(&"[".repeat(1_000_000)).is_err());
        assert!(from_json::<Pod<'_>>(&r#"{"spec":{"containers":[{"lifecycle":"#.repeat(1_000_000)).is_err());
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

    /// Reads a type with both readers. `is_json` says whether serde_json can read the text at all.
    fn compare<'t, T: Read<'t> + Deserialize<'t> + std::fmt::Debug>(
        text: &'t str,
        is_json: bool,
    ) -> Result<(), TestCaseError> {
        match (from_json::<T>(text), serde_json::from_str::<T>(text)) {
            (Ok(ours), Ok(theirs)) => prop_assert_eq!(format!("{:?}", ours), format!("{:?}", theirs), "{}", text),
            (Ok(_), Err(error)) => {
                prop_assert!(!is_json || error.to_string().starts_with("duplicate field"), "{} {}", error, text);
            }
            (Err(error), Ok(_)) => prop_assert_eq!(error.message(), "expected a map", "{}", text),
            (Err(_), Err(_)) => {}
        }
        Ok(())
    }

    fn agrees(text: &str) -> Result<(), TestCaseError> {
        let is_json = serde_json::from_str::<Value>(text).is_ok();
        prop_assert!(!is_json || from_json::<Present>(text).is_ok(), "skip {}", text);
        compare::<Option<bool>>(text, is_json)?;
        compare::<Vec<i64>>(text, is_json)?;
        compare::<Text<'_>>(text, is_json)?;
        compare::<StringMap<'_>>(text, is_json)?;
        compare::<Option<ResourceList<'_>>>(text, is_json)?;
        compare::<Vec<IntOrString<'_>>>(text, is_json)?;
        compare::<Pod<'_>>(text, is_json)
    }

    /// A pod in which every field of the view has a value.
    const POD: &str = include_str!("json/pod.json");

    /// The paths of all values in it, as JSON pointers.
    fn places() -> Vec<String> {
        fn collect(value: &Value, path: &str, places: &mut Vec<String>) {
            places.push(path.to_owned());
            match value {
                Value::Object(entries) => entries.iter().for_each(|(key, value)| {
                    collect(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), places);
                }),
                Value::Array(elements) => (0..).zip(elements).for_each(|(i, value)| {
                    collect(value, &format!("{path}/{i}"), places);
                }),
                _ => {}
            }
        }
        let mut places = Vec::new();
        collect(&serde_json::from_str(POD).unwrap(), "", &mut places);
        places
    }

    #[test]
    fn a_pod_with_every_field_is_read_as_serde_reads_it() {
        let pod: Pod<'_> = from_json(POD).unwrap();
        let read = format!("{pod:?}");
        assert_eq!(read, format!("{:?}", serde_json::from_str::<Pod<'_>>(POD).unwrap()));
        assert!(!read.contains("None"), "a field of the view is missing in json/pod.json: {read}");
    }

    /// Texts that are JSON, or nearly.
    fn damaged(text: &str, at: prop::sample::Index, damage: &str) -> [String; 3] {
        let places: Vec<_> = text.char_indices().map(|(place, _)| place).collect();
        let place = places[at.index(places.len())];
        let next = text[place..].chars().next().map_or(0, char::len_utf8);
        let (before, after, rest) = (&text[..place], &text[place..], &text[place + next..]);
        [format!("{before}{damage}{after}"), format!("{before}{damage}{rest}"), before.to_owned()]
    }

    proptest! {
        #[test]
        fn a_text_means_what_it_means_to_serde_json(text in json()) {
            agrees(&text)?;
        }

        #[test]
        fn a_pod_with_anything_anywhere_means_what_it_means_to_serde_json(
            at in any::<prop::sample::Index>(),
            text in json(),
        ) {
            let mut pod: Value = serde_json::from_str(POD).unwrap();
            let places = places();
            *pod.pointer_mut(&places[at.index(places.len())]).unwrap() = Value::from("PLACE");
            agrees(&pod.to_string().replacen("\"PLACE\"", &text, 1))?;
        }

        #[test]
        fn a_damaged_text_is_refused_or_read_as_serde_json_does(
            text in prop_oneof![json(), Just(POD.to_owned())],
            at in any::<prop::sample::Index>(),
            damage in "[\\[\\]{}\",:\\\\ \u{1}0-9a-z.+-]{1,2}",
        ) {
            for damaged in damaged(&text, at, &damage) {
                agrees(&damaged)?;
            }
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
