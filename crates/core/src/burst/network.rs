//! The opt-outs from kube-proxy and from cluster DNS on a virtual node.
//!
//! Cluster DNS is a ClusterIP, and pods reach ClusterIPs through kube-proxy. So the opt-out from kube-proxy includes
//! cluster DNS (decision 2). The exceptions are pods and configurations whose DNS does not need kube-proxy.
//! (microsoft/virtualnodesOnAzureContainerInstances, Docs/PodCustomizations.md and Docs/Troubleshooting.md.)

use super::{Added, Outcome, Part, Step, Why};
use crate::{
    config::{Dns, KubeProxy, Settings},
    pod::Pod,
};

/// `"false"` keeps kube-proxy out of the container group.
pub(super) const KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// `"false"` gives the container group Azure's DNS instead of cluster DNS.
pub(super) const DNS: &str = "microsoft.containerinstance.virtualnode.injectdns";
pub(super) const OPT_OUT: &str = "false";

/// Returns the steps for a pod that may overflow.
pub(super) fn steps(pod: &Pod<'_>, settings: &Settings<'_>, added: &Added) -> [Step; 2] {
    let kube_proxy = match unwanted(pod, settings, added) {
        Some(why) => withdrawn_or_left(pod, added, Part::KubeProxy, why),
        None => wanted(pod, added, Part::KubeProxy),
    };
    let dns = match (kube_proxy, unwanted_dns(pod, settings)) {
        (Outcome::Added | Outcome::Kept, None) => wanted(pod, added, Part::Dns),
        (Outcome::Added | Outcome::Kept, Some(why)) | (Outcome::Left(why), _) => {
            withdrawn_or_left(pod, added, Part::Dns, why)
        }
        (Outcome::Withdrawn, _) => withdrawn_or_left(pod, added, Part::Dns, Why::KubeProxyKept),
    };
    [Step { part: Part::KubeProxy, outcome: kube_proxy }, Step { part: Part::Dns, outcome: dns }]
}

/// Returns the steps for a pod that stays on VMs: Spillway adds nothing, and withdraws earlier additions.
pub(super) fn withdraw(pod: &Pod<'_>, added: &Added) -> [Step; 2] {
    [Part::KubeProxy, Part::Dns]
        .map(|part| Step { part, outcome: withdrawn_or_left(pod, added, part, Why::NotBursting) })
}

fn unwanted(pod: &Pod<'_>, settings: &Settings<'_>, added: &Added) -> Option<Why> {
    // If a user set either annotation, Spillway changes neither.
    let is_from_user = |part| pod.annotation(key(part)).is_some() && !is_added(pod, added, part);
    if settings.kube_proxy.value == KubeProxy::Keep {
        Some(Why::KubeProxyKept)
    } else if is_from_user(Part::KubeProxy) || is_from_user(Part::Dns) {
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
    if is_added(pod, added, part) { Outcome::Kept } else { Outcome::Added }
}

fn withdrawn_or_left(pod: &Pod<'_>, added: &Added, part: Part, why: Why) -> Outcome {
    if is_added(pod, added, part) { Outcome::Withdrawn } else { Outcome::Left(why) }
}

fn is_added(pod: &Pod<'_>, added: &Added, part: Part) -> bool {
    added.has(part) && pod.annotation(key(part)) == Some(OPT_OUT)
}

/// Returns the annotation of a part.
pub(super) const fn key(part: Part) -> &'static str {
    match part {
        Part::Dns => DNS,
        _ => KUBE_PROXY,
    }
}
