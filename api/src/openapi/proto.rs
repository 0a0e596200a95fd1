//! The OpenAPI v2 document as protobuf: what kubectl before 1.28 asks for and reads as nothing else.
//!
//! The messages are those of `openapi.v2.Document`; the tables below name the members that Kubernetes' documents have.

use serde_json::{Map, Value};

/// How the value of a member is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Bool,
    Texts,
    /// A message of this type.
    One(Message),
    /// A list of messages of this type.
    Many(Message),
    /// A member for each key: a message of a name (1) and a message of this type (2), inside one message.
    Named(Message),
    /// Untyped: JSON text.
    Any,
    /// Path items by path.
    Paths,
    /// Each a choice by its `in`.
    Parameters,
    /// A schema, or a truth value.
    Choice,
    /// A message of one word.
    Type,
}

type Message = &'static [Member];

struct Member {
    name: &'static str,
    tag: u32,
    form: Form,
}

const fn member(name: &'static str, tag: u32, form: Form) -> Member {
    Member { name, tag, form }
}

/// Extensions (`x-…`) follow the other members, under the tag of this name.
const EXTENSIONS: &str = "x-";

static DOCUMENT: [Member; 4] = [
    member("swagger", 1, Form::Text),
    member("info", 2, Form::One(&INFO)),
    member("paths", 8, Form::Paths),
    member("definitions", 9, Form::Named(&SCHEMA)),
];
static INFO: [Member; 2] = [member("title", 1, Form::Text), member("version", 2, Form::Text)];
static PATH_ITEM: [Member; 6] = [
    member("get", 2, Form::One(&OPERATION)),
    member("put", 3, Form::One(&OPERATION)),
    member("post", 4, Form::One(&OPERATION)),
    member("delete", 5, Form::One(&OPERATION)),
    member("patch", 8, Form::One(&OPERATION)),
    member("parameters", 9, Form::Parameters),
];
static OPERATION: [Member; 6] = [
    member("description", 3, Form::Text),
    member("operationId", 5, Form::Text),
    member("produces", 6, Form::Texts),
    member("consumes", 7, Form::Texts),
    member("parameters", 8, Form::Parameters),
    member(EXTENSIONS, 13, Form::Any),
];
static BODY: [Member; 4] = [
    member("description", 1, Form::Text),
    member("name", 2, Form::Text),
    member("in", 3, Form::Text),
    member("schema", 5, Form::One(&SCHEMA)),
];
static QUERY: [Member; 5] = [
    member("required", 1, Form::Bool),
    member("in", 2, Form::Text),
    member("description", 3, Form::Text),
    member("name", 4, Form::Text),
    member("type", 6, Form::Text),
];
static PATH: [Member; 5] = [
    member("required", 1, Form::Bool),
    member("in", 2, Form::Text),
    member("description", 3, Form::Text),
    member("name", 4, Form::Text),
    member("type", 5, Form::Text),
];
static SCHEMA: [Member; 12] = [
    member("$ref", 1, Form::Text),
    member("format", 2, Form::Text),
    member("description", 4, Form::Text),
    member("default", 5, Form::Any),
    member("required", 19, Form::Texts),
    member("enum", 20, Form::Any),
    member("additionalProperties", 21, Form::Choice),
    member("type", 22, Form::Type),
    member("items", 23, Form::Choice),
    member("allOf", 24, Form::Many(&SCHEMA)),
    member("properties", 25, Form::Named(&SCHEMA)),
    member(EXTENSIONS, 31, Form::Any),
];

/// The document of these bytes of JSON; `None` when they are no JSON.
pub fn document(json: &[u8]) -> Option<Vec<u8>> {
    let document: Value = serde_json::from_slice(json).ok()?;
    Some(message(&DOCUMENT, &document))
}

fn message(members: Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        if member.name == EXTENSIONS {
            extensions(member.tag, value, &mut out);
        } else if let Some(value) = value.get(member.name) {
            put(member, value, &mut out);
        }
    }
    out
}

fn put(member: &Member, value: &Value, out: &mut Vec<u8>) {
    let tag = member.tag;
    match (member.form, value) {
        (Form::Text, Value::String(text)) => bytes(tag, text.as_bytes(), out),
        (Form::Bool, Value::Bool(true)) => flag(tag, true, out),
        (Form::Texts, Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).for_each(|text| bytes(tag, text.as_bytes(), out));
        }
        (Form::One(type_), value) => bytes(tag, &message(type_, value), out),
        (Form::Many(type_), Value::Array(items)) => {
            items.iter().for_each(|item| bytes(tag, &message(type_, item), out))
        }
        (Form::Named(type_), Value::Object(map)) => bytes(tag, &named(1, type_, map), out),
        (Form::Paths, Value::Object(map)) => bytes(tag, &named(2, &PATH_ITEM, map), out),
        (Form::Parameters, Value::Array(items)) => items.iter().for_each(|item| bytes(tag, &parameter(item), out)),
        (Form::Choice, value) => bytes(tag, &choice(value), out),
        (Form::Type, Value::String(text)) => bytes(tag, &wrapped(1, text.as_bytes()), out),
        (Form::Any, Value::Array(items)) if member.name == "enum" => {
            items.iter().for_each(|item| bytes(tag, &any(item), out))
        }
        (Form::Any, value) => bytes(tag, &any(value), out),
        _ => {}
    }
}

fn choice(value: &Value) -> Vec<u8> {
    match value {
        Value::Bool(allowed) => {
            let mut out = Vec::new();
            flag(2, *allowed, &mut out);
            out
        }
        schema => wrapped(1, &message(&SCHEMA, schema)),
    }
}

fn named(tag: u32, type_: Message, map: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in map {
        let mut entry = Vec::new();
        bytes(1, name.as_bytes(), &mut entry);
        bytes(2, &message(type_, value), &mut entry);
        bytes(tag, &entry, &mut out);
    }
    out
}

/// `ParametersItem.parameter` → body (1), or non-body (2) → query (3) or path (4).
fn parameter(value: &Value) -> Vec<u8> {
    let inner = match value["in"].as_str() {
        Some("body") => wrapped(1, &message(&BODY, value)),
        Some("path") => wrapped(2, &wrapped(4, &message(&PATH, value))),
        _ => wrapped(2, &wrapped(3, &message(&QUERY, value))),
    };
    wrapped(1, &inner)
}

fn extensions(tag: u32, value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with(EXTENSIONS)) {
        let mut entry = Vec::new();
        bytes(1, name.as_bytes(), &mut entry);
        bytes(2, &any(value), &mut entry);
        bytes(tag, &entry, out);
    }
}

fn any(value: &Value) -> Vec<u8> {
    wrapped(2, value.to_string().as_bytes())
}

fn wrapped(tag: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(tag, inner, &mut out);
    out
}

fn flag(tag: u32, value: bool, out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3, out);
    varint(u64::from(value), out);
}

fn bytes(tag: u32, content: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3 | 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_go_under_their_tags() {
        let made = document(br#"{"swagger": "2.0", "definitions": {"A": {"type": "string", "x-k": [1]}}}"#).unwrap();
        let schema =
            [&[0xB2, 0x01, 8, 0x0A, 6][..], b"string", &[0xFA, 0x01, 12, 0x0A, 3], b"x-k", &[0x12, 5, 0x12, 3], b"[1]"]
                .concat();
        let entry = [&[0x0A, 1][..], b"A", &[0x12, schema.len() as u8], &schema].concat();
        let all = [&[0x0A, entry.len() as u8][..], &entry].concat();
        assert_eq!(made, [&[0x0A, 3][..], b"2.0", &[0x4A, all.len() as u8], &all].concat());
        assert_eq!(document(b"{"), None);
    }

    #[test]
    fn query_parameters_are_found_where_clients_look() {
        let made = parameter(&serde_json::json!({"in": "query", "name": "n"}));
        assert_eq!(made, [&[0x0A, 14, 0x12, 12, 0x1A, 10, 0x12, 5][..], b"query", &[0x22, 1], b"n"].concat());
    }
}
