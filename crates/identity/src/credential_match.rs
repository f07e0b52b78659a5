//! Finds the federated credential of a service account, or the nearest one.

use spillway_core::azure::is_guid;

use super::{
    command::{find_identity, list_credentials},
    difference::{self, Difference},
    lookup::Lookup,
    managed_identity::{Completeness, FederatedCredential, ManagedIdentity, ReadFailure},
    observation::ServiceAccount,
};

/// The result of the search for a service account's credential.
#[derive(Debug)]
pub(super) enum CredentialMatch<'o> {
    /// The service account needs no credential, or no source of credentials is configured.
    NotApplicable,
    /// No identity has the client ID.
    IdentityNotFound,
    /// The result depends on an input that could not be read.
    Unknown { what: &'static str, failure: ReadFailure, fix: String },
    /// Issuer, subject and audience match.
    Matched { credential: &'o FederatedCredential },
    /// Only issuer and subject match.
    AudienceMismatch { identity: &'o ManagedIdentity, credential: &'o FederatedCredential, difference: Difference },
    /// Only the subject matches.
    IssuerMismatch { identity: &'o ManagedIdentity, credential: &'o FederatedCredential, difference: Difference },
    /// The subject nearly matches, and the issuer matches or nearly matches.
    SubjectMismatch {
        identity: &'o ManagedIdentity,
        credential: &'o FederatedCredential,
        subject: Difference,
        issuer: Option<Difference>,
    },
    /// No credential is similar.
    NoCredential { identity: &'o ManagedIdentity },
}

/// The distance of a credential from the expected one: the class of the difference, then the number of causes.
type Distance = (usize, usize);

impl<'o> CredentialMatch<'o> {
    pub(super) fn of(account: &ServiceAccount, lookup: &Lookup<'o>) -> Self {
        let Some(identities) = &lookup.observation.managed_identities else { return Self::NotApplicable };
        let Some(client_id) = account.client_id().filter(|id| is_guid(id)) else { return Self::NotApplicable };
        let Some(identity) = lookup.identity(client_id) else {
            let incomplete =
                identities.incomplete.as_ref().filter(|_| !identities.absent.contains(&client_id.to_ascii_lowercase()));
            return incomplete.map_or(Self::IdentityNotFound, |failure| Self::Unknown {
                what: "whether the identity exists",
                failure: failure.clone(),
                fix: find_identity(client_id),
            });
        };
        let credentials = match &identity.credentials {
            Ok(credentials) => credentials,
            Err(failure) => {
                let what = "which federated credentials the identity has";
                return Self::Unknown { what, failure: failure.clone(), fix: list_credentials(identity) };
            }
        };
        // Pods with an identity binding need no credential of their own.
        let pods = lookup.pods_of(account);
        if !pods.is_empty() && pods.iter().all(|pod| pod.uses_binding()) {
            return Self::NotApplicable;
        }
        match lookup.issuer() {
            Some(issuer) => Self::search(account, identity, credentials, &issuer.url, lookup),
            None => Self::Unknown {
                what: "which issuer the cluster's tokens name",
                failure: no_issuer(),
                fix: "kubectl get --raw /.well-known/openid-configuration".to_owned(),
            },
        }
    }

    fn search(
        account: &ServiceAccount,
        identity: &'o ManagedIdentity,
        credentials: &'o [FederatedCredential],
        issuer: &str,
        lookup: &Lookup<'o>,
    ) -> Self {
        let subject = account.subject();
        let mut nearest: Option<(Distance, Self)> = None;
        for credential in credentials.iter().filter(|credential| credential.expression.is_none()) {
            let Some(own) = credential.subject.as_deref() else { continue };
            let (distance, result) = if own == subject && credential.issuer == issuer {
                return Self::audience(identity, credential, lookup.audience());
            } else if own == subject {
                let difference = difference::issuer(issuer, &credential.issuer);
                let class = if difference.is_spelling() { 0 } else { 3 };
                ((class, difference.causes.len()), Self::IssuerMismatch { identity, credential, difference })
            } else {
                let Some(near) = near_subject(account, identity, credential, own, issuer, lookup) else { continue };
                near
            };
            if nearest.as_ref().is_none_or(|(nearest, _)| distance < *nearest) {
                nearest = Some((distance, result));
            }
        }
        nearest.map_or(Self::NoCredential { identity }, |(_, result)| result)
    }

    fn audience(identity: &'o ManagedIdentity, credential: &'o FederatedCredential, expected: &str) -> Self {
        if let [only] = credential.audiences.as_slice()
            && only == expected
        {
            return Self::Matched { credential };
        }
        let difference = difference::audience(expected, &credential.audiences);
        Self::AudienceMismatch { identity, credential, difference }
    }

    /// Returns the incorrect credential that was probably meant for the service account.
    pub(super) const fn near_miss(&self) -> Option<(&'o ManagedIdentity, &'o FederatedCredential)> {
        match self {
            Self::AudienceMismatch { identity, credential, .. }
            | Self::IssuerMismatch { identity, credential, .. }
            | Self::SubjectMismatch { identity, credential, .. } => Some((identity, credential)),
            _ => None,
        }
    }

    /// Returns `true` if certainly no credential matches.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::NoCredential { identity } => identity.completeness != Completeness::Partial,
            other => matches!(other, Self::IssuerMismatch { .. } | Self::SubjectMismatch { .. }),
        }
    }
}

/// Returns the credential if its subject is similar to this account's, and its issuer to the cluster's. `None` if the subject is another
/// account's.
fn near_subject<'o>(
    account: &ServiceAccount,
    identity: &'o ManagedIdentity,
    credential: &'o FederatedCredential,
    subject: &str,
    issuer: &str,
    lookup: &Lookup<'o>,
) -> Option<(Distance, CredentialMatch<'o>)> {
    let names = parse_subject(subject);
    if names.is_some_and(|(namespace, name)| lookup.account(namespace, name).is_some()) {
        return None;
    }
    let subject = difference::subject(&account.name.namespace, &account.name.name, subject);
    let is_same_issuer = credential.issuer == issuer;
    let issuer = (!is_same_issuer).then(|| difference::issuer(issuer, &credential.issuer));
    if !subject.is_spelling() || issuer.as_ref().is_some_and(|issuer| !issuer.is_spelling()) {
        return None;
    }
    let class = if is_same_issuer { 1 } else { 2 };
    Some(((class, subject.causes.len()), CredentialMatch::SubjectMismatch { identity, credential, subject, issuer }))
}

fn no_issuer() -> ReadFailure {
    ReadFailure {
        reason: "the issuer was not read".to_owned(),
        action: "get on the non-resource URL /.well-known/openid-configuration (ClusterRole system:service-account-issuer-discovery)"
            .to_owned(),
        scope: "the API server".to_owned(),
    }
}

/// Returns namespace and name of the service account that a subject names. `None` if the subject has another form.
pub(super) fn parse_subject(subject: &str) -> Option<(&str, &str)> {
    let names = subject.strip_prefix(difference::SUBJECT_PREFIX)?.split_once(':');
    names.filter(|(_, name)| !name.contains(':'))
}
