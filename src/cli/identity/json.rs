//! A report as JSON or YAML.

use serde_json::{Map, Value, json};

use super::{
    preflight::Preflight,
    report::{Account, Report},
};

pub(super) fn json(report: &Report<'_>, token: Option<&Preflight<'_>>) -> anyhow::Result<Vec<u8>> {
    Ok(format!("{:#}\n", value(report, token)?).into_bytes())
}

pub(super) fn yaml(report: &Report<'_>, token: Option<&Preflight<'_>>) -> anyhow::Result<Vec<u8>> {
    Ok(serde_saphyr::to_string(&value(report, token)?)?.into_bytes())
}

fn value(report: &Report<'_>, token: Option<&Preflight<'_>>) -> anyhow::Result<Value> {
    let mut findings = Vec::new();
    for finding in &report.findings {
        let mut value = serde_json::to_value(finding)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("title".to_owned(), json!(finding.check.title));
            object.insert("file".to_owned(), json!(report.file(finding)));
        }
        findings.push(value);
    }
    let counts: Map<_, _> =
        report.counts().into_iter().map(|(s, count)| (s.as_str().to_owned(), json!(count))).collect();
    let accounts: Vec<_> = report.accounts.iter().map(account).collect();
    let mut value = json!({"findings": findings, "serviceAccounts": accounts, "summary": counts});
    if let (Some(object), Some(token)) = (value.as_object_mut(), token) {
        object.insert("token".to_owned(), token.json());
    }
    Ok(value)
}

fn account(account: &Account<'_>) -> Value {
    json!({
        "namespace": account.name.namespace,
        "name": account.name.name,
        "clientId": account.client_id,
        "identity": account.identity,
        "workloads": account.workloads,
        "findings": account.ids,
        "worst": account.worst.map(crate::identity::Severity::as_str),
    })
}
