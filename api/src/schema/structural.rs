//! Structural schemas (OpenAPI v3, as a CustomResourceDefinition holds them) as types like those of the table: what
//! belongs to an object, what is filled in, and how it merges. What its values have to be is in [`crate::custom::rules`].

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Field, ListType, Reading, Shape, Type, Unknown, builtin};
use crate::value::{entries, items, text};

const METADATA: &str = "apis.meta.v1.ObjectMeta";

/// The type of a kind's objects. `name` is what it is called in documents; every object has its type and its metadata.
pub fn object(name: &str, schema: &Value) -> Type {
    let mut fields: Vec<Field> = properties(schema).collect();
    identify(&mut fields);
    named(name, schema).with_fields(fields)
}

fn named(name: &str, schema: &Value) -> Type {
    Type {
        name: name.to_owned().into(),
        openapi: name.to_owned().into(),
        atomic: schema["x-kubernetes-map-type"] == "atomic",
        reading: Reading::Plain,
        unknown: if schema["x-kubernetes-preserve-unknown-fields"] == true { Unknown::Kept } else { Unknown::Dropped },
        declared: Vec::new(),
        fields: Vec::new(),
        by_name: HashMap::new(),
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = Field> {
    entries(&schema["properties"]).map(|(name, schema)| field(name, schema))
}

/// What says of a whole object what it is, whatever a schema says of it.
fn identify(fields: &mut Vec<Field>) {
    let own = [("apiVersion", Shape::String), ("kind", Shape::String), ("metadata", builtin::shape_of(METADATA))];
    fields.retain(|field| own.iter().all(|(name, _)| field.name != *name));
    fields.extend(own.map(|(name, shape)| Field { shape, ..field(name, &Value::Null) }));
}

/// A member, or (without a name) whatever is in a list or map.
fn field(name: &str, schema: &Value) -> Field {
    let default = schema.get("default").filter(|value| !value.is_null());
    Field {
        name: name.to_owned().into(),
        shape: shape(schema),
        pointer: false,
        tag: 0,
        omit_empty: true,
        required: false,
        inline: false,
        default: default.map(|value| value.to_string().into()),
        options: Vec::new(),
        format: None,
        list_type: match text(&schema["x-kubernetes-list-type"]) {
            "set" => Some(ListType::Set),
            "map" => Some(ListType::Map),
            "atomic" => Some(ListType::Atomic),
            _ => None,
        },
        list_keys: items(&schema["x-kubernetes-list-map-keys"]).map(|key| text(key).to_owned().into()).collect(),
        atomic_map: schema["x-kubernetes-map-type"] == "atomic",
        patch_merge: false,
        retain_keys: false,
        merge_key: None,
        nullable: schema["nullable"] == true,
    }
}

fn shape(schema: &Value) -> Shape {
    if schema["x-kubernetes-int-or-string"] == true {
        return Shape::IntOrString;
    }
    match text(&schema["type"]) {
        "string" => Shape::String,
        "boolean" => Shape::Bool,
        "integer" => Shape::Int64,
        "number" => Shape::Float,
        "array" => Shape::List(Box::new(member(&schema["items"]))),
        "object" => match &schema["additionalProperties"] {
            additional @ Value::Object(_) => Shape::Map(Box::new(member(additional))),
            Value::Bool(true) => Shape::Map(Box::new(Shape::Open)),
            _ => structure(schema),
        },
        _ if schema["properties"].is_object() => structure(schema),
        _ => Shape::Open,
    }
}

fn structure(schema: &Value) -> Shape {
    let mut fields: Vec<Field> = properties(schema).collect();
    if schema["x-kubernetes-embedded-resource"] == true {
        identify(&mut fields);
    }
    Shape::Made(Arc::new(named("", schema).with_fields(fields)))
}

/// What is in a list or map; of most there is nothing to say but their shape.
fn member(schema: &Value) -> Shape {
    if !schema.is_object() {
        return Shape::Open;
    }
    let field = field("", schema);
    let plain = field.default.is_none() && field.list_type.is_none() && !field.atomic_map && !field.nullable;
    if plain { field.shape } else { Shape::Described(Arc::new(field)) }
}
