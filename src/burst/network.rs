//! The opt-out from kube-proxy on a virtual node, and from the cluster DNS that cannot be reached without it.
//!
//! Cluster DNS is a ClusterIP, and ClusterIPs are what kube-proxy makes reachable. So one opt-out brings the other, unless the
//! pod's DNS policy or the configuration says that DNS does not depend on it.
//! (microsoft/virtualnodesOnAzureContainerInstances, Docs/PodCustomizations.md and Docs/Troubleshooting.md.)

use super::{Outcome, Part, Step, Why};
use crate::{
    config::{Dns, KubeProxy, Settings},
    pod::Pod,
};

/// `"false"` leaves kube-proxy out of the container group.
pub(super) const KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// `"false"` gives the container group Azure's DNS in place of the cluster's.
pub(super) const DNS: &str = "microsoft.containerinstance.virtualnode.injectdns";
pub(super) const OPT_OUT: &str = "false";

/// A confidential pod's policy was made for the pod as it is, and it never gets kube-proxy anyway.
const CONFIDENTIAL: &str = "microsoft.containerinstance.virtualnode.ccepolicy";
/// Such a pod is not run: its images are cached on the standby pool.
const IMAGE_CACHE: &str = "microsoft.containerinstance.virtualnode.imagecachepod";
/// Label of the companion pods of a VirtualDaemonSet.
const COMPANION: &str = "virtualdaemonset.kubernetes.io/virtualdaemonset";

pub(super) fn steps(pod: &Pod<'_>, settings: &Settings<'_>) -> [Step; 2] {
    let kube_proxy = kube_proxy(pod, settings);
    let dns = match kube_proxy {
        Outcome::Added => dns(pod, settings),
        left @ Outcome::Left(_) => left,
    };
    [Step { part: Part::KubeProxy, outcome: kube_proxy }, Step { part: Part::Dns, outcome: dns }]
}

fn kube_proxy(pod: &Pod<'_>, settings: &Settings<'_>) -> Outcome {
    if settings.kube_proxy.value == KubeProxy::Keep {
        Outcome::Left(Why::KubeProxyKept)
    } else if pod.annotation(KUBE_PROXY).is_some() || pod.annotation(DNS).is_some() {
        Outcome::Left(Why::NetworkSetOnPod)
    } else if is_not_ours(pod) {
        Outcome::Left(Why::NetworkNotOurs)
    } else {
        Outcome::Added
    }
}

fn dns(pod: &Pod<'_>, settings: &Settings<'_>) -> Outcome {
    if settings.dns.value == Dns::Keep {
        Outcome::Left(Why::DnsKept)
    } else if matches!(pod.spec.dns_policy.as_deref(), Some("None" | "Default")) {
        Outcome::Left(Why::DnsPolicy)
    } else {
        Outcome::Added
    }
}

fn is_not_ours(pod: &Pod<'_>) -> bool {
    pod.annotation(CONFIDENTIAL).is_some()
        || pod.annotation(IMAGE_CACHE) == Some("true")
        || pod.label(COMPANION).is_some()
}
