//! What applies to one pod: pod > namespace > profile > file, each value with its origin.

use super::{
    Configuration, Dns, IdentityLabel, KubeProxy, Mode, VirtualNodes, file,
    load::{is_later_mode, nearest, one_of, unsupported_mode},
};

/// Where a value in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The file's own level.
    File,
    /// The profile that the namespace names.
    Profile,
    /// An annotation of the namespace.
    Namespace,
    /// An annotation of the pod.
    Pod,
}

impl Origin {
    /// For output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "configuration file",
            Self::Profile => "profile",
            Self::Namespace => "namespace annotation",
            Self::Pod => "pod annotation",
        }
    }
}

/// A value in force and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

/// The settings that apply to one pod.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// What happens to the pod.
    pub mode: Sourced<Mode>,
    /// Whether it keeps kube-proxy on a virtual node.
    pub kube_proxy: Sourced<KubeProxy>,
    /// What then happens to cluster DNS.
    pub dns: Sourced<Dns>,
    /// Whether it gets the identity label.
    pub identity_label: Sourced<IdentityLabel>,
    /// Which nodes are virtual nodes.
    pub virtual_nodes: &'a VirtualNodes,
}

/// An override annotation that was not understood. The next level's value applies in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedOverride {
    /// The annotation's key.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// The overrides that stand in the annotations of a namespace or a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    mode: Option<Mode>,
    kube_proxy: Option<KubeProxy>,
    identity_label: Option<IdentityLabel>,
    /// What was not understood.
    pub rejected: Vec<RejectedOverride>,
}

const PREFIX: &str = "spillway.dev/";
const MODE: &str = "spillway.dev/mode";
const KUBE_PROXY: &str = "spillway.dev/kube-proxy";
const IDENTITY_LABEL: &str = "spillway.dev/identity-label";
/// What Spillway itself writes into annotations; no overrides, and no typos either.
const WRITTEN: &[&str] = &["spillway.dev/decision", "spillway.dev/added"];

impl Overrides {
    /// Reads the annotations of a namespace or a pod. Keys outside of `spillway.dev/` are skipped.
    pub fn read<'k>(annotations: impl Iterator<Item = (&'k str, &'k str)>) -> Self {
        let mut overrides = Self::default();
        for (key, value) in annotations.filter(|(key, _)| key.starts_with(PREFIX)) {
            overrides.read_one(key, value);
        }
        overrides
    }

    fn read_one(&mut self, key: &str, value: &str) {
        let understood = match key {
            MODE => read_word(value, Mode::from_word, Mode::WORDS).map(|mode| self.mode = Some(mode)),
            KUBE_PROXY => read_word(value, KubeProxy::from_word, KubeProxy::WORDS).map(|v| self.kube_proxy = Some(v)),
            IDENTITY_LABEL => {
                read_word(value, IdentityLabel::from_word, IdentityLabel::WORDS).map(|v| self.identity_label = Some(v))
            }
            _ if WRITTEN.contains(&key) => Ok(()),
            _ => Err(unknown_key(key)),
        };
        if let Err(message) = understood {
            self.rejected.push(RejectedOverride { key: key.to_owned(), message });
        }
    }
}

fn read_word<T>(value: &str, from_word: impl Fn(&str) -> Option<T>, words: &[&str]) -> Result<T, String> {
    from_word(value).ok_or_else(|| {
        if words == Mode::WORDS && is_later_mode(value) {
            unsupported_mode(value)
        } else {
            format!("unknown value \"{value}\", expected {}{}", one_of(words), did_you_mean(value, words))
        }
    })
}

fn unknown_key(key: &str) -> String {
    let known = [MODE, KUBE_PROXY, IDENTITY_LABEL];
    format!("unknown annotation{}", did_you_mean(key, &known))
}

fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    nearest(word, candidates).map(|hint| format!("; did you mean \"{hint}\"?")).unwrap_or_default()
}

impl Configuration {
    /// The settings for a pod of a namespace that names this profile, or nothing if no such profile exists.
    pub fn settings(&self, profile: &str, namespace: &Overrides, pod: &Overrides) -> Option<Settings<'_>> {
        Some(self.settings_of(Some(self.profiles.get(profile)?), namespace, pod))
    }

    pub(super) fn settings_of(
        &self,
        profile: Option<&file::Overridable>,
        namespace: &Overrides,
        pod: &Overrides,
    ) -> Settings<'_> {
        let file = &self.defaults;
        Settings {
            mode: pick([
                (pod.mode, Origin::Pod),
                (namespace.mode, Origin::Namespace),
                (profile.and_then(|p| p.mode), Origin::Profile),
                (file.mode, Origin::File),
            ]),
            kube_proxy: pick([
                (pod.kube_proxy, Origin::Pod),
                (namespace.kube_proxy, Origin::Namespace),
                (profile.and_then(file::Overridable::kube_proxy), Origin::Profile),
                (file.kube_proxy(), Origin::File),
            ]),
            dns: pick([(profile.and_then(file::Overridable::dns), Origin::Profile), (file.dns(), Origin::File)]),
            identity_label: pick([
                (pod.identity_label, Origin::Pod),
                (namespace.identity_label, Origin::Namespace),
                (profile.and_then(file::Overridable::identity_label), Origin::Profile),
                (file.identity_label(), Origin::File),
            ]),
            virtual_nodes: &self.virtual_nodes,
        }
    }
}

impl file::Overridable {
    fn kube_proxy(&self) -> Option<KubeProxy> {
        self.network.as_ref()?.kube_proxy
    }

    fn dns(&self) -> Option<Dns> {
        self.network.as_ref()?.dns
    }

    fn identity_label(&self) -> Option<IdentityLabel> {
        self.identity.as_ref()?.label
    }
}

/// The first level that says something, else the built-in default.
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

    #[test]
    fn the_pod_beats_its_namespace_beats_the_profile_beats_the_file() {
        let config = parse(
            "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nnetwork: {kubeProxy: opt-out}\nprofiles: {p: {network: {kubeProxy: keep}}, q: {}}\n",
        )
        .unwrap();
        let none = Overrides::default();
        let keep = overrides(&[("spillway.dev/kube-proxy", "keep")]);
        let opt_out = overrides(&[("spillway.dev/kube-proxy", "opt-out")]);
        for (profile, namespace, pod, value, origin) in [
            ("q", &none, &none, KubeProxy::OptOut, Origin::File),
            ("p", &none, &none, KubeProxy::Keep, Origin::Profile),
            ("p", &opt_out, &none, KubeProxy::OptOut, Origin::Namespace),
            ("p", &opt_out, &keep, KubeProxy::Keep, Origin::Pod),
        ] {
            let settings = config.settings(profile, namespace, pod).unwrap();
            assert_eq!(settings.kube_proxy, Sourced { value, origin }, "{profile}");
            assert_eq!(settings.mode, Sourced { value: Mode::Prefer, origin: Origin::Default });
        }
    }

    #[test]
    fn a_profile_that_does_not_exist_has_no_settings() {
        let config = Configuration::default();
        let none = Overrides::default();
        assert!(config.settings("enabled", &none, &none).is_some());
        for unknown in ["false", "Enabled", "enabeld", "", "disabled"] {
            assert!(config.settings(unknown, &none, &none).is_none(), "{unknown}");
        }
    }

    #[test]
    fn an_override_that_is_not_understood_is_reported_and_falls_back() {
        let pod = overrides(&[
            ("spillway.dev/mode", "of"),
            ("spillway.dev/kube-proxi", "keep"),
            ("spillway.dev/decision", "prefer"),
            ("example.com/mode", "x"),
        ]);
        let namespace = overrides(&[("spillway.dev/mode", "off")]);
        let config = Configuration::default();
        let settings = config.settings("enabled", &namespace, &pod).unwrap();
        assert_eq!(settings.mode, Sourced { value: Mode::Off, origin: Origin::Namespace });
        let messages: Vec<_> = pod.rejected.iter().map(|r| format!("{}: {}", r.key, r.message)).collect();
        assert_eq!(
            messages,
            [
                "spillway.dev/mode: unknown value \"of\", expected \"prefer\" or \"off\"; did you mean \"off\"?",
                "spillway.dev/kube-proxi: unknown annotation; did you mean \"spillway.dev/kube-proxy\"?",
            ]
        );
        let late = overrides(&[("spillway.dev/mode", "late")]);
        assert!(late.rejected[0].message.contains("not supported by this version"));
    }
}
