//! What a write through a subresource takes from what was sent: its own slice. All else stands, whatever the body says.

use serde_json::{Map, Value, json};

use super::{keep, keep_field, section, status_keeps_metadata};
use crate::kind::Kind;

/// Puts what may change through `subresource` over the old object.
pub(super) fn take(kind: &Kind, subresource: &str, new: &mut Value, old: &Value) {
    *new = match subresource {
        "status" => status(kind, new, old),
        // The only thing a namespace's spec has is what it is for.
        "finalize" => {
            keep(new, old, "status");
            return;
        }
        "approval" => approval(new, old),
        "ephemeralcontainers" => with_spec(new, old, |spec, sent| put(spec, sent, "ephemeralContainers")),
        "resize" => with_spec(new, old, |spec, sent| {
            for list in ["containers", "initContainers"] {
                resize(spec.get_mut(list), &sent[list]);
            }
        }),
        "scale" => with_spec(new, old, |spec, sent| put(spec, sent, "replicas")),
        // What nobody described changes nothing.
        _ => with_spec(new, old, |_, _| {}),
    };
}

fn put(target: &mut Map<String, Value>, sent: &Value, field: &str) {
    match sent.get(field) {
        Some(value) => target.insert(field.into(), value.clone()),
        None => target.remove(field),
    };
}

/// The old object with its spec changed, and of the new one's metadata what says which object is meant and who wrote.
fn with_spec(new: &Value, old: &Value, change: impl FnOnce(&mut Map<String, Value>, &Value)) -> Value {
    let mut out = old.clone();
    let metadata = section(&mut out, "metadata");
    for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
        put(metadata, &new["metadata"], field);
    }
    change(section(&mut out, "spec"), &new["spec"]);
    out
}

/// Resources and their policy, container by container of the same name; containers come and go on no other way either.
fn resize(containers: Option<&mut Value>, sent: &Value) {
    for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
        let wanted = sent.as_array().into_iter().flatten().find(|other| other["name"] == container["name"]);
        if let (Some(container), Some(wanted)) = (container.as_object_mut(), wanted) {
            put(container, wanted, "resources");
            put(container, wanted, "resizePolicy");
        }
    }
}

fn status(kind: &Kind, new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    if let Some(map) = out.as_object_mut() {
        put(map, new, "status");
        map.extend(new.get("metadata").map(|metadata| ("metadata".to_owned(), metadata.clone())));
    }
    for name in status_keeps_metadata(kind) {
        keep_field(&mut out, old, "metadata", name);
    }
    match (&*kind.group, &*kind.plural) {
        ("", "pods") if out["status"]["qosClass"].is_null() => keep_field(&mut out, old, "status", "qosClass"),
        // Whoever signs does not approve.
        ("certificates.k8s.io", "certificatesigningrequests") => {
            let decides = |condition: &Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
            let of = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let mut conditions = of(old);
            conditions.retain(decides);
            conditions.extend(of(&out).into_iter().filter(|condition| !decides(condition)));
            conditions_of(&mut out, conditions);
        }
        _ => {}
    }
    out
}

/// Whoever approves does not sign, and changes nothing of what was asked for.
fn approval(new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    if let Some(map) = out.as_object_mut() {
        map.extend(new.get("metadata").map(|metadata| ("metadata".to_owned(), metadata.clone())));
    }
    conditions_of(&mut out, new["status"]["conditions"].as_array().cloned().unwrap_or_default());
    out
}

fn conditions_of(object: &mut Value, conditions: Vec<Value>) {
    let status = section(object, "status");
    if conditions.is_empty() {
        status.remove("conditions");
    } else {
        status.insert("conditions".into(), json!(conditions));
    }
}
