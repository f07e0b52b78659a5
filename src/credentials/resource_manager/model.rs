//! Responses of Azure Resource Manager, with the fields that Spillway reads
//! (Azure/azure-rest-api-specs specification/msi, Microsoft.ManagedIdentity; learn.microsoft.com/rest/api/managedidentity).

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use spillway_identity::managed_identity;

/// The name of the source in findings.
pub(super) const SOURCE_NAME: &str = "Azure Resource Manager";

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T> {
    pub(super) value: Vec<T>,
    pub(super) next_link: Option<String>,
}

/// `Identity`
#[derive(Debug, Deserialize)]
pub(super) struct Identity {
    pub(super) id: String,
    pub(super) properties: Option<IdentityProperties>,
}

#[derive(Debug, Deserialize)]
pub(super) struct IdentityProperties {
    #[serde(rename = "clientId")]
    pub(super) client: Option<String>,
    #[serde(rename = "principalId")]
    pub(super) principal: Option<String>,
    #[serde(rename = "tenantId")]
    pub(super) tenant: Option<String>,
}

/// `FederatedIdentityCredential`. Stable API versions require a subject, but flexible credentials have none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Credential {
    name: String,
    properties: CredentialProperties,
    system_data: Option<SystemData>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialProperties {
    issuer: String,
    subject: Option<String>,
    audiences: Option<Vec<String>>,
    claims_matching_expression: Option<Expression>,
}

#[derive(Debug, Deserialize)]
struct Expression {
    value: Option<String>,
}

/// Azure/azure-rest-api-specs specification/common-types/resource-management, systemData
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SystemData {
    created_at: Option<Timestamp>,
    last_modified_at: Option<Timestamp>,
}

impl Credential {
    /// Converts to the input of the checks. For Entra, a changed credential is as new as a created one.
    pub(super) fn into_federated_credential(self) -> managed_identity::FederatedCredential {
        let Self { name, properties, system_data } = self;
        let CredentialProperties { issuer, subject, audiences, claims_matching_expression } = properties;
        managed_identity::FederatedCredential {
            name,
            issuer,
            subject,
            audiences: audiences.unwrap_or_default(),
            expression: claims_matching_expression.and_then(|expression| expression.value),
            since: system_data.and_then(|data| data.last_modified_at.or(data.created_at)),
            source: SOURCE_NAME.to_owned(),
        }
    }
}

/// `CloudError`, the body of every error
/// (github.com/microsoft/api-guidelines, azure/Guidelines.md, error condition responses).
#[derive(Debug, Default, Deserialize)]
pub(super) struct CloudError {
    #[serde(default)]
    pub(super) error: ErrorDetail,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorDetail {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}
