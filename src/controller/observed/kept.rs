//! Objects of one kind as a watch brings them, and what is kept of each.

use std::{collections::BTreeMap, fmt::Debug};

use futures_util::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::telemetry::Causes;

/// Namespace, empty for what has none, and name.
pub(in crate::controller) type Name = (String, String);

/// What is kept of the objects of a kind.
#[derive(Debug)]
pub(in crate::controller) struct Kept<V> {
    /// Whether a whole list has arrived.
    is_complete: bool,
    by_name: BTreeMap<Name, V>,
}

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self { is_complete: false, by_name: BTreeMap::new() }
    }
}

impl<V> Kept<V> {
    /// All of it has been put in. Whether that is news.
    pub(super) fn complete(&mut self) -> bool {
        !std::mem::replace(&mut self.is_complete, true)
    }

    /// Whether what is not here does not exist.
    pub(in crate::controller) fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub(in crate::controller) fn get(&self, name: &Name) -> Option<&V> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub(in crate::controller) fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.by_name.iter()
    }

    pub(in crate::controller) fn values(&self) -> impl Iterator<Item = &V> {
        self.by_name.values()
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.by_name.retain(|_, value| keep(value));
    }
}

impl<V: PartialEq> Kept<V> {
    /// Whether that is news.
    pub(super) fn put(&mut self, name: Name, value: Option<V>) -> bool {
        match value {
            None => self.by_name.remove(&name).is_some(),
            Some(value) if self.by_name.get(&name) == Some(&value) => false,
            Some(value) => {
                self.by_name.insert(name, value);
                true
            }
        }
    }

    fn fill(&mut self, by_name: BTreeMap<Name, V>) -> bool {
        let is_news = !self.is_complete || self.by_name != by_name;
        *self = Self { is_complete: true, by_name };
        is_news
    }
}

#[cfg(test)]
impl<V> FromIterator<(Name, V)> for Kept<V> {
    fn from_iter<I: IntoIterator<Item = (Name, V)>>(values: I) -> Self {
        Self { is_complete: true, by_name: values.into_iter().collect() }
    }
}

/// What can be listed and watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static> Watched for K {}

/// A kind of object, and what is kept of it.
pub(super) struct Kind<O, V> {
    /// For the log.
    pub(super) plural: &'static str,
    /// Nothing for what does not count.
    pub(super) read: fn(O) -> Option<V>,
}

/// The same, and where it comes from.
pub(super) struct Source<'k, O, V> {
    pub(super) kind: &'k Kind<O, V>,
    pub(super) api: Api<O>,
    pub(super) config: Config,
}

impl<O: Watched, V: PartialEq> Kind<O, V> {
    /// Keeps what this selects, for good.
    pub(super) async fn keep(&self, api: Api<O>, config: Config, publish: &watch::Sender<Kept<V>>) {
        let source = Source { kind: self, api, config };
        let publish = |change: &mut dyn FnMut(&mut Kept<V>) -> bool| {
            publish.send_if_modified(|kept| change(kept));
        };
        source.follow(publish).await;
    }
}

impl<O: Watched, V> Source<'_, O, V> {
    /// Follows the objects for good; `change` applies a change and publishes it if that is news.
    pub(super) async fn follow(self, change: impl Fn(&mut dyn FnMut(&mut Kept<V>) -> bool))
    where
        V: PartialEq,
    {
        let Kind { plural, read } = self.kind;
        let mut events = std::pin::pin!(watcher(self.api, self.config).default_backoff());
        // What a list has brought so far. It replaces the old content only when it is complete.
        let mut listed = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = BTreeMap::new(),
                Ok(Event::InitApply(object)) => {
                    let name = name(&object);
                    listed.extend(read(object).map(|value| (name, value)));
                }
                Ok(Event::InitDone) => change(&mut |kept| kept.fill(std::mem::take(&mut listed))),
                Ok(Event::Apply(object)) => {
                    let name = name(&object);
                    let mut value = read(object);
                    change(&mut |kept| kept.put(name.clone(), value.take()));
                }
                Ok(Event::Delete(object)) => change(&mut |kept| kept.put(name(&object), None)),
                Err(error) => interrupted(plural, &error),
            }
        }
    }
}

impl<O: Watched, K, V> Source<'_, O, (K, V)> {
    /// Hands on each object that comes or changes, and says when all that are there have come.
    pub(super) async fn each(self, put: impl Fn(K, V), done: impl Fn()) {
        let Kind { plural, read } = self.kind;
        let mut events = std::pin::pin!(watcher(self.api, self.config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    if let Some((key, value)) = read(object) {
                        put(key, value);
                    }
                }
                Ok(Event::InitDone) => done(),
                Ok(Event::Init | Event::Delete(_)) => {}
                Err(error) => interrupted(plural, &error),
            }
        }
    }
}

fn interrupted(kind: &'static str, error: &kube::runtime::watcher::Error) {
    tracing::warn!(kind, error = %Causes(error), "watch interrupted, trying again");
}

fn name(object: &impl Resource) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
