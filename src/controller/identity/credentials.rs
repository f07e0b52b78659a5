//! Reads managed identities and their credentials in the background. Azure may be slow, so passes use the last result.

use std::{sync::Arc, time::Duration};

use kube::Client;
use spillway_core::config::Identity;
use spillway_identity::{managed_identity::ManagedIdentities, observation::ServiceAccount};
use tokio::{sync::watch, task::JoinSet, time};

use crate::{
    background::restart_on_panic,
    credentials::{ClientIds, Source, Sources, configured, custom_resources::CustomResources, merge},
    telemetry::Causes,
};

/// How often the sources are read. The source for Azure Resource Manager caches results for the configured time.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The least time between two reads of the sources, and between a change of custom resources and the next read.
const MIN_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The least time between two reads of custom resources.
const MIN_LIST_INTERVAL: Duration = Duration::from_secs(5);

/// The least time between two reads of custom resources, as a multiple of the last read: each read lists all objects.
const LIST_INTERVAL_FACTOR: u32 = 20;

/// How often Spillway looks for installed operators.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(300);

/// The identities in custom resources. `None` before the first discovery.
type CustomResourceState = Option<Option<ManagedIdentities>>;

/// The identities of the configured sources, and the client IDs of that read. `None` before the first read.
type SourceState = Option<(ClientIds, Option<ManagedIdentities>)>;

/// The identities that are known at one time.
pub(super) struct CredentialSnapshot {
    /// `None` if there are no sources.
    pub(super) identities: Option<ManagedIdentities>,
    /// `true` if all sources have been read.
    pub(super) is_complete: bool,
    /// The client IDs that the sources were read for; `None` if there are no configured sources.
    client_ids: Option<ClientIds>,
}

impl CredentialSnapshot {
    /// Returns whether the sources were read for the client ID of a service account.
    pub(super) fn covers(&self, account: &ServiceAccount) -> bool {
        let (Some(client_id), Some(client_ids)) = (account.client_id(), &self.client_ids) else { return true };
        client_ids.get(&client_id.to_ascii_lowercase()).is_some_and(|accounts| accounts.contains(&account.name))
    }
}

/// Reads all sources in the background until the reader is dropped.
pub(super) struct CredentialReader {
    client_ids: watch::Sender<Option<ClientIds>>,
    sources: watch::Receiver<SourceState>,
    custom_resources: watch::Receiver<CustomResourceState>,
    _tasks: JoinSet<()>,
}

impl CredentialReader {
    /// Starts to read the configured sources and the custom resources of the cluster.
    pub(super) fn start(client: &Client, identity: &Identity) -> Self {
        let (client_ids, needed) = watch::channel(None);
        let (publish_sources, sources) = watch::channel(None);
        let (publish_custom_resources, custom_resources) = watch::channel(None);
        let configured = Arc::new(configured(identity));
        let mut tasks = JoinSet::new();
        let needed_here = needed.clone();
        tasks.spawn(restart_on_panic(async move || {
            read_sources(&configured, needed.clone(), &publish_sources).await;
        }));
        let client = client.clone();
        tasks.spawn(restart_on_panic(async move || {
            read_custom_resources(&client, &needed_here, &publish_custom_resources).await;
        }));
        Self { client_ids, sources, custom_resources, _tasks: tasks }
    }

    /// Sets the client IDs to read.
    pub(super) fn set_client_ids(&self, client_ids: ClientIds) {
        publish(&self.client_ids, client_ids);
    }

    /// Returns the latest results.
    pub(super) fn snapshot(&self) -> CredentialSnapshot {
        let (sources, custom_resources) = (self.sources.borrow().clone(), self.custom_resources.borrow().clone());
        let is_complete = sources.is_some() && custom_resources.is_some();
        let (client_ids, sources) = match sources {
            None => (Some(ClientIds::new()), None),
            Some((_, None)) => (None, None),
            Some((client_ids, identities)) => (Some(client_ids), identities),
        };
        let results: Vec<_> = [sources, custom_resources.flatten()].into_iter().flatten().collect();
        CredentialSnapshot { identities: (!results.is_empty()).then(|| merge(results)), is_complete, client_ids }
    }

    /// Returns whether all sources have been read.
    pub(super) fn is_complete(&self) -> bool {
        self.sources.borrow().is_some() && self.custom_resources.borrow().is_some()
    }

    /// Waits for the next change. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // Both senders live as long as this reader.
        tokio::select! {
            _ = self.sources.changed() => {}
            _ = self.custom_resources.changed() => {}
        }
    }
}

fn publish<T: PartialEq>(sender: &watch::Sender<Option<T>>, value: T) {
    let value = Some(value);
    sender.send_if_modified(|old| {
        let is_new = *old != value;
        *old = value;
        is_new
    });
}

async fn read_sources(
    sources: &Sources,
    mut client_ids: watch::Receiver<Option<ClientIds>>,
    sender: &watch::Sender<SourceState>,
) {
    loop {
        // Without client IDs there is nothing to read yet.
        let Ok(needed) = client_ids.wait_for(Option::is_some).await.map(|now| now.clone().unwrap_or_default()) else {
            return;
        };
        let identities = sources.read(&needed).await;
        publish(sender, (needed, identities));
        time::sleep(MIN_POLL_INTERVAL).await;
        tokio::select! {
            changed = client_ids.changed() => if changed.is_err() { return },
            () = time::sleep(POLL_INTERVAL) => {}
        }
    }
}

async fn read_custom_resources(
    client: &Client,
    client_ids: &watch::Receiver<Option<ClientIds>>,
    sender: &watch::Sender<CustomResourceState>,
) {
    loop {
        let discovered = match CustomResources::discover(client).await {
            Ok(discovered) => discovered,
            Err(error) => {
                tracing::warn!(error = %Causes(&error), "cannot discover custom resources, trying again");
                time::sleep(POLL_INTERVAL).await;
                continue;
            }
        };
        let Some(resources) = discovered else {
            publish(sender, None);
            time::sleep(DISCOVERY_INTERVAL).await;
            continue;
        };
        let (mut changes, _watches) = resources.watch();
        let until = time::Instant::now() + DISCOVERY_INTERVAL;
        while time::Instant::now() < until {
            let needed = client_ids.borrow().clone().unwrap_or_default();
            let began = time::Instant::now();
            publish(sender, Some(resources.read(&needed).await));
            let earliest = time::Instant::now() + MIN_LIST_INTERVAL.max(began.elapsed() * LIST_INTERVAL_FACTOR);
            // One read covers all changes until then.
            let mut next = until;
            loop {
                tokio::select! {
                    () = time::sleep_until(next) => break,
                    Ok(()) = changes.changed() => next = next.min(earliest.max(time::Instant::now() + MIN_POLL_INTERVAL)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;
    use crate::credentials::client_ids;

    /// A source that records the client IDs of each read.
    struct RecordingSource(Arc<Mutex<Vec<ClientIds>>>);

    impl Source for RecordingSource {
        fn name(&self) -> &'static str {
            "recording"
        }

        fn read<'a>(&'a self, client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities> {
            self.0.lock().unwrap().push(client_ids.clone());
            async { ManagedIdentities::default() }.boxed()
        }
    }

    fn account(client_id: &str) -> ServiceAccount {
        let mut account = ServiceAccount::default();
        account.name.name = format!("of-{client_id}").to_lowercase();
        account.annotations.insert("azure.workload.identity/client-id".to_owned(), client_id.to_owned());
        account
    }

    fn ids(client_id: &str) -> ClientIds {
        client_ids([&account(client_id)].into_iter())
    }

    /// Returns a reader of these sources, without custom resources.
    fn reader(configured: Sources) -> CredentialReader {
        let (client_ids, needed) = watch::channel(None);
        let (publish_sources, sources) = watch::channel(None);
        let (_, custom_resources) = watch::channel(Some(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { read_sources(&configured, needed, &publish_sources).await });
        CredentialReader { client_ids, sources, custom_resources, _tasks: tasks }
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_covers_the_client_ids_it_was_read_for() {
        let reads = Arc::default();
        let mut reader = reader(Sources::new(vec![Box::new(RecordingSource(Arc::clone(&reads)))]));
        time::sleep(POLL_INTERVAL * 2).await;
        assert!(!reader.is_complete() && reads.lock().unwrap().is_empty(), "no client IDs are known");
        let snapshot = reader.snapshot();
        assert!(snapshot.identities.is_none() && !snapshot.covers(&account("one")));

        reader.set_client_ids(ids("one"));
        reader.sources.changed().await.unwrap();
        let snapshot = reader.snapshot();
        assert!(snapshot.is_complete && snapshot.identities.is_some());
        assert!(snapshot.covers(&account("ONE")) && !snapshot.covers(&account("two")));
        reader.set_client_ids(ids("two"));
        assert!(!reader.snapshot().covers(&account("two")), "not yet");
        reader.sources.changed().await.unwrap();
        assert!(reader.snapshot().covers(&account("two")));
        assert_eq!(*reads.lock().unwrap(), [ids("one"), ids("two")]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_sources_every_account_is_covered() {
        let mut reader = reader(Sources::default());
        reader.set_client_ids(ids("one"));
        reader.sources.changed().await.unwrap();
        let snapshot = reader.snapshot();
        assert!(snapshot.is_complete && snapshot.identities.is_none() && snapshot.covers(&account("anything")));
    }
}
