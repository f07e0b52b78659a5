//! Managed identities and their federated credentials from Azure Resource Manager.
//!
//! Spillway sends only GET requests, and few of them. It caches each result, and refreshes the result shortly before it
//! expires. Spillway lists the identities of a subscription, or reads identities that are configured by resource ID. It
//! reads only the credentials of identities that service accounts name. A pass has a deadline. Results that Spillway
//! could not read in time are unknown until the next pass.

mod cache;
mod entry;
mod failure;
mod model;
mod rate_limit;
mod request;
mod result;
#[cfg(test)]
mod tests;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use reqwest::{Url, redirect, retry};
use spillway_core::{
    azure::{Cloud, ResourceId},
    config,
};
use spillway_identity::managed_identity::ManagedIdentities;
use tokio::{sync::Mutex, time::Instant};

pub use self::token::{EntraTokens, Token, TokenError, TokenProvider};
use self::{
    cache::{Cache, ListedIdentity},
    entry::CacheEntry,
    failure::Failure,
    model::SOURCE_NAME,
    request::{Client, Limits},
    result::PassResult,
    token::TokenCache,
};
use super::source::{ClientIds, Source};

/// Maximum time of a pass of the controller. It is enough for about a hundred requests.
const PASS_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of the source.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Azure cloud.
    pub cloud: Cloud,
    /// The URL of Azure Resource Manager.
    pub endpoint: String,
    /// The API version of Microsoft.ManagedIdentity.
    pub api_version: String,
    /// The subscriptions whose identities are listed.
    pub subscriptions: BTreeSet<String>,
    /// The resource IDs of identities by client ID. Spillway reads them without a list.
    pub identities: BTreeMap<String, ResourceId>,
    /// The refresh interval of results.
    pub refresh: Duration,
    /// The maximum time of a pass.
    pub pass_timeout: Duration,
}

impl Settings {
    /// Returns the controller's settings from a configuration. Returns `None` if it has no subscriptions and no
    /// identities.
    pub fn of(config: &config::Identity) -> Option<Self> {
        let own = &config.resource_manager;
        let is_configured = !own.subscriptions.is_empty() || !own.identities.is_empty();
        is_configured.then(|| Self {
            cloud: config.cloud,
            endpoint: own.endpoint.clone(),
            api_version: own.api_version.clone(),
            subscriptions: own.subscriptions.clone(),
            identities: own.identities.clone(),
            refresh: own.refresh(),
            pass_timeout: PASS_TIMEOUT,
        })
    }
}

/// Error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The endpoint is not a URL.
    #[error("invalid endpoint of Azure Resource Manager \"{0}\", expected a URL such as https://management.azure.com")]
    Endpoint(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] reqwest::Error),
}

/// The progress of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The pass reads identities.
    Identities,
    /// The pass reads credentials.
    Credentials {
        /// Number of identities whose credentials are known.
        known: usize,
        /// Number of identities whose credentials are needed.
        wanted: usize,
    },
}

type ProgressCallback = Box<dyn Fn(Progress) + Send + Sync>;

/// The source that reads from Azure Resource Manager.
pub struct ResourceManager {
    client: Client,
    subscriptions: BTreeSet<String>,
    /// Resource IDs by client ID in lower case.
    configured: BTreeMap<String, ResourceId>,
    pass_timeout: Duration,
    cache: Mutex<Cache>,
    progress: Option<ProgressCallback>,
}

impl ResourceManager {
    /// Creates a source that authenticates with tokens of Entra.
    ///
    /// # Errors
    ///
    /// [`SettingsError`]
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("spillway/", env!("CARGO_PKG_VERSION")))
            // A redirect would send the token to its target.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(SettingsError::Tls)?;
        let tokens = Box::new(EntraTokens::new(settings.cloud, http.clone()));
        Self::with(settings, http, tokens, Limits::default())
    }

    fn with(
        settings: Settings,
        http: reqwest::Client,
        tokens: Box<dyn TokenProvider>,
        limits: Limits,
    ) -> Result<Self, SettingsError> {
        let Settings { cloud: _, endpoint, api_version, subscriptions, identities, refresh, pass_timeout } = settings;
        let is_valid = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let Some(url) = Url::parse(&endpoint).ok().filter(is_valid) else {
            return Err(SettingsError::Endpoint(endpoint));
        };
        Ok(Self {
            client: Client::new(http, url, api_version, TokenCache::new(tokens), limits),
            subscriptions,
            configured: identities.into_iter().map(|(id, resource)| (id.to_ascii_lowercase(), resource)).collect(),
            pass_timeout,
            cache: Mutex::new(Cache::new(refresh)),
            progress: None,
        })
    }

    /// Sets a callback for the progress of each pass.
    #[must_use]
    pub fn with_progress(self, callback: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { progress: Some(Box::new(callback)), ..self }
    }

    async fn pass(&self, client_ids: &ClientIds) -> ManagedIdentities {
        let mut cache = self.cache.lock().await;
        let deadline = Instant::now() + self.pass_timeout;
        cache.set_references(client_ids);
        if !client_ids.is_empty() {
            self.report(Progress::Identities);
            self.read_configured_identities(&mut cache, deadline).await;
            self.read_lists(&mut cache, deadline).await;
        }
        let identities = cache.identities();
        self.read_credentials(&mut cache, &identities, deadline).await;
        cache.log_failures();
        let result = PassResult { cache: &cache, subscriptions: &self.subscriptions, configured: &self.configured };
        result.managed_identities(identities)
    }

    fn report(&self, progress: Progress) {
        if let Some(callback) = &self.progress {
            callback(progress);
        }
    }

    /// Reads the identities that are configured by resource ID and that service accounts name.
    async fn read_configured_identities(&self, cache: &mut Cache, deadline: Instant) {
        let now = Instant::now();
        cache.remove_unused_identities(now);
        let due = self.configured.iter().filter(|(client_id, _)| cache.needs_identity(client_id, now));
        let due: Vec<_> = due.map(|(client_id, id)| (client_id.clone(), id.clone())).collect();
        let requests = due.into_iter().map(|(client_id, id)| async move {
            let result = match self.client.get::<model::Identity>(&id.to_string(), deadline).await {
                Ok(raw) => ListedIdentity::read(raw).map(Some).ok_or(Failure::BeingCreated),
                Err(failure) if failure.is_not_found() => Ok(None),
                Err(failure) => Err(failure),
            };
            (client_id, result)
        });
        let mut results = stream::iter(requests).buffer_unordered(self.client.max_concurrent());
        while let Some((client_id, result)) = results.next().await {
            cache.store_identity(&client_id, result);
        }
    }

    /// Lists the identities of the subscriptions whose lists are due. If a service account names a new client ID, lists
    /// those of all subscriptions.
    async fn read_lists(&self, cache: &mut Cache, deadline: Instant) {
        let now = Instant::now();
        let since = cache.missing(&cache.identities()).map(|(_, since)| since).max();
        let is_due = |entry: &CacheEntry<_>| entry.needs_refresh(now, since);
        let due = self.subscriptions.iter().filter(|name| cache.lists.get(*name).is_none_or(is_due));
        let due: Vec<_> = due.cloned().collect();
        let requests = due.into_iter().map(|subscription| async move {
            let path =
                format!("/subscriptions/{subscription}/providers/Microsoft.ManagedIdentity/userAssignedIdentities");
            (subscription, self.client.list(&path, deadline, ListedIdentity::read).await)
        });
        let mut results = stream::iter(requests).buffer_unordered(self.client.max_concurrent());
        while let Some((subscription, result)) = results.next().await {
            cache.store_list(&subscription, result.map(|list| list.into_iter().flatten().collect()));
        }
    }

    /// Reads the due credentials of the identities that service accounts name. Credentials that were never read come
    /// first.
    ///
    /// Credentials that service accounts no longer need stay in the cache until they expire. Service accounts may need
    /// them again. The number of requests in that time bounds their number.
    async fn read_credentials(&self, cache: &mut Cache, identities: &[ListedIdentity], deadline: Instant) {
        let since = |one: &ListedIdentity| Some((one.id.key(), cache.identity_named_since(one)?));
        let needed: HashMap<_, _> = identities.iter().filter_map(since).collect();
        let now = Instant::now();
        cache.credentials.retain(|key, entry| needed.contains_key(key) || entry.refresh_at > now);
        let unneeded = cache.credentials.keys().filter(|key| !needed.contains_key(*key)).count();
        let wanted = needed.len();
        let is_due = |key: &str, since| {
            let entry = cache.credentials.get(key);
            entry.is_none_or(|entry| entry.needs_refresh(now, Some(since)) || entry.predates(since))
        };
        let due = needed.into_iter().filter(|(key, since)| is_due(key, *since));
        let mut due: Vec<_> =
            due.map(|(key, _)| (cache.credentials.get(&key).map(|entry| entry.refresh_at), key)).collect();
        due.sort();
        let requests = due.into_iter().map(|(_, key)| async move {
            let path = format!("{key}/federatedIdentityCredentials");
            (key, self.client.list(&path, deadline, model::Credential::into_federated_credential).await)
        });
        let mut results = stream::iter(requests).buffer_unordered(self.client.max_concurrent());
        let progress = |cache: &Cache| Progress::Credentials { known: cache.credentials.len() - unneeded, wanted };
        self.report(progress(cache));
        while let Some((key, result)) = results.next().await {
            cache.store_credentials(&key, result);
            self.report(progress(cache));
        }
    }
}

impl Source for ResourceManager {
    fn name(&self) -> &'static str {
        SOURCE_NAME
    }

    fn read<'a>(&'a self, client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities> {
        self.pass(client_ids).boxed()
    }
}

impl fmt::Debug for ResourceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subscriptions, configured, pass_timeout, .. } = self;
        f.debug_struct("ResourceManager")
            .field("subscriptions", subscriptions)
            .field("configured", configured)
            .field("pass_timeout", pass_timeout)
            .finish_non_exhaustive()
    }
}
