//! What a resize may change: what containers use, as long as it stays the same kind of pod.

use serde_json::{Map, Value};

use super::qos_class;
use crate::status::FieldError;
use crate::validate::{Errors, pod::resources};
use crate::value::items;

/// What containers use may change, as long as it stays the same kind of pod.
pub fn check(new: &Value, old: &Value, errors: &mut Errors) {
    let (now, was) = (qos_class(new), qos_class(old));
    if now != was {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", new["status"]["qosClass"].clone(), why));
    }
    let others = |pod: &Value| {
        let mut pod = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array_mut().into_iter().flatten() {
                container.as_object_mut().map(|map| map.remove("resizePolicy"));
                for amounts in ["limits", "requests"] {
                    let amounts = container["resources"].get_mut(amounts).and_then(Value::as_object_mut);
                    if let Some(map) = amounts {
                        map.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
                    }
                }
                // Nothing said about resources is the same as empty resources.
                let empty = |value: &Value| {
                    value.as_object().is_none_or(|map| map.values().all(|v| v.as_object().is_some_and(Map::is_empty)))
                };
                if empty(&container["resources"]) {
                    container.as_object_mut().map(|map| map.remove("resources"));
                }
            }
        }
        pod
    };
    if others(new) != others(old) {
        errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
    body_resources(new, errors);
}

/// What every container may ask for.
fn body_resources(pod: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&pod["spec"][list]).enumerate() {
            resources(&container["resources"], &format!("spec.{list}[{i}].resources"), errors);
        }
    }
}
