//! A check: its documentation, the inputs that it needs, and its functions.

use serde::{Serialize, Serializer};

use super::{
    draft::{DraftFinding, Severity},
    index::{AccountContext, IdentityContext, Index, PodContext},
};

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Identifier such as `F3`, as in Events, metrics and output.
    pub id: &'static str,
    /// The usual severity of its findings.
    pub severity: Severity,
    /// What the check finds, in a few words.
    pub title: &'static str,
    /// What the check reads.
    pub reads: &'static str,
    /// What a finding means for the pods.
    pub meaning: &'static str,
    /// The remedy, for findings that have no command of their own.
    pub cure: &'static str,
    /// The Entra error codes that a finding can lead to.
    pub leads_to: &'static [&'static str],
    /// The source of these facts: `owner/repo path`, or a page of documentation.
    pub source: &'static str,
    /// The inputs that the check depends on. A finding that disappears is resolved only if all of them were read in full.
    pub needs: &'static [Input],
    /// The inputs that the check also uses if they are configured. Some of its findings do not depend on them.
    pub optional: &'static [Input],
    /// `true` if findings appear and disappear by themselves, such as those of the pods of a CronJob or of endpoints during a rollout.
    pub transient: bool,
    pub(super) run: &'static [CheckFn],
}

impl Check {
    /// Returns whether the check reads this input, always or where it is configured.
    pub fn reads_input(&self, input: Input) -> bool {
        self.needs.contains(&input) || self.optional.contains(&input)
    }
}

/// An input of the checks that can be read in full, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// Service accounts, pods and namespaces.
    Cluster,
    /// Managed identities and their federated credentials.
    Credentials,
    /// Mutating webhook configurations, and the endpoints behind them.
    Webhooks,
    /// The cluster roles that grant identity bindings, and their bindings.
    Grants,
    /// Virtual nodes.
    Nodes,
    /// The issuer of the cluster's tokens.
    Issuer,
    /// The discovery document of the API server.
    Discovery,
}

impl Input {
    /// All inputs.
    pub const ALL: [Self; 7] =
        [Self::Cluster, Self::Credentials, Self::Webhooks, Self::Grants, Self::Nodes, Self::Issuer, Self::Discovery];
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Check {}

/// The function of a check, by what it is called for.
#[derive(Debug)]
pub(super) enum CheckFn {
    Account(fn(&AccountContext<'_>) -> Vec<DraftFinding>),
    /// Equal findings of pods with the same owner become one finding.
    Pod(fn(&PodContext<'_>) -> Vec<DraftFinding>),
    Identity(fn(&IdentityContext<'_>) -> Vec<DraftFinding>),
    Cluster(fn(&Index<'_>) -> Vec<DraftFinding>),
}

/// A check is serialized as its ID.
impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id)
    }
}
