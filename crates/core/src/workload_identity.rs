//! Keys of Azure Workload Identity on pods and service accounts, and the values that its webhook accepts
//! (Azure/azure-workload-identity `pkg/webhook/consts.go`, `pkg/webhook/webhook.go`).

/// Pod label that selects pods for the webhook. Its value must be exactly [`USE_VALUE`].
pub const USE: &str = "azure.workload.identity/use";
/// Value of [`USE`] that requests a token.
pub const USE_VALUE: &str = "true";
/// Service account annotation with the client ID of the managed identity.
pub const CLIENT_ID: &str = "azure.workload.identity/client-id";
/// Annotation of service accounts and pods with the token lifetime in seconds. The pod's value takes precedence.
pub const EXPIRATION: &str = "azure.workload.identity/service-account-token-expiration";
/// Pod annotation that requests a proxy sidecar. It counts with any value.
pub const PROXY: &str = "azure.workload.identity/inject-proxy-sidecar";
/// Pod annotation with the port of the proxy sidecar.
pub const PROXY_PORT: &str = "azure.workload.identity/proxy-sidecar-port";

/// Information about the pod's service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAccount {
    /// The service account has the annotation `azure.workload.identity/client-id` with a value.
    WithClientId,
    /// The service account has a client ID, but also a token expiration that Azure Workload Identity refuses.
    WithBadExpiration,
    /// The service account has no client ID.
    WithoutClientId,
    /// Spillway could not read the service account.
    Unknown,
}

impl ServiceAccount {
    /// Reads the annotations of a service account.
    pub fn of_annotations<'k>(annotations: impl Iterator<Item = (&'k str, &'k str)>) -> Self {
        let (mut has_client_id, mut bad_expiration) = (false, false);
        for (key, value) in annotations {
            has_client_id |= key == CLIENT_ID && !value.trim().is_empty();
            bad_expiration |= key == EXPIRATION && !is_valid_expiration(value);
        }
        match (has_client_id, bad_expiration) {
            (false, _) => Self::WithoutClientId,
            (true, true) => Self::WithBadExpiration,
            (true, false) => Self::WithClientId,
        }
    }
}

/// Returns whether Azure Workload Identity accepts this token lifetime in seconds. An empty value counts as absent.
pub fn is_valid_expiration(seconds: &str) -> bool {
    seconds.is_empty() || seconds.parse::<i64>().is_ok_and(|seconds| (3600..=86400).contains(&seconds))
}
