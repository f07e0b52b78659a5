//! Checks of the credential of a service account.

use super::{
    check::{Check, CheckFn, Input},
    command::{ExpectedCredential, find_identity},
    credential_match::CredentialMatch,
    draft::{DraftFinding, Severity},
    identity_credentials::{CONSIDERATIONS, F6, F7, F8, F9, F11},
    index::AccountContext,
    managed_identity::{Completeness, FederatedCredential, MAX_CREDENTIALS, ManagedIdentity, ReadFailure},
};

pub(super) const CHECKS: &[&Check] = &[&F0, &F1, &F2, &F3, &F4, &F5, &F6, &F7, &F8, &F9, &F10, &F11];

const CODES: &str = "learn.microsoft.com/entra/identity-platform/reference-error-codes";

static F0: Check = Check {
    id: "F0",
    severity: Severity::Unknown,
    title: "Spillway could not read an input",
    reads: "the failures of the sources of credentials",
    meaning: "Spillway does not know whether the pods can sign in",
    fix: "grant the reader the missing permission at the scope",
    leads_to: &[],
    source: "learn.microsoft.com/azure/role-based-access-control/built-in-roles/identity",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::Unknown { what, failure: ReadFailure { reason, action, scope }, fix } =
            context.credential_match
        else {
            return Vec::new();
        };
        let found = DraftFinding::new(format!("Spillway does not know {what}: {reason}"));
        let found = match action.as_str() {
            "" => found.fact("asked for", scope.clone()),
            action => found.fact("missing permission", action).fact("at scope", scope.clone()),
        };
        vec![found.fix(fix.clone())]
    })],
};

static F1: Check = Check {
    id: "F1",
    severity: Severity::Warning,
    title: "no visible identity has the client id",
    reads: "the service account's client id; the client ids of all visible identities",
    meaning: "the identity is deleted or not visible, or the client id is of an app registration, which Spillway does not read",
    fix: "az identity list --query \"[?clientId=='CLIENT_ID'].id\" --output tsv",
    leads_to: &["AADSTS700016"],
    source: CODES,
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let (CredentialMatch::IdentityNotFound, Some(client_id)) =
            (context.credential_match, context.account.client_id())
        else {
            return Vec::new();
        };
        // S5 reports more detail.
        if context.index.principal(client_id).is_some() {
            return Vec::new();
        }
        let count = context.index.observation.managed_identities.as_ref().map_or(0, |all| all.identities.len());
        let message = format!(
            "none of the {count} visible identities has the client id {client_id}: deleted, not visible, or an app registration"
        );
        vec![DraftFinding::new(message).fix(find_identity(client_id))]
    })],
};

static F2: Check = Check {
    id: "F2",
    severity: Severity::Error,
    title: "the service account has no credential",
    reads: "the subjects of the identity's credentials",
    meaning: "Entra refuses the tokens of its pods",
    fix: "create the credential",
    leads_to: &["AADSTS700213", "AADSTS70021", "AADSTS700211"],
    source: CODES,
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::NoCredential { identity } = context.credential_match else { return Vec::new() };
        let credentials = identity.credentials.as_deref().unwrap_or_default();
        let issuers =
            credentials.iter().filter(|one| context.index.issuer().is_some_and(|issuer| issuer.url == one.issuer));
        let (name, subject) = (identity.display_name(), context.account.subject());
        // A partial list does not prove that the credential is absent.
        let (message, severity) = match identity.completeness {
            Completeness::Snapshot | Completeness::Complete => {
                (format!("identity {name} has no credential with the subject {subject}"), Severity::Error)
            }
            Completeness::Partial => (
                format!(
                    "no custom resource declares a credential of identity {name} with the subject {subject}; Azure may have one"
                ),
                Severity::Unknown,
            ),
        };
        let count = format!("{}, {} of them for this cluster", credentials.len(), issuers.count());
        let found = DraftFinding::new(message).severity(severity);
        let found = found.fact("credentials", count).fact("read from", &*identity.source);
        vec![with_create_command(found, context, identity)]
    })],
};

fn expected_credential<'c>(context: &'c AccountContext<'_>) -> ExpectedCredential<'c> {
    ExpectedCredential {
        account: &context.account.name,
        issuer: context.index.issuer().map(|issuer| issuer.url.as_str()),
        audience: context.index.audience(),
    }
}

/// Adds the command that creates the credential. If the identity is full, another credential must be deleted first.
fn with_create_command(found: DraftFinding, context: &AccountContext<'_>, identity: &ManagedIdentity) -> DraftFinding {
    let count = identity.credentials.as_deref().unwrap_or_default().len();
    let found = if count < MAX_CREDENTIALS { found } else { found.fact("first", "delete a credential, see F6") };
    found.fix(expected_credential(context).create(identity))
}

/// Adds the names of credential and identity, and their source.
fn with_credential_facts(
    found: DraftFinding,
    identity: &ManagedIdentity,
    credential: &FederatedCredential,
) -> DraftFinding {
    let name = format!("{} of identity {}", credential.name, identity.display_name());
    found.fact("credential", name).fact("read from", &*credential.source)
}

static F3: Check = Check {
    id: "F3",
    severity: Severity::Error,
    title: "the credential has another issuer",
    reads: "the issuer of the credential with the service account's subject; the cluster's issuer",
    meaning: "Entra compares issuers byte for byte, with the final slash, and refuses the tokens, even if they worked before",
    fix: "set the credential's issuer to the cluster's issuer",
    leads_to: &["AADSTS700211", "AADSTS70021"],
    source: "Azure/azure-workload-identity#1700; Azure/azure-workload-identity#340; Azure/AKS#3982",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::IssuerMismatch { identity, credential, difference } = context.credential_match else {
            return Vec::new();
        };
        let message = format!("the credential's issuer is not the cluster's: {}", difference.why());
        let found =
            with_credential_facts(DraftFinding::new(message).difference(difference.clone()), identity, credential);
        // Another cluster may need the credential, so do not change it.
        let found = if difference.is_spelling() {
            found.fix(expected_credential(context).update(identity, &credential.name))
        } else if identity.completeness == Completeness::Partial {
            // Azure may also have a matching credential.
            with_create_command(found.severity(Severity::Warning), context, identity)
        } else {
            with_create_command(found, context, identity)
        };
        vec![found]
    })],
};

static F4: Check = Check {
    id: "F4",
    severity: Severity::Error,
    title: "the credential's subject is nearly right",
    reads: "the subjects of the identity's credentials for this cluster; the service accounts",
    meaning: "Entra compares subjects byte for byte, including case, and refuses the tokens",
    fix: "set the credential's subject to the service account's subject",
    leads_to: &["AADSTS700213", "AADSTS7002138", "AADSTS70021"],
    source: "Azure/login#515; learn.microsoft.com/entra/identity-platform/reference-error-codes",
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::SubjectMismatch { identity, credential, subject, issuer } = context.credential_match
        else {
            return Vec::new();
        };
        let message = format!("the credential's subject is not the service account's: {}", subject.why());
        let found = DraftFinding::new(message).difference(subject.clone());
        let found = issuer.iter().fold(found, |found, issuer| found.difference(issuer.clone()));
        let found = with_credential_facts(found, identity, credential);
        // A credential that is similar to several service accounts can be changed for only one of them.
        let found = if context.index.near_misses(identity, credential) == 1 {
            found.fix(expected_credential(context).update(identity, &credential.name))
        } else {
            with_create_command(found, context, identity)
        };
        vec![found]
    })],
};

static F5: Check = Check {
    id: "F5",
    severity: Severity::Error,
    title: "the credential has another audience",
    reads: "the audiences of the credential with the right issuer and subject; the cloud",
    meaning: "Entra refuses tokens for an audience that the credential does not name",
    fix: "set the cloud's audience, and no other, in the credential",
    leads_to: &["AADSTS700212", "AADSTS7002121"],
    source: CONSIDERATIONS,
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::AudienceMismatch { identity, credential, difference } = context.credential_match else {
            return Vec::new();
        };
        let message = format!("the credential's audience is not the cloud's: {}", difference.why());
        let found = DraftFinding::new(message).difference(difference.clone());
        vec![
            with_credential_facts(found, identity, credential)
                .fix(expected_credential(context).update(identity, &credential.name)),
        ]
    })],
};

static F10: Check = Check {
    id: "F10",
    severity: Severity::Info,
    title: "the credential is less than 10 minutes old",
    reads: "the time when the credential was created or first read",
    meaning: "Entra may refuse sign-ins for some minutes, because it caches credentials",
    fix: "wait 10 minutes, and let the program retry",
    leads_to: &["AADSTS70021", "AADSTS700213", "AADSTS700211"],
    source: CONSIDERATIONS,
    needs: &[Input::Cluster, Input::Credentials, Input::Issuer],
    optional: &[],
    transient: false,
    run: &[CheckFn::Account(|context| {
        let CredentialMatch::Matched { credential } = context.credential_match else { return Vec::new() };
        let Some(since) = credential.since.filter(|_| credential.is_fresh(context.index.observation.at)) else {
            return Vec::new();
        };
        let found =
            DraftFinding::new(format!("credential {} is new; Entra may not use it everywhere yet", credential.name));
        vec![found.fact("since", since.to_string()).fact("read from", &*credential.source)]
    })],
};
