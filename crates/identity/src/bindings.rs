//! Checks of AKS identity bindings. They use one credential for all service accounts, and a grant in the cluster for each.

use serde_json::json;

use spillway_core::azure::is_guid;

use super::{
    check::{Check, CheckFn, Input},
    draft::{DraftFinding, Severity},
    index::{AccountContext, PodContext},
    keys,
    object::AccountName,
    service_account::{expects_injection, restart},
};

pub(super) const CHECKS: &[&Check] = &[&B1, &B2, &B3, &B4];

const CONCEPTS: &str = "learn.microsoft.com/azure/aks/identity-bindings-concepts";

/// Returns the client ID of a service account with pods that use a binding.
fn bound_client_id<'c>(context: &'c AccountContext<'_>) -> Option<&'c str> {
    let client_id = context.account.client_id().filter(|client_id| is_guid(client_id))?;
    context.pods.iter().any(|pod| pod.uses_binding()).then_some(client_id)
}

static B1: Check = Check {
    id: "B1",
    severity: Severity::Error,
    title: "an identity binding has no grant",
    reads: "pods with the annotation azure.workload.identity/use-identity-binding; ClusterRoles of group cid.wi.aks.azure.com and their bindings",
    meaning: "the cluster's token proxy refuses the service account",
    fix: "grant the service account the verb use-managed-identity on the client id in group cid.wi.aks.azure.com",
    leads_to: &[],
    source: CONCEPTS,
    needs: &[Input::Cluster, Input::Grants],
    optional: &[],
    transient: true,
    run: &[CheckFn::Account(|context| {
        let (Some(client_id), Some(grants)) = (bound_client_id(context), &context.index.observation.cluster.grants)
        else {
            return Vec::new();
        };
        let is_granted = grants.iter().any(|grant| grant.covers(client_id, &context.account.name));
        if is_granted || !context.index.observation.cluster.is_complete {
            return Vec::new();
        }
        let message = format!("no ClusterRole lets the service account use the identity {client_id}");
        vec![DraftFinding::new(message).fix(grant(context, client_id))]
    })],
};

/// Returns the command that grants the identity. `kubectl create clusterrole` does not work: it accepts only resources that the API server serves.
fn grant(context: &AccountContext<'_>, client_id: &str) -> String {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let AccountName { namespace, name } = &context.account.name;
    let (version, client_id) = (format!("{GROUP}/v1"), client_id.to_ascii_lowercase());
    let role = format!("use-identity-{client_id}");
    let grants =
        json!({"apiGroups": ["cid.wi.aks.azure.com"], "resources": [client_id], "verbs": ["use-managed-identity"]});
    let items = json!([
        {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": role}, "rules": [grants]},
        {"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": format!("use-identity-{namespace}-{name}")},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}]},
    ]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    format!("printf %s {} | kubectl apply -f -", super::command::quoted(&list))
}

static B2: Check = Check {
    id: "B2",
    severity: Severity::Error,
    title: "an identity binding has no credential",
    reads: "the credential aks-identity-binding of the identity",
    meaning: "AKS has not bound the identity to a cluster, or a user deleted the credential that AKS manages",
    fix: "az aks identity-binding create --resource-group RESOURCE_GROUP --cluster-name CLUSTER --name NAME --managed-identity-resource-id IDENTITY_ID",
    leads_to: &["AADSTS70021", "AADSTS700211"],
    source: CONCEPTS,
    needs: &[Input::Cluster, Input::Grants],
    optional: &[],
    transient: true,
    run: &[CheckFn::Account(|context| {
        let identity = bound_client_id(context).and_then(|client_id| context.index.identity(client_id));
        let Some((identity, credentials)) = identity.and_then(|one| Some((one, one.credentials.as_ref().ok()?))) else {
            return Vec::new();
        };
        if credentials.iter().any(super::managed_identity::FederatedCredential::is_for_bindings) {
            return Vec::new();
        }
        let message = format!("identity {} has no credential {}", identity.display_name(), keys::BINDING_CREDENTIAL);
        let found = DraftFinding::new(message).fact("read from", &*identity.source);
        vec![match &identity.id {
            Some(id) => found.fix(B2.fix.replace("IDENTITY_ID", &super::command::quoted(&id.to_string()))),
            None => found,
        }]
    })],
};

static B3: Check = Check {
    id: "B3",
    severity: Severity::Error,
    title: "the webhook does not support identity bindings",
    reads: "the tokens and AZURE_KUBERNETES_TOKEN_PROXY of running pods with the annotation azure.workload.identity/use-identity-binding",
    meaning: "the webhook is older than 1.6 or has no bindings enabled; the pods got the standard token, or no proxy address",
    fix: "upgrade the cluster's workload identity add-on, then restart the pods",
    leads_to: &["AADSTS700213", "AADSTS70021"],
    source: "Azure/azure-workload-identity pkg/webhook/webhook.go (v1.6.0)",
    needs: &[Input::Cluster, Input::Grants],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(unknown_binding)],
};

fn unknown_binding(context: &PodContext<'_>) -> Vec<DraftFinding> {
    let pod = context.pod;
    if !expects_injection(context) || !pod.uses_binding() || !pod.is_injected() {
        return Vec::new();
    }
    let has_audience = pod.tokens.iter().any(|token| token.audience == keys::BINDING_AUDIENCE);
    let has_proxy = pod.containers.iter().any(|container| container.env(keys::ENV_TOKEN_PROXY).is_some());
    if has_audience && has_proxy {
        return Vec::new();
    }
    let what = if has_audience { keys::ENV_TOKEN_PROXY } else { "token for the audience of bindings" };
    let audiences: Vec<_> = pod.tokens.iter().map(|token| token.audience.as_str()).collect();
    let found = DraftFinding::new(format!("the pods request an identity binding but got no {what}"));
    vec![found.fact("audiences", audiences.join(", ")).fix(restart(&pod.owner))]
}

static B4: Check = Check {
    id: "B4",
    severity: Severity::Warning,
    title: "an identity binding is used without the label",
    reads: "the annotation azure.workload.identity/use-identity-binding and the label azure.workload.identity/use of pods and templates",
    meaning: "without the label the API server does not call the webhook, so the annotation has no effect",
    fix: "add the label azure.workload.identity/use: \"true\" to the pod template",
    leads_to: &[],
    source: CONCEPTS,
    needs: &[Input::Cluster, Input::Grants],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let is_opted_in =
            context.index.namespace(&context.pod.namespace).is_some_and(|namespace| namespace.is_opted_in);
        let gets_label = is_opted_in && !context.pod.is_admitted;
        let has_no_effect = context.pod.uses_binding() && !context.pod.is_labelled() && !gets_label;
        if has_no_effect {
            vec![DraftFinding::new("the pods request an identity binding without the label")]
        } else {
            Vec::new()
        }
    })],
};
