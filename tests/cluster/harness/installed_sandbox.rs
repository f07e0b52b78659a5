//! A sandbox in which Spillway is installed.

use super::{ControlPlane, Sandbox, install, sandbox};

/// The path of the webhook configuration.
pub(crate) const WEBHOOK_CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/aci-spillway";
/// The path of the Secret with the certificate authority.
pub(crate) const AUTHORITY_SECRET: &str = "/api/v1/namespaces/spillway-system/secrets/spillway-ca";
/// The path of the controller's lease.
pub(crate) const CONTROLLER_LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/spillway-system/leases/spillway-controller";

/// A sandbox with everything installed but the webhook configuration, and without objects that the controller creates.
pub(crate) struct InstalledSandbox(Sandbox);

impl InstalledSandbox {
    pub(crate) fn new() -> Self {
        let installed = Self(sandbox());
        install(installed.plane());
        installed.clear();
        installed
    }

    pub(crate) fn plane(&self) -> &'static ControlPlane {
        self.0.plane
    }

    fn clear(&self) {
        self.plane().delete(WEBHOOK_CONFIGURATION);
        self.delete_authority();
    }

    /// Deletes the certificate authority and the lease, as if no controller had run yet.
    pub(crate) fn delete_authority(&self) {
        self.plane().delete(AUTHORITY_SECRET);
        self.delete_lease();
    }

    /// Deletes the lease, as if the leader had released it, so that the next controller leads at once.
    pub(crate) fn delete_lease(&self) {
        self.plane().delete(CONTROLLER_LEASE);
    }
}

impl Drop for InstalledSandbox {
    fn drop(&mut self) {
        self.clear();
    }
}
