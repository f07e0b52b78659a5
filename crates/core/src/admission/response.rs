//! Writing the answer to an AdmissionReview.

use std::io::Write;

use base64::{display::Base64Display, engine::general_purpose::STANDARD};

use json_patch::Patch;

use crate::pod::push_string;

/// What an answer says beside yes: to the person who asked, and to the audit log.
#[derive(Debug, Default)]
pub struct ResponseExtras {
    /// Shown by kubectl; under 120 characters each, at most three (the API server cuts and drops what is more and longer).
    pub warnings: Vec<String>,
    /// Names and values; in the audit log the name follows the webhook's own and a slash.
    pub audit_annotations: Vec<(&'static str, String)>,
}

/// Returns the JSON text of a patch, as it travels in an answer.
pub fn encode(patch: &Patch) -> Vec<u8> {
    // Writing to memory fails only for maps with keys that are not strings. A patch has none.
    serde_json::to_vec(patch).unwrap_or_default()
}

/// The answer that admits the object, with a JSON patch (RFC 6902) or without one.
///
/// `patchType` without `patch` is refused by the API server (volcano-sh/volcano#2225), so both stand or neither does.
pub fn allow(uid: &str, patch: Option<&[u8]>, extras: &ResponseExtras) -> Vec<u8> {
    const ENVELOPE: usize = 640; // what is written around uid and patch, and the usual audit annotations
    let mut out = Vec::with_capacity(ENVELOPE + patch.map_or(0, |patch| patch.len().div_ceil(3) * 4));
    // Writing to memory cannot fail.
    let _ = write(&mut out, uid, patch, extras);
    out
}

fn write(out: &mut Vec<u8>, uid: &str, patch: Option<&[u8]>, extras: &ResponseExtras) -> std::io::Result<()> {
    out.extend(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"#);
    push_string(out, uid);
    out.extend(br#","allowed":true"#);
    if let Some(patch) = patch {
        write!(out, r#","patchType":"JSONPatch","patch":"{}""#, Base64Display::new(patch, &STANDARD))?;
    }
    if !extras.warnings.is_empty() {
        out.extend(br#","warnings":"#);
        serde_json::to_writer(&mut *out, &extras.warnings)?;
    }
    for (i, (name, value)) in extras.audit_annotations.iter().enumerate() {
        write!(out, r#"{}"{name}":"#, if i == 0 { r#","auditAnnotations":{"# } else { "," })?;
        push_string(out, value);
    }
    out.extend(if extras.audit_annotations.is_empty() { &b"}}"[..] } else { b"}}}" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_without_a_patch_has_no_patch_type() {
        let answer: Value = serde_json::from_slice(&allow("u\"1", None, &ResponseExtras::default())).unwrap();
        assert_eq!(
            answer,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "u\"1", "allowed": true}})
        );
    }

    #[test]
    fn a_patch_travels_as_base64() {
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
