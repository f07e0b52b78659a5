//! The labels and annotations of Azure Workload Identity (Azure/azure-workload-identity `pkg/webhook/consts.go`).

use spillway_core::suggestions;
pub(super) use spillway_core::workload_identity::{CLIENT_ID, EXPIRATION, PROXY, PROXY_PORT, USE, USE_VALUE};

/// The prefix of all keys.
pub(super) const PREFIX: &str = "azure.workload.identity/";
/// Service account annotation.
pub(super) const TENANT_ID: &str = "azure.workload.identity/tenant-id";
/// Pod annotation, separated by `;`.
pub(super) const SKIP_CONTAINERS: &str = "azure.workload.identity/skip-containers";
/// Pod annotation: `true`, in any case, asks for an identity binding.
pub(super) const USE_BINDING: &str = "azure.workload.identity/use-identity-binding";

/// The audience of the tokens of identity bindings.
pub(super) const BINDING_AUDIENCE: &str = "api://AKSIdentityBinding";
/// The name of the credential that AKS manages for identity bindings.
pub(super) const BINDING_CREDENTIAL: &str = "aks-identity-binding";

/// The environment variables that are injected into containers.
pub(super) const ENV_CLIENT_ID: &str = "AZURE_CLIENT_ID";
pub(super) const ENV_TENANT_ID: &str = "AZURE_TENANT_ID";
pub(super) const ENV_TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
pub(super) const ENV_AUTHORITY: &str = "AZURE_AUTHORITY_HOST";
/// Injected for identity bindings only.
pub(super) const ENV_TOKEN_PROXY: &str = "AZURE_KUBERNETES_TOKEN_PROXY";

/// The environment variables of a pod that checks read.
pub(super) const ENV: &[&str] = &[ENV_CLIENT_ID, ENV_TENANT_ID, ENV_TOKEN_FILE, ENV_AUTHORITY, ENV_TOKEN_PROXY];

/// The objects that a key is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    PodLabel,
    PodAnnotation,
    AccountAnnotation,
}

impl Place {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::PodLabel => "label of the pod (template)",
            Self::PodAnnotation => "annotation of the pod (template)",
            Self::AccountAnnotation => "annotation of the service account",
        }
    }
}

/// All keys, with the objects that they are read from.
const KEYS: &[(&str, &[Place])] = &[
    (USE, &[Place::PodLabel]),
    (CLIENT_ID, &[Place::AccountAnnotation]),
    (TENANT_ID, &[Place::AccountAnnotation]),
    (EXPIRATION, &[Place::AccountAnnotation, Place::PodAnnotation]),
    (SKIP_CONTAINERS, &[Place::PodAnnotation]),
    (PROXY, &[Place::PodAnnotation]),
    (PROXY_PORT, &[Place::PodAnnotation]),
    (USE_BINDING, &[Place::PodAnnotation]),
];

/// Returns the objects that a key is read from. `None` if the key does not exist.
pub(super) fn places(key: &str) -> Option<&'static [Place]> {
    KEYS.iter().find(|(known, _)| *known == key).map(|(_, places)| *places)
}

/// Returns the most similar key for a mistyped one. `None` if no key is similar.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    let plain = key.to_lowercase().replace('_', "-");
    let own = plain.rsplit_once('/').map_or(plain.as_str(), |(_, name)| name);
    let names: Vec<_> = KEYS.iter().map(|(known, _)| known.strip_prefix(PREFIX).unwrap_or(known)).collect();
    let best = suggestions::nearest(own, &names)?;
    KEYS.iter().map(|(known, _)| *known).find(|known| known.strip_prefix(PREFIX) == Some(best.as_str()))
}

/// Returns whether a key has the prefix, possibly mistyped.
pub(super) fn is_workload_identity_key(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    let right = PREFIX.trim_end_matches('/');
    prefix == right || (prefix.contains("azure") && strsim::levenshtein(prefix, right) <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_corrected() {
        for (key, expected) in [
            ("azure.workload.identity/client_id", Some(CLIENT_ID)),
            ("azure.workload.identity/clientID", Some(CLIENT_ID)),
            ("azure.workload.identity/Use", Some(USE)),
            ("azure.workloadidentity/tenant-id", Some(TENANT_ID)),
            ("azure.workload.identity/skip-container", Some(SKIP_CONTAINERS)),
            ("azure.workload.identity/zzz", None),
        ] {
            assert_eq!(nearest(key), expected, "{key}");
            assert!(is_workload_identity_key(key), "{key}");
        }
        for key in ["app", "azure.com/use", "kubernetes.azure.com/managedby", "spillway.dev/burst"] {
            assert!(!is_workload_identity_key(key), "{key}");
        }
    }
}
