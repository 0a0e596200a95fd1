//! What is accepted and stored, and does not do yet what its documentation says: each answer says so.
//!
//! A row goes when the feature comes. The texts begin with the server's name, since no other server says them.

use serde_json::Value;

use crate::kind::Kind;
use crate::kinds::MARK;
use crate::value::items;

/// Fields of a pod's security context and of its containers' that nothing acts on.
const CONTEXT: [(&str, &str); 2] =
    [("seLinuxOptions", "no SELinux label is set"), ("windowsOptions", "there are no Windows nodes")];

pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let why = kind.behaviour.inactive;
    let mut found: Vec<String> =
        why.map(|why| format!("{MARK}this {} is stored, and not acted on yet: {why}", kind.kind)).into_iter().collect();
    if let Some((_, spec)) = crate::pod_security::pod_of(kind, object) {
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
    fn a_kind_that_nothing_acts_on_says_so() {
        let quotas = Registry::builtin().find("", "v1", "resourcequotas").unwrap();
        let want = "amphipod: this ResourceQuota is stored, and not acted on yet: no use of resources is limited";
        assert_eq!(warnings(&quotas, &json!({})), [want]);
    }

    #[test]
    fn fields_are_named_with_their_path() {
        let pods = Registry::builtin().find("", "v1", "pods").unwrap();
        let pod =
            json!({"spec": {"containers": [{"name": "c", "securityContext": {"seLinuxOptions": {"level": "s0"}}}]}});
        let want =
            "amphipod: spec.containers[0].securityContext.seLinuxOptions is not acted on yet: no SELinux label is set";
        assert_eq!(warnings(&pods, &pod), [want]);
        let strict = json!({"supplementalGroupsPolicy": "Strict"});
        assert!(
            warnings(&pods, &json!({"spec": {"securityContext": strict, "containers": [{"name": "c"}]}})).is_empty()
        );
    }
}
