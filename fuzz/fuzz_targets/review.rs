//! Parsing a body never panics, and Spillway finds a UID that the body contains.

#![no_main]

mod mutation;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde::Deserialize;
use serde_json::Value;
use spillway_core::admission;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutation::mutate(data, size, max_size, seed)
});

fuzz_target!(|body: &[u8]| {
    let _ = admission::parse(body);
    let recovered = admission::recover_uid(body);
    if let Some(uid) = readable_uid(body) {
        assert_eq!(recovered.as_deref(), Some(uid.as_str()));
    }
});

/// Returns `request.uid` of a JSON body. Returns `None` if the UID is empty, too long, or a key is duplicated, because parsers then differ.
fn readable_uid(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Review {
        request: Request,
    }
    #[derive(Deserialize)]
    struct Request {
        uid: String,
    }
    let json: Value = serde_json::from_slice(body).ok()?;
    let uid = json.pointer("/request/uid")?.as_str()?;
    let without_duplicates: Review = serde_json::from_slice(body).ok()?;
    ((1..=128).contains(&uid.len()) && without_duplicates.request.uid == uid).then(|| uid.to_owned())
}
