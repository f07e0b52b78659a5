//! Reading the file strictly: an error names the line, what was expected, and the nearest right name.

use std::fmt;

use serde_saphyr::Error as Yaml;

use super::{Configuration, file::SpillwayConfiguration};

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Line and column, both from 1, where they are known.
    pub position: Option<(u64, u64)>,
    /// What is wrong and what was expected.
    pub message: String,
    /// The nearest right name.
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

/// Modes that are part of the format's plan; a clearer word is owed to them than "unknown".
const LATER_MODES: &[&str] = &["late", "bridge", "require"];

/// Reads a configuration from YAML or JSON text. Empty text, or only comments, means the defaults.
///
/// # Errors
///
/// [`ConfigError`] for anything that is not exactly a SpillwayConfiguration: unknown or repeated fields, wrong types, another
/// `apiVersion`, values out of range.
pub fn parse(text: &str) -> Result<Configuration, ConfigError> {
    let file: Option<SpillwayConfiguration> = serde_saphyr::from_str(text).map_err(|error| describe(&error))?;
    Ok(file.unwrap_or_default().into())
}

fn describe(error: &Yaml) -> ConfigError {
    let error = error.without_snippet();
    let position = error.location().filter(|l| l.line() > 0).map(|l| (l.line(), l.column()));
    let (message, hint) = match error {
        Yaml::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown field \"{field}\", expected {}", one_of(expected)), nearest(field, expected))
        }
        Yaml::SerdeUnknownVariant { variant, .. } if LATER_MODES.contains(&variant.as_str()) => {
            (unsupported_mode(variant), None)
        }
        Yaml::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("unknown value \"{variant}\", expected {}", one_of(expected)), nearest(variant, expected))
        }
        Yaml::SerdeMissingField { field, .. } => (format!("missing field \"{field}\""), None),
        Yaml::SerdeInvalidType { unexpected, expected, .. } | Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
            (format!("expected {expected}, got {unexpected}"), None)
        }
        Yaml::DuplicateMappingKey { key: Some(key), .. } => {
            (format!("field \"{key}\" stands here a second time"), None)
        }
        Yaml::MultipleDocuments { .. } => ("a second document begins here, expected one".to_owned(), None),
        Yaml::Message { msg, .. } => (msg.clone(), None),
        other => (other.to_string(), None),
    };
    ConfigError { position, message, hint }
}

/// The word for a mode that this version does not have yet.
pub(super) fn unsupported_mode(mode: &str) -> String {
    format!("mode \"{mode}\" is not supported by this version, expected {}", one_of(super::Mode::WORDS))
}

/// Whether the word is such a mode.
pub(super) fn is_later_mode(mode: &str) -> bool {
    LATER_MODES.contains(&mode)
}

/// A list of words for a message: `"a", "b" or "c"`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|word| format!("\"{word}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
    }
}

/// The candidate that a mistyped word most likely meant, if one is near enough to be a help.
pub(super) fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    let lower = word.to_lowercase();
    let score = |candidate: &&str| strsim::jaro_winkler(&lower, &candidate.to_lowercase());
    let best = candidates.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(&best) > 0.8).then(|| best.to_owned())
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
        assert_eq!(config.profile_names().collect::<Vec<_>>(), ["enabled", "high-scale"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_the_nearest_right_name() {
        for (text, expected) in [
            (
                "network: {kubeproxy: keep}",
                r#"line 3, column 11: unknown field "kubeproxy", expected "kubeProxy" or "dns"; did you mean "kubeProxy"?"#,
            ),
            (
                "netwrok: {}",
                r#"line 3, column 1: unknown field "netwrok", expected "apiVersion", "kind", "mode", "virtualNodes", "network", "identity" or "profiles"; did you mean "network"?"#,
            ),
            (
                "mode: perfer",
                r#"line 3, column 7: unknown value "perfer", expected "prefer" or "off"; did you mean "prefer"?"#,
            ),
            (
                "mode: late",
                r#"line 3, column 7: mode "late" is not supported by this version, expected "prefer" or "off""#,
            ),
            ("mode: [prefer]", "line 3, column 7: "),
            (
                "profiles:\n  p:\n    mode: bridge",
                r#"line 5, column 11: mode "bridge" is not supported by this version, expected "prefer" or "off""#,
            ),
            ("profiles:\n  disabled: {}", "line 4, column "),
            ("profiles:\n  \"a b\": {}", "line 4, column "),
            ("profiles: []", "line 3, column 11: "),
            ("mode: prefer\nmode: off", "line 4, column 1: "),
            (
                "virtualNodes: {selector: type}",
                "line 3, column 26: invalid selector \"type\", expected one label as KEY=VALUE",
            ),
            ("virtualNodes: {selector: 'a=b,c=d'}", "line 3, column 26: invalid selector"),
            ("virtualNodes: {toleration: {key: a}}", "missing field \"effect\""),
            (
                "virtualNodes: {toleration: {key: a, effect: \"\"}}",
                "line 3, column 45: unknown value \"\", expected \"NoSchedule\" or \"NoExecute\"",
            ),
            (
                "virtualNodes: {toleration: {key: \"\", effect: NoSchedule}}",
                "invalid toleration: key \"\" is not a qualified name",
            ),
            (
                "virtualNodes: {toleration: {key: a, value: b, effect: NoSchedule}}",
                "invalid toleration: value goes with operator Equal",
            ),
            (
                "virtualNodes: {toleration: {key: a, operator: Equal, effect: NoSchedule}}",
                "invalid toleration: operator Equal needs a value",
            ),
            ("---\nmode: off", "a second document begins here"),
            ("mode: {", "line "),
        ] {
            let error = parse(&format!("{HEAD}{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}\n  got:      {error}\n  expected: {expected}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
    }

    #[test]
    fn another_api_version_or_kind_is_refused() {
        let error = parse("apiVersion: spillway.dev/v1\nkind: SpillwayConfiguration\n").unwrap_err().to_string();
        assert_eq!(
            error,
            r#"line 1, column 13: unknown value "spillway.dev/v1", expected "spillway.dev/v1alpha1"; did you mean "spillway.dev/v1alpha1"?"#
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
