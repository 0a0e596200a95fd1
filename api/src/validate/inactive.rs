//! What is accepted and stored, and does not do yet what its documentation says: each answer says so.
//!
//! A row goes when the feature comes. The texts begin with the server's name, since no other server says them.

use serde_json::Value;

use super::{items, text};
use crate::kind::Kind;

/// The beginning of every text.
pub const MARK: &str = "amphipod: ";

/// Kinds that nothing acts on.
const KINDS: [(&str, &str, &str); 21] = [
    ("networking.k8s.io", "networkpolicies", "no traffic is restricted"),
    ("networking.k8s.io", "ingresses", "no traffic is routed by it"),
    ("", "resourcequotas", "no use of resources is limited"),
    ("", "replicationcontrollers", "no pods are made for it"),
    ("", "persistentvolumes", "no volume is bound or mounted"),
    ("", "persistentvolumeclaims", "no volume is bound or provisioned"),
    ("storage.k8s.io", "storageclasses", "no volume is provisioned"),
    ("apps", "statefulsets", "no pods are made for it"),
    ("apps", "daemonsets", "no pods are made for it"),
    ("batch", "jobs", "no pods are made for it"),
    ("batch", "cronjobs", "no jobs are made for it"),
    ("autoscaling", "horizontalpodautoscalers", "nothing is scaled"),
    ("policy", "poddisruptionbudgets", "its status is not counted, so evictions of the pods it selects are refused"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "no webhook is called"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", "no webhook is called"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "no request is held against it"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "no request is held against its policy"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "its resources are not served"),
    ("apiregistration.k8s.io", "apiservices", "no request is forwarded"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", "requests are not classified by it"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "requests are not limited by it"),
];

/// Fields of a pod's security context and of its containers' that nothing acts on.
const CONTEXT: [(&str, &str); 2] =
    [("seLinuxOptions", "no SELinux label is set"), ("windowsOptions", "there are no Windows nodes")];

pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let row = KINDS.iter().find(|(group, plural, _)| *group == kind.group && *plural == kind.plural);
    let mut found: Vec<String> = row
        .map(|(.., why)| format!("{MARK}this {} is stored, and not acted on yet: {why}", kind.kind))
        .into_iter()
        .collect();
    if let Some((_, spec)) = crate::pod_security::pod_of(&kind.group, &kind.plural, object) {
        found.extend(pod(spec));
    }
    found
}

fn pod(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut tell = |path: String, why: &str| found.push(format!("{MARK}{path} is not acted on yet: {why}"));
    let contexts = [("spec.securityContext".to_owned(), &spec["securityContext"])].into_iter().chain(
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| {
            let each = items(&spec[list]).enumerate();
            each.map(move |(i, container)| (format!("spec.{list}[{i}].securityContext"), &container["securityContext"]))
        }),
    );
    for (path, context) in contexts {
        for (field, why) in CONTEXT.iter().filter(|(field, _)| context.get(*field).is_some_and(|v| !v.is_null())) {
            tell(format!("{path}.{field}"), why);
        }
    }
    if text(&spec["securityContext"]["supplementalGroupsPolicy"]) == "Strict" {
        tell(
            "spec.securityContext.supplementalGroupsPolicy".into(),
            "groups of the image's user are added all the same",
        );
    }
    if !spec["resourceClaims"].is_null() {
        tell("spec.resourceClaims".into(), "no device is allocated");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;
    use serde_json::json;

    #[test]
    fn every_row_is_a_kind_and_says_so() {
        let registry = Registry::builtin();
        for (group, plural, why) in KINDS {
            let kind = registry.iter().find(|kind| kind.group == group && kind.plural == plural);
            let kind = kind.unwrap_or_else(|| panic!("{plural}.{group} is no kind"));
            let told = warnings(kind, &json!({}));
            assert!(told.len() == 1 && told[0].ends_with(why), "{told:?}");
        }
    }

    #[test]
    fn fields_are_named_with_their_path() {
        let pods = Registry::builtin().find("", "v1", "pods").unwrap();
        let pod =
            json!({"spec": {"containers": [{"name": "c", "securityContext": {"seLinuxOptions": {"level": "s0"}}}]}});
        let want =
            "amphipod: spec.containers[0].securityContext.seLinuxOptions is not acted on yet: no SELinux label is set";
        assert_eq!(warnings(&pods, &pod), [want]);
        assert!(warnings(&pods, &json!({"spec": {"containers": [{"name": "c"}]}})).is_empty());
    }
}
