//! What a node's agent may write of what it may touch (`NodeRestriction`): its own node and lease, not what steers pods
//! towards it, and of pods their end and their status.

use std::collections::BTreeSet;

use api::status::Status;
use serde_json::Value;

use super::super::Target;

/// Labels with Kubernetes' own prefixes that an agent sets about its machine.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// What administrators mark nodes with that a node shall not give itself.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io";

fn is_below(domain: &str, of: &str) -> bool {
    domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
}

fn is_forbidden(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let kubernetes = is_below(domain, "kubernetes.io") || is_below(domain, "k8s.io");
    let own = OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|prefix| is_below(domain, prefix));
    is_below(domain, RESTRICTED_PREFIX) || (kubernetes && !own)
}

/// Labels that differ and that an agent may not set.
fn forbidden_labels(new: &Value, old: &Value) -> Option<String> {
    let (new, old) = (&new["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys: BTreeSet<&String> =
        [new, old].iter().filter_map(|labels| labels.as_object()).flat_map(|l| l.keys()).collect();
    let forbidden = keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && is_forbidden(key));
    let forbidden: Vec<&str> = forbidden.map(String::as_str).collect();
    (!forbidden.is_empty()).then(|| forbidden.join(", "))
}

/// An agent creates only what is its own, and no pods: it runs none that the API did not give it.
pub fn check_create(node: &str, target: &Target, object: &Value) -> Result<(), Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let refused = |why: String| Err(target.forbidden_named(object, &why));
    match (&*target.kind.group, &*target.kind.plural) {
        ("", "pods") => refused(format!("node {node:?} can only create mirror pods, and this cluster has none")),
        ("", "nodes") | ("coordination.k8s.io", "leases") if name != node => {
            refused(format!("node {node:?} is not allowed to create the {} of another node", target.kind.kind))
        }
        ("", "nodes") => match forbidden_labels(object, &Value::Null) {
            Some(labels) => refused(format!("node {node:?} is not allowed to set the following labels: {labels}")),
            None if !object["metadata"]["ownerReferences"].is_null() => {
                refused(format!("node {node:?} is not allowed to set ownerReferences"))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

pub fn check_update(node: &str, target: &Target, new: &Value, old: &Value) -> Result<(), Status> {
    let changed = |path: &str| new.pointer(path) != old.pointer(path);
    let why = match (&*target.kind.group, &*target.kind.plural) {
        ("", "nodes") if target.name != node => {
            format!("node {node:?} is not allowed to modify node {:?}", target.name)
        }
        ("", "nodes") if changed("/metadata/ownerReferences") => {
            format!("node {node:?} is not allowed to modify ownerReferences")
        }
        ("", "nodes") if changed("/spec/taints") => format!("node {node:?} is not allowed to modify taints"),
        ("", "nodes") => match forbidden_labels(new, old) {
            Some(labels) => format!("node {node:?} is not allowed to modify labels: {labels}"),
            None => return Ok(()),
        },
        ("", "pods") if changed("/metadata/labels") => format!("node {node:?} cannot update labels through pod status"),
        _ => return Ok(()),
    };
    Err(target.forbidden(&why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::kind::Registry;
    use serde_json::json;

    fn nodes() -> Target {
        Target::new(Registry::builtin().find("", "v1", "nodes").unwrap(), "", "a")
    }

    #[test]
    fn a_node_does_not_draw_pods_to_itself() {
        let node = |labels: Value, taints: Value| json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
        let old = node(json!({}), json!([{"key": "k"}]));
        for (new, want) in [
            (
                node(json!({"node-restriction.kubernetes.io/x": "y"}), json!([{"key": "k"}])),
                "modify labels: node-restriction.kubernetes.io/x",
            ),
            (
                node(json!({"node-role.kubernetes.io/x": ""}), json!([{"key": "k"}])),
                "modify labels: node-role.kubernetes.io/x",
            ),
            (node(json!({}), json!([])), "modify taints"),
        ] {
            let refused = check_update("a", &nodes(), &new, &old).unwrap_err();
            assert!(refused.code == 403 && refused.message.ends_with(want), "{refused}");
        }
        let fine = node(
            json!({"kubernetes.io/os": "linux", "node.kubernetes.io/own": "1", "zone": "z"}),
            json!([{"key": "k"}]),
        );
        assert!(check_update("a", &nodes(), &fine, &old).is_ok());
        assert!(check_update("b", &nodes(), &old, &old).is_err(), "another node");
        let set = check_create("a", &nodes(), &node(json!({"a.k8s.io/b": "c"}), Value::Null)).unwrap_err();
        assert!(set.message.ends_with("is not allowed to set the following labels: a.k8s.io/b"), "{set}");
    }
}
