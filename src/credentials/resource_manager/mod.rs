//! What Azure Resource Manager says of managed identities and their federated credentials.
//!
//! It is asked with GET alone, and seldom: what it said is kept, and refreshed a little before it is as old as it may be. Of the
//! identities of a subscription, or of those named by resource id, only the credentials of those that are wanted are asked for. A pass
//! has a certain time; what it could not ask for is left to the next one and unread until then.

mod failure;
mod held;
mod model;
mod pace;
mod request;
#[cfg(test)]
mod tests;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, mem,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use k8s_openapi::jiff::Timestamp;
use reqwest::{Url, redirect, retry};
use tokio::{sync::Mutex, time::Instant};

pub use self::token::{Entra, Token, TokenError, Tokens};
use self::{
    failure::Failure,
    held::{Held, Keep},
    request::{Client, Limits},
    token::Kept,
};
use super::{Source, Wanted};
use crate::{
    azure::{Cloud, ResourceId, is_guid},
    config,
    identity::{
        AccountName,
        azure::{Azure, Credential, Extent, Identity, Unread},
    },
};

/// What stands where something was read from.
const NAME: &str = "Azure Resource Manager";

const READ_IDENTITIES: &str = "Microsoft.ManagedIdentity/userAssignedIdentities/read";
const READ_CREDENTIALS: &str = "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/read";

/// How long a pass of the controller may take: some hundred requests. Who waits at a terminal may wait longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked, where.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cloud.
    pub cloud: Cloud,
    /// Where it answers.
    pub endpoint: String,
    /// The version of the API of Microsoft.ManagedIdentity.
    pub api_version: String,
    /// Subscriptions whose identities are listed.
    pub subscriptions: BTreeSet<String>,
    /// Client id → resource id of an identity, which need not be listed then.
    pub identities: BTreeMap<String, ResourceId>,
    /// How long answers are kept.
    pub refresh: Duration,
    /// How long a pass may take.
    pub patience: Duration,
}

impl Settings {
    /// Those of a configuration, for the controller; nothing if it says that Azure is not asked.
    pub fn of(config: &config::Identity) -> Option<Self> {
        let own = &config.resource_manager;
        let is_asked = !own.subscriptions.is_empty() || !own.identities.is_empty();
        is_asked.then(|| Self {
            cloud: config.cloud.into(),
            endpoint: own.endpoint.clone(),
            api_version: own.api_version.clone(),
            subscriptions: own.subscriptions.clone(),
            identities: own.identities.clone(),
            refresh: own.refresh(),
            patience: PATIENCE,
        })
    }
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The address is none.
    #[error("\"{0}\" is no address of Azure Resource Manager, expected such as https://management.azure.com")]
    Endpoint(String),
    /// There can be no TLS.
    #[error("cannot set up TLS")]
    Tls(#[source] reqwest::Error),
}

/// How far a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Identities are looked for.
    Identities,
    /// Their credentials are.
    Credentials {
        /// Of so many identities they are known.
        known: usize,
        /// Of so many they are wanted.
        wanted: usize,
    },
}

type Watcher = Box<dyn Fn(Progress) + Send + Sync>;

/// The source.
pub struct ResourceManager {
    client: Client,
    subscriptions: BTreeSet<String>,
    /// By client id in small letters.
    named: BTreeMap<String, ResourceId>,
    keep: Keep,
    patience: Duration,
    known: Mutex<Known>,
    watcher: Option<Watcher>,
}

/// What it said.
#[derive(Default)]
struct Known {
    /// By subscription.
    lists: HashMap<String, Held<Vec<Listed>>>,
    /// Those named by resource id, by client id; nothing if it does not exist.
    named: HashMap<String, Held<Option<Listed>>>,
    /// By the identity's id.
    credentials: HashMap<String, Held<Vec<Credential>>>,
    wanted: HashMap<String, Want>,
    trouble: Trouble,
}

/// Who names something, and since when all of them do: an answer from before may be too old for the last who came.
struct Want {
    by: BTreeSet<AccountName>,
    since: Instant,
}

impl Known {
    fn want(&mut self, wanted: &Wanted) {
        let now = Instant::now();
        self.wanted.retain(|name, _| wanted.contains_key(name));
        for (name, by) in wanted {
            let want = self.wanted.entry(name.clone()).or_insert_with(|| Want { by: by.clone(), since: now });
            if want.by != *by {
                if !want.by.is_superset(by) {
                    want.since = now;
                }
                want.by.clone_from(by);
            }
        }
    }

    fn since(&self, name: &str) -> Option<Instant> {
        self.wanted.get(name).map(|want| want.since)
    }

    /// Since when a service account names it, be it by what is not its client id.
    fn wanted_since(&self, one: &Listed) -> Option<Instant> {
        let others = [&one.client_id, &one.id.name].into_iter().chain(&one.principal_id);
        let names = others.map(|name| name.to_ascii_lowercase()).chain([one.id.key()]);
        names.filter_map(|name| self.since(&name)).max()
    }

    /// Client ids that are wanted and none of these has, and since when.
    fn missing<'k>(&'k self, identities: &[Listed]) -> impl Iterator<Item = (&'k String, Instant)> {
        let seen: HashSet<_> = identities.iter().map(|one| one.client_id.to_ascii_lowercase()).collect();
        let is_missing = move |(name, _): &(&String, &Want)| is_guid(name) && !seen.contains(*name);
        self.wanted.iter().filter(is_missing).map(|(name, want)| (name, want.since))
    }

    /// All that are known, each once.
    fn identities(&self) -> Vec<Listed> {
        let listed = self.lists.values().filter_map(|held| held.answer.as_ref().ok()).flatten();
        let named = self.named.values().filter_map(|held| held.answer.as_ref().ok()).flatten();
        let mut once = HashSet::new();
        listed.chain(named).filter(|one| once.insert(one.id.key())).cloned().collect()
    }
}

/// What went wrong in a pass: told once, not for each of a thousand identities.
#[derive(Default)]
struct Trouble {
    first: Option<(String, Failure)>,
    more: usize,
}

impl Trouble {
    fn add(&mut self, scope: &str, failure: &Failure) {
        match self.first {
            Some(_) => self.more += 1,
            None => self.first = Some((scope.to_owned(), failure.clone())),
        }
    }

    fn tell(self) {
        if let Some((scope, failure)) = self.first {
            tracing::warn!(scope, %failure, more = self.more, "cannot read all that was asked of Azure Resource Manager");
        }
    }
}

/// An identity.
#[derive(Debug, Clone)]
struct Listed {
    id: ResourceId,
    client_id: String,
    principal_id: Option<String>,
    tenant_id: Option<String>,
}

impl Listed {
    /// Nothing of one that is only just being made.
    fn read(raw: model::Identity) -> Option<Self> {
        let properties = raw.properties?;
        Some(Self {
            id: ResourceId::parse(&raw.id)?,
            client_id: properties.client?,
            principal_id: properties.principal,
            tenant_id: properties.tenant,
        })
    }
}

impl ResourceManager {
    /// Asks with tokens of Entra.
    ///
    /// # Errors
    ///
    /// [`SettingsError`]
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("spillway/", env!("CARGO_PKG_VERSION")))
            // Whoever sends us elsewhere would get the token.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(SettingsError::Tls)?;
        let tokens = Box::new(Entra::new(settings.cloud, http.clone()));
        Self::with(settings, http, tokens, Limits::default())
    }

    fn with(
        settings: Settings,
        http: reqwest::Client,
        tokens: Box<dyn Tokens>,
        limits: Limits,
    ) -> Result<Self, SettingsError> {
        let Settings { cloud: _, endpoint, api_version, subscriptions, identities, refresh, patience } = settings;
        let is_right = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let Some(url) = Url::parse(&endpoint).ok().filter(is_right) else {
            return Err(SettingsError::Endpoint(endpoint));
        };
        Ok(Self {
            client: Client::new(http, url, api_version, Kept::new(tokens), limits),
            subscriptions,
            named: identities.into_iter().map(|(id, resource)| (id.to_ascii_lowercase(), resource)).collect(),
            keep: Keep::new(refresh),
            patience,
            known: Mutex::default(),
            watcher: None,
        })
    }

    /// Tells somebody how far it is.
    #[must_use]
    pub fn watched_by(self, watcher: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { watcher: Some(Box::new(watcher)), ..self }
    }

    async fn pass(&self, wanted: &Wanted) -> Azure {
        let mut known = self.known.lock().await;
        let deadline = Instant::now() + self.patience;
        known.want(wanted);
        if !wanted.is_empty() {
            self.tell(Progress::Identities);
            self.look_for_named(&mut known, deadline).await;
            self.list(&mut known, deadline).await;
        }
        let identities = known.identities();
        self.read_credentials(&mut known, &identities, deadline).await;
        mem::take(&mut known.trouble).tell();
        self.answer(&known, identities)
    }

    fn tell(&self, progress: Progress) {
        if let Some(watcher) = &self.watcher {
            watcher(progress);
        }
    }

    /// Reads those identities that are named by resource id and wanted.
    async fn look_for_named(&self, known: &mut Known, deadline: Instant) {
        let now = Instant::now();
        known.named.retain(|client_id, held| known.wanted.contains_key(client_id) || held.due > now);
        let is_due = |client_id: &String| {
            let since = known.since(client_id);
            since.is_some() && known.named.get(client_id).is_none_or(|held| held.is_due(now, since))
        };
        let due = self.named.iter().filter(|(client_id, _)| is_due(client_id));
        let due: Vec<_> = due.map(|(client_id, id)| (client_id.clone(), id.clone())).collect();
        let asked = due.into_iter().map(|(client_id, id)| async move {
            let answer = match self.client.one::<model::Identity>(&id.to_string(), deadline).await {
                Ok(raw) => Listed::read(raw).map(Some).ok_or(Failure::Unfinished),
                Err(failure) if failure.is_absence() => Ok(None),
                Err(failure) => Err(failure),
            };
            (client_id, answer)
        });
        let mut answers = stream::iter(asked).buffer_unordered(self.client.at_once());
        while let Some((client_id, answer)) = answers.next().await {
            hold(&mut known.named, &client_id, answer, &self.keep, &mut known.trouble);
        }
    }

    /// Lists the identities of the subscriptions whose lists are old, or all if there is somebody new to be looked for.
    async fn list(&self, known: &mut Known, deadline: Instant) {
        let now = Instant::now();
        let since = known.missing(&known.identities()).map(|(_, since)| since).max();
        let is_due = |held: &Held<_>| held.is_due(now, since);
        let due = self.subscriptions.iter().filter(|name| known.lists.get(*name).is_none_or(is_due));
        let due: Vec<_> = due.cloned().collect();
        let asked = due.into_iter().map(|subscription| async move {
            let path =
                format!("/subscriptions/{subscription}/providers/Microsoft.ManagedIdentity/userAssignedIdentities");
            (subscription, self.client.all(&path, deadline, Listed::read).await)
        });
        let mut answers = stream::iter(asked).buffer_unordered(self.client.at_once());
        while let Some((subscription, answer)) = answers.next().await {
            let answer = answer.map(|list| list.into_iter().flatten().collect());
            hold(&mut known.lists, &subscription, answer, &self.keep, &mut known.trouble);
        }
    }

    /// Reads the credentials of those of these that are wanted, first those that were never read. What is not wanted any more is kept
    /// for as long as anything: who comes back soon is not asked for again. No more can come together than may be asked in that time.
    async fn read_credentials(&self, known: &mut Known, identities: &[Listed], deadline: Instant) {
        let since = |one: &Listed| Some((one.id.key(), known.wanted_since(one)?));
        let wanted: HashMap<_, _> = identities.iter().filter_map(since).collect();
        let now = Instant::now();
        known.credentials.retain(|key, held| wanted.contains_key(key) || held.due > now);
        let of_others = known.credentials.keys().filter(|key| !wanted.contains_key(*key)).count();
        let all = wanted.len();
        let is_due = |key: &str, since| {
            known.credentials.get(key).is_none_or(|held| held.is_due(now, Some(since)) || held.is_outdated(since))
        };
        let asked = wanted.into_iter().filter(|(key, since)| is_due(key, *since));
        let mut asked: Vec<_> = asked.map(|(key, _)| (known.credentials.get(&key).map(|held| held.due), key)).collect();
        asked.sort();
        let asked = asked.into_iter().map(|(_, key)| async move {
            let path = format!("{key}/federatedIdentityCredentials");
            (key, self.client.all(&path, deadline, model::Credential::into_seen).await)
        });
        let mut answers = stream::iter(asked).buffer_unordered(self.client.at_once());
        let progress =
            |known: &Known| Progress::Credentials { known: known.credentials.len() - of_others, wanted: all };
        self.tell(progress(known));
        while let Some((key, answer)) = answers.next().await {
            let before = known.credentials.get(&key).and_then(|held| held.answer.as_ref().ok());
            let answer = answer.map(|new| match before {
                Some(before) => dated(new, before),
                None => new,
            });
            hold(&mut known.credentials, &key, answer, &self.keep, &mut known.trouble);
            self.tell(progress(known));
        }
    }

    fn answer(&self, known: &Known, identities: Vec<Listed>) -> Azure {
        let mut azure = Azure { unseen: self.unseen(known), ..Azure::default() };
        if azure.unseen.is_none() {
            (azure.absent, azure.unseen) = absent(known, &identities);
        }
        for (client_id, id) in &self.named {
            let Some(since) = known.since(client_id) else { continue };
            let failure = match known.named.get(client_id).map(|held| (&held.answer, held.read)) {
                Some((Ok(Some(one)), _)) if one.client_id.eq_ignore_ascii_case(client_id) => continue,
                Some((Ok(_), read)) if read >= since => {
                    azure.absent.insert(client_id.clone());
                    continue;
                }
                Some((Ok(_), _)) => &Failure::Older,
                Some((Err(failure), _)) => failure,
                None => &Failure::OutOfTime,
            };
            let unread = failure.unread(READ_IDENTITIES, id.to_string());
            azure.identities.push(seen(client_id.clone(), id.clone(), Err(unread)));
        }
        for one in identities {
            let is_wanted = known.wanted_since(&one).is_some();
            let credentials = match known.credentials.get(&one.id.key()).map(|held| &held.answer) {
                _ if !is_wanted => Err(unasked(&one.id)),
                Some(Ok(credentials)) => Ok(credentials.clone()),
                Some(Err(failure)) => Err(failure.unread(READ_CREDENTIALS, one.id.to_string())),
                None => Err(Failure::OutOfTime.unread(READ_CREDENTIALS, one.id.to_string())),
            };
            let Listed { id, client_id, principal_id, tenant_id } = one;
            azure.absent.remove(&client_id.to_ascii_lowercase());
            azure.identities.push(Identity { principal_id, tenant_id, ..seen(client_id, id, credentials) });
        }
        azure
    }

    /// Why there may be identities that are not seen.
    fn unseen(&self, known: &Known) -> Option<Unread> {
        if self.subscriptions.is_empty() {
            return Some(Unread {
                because: "no subscription is set whose identities are listed".to_owned(),
                action: String::new(),
                scope: "the identities that are set by their resource ids".to_owned(),
            });
        }
        self.subscriptions.iter().find_map(|subscription| {
            let failure = match known.lists.get(subscription).map(|held| &held.answer) {
                Some(Ok(_)) => return None,
                Some(Err(failure)) => failure,
                None => &Failure::OutOfTime,
            };
            Some(failure.unread(READ_IDENTITIES, format!("/subscriptions/{subscription}")))
        })
    }
}

/// Of the client ids that are in no list those that no identity has; and, of those that are wanted since the lists were read, that this
/// cannot be told.
fn absent(known: &Known, identities: &[Listed]) -> (BTreeSet<String>, Option<Unread>) {
    let oldest = known.lists.iter().min_by_key(|(_, held)| held.read);
    let Some((subscription, read)) = oldest.map(|(name, held)| (name, held.read)) else { return Default::default() };
    let (certain, older): (Vec<_>, Vec<_>) = known.missing(identities).partition(|(_, since)| *since <= read);
    if older.is_empty() {
        return Default::default();
    }
    let unread = Failure::Older.unread(READ_IDENTITIES, format!("/subscriptions/{subscription}"));
    (certain.into_iter().map(|(name, _)| name.clone()).collect(), Some(unread))
}

/// Holds an answer under its key; that there was no time to ask is none.
fn hold<T>(
    all: &mut HashMap<String, Held<T>>,
    key: &str,
    answer: Result<T, Failure>,
    keep: &Keep,
    trouble: &mut Trouble,
) {
    if let Err(failure) = &answer {
        trouble.add(key, failure);
        if *failure == Failure::OutOfTime {
            return;
        }
    }
    let newer = Held::new(answer, key, keep);
    match all.get_mut(key) {
        Some(held) => held.renew(newer),
        None => drop(all.insert(key.to_owned(), newer)),
    }
}

/// Credentials with the time since when they are so: what was not there before is new, though Azure does not say since when.
fn dated(new: Vec<Credential>, before: &[Credential]) -> Vec<Credential> {
    let now = Timestamp::now();
    let date = |mut credential: Credential| {
        let old = before.iter().find(|old| old.name == credential.name);
        let is_same = |old: &&Credential| {
            Credential { since: None, ..(*old).clone() } == Credential { since: None, ..credential.clone() }
        };
        let same = old.filter(is_same).map(|old| old.since);
        credential.since = credential.since.or(same.unwrap_or(Some(now)));
        credential
    };
    new.into_iter().map(date).collect()
}

fn unasked(id: &ResourceId) -> Unread {
    let because = "no service account names it".to_owned();
    Unread { because, action: String::new(), scope: id.to_string() }
}

fn seen(client_id: String, id: ResourceId, credentials: Result<Vec<Credential>, Unread>) -> Identity {
    Identity {
        client_id,
        principal_id: None,
        tenant_id: None,
        id: Some(id),
        credentials,
        extent: Extent::Whole,
        source: NAME.to_owned(),
    }
}

impl Source for ResourceManager {
    fn name(&self) -> &'static str {
        NAME
    }

    fn read<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Azure> {
        self.pass(wanted).boxed()
    }
}

impl fmt::Debug for ResourceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subscriptions, named, patience, .. } = self;
        f.debug_struct("ResourceManager")
            .field("subscriptions", subscriptions)
            .field("named", named)
            .field("patience", patience)
            .finish_non_exhaustive()
    }
}
