//! What is wrong with an object of a custom kind: its schema's rules, its replicas, objects in it, lists of distinct items.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Custom, Scale, embedded};
use crate::kind::{Kind, Part};
use crate::schema::{Field, ListType, Shape, Type};
use crate::status::FieldError;
use crate::validate::Errors;

/// Of a new object, metadata apart.
pub fn create(kind: &Kind, custom: &Custom, object: &Value, errors: &mut Errors) {
    errors.extend(custom.rules.check(object, None, ""));
    replicas(custom, object, errors);
    status_replicas(custom, object, errors);
    shape(kind, object, errors);
}

/// Of a new state, through the object itself or a part of it.
pub fn update(kind: &Kind, custom: &Custom, part: Option<Part>, new: &Value, old: &Value, errors: &mut Errors) {
    if part == Some(Part::Status) {
        // Only what this path may change is held against the schema.
        if let (Some(rules), Some(status)) = (custom.rules.property("status"), new.get("status")) {
            errors.extend(rules.check(status, old.get("status"), "status"));
        }
        return status_replicas(custom, new, errors);
    }
    errors.extend(custom.rules.check(new, Some(old), ""));
    replicas(custom, new, errors);
    status_replicas(custom, new, errors);
    let mut before = Vec::new();
    structure(kind.schema.ty(), object_of(old), "", Look::Lists, &mut before);
    structure(kind.schema.ty(), object_of(new), "", Look::Embedded, errors);
    if before.is_empty() {
        structure(kind.schema.ty(), object_of(new), "", Look::Lists, errors);
    }
}

fn shape(kind: &Kind, object: &Value, errors: &mut Errors) {
    for look in [Look::Embedded, Look::Lists] {
        structure(kind.schema.ty(), object_of(object), "", look, errors);
    }
}

fn object_of(value: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&EMPTY)
}

/// A value below names of members.
pub fn at<'v>(object: &'v Value, steps: &[String]) -> &'v Value {
    steps.iter().fold(object, |value, step| &value[step.as_str()])
}

fn replicas(custom: &Custom, object: &Value, errors: &mut Errors) {
    if let Some(Scale { replicas, .. }) = &custom.scale {
        count(object, replicas, errors);
    }
}

fn status_replicas(custom: &Custom, object: &Value, errors: &mut Errors) {
    let Some(Scale { status, selector, .. }) = &custom.scale else { return };
    count(object, status, errors);
    if let Some(selector) = selector {
        let value = at(object, selector);
        if !value.is_null() && !value.is_string() {
            let path = format!(".{}", selector.join("."));
            let why = format!("{path} accessor error: {value} is of the type {}, expected string", go_type(value));
            errors.push(FieldError::invalid(path, "", why));
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn count(object: &Value, steps: &[String], errors: &mut Errors) {
    let (value, path) = (at(object, steps), format!(".{}", steps.join(".")));
    match value.as_i64() {
        None if value.is_null() => {}
        None => {
            let why = format!("{path} accessor error: {value} is of the type {}, expected int64", go_type(value));
            errors.push(FieldError::invalid(path, 0, why));
        }
        Some(n) if n < 0 => errors.push(FieldError::invalid(path, n, "should be a non-negative integer")),
        Some(n) if n > i64::from(i32::MAX) => {
            errors.push(FieldError::invalid(path, n, format!("should be less than or equal to {}", i32::MAX)));
        }
        Some(_) => {}
    }
}

/// What a walk looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Objects in an object: they say what they are, and have metadata.
    Embedded,
    /// Items of lists that tell each other apart.
    Lists,
}

fn structure(ty: &Type, map: &Map<String, Value>, path: &str, look: Look, errors: &mut Errors) {
    for (name, value) in map {
        if let Some(field) = ty.field(name) {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            member(field, value, &path, look, errors);
        }
    }
}

fn member(field: &Field, value: &Value, path: &str, look: Look, errors: &mut Errors) {
    if let (Look::Lists, Value::Array(items)) = (look, value) {
        match field.list_type {
            Some(ListType::Set) => distinct(items.iter().cloned(), items, path, errors),
            Some(ListType::Map) => keyed(field, items, path, errors),
            _ => {}
        }
    }
    below(&field.shape, value, path, look, errors);
}

fn below(shape: &Shape, value: &Value, path: &str, look: Look, errors: &mut Errors) {
    match (shape, value) {
        (Shape::Described(field), value) => member(field, value, path, look, errors),
        (Shape::Made(ty), Value::Object(map)) => {
            let is_object = ty.field("metadata").is_some_and(|field| matches!(field.shape, Shape::Struct(_)));
            if look == Look::Embedded && is_object {
                embedded::check(value, path, errors);
            }
            structure(ty, map, path, look, errors);
        }
        (Shape::List(item), Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                below(item, value, &format!("{path}[{i}]"), look, errors);
            }
        }
        (Shape::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                below(item, value, &format!("{path}[{key}]"), look, errors);
            }
        }
        _ => {}
    }
}

fn keyed(field: &Field, items: &[Value], path: &str, errors: &mut Errors) {
    if let Some((i, item)) = items.iter().enumerate().find(|(_, item)| !item.is_null() && !item.is_object()) {
        let why = "must be an object for an array of list-type map";
        return errors.push(FieldError::invalid(format!("{path}[{i}]"), item.clone(), why));
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let given = field.list_keys.iter().filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())));
            json!(given.collect::<Map<String, Value>>())
        })
        .collect();
    distinct(keys.iter().cloned(), &keys, path, errors);
}

/// Each value that is there again is told once, where it comes the second time.
fn distinct(values: impl Iterator<Item = Value>, shown: &[Value], path: &str, errors: &mut Errors) {
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    for (i, value) in values.enumerate() {
        let text = value.to_string();
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(FieldError::duplicate(format!("{path}[{i}]"), shown[i].clone()));
        }
    }
}
