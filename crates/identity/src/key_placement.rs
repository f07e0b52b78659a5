//! Checks of workload identity keys that are on the wrong object or do not exist.

use super::{
    check::{Check, CheckFn, Input},
    command::annotate,
    draft::{DraftFinding, Severity},
    index::{AccountContext, Index, PodContext},
    keys::{self, Place},
    object::AccountName,
    object::Object,
    observation::KeyValues,
};

pub(super) static S3: Check = Check {
    id: "S3",
    severity: Severity::Warning,
    title: "a label or annotation is on the wrong object",
    reads: "keys that begin with azure.workload.identity/ on service accounts, pods, workloads and Services",
    meaning: "the key has no effect there; the label works only on pods, the client id only on service accounts",
    fix: "move the key to the object from which it is read",
    leads_to: &[],
    source: "Azure/azure-workload-identity#1357; Azure/azure-workload-identity#601",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[
        CheckFn::Account(misplaced_on_account),
        CheckFn::Pod(misplaced_on_pod),
        CheckFn::Cluster(misplaced_on_objects),
    ],
};

fn misplaced_on_account(context: &AccountContext<'_>) -> Vec<DraftFinding> {
    let mut keys = wrong_keys(&context.account.labels, "service account", "label", &[]);
    // Since azure-workload-identity 1.0, the label has no effect on a service account. Report it only if pods lack the label.
    let is_harmless = !context.pods.is_empty() && context.pods.iter().all(|pod| pod.labels.contains_key(keys::USE));
    keys.retain(|(key, _)| !(is_harmless && *key == keys::USE));
    keys.extend(wrong_keys(&context.account.annotations, "service account", "annotation", &[Place::AccountAnnotation]));
    keys.into_iter().map(|(_, found)| found).collect()
}

fn misplaced_on_pod(context: &PodContext<'_>) -> Vec<DraftFinding> {
    let mut keys = wrong_keys(&context.pod.labels, "pod", "label", &[Place::PodLabel]);
    keys.extend(wrong_keys(&context.pod.annotations, "pod", "annotation", &[Place::PodAnnotation]));
    keys.into_iter().map(|(_, found)| found).collect()
}

fn misplaced_on_objects(index: &Index<'_>) -> Vec<DraftFinding> {
    let mut all = Vec::new();
    for object in &index.observation.cluster.annotated_objects {
        // A key on the workload is harmless if the pod template has it too.
        let template = index.template(&object.object);
        let is_repeated =
            |key: &str| template.is_some_and(|pod| pod.labels.contains_key(key) || pod.annotations.contains_key(key));
        let mut keys = wrong_keys(&object.labels, &object.object.kind, "label", &[]);
        keys.extend(wrong_keys(&object.annotations, &object.object.kind, "annotation", &[]));
        keys.retain(|(key, _)| !is_repeated(key));
        all.extend(keys.into_iter().map(|(_, found)| found.about(object.object.clone())));
    }
    all
}

/// Returns the keys that exist but are not read from this object.
fn wrong_keys<'k>(own: &'k KeyValues, on: &str, what: &str, right: &[Place]) -> Vec<(&'k str, DraftFinding)> {
    let wrong = own.keys().filter_map(|key| {
        let places = keys::places(key)?;
        let is_right = places.iter().any(|place| right.contains(place));
        (!is_right).then(|| {
            let wanted = places.iter().map(|place| place.as_str()).collect::<Vec<_>>().join(" or ");
            let message = format!("{key} has no effect as a {what} of the {on}; it must be a {wanted}");
            let message = message.replace("a annotation", "an annotation");
            (key.as_str(), DraftFinding::new(message).fix(format!("move {key} from the {on}; it must be the {wanted}")))
        })
    });
    wrong.collect()
}

pub(super) static S4: Check = Check {
    id: "S4",
    severity: Severity::Warning,
    title: "a workload identity key does not exist",
    reads: "keys that begin with azure.workload.identity/ or a similar prefix, on service accounts, pods and workloads",
    meaning: "azure-workload-identity ignores the key without an error",
    fix: "use the intended key",
    leads_to: &[],
    source: "Azure/azure-workload-identity#1026; Azure/azure-workload-identity pkg/webhook/consts.go",
    needs: &[Input::Cluster],
    optional: &[],
    transient: true,
    run: &[
        CheckFn::Account(|context| {
            unknown_keys(&context.account.object(), [&context.account.labels, &context.account.annotations])
        }),
        CheckFn::Pod(|context| unknown_keys(&context.pod.owner, [&context.pod.labels, &context.pod.annotations])),
        CheckFn::Cluster(|index| {
            let annotated_objects = &index.observation.cluster.annotated_objects;
            annotated_objects.iter().flat_map(|b| unknown_keys(&b.object, [&b.labels, &b.annotations])).collect()
        }),
    ],
};

fn unknown_keys(object: &Object, maps: [&KeyValues; 2]) -> Vec<DraftFinding> {
    let unknown = maps.into_iter().flat_map(KeyValues::iter).filter(|(key, _)| keys::places(key).is_none());
    unknown.map(|(key, value)| unknown_key(object, key, value)).collect()
}

fn unknown_key(object: &Object, key: &str, value: &str) -> DraftFinding {
    let found = DraftFinding::new(format!("azure-workload-identity does not read the key {key}")).about(object.clone());
    let Some(meant) = keys::nearest(key) else { return found };
    let found = DraftFinding { message: format!("{}; did you mean {meant}?", found.message), ..found };
    if object.kind != "ServiceAccount" {
        return found.fix(format!("rename {key} to {meant}"));
    }
    let namespace = object.namespace.as_deref().unwrap_or_default().to_owned();
    let account = AccountName { namespace, name: object.name.clone() };
    let commands = [annotate(&account, meant, Some(value)), annotate(&account, key, None)];
    found.fix(commands.join("\n"))
}
