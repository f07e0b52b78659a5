//! Pods that ask for another platform than virtual nodes have.

use crate::pod::Pod;

/// Virtual nodes run Linux containers. (microsoft/virtualnodesOnAzureContainerInstances README; AKS docs, "virtual nodes".)
///
/// Reads `spec.os.name` and `spec.nodeSelector["kubernetes.io/os"]`, also under its former name `beta.kubernetes.io/os`.
pub(super) fn windows(pod: &Pod<'_>) -> bool {
    let os = pod.spec.os.as_ref().and_then(|os| os.name.as_deref());
    let selected = |key| pod.spec.node_selector.as_ref().and_then(|selector| selector.get(key));
    [os, selected("kubernetes.io/os"), selected("beta.kubernetes.io/os")].contains(&Some("windows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_windows_pod_never_overflows() {
        for (spec, expected) in [
            (r#"{"os":{"name":"windows"}}"#, true),
            (r#"{"nodeSelector":{"kubernetes.io/os":"windows"}}"#, true),
            (r#"{"nodeSelector":{"beta.kubernetes.io/os":"windows"}}"#, true),
            (r#"{"os":{"name":"linux"},"nodeSelector":{"kubernetes.io/os":"linux"}}"#, false),
            (r#"{"os":null,"nodeSelector":null}"#, false),
        ] {
            let pod = format!(r#"{{"metadata":{{}},"spec":{spec}}}"#);
            let view: Pod<'_> = serde_json::from_str(&pod).unwrap();
            assert_eq!(windows(&view), expected, "{spec}");
        }
    }
}
