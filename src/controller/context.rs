//! Dependencies of the reconcilers.

use futures_util::{Stream, stream};
use kube::Client;

use super::{
    changes::changes_of,
    events::{EventAggregator, EventRecorder},
};
use crate::{
    cluster::Inventory, config::CertificateSource, reload::configuration::ConfigReceiver, telemetry::ControllerMetrics,
};

/// Dependencies of the reconcilers.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) configuration: ConfigReceiver,
    pub(super) events: EventRecorder,
    pub(super) event_aggregator: EventAggregator,
    pub(super) metrics: ControllerMetrics,
}

impl Context {
    /// Returns whether Spillway manages its certificates.
    pub(super) fn is_self_managed(&self) -> bool {
        self.configuration.borrow().certificates.source == CertificateSource::SelfManaged
    }

    /// Returns an item for each change of the authority's Secret, the webhook configuration or the configuration file.
    pub(super) fn certificate_changes(&self, inventory: &Inventory) -> impl Stream<Item = ()> {
        let objects = [changes_of(inventory.secret_version.clone()), changes_of(inventory.webhook_version.clone())];
        stream::select(stream::select_all(objects), changes_of(self.configuration.clone()))
    }
}
