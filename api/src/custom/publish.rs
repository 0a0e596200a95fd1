//! Schemas of custom kinds as OpenAPI documents show them.

use serde_json::{Value, json};

use super::Custom;
use crate::kind::Kind;
use crate::value::{entries, items};

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V2,
    V3,
}

impl Version {
    fn reference(self, name: &str) -> String {
        match self {
            Version::V2 => format!("#/definitions/{name}"),
            Version::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The schema of an object; the types that it refers to are metadata's.
pub fn object(kind: &Kind, custom: &Custom, version: Version) -> Value {
    let mut schema = custom.schema();
    if version == Version::V2 && schema["x-kubernetes-preserve-unknown-fields"] == true {
        // Clients would refuse every field that is not named.
        schema = json!({"type": "object"});
    } else {
        unfold(&mut schema);
        if version == Version::V2 {
            simplify(&mut schema);
        }
        embed(&mut schema, version);
        identify(&mut schema, version, OBJECT_META, METADATA);
    }
    mark(&mut schema, kind, &kind.kind);
    let fields: Vec<Value> = custom.selectable().map(|field| json!({"fieldPath": field.label})).collect();
    if !fields.is_empty() {
        schema["x-kubernetes-selectable-fields"] = json!(fields);
    }
    schema
}

/// The schema of a list of them.
pub fn list(kind: &Kind, version: Version, item: &str) -> Value {
    let more = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
    let mut schema = json!({
        "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {"items": {
            "description": format!("List of {}. {more}", kind.plural),
            "type": "array",
            "items": {"$ref": version.reference(item)},
        }},
    });
    identify(&mut schema, version, LIST_META, LIST_METADATA);
    mark(&mut schema, kind, &kind.list_kind);
    schema
}

fn mark(schema: &mut Value, kind: &Kind, name: &str) {
    schema["x-kubernetes-group-version-kind"] = json!([{"group": kind.group, "version": kind.version, "kind": name}]);
}

fn identify(schema: &mut Value, version: Version, metadata: &str, described: &str) {
    let reference = json!({"$ref": version.reference(metadata)});
    let mut shown = match version {
        Version::V2 => reference,
        Version::V3 => json!({"allOf": [reference]}),
    };
    shown["description"] = json!(described);
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"type": "string", "description": API_VERSION});
    properties["kind"] = json!({"type": "string", "description": KIND});
    properties["metadata"] = shown;
}

/// Every schema below one that describes a value of its own.
fn each(schema: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            each(&mut schema[field], visit);
        }
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| each(property, visit));
    }
    visit(schema);
}

/// What may be a number or a text says so in words that every reader knows.
fn unfold(schema: &mut Value) {
    each(schema, &mut |schema| {
        let said = items(&schema["anyOf"]).len() > 0 || items(&schema["allOf"]).any(|rule| rule["anyOf"].is_array());
        if schema["x-kubernetes-int-or-string"] == true && !said {
            schema["anyOf"] = json!([{"type": "integer"}, {"type": "string"}]);
        }
    });
}

/// What version 2, and clients that read it, cannot have.
fn simplify(schema: &mut Value) {
    each(schema, &mut |schema| {
        let nullable: Vec<String> = entries(&schema["properties"])
            .filter(|(_, s)| s["nullable"] == true)
            .map(|(name, _)| name.clone())
            .collect();
        let open_values = schema["additionalProperties"]["nullable"] == true;
        let Some(map) = schema.as_object_mut() else { return };
        for field in ["allOf", "anyOf", "oneOf", "not"] {
            map.remove(field);
        }
        if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| !open_values && !nullable.iter().any(|field| *name == **field));
            if required.is_empty() {
                map.remove("required");
            }
        }
        let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        let empty = map.get("nullable") == Some(&Value::Bool(true));
        if open || empty {
            map.remove("items");
            map.remove("properties");
        }
        let typed = map.get("type").and_then(Value::as_str).unwrap_or_default();
        let untyped = empty || (typed == "array" && !map.contains_key("items")) || (open && typed == "object");
        if untyped {
            map.remove("type");
        }
    });
    // Kept until the schemas around it have seen it.
    each(schema, &mut |schema| {
        schema.as_object_mut().map(|map| map.remove("nullable"));
    });
}

fn embed(schema: &mut Value, version: Version) {
    each(schema, &mut |schema| {
        let open = version == Version::V2 && schema["x-kubernetes-preserve-unknown-fields"] == true;
        if schema["x-kubernetes-embedded-resource"] != true || open {
            return;
        }
        identify(schema, version, OBJECT_META, METADATA);
        let mut required: Vec<Value> = items(&schema["required"]).cloned().collect();
        for name in ["kind", "apiVersion"] {
            if !required.contains(&json!(name)) {
                required.push(json!(name));
            }
        }
        schema["required"] = json!(required);
    });
}
