//! Checks of all credentials of a managed identity.

use std::collections::HashSet;

use super::{
    check::{Check, CheckFn, Input},
    command::delete_credential,
    credential_match::{CredentialMatch, parse_subject},
    difference,
    draft::{DraftFinding, Severity},
    index::IdentityContext,
    managed_identity::{FederatedCredential, MAX_CREDENTIALS},
};

/// The lowest number of credentials at which F6 reports an identity.
const NEARLY_FULL: usize = 18;
/// The lowest number of service accounts at which F11 reports an identity.
const MANY_USERS: usize = 10;

pub(super) const CONSIDERATIONS: &str =
    "learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations";

pub(super) static F6: Check = Check {
    id: "F6",
    severity: Severity::Warning,
    title: "the identity is near its limit of credentials",
    reads: "the number of credentials of the identity; the number of its service accounts without one",
    meaning: "an identity can have 20 credentials; Azure refuses the next one",
    fix: "delete unused credentials (F7, F8), or use a second identity or AKS identity bindings, which need only one credential",
    leads_to: &[],
    source: CONSIDERATIONS,
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Identity(|context| {
        let count = context.credentials.len();
        if count < NEARLY_FULL {
            return Vec::new();
        }
        let missing = context.users.iter().filter(|account| context.index.match_of(account).is_broken()).count();
        let found = DraftFinding::new(format!("the identity has {count} of {MAX_CREDENTIALS} credentials"));
        let found = match missing {
            0 => found,
            _ => found.fact("service accounts without one", missing.to_string()),
        };
        vec![if count >= MAX_CREDENTIALS && missing > 0 { found.severity(Severity::Error) } else { found }]
    })],
};

/// Returns the credentials for service accounts that no other check reports.
fn unreported_credentials<'c>(context: &'c IdentityContext<'_>) -> impl Iterator<Item = &'c FederatedCredential> {
    let now = context.index.observation.at;
    context.credentials.iter().filter(move |credential| {
        !credential.is_for_bindings()
            && !credential.is_fresh(now)
            && credential.expression.is_none()
            && context.index.near_misses(context.identity, credential) == 0
    })
}

pub(super) static F7: Check = Check {
    id: "F7",
    severity: Severity::Warning,
    title: "a credential for a service account that does not exist",
    reads: "the credentials for this cluster; the service accounts",
    meaning: "the credential counts towards the limit of 20; a user who can create the service account can use the identity",
    fix: "delete the credential",
    leads_to: &[],
    source: "Azure/azure-workload-identity#373; learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Identity(|context| {
        let (Some(issuer), true) = (context.index.issuer(), context.index.observation.cluster.is_complete) else {
            return Vec::new();
        };
        let stale = unreported_credentials(context).filter(|one| one.issuer == issuer.url).filter_map(|credential| {
            let (namespace, name) = parse_subject(credential.subject.as_deref()?)?;
            if context.index.account(namespace, name).is_some() {
                return None;
            }
            let message = format!(
                "credential {} is for service account {namespace}/{name}, which does not exist",
                credential.name
            );
            let found = DraftFinding::new(message).fact("read from", &*credential.source);
            Some(found.fix(delete_credential(context.identity, &credential.name)))
        });
        stale.collect()
    })],
};

pub(super) static F8: Check = Check {
    id: "F8",
    severity: Severity::Info,
    title: "a credential for another cluster",
    reads: "the issuers of the credentials",
    meaning: "another cluster uses the identity, or the credential is left over from a deleted cluster",
    fix: "keep the credential while the cluster exists, otherwise delete it",
    leads_to: &[],
    source: "Azure/AKS#3982",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Identity(|context| {
        let Some(issuer) = context.index.issuer() else { return Vec::new() };
        let own: HashSet<_> = context
            .credentials
            .iter()
            .filter(|one| one.issuer == issuer.url)
            .filter_map(|one| one.subject.as_deref())
            .collect();
        // F11 reports the same subject for several clusters.
        let is_shared =
            |one: &&FederatedCredential| one.subject.as_deref().is_some_and(|subject| own.contains(subject));
        let foreign = unreported_credentials(context)
            .filter(|one| one.issuer != issuer.url && difference::is_aks_issuer(&one.issuer));
        let found = foreign.filter(|one| !is_shared(one)).map(|credential| {
            let message = format!("credential {} is for another AKS cluster, or for a deleted one", credential.name);
            DraftFinding::new(message).fact("issuer", credential.issuer.clone()).fact("read from", &*credential.source)
        });
        found.collect()
    })],
};

/// The issuers for which flexible credentials are documented.
const FLEXIBLE_ISSUERS: &[&str] =
    &["https://token.actions.githubusercontent.com", "https://gitlab.com", "https://app.terraform.io"];

pub(super) static F9: Check = Check {
    id: "F9",
    severity: Severity::Warning,
    title: "a flexible credential for a cluster",
    reads: "claimsMatchingExpression and issuer of the credentials",
    meaning: "Microsoft documents matching expressions only for GitHub, GitLab and Terraform Cloud, so Spillway does not evaluate the credential",
    fix: "create one credential with a subject for each service account, or use AKS identity bindings",
    leads_to: &["AADSTS7002131", "AADSTS700213"],
    source: "learn.microsoft.com/entra/workload-id/workload-identities-flexible-federated-identity-credentials; Azure/AKS#4688",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Identity(|context| {
        let is_documented = |issuer: &str| FLEXIBLE_ISSUERS.iter().any(|known| issuer.starts_with(known));
        let flexible = context.credentials.iter().filter_map(|one| Some((one, one.expression.as_ref()?)));
        let found = flexible.filter(|(one, _)| !is_documented(&one.issuer)).map(|(one, expression)| {
            DraftFinding::new(format!("credential {} has an expression instead of a subject", one.name))
                .fact("expression", expression.clone())
                .fact("issuer", one.issuer.clone())
                .fact("read from", &*one.source)
        });
        found.collect()
    })],
};

pub(super) static F11: Check = Check {
    id: "F11",
    severity: Severity::Info,
    title: "many service accounts share an identity",
    reads: "the service accounts that name the identity; the issuers of their credentials",
    meaning: "each service account has the permissions of all others; one identity for each workload is least privilege",
    fix: "no change if this is intended",
    leads_to: &[],
    source: "learn.microsoft.com/azure/architecture/reference-architectures/containers/aks-microservices/aks-microservices",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Identity(|context| {
        let mut all = Vec::new();
        if context.users.len() >= MANY_USERS {
            let namespaces: HashSet<_> = context.users.iter().map(|account| account.name.namespace.as_str()).collect();
            let message = format!("{} service accounts use the identity", context.users.len());
            all.push(DraftFinding::new(message).fact("namespaces", namespaces.len().to_string()));
        }
        let Some(issuer) = context.index.issuer() else { return all };
        let clusters = |subject: &str| {
            let same = context.credentials.iter().filter(move |one| one.subject.as_deref() == Some(subject));
            same.map(|one| one.issuer.as_str()).collect::<HashSet<_>>()
        };
        // Service accounts beyond the limit have no credential.
        let shared = context
            .users
            .iter()
            .filter(|account| matches!(context.index.match_of(account), CredentialMatch::Matched { .. }));
        let shared = shared.filter(|account| {
            let issuers = clusters(&account.subject());
            issuers.contains(issuer.url.as_str()) && issuers.len() > 1
        });
        let names: Vec<_> = shared.map(|account| format!("{}/{}", account.name.namespace, account.name.name)).collect();
        if !names.is_empty() {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let found = DraftFinding::new("service accounts of the same name in several clusters use the identity");
            all.push(found.fact("service accounts", super::draft::abbreviate(&names)));
        }
        all
    })],
};
