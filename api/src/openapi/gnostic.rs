//! The v2 document in protobuf, which is the only form that client-go reads.
//!
//! The messages are those of gnostic's `openapi.v2`. One table says which key of the JSON document is which tag, and in
//! which form; one engine writes them. Extensions (`x-…`) go into each message's list of named YAML texts.

use serde_json::{Map, Value};

use crate::encode::{put_bytes, put_varint, yaml};

type Rule = (&'static str, u32, Form);

/// The keys of one message.
struct Message {
    rules: &'static [Rule],
    /// Tag of `vendor_extension`.
    extensions: u32,
}

/// How a key's value is written below its tag.
enum Form {
    Text,
    Texts,
    Flag,
    Int,
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// In a message of its own, or several, each with the value under the given tag.
    Within(&'static [u32], &'static Message),
    /// A JSON object as repeated pairs of name and value: the pairs' tag, what the value is wrapped in, the value.
    Named(u32, &'static [u32], &'static Message),
    /// `type`: one text or several.
    Types,
    /// `additionalProperties`: a schema or a boolean.
    SchemaOrFlag,
    Parameters,
}

use Form::{Any, Anys, Flag, Int, Many, Named, One, Parameters, SchemaOrFlag, Text, Texts, Types, Within};

static DOCUMENT: Message = Message {
    rules: &[
        ("swagger", 1, Text),
        ("info", 2, One(&INFO)),
        ("paths", 8, Named(2, &[], &PATH)),
        ("definitions", 9, Named(1, &[], &SCHEMA)),
        ("securityDefinitions", 13, Named(1, &[2], &API_KEY)),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { rules: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static API_KEY: Message = Message {
    rules: &[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)],
    extensions: 5,
};

static PATH: Message = Message {
    rules: &[
        ("get", 2, One(&OPERATION)),
        ("put", 3, One(&OPERATION)),
        ("post", 4, One(&OPERATION)),
        ("delete", 5, One(&OPERATION)),
        ("patch", 8, One(&OPERATION)),
        ("parameters", 9, Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    rules: &[
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Parameters),
        ("responses", 9, Named(1, &[1], &RESPONSE)),
    ],
    extensions: 13,
};

static RESPONSE: Message =
    Message { rules: &[("description", 1, Text), ("schema", 2, Within(&[1], &SCHEMA))], extensions: 5 };

static BODY: Message = Message {
    rules: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, One(&SCHEMA)),
    ],
    extensions: 6,
};

static QUERY: Message = Message {
    rules: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("uniqueItems", 20, Flag),
    ],
    extensions: 23,
};

static IN_PATH: Message = Message {
    rules: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("uniqueItems", 19, Flag),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    rules: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Flag),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, SchemaOrFlag),
        ("type", 22, Types),
        ("items", 23, Within(&[1], &SCHEMA)),
        ("allOf", 24, Many(&SCHEMA)),
        ("properties", 25, Named(1, &[], &SCHEMA)),
        ("example", 30, Any),
    ],
    extensions: 31,
};

/// The whole document.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(kind: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let Value::Object(map) = value else { return out };
    for (key, tag, form) in kind.rules {
        if let Some(value) = map.get(*key) {
            put(*tag, form, value, &mut out);
        }
    }
    for (name, value) in map.iter().filter(|(key, _)| key.starts_with("x-")) {
        put_bytes(kind.extensions, &pair(name, &any(value)), &mut out);
    }
    out
}

fn put(tag: u32, form: &Form, value: &Value, out: &mut Vec<u8>) {
    let items = || value.as_array().into_iter().flatten();
    match form {
        Text => put_text(tag, value, out),
        Texts => items().for_each(|text| put_text(tag, text, out)),
        Flag => put_varint(tag, u64::from(value == &Value::Bool(true)), out),
        Int => put_varint(tag, value.as_i64().unwrap_or(0).cast_unsigned(), out),
        Any => put_bytes(tag, &any(value), out),
        Anys => items().for_each(|item| put_bytes(tag, &any(item), out)),
        One(kind) => put_bytes(tag, &message(kind, value), out),
        Many(kind) => items().for_each(|item| put_bytes(tag, &message(kind, item), out)),
        Within(wrapping, kind) => put_bytes(tag, &wrapped(wrapping, message(kind, value)), out),
        Named(pairs, wrapping, kind) => {
            let named = |(name, value): (&String, &Value)| pair(name, &wrapped(wrapping, message(kind, value)));
            let mut list = Vec::new();
            value.as_object().into_iter().flatten().for_each(|entry| put_bytes(*pairs, &named(entry), &mut list));
            put_bytes(tag, &list, out);
        }
        Types => {
            let mut list = Vec::new();
            items().chain(Some(value).filter(|v| v.is_string())).for_each(|text| put_text(1, text, &mut list));
            put_bytes(tag, &list, out);
        }
        SchemaOrFlag => {
            let mut choice = Vec::new();
            match value {
                Value::Bool(on) => put_varint(2, u64::from(*on), &mut choice),
                schema => put_bytes(1, &message(&SCHEMA, schema), &mut choice),
            }
            put_bytes(tag, &choice, out);
        }
        Parameters => items().filter_map(Value::as_object).for_each(|item| put_bytes(tag, &parameter(item), out)),
    }
}

/// Which message a parameter is follows from where it stands in a request.
fn parameter(value: &Map<String, Value>) -> Vec<u8> {
    let (wrapping, kind): (&[u32], _) = match value.get("in").and_then(Value::as_str) {
        Some("body") => (&[1, 1], &BODY),
        Some("path") => (&[1, 2, 4], &IN_PATH),
        _ => (&[1, 2, 3], &QUERY),
    };
    wrapped(wrapping, message(kind, &Value::Object(value.clone())))
}

fn wrapped(tags: &[u32], inner: Vec<u8>) -> Vec<u8> {
    tags.iter().rev().fold(inner, |inner, tag| {
        let mut out = Vec::with_capacity(inner.len() + 6);
        put_bytes(*tag, &inner, &mut out);
        out
    })
}

fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 12);
    put_bytes(1, name.as_bytes(), &mut out);
    put_bytes(2, value, &mut out);
    out
}

/// Any value is its YAML text.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(2, yaml(value).as_bytes(), &mut out);
    out
}

fn put_text(tag: u32, value: &Value, out: &mut Vec<u8>) {
    put_bytes(tag, value.as_str().unwrap_or_default().as_bytes(), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;
    use serde_json::json;

    /// Fields of a message: tag, and the bytes of those that have a length.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
        let varint = |bytes: &mut &[u8]| {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        };
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = varint(&mut bytes);
            let length = if key & 7 == 2 { usize::try_from(length).unwrap() } else { 0 };
            let (field, rest) = bytes.split_at(length);
            out.push((key >> 3, field));
            bytes = rest;
        }
        out
    }

    fn at<'a>(bytes: &'a [u8], path: &[u64]) -> &'a [u8] {
        path.iter().fold(bytes, |bytes, tag| fields(bytes).into_iter().find(|(found, _)| found == tag).unwrap().1)
    }

    #[test]
    fn a_schema_is_found_by_its_tags() {
        let document = json!({"swagger": "2.0", "definitions": {"a.B": {
            "type": "object", "required": ["c"], "properties": {"c": {"type": "array", "items": {"$ref": "#/definitions/D"}}},
            "x-kubernetes-group-version-kind": [{"group": "", "kind": "B", "version": "v1"}]}}});
        let bytes = encode(&document);
        assert_eq!(at(&bytes, &[1]), b"2.0");
        let named = at(&bytes, &[9, 1]);
        assert_eq!(at(named, &[1]), b"a.B");
        let schema = at(named, &[2]);
        assert_eq!(at(schema, &[22, 1]), b"object");
        assert_eq!(at(schema, &[19]), b"c");
        assert_eq!(at(schema, &[25, 1, 2, 23, 1, 1]), b"#/definitions/D");
        assert_eq!(at(schema, &[31, 1]), b"x-kubernetes-group-version-kind");
        assert_eq!(at(schema, &[31, 2, 2]), b"- group: \"\"\n  kind: B\n  version: v1\n");
    }

    #[test]
    fn parameters_are_what_their_place_says() {
        let bytes = encode(&json!({"paths": {"/p": {
            "parameters": [{"in": "path", "name": "name", "type": "string"}],
            "patch": {"parameters": [{"in": "body", "name": "body", "schema": {"type": "object"}}],
                "responses": {"200": {"description": "OK", "schema": {"type": "string"}}}}}}}));
        let path = at(&bytes, &[8, 2, 2]);
        assert_eq!(at(path, &[9, 1, 2, 4, 4]), b"name");
        assert_eq!(at(path, &[8, 8, 1, 1, 5, 22, 1]), b"object");
        assert_eq!(at(path, &[8, 9, 1, 2, 1, 2, 1, 22, 1]), b"string");
    }

    /// Every key that the generated document uses has a tag.
    #[test]
    fn nothing_is_left_out() {
        fn check(kind: &Message, value: &Value, place: &str) {
            for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !key.starts_with("x-")) {
                let place = format!("{place}/{key}");
                let (.., form) =
                    kind.rules.iter().find(|(known, ..)| known == key).unwrap_or_else(|| panic!("{place}"));
                match form {
                    One(inner) | Within(_, inner) => check(inner, value, &place),
                    Many(inner) => value.as_array().unwrap().iter().for_each(|v| check(inner, v, &place)),
                    Named(_, _, inner) => value.as_object().unwrap().values().for_each(|v| check(inner, v, &place)),
                    SchemaOrFlag => check(&SCHEMA, value, &place),
                    Parameters => value.as_array().unwrap().iter().for_each(|v| match v["in"].as_str().unwrap() {
                        "body" => check(&BODY, v, &place),
                        "path" => check(&IN_PATH, v, &place),
                        "query" => check(&QUERY, v, &place),
                        other => panic!("{place}: {other}"),
                    }),
                    _ => {}
                }
            }
        }
        let document: Value = serde_json::from_slice(&super::super::v2(&Registry::builtin())).unwrap();
        check(&DOCUMENT, &document, "");
    }
}
