//! Members of objects: made, kept as they were, taken as they were sent.

use serde_json::{Map, Value, json};

pub(crate) fn section<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object[name];
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("made an object just above")
}

pub(crate) fn keep(new: &mut Value, old: &Value, part: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(part) {
        Some(value) => map.insert(part.into(), value.clone()),
        None => map.remove(part),
    };
}

pub(crate) fn keep_field(new: &mut Value, old: &Value, part: &str, field: &str) {
    let before = old[part].get(field).cloned();
    let map = section(new, part);
    match before {
        Some(value) => map.insert(field.into(), value),
        None => map.remove(field),
    };
}

pub(crate) fn put(target: &mut Map<String, Value>, sent: &Value, field: &str) {
    match sent.get(field) {
        Some(value) => target.insert(field.into(), value.clone()),
        None => target.remove(field),
    };
}
