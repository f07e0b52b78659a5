//! Label sets of metrics.

/// Declares a set of labels. Their values come from closed sets.
macro_rules! labels {
    ($name:ident { $($field:ident),+ }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        struct $name { $($field: &'static str),+ }
    };
}
pub(super) use labels;

/// Labels of a family with one sample. The sample is absent until the value is known, so that no alert sees an expiry of
/// 0.
pub(super) type NoLabels = Vec<(&'static str, &'static str)>;
