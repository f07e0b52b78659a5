//! Checks of the issuer of the cluster's tokens.

use std::net::IpAddr;

use super::{
    check::{Check, CheckFn, Input},
    difference,
    draft::{DraftFinding, Severity},
    index::Index,
    object::Object,
};

pub(super) const CHECKS: &[&Check] = &[&I1];

static I1: Check = Check {
    id: "I1",
    severity: Severity::Error,
    title: "Entra cannot use the issuer",
    reads: "the issuer of the cluster's tokens; id_token_signing_alg_values_supported of its discovery document",
    meaning: "Entra fetches keys from the issuer's public URL and accepts only RS256; no pod of the cluster can sign in",
    fix: "az aks update --resource-group RESOURCE_GROUP --name CLUSTER --enable-oidc-issuer",
    leads_to: &["AADSTS50166", "AADSTS90061", "AADSTS700211"],
    source: "Azure/azure-workload-identity#616; learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations",
    needs: &[Input::Issuer, Input::Discovery],
    optional: &[],
    transient: false,
    run: &[CheckFn::Cluster(unusable_issuer)],
};

fn unusable_issuer(index: &Index<'_>) -> Vec<DraftFinding> {
    let mut all = Vec::new();
    let Some(first) = index.issuer() else { return all };
    let object = || Object::global("Issuer", &first.url);
    if let Some(why) = url_problem(&first.url) {
        let message = format!("the issuer {} {why}", difference::visible(&first.url));
        all.push(DraftFinding::new(message).about(object()).fact("read from", first.source.clone()));
    }
    for issuer in &index.observation.issuers {
        let algorithms = issuer.algorithms.as_deref().unwrap_or_default();
        if !algorithms.is_empty() && !algorithms.iter().any(|algorithm| algorithm == "RS256") {
            let message = format!("the issuer signs with {}, but Entra accepts only RS256", algorithms.join(", "));
            all.push(DraftFinding::new(message).about(object()).fact("read from", issuer.source.clone()));
        }
        if issuer.url != first.url {
            let message = format!(
                "{} and {} name different issuers; the issuer in the tokens counts",
                first.source, issuer.source
            );
            let difference = difference::issuer(&first.url, &issuer.url);
            let found = DraftFinding::new(message).about(object()).difference(difference).severity(Severity::Warning);
            let fix = "restart the pods, because old tokens name the old issuer; then read the issuer again";
            all.push(found.fix(fix));
        }
    }
    all
}

/// Returns the reason why Entra cannot use an issuer's URL. `None` if Entra can use the URL.
fn url_problem(issuer: &str) -> Option<String> {
    const PRIVATE: &[&str] = &[".svc", ".local", ".internal", ".localhost", ".lan", ".corp", ".home.arpa"];
    if issuer.trim() != issuer || issuer.chars().any(char::is_control) {
        return Some("contains white space".to_owned());
    }
    let Some(rest) = issuer.strip_prefix("https://") else { return Some("does not begin with https://".to_owned()) };
    if issuer.contains(['?', '#']) {
        return Some("has a query or a fragment".to_owned());
    }
    let authority = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let bracketed = authority.strip_prefix('[').and_then(|host| host.split(']').next());
    let host = bracketed.unwrap_or_else(|| authority.split(':').next().unwrap_or_default());
    if let Ok(address) = host.parse::<IpAddr>() {
        return (!is_public(address)).then(|| "has a private address, which Entra cannot reach".to_owned());
    }
    if host.ends_with(".azmk8s.io") {
        return Some("is the URL of the API server, which does not publish its keys".to_owned());
    }
    let is_private = host.is_empty() || !host.contains('.') || PRIVATE.iter().any(|suffix| host.ends_with(suffix));
    is_private.then(|| "has an internal host, which Entra cannot reach".to_owned())
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => !(four.is_private() || four.is_loopback() || four.is_link_local() || four.is_unspecified()),
        IpAddr::V6(six) => {
            !(six.is_loopback() || six.is_unspecified() || six.is_unique_local() || six.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_that_entra_cannot_reach_is_reported() {
        for good in [
            "https://westeurope.oic.prod-aks.azure.com/t/c/",
            "https://oidc.prod-aks.azure.com/c/",
            "https://acme.blob.core.windows.net/oidc/",
            "https://issuer.example.com:8443",
            "https://20.1.2.3/",
        ] {
            assert_eq!(url_problem(good), None, "{good}");
        }
        for bad in [
            "https://kubernetes.default.svc.cluster.local",
            "https://kubernetes.default.svc",
            "https://shop-1.hcp.westeurope.azmk8s.io",
            "https://shop-1.hcp.westeurope.azmk8s.io:443",
            "https://kubernetes",
            "https://10.0.0.1:6443",
            "https://[::1]/",
            "http://issuer.example.com",
            "https://issuer.example.com/?a",
            "https://issuer.example.com/ ",
            "issuer.example.com",
            "https://",
            "",
        ] {
            assert!(url_problem(bad).is_some(), "{bad}");
        }
    }
}
