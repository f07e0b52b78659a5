//! The words of the configuration: enumerations with one spelling for file, annotation and output.

use crate::words::words;

words! {
    /// What happens to a pod of a namespace that opted in.
    Mode {
        /// VMs first; the pod may go to a virtual node when no VM has room. For clusters without a node autoscaler.
        Prefer = "prefer",
        /// The pod gets everything but the toleration, which is added when it has waited for a VM for `late.after`.
        Late = "late",
        /// The pod gets everything but the toleration, which is added as soon as no VM has room, while VMs are on their way.
        Bridge = "bridge",
        /// Only to virtual nodes.
        Require = "require",
        /// Never to a virtual node; the identity label is still added.
        Off = "off",
    } default Prefer
}

words! {
    /// Whether a pod on a virtual node gets a kube-proxy of its own.
    KubeProxy {
        /// Leave it as it is; ClusterIPs work.
        Keep = "keep",
        /// Opt out, as the high-scale guide advises from about 2,000 pods on; ClusterIPs are out of reach.
        OptOut = "opt-out",
    } default Keep
}

words! {
    /// What happens to cluster DNS, itself a ClusterIP, when kube-proxy is opted out of.
    Dns {
        /// Opt out of cluster DNS too, unless the pod's own DNS policy does without it.
        Auto = "auto",
        /// Cluster DNS answers on an address that needs no kube-proxy: leave it as it is.
        Keep = "keep",
    } default Auto
}

words! {
    /// Whether a pod gets the label `azure.workload.identity/use`.
    IdentityLabel {
        /// When its service account carries a client ID.
        Auto = "auto",
        /// Never.
        Off = "off",
    } default Auto
}

words! {
    /// Which virtual nodes a pod must be fit for. They carry the same taint, but what they can run differs widely.
    GenerationSetting {
        /// Those that the cluster has and the pod could land on; both while none is known.
        Auto = "auto",
        /// The first: the AKS add-on and virtual-kubelet/azure-aci.
        V1 = "v1",
        /// The second: microsoft/virtualnodesOnAzureContainerInstances and the AKS extension.
        V2 = "v2",
    } default Auto
}

words! {
    /// A setting that namespaces or pods may override by annotation.
    Override {
        /// `spillway.dev/mode`, except the value `require`.
        Mode = "mode",
        /// `spillway.dev/mode: require`.
        Require = "require",
        /// `spillway.dev/late-after`.
        LateAfter = "late-after",
        /// `spillway.dev/kube-proxy`.
        KubeProxy = "kube-proxy",
        /// `spillway.dev/identity-label`.
        IdentityLabel = "identity-label",
        /// `spillway.dev/allow`.
        Allow = "allow",
    } default Mode
}

words! {
    /// How a toleration compares.
    Operator {
        /// Any value of the key.
        Exists = "Exists",
        /// Exactly this value of the key.
        Equal = "Equal",
    } default Exists
}

words! {
    /// The effect that is tolerated. Never empty: a toleration of every effect would also tolerate the PreferNoSchedule
    /// taint that keeps virtual nodes the last resort.
    Effect {
        /// Keeps pods away that do not tolerate it.
        NoSchedule = "NoSchedule",
        /// Evicts them as well.
        NoExecute = "NoExecute",
    } default NoSchedule
}

words! {
    /// Where the webhook's serving certificate comes from.
    CertificateSource {
        /// From an authority of our own, kept in a Secret and rotated by the controller, which also writes the `caBundle`.
        SelfManaged = "self-managed",
        /// From the files of a Secret that cert-manager keeps, which also writes the `caBundle`.
        CertManager = "cert-manager",
        /// From files that somebody else keeps, and the `caBundle` too.
        Files = "files",
    } default SelfManaged
}

words! {
    /// How much is logged.
    LogLevel {
        /// Only what failed.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn",
        /// A line for each decision.
        Info = "info",
        /// What goes on behind the decisions.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    } default Info
}
