//! Settings of one pod. The precedence is pod > namespace > profile > file, and each value has its origin.

use std::time::Duration;

use super::{
    Configuration, Dns, IdentityLabel, KubeProxy, Mode, Override, VirtualNodes,
    file::Overridable,
    values::{AllowedReason, Wait},
};
use crate::{
    eligibility::Reason,
    excerpt::{self, excerpt},
    keys::{ALLOW, IDENTITY_LABEL, KUBE_PROXY, LATE_AFTER, MODE, OVERRIDES, PREFIX, WRITTEN},
    suggestions::Suggester,
};

/// Origin of a value in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built-in default.
    Default,
    /// The file, outside of its profiles.
    File,
    /// The namespace's profile.
    Profile,
    /// An annotation of the namespace.
    Namespace,
    /// An annotation of the pod.
    Pod,
}

impl Origin {
    /// Returns the word for output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Profile => "profile",
            Self::Namespace => "namespace",
            Self::Pod => "pod",
        }
    }
}

/// Value in force with its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// The origin.
    pub origin: Origin,
}

/// Settings of one pod, or the reason why it has none.
#[derive(Debug, Clone)]
pub enum PodSettings<'a> {
    /// The namespace names a profile that exists.
    Known(Settings<'a>),
    /// The namespace names a profile that does not exist.
    UnknownProfile,
}

impl<'a> PodSettings<'a> {
    /// Returns the settings, or `None` if the profile does not exist.
    pub fn known(self) -> Option<Settings<'a>> {
        match self {
            Self::Known(settings) => Some(settings),
            Self::UnknownProfile => None,
        }
    }

    /// Returns the settings, or `None` if the profile does not exist.
    pub fn as_known(&self) -> Option<&Settings<'a>> {
        match self {
            Self::Known(settings) => Some(settings),
            Self::UnknownProfile => None,
        }
    }
}

/// Settings of one pod.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// Mode of the pod.
    pub mode: Sourced<Mode>,
    /// Time that the pod must be unschedulable, in mode `late`.
    pub late_after: Sourced<Duration>,
    /// Maximum wait during a scale-up for the pod. At least `late_after`.
    pub late_max: Duration,
    /// Maximum number of pods of its namespace on virtual nodes. At the cap, no more pods overflow late. With a cap, mode
    /// `prefer` is mode `late` without a delay.
    pub max_pods: Option<u32>,
    /// kube-proxy on a virtual node.
    pub kube_proxy: Sourced<KubeProxy>,
    /// Cluster DNS if the pod opts out of kube-proxy.
    pub dns: Sourced<Dns>,
    /// Identity label.
    pub identity_label: Sourced<IdentityLabel>,
    /// Reasons that do not keep the pod on VMs, from all levels.
    pub allowed: Vec<Sourced<&'static Reason>>,
    /// Settings of virtual nodes.
    pub virtual_nodes: &'a VirtualNodes,
    /// Invalid or forbidden overrides. The value of the next level applies instead.
    pub ignored: Vec<IgnoredOverride>,
}

/// Override annotation without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredOverride {
    /// Key of the annotation.
    pub key: String,
    /// Object with the annotation: namespace or pod.
    pub on: Origin,
    /// Reason why the annotation has no effect.
    pub message: String,
}

/// Overrides from the annotations of a namespace or a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    mode: Option<Mode>,
    late_after: Option<Duration>,
    kube_proxy: Option<KubeProxy>,
    identity_label: Option<IdentityLabel>,
    allow: Vec<&'static Reason>,
    /// Keys and messages of invalid annotations.
    rejected: Vec<(String, String)>,
}

/// Default of `late.max`. An AKS VM takes two to four minutes, and a second attempt takes the same time.
const LATE_MAX: Duration = Duration::from_secs(600);

/// Maximum size of the value of an override. Nothing valid comes near it: all reasons together take 1,200 bytes.
pub const MAX_OVERRIDE_BYTES: usize = 4096;
/// Maximum number of words in `spillway.dev/allow`. There are fewer reasons.
const MAX_WORDS: usize = 128;
/// Maximum number of ignored overrides that an object reports. Further ones are ignored without a message.
const MAX_REJECTED: usize = 16;

impl Overrides {
    /// Reads the annotations of a namespace or a pod. Skips keys outside of `spillway.dev/`.
    ///
    /// An annotation above 4,096 bytes or 128 words is ignored whole. Only the first mistake gets a suggestion. So the
    /// cost is linear in the size of the annotations, and the messages have a fixed maximum.
    pub fn read<'k>(annotations: impl Iterator<Item = (&'k str, &'k str)>) -> Self {
        let (mut overrides, mut suggester) = (Self::default(), Suggester::default());
        for (key, value) in annotations.filter(|(key, _)| key.starts_with(PREFIX)) {
            if WRITTEN.contains(&key) || overrides.rejected.len() == MAX_REJECTED {
                continue;
            }
            if let Err(mut message) = overrides.read_one(key, value, &mut suggester) {
                excerpt::shorten(&mut message, excerpt::DETAIL);
                overrides.rejected.push((excerpt(key, excerpt::MESSAGE).into_owned(), message));
            }
        }
        overrides
    }

    fn read_one(&mut self, key: &str, value: &str, suggester: &mut Suggester) -> Result<(), String> {
        if OVERRIDES.contains(&key) && value.len() > MAX_OVERRIDE_BYTES {
            return Err(format!("{} bytes, expected at most {MAX_OVERRIDE_BYTES}", value.len()));
        }
        match key {
            MODE => self.mode = Some(suggester.read_word(value, Mode::from_word, Mode::WORDS)?),
            LATE_AFTER => self.late_after = Some(Wait::try_from(value.to_owned())?.0),
            KUBE_PROXY => self.kube_proxy = Some(suggester.read_word(value, KubeProxy::from_word, KubeProxy::WORDS)?),
            IDENTITY_LABEL => {
                self.identity_label =
                    Some(suggester.read_word(value, IdentityLabel::from_word, IdentityLabel::WORDS)?);
            }
            ALLOW => return self.read_allow(value, suggester),
            _ => return Err(format!("unknown annotation{}", did_you_mean_key(key, suggester))),
        }
        Ok(())
    }

    /// Reads a list of reasons. Valid names count even if others are invalid.
    fn read_allow(&mut self, value: &str, suggester: &mut Suggester) -> Result<(), String> {
        let codes = || value.split(',').map(str::trim).filter(|code| !code.is_empty());
        let count = codes().count();
        if count > MAX_WORDS {
            return Err(format!("{count} reasons, expected at most {MAX_WORDS}"));
        }
        let mut wrong = Vec::new();
        for code in codes() {
            match AllowedReason::read(code, suggester) {
                Ok(AllowedReason(reason)) => self.allow.push(reason),
                Err(message) => wrong.push(message),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Returns the overrides that the policy permits. Reports forbidden and invalid ones.
    fn permitted(&self, on: Origin, permits: &[Override], ignored: &mut Vec<IgnoredOverride>) -> Self {
        let mut kept = self.clone();
        let mut forbid = |setting: Override, key: &str| {
            let who = if on == Origin::Pod { "pods" } else { "namespaces" };
            let message = format!("{who} may not override \"{}\" (overrides in the configuration)", setting.as_str());
            ignored.push(IgnoredOverride { key: key.to_owned(), on, message });
        };
        let mode = if self.mode == Some(Mode::Require) { Override::Require } else { Override::Mode };
        if self.mode.is_some() && !permits.contains(&mode) {
            kept.mode = None;
            forbid(mode, MODE);
        }
        if self.late_after.is_some() && !permits.contains(&Override::LateAfter) {
            kept.late_after = None;
            forbid(Override::LateAfter, LATE_AFTER);
        }
        if self.kube_proxy.is_some() && !permits.contains(&Override::KubeProxy) {
            kept.kube_proxy = None;
            forbid(Override::KubeProxy, KUBE_PROXY);
        }
        if self.identity_label.is_some() && !permits.contains(&Override::IdentityLabel) {
            kept.identity_label = None;
            forbid(Override::IdentityLabel, IDENTITY_LABEL);
        }
        if !self.allow.is_empty() && !permits.contains(&Override::Allow) {
            kept.allow.clear();
            forbid(Override::Allow, ALLOW);
        }
        let rejected = kept.rejected.drain(..);
        ignored.extend(rejected.map(|(key, message)| IgnoredOverride { key, on, message }));
        kept
    }
}

/// Returns a suggestion for a mistyped key. Compares without the common prefix, which would make all keys similar.
fn did_you_mean_key(key: &str, suggester: &mut Suggester) -> String {
    let name = |key: &'static str| key.strip_prefix(PREFIX).unwrap_or(key);
    let names: Vec<_> = OVERRIDES.iter().copied().map(name).collect();
    let hint = suggester.nearest(key.strip_prefix(PREFIX).unwrap_or(key), &names);
    hint.map(|hint| format!("; did you mean \"{PREFIX}{hint}\"?")).unwrap_or_default()
}

impl Configuration {
    /// Returns the settings for a pod of a namespace that names this profile.
    pub fn settings(&self, profile: &str, namespace: &Overrides, pod: &Overrides) -> PodSettings<'_> {
        let Some(profile) = self.profiles.get(profile) else { return PodSettings::UnknownProfile };
        let mut ignored = Vec::new();
        let namespace = namespace.permitted(Origin::Namespace, &self.overrides.namespace, &mut ignored);
        let pod = pod.permitted(Origin::Pod, &self.overrides.pod, &mut ignored);
        PodSettings::Known(Settings { ignored, ..self.merge(Some(profile), &namespace, &pod) })
    }

    /// Returns the settings without overrides by profile, namespace or pod.
    pub(super) fn file_settings(&self) -> Settings<'_> {
        let none = Overrides::default();
        self.merge(None, &none, &none)
    }

    fn merge(&self, profile: Option<&Overridable>, namespace: &Overrides, pod: &Overrides) -> Settings<'_> {
        let file = &self.defaults;
        let late_after = pick([
            (pod.late_after.map(Wait), Origin::Pod),
            (namespace.late_after.map(Wait), Origin::Namespace),
            (profile.and_then(Overridable::late_after), Origin::Profile),
            (file.late_after(), Origin::File),
        ]);
        let late_max = profile.and_then(Overridable::late_max).or_else(|| file.late_max());
        let late_max = late_max.map_or(LATE_MAX, |Wait(max)| max).max(late_after.value.0);
        let mode = pick([
            (pod.mode, Origin::Pod),
            (namespace.mode, Origin::Namespace),
            (profile.and_then(|p| p.mode), Origin::Profile),
            (file.mode, Origin::File),
        ]);
        let max_pods = profile.and_then(|profile| profile.max_pods).or(file.max_pods);
        // The webhook cannot count pods. In a namespace with a cap, only the controller gives the toleration.
        let is_counted = max_pods.is_some() && mode.value == Mode::Prefer;
        let late_after = Sourced { value: late_after.value.0, origin: late_after.origin };
        Settings {
            mode: if is_counted { Sourced { value: Mode::Late, ..mode } } else { mode },
            late_after: if is_counted { Sourced { value: Duration::ZERO, origin: mode.origin } } else { late_after },
            late_max: if is_counted { Duration::ZERO } else { late_max },
            max_pods,
            kube_proxy: pick([
                (pod.kube_proxy, Origin::Pod),
                (namespace.kube_proxy, Origin::Namespace),
                (profile.and_then(Overridable::kube_proxy), Origin::Profile),
                (file.kube_proxy(), Origin::File),
            ]),
            dns: pick([(profile.and_then(Overridable::dns), Origin::Profile), (file.dns(), Origin::File)]),
            identity_label: pick([
                (pod.identity_label, Origin::Pod),
                (namespace.identity_label, Origin::Namespace),
                (profile.and_then(Overridable::identity_label), Origin::Profile),
                (self.identity.label, Origin::File),
            ]),
            allowed: [
                (file.allowed(), Origin::File),
                (profile.map(Overridable::allowed).unwrap_or_default(), Origin::Profile),
            ]
            .into_iter()
            .flat_map(|(reasons, origin)| reasons.iter().map(move |reason| Sourced { value: reason.0, origin }))
            .chain(namespace.allow.iter().map(|reason| Sourced { value: *reason, origin: Origin::Namespace }))
            .chain(pod.allow.iter().map(|reason| Sourced { value: *reason, origin: Origin::Pod }))
            .collect(),
            virtual_nodes: &self.virtual_nodes,
            ignored: Vec::new(),
        }
    }
}

impl Settings<'_> {
    /// Returns whether this reason does not keep the pod on VMs.
    pub fn allows(&self, reason: &Reason) -> bool {
        self.allowed.iter().any(|allowed| allowed.value.code == reason.code)
    }
}

impl Overridable {
    fn late_after(&self) -> Option<Wait> {
        self.late.as_ref()?.after
    }

    fn late_max(&self) -> Option<Wait> {
        self.late.as_ref()?.max
    }

    fn kube_proxy(&self) -> Option<KubeProxy> {
        self.network.as_ref()?.kube_proxy
    }

    fn dns(&self) -> Option<Dns> {
        self.network.as_ref()?.dns
    }

    fn identity_label(&self) -> Option<IdentityLabel> {
        self.identity.as_ref()?.label
    }

    fn allowed(&self) -> &[AllowedReason] {
        self.eligibility.as_ref().and_then(|eligibility| eligibility.allow.as_deref()).unwrap_or_default()
    }
}

/// Returns the value of the first level that sets one, or the built-in default.
fn pick<T: Copy + Default, const N: usize>(levels: [(Option<T>, Origin); N]) -> Sourced<T> {
    let said = levels.into_iter().find_map(|(value, origin)| Some(Sourced { value: value?, origin }));
    said.unwrap_or(Sourced { value: T::default(), origin: Origin::Default })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn overrides(pairs: &[(&str, &str)]) -> Overrides {
        Overrides::read(pairs.iter().copied())
    }

    fn file(text: &str) -> Configuration {
        parse(&format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{text}\n")).unwrap()
    }

    /// Annotation, the same setting in the file, its default, and two values.
    type Setting = (&'static str, fn(&str) -> String, &'static str, [&'static str; 2]);

    /// Returns one setting in force. `says` has the values of pod, namespace, profile and file.
    fn setting_in_force(key: &str, field: fn(&str) -> String, says: [Option<&str>; 4]) -> (String, Origin) {
        let [pod, namespace, profile, defaults] = says;
        let annotations =
            |value: Option<&str>| value.map_or_else(Overrides::default, |value| overrides(&[(key, value)]));
        let fields = |value: Option<&str>| value.map(field).unwrap_or_default();
        let config = file(&format!("{}\nprofiles: {{p: {{{}}}}}", fields(defaults), fields(profile)));
        let settings = config.settings("p", &annotations(namespace), &annotations(pod)).known().unwrap();
        assert_eq!(settings.ignored, [], "{key}");
        match key {
            MODE => (settings.mode.value.as_str().to_owned(), settings.mode.origin),
            LATE_AFTER => (format!("{}s", settings.late_after.value.as_secs()), settings.late_after.origin),
            KUBE_PROXY => (settings.kube_proxy.value.as_str().to_owned(), settings.kube_proxy.origin),
            IDENTITY_LABEL => (settings.identity_label.value.as_str().to_owned(), settings.identity_label.origin),
            _ => unreachable!("{key} has no precedence"),
        }
    }

    #[test]
    fn precedence_is_pod_namespace_profile_file_default() {
        const LEVELS: [Origin; 5] = [Origin::Pod, Origin::Namespace, Origin::Profile, Origin::File, Origin::Default];
        let settings: [Setting; 4] = [
            (MODE, |value| format!("mode: {value}"), "prefer", ["late", "off"]),
            (LATE_AFTER, |value| format!("late: {{after: {value}}}"), "180s", ["90s", "300s"]),
            (KUBE_PROXY, |value| format!("network: {{kubeProxy: {value}}}"), "keep", ["opt-out", "keep"]),
            (IDENTITY_LABEL, |value| format!("identity: {{label: {value}}}"), "auto", ["off", "auto"]),
        ];
        for (key, field, default, values) in settings {
            let unset = setting_in_force(key, field, [None; 4]);
            assert_eq!(unset, (default.to_owned(), Origin::Default), "{key}");
            for stronger in 0..4 {
                for weaker in stronger + 1..5 {
                    // In both directions, because one value may be the default.
                    for [wins, loses] in [values, [values[1], values[0]]] {
                        let mut says = [None; 4];
                        says[stronger] = Some(wins);
                        if let Some(level) = says.get_mut(weaker) {
                            *level = Some(loses);
                        }
                        let expected = (wins.to_owned(), LEVELS[stronger]);
                        assert_eq!(setting_in_force(key, field, says), expected, "{key}: {stronger} against {weaker}");
                    }
                }
            }
        }
        assert_eq!(
            OVERRIDES,
            [MODE, LATE_AFTER, KUBE_PROXY, IDENTITY_LABEL, ALLOW],
            "each has a row above, except the last, whose values add up"
        );
    }

    #[test]
    fn a_listed_built_in_profile_changes_only_its_fields() {
        let none = Overrides::default();
        let on_profile = |value| Sourced { value, origin: Origin::Profile };
        let config = file("profiles: {high-scale: {identity: {label: off}, network: {dns: keep}}}");
        let settings = config.settings("high-scale", &none, &none).known().unwrap();
        assert_eq!(settings.kube_proxy, on_profile(KubeProxy::OptOut));
        assert_eq!((settings.identity_label.value, settings.dns.value), (IdentityLabel::Off, Dns::Keep));
        let config = file("profiles: {high-scale: {network: {kubeProxy: keep}}}");
        assert_eq!(
            config.settings("high-scale", &none, &none).known().unwrap().kube_proxy,
            on_profile(KubeProxy::Keep)
        );
    }

    #[test]
    fn late_max_is_never_below_late_after() {
        let none = Overrides::default();
        let max = |text: &str, pod: &Overrides| {
            let late = file(text);
            late.settings("autoscaled", &none, pod).known().map(|settings| settings.late_max.as_secs())
        };
        assert_eq!(max("", &none), Some(600));
        assert_eq!(max("late: {max: 5m}\nprofiles: {autoscaled: {late: {max: 8m}}}", &none), Some(480));
        assert_eq!(max("late: {max: 5m}", &overrides(&[(LATE_AFTER, "20m")])), Some(1200));
    }

    #[test]
    fn the_cap_of_a_namespace_comes_from_its_profile_or_the_file() {
        let none = Overrides::default();
        let config = file("maxPods: 50\nprofiles: {small: {maxPods: 5}, same: {}}");
        let cap = |profile: &str| config.settings(profile, &none, &none).known().and_then(|settings| settings.max_pods);
        assert_eq!((cap("small"), cap("same")), (Some(5), Some(50)));
        assert_eq!(file("").settings("enabled", &none, &none).known().and_then(|settings| settings.max_pods), None);
    }

    #[test]
    fn a_pod_cannot_pass_the_cap_of_its_namespace_by_its_mode() {
        let none = Overrides::default();
        let pod = overrides(&[(MODE, "prefer")]);
        let config =
            file("profiles: {capped: {mode: late, maxPods: 1}, capped-prefer: {maxPods: 1}, open: {mode: late}}");
        for (profile, on_pod, mode, after) in [
            ("capped", &none, Mode::Late, 180),
            ("capped", &pod, Mode::Late, 0),
            ("capped-prefer", &none, Mode::Late, 0),
            ("open", &pod, Mode::Prefer, 180),
        ] {
            let settings = config.settings(profile, &none, on_pod).known().unwrap();
            let (value, wait) = (settings.mode.value, settings.late_after.value.as_secs());
            assert_eq!((value, wait), (mode, after), "{profile}");
            assert!(settings.late_max >= settings.late_after.value);
        }
    }

    #[test]
    fn a_profile_that_does_not_exist_has_no_settings() {
        let config = Configuration::default();
        let none = Overrides::default();
        assert!(config.settings("enabled", &none, &none).known().is_some());
        for unknown in ["false", "Enabled", "enabeld", "", "disabled"] {
            assert!(config.settings(unknown, &none, &none).known().is_none(), "{unknown}");
        }
    }

    #[test]
    fn an_invalid_override_is_reported_and_falls_back() {
        let pod = overrides(&[
            ("spillway.dev/mode", "of"),
            ("spillway.dev/late-after", "soon"),
            ("spillway.dev/kube-proxi", "keep"),
            ("spillway.dev/late-afer", "5m"),
            ("spillway.dev/zzzz", "5m"),
            ("spillway.dev/decision", "prefer"),
            ("example.com/mode", "x"),
        ]);
        let namespace = overrides(&[
            ("spillway.dev/mode", "off"),
            ("spillway.dev/late-after", "90s"),
            ("spillway.dev/allow", "Nonsense, RuntimeClass"),
        ]);
        let config = Configuration::default();
        let settings = config.settings("enabled", &namespace, &pod).known().unwrap();
        assert_eq!(settings.mode, Sourced { value: Mode::Off, origin: Origin::Namespace });
        assert_eq!(settings.late_after, Sourced { value: Duration::from_secs(90), origin: Origin::Namespace });
        assert_eq!(settings.allowed.iter().map(|allowed| allowed.value.code).collect::<Vec<_>>(), ["RuntimeClass"]);
        let messages: Vec<_> =
            settings.ignored.iter().map(|i| format!("{} {}: {}", i.on.as_str(), i.key, i.message)).collect();
        assert_eq!(
            messages,
            [
                "namespace spillway.dev/allow: unknown reason \"Nonsense\"",
                "pod spillway.dev/mode: unknown value \"of\", expected \"prefer\", \"late\", \"bridge\", \"require\" or \"off\"; did you mean \"off\"?",
                "pod spillway.dev/late-after: invalid duration \"soon\", expected from 0s to 24h, such as 90s, 3m or 1h30m",
                "pod spillway.dev/kube-proxi: unknown annotation",
                "pod spillway.dev/late-afer: unknown annotation",
                "pod spillway.dev/zzzz: unknown annotation",
            ]
        );
    }

    #[test]
    fn a_mistyped_key_gets_the_nearest_one() {
        for (key, meant) in [("kube-proxi", "kube-proxy"), ("late-afer", "late-after")] {
            let pod = overrides(&[(&format!("spillway.dev/{key}"), "5m")]);
            let message = format!("unknown annotation; did you mean \"spillway.dev/{meant}\"?");
            assert_eq!(pod.rejected, [(format!("spillway.dev/{key}"), message)]);
        }
    }

    #[test]
    fn an_override_that_is_too_large_is_ignored_whole() {
        let (long, words) = (format!("HostPathVolume{}", ",x".repeat(2048)), "HostPathVolume,".repeat(129));
        for (value, message) in
            [(long, "4110 bytes, expected at most 4096"), (words, "129 reasons, expected at most 128")]
        {
            let read = overrides(&[(ALLOW, &value), (MODE, "off")]);
            assert_eq!((read.allow.len(), read.mode), (0, Some(Mode::Off)));
            assert_eq!(read.rejected, [(ALLOW.to_owned(), message.to_owned())]);
        }
    }

    #[test]
    fn reports_of_ignored_overrides_have_a_maximum_size() {
        let keys: Vec<_> = (0..1000).map(|i| format!("spillway.dev/{i}{}", "\u{1b}".repeat(1000))).collect();
        let unknown = keys.iter().map(|key| (key.as_str(), ""));
        let values = [MODE, LATE_AFTER, KUBE_PROXY, IDENTITY_LABEL, ALLOW].map(|key| (key, "\u{1b}".repeat(2000)));
        let values = values.iter().map(|(key, value)| (*key, value.as_str()));
        let read = Overrides::read(values.chain(unknown));
        assert_eq!(read.rejected.len(), MAX_REJECTED);
        let size: usize = read.rejected.iter().map(|(key, message)| key.len() + message.len()).sum();
        assert!(size < MAX_REJECTED * 6 * (excerpt::MESSAGE + excerpt::DETAIL), "{size} bytes");
        assert!(!read.rejected.iter().any(|(key, message)| key.contains('\u{1b}') || message.contains('\u{1b}')));
    }

    #[test]
    fn a_forbidden_override_is_ignored_and_reported() {
        let none = Overrides::default();
        let strict = file("overrides: {namespace: [mode], pod: []}");
        let default = Configuration::default();
        for (config, on_pod, key, value, forbidden) in [
            (&default, true, "spillway.dev/mode", "require", true),
            (&default, true, "spillway.dev/mode", "off", false),
            (&default, true, "spillway.dev/allow", "RuntimeClass", true),
            (&default, true, "spillway.dev/late-after", "5m", false),
            (&default, false, "spillway.dev/mode", "require", false),
            (&default, false, "spillway.dev/allow", "RuntimeClass", false),
            (&strict, true, "spillway.dev/mode", "off", true),
            (&strict, true, "spillway.dev/kube-proxy", "keep", true),
            (&strict, true, "spillway.dev/identity-label", "off", true),
            (&strict, false, "spillway.dev/mode", "off", false),
            (&strict, false, "spillway.dev/mode", "require", true),
            (&strict, false, "spillway.dev/late-after", "5m", true),
        ] {
            let set = overrides(&[(key, value)]);
            let (namespace, pod) = if on_pod { (&none, &set) } else { (&set, &none) };
            let with = config.settings("enabled", namespace, pod).known().unwrap();
            let without =
                Settings { ignored: with.ignored.clone(), ..config.settings("enabled", &none, &none).known().unwrap() };
            let same = format!("{with:?}") == format!("{without:?}");
            assert_eq!((with.ignored.len(), same), (usize::from(forbidden), forbidden), "{key}={value} {on_pod}");
        }
    }
}
