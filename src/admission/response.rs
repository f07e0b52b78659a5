//! Writing the answer to an AdmissionReview.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The answer that admits the object, with a JSON patch (RFC 6902) or without one.
///
/// `patchType` without `patch` is refused by the API server (volcano-sh/volcano#2225), so both stand or neither does.
pub fn allow(uid: &str, patch: Option<&[u8]>) -> Vec<u8> {
    const ENVELOPE: usize = 200; // what is written around uid and patch
    let mut out = String::with_capacity(ENVELOPE + uid.len() + patch.map_or(0, |p| p.len().div_ceil(3) * 4));
    out.push_str(r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"#);
    push_json_string(&mut out, uid);
    out.push_str(r#","allowed":true"#);
    if let Some(patch) = patch {
        out.push_str(r#","patchType":"JSONPatch","patch":""#);
        STANDARD.encode_string(patch, &mut out);
        out.push('"');
    }
    out.push_str("}}");
    out.into_bytes()
}

/// UIDs of the API server need no escape; one that a stranger sends might.
fn push_json_string(out: &mut String, text: &str) {
    // Writing a string to memory cannot fail; an empty UID would only make the API server drop the answer.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_without_a_patch_has_no_patch_type() {
        let answer: Value = serde_json::from_slice(&allow("u\"1", None)).unwrap();
        assert_eq!(
            answer,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "u\"1", "allowed": true}})
        );
    }

    #[test]
    fn a_patch_travels_as_base64() {
        let answer: Value = serde_json::from_slice(&allow("u", Some(b"[]"))).unwrap();
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(answer["response"]["patch"], "W10=");
    }
}
