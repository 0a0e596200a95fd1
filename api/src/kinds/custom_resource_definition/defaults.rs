//! Defaults in a schema, held against it: what is filled in is no worse than what a client may write.

use serde_json::Value;

use crate::custom::embedded;
use crate::custom::rules::Rules;
use crate::validate::{At, Errors, Unknown};
use crate::value::{entries, items};

/// What is wrong with the defaults below a structural schema. Below `additionalProperties` there are none. `unknown` are
/// members that a default has and its schema has not.
pub fn check(schema: &At<'_>, unknown: Unknown, errors: &mut Errors) {
    let default = schema.at("default");
    if default.is_given() {
        one(schema.value, &default, unknown, errors);
    }
    if schema.at("items").is_given() {
        check(&schema.at("items"), unknown, errors);
    }
    for (_, property) in schema.at("properties").entries() {
        check(&property, unknown, errors);
    }
}

fn one(schema: &Value, default: &At<'_>, unknown: Unknown, errors: &mut Errors) {
    if unknown == Unknown::Refused && has_unknown(schema, default.value) {
        default.invalid("must not have unknown fields", errors);
    }
    let before = errors.len();
    objects(schema, default.value, default.path(), errors);
    if errors.len() == before {
        errors.extend(Rules::compile(schema).check(default.value, None, default.path()));
    }
}

/// Whether any default of a schema has members that the schema does not.
pub fn any_unknown(schema: &Value) -> bool {
    let own = schema.get("default").is_some_and(|default| !default.is_null() && has_unknown(schema, default));
    own || (schema["items"].is_object() && any_unknown(&schema["items"]))
        || entries(&schema["properties"]).any(|(_, property)| any_unknown(property))
}

/// Whether writing the value would drop some of it.
fn has_unknown(schema: &Value, value: &Value) -> bool {
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match value {
        Value::Array(list) => {
            list.iter().any(|item| schema["items"].is_object() && has_unknown(&schema["items"], item))
        }
        Value::Object(map) => map.iter().any(|(name, member)| {
            if is_identity(schema, name) {
                return false;
            }
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(property), _) => has_unknown(property, member),
                (None, additional @ Value::Object(_)) => has_unknown(additional, member),
                (None, Value::Bool(true)) => false,
                (None, _) => !open,
            }
        }),
        _ => false,
    }
}

/// What says of an object in an object what it is needs no word of the schema.
fn is_identity(schema: &Value, name: &str) -> bool {
    schema["x-kubernetes-embedded-resource"] == true && matches!(name, "apiVersion" | "kind" | "metadata")
}

/// What is wrong with the objects in a value.
fn objects(schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
    if schema["x-kubernetes-embedded-resource"] == true && value.is_object() {
        embedded::check(value, path, errors);
    }
    for (index, item) in items(value).enumerate() {
        objects(&schema["items"], item, &format!("{path}[{index}]"), errors);
    }
    for (name, member) in entries(value) {
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(property), _) => objects(property, member, &format!("{path}.{name}"), errors),
            (None, additional @ Value::Object(_)) => objects(additional, member, &format!("{path}[{name}]"), errors),
            (None, _) => {}
        }
    }
}
