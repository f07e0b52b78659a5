//! How the types of the view are read.

use super::{JsonError, Read, Reader};
use crate::pod::{
    Affinity, Capabilities, Container, ContainerPort, ContainerSecurityContext, CsiVolume, EnvVar, EnvVarSource,
    HttpGet, IntOrString, KeysProjection, Lifecycle, Matters, MaybeQuantity, Metadata, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, OwnerReference, Pod, PodAffinityTerm,
    PodAntiAffinity, PodOs, PodSecurityContext, PreferredSchedulingTerm, Present, Probe, ProjectedVolume, Relevant,
    ResourceList, ResourceRequirements, ServiceAccountTokenProjection, Spec, StringMap, Text, Toleration,
    TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection, VolumeSource,
};

impl<'a> Read<'a> for Text<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        *self = Text::from(json.string()?);
        Ok(())
    }
}

impl Read<'_> for bool {
    fn read(&mut self, json: &mut Reader<'_>) -> Result<(), JsonError> {
        *self = json.boolean()?;
        Ok(())
    }
}

impl Read<'_> for i64 {
    fn read(&mut self, json: &mut Reader<'_>) -> Result<(), JsonError> {
        *self = json.number()?.as_i64().ok_or_else(|| JsonError::of("expected a whole number of 64 bits"))?;
        Ok(())
    }
}

impl Read<'_> for Present {
    fn read(&mut self, json: &mut Reader<'_>) -> Result<(), JsonError> {
        json.skip()
    }
}

impl<'a, T: Read<'a>> Read<'a> for Box<T> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        T::read(self, json)
    }
}

impl<'a, T: Read<'a>> Read<'a> for Option<T> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        if json.null()? {
            return Ok(());
        }
        self.insert(T::default()).read(json)
    }
}

impl<'a, T: Read<'a>> Read<'a> for Vec<T> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        json.elements(&mut |json| {
            let mut element = T::default();
            element.read(json)?;
            self.push(element);
            Ok(())
        })
    }
}

impl<'a, T: Read<'a> + Matters> Read<'a> for Relevant<T> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        json.elements(&mut |json| {
            let mut entry = T::default();
            entry.read(json)?;
            self.learn(entry);
            Ok(())
        })
    }
}

impl<'a> Read<'a> for StringMap<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        json.entries(&mut |key, json| {
            let mut value = None::<Text<'a>>;
            value.read(json)?;
            self.learn(std::mem::take(key), value);
            Ok(())
        })
    }
}

impl<'a> Read<'a> for ResourceList<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        json.entries(&mut |key, json| {
            let mut amount = MaybeQuantity::default();
            amount.read(json)?;
            self.learn(std::mem::take(key), amount);
            Ok(())
        })
    }
}

impl Read<'_> for MaybeQuantity {
    fn read(&mut self, json: &mut Reader<'_>) -> Result<(), JsonError> {
        *self = match json.peek() {
            Some(b'"') => Self::of_text(&json.string()?),
            Some(b'-' | b'0'..=b'9') => {
                let number = json.number()?;
                match (number.as_u64(), number.as_i64()) {
                    (Some(units), _) => Self::of_natural(units),
                    (_, Some(units)) => Self::of_integer(units),
                    _ => Self::of_float(number.as_f64().unwrap_or(f64::NAN)),
                }
            }
            Some(b'{' | b'[') => {
                json.skip()?;
                Self::OTHER
            }
            _ if json.null()? => Self::default(),
            _ => {
                json.boolean()?;
                Self::OTHER
            }
        };
        Ok(())
    }
}

impl<'a> Read<'a> for IntOrString<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        *self = if json.peek() == Some(b'"') {
            Self::Name(Text::from(json.string()?))
        } else {
            let mut number = 0;
            number.read(json)?;
            Self::Int(number)
        };
        Ok(())
    }
}

impl<'a> Read<'a> for Volume<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        fn some<'a, T: Read<'a>>(json: &mut Reader<'a>) -> Result<Option<T>, JsonError> {
            let mut value = None;
            value.read(json)?;
            Ok(value)
        }
        json.entries(&mut |key, json| {
            let source = match &**key {
                "name" => return self.name.read(json),
                "csi" => some(json)?.map(VolumeSource::Csi),
                "configMap" => some(json)?.map(VolumeSource::ConfigMap),
                "secret" => some(json)?.map(VolumeSource::Secret),
                "projected" => some(json)?.map(VolumeSource::Projected),
                _ => some(json)?.map(|Present| VolumeSource::named(std::mem::take(key))),
            };
            if let Some(source) = source {
                self.source = source;
            }
            Ok(())
        })
    }
}

impl<'a> Read<'a> for Pod<'a> {
    fn read(&mut self, json: &mut Reader<'a>) -> Result<(), JsonError> {
        let (mut metadata, mut spec) = (None, None);
        json.entries(&mut |key, json| match &**key {
            "metadata" => once(&mut metadata, &mut self.metadata, "metadata", json),
            "spec" => once(&mut spec, &mut self.spec, "spec", json),
            _ => json.skip(),
        })?;
        metadata.ok_or_else(|| JsonError::of("missing field `metadata`"))?;
        spec.ok_or_else(|| JsonError::of("missing field `spec`"))
    }
}

/// Reads a field that must be there and not null.
fn once<'a>(
    seen: &mut Option<()>,
    field: &mut impl Read<'a>,
    name: &str,
    json: &mut Reader<'a>,
) -> Result<(), JsonError> {
    if seen.replace(()).is_some() {
        return Err(JsonError::duplicate(name));
    }
    field.read(json)
}

/// Reads a field that may be absent or null.
pub(crate) fn field<'a, T: Read<'a>>(
    field: &mut Option<T>,
    name: &str,
    json: &mut Reader<'a>,
) -> Result<(), JsonError> {
    if field.is_some() {
        return Err(JsonError::duplicate(name));
    }
    field.read(json)
}

/// Makes structs readable, of which every field is an option: by the names that the API gives their fields.
macro_rules! fields {
    ($life:lifetime; $($type:ty { $($name:literal => $field:ident),+ $(,)? })+) => {
        $(
            impl<$life> $crate::pod::Read<$life> for $type {
                fn read(&mut self, json: &mut $crate::pod::Reader<$life>) -> Result<(), $crate::pod::JsonError> {
                    json.entries(&mut |key, json| match &**key {
                        $($name => $crate::pod::field(&mut self.$field, $name, json),)+
                        _ => json.skip(),
                    })
                }
            }
        )+
    };
}
pub(crate) use fields;

/// The same for the types that serde reads too.
macro_rules! view {
    ($life:lifetime; $($type:ty { $($name:literal => $field:ident),+ $(,)? })+) => {
        fields! { $life; $($type { $($name => $field),+ })+ }

        /// The names, by type, and those that serde knows.
        #[cfg(test)]
        #[allow(clippy::extra_unused_lifetimes)] // the types have it
        fn names<$life>() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
            vec![$((vec![$($name),+], tests::names_in_serde::<$type>())),+]
        }
    };
}

view! { 'a;
    Metadata<'a> {
        "name" => name,
        "generateName" => generate_name,
        "labels" => labels,
        "annotations" => annotations,
        "ownerReferences" => owner_references,
    }
    OwnerReference<'a> { "kind" => kind, "controller" => controller }
    Spec<'a> {
        "nodeName" => node_name,
        "nodeSelector" => node_selector,
        "os" => os,
        "serviceAccountName" => service_account_name,
        "dnsPolicy" => dns_policy,
        "tolerations" => tolerations,
        "affinity" => affinity,
        "topologySpreadConstraints" => topology_spread_constraints,
        "containers" => containers,
        "initContainers" => init_containers,
        "volumes" => volumes,
        "hostNetwork" => host_network,
        "hostPID" => host_pid,
        "hostIPC" => host_ipc,
        "runtimeClassName" => runtime_class_name,
        "resourceClaims" => resource_claims,
        "resources" => resources,
        "overhead" => overhead,
        "securityContext" => security_context,
        "terminationGracePeriodSeconds" => termination_grace_period_seconds,
        "hostAliases" => host_aliases,
        "readinessGates" => readiness_gates,
        "shareProcessNamespace" => share_process_namespace,
    }
    PodSecurityContext { "runAsUser" => run_as_user, "runAsGroup" => run_as_group, "fsGroup" => fs_group, "sysctls" => sysctls }
    PodOs<'a> { "name" => name }
    Toleration<'a> { "key" => key, "operator" => operator, "value" => value, "effect" => effect }
    Affinity<'a> { "nodeAffinity" => node_affinity, "podAntiAffinity" => pod_anti_affinity }
    NodeAffinity<'a> {
        "requiredDuringSchedulingIgnoredDuringExecution" => required,
        "preferredDuringSchedulingIgnoredDuringExecution" => preferred,
    }
    NodeSelector<'a> { "nodeSelectorTerms" => node_selector_terms }
    PreferredSchedulingTerm<'a> { "weight" => weight, "preference" => preference }
    NodeSelectorTerm<'a> { "matchExpressions" => match_expressions, "matchFields" => match_fields }
    NodeSelectorRequirement<'a> { "key" => key, "operator" => operator, "values" => values }
    PodAntiAffinity<'a> { "requiredDuringSchedulingIgnoredDuringExecution" => required }
    PodAffinityTerm<'a> { "topologyKey" => topology_key }
    TopologySpreadConstraint<'a> {
        "topologyKey" => topology_key,
        "whenUnsatisfiable" => when_unsatisfiable,
        "nodeTaintsPolicy" => node_taints_policy,
    }
    Container<'a> {
        "name" => name,
        "command" => command,
        "args" => args,
        "restartPolicy" => restart_policy,
        "ports" => ports,
        "env" => env,
        "volumeMounts" => volume_mounts,
        "lifecycle" => lifecycle,
        "livenessProbe" => liveness_probe,
        "readinessProbe" => readiness_probe,
        "startupProbe" => startup_probe,
        "securityContext" => security_context,
        "resources" => resources,
    }
    ContainerPort<'a> { "name" => name, "containerPort" => container_port, "hostPort" => host_port }
    EnvVar<'a> { "name" => name, "valueFrom" => value_from }
    EnvVarSource<'a> { "fieldRef" => field_ref, "resourceFieldRef" => resource_field_ref }
    ObjectFieldSelector<'a> { "fieldPath" => field_path }
    VolumeMount<'a> {
        "mountPath" => mount_path,
        "subPath" => sub_path,
        "subPathExpr" => sub_path_expr,
        "mountPropagation" => mount_propagation,
    }
    Lifecycle { "postStart" => post_start, "preStop" => pre_stop }
    Probe<'a> { "httpGet" => http_get, "tcpSocket" => tcp_socket, "grpc" => grpc }
    HttpGet<'a> { "port" => port, "host" => host, "httpHeaders" => http_headers }
    ContainerSecurityContext {
        "privileged" => privileged,
        "runAsUser" => run_as_user,
        "runAsGroup" => run_as_group,
        "capabilities" => capabilities,
    }
    Capabilities { "add" => add }
    ResourceRequirements<'a> { "requests" => requests, "limits" => limits, "claims" => claims }
    CsiVolume<'a> { "driver" => driver, "volumeAttributes" => volume_attributes }
    ProjectedVolume<'a> { "sources" => sources }
    VolumeProjection<'a> {
        "serviceAccountToken" => service_account_token,
        "secret" => secret,
        "configMap" => config_map,
        "downwardAPI" => downward_api,
        "clusterTrustBundle" => cluster_trust_bundle,
    }
    KeysProjection { "items" => items, "optional" => optional }
    ServiceAccountTokenProjection<'a> { "audience" => audience }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_names_of_fields_are_those_that_serde_knows() {
        for (ours, theirs) in super::names() {
            assert_eq!(ours, theirs);
        }
    }

    /// The fields of a struct by serde's derive.
    pub(super) fn names_in_serde<'a, T: serde::Deserialize<'a>>() -> Vec<&'static str> {
        use serde::de::{Visitor, value::Error};
        struct Names<'n>(&'n mut Vec<&'static str>);

        impl<'de> serde::Deserializer<'de> for Names<'_> {
            type Error = Error;

            fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
                Err(serde::de::Error::custom("a struct with names"))
            }

            fn deserialize_struct<V: Visitor<'de>>(
                self,
                _: &'static str,
                fields: &'static [&'static str],
                visitor: V,
            ) -> Result<V::Value, Error> {
                self.0.extend(fields);
                Self(self.0).deserialize_any(visitor)
            }

            serde::forward_to_deserialize_any! {
                bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
                tuple tuple_struct map enum identifier option ignored_any
            }
        }

        let mut names = Vec::new();
        assert!(T::deserialize(Names(&mut names)).is_err() && !names.is_empty());
        names
    }
}
