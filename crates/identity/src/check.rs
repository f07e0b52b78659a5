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
    /// The finding in a few words.
    pub title: &'static str,
    /// The fields that the check reads.
    pub reads: &'static str,
    /// The effect on the pods.
    pub meaning: &'static str,
    /// The fix for findings that have no command of their own.
    pub fix: &'static str,
    /// The Entra error codes that a finding can lead to.
    pub leads_to: &'static [&'static str],
    /// The source of these facts: `owner/repo path`, or a page of documentation.
    pub source: &'static str,
    /// The inputs that the check depends on. A finding that disappears is resolved only if all inputs were read in full.
    pub needs: &'static [Input],
    /// Optional inputs. Some findings of the check do not depend on them.
    pub optional: &'static [Input],
    /// `true` if findings appear and disappear without a change, as for pods of a CronJob or endpoints during a rollout.
    pub transient: bool,
    pub(super) run: &'static [CheckFn],
}

impl Check {
    /// Returns whether the check reads this input, required or optional.
    pub fn reads_input(&self, input: Input) -> bool {
        self.needs.contains(&input) || self.optional.contains(&input)
    }
}

/// An input of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// Service accounts, pods and namespaces.
    Cluster,
    /// Managed identities and their federated credentials.
    Credentials,
    /// Mutating webhook configurations, and the endpoints behind them.
    Webhooks,
    /// Cluster roles that grant identity bindings, and their bindings.
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

/// The function of a check, by the object that it checks.
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
