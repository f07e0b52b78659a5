//! Requests in an AdmissionReview.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use crate::{
    excerpt::{WORD, excerpt},
    pod::{Binding, MAX_NAME_BYTES, Pod, Text},
};

/// Maximum size of the UID that a response repeats. The API server sends 36 characters.
const MAX_UID_BYTES: usize = 128;

/// Request to admit a pod.
#[derive(Debug)]
pub struct Request<'a> {
    /// UID that the response must repeat. Never empty.
    pub uid: Text<'a>,
    /// Namespace of the new pod. The pod's own `metadata.namespace` may be absent.
    pub namespace: Text<'a>,
    /// `true` if the API server stores nothing, as with `kubectl apply --dry-run=server`.
    pub dry_run: bool,
    /// Client that sent the request: a user, a service account or a node.
    pub username: Text<'a>,
    /// The pod, after the changes of earlier webhooks.
    pub pod: Box<Pod<'a>>,
    /// The pod before the update. `None` for a creation.
    pub old: Option<Box<Pod<'a>>>,
}

/// Request to bind a pod to a node.
#[derive(Debug)]
pub struct BindingRequest<'a> {
    /// UID that the response must repeat. Never empty.
    pub uid: Text<'a>,
    /// Namespace of the pod.
    pub namespace: Text<'a>,
    /// Name of the pod.
    pub pod: Text<'a>,
    /// `true` if the API server stores nothing.
    pub dry_run: bool,
    /// The binding, after the changes of earlier webhooks.
    pub binding: Binding<'a>,
}

/// Reason why Spillway cannot use a request body.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReviewError {
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    Utf8(#[from] std::str::Utf8Error),
    /// The body is not JSON, or a field has a type that the API does not give it.
    #[error("the body is not a valid AdmissionReview for this webhook")]
    Json(#[from] serde_json::Error),
    /// The body is JSON, but of another kind or version.
    #[error("expected kind AdmissionReview of admission.k8s.io/v1, got {kind:?} of {api_version:?}")]
    NotAReview {
        /// `apiVersion` of the body
        api_version: String,
        /// `kind` of the body
        kind: String,
    },
    /// The review has no request or no UID, or the UID is too long.
    #[error("the review has no request with a uid of at most {MAX_UID_BYTES} bytes")]
    NoRequest,
    /// The request is neither the creation nor the update of a v1 Pod.
    #[error("expected the creation or update of a v1 Pod, got {operation:?} of {kind:?}")]
    NotAPod {
        /// `request.operation`
        operation: String,
        /// `request.kind.kind`
        kind: String,
    },
    /// The request is not the binding of a v1 Pod.
    #[error("expected the binding of a v1 Pod, got {operation:?} of {kind:?}")]
    NotABinding {
        /// `request.operation`
        operation: String,
        /// `request.kind.kind`
        kind: String,
    },
    /// A name is too long for any object. The API server validates names after the webhooks.
    #[error("the name of the {0} has more than {MAX_NAME_BYTES} bytes")]
    LongName(&'static str),
    /// `request.object` is absent or null, or `request.oldObject` of an update.
    #[error("the review has no object")]
    NoObject,
}

impl ReviewError {
    /// Returns the metric label, from a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Utf8(_) => "utf8",
            Self::Json(_) => "json",
            Self::NotAReview { .. } => "not_a_review",
            Self::NoRequest => "no_request",
            Self::NotAPod { .. } => "not_a_pod",
            Self::NotABinding { .. } => "not_a_binding",
            Self::LongName(_) => "long_name",
            Self::NoObject => "no_object",
        }
    }
}

/// AdmissionReview of an object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReview<'a, O> {
    #[serde(borrow)]
    api_version: Option<Text<'a>>,
    #[serde(borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    request: Option<WireRequest<'a, O>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRequest<'a, O> {
    #[serde(borrow)]
    uid: Option<Text<'a>>,
    #[serde(borrow)]
    kind: Option<GroupVersionKind<'a>>,
    #[serde(borrow)]
    sub_resource: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    operation: Option<Text<'a>>,
    dry_run: Option<bool>,
    #[serde(borrow)]
    user_info: Option<UserInfo<'a>>,
    object: Option<O>,
    old_object: Option<O>,
}

#[derive(Deserialize)]
struct UserInfo<'a> {
    #[serde(borrow)]
    username: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct GroupVersionKind<'a> {
    #[serde(borrow)]
    group: Option<Text<'a>>,
    #[serde(borrow)]
    version: Option<Text<'a>>,
    #[serde(borrow)]
    kind: Option<Text<'a>>,
}

/// Reads the body of a call to the pod webhook.
///
/// # Errors
///
/// Returns [`ReviewError`] if the request is neither the creation nor the update of a pod. The caller then looks for the
/// UID with [`recover_uid`].
pub fn parse(body: &[u8]) -> Result<Request<'_>, ReviewError> {
    let request: WireRequest<'_, Box<Pod<'_>>> = request(body)?;
    let (uid, operation) = (request.uid()?, text_or_empty(&request.operation));
    let is_update = operation == "UPDATE";
    if !request.is_about("Pod", "") || !(is_update || operation == "CREATE") {
        return Err(ReviewError::NotAPod { operation: word(operation), kind: request.kind() });
    }
    let WireRequest { namespace, dry_run, user_info, object, old_object, .. } = request;
    let (Some(pod), Some(namespace)) = (object, namespace) else {
        return Err(ReviewError::NoObject);
    };
    let old = old_object.filter(|_| is_update);
    if is_update && old.is_none() {
        return Err(ReviewError::NoObject);
    }
    let username = user_info.and_then(|user| user.username).unwrap_or_default();
    check_names(&namespace, [&pod.metadata.name, &pod.metadata.generate_name])?;
    Ok(Request { uid, namespace, dry_run: dry_run.unwrap_or(false), username, pod, old })
}

/// Reads the body of a call to the binding webhook.
///
/// # Errors
///
/// Returns [`ReviewError`] if the request is not the binding of a pod, as [`parse`] does.
pub fn parse_binding(body: &[u8]) -> Result<BindingRequest<'_>, ReviewError> {
    let request: WireRequest<'_, Binding<'_>> = request(body)?;
    let (uid, operation) = (request.uid()?, text_or_empty(&request.operation));
    if !request.is_about("Binding", "binding") || operation != "CREATE" {
        return Err(ReviewError::NotABinding { operation: word(operation), kind: request.kind() });
    }
    let WireRequest { name, namespace, dry_run, object, .. } = request;
    let (Some(binding), Some(namespace)) = (object, namespace) else {
        return Err(ReviewError::NoObject);
    };
    // The API server takes the pod's name from the path. The binding's own name may be empty.
    let pod = name.or_else(|| binding.metadata.as_ref()?.name.clone()).ok_or(ReviewError::NoObject)?;
    check_names(&namespace, [&Some(pod.clone()), &None])?;
    Ok(BindingRequest { uid, namespace, pod, dry_run: dry_run.unwrap_or(false), binding })
}

/// Returns the request of a review.
fn request<'a, O: Deserialize<'a>>(body: &'a [u8]) -> Result<WireRequest<'a, O>, ReviewError> {
    // One UTF-8 check for the whole body is cheaper than one for each string (`from_slice`).
    let text = std::str::from_utf8(body)?;
    let review: WireReview<'_, O> = serde_json::from_str(text)?;
    let (api_version, kind) = (text_or_empty(&review.api_version), text_or_empty(&review.kind));
    if (api_version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(ReviewError::NotAReview { api_version: word(api_version), kind: word(kind) });
    }
    review.request.ok_or(ReviewError::NoRequest)
}

impl<'a, O> WireRequest<'a, O> {
    fn uid(&self) -> Result<Text<'a>, ReviewError> {
        self.uid.clone().filter(|uid| is_uid(uid)).ok_or(ReviewError::NoRequest)
    }

    /// Returns whether the request is about this v1 kind of the core group, and this subresource.
    fn is_about(&self, kind: &str, sub_resource: &str) -> bool {
        let is_kind = self.kind.as_ref().is_some_and(|about| {
            text_or_empty(&about.group).is_empty()
                && text_or_empty(&about.version) == "v1"
                && text_or_empty(&about.kind) == kind
        });
        is_kind && text_or_empty(&self.sub_resource) == sub_resource
    }

    fn kind(&self) -> String {
        word(self.kind.as_ref().map(|about| text_or_empty(&about.kind)).unwrap_or_default())
    }
}

/// Checks the length of the names that go into the log.
fn check_names(namespace: &str, of_pod: [&Option<Text<'_>>; 2]) -> Result<(), ReviewError> {
    if namespace.len() > MAX_NAME_BYTES {
        return Err(ReviewError::LongName("namespace"));
    }
    let is_long = |name: &Text<'_>| name.len() > MAX_NAME_BYTES;
    if of_pod.into_iter().flatten().any(is_long) { Err(ReviewError::LongName("pod")) } else { Ok(()) }
}

/// Returns a word of the body for an error message.
fn word(text: &str) -> String {
    excerpt(text, WORD).into_owned()
}

fn is_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.len() <= MAX_UID_BYTES
}

fn text_or_empty<'t>(text: &'t Option<Text<'_>>) -> &'t str {
    text.as_deref().unwrap_or_default()
}

/// Returns the UID of a review that [`parse`] could not use, or `None` if the UID is unreadable or too long.
///
/// For the API server, a response without the UID is a failed call (decision 10). Go writes `uid` as the first field of
/// a request. So this function returns the UID even if the text behind it is broken.
pub fn recover_uid(body: &[u8]) -> Option<Cow<'_, str>> {
    let mut found = None;
    let mut json = serde_json::Deserializer::from_slice(body);
    // The result does not matter. The caller already knows that the body is broken.
    let _ = Field { path: &["request", "uid"], found: &mut found }.deserialize(&mut json);
    found.filter(|uid| is_uid(uid))
}

/// Follows a path of map keys, skips other fields, and keeps the string at the end.
struct Field<'p, 'f, 'a> {
    path: &'p [&'static str],
    found: &'f mut Option<Cow<'a, str>>,
}

impl<'de> DeserializeSeed<'de> for Field<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() { deserializer.deserialize_str(self) } else { deserializer.deserialize_map(self) }
    }
}

impl<'de> Visitor<'de> for Field<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an AdmissionReview")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<(), E> {
        *self.found = Some(Cow::Borrowed(value));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        *self.found = Some(Cow::Owned(value.to_owned()));
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let Some((wanted, rest)) = self.path.split_first() else { return Ok(()) };
        while let Some(key) = map.next_key::<Text<'de>>()? {
            if &*key == *wanted {
                map.next_value_seed(Field { path: rest, found: &mut *self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(request: &str) -> String {
        format!(r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{request}}}"#)
    }

    const POD: &str = r#""kind":{"group":"","version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"shop""#;

    #[test]
    fn the_creation_of_a_pod_is_read() {
        let body = review(&format!(
            r#"{{"uid":"u-1",{POD},"dryRun":true,"object":{{"metadata":{{"name":"web","managedFields":[{{}}]}},"spec":{{"containers":[{{"name":"c"}}]}}}}}}"#
        ));
        let request = parse(body.as_bytes()).unwrap();
        assert_eq!((&*request.uid, &*request.namespace, request.dry_run), ("u-1", "shop", true));
        assert_eq!(request.pod.metadata.name.as_deref(), Some("web"));
    }

    #[test]
    fn other_requests_are_refused() {
        let object = r#""object":{"metadata":{},"spec":{}}"#;
        for (body, reason) in [
            (review(&format!(r#"{{"uid":"u",{POD},{object}}}"#)).replace("admission.k8s.io/v1", "v2"), "not_a_review"),
            (review(&format!(r#"{{"uid":"u",{POD},{object}}}"#)).replace("AdmissionReview", "Pod"), "not_a_review"),
            (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_owned(), "no_request"),
            (review("null"), "no_request"),
            (review(&format!(r"{{{POD},{object}}}")), "no_request"),
            (review(&format!(r#"{{"uid":"",{POD},{object}}}"#)), "no_request"),
            (review(&format!(r#"{{"uid":"u",{POD},{object}}}"#)).replace("CREATE", "DELETE"), "not_a_pod"),
            (review(&format!(r#"{{"uid":"u",{POD},{object}}}"#)).replace("CREATE", "UPDATE"), "no_object"),
            (review(&format!(r#"{{"uid":"u",{POD},"subResource":"status",{object}}}"#)), "not_a_pod"),
            (review(&format!(r#"{{"uid":"u",{POD},{object}}}"#)).replace(r#""Pod""#, r#""Node""#), "not_a_pod"),
            (review(&format!(r#"{{"uid":"u",{POD},"object":null}}"#)), "no_object"),
            (review(&format!(r#"{{"uid":"u",{POD}}}"#)), "no_object"),
            (review(&format!(r#"{{"uid":"u",{POD},"object":{{"metadata":null,"spec":{{}}}}}}"#)), "json"),
            (review(&format!(r#"{{"uid":"u",{POD},"object":[]}}"#)), "json"),
            (review(&format!(r#"{{"uid":"u","uid":"v",{POD},{object}}}"#)), "json"),
            (String::new(), "json"),
        ] {
            assert_eq!(parse(body.as_bytes()).map(|_| ()).unwrap_err().reason(), reason, "{body}");
        }
        assert_eq!(parse(b"\xff").map(|_| ()).unwrap_err().reason(), "utf8");
    }

    #[test]
    fn a_name_that_no_object_can_have_is_refused() {
        let review = |namespace: &str, name: &str| {
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u",
                "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": namespace,
                "object": {"metadata": {"name": name}, "spec": {}}}})
            .to_string()
        };
        let reason = |body: String| parse(body.as_bytes()).err().map(|error| error.reason());
        let long = "n".repeat(254);
        assert_eq!(reason(review("shop", "web")), None);
        assert_eq!([reason(review(&long, "web")), reason(review("shop", &long))], [Some("long_name"); 2]);
    }

    #[test]
    fn a_uid_that_no_api_server_sends_is_not_repeated() {
        let body = json!({"request": {"uid": "u".repeat(129)}}).to_string();
        assert_eq!(recover_uid(body.as_bytes()), None);
    }

    #[test]
    fn a_deep_body_is_read_or_refused_with_its_uid() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = |object: &str| review(&format!(r#"{{{POD},"x":{deep},"object":{object},"uid":"u-1"}}"#));
        // serde_json skips unknown fields in a loop, without a limit of depth.
        assert!(parse(body(r#"{"metadata":{},"spec":{}}"#).as_bytes()).is_ok());
        for object in [
            format!(r#"{{"metadata":{{}},"spec":{{"x":{deep},"containers":{deep}}}}}"#),
            format!(r#"{{"metadata":{{}},"spec":{deep}}}"#),
            deep.clone(),
        ] {
            let body = body(&object);
            assert_eq!(parse(body.as_bytes()).unwrap_err().reason(), "json");
            assert_eq!(recover_uid(body.as_bytes()).as_deref(), Some("u-1"));
        }
    }

    #[test]
    fn the_uid_is_read_from_a_broken_body() {
        let whole = review(r#"{"uid":"u-1","object":{"spec":{"x":[1,2,3]}}}"#);
        for cut in whole.find("object").unwrap()..whole.len() {
            assert_eq!(recover_uid(&whole.as_bytes()[..cut]).as_deref(), Some("u-1"), "cut at {cut}");
        }
        assert_eq!(recover_uid(b"{\"x\":\"\xff\",\"request\":{\"uid\":\"u-1\"}}").as_deref(), Some("u-1"));
        assert_eq!(recover_uid(br#"{"request":{"uid":"a\"b"}}"#).as_deref(), Some("a\"b"));
        for none in
            [&b""[..], b"[]", b"{}", br#"{"request":null}"#, br#"{"request":{"uid":7}}"#, br#"{"request":{"uid":""}}"#]
        {
            assert_eq!(recover_uid(none), None);
        }
    }
}
