//! Strict loading of the file. An error has the line, the expected value and the nearest valid name.

use std::fmt;

use serde::Deserialize;
use serde_path_to_error::{Path, Track};
use serde_saphyr::{Error as Yaml, MessageFormatter, UserMessageFormatter};

use super::{Configuration, file::SpillwayConfiguration};
use crate::suggestions::{nearest, one_of};

/// Error in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Line and column, both from 1, if known.
    pub position: Option<(u64, u64)>,
    /// The problem and the expected value.
    pub message: String,
    /// The nearest valid name.
    pub hint: Option<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; did you mean \"{hint}\"?"),
            None => Ok(()),
        }
    }
}

/// Reads a configuration from YAML or JSON text. Empty text, or only comments, means the defaults.
///
/// # Errors
///
/// Returns [`ConfigError`] for unknown or repeated fields, wrong types, another `apiVersion`, and values out of range.
pub fn parse(text: &str) -> Result<Configuration, ConfigError> {
    let mut track = Track::new();
    let file: Result<Option<SpillwayConfiguration>, Yaml> = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        Option::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
    });
    Ok(file.map_err(|error| describe(&error, &track.path()))?.unwrap_or_default().into())
}

fn describe(error: &Yaml, path: &Path) -> ConfigError {
    let (position, message) = describe_yaml(error);
    let (message, hint) = match error.without_snippet() {
        // These errors name the field themselves.
        Yaml::SerdeUnknownField { field, expected, .. } => {
            let message = format!("unknown field \"{field}\", expected {}", one_of(expected));
            return ConfigError { position, message, hint: nearest(field, expected) };
        }
        Yaml::DuplicateMappingKey { key: Some(_), .. } | Yaml::MultipleDocuments { .. } => {
            return ConfigError { position, message, hint: None };
        }
        Yaml::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("unknown value \"{variant}\", expected {}", one_of(expected)), nearest(variant, expected))
        }
        Yaml::SerdeMissingField { field, .. } => (format!("missing field \"{field}\""), None),
        _ => (message, None),
    };
    let message = match field(path).as_str() {
        "" => message,
        field => format!("{field}: {message}"),
    };
    ConfigError { position, message, hint }
}

/// Formats the path of a field, such as `profiles.night.mode`. Empty for the whole file. In a path, `?` stands for a
/// key that is not a name.
fn field(path: &Path) -> String {
    path.to_string().trim_end_matches('?').trim_end_matches('.').to_owned()
}

/// Returns the line and column of a YAML error, from 1, and a message in the terms of YAML.
pub fn describe_yaml(error: &Yaml) -> (Option<(u64, u64)>, String) {
    let error = error.without_snippet();
    let position = error.location().filter(|at| at.line() > 0).map(|at| (at.line(), at.column()));
    let message = match error {
        Yaml::SerdeInvalidType { unexpected, expected, .. } | Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("expected {expected}, got {unexpected}")
        }
        Yaml::Unexpected { expected: "mapping start", .. } => "expected a map of fields".to_owned(),
        Yaml::Unexpected { expected: "sequence start", .. } => "expected a list".to_owned(),
        Yaml::Unexpected { expected: "string scalar", .. } => "expected a string".to_owned(),
        Yaml::NullIntoString { .. } => "expected a string, got null".to_owned(),
        Yaml::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate field \"{key}\""),
        Yaml::DuplicateMappingKey { key: None, .. } => "duplicate field".to_owned(),
        Yaml::MultipleDocuments { .. } => "expected one document, found a second one".to_owned(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    (position, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";

    #[test]
    fn an_empty_file_means_the_defaults() {
        for text in ["", "\n", "# only a comment\n", "---\n", "null\n"] {
            assert_eq!(parse(text).unwrap(), Configuration::default(), "{text:?}");
        }
        assert_eq!(parse(HEAD).unwrap(), Configuration::default());
    }

    #[test]
    fn empty_sections_and_profiles_mean_the_defaults() {
        let text = format!(
            "{HEAD}network:\nidentity: {{}}\nvirtualNodes:\nprofiles:\n  enabled:\n  high-scale:\n    network:\n      kubeProxy: opt-out\n"
        );
        let config = parse(&text).unwrap();
        assert_eq!(config.profile_names().collect::<Vec<_>>(), ["autoscaled", "enabled", "high-scale"]);
    }

    #[test]
    fn errors_have_a_line_and_the_nearest_valid_name() {
        for (text, expected) in [
            (
                "network: {kubeproxy: keep}",
                r#"line 3, column 11: unknown field "kubeproxy", expected "kubeProxy" or "dns"; did you mean "kubeProxy"?"#,
            ),
            (
                "netwrok: {}",
                r#"line 3, column 1: unknown field "netwrok", expected "apiVersion", "kind", "mode", "virtualNodes", "network", "identity", "late", "maxPods", "eligibility", "lateRate", "scaleIn", "breaker", "missed", "overrides", "certificates", "logging" or "profiles"; did you mean "network"?"#,
            ),
            (
                "mode: perfer",
                r#"line 3, column 7: mode: unknown value "perfer", expected "prefer", "late", "bridge", "require" or "off"; did you mean "prefer"?"#,
            ),
            (
                "late: {after: soon}",
                "line 3, column 15: late.after: invalid duration \"soon\", expected from 0s to 24h",
            ),
            ("late: {after: -1s}", "invalid duration \"-1s\""),
            ("late: {after: 25h}", "invalid duration \"25h\""),
            (
                "eligibility: {allow: [RuntimeClas]}",
                "line 3, column 23: eligibility.allow[0]: unknown reason \"RuntimeClas\"; did you mean \"RuntimeClass\"?",
            ),
            (
                "eligibility: {allow: [DaemonSet]}",
                "DaemonSet cannot be allowed: virtual nodes do not support DaemonSets",
            ),
            (
                "eligibility: {allow: [SpreadOverHosts]}",
                "SpreadOverHosts is a warning, and only refusals can be allowed",
            ),
            ("overrides: {pod: [late_after]}", "unknown value \"late_after\""),
            ("virtualNodes: {generation: v3}", "unknown value \"v3\", expected \"auto\", \"v1\" or \"v2\""),
            ("profiles:\n  disabled: {}", "line 4, column "),
            ("profiles:\n  \"a b\": {}", "line 4, column "),
            ("mode: prefer\nmode: off", "line 4, column 1: "),
            (
                "virtualNodes: {selector: type}",
                "line 3, column 26: virtualNodes.selector: invalid selector \"type\", expected one label as KEY=VALUE",
            ),
            ("virtualNodes: {selector: 'a=b,c=d'}", "line 3, column 26: virtualNodes.selector: invalid selector"),
            ("virtualNodes: {toleration: {key: a}}", "missing field \"effect\""),
            (
                "virtualNodes: {toleration: {key: a, effect: \"\"}}",
                "line 3, column 45: virtualNodes.toleration.effect: unknown value \"\", expected \"NoSchedule\" or \"NoExecute\"",
            ),
            (
                "virtualNodes: {toleration: {key: \"\", effect: NoSchedule}}",
                "invalid toleration: key \"\" is not a qualified name",
            ),
            (
                "virtualNodes: {toleration: {key: a, value: b, effect: NoSchedule}}",
                "invalid toleration: value needs operator Equal",
            ),
            (
                "virtualNodes: {toleration: {key: a, operator: Equal, effect: NoSchedule}}",
                "invalid toleration: operator Equal needs a value",
            ),
            (
                "virtualNodes: {toleration: {key: spillway.dev/last-resort, effect: NoSchedule}}",
                "invalid toleration: key \"spillway.dev/last-resort\" is reserved for Spillway",
            ),
            (
                "profiles: {night: {identity: {enabled: false}}}",
                "line 3, column 31: unknown field \"enabled\", expected \"label\"",
            ),
            (
                "identity: {cloud: usgovernment}",
                "line 3, column 19: identity.cloud: unknown value \"usgovernment\", expected \"public\", \"us-government\" or \"china\"; did you mean \"us-government\"?",
            ),
            ("identity: {namespaces: [Shop]}", "identity.namespaces[0]: \"Shop\": expected the name of a namespace"),
            (
                "identity: {resourceManager: {subscriptions: [production]}}",
                "identity.resourceManager.subscriptions[0]: \"production\": expected the id of a subscription",
            ),
            ("identity: {resourceManager: {identities: {web: x}}}", "\"web\": expected a client id"),
            (
                "identity: {resourceManager: {identities: {00000000-1111-4222-8333-444444444444: web}}}",
                "\"web\": expected the id of a managed identity, such as /subscriptions/",
            ),
            (
                "identity: {resourceManager: {apiVersion: v1}}",
                "\"v1\": expected a version of an Azure API, such as 2024",
            ),
            (
                "identity: {resourceManager: {endpoint: 'http://management.azure.com'}}",
                "expected a URL such as https://",
            ),
            ("identity: {resourceManager: {endpoint: 'https://management.azure.com/'}}", "without a path"),
            ("identity: {resourceManager: {refresh: 4m}}", "invalid duration \"4m\", expected from 5m to 1h"),
            ("---\nmode: off", "expected one document, found a second one"),
            ("mode: {", "line "),
        ] {
            let error = parse(&format!("{HEAD}{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}\n  got:      {error}\n  expected: {expected}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
    }

    #[test]
    fn identity_checks_are_on_and_use_the_endpoint_of_the_cloud() {
        let identity = |text: &str| parse(&format!("{HEAD}identity: {{{text}}}")).unwrap().identity;
        let default = identity("");
        assert!(default.enabled && default.covers("shop") && default.credential_files.is_empty());
        assert_eq!(default.resource_manager.endpoint, "https://management.azure.com");
        assert_eq!(default.resource_manager.refresh().as_secs(), 600);
        assert!(default.resource_manager.subscriptions.is_empty() && default.resource_manager.identities.is_empty());

        let some = identity(
            "namespaces: [shop], cloud: china, resourceManager: {refresh: 1h, apiVersion: 2023-01-31-preview}",
        );
        assert!(some.covers("shop") && !some.covers("bank"));
        assert_eq!(some.resource_manager.endpoint, "https://management.chinacloudapi.cn");
        assert_eq!(some.resource_manager.api_version, "2023-01-31-preview");

        let id = "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/web";
        let text = format!(
            "resourceManager: {{endpoint: 'http://127.0.0.1:8080', identities: {{0000000A-1111-4222-8333-444444444444: {id}}}}}"
        );
        let local = identity(&text).resource_manager;
        assert_eq!(local.endpoint, "http://127.0.0.1:8080");
        assert_eq!(local.identities["0000000a-1111-4222-8333-444444444444"].name, "web");
    }

    #[test]
    fn a_configuration_with_defaults_shown_is_read_as_the_same() {
        let text =
            "identity: {label: \"off\", namespaces: [shop], cloud: us-government, credentialFiles: [/etc/c.json]}";
        let config = parse(&format!("{HEAD}{text}")).unwrap();
        let shown = serde_saphyr::to_string(&config.with_defaults_shown()).unwrap();
        assert_eq!(parse(&shown).unwrap().identity, config.identity, "{shown}");
        assert_eq!(shown.matches("\nidentity:").count(), 1, "{shown}");
    }

    #[test]
    fn a_wrong_type_is_reported_with_field_and_expected_type() {
        for (text, expected) in [
            ("mode: [prefer]", r#"line 3, column 7: mode: expected "prefer", "late", "bridge", "require" or "off""#),
            ("profiles: {~: {}}", "line 3, column 12: profiles: expected a string, got null"),
            ("profiles: []", "line 3, column 11: profiles: expected a map of fields"),
            ("profiles: x", "line 3, column 11: profiles: expected a map of fields"),
            ("network: keep", "line 3, column 10: network: expected a map of fields"),
            ("virtualNodes: {toleration: []}", "line 3, column 28: virtualNodes.toleration: expected a map of fields"),
            ("virtualNodes: {selector: {type: x}}", "line 3, column 26: virtualNodes.selector: expected a string"),
            (
                "late: {after: 90}",
                r#"line 3, column 15: late.after: invalid duration "90", expected from 0s to 24h, such as 90s, 3m or 1h30m"#,
            ),
            ("overrides: {pod: mode}", "line 3, column 18: overrides.pod: expected a list"),
        ] {
            assert_eq!(parse(&format!("{HEAD}{text}")).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn another_api_version_or_kind_is_refused() {
        let error = parse("apiVersion: spillway.dev/v1\nkind: SpillwayConfiguration\n").unwrap_err().to_string();
        assert_eq!(
            error,
            r#"line 1, column 13: apiVersion: unknown value "spillway.dev/v1", expected "spillway.dev/v1alpha1"; did you mean "spillway.dev/v1alpha1"?"#
        );
        assert!(
            parse("apiVersion: spillway.dev/v1alpha1\nkind: Pod\n")
                .unwrap_err()
                .to_string()
                .contains("unknown value \"Pod\"")
        );
        assert!(parse("mode: prefer\n").unwrap_err().to_string().contains("missing field \"apiVersion\""));
    }
}
