//! The pure part of a write: what the server itself sets, keeps or strips before an object is validated.

mod keep;
mod scale;
mod slice;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::{Kind, Part};
use crate::kinds::{FirstStatus, Generation};
use crate::status::Status;
use crate::time::rfc3339;
use crate::uid::Uid;

pub(crate) use self::keep::{keep, keep_field, put, section};
pub use self::scale::{apply_scale, scale_of, with_replicas};

/// What the server chooses for a new object.
#[derive(Debug, Clone)]
pub struct Birth<'a> {
    pub uid: &'a Uid,
    pub now: Timestamp,
    /// Five characters for a `generateName` (see [`crate::names::suffix`]).
    pub suffix: &'a str,
}

/// Takes from a new object what only the server says, and gives it the namespace of the request path (`None` for
/// cluster-scoped kinds).
///
/// # Errors
/// 400 for another namespace than that of the path.
pub fn wipe(kind: &Kind, object: &mut Value, namespace: Option<&str>) -> Result<(), Status> {
    let metadata = section(object, "metadata");
    if let Some(namespace) = namespace.filter(|_| kind.namespaced()) {
        set_namespace(metadata, namespace)?;
    } else {
        metadata.remove("namespace");
    }
    for name in
        ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "uid", "creationTimestamp"]
    {
        metadata.remove(name);
    }
    Ok(())
}

/// System metadata of a new object: uid, time, generated name.
pub fn birth(object: &mut Value, birth: &Birth) {
    let metadata = section(object, "metadata");
    if text(metadata, "name").is_empty() && !text(metadata, "generateName").is_empty() {
        let base: String = text(metadata, "generateName").chars().take(58).collect();
        metadata.insert("name".into(), json!(format!("{base}{}", birth.suffix)));
    }
    metadata.insert("uid".into(), json!(birth.uid));
    metadata.insert("creationTimestamp".into(), json!(rfc3339(birth.now)));
}

/// The namespace of the request path, which the object may repeat but not contradict.
///
/// # Errors
/// 400 when it contradicts.
pub fn set_namespace(metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), Status> {
    match text(metadata, "namespace") {
        given if given.is_empty() || given == namespace => {
            metadata.insert("namespace".into(), json!(namespace));
            Ok(())
        }
        _ => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

/// Strips status, sets the first generation and what the kind starts with.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    if kind.subresource(Part::Status).is_some() && kind.behaviour.first_status == FirstStatus::Cleared {
        clear_status(kind, object);
    }
    match kind.behaviour.generation {
        Generation::Spec | Generation::Body | Generation::First => {
            section(object, "metadata").insert("generation".into(), json!(1));
        }
        Generation::None => {
            section(object, "metadata").remove("generation");
        }
        Generation::Client => {}
    }
    let pod = kind.behaviour.pod.and_then(|path| object.pointer_mut(path));
    if let Some(spec) = pod.and_then(|pod| pod.get_mut("spec")).and_then(Value::as_object_mut) {
        drop_image_volumes(spec);
    }
    if let Some(create) = kind.behaviour.create {
        create(object);
    }
}

/// Volumes made of images are off by default in this version: upstream drops them and their mounts.
fn drop_image_volumes(spec: &mut Map<String, Value>) {
    let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) else { return };
    let dropped: Vec<Value> = volumes.iter().filter(|v| !v["image"].is_null()).map(|v| v["name"].clone()).collect();
    if dropped.is_empty() {
        return;
    }
    volumes.retain(|v| v["image"].is_null());
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                mounts.retain(|m| !dropped.contains(&m["name"]));
            }
        }
    }
}

fn clear_status(kind: &Kind, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    *object = crate::decode::canonical(&kind.gvk(), &kind.schema, object);
}

/// Copies what this path may not change from `old` (main: status; `/status`: the rest; system metadata always) and
/// raises the generation when the desired state changed.
pub fn prepare_update(kind: &Kind, part: Option<Part>, new: &mut Value, old: &Value) {
    match part {
        Some(part) => slice::take(kind, part, new, old),
        None => {
            if kind.subresource(Part::Status).is_some() {
                keep(new, old, "status");
            }
            if let Some(update) = kind.behaviour.update {
                update(new, old);
            }
        }
    }
    let changed = match kind.behaviour.generation {
        Generation::Spec => new.get("spec") != old.get("spec"),
        Generation::Body => body(kind, new) != body(kind, old),
        Generation::Client => {
            return keep_metadata(new, old, if part.is_none() { Sender::Client } else { Sender::Server });
        }
        Generation::None | Generation::First => false,
    };
    keep_metadata(new, old, Sender::Server);
    if changed {
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        section(new, "metadata").insert("generation".into(), json!(before + 1));
    }
}

/// Who says what the generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// Everything but type, metadata and the status, where that is not the client's to write.
fn body(kind: &Kind, object: &Value) -> Map<String, Value> {
    let mut map = object.as_object().cloned().unwrap_or_default();
    for name in ["apiVersion", "kind", "metadata"] {
        map.remove(name);
    }
    if kind.custom.is_none() || kind.subresource(Part::Status).is_some() {
        map.remove("status");
    }
    map
}

/// System metadata of a stored object never changes through an update.
fn keep_metadata(new: &mut Value, old: &Value, generation: Sender) {
    let sent = new["metadata"]["generation"].clone();
    let metadata = section(new, "metadata");
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "namespace",
        "name",
    ] {
        // A wrong uid, name or namespace is refused by whoever compares them, not repaired here.
        let identity = matches!(name, "uid" | "namespace" | "name");
        if identity && metadata.get(name).is_some_and(|v| v.as_str().is_some_and(|t| !t.is_empty())) {
            continue;
        }
        match old["metadata"].get(name) {
            Some(value) => metadata.insert(name.into(), value.clone()),
            None => metadata.remove(name),
        };
    }
    if generation == Sender::Client && !sent.is_null() {
        metadata.insert("generation".into(), sent);
    }
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}
