//! Checks of service accounts, and of the labels and annotations that request an identity.

use std::collections::BTreeMap;

use super::{
    check::{Check, CheckFn, Input},
    command::{Command, annotate},
    draft::{DraftFinding, Severity},
    index::{AccountContext, PodContext},
    key_placement::{S3, S4},
    keys,
    object::Object,
    observation::{KeyValues, Pod},
};
use spillway_core::{
    azure::{ResourceId, is_guid},
    suggestions::did_you_mean,
};

pub(super) const CHECKS: &[&Check] = &[&S1, &S2, &S3, &S4, &S5, &S6, &S7, &S8, &S9, &S10, &S11, &S12];

const WEBHOOK: &str = "Azure/azure-workload-identity pkg/webhook/webhook.go";

static S1: Check = Check {
    id: "S1",
    severity: Severity::Warning,
    title: "pods of an annotated service account have no label",
    reads: "the service account's annotation azure.workload.identity/client-id; the label azure.workload.identity/use of its pods and their templates",
    meaning: "the webhook injects no token and no client id; the pods sign in as the node's identity, or not at all",
    fix: "add the label azure.workload.identity/use: \"true\" to the pod template; restart pods that are older than the label",
    leads_to: &[],
    source: "Azure/azure-workload-identity#601; MicrosoftDocs/azure-aks-docs articles/aks/workload-identity-overview.md",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Account(unlabelled_pods)],
};

fn unlabelled_pods(context: &AccountContext<'_>) -> Vec<DraftFinding> {
    if context.account.client_id().is_none() {
        return Vec::new();
    }
    let namespace = context.index.namespace(&context.account.name.namespace);
    let is_opted_in = namespace.is_some_and(|namespace| namespace.is_opted_in);
    let is_unlabelled = |pod: &&&Pod| !pod.labels.contains_key(keys::USE) && (pod.is_admitted || !is_opted_in);
    let mut owners: BTreeMap<&Object, Vec<&str>> = BTreeMap::new();
    for pod in context.pods.iter().filter(is_unlabelled) {
        let names = owners.entry(&pod.owner).or_default();
        if pod.is_admitted {
            names.push(&pod.name);
        }
    }
    if owners.is_empty() {
        return Vec::new();
    }
    let running: usize = owners.values().map(Vec::len).sum();
    let whose = match owners.keys().collect::<Vec<_>>().as_slice() {
        [one] => format!("of {} {}", one.kind, one.name),
        several => format!("of {} workloads", several.len()),
    };
    let how_many = match running {
        0 => "the pods".to_owned(),
        1 => "1 pod".to_owned(),
        count => format!("{count} pods"),
    };
    let verb = if running == 1 { "has" } else { "have" };
    let message = format!("{how_many} {whose} {verb} no label {}: \"true\"", keys::USE);
    let fixes = owners.iter().take(5).map(|(owner, _)| if is_opted_in { restart(owner) } else { add_label(owner) });
    let found = DraftFinding::new(message).fix(fixes.collect::<Vec<_>>().join("\n"));
    let names: Vec<_> = owners.keys().map(ToString::to_string).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    vec![found.fact("owners", super::draft::abbreviate(&names))]
}

/// Returns the command that adds the label to the pod template, which restarts the pods. Returns instructions for a bare pod.
fn add_label(owner: &Object) -> String {
    let patch = match owner.kind.as_str() {
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => {
            r#"{"spec":{"template":{"metadata":{"labels":{"azure.workload.identity/use":"true"}}}}}"#
        }
        "CronJob" => {
            r#"{"spec":{"jobTemplate":{"spec":{"template":{"metadata":{"labels":{"azure.workload.identity/use":"true"}}}}}}}"#
        }
        _ => {
            return format!(
                "add the label {}: \"true\" to the manifest of {owner}, then recreate the object",
                keys::USE
            );
        }
    };
    let kind = owner.kind.to_lowercase();
    let command = Command::new(&format!("kubectl patch {kind}")).word(&owner.name);
    command.arg("--namespace", owner.namespace.as_deref().unwrap_or("default")).arg("--patch", patch).into()
}

/// Returns the command that restarts the pods.
pub(super) fn restart(owner: &Object) -> String {
    let namespace = owner.namespace.as_deref().unwrap_or("default");
    match owner.kind.as_str() {
        kind @ ("Deployment" | "StatefulSet" | "DaemonSet") => {
            let target = format!("{}/{}", kind.to_lowercase(), owner.name);
            Command::new("kubectl rollout restart").word(&target).arg("--namespace", namespace).into()
        }
        _ => format!("delete and recreate the pods of {owner}"),
    }
}

static S2: Check = Check {
    id: "S2",
    severity: Severity::Error,
    title: "the label's value is not \"true\"",
    reads: "the label azure.workload.identity/use of pods and templates",
    meaning: "the webhook selects only pods with the exact value \"true\"; the value \"false\" opts out and is reported as info",
    fix: "set the label to \"true\", in quotes, on the pod template",
    leads_to: &[],
    source: "Azure/azure-workload-identity deploy/azure-wi-webhook.yaml (objectSelector)",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let Some(value) = context.pod.labels.get(keys::USE).filter(|value| *value != "true") else { return Vec::new() };
        if value == "false" {
            let has_client_id = context.account.is_some_and(|account| account.client_id().is_some());
            let found = DraftFinding::new(
                "the label opts the pods out of workload identity, but their service account has a client id",
            );
            let found = found.severity(Severity::Info).fix("no change if this is intended");
            return if has_client_id { vec![found] } else { Vec::new() };
        }
        let message = format!("the label {} is {value:?}; only \"true\" has an effect", keys::USE);
        vec![DraftFinding::new(message).fix(add_label(&context.pod.owner))]
    })],
};

static S5: Check = Check {
    id: "S5",
    severity: Severity::Error,
    title: "the client id is invalid",
    reads: "the service account's annotation azure.workload.identity/client-id; the principal ids of the identities",
    meaning: "Entra knows no application with this id, so sign-in fails",
    fix: "use the identity's clientId: az identity show --name IDENTITY_NAME --resource-group RESOURCE_GROUP --query clientId --output tsv",
    leads_to: &["AADSTS700016"],
    source: "Azure/azure-workload-identity#1231; MicrosoftDocs/azure-docs#108526",
    needs: &[Input::Cluster],
    optional: &[Input::Credentials],
    transient: true,
    run: &[CheckFn::Account(malformed_client_id)],
};

fn malformed_client_id(context: &AccountContext<'_>) -> Vec<DraftFinding> {
    let Some(value) = context.account.client_id() else { return Vec::new() };
    let account = &context.account.name;
    if let (true, Some(identity)) = (is_guid(value), context.index.principal(value)) {
        if identity.client_id.eq_ignore_ascii_case(value) {
            return Vec::new();
        }
        let message =
            format!("the client id {value} is the principal (object) id of identity {}", identity.display_name());
        let fix = annotate(account, keys::CLIENT_ID, Some(&identity.client_id));
        return vec![DraftFinding::new(message).fact("read from", &*identity.source).fix(fix)];
    }
    if is_guid(value) {
        return Vec::new();
    }
    let bare = value.trim_matches(|c: char| c.is_whitespace() || "{}()\"'<>".contains(c));
    let id = ResourceId::parse(value);
    let (why, right) = if value.trim().is_empty() {
        ("is empty", None)
    } else if is_guid(bare) {
        ("has other characters around it", Some(bare.to_owned()))
    } else if let Some(id) = id {
        let by_id = |identity: &&super::managed_identity::ManagedIdentity| {
            identity.id.as_ref().is_some_and(|own| own.key() == id.key())
        };
        let known = context.index.observation.managed_identities.iter().flat_map(|all| &all.identities).find(by_id);
        ("is a resource id, not a client id", known.map(|identity| identity.client_id.clone()))
    } else if value.contains("${") || value.contains("{{") || value.starts_with('$') || value.starts_with('<') {
        ("is an unreplaced placeholder", None)
    } else {
        ("is not a GUID", None)
    };
    let shown = super::difference::visible(value);
    let found = DraftFinding::new(format!("the client id {shown} {why}").replace("  ", " "));
    vec![match right {
        Some(right) => found.fix(annotate(account, keys::CLIENT_ID, Some(&right))),
        None => found,
    }]
}

static S6: Check = Check {
    id: "S6",
    severity: Severity::Error,
    title: "the tenant id is wrong",
    reads: "the service account's annotation azure.workload.identity/tenant-id; the tenant of its identity",
    meaning: "pods sign in to another tenant, which does not know the identity",
    fix: "remove the annotation to use the cluster's tenant, or set it to the identity's tenantId",
    leads_to: &["AADSTS700016", "AADSTS90002"],
    source: "Azure/azure-workload-identity pkg/webhook/webhook.go; learn.microsoft.com/entra/identity-platform/reference-error-codes",
    needs: &[Input::Cluster],
    optional: &[Input::Credentials],
    transient: true,
    run: &[CheckFn::Account(|context| {
        let Some(value) = context.account.annotations.get(keys::TENANT_ID) else { return Vec::new() };
        let identity = context.account.client_id().and_then(|client_id| context.index.identity(client_id));
        let tenant = identity.and_then(|identity| identity.tenant_id.as_deref());
        let fix = annotate(&context.account.name, keys::TENANT_ID, tenant);
        if !is_guid(value) {
            let message = format!("the tenant id {} is not a GUID", super::difference::visible(value));
            return vec![DraftFinding::new(message).fix(fix)];
        }
        let Some((identity, tenant)) = identity.zip(tenant).filter(|(_, tenant)| !tenant.eq_ignore_ascii_case(value))
        else {
            return Vec::new();
        };
        let message = format!("the tenant id is {value}; identity {} is in tenant {tenant}", identity.display_name());
        vec![DraftFinding::new(message).fact("read from", &*identity.source).fix(fix)]
    })],
};

static S7: Check = Check {
    id: "S7",
    severity: Severity::Warning,
    title: "the service account of a labelled pod has no client id",
    reads: "the label of pods and templates; the service account's annotations; AZURE_CLIENT_ID of the containers",
    meaning: "the webhook mounts a token but sets no client id; only a program with its own client id can sign in",
    fix: "kubectl annotate serviceaccount NAME azure.workload.identity/client-id=CLIENT_ID",
    leads_to: &[],
    source: "Azure/azure-workload-identity#1357",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let Some(account) = context.account else { return Vec::new() };
        let has_own = context.pod.containers.iter().any(|container| container.env(keys::ENV_CLIENT_ID).is_some());
        let is_concerned = context.pod.is_labelled() && account.client_id().is_none() && account.name.name != "default";
        if !is_concerned || has_own {
            return Vec::new();
        }
        let message = format!("the pods have the label, but service account {} has no client id", account.name.name);
        vec![DraftFinding::new(message).fix(annotate(&account.name, keys::CLIENT_ID, Some("CLIENT_ID")))]
    })],
};

static S8: Check = Check {
    id: "S8",
    severity: Severity::Warning,
    title: "a labelled pod runs as service account default",
    reads: "the label and spec.serviceAccountName of pods and templates",
    meaning: "usually spec.serviceAccountName is missing; all pods of the namespace without it share the identity of default",
    fix: "set spec.serviceAccountName of the pod template to a separate service account",
    leads_to: &["AADSTS700213", "AADSTS70021"],
    source: "Azure/azure-workload-identity#691",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let is_concerned = context.pod.is_labelled() && context.pod.service_account == "default";
        let message = "the pods have the label and run as service account default";
        if is_concerned { vec![DraftFinding::new(message)] } else { Vec::new() }
    })],
};

static S9: Check = Check {
    id: "S9",
    severity: Severity::Error,
    title: "the token's lifetime is out of range",
    reads: "the annotation azure.workload.identity/service-account-token-expiration of service accounts and pods",
    meaning: "the webhook refuses each labelled pod with status 400, regardless of its failurePolicy",
    fix: "set a whole number of seconds from 3600 to 86400, or remove the annotation",
    leads_to: &[],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[
        CheckFn::Account(|context| {
            let fix = || annotate(&context.account.name, keys::EXPIRATION, Some("3600"));
            bad_expiration(&context.account.annotations).map(|found| found.fix(fix())).into_iter().collect()
        }),
        CheckFn::Pod(|context| {
            bad_expiration(&context.pod.annotations).filter(|_| context.pod.is_labelled()).into_iter().collect()
        }),
    ],
};

fn bad_expiration(annotations: &KeyValues) -> Option<DraftFinding> {
    let value = annotations
        .get(keys::EXPIRATION)
        .filter(|seconds| !spillway_core::workload_identity::is_valid_expiration(seconds))?;
    Some(DraftFinding::new(format!("the token's lifetime {value:?} is not a number of seconds from 3600 to 86400")))
}

static S10: Check = Check {
    id: "S10",
    severity: Severity::Warning,
    title: "skip-containers names no container",
    reads: "the annotation azure.workload.identity/skip-containers; the names of the containers",
    meaning: "semicolons separate the names; the webhook reads a list with commas as one name, and skips no container",
    fix: "separate the names with \";\", and use the names of the containers",
    leads_to: &[],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let unknown =
            context.pod.skipped_containers().filter(|name| !context.pod.containers.iter().any(|c| c.name == **name));
        let found = unknown.map(|name| {
            if name.contains(',') {
                let right = name.split(',').map(str::trim).collect::<Vec<_>>().join(";");
                return DraftFinding::new(format!("skip-containers separates names with a comma: {name:?}"))
                    .fix(format!("write {}: {right:?}", keys::SKIP_CONTAINERS));
            }
            let names: Vec<_> = context.pod.containers.iter().map(|container| container.name.as_str()).collect();
            let hint = did_you_mean(name, &names);
            DraftFinding::new(format!("skip-containers names {name:?}, but no container has this name{hint}"))
                .fact("containers", names.join(", "))
        });
        found.collect()
    })],
};

static S11: Check = Check {
    id: "S11",
    severity: Severity::Warning,
    title: "inject-proxy-sidecar is not true, but injects the proxy",
    reads: "the annotation azure.workload.identity/inject-proxy-sidecar",
    meaning: "the webhook ignores the value, and injects the privileged proxy",
    fix: "remove the annotation azure.workload.identity/inject-proxy-sidecar from the pod template",
    leads_to: &[],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let value = context.pod.annotations.get(keys::PROXY).filter(|value| !value.eq_ignore_ascii_case("true"));
        let found = |value: &String| {
            DraftFinding::new(format!("{} is {value:?}, but the webhook injects the proxy", keys::PROXY))
        };
        value.map(found).into_iter().collect()
    })],
};

static S12: Check = Check {
    id: "S12",
    severity: Severity::Error,
    title: "the proxy is used with hostNetwork",
    reads: "the annotation azure.workload.identity/inject-proxy-sidecar; spec.hostNetwork; the label",
    meaning: "the webhook refuses the pod with status 400, regardless of its failurePolicy",
    fix: "remove the proxy's annotation, or hostNetwork",
    leads_to: &[],
    source: WEBHOOK,
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[CheckFn::Pod(|context| {
        let has_both = context.pod.host_network && context.pod.annotations.contains_key(keys::PROXY);
        let is_refused = has_both && context.pod.is_labelled();
        let message = "the pods request the proxy and hostNetwork, so the webhook refuses them";
        if is_refused { vec![DraftFinding::new(message)] } else { Vec::new() }
    })],
};

/// Returns whether the webhook should have injected an identity into the pod.
pub(super) fn expects_injection(context: &PodContext<'_>) -> bool {
    context.pod.is_admitted && context.pod.is_labelled()
}
