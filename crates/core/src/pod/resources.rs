//! Requests and limits of containers and pods, by resource.

use std::fmt;

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{MaybeQuantity, Pod, Present, Quantity, Text, from_map};

/// `resources` of a container or of a pod.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct ResourceRequirements<'a> {
    /// `requests`
    #[serde(borrow)]
    pub requests: Option<ResourceList<'a>>,
    /// `limits`
    #[serde(borrow)]
    pub limits: Option<ResourceList<'a>>,
    /// `claims`
    pub claims: Option<Vec<Present>>,
}

/// Amounts by resource. CPU and memory have their own fields, so that most containers need no list.
#[derive(Debug, Default, ToStatic)]
pub struct ResourceList<'a> {
    cpu: Option<MaybeQuantity>,
    memory: Option<MaybeQuantity>,
    others: Vec<(Text<'a>, MaybeQuantity)>,
}

impl<'a> ResourceList<'a> {
    /// Adds the next entry of the document.
    pub(super) fn push(&mut self, name: Text<'a>, amount: MaybeQuantity) {
        match &*name {
            "cpu" => self.cpu = Some(amount),
            "memory" => self.memory = Some(amount),
            _ => self.others.push((name, amount)),
        }
    }

    /// Returns the amount of a resource, or `None` if it is absent or invalid. If a name occurs twice, the last entry
    /// counts, as in Go.
    pub fn get(&self, resource: &str) -> Option<Quantity> {
        let amount = match resource {
            "cpu" => self.cpu.as_ref(),
            "memory" => self.memory.as_ref(),
            other => self.others.iter().rev().find(|(name, _)| &**name == other).map(|(_, amount)| amount),
        };
        amount?.0.ok()
    }

    /// Returns whether the list has no entry, not even with zero.
    pub fn is_empty(&self) -> bool {
        self.cpu.is_none() && self.memory.is_none() && self.others.is_empty()
    }

    /// Returns the resources other than CPU and memory whose amount is not zero. An invalid amount counts as not zero.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        let nonzero = self.others.iter().filter(|(_, amount)| amount.0 != Ok(Quantity::ZERO));
        nonzero.map(|(name, _)| &**name)
    }
}

from_map!(ResourceRequirements<'a>);

impl ResourceRequirements<'_> {
    /// Returns the request. A limit without a request counts as the request, as the API server defaults it.
    pub fn request(&self, resource: &str) -> Option<Quantity> {
        let of = |list: &Option<ResourceList<'_>>| list.as_ref().and_then(|list| list.get(resource));
        of(&self.requests).or_else(|| of(&self.limits))
    }

    /// Returns the limit.
    pub fn limit(&self, resource: &str) -> Option<Quantity> {
        self.limits.as_ref()?.get(resource)
    }

    /// Returns the requested or limited resources other than CPU and memory. A resource with both is named twice.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.requests.iter().chain(&self.limits).flat_map(ResourceList::others)
    }
}

impl Pod<'_> {
    /// Returns the amount that the scheduler reserves for the pod.
    ///
    /// The rules are those of `PodRequests` in k8s.io/component-helpers `resource`:
    ///
    /// - Init containers run one after another, beside the sidecars that started before them.
    /// - Then the containers run beside all sidecars. The larger of both amounts counts.
    /// - The overhead is added.
    /// - A request of the whole pod replaces the requests of its containers.
    /// - If the containers request nothing, the limit of the whole pod counts as its request, as the API server
    ///   defaults it.
    pub fn request(&self, resource: &str) -> Quantity {
        let overhead = self.spec.overhead.as_ref().and_then(|overhead| overhead.get(resource)).unwrap_or_default();
        let of_pod = self.spec.resources.as_ref();
        let request = of_pod.and_then(|resources| resources.requests.as_ref()?.get(resource));
        let limit = of_pod.and_then(|resources| resources.limit(resource));
        let of_containers = self.request_of_containers(resource);
        let requested = match (request, limit) {
            (Some(request), _) => request,
            (None, Some(limit)) if of_containers == Quantity::ZERO => limit,
            (None, _) => of_containers,
        };
        requested + overhead
    }

    fn request_of_containers(&self, resource: &str) -> Quantity {
        let request = |container: &super::Container<'_>| {
            container.resources.as_ref().and_then(|resources| resources.request(resource)).unwrap_or_default()
        };
        let (mut sidecars, mut starting) = (Quantity::ZERO, Quantity::ZERO);
        for container in self.init_containers() {
            let together = sidecars + request(container);
            starting = starting.max(together);
            if container.is_sidecar() {
                sidecars = together;
            }
        }
        let running = self.containers().iter().map(request).fold(sidecars, |sum, amount| sum + amount);
        running.max(starting)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ResourceList<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = ResourceList<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of quantities")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut list = ResourceList::default();
                while let Some((name, amount)) = map.next_entry()? {
                    list.push(name, amount);
                }
                Ok(list)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_requests_are_those_of_the_scheduler() {
        let amount = |cpu: &str| format!(r#"{{"resources":{{"requests":{{"cpu":"{cpu}"}}}}}}"#);
        let sidecar =
            |cpu: &str| format!(r#"{{"restartPolicy":"Always","resources":{{"requests":{{"cpu":"{cpu}"}}}}}}"#);
        let pod = |init: &[String], containers: &[String], rest: &str| {
            let (init, containers) = (init.join(","), containers.join(","));
            format!(r#"{{"metadata":{{}},"spec":{{"initContainers":[{init}],"containers":[{containers}]{rest}}}}}"#)
        };
        let limit_alone = r#"{"resources":{"limits":{"cpu":2,"memory":"nonsense"}}}"#.to_owned();
        for (json, expected) in [
            (pod(&[], &[amount("1"), amount("500m")], ""), "1500m"),
            (pod(&[], &[limit_alone, "{}".to_owned()], ""), "2"),
            (pod(&[amount("3"), amount("2")], &[amount("1")], ""), "3"),
            (pod(&[amount("3"), sidecar("1")], &[amount("1")], ""), "3"),
            (pod(&[sidecar("1"), amount("3")], &[amount("1")], ""), "4"),
            (pod(&[sidecar("1"), sidecar("1")], &[amount("1")], ""), "3"),
            (pod(&[], &[amount("1")], r#","overhead":{"cpu":"250m"}"#), "1250m"),
            (pod(&[], &[amount("1")], r#","resources":{"requests":{"cpu":5}},"overhead":null"#), "5"),
            (pod(&[], &[amount("1")], r#","resources":{"limits":{"cpu":5}}"#), "1"),
            (pod(&[], &["{}".to_owned()], r#","resources":{"limits":{"cpu":5}}"#), "5"),
        ] {
            let read: Pod<'_> = serde_json::from_str(&json).unwrap();
            assert_eq!(read.request("cpu"), Quantity::parse(expected).unwrap(), "{json}");
            assert_eq!(read.request("memory"), Quantity::ZERO, "{json}");
        }
    }
}
