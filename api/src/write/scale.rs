//! An object as the Scale that its `/scale` takes and gives.

use serde_json::{Map, Value, json};

use super::section;
use crate::custom::at;
use crate::kind::Kind;

/// The `autoscaling/v1` Scale of an object.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let old = &object["metadata"];
    let mut metadata = Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata.extend(old.get(name).map(|v| (name.to_string(), v.clone())));
    }
    let scale = kind.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let (replicas, current) = match scale {
        Some(scale) => (at(object, &scale.replicas), at(object, &scale.status)),
        None => (&object["spec"]["replicas"], &object["status"]["replicas"]),
    };
    let mut spec = Map::new();
    if replicas.as_i64().is_some_and(|replicas| replicas != 0) {
        spec.insert("replicas".into(), replicas.clone());
    }
    let mut status = json!({"replicas": current.as_i64().unwrap_or(0)});
    let text = match scale {
        Some(scale) => scale.selector.as_ref().map_or("", |steps| crate::value::text(at(object, steps))).to_owned(),
        None => selected(object),
    };
    if !text.is_empty() {
        status["selector"] = json!(text);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// What a workload's selector chooses, as a text.
fn selected(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    match crate::selector::Labels::from_object(selector) {
        Ok(selector) if object["kind"] != "ReplicationController" => selector.to_string(),
        _ => crate::selector::Labels::from_map(selector).to_string(),
    }
}

/// An object of nothing but its replicas.
pub fn with_replicas(kind: &Kind, object: &mut Value, replicas: Value) {
    match kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(scale) => {
            let Some((last, above)) = scale.replicas.split_last() else { return };
            let place = above.iter().fold(object, |object, step| {
                section(object, step);
                &mut object[step.as_str()]
            });
            place[last.as_str()] = replicas;
        }
        None => {
            section(object, "spec").insert("replicas".into(), replicas);
        }
    }
}

/// Sets an object's replicas (and the version to match) from a Scale.
pub fn apply_scale(kind: &Kind, object: &mut Value, scale: &Value) {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    with_replicas(kind, object, json!(replicas));
    if let Some(version) = scale["metadata"].get("resourceVersion") {
        section(object, "metadata").insert("resourceVersion".into(), version.clone());
    }
}
