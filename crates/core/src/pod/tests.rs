//! Tests of the whole view.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Pod with a value for every field of the view.
const FULL_POD: &str = include_str!("full_pod.json");

fn read(json: &str) -> serde_json::Result<Pod<'_>> {
    serde_json::from_str(json)
}

/// Returns the paths of all values in the full pod, as JSON pointers.
fn paths() -> Vec<String> {
    fn collect(value: &Value, path: &str, paths: &mut Vec<String>) {
        paths.push(path.to_owned());
        match value {
            Value::Object(entries) => entries.iter().for_each(|(key, value)| {
                collect(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), paths);
            }),
            Value::Array(elements) => (0..).zip(elements).for_each(|(i, value)| {
                collect(value, &format!("{path}/{i}"), paths);
            }),
            _ => {}
        }
    }
    let mut paths = Vec::new();
    collect(&serde_json::from_str(FULL_POD).unwrap(), "", &mut paths);
    paths
}

#[test]
fn every_field_of_the_view_is_read() {
    let read = format!("{:?}", read(FULL_POD).unwrap());
    assert!(!read.contains("None"), "full_pod.json lacks a field of the view: {read}");
}

#[test]
fn an_owned_view_equals_the_borrowed_one() {
    let owned: Pod<'static> = {
        let text = FULL_POD.to_owned();
        read(&text).unwrap().into_owned()
    };
    assert_eq!(format!("{owned:?}"), format!("{:?}", read(FULL_POD).unwrap()));
}

#[test]
fn a_list_in_place_of_a_map_is_an_error_at_every_depth() {
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
        let error = read(pod).unwrap_err().to_string();
        assert!(error.starts_with("invalid type: sequence, expected a map of fields"), "{pod}: {error}");
    }
    let valid =
        r#"{"metadata":{"labels":{"a":"b"}},"spec":{"affinity":{"nodeAffinity":null},"tolerations":[{"key":"k"}]}}"#;
    let pod = read(valid).unwrap();
    assert_eq!((pod.label("a"), pod.tolerations().len()), (Some("b"), 1));
}

/// Includes the types with a handwritten `Deserialize`, and the maps with arbitrary keys.
#[test]
fn no_map_of_the_view_is_read_from_a_list() {
    for path in paths() {
        let mut pod: Value = serde_json::from_str(FULL_POD).unwrap();
        let value = pod.pointer_mut(&path).unwrap();
        let Value::Object(fields) = value else { continue };
        let values: Vec<_> = std::mem::take(fields).into_iter().map(|(_, value)| value).collect();
        let nulls = vec![Value::Null; values.len()];
        for list in [values, nulls, Vec::new()] {
            *pod.pointer_mut(&path).unwrap() = Value::Array(list);
            let text = pod.to_string();
            // Some fields are read only for their existence.
            let read = read(&text).map(|pod| format!("{pod:?}"));
            assert!(read.as_ref().ok().is_none_or(|read| *read == full_pod()), "{path}: {text}: {read:?}");
        }
    }
}

fn full_pod() -> String {
    format!("{:?}", read(FULL_POD).unwrap())
}

#[test]
fn errors_name_the_problem_and_its_position() {
    for (json, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (r#"{"metadata":{},"spec":{"#, "EOF while parsing an object at line 1 column 23"),
        (r#"{"metadata":{},"spec":{}} x"#, "trailing characters at line 1 column 27"),
        (r#"{"metadata":{}}"#, "missing field `spec` at line 1 column 15"),
        (r#"{"metadata":{},"metadata":{},"spec":{}}"#, "duplicate field `metadata` at line 1 column 25"),
        (r#"{"metadata":{"name":"a","name":"b"},"spec":{}}"#, "duplicate field `name` at line 1 column 30"),
        (r#"{"metadata":null,"spec":{}}"#, "invalid type: null, expected a map of fields at line 1 column 16"),
        (
            r#"{"metadata":{},"spec":{"hostPID":"yes"}}"#,
            "invalid type: string \"yes\", expected a boolean at line 1 column 38",
        ),
        (r#"{"metadata":{"name":7},"spec":{}}"#, "invalid type: integer `7`, expected a string at line 1 column 21"),
        (r#"{"metadata":{},"spec":{"volumes":{}}}"#, "invalid type: map, expected a sequence at line 1 column 33"),
        (r#"{"metadata":{},"spec":{"nodeName":"\ud800"}}"#, "unexpected end of hex escape at line 1 column 42"),
        (r#"{"metadata":{},"spec":{"x":}}"#, "expected value at line 1 column 28"),
        (r#"{"metadata":{},"spec":{"x":["#, "EOF while parsing a list at line 1 column 28"),
    ] {
        assert_eq!(read(json).unwrap_err().to_string(), expected, "{json}");
    }
}

/// In maps of strings and of quantities, the last entry counts. Their modules test that.
#[test]
fn a_repeated_field_is_an_error() {
    for (json, expected) in [
        (r#"{"metadata":{},"spec":{},"spec":{}}"#, "duplicate field `spec`"),
        (r#"{"metadata":{"name":null,"name":"b"},"spec":{}}"#, "duplicate field `name`"),
        (r#"{"metadata":{},"spec":{"hostPID":true,"hostPID":null}}"#, "duplicate field `hostPID`"),
        (r#"{"metadata":{},"spec":{"tolerations":[{"key":"a","key":"a"}]}}"#, "duplicate field `key`"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{json}: {error}");
    }
    // A field that is not read may be repeated.
    assert!(read(r#"{"metadata":{},"spec":{"x":1,"x":2}}"#).is_ok());
}

#[test]
fn null_means_the_same_as_a_missing_field() {
    // Entries of these maps are not fields. A null string is empty, and a null quantity is zero.
    let is_entry = |parent: &str| {
        ["labels", "annotations", "nodeSelector", "volumeAttributes", "requests", "limits", "overhead"]
            .iter()
            .any(|map| parent.ends_with(map))
    };
    for path in paths() {
        let Some((parent, field)) = path.rsplit_once('/') else { continue };
        let mut pod: Value = serde_json::from_str(FULL_POD).unwrap();
        let Some(Value::Object(fields)) = pod.pointer_mut(parent).filter(|_| !is_entry(parent)) else { continue };
        let key = field.replace("~1", "/").replace("~0", "~");
        fields.insert(key.clone(), Value::Null);
        let null = pod.to_string();
        pod.pointer_mut(parent).and_then(Value::as_object_mut).unwrap().remove(&key);
        let missing = pod.to_string();
        let [null, missing] = [&null, &missing].map(|text| read(text).map(|pod| format!("{pod:?}")).ok());
        assert_eq!(null, missing, "{path}");
        assert_eq!(null.is_none(), ["/metadata", "/spec"].contains(&&*path), "{path}");
    }
}

#[test]
fn deep_nesting_needs_no_stack() {
    let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let deep = lists(1_000_000);
    serde_json::from_str::<Present>(&deep).unwrap();
    assert!(serde_json::from_str::<Present>(&"[".repeat(1_000_000)).is_err());
    assert!(read(&r#"{"spec":{"containers":[{"lifecycle":"#.repeat(1_000_000)).is_err());
    // A skipped field, a field that is read only for its existence, a quantity, and a field of another type.
    for (spec, is_read) in [
        (format!(r#"{{"x":{deep}}}"#), true),
        (format!(r#"{{"hostAliases":[{deep}]}}"#), true),
        (format!(r#"{{"overhead":{{"cpu":{deep}}}}}"#), true),
        (format!(r#"{{"containers":{deep}}}"#), false),
        (deep, false),
    ] {
        assert_eq!(read(&format!(r#"{{"metadata":{{}},"spec":{spec}}}"#)).is_ok(), is_read, "{spec:.40}");
    }
}

/// Generates JSON with all freedoms of a writer: white space, escapes and number formats.
fn json() -> impl Strategy<Value = String> {
    let word =
        prop::sample::select(vec!["null", "true", "false", "\"\"", "{}", "[ ]", "-0", "1E+2", "18446744073709551616"]);
    let character = prop_oneof![
        6 => "[ -!#-\\[\\]-~ü€😀]",
        1 => r#"\\["\\/bfnrt]"#,
        1 => r"\\u[0-9a-fA-F]{4}",
        1 => r"\\ud83d\\ude0[0-9]",
    ];
    let string = prop::collection::vec(character, 0..40).prop_map(|characters| format!("\"{}\"", characters.concat()));
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

proptest! {
    /// The webhook reads text. The command line reads values, because it reads YAML as well.
    #[test]
    fn text_and_value_are_read_as_the_same_pod(at in any::<prop::sample::Index>(), text in json()) {
        let mut pod: Value = serde_json::from_str(FULL_POD).unwrap();
        let paths = paths();
        *pod.pointer_mut(&paths[at.index(paths.len())]).unwrap() = Value::from("PLACE");
        let text = pod.to_string().replacen("\"PLACE\"", &text, 1);
        // Not all JSON is a value: a number may be too large, and a character incomplete.
        let Ok(value) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        let of_value = <Pod<'_> as Deserialize>::deserialize(&value);
        // A value has each key once.
        let is_duplicate = |error: &serde_json::Error| error.to_string().starts_with("duplicate field");
        if let Err(error) = read(&text) {
            prop_assert!(of_value.is_err() || is_duplicate(&error), "{error} {text}");
        } else {
            let sorted = value.to_string();
            prop_assert_eq!(format!("{:?}", read(&sorted).unwrap()), format!("{:?}", of_value.unwrap()), "{}", text);
        }
    }

    #[test]
    fn unknown_fields_change_nothing(ignored in json()) {
        let text = format!(
            r#"{{"x":{ignored},"metadata":{{"managedFields":{ignored},"name":"n"}},"spec":{{"y":{ignored},"hostPID":true}}}}"#
        );
        let pod = read(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
        let plain = read(r#"{"metadata":{"name":"n"},"spec":{"hostPID":true}}"#).unwrap();
        prop_assert_eq!(format!("{pod:?}"), format!("{plain:?}"));
    }
}
