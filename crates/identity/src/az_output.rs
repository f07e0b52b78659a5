//! Reads identities and credentials as `az` prints them.
//!
//! Each file is JSON. It has one or several of these objects, alone, in a list, or in `value` of an Azure Resource Manager response:
//!
//! * a federated credential (`az identity federated-credential list` or `show`), whose `id` names its identity;
//! * a managed identity (`az identity list` or `show`), with `clientId` and `id`;
//! * a managed identity with its credentials in `federatedIdentityCredentials`.
//!
//! Resource IDs connect identities and credentials, also across files. An empty list and a credential without `id` do not name their
//! identity, so the caller must give the client ID.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use spillway_core::azure::ResourceId;

use super::managed_identity::{Completeness, FederatedCredential, ManagedIdentities, ManagedIdentity, ReadFailure};

/// The reason why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The file is not JSON.
    #[error("{line}:{column}: expected JSON as \"az ... --output json\" prints it: {message}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The error of the parser.
        message: String,
    },
    /// A field is missing or has a wrong type.
    #[error("{path}: {message}")]
    Field {
        /// Such as `[2].audiences`.
        path: String,
        /// The error, with the expected type.
        message: String,
    },
    /// An object is neither a managed identity nor a federated credential.
    #[error("{path}: expected a managed identity (with clientId) or a federated credential (with issuer), got {got}")]
    UnknownObject {
        /// Such as `[2]`.
        path: String,
        /// The actual value in the file.
        got: String,
    },
    /// The file holds only the first page of a list.
    #[error("the response continues at its nextLink; expected the complete list, as \"az\" prints it")]
    Truncated,
    /// A credential has no resource ID, so its identity is not known.
    #[error("{path}: the credential has no id; name its identity with --identity CLIENT_ID=FILE")]
    CredentialWithoutId {
        /// Such as `[2]`.
        path: String,
    },
    /// A list has no entries, so its identity is not known.
    #[error("an empty list does not name its identity; use --identity CLIENT_ID=FILE")]
    EmptyList,
}

/// `properties` of a federated credential. `az` prints the fields one level up.
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

/// An identity with the fields found so far.
#[derive(Debug, Default)]
struct PartialIdentity {
    client_id: String,
    principal_id: Option<String>,
    tenant_id: Option<String>,
    id: Option<ResourceId>,
    credentials: Option<Vec<FederatedCredential>>,
    source: String,
}

/// The credentials of an identity whose client ID is not known.
#[derive(Debug)]
struct CredentialsOfId {
    id: ResourceId,
    credentials: Vec<FederatedCredential>,
    source: String,
}

/// The content of several files.
#[derive(Debug, Default)]
pub struct Files {
    /// By client ID in lower case.
    identities: BTreeMap<String, PartialIdentity>,
    /// The credentials of identities whose client ID is not known, by resource ID.
    by_id: BTreeMap<String, CredentialsOfId>,
    /// `true` if a list of identities was among the files.
    has_identities: bool,
}

impl Files {
    /// Adds a file.
    ///
    /// # Errors
    ///
    /// Returns [`FileError`] if the file does not have the format that [`crate::az_output`] describes.
    pub fn add(&mut self, source: &str, text: &str) -> Result<(), FileError> {
        let items = items(parse(text)?)?;
        if items.is_empty() {
            return Err(FileError::EmptyList);
        }
        for (path, value) in items {
            if value.get("clientId").is_some() {
                self.add_identity(source, &path, value)?;
            } else {
                let (id, credential) = credential(source, &path, &value)?;
                let Some(id) = id else { return Err(FileError::CredentialWithoutId { path }) };
                self.credentials_of(source, &id).push(credential);
            }
        }
        Ok(())
    }

    /// Adds the credentials of one identity, whose client ID the caller knows.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Files::add`], and an error for a managed identity.
    pub fn add_for_identity(&mut self, client_id: &str, source: &str, text: &str) -> Result<(), FileError> {
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

    fn identity(&mut self, client_id: &str, source: &str) -> &mut PartialIdentity {
        self.identities.entry(client_id.to_ascii_lowercase()).or_insert_with(|| PartialIdentity {
            client_id: client_id.to_owned(),
            source: source.to_owned(),
            ..PartialIdentity::default()
        })
    }

    fn credentials_of(&mut self, source: &str, id: &ResourceId) -> &mut Vec<FederatedCredential> {
        let new = || CredentialsOfId { id: id.clone(), credentials: Vec::new(), source: source.to_owned() };
        &mut self.by_id.entry(id.key()).or_insert_with(new).credentials
    }

    fn add_identity(&mut self, source: &str, path: &str, mut value: Value) -> Result<(), FileError> {
        let wrapped = value.as_object_mut().and_then(|object| object.remove("federatedIdentityCredentials"));
        let raw: RawIdentity = decode(path, &value)?;
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
            credential(source, &format!("{path}.federatedIdentityCredentials[{at}]"), &flatten_properties(value))
                .map(|(_, one)| one)
        });
        let credentials: Vec<_> = below.collect::<Result<_, _>>()?;
        identity.credentials.get_or_insert_default().extend(credentials);
        Ok(())
    }

    /// Returns the content of all files. An identity without client ID matches no service account.
    pub fn finish(self) -> ManagedIdentities {
        let Self { identities, mut by_id, has_identities } = self;
        let named: Vec<_> = identities
            .into_values()
            .map(|PartialIdentity { client_id, principal_id, tenant_id, id, credentials, source }| {
                let elsewhere = id.as_ref().and_then(|id| by_id.remove(&id.key())).map(|other| other.credentials);
                let credentials = match (credentials, elsewhere) {
                    (None, None) => Err(not_in_files(id.as_ref())),
                    (one, other) => Ok(one.into_iter().chain(other).flatten().collect()),
                };
                ManagedIdentity {
                    client_id,
                    principal_id,
                    tenant_id,
                    id,
                    credentials,
                    completeness: Completeness::Snapshot,
                    source,
                }
            })
            .collect();
        let without_client_id =
            by_id.into_values().map(|CredentialsOfId { id, credentials, source }| ManagedIdentity {
                client_id: String::new(),
                principal_id: None,
                tenant_id: None,
                id: Some(id),
                credentials: Ok(credentials),
                completeness: Completeness::Snapshot,
                source,
            });
        let incomplete = (!has_identities).then(|| ReadFailure {
            reason: "no file lists the managed identities (az identity list)".to_owned(),
            action: "Microsoft.ManagedIdentity/userAssignedIdentities/read".to_owned(),
            scope: "the subscription of the identity".to_owned(),
        });
        ManagedIdentities {
            identities: named.into_iter().chain(without_client_id).collect(),
            incomplete,
            ..ManagedIdentities::default()
        }
    }
}

fn not_in_files(id: Option<&ResourceId>) -> ReadFailure {
    ReadFailure {
        reason: "no file has its federated credentials".to_owned(),
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

/// Returns the objects of a file, each with its path.
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
        other => return Ok(vec![(String::from("."), flatten_properties(other))]),
    };
    Ok(list.into_iter().zip(0..).map(|(value, at)| (format!("{prefix}[{at}]"), flatten_properties(value))).collect())
}

/// Moves the fields of `properties` one level up, as `az` prints them.
fn flatten_properties(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut()
        && let Some(Value::Object(properties)) = object.remove("properties")
    {
        object.extend(properties);
    }
    value
}

fn credential(source: &str, path: &str, value: &Value) -> Result<(Option<ResourceId>, FederatedCredential), FileError> {
    if value.get("issuer").is_none() {
        return Err(FileError::UnknownObject { path: path.to_owned(), got: describe(value) });
    }
    let raw: RawCredential = decode(path, value)?;
    let of_id = raw.id.as_deref().and_then(|id| id.rsplit('/').next()).map(str::to_owned);
    let Some(name) = raw.name.or(of_id) else {
        return Err(FileError::Field { path: format!("{path}.name"), message: "missing".to_owned() });
    };
    let credential = FederatedCredential {
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

fn decode<'v, T: Deserialize<'v>>(path: &str, value: &'v Value) -> Result<T, FileError> {
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

    /// Name and subject of each credential of the only identity with a client ID.
    fn credentials(azure: &ManagedIdentities) -> Vec<(&str, Option<&str>)> {
        let identity = azure.identities.iter().find(|identity| !identity.client_id.is_empty()).unwrap();
        let credentials = identity.credentials.as_ref().unwrap();
        credentials.iter().map(|one| (one.name.as_str(), one.subject.as_deref())).collect()
    }

    #[test]
    fn credentials_are_joined_to_identities_across_files() {
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
        all.add_for_identity(CLIENT_ID, "f.json", &format!("[{credential}]")).unwrap();
        all.add("ids.json", &identities).unwrap();
        let azure = all.finish();
        assert_eq!(credentials(&azure), [("web", Some("s"))]);
        assert_eq!(azure.identities.len(), 1);
        assert_eq!(azure.incomplete, None, "the identities are listed");
    }

    #[test]
    fn an_empty_list_is_known_but_a_missing_list_is_not() {
        let mut all = Files::default();
        all.add_for_identity(CLIENT_ID, "f.json", "[]").unwrap();
        let azure = all.finish();
        assert_eq!(credentials(&azure), []);
        assert!(azure.incomplete.is_some(), "no file lists the identities");
        let mut all = Files::default();
        all.add("ids.json", &identities()).unwrap();
        let unread = all.finish().identities.remove(0).credentials.unwrap_err();
        assert!(unread.scope.eq_ignore_ascii_case(ID), "{}", unread.scope);
    }

    #[test]
    fn an_invalid_file_is_refused_with_location_and_expectation() {
        let typed = credential().replace("[\"a\"]", "\"a\"");
        let without_id = credential().replace(ID, "x");
        for (text, expected) in [
            ("", "1:0: expected JSON as \"az ... --output json\" prints it: EOF while parsing a value"),
            ("[\n{]", "2:2: expected JSON as \"az ... --output json\" prints it: key must be a string"),
            ("[]", "an empty list does not name its identity; use --identity CLIENT_ID=FILE"),
            ("3", ".: expected a managed identity (with clientId) or a federated credential (with issuer), got 3"),
            (
                r#"[{"kind": "Pod", "a": 1}]"#,
                "[0]: expected a managed identity (with clientId) or a federated credential (with issuer), got an object with a, kind",
            ),
            (r#"[{"issuer": 5, "name": "x"}]"#, "[0].issuer: expected a string, got integer `5`"),
            (&format!("[{typed}]"), "[0].audiences: expected a sequence, got string \"a\""),
            (
                r#"{"value": [], "nextLink": "https://x"}"#,
                "the response continues at its nextLink; expected the complete list, as \"az\" prints it",
            ),
            (&without_id, ".: the credential has no id; name its identity with --identity CLIENT_ID=FILE"),
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
