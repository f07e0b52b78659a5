//! Managed identities and their federated credentials.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use spillway_core::azure::ResourceId;

/// What is known of managed identities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Azure {
    /// Those that could be seen.
    pub identities: Vec<Identity>,
    /// Why others may exist that could not be seen; nothing when those seen are all that the reader may see.
    pub unseen: Option<Unread>,
    /// Client ids, in small letters, that no identity has, although not all identities could be seen.
    pub absent: BTreeSet<String>,
}

/// A user-assigned managed identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `properties.clientId`, which a service account names.
    pub client_id: String,
    /// `properties.principalId`, which is often taken for it.
    pub principal_id: Option<String>,
    /// `properties.tenantId`
    pub tenant_id: Option<String>,
    /// Its resource id, as far as it is known.
    pub id: Option<ResourceId>,
    /// Its federated credentials, or why they are not known.
    pub credentials: Result<Vec<Credential>, Unread>,
    /// How much these credentials say of those that Azure has.
    pub extent: Extent,
    /// Where this was read.
    pub source: String,
}

/// How much a list of credentials says of those that Azure has. The greater is the better witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Azure may have others: these are those that custom resources of the cluster manage.
    Part,
    /// They were all when somebody made the list.
    Listed,
    /// They are all: Azure says so.
    Whole,
}

impl Identity {
    /// For people: its name, else its client id.
    pub fn display_name(&self) -> &str {
        self.id.as_ref().map_or(&self.client_id, |id| &id.name)
    }
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// What happened, such as `403 AuthorizationFailed`.
    pub because: String,
    /// The permission that is missing, such as `Microsoft.ManagedIdentity/userAssignedIdentities/read`; empty when it is not for want
    /// of a permission.
    pub action: String,
    /// What was asked, and where a permission is missing: a subscription, or a resource.
    pub scope: String,
}

/// A federated identity credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// `name`
    pub name: String,
    /// `properties.issuer`
    pub issuer: String,
    /// `properties.subject`; a flexible credential has none.
    pub subject: Option<String>,
    /// `properties.audiences`
    pub audiences: Vec<String>,
    /// `properties.claimsMatchingExpression.value` of a flexible credential.
    pub expression: Option<String>,
    /// When it was made, or first seen by us, whichever is known.
    pub since: Option<Timestamp>,
    /// Where this was read.
    pub source: String,
}

/// How long Entra may go on answering from what it remembers
/// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations, propagation).
const FRESH: SignedDuration = SignedDuration::from_mins(10);

impl Credential {
    /// Whether it is so new that Entra need not know it everywhere.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) < FRESH)
    }

    /// Whether it is the one that AKS keeps for identity bindings, which is nobody else's business.
    pub fn is_of_bindings(&self) -> bool {
        self.name == super::keys::BINDING_CREDENTIAL && self.issuer.contains("://ib.oic.prod-aks.azure.com/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_fresh_for_ten_minutes() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let since = |since| Credential {
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
