//! Managed identities and credentials that operators manage as custom resources.
//!
//! Spillway needs no permission in Azure to read them. Azure may have others, so a credential without a custom resource
//! may still exist.

mod azure_service_operator;
mod crossplane;
mod resource;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PartialObjectMeta},
    core::Version,
};
use spillway_core::azure::ResourceId;
use spillway_identity::managed_identity::{Completeness, ManagedIdentities, ManagedIdentity, ReadFailure};
use tokio::{sync::watch, task::JoinSet};

use self::resource::{CredentialResource, IdentityFields, IdentityResource, Operator, id};
use super::source::{ClientIds, Source};
use crate::{
    kubernetes::{Decoded, Watch},
    telemetry::Causes,
};

/// Reason for an incomplete list of identities if no read failed.
const INCOMPLETE_BY_DESIGN: &str = "custom resources do not include identities that their operators do not manage";

/// Returns whether the list is incomplete only because custom resources never include all identities.
pub fn is_incomplete_by_design(failure: &ReadFailure) -> bool {
    failure.reason == INCOMPLETE_BY_DESIGN
}

const OPERATORS: &[Operator] = &[
    azure_service_operator::OPERATOR,
    // Cluster-scoped kinds, and namespaced kinds since version 2.
    crossplane::operator("managedidentity.azure.upbound.io"),
    crossplane::operator("managedidentity.azure.m.upbound.io"),
];

/// The custom resources of the operators that are installed.
pub struct CustomResources {
    client: Client,
    installed: Vec<InstalledOperator>,
}

/// An operator with the versions of its kinds that the API server serves.
struct InstalledOperator {
    operator: &'static Operator,
    identities: Option<ApiResource>,
    credentials: Option<ApiResource>,
}

impl CustomResources {
    /// Finds the installed operators. Returns `None` if no operator is installed. Another call finds operators that were
    /// installed later.
    ///
    /// # Errors
    ///
    /// When the API server does not list its API groups.
    pub async fn discover(client: &Client) -> kube::Result<Option<Self>> {
        let groups = client.list_api_groups().await?.groups;
        let mut installed = Vec::new();
        for operator in OPERATORS {
            let Some(group) = groups.iter().find(|group| group.name == operator.group) else { continue };
            let (mut identities, mut credentials) = (Vec::new(), Vec::new());
            for version in &group.versions {
                let kinds = client.list_api_group_resources(&version.group_version).await?.resources;
                let kind = |name: &str| kinds.iter().find(|kind| kind.kind == name && !kind.name.contains('/'));
                let resource = |kind: &k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource| ApiResource {
                    group: operator.group.to_owned(),
                    version: version.version.clone(),
                    api_version: version.group_version.clone(),
                    kind: kind.kind.clone(),
                    plural: kind.name.clone(),
                };
                identities.extend(kind("UserAssignedIdentity").map(resource));
                credentials.extend(kind("FederatedIdentityCredential").map(resource));
            }
            installed.push(InstalledOperator {
                operator,
                identities: newest(identities),
                credentials: newest(credentials),
            });
        }
        installed.retain(|one| one.credentials.is_some());
        Ok((!installed.is_empty()).then(|| Self { client: client.clone(), installed }))
    }

    /// Signals each list and each change of the custom resources. Must be called within a tokio runtime.
    pub(crate) fn watch(&self) -> (watch::Receiver<()>, JoinSet<()>) {
        let (signal, changes) = watch::channel(());
        let (signal, mut tasks) = (Arc::new(signal), JoinSet::new());
        for resource in self.installed.iter().flat_map(|one| [&one.identities, &one.credentials]).flatten() {
            let api: Api<Decoded<PartialObjectMeta<DynamicObject>>> = Api::all_with(self.client.clone(), resource);
            Watch::of(api, "custom resources", None).spawn(&mut tasks, |_| Some(()), signal.clone());
        }
        (changes, tasks)
    }

    async fn read_all(&self) -> ManagedIdentities {
        let mut all = ManagedIdentities::default();
        for result in join_all(self.installed.iter().map(|one| one.read(&self.client))).await {
            match result {
                Ok(identities) => all.identities.extend(identities),
                Err(failure) => all.incomplete = Some(failure),
            }
        }
        all.incomplete.get_or_insert_with(|| ReadFailure {
            reason: INCOMPLETE_BY_DESIGN.to_owned(),
            action: String::new(),
            scope: self.installed.iter().map(|one| one.operator.group).collect::<Vec<_>>().join(", "),
        });
        all
    }
}

impl Source for CustomResources {
    fn name(&self) -> &'static str {
        "custom resources"
    }

    fn read<'a>(&'a self, _client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities> {
        self.read_all().boxed()
    }
}

impl InstalledOperator {
    async fn read(&self, client: &Client) -> Result<Vec<ManagedIdentity>, ReadFailure> {
        let failure = |error: kube::Error, resource: &ApiResource| {
            tracing::warn!(group = resource.group, kind = resource.kind, error = %Causes(&error), "cannot list custom resources");
            ReadFailure {
                reason: match &error {
                    kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
                    other => Causes(other).to_string(),
                },
                action: match &error {
                    kube::Error::Api(status) if status.code == 403 => {
                        format!("list {}.{}", resource.plural, resource.group)
                    }
                    _ => String::new(),
                },
                scope: "the cluster".to_owned(),
            }
        };
        let identities = match &self.identities {
            Some(resource) => {
                (self.operator.identities)(client, resource).await.map_err(|error| failure(error, resource))?
            }
            None => Vec::new(),
        };
        let Some(resource) = &self.credentials else { return Ok(Vec::new()) };
        let credentials =
            (self.operator.credentials)(client, resource).await.map_err(|error| failure(error, resource))?;
        Ok(attach_credentials(self.operator.name, identities, credentials))
    }
}

/// Returns each managed identity with its credentials.
fn attach_credentials(
    operator: &str,
    identities: Vec<IdentityResource>,
    credentials: Vec<CredentialResource>,
) -> Vec<ManagedIdentity> {
    let unknown = |id: Option<ResourceId>| ManagedIdentity {
        client_id: String::new(),
        principal_id: None,
        tenant_id: None,
        id,
        credentials: Ok(Vec::new()),
        completeness: Completeness::Partial,
        source: operator.to_owned(),
    };
    let mut all: Vec<ManagedIdentity> = Vec::new();
    let (mut by_key, mut by_id) = (BTreeMap::new(), BTreeMap::new());
    for IdentityResource { key, fields } in identities {
        let IdentityFields { id: text, client_id, principal_id, tenant_id } = fields;
        let id = id(text.as_ref());
        by_key.insert(key, all.len());
        by_id.extend(id.as_ref().map(|id| (id.key(), all.len())));
        let client_id = client_id.unwrap_or_default();
        all.push(ManagedIdentity { client_id, principal_id, tenant_id, ..unknown(id) });
    }
    // A resource without an issuer is not a credential yet. The operator may still have to read it from a ConfigMap.
    let complete = credentials.into_iter().filter(|managed| !managed.credential.issuer.is_empty());
    for CredentialResource { owner, parent, credential } in complete {
        let of_owner = owner.and_then(|owner| by_key.get(&owner).copied());
        let position = of_owner.or_else(|| by_id.get(&parent.as_ref()?.key()).copied());
        // For an identity that the operator does not manage, only the resource ID is known. Another source may have its
        // client ID.
        let position = position.or_else(|| {
            let parent = parent?;
            by_id.insert(parent.key(), all.len());
            all.push(unknown(Some(parent)));
            Some(all.len() - 1)
        });
        if let Some(ManagedIdentity { credentials: Ok(own), .. }) = position.and_then(|position| all.get_mut(position))
        {
            own.push(credential);
        }
    }
    all.retain(|identity| !identity.client_id.is_empty() || identity.id.is_some());
    all
}

/// Returns the newest version. Versions of Azure Service Operator contain the date of Azure's API, such as `v1api20230131`.
fn newest(versions: Vec<ApiResource>) -> Option<ApiResource> {
    let day = |version: &str| {
        let runs = version.split(|c: char| !c.is_ascii_digit());
        runs.filter(|run| run.len() == 8).filter_map(|run| run.parse::<u32>().ok()).max()
    };
    versions.into_iter().max_by_key(|one| (day(&one.version), Version::parse(&one.version).priority()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities";
    const ASO: &str = "managedidentity.azure.com";
    const UPBOUND: &str = "managedidentity.azure.upbound.io";
    const NAMESPACED: &str = "managedidentity.azure.m.upbound.io";

    /// A group and its versions.
    type Group = (&'static str, &'static [&'static str]);

    /// A list by the end of its path.
    type List = (&'static str, fn() -> Value);

    /// An API server with these groups, versions and lists. It forbids all other lists.
    fn server(groups: &'static [Group], objects: &'static [List]) -> Client {
        let response = tower::service_fn(move |request: http::Request<Body>| async move {
            let (status, body) = response(request.uri().path(), groups, objects);
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        });
        Client::new(response, "default")
    }

    fn response(path: &str, groups: &[Group], objects: &[List]) -> (u16, Value) {
        let version =
            |group: &str, version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
        if path == "/apis" {
            let group = |(name, versions): &Group| {
                let versions: Vec<_> = versions.iter().map(|one| version(name, one)).collect();
                json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
            };
            return (200, json!({"groups": groups.iter().map(group).collect::<Vec<_>>()}));
        }
        let parts: Vec<_> = path.trim_start_matches("/apis/").split('/').collect();
        match *parts.as_slice() {
            [group, version] => {
                let kind = |kind: &str, plural: &str| json!({"name": plural, "kind": kind, "namespaced": true, "singularName": "", "verbs": ["list", "watch"]});
                let mut kinds = vec![kind("UserAssignedIdentity", "userassignedidentities")];
                // The first version of Azure Service Operator has no credentials.
                if !version.ends_with("20181130") {
                    kinds.push(kind("FederatedIdentityCredential", "federatedidentitycredentials"));
                }
                (200, json!({"groupVersion": format!("{group}/{version}"), "resources": kinds}))
            }
            _ => match objects.iter().find(|(place, _)| path.ends_with(place)) {
                Some((_, items)) => (200, json!({"metadata": {"resourceVersion": "1"}, "items": items()})),
                None => (403, json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": ""})),
            },
        }
    }

    async fn read(client: &Client) -> ManagedIdentities {
        CustomResources::discover(client).await.unwrap().unwrap().read_all().await
    }

    fn credentials(identity: &ManagedIdentity) -> Vec<(&str, &str, Option<&str>)> {
        let own = identity.credentials.as_ref().unwrap().iter();
        own.map(|one| (one.name.as_str(), one.issuer.as_str(), one.subject.as_deref())).collect()
    }

    #[tokio::test]
    async fn without_operators_there_is_no_source() {
        assert!(CustomResources::discover(&server(&[("apps", &["v1"])], &[])).await.unwrap().is_none());
        let only_identities = server(&[(ASO, &["v1api20181130"])], &[]);
        assert!(CustomResources::discover(&only_identities).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn azure_service_operator_is_read_from_status_in_its_newest_version() {
        let client = server(
            &[(ASO, &["v1api20181130", "v1api20220131preview", "v1api20230131"])],
            &[
                ("/v1api20230131/userassignedidentities", || {
                    json!([{"metadata": {"namespace": "shop", "name": "id"}, "spec": {"azureName": "web"},
                        "status": {"clientId": "C", "principalId": "P", "tenantId": "T", "id": format!("{ID}/web")}},
                        {"metadata": {"namespace": "shop", "name": "pending"}, "spec": {}}])
                }),
                ("/v1api20230131/federatedidentitycredentials", || {
                    let made = |name: &str, spec: Value, status: Value| {
                        json!({"metadata": {"namespace": "shop", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                            "spec": spec, "status": status})
                    };
                    json!([
                        made(
                            "done",
                            json!({"owner": {"name": "id"}, "issuer": "spec", "subject": "a", "audiences": ["x"]}),
                            json!({"name": "c1", "issuer": "status", "subject": "b", "audiences": ["y"],
                                "systemData": {"lastModifiedAt": "2026-01-02T00:00:00Z"}})
                        ),
                        made(
                            "to-do",
                            json!({"owner": {"name": "id"}, "azureName": "c2", "issuer": "spec", "subject": "a"}),
                            Value::Null
                        ),
                        made(
                            "without-issuer",
                            json!({"owner": {"name": "id"}, "issuerFromConfig": {"name": "m", "key": "k"}}),
                            Value::Null
                        ),
                        made(
                            "others",
                            json!({"owner": {"armId": format!("{ID}/foreign")}, "issuer": "i", "subject": "s"}),
                            json!({})
                        ),
                        made("orphaned", json!({"owner": {"name": "gone"}, "issuer": "i", "subject": "s"}), json!({})),
                    ])
                }),
            ],
        );
        let all = read(&client).await;
        let [own, foreign] = all.identities.as_slice() else { panic!("{all:?}") };
        assert_eq!(
            (own.client_id.as_str(), own.principal_id.as_deref(), own.completeness),
            ("C", Some("P"), Completeness::Partial)
        );
        assert_eq!(credentials(own), [("c1", "status", Some("b")), ("c2", "spec", Some("a"))]);
        let since = own.credentials.as_ref().unwrap().iter().map(|one| one.since.unwrap().to_string());
        assert_eq!(since.collect::<Vec<_>>(), ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]);
        assert_eq!((foreign.client_id.as_str(), foreign.id.as_ref().unwrap().name.as_str()), ("", "foreign"));
        assert!(all.incomplete.is_some(), "other identities may exist");
    }

    #[tokio::test]
    async fn crossplane_is_read_in_both_scopes_with_parents_by_name_or_id() {
        let client = server(
            &[(UPBOUND, &["v1beta1"]), (NAMESPACED, &["v1beta1"])],
            &[
                ("azure.upbound.io/v1beta1/userassignedidentities", || {
                    json!([{"metadata": {"name": "id"}, "spec": {"forProvider": {}},
                        "status": {"atProvider": {"clientId": "C", "id": format!("{ID}/web")}}}])
                }),
                ("azure.upbound.io/v1beta1/federatedidentitycredentials", || {
                    json!([
                        {"metadata": {"name": "by-id", "annotations": {"crossplane.io/external-name": format!("{ID}/web/federatedIdentityCredentials/c1")}},
                            "spec": {"forProvider": {"issuer": "spec", "audience": ["x"]}},
                            "status": {"atProvider": {"issuer": "status", "subject": "a", "parentId": format!("{}/WEB", ID.to_lowercase())}}},
                        {"metadata": {"name": "by-reference"},
                            "spec": {"forProvider": {"issuer": "i", "parentIdRef": {"name": "id"}}, "initProvider": {"subject": "s"}}},
                    ])
                }),
            ],
        );
        let all = read(&client).await;
        let [identity] = all.identities.as_slice() else { panic!("{all:?}") };
        assert_eq!(credentials(identity), [("c1", "status", Some("a")), ("by-reference", "i", Some("s"))]);
        let failure = all.incomplete.unwrap();
        assert_eq!(
            failure.action,
            format!("list userassignedidentities.{NAMESPACED}"),
            "the namespaced list is forbidden"
        );
        assert_eq!(failure.reason, "403 Forbidden");
    }
}
