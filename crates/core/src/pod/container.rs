//! Fields of containers that Spillway reads.

use std::fmt;

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

use super::{
    Text,
    filtered::{FilteredVec, Keep},
    from_map,
    present::Present,
    resources::ResourceRequirements,
};

/// An entry of `spec.containers` or `spec.initContainers`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Container<'a> {
    /// `name`
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// `command`. Only its length matters, and an empty list counts as absent.
    pub command: Option<Vec<Present>>,
    /// `args`. Only its length matters, and an empty list counts as absent.
    pub args: Option<Vec<Present>>,
    /// `restartPolicy` of an init container. `Always` makes it a native sidecar.
    #[serde(borrow)]
    pub restart_policy: Option<Text<'a>>,
    /// `ports`
    #[serde(borrow)]
    pub ports: Option<Vec<ContainerPort<'a>>>,
    /// `env`, reduced to variables with `valueFrom`.
    #[serde(borrow)]
    pub env: Option<FilteredVec<EnvVar<'a>>>,
    /// `volumeMounts`, reduced to mounts with a sub path or with mount propagation.
    #[serde(borrow)]
    pub volume_mounts: Option<FilteredVec<VolumeMount<'a>>>,
    /// `lifecycle`
    pub lifecycle: Option<Lifecycle>,
    /// `livenessProbe`
    #[serde(borrow)]
    pub liveness_probe: Option<Probe<'a>>,
    /// `readinessProbe`
    #[serde(borrow)]
    pub readiness_probe: Option<Probe<'a>>,
    /// `startupProbe`
    #[serde(borrow)]
    pub startup_probe: Option<Probe<'a>>,
    /// `securityContext`
    pub security_context: Option<ContainerSecurityContext>,
    /// `resources`
    #[serde(borrow)]
    pub resources: Option<ResourceRequirements<'a>>,
}

/// An entry of `ports`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct ContainerPort<'a> {
    /// `name`. A probe may refer to it.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// `containerPort`
    pub container_port: Option<i64>,
    /// `hostPort`. 0 counts as absent.
    pub host_port: Option<i64>,
}

/// An entry of `env`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct EnvVar<'a> {
    /// `name`
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// `valueFrom`
    #[serde(borrow)]
    pub value_from: Option<EnvVarSource<'a>>,
}

/// `valueFrom` of an environment variable.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct EnvVarSource<'a> {
    /// `fieldRef`
    #[serde(borrow)]
    pub field_ref: Option<ObjectFieldSelector<'a>>,
    /// `resourceFieldRef`
    pub resource_field_ref: Option<Present>,
}

/// `fieldRef`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct ObjectFieldSelector<'a> {
    /// `fieldPath`, such as `status.podIP`.
    #[serde(borrow)]
    pub field_path: Option<Text<'a>>,
}

/// An entry of `volumeMounts`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct VolumeMount<'a> {
    /// `mountPath`
    #[serde(borrow)]
    pub mount_path: Option<Text<'a>>,
    /// `subPath`. An empty text counts as absent.
    #[serde(borrow)]
    pub sub_path: Option<Text<'a>>,
    /// `subPathExpr`. An empty text counts as absent.
    #[serde(borrow)]
    pub sub_path_expr: Option<Text<'a>>,
    /// `mountPropagation`: `None`, `HostToContainer` or `Bidirectional`.
    #[serde(borrow)]
    pub mount_propagation: Option<Text<'a>>,
}

/// `lifecycle`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Lifecycle {
    /// `postStart`
    pub post_start: Option<Present>,
    /// `preStop`
    pub pre_stop: Option<Present>,
}

/// A liveness, readiness or startup probe.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Probe<'a> {
    /// `httpGet`
    #[serde(borrow)]
    pub http_get: Option<HttpGet<'a>>,
    /// `tcpSocket`
    pub tcp_socket: Option<Present>,
    /// `grpc`
    pub grpc: Option<Present>,
}

/// `httpGet` of a probe.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct HttpGet<'a> {
    /// `port`: a number, or the name of a port.
    #[serde(borrow)]
    pub port: Option<IntOrString<'a>>,
    /// `host`. An empty text counts as absent.
    #[serde(borrow)]
    pub host: Option<Text<'a>>,
    /// `httpHeaders`
    pub http_headers: Option<Vec<Present>>,
}

/// Number or name, like `IntOrString` of the API.
#[derive(Debug, ToStatic)]
pub enum IntOrString<'a> {
    /// Port number.
    Int(i64),
    /// Port name.
    Name(Text<'a>),
}

/// Does not use serde's `untagged`, because it buffers the value first.
impl<'de: 'a, 'a> Deserialize<'de> for IntOrString<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = IntOrString<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(IntOrString::Int(number))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                i64::try_from(number).map(IntOrString::Int).map_err(E::custom)
            }

            fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(IntOrString::Name(Text::from(name)))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(IntOrString::Name(Text::from(name.to_owned())))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// `securityContext` of a container.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct ContainerSecurityContext {
    /// `privileged`
    pub privileged: Option<bool>,
    /// `runAsUser`
    pub run_as_user: Option<Present>,
    /// `runAsGroup`
    pub run_as_group: Option<Present>,
    /// `capabilities`
    pub capabilities: Option<Capabilities>,
}

/// `capabilities`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct Capabilities {
    /// `add`
    pub add: Option<Vec<Present>>,
}

from_map!(
    Container<'a>,
    ContainerPort<'a>,
    EnvVar<'a>,
    EnvVarSource<'a>,
    ObjectFieldSelector<'a>,
    VolumeMount<'a>,
    Lifecycle,
    Probe<'a>,
    HttpGet<'a>,
    ContainerSecurityContext,
    Capabilities,
);

impl Keep for EnvVar<'_> {
    fn keep(&self) -> bool {
        self.value_from.is_some()
    }
}

impl Keep for VolumeMount<'_> {
    fn keep(&self) -> bool {
        self.sub_path.is_some() || self.sub_path_expr.is_some() || self.mount_propagation.is_some()
    }
}

impl Container<'_> {
    /// Returns the container's name, for messages.
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or("(no name)")
    }

    /// Returns whether this init container is a native sidecar.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }

    /// Returns all probes, each with the name of its field.
    pub fn probes(&self) -> impl Iterator<Item = (&'static str, &Probe<'_>)> {
        let named = [
            ("livenessProbe", &self.liveness_probe),
            ("readinessProbe", &self.readiness_probe),
            ("startupProbe", &self.startup_probe),
        ];
        named.into_iter().filter_map(|(name, probe)| Some((name, probe.as_ref()?)))
    }
}
