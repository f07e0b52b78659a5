//! Crossplane's provider for Azure, with cluster-scoped or namespaced kinds.
//!
//! Fields: crossplane-contrib/provider-upjet-azure `apis/cluster/managedidentity/v1beta1` and
//! `apis/namespaced/managedidentity/v1beta1`, `zz_federatedidentitycredential_types.go` and `zz_userassignedidentity_types.go`.
//! `status.atProvider` has the actual state in Azure, and `spec` the desired state.

use futures_util::FutureExt;
use kube::{ResourceExt, core::Object};
use serde::{Deserialize, Serialize};
use spillway_identity::managed_identity::FederatedCredential;

use super::resource::{CredentialResource, IdentityFields, IdentityResource, Operator, id, list, source};
use crate::kubernetes::ObjectKey;

const NAME: &str = "Crossplane";

/// The name of the resource in Azure (docs.crossplane.io, managed resources, `crossplane.io/external-name`).
const EXTERNAL_NAME: &str = "crossplane.io/external-name";

pub(super) const fn operator(group: &'static str) -> Operator {
    Operator {
        name: NAME,
        group,
        identities: |client, resource| list(client, resource, identity).boxed(),
        credentials: |client, resource| list(client, resource, credential).boxed(),
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct NoSpec {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Default + Deserialize<'de>"))]
struct Status<T> {
    #[serde(default)]
    at_provider: T,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialSpec {
    #[serde(default)]
    for_provider: CredentialFields,
    #[serde(default)]
    init_provider: CredentialFields,
}

/// The provider renamed `parentId` to `userAssignedIdentityId`, and serves both.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialFields {
    id: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    audience: Option<Vec<String>>,
    parent_id: Option<String>,
    parent_id_ref: Option<Reference>,
    user_assigned_identity_id: Option<String>,
    user_assigned_identity_id_ref: Option<Reference>,
}

/// A reference to an object in the same namespace, or to a cluster-scoped object.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Reference {
    name: String,
}

impl CredentialFields {
    /// Fills missing fields from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            id: self.id.or(other.id),
            issuer: self.issuer.or(other.issuer),
            subject: self.subject.or(other.subject),
            audience: self.audience.or(other.audience),
            parent_id: self.parent_id.or(other.parent_id),
            parent_id_ref: self.parent_id_ref.or(other.parent_id_ref),
            user_assigned_identity_id: self.user_assigned_identity_id.or(other.user_assigned_identity_id),
            user_assigned_identity_id_ref: self.user_assigned_identity_id_ref.or(other.user_assigned_identity_id_ref),
        }
    }
}

fn identity(object: Object<NoSpec, Status<IdentityFields>>) -> IdentityResource {
    IdentityResource {
        key: ObjectKey::of(&object),
        fields: object.status.map(|status| status.at_provider).unwrap_or_default(),
    }
}

fn credential(object: Object<CredentialSpec, Status<CredentialFields>>) -> CredentialResource {
    let key = ObjectKey::of(&object);
    let since = object.creation_timestamp().map(|time| time.0);
    let external = object.annotations().get(EXTERNAL_NAME).and_then(|name| name.rsplit('/').next()).map(str::to_owned);
    let observed = object.status.map(|status| status.at_provider).unwrap_or_default();
    let fields = observed.or(object.spec.for_provider).or(object.spec.init_provider);
    let owner = fields.user_assigned_identity_id_ref.or(fields.parent_id_ref).map(|reference| reference.name);
    let parent = [&fields.user_assigned_identity_id, &fields.parent_id, &fields.id];
    CredentialResource {
        owner: owner.map(|name| ObjectKey::new(&key.namespace, name)),
        parent: parent.into_iter().find_map(|text| id(text.as_ref())),
        credential: FederatedCredential {
            name: external.filter(|name| !name.is_empty()).unwrap_or_else(|| key.name.clone()),
            issuer: fields.issuer.unwrap_or_default(),
            subject: fields.subject,
            audiences: fields.audience.unwrap_or_default(),
            expression: None,
            since,
            source: source(NAME, &key),
        },
    }
}
