//! Azure identifiers: clouds, resource IDs of managed identities, GUIDs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// Azure cloud of the cluster.
    Cloud {
        /// The public cloud.
        Public = "public",
        /// Azure US Government.
        UsGovernment = "us-government",
        /// Azure operated by 21Vianet.
        China = "china",
    } default Public
}

impl Cloud {
    /// Returns the audience that tokens and federated credentials must have
    /// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations).
    pub const fn audience(self) -> &'static str {
        match self {
            Self::Public => "api://AzureADTokenExchange",
            Self::UsGovernment => "api://AzureADTokenExchangeUSGov",
            Self::China => "api://AzureADTokenExchangeChina",
        }
    }

    /// Returns the endpoint of Azure Resource Manager
    /// (learn.microsoft.com/azure/azure-government/compare-azure-government-global-azure,
    /// learn.microsoft.com/azure/china/resources-developer-guide).
    pub const fn resource_manager(self) -> &'static str {
        match self {
            Self::Public => "https://management.azure.com",
            Self::UsGovernment => "https://management.usgovcloudapi.net",
            Self::China => "https://management.chinacloudapi.cn",
        }
    }
}

/// Resource ID of a managed identity. Comparisons ignore case, as in Azure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ResourceId {
    /// ID of the subscription.
    pub subscription: String,
    /// Name of the resource group.
    pub resource_group: String,
    /// Name of the identity.
    pub name: String,
}

impl ResourceId {
    /// Reads the resource ID of a managed identity or of one of its child resources.
    pub fn parse(id: &str) -> Option<Self> {
        let parts: Vec<_> = id.strip_prefix('/')?.split('/').collect();
        let [subscriptions, subscription, groups, group, providers, provider, kind, name, ..] = parts.as_slice() else {
            return None;
        };
        let words = [(subscriptions, "subscriptions"), (groups, "resourceGroups"), (providers, "providers")];
        let kinds = [(provider, "Microsoft.ManagedIdentity"), (kind, "userAssignedIdentities")];
        let is_valid = words.iter().chain(&kinds).all(|(part, word)| part.eq_ignore_ascii_case(word));
        let [subscription, resource_group, name] = [subscription, group, name].map(|part| (*part).to_owned());
        (is_valid && !name.is_empty()).then_some(Self { subscription, resource_group, name })
    }

    /// Returns a key that is the same for all spellings of the ID.
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

/// Returns whether the text is a GUID in Azure's format.
pub fn is_guid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    let is_hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_ids_compare_without_case() {
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
}
