//! Managed identities and their federated credentials.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use spillway_core::azure::ResourceId;

/// The managed identities that could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagedIdentities {
    /// The identities that could be read.
    pub identities: Vec<ManagedIdentity>,
    /// The reason why other identities may exist. `None` if the list is complete.
    pub incomplete: Option<ReadFailure>,
    /// Client IDs in lower case that certainly no identity has, even if the list is incomplete.
    pub absent: BTreeSet<String>,
}

/// A user-assigned managed identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedIdentity {
    /// `properties.clientId`, which service accounts name.
    pub client_id: String,
    /// `properties.principalId`, which is often mistaken for the client ID.
    pub principal_id: Option<String>,
    /// `properties.tenantId`
    pub tenant_id: Option<String>,
    /// The resource ID, if it is known.
    pub id: Option<ResourceId>,
    /// The federated credentials, or the reason why they are not known.
    pub credentials: Result<Vec<FederatedCredential>, ReadFailure>,
    /// Completeness of the list of credentials.
    pub completeness: Completeness,
    /// The source of the value, for output.
    pub source: String,
}

/// Completeness of a list of credentials. Spillway prefers a greater value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Completeness {
    /// Only credentials that custom resources of the cluster manage. Azure may have others.
    Partial,
    /// All credentials at the time when a user wrote the list.
    Snapshot,
    /// All credentials, as Azure lists them.
    Complete,
}

impl ManagedIdentity {
    /// Returns the name for output, or the client ID without a name.
    pub fn display_name(&self) -> &str {
        self.id.as_ref().map_or(&self.client_id, |id| &id.name)
    }
}

/// A failure to read a subscription or resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    /// Reason such as `403 AuthorizationFailed`.
    pub reason: String,
    /// The missing permission, such as `Microsoft.ManagedIdentity/userAssignedIdentities/read`. Empty if no permission is missing.
    pub action: String,
    /// The subscription or resource that could not be read.
    pub scope: String,
}

/// A federated identity credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedCredential {
    /// `name`
    pub name: String,
    /// `properties.issuer`
    pub issuer: String,
    /// `properties.subject`. A flexible credential has no subject.
    pub subject: Option<String>,
    /// `properties.audiences`
    pub audiences: Vec<String>,
    /// `properties.claimsMatchingExpression.value` of a flexible credential.
    pub expression: Option<String>,
    /// The time of creation, or the time when Spillway first read the credential.
    pub since: Option<Timestamp>,
    /// The source of the value, for output.
    pub source: String,
}

/// Azure's limit of credentials for one identity
/// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations).
pub(super) const MAX_CREDENTIALS: usize = 20;

/// The time for which Entra may use outdated credentials from its cache
/// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations, propagation).
const PROPAGATION_TIME: SignedDuration = SignedDuration::from_mins(10);

impl FederatedCredential {
    /// Returns whether the credential is so new that Entra may not use it everywhere yet.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) < PROPAGATION_TIME)
    }

    /// Returns whether AKS manages the credential for identity bindings.
    pub fn is_for_bindings(&self) -> bool {
        self.name == super::keys::BINDING_CREDENTIAL && self.issuer.contains("://ib.oic.prod-aks.azure.com/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_fresh_for_ten_minutes() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let since = |since| FederatedCredential {
            name: String::new(),
            issuer: String::new(),
            subject: None,
            audiences: Vec::new(),
            expression: None,
            since,
            source: String::new(),
        };
        let now = at("2026-01-01T12:00:00Z");
        assert!(since(Some(at("2026-01-01T11:50:01Z"))).is_fresh(now));
        assert!(since(Some(at("2026-01-01T12:00:05Z"))).is_fresh(now), "clocks differ");
        assert!(!since(Some(at("2026-01-01T11:50:00Z"))).is_fresh(now));
        assert!(!since(None).is_fresh(now));
    }
}
