//! Managed identities and credentials that operators keep as custom resources: what Azure has of them can be read without any
//! permission in Azure. Others may exist, so that an absent credential proves nothing.

mod azure_service_operator;
mod crossplane;

use std::{collections::BTreeMap, fmt::Debug};

use futures_util::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    future::{BoxFuture, join_all},
    stream,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta},
    core::Version,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Error as WatchError, watcher},
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Source, Wanted};
use crate::{
    azure::ResourceId,
    identity::azure::{Azure, Credential, Extent, Identity, Unread},
    kubernetes::{self, ObjectKey},
    telemetry::Causes,
};

/// Why others may exist, although everything was read.
const OTHERS: &str = "custom resources show those that they manage, and no others";

/// Whether this is in the nature of custom resources, and nothing that failed.
pub fn is_by_nature(unread: &Unread) -> bool {
    unread.because == OTHERS
}

/// An operator: its API group, and how its objects are read.
struct Operator {
    name: &'static str,
    group: &'static str,
    identities: Lister<ManagedIdentity>,
    credentials: Lister<ManagedCredential>,
}

type Lister<T> = for<'a> fn(&'a Client, &'a ApiResource) -> BoxFuture<'a, kube::Result<Vec<T>>>;

const OPERATORS: &[Operator] = &[
    azure_service_operator::OPERATOR,
    // Cluster-scoped, and in namespaces since version 2.
    crossplane::operator("managedidentity.azure.upbound.io"),
    crossplane::operator("managedidentity.azure.m.upbound.io"),
];

/// A `UserAssignedIdentity`.
struct ManagedIdentity {
    key: ObjectKey,
    fields: IdentityFields,
}

/// What Azure says of a managed identity; both operators call it the same.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityFields {
    id: Option<String>,
    client_id: Option<String>,
    principal_id: Option<String>,
    tenant_id: Option<String>,
}

/// A `FederatedIdentityCredential`.
struct ManagedCredential {
    /// The `UserAssignedIdentity` that it names.
    owner: Option<ObjectKey>,
    /// The managed identity that it is of, if that is known without its owner.
    parent: Option<ResourceId>,
    credential: Credential,
}

/// The custom resources of the operators that are installed.
pub struct CustomResources {
    client: Client,
    found: Vec<Found>,
}

/// An operator with the versions of its kinds that are served.
struct Found {
    operator: &'static Operator,
    identities: Option<ApiResource>,
    credentials: Option<ApiResource>,
}

impl CustomResources {
    /// Those that there are; nothing if there are none. Operators that are installed later are found when this is asked again.
    ///
    /// # Errors
    ///
    /// When the API server does not say what it serves.
    pub async fn find(client: &Client) -> kube::Result<Option<Self>> {
        let groups = client.list_api_groups().await?.groups;
        let mut found = Vec::new();
        for operator in OPERATORS {
            let Some(group) = groups.iter().find(|group| group.name == operator.group) else { continue };
            let (mut identities, mut credentials) = (Vec::new(), Vec::new());
            for version in &group.versions {
                let kinds = client.list_api_group_resources(&version.group_version).await?.resources;
                let kind = |wanted: &str| kinds.iter().find(|kind| kind.kind == wanted && !kind.name.contains('/'));
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
            found.push(Found { operator, identities: newest(identities), credentials: newest(credentials) });
        }
        let found: Vec<_> = found.into_iter().filter(|one| one.credentials.is_some()).collect();
        Ok((!found.is_empty()).then(|| Self { client: client.clone(), found }))
    }

    /// An item whenever one of them comes, changes or goes, for each that is there already, and for each interruption.
    pub fn watch(&self) -> impl Stream<Item = Result<(), WatchError>> + Send + use<> {
        let resources = self.found.iter().flat_map(|one| [&one.identities, &one.credentials]).flatten();
        stream::select_all(resources.map(|resource| {
            let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), resource);
            watcher(api, Config::default().page_size(kubernetes::PAGE)).default_backoff().map_ok(drop).boxed()
        }))
    }

    async fn azure(&self) -> Azure {
        let mut azure = Azure::default();
        for answer in join_all(self.found.iter().map(|one| one.read(&self.client))).await {
            match answer {
                Ok(identities) => azure.identities.extend(identities),
                Err(unread) => azure.unseen = Some(unread),
            }
        }
        azure.unseen.get_or_insert_with(|| Unread {
            because: OTHERS.to_owned(),
            action: String::new(),
            scope: self.found.iter().map(|one| one.operator.group).collect::<Vec<_>>().join(", "),
        });
        azure
    }
}

impl Source for CustomResources {
    fn name(&self) -> &'static str {
        "custom resources"
    }

    fn read<'a>(&'a self, _wanted: &'a Wanted) -> BoxFuture<'a, Azure> {
        self.azure().boxed()
    }
}

impl Found {
    async fn read(&self, client: &Client) -> Result<Vec<Identity>, Unread> {
        let unread = |error: kube::Error, resource: &ApiResource| {
            tracing::warn!(group = resource.group, kind = resource.kind, error = %Causes(&error), "cannot list custom resources");
            Unread {
                because: match &error {
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
                (self.operator.identities)(client, resource).await.map_err(|error| unread(error, resource))?
            }
            None => Vec::new(),
        };
        let Some(resource) = &self.credentials else { return Ok(Vec::new()) };
        let credentials =
            (self.operator.credentials)(client, resource).await.map_err(|error| unread(error, resource))?;
        Ok(together(self.operator.name, identities, credentials))
    }
}

/// Each managed identity with the credentials that are known to be its own.
fn together(operator: &str, identities: Vec<ManagedIdentity>, credentials: Vec<ManagedCredential>) -> Vec<Identity> {
    let unknown = |id: Option<ResourceId>| Identity {
        client_id: String::new(),
        principal_id: None,
        tenant_id: None,
        id,
        credentials: Ok(Vec::new()),
        extent: Extent::Part,
        source: operator.to_owned(),
    };
    let mut all: Vec<Identity> = Vec::new();
    let (mut by_key, mut by_id) = (BTreeMap::new(), BTreeMap::new());
    for ManagedIdentity { key, fields } in identities {
        let IdentityFields { id: text, client_id, principal_id, tenant_id } = fields;
        let id = id(text.as_ref());
        by_key.insert(key, all.len());
        by_id.extend(id.as_ref().map(|id| (id.key(), all.len())));
        let client_id = client_id.unwrap_or_default();
        all.push(Identity { client_id, principal_id, tenant_id, ..unknown(id) });
    }
    // What neither Azure has nor the specification says, such as an issuer that is still to be read from a ConfigMap, is no credential yet.
    let known = credentials.into_iter().filter(|managed| !managed.credential.issuer.is_empty());
    for ManagedCredential { owner, parent, credential } in known {
        let of_owner = owner.and_then(|owner| by_key.get(&owner).copied());
        let place = of_owner.or_else(|| by_id.get(&parent.as_ref()?.key()).copied());
        // Of an identity that somebody else manages, the resource id is all that is known; another source may know its client id.
        let place = place.or_else(|| {
            let parent = parent?;
            by_id.insert(parent.key(), all.len());
            all.push(unknown(Some(parent)));
            Some(all.len() - 1)
        });
        if let Some(Identity { credentials: Ok(own), .. }) = place.and_then(|place| all.get_mut(place)) {
            own.push(credential);
        }
    }
    all.retain(|identity| !identity.client_id.is_empty() || identity.id.is_some());
    all
}

/// The newest of several versions. Those of Azure Service Operator carry the day of Azure's API, such as `v1api20230131`.
fn newest(versions: Vec<ApiResource>) -> Option<ApiResource> {
    let day = |version: &str| {
        let runs = version.split(|c: char| !c.is_ascii_digit());
        runs.filter(|run| run.len() == 8).filter_map(|run| run.parse::<u32>().ok()).max()
    };
    versions.into_iter().max_by_key(|one| (day(&one.version), Version::parse(&one.version).priority()))
}

/// All objects of a kind, as far as they are read.
async fn list<O, T>(client: &Client, resource: &ApiResource, read: fn(O) -> T) -> kube::Result<Vec<T>>
where
    O: Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned,
{
    let api: Api<O> = Api::all_with(client.clone(), resource);
    kubernetes::list(&api, ListParams::default(), |object| Some(read(object))).await
}

/// Where a credential was read, for people.
fn source(operator: &str, credential: &ObjectKey) -> String {
    format!("{operator}, FederatedIdentityCredential {credential}")
}

fn id(text: Option<&String>) -> Option<ResourceId> {
    ResourceId::parse(text?)
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

    /// An API server that serves these groups in these versions, and what stands at these paths; it forbids all other lists.
    fn server(groups: &'static [Group], objects: &'static [List]) -> Client {
        let answer = tower::service_fn(move |request: http::Request<Body>| async move {
            let (status, body) = answer(request.uri().path(), groups, objects);
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        });
        Client::new(answer, "default")
    }

    fn answer(path: &str, groups: &[Group], objects: &[List]) -> (u16, Value) {
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
                // As Azure Service Operator's first version.
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

    async fn read(client: &Client) -> Azure {
        CustomResources::find(client).await.unwrap().unwrap().azure().await
    }

    fn credentials(identity: &Identity) -> Vec<(&str, &str, Option<&str>)> {
        let own = identity.credentials.as_ref().unwrap().iter();
        own.map(|one| (one.name.as_str(), one.issuer.as_str(), one.subject.as_deref())).collect()
    }

    #[tokio::test]
    async fn without_the_operators_there_is_no_source() {
        assert!(CustomResources::find(&server(&[("apps", &["v1"])], &[])).await.unwrap().is_none());
        let only_identities = server(&[(ASO, &["v1api20181130"])], &[]);
        assert!(CustomResources::find(&only_identities).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn of_azure_service_operator_the_newest_version_is_read_and_the_status_before_the_specification() {
        let client = server(
            &[(ASO, &["v1api20181130", "v1api20220131preview", "v1api20230131"])],
            &[
                ("/v1api20230131/userassignedidentities", || {
                    json!([{"metadata": {"namespace": "shop", "name": "id"}, "spec": {"azureName": "web"},
                        "status": {"clientId": "C", "principalId": "P", "tenantId": "T", "id": format!("{ID}/web")}},
                        {"metadata": {"namespace": "shop", "name": "unborn"}, "spec": {}}])
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
                            "waits",
                            json!({"owner": {"name": "id"}, "issuerFromConfig": {"name": "m", "key": "k"}}),
                            Value::Null
                        ),
                        made(
                            "others",
                            json!({"owner": {"armId": format!("{ID}/foreign")}, "issuer": "i", "subject": "s"}),
                            json!({})
                        ),
                        made("nobodys", json!({"owner": {"name": "gone"}, "issuer": "i", "subject": "s"}), json!({})),
                    ])
                }),
            ],
        );
        let azure = read(&client).await;
        let [own, foreign] = azure.identities.as_slice() else { panic!("{azure:?}") };
        assert_eq!((own.client_id.as_str(), own.principal_id.as_deref(), own.extent), ("C", Some("P"), Extent::Part));
        assert_eq!(credentials(own), [("c1", "status", Some("b")), ("c2", "spec", Some("a"))]);
        let since = own.credentials.as_ref().unwrap().iter().map(|one| one.since.unwrap().to_string());
        assert_eq!(since.collect::<Vec<_>>(), ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]);
        assert_eq!((foreign.client_id.as_str(), foreign.id.as_ref().unwrap().name.as_str()), ("", "foreign"));
        assert!(azure.unseen.is_some(), "others may exist");
    }

    #[tokio::test]
    async fn of_crossplane_both_scopes_are_read_and_a_parent_is_found_by_reference_or_by_id() {
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
        let azure = read(&client).await;
        let [identity] = azure.identities.as_slice() else { panic!("{azure:?}") };
        assert_eq!(credentials(identity), [("c1", "status", Some("a")), ("by-reference", "i", Some("s"))]);
        let unseen = azure.unseen.unwrap();
        assert_eq!(unseen.action, format!("list userassignedidentities.{NAMESPACED}"), "the other may not be read");
        assert_eq!(unseen.because, "403 Forbidden");
    }
}
