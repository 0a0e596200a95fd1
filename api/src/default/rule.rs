//! What rules of defaults are made of.

use serde_json::{Map, Value, json};

pub(crate) type Object = Map<String, Value>;

pub(crate) type Rule = fn(&mut Object);

/// A type by its name in the schema, and what it fills in.
pub type TypeDefault = (&'static str, Rule);

/// The zero value counts as absent (a field that is not a pointer in Go).
pub(crate) fn set(map: &mut Object, name: &str, value: impl Into<Value>) {
    let absent = match map.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(_) => false,
    };
    if absent {
        map.insert(name.into(), value.into());
    }
}

/// Only absence counts (a pointer in Go).
pub(crate) fn set_absent(map: &mut Object, name: &str, value: impl Into<Value>) {
    if map.get(name).is_none_or(Value::is_null) {
        map.insert(name.into(), value.into());
    }
}

pub(crate) fn nested(map: &mut Object, name: &str, run: impl FnOnce(&mut Object)) {
    if let Some(inner) = map.entry(name.to_string()).or_insert_with(|| json!({})).as_object_mut() {
        run(inner);
    }
}

pub(crate) fn text<'a>(map: &'a Object, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}
