//! A text means to our reader what it means to serde_json.

#![no_main]

mod mutation;

use std::fmt::Debug;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use spillway_core::pod::{self, Pod, Present, Read};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutation::mutate(data, size, max_size, seed)
});

fuzz_target!(|body: &[u8]| {
    let Ok(text) = std::str::from_utf8(body) else { return };
    let is_json = serde_json::from_str::<Value>(text).is_ok();
    // What is skipped may be no JSON at all, but never the other way round.
    assert!(!is_json || pod::from_json::<Present>(text).is_ok());
    compare::<Pod<'_>>(text, is_json);
    // The pods of a review, which is what most of the corpus is.
    if let Ok(Review { request: Request { object, old_object } }) = serde_json::from_str(text) {
        for pod in [object, old_object].into_iter().flatten() {
            compare::<Pod<'_>>(pod.get(), true);
        }
    }
});

#[derive(Deserialize)]
struct Review<'a> {
    #[serde(borrow)]
    request: Request<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    old_object: Option<&'a RawValue>,
}

/// Reads a type with both readers.
fn compare<'t, T: Read<'t> + Deserialize<'t> + Debug>(text: &'t str, is_json: bool) {
    match (pod::from_json::<T>(text), serde_json::from_str::<T>(text)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(format!("{ours:?}"), format!("{theirs:?}")),
        (Ok(_), Err(error)) => {
            assert!(!is_json || error.to_string().starts_with("duplicate field"), "{error}")
        }
        (Err(error), Ok(_)) => assert_eq!(error.message(), "expected a map"),
        (Err(_), Err(_)) => {}
    }
}
