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
    host_ports(spec).for_each(|path| tell(path, "connections to it on the node are not forwarded to the container"));
    if !spec["resourceClaims"].is_null() {
        tell("spec.resourceClaims".into(), "no device is allocated");
    }
    found
}

/// On the node's network a container is where its port says anyway.
fn host_ports(spec: &Value) -> impl Iterator<Item = String> {
    let shared = spec["hostNetwork"] == true;
    let lists = ["initContainers", "containers"].into_iter().filter(move |_| !shared);
    let containers = lists.flat_map(|list| items(&spec[list]).enumerate().map(move |(i, one)| (list, i, one)));
    containers.flat_map(|(list, i, container)| {
        let ports = items(&container["ports"]).enumerate();
        let given = ports.filter(|(_, port)| port["hostPort"].as_i64().is_some_and(|number| number != 0));
        given.map(move |(j, _)| format!("spec.{list}[{i}].ports[{j}].hostPort"))
    })
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
        let ports = json!([{"name": "c", "ports": [{"containerPort": 1}, {"containerPort": 80, "hostPort": 80}]}]);
        let want = "amphipod: spec.containers[0].ports[1].hostPort is not acted on yet: connections to it on the node are not forwarded to the container";
        assert_eq!(warnings(&pods, &json!({"spec": {"containers": ports}})), [want]);
        assert!(warnings(&pods, &json!({"spec": {"hostNetwork": true, "containers": ports}})).is_empty());
    }
}
