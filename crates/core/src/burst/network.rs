//! The opt-out from kube-proxy on a virtual node, and from the cluster DNS that cannot be reached without it.
//!
//! Cluster DNS is a ClusterIP, and ClusterIPs are what kube-proxy makes reachable. So one opt-out brings the other, unless the
//! pod's DNS policy or the configuration says that DNS does not depend on it.
//! (microsoft/virtualnodesOnAzureContainerInstances, Docs/PodCustomizations.md and Docs/Troubleshooting.md.)

use super::{Added, Outcome, Part, Step, Why};
use crate::{
    config::{Dns, KubeProxy, Settings},
    pod::Pod,
};

/// `"false"` leaves kube-proxy out of the container group.
pub(super) const KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// `"false"` gives the container group Azure's DNS in place of the cluster's.
pub(super) const DNS: &str = "microsoft.containerinstance.virtualnode.injectdns";
pub(super) const OPT_OUT: &str = "false";

/// For a pod that may overflow.
pub(super) fn steps(pod: &Pod<'_>, settings: &Settings<'_>, added: &Added) -> [Step; 2] {
    let kube_proxy = match unwanted(pod, settings, added) {
        Some(why) => unless_ours(pod, added, Part::KubeProxy, why),
        None => wanted(pod, added, Part::KubeProxy),
    };
    let dns = match (kube_proxy, unwanted_dns(pod, settings)) {
        (Outcome::Added | Outcome::Kept, None) => wanted(pod, added, Part::Dns),
        (Outcome::Added | Outcome::Kept, Some(why)) | (Outcome::Left(why), _) => {
            unless_ours(pod, added, Part::Dns, why)
        }
        (Outcome::Withdrawn, _) => unless_ours(pod, added, Part::Dns, Why::KubeProxyKept),
    };
    [Step { part: Part::KubeProxy, outcome: kube_proxy }, Step { part: Part::Dns, outcome: dns }]
}

/// For a pod that stays: nothing is added, and what was added earlier is withdrawn.
pub(super) fn none(pod: &Pod<'_>, added: &Added) -> [Step; 2] {
    [Part::KubeProxy, Part::Dns].map(|part| Step { part, outcome: unless_ours(pod, added, part, Why::NotBursting) })
}

fn unwanted(pod: &Pod<'_>, settings: &Settings<'_>, added: &Added) -> Option<Why> {
    // Either annotation that is not ours makes both its owner's.
    let is_theirs = |part| pod.annotation(key(part)).is_some() && !is_ours(pod, added, part);
    if settings.kube_proxy.value == KubeProxy::Keep {
        Some(Why::KubeProxyKept)
    } else if is_theirs(Part::KubeProxy) || is_theirs(Part::Dns) {
        Some(Why::NetworkSetOnPod)
    } else {
        None
    }
}

fn unwanted_dns(pod: &Pod<'_>, settings: &Settings<'_>) -> Option<Why> {
    if settings.dns.value == Dns::Keep {
        Some(Why::DnsKept)
    } else if matches!(pod.spec.dns_policy.as_deref(), Some("None" | "Default")) {
        Some(Why::DnsPolicy)
    } else {
        None
    }
}

fn wanted(pod: &Pod<'_>, added: &Added, part: Part) -> Outcome {
    if is_ours(pod, added, part) { Outcome::Kept } else { Outcome::Added }
}

fn unless_ours(pod: &Pod<'_>, added: &Added, part: Part, why: Why) -> Outcome {
    if is_ours(pod, added, part) { Outcome::Withdrawn } else { Outcome::Left(why) }
}

fn is_ours(pod: &Pod<'_>, added: &Added, part: Part) -> bool {
    added.has(part) && pod.annotation(key(part)) == Some(OPT_OUT)
}

/// The annotation that a part is about.
pub(super) const fn key(part: Part) -> &'static str {
    match part {
        Part::Dns => DNS,
        _ => KUBE_PROXY,
    }
}
