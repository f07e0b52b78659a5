//! Enumerations of the configuration, with one spelling for file, annotation and output.

use crate::words::words;

words! {
    /// Mode of pods in opted-in namespaces.
    Mode {
        /// VMs first. The pod may run on a virtual node if no VM has room. For clusters without a node autoscaler.
        Prefer = "prefer",
        /// VMs first. Spillway adds all parts except the toleration. The controller adds it after the pod has waited
        /// for a VM for `late.after`.
        Late = "late",
        /// Like `late`, but without the wait: the controller adds the toleration as soon as no VM has room. Not finished: the
        /// controller does not add it yet, so the pod stays on VMs.
        Bridge = "bridge",
        /// The pod runs only on virtual nodes.
        Require = "require",
        /// The pod does not overflow. Spillway still adds the identity label.
        Off = "off",
    } default Prefer
}

words! {
    /// kube-proxy of pods on virtual nodes.
    KubeProxy {
        /// Keeps kube-proxy. ClusterIPs work.
        Keep = "keep",
        /// Opts out of kube-proxy, as the high-scale guide advises from about 2,000 pods. Pods cannot reach ClusterIPs.
        OptOut = "opt-out",
    } default Keep
}

words! {
    /// Cluster DNS of pods that opt out of kube-proxy. Cluster DNS itself is a ClusterIP.
    Dns {
        /// Opts out of cluster DNS too, unless the pod's DNS policy does not use it.
        Auto = "auto",
        /// Keeps cluster DNS, because it answers on an address that needs no kube-proxy.
        Keep = "keep",
    } default Auto
}

words! {
    /// Label `azure.workload.identity/use` on pods.
    IdentityLabel {
        /// Adds the label if the service account has a client ID.
        Auto = "auto",
        /// Does not add the label.
        Off = "off",
    } default Auto
}

words! {
    /// Generation of virtual nodes that a pod must be eligible for. Both have the same taint, but they can run
    /// different pods.
    GenerationSetting {
        /// The generations in the cluster that the pod could run on. Both if no virtual node is known.
        Auto = "auto",
        /// First generation: the AKS add-on and virtual-kubelet/azure-aci.
        V1 = "v1",
        /// Second generation: microsoft/virtualnodesOnAzureContainerInstances and the AKS extension.
        V2 = "v2",
    } default Auto
}

words! {
    /// Setting that namespaces or pods may override by annotation.
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
    /// Operator of a toleration.
    Operator {
        /// Any value of the key.
        Exists = "Exists",
        /// Exactly this value of the key.
        Equal = "Equal",
    } default Exists
}

words! {
    /// Effect of the tolerated taint. Never empty, because a toleration of all effects would also tolerate the
    /// last-resort taint, whose effect is `PreferNoSchedule`.
    Effect {
        /// Keeps away pods that do not tolerate the taint.
        NoSchedule = "NoSchedule",
        /// Also evicts pods that do not tolerate the taint.
        NoExecute = "NoExecute",
    } default NoSchedule
}

words! {
    /// Source of the webhook's serving certificate.
    CertificateSource {
        /// An authority of Spillway in a Secret. The controller rotates it, and also writes the `caBundle`.
        SelfManaged = "self-managed",
        /// Files of a Secret from cert-manager, which also writes the `caBundle`.
        CertManager = "cert-manager",
        /// Files from another source, which also writes the `caBundle`.
        Files = "files",
    } default SelfManaged
}

words! {
    /// Minimum severity of log messages.
    LogLevel {
        /// Failures.
        Error = "error",
        /// Problems that need attention.
        Warn = "warn",
        /// One line for each decision.
        Info = "info",
        /// Details behind the decisions.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    } default Info
}
