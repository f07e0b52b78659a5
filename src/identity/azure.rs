//! What is known of Azure: the cloud, managed identities and their federated credentials.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The cloud that the cluster is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cloud {
    /// The public one.
    #[default]
    Public,
    /// Azure US Government.
    UsGovernment,
    /// Azure operated by 21Vianet.
    China,
}

impl From<crate::config::Cloud> for Cloud {
    fn from(word: crate::config::Cloud) -> Self {
        match word {
            crate::config::Cloud::Public => Self::Public,
            crate::config::Cloud::UsGovernment => Self::UsGovernment,
            crate::config::Cloud::China => Self::China,
        }
    }
}

impl Cloud {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Public, Self::UsGovernment, Self::China];

    /// The audience that tokens and credentials must name
    /// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations).
    pub const fn audience(self) -> &'static str {
        match self {
            Self::Public => "api://AzureADTokenExchange",
            Self::UsGovernment => "api://AzureADTokenExchangeUSGov",
            Self::China => "api://AzureADTokenExchangeChina",
        }
    }
}

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

/// The resource id of a managed identity. The parts of ids are compared without regard to case, as Azure does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ResourceId {
    /// The subscription's id.
    pub subscription: String,
    /// The resource group's name.
    pub resource_group: String,
    /// The identity's name.
    pub name: String,
}

impl ResourceId {
    /// Reads the id of a managed identity, or of something below one.
    pub fn parse(id: &str) -> Option<Self> {
        let parts: Vec<_> = id.strip_prefix('/')?.split('/').collect();
        let [subscriptions, subscription, groups, group, providers, provider, kind, name, ..] = parts.as_slice() else {
            return None;
        };
        let words = [(subscriptions, "subscriptions"), (groups, "resourceGroups"), (providers, "providers")];
        let kinds = [(provider, "Microsoft.ManagedIdentity"), (kind, "userAssignedIdentities")];
        let is_right = words.iter().chain(&kinds).all(|(part, word)| part.eq_ignore_ascii_case(word));
        let [subscription, resource_group, name] = [subscription, group, name].map(|part| (*part).to_owned());
        (is_right && !name.is_empty()).then_some(Self { subscription, resource_group, name })
    }

    /// Under which the same resource is found however its id is spelt.
    pub fn key(&self) -> String {
        self.to_string().to_ascii_lowercase()
    }
}

impl TryFrom<String> for ResourceId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, String> {
        Self::parse(&id).ok_or_else(|| {
            format!(
                "{id:?}: expected the id of a managed identity, such as /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME"
            )
        })
    }
}

impl From<ResourceId> for String {
    fn from(id: ResourceId) -> Self {
        id.to_string()
    }
}

impl std::fmt::Display for ResourceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subscription, resource_group, name } = self;
        write!(
            f,
            "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_however_azure_spells_it() {
        let one = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id";
        let other = "/subscriptions/S/resourcegroups/RG/providers/microsoft.managedidentity/userassignedidentities/ID/federatedIdentityCredentials/web";
        let [one, other] = [one, other].map(|id| ResourceId::parse(id).unwrap());
        assert_eq!(one.key(), other.key());
        for id in
            ["", "/", "/subscriptions/s", "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Web/sites/id", "x"]
        {
            assert_eq!(ResourceId::parse(id), None, "{id}");
        }
    }

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
