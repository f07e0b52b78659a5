//! Volumes, as far as they are read.

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
    /// Where the content comes from; an `emptyDir` if the entry names nothing, as the API server defaults it.
    pub source: VolumeSource<'a>,
}

/// Where a volume's content comes from.
#[derive(Debug, Default, ToStatic)]
pub enum VolumeSource<'a> {
    /// `azureFile`, in line.
    AzureFile,
    /// `configMap`
    ConfigMap(KeysProjection),
    /// `csi`, in line.
    Csi(CsiVolume<'a>),
    /// `downwardAPI`
    DownwardApi,
    /// `emptyDir`
    #[default]
    EmptyDir,
    /// `ephemeral`: a claim made for the pod.
    Ephemeral,
    /// `hostPath`
    HostPath,
    /// `persistentVolumeClaim`
    PersistentVolumeClaim,
    /// `projected`
    Projected(ProjectedVolume<'a>),
    /// `secret`
    Secret(KeysProjection),
    /// Any other, by the name of its field.
    Other(Text<'a>),
}

/// `csi`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct CsiVolume<'a> {
    /// Such as `file.csi.azure.com`.
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

/// An entry of the sources of a projected volume.
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

/// `secret` or `configMap`, as a volume or in a projected one.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct KeysProjection {
    /// `items`; without them, all keys.
    pub items: Option<Vec<Present>>,
    /// `optional`: whether the pod starts without it.
    pub optional: Option<bool>,
}

/// `serviceAccountToken`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct ServiceAccountTokenProjection<'a> {
    /// `audience`; empty or absent means the API server.
    #[serde(borrow)]
    pub audience: Option<Text<'a>>,
}

from_map!(CsiVolume<'a>, ProjectedVolume<'a>, VolumeProjection<'a>, KeysProjection, ServiceAccountTokenProjection<'a>,);

impl Volume<'_> {
    /// The volume's name, for messages.
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or("(no name)")
    }

    /// Whether this is the volume with the API server's token that the ServiceAccount admission plugin gives to nearly every pod: it
    /// is known by its name, and its token has no audience of its own (kubernetes/kubernetes
    /// `plugin/pkg/admission/serviceaccount/admission.go`).
    pub fn is_api_access(&self) -> bool {
        let is_named_so = self.name.as_deref().is_some_and(|name| name.starts_with("kube-api-access-"));
        is_named_so
            && self.has_token()
            && self.tokens().all(|token| token.audience.as_deref().is_none_or(str::is_empty))
    }

    /// Whether a token of the pod's service account is projected into it.
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
    /// A source of which nothing but its name is read.
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
    /// Whether it names keys.
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

/// The source that a field of a volume names; nothing if the field is null.
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
    fn a_volume_is_what_its_one_source_says() {
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
