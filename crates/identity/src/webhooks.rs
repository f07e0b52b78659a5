//! Checks of the webhook that injects identities: it exists, runs after Spillway's webhook, and responds.

use super::{
    check::{Check, CheckFn, Input},
    draft::{DraftFinding, Severity},
    index::{Index, PodContext},
    object::Object,
    pods::excluded_by,
    service_account::{expects_injection, restart},
};

pub(super) const CHECKS: &[&Check] = &[&W1, &W2, &W3];

/// The webhook of Spillway. It identifies Spillway's configuration under any name.
const SPILLWAY_WEBHOOK: &str = "pods.spillway.dev";
/// The configuration of azure-workload-identity, on AKS too.
const INJECTOR: &str = "azure-wi-webhook-mutating-webhook-configuration";
const KIND: &str = "MutatingWebhookConfiguration";

static W1: Check = Check {
    id: "W1",
    severity: Severity::Error,
    title: "azure-workload-identity is not installed",
    reads: "the objectSelector of all mutating webhook configurations",
    meaning: "no webhook injects tokens, so labelled pods start without an identity",
    fix: "az aks update --resource-group RESOURCE_GROUP --name CLUSTER --enable-oidc-issuer --enable-workload-identity",
    leads_to: &[],
    source: "MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-deploy-cluster.md",
    needs: &[Input::Cluster, Input::Webhooks],
    optional: &[],
    transient: true,
    run: &[CheckFn::Cluster(|index| {
        let cluster = &index.observation.cluster;
        let is_needed = cluster.service_accounts.iter().any(|account| account.client_id().is_some())
            || cluster.pods.iter().any(super::observation::Pod::is_labelled);
        let message = "no mutating webhook selects pods by the label azure.workload.identity/use: \"true\"";
        let names = cluster.webhooks.iter().flatten().map(|configuration| configuration.name.as_str());
        let names: Vec<_> = names.collect();
        if index.lacks_injector() && is_needed {
            vec![
                DraftFinding::new(message)
                    .about(Object::global(KIND, INJECTOR))
                    .fact("webhook configurations", names.join(", ")),
            ]
        } else {
            Vec::new()
        }
    })],
};

static W2: Check = Check {
    id: "W2",
    severity: Severity::Error,
    title: "Spillway adds the label too late",
    reads: "the names of the mutating webhook configurations; pods that Spillway has labelled",
    meaning: "the API server calls configurations in byte order of their names; pods labelled after azure-workload-identity get no token",
    fix: "name Spillway's configuration aci-spillway, which sorts before azure-wi-webhook-mutating-webhook-configuration",
    leads_to: &[],
    source: "kubernetes/apiserver pkg/admission/configuration/mutating_webhook_manager.go; kubernetes/apiserver pkg/admission/plugin/webhook/mutating/dispatcher.go",
    needs: &[Input::Cluster, Input::Webhooks],
    optional: &[],
    transient: true,
    run: &[CheckFn::Cluster(wrong_order), CheckFn::Pod(labelled_but_not_injected)],
};

fn wrong_order(index: &Index<'_>) -> Vec<DraftFinding> {
    let configurations = index.observation.cluster.webhooks.as_deref().unwrap_or_default();
    let is_ours = |name: &str| name == SPILLWAY_WEBHOOK;
    let ours = configurations.iter().filter(|one| one.webhooks.iter().any(|webhook| is_ours(&webhook.name)));
    let mut injectors: Vec<_> = index.injectors().into_iter().flatten().map(|(name, _)| name).collect();
    injectors.dedup();
    let late = ours.flat_map(|ours| {
        let before = injectors.iter().filter(|injector| **injector <= ours.name.as_str());
        before.map(|injector| {
            let message = format!("Spillway's configuration {} is called after {injector}", ours.name);
            DraftFinding::new(message).about(Object::global(KIND, &ours.name))
        })
    });
    late.collect()
}

fn labelled_but_not_injected(context: &PodContext<'_>) -> Vec<DraftFinding> {
    let pod = context.pod;
    let lacks_identity = expects_injection(context) && pod.is_labelled_by_spillway && !pod.is_injected();
    if !lacks_identity
        || context.index.lacks_injector()
        || excluded_by(context).is_some()
        || pod.containers_with_identity().next().is_none()
    {
        return Vec::new();
    }
    let message = "Spillway labelled the pods, but azure-workload-identity injected nothing: it ran before Spillway, or did not respond";
    vec![DraftFinding::new(message).fix(restart(&pod.owner))]
}

static W3: Check = Check {
    id: "W3",
    severity: Severity::Error,
    title: "azure-workload-identity does not respond",
    reads: "the caBundle and Service of its webhook; the endpoints of that Service",
    meaning: "its failurePolicy is Fail, so no labelled pod can be created in the cluster",
    fix: "kubectl --namespace kube-system get pods --selector azure-workload-identity.io/system=true --output wide",
    leads_to: &[],
    source: "Azure/AKS#5686; Azure/azure-workload-identity deploy/azure-wi-webhook.yaml",
    needs: &[Input::Cluster, Input::Webhooks],
    optional: &[],
    transient: true,
    run: &[CheckFn::Cluster(|index| {
        let mut all = Vec::new();
        for (configuration, webhook) in index.injectors().into_iter().flatten() {
            let object = Object::global(KIND, configuration);
            if !webhook.has_ca_bundle {
                let message = format!("webhook {} has no caBundle, so the API server cannot trust it", webhook.name);
                all.push(DraftFinding::new(message).about(object.clone()));
            }
            let Some((endpoints, service)) = index.observation.cluster.endpoints.as_ref().zip(webhook.service.as_ref())
            else {
                continue;
            };
            let ready = endpoints.get(service).copied();
            if ready == Some(0) || (ready.is_none() && index.observation.cluster.is_complete) {
                let message = format!("its Service {}/{} has no ready endpoint", service.namespace, service.name);
                let fix = super::command::Command::new("kubectl get endpointslices")
                    .arg("--namespace", &service.namespace)
                    .arg("--selector", &format!("kubernetes.io/service-name={}", service.name));
                all.push(DraftFinding::new(message).about(object).fix(fix));
            }
        }
        all
    })],
};
