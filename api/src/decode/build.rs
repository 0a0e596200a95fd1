//! The typed stage: a value read by its schema, with Go's type errors, strict findings, and canonical output.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::json::Json;
use crate::budget::Budget;
use crate::quantity::Quantity;
use crate::schema::{Field, Reading, Shape, Type, Unknown};
use crate::time;

/// What was found on the way.
#[derive(Debug, Default)]
pub struct Findings {
    /// The first error that makes the value unusable.
    pub error: Option<String>,
    /// The same in the words of upstream's converter, which reads the outcome of strategic merge patches.
    pub converter: Option<String>,
    /// Unknown and duplicate fields, in order.
    pub strict: Vec<String>,
}

/// Reads `node` as an object of type `ty`.
pub fn object(ty: &Type, node: &Json) -> (Map<String, Value>, Findings) {
    let mut builder = Builder { findings: Findings::default(), path: String::new(), names: Vec::new(), owner: "" };
    let map = match node {
        Json::Object(entries) => builder.structure(ty, entries, Map::new()),
        _ => builder.structure(ty, &[], Map::new()),
    };
    (map, builder.findings)
}

/// Go converts whole numbers to text, and numbers to each other, so it says of these that it cannot; of the others that
/// it knows no such type.
fn restored(node: &Json, shape: &Shape) -> Option<String> {
    let kind = match node {
        Json::Number(text) if text.contains(['.', 'e', 'E']) => "float64",
        Json::Number(_) => "int64",
        Json::List(_) => "slice",
        Json::Object(_) => "map",
        other => other.go_kind(),
    };
    match shape {
        Shape::Map(_) => Some(format!("cannot restore map from {kind}")),
        Shape::List(_) | Shape::Bytes => Some(format!("cannot restore slice from {kind}")),
        Shape::String if kind == "int64" => Some("cannot convert int64 to string".into()),
        Shape::Int32 | Shape::Int64 if kind == "float64" => {
            Some(format!("cannot convert float64 to {}", shape.go_name()))
        }
        // What is too large for its type Go cuts off without a word.
        Shape::Int32 | Shape::Int64 if kind == "int64" => None,
        Shape::String | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Float => {
            Some(format!("unrecognized type: {}", shape.go_name()))
        }
        Shape::Struct(_) => Some(format!("cannot restore struct from: {kind}")),
        _ => None,
    }
}

struct Builder<'t> {
    findings: Findings,
    /// With indexes and map keys, as strict findings show it.
    path: String,
    /// Field names only, as Go's type errors show them.
    names: Vec<&'t str>,
    owner: &'t str,
}

impl<'t> Builder<'t> {
    /// A strict finding about the place that was reached. Only so many are told: a long path may have many of them.
    fn find(&mut self, what: &str) {
        if self.findings.strict.len() < Budget::CLIENT.findings {
            self.findings.strict.push(format!("{what} field {:?}", self.path));
        }
    }

    fn fail(&mut self, error: String) -> Value {
        self.findings.error.get_or_insert(error);
        Value::Null
    }

    fn mismatch(&mut self, node: &Json, shape: &Shape) -> Value {
        if self.findings.error.is_none() {
            self.findings.converter = restored(node, shape);
        }
        let what = match node {
            Json::Number(text) if matches!(shape, Shape::Int32 | Shape::IntOrString | Shape::Int64 | Shape::Float) => {
                format!("number {text}")
            }
            _ => node.go_kind().to_string(),
        };
        let target = shape.go_name();
        let error = if self.owner.is_empty() {
            format!("json: cannot unmarshal {what} into Go value of type {target}")
        } else {
            let field = format!("{}.{}", self.owner, self.names.join("."));
            format!("json: cannot unmarshal {what} into Go struct field {field} of type {target}")
        };
        self.fail(error)
    }

    /// Runs `read` with the path extended.
    fn within<T>(&mut self, step: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let out = read(self);
        self.path.truncate(length);
        out
    }

    fn structure(
        &mut self,
        ty: &'t Type,
        entries: &[(String, Json)],
        mut map: Map<String, Value>,
    ) -> Map<String, Value> {
        let mut seen = HashSet::new();
        for (name, node) in entries {
            let known = ty.field(name);
            if (known.is_some() || ty.unknown == Unknown::Kept) && !seen.insert(name.as_str()) {
                self.within(name, |b| b.find("duplicate"));
            }
            match (known, ty.reading, ty.unknown) {
                (Some(field), Reading::Typed, _) => self.field(ty, field, node, &mut map),
                (Some(field), Reading::Plain, _) => self.plain_field(field, node, &mut map),
                (None, _, Unknown::Kept) => {
                    let value = self.within(name, |b| b.kept(node));
                    map.insert(name.clone(), value);
                }
                (None, _, Unknown::Dropped) => self.within(name, |b| b.find("unknown")),
            }
        }
        if ty.reading == Reading::Typed {
            complete(ty, &mut map);
        }
        map
    }

    fn plain_field(&mut self, field: &'t Field, node: &Json, map: &mut Map<String, Value>) {
        let value = self.within(&field.name, |b| b.plain(&field.shape, node));
        if value.is_null() && is_no_value(field) {
            map.remove(&*field.name);
        } else {
            map.insert(field.name.to_string(), value);
        }
    }

    /// A value as it comes, less what its type does not have.
    fn plain(&mut self, shape: &'t Shape, node: &Json) -> Value {
        match (shape, node) {
            (Shape::Described(field), _) => self.plain(&field.shape, node),
            (Shape::Struct(_), _) => {
                let (owner, names) = (std::mem::take(&mut self.owner), std::mem::take(&mut self.names));
                let value = self.value(shape, node, None);
                (self.owner, self.names) = (owner, names);
                value
            }
            (Shape::Made(ty), Json::Object(entries)) => Value::Object(self.structure(ty, entries, Map::new())),
            (Shape::Map(item), Json::Object(entries)) => {
                let mut map = Map::new();
                let null_is_none = match &**item {
                    Shape::Described(field) => is_no_value(field),
                    item => *item != Shape::Open,
                };
                for (key, node) in entries.iter().filter(|(_, node)| !null_is_none || *node != Json::Null) {
                    let value = self.within(key, |b| {
                        if map.contains_key(key) {
                            b.find("duplicate");
                        }
                        b.plain(item, node)
                    });
                    map.insert(key.clone(), value);
                }
                Value::Object(map)
            }
            (Shape::List(item), Json::List(items)) => {
                let items = items.iter().enumerate();
                items.map(|(i, node)| self.within(&format!("[{i}]"), |b| b.plain(item, node))).collect()
            }
            _ => self.kept(node),
        }
    }

    /// A value that no type says anything of.
    fn kept(&mut self, node: &Json) -> Value {
        match node {
            Json::Object(entries) => {
                let mut map = Map::new();
                for (key, node) in entries {
                    let value = self.within(key, |b| {
                        if map.contains_key(key) {
                            b.find("duplicate");
                        }
                        b.kept(node)
                    });
                    map.insert(key.clone(), value);
                }
                Value::Object(map)
            }
            Json::List(items) => {
                let items = items.iter().enumerate();
                items.map(|(i, node)| self.within(&format!("[{i}]"), |b| b.kept(node))).collect()
            }
            scalar => scalar.to_value(),
        }
    }

    fn field(&mut self, ty: &'t Type, field: &'t Field, node: &Json, map: &mut Map<String, Value>) {
        let before = map.remove(&*field.name);
        if *node == Json::Null && !field.pointer && field.shape.is_scalar() {
            map.extend(before.map(|value| (field.name.to_string(), value)));
            return;
        }
        let owner = std::mem::replace(&mut self.owner, ty.short_name());
        self.names.push(&field.name);
        let value = self.within(&field.name, |b| b.value(&field.shape, node, before));
        self.names.pop();
        self.owner = owner;
        map.insert(field.name.to_string(), value);
    }

    fn value(&mut self, shape: &'t Shape, node: &Json, before: Option<Value>) -> Value {
        if *node == Json::Null {
            return Value::Null;
        }
        match (shape, node) {
            (Shape::Any, _) => node.to_value(),
            (Shape::Struct(_), Json::Object(entries)) => match shape.ty() {
                Some(ty) => {
                    let before = match before {
                        Some(Value::Object(map)) => map,
                        _ => Map::new(),
                    };
                    Value::Object(self.structure(ty, entries, before))
                }
                None => node.to_value(),
            },
            (Shape::Map(item), Json::Object(entries)) => self.map(item, entries, before),
            (Shape::List(item), Json::List(items)) => {
                let items: Vec<Value> = items
                    .iter()
                    .enumerate()
                    .map(|(i, node)| self.within(&format!("[{i}]"), |b| b.item(item, node)))
                    .collect();
                if items.is_empty() { Value::Null } else { Value::Array(items) }
            }
            (Shape::String, Json::String(text)) => json!(text),
            (Shape::Bool, Json::Bool(on)) => json!(on),
            (Shape::Int32 | Shape::IntOrString, Json::Number(text)) => match text.parse::<i32>() {
                Ok(n) => json!(n),
                Err(_) => self.mismatch(node, shape),
            },
            (Shape::Int64, Json::Number(text)) => match text.parse::<i64>() {
                Ok(n) => json!(n),
                Err(_) => self.mismatch(node, shape),
            },
            (Shape::Float, Json::Number(text)) => match text.parse::<f64>() {
                Ok(n) => float(n),
                Err(_) => self.mismatch(node, shape),
            },
            (Shape::IntOrString, Json::String(text)) => json!(text),
            (Shape::Bytes, Json::String(text)) => self.bytes(text),
            (Shape::Quantity, Json::String(text) | Json::Number(text)) => match Quantity::parse(text.trim()) {
                Ok(quantity) => json!(quantity.to_string()),
                Err(error) => self.fail(error.to_string()),
            },
            (Shape::Quantity, _) => self.fail(crate::quantity::QuantityError::Format.to_string()),
            (Shape::Time, Json::String(text)) => self.time(time::parse(text).map(time::rfc3339)),
            (Shape::MicroTime, Json::String(text)) => self.time(time::parse_micro(text).map(time::micro)),
            (Shape::Time | Shape::MicroTime, _) => {
                self.fail(format!("json: cannot unmarshal {} into Go value of type string", node.go_kind()))
            }
            (Shape::Duration, Json::String(text)) => json!(text),
            _ => self.mismatch(node, shape),
        }
    }

    /// An element of a list or map: null is the zero value.
    fn item(&mut self, shape: &'t Shape, node: &Json) -> Value {
        if *node == Json::Null { zero(shape) } else { self.value(shape, node, None) }
    }

    fn map(&mut self, item: &'t Shape, entries: &[(String, Json)], before: Option<Value>) -> Value {
        let mut map = match before {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let mut seen = HashSet::new();
        for (key, node) in entries {
            let value = self.within(key, |b| {
                if !seen.insert(key.as_str()) {
                    b.find("duplicate");
                }
                b.item(item, node)
            });
            map.insert(key.clone(), value);
        }
        if map.is_empty() { Value::Null } else { Value::Object(map) }
    }

    fn time(&mut self, read: Result<String, String>) -> Value {
        match read {
            Ok(text) => json!(text),
            Err(error) => self.fail(error),
        }
    }

    fn bytes(&mut self, text: &str) -> Value {
        let packed: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        match STANDARD.decode(&packed) {
            Ok(bytes) => json!(STANDARD.encode(bytes)),
            Err(error) => {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    _ => packed.len(),
                };
                self.fail(format!("illegal base64 data at input byte {at}"))
            }
        }
    }
}

/// As Go writes it: whole numbers without a point.
fn float(n: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough to be exact")]
    if n.fract() == 0.0 && n.abs() <= EXACT { json!(n as i64) } else { json!(n) }
}

/// A null here is as good as nothing: it is no value of the field, and no default takes its place.
fn is_no_value(field: &Field) -> bool {
    !field.nullable && field.default.is_none()
}

/// The zero value as Go encodes it.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Duration => json!(""),
        Shape::Bool => json!(false),
        Shape::Int32 | Shape::Int64 | Shape::Float | Shape::IntOrString => json!(0),
        Shape::Quantity => json!("0"),
        Shape::Struct(_) => {
            let mut map = Map::new();
            if let Some(ty) = shape.ty() {
                complete(ty, &mut map);
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Adds what Go writes for absent fields and drops what it leaves out.
fn complete(ty: &Type, map: &mut Map<String, Value>) {
    for field in &ty.fields {
        let absent = match map.get(&*field.name) {
            None | Some(Value::Null) => true,
            Some(value) => field.shape != Shape::Any && field.omits(value),
        };
        if !absent {
            continue;
        }
        map.remove(&*field.name);
        let value = if field.pointer { Value::Null } else { zero(&field.shape) };
        let written = match &field.shape {
            Shape::Struct(_) | Shape::Quantity | Shape::IntOrString | Shape::Time | Shape::MicroTime
                if !field.pointer =>
            {
                !field.omits(&value)
            }
            _ => !field.omit_empty,
        };
        if written {
            map.insert(field.name.to_string(), value);
        }
    }
}
