//! Explains differences between texts that Entra compares byte for byte.
//!
//! Neither Entra nor Spillway normalises a text before the comparison. This module only explains an existing difference.

use serde::{Serialize, Serializer, ser::SerializeStruct};

pub use super::cause::Cause;

/// The prefix of the subjects of service accounts.
pub(super) const SUBJECT_PREFIX: &str = "system:serviceaccount:";

/// Two different texts that must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Difference {
    /// The name of the field, such as `issuer`.
    pub what: &'static str,
    /// The expected text.
    pub expected: String,
    /// The actual text.
    pub found: String,
    /// The causes of the difference.
    pub causes: Vec<Cause>,
}

impl Difference {
    fn new(what: &'static str, expected: &str, found: &str, mut causes: Vec<Cause>) -> Self {
        if causes.is_empty() {
            causes.push(if is_typo(expected, found) { Cause::Typo } else { Cause::Other });
        }
        Self { what, expected: expected.to_owned(), found: found.to_owned(), causes }
    }

    /// Returns whether both texts mean the same thing in a different spelling.
    pub fn is_spelling(&self) -> bool {
        self.causes.iter().all(|cause| cause.is_spelling())
    }

    /// Returns the causes in one line.
    pub fn why(&self) -> String {
        self.causes.iter().map(|cause| cause.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// Returns both texts with all characters visible, and the column of the first difference, from 0.
    pub fn shown(&self) -> (String, String, usize) {
        let (expected, found) = (visible(&self.expected), visible(&self.found));
        let column = expected.bytes().zip(found.bytes()).take_while(|(one, other)| one == other).count();
        (expected, found, column)
    }
}

impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Difference", 5)?;
        object.serialize_field("name", self.what)?;
        object.serialize_field("expected", &self.expected)?;
        object.serialize_field("found", &self.found)?;
        object.serialize_field("differsAt", &self.shown().2)?;
        object.serialize_field("why", &self.why())?;
        object.end()
    }
}

/// Returns the text with all characters visible. Spaces at both ends and characters other than printable ASCII become escapes. One byte is
/// one column.
pub fn visible(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let begin = text.len() - text.trim_start_matches(' ').len();
    let mut out = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let is_inside = at >= begin && at < begin + inner.len();
        match character {
            ' ' if is_inside => out.push(' '),
            ' ' => out.push_str("\\x20"),
            '!'..='~' => out.push(character),
            _ => out.extend(character.escape_default()),
        }
    }
    out
}

/// Returns whether at most two letters differ, and less than a third of them.
fn is_typo(expected: &str, found: &str) -> bool {
    let (longer, shorter) = (expected.len().max(found.len()), expected.len().min(found.len()));
    let allowed = (expected.chars().count() / 3).min(2);
    // A letter has at most four bytes, so the lengths rule out most comparisons.
    longer - shorter <= 4 * allowed && strsim::levenshtein(expected, found) <= allowed
}

/// Returns the text without stray characters, and the kinds of characters removed.
fn clean(text: &str) -> (String, Vec<Cause>) {
    let mut causes = Vec::new();
    let is_invisible = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}')
    };
    let spaceless: String = text.chars().filter(|c| !is_invisible(*c)).collect();
    if spaceless.len() != text.len() {
        causes.push(Cause::Whitespace);
    }
    let bare = spaceless.trim_matches(['"', '\'', '`', '<', '>', '\u{201c}', '\u{201d}']);
    if bare.len() != spaceless.len() {
        causes.push(Cause::Quotes);
    }
    if bare.is_empty() {
        return (String::new(), vec![Cause::Empty]);
    }
    if !bare.is_ascii() {
        causes.push(Cause::NotAscii);
    }
    (bare.to_owned(), causes)
}

/// The parts of an issuer URL that are compared separately.
struct Url<'u> {
    scheme: Option<&'u str>,
    host: &'u str,
    path: Vec<&'u str>,
    slashes: usize,
}

impl<'u> Url<'u> {
    fn of(text: &'u str) -> Self {
        let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        let trimmed = rest.trim_end_matches('/');
        let mut parts = trimmed.split('/');
        let host = parts.next().unwrap_or_default();
        Self {
            scheme,
            host,
            path: parts.filter(|part| !part.is_empty()).collect(),
            slashes: rest.len() - trimmed.len(),
        }
    }

    fn is_aks(&self) -> bool {
        is_aks_host(self.host)
    }
}

const AKS_HOST: &str = "oic.prod-aks.azure.com";
const AKS_OLD_HOST: &str = "oidc.prod-aks.azure.com";
const BINDING_HOST: &str = "ib.oic.prod-aks.azure.com";

fn is_aks_host(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let is_regional = host.strip_suffix(AKS_HOST).is_some_and(|region| region.is_empty() || region.ends_with('.'));
    is_regional || host == AKS_OLD_HOST
}

/// Returns whether this is the issuer of an AKS cluster.
pub(super) fn is_aks_issuer(issuer: &str) -> bool {
    let url = Url::of(issuer);
    url.is_aks() && !url.host.eq_ignore_ascii_case(BINDING_HOST)
}

/// Explains how a credential's issuer differs from the cluster's.
pub fn issuer(expected: &str, found: &str) -> Difference {
    let (bare, mut causes) = clean(found);
    if bare != expected && !bare.is_empty() {
        compare_urls(&Url::of(expected), &bare, &mut causes);
    }
    Difference::new("issuer", expected, found, causes)
}

fn compare_urls(expected: &Url<'_>, found: &str, causes: &mut Vec<Cause>) {
    const DOCUMENTS: &[&str] =
        &[".well-known/openid-configuration", ".well-known/openid-configuration/", "openid/v1/jwks"];
    let document = DOCUMENTS.iter().find_map(|document| found.strip_suffix(document));
    let found = Url::of(document.unwrap_or(found));
    let mut note = |cause| {
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    };
    if document.is_some() {
        note(Cause::Document);
    }
    match (expected.scheme, found.scheme) {
        (Some(_), None) => note(Cause::SchemeMissing),
        (one, other) if one == other => {}
        (Some(one), Some(other)) if one.eq_ignore_ascii_case(other) => note(Cause::Case),
        _ => note(Cause::Scheme),
    }
    if let Some(cause) = compare_hosts(expected, &found) {
        note(cause);
    }
    if let Some(cause) = compare_paths(expected, &found) {
        note(cause);
    }
    match expected.slashes.cmp(&found.slashes) {
        std::cmp::Ordering::Greater if document.is_none() => note(Cause::SlashMissing),
        std::cmp::Ordering::Less if document.is_none() => note(Cause::SlashExtra),
        _ => {}
    }
}

fn compare_hosts(expected: &Url<'_>, found: &Url<'_>) -> Option<Cause> {
    let is = |host: &str| found.host.eq_ignore_ascii_case(host);
    if expected.host == found.host {
        None
    } else if is(expected.host) {
        Some(Cause::Case)
    } else if is(BINDING_HOST) {
        Some(Cause::BindingIssuer)
    } else if expected.is_aks() && found.is_aks() {
        let is_old = |url: &Url<'_>| url.host.eq_ignore_ascii_case(AKS_OLD_HOST);
        Some(if is_old(expected) == is_old(found) { Cause::Region } else { Cause::OlderForm })
    } else if found.host.to_ascii_lowercase().contains(".azmk8s.io") {
        Some(Cause::ApiServer)
    } else if is_typo(expected.host, found.host) {
        Some(Cause::Typo)
    } else {
        Some(Cause::Host)
    }
}

fn compare_paths(expected: &Url<'_>, found: &Url<'_>) -> Option<Cause> {
    let (one, other) = (expected.path.join("/"), found.path.join("/"));
    if one == other {
        return None;
    }
    if one.eq_ignore_ascii_case(&other) {
        return Some(Cause::Case);
    }
    if !expected.is_aks() || !found.is_aks() {
        return Some(if is_typo(&one, &other) { Cause::Typo } else { Cause::Path });
    }
    match (expected.path.as_slice(), found.path.as_slice()) {
        ([tenant, cluster], [first, second]) if tenant == second && cluster == first => Some(Cause::SwappedPath),
        ([_, cluster], [.., other]) if cluster == other => Some(Cause::Tenant),
        ([.., cluster], [.., other]) if is_typo(cluster, other) => Some(Cause::Typo),
        _ => Some(Cause::Cluster),
    }
}

/// Explains how a credential's subject differs from that of the tokens of service account `name` in `namespace`.
pub fn subject(namespace: &str, name: &str, found: &str) -> Difference {
    let expected = format!("{SUBJECT_PREFIX}{namespace}:{name}");
    let (bare, mut causes) = clean(found);
    if bare != expected && !bare.is_empty() {
        compare_subjects(namespace, name, &bare, &mut causes);
    }
    Difference::new("subject", &expected, found, causes)
}

fn compare_subjects(namespace: &str, name: &str, found: &str, causes: &mut Vec<Cause>) {
    let parts: Vec<_> = found.split([':', '/']).collect();
    let is_prefix = |part: &&&str| {
        let part = part.to_ascii_lowercase();
        ["system", "serviceaccount", "serviceaccounts", "sa", "service-account"].contains(&part.as_str())
    };
    // A namespace may also be named "system". The prefix has at most two words, and two words must remain.
    let most = parts.len().saturating_sub(2).min(2);
    let count = parts.iter().take(most).take_while(is_prefix).count();
    let (prefix, rest) = parts.split_at(count);
    let given = prefix.join(":");
    if found.contains('/') {
        causes.push(Cause::Separator);
    }
    if given != "system:serviceaccount" {
        causes.push(if given.eq_ignore_ascii_case("system:serviceaccount") { Cause::Case } else { Cause::Prefix });
    }
    let cause = match rest {
        [one, two] => compare_names((namespace, name), (one, two)),
        _ if is_typo(&format!("{namespace}:{name}"), &rest.join(":")) => Some(Cause::Typo),
        _ => Some(Cause::Other),
    };
    if let Some(cause) = cause.filter(|cause| !causes.contains(cause)) {
        causes.push(cause);
    }
}

fn compare_names((namespace, name): (&str, &str), (one, two): (&str, &str)) -> Option<Cause> {
    let is = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let matches = |pattern: &str, text: &str| {
        pattern == text || pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix))
    };
    // worker-1 and worker-2 are two names, not a typo.
    let letters = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let near = |a: &str, b: &str| a == b || (is_typo(a, b) && letters(a) != letters(b));
    if (one, two) == (namespace, name) {
        None
    } else if is(one, namespace) && is(two, name) {
        Some(Cause::Case)
    } else if is(one, name) && is(two, namespace) {
        Some(Cause::Swapped)
    } else if matches(one, namespace) && matches(two, name) {
        Some(Cause::Wildcard)
    } else if near(namespace, one) && near(name, two) {
        Some(Cause::Typo)
    } else if two == name {
        Some(Cause::Namespace)
    } else if one == namespace {
        Some(Cause::Name)
    } else {
        Some(Cause::Other)
    }
}

/// Explains how the audiences of a credential or token differ from the one that the cloud expects.
pub fn audience(expected: &str, found: &[String]) -> Difference {
    let shown = found.join(", ");
    let [only] = found else {
        let cause = if found.is_empty() { Cause::Empty } else { Cause::Several };
        return Difference::new("audience", expected, &shown, vec![cause]);
    };
    let (bare, mut causes) = clean(only);
    if bare != expected && !bare.is_empty() {
        causes.extend(compare_audiences(expected, &bare));
    }
    Difference::new("audience", expected, &shown, causes)
}

fn compare_audiences(expected: &str, found: &str) -> Option<Cause> {
    let is_of_a_cloud =
        |audience: &str| spillway_core::azure::Cloud::ALL.iter().any(|cloud| cloud.audience() == audience);
    if found.eq_ignore_ascii_case(expected) {
        Some(Cause::Case)
    } else if is_of_a_cloud(found) {
        Some(Cause::Cloud)
    } else if found.eq_ignore_ascii_case(super::keys::BINDING_AUDIENCE) {
        Some(Cause::BindingAudience)
    } else if found.trim_end_matches('/') == expected {
        Some(Cause::SlashExtra)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
    const CLUSTER: &str = "1b2c3d4e-0000-4000-8000-000000000001";

    fn issuer_causes(found: &str) -> Vec<Cause> {
        issuer(&format!("https://westeurope.oic.prod-aks.azure.com/{TENANT}/{CLUSTER}/"), found).causes
    }

    #[test]
    fn wrong_issuers_are_explained() {
        let base = format!("https://westeurope.oic.prod-aks.azure.com/{TENANT}/{CLUSTER}");
        let host = "https://westeurope.oic.prod-aks.azure.com";
        for (found, expected) in [
            (base.clone(), &[Cause::SlashMissing][..]),
            (format!("{base}//"), &[Cause::SlashExtra]),
            (format!(" {base}/"), &[Cause::Whitespace]),
            (format!("{base}/\n"), &[Cause::Whitespace]),
            (format!("{base}\u{200b}/"), &[Cause::Whitespace]),
            (format!("\"{base}/\""), &[Cause::Quotes]),
            (format!("{base}/").to_uppercase(), &[Cause::Case]),
            (format!("{base}/").replace("https", "http"), &[Cause::Scheme]),
            (format!("{base}/").replace("https://", ""), &[Cause::SchemeMissing]),
            (format!("{base}/").replace("westeurope", "northeurope"), &[Cause::Region]),
            (format!("https://oidc.prod-aks.azure.com/{CLUSTER}/"), &[Cause::OlderForm, Cause::Tenant]),
            (format!("{host}/{CLUSTER}/{TENANT}/"), &[Cause::SwappedPath]),
            (format!("{host}/{CLUSTER}/{CLUSTER}/"), &[Cause::Tenant]),
            (format!("{host}/{TENANT}/99999999-1111-4000-8000-222222222222/"), &[Cause::Cluster]),
            (format!("{base}/.well-known/openid-configuration"), &[Cause::Document]),
            (format!("https://ib.oic.prod-aks.azure.com/{TENANT}/{CLUSTER}/"), &[Cause::BindingIssuer]),
            (
                "https://shop-1a2b.hcp.westeurope.azmk8s.io:443".to_owned(),
                &[Cause::ApiServer, Cause::Path, Cause::SlashMissing],
            ),
            (format!("{base}/").replace("westeurope", "westeur\u{43e}pe"), &[Cause::NotAscii, Cause::Region]),
            (format!("{}/", base.trim_end_matches('1').to_owned() + "2"), &[Cause::Typo]),
            (String::new(), &[Cause::Empty]),
            (" \t".to_owned(), &[Cause::Empty]),
        ] {
            assert_eq!(issuer_causes(&found), expected, "{found:?}");
        }
    }

    #[test]
    fn wrong_subjects_are_explained() {
        for (found, expected) in [
            ("system:serviceaccount:shop:web ", &[Cause::Whitespace][..]),
            ("system:serviceaccount:shop:Web", &[Cause::Case]),
            ("System:ServiceAccount:shop:web", &[Cause::Case]),
            ("system:serviceaccount:web:shop", &[Cause::Swapped]),
            ("system:serviceaccount:shop/web", &[Cause::Separator]),
            ("system/serviceaccount/shop/web", &[Cause::Separator]),
            ("serviceaccount:shop:web", &[Cause::Prefix]),
            ("shop:web", &[Cause::Prefix]),
            ("shop/web", &[Cause::Separator, Cause::Prefix]),
            ("system:serviceaccounts:shop:web", &[Cause::Prefix]),
            ("system:sa:shop:web", &[Cause::Prefix]),
            ("system:serviceaccount:shop:wep", &[Cause::Typo]),
            ("system:serviceaccount:shop:web2", &[Cause::Name]),
            ("system:serviceaccount:shop:*", &[Cause::Wildcard]),
            ("system:serviceaccount:store:web", &[Cause::Namespace]),
            ("system:serviceaccount:shop:worker", &[Cause::Name]),
            ("repo:acme/shop:ref:refs/heads/main", &[Cause::Separator, Cause::Prefix, Cause::Other]),
        ] {
            assert_eq!(subject("shop", "web", found).causes, expected, "{found}");
        }
    }

    #[test]
    fn wrong_audiences_are_explained() {
        const PUBLIC: &str = "api://AzureADTokenExchange";
        for (found, expected) in [
            (&["api://AzureADTokenExchangeUSGov"][..], Cause::Cloud),
            (&["api://AzureADTokenExchangeChina"], Cause::Cloud),
            (&["api://azureadtokenexchange"], Cause::Case),
            (&["api://AzureADTokenExchange "], Cause::Whitespace),
            (&["api://AzureADTokenExchange/"], Cause::SlashExtra),
            (&["api://AKSIdentityBinding"], Cause::BindingAudience),
            (&["api://AzureADTokenExchang"], Cause::Typo),
            (&["https://vault.azure.net"], Cause::Other),
            (&[], Cause::Empty),
            (&[PUBLIC, "other"], Cause::Several),
        ] {
            let found: Vec<_> = found.iter().map(|&audience| audience.to_owned()).collect();
            assert_eq!(audience(PUBLIC, &found).causes, [expected], "{found:?}");
        }
    }

    #[test]
    fn the_first_difference_is_marked() {
        for (expected, found, shown, column) in [
            ("https://a/", "https://a", "https://a", 9),
            ("abc", "abc ", "abc\\x20", 3),
            ("abc", " abc", "\\x20abc", 0),
            ("abc", "\u{430}bc", "\\u{430}bc", 0),
            ("a c", "a  c", "a  c", 2),
        ] {
            let difference = Difference::new("text", expected, found, Vec::new());
            assert_eq!(difference.shown(), (visible(expected), shown.to_owned(), column), "{found:?}");
        }
    }

    proptest! {
        #[test]
        fn any_two_texts_can_be_explained(expected in any::<String>(), found in any::<String>(), more in any::<String>()) {
            let all = [issuer(&expected, &found), subject(&expected, &more, &found), audience(&expected, &[found, more])];
            for difference in all {
                prop_assert!(!difference.causes.is_empty());
                let (expected, found, column) = difference.shown();
                prop_assert!(expected.is_ascii() && found.is_ascii());
                prop_assert!(column <= expected.len().min(found.len()));
                prop_assert!(expected.get(..column) == found.get(..column));
            }
        }

        #[test]
        fn different_texts_are_shown_differently(one in "[ -~\u{0}-\u{1f}\u{a0}-\u{120}]{0,12}", other in "[ -~\u{0}-\u{1f}\u{a0}-\u{120}]{0,12}") {
            prop_assume!(one != other && !one.contains('\\') && !other.contains('\\'));
            prop_assert_ne!(visible(&one), visible(&other));
        }

        #[test]
        fn issuers_made_of_parts_of_issuers_can_be_explained(
            parts in proptest::collection::vec(proptest::sample::select(vec!["https", "://", "/", ":", "a", "oic.prod-aks.azure.com", " ", "*", ".well-known/openid-configuration", "system", "serviceaccount", "\u{430}"]), 0..9)
        ) {
            let text = parts.concat();
            issuer("https://a.oic.prod-aks.azure.com/t/c/", &text);
            issuer(&text, "https://a.oic.prod-aks.azure.com/t/c/");
            subject("a", "system", &text);
        }
    }
}
