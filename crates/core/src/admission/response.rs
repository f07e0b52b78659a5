//! Responses to an AdmissionReview.

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use json_patch::Patch;
use serde::{Serialize, Serializer};

/// Warnings and audit annotations of a response.
#[derive(Debug, Default)]
pub struct ResponseExtras {
    /// Warnings that kubectl shows: at most three, each under 120 characters. The API server cuts long ones and drops
    /// excess ones.
    pub warnings: Vec<String>,
    /// Names and values of audit annotations. In the audit log, the webhook's name and a slash precede each name.
    pub audit_annotations: Vec<(&'static str, String)>,
}

/// Returns a patch as JSON text, as in a response.
pub fn encode(patch: &Patch) -> Vec<u8> {
    // Writing to memory fails only for maps with keys that are not strings. A patch has none.
    serde_json::to_vec(patch).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireReview<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: WireResponse<'a>,
}

/// The API server refuses a `patchType` without `patch` (volcano-sh/volcano#2225). So both are set, or neither.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "map")]
    audit_annotations: &'a [(&'static str, String)],
}

/// Returns the response that admits the object, with or without a JSON patch (RFC 6902).
pub fn allow(uid: &str, patch: Option<&[u8]>, extras: &ResponseExtras) -> Vec<u8> {
    const ENVELOPE: usize = 640; // the text around uid and patch, and the usual audit annotations
    let mut out = Vec::with_capacity(ENVELOPE + patch.map_or(0, |patch| patch.len().div_ceil(3) * 4));
    let review = WireReview {
        api_version: "admission.k8s.io/v1",
        kind: "AdmissionReview",
        response: WireResponse {
            uid,
            allowed: true,
            patch_type: patch.map(|_| "JSONPatch"),
            patch: patch.map(Base64),
            warnings: &extras.warnings,
            audit_annotations: &extras.audit_annotations,
        },
    };
    // Writing to memory cannot fail, and all keys are strings.
    let _ = serde_json::to_writer(&mut out, &review);
    out
}

/// Bytes that are encoded as base64.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

fn map<S: Serializer>(entries: &[(&'static str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(name, value)| (name, value)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_response_without_a_patch_has_no_patch_type() {
        let answer: Value = serde_json::from_slice(&allow("u\"1", None, &ResponseExtras::default())).unwrap();
        assert_eq!(
            answer,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "u\"1", "allowed": true}})
        );
    }

    #[test]
    fn a_patch_is_encoded_as_base64() {
        let answer: Value = serde_json::from_slice(&allow("u", Some(b"[]"), &ResponseExtras::default())).unwrap();
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(answer["response"]["patch"], "W10=");
    }

    #[test]
    fn warnings_and_audit_annotations_are_escaped() {
        let extras = ResponseExtras {
            warnings: vec!["a \"b\" \\ c".to_owned(), "ünïcödé".to_owned()],
            audit_annotations: vec![("decision", "prefer".to_owned()), ("reasons", "x\ny".to_owned())],
        };
        let answer: Value = serde_json::from_slice(&allow("u", None, &extras)).unwrap();
        assert_eq!(answer["response"]["warnings"], json!(["a \"b\" \\ c", "ünïcödé"]));
        assert_eq!(answer["response"]["auditAnnotations"], json!({"decision": "prefer", "reasons": "x\ny"}));
    }
}
