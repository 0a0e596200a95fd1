//! What a node's agent may touch: its own node and lease, and what its own pods refer to.

use serde_json::Value;

use super::Attributes;
use crate::reader::Reader;
use crate::references::{self, Referenced};

/// Narrows what the `system:node` role grants to this node's own objects.
pub(super) fn may_touch(reader: &Reader, node: &str, asked: &Attributes) -> bool {
    let reading = matches!(&*asked.verb, "get" | "list" | "watch");
    match (&*asked.group, &*asked.resource) {
        ("", "nodes") => reading || asked.name.is_empty() || asked.name == node,
        ("coordination.k8s.io", "leases") => {
            asked.namespace == "kube-node-lease" && (asked.verb == "create" || asked.name == node)
        }
        // Which of all it sees a node has to say in its selector.
        ("", "pods") if matches!(&*asked.verb, "list" | "watch") => asked.node_name.as_deref() == Some(node),
        ("", "pods") if asked.verb == "create" && asked.subresource.is_empty() => true,
        ("", "pods") => bound_here(reader, node, asked),
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
            !asked.name.is_empty()
                && own_pods(reader, node, &asked.namespace).any(|pod| refers(&pod, &asked.resource, &asked.name))
        }
        _ => true,
    }
}

fn bound_here(reader: &Reader, node: &str, asked: &Attributes) -> bool {
    // A pod that is gone is nobody's: the answer is then "not found", which tells nothing.
    reader.lookup("", "pods", &asked.namespace, &asked.name).is_none_or(|pod| pod.value()["spec"]["nodeName"] == node)
}

fn own_pods(reader: &Reader, node: &str, namespace: &str) -> impl Iterator<Item = Value> {
    let pods = reader.listed("", "pods", namespace);
    pods.into_iter()
        .filter(move |pod| pod.header.fields.iter().any(|(field, value)| field == "spec.nodeName" && **value == *node))
        .map(|pod| pod.value())
}

/// Whether a pod refers to an object.
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let of = match resource {
        "serviceaccounts" => return spec["serviceAccountName"] == name,
        "secrets" => Referenced::Secrets,
        "configmaps" => Referenced::ConfigMaps,
        _ => Referenced::Claims,
    };
    references::to(spec, of, name)
}
