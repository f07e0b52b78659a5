//! Names under which the API server knows the controller.

/// The name of the controller: of its Lease, in its events, and as user agent and field manager.
pub const NAME: &str = "spillway-controller";

/// The field manager of all writes.
pub(super) const FIELD_MANAGER: &str = NAME;

/// The ConfigMap that the configuration file comes from.
pub(super) const CONFIG_MAP: &str = "spillway-config";
