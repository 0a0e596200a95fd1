//! What a write through a subresource takes from what was sent: its own slice. All else stands, whatever the body says.

use serde_json::{Map, Value};

use super::{keep_field, put, section, with_replicas};
use crate::custom::at;
use crate::kind::{Kind, Part};

/// Puts what may change through `part` over the old object.
pub(super) fn take(kind: &Kind, part: Part, new: &mut Value, old: &Value) {
    let mut out = match part {
        Part::Status => status(kind, new, old),
        Part::Scale => scaled(kind, new, old),
        // What no kind describes changes nothing.
        _ => with_spec(new, old, |_, _| {}),
    };
    if let Some(update) = kind.behaviour.update_part {
        update(part, &mut out, new, old);
    }
    *new = out;
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

fn scaled(kind: &Kind, new: &Value, old: &Value) -> Value {
    match kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(scale) => {
            let mut out = with_spec(new, old, |_, _| {});
            with_replicas(kind, &mut out, at(new, &scale.replicas).clone());
            out
        }
        None => with_spec(new, old, |spec, sent| put(spec, sent, "replicas")),
    }
}

fn status(kind: &Kind, new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    if let Some(map) = out.as_object_mut() {
        put(map, new, "status");
        map.extend(new.get("metadata").map(|metadata| ("metadata".to_owned(), metadata.clone())));
    }
    for name in kind.behaviour.status_keeps {
        keep_field(&mut out, old, "metadata", name);
    }
    out
}
