//! Identities and credentials as `az` prints them.
//!
//! Every file is JSON, and may hold any of these, alone, in a list, or in the `value` of an answer of Azure Resource Manager:
//!
//! * a federated credential (`az identity federated-credential list` or `show`), which says by its `id` whose it is;
//! * a managed identity (`az identity list` or `show`), with `clientId` and `id`;
//! * a managed identity with its credentials in `federatedIdentityCredentials`.
//!
//! What belongs together is found by the resource ids, whichever files it is in. A list without entries does not say whose it is; nor
//! does a credential without `id`: for these the caller knows the client id.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use spillway_core::azure::ResourceId;

use super::azure::{Azure, Credential, Extent, Identity, Unread};

/// Why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is no JSON.
    #[error("{line}:{column}: expected JSON as \"az ... --output json\" prints it: {message}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A field has another type, or is missing.
    #[error("{path}: {message}")]
    Field {
        /// Such as `[2].audiences`.
        path: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// An object is neither of the two.
    #[error("{path}: expected a managed identity (with clientId) or a federated credential (with issuer), got {got}")]
    Neither {
        /// Such as `[2]`.
        path: String,
        /// What stands there.
        got: String,
    },
    /// There is more that the file does not hold.
    #[error("the answer goes on at its nextLink; expected the whole list, as \"az\" prints it")]
    Truncated,
    /// Nobody knows whose credentials these are.
    #[error("{path}: the credential does not say whose it is (no id); name its identity: --identity CLIENT_ID=FILE")]
    WhoseCredential {
        /// Such as `[2]`.
        path: String,
    },
    /// The same, of a list without entries.
    #[error("an empty list does not say whose it is; name its identity: --identity CLIENT_ID=FILE")]
    WhoseList,
}

/// `properties` of a federated credential; `az` leaves the wrapping out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCredential {
    id: Option<String>,
    name: Option<String>,
    issuer: String,
    subject: Option<String>,
    audiences: Option<Vec<String>>,
    claims_matching_expression: Option<RawExpression>,
    system_data: Option<RawSystemData>,
}

#[derive(Debug, Deserialize)]
struct RawExpression {
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSystemData {
    created_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIdentity {
    id: Option<String>,
    client_id: String,
    principal_id: Option<String>,
    tenant_id: Option<String>,
}

/// What is known of an identity so far.
#[derive(Debug, Default)]
struct Known {
    client_id: String,
    principal_id: Option<String>,
    tenant_id: Option<String>,
    id: Option<ResourceId>,
    credentials: Option<Vec<Credential>>,
    source: String,
}

/// What several files say together.
#[derive(Debug, Default)]
pub struct Files {
    /// By client id in small letters.
    identities: BTreeMap<String, Known>,
    /// The credentials of identities that are known by their resource id only so far.
    by_id: BTreeMap<String, (ResourceId, Vec<Credential>, String)>,
    /// Whether a list of identities was among them, so that another is not visible.
    has_identities: bool,
}

impl Files {
    /// Takes in a file.
    ///
    /// # Errors
    ///
    /// [`FileError`] for anything that is not what [`crate::file`] describes.
    pub fn add(&mut self, source: &str, text: &str) -> Result<(), FileError> {
        let items = items(parse(text)?)?;
        if items.is_empty() {
            return Err(FileError::WhoseList);
        }
        for (path, value) in items {
            if value.get("clientId").is_some() {
                self.add_identity(source, &path, value)?;
            } else {
                let (id, credential) = credential(source, &path, &value)?;
                let Some(id) = id else { return Err(FileError::WhoseCredential { path }) };
                self.of_id(source, id).push(credential);
            }
        }
        Ok(())
    }

    /// Takes in the credentials of one identity, whose client id the caller knows.
    ///
    /// # Errors
    ///
    /// The same; a managed identity has no place here.
    pub fn add_of(&mut self, client_id: &str, source: &str, text: &str) -> Result<(), FileError> {
        let mut credentials = Vec::new();
        let mut id = None;
        for (path, value) in items(parse(text)?)? {
            let (of, credential) = credential(source, &path, &value)?;
            id = of.or(id);
            credentials.push(credential);
        }
        let identity = self.identity(client_id, source);
        identity.id = identity.id.take().or(id);
        identity.credentials.get_or_insert_default().extend(credentials);
        Ok(())
    }

    fn identity(&mut self, client_id: &str, source: &str) -> &mut Known {
        self.identities.entry(client_id.to_ascii_lowercase()).or_insert_with(|| Known {
            client_id: client_id.to_owned(),
            source: source.to_owned(),
            ..Known::default()
        })
    }

    fn of_id(&mut self, source: &str, id: ResourceId) -> &mut Vec<Credential> {
        &mut self.by_id.entry(id.key()).or_insert_with(|| (id, Vec::new(), source.to_owned())).1
    }

    fn add_identity(&mut self, source: &str, path: &str, mut value: Value) -> Result<(), FileError> {
        let wrapped = value.as_object_mut().and_then(|object| object.remove("federatedIdentityCredentials"));
        let raw: RawIdentity = typed(path, &value)?;
        let id = raw.id.as_deref().and_then(ResourceId::parse);
        self.has_identities |= wrapped.is_none();
        let identity = self.identity(&raw.client_id, source);
        identity.principal_id = raw.principal_id.or(identity.principal_id.take());
        identity.tenant_id = raw.tenant_id.or(identity.tenant_id.take());
        identity.id = id.or(identity.id.take());
        let Some(wrapped) = wrapped.filter(|wrapped| !wrapped.is_null()) else { return Ok(()) };
        let Value::Array(list) = wrapped else {
            let path = format!("{path}.federatedIdentityCredentials");
            return Err(FileError::Field { path, message: "expected a list".to_owned() });
        };
        let below = list.into_iter().zip(0..).map(|(value, at)| {
            credential(source, &format!("{path}.federatedIdentityCredentials[{at}]"), &flat(value)).map(|(_, one)| one)
        });
        let credentials: Vec<_> = below.collect::<Result<_, _>>()?;
        identity.credentials.get_or_insert_default().extend(credentials);
        Ok(())
    }

    /// What the files say. Of an identity that only credentials speak of, the client id is not known, so nobody finds it.
    pub fn finish(self) -> Azure {
        let Self { identities, mut by_id, has_identities } = self;
        let named: Vec<_> = identities
            .into_values()
            .map(|Known { client_id, principal_id, tenant_id, id, credentials, source }| {
                let elsewhere =
                    id.as_ref().and_then(|id| by_id.remove(&id.key())).map(|(_, credentials, _)| credentials);
                let credentials = match (credentials, elsewhere) {
                    (None, None) => Err(unread(id.as_ref())),
                    (one, other) => Ok(one.into_iter().chain(other).flatten().collect()),
                };
                Identity { client_id, principal_id, tenant_id, id, credentials, extent: Extent::Listed, source }
            })
            .collect();
        let nameless = by_id.into_values().map(|(id, credentials, source)| Identity {
            client_id: String::new(),
            principal_id: None,
            tenant_id: None,
            id: Some(id),
            credentials: Ok(credentials),
            extent: Extent::Listed,
            source,
        });
        let unseen = (!has_identities).then(|| Unread {
            because: "no file lists the managed identities (az identity list)".to_owned(),
            action: "Microsoft.ManagedIdentity/userAssignedIdentities/read".to_owned(),
            scope: "the subscription of the identity".to_owned(),
        });
        Azure { identities: named.into_iter().chain(nameless).collect(), unseen, ..Azure::default() }
    }
}

fn unread(id: Option<&ResourceId>) -> Unread {
    Unread {
        because: "no file holds its federated credentials".to_owned(),
        action: "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/read".to_owned(),
        scope: id.map_or_else(|| "the identity".to_owned(), ToString::to_string),
    }
}

fn parse(text: &str) -> Result<Value, FileError> {
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
        FileError::Json { line: error.line(), column: error.column(), message }
    })
}

/// The objects of a file, each with its path.
fn items(value: Value) -> Result<Vec<(String, Value)>, FileError> {
    let (prefix, list) = match value {
        Value::Array(list) => ("", list),
        Value::Object(mut object) if object.get("value").is_some_and(Value::is_array) => {
            if object.get("nextLink").and_then(Value::as_str).is_some_and(|link| !link.is_empty()) {
                return Err(FileError::Truncated);
            }
            match object.remove("value") {
                Some(Value::Array(list)) => ("value", list),
                _ => return Ok(Vec::new()),
            }
        }
        other => return Ok(vec![(String::from("."), flat(other))]),
    };
    Ok(list.into_iter().zip(0..).map(|(value, at)| (format!("{prefix}[{at}]"), flat(value))).collect())
}

/// An object with its `properties` among its own fields, as `az` prints it.
fn flat(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut()
        && let Some(Value::Object(properties)) = object.remove("properties")
    {
        object.extend(properties);
    }
    value
}

fn credential(source: &str, path: &str, value: &Value) -> Result<(Option<ResourceId>, Credential), FileError> {
    if value.get("issuer").is_none() {
        return Err(FileError::Neither { path: path.to_owned(), got: describe(value) });
    }
    let raw: RawCredential = typed(path, value)?;
    let of_id = raw.id.as_deref().and_then(|id| id.rsplit('/').next()).map(str::to_owned);
    let Some(name) = raw.name.or(of_id) else {
        return Err(FileError::Field { path: format!("{path}.name"), message: "missing".to_owned() });
    };
    let credential = Credential {
        name,
        issuer: raw.issuer,
        subject: raw.subject,
        audiences: raw.audiences.unwrap_or_default(),
        expression: raw.claims_matching_expression.and_then(|expression| expression.value),
        since: raw.system_data.and_then(|data| data.created_at),
        source: source.to_owned(),
    };
    Ok((raw.id.as_deref().and_then(ResourceId::parse), credential))
}

fn typed<'v, T: Deserialize<'v>>(path: &str, value: &'v Value) -> Result<T, FileError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let separator = if field.starts_with('[') || path == "." { "" } else { "." };
        let path = if field == "." { path.to_owned() } else { format!("{path}{separator}{field}") };
        let message = error.inner().to_string();
        let parts = message.strip_prefix("invalid type: ").and_then(|parts| parts.split_once(", expected "));
        let message = parts.map(|(got, expected)| format!("expected {expected}, got {got}"));
        FileError::Field { path, message: message.unwrap_or_else(|| error.inner().to_string()) }
    })
}

fn describe(value: &Value) -> String {
    match value {
        Value::Object(object) if object.is_empty() => "an empty object".to_owned(),
        Value::Object(object) => {
            let keys: Vec<_> = object.keys().take(4).map(String::as_str).collect();
            format!("an object with {}", keys.join(", "))
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_ID: &str = "00000000-1111-4222-8333-444444444444";
    const ID: &str =
        "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-web";

    fn identities() -> String {
        format!(
            r#"[{{"clientId": "{CLIENT_ID}", "id": "{}", "principalId": "p", "tenantId": "t"}}]"#,
            ID.to_uppercase().replace("/SUBSCRIPTIONS/", "/subscriptions/")
        )
    }

    fn credential() -> String {
        format!(
            r#"{{"id": "{ID}/federatedIdentityCredentials/web", "name": "web", "issuer": "i", "subject": "s", "audiences": ["a"], "systemData": null}}"#
        )
    }

    /// Name and subject of each credential of the one identity with a client id.
    fn credentials(azure: &Azure) -> Vec<(&str, Option<&str>)> {
        let identity = azure.identities.iter().find(|identity| !identity.client_id.is_empty()).unwrap();
        let credentials = identity.credentials.as_ref().unwrap();
        credentials.iter().map(|one| (one.name.as_str(), one.subject.as_deref())).collect()
    }

    #[test]
    fn what_belongs_together_is_found_whatever_file_it_is_in_and_in_whatever_order() {
        let (identities, credential) = (identities(), credential());
        let of_arm = credential
            .replace("\"issuer\"", "\"properties\": {\"issuer\"")
            .replace("\"systemData\": null", "\"x\": 1}");
        let wrapped = format!(r#"{{"clientId": "{CLIENT_ID}", "federatedIdentityCredentials": [{credential}]}}"#);
        for files in [
            vec![identities.clone(), format!("[{credential}]")],
            vec![format!("[{credential}]"), identities.clone()],
            vec![identities.clone(), credential.clone()],
            vec![identities.clone(), format!(r#"{{"value": [{of_arm}], "nextLink": null}}"#)],
            vec![wrapped.clone()],
            vec![format!("\u{feff}[{wrapped}]")],
        ] {
            let mut all = Files::default();
            for text in &files {
                all.add("f.json", text).unwrap();
            }
            assert_eq!(credentials(&all.finish()), [("web", Some("s"))], "{files:?}");
        }
        let mut all = Files::default();
        all.add_of(CLIENT_ID, "f.json", &format!("[{credential}]")).unwrap();
        all.add("ids.json", &identities).unwrap();
        let azure = all.finish();
        assert_eq!(credentials(&azure), [("web", Some("s"))]);
        assert_eq!(azure.identities.len(), 1);
        assert_eq!(azure.unseen, None, "the identities are listed");
    }

    #[test]
    fn an_empty_list_is_known_to_be_empty_and_an_absent_one_is_not() {
        let mut all = Files::default();
        all.add_of(CLIENT_ID, "f.json", "[]").unwrap();
        let azure = all.finish();
        assert_eq!(credentials(&azure), []);
        assert!(azure.unseen.is_some(), "nobody listed the identities");
        let mut all = Files::default();
        all.add("ids.json", &identities()).unwrap();
        let unread = all.finish().identities.remove(0).credentials.unwrap_err();
        assert!(unread.scope.eq_ignore_ascii_case(ID), "{}", unread.scope);
    }

    #[test]
    fn a_file_that_is_something_else_is_refused_with_place_and_what_was_expected() {
        let typed = credential().replace("[\"a\"]", "\"a\"");
        let nameless = credential().replace(ID, "x");
        for (text, expected) in [
            ("", "1:0: expected JSON as \"az ... --output json\" prints it: EOF while parsing a value"),
            ("[\n{]", "2:2: expected JSON as \"az ... --output json\" prints it: key must be a string"),
            ("[]", "an empty list does not say whose it is; name its identity: --identity CLIENT_ID=FILE"),
            ("3", ".: expected a managed identity (with clientId) or a federated credential (with issuer), got 3"),
            (
                r#"[{"kind": "Pod", "a": 1}]"#,
                "[0]: expected a managed identity (with clientId) or a federated credential (with issuer), got an object with a, kind",
            ),
            (r#"[{"issuer": 5, "name": "x"}]"#, "[0].issuer: expected a string, got integer `5`"),
            (&format!("[{typed}]"), "[0].audiences: expected a sequence, got string \"a\""),
            (
                r#"{"value": [], "nextLink": "https://x"}"#,
                "the answer goes on at its nextLink; expected the whole list, as \"az\" prints it",
            ),
            (
                &nameless,
                ".: the credential does not say whose it is (no id); name its identity: --identity CLIENT_ID=FILE",
            ),
            (
                r#"{"clientId": "c", "federatedIdentityCredentials": {}}"#,
                "..federatedIdentityCredentials: expected a list",
            ),
        ] {
            let error = Files::default().add("f.json", text).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }
}
