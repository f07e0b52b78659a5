//! Stores for the reduced objects of one kind.

use std::{collections::BTreeMap, fmt};

use kube::Resource;

/// Namespace and name of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    /// `metadata.namespace`. Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    /// `metadata.name`
    pub(crate) name: String,
}

impl ObjectKey {
    /// Creates the key of a namespaced object.
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Creates the key of a cluster-scoped object.
    pub(crate) fn cluster_scoped(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// Returns the key of an object.
    pub(crate) fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A list that the API server has forbidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status, such as `403 Forbidden`.
    pub(crate) status: String,
    /// The plural name of the resource, as in RBAC rules.
    pub(crate) resource: &'static str,
    /// The namespace of the list. `None` for the whole cluster.
    pub(crate) namespace: Option<String>,
}

impl Refusal {
    /// Returns the refusal if the error is a 403.
    pub(crate) fn of(error: &kube::Error, resource: &'static str, namespace: Option<&str>) -> Option<Self> {
        let kube::Error::Api(status) = error else { return None };
        (status.code == 403).then(|| Self {
            status: format!("403 {}", status.reason),
            resource,
            namespace: namespace.map(str::to_owned),
        })
    }
}

/// The reduced objects of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) enum Store<V> {
    /// The initial list is not complete.
    #[default]
    Pending,
    /// The API server forbids the list.
    Refused(Refusal),
    /// All objects that the watch keeps.
    Listed(BTreeMap<ObjectKey, V>),
}

impl<V> Store<V> {
    /// Returns whether the initial list is complete. An object that is not in the store then does not exist.
    pub(crate) fn is_listed(&self) -> bool {
        matches!(self, Self::Listed(_))
    }

    pub(crate) fn is_pending(&self) -> bool {
        matches!(self, Self::Pending)
    }

    pub(crate) fn listed(&self) -> Option<&BTreeMap<ObjectKey, V>> {
        match self {
            Self::Listed(all) => Some(all),
            Self::Pending | Self::Refused(_) => None,
        }
    }

    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Pending | Self::Listed(_) => None,
        }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&V> {
        self.listed()?.get(key)
    }

    /// Returns the objects sorted by key. Empty until the initial list is complete.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &V)> {
        self.listed().into_iter().flatten()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Returns a part of each object. Objects without that part are left out.
    pub(crate) fn project<'s, U>(&'s self, part: impl Fn(&'s V) -> Option<&'s U>) -> Listing<'s, U> {
        match self {
            Self::Pending => Listing::Pending,
            Self::Refused(refusal) => Listing::Refused(refusal),
            Self::Listed(all) => {
                Listing::Listed(all.iter().filter_map(|(key, value)| Some((key, part(value)?))).collect())
            }
        }
    }

    /// Returns all objects.
    pub(crate) fn listing(&self) -> Listing<'_, V> {
        self.project(Some)
    }
}

impl<V: PartialEq> Store<V> {
    /// Replaces all objects. Returns whether the store changed.
    pub(crate) fn replace(&mut self, all: BTreeMap<ObjectKey, V>) -> bool {
        let is_changed = self.listed() != Some(&all);
        if is_changed {
            *self = Self::Listed(all);
        }
        is_changed
    }

    /// Removes all objects, and records the refusal. Returns whether the store changed.
    pub(crate) fn refuse(&mut self, refusal: Refusal) -> bool {
        let is_changed = self.refusal() != Some(&refusal);
        *self = Self::Refused(refusal);
        is_changed
    }

    /// Stores an object, or removes it if `value` is `None`. Returns whether the store changed.
    pub(crate) fn put(&mut self, key: ObjectKey, value: Option<V>) -> bool {
        let Self::Listed(all) = self else { return false };
        match value {
            Some(value) if all.get(&key) == Some(&value) => false,
            Some(value) => {
                all.insert(key, value);
                true
            }
            None => all.remove(&key).is_some(),
        }
    }
}

impl<V> FromIterator<(ObjectKey, V)> for Store<V> {
    fn from_iter<I: IntoIterator<Item = (ObjectKey, V)>>(all: I) -> Self {
        Self::Listed(all.into_iter().collect())
    }
}

/// A borrowed part of each object in a store.
#[derive(Debug)]
pub(crate) enum Listing<'s, V> {
    /// The initial list is not complete.
    Pending,
    /// The API server forbids the list.
    Refused(&'s Refusal),
    /// The parts, sorted by key.
    Listed(Vec<(&'s ObjectKey, &'s V)>),
}

impl<'s, V> Listing<'s, V> {
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self, Self::Pending)
    }

    pub(crate) fn listed(&self) -> Option<&[(&'s ObjectKey, &'s V)]> {
        match self {
            Self::Listed(all) => Some(all),
            Self::Pending | Self::Refused(_) => None,
        }
    }

    pub(crate) fn refusal(&self) -> Option<&'s Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Pending | Self::Listed(_) => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'s ObjectKey, &'s V)> + '_ {
        self.listed().into_iter().flatten().copied()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &'s V> + '_ {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&'s V> {
        let all = self.listed()?;
        let index = all.binary_search_by(|(other, _)| (*other).cmp(key)).ok()?;
        all.get(index).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::cluster_scoped(name)
    }

    #[test]
    fn an_update_without_a_difference_is_not_a_change() {
        let mut nodes: Store<_> = [(key("v1"), 1)].into_iter().collect();
        assert!(!nodes.put(key("v1"), Some(1)) && !nodes.put(key("other"), None));
        assert!(nodes.put(key("v1"), Some(2)) && nodes.put(key("v1"), None));
        assert!(!nodes.replace(BTreeMap::new()), "the same list again");
        assert!(!Store::Pending.put(key("v1"), Some(1)), "an object before the initial list is ignored");
    }

    #[test]
    fn a_store_is_pending_refused_or_listed() {
        let refusal = Refusal { status: "403 Forbidden".to_owned(), resource: "pods", namespace: None };
        let mut store = Store::<u8>::default();
        assert!(store.is_pending() && !store.is_listed() && store.listing().is_pending());
        assert!(store.refuse(refusal.clone()) && !store.refuse(refusal.clone()), "reported once");
        assert!(!store.is_pending() && store.listing().refusal() == Some(&refusal));
        assert!(store.replace(BTreeMap::new()) && store.is_listed() && store.refusal().is_none());
    }

    #[test]
    fn a_listing_finds_objects_by_key() {
        let store: Store<_> = ["a", "b", "c"].map(|name| (key(name), name.to_owned())).into_iter().collect();
        let listing = store.project(|name| (name != "b").then_some(name));
        assert_eq!(listing.get(&key("c")).map(String::as_str), Some("c"));
        assert_eq!(listing.get(&key("b")), None);
        assert_eq!(listing.values().count(), 2);
    }

    #[test]
    fn a_key_is_displayed_as_in_kubectl() {
        assert_eq!(ObjectKey::new("shop", "web").to_string(), "shop/web");
        assert_eq!(key("vm").to_string(), "vm");
    }
}
