//! A text means to our reader what it means to serde_json.

#![no_main]

mod mutation;

use std::fmt::Debug;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use spillway::pod::{self, Pod};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutation::mutate(data, size, max_size, seed)
});

fuzz_target!(|body: &[u8]| {
    let Ok(text) = std::str::from_utf8(body) else { return };
    let value = pod::from_json::<Value>(text).ok();
    assert_eq!(value, serde_json::from_str(text).ok());
    // What is skipped may be no JSON at all, but never the other way round.
    assert!(value.is_none() || pod::from_json::<IgnoredAny>(text).is_ok());

    compare::<Pod<'_>>(text, value.is_some());
    compare::<Review<'_>>(text, value.is_some());
});

#[allow(dead_code)] // but by Debug
#[derive(Debug, Deserialize)]
struct Review<'a> {
    #[serde(borrow)]
    request: Request<'a>,
}

#[allow(dead_code)]
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    object: Option<Pod<'a>>,
    #[serde(borrow)]
    old_object: Option<Pod<'a>>,
}

/// Reads a type with both readers.
fn compare<'t, T: Deserialize<'t> + Debug>(text: &'t str, is_json: bool) {
    match (pod::from_json::<T>(text), serde_json::from_str::<T>(text)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(format!("{ours:?}"), format!("{theirs:?}")),
        (Ok(_), Err(error)) => assert!(!is_json, "{error}"),
        (Err(error), Ok(_)) => {
            assert!(error.message().starts_with("invalid type: sequence, expected struct"), "{error}")
        }
        (Err(_), Err(_)) => {}
    }
}
