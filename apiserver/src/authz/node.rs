//! What a node's agent may touch: its own node and lease, and what its own pods refer to.

use serde_json::Value;

use super::Attributes;
use crate::engine::Engine;
use crate::object::Collection;

/// Narrows what the `system:node` role grants to this node's own objects.
pub(super) fn may_touch(engine: &Engine, node: &str, asked: &Attributes) -> bool {
    let reading = matches!(&*asked.verb, "get" | "list" | "watch");
    match (&*asked.group, &*asked.resource) {
        ("", "nodes") => reading || asked.name.is_empty() || asked.name == node,
        ("coordination.k8s.io", "leases") => {
            asked.namespace == "kube-node-lease" && (asked.verb == "create" || asked.name == node)
        }
        // Which of all it sees a node has to say in its selector.
        ("", "pods") if matches!(&*asked.verb, "list" | "watch") => asked.node_name.as_deref() == Some(node),
        ("", "pods") if asked.verb == "create" && asked.subresource.is_empty() => true,
        ("", "pods") => bound_here(engine, node, asked),
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
            !asked.name.is_empty()
                && own_pods(engine, node, &asked.namespace).any(|pod| refers(&pod, &asked.resource, &asked.name))
        }
        _ => true,
    }
}

fn bound_here(engine: &Engine, node: &str, asked: &Attributes) -> bool {
    // A pod that is gone is nobody's: the answer is then "not found", which tells nothing.
    engine.lookup("", "pods", &asked.namespace, &asked.name).is_none_or(|pod| pod.value()["spec"]["nodeName"] == node)
}

fn own_pods(engine: &Engine, node: &str, namespace: &str) -> impl Iterator<Item = Value> {
    let pods = engine.cache().collection(&Collection::new("", "pods")).list(namespace).objects;
    pods.into_iter()
        .filter(move |pod| pod.header.fields.iter().any(|(field, value)| field == "spec.nodeName" && **value == *node))
        .map(|pod| pod.value())
}

/// A pod refers to an object where any string field of a reference to that kind holds its name.
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "secrets" => any_reference(spec, &["secret", "secretRef", "secretKeyRef", "imagePullSecrets"], name),
        "configmaps" => any_reference(spec, &["configMap", "configMapRef", "configMapKeyRef"], name),
        _ => any_reference(spec, &["persistentVolumeClaim"], name),
    }
}

/// Looks through the spec for a member called one of `keys` whose `name`, `secretName` or `claimName` is `name`.
fn any_reference(value: &Value, keys: &[&str], name: &str) -> bool {
    let names = |reference: &Value| ["name", "secretName", "claimName"].iter().any(|field| reference[*field] == name);
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            let here = keys.contains(&key.as_str())
                && (names(inner) || inner.as_array().is_some_and(|list| list.iter().any(names)));
            here || any_reference(inner, keys, name)
        }),
        Value::Array(list) => list.iter().any(|inner| any_reference(inner, keys, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_they_stand() {
        let pod = json!({"spec": {
            "serviceAccountName": "robot",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}, {"name": "w", "projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
        }});
        for name in ["pull", "mounted", "env"] {
            assert!(refers(&pod, "secrets", name), "{name}");
        }
        assert!(refers(&pod, "configmaps", "ca") && refers(&pod, "serviceaccounts", "robot"));
        assert!(!refers(&pod, "secrets", "ca") && !refers(&pod, "configmaps", "mounted"));
    }
}
