//! The SpillwayConfiguration file, and how a pod's settings follow from it.
//!
//! Two stages: [`mod@file`] is what a person wrote, read strictly and with every value optional; [`Configuration`] is what the
//! program needs, with the defaults filled in. [`Configuration::settings`] then applies the precedence
//! pod > namespace > profile > file, and remembers where each value came from.

pub mod file;
mod load;
mod settings;

use std::collections::BTreeMap;

pub use file::{Dns, IdentityLabel, KubeProxy, Mode, Operator, Selector, Toleration};
pub use load::{ConfigError, parse};
use serde::Serialize;
pub use settings::{Origin, Overrides, RejectedOverride, Settings, Sourced};

/// Namespace label that opts in and names a profile; the same label with [`DISABLED`] on a pod opts the pod out.
pub const BURST_LABEL: &str = "spillway.dev/burst";
/// The value of [`BURST_LABEL`] that means out. No profile can have this name.
pub const DISABLED: &str = "disabled";

/// The configuration in force: the file's values over the built-in defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    api_version: file::ApiVersion,
    kind: file::Kind,
    #[serde(flatten)]
    defaults: file::Overridable,
    /// Which nodes are virtual nodes and how pods get onto them.
    pub virtual_nodes: VirtualNodes,
    profiles: BTreeMap<String, file::Overridable>,
}

/// Which nodes are virtual nodes and how pods get onto them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VirtualNodes {
    /// The label that virtual nodes carry and no other node does.
    pub selector: Selector,
    /// What a pod needs to be allowed onto them.
    pub toleration: Toleration,
}

impl Default for Configuration {
    fn default() -> Self {
        file::SpillwayConfiguration::default().into()
    }
}

impl From<file::SpillwayConfiguration> for Configuration {
    fn from(file: file::SpillwayConfiguration) -> Self {
        let file::SpillwayConfiguration { api_version, kind, mode, virtual_nodes, network, identity, profiles } = file;
        let file::VirtualNodes { selector, toleration } = virtual_nodes.unwrap_or_default();
        let mut all = file::shipped_profiles();
        for (name, profile) in profiles.unwrap_or_default() {
            all.insert(name.into(), profile.unwrap_or_default());
        }
        Self {
            api_version,
            kind,
            defaults: file::Overridable { mode, network, identity },
            virtual_nodes: VirtualNodes {
                selector: selector.unwrap_or_default(),
                toleration: toleration.unwrap_or_default(),
            },
            profiles: all,
        }
    }
}

impl Configuration {
    /// The names of all profiles, the shipped ones included, in order.
    pub fn profile_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// The same configuration with every default written out, for people to read.
    #[must_use]
    pub fn with_defaults_shown(&self) -> Self {
        let none = Overrides::default();
        let settings = self.settings_of(None, &none, &none);
        let defaults = file::Overridable {
            mode: Some(settings.mode.value),
            network: Some(file::Network { kube_proxy: Some(settings.kube_proxy.value), dns: Some(settings.dns.value) }),
            identity: Some(file::Identity { label: Some(settings.identity_label.value) }),
        };
        Self { defaults, ..self.clone() }
    }
}
