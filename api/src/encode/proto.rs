//! Protobuf answers, written by the tags of the type table. As in Go, scalars that are not pointers are written even when zero.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::quantity::Quantity;
use crate::schema::{Field, Schema, Shape, Type};

/// `k8s\0`, then the object in its envelope. `None` for kinds without a built-in type.
pub fn protobuf(schema: &Schema, object: &Value) -> Option<Vec<u8>> {
    let Schema::Type(ty) = schema else { return None };
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let mut meta = Vec::new();
    put_bytes(1, text("apiVersion").as_bytes(), &mut meta);
    put_bytes(2, text("kind").as_bytes(), &mut meta);
    let mut out = b"k8s\0".to_vec();
    put_bytes(1, &meta, &mut out);
    put_bytes(2, &message(ty, object), &mut out);
    put_bytes(3, b"", &mut out);
    put_bytes(4, b"", &mut out);
    Some(out)
}

fn message(ty: &Type, object: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for field in ty.declared.iter().filter(|f| f.tag > 0) {
        match field.shape.ty() {
            Some(inner) if field.inline => put_bytes(field.tag, &message(inner, object), &mut out),
            _ => put_field(field, &object[&*field.name], &mut out),
        }
    }
    out
}

fn put_field(field: &Field, value: &Value, out: &mut Vec<u8>) {
    match (&field.shape, value) {
        (Shape::List(item), Value::Array(items)) => items.iter().for_each(|v| put(field.tag, item, v, out)),
        (Shape::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                put(2, item, value, &mut entry);
                put_bytes(field.tag, &entry, out);
            }
        }
        (Shape::List(_) | Shape::Map(_), _) => {}
        (_, Value::Null) if field.pointer => {}
        (shape, value) => put(field.tag, shape, value, out),
    }
}

fn put(tag: u32, shape: &Shape, value: &Value, out: &mut Vec<u8>) {
    let text = value.as_str().unwrap_or_default();
    match shape {
        Shape::String => put_bytes(tag, text.as_bytes(), out),
        Shape::Bytes => put_bytes(tag, &STANDARD.decode(text).unwrap_or_default(), out),
        Shape::Bool => put_varint(tag, u64::from(value == &Value::Bool(true)), out),
        Shape::Int32 | Shape::Int64 => put_varint(tag, value.as_i64().unwrap_or(0).cast_unsigned(), out),
        Shape::Float => {
            varint(u64::from(tag) << 3 | 1, out);
            out.extend(value.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        Shape::Time | Shape::MicroTime => put_bytes(tag, &time(text), out),
        Shape::Duration => put_bytes(tag, &nested(|m| put_varint(1, nanoseconds(text), m)), out),
        Shape::Quantity => {
            let amount = Quantity::parse(text).unwrap_or(Quantity::ZERO).to_string();
            put_bytes(tag, &nested(|m| put_bytes(1, amount.as_bytes(), m)), out);
        }
        Shape::IntOrString => {
            let body = nested(|m| {
                put_varint(1, u64::from(value.is_string()), m);
                put_varint(2, value.as_i64().unwrap_or(0).cast_unsigned(), m);
                put_bytes(3, text.as_bytes(), m);
            });
            put_bytes(tag, &body, out);
        }
        Shape::Any | Shape::Open => {
            let raw =
                if value.is_null() { Vec::new() } else { nested(|m| put_bytes(1, value.to_string().as_bytes(), m)) };
            put_bytes(tag, &raw, out);
        }
        Shape::Struct(_) => put_bytes(tag, &shape.ty().map(|ty| message(ty, value)).unwrap_or_default(), out),
        // A named list type is a message with one repeated field.
        Shape::List(item) => {
            let body = nested(|m| value.as_array().into_iter().flatten().for_each(|v| put(1, item, v, m)));
            put_bytes(tag, &body, out);
        }
        // What was made while the server ran has no tags, and never comes here.
        Shape::Map(_) | Shape::Made(_) | Shape::Described(_) => {}
    }
}

fn nested(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn time(text: &str) -> Vec<u8> {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => nested(|m| {
            put_varint(1, time.as_second().cast_unsigned(), m);
            put_varint(2, i64::from(time.subsec_nanosecond()).cast_unsigned(), m);
        }),
        Err(_) => Vec::new(),
    }
}

/// Durations are kept as text; what does not parse is zero.
fn nanoseconds(text: &str) -> u64 {
    let span: Result<jiff::SignedDuration, _> = text.parse();
    span.ok().and_then(|s| i64::try_from(s.as_nanos()).ok()).unwrap_or(0).cast_unsigned()
}

pub(crate) fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

pub(crate) fn put_varint(tag: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3, out);
    varint(value, out);
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
    use crate::decode::{FieldValidation, MediaType, canonical, object};
    use crate::kind::Registry;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_back() {
        let kind = Registry::builtin().find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "command": ["x"],
                "livenessProbe": {"httpGet": {"port": "web"}}, "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "500m"}}}],
                "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}});
        let pod = canonical(&kind.gvk(), &kind.schema, &pod);
        let bytes = protobuf(&kind.schema, &pod).unwrap();
        let back = object(&kind, MediaType::Protobuf, &bytes, FieldValidation::Strict).unwrap();
        assert_eq!(back.value, pod);
    }
}
