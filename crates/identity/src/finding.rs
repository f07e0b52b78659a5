//! Findings of the checks.

use serde::Serialize;

use super::{
    check::Check,
    draft::{Evidence, Severity},
    object::{AccountName, Object},
};

/// A break in the chain from pod to federated credential, with its fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check that returned the finding.
    #[serde(rename = "id")]
    pub check: &'static Check,
    /// The severity of the check, or another one for this finding.
    pub severity: Severity,
    /// The object with the error. For pods, their owner.
    pub object: Object,
    /// The service account that the finding concerns, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<AccountName>,
    /// The error in one line.
    pub message: String,
    /// The facts that support the finding.
    pub evidence: Vec<Evidence>,
    /// Commands to paste, or instructions if no command exists.
    pub fix: String,
}
