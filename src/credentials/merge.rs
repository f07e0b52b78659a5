//! Merges the results of several sources.

use std::collections::{BTreeMap, HashMap};

use spillway_core::azure::ResourceId;
use spillway_identity::managed_identity::{Completeness, FederatedCredential, ManagedIdentities, ManagedIdentity};

/// Merges the results of several sources, the most trustworthy first.
///
/// * Identities are matched by client ID, ignoring case. An identity without client ID is matched by resource ID.
/// * Credentials that Azure lists are complete. Otherwise the credentials of all sources are combined without duplicates.
/// * If no source could read the credentials of an identity, the result has the failure of the first source.
/// * Only the first source decides whether the list of identities is complete. A file may be old, so it does not replace
///   a list that Azure refuses.
pub fn merge(results: Vec<ManagedIdentities>) -> ManagedIdentities {
    let incomplete = results.first().and_then(|first| first.incomplete.clone());
    let mut all = ManagedIdentities { incomplete, ..ManagedIdentities::default() };
    let mut groups: BTreeMap<String, Vec<ManagedIdentity>> = BTreeMap::new();
    let mut without_client_id = Vec::new();
    let mut client_ids = HashMap::new();
    for ManagedIdentities { identities, incomplete: _, absent } in results {
        all.absent.extend(absent);
        for identity in identities {
            let id = identity.id.as_ref().map(ResourceId::key);
            let client_id = identity.client_id.to_ascii_lowercase();
            if client_id.is_empty() {
                without_client_id.push((id, identity));
                continue;
            }
            client_ids.extend(id.map(|id| (id, client_id.clone())));
            groups.entry(client_id).or_default().push(identity);
        }
    }
    for (id, identity) in without_client_id {
        let key = id.and_then(|id| client_ids.get(&id).cloned().or(Some(id))).unwrap_or_default();
        groups.entry(key).or_default().push(identity);
    }
    all.absent.retain(|client_id| !groups.contains_key(client_id));
    all.identities = groups.into_values().filter_map(|group| group.into_iter().reduce(merge_identity)).collect();
    all
}

/// Merges two descriptions of one identity.
fn merge_identity(one: ManagedIdentity, other: ManagedIdentity) -> ManagedIdentity {
    let (completeness, credentials) = match (one.credentials, other.credentials) {
        (Ok(own), Ok(_)) if one.completeness == Completeness::Complete => (Completeness::Complete, Ok(own)),
        (Ok(_), Ok(others)) if other.completeness == Completeness::Complete => (Completeness::Complete, Ok(others)),
        (Ok(own), Ok(others)) => (one.completeness.max(other.completeness), Ok(merge_credentials(own, others))),
        (Ok(own), Err(_)) => (one.completeness, Ok(own)),
        (Err(_), Ok(others)) => (other.completeness, Ok(others)),
        (Err(failure), Err(_)) => (one.completeness, Err(failure)),
    };
    ManagedIdentity {
        client_id: if one.client_id.is_empty() { other.client_id } else { one.client_id },
        principal_id: one.principal_id.or(other.principal_id),
        tenant_id: one.tenant_id.or(other.tenant_id),
        id: one.id.or(other.id),
        credentials,
        completeness,
        source: if one.source == other.source { one.source } else { format!("{}, {}", one.source, other.source) },
    }
}

fn merge_credentials(mut all: Vec<FederatedCredential>, others: Vec<FederatedCredential>) -> Vec<FederatedCredential> {
    for other in others {
        let same = all.iter_mut().find(|own| {
            (&own.issuer, &own.subject, &own.audiences, &own.expression)
                == (&other.issuer, &other.subject, &other.audiences, &other.expression)
        });
        match same {
            Some(own) => own.since = own.since.or(other.since),
            None => all.push(other),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use spillway_identity::managed_identity::ReadFailure;

    use super::*;

    fn credential(subject: &str, source: &str) -> FederatedCredential {
        FederatedCredential {
            name: format!("{subject} of {source}"),
            issuer: "i".to_owned(),
            subject: Some(subject.to_owned()),
            audiences: vec!["a".to_owned()],
            expression: None,
            since: None,
            source: source.to_owned(),
        }
    }

    fn failure(reason: &str) -> ReadFailure {
        ReadFailure { reason: reason.to_owned(), action: String::new(), scope: String::new() }
    }

    fn id() -> ResourceId {
        ResourceId { subscription: "s".to_owned(), resource_group: "rg".to_owned(), name: "id".to_owned() }
    }

    fn identity(client_id: &str, completeness: Completeness, subjects: &[&str], source: &str) -> ManagedIdentity {
        ManagedIdentity {
            client_id: client_id.to_owned(),
            principal_id: None,
            tenant_id: None,
            id: Some(id()),
            credentials: Ok(subjects.iter().map(|subject| credential(subject, source)).collect()),
            completeness,
            source: source.to_owned(),
        }
    }

    fn of(identity: ManagedIdentity) -> ManagedIdentities {
        ManagedIdentities {
            identities: vec![identity],
            incomplete: Some(failure("part")),
            ..ManagedIdentities::default()
        }
    }

    fn names(all: &ManagedIdentities) -> Vec<&str> {
        let [identity] = all.identities.as_slice() else { panic!("{all:?}") };
        identity.credentials.as_ref().unwrap().iter().map(|credential| credential.name.as_str()).collect()
    }

    #[test]
    fn credentials_that_azure_lists_replace_all_others() {
        let azure = || of(identity("C", Completeness::Complete, &["a"], "azure"));
        let custom = || of(identity("c", Completeness::Partial, &["a", "b"], "custom"));
        for responses in [vec![azure(), custom()], vec![custom(), azure()]] {
            let all = merge(responses);
            assert_eq!(names(&all), ["a of azure"]);
            assert_eq!(all.identities[0].completeness, Completeness::Complete);
        }
    }

    #[test]
    fn other_credentials_are_combined_if_azure_cannot_be_read() {
        let refused = || {
            of(ManagedIdentity {
                credentials: Err(failure("403")),
                ..identity("c", Completeness::Complete, &[], "azure")
            })
        };
        let custom = || of(identity("C", Completeness::Partial, &["a", "b"], "custom"));
        let files = || of(identity("", Completeness::Snapshot, &["b", "c"], "files"));
        let all = merge(vec![refused(), custom()]);
        assert_eq!(names(&all), ["a of custom", "b of custom"]);
        assert_eq!(all.identities[0].completeness, Completeness::Partial, "Azure may have more");
        let all = merge(vec![files(), refused(), custom()]);
        assert_eq!(names(&all), ["a of custom", "b of custom", "c of files"]);
        assert_eq!(all.identities[0].completeness, Completeness::Snapshot);
        assert_eq!(all.identities[0].source, "azure, custom, files");
        let all = merge(vec![refused(), refused()]);
        assert_eq!(all.identities[0].credentials, Err(failure("403")));
    }

    #[test]
    fn the_first_source_decides_whether_identities_are_complete() {
        let blind =
            |reason: &str| ManagedIdentities { incomplete: Some(failure(reason)), ..ManagedIdentities::default() };
        assert_eq!(merge(vec![blind("one"), blind("other")]).incomplete, Some(failure("one")));
        assert_eq!(
            merge(vec![blind("403"), ManagedIdentities::default()]).incomplete,
            Some(failure("403")),
            "a file may be old"
        );
        assert_eq!(merge(vec![ManagedIdentities::default(), blind("custom")]).incomplete, None);
        let absent = ManagedIdentities { absent: ["c".to_owned()].into(), ..blind("one") };
        assert_eq!(merge(vec![absent.clone()]).absent.len(), 1);
        let seen = of(identity("C", Completeness::Partial, &[], "custom"));
        assert_eq!(merge(vec![absent, seen]).absent.len(), 0, "another source has found the identity");
    }
}
