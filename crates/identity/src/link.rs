//! The link between a service account and the credential of its identity: found, nearly found, or not.

use spillway_core::azure::is_guid;

use super::{
    azure::{Credential, Extent, Identity, Unread},
    command::{find_identity, list_credentials},
    difference::{self, Difference},
    index::Index,
    seen::{Pod, ServiceAccount},
};

/// What became of the search for a service account's credential.
#[derive(Debug)]
pub(super) enum Link<'s> {
    /// There is nothing to look for, or nobody asked about Azure.
    Unasked,
    /// No identity has the client id.
    NoIdentity,
    /// Something that could not be read stands between.
    CannotTell { what: &'static str, unread: Unread, fix: String },
    /// Issuer, subject and audience are right.
    Matched { credential: &'s Credential },
    /// Issuer and subject are right.
    Audience { identity: &'s Identity, credential: &'s Credential, difference: Difference },
    /// The subject is right.
    Issuer { identity: &'s Identity, credential: &'s Credential, difference: Difference },
    /// The subject is nearly right, and the issuer at least nearly.
    Subject { identity: &'s Identity, credential: &'s Credential, subject: Difference, issuer: Option<Difference> },
    /// None comes near.
    Missing { identity: &'s Identity },
}

/// How near a credential comes; the smaller the nearer.
type Distance = (usize, usize);

impl<'s> Link<'s> {
    pub(super) fn of(account: &ServiceAccount, pods: &[&Pod], index: &Index<'s>) -> Self {
        let Some(azure) = &index.seen.azure else { return Self::Unasked };
        let Some(client_id) = account.client_id().filter(|id| is_guid(id)) else { return Self::Unasked };
        let Some(identity) = index.identity(client_id) else {
            let unseen = azure.unseen.as_ref().filter(|_| !azure.absent.contains(&client_id.to_ascii_lowercase()));
            return unseen.map_or(Self::NoIdentity, |unread| Self::CannotTell {
                what: "whether the identity exists",
                unread: unread.clone(),
                fix: find_identity(client_id),
            });
        };
        let credentials = match &identity.credentials {
            Ok(credentials) => credentials,
            Err(unread) => {
                let what = "which federated credentials the identity has";
                return Self::CannotTell { what, unread: unread.clone(), fix: list_credentials(identity) };
            }
        };
        // With an identity binding a pod needs no credential of its own.
        if !pods.is_empty() && pods.iter().all(|pod| pod.uses_binding()) {
            return Self::Unasked;
        }
        match index.issuer() {
            Some(issuer) => Self::search(account, identity, credentials, &issuer.url, index),
            None => Self::CannotTell {
                what: "which issuer the cluster's tokens name",
                unread: no_issuer(),
                fix: "kubectl get --raw /.well-known/openid-configuration".to_owned(),
            },
        }
    }

    fn search(
        account: &ServiceAccount,
        identity: &'s Identity,
        credentials: &'s [Credential],
        issuer: &str,
        index: &Index<'s>,
    ) -> Self {
        let subject = account.subject();
        let mut nearest: Option<(Distance, Self)> = None;
        for credential in credentials.iter().filter(|credential| credential.expression.is_none()) {
            let Some(own) = credential.subject.as_deref() else { continue };
            let (distance, link) = if own == subject && credential.issuer == issuer {
                return Self::audience(identity, credential, index.audience());
            } else if own == subject {
                let difference = difference::issuer(issuer, &credential.issuer);
                let class = if difference.is_spelling() { 0 } else { 3 };
                ((class, difference.causes.len()), Self::Issuer { identity, credential, difference })
            } else {
                let Some(near) = near_subject(account, identity, credential, own, issuer, index) else { continue };
                near
            };
            if nearest.as_ref().is_none_or(|(nearest, _)| distance < *nearest) {
                nearest = Some((distance, link));
            }
        }
        nearest.map_or(Self::Missing { identity }, |(_, link)| link)
    }

    fn audience(identity: &'s Identity, credential: &'s Credential, expected: &str) -> Self {
        if let [only] = credential.audiences.as_slice()
            && only == expected
        {
            return Self::Matched { credential };
        }
        let difference = difference::audience(expected, &credential.audiences);
        Self::Audience { identity, credential, difference }
    }

    /// The credential that is not right but was meant.
    pub(super) const fn explained(&self) -> Option<(&'s Identity, &'s Credential)> {
        match self {
            Self::Audience { identity, credential, .. }
            | Self::Issuer { identity, credential, .. }
            | Self::Subject { identity, credential, .. } => Some((identity, credential)),
            _ => None,
        }
    }

    /// Whether it is known that no credential fits.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Missing { identity } => identity.extent != Extent::Part,
            other => matches!(other, Self::Issuer { .. } | Self::Subject { .. }),
        }
    }
}

/// A credential with the cluster's issuer, or nearly, and a subject that nearly is the account's and nobody else's.
fn near_subject<'s>(
    account: &ServiceAccount,
    identity: &'s Identity,
    credential: &'s Credential,
    subject: &str,
    issuer: &str,
    index: &Index<'s>,
) -> Option<(Distance, Link<'s>)> {
    let names = parse_subject(subject);
    if names.is_some_and(|(namespace, name)| index.account(namespace, name).is_some()) {
        return None;
    }
    let subject = difference::subject(&account.name.namespace, &account.name.name, subject);
    let is_same_issuer = credential.issuer == issuer;
    let issuer = (!is_same_issuer).then(|| difference::issuer(issuer, &credential.issuer));
    if !subject.is_spelling() || issuer.as_ref().is_some_and(|issuer| !issuer.is_spelling()) {
        return None;
    }
    let class = if is_same_issuer { 1 } else { 2 };
    Some(((class, subject.causes.len()), Link::Subject { identity, credential, subject, issuer }))
}

fn no_issuer() -> Unread {
    Unread {
        because: "it was not read".to_owned(),
        action: "get on the non-resource URL /.well-known/openid-configuration (ClusterRole system:service-account-issuer-discovery)"
            .to_owned(),
        scope: "the API server".to_owned(),
    }
}

/// Namespace and name of the service account that a subject speaks of, to the byte.
pub(super) fn parse_subject(subject: &str) -> Option<(&str, &str)> {
    let names = subject.strip_prefix(difference::SUBJECT_PREFIX)?.split_once(':');
    names.filter(|(_, name)| !name.contains(':'))
}
