//! The error codes of refused sign-ins. They only explain a failure, because Entra may change codes and texts
//! (learn.microsoft.com/entra/identity-platform/reference-error-codes).

use super::{check::Check, registry};

/// An error code.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Such as `AADSTS700213`.
    pub code: &'static str,
    /// The meaning for a workload.
    pub meaning: &'static str,
}

const fn code(code: &'static str, meaning: &'static str) -> Code {
    Code { code, meaning }
}

const CODES: &[Code] = &[
    code(
        "AADSTS70021",
        "no federated credential matches the token's issuer, subject and audience; Entra also returns this code while a new credential propagates",
    ),
    code(
        "AADSTS700211",
        "no federated credential has the token's issuer: check the final slash, the cluster and the client id",
    ),
    code("AADSTS700212", "no federated credential has the token's audience"),
    code("AADSTS7002121", "no federated credential has the token's audience"),
    code(
        "AADSTS700213",
        "no federated credential has the token's namespace and service account; rarely, Entra refuses a correct credential, so retry",
    ),
    code("AADSTS7002138", "the subjects differ only in upper and lower case, which Entra compares"),
    code("AADSTS7002131", "the expression of a flexible credential does not match the token"),
    code(
        "AADSTS700016",
        "the tenant has no application with this client id: a typo, a deleted identity, another tenant, or another kind of id",
    ),
    code("AADSTS50166", "Entra cannot fetch the issuer's discovery document or keys"),
    code(
        "AADSTS90061",
        "Entra cannot fetch the issuer's discovery document or keys; on AKS \"az aks update\" reconciles them",
    ),
    code(
        "AADSTS7000272",
        "the issuer does not publish the key that signed the token, for example after a key rotation",
    ),
    code(
        "AADSTS700024",
        "the token is not valid at this time: the program does not reload the token file, or clocks differ",
    ),
    code("AADSTS90002", "the tenant does not exist"),
    code("AADSTS900439", "a client of Azure US Government uses the public endpoint"),
];

/// Returns all known codes.
pub fn codes() -> impl Iterator<Item = &'static Code> {
    CODES.iter()
}

/// Returns the code in a text: the code itself, its number, or a whole log message.
pub fn find(text: &str) -> Option<&'static Code> {
    number(text).and_then(|number| codes().find(|code| code.code.strip_prefix("AADSTS") == Some(number)))
}

/// Returns the number of the first code of a text.
fn number(text: &str) -> Option<&str> {
    // This changes only ASCII letters, so positions stay the same.
    let upper = text.to_ascii_uppercase();
    let begin = upper.find("AADSTS").map_or(0, |at| at + "AADSTS".len());
    let rest = text.get(begin..)?.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end).filter(|number| !number.is_empty())
}

/// Returns the checks whose findings can lead to this code.
pub fn causes(code: &Code) -> impl Iterator<Item = &'static Check> {
    registry::checks().filter(|check| check.leads_to.contains(&code.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_in_any_pasted_text() {
        for text in [
            "AADSTS700213",
            "aadsts700213",
            "700213",
            " AADSTS 700213 ",
            "{\"error_description\":\"AADSTS700213: No matching federated identity record found for presented assertion subject 'x'. Trace ID: 1\"}",
        ] {
            assert_eq!(find(text).map(|code| code.code), Some("AADSTS700213"), "{text}");
        }
        for text in ["", "AADSTS", "AADSTS1", "é AADSTS", "no code at all"] {
            assert_eq!(find(text), None, "{text}");
        }
    }
}
