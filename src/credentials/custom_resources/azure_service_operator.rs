//! Azure Service Operator, version 2.
//!
//! Fields: Azure/azure-service-operator `v2/api/managedidentity/v1api20230131/storage/structure.txt`. `status` has the
//! actual state in Azure, and `spec` the desired state. Only `status` has the values from `issuerFromConfig` and
//! `subjectFromConfig`.

use futures_util::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, core::Object};
use serde::{Deserialize, Serialize};
use spillway_identity::managed_identity::FederatedCredential;

use super::resource::{CredentialResource, IdentityFields, IdentityResource, Operator, id, list, source};
use crate::kubernetes::ObjectKey;

const NAME: &str = "Azure Service Operator";

pub(super) const OPERATOR: Operator = Operator {
    name: NAME,
    group: "managedidentity.azure.com",
    identities: |client, resource| list(client, resource, identity).boxed(),
    credentials: |client, resource| list(client, resource, credential).boxed(),
};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct IdentitySpec {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialSpec {
    azure_name: Option<String>,
    owner: Option<Owner>,
    issuer: Option<String>,
    subject: Option<String>,
    audiences: Option<Vec<String>>,
}

/// A reference by name in the same namespace, or by resource ID.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    name: Option<String>,
    arm_id: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialStatus {
    id: Option<String>,
    name: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    audiences: Option<Vec<String>>,
    system_data: Option<SystemData>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SystemData {
    last_modified_at: Option<String>,
}

fn identity(object: Object<IdentitySpec, IdentityFields>) -> IdentityResource {
    IdentityResource { key: ObjectKey::of(&object), fields: object.status.unwrap_or_default() }
}

fn credential(object: Object<CredentialSpec, CredentialStatus>) -> CredentialResource {
    let key = ObjectKey::of(&object);
    let created = object.creation_timestamp().map(|time| time.0);
    let CredentialSpec { azure_name, owner, issuer, subject, audiences } = object.spec;
    let Owner { name: owner, arm_id } = owner.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let modified = status.system_data.and_then(|data| data.last_modified_at?.parse::<Timestamp>().ok());
    CredentialResource {
        owner: owner.map(|name| ObjectKey::new(&key.namespace, name)),
        parent: id(arm_id.as_ref()).or_else(|| id(status.id.as_ref())),
        credential: FederatedCredential {
            name: status.name.or(azure_name).unwrap_or_else(|| key.name.clone()),
            issuer: status.issuer.or(issuer).unwrap_or_default(),
            subject: status.subject.or(subject),
            audiences: status.audiences.or(audiences).unwrap_or_default(),
            expression: None,
            since: modified.or(created),
            source: source(NAME, &key),
        },
    }
}
