//! Fields of volumes that Spillway reads.

use std::fmt;

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{StringMap, Text, from_map, present::Present};

/// An entry of `spec.volumes`.
#[derive(Debug, Default, ToStatic)]
pub struct Volume<'a> {
    /// `name`
    pub name: Option<Text<'a>>,
    /// Source of the content. If the entry names none, it is an `emptyDir`, as the API server defaults it.
    pub source: VolumeSource<'a>,
}

/// Source of a volume's content.
#[derive(Debug, Default, ToStatic)]
pub enum VolumeSource<'a> {
    /// In-line `azureFile`.
    AzureFile,
    /// `configMap`
    ConfigMap(KeysProjection),
    /// In-line `csi`.
    Csi(CsiVolume<'a>),
    /// `downwardAPI`
    DownwardApi,
    /// `emptyDir`
    #[default]
    EmptyDir,
    /// `ephemeral`: a claim that is created for the pod.
    Ephemeral,
    /// `hostPath`
    HostPath,
    /// `persistentVolumeClaim`
    PersistentVolumeClaim,
    /// `projected`
    Projected(ProjectedVolume<'a>),
    /// `secret`
    Secret(KeysProjection),
    /// Any other source, by the name of its field.
    Other(Text<'a>),
}

/// `csi`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct CsiVolume<'a> {
    /// `driver`, such as `file.csi.azure.com`.
    #[serde(borrow)]
    pub driver: Option<Text<'a>>,
    /// `volumeAttributes`
    #[serde(borrow)]
    pub volume_attributes: Option<StringMap<'a>>,
}

/// `projected`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct ProjectedVolume<'a> {
    /// `sources`
    #[serde(borrow)]
    pub sources: Option<Vec<VolumeProjection<'a>>>,
}

/// Entry of the sources of a projected volume.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct VolumeProjection<'a> {
    /// `serviceAccountToken`
    #[serde(borrow)]
    pub service_account_token: Option<ServiceAccountTokenProjection<'a>>,
    /// `secret`
    pub secret: Option<KeysProjection>,
    /// `configMap`
    pub config_map: Option<KeysProjection>,
    /// `downwardAPI`
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<Present>,
    /// `clusterTrustBundle`
    pub cluster_trust_bundle: Option<Present>,
}

/// `secret` or `configMap`, as a volume or in a projected volume.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct KeysProjection {
    /// `items`. If absent, all keys.
    pub items: Option<Vec<Present>>,
    /// `optional`: `true` if the pod starts without the object.
    pub optional: Option<bool>,
}

/// `serviceAccountToken`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct ServiceAccountTokenProjection<'a> {
    /// `audience`. If it is empty or absent, it means the API server.
    #[serde(borrow)]
    pub audience: Option<Text<'a>>,
}

from_map!(CsiVolume<'a>, ProjectedVolume<'a>, VolumeProjection<'a>, KeysProjection, ServiceAccountTokenProjection<'a>,);

impl Volume<'_> {
    /// Returns the volume's name, for messages.
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or("(no name)")
    }

    /// Returns whether this is the volume with the API server's token. The ServiceAccount admission plugin adds it to
    /// nearly every pod. It has a known name, and its token has no audience (kubernetes/kubernetes
    /// `plugin/pkg/admission/serviceaccount/admission.go`).
    pub fn is_api_access(&self) -> bool {
        let is_named_so = self.name.as_deref().is_some_and(|name| name.starts_with("kube-api-access-"));
        is_named_so
            && self.has_token()
            && self.tokens().all(|token| token.audience.as_deref().is_none_or(str::is_empty))
    }

    /// Returns whether the volume has a token of the pod's service account.
    pub fn has_token(&self) -> bool {
        self.tokens().next().is_some()
    }

    fn tokens(&self) -> impl Iterator<Item = &ServiceAccountTokenProjection<'_>> {
        let projected = if let VolumeSource::Projected(projected) = &self.source { Some(projected) } else { None };
        let sources = projected.and_then(|projected| projected.sources.as_deref()).unwrap_or_default();
        sources.iter().filter_map(|source| source.service_account_token.as_ref())
    }
}

impl<'a> VolumeSource<'a> {
    /// Returns a source of which Spillway reads only the name.
    pub(super) fn named(name: Text<'a>) -> Self {
        match &*name {
            "azureFile" => Self::AzureFile,
            "downwardAPI" => Self::DownwardApi,
            "emptyDir" => Self::EmptyDir,
            "ephemeral" => Self::Ephemeral,
            "hostPath" => Self::HostPath,
            "persistentVolumeClaim" => Self::PersistentVolumeClaim,
            _ => Self::Other(name),
        }
    }
}

impl KeysProjection {
    /// Returns whether the source lists keys.
    pub fn has_items(&self) -> bool {
        self.items.as_ref().is_some_and(|items| !items.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Volume<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Volume<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a volume")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut volume = Volume::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if &*key == "name" {
                        volume.name = map.next_value()?;
                    } else if let Some(source) = read_source(key, &mut map)? {
                        volume.source = source;
                    }
                }
                Ok(volume)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Returns the source in a field of a volume, or `None` if the field is null.
fn read_source<'de, M: MapAccess<'de>>(key: Text<'de>, map: &mut M) -> Result<Option<VolumeSource<'de>>, M::Error> {
    match &*key {
        "csi" => return Ok(map.next_value::<Option<CsiVolume<'de>>>()?.map(VolumeSource::Csi)),
        "configMap" => return Ok(map.next_value::<Option<KeysProjection>>()?.map(VolumeSource::ConfigMap)),
        "secret" => return Ok(map.next_value::<Option<KeysProjection>>()?.map(VolumeSource::Secret)),
        "projected" => return Ok(map.next_value::<Option<ProjectedVolume<'de>>>()?.map(VolumeSource::Projected)),
        _ => {}
    }
    if map.next_value::<Option<IgnoredAny>>()?.is_none() {
        return Ok(None);
    }
    Ok(Some(VolumeSource::named(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_the_source_that_its_field_names() {
        for (json, expected) in [
            (r#"{"name":"v"}"#, "EmptyDir"),
            (r#"{"name":"v","hostPath":null,"secret":{"secretName":"s"}}"#, "Secret("),
            (r#"{"hostPath":{"path":"/"},"name":"v"}"#, "HostPath"),
            (r#"{"name":"v","nfs":{"server":"x"}}"#, r#"Other(Text("nfs"))"#),
            (r#"{"name":"v","csi":{"driver":"file.csi.azure.com"}}"#, "Csi("),
        ] {
            let volume: Volume<'_> = serde_json::from_str(json).unwrap();
            assert!(format!("{:?}", volume.source).starts_with(expected), "{json}: {volume:?}");
        }
    }
}
