//! Warnings: what is accepted but will surprise, as texts for `Warning: 299` headers.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::kind::Kind;
use crate::value::{entries, items, text};

/// What to tell whoever had this object accepted.
pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let mut found = kind.behaviour.warnings.map(|warnings| warnings(object)).unwrap_or_default();
    if let Some(path) = kind.behaviour.pod {
        let pod = object.pointer(path).unwrap_or(&Value::Null);
        let at = path.trim_start_matches('/').replace('/', ".");
        let under = |part: &str| if at.is_empty() { part.to_owned() } else { format!("{at}.{part}") };
        found.extend(self::pod(&pod["metadata"], &pod["spec"], &under("metadata"), &under("spec")));
    }
    if kind.custom.is_some() {
        found.extend(finalizers(&object["metadata"]));
    }
    found.extend(super::inactive::warnings(kind, object));
    found
}

/// Finalizers of which nobody can say whose they are.
fn finalizers(metadata: &Value) -> Vec<String> {
    let unknown = items(&metadata["finalizers"]).map(text).filter(|name| !super::meta::is_known_finalizer(name));
    let said = unknown.map(|name| {
        let including = if name.contains('.') { " including a path (/)" } else { "" };
        format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name{including} to avoid accidental conflicts with other finalizer writers"
        )
    });
    said.collect()
}

/// Node labels that have a newer name.
const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];

/// Every container with its path, in upstream's order.
fn containers<'a>(spec: &'a Value, path: &'a str) -> impl Iterator<Item = (String, &'a Value)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        items(&spec[list]).enumerate().map(move |(i, container)| (format!("{path}.{list}[{i}]"), container))
    })
}

/// Ports that several containers, or one twice, say they have.
fn ports(spec: &Value, path: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut seen: HashMap<(i64, &str), Vec<(String, &Value)>> = HashMap::new();
    for (path, container) in containers(spec, path) {
        for (i, port) in items(&container["ports"]).enumerate() {
            let place = format!("{path}.ports[{i}]");
            let host = |port: &Value| port["hostPort"].as_i64().unwrap_or(0);
            let others =
                seen.entry((port["containerPort"].as_i64().unwrap_or(0), text(&port["protocol"]))).or_default();
            for (other_place, other) in others.iter() {
                let (ip, other_ip) = (text(&port["hostIP"]), text(&other["hostIP"]));
                let what = if ip == other_ip && host(port) == host(other) {
                    "duplicate"
                } else if host(port) == 0 || host(other) == 0 {
                    "overlapping"
                } else if host(port) == host(other) && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{place}: {what} port definition with {other_place}"));
            }
            // A few are told; a list of thousands would be held against itself.
            if others.len() < PORTS {
                others.push((place, port));
            }
        }
    }
    out
}

/// Definitions of one port that later ones are held against.
const PORTS: usize = 8;

/// Variables that hide one of the same name.
fn variables(spec: &Value, path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (path, container) in containers(spec, path) {
        let mut seen = HashSet::new();
        for (i, variable) in items(&container["env"]).enumerate() {
            let name = text(&variable["name"]);
            let (value, reference) = (text(&variable["value"]), format!("$({name})"));
            // One that builds on the value before it hides nothing.
            let builds = variable["valueFrom"].is_null() && value != reference && value.contains(&reference);
            if !seen.insert(name) && !builds {
                let why = "which may be dropped when using apply";
                out.push(format!("{path}.env[{i}]: hides previous definition of {name:?}, {why}"));
            }
        }
    }
    out
}

fn pod(metadata: &Value, spec: &Value, metadata_path: &str, spec_path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (key, _) in entries(&metadata["annotations"]) {
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            out.push(format!("{metadata_path}.annotations[{key}]: {why}"));
        }
    }
    out.extend(ports(spec, spec_path));
    out.extend(variables(spec, spec_path));
    for (old, since, new) in OLD_LABELS {
        if spec["nodeSelector"].get(old).is_some() {
            out.push(format!("{spec_path}.nodeSelector[{old}]: deprecated since {since}; use {new:?} instead"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_and_variables_that_are_there_twice_are_told() {
        let spec = json!({"containers": [
            {"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}],
             "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}]},
            {"name": "b", "ports": [{"containerPort": 80, "protocol": "UDP", "hostPort": 8}]}]});
        assert_eq!(
            pod(&json!({}), &spec, "metadata", "spec"),
            [
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[1].ports[0]: overlapping port definition with spec.containers[0].ports[2]",
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            ]
        );
    }
}
