//! Lists custom resources of managed identities and credentials.

use std::fmt::Debug;

use futures_util::future::BoxFuture;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, ListParams},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use spillway_core::azure::ResourceId;
use spillway_identity::managed_identity::FederatedCredential;

use crate::kubernetes::{self, ObjectKey};

/// An operator: its API group, and functions that list its objects.
pub(super) struct Operator {
    pub(super) name: &'static str,
    pub(super) group: &'static str,
    pub(super) identities: Lister<IdentityResource>,
    pub(super) credentials: Lister<CredentialResource>,
}

pub(super) type Lister<T> = for<'a> fn(&'a Client, &'a ApiResource) -> BoxFuture<'a, kube::Result<Vec<T>>>;

/// A `UserAssignedIdentity`.
pub(super) struct IdentityResource {
    pub(super) key: ObjectKey,
    pub(super) fields: IdentityFields,
}

/// The properties of a managed identity in Azure. Both operators use the same names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityFields {
    pub(super) id: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) principal_id: Option<String>,
    pub(super) tenant_id: Option<String>,
}

/// A `FederatedIdentityCredential`.
pub(super) struct CredentialResource {
    /// The `UserAssignedIdentity` that the credential names.
    pub(super) owner: Option<ObjectKey>,
    /// The managed identity of the credential, if it is known without the owner.
    pub(super) parent: Option<ResourceId>,
    pub(super) credential: FederatedCredential,
}

/// Lists all objects of a kind, and converts each with `read`.
pub(super) async fn list<O, T>(client: &Client, resource: &ApiResource, read: fn(O) -> T) -> kube::Result<Vec<T>>
where
    O: Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned,
{
    let api: Api<O> = Api::all_with(client.clone(), resource);
    kubernetes::list(&api, ListParams::default(), |object| Some(read(object))).await
}

/// Returns the source of a credential, for output.
pub(super) fn source(operator: &str, credential: &ObjectKey) -> String {
    format!("{operator}, FederatedIdentityCredential {credential}")
}

pub(super) fn id(text: Option<&String>) -> Option<ResourceId> {
    ResourceId::parse(text?)
}
