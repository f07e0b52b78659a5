//! `--token`: compares a token of the service account, as its pods get it, with the credentials of its identity.

use std::fmt::{self, Write};

use anyhow::{Context, anyhow};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use super::text;
use crate::{
    azure::Cloud,
    cli::{colors::Colors, kube_client::with_timeout},
    identity::{
        Observation,
        difference::visible,
        managed_identity::{Completeness, ManagedIdentity},
        preflight::{Claims, Comparison, compare},
    },
};

/// The shortest lifetime that the API server accepts (kubernetes.io/docs/reference/kubernetes-api, TokenRequestSpec).
const TOKEN_LIFETIME_SECONDS: i64 = 600;

/// Returns the claims of a token of this service account. Does not keep the token.
///
/// # Errors
///
/// When the API server issues no token. This requires permission to create `serviceaccounts/token`.
pub(super) async fn token(client: &Client, namespace: &str, name: &str, cloud: Cloud) -> anyhow::Result<Claims> {
    let audience = cloud.audience().to_owned();
    let spec = TokenRequestSpec {
        audiences: Some(vec![audience]),
        expiration_seconds: Some(TOKEN_LIFETIME_SECONDS),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = with_timeout(api.create_token_request(name, &PostParams::default(), &request)).await;
    let answer =
        answer.with_context(|| format!("--token: cannot get a token of service account {namespace}/{name}"))?;
    let token = answer.status.and_then(|status| status.token).unwrap_or_default();
    Claims::read(&token).map_err(|why| anyhow!("--token: the API server's token is malformed: {why}"))
}

/// The result of the comparison.
pub(super) struct Preflight<'p> {
    claims: &'p Claims,
    verdict: Verdict<'p>,
}

enum Verdict<'p> {
    /// The result is unknown, for this reason.
    Unknown(String),
    /// The credentials of this identity, closest first.
    Compared(&'p ManagedIdentity, Vec<Comparison<'p>>),
}

impl<'p> Preflight<'p> {
    pub(super) fn new(seen: &'p Observation, client_id: Option<&str>, claims: &'p Claims) -> Self {
        let identities = seen.managed_identities.iter().flat_map(|azure| &azure.identities);
        let own = client_id.and_then(|id| identities.into_iter().find(|one| one.client_id.eq_ignore_ascii_case(id)));
        let verdict = match (client_id, own.map(|identity| (identity, &identity.credentials))) {
            (None, _) => Verdict::Unknown("the service account has no client id".to_owned()),
            (Some(id), None) => Verdict::Unknown(format!("no visible identity has the client id {}", visible(id))),
            (_, Some((_, Err(unread)))) => Verdict::Unknown(unread.reason.clone()),
            (_, Some((identity, Ok(credentials)))) => Verdict::Compared(identity, compare(claims, credentials)),
        };
        Self { claims, verdict }
    }

    fn matched(&self) -> Option<&Comparison<'p>> {
        match &self.verdict {
            Verdict::Unknown(_) => None,
            Verdict::Compared(_, all) => all.iter().find(|compared| compared.differences.is_empty()),
        }
    }

    /// Returns whether Entra certainly rejects the token.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.verdict, Verdict::Compared(identity, _) if identity.completeness > Completeness::Partial)
            && self.matched().is_none()
    }

    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let (Colors { success, error, warning, bold, .. }, mut out) = (Colors::of_stdout(), String::new());
        let Claims { issuer, subject, audiences } = self.claims;
        writeln!(out, "\n{bold}A token of the service account, as its pods get it:{bold:#}")?;
        writeln!(out, "    issuer   {}", visible(issuer))?;
        writeln!(out, "    subject  {}", visible(subject))?;
        writeln!(out, "    audience {}", visible(&audiences.join(", ")))?;
        let (identity, all) = match &self.verdict {
            Verdict::Unknown(why) => {
                writeln!(out, "{warning}?{warning:#} unknown whether Entra accepts the token: {}", text::line(why))?;
                return Ok(out);
            }
            Verdict::Compared(identity, all) => (visible(identity.display_name()), all),
        };
        if let Some(matched) = self.matched() {
            let name = visible(&matched.credential.name);
            writeln!(
                out,
                "{success}✓{success:#} credential {name} of identity {identity} matches: Entra accepts the token"
            )?;
            return Ok(out);
        }
        if self.is_refused() {
            writeln!(out, "{error}✗{error:#} no credential of identity {identity} matches: Entra refuses the token")?;
        } else {
            let text = format!("no visible credential of identity {identity} matches; Azure may have more");
            writeln!(out, "{warning}?{warning:#} {text}")?;
        }
        for Comparison { credential, differences } in all.iter().take(MAX_SHOWN_CREDENTIALS) {
            let parts: Vec<_> = differences.iter().map(|one| format!("{}: {}", one.what, one.why())).collect();
            writeln!(out, "  {bold}{}{bold:#}: {}", visible(&credential.name), parts.join("; "))?;
            for difference in differences {
                text::difference(&mut out, difference, &Colors::of_stdout())?;
            }
        }
        match all.len().saturating_sub(MAX_SHOWN_CREDENTIALS) {
            0 => Ok(out),
            more => writeln!(out, "  and {more} more").map(|()| out),
        }
    }

    /// Returns the result as JSON.
    pub(super) fn json(&self) -> Value {
        let Claims { issuer, subject, audiences } = self.claims;
        let (why, compared) = match &self.verdict {
            Verdict::Unknown(why) => (Some(why), Vec::new()),
            Verdict::Compared(_, all) => {
                let one =
                    |one: &Comparison<'_>| json!({"credential": one.credential.name, "differences": one.differences});
                (None, all.iter().map(one).collect())
            }
        };
        json!({
            "issuer": issuer,
            "subject": subject,
            "audiences": audiences,
            "matches": self.matched().map(|compared| &compared.credential.name),
            "unknown": why,
            "credentials": compared,
        })
    }
}

/// Maximum number of differing credentials that are shown.
const MAX_SHOWN_CREDENTIALS: usize = 5;
