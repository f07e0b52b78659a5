//! One answer from those of several sources.

use std::collections::{BTreeMap, HashMap};

use crate::{
    azure::ResourceId,
    identity::azure::{Azure, Credential, Extent, Identity},
};

/// What several sources say together.
///
/// Identities are the same when they have the same client id without regard to case; one whose client id is not known, when it has
/// the same resource id. Of their credentials, what Azure itself says is the whole truth; otherwise they are all that anybody knows,
/// each once. What nobody could read is unread for the reason that the first source gives. Whether there are identities that could not
/// be seen the first source alone says: a list that somebody has made some time ago does not stand for what Azure refuses to tell.
pub fn merged(answers: Vec<Azure>) -> Azure {
    let mut all = Azure { unseen: answers.first().and_then(|azure| azure.unseen.clone()), ..Azure::default() };
    let mut groups: BTreeMap<String, Vec<Identity>> = BTreeMap::new();
    let mut nameless = Vec::new();
    let mut names = HashMap::new();
    for Azure { identities, unseen: _, absent } in answers {
        all.absent.extend(absent);
        for identity in identities {
            let id = identity.id.as_ref().map(ResourceId::key);
            let name = identity.client_id.to_ascii_lowercase();
            if name.is_empty() {
                nameless.push((id, identity));
                continue;
            }
            names.extend(id.map(|id| (id, name.clone())));
            groups.entry(name).or_default().push(identity);
        }
    }
    for (id, identity) in nameless {
        let name = id.and_then(|id| names.get(&id).cloned().or(Some(id))).unwrap_or_default();
        groups.entry(name).or_default().push(identity);
    }
    all.absent.retain(|client_id| !groups.contains_key(client_id));
    all.identities = groups.into_values().filter_map(|group| group.into_iter().reduce(both)).collect();
    all
}

/// One identity, of which two sources speak.
fn both(one: Identity, other: Identity) -> Identity {
    let (extent, credentials) = match (one.credentials, other.credentials) {
        (Ok(own), Ok(_)) if one.extent == Extent::Whole => (Extent::Whole, Ok(own)),
        (Ok(_), Ok(others)) if other.extent == Extent::Whole => (Extent::Whole, Ok(others)),
        (Ok(own), Ok(others)) => (one.extent.max(other.extent), Ok(union(own, others))),
        (Ok(own), Err(_)) => (one.extent, Ok(own)),
        (Err(_), Ok(others)) => (other.extent, Ok(others)),
        (Err(unread), Err(_)) => (one.extent, Err(unread)),
    };
    Identity {
        client_id: if one.client_id.is_empty() { other.client_id } else { one.client_id },
        principal_id: one.principal_id.or(other.principal_id),
        tenant_id: one.tenant_id.or(other.tenant_id),
        id: one.id.or(other.id),
        credentials,
        extent,
        source: if one.source == other.source { one.source } else { format!("{}, {}", one.source, other.source) },
    }
}

fn union(mut all: Vec<Credential>, others: Vec<Credential>) -> Vec<Credential> {
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
    use super::*;
    use crate::identity::azure::Unread;

    fn credential(subject: &str, source: &str) -> Credential {
        Credential {
            name: format!("{subject} of {source}"),
            issuer: "i".to_owned(),
            subject: Some(subject.to_owned()),
            audiences: vec!["a".to_owned()],
            expression: None,
            since: None,
            source: source.to_owned(),
        }
    }

    fn unread(because: &str) -> Unread {
        Unread { because: because.to_owned(), action: String::new(), scope: String::new() }
    }

    fn id() -> ResourceId {
        ResourceId { subscription: "s".to_owned(), resource_group: "rg".to_owned(), name: "id".to_owned() }
    }

    fn identity(client_id: &str, extent: Extent, subjects: &[&str], source: &str) -> Identity {
        Identity {
            client_id: client_id.to_owned(),
            principal_id: None,
            tenant_id: None,
            id: Some(id()),
            credentials: Ok(subjects.iter().map(|subject| credential(subject, source)).collect()),
            extent,
            source: source.to_owned(),
        }
    }

    fn of(identity: Identity) -> Azure {
        Azure { identities: vec![identity], unseen: Some(unread("part")), ..Azure::default() }
    }

    fn names(azure: &Azure) -> Vec<&str> {
        let [identity] = azure.identities.as_slice() else { panic!("{azure:?}") };
        identity.credentials.as_ref().unwrap().iter().map(|credential| credential.name.as_str()).collect()
    }

    #[test]
    fn what_azure_says_is_the_whole_truth_whatever_others_say_and_in_whatever_order() {
        let azure = || of(identity("C", Extent::Whole, &["a"], "azure"));
        let custom = || of(identity("c", Extent::Part, &["a", "b"], "custom"));
        for answers in [vec![azure(), custom()], vec![custom(), azure()]] {
            let all = merged(answers);
            assert_eq!(names(&all), ["a of azure"]);
            assert_eq!(all.identities[0].extent, Extent::Whole);
        }
    }

    #[test]
    fn where_azure_could_not_be_read_all_that_others_say_counts_once() {
        let refused = || of(Identity { credentials: Err(unread("403")), ..identity("c", Extent::Whole, &[], "azure") });
        let custom = || of(identity("C", Extent::Part, &["a", "b"], "custom"));
        let files = || of(identity("", Extent::Listed, &["b", "c"], "files"));
        let all = merged(vec![refused(), custom()]);
        assert_eq!(names(&all), ["a of custom", "b of custom"]);
        assert_eq!(all.identities[0].extent, Extent::Part, "Azure may have more");
        let all = merged(vec![files(), refused(), custom()]);
        assert_eq!(names(&all), ["a of custom", "b of custom", "c of files"]);
        assert_eq!(all.identities[0].extent, Extent::Listed);
        assert_eq!(all.identities[0].source, "azure, custom, files");
        let all = merged(vec![refused(), refused()]);
        assert_eq!(all.identities[0].credentials, Err(unread("403")));
    }

    #[test]
    fn whether_all_identities_are_seen_the_best_witness_says() {
        let blind = |because: &str| Azure { unseen: Some(unread(because)), ..Azure::default() };
        assert_eq!(merged(vec![blind("one"), blind("other")]).unseen, Some(unread("one")));
        assert_eq!(merged(vec![blind("403"), Azure::default()]).unseen, Some(unread("403")), "a file may be old");
        assert_eq!(merged(vec![Azure::default(), blind("custom")]).unseen, None);
        let absent = Azure { absent: ["c".to_owned()].into(), ..blind("one") };
        assert_eq!(merged(vec![absent.clone()]).absent.len(), 1);
        let seen = of(identity("C", Extent::Part, &[], "custom"));
        assert_eq!(merged(vec![absent, seen]).absent.len(), 0, "somebody has seen it");
    }
}
