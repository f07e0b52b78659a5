//! Identifiers of Azure: clouds, resource ids of managed identities, GUIDs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// The Azure cloud that the cluster is in.
    Cloud {
        /// The public one.
        Public = "public",
        /// Azure US Government.
        UsGovernment = "us-government",
        /// Azure operated by 21Vianet.
        China = "china",
    } default Public
}

impl Cloud {
    /// The audience that tokens and credentials must name
    /// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations).
    pub const fn audience(self) -> &'static str {
        match self {
            Self::Public => "api://AzureADTokenExchange",
            Self::UsGovernment => "api://AzureADTokenExchangeUSGov",
            Self::China => "api://AzureADTokenExchangeChina",
        }
    }

    /// The endpoint of Azure Resource Manager (learn.microsoft.com/azure/azure-government/compare-azure-government-global-azure,
    /// learn.microsoft.com/azure/china/resources-developer-guide).
    pub const fn resource_manager(self) -> &'static str {
        match self {
            Self::Public => "https://management.azure.com",
            Self::UsGovernment => "https://management.usgovcloudapi.net",
            Self::China => "https://management.chinacloudapi.cn",
        }
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

/// Whether this is a GUID as Azure prints it.
pub fn is_guid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    let is_hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(is_hex)
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
}
