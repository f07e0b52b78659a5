//! Checks of pods and of the fields that the webhook injects.

use super::{
    check::{Check, CheckFn, Input},
    draft::{DraftFinding, Severity},
    index::PodContext,
    keys,
    observation::{Container, EnvValue, Pod},
    service_account::{expects_injection, restart},
};

pub(super) const CHECKS: &[&Check] = &[&P1, &P2, &P3, &P4, &P5, &P6];

const WEBHOOK: &str = "Azure/azure-workload-identity pkg/webhook/webhook.go";

static P1: Check = Check {
    id: "P1",
    severity: Severity::Error,
    title: "pods are older than their service account's annotations",
    reads: "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE of running pods; the service account's annotations",
    meaning: "the webhook reads annotations only when a pod is created; these pods use old values, or cannot sign in",
    fix: "restart the pods",
    leads_to: &["AADSTS700016", "AADSTS700213", "AADSTS70021"],
    source: "Azure/azure-workload-identity#109; MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-overview.md",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(outdated)],
};

fn outdated(context: &PodContext<'_>) -> Vec<DraftFinding> {
    let Some(account) = context.account.filter(|_| expects_injection(context)) else { return Vec::new() };
    let fix = restart(&context.pod.owner);
    if !context.pod.is_injected() {
        // W2, P5 and W1 report the reason.
        let is_explained =
            context.pod.is_labelled_by_spillway || excluded_by(context).is_some() || context.index.lacks_injector();
        let skips_all = context.pod.containers_with_identity().next().is_none();
        let message =
            "the pods have the label but no identity: azure-workload-identity did not run when they were created";
        return if is_explained || skips_all { Vec::new() } else { vec![DraftFinding::new(message).fix(fix)] };
    }
    let mut found = Vec::new();
    for (variable, key) in [(keys::ENV_CLIENT_ID, keys::CLIENT_ID), (keys::ENV_TENANT_ID, keys::TENANT_ID)] {
        let Some(wanted) = account.annotations.get(key) else { continue };
        if let Some(message) =
            context.pod.containers_with_identity().find_map(|one| differs(context, one, variable, wanted))
        {
            found.push(DraftFinding::new(message).fact("service account says", wanted.clone()).fix(fix.clone()));
        }
    }
    found
}

/// Returns how a container's variable differs from the annotation, unless the pod template sets the variable (P2).
fn differs(context: &PodContext<'_>, container: &Container, variable: &'static str, wanted: &str) -> Option<String> {
    if context.template.is_some_and(|template| sets(template, &container.name, variable)) {
        return None;
    }
    match container.env(variable) {
        // The webhook injects no variables into the proxy.
        None if container.env(keys::ENV_TOKEN_FILE).is_none() => None,
        None => {
            Some(format!("the pods have no {variable}: the service account was annotated after the pods were created"))
        }
        Some(EnvValue::ValueFrom) => None,
        Some(EnvValue::Literal(value)) if value.eq_ignore_ascii_case(wanted) => None,
        Some(EnvValue::Literal(value)) => Some(format!("the pods still use {variable}={value}")),
    }
}

fn sets(template: &Pod, container: &str, variable: &str) -> bool {
    template.containers.iter().any(|own| own.name == container && own.env(variable).is_some())
}

static P2: Check = Check {
    id: "P2",
    severity: Severity::Warning,
    title: "a container sets the variables itself",
    reads: "AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE and AZURE_AUTHORITY_HOST of pod templates",
    meaning: "the webhook keeps the container's value; a fixed token path breaks when the webhook changes its path",
    fix: "remove the variable from the pod template",
    leads_to: &["AADSTS700016"],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(overridden)],
};

fn overridden(context: &PodContext<'_>) -> Vec<DraftFinding> {
    let is_concerned =
        context.pod.is_labelled() || context.account.is_some_and(|account| account.client_id().is_some());
    if !is_concerned {
        return Vec::new();
    }
    let variables = [keys::ENV_CLIENT_ID, keys::ENV_TENANT_ID, keys::ENV_TOKEN_FILE, keys::ENV_AUTHORITY];
    let all = context
        .pod
        .containers
        .iter()
        .flat_map(|container| variables.iter().filter_map(|variable| own_value(context, container, variable)));
    all.collect()
}

/// Returns a finding for a variable that the container sets itself. In a template any value counts. In a running pod only `valueFrom`
/// counts, because the webhook injects literal values.
fn own_value(context: &PodContext<'_>, container: &Container, variable: &'static str) -> Option<DraftFinding> {
    let value = container.env(variable)?.literal();
    if context.pod.is_admitted && (value.is_some() || context.template.is_some()) {
        return None;
    }
    let key = if variable == keys::ENV_TENANT_ID { keys::TENANT_ID } else { keys::CLIENT_ID };
    let wanted = context.account.and_then(|account| account.annotations.get(key));
    let is_same = matches!(variable, keys::ENV_CLIENT_ID | keys::ENV_TENANT_ID)
        && wanted.zip(value).is_some_and(|(wanted, value)| wanted.eq_ignore_ascii_case(value));
    let shown = value.map_or_else(|| "with valueFrom".to_owned(), |value| format!("to {value:?}"));
    let found = DraftFinding::new(format!("container {} sets {variable} itself, {shown}", container.name));
    let found = if is_same { found.severity(Severity::Info) } else { found };
    let says = wanted.filter(|_| matches!(variable, keys::ENV_CLIENT_ID | keys::ENV_TENANT_ID));
    let found = says.into_iter().fold(found, |found, wanted| found.fact("service account says", wanted.clone()));
    Some(found.fix(format!("remove {variable} from container {} of the pod template", container.name)))
}

static P3: Check = Check {
    id: "P3",
    severity: Severity::Error,
    title: "no volume is mounted at the token's path",
    reads: "AZURE_FEDERATED_TOKEN_FILE and volumeMounts of the containers of running pods",
    meaning: "the token file does not exist, so the pod cannot sign in; webhook 1.6 moved the file to /var/run/secrets/azure/wi",
    fix: "remove AZURE_FEDERATED_TOKEN_FILE from the pod template; the webhook sets it",
    leads_to: &[],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        if !expects_injection(context) {
            return Vec::new();
        }
        let missing = context.pod.containers.iter().filter_map(|container| {
            let path = container.env(keys::ENV_TOKEN_FILE)?.literal()?;
            let is_under = |mount: &String| {
                path.strip_prefix(mount.trim_end_matches('/'))
                    .is_some_and(|rest| rest.starts_with('/') || rest.is_empty())
            };
            let message =
                format!("container {} reads its token at {path}, but no volume is mounted there", container.name);
            (!container.mounts.iter().any(is_under)).then(|| {
                DraftFinding::new(message).fact(
                    "mounts",
                    if container.mounts.is_empty() { "none".to_owned() } else { container.mounts.join(", ") },
                )
            })
        });
        missing.collect()
    })],
};

/// The file name of the injected token.
const TOKEN: &str = "azure-identity-token";

static P4: Check = Check {
    id: "P4",
    severity: Severity::Error,
    title: "the token has another audience",
    reads: "spec.volumes[*].projected.sources[*].serviceAccountToken of pods and templates",
    meaning: "Entra accepts only tokens for the audience of its cloud",
    fix: "remove the volume, so that the webhook mounts the token; outside the public cloud, run the webhook with --audience",
    leads_to: &["AADSTS700212", "AADSTS7002121"],
    source: "Azure/azure-workload-identity pkg/webhook/webhook.go; learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let audience = context.index.audience();
        let is_azure_audience = |audience: &str| {
            let audience = audience.to_ascii_lowercase();
            audience.starts_with("api://azureadtokenexchange")
                || audience == keys::BINDING_AUDIENCE.to_ascii_lowercase()
        };
        // B3 checks the tokens of identity bindings.
        let wrong = context.pod.tokens.iter().filter(|token| {
            let is_meant = is_azure_audience(&token.audience) || token.path.ends_with(TOKEN);
            is_meant && token.audience != audience && !context.pod.uses_binding()
        });
        let found = wrong.map(|token| {
            let difference = super::difference::audience(audience, std::slice::from_ref(&token.audience));
            let message = format!("the audience of the mounted token is not the cloud's: {}", difference.why());
            DraftFinding::new(message).difference(difference)
        });
        found.collect()
    })],
};

static P5: Check = Check {
    id: "P5",
    severity: Severity::Error,
    title: "a labelled pod is in a namespace that is excluded from webhooks",
    reads: "the label of running pods; their namespace's name and labels",
    meaning: "AKS excludes kube-system and its own namespaces from admission webhooks, so the pod gets no identity",
    fix: "run the pods in another namespace, or remove the label that excludes your namespace",
    leads_to: &[],
    source: "Azure/azure-workload-identity#687; learn.microsoft.com/azure/aks/faq",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let Some(why) = excluded_by(context).filter(|_| context.pod.is_labelled() && !context.pod.is_injected()) else {
            return Vec::new();
        };
        vec![DraftFinding::new(format!(
            "the pods have the label, but their namespace is excluded from webhooks by {why}"
        ))]
    })],
};

/// Returns the reason why the API server calls no webhook for pods of this namespace. `None` if the namespace is not excluded.
pub(super) fn excluded_by(context: &PodContext<'_>) -> Option<String> {
    if context.pod.namespace == "kube-system" {
        return Some("its name".to_owned());
    }
    let label = context.index.namespace(&context.pod.namespace)?.excluded_by.as_ref()?;
    Some(format!("its label {label}"))
}

static P6: Check = Check {
    id: "P6",
    severity: Severity::Error,
    title: "a labelled pod runs on a virtual node of the first generation",
    reads: "the label and spec.nodeName of pods; the labels of nodes",
    meaning: "the first generation mounts no token, so sign-in fails; the second generation mounts it",
    fix: "keep the pods on VMs, or use virtual nodes on Azure Container Instances (microsoft/virtualnodesOnAzureContainerInstances)",
    leads_to: &[],
    source: "MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-overview.md (Limitations)",
    needs: &[Input::Cluster, Input::Nodes],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let node =
            context.pod.node.as_ref().filter(|node| context.index.observation.cluster.v1_virtual_nodes.contains(*node));
        let node = node.filter(|_| context.pod.is_labelled());
        node.map(|node| DraftFinding::new(format!("the pods run on virtual node {node}, which mounts no tokens")))
            .into_iter()
            .collect()
    })],
};
