//! Records the inputs of the checks that were read in full, and decides what the absence of a finding means. Pure.

use std::collections::{HashMap, HashSet};

use k8s_openapi::jiff::Timestamp;
use spillway_identity::{
    AccountName, Check, Finding, Input, Object, Observation, check_of, managed_identity::ManagedIdentity,
    observation::Pod,
};

use super::report::FindingKey;

/// The state of the inputs, as far as the observation does not show the state.
#[derive(Debug, Clone, Default)]
pub(super) struct InputStatus {
    /// `true` if all sources of credentials have been read.
    pub(super) has_credentials: bool,
    /// `true` if the discovery document of the API server has been read.
    pub(super) has_discovery: bool,
    /// `true` if the virtual nodes are known.
    pub(super) has_nodes: bool,
    /// The service accounts for whose client IDs the sources have not been read yet.
    pub(super) pending_accounts: HashSet<AccountName>,
}

/// The inputs that were read in full. A finding that disappears while an input is missing is not resolved.
pub(super) struct Coverage {
    /// The service accounts, with their UIDs.
    accounts: HashMap<AccountName, Option<String>>,
    pending_accounts: HashSet<AccountName>,
    /// The names of the identities whose credentials are known. A name is present only if the credentials of all its identities are known.
    identities: HashSet<String>,
    inputs: HashSet<Input>,
    has_all_identities: bool,
    /// `true` if no source of credentials is configured.
    has_no_sources: bool,
    /// Time of the observation.
    pub(super) at: Timestamp,
}

/// The meaning of the absence of a finding.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// The problem is resolved.
    Resolved,
    /// The object no longer exists, or Spillway no longer checks the object.
    Gone,
    /// An input is missing.
    Unknown,
}

impl Coverage {
    /// Returns the coverage of an observation; `covers` says which namespaces are checked.
    pub(super) fn of(observation: &Observation, status: InputStatus, covers: impl Fn(&str) -> bool) -> Self {
        let InputStatus { has_credentials, has_discovery, has_nodes, pending_accounts } = status;
        let (cluster, managed) = (&observation.cluster, observation.managed_identities.as_ref());
        let accounts = cluster.service_accounts.iter().filter(|account| covers(&account.name.namespace));
        let identities = || managed.into_iter().flat_map(|all| &all.identities);
        let unread: HashSet<_> =
            identities().filter(|one| one.credentials.is_err()).map(ManagedIdentity::display_name).collect();
        let read = identities().map(ManagedIdentity::display_name).filter(|name| !unread.contains(name));
        let inputs = Input::ALL.into_iter().filter(|input| match input {
            Input::Cluster => cluster.is_complete,
            Input::Credentials => has_credentials && managed.is_some(),
            Input::Webhooks => cluster.webhooks.is_some() && cluster.endpoints.is_some(),
            // Grants are read only if a pod uses a binding.
            Input::Grants => cluster.grants.is_some() || !cluster.pods.iter().any(Pod::uses_binding),
            Input::Nodes => has_nodes,
            Input::Issuer => !observation.issuers.is_empty(),
            Input::Discovery => has_discovery,
        });
        Self {
            accounts: accounts.map(|account| (account.name.clone(), account.uid.clone())).collect(),
            pending_accounts,
            identities: read.map(str::to_owned).collect(),
            inputs: inputs.collect(),
            has_all_identities: managed.is_some_and(|all| all.incomplete.is_none()),
            has_no_sources: has_credentials && managed.is_none(),
            at: observation.at,
        }
    }

    /// Returns the UID of a service account, if it is known.
    pub(super) fn uid(&self, account: &AccountName) -> Option<String> {
        self.accounts.get(account).cloned().flatten()
    }

    /// Returns what the absence of a finding means. For a service account in doubt, the result is `Unknown` if the check reads credentials.
    pub(super) fn resolution(&self, key: &FindingKey, in_doubt: &HashSet<&AccountName>) -> Resolution {
        // The check exists in another version of Spillway only.
        let Some(check) = check_of(&key.id) else { return Resolution::Gone };
        match key.object.kind.as_str() {
            "ServiceAccount" => self.resolution_of_account(check, &key.object, in_doubt),
            "ManagedIdentity" if !self.identities.contains(&key.object.name) => {
                let is_gone = self.has(&[Input::Credentials]) && self.has_all_identities;
                if is_gone { Resolution::Gone } else { Resolution::Unknown }
            }
            _ => self.resolved_if_read(check.needs),
        }
    }

    fn resolution_of_account(&self, check: &Check, object: &Object, in_doubt: &HashSet<&AccountName>) -> Resolution {
        let Some(name) = account_name(object).filter(|name| self.accounts.contains_key(name)) else {
            return if self.has(&[Input::Cluster]) { Resolution::Gone } else { Resolution::Unknown };
        };
        let is_in_doubt = in_doubt.contains(&name) || self.pending_accounts.contains(&name);
        if is_in_doubt && check.reads_input(Input::Credentials) {
            return Resolution::Unknown;
        }
        // The finding may have depended on credentials. Without sources, Spillway can no longer check that.
        if self.has_no_sources && check.optional.contains(&Input::Credentials) {
            return Resolution::Gone;
        }
        match self.resolved_if_read(check.optional) {
            Resolution::Resolved => self.resolved_if_read(check.needs),
            other => other,
        }
    }

    fn resolved_if_read(&self, inputs: &[Input]) -> Resolution {
        if self.has(inputs) { Resolution::Resolved } else { Resolution::Unknown }
    }

    fn has(&self, inputs: &[Input]) -> bool {
        inputs.iter().all(|input| self.inputs.contains(input))
    }
}

/// Returns whether a finding is about credentials that were not read yet.
pub(super) fn is_premature(finding: &Finding, status: &InputStatus) -> bool {
    finding.check.needs.contains(&Input::Credentials)
        && finding.service_account.as_ref().is_some_and(|name| status.pending_accounts.contains(name))
}

/// Returns the name of an object that has a namespace.
pub(super) fn account_name(object: &Object) -> Option<AccountName> {
    Some(AccountName { namespace: object.namespace.clone()?, name: object.name.clone() })
}

#[cfg(test)]
mod tests {
    use spillway_identity::checks;

    use super::*;

    fn coverage(inputs: impl IntoIterator<Item = Input>, account: &AccountName) -> Coverage {
        Coverage {
            accounts: [(account.clone(), None)].into(),
            pending_accounts: HashSet::new(),
            identities: ["web".to_owned()].into(),
            inputs: inputs.into_iter().collect(),
            has_all_identities: true,
            has_no_sources: false,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// The kinds of objects that the findings of a check can be about.
    fn objects(check: &Check) -> Vec<Object> {
        match check.needs {
            [Input::Issuer, Input::Discovery] => vec![Object::global("Issuer", "https://issuer")],
            needs => {
                let account = Object::namespaced("ServiceAccount", "shop", "web");
                let identity = Object::global("ManagedIdentity", "web");
                let webhook = Object::global("MutatingWebhookConfiguration", "web");
                let other = [(Input::Credentials, identity), (Input::Webhooks, webhook)];
                let other = other.into_iter().filter(|(input, _)| needs.contains(input)).map(|(_, object)| object);
                [account].into_iter().chain(other).collect()
            }
        }
    }

    #[test]
    fn each_check_is_resolved_only_if_all_its_inputs_were_read() {
        let web = AccountName { namespace: "shop".to_owned(), name: "web".to_owned() };
        let nothing = HashSet::new();
        for check in checks() {
            for object in objects(check) {
                let is_account = object.kind == "ServiceAccount";
                let key = FindingKey { id: check.id.to_owned(), object };
                for bits in 0..1_u32 << Input::ALL.len() {
                    let inputs = Input::ALL.into_iter().enumerate().filter(|(at, _)| bits & 1 << at != 0);
                    let inputs: Vec<_> = inputs.map(|(_, input)| input).collect();
                    let is_read = Input::ALL.into_iter().filter(|input| check.reads_input(*input));
                    let is_read = is_read.into_iter().all(|input| inputs.contains(&input));
                    let expected = if is_read { Resolution::Resolved } else { Resolution::Unknown };
                    let coverage = coverage(inputs.iter().copied(), &web);
                    assert_eq!(coverage.resolution(&key, &nothing), expected, "{} {inputs:?}", check.id);
                }
                let mut all = coverage(Input::ALL, &web);
                let doubtful = if is_account && check.reads_input(Input::Credentials) {
                    Resolution::Unknown
                } else {
                    Resolution::Resolved
                };
                assert_eq!(all.resolution(&key, &[&web].into()), doubtful, "{}", check.id);
                all.pending_accounts.insert(web.clone());
                assert_eq!(all.resolution(&key, &nothing), doubtful, "{}", check.id);
            }
        }
    }
}
