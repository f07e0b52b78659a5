//! Compares a token with the credentials of an identity, as Entra does at sign-in.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{
    credential_match::parse_subject,
    difference::{self, Difference},
    managed_identity::FederatedCredential,
};

/// The claims of a token that Entra reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `iss`
    pub issuer: String,
    /// `sub`
    pub subject: String,
    /// `aud`
    pub audiences: Vec<String>,
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    sub: String,
    aud: Audiences,
}

/// One audience or a list (RFC 7519, section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

/// Returns the claims of a JSON Web Token as bytes (RFC 7519, section 7.2). Does not verify the signature. `None` if the text is no token.
pub fn payload(token: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()
}

impl Claims {
    /// Reads a token.
    ///
    /// # Errors
    ///
    /// Returns the defect of the token. The error contains no part of the token.
    pub fn read(token: &str) -> Result<Self, &'static str> {
        let payload = payload(token).ok_or("expected a JSON Web Token")?;
        let RawClaims { iss: issuer, sub: subject, aud } =
            serde_json::from_slice(&payload).map_err(|_| "expected a JSON object with iss, sub and aud")?;
        let audiences = match aud {
            Audiences::One(one) => vec![one],
            Audiences::Several(several) => several,
        };
        Ok(Self { issuer, subject, audiences })
    }
}

/// A credential compared with a token.
#[derive(Debug, Clone)]
pub struct Comparison<'c> {
    /// The credential.
    pub credential: &'c FederatedCredential,
    /// The differences from the token. Empty if Entra accepts the token.
    pub differences: Vec<Difference>,
}

/// Compares a token with credentials, byte for byte. Returns the nearest credential first. Skips flexible credentials, which have no subject.
pub fn compare<'c>(claims: &Claims, credentials: &'c [FederatedCredential]) -> Vec<Comparison<'c>> {
    let plain = credentials.iter().filter(|credential| credential.expression.is_none());
    let mut all: Vec<_> = plain.filter_map(|credential| one(claims, credential)).collect();
    // A wrong subject counts more than any other difference.
    all.sort_by_key(|compared| {
        let of = |what: &str| compared.differences.iter().find(|one| one.what == what);
        let far = |what: &str| of(what).is_some_and(|difference| !difference.is_spelling());
        (of("subject").is_some(), far("subject"), far("issuer"), compared.differences.len())
    });
    all
}

fn one<'c>(claims: &Claims, credential: &'c FederatedCredential) -> Option<Comparison<'c>> {
    let subject = credential.subject.as_deref()?;
    let mut differences = Vec::new();
    if credential.issuer != claims.issuer {
        differences.push(difference::issuer(&claims.issuer, &credential.issuer));
    }
    if subject != claims.subject {
        // Only tokens of service accounts are compared.
        let (namespace, name) = parse_subject(&claims.subject)?;
        differences.push(difference::subject(namespace, name, subject));
    }
    let is_same = |audience: &String| credential.audiences.as_slice() == std::slice::from_ref(audience);
    if !claims.audiences.iter().any(is_same) {
        differences.push(difference::audience(&claims.audiences.join(", "), &credential.audiences));
    }
    Some(Comparison { credential, differences })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://westeurope.oic.prod-aks.azure.com/t/c/";
    const AUDIENCE: &str = "api://AzureADTokenExchange";

    fn credential(name: &str, issuer: &str, subject: &str, audience: &str) -> FederatedCredential {
        FederatedCredential {
            name: name.to_owned(),
            issuer: issuer.to_owned(),
            subject: Some(subject.to_owned()),
            audiences: vec![audience.to_owned()],
            expression: None,
            since: None,
            source: String::new(),
        }
    }

    fn token(payload: &str) -> String {
        format!("header.{}.signature", URL_SAFE_NO_PAD.encode(payload))
    }

    fn claims() -> Claims {
        let text = format!(
            r#"{{"iss": "{ISSUER}", "sub": "system:serviceaccount:shop:web", "aud": ["{AUDIENCE}"], "exp": 1}}"#
        );
        Claims::read(&token(&text)).unwrap()
    }

    #[test]
    fn a_token_matches_only_an_equal_issuer_subject_and_audience() {
        let subject = "system:serviceaccount:shop:web";
        let all = [
            credential("other", ISSUER, "system:serviceaccount:shop:db", AUDIENCE),
            credential("slash", ISSUER.trim_end_matches('/'), subject, AUDIENCE),
            credential("case", ISSUER, "system:serviceaccount:shop:Web", AUDIENCE),
            credential("cloud", ISSUER, subject, "api://AzureADTokenExchangeChina"),
            credential("right", ISSUER, subject, AUDIENCE),
            FederatedCredential {
                subject: None,
                expression: Some("x".to_owned()),
                ..credential("flexible", ISSUER, "", AUDIENCE)
            },
        ];
        let compared = compare(&claims(), &all);
        let shown: Vec<_> = compared
            .iter()
            .map(|one| (one.credential.name.as_str(), one.differences.iter().map(|d| d.what).collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            shown,
            [
                ("right", vec![]),
                ("slash", vec!["issuer"]),
                ("cloud", vec!["audience"]),
                ("case", vec!["subject"]),
                ("other", vec!["subject"]),
            ]
        );
        assert_eq!(compared[1].differences[0].causes, [difference::Cause::SlashMissing]);
    }

    #[test]
    fn a_token_without_claims_is_refused_and_not_printed() {
        let one = r#"{"iss": "i", "sub": "s", "aud": "a"}"#;
        assert_eq!(Claims::read(&token(one)).unwrap().audiences, ["a"]);
        let broken = ["", "{}", r#"{"iss": "secret", "sub": 5, "aud": "a"}"#].map(token);
        for text in broken.iter().map(String::as_str).chain(["", "secret", "a.secret!.b"]) {
            let error = Claims::read(text).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
