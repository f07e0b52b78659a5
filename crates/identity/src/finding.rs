//! Findings of the checks.

use serde::Serialize;

use super::{
    check::Check,
    draft::{Evidence, Severity},
    object::{AccountName, Object},
};

/// A break in the chain from pod to federated credential, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check that found it.
    #[serde(rename = "id")]
    pub check: &'static Check,
    /// Usually that of the check.
    pub severity: Severity,
    /// The object at fault; for pods, their owner.
    pub object: Object,
    /// The service account whose identity it concerns, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<AccountName>,
    /// What is wrong, in one line.
    pub message: String,
    /// The facts that support it.
    pub evidence: Vec<Evidence>,
    /// The remedy: commands to paste, or words where no command exists.
    pub fix: String,
}
