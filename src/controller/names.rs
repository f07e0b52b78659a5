//! Names of the controller in the API server.

/// The name of the controller in its Lease and its events, and its user agent and field manager.
pub const NAME: &str = "spillway-controller";

/// The field manager of all writes.
pub(super) const FIELD_MANAGER: &str = NAME;

/// The ConfigMap that holds the configuration file.
pub(super) const CONFIG_MAP: &str = "spillway-config";
